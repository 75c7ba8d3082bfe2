"""The affine codes of a cache, for arrays that are in none."""
import numpy as np

from ckernels import _ck
from ckernels.kv.formats import FORMATS, GROUPS
from ckernels.runtime import empty

__all__ = ["kv_dequantize", "kv_quantize"]


def _form(who, bits, group):
    """Return the format of so many bits; ValueError for what there is not."""
    for name, value in ("bits", bits), ("group", group):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise TypeError(f"{who}(): '{name}' must be an integer, not {type(value).__name__}")
    if bits not in (4, 8):
        raise ValueError(f"{who}(): 'bits' must be 4 or 8, not {bits}")
    if group not in GROUPS:
        raise ValueError(f"{who}(): 'group' must be one of {', '.join(map(str, GROUPS))}, not {group}")
    return FORMATS[f"int{bits}"]


def kv_quantize(x, bits, group):
    """Quantise rows in groups of channels, as a cache of ``quant="int4"`` or ``"int8"`` stores them.

    Parameters
    ----------
    x : float32, float16 or bfloat16 [..., D]
    bits : 4 or 8
        Of a code.
    group : 16, 32, 64 or 128
        Channels that share a scale and a bias; D is a multiple.

    Returns
    -------
    codes : uint32 [..., D * bits / 32]
        The low code first.
    scales, biases : like x, [..., D / group]
        A group's ``(max - min) / (2**bits - 1)`` (1 where they are equal, no less than the smallest normal number) and
        ``min``, rounded to the dtype of ``x``; codes follow from the rounded ones:
        ``trunc(clamp((x - bias) / scale + 0.5, 0, 2**bits - 1))`` in float32.

    Raises
    ------
    TypeError
        Another dtype.
    ValueError
        D is no multiple of ``group``, bits or group are none of those above, NaN, inf or numbers from 2**126 on in x.

    Notes
    -----
    ``code * scale + bias`` differs from x by at most half a scale, plus the rounding of scale and bias.  The same codes
    on every instruction set.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> x = np.arange(32, dtype="f4").reshape(1, 32)
    >>> codes, scales, biases = ck.kv_quantize(x, 8, 32)
    >>> codes.shape, biases.tolist()
    ((1, 8), [[0.0]])
    >>> float(abs(ck.kv_dequantize(codes, scales, biases, 8, 32) - x).max()) < 0.07
    True
    """
    form = _form("kv_quantize", bits, group)
    shape = getattr(x, "shape", None)
    if shape is None:
        raise TypeError(f"kv_quantize(): 'x' must be a NumPy array or lend its memory by __dlpack__, not {type(x)!r}")
    if not shape or shape[-1] % group:
        raise ValueError(f"kv_quantize(): 'x' of shape {tuple(shape)} does not fit [..., D], D a multiple of {group}")
    rows, D = tuple(shape[:-1]), shape[-1]
    codes = empty((*rows, D * bits // 32), np.uint32)
    dtype = str(getattr(x, "dtype", "")).removeprefix("torch.")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise TypeError(f"kv_quantize(): 'x' must be float32, float16 or bfloat16, not {dtype}")
    scales, biases = (empty((*rows, D // group), dtype) for _ in range(2))
    _ck.kv_quantize(codes.view(np.uint8), scales, biases, x, form.number, group)
    return codes, scales, biases


def kv_dequantize(codes, scales, biases, bits, group):
    """Return the values of codes from :func:`kv_quantize`: ``code * scale + bias``, rounded at each step.

    Parameters
    ----------
    codes : uint32 [..., D * bits / 32]
    scales, biases : float32, float16 or bfloat16 [..., D / group]
    bits : 4 or 8
    group : 16, 32, 64 or 128

    Returns
    -------
    like scales, [..., D]
        A value that rounds past the largest number of its dtype is that number.

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> codes = np.full((1, 4), 0x21212121, np.uint32)
    >>> ck.kv_dequantize(codes, np.ones((1, 1), "f4"), np.zeros((1, 1), "f4"), 4, 32)[0, :4]
    array([1., 2., 1., 2.], dtype=float32)
    """
    form = _form("kv_dequantize", bits, group)
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint32:
        raise TypeError(f"kv_dequantize(): 'codes' must be a uint32 NumPy array, not "
                        f"{getattr(codes, 'dtype', type(codes).__name__)}")
    if codes.ndim == 0 or codes.shape[-1] * 32 // bits % group:
        raise ValueError(f"kv_dequantize(): 'codes' of shape {codes.shape} does not fit [..., D * {bits} / 32], D a "
                         f"multiple of {group}")
    if codes.strides[-1] != 4 and codes.size:
        raise ValueError("kv_dequantize(): 'codes' must be contiguous along its last axis: pass "
                         "numpy.ascontiguousarray of it")
    D = codes.shape[-1] * 32 // bits
    return _ck.kv_dequantize(None, codes.view(np.uint8), scales, biases, D, form.number, group)
