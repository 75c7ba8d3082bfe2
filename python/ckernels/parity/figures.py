"""The figures of one comparison, collected in a single pass over blocks that fit the cache.

Nothing here decides: ``compare.py`` does.
"""

import math
from dataclasses import dataclass

import numpy as np

# Elements handled at a time: the temporaries of one block stay in the second-level cache.
BLOCK = 1 << 16
# So many of the largest errors are kept for Report.worst().
WORST = 100
#: Classes of the histogram of errors in ulp: none at all, then below each of these, then the rest.
ULP_EDGES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 1024.0)
# The class of 2^(e-1) <= ulps < 2^e, by e from -2 or less to 11 or more.
_CLASS_OF = np.array([1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 9, 9, 10])


@dataclass(frozen=True)
class Format:
    """A number format: name, distance of 1 to the next number, exponent of its smallest step, largest number."""

    name: str
    eps: float
    lowest: int
    largest: float

    @property
    def mantissa(self):
        return round(-math.log2(self.eps))

    @property
    def overflow(self):
        """The smallest number that rounds to infinity: half a step beyond the largest."""
        if self.name == "float64":
            return self.largest
        _, exponent = math.frexp(self.largest)
        return self.largest + math.ldexp(self.eps, exponent - 2)


FORMATS = {
    "float64": Format("float64", 2.0**-52, -1074, float(np.finfo(np.float64).max)),
    "float32": Format("float32", 2.0**-23, -149, float(np.finfo(np.float32).max)),
    "float16": Format("float16", 2.0**-10, -24, 65504.0),
    "bfloat16": Format("bfloat16", 2.0**-7, -133, (2.0 - 2.0**-7) * 2.0**127),
}


