"""Rotary frequencies in float64, by every rule of a Hugging Face config: the exact side, no code of which is ours."""

import math

import numpy as np

__all__ = ["exact_frequencies"]


def exact_frequencies(dim, base, rope=None, length=1, trained=None):
    """Frequencies of the pairs, and what cosine and sine are multiplied by.

    Parameters
    ----------
    dim : int
        Channels that are rotated.
    base : float
        ``rope_theta``.
    rope : dict, optional
        ``rope_parameters`` or ``rope_scaling`` of a Hugging Face config.
    length : int
        Tokens of the sequence, which dynamic and longrope go by.
    trained : int, optional
        ``max_position_embeddings`` of the config: the original length where the rule does not say it.

    Returns
    -------
    frequencies : float64 [dim / 2]
    attention : float

    Raises
    ------
    ValueError
        The type is not known, or a field that it needs is missing.
    """
    rope = {name: value for name, value in (rope or {}).items() if value is not None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _RULES:
        raise ValueError(f"rope of type {kind!r} is not known; {', '.join(_RULES)} are")
    wavelength = np.float64(base) ** (np.arange(0, dim, 2, dtype=np.float64) / dim)  # over 2 pi
    if trained is not None:
        rope.setdefault("original_max_position_embeddings", trained)
        if kind in ("yarn", "longrope"):
            rope.setdefault("factor", trained / rope["original_max_position_embeddings"])
    try:
        return _RULES[kind](wavelength, dim, base, rope, length)
    except KeyError as missing:
        raise ValueError(f"rope of type {kind!r} has no {missing}") from None


def _default(wavelength, dim, base, rope, length):
    return 1 / wavelength, 1.0


def _linear(wavelength, dim, base, rope, length):
    return 1 / (wavelength * rope["factor"]), 1.0


def _ntk(wavelength, dim, base, rope, length):
    """Spread from 1 for the first pair to the factor for the last: the exponent is k / (K - 1)."""
    return 1 / (wavelength * np.float64(rope["factor"]) ** (np.arange(dim // 2) / max(dim // 2 - 1, 1))), 1.0


def _dynamic(wavelength, dim, base, rope, length):
    original = rope["original_max_position_embeddings"]
    grown = 1 + rope["factor"] * (max(length, original) / original - 1)
    return _ntk(wavelength, dim, base, {"factor": grown}, length)


def _yarn(wavelength, dim, base, rope, length):
    factor, original = rope["factor"], rope["original_max_position_embeddings"]
    ends = [original / (2 * math.pi * rope.get(*end)) for end in (("beta_fast", 32), ("beta_slow", 1))]
    first, last = (math.log(end) / math.log(base) * dim / 2 for end in ends)
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - first) / (last - first if last != first else 0.001), 0, 1)
    log = 0.1 * math.log(factor)
    attention = 1 + log
    if "mscale" in rope and "mscale_all_dim" in rope:
        attention = (1 + rope["mscale"] * log) / (1 + rope["mscale_all_dim"] * log)
    return (ramp / factor + (1 - ramp)) / wavelength, float(rope.get("attention_factor", attention))


def _llama3(wavelength, dim, base, rope, length):
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] / (2 * math.pi * wavelength)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (kept + (1 - kept) / rope["factor"]) / wavelength, 1.0


def _longrope(wavelength, dim, base, rope, length):
    original = rope["original_max_position_embeddings"]
    stretch = np.array(rope["long_factor" if length > original else "short_factor"], np.float64)
    factor = rope.get("factor", 1.0)
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return 1 / (stretch * wavelength), float(rope.get("attention_factor", attention))


_RULES = {
    "default": _default,
    "linear": _linear,
    "ntk": _ntk,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
