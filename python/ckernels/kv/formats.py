"""How keys and values are stored: dtypes, quantised formats, the arrays of a cache."""
import math
from typing import NamedTuple

import numpy as np

from ckernels.runtime import empty

__all__ = ["FORMATS", "Format", "Storage", "dtype_of", "integer"]

GROUPS = (16, 32, 64, 128)


class Format(NamedTuple):
    """A format as the C side numbers it (csrc/ops/kv_store.h)."""

    number: int
    bits: int  # of a code; 0: the elements themselves
    codes: str  # their dtype
    scaled: bool
    affine: bool


FORMATS = {
    None: Format(0, 0, "", False, False),
    "int8": Format(1, 8, "uint32", True, True),
    "int4": Format(2, 4, "uint32", True, True),
    "int8_sym": Format(3, 8, "int8", True, False),
    "fp8_e4m3": Format(4, 8, "float8_e4m3fn", True, False),
    "fp8_e5m2": Format(5, 8, "float8_e5m2", True, False),
}


def integer(who, name, value, least=0):
    """Return an integer of at least ``least``; TypeError or ValueError by name."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{who}(): '{name}' must be an integer, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{who}(): '{name}' must " + ("not be negative" if least == 0 else f"be at least {least}")
                         + f", not {value}")
    return int(value)


def _named(name):
    """Return the dtype of that name, those of ml_dtypes included."""
    if name.startswith(("bfloat", "float8")):
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(f"{name} arrays need the ml_dtypes package: pip install ml_dtypes") from None
        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def dtype_of(who, dtype):
    """Return float32, float16 or bfloat16 as a NumPy dtype; ValueError for any other."""
    try:
        found = _named(dtype) if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype)
        name = "" if dtype is None else found.name
    except TypeError:
        name = ""
    if name not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"{who}(): 'dtype' must be float32, float16 or bfloat16, not {dtype!r}")
    return found


class Storage:
    """The arrays of a cache: ``blocks`` of ``size`` positions of G heads each.

    Attributes
    ----------
    raw : dict
        ``{"k", "v"}``, or ``{"k_codes", "k_scales", "k_biases", "v_codes", ...}`` as far as the format has them, each
        [blocks, G, size, ...].
    parts : tuple
        The same as the C side takes them: codes as bytes, then scales and biases or None, of k and of v.
    """

    def __init__(self, who, blocks, kv_heads, size, head_dim, dtype, quant, group):
        self.dtype = dtype_of(who, dtype)
        if not (quant is None or isinstance(quant, str)) or quant not in FORMATS:
            names = ", ".join(repr(name) for name in FORMATS)
            raise ValueError(f"{who}(): 'quant' must be one of {names}, not {quant!r}")
        self.quant, self.format = quant, FORMATS[quant]
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.group = self._check_group(who, group)
        self.raw = {}
        shape = blocks, kv_heads, size
        try:
            for name in ("k", "v"):
                self.raw |= self._arrays(name, shape)
        except (MemoryError, OverflowError) as error:
            raise type(error)(f"{who}(): no memory for keys and values of shape {(*shape, head_dim)}") from None
        parts = []
        for name in ("k", "v"):
            parts += [self.raw.get(name, self.raw.get(f"{name}_codes")).view(np.uint8),
                      self.raw.get(f"{name}_scales"), self.raw.get(f"{name}_biases")]
        self.parts = tuple(parts)

    def _check_group(self, who, group):
        group = integer(who, "group", group, 1)
        if self.quant in (None, "int8_sym"):
            return group
        if group not in GROUPS:
            raise ValueError(f"{who}(): 'group' must be one of {', '.join(map(str, GROUPS))}, not {group}")
        if self.head_dim % group:
            raise ValueError(f"{who}(): 'head_dim' is {self.head_dim}, which is no multiple of 'group', {group}")
        return group

    def _arrays(self, name, shape):
        if self.quant is None:
            return {name: empty((*shape, self.head_dim), self.dtype)}
        codes = _named(self.format.codes)
        width = self.head_dim * self.format.bits // 8 // codes.itemsize
        groups = 1 if self.quant == "int8_sym" else self.head_dim // self.group
        found = {f"{name}_codes": empty((*shape, width), codes), f"{name}_scales": empty((*shape, groups), self.dtype)}
        if self.format.affine:
            found[f"{name}_biases"] = empty((*shape, groups), self.dtype)
        return found

    def part(self, name):
        """Return (codes, scales, biases) of "k" or "v", as the C side takes them."""
        return self.parts[:3] if name == "k" else self.parts[3:]

    def describe(self):
        """Return what the repr of a cache says of its form."""
        return f"dtype={self.dtype.name!r}, quant={self.quant!r}" + (
            f", group={self.group}" if self.quant not in (None, "int8_sym") else ""
        )

    def check_shape(self, who, name, array, declared, B, G=None):
        """Refuse what is no array [B, heads, tokens, D] of the cache's dtype; ``G``: heads, where fixed."""
        shape = getattr(array, "shape", None)
        if shape is None:
            raise TypeError(f"{who}(): '{name}' must be a NumPy array or lend its memory by __dlpack__, "
                            f"not {type(array)!r}")
        if len(shape) != 4 or shape[0] != B or shape[3] != self.head_dim or G is not None and shape[1] != G:
            where = f"B={B}, " + (f"G={G}, " if G is not None else "") + f"D={self.head_dim}"
            raise ValueError(f"{who}(): '{name}' of shape {tuple(shape)} does not fit {declared}, where {where}")
        dtype = str(getattr(array, "dtype", "")).removeprefix("torch.")
        if dtype != self.dtype.name:
            raise TypeError(f"{who}(): '{name}' must be {self.dtype.name}, as the cache is, not {dtype}")


def _left(who, window):
    """Return how far back a window reaches, -1 for as far as there is; its right side is closed by causality."""
    if window is None:
        return -1
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"{who}(): 'window' must be (left, right) or None, not {window!r}")
    for side in window:
        if side is None:
            continue
        if not isinstance(side, (int, np.integer)) or isinstance(side, bool):
            raise TypeError(f"{who}(): 'window' must hold integers or None, not {type(side).__name__}")
        if side < 0:
            raise ValueError(f"{who}(): 'window' must hold integers of at least 0, or None for an open side, "
                             f"not {side}")
    return -1 if window[0] is None else min(int(window[0]), 2**62)


def attend_options(who, head_dim, scale, window, softcap):
    """Return (left, scale, softcap) as the C side takes them."""
    left = _left(who, window)
    if scale is None:
        scale = 1 / math.sqrt(head_dim) if head_dim else 1.0
    if softcap is None:
        softcap = 0.0
    elif isinstance(softcap, (str, bytes)) or np.ndim(softcap):
        raise TypeError(f"{who}(): 'softcap' must be a number or None, not {softcap!r}")
    elif not softcap > 0:
        raise ValueError(f"{who}(): 'softcap' must be above 0, or None, not {softcap}")
    return left, scale, softcap
