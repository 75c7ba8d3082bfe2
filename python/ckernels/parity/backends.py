"""op-diff: every op on two or more backends from one seed, each against float64 and every pair against each other.

A backend is an instruction set of this build, ``openblas`` (products alone), ``torch``, or ``cuda`` where there is a
device. Each is a row: error, ratio to PyTorch's, NMSE and margin by the rule of :func:`ckernels.parity.compare`.
PyTorch is the measure of that rule, so its own row is held to the documented ceilings instead, and beyond them it is
REFERENCE_WRONG, but for what is known (LOOSE). A pair is a row too: what two backends may be apart is what both may
be off. avx2 and avx512 promise the same bits, and are held to them. With fewer than two backends nothing is compared,
and the verdict is VACUOUS.
"""

import importlib.util
import itertools
import math
import time

import numpy as np

from . import levels, ops
from .compare import Verdict, compare
from .machine import build_info
from .specs import NAMED
from .tally import CEILING, NMSE_CEILING, Tally

TORCH, CUDA = "torch", "cuda"
#: Backends that promise each other's bits, in every dtype.
SAME_BITS = frozenset({"avx2", "avx512"})
#: Where PyTorch's own error is beyond what is documented here, and why: known, told in a note, and no failure of ours.
LOOSE = {
    ("embedding", "backward"): "PyTorch adds the gradients of a row one by one in 16 bits",
    ("sigmoid", "backward"): "PyTorch takes y (1 - y) of a y that is rounded to 16 bits",
    ("rope_table", "forward"): "transformers computes frequencies and angles in float32",
}


def run(options, ck, specs):
    """Yield a case for each backend and each pair, by op, pass, output and dtype.

    Parameters
    ----------
    options : Options
        ``backends``, with commas between them; else as of level 1.
    ck : module
    specs : sequence of OpSpec
    """
    asked = named(options.backends, ck)
    dtypes = levels.dtypes_of(options) or levels.DTYPES
    built = build_info()["dtypes"].replace(",", " ").split()
    for dtype in (d for d in dtypes if d not in built):
        yield levels.not_measured("ops", options.op or "all ops", f"no kernels for {dtype} in this build", dtype=dtype)
    if importlib.util.find_spec("torch") is None:
        why = "PyTorch is not installed: pip install 'ckernels[parity]'"
        yield levels.not_measured("ops", options.op or "all ops", why)
        return
    here = []
    for backend in asked:
        why = _lacking(backend, ck)
        if why:
            yield levels.not_measured("ops", options.op or "all ops", why, isa=backend)
        else:
            here.append(backend)
    with ops.one_thread():
        for spec in specs:
            for dtype in (d for d in dtypes if d in built and d in spec.dtypes):
                yield from _of_spec(ck, spec, dtype, here, options)