def as_array(value, what):
    """Turn an array, tensor or number into a NumPy array and the name of its dtype."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a torch tensor, told without importing torch
        value = value.detach().cpu()
        name = str(value.dtype).removeprefix("torch.")
        array = value.float().numpy() if name == "bfloat16" else value.numpy()
        return array, name
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    name = array.dtype.name
    if name == "bfloat16":  # ml_dtypes; float32 holds every bfloat16
        return array.astype(np.float32), name
    if array.dtype.kind not in "fiub" or name not in FORMATS and array.dtype.kind == "f":
        raise TypeError(
            f"compare(): '{what}' of dtype {name} is neither float64, float32, float16, bfloat16 nor integer"
        )
    return array, name


def _round_to(values, fmt):
    """Round float64 values to a format, returned as float64. To nearest, ties to even."""
    if fmt.name == "float64":
        return values
    if fmt.name != "bfloat16":
        with np.errstate(over="ignore"):
            return values.astype(fmt.name).astype(np.float64)
    mantissa, exponent = np.frexp(values)
    step = np.maximum(exponent - 1 - fmt.mantissa, fmt.lowest)
    rounded = np.ldexp(np.rint(np.ldexp(values, -step)), step)
    return np.where(np.abs(rounded) > fmt.largest, np.copysign(np.inf, values), rounded)


def _ulp_of(values, fmt):
    """Return the distance between neighbours of a format at each value."""
    _, exponent = np.frexp(values)
    return np.ldexp(1.0, np.maximum(exponent - 1 - fmt.mantissa, fmt.lowest))


def ulp_histogram(ulps):
    """Count errors by their size in ulp: the classes of ULP_EDGES."""
    _, exponent = np.frexp(ulps)
    classes = np.where(ulps == 0, 0, _CLASS_OF[np.clip(exponent, -3, 11) + 3])
    return np.bincount(classes, minlength=len(ULP_EDGES) + 2)


class Figures:
    """Everything that one pass over the blocks collects."""

    def __init__(self, fmt, bound, peer):
        self.fmt, self.has_peer = fmt, peer
        self.bound = bound
        self.compared = 0
        self.max_abs = self.sum_ee = self.max_ulp = 0.0
        self.ulp_counts = np.zeros(len(ULP_EDGES) + 2, np.int64)
        self.max_x = self.sum_xx = self.sum_x = self.sum_y = self.sum_yy = self.sum_xy = 0.0
        self.peer_max = self.peer_ee = 0.0
        self.peer_differs = 0  # elements where only the peer's NaN or inf is out of place
        self.between = 0.0  # largest difference of actual and peer
        self.bound_ratio = 0.0
        self.rounded_equal = True
        self.range_x, self.range_y = [math.inf, -math.inf], [math.inf, -math.inf]
        self.pattern = []  # (flat index, actual, exact) of misplaced NaN and inf, the first few
        self.pattern_count = 0
        self.nonfinite = 0
        self.worst = []  # (error, flat index, actual, exact, peer, ulps)

    def add(self, start, y, x, p, bound):
        """Take in one block: y actual, x exact, p peer or None; all float64."""
        # A magnitude beyond the dtype's largest number is an infinity in that dtype. Where it is so near that a result
        # within the rule's two ulp may round to either, an infinity counts as the smallest number that rounds to one.
        x = np.where(np.abs(x) > self.fmt.largest * (1 + 2 * self.fmt.eps), np.copysign(np.inf, x), x)
        edge = np.isfinite(x) & (np.abs(x) >= self.fmt.largest * (1 - 2 * self.fmt.eps))
        if edge.any():
            y, p = (
                v if v is None else np.where(edge & (v == np.copysign(np.inf, x)), np.copysign(self.fmt.overflow, x), v)
                for v in (y, p)
            )
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            same = finite | (np.isnan(x) & np.isnan(y)) | (x == y)
            self.nonfinite += int(same.size - np.count_nonzero(finite))
            for i in np.flatnonzero(~same)[: max(0, WORST - len(self.pattern))]:
                self.pattern.append((start + int(i), float(y[i]), float(x[i]), None if p is None else float(p[i])))
            self.pattern_count += int(same.size - np.count_nonzero(same))
            if p is not None:
                bad = ~finite & ~((np.isnan(x) & np.isnan(p)) | (x == p))
                self.peer_differs += int(np.count_nonzero(bad & same))
            positions = np.flatnonzero(finite)
            y, x = y[finite], x[finite]
            p = None if p is None else p[finite]
            bound = bound[finite] if isinstance(bound, np.ndarray) else bound
        else:
            positions = None
        if x.size:
            with np.errstate(over="ignore"):  # a sum of squares beyond double becomes inf, and inf decides
                self._add_finite(start, positions, y, x, p, bound)

    def _add_finite(self, start, positions, y, x, p, bound):
        error = np.abs(y - x)
        self.compared += x.size
        top = float(error.max())
        self.max_abs = max(self.max_abs, top)
        self.sum_ee += float(np.dot(error, error))
        magnitude = np.abs(x)
        self.max_x = max(self.max_x, float(magnitude.max()))
        self.sum_xx += float(np.dot(x, x))
        self.sum_yy += float(np.dot(y, y))
        self.sum_xy += float(np.dot(x, y))
        self.sum_x += float(x.sum())
        self.sum_y += float(y.sum())
        for kept, values in ((self.range_x, x), (self.range_y, y)):
            kept[0], kept[1] = min(kept[0], float(values.min())), max(kept[1], float(values.max()))
        ulps = error / _ulp_of(magnitude, self.fmt)
        self.max_ulp = max(self.max_ulp, float(ulps.max()))
        self.ulp_counts += ulp_histogram(ulps)
        rounded = np.clip(_round_to(x, self.fmt), -self.fmt.overflow, self.fmt.overflow)  # an infinity at the edge
        self.rounded_equal = self.rounded_equal and bool((rounded == y).all())
        if bound is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(error == 0, 0.0, error / bound)
            self.bound_ratio = max(self.bound_ratio, float(ratio.max()))
        if p is not None:
            good = np.isfinite(p)
            if not good.all():
                self.peer_differs += int(good.size - np.count_nonzero(good))
                p_error, difference = np.abs(p[good] - x[good]), np.abs(p[good] - y[good])
            else:
                p_error, difference = np.abs(p - x), np.abs(p - y)
            if p_error.size:
                self.peer_max = max(self.peer_max, float(p_error.max()))
                self.peer_ee += float(np.dot(p_error, p_error))
                self.between = max(self.between, float(difference.max()))
        self._keep_worst(start, positions, error, y, x, p, ulps)

    def _keep_worst(self, start, positions, error, y, x, p, ulps):
        floor = self.worst[-1][0] if len(self.worst) >= WORST else 0.0
        chosen = np.flatnonzero(error > floor)
        if not chosen.size:
            return
        if chosen.size > WORST:
            chosen = chosen[np.argpartition(error[chosen], -WORST)[-WORST:]]
        for i in chosen:
            place = start + int(i if positions is None else positions[i])
            peer = None if p is None else float(p[i])
            self.worst.append((float(error[i]), place, float(y[i]), float(x[i]), peer, float(ulps[i])))
        self.worst.sort(key=lambda item: (-item[0], item[1]))
        del self.worst[WORST:]


def blocks_of(arrays):
    """Yield (start, blocks) of arrays of one shape in C order as float64, without copying the whole of any."""
    iterator = np.nditer(
        arrays,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=[["readonly"]] * len(arrays),
        op_dtypes=[np.float64] * len(arrays),
        order="C",
        casting="unsafe",
        buffersize=BLOCK,
    )
    start = 0
    for blocks in iterator:
        if len(arrays) == 1:
            blocks = (blocks,)
        # Large arrays that need no cast arrive in one piece: cut them here.
        for i in range(0, blocks[0].size, BLOCK):
            yield start + i, [b[i : i + BLOCK] for b in blocks]
        start += blocks[0].size
