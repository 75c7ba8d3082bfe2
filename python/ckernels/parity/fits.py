"""Free numbers of hypotheses, estimated from a candidate's arrays. A fit only proposes: the rule of `judge` decides."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic
from .equations import Missing


def _snapped(value):
    """A number and its neighbours with three and two digits: what somebody may have typed."""
    if not np.isfinite(value) or value == 0:
        return []
    return list(dict.fromkeys(float(f"{value:.{digits}g}") for digits in (1, 2, 3, 6)))


def length(graft):
    """T, or None where no array says it."""
    for array in graft.given.values():
        if array.ndim >= 3:
            return array.shape[-2]
    return None


def _pairs(graft, index):
    """Input and output of rope as complex numbers ``[T, K]`` of ``Σ conj(x) y``; None where one is not there."""
    s = graft.settings
    for which in "qk":
        y = graft.given.get(f"layers.{index}.{which}_rope")
        x = graft.given.get(f"layers.{index}.{which}_norm", graft.given.get(f"layers.{index}.{which}"))
        if x is None or y is None or x.shape != y.shape:
            continue
        k = s.width // 2
        first, second = (slice(0, 2 * k, 2), slice(1, 2 * k, 2)) if s.interleaved else (slice(0, k), slice(k, 2 * k))
        x, y = (np.asarray(a, np.float64) for a in (x, y))
        turned = (x[..., first] - 1j * x[..., second]) * (y[..., first] + 1j * y[..., second])
        yield turned.sum(1)  # over heads: [B, T, K]


def base(graft, index):
    """Bases of the angles that fit best."""
    for turned in _pairs(graft, index):
        batch, tokens, pairs = turned.shape
        if tokens < 2 or not np.isfinite(turned).all():
            return []
        at = graft.equations(Arithmetic()).positions(batch, tokens)

        def score(log, turned=turned, at=at, pairs=pairs):
            phi = at[..., None] * np.exp(-log * np.arange(pairs) / pairs)
            return float((turned * np.exp(-1j * phi)).real.sum())

        grid = np.linspace(np.log(10), np.log(1e9), 400)
        best = grid[int(np.argmax([score(log) for log in grid]))]
        for step in 0.03 / 4.0 ** np.arange(12):
            near = best + step * np.arange(-3, 4)
            best = near[int(np.argmax([score(log) for log in near]))]
        return _snapped(float(np.exp(best)))
    return []


def shift(graft, index):
    """How far the positions are off, a whole number, where it is one."""
    for turned in _pairs(graft, index):
        batch, tokens, _ = turned.shape
        at = graft.equations(Arithmetic()).positions(batch, tokens)
        try:
            turns, _ = graft.settings.frequencies(int(at.max(initial=0)) + 1)
        except ValueError:
            return []
        left = (turned * np.exp(-1j * at[..., None] * turns)).sum((0, 1))
        grid = np.arange(-64, 65)
        scores = (left * np.exp(-1j * grid[:, None] * turns)).real.sum(-1)
        return [int(grid[int(np.argmax(scores))])]
    return []


def eps(graft, index, stage):
    """Values of eps that explain the rows of smallest mean square."""
    name = stage if index is None else f"layers.{index}.{stage}"
    if name not in graft.given:
        return []
    g = graft.equations(Arithmetic(), {stage: {"off": True}})
    try:
        x = g.compute(name)  # without the norm: what goes into it
        weighted = graft.equations(Arithmetic(), {stage: {"eps": 1e30}}).compute(name) * 1e15  # (offset + w) · x
    except Missing:
        return []
    y = np.asarray(graft.given[name], np.float64)
    x, weighted, y = (a.reshape(-1, a.shape[-1]) for a in (x, weighted, y))
    square = np.mean(x * x, -1)
    with np.errstate(all="ignore"):
        factor = np.sum(weighted * y, -1) / np.sum(weighted * weighted, -1)
        found = 1 / factor**2 - square
    good = np.isfinite(found) & (square > 0)
    if not good.any():
        return []
    rows = np.flatnonzero(good)[np.argsort(square[good])[: max(1, len(found) // 10)]]
    value = float(np.median(found[rows]))
    return _snapped(value) if value > 0 else []


def scale(graft, index):
    """Factors of the scores, by least squares."""
    name = f"layers.{index}.scores"
    if name not in graft.given:
        return []
    try:
        want = graft.equations(Arithmetic()).compute(name)
    except Missing:
        return []
    found = np.asarray(graft.given[name], np.float64)
    good = np.isfinite(found)
    size = float(np.sum(want[good] ** 2))
    return _snapped(float(np.sum(found[good] * want[good])) / size) if size else []


def empty_tail(graft, name, axis):
    """Where along an axis the zeros at the end begin; None where there are none or all is zero."""
    array = graft.given.get(name)
    if array is None or array.ndim < 2:
        return None
    used = np.any(np.asarray(array) != 0, axis=tuple(a for a in range(array.ndim) if a != axis % array.ndim))
    last = np.flatnonzero(used)
    return int(last[-1]) + 1 if last.size and last[-1] + 1 < used.size else None


def capacities(graft):
    """Capacities that a cache may have."""
    tokens = length(graft) or 0
    given = graft.inputs.get("capacity")
    if given is not None:
        return [int(np.asarray(given))]
    powers = [n for n in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096) if n > tokens]
    trained = graft.settings.trained
    # Beyond this a head's stride leaves the reader nothing but the first head and zeros: one capacity is as another.
    return [*dict.fromkeys([*powers[:4], *([trained] if trained and tokens < trained <= 1 << 14 else [])])]
