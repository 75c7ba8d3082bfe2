"""Level 1: every op, forward and backward, in every dtype, on every instruction set, against float64 and PyTorch."""

import contextlib
import importlib
import importlib.util
import time

import numpy as np

from . import levels
from .compare import compare
from .machine import blas, build_info
from .specs import NAMED, SPECS, chosen, names
from .tally import Tally

#: Ops that can multiply with OpenBLAS instead: a row of its own in the table, on the best instruction set.
WITH_BLAS = ("linear", "matmul", "marlin_matmul")
OPENBLAS = "openblas"

#: Instruction sets and devices that the table names even where they cannot run.
_ELSEWHERE = {
    "amx": "no kernels for AMX in this build",
    "cuda": "no CUDA kernels in this build",
}


def lookup(package, dotted):
    """Return what a dotted name means in a package, or None."""
    for part in dotted.split("."):
        try:
            package = getattr(package, part)
        except (AttributeError, ImportError):
            return None
    return package


def _isas_to_run(ck, options):
    offered = ck.isas()
    if options.isa and options.isa not in [*offered, *reasons(ck), OPENBLAS]:
        raise levels.OptionError(f"'{options.isa}' is no instruction set; this build offers {', '.join(offered)}")
    return [isa for isa in offered if options.isa in (None, isa)]


@contextlib.contextmanager
def on_backend(ck, where):
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


def has_openblas(ck):
    """Whether OpenBLAS can be chosen, and why not."""
    if not hasattr(ck, "set_matmul_backend"):
        return False, "this build has none"
    name, lacking = blas()
    return name is not None, lacking


def reasons(ck):
    """Return {instruction set or device: why it is not measured here}."""
    found = dict(_ELSEWHERE)
    lacking = build_info().get("lacking", {})
    found.update({isa: f"this CPU lacks {what}" for isa, what in lacking.items() if what})
    return {isa: why for isa, why in found.items() if isa not in ck.isas()}


def check_dtype(spec, name, array, inputs):
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
            with on_backend(ck, isa):
                outputs = spec.run(ck, inputs)
            for key, value in before.items():
                if value.tobytes() != inputs[key].tobytes():
                    raise AssertionError(f"the input '{key}' was modified")
            reports = {}
            for name, value in exact.items():
                what = f"{spec.name} {spec.what} {name} ({probe.label}) {dtype} on {isa}"
                check_dtype(spec, name, outputs[name], inputs)
                if spec.bitwise:
                    reports[name] = compare(outputs[name], peer[name], bitwise=True, name=what)
                else:
                    reports[name] = compare(outputs[name], value, peer[name], bound=bound, trivial=trivial, name=what)
        except Exception as exception:  # whatever the code under test raises is its failure, and the run goes on
            errors.setdefault(isa, []).append((exception, probe.label))
            continue
        for name, report in reports.items():
            tally = tallies.setdefault((isa, name), Tally(dtype))
            tally.add(report, probe)
            tally.seconds += (time.perf_counter() - start) / len(reports)


def variants(spec, dtype):
    """Yield (dtype of the weights, suffix of the pass): 16-bit ops take float32 weights too."""
    yield dtype, ""
    if spec.weights and dtype != "float32":
        yield "float32", ", float32 weights"


def _cases_of(ck, spec, dtype, isas, options):
    probes = [p for p in spec.probes if p.quick or not options.quick]
    rounds = 5 if options.stress else 2 if options.full else 1
    for weights, suffix in variants(spec, dtype):
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
                    tallies.setdefault((isa, name), Tally(dtype)).fail(exception, label)
            for (i, name), tally in tallies.items():
                if i == isa:
                    yield tally.case(spec, f"{spec.what} {name}{suffix}".strip(), isa)


def specs_of(options):
    """Return the specs of the op asked for, by its name or the one that op-diff knows it by; all without one."""
    try:
        return chosen(options.op)
    except KeyError:
        every = dict.fromkeys((*names(), *NAMED))
        raise levels.OptionError(f"no op is called '{options.op}'; there are {', '.join(every)}") from None


def run(options, ck=None):
    """Compare every op and yield a case for each pass, output and instruction set.

    Parameters
    ----------
    options : Options
        ``op``, ``isa``, ``dtype`` (several with commas between them; by default all), ``seed``, ``quick`` (fewer
        probes), ``full`` and ``stress`` (more seeds).
        ``backends`` names two or more that are compared with each other too, see :mod:`.backends`.
    ck : module, optional
        The package under test, by default this one, with what is composed of its ops and caches.
    """
    specs = specs_of(options)
    if ck is None:
        ck = importlib.import_module("ckernels")
    elif options.op is None:
        specs = SPECS
    if options.backends is not None:
        from . import backends

        yield from backends.run(options, ck, specs)
        return
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
    with one_thread():
        yield from _measured(ck, dtypes, isas, options, specs)
    for isa, why in reasons(ck).items():
        if options.isa in (None, isa):
            yield levels.not_measured("ops", options.op or "all ops", why, isa=isa)


@contextlib.contextmanager
def one_thread():
    """Run PyTorch on one thread: its error then depends on the inputs alone, and small tensors are faster so."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measured(ck, dtypes, isas, options, specs):
    with_blas, lacking = has_openblas(ck)
    if not with_blas and any(spec.name in WITH_BLAS for spec in specs):
        yield levels.not_measured("ops", options.op or "linear, matmul", lacking, isa=OPENBLAS)
    for spec in specs:
        missing = [name for name in spec.needs if lookup(ck, name) is None]
        extra = [OPENBLAS] if spec.name in WITH_BLAS and with_blas and options.isa in (None, OPENBLAS) else []
        for dtype in dtypes:
            if dtype not in spec.dtypes:
                continue
            if missing:
                why = f"the package has no {', '.join(missing)}"
                yield levels.unmeasured("ops", spec.name, why, spec.what, dtype=dtype)
            else:
                # OpenBLAS multiplies float32 alone; 16-bit products keep to the kernels of this package.
                yield from _cases_of(ck, spec, dtype, [*isas, *(extra if dtype == "float32" else [])], options)
