"""The checks that faults are planted under: what each runs, when it notices, what common thresholds say to the same.

A check is made once and asked once for the correct code, then once for each fault: inputs, float64 and PyTorch's
results are computed the first time. An answer is a :class:`Seen`.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import numpy as np

from . import ops
from .compare import compare
from .levels import PASSING, Options
from .specs import SPECS
from .specs.spec import DTYPES
from .tally import Tally

#: What the field asks of a result and its reference, float64 and flat: True lets it pass.
THRESHOLDS = {
    "correlation >= 0.99": lambda a, b: _correlation(a, b) >= 0.99,
    "cosine > 0.999": lambda a, b: _cosine(a, b) > 0.999,
    "NMSE <= 5e-4": lambda a, b: _nmse(a, b) <= 5e-4,
    "allclose 1e-2": lambda a, b: np.allclose(a, b, rtol=1e-2, atol=1e-2),
    "allclose 1e-3": lambda a, b: np.allclose(a, b, rtol=1e-3, atol=1e-3),
    "allclose 1e-5": lambda a, b: np.allclose(a, b, rtol=1e-5, atol=1e-5),
}


def _correlation(a, b):
    """Of a reference that does not vary it is undefined, and refuses nothing."""
    if not b.std():
        return 1.0 if np.isfinite(a).all() else 0.0
    return np.mean((a - a.mean()) * (b - b.mean())) / (a.std() * b.std() or np.inf)


def _cosine(a, b):
    """The same of a reference of zeros."""
    if not b.any():
        return 1.0 if np.isfinite(a).all() else 0.0
    return np.dot(a, b) / (math.sqrt(np.dot(a, a)) * math.sqrt(np.dot(b, b)) or np.inf)


def _nmse(a, b):
    """Raw where the reference is zeros."""
    size, off = np.mean(b * b), np.mean((a - b) ** 2)
    return off / size if size >= 1e-30 else off


def refusing(found, exact):
    """Names of the thresholds that do not let a result pass.

    Parameters
    ----------
    found, exact : array
        Of one shape. Places where both are infinite alike are left out; NaN passes nowhere.
    """
    a, b = (np.asarray(x, np.float64).ravel() for x in (found, exact))
    if a.shape != b.shape:
        return set(THRESHOLDS)
    kept = ~(np.isinf(b) & (a == b))
    a, b = a[kept], b[kept]
    if not a.size:
        return set()
    with np.errstate(all="ignore"):
        return {name for name, passes in THRESHOLDS.items() if not passes(a, b)}


@dataclass
class Seen:
    """What a check made of one run.

    Attributes
    ----------
    killed : str
        What failed first; "" where nothing did.
    margin : float
        The largest error over what is allowed.
    outputs : dict of str to array or number
        What was compared, to tell a fault that changes nothing from one below the floor.
    allowed : dict of str to float
        The error allowed to each.
    refused : set of str
        Thresholds that refuse some result.
    refusals : dict of str to int
        And how many results each refuses, of `results`.
    """

    killed: str = ""
    margin: float = 0.0
    outputs: dict = field(default_factory=dict)
    allowed: dict = field(default_factory=dict)
    refused: set = field(default_factory=set)
    refusals: dict = field(default_factory=dict)
    results: int = 0

    def kill(self, reason, margin=math.inf):
        """Note a failure."""
        self.killed = self.killed or str(reason)
        self.margin = max(self.margin, margin)

    def threshold(self, found, exact):
        """Ask the common thresholds about one result."""
        names = refusing(found, exact)
        self.refused |= names
        self.results += 1
        for name in names:
            self.refusals[name] = self.refusals.get(name, 0) + 1

    def fail(self):
        """The run ended with an exception: no threshold is needed to see that."""
        self.refused |= set(THRESHOLDS)

    def change_from(self, clean):
        """The largest difference from the correct run, over what is allowed; 0 where every bit is the same."""
        largest = 0.0
        for name, before in clean.outputs.items():
            now = self.outputs.get(name)
            if now is None or np.asarray(now).tobytes() == np.asarray(before).tobytes():
                continue
            with np.errstate(all="ignore"):
                off = np.abs(np.asarray(now, np.float64) - np.asarray(before, np.float64))
            worst = float(np.max(off, initial=0.0, where=np.isfinite(off)))
            allowed = self.allowed.get(name) or clean.allowed.get(name)
            largest = max(largest, worst / allowed if allowed else math.ulp(0.0), math.ulp(0.0))
        return largest


# ---- ops ----


class Ops:
    """One pass of one op in one dtype, by the three-party rule of ``ck parity ops``."""

    name = "ops"

    def __init__(self, spec, dtype, seed=0):
        self.spec, self.dtype, self.seed, self._sides = spec, dtype, seed, None
        self.label = f"{spec.name} {spec.what}"

    def sides(self):
        """Every probe with its inputs, exact and peer's results, and bound."""
        if self._sides is None:
            self._sides = []
            for probe in self.spec.probes:
                inputs = self.spec.inputs(probe, self.seed, self.dtype)
                bound = None if self.spec.bound is None else self.spec.bound(inputs)
                self._sides.append((probe, inputs, self.spec.exact(inputs), self.spec.peer(inputs), bound))
        return self._sides

    def __call__(self):
        """Run it on what is planted now."""
        import ckernels as ck

        seen, tallies = Seen(), {}
        for probe, inputs, exact, peer, bound in self.sides():
            before = {key: value.copy() for key, value in inputs.items() if isinstance(value, np.ndarray)}
            try:
                outputs = self.spec.run(ck, inputs)
                for key, value in before.items():
                    if value.tobytes() != inputs[key].tobytes():
                        inputs[key][...] = value
                        raise AssertionError(f"the input '{key}' was modified")
                for name, value in exact.items():
                    self._compare(seen, tallies, probe, name, outputs[name], value, peer[name], inputs, bound)
            except Exception as error:  # whatever the code under test raises is its failure
                seen.kill(f"{probe.label}: {type(error).__name__}: {error}")
                if not isinstance(error, AssertionError):  # that one the field's thresholds do not ask for
                    seen.fail()
        for name, tally in tallies.items():
            seen.margin = max(seen.margin, tally.margin)
            if tally.failures:
                seen.kill(f"{name}: {tally.failures[0]}", tally.margin)
        return seen

    def _compare(self, seen, tallies, probe, name, found, exact, peer, inputs, bound):
        label = f"{probe.label} {name}"
        seen.outputs[label] = np.array(found)
        if self.spec.bitwise:
            report = compare(found, peer, bitwise=True)
        else:
            report = compare(found, exact, peer, bound=bound)
            seen.allowed[label] = report.allowed_max
        tallies.setdefault(name, Tally(self.dtype)).add(report, probe)
        seen.threshold(found, exact)
        ops.check_dtype(self.spec, name, found, inputs)


