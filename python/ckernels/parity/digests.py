"""Traces as hashes: what is left of a run too large to keep, enough to say where two first differ by a bit."""

from __future__ import annotations

import hashlib
import math

import numpy as np


def digest(array):
    """Shape, dtype, hash and size of an array.

    Parameters
    ----------
    array : array

    Returns
    -------
    dict
        ``shape``, ``dtype``, ``sha256`` of the bytes in C order (little-endian), and ``rms`` and ``max`` (magnitude)
        of what is finite.

    Examples
    --------
    >>> digest(np.float32([3, -4]))["rms"], digest(np.float32([3, -4]))["max"]
    (3.5355339059327378, 4.0)
    """
    array = np.asarray(array)
    raw = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    flat = array.astype(np.float64).ravel()
    flat = flat[np.isfinite(flat)]
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "sha256": hashlib.sha256(raw.tobytes()).hexdigest(),
        "rms": math.sqrt(float(np.dot(flat, flat)) / flat.size) if flat.size else 0.0,
        "max": float(np.abs(flat).max()) if flat.size else 0.0,
    }


def differing(a, b):
    """Names of stages whose hashes differ, in the order of `b`; a name that one of them lacks differs.

    Parameters
    ----------
    a, b : dict of str to dict
        What `digest` gives, by stage.
    """
    names = [*b, *(name for name in a if name not in b)]
    return [name for name in names if a.get(name, {}).get("sha256") != b.get(name, {}).get("sha256") or name not in a]
