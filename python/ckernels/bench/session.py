"""One run of benches: what was asked for, what was measured, what failed."""

import argparse
import os
import runpy
import statistics
import sys
from pathlib import Path

import ckernels as ck
from ckernels.parity import machine

from . import inputs, limits, report, timing
from .options import add_options

__all__ = ["Session", "current", "find_benches", "run_files"]

_CACHES = 128 << 20  # inputs of a case take at least this much memory together
_TINY = 1 << 20  # bytes: below it a call is bound by neither memory nor arithmetic
_OPTIONAL = ("model",)  # fetches a model: runs only when asked for

_current = None


def find_benches():
    """Return the benches of the source checkout that this package is imported from, {op: path}; empty without one."""
    folder = Path(__file__).resolve().parents[3] / "benchmarks"
    return {path.stem.removeprefix("bench_"): path for path in sorted(folder.glob("bench_*.py"))}


def built_dtypes():
    """Return the dtypes that this build has kernels for, as far as NumPy has them here."""
    built = str(machine.build_info()["dtypes"])
    return [name for name in inputs.DTYPES if name in built]


class Session:
    """One run of benches.

    Parameters
    ----------
    options : argparse.Namespace
        As :func:`add_options` gives it.
    """

    def __init__(self, options):
        self.options, self.lines, self.failures, self.skipped = options, [], [], []
        self.seen, self.ops, self.count, self.limits = set(), set(), 0, {}
        self.seconds = options.seconds or (0.1 if options.quick else 0.5)
        self.family, self.begun = None, False
        self.dtypes = [d for d in built_dtypes() if options.dtype in (None, d)]

    def begin(self):
        """Set the threads, measure the limits once, print the heading."""
        self.begun = True
        ck.set_num_threads(self.options.threads)
        if inputs.torch:
            inputs.torch.set_num_threads(self.options.threads)
        if self.options.list:
            return
        self.limits = limits.measure()
        self.facts = machine.machine()
        if self.options.format == "text":
            report.heading(self)

    def take(self, case):
        """Run a case, if it was asked for, or list it."""
        if not self.begun:
            self.begin()
        self.ops.add(case.op)
        wanted = self.options.op in (None, self.family, case.op) and self.options.case in f"{case.op} {case.case}"
        first = case.op not in self.seen
        if not wanted or (self.options.quick and not first):
            return
        self.seen.add(case.op)
        for dtype in case.dtypes:
            if dtype not in self.dtypes:
                continue
            self.count += 1
            if self.options.list:
                report.listed(self, case, dtype)
            else:
                self._measure(case, dtype, self._isas(first))

    def _isas(self, first):
        fast = [isa for isa in ck.isas() if isa != "reference"]
        return self.options.isa or (fast if first and not self.options.quick else fast[:1])

    def _measure(self, case, dtype, isas):
        """Print and keep the lines of one case in one dtype; what breaks is a failure, and the others still run."""
        before = ck.isa()
        try:
            lines = measure(case, dtype, isas, self.seconds)
        except Exception as error:  # a bench that breaks must not hide the others
            self.fail(f"{case.op} {case.case} {dtype}", error)
            return
        finally:
            ck.use(before)
        for line in lines:
            self.lines.append(line)
            if self.options.format == "text":
                report.line(line)

    def fail(self, what, error):
        """Keep and print what broke."""
        text = f"{what}: {type(error).__name__}: {error}"
        self.failures.append(text)
        print(f"FAILED {text}", file=sys.stderr, flush=True)

    def end(self):
        """Print what comes last; return the exit code: 0, 1 where a bench broke, 3 where nothing was measured."""
        if self.options.format == "json" and not self.options.list:
            print(report.to_json(self))
        if self.failures:
            return 1
        if not self.count:
            print("nothing was measured: no case is of this op, dtype and text", file=sys.stderr)
            return 3
        if self.options.format == "text" and not self.options.list:
            report.ending(self)
        return 0


def _chooser(isa):
    return lambda: ck.use(isa)


