"""Random inputs, quickly made, and the same memory as tensors; ``torch`` and ``F`` are None without PyTorch."""

import functools
import os

import numpy as np

# How often OpenMP's threads look for work before they sleep: about half a millisecond, which spans a call of several
# parallel regions.  By default they keep a core for tens of milliseconds after it, and `timing.rest` waits for them.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
try:
    import torch
    from torch.nn import functional as F  # noqa: N812 - its usual name
except ImportError:
    torch = F = None

__all__ = ["DTYPES", "F", "ids", "normal", "tensor", "torch", "uniform"]

_POOL = 1 << 22  # numbers drawn once; a case's inputs are pieces of them


def _dtypes():
    names = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
    try:
        import ml_dtypes
    except ImportError:
        return names
    return {**names, "bfloat16": np.dtype(ml_dtypes.bfloat16)}


#: NumPy's dtype by name; bfloat16 where ml_dtypes is installed.
DTYPES = _dtypes()


@functools.cache
def _pool(kind, dtype):
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal(_POOL, np.float32) if kind == "normal" else rng.uniform(0.5, 1.5, _POOL)
    return drawn.astype(dtype)


def _pieces(kind, rng, shape, dtype):
    """Fill an array with pieces of the pool, from another place of it every time."""
    pool, out = _pool(kind, np.dtype(dtype)), np.empty(shape, dtype)
    flat, begin = out.reshape(-1), int(rng.integers(_POOL // 2))
    for i in range(0, flat.size, _POOL // 2):
        part = flat[i : i + _POOL // 2]
        part[:] = pool[begin : begin + part.size]
    return out


def normal(rng, shape, dtype=np.float32):
    """Return an array of normal numbers, variance 1."""
    return _pieces("normal", rng, shape, dtype)


def uniform(rng, shape, dtype=np.float32):
    """Return an array of numbers from 1/2 to 3/2: a norm's weight."""
    return _pieces("uniform", rng, shape, dtype)


def ids(rng, n, below):
    """Return an array of ``n`` integers, int64."""
    return rng.integers(0, below, n)


def tensor(array, grad=False):
    """Return the same memory as a tensor of PyTorch, which may be a leaf of a graph; None without PyTorch."""
    if torch is None:
        return None
    if array.dtype.name == "bfloat16":
        t = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        t = torch.from_numpy(array)
    return t.requires_grad_() if grad else t
