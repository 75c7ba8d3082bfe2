"""Rules that stretch the rotary frequencies: from the fields of a Hugging Face configuration to numbers."""
import math
from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple

import numpy as np

__all__ = ["Rule", "frequencies_depend_on", "rule_of"]

# Rules in the order of csrc/ops/rope.h, each with the fields it needs and those it may have.
RULES = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "ntk": (("factor",), ()),
    "dynamic": (("factor", "original_max_position_embeddings"), ()),
    "yarn": (("factor", "original_max_position_embeddings"),
             ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "longrope": (("short_factor", "long_factor", "original_max_position_embeddings"), ("factor", "attention_factor")),
}
_ELSEWHERE = {
    "mrope_section": "belongs to mrope(), as its 'sections'",
    "mrope_interleaved": "belongs to mrope(), as its 'interleaved_sections'",
}


class Rule(NamedTuple):
    """What the table is made by, as C takes it; the base, which is no field of a rule, goes between."""

    short_factor: np.ndarray | None
    long_factor: np.ndarray | None
    rule: int
    factor: float
    original: float
    low: float
    high: float
    truncate: bool
    attention: float


DEFAULT = Rule(None, None, 0, 1.0, 1.0, 1.0, 1.0, False, 1.0)


def _number(called, name, value):
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{called}(): '{name}' of 'scaling' must be a number, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{called}(): '{name}' of 'scaling' must be finite, not {value}") from None


def _numbers(called, name, value, pairs):
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        raise TypeError(f"{called}(): '{name}' of 'scaling' must be a list of numbers, not {type(value).__name__}")
    if len(value) != pairs:
        raise ValueError(f"{called}(): '{name}' of 'scaling' has {len(value)} numbers, and there are K={pairs} pairs")
    return np.array([_number(called, name, item) for item in value], np.float64)


def _kind(called, scaling):
    """Return the rule's name, which goes by two names itself."""
    kinds = {scaling[name] for name in ("rope_type", "type") if isinstance(scaling.get(name), str)}
    for name in "rope_type", "type":
        if not isinstance(scaling.get(name, ""), (str, type(None))):
            raise TypeError(f"{called}(): '{name}' of 'scaling' must be a string, not {type(scaling[name]).__name__}")
    if not kinds:
        raise ValueError(f"{called}(): 'rope_type' of 'scaling' is missing; there are {', '.join(RULES)}")
    if len(kinds) > 1:
        raise ValueError(f"{called}(): 'rope_type' of 'scaling' is {scaling['rope_type']!r}, "
                         f"and 'type' {scaling['type']!r}")
    kind = kinds.pop()
    if kind not in RULES:
        raise ValueError(f"{called}(): 'rope_type' of 'scaling' is {kind!r}; there are {', '.join(RULES)}")
    return kind


def _check_fields(called, kind, given, base):
    """Refuse what is missing, and what the rule would not look at."""
    needed, allowed = RULES[kind]
    for name in needed:
        if name not in given:
            raise ValueError(f"{called}(): '{name}' of 'scaling' is missing, which {kind!r} needs")
    for name, value in given.items():
        if name in _ELSEWHERE:
            raise ValueError(f"{called}(): '{name}' of 'scaling' {_ELSEWHERE[name]}")
        if name == "rope_theta":
            if _number(called, name, value) != base:
                raise ValueError(f"{called}(): 'rope_theta' of 'scaling' is {value}, and 'base' {base}")
        elif name == "partial_rotary_factor":
            if _number(called, name, value) != 1:
                raise ValueError(f"{called}(): 'partial_rotary_factor' of 'scaling' is {value}: "
                                 "give 'dim' the channels to rotate, and leave it out")
        elif name not in (*needed, *allowed):
            raise ValueError(f"{called}(): {name!r} of 'scaling' is no field of {kind!r}")


