"""How far apart trainings are, step by step, and how far they may be: the envelope of the twins."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

FACTOR = 3
ULP = 2.0**-23
JUMP, CALM = 10, 3
#: Trainings whose gradients differ by more than this share have parted: what follows is two trainings, not one.
PARTED = 0.1


def distance(one, other, share=1.0):
    """Largest and root mean square difference; with a share below 1 the quantile that it names, twice.

    A NaN or infinity anywhere, or another shape, is infinitely far.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.shape != other.shape:
        return math.inf, math.inf
    if not one.size:
        return 0.0, 0.0
    apart = np.abs(one - other).ravel()
    if not np.isfinite(apart).all():
        return math.inf, math.inf
    if share < 1:
        kept = float(np.quantile(apart, share))
        return kept, kept
    return float(apart.max()), math.sqrt(float(np.square(apart).mean()))


def size(value):
    """Largest and root mean square magnitude."""
    return distance(value, np.zeros(np.shape(value)))


@dataclass
class Apart:
    """One array at one step.

    ``error`` and ``peer`` are the largest differences from float64, ours and PyTorch's; ``limit`` what ours may be;
    ``margin`` the larger one of maximum and root mean square over its limit; ``jumped`` by how much the root mean
    square has grown at once, 0 where it has not.
    """

    name: str
    error: float
    peer: float
    limit: float
    margin: float
    jumped: float = 0.0

    @property
    def fine(self):
        """Whether it is inside, and did not get there by a jump."""
        return self.margin <= 1 and not self.jumped  # False for NaN


@dataclass
class Envelope:
    """The running maxima of the twins' distances, and of ours, array by array.

    The trainings of PyTorch are float32 from the given weights, the same from weights moved by one ulp (the twins), and
    float64. The envelope of an array is the largest distance between any of the former and the reference, so far. What
    float32 itself does to a training, whoever computes it, is in it. Ours may be ``3 · envelope + 2 ulp · size`` from
    float64, in the maximum and in the root mean square, as every result of the package may.
    """

    widest: dict = field(default_factory=dict)
    ours: dict = field(default_factory=dict)

    def add(self, name, ours, right, beside, twins, share=1.0):
        """Take in one array of one step; returns an `Apart`.

        A jump is an error that has left the envelope, is inside three times it, and has grown tenfold at once while the
        envelope has not grown threefold. One number, such as the loss, jumps by chance.
        """
        error, peer = distance(ours, right, share), distance(beside, right, share)
        pairs = [peer, *(distance(twin, beside, share) for twin in twins)]
        pairs += [distance(twin, right, share) for twin in twins]
        before = self.widest.get(name)
        now = tuple(max(values) for values in zip(*pairs, *([before] if before else []), strict=True))
        self.widest[name] = now
        large = size(right)
        limits = [FACTOR * wide + 2 * ULP * whole for wide, whole in zip(now, large, strict=True)]
        margin = max(_over(*pair) for pair in zip(error, limits, strict=True))
        found = Apart(name, error[0], peer[0], limits[0], margin)
        last = self.ours.get(name)
        outside = before and margin * FACTOR > 1 and now[1] < CALM * before[1] and np.ndim(right)
        if outside and last and error[1] > JUMP * last:
            found.jumped = error[1] / last
        self.ours[name] = max(last or 0.0, error[1])
        return found


def _over(error, limit):
    """Error over limit; 0 of nothing is nothing."""
    if not math.isfinite(error):
        return math.inf
    return error / limit if limit else (0.0 if error == 0 else math.inf)


def parted(gradients):
    """The relative difference of all gradients between the first training and the others, the largest.

    Parameters
    ----------
    gradients : list of dict of str to array
        Of PyTorch, its twins and float64.
    """
    first = gradients[0]
    whole = sum(float(np.square(value, dtype=np.float64).sum()) for value in first.values())
    off = [sum(float(np.sum(np.square(np.asarray(other[name], np.float64) - value))) for name, value in first.items())
           for other in gradients[1:]]  # fmt: skip
    return math.sqrt(max(off, default=0.0) / whole) if whole else 0.0
