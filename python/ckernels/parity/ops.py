"""Level 1: every op, forward and backward, in every dtype, on every instruction set, against float64 and PyTorch."""

import contextlib
import importlib
import importlib.util
import math
import time
from dataclasses import dataclass, field

import numpy as np

from . import levels
from .compare import Verdict, compare
from .levels import Case
from .machine import blas, build_info
from .specs import SPECS, names

#: Documented ceilings by the dtype of a call, which hold besides the rule and are far looser: of the largest error,
#: relative to the larger of 1 and max|exact|, and of the NMSE.
CEILING = {"float32": 1e-5, "float16": math.inf, "bfloat16": math.inf}
NMSE_CEILING = {"float32": 1e-7, "float16": 1e-6, "bfloat16": 1e-4}

# Worse ones last: the verdict of a case is the worst of its probes.
_ORDER = [
    Verdict.EXACT,
    Verdict.WITHIN_BUDGET,
    Verdict.UNDECIDED,
    Verdict.VACUOUS,
    Verdict.REFERENCE_WRONG,
    Verdict.EXCESS_DRIFT,
    Verdict.STRUCTURAL,
    levels.ERROR,
]

#: Ops that can multiply with OpenBLAS instead: a row of its own in the table, on the best instruction set.
_WITH_BLAS = ("linear", "matmul")
OPENBLAS = "openblas"

#: Instruction sets and devices that the table names even where they cannot run.
_ELSEWHERE = {
    "amx": "no kernels for AMX in this build",
    "cuda": "no CUDA kernels in this build",
}


@dataclass
class _Tally:
    """What the probes of one op, output, dtype and instruction set came to."""

    dtype: str
    verdict: str = Verdict.EXACT
    margin: float = 0.0
    worst: object = None  # (report, label) of the worst probe
    error: float = 0.0
    peer_error: float = 0.0
    nmse: float = 0.0
    own: list = field(default_factory=list)  # (max, mean square) relative to the result's size
    peer: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    probes: int = 0
    seconds: float = 0.0

    def add(self, report, probe):
        label = probe.label
        self.probes += 1
        verdict, reason = report.verdict, report.reason + (f"; {report.where}" if report.where else "")
        if report.ok and not probe.is_extreme(self.dtype):
            relative = report.max_abs / max(1.0, report.exact_max)
            if relative > CEILING[self.dtype] or report.nmse > NMSE_CEILING[self.dtype]:
                verdict = Verdict.EXCESS_DRIFT
                reason = f"beyond the documented ceiling: error {relative:.2g}, nmse {report.nmse:.2g}"
        if not verdict.ok:
            self.failures.append(f"{label}: {reason}")
        worse = _ORDER.index(verdict) > _ORDER.index(self.verdict)
        if self.worst is None or worse or (verdict == self.verdict and report.margin > self.margin):
            self.worst = (report, label)
        if worse:
            self.verdict = verdict
        self.margin = max(self.margin, report.margin)
        if not math.isfinite(report.max_abs):
            return
        self.error = max(self.error, report.max_abs)
        self.nmse = max(self.nmse, report.nmse)
        if report.peer_max is not None and report.exact_max:
            self.peer_error = max(self.peer_error, report.peer_max)
            self.own.append((report.max_abs / report.exact_max, (report.rms / report.exact_rms) ** 2))
            self.peer.append((report.peer_max / report.exact_max, (report.peer_rms / report.exact_rms) ** 2))

    def fail(self, exception, label):
        self.verdict = levels.ERROR
        self.failures.append(f"{label}: {type(exception).__name__}: {exception}")

    def ratios(self):
        """Our error over the peer's, relative to the result's size, of all probes together: of maximum and of RMS."""
        if not self.peer:
            return None, None
        ours = max(m for m, _ in self.own), math.sqrt(sum(s for _, s in self.own))
        theirs = max(m for m, _ in self.peer), math.sqrt(sum(s for _, s in self.peer))
        return tuple(0.0 if a == 0 else a / b if b else math.inf for a, b in zip(ours, theirs, strict=True))

    def case(self, spec, what, isa):
        report, label = self.worst or (None, "")
        note = "; ".join(self.failures[:3]) + (f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else "")
        measured = report is not None
        of_max, of_rms = self.ratios()
        return Case(
            "ops",
            spec.name,
            what,
            self.dtype,
            isa,
            self.verdict,
            self.margin if measured else None,
            self.error if measured else None,
            self.peer_error if self.peer else None,
            None if of_max is None else max(of_max, of_rms),
            self.nmse if measured else None,
            note,
            self.seconds,
            {"probes": self.probes, "worst_probe": label, "ratio_max": of_max, "ratio_rms": of_rms},
            report,
        )