def _yarn_attention(called, given, factor):
    """Peng et al. 2023, section 3.4; mscale, of DeepSeek, weighs the logarithm."""
    def grown(weight):
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    weights = [name for name in ("mscale", "mscale_all_dim") if name in given]
    if "attention_factor" in given:
        if weights:
            raise ValueError(f"{called}(): '{weights[0]}' of 'scaling' has no effect beside 'attention_factor'")
        return _number(called, "attention_factor", given["attention_factor"])
    if len(weights) == 1:
        raise ValueError(f"{called}(): '{weights[0]}' of 'scaling' has no effect alone; "
                         "'mscale' and 'mscale_all_dim' go together")
    values = [_number(called, name, given[name]) for name in weights]
    for name, value in zip(weights, values, strict=True):
        if not 0 < value < math.inf:
            raise ValueError(f"{called}(): '{name}' of 'scaling' must be positive and finite, not {value:g}")
    return grown(values[0]) / grown(values[1]) if values else grown(1.0)


def _longrope_attention(called, given, factor, original):
    """Ding et al. 2024, as Phi-3 has it."""
    if "attention_factor" in given:
        return _number(called, "attention_factor", given["attention_factor"])
    if "factor" not in given:
        raise ValueError(f"{called}(): 'factor' of 'scaling' is missing, which 'longrope' needs without "
                         "'attention_factor'")
    if factor > 1 and original == 1:
        raise ValueError(f"{called}(): 'original_max_position_embeddings' of 'scaling' must be above 1, not 1")
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0


def rule_of(called, scaling, dim, base):
    """Read a rule.

    Parameters
    ----------
    called : str
        The function the user called.
    scaling : dict or None
        Fields named as in ``rope_scaling`` or ``rope_parameters`` of a Hugging Face configuration; None counts as
        left out.
    dim : int
        Channels to rotate.
    base : float

    Returns
    -------
    Rule

    Raises
    ------
    TypeError, ValueError
        A field is missing, unknown, of the wrong kind, or would have no effect.  What is out of range C refuses.
    """
    if scaling is None:
        return DEFAULT
    if not isinstance(scaling, Mapping):
        raise TypeError(f"{called}(): 'scaling' must be a dict, not {type(scaling).__name__}")
    kind = _kind(called, scaling)
    given = {name: value for name, value in scaling.items() if value is not None and name not in ("rope_type", "type")}
    _check_fields(called, kind, given, base)

    def number(name, default):
        return _number(called, name, given[name]) if name in given else default

    factor, original = number("factor", 1.0), number("original_max_position_embeddings", 1.0)
    rule = DEFAULT._replace(rule=list(RULES).index(kind), factor=factor, original=original)
    if kind == "yarn":
        truncate = given.get("truncate", True)
        if not isinstance(truncate, bool):
            raise TypeError(f"{called}(): 'truncate' of 'scaling' must be a bool, not {type(truncate).__name__}")
        return rule._replace(low=number("beta_slow", 1.0), high=number("beta_fast", 32.0), truncate=truncate,
                             attention=_yarn_attention(called, given, factor))
    if kind == "llama3":
        return rule._replace(low=number("low_freq_factor", None), high=number("high_freq_factor", None))
    if kind == "longrope":
        lists = {name: _numbers(called, name, given[name], dim // 2) for name in ("short_factor", "long_factor")}
        return rule._replace(**lists, attention=_longrope_attention(called, given, factor, original))
    return rule


def frequencies_depend_on(scaling, length):
    """Return what of a sequence's length the frequencies depend on: two lengths of equal answers have one table.

    Parameters
    ----------
    scaling : dict or None
        A rule that :func:`rule_of` has accepted.
    length : int

    Returns
    -------
    int, bool or None
        dynamic: the length, where it is beyond the original one; longrope: whether it is; otherwise None.
    """
    kind = (scaling or {}).get("rope_type")
    if kind not in ("dynamic", "longrope"):
        return None
    original = scaling["original_max_position_embeddings"]
    return length > original if kind == "longrope" else max(length, original)
