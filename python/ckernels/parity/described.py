"""What is known about an error that no known mistake explains: where it is, and the simplest thing that shrinks it."""

from __future__ import annotations

import numpy as np

from .compare import _places as confined
from .equations import split

_AXES = {2: ("row", "channel"), 3: ("item", "position", "channel"), 4: ("item", "head", "position", "lane")}
_LOCATE = 1 << 20


def describe(graft, name, want):
    """Sentences about the difference of a stage from the recomputed one.

    Parameters
    ----------
    graft : Graft
    name : str
    want : float64 array
        The recomputed stage.

    Returns
    -------
    list of str
    """
    found = np.asarray(graft.given[name], np.float64)
    good = np.isfinite(found) & np.isfinite(want)
    lines = []
    if not good.all():
        odd = np.flatnonzero(~good)
        where = _named(confined(odd[:_LOCATE], found.shape), found.ndim)
        lines.append(f"{odd.size} of {found.size} are NaN or infinite; {where}")
    x, y = np.where(good, want, 0), np.where(good, found, 0)
    error = y - x
    size, off = float(np.sqrt(np.mean(x * x))), float(np.sqrt(np.mean(error * error)))
    if not size or not off:
        return lines
    wrong = np.flatnonzero(np.abs(error) > 0.1 * np.abs(error).max())
    where = _named(confined(wrong[:_LOCATE], found.shape), found.ndim)
    lines.append(
        f"error {off / size:.2g} of the result's size; {'where it is large: ' + where if where else 'a scalar'}"
    )
    lines += [line for line in (_line(x, y, off), _lag(x, y, off), _copy(graft, name, y)) if line]
    return lines


def _named(text, ndim):
    """Axes by what they mean."""
    for axis, what in enumerate(_AXES.get(ndim, ())):
        text = text.replace(f"axis {axis}:", f"{what}")
    return text


def _line(x, y, off):
    """The best scale and offset, where they take away most of the error."""
    if x.size < 8 or np.ptp(x) == 0:
        return ""
    mean_x, mean_y = x.mean(), y.mean()
    scale = float(np.sum((x - mean_x) * (y - mean_y)) / np.sum((x - mean_x) ** 2))
    offset = float(mean_y - scale * mean_x)
    left = float(np.sqrt(np.mean((y - scale * x - offset) ** 2)))
    return (
        f"best scale {scale:.6g}, offset {offset:.3g}: leaves {left / off:.2g} of the error" if left < 0.5 * off else ""
    )


def _lag(x, y, off):
    """A shift along one axis that takes away most of the error."""
    best = (0.5 * off, "")
    for axis in range(x.ndim):
        for lag in (*range(-3, 0), *range(1, 4)):
            if x.shape[axis] <= 4:
                continue
            a = np.take(x, range(max(-lag, 0), x.shape[axis] + min(-lag, 0)), axis=axis)
            b = np.take(y, range(max(lag, 0), y.shape[axis] + min(lag, 0)), axis=axis)
            left = float(np.sqrt(np.mean((a - b) ** 2)))
            what = _AXES.get(x.ndim, ("axis",) * x.ndim)[axis]
            best = min(best, (left, f"shifted by {lag:+d} along the {what}: leaves {left / off:.2g} of the error"))
    return best[1]


def _copy(graft, name, y):
    """Another stage of the candidate that has the same values."""
    for other, array in graft.given.items():
        if other != name and array.shape == y.shape and split(other)[0] == split(name)[0]:
            if np.array_equal(np.asarray(array, np.float64), y):
                return f"it is a copy of {other}"
    return ""