def _lookup(package, dotted):
    for part in dotted.split("."):
        try:
            package = getattr(package, part)
        except (AttributeError, ImportError):
            return None
    return package


def _isas_to_run(ck, options):
    offered = ck.isas()
    if options.isa and options.isa not in [*offered, *_reasons(ck), OPENBLAS]:
        raise levels.OptionError(f"'{options.isa}' is no instruction set; this build offers {', '.join(offered)}")
    return [isa for isa in offered if options.isa in (None, isa)]


@contextlib.contextmanager
def _on(ck, where):
    """Run on an instruction set, or on OpenBLAS; make sure that it is the one in use."""
    if where == OPENBLAS:
        before = ck.get_matmul_backend()
        ck.set_matmul_backend(OPENBLAS)
        try:
            yield
        finally:
            ck.set_matmul_backend(before)
        return
    with ck.use(where):
        if ck.isa() != where:
            raise AssertionError(f"the code ran on {ck.isa()}")
        yield


def _has_openblas(ck):
    """Whether OpenBLAS can be chosen, and why not."""
    if not hasattr(ck, "set_matmul_backend"):
        return False, "this build has none"
    name, lacking = blas()
    return name is not None, lacking


def _reasons(ck):
    """Return {instruction set or device: why it is not measured here}."""
    reasons = dict(_ELSEWHERE)
    lacking = build_info().get("lacking", {})
    reasons.update({isa: f"this CPU lacks {what}" for isa, what in lacking.items() if what})
    return {isa: why for isa, why in reasons.items() if isa not in ck.isas()}


def _check_dtype(spec, name, array, inputs):
    """A result of another dtype than documented is wrong, however small its error."""
    dtype, expected = np.asarray(array).dtype, spec.result_dtype(name, inputs)
    if dtype.kind in "iub" or name in spec.derived:
        return
    if dtype.name != expected:
        raise AssertionError(f"the result '{name}' is {dtype.name}, not {expected}")


def _measure(ck, spec, probe, isas, inputs, dtype, tallies, errors):
    """Run one probe on every instruction set; the references are computed once."""
    exact, peer = spec.exact(inputs), spec.peer(inputs)
    bound = None if spec.bound is None else spec.bound(inputs)
    before = {key: value.copy() for key, value in inputs.items() if isinstance(value, np.ndarray)}
    trivial = {f"input '{key}'": value for key, value in before.items()}
    for isa in isas:
        start = time.perf_counter()
        try:
            with _on(ck, isa):
                outputs = spec.run(ck, inputs)
            for key, value in before.items():
                if value.tobytes() != inputs[key].tobytes():
                    raise AssertionError(f"the input '{key}' was modified")
            reports = {}
            for name, value in exact.items():
                what = f"{spec.name} {spec.what} {name} ({probe.label}) {dtype} on {isa}"
                _check_dtype(spec, name, outputs[name], inputs)
                if spec.bitwise:
                    reports[name] = compare(outputs[name], peer[name], bitwise=True, name=what)
                else:
                    reports[name] = compare(outputs[name], value, peer[name], bound=bound, trivial=trivial, name=what)
        except Exception as exception:  # whatever the code under test raises is its failure, and the run goes on
            errors.setdefault(isa, []).append((exception, probe.label))
            continue
        for name, report in reports.items():
            tally = tallies.setdefault((isa, name), _Tally(dtype))
            tally.add(report, probe)
            tally.seconds += (time.perf_counter() - start) / len(reports)


