"""What a key-value cache stores and holds, in NumPy: written from the formulas of docs/ops/kv_cache.md, not from C."""
import ml_dtypes
import numpy as np

QUANTS = (None, "int8", "int4", "int8_sym", "fp8_e4m3", "fp8_e5m2")
FP8 = {"fp8_e4m3": (ml_dtypes.float8_e4m3fn, 448), "fp8_e5m2": (ml_dtypes.float8_e5m2, 57344)}


def dtype_named(name):
    """float32, float16 or bfloat16 as a NumPy dtype."""
    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def rounded(x, dtype):
    """A float32 number as it is stored."""
    return x.astype(dtype).astype(np.float32)


def no_smaller(scale, dtype):
    """A scale, no less than the smallest normal number of its dtype, as it is stored."""
    return rounded(np.maximum(scale, np.float32(ml_dtypes.finfo(dtype).tiny)), dtype)


def quantised(x, quant, group):
    """Return {"codes", "scales", "biases"} of rows [..., D] as a cache stores them."""
    dtype, f32 = x.dtype, np.float32
    wide = x.astype(f32)
    if quant == "int8_sym":
        group = x.shape[-1]
    groups = wide.reshape(*x.shape[:-1], x.shape[-1] // group, group)
    if quant in ("int8", "int4"):
        bits = int(quant[3:])
        levels = f32(2**bits - 1)
        low, high = groups.min(-1), groups.max(-1)
        scale = no_smaller(np.where(high == low, f32(1), (high - low) / levels), dtype)
        bias = rounded(low, dtype) + f32(0)
        steps = (groups - bias[..., None]) / scale[..., None] + f32(0.5)
        codes = np.clip(steps, f32(0), levels).astype(np.uint32)
        codes = codes.reshape(*x.shape[:-1], x.shape[-1] * bits // 32, 32 // bits)
        shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
        return {"codes": (codes << shifts).sum(-1, dtype=np.uint32), "scales": scale.astype(dtype),
                "biases": bias.astype(dtype)}
    peak = np.abs(groups).max(-1)
    if quant == "int8_sym":
        scale = no_smaller(np.maximum(peak, f32(1e-8)) / f32(127), dtype)
        codes = np.clip(np.rint(groups / scale[..., None]), -127, 127).astype(np.int8)
    else:
        kind, most = FP8[quant]
        scale = no_smaller(np.where(peak == 0, f32(1), peak / f32(most)), dtype)
        codes = np.clip(groups / scale[..., None], f32(-most), f32(most)).astype(kind)
    return {"codes": codes.reshape(x.shape), "scales": scale.astype(dtype)}


def values(stored, quant, group, D):
    """Return the float32 numbers that codes stand for, [..., D]."""
    codes, scale = stored["codes"], stored["scales"].astype(np.float32)
    if quant in ("int8", "int4"):
        bits = int(quant[3:])
        shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
        codes = ((codes[..., None] >> shifts) & np.uint32(2**bits - 1)).reshape(*codes.shape[:-1], D)
    numbers = codes.astype(np.float32).reshape(*scale.shape, D // scale.shape[-1]) * scale[..., None]
    if "biases" in stored:
        numbers = numbers + stored["biases"].astype(np.float32)[..., None]
    return numbers.reshape(*codes.shape[:-1], D)


def elements(x, quant, group):
    """Return what keys() gives of rows [..., D]: a copy, or quantised and back, within the dtype's range."""
    if quant is None:
        return x
    most = np.float32(ml_dtypes.finfo(x.dtype).max)
    return np.clip(values(quantised(x, quant, group), quant, group, x.shape[-1]), -most, most).astype(x.dtype)


def attention(q, k, v, dtype=np.float64, window=None, softcap=None, sinks=None):
    """Causal attention of q [H,T,D], at the last T positions, over k, v [G,S,D], in ``dtype``."""
    H, T, D = q.shape
    G, S, _ = k.shape
    q, k, v = (x.astype(dtype) for x in (q, np.repeat(k, H // G, 0), np.repeat(v, H // G, 0)))
    x = q @ k.transpose(0, 2, 1) / np.sqrt(dtype(D))
    if softcap is not None:
        x = dtype(softcap) * np.tanh(x / dtype(softcap))
    place, key = np.arange(S - T, S)[:, None], np.arange(S)[None]
    seen = key <= place
    if window is not None and window[0] is not None:
        seen &= key >= place - window[0]
    x = np.where(seen, x, -np.inf)
    if sinks is not None:
        x = np.concatenate([x, np.broadcast_to(sinks.astype(dtype)[:, None, None], (H, T, 1))], -1)
    p = np.exp(x - x.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True))[..., :S]
    return p @ v