def measure(case, dtype, isas, seconds):
    """Time a case in one dtype, every call in turn.

    Returns
    -------
    list of report.Line
        One an instruction set and way.
    """
    moved = case.moved(dtype)
    sets = min(64, max(2, -(-_CACHES // moved))) if moved else 2
    made = [case.inputs(dtype, seed) for seed in range(sets)]
    best = isas[0]
    with ck.use(best):
        hidden = hidden_bytes(next(iter(case.ours.values())), made[0])
    calls = {}
    for isa in isas:
        calls.update({("ours", isa, way): (_chooser(isa), call) for way, call in case.ours.items()})
    others = dict(case.beside)
    if inputs.torch and case.theirs:
        others["torch"] = case.theirs
        if case.ours_out and case.theirs_out:
            calls["ours out"], others["torch out"] = (_chooser(best), case.ours_out), case.theirs_out
    calls.update({name: (_chooser(best), call) for name, call in others.items()})
    with ck.use(best):
        probes = limits.arithmetic(dtype) if case.flops else limits.memory(case.limit, moved) if moved >= _TINY else {}
    calls.update({("limit", way): (_chooser(best), call) for way, (call, _) in probes.items()})
    times = dict(zip(calls, timing.alternate(list(calls.values()), made, seconds), strict=True))
    # Seconds that the limit takes for a byte (or an operation), turn by turn: of the faster way.
    turns = zip(*([t / work for t in times["limit", way]] for way, (_, work) in probes.items()), strict=True)
    limit = [min(ways) for ways in turns]
    return [_line(case, dtype, isa, way, times, limit, hidden, isa == best) for isa in isas for way in case.ours]


def _line(case, dtype, isa, way, times, limit, hidden, best):
    own = times["ours", isa, way]
    work = case.flops or case.moved(dtype)
    line = report.Line(case.op, case.case, dtype, isa, way, ck.get_num_threads(), min(own), statistics.median(own))
    line.unit, line.rate = "GF/s" if case.flops else "GB/s", work / min(own) / 1e9
    line.limit_name = "amx" if ("limit", "amx") in times else case.limit
    if limit:
        line.limit, line.limit_median = timing.ratios([t / work for t in own], limit)
    line.hidden = hidden if best else None
    if "torch" in times:
        line.torch_best, line.torch_median = timing.ratios(own, times["torch"])
    if "torch out" in times and best:
        line.out_best, line.out_median = timing.ratios(times["ours out"], times["torch out"])
    line.beside = {name: timing.ratios(own, times[name])[0] for name in case.beside}
    if dtype == "float32" and best and not way:
        line.aim, line.aim_limit = case.aim
    return line


def hidden_bytes(call, given):
    """Return how many bytes of the arena a call takes at most beside what its result holds."""
    call(given)
    ck.empty_cache()
    result = call(given)
    stats = ck.memory_stats()
    del result
    return stats["peak"] - stats["in_use"]


def current():
    """Return the session at work; a bench run by itself makes one from its command line, and exits with its code."""
    global _current
    if _current is None:
        parser = argparse.ArgumentParser(description="Bench one op beside eager PyTorch and the machine's limits.")
        _current = Session(add_options(parser).parse_args())
        _exit_with(_current)
    return _current


def _exit_with(session):
    import atexit

    def end():
        code = session.end()
        sys.stdout.flush()
        if code:
            os._exit(code)

    atexit.register(end)


def run_files(session, benches):
    """Run bench files, {op: path}, in a session."""
    global _current
    before, _current = _current, session
    path = sys.path.copy()
    try:
        for family, file in benches.items():
            if family in _OPTIONAL and session.options.op != family:
                continue
            session.family = family
            sys.path.insert(0, str(file.parent))
            try:
                runpy.run_path(str(file), run_name="bench")
            except Exception as error:  # the other files still run
                if isinstance(error, ModuleNotFoundError) and error.name == "torch":
                    print(f"{file.name}: not measured: it needs PyTorch", file=sys.stderr, flush=True)
                else:
                    session.fail(file.name, error)
            sys.path[:] = path
    finally:
        sys.path[:], _current = path, before