# ---- levels ----


def memoised(function, key):
    """A function whose results are kept by key(arguments): exact and peer's sides do not change with a fault."""
    kept = {}

    def wrapper(*arguments, **options):
        at = key(*arguments, **options)
        if at not in kept:
            kept[at] = function(*arguments, **options)
        return kept[at]

    return wrapper


def _bytes_of(value):
    if isinstance(value, dict):
        return tuple((name, _bytes_of(v)) for name, v in value.items())
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value)


def _key(*arguments, **options):
    return hash((tuple(map(_bytes_of, arguments)), _bytes_of(options)))


class Level:
    """A level of ``ck parity``: killed where a case fails."""

    def __init__(self, name, dtype, run, label, left_out=()):
        self.name, self.dtype, self.run, self.label, self.left_out = name, dtype, run, label, left_out

    def __call__(self):
        """Run it on what is planted now."""
        seen = Seen()
        try:
            for case in self.run():
                if case.what in self.left_out:
                    continue
                label = f"{case.name} {case.what}"
                if case.verdict not in PASSING:
                    seen.kill(f"{label.strip()}: {case.verdict}: {case.note}", case.margin or math.inf)
                    break  # the rest would only take time
                seen.margin = max(seen.margin, case.margin or 0.0)
                seen.outputs[label] = float(case.error or 0.0)
                report = case.report
                seen.allowed[label] = getattr(report, "allowed_max", None) or case.data.get("limit")
        except Exception as error:
            seen.kill(f"{type(error).__name__}: {error}")
        return seen


def _level(module, seed, **options):
    def run():
        import importlib

        name = options.get("level", module)
        level = importlib.import_module(f"ckernels.parity.{module}")
        return level.run(Options(**({"level": name, "seed": seed} | options)))

    return run


def keep_other_sides():
    """Compute float64 and PyTorch's side of the levels once for all faults."""
    from . import exact, peer

    for module in (exact, peer):
        module.layer = memoised(module.layer, _key)
    exact.model = memoised(exact.model, _key)


# ---- memory ----

_GAP, _NAN = 16, 0x7F


