"""Arithmetic in which a stage can be recomputed: float64, or a plain implementation's in float32 or 16 bits.

The equations of `equations` and `backward` are written once. In float64 they are the *exact* party; in the dtype of the
candidate they are the *peer*, whose error says how much rounding the stage cannot avoid. In 16 bits the peer rounds
after every elementary operation and sums in float32, as PyTorch's eager code does.
"""

import numpy as np

from .figures import FORMATS, _round_to

# Above this many products a running sum is taken over some rows alone.
_PRODUCTS = 1 << 27
_ROWS = 16


def round_to(values, name):
    """Round to ``float32``, ``float16``, ``bfloat16`` or ``tf32`` (10 bits, float32's range); keeps the dtype.

    Examples
    --------
    >>> round_to(np.float64([1.001, 3.0]), "bfloat16")
    array([1., 3.])
    """
    values = np.asarray(values)
    if name == "float64":
        return values
    if name in ("float32", "float16"):
        with np.errstate(over="ignore"):
            return values.astype(name).astype(values.dtype)
    if values.dtype == np.float32:  # by bits: fast, and the same
        kept = 13 if name == "tf32" else 16
        bits = values.view(np.uint32) if values.flags.c_contiguous else np.ascontiguousarray(values).view(np.uint32)
        half = np.uint32((1 << (kept - 1)) - 1) + ((bits >> np.uint32(kept)) & np.uint32(1))
        rounded = ((bits + half) >> np.uint32(kept) << np.uint32(kept)).view(np.float32)
        return np.where(np.isfinite(values), rounded, values)
    if name == "tf32":
        return round_to(values.astype(np.float32), name).astype(values.dtype)
    return _round_to(values.astype(np.float64), FORMATS[name]).astype(values.dtype)


class Arithmetic:
    """How numbers are kept, rounded and summed.

    Parameters
    ----------
    name : str
        ``float64``, ``float32``, ``float16`` or ``bfloat16``: what every operation's result is rounded to.
    running : bool
        Sum one term after the other, the plainest order there is; otherwise as NumPy and its BLAS do.
    """

    def __init__(self, name="float64", running=False):
        self.name, self.running = name, running
        self.dtype = np.dtype(np.float64 if name == "float64" else np.float32)
        self.rounds = name in ("float16", "bfloat16")

    def take(self, array):
        """Bring an array of the candidate, or a parameter, into this arithmetic."""
        return self(np.asarray(array).astype(self.dtype, copy=False))

    def __call__(self, values):
        """Round the result of one operation."""
        return round_to(values, self.name) if self.rounds else values

    def sum(self, values, axis=-1, keepdims=False):
        """Sum along an axis, unrounded in 16 bits."""
        if not self.running or not values.shape[axis]:
            return values.sum(axis, keepdims=keepdims)
        total = np.take(np.cumsum(values, axis=axis, dtype=self.dtype), -1, axis=axis)
        return np.expand_dims(total, axis) if keepdims else total

    def mean(self, values):
        """Mean over the last axis, which stays with extent 1."""
        return self.sum(values, keepdims=True) / self.dtype.type(max(values.shape[-1], 1))

    def matmul(self, a, b):
        """``a @ b``, unrounded in 16 bits."""
        with np.errstate(over="ignore", invalid="ignore"):
            whole = a @ b
            if not self.running or not whole.size:
                return whole
            rows, inner = a.shape[-2], a.shape[-1]
            if whole.size * inner <= _PRODUCTS or b.ndim > 2 or rows <= _ROWS:
                return _running(a, b, whole)
            # Of a large product some rows are summed one term after the other. The differences that this makes are put
            # upon all rows, in proportion to their size, so that the largest and the mean error are those of the order.
            flat = a.reshape(-1, inner)
            chosen = np.linspace(0, len(flat) - 1, _ROWS).astype(int)
            sample = flat[chosen]
            change = _running(sample, b, sample @ b) - sample @ b
            size = np.linalg.norm(flat, axis=-1)
            source = np.arange(len(flat)) % _ROWS
            weight = size / np.maximum(size[chosen][source], np.finfo(self.dtype).tiny)
            return whole + (change[source] * np.minimum(weight, 1e3)[:, None]).reshape(whole.shape)


def _running(a, b, whole):
    """``a @ b`` as one sum after the other along the inner axis, in the dtype of `whole`."""
    total = np.zeros_like(whole)
    for k in range(a.shape[-1]):
        total += a[..., :, k, None] * b[..., k, None, :]
    return total


def format_of(arrays):
    """The number format that most of some arrays have, told from their values where float32 carries 16 bits.

    Parameters
    ----------
    arrays : iterable of array

    Returns
    -------
    str
        ``float64``, ``float32``, ``float16`` or ``bfloat16``.

    Examples
    --------
    >>> third = np.float32([1 / 3, 2 / 3])
    >>> format_of([third]), format_of([round_to(third, "bfloat16")])
    ('float32', 'bfloat16')
    """
    counts = {}
    for array in arrays:
        if array.size > 1 and (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):
            name = _format(array)
            counts[name] = counts.get(name, 0) + 1
    return max(counts, key=lambda name: counts[name], default="float32")


def _format(array):
    if array.dtype.itemsize == 2:
        return array.dtype.name
    sample = array.ravel()[: 1 << 14]
    sample = sample[np.isfinite(sample)]
    for name in ("bfloat16", "float16", "float32"):
        if np.array_equal(round_to(sample, name), sample):
            return name
    return "float64"
