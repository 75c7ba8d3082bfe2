"""A candidate's arrays brought to the names and shapes of docs/stages.md: name maps, batch axis, heads, axis order."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np

from .equations import split


def read_names(names):
    """A map of foreign names: a dict, or a JSON file with one object; ``{i}`` stands for the number of the layer.

    Parameters
    ----------
    names : dict, path or None
        ``{"blk.{i}.attn_norm": "layers.{i}.ln1"}``.

    Returns
    -------
    dict
    """
    if names is None:
        return {}
    if not isinstance(names, dict):
        place = Path(names)
        try:
            names = json.loads(place.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{place}: not a JSON object of names: {error}") from None
    if not isinstance(names, dict) or not all(isinstance(v, str) for pair in names.items() for v in pair):
        raise ValueError("a map of names is one object with a stage for each foreign name")
    return names


def renamed(arrays, names):
    """Arrays by the names of docs/stages.md; ValueError where two come to one name."""
    rules = [
        (re.compile(re.escape(foreign).replace(r"\{i\}", r"(?P<i>\d+)") + r"\Z"), stage)
        for foreign, stage in read_names(names).items()
    ]
    result = {}
    for name, array in arrays.items():
        for pattern, stage in rules:
            found = pattern.match(name)
            if found:
                name = stage.replace("{i}", found.groupdict().get("i") or "")
                break
        if name in result:
            raise ValueError(f"two arrays of the trace are called '{name}'")
        result[name] = array
    return result


def shape_of(name, settings, batch, length, width, words):
    """The documented shape of a stage or of its gradient; None where it has none."""
    s = settings
    _, stage = split(name)
    stage = stage.removeprefix("d_")
    if stage in ("q", "q_norm", "q_rope", "attn"):
        return batch, s.heads, length, s.head_dim
    if stage in ("k", "v", "k_norm", "k_rope"):
        return batch, s.kv_heads, length, s.head_dim
    if stage in ("scores", "probs"):
        return batch, s.heads, length, length
    if stage in ("gate", "up", "act"):
        return None if width is None else (batch, length, width)
    if stage == "logits":
        return None if words is None else (batch, length, words)
    if stage == "loss":
        return ()
    known = ("embedding", "ln1", "proj", "residual1", "ln2", "down", "output", "final_norm", "post_attn_norm",
             "post_mlp_norm")  # fmt: skip
    return (batch, length, s.hidden) if stage in known else None


def fitted(array, shape):
    """An array in a documented shape, and how that was done; (None, reason) where it cannot be.

    Parameters
    ----------
    array : array
    shape : tuple

    Returns
    -------
    array or None, str

    Examples
    --------
    >>> fitted(np.zeros((5, 3, 8)), (1, 3, 5, 8))[1]
    'without a batch axis; axes (0, 2, 1, 3)'
    """
    if array.shape == shape:
        return array, ""
    if array.size != int(np.prod(shape)):
        return None, f"shape {array.shape} instead of {shape}"
    notes = []
    if array.ndim == len(shape) - 1 and shape[:1] == (1,):
        array, notes = array[None], ["without a batch axis"]
    if len(shape) == 4 and array.ndim == 3:
        batch, heads, length, size = shape
        if array.shape == (batch, length, heads * size):
            array = array.reshape(batch, length, heads, size)
            notes.append("heads in one axis")
    if array.ndim == len(shape):
        orders = [o for o in itertools.permutations(range(array.ndim)) if array.transpose(o).shape == shape]
        # The batch axis stays in front where it can: B = 1 would fit anywhere.
        orders.sort(key=lambda order: sum(a != b for a, b in enumerate(order)))
        if orders:
            if orders[0] != tuple(range(array.ndim)):
                notes.append(f"axes {orders[0]}")
            return array.transpose(orders[0]), "; ".join(notes)
    if array.ndim != len(shape) and tuple(n for n in array.shape if n > 1) == tuple(n for n in shape if n > 1):
        return array.reshape(shape), "axes of extent 1"
    return None, f"shape {array.shape} instead of {shape}"


def other_orders(array):
    """Other orders of the axes after the first that have the same shape: where extents are equal."""
    plain = tuple(range(array.ndim))
    for order in itertools.permutations(plain):
        if order != plain and order[:1] == (0,) and array.transpose(order).shape == array.shape:
            yield order


def aligned(trace, settings, weights, names=None):
    """The arrays of a trace in documented names and shapes.

    Returns
    -------
    given : dict of str to array
    notes : dict of str to str
        What was done to an array.
    refused : dict of str to str
        Arrays that fit nothing, with the reason.
    """
    arrays = renamed(trace.arrays, names)
    batch, length = _extent(trace, arrays, settings)
    params = weights.params
    up = params.get("model.layers.0.mlp.up_proj.weight")
    table = params.get("lm_head.weight", params.get("model.embed_tokens.weight"))
    width, words = (None if p is None else int(p.shape[0]) for p in (up, table))
    given, notes, refused = {}, {}, {}
    for name, array in arrays.items():
        shape = shape_of(name, settings, batch, length, width, words)
        if shape is None and name.startswith("d_") and name[2:] in params:
            shape = tuple(params[name[2:]].shape)
        if shape is None:
            given[name] = array
            continue
        fit, note = fitted(array, shape)
        if fit is None:
            refused[name] = note
        else:
            given[name] = fit
            if note:
                notes[name] = note
    return given, notes, refused


def _extent(trace, arrays, settings):
    """B and T, from the ids or from any array that has them."""
    if "ids" in trace.inputs:
        return np.atleast_2d(trace.inputs["ids"]).shape
    for name in ("x", "embedding", "layers.0.ln1", "layers.0.output", "final_norm"):
        array = trace.inputs.get(name, arrays.get(name))
        if array is not None:
            return (1, *array.shape)[-3:-1] if array.ndim == 2 else array.shape[:2]
    for array in arrays.values():
        if array.ndim == 3:
            return array.shape[:2]
        if array.ndim == 4:
            return array.shape[0], array.shape[2]
    raise ValueError("diff(): the trace has neither 'ids' nor an array that says how many tokens there are")