class Memory:
    """Rows with gaps of NaN between them, outputs that begin as NaN, saved values that must stay.

    The arrays of an op that have the shape of the first one get NaN behind each row, and so does the output: a read
    past a row brings NaN, a write past it hits the gap, what is not written stays NaN. The bits must be those of the
    op on arrays without gaps. And backward, called twice, gives the same bits twice. The op is compared with itself:
    what is wrong on both sides is not seen, and no outputs are noted.
    """

    name = "memory"

    def __init__(self, spec, dtype, seed=0):
        self.spec, self.dtype, self.seed = spec, dtype, seed
        self.label = f"{spec.name} {spec.what}"

    def __call__(self):
        """Run it on what is planted now."""
        import ckernels as ck

        seen = Seen()
        for probe in self.spec.probes:
            inputs = self.spec.inputs(probe, self.seed, self.dtype)
            try:
                if self.spec.what == "forward":
                    self._gaps(ck, seen, probe, inputs)
                else:
                    self._twice(ck, seen, probe, inputs)
            except _Unfit:
                continue
            except Exception as error:
                seen.kill(f"{probe.label}: {type(error).__name__}: {error}")
        return seen

    def _gaps(self, ck, seen, probe, inputs):
        function = getattr(ck, self.spec.name)
        plain = function(**inputs)
        shape = next((v.shape for v in inputs.values() if _is_rows(v)), None)
        if shape is None or not isinstance(plain, np.ndarray) or plain.ndim < 2:
            raise _Unfit
        spread = {key: _with_gaps(v) if _is_rows(v) and v.shape == shape else v for key, v in inputs.items()}
        out = _with_gaps(np.full(plain.shape, np.nan if _is_rows(plain) else 0).astype(plain.dtype))
        try:
            function(**spread, out=out)
        except (TypeError, ValueError) as error:
            if "out" in str(error) or "contiguous" in str(error) or "stride" in str(error):
                raise _Unfit from None
            raise
        for key, view in spread.items():
            if view is not inputs[key] and not _gap_is_whole(view):
                seen.kill(f"{probe.label}: the gap behind the rows of '{key}' was written")
        if not _gap_is_whole(out):
            seen.kill(f"{probe.label}: the gap behind the rows of the result was written")
        if not np.array_equal(np.ascontiguousarray(out).view(np.uint8), np.ascontiguousarray(plain).view(np.uint8)):
            seen.kill(f"{probe.label}: other bits than without gaps")

    def _twice(self, ck, seen, probe, inputs):
        forward, backward = (getattr(ck, f"{self.spec.name}_{side}", None) for side in ("forward", "backward"))
        if forward is None or backward is None:
            raise _Unfit
        rng = np.random.default_rng(self.seed)
        y, ctx = forward(**inputs)
        several = isinstance(y, tuple)
        dys = tuple(_gradient(rng, part) for part in (y if several else (y,)))
        dy = dys if several else dys[0]
        first, second = (backward(dy, ctx) for _ in range(2))
        for name in first._fields:
            a, b = getattr(first, name), getattr(second, name)
            if a is None:
                continue
            if np.asarray(a).tobytes() != np.asarray(b).tobytes():
                seen.kill(f"{probe.label}: backward called again gives another '{name}'")


class _Unfit(Exception):
    """An op that takes no such arrays."""


def _is_rows(value):
    return (
        isinstance(value, np.ndarray)
        and value.ndim >= 2
        and (value.dtype.kind == "f" or value.dtype.name == "bfloat16")
    )


def _with_gaps(array):
    """A copy whose rows have NaN behind them."""
    held = np.empty((*array.shape[:-1], array.shape[-1] + _GAP), array.dtype)
    held.view(np.uint8)[...] = _NAN
    view = held[..., : array.shape[-1]]
    view[...] = array
    return view


def _gap_is_whole(view):
    held = view.base if view.base is not None else view
    return bool((held[..., view.shape[-1] :].copy().view(np.uint8) == _NAN).all())


def _gradient(rng, result):
    result = np.asarray(result)
    return 1.7 if result.ndim == 0 else rng.standard_normal(result.shape).astype(result.dtype)


# ---- all of them ----

#: Names that --check takes.
NAMES = ("ops", "layer", "kv", "train", "invariance", "memory")


def checks(names=NAMES, dtypes=DTYPES, seed=0, of=()):
    """Every check of these names and dtypes, ready to run; of these ops alone, where `of` names some.

    Levels that compute in float32 alone are there where float32 is asked for.
    """
    found = []
    for dtype in dtypes:
        for spec in (spec for spec in SPECS if not of or spec.name in of):
            if "ops" in names and dtype in spec.dtypes:
                found.append(Ops(spec, dtype, seed))
            if "memory" in names and dtype in spec.dtypes and spec.what in ("forward", "backward"):
                found.append(Memory(spec, dtype, seed))
        if "kv" in names:
            found.append(Level("kv", dtype, _level("kv", seed, dtype=dtype, quick=True), "kv"))
    if "float32" in dtypes:
        for name, module, options in (
            ("layer", "layer", {"config": "gqa", "full": True}),
            ("train", "train", {"config": "gqa", "steps": 2, "optimizer": "momentum"}),
            ("train", "train", {"config": "tiny", "steps": 2, "optimizer": "adamw"}),
            ("invariance", "invariance", {"config": "gqa", "quick": True}),
        ):
            if name in names:
                label = " ".join([name, *map(str, options.values())])
                # The test build has one instruction set under all names.
                found.append(Level(name, "float32", _level(module, seed, **options), label, ("avx2 and avx512",)))
    return found


@contextlib.contextmanager
def one_thread_of_torch():
    """PyTorch's error then depends on the inputs alone."""
    with ops.one_thread():
        yield