def _variants(spec, dtype):
    """Yield (dtype of the weights, suffix of the pass): 16-bit ops take float32 weights too."""
    yield dtype, ""
    if spec.weights and dtype != "float32":
        yield "float32", ", float32 weights"


def _cases_of(ck, spec, dtype, isas, options):
    probes = [p for p in spec.probes if p.quick or not options.quick]
    rounds = 5 if options.stress else 2 if options.full else 1
    for weights, suffix in _variants(spec, dtype):
        tallies, errors = {}, {}
        for repeat in range(rounds):
            for probe in probes:
                options.tell(f"{spec.name} {spec.what}{suffix}, {dtype}: {probe.label}")
                inputs = spec.inputs(probe, options.seed + repeat, dtype, weights)
                if suffix and not any(isinstance(inputs.get(name), np.ndarray) for name in spec.weights):
                    continue
                _measure(ck, spec, probe, isas, inputs, dtype, tallies, errors)
        for isa in isas:
            for exception, label in errors.get(isa, []):
                outputs = [name for i, name in tallies if i == isa] or [""]
                for name in outputs:
                    tallies.setdefault((isa, name), _Tally(dtype)).fail(exception, label)
            for (i, name), tally in tallies.items():
                if i == isa:
                    yield tally.case(spec, f"{spec.what} {name}{suffix}".strip(), isa)


def run(options, ck=None):
    """Compare every op and yield a case for each pass, output and instruction set.

    Parameters
    ----------
    options : Options
        ``op``, ``isa``, ``dtype`` (several with commas between them; by default all), ``seed``, ``quick`` (fewer
        probes), ``full`` and ``stress`` (more seeds).
    ck : module, optional
        The package under test, by default this one.
    """
    if ck is None:
        ck = importlib.import_module("ckernels")
    if options.op and options.op not in names():
        raise levels.OptionError(f"no op is called '{options.op}'; there are {', '.join(names())}")
    built = build_info()["dtypes"].replace(",", " ").split()
    dtypes = levels.dtypes_of(options) or levels.DTYPES
    for dtype in dtypes:
        if dtype not in built:
            why = f"no kernels for {dtype} in this build"
            yield levels.not_measured("ops", options.op or "all ops", why, dtype=dtype)
    dtypes = [dtype for dtype in dtypes if dtype in built]
    if not dtypes:
        return
    isas = _isas_to_run(ck, options)
    if importlib.util.find_spec("torch") is None:
        yield levels.not_measured(
            "ops", options.op or "all ops", "PyTorch is not installed: pip install 'ckernels[parity]'"
        )
        return
    with _one_thread():
        yield from _measured(ck, dtypes, isas, options)
    for isa, why in _reasons(ck).items():
        if options.isa in (None, isa):
            yield levels.not_measured("ops", options.op or "all ops", why, isa=isa)


@contextlib.contextmanager
def _one_thread():
    """Run PyTorch on one thread: its error then depends on the inputs alone, and small tensors are faster so."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measured(ck, dtypes, isas, options):
    with_blas, lacking = _has_openblas(ck)
    if not with_blas and options.op in (None, *_WITH_BLAS):
        yield levels.not_measured("ops", options.op or "linear, matmul", lacking, isa=OPENBLAS)
    for spec in SPECS:
        if options.op not in (None, spec.name):
            continue
        missing = [name for name in spec.needs if _lookup(ck, name) is None]
        extra = [OPENBLAS] if spec.name in _WITH_BLAS and with_blas and options.isa in (None, OPENBLAS) else []
        for dtype in dtypes:
            if dtype not in spec.dtypes:
                continue
            if missing:
                why = f"the package has no {', '.join(missing)}"
                yield levels.unmeasured("ops", spec.name, why, spec.what, dtype=dtype)
            else:
                # OpenBLAS multiplies float32 alone; 16-bit products keep to the kernels of this package.
                yield from _cases_of(ck, spec, dtype, [*isas, *(extra if dtype == "float32" else [])], options)