def named(text, ck):
    """Return the backends that a text names; OptionError for one that is none, or is there twice."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    known = list(dict.fromkeys([*ck.isas(), ops.OPENBLAS, TORCH, *ops.reasons(ck), CUDA]))
    if not asked:
        raise levels.OptionError(f"no backend is named; there are {', '.join(known)}")
    for name in asked:
        if name not in known:
            raise levels.OptionError(f"no backend is called '{name}'; there are {', '.join(known)}")
        if asked.count(name) > 1:
            raise levels.OptionError(f"the backend '{name}' is there twice: compared with itself it shows nothing")
    return asked


def _lacking(backend, ck):
    """Say why a backend cannot run here, or nothing."""
    if backend == ops.OPENBLAS:
        with_blas, why = ops.has_openblas(ck)
        return None if with_blas else why
    return ops.reasons(ck).get(backend)


def _of_spec(ck, spec, dtype, here, options):
    """All cases of one pass of one op in one dtype."""
    of = "+".join(name for name, specs in NAMED.items() if spec.name in specs)
    missing = [name for name in spec.needs if ops.lookup(ck, name) is None]
    chosen = [b for b in here if b != ops.OPENBLAS or (spec.name in ops.WITH_BLAS and dtype == "float32")]
    if missing:
        why = f"the package has no {', '.join(missing)}"
        yield levels.unmeasured("ops", spec.name, why, spec.what, dtype=dtype)
        return
    if len(chosen) < 2:
        why = f"{len(chosen)} of the backends can run it here, so none was compared with another"
        yield levels.Case(
            "ops",
            spec.name,
            spec.what,
            dtype,
            " ".join(chosen),
            Verdict.VACUOUS,
            note=why,
            data={"op": of, "backends": chosen},
        )
        return
    probes = [p for p in spec.probes if p.quick or not options.quick]
    rounds = 5 if options.stress else 2 if options.full else 1
    for weights, suffix in ops.variants(spec, dtype):
        found = _Found(spec, dtype, chosen)
        for seed in range(options.seed, options.seed + rounds):
            for probe in probes:
                options.tell(f"{spec.name} {spec.what}{suffix}, {dtype}: {probe.label}")
                inputs = spec.inputs(probe, seed, dtype, weights)
                if suffix and not any(isinstance(inputs.get(name), np.ndarray) for name in spec.weights):
                    continue
                found.probe(ck, probe, inputs)
        yield from found.cases(suffix, of)


class _Found:
    """What the probes of one pass in one dtype came to, by backend and by pair of backends."""

    def __init__(self, spec, dtype, backends):
        self.spec, self.dtype, self.backends = spec, dtype, backends
        self.tallies, self.errors, self.loose = {}, {}, {}

    def probe(self, ck, probe, inputs):
        """Run one probe on every backend, and compare."""
        spec = self.spec
        exact, peer = spec.exact(inputs), spec.peer(inputs)
        bound = None if spec.bound is None else spec.bound(inputs)
        before = {key: value.copy() for key, value in inputs.items() if isinstance(value, np.ndarray)}
        outputs = {}
        for backend in self.backends:
            start = time.perf_counter()
            try:
                outputs[backend] = self._outputs(ck, backend, inputs, peer, before)
            except Exception as exception:  # whatever a backend raises is its failure, and the others still run
                self.errors.setdefault(backend, []).append((exception, probe.label))
            else:
                for name in exact:
                    self._tally((backend,), name).seconds += (time.perf_counter() - start) / len(exact)
        for name, value in exact.items():
            reports = {}
            for backend, given in outputs.items():
                what = f"{spec.name} {spec.what} {name} ({probe.label}) {self.dtype} on {backend}"
                report = self._against_exact(backend, name, given[name], value, peer[name], bound, before, probe, what)
                reports[backend] = report
                self._tally((backend,), name).add(report, probe, ceilings=backend != TORCH)
            for a, b in itertools.combinations(outputs, 2):
                what = f"{spec.name} {spec.what} {name} ({probe.label}) {self.dtype}, {a} beside {b}"
                pair = outputs[a][name], outputs[b][name]
                report = _pair(*pair, reports[a], reports[b], self._bits(a, b), what)
                self._tally((a, b), name).add(report, probe, ceilings=False)

    def _outputs(self, ck, backend, inputs, peer, before):
        if backend == TORCH:
            return peer
        with ops.on_backend(ck, backend):
            outputs = self.spec.run(ck, inputs)
        for key, value in before.items():
            if value.tobytes() != inputs[key].tobytes():
                raise AssertionError(f"the input '{key}' was modified")
        for name in peer:
            ops.check_dtype(self.spec, name, outputs[name], inputs)
        return outputs

    def _tally(self, backends, name):
        return self.tallies.setdefault((backends, name), Tally(self.dtype))

    def _bits(self, a, b):
        return self.spec.bitwise or {a, b} == SAME_BITS

    def _against_exact(self, backend, name, got, exact, peer, bound, before, probe, what):
        if self.spec.bitwise:
            return compare(got, np.array(exact, np.asarray(got).dtype), bitwise=True, name=what)
        trivial = {f"input '{key}'": value for key, value in before.items()}
        if backend != TORCH:
            return compare(got, exact, np.array(peer), bound=bound, trivial=trivial, name=what)
        report = compare(got, exact, np.array(peer), trivial=trivial, name=what)
        return self._held_to_ceilings(report, probe, name) if report.ok else report

    def _held_to_ceilings(self, report, probe, name):
        """PyTorch's own error is what others are measured by: it is held to what the documentation promises of all."""
        worst = 0.0
        if not probe.is_extreme(self.dtype):
            relative = report.max_abs / max(1.0, report.exact_max)
            worst = max(report.nmse / NMSE_CEILING[self.dtype], relative / CEILING[self.dtype])
        report.margin = worst
        if worst > 1:
            why = LOOSE.get((self.spec.name, self.spec.what))
            if why is not None:
                self.loose[name] = max(self.loose.get(name, 0.0), worst)
            else:
                report.verdict = Verdict.REFERENCE_WRONG
                report.reason = f"PyTorch's own error is {worst:.3g} times the documented ceiling"
        return report

    def cases(self, suffix, of):
        """Yield the backends, then the pairs, of each output."""
        names = list(dict.fromkeys(name for _, name in self.tallies)) or [""]
        pairs = [(b,) for b in self.backends] + list(itertools.combinations(self.backends, 2))
        for name in names:
            for backends in pairs:
                errors = [error for b in backends for error in self.errors.get(b, [])]
                if (backends, name) not in self.tallies and not errors:
                    continue
                tally = self._tally(backends, name)
                for exception, label in errors:
                    tally.fail(exception, label)
                what = f"{self.spec.what} {name}{suffix}".strip()
                case = tally.case(self.spec, what, " ~ ".join(backends), op=of, backends=list(backends))
                if backends == (TORCH,):
                    case.ratio = None  # to itself
                    if name in self.loose and case.verdict in levels.PASSING:
                        why = LOOSE[self.spec.name, self.spec.what]
                        case.note = f"{why}: {self.loose[name]:.3g} times the documented ceiling"
                        case.margin = None  # nothing holds it
                yield case


def _pair(a, b, of_a, of_b, bits, what):
    """Compare two backends: bits where they promise them, else by what both may be off together."""
    a, b = np.asarray(a), np.asarray(b)
    if bits:
        return compare(a, b.copy(), bitwise=True, name=what)
    allowed = [(r.allowed_max or 0.0, r.allowed_rms or r.allowed_max or 0.0) for r in (of_a, of_b)]
    most, mean = (sum(part) for part in zip(*allowed, strict=True))
    report = compare(a, b.astype(np.float64), bound=most, name=what)
    report.notes = []
    if report.compared and not report.misplaced:
        report.allowed_rms = mean
        report.margin_rms = report.rms / mean if mean else math.inf if report.rms else 0.0
        report.margin = max(report.margin_max, report.margin_rms)
        if report.ok and report.margin > 1:
            report.verdict = Verdict.EXCESS_DRIFT
            report.reason = f"the two are {report.margin_rms:.3g} times as far apart as both may be off, by their rms"
    return report
