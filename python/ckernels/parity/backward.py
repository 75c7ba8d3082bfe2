"""The backward equations of a decoder in NumPy, one function a gradient: the table "Gradients" of docs/stages.md.

Every function takes the gradients and stages that it needs from `Equations`, so that the candidate's own are used where
it has them. The keywords are edits, as in `equations`.
"""

from __future__ import annotations

import math

import numpy as np

from .equations import LINEAR, Missing, split
from .forward_equations import _ERF, activation, head_name, join_heads, key_heads, log_sum, rope, split_heads

_NORMS = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
_TABLE = "model.embed_tokens.weight"


def _d_logits(g, _index, *, hot=True, reduction="mean", ignored=False, shift=0, all_rows=False):
    logits, targets = g("logits"), np.roll(np.atleast_2d(g.input("targets")), shift, axis=-1)
    counted = np.ones_like(targets, bool) if ignored else targets != -100
    d = np.exp(logits - log_sum(logits)[..., None])
    if hot:
        picked = np.where(targets == -100, 0, targets)[..., None]
        np.put_along_axis(d, picked, np.take_along_axis(d, picked, -1) - 1, -1)
    count = 1 if reduction == "sum" else targets.size if all_rows else max(int(counted.sum()), 1)
    d = np.where(counted[..., None], d / g.number.dtype.type(count), 0)
    cap = g.settings.final_softcap
    return d * (1 - (logits / cap) ** 2) if cap else d


def _back(g, dy, name, *, transposed=False):
    """The gradient of a product's input: ``dy W``, W ``[out, in]``."""
    w = g.weight(f"{name}.weight")
    w = w.T.reshape(w.shape) if transposed else w
    return g.number(g.number.matmul(dy.reshape(-1, dy.shape[-1]), w)).reshape(*dy.shape[:-1], -1)


def norm_back(g, dy, x, weight, *, projection=True, eps=None, weightless=False, saved=None, off=False):
    """``r · (w·dy - x · r² · mean(w·dy·x))``, r = 1 / sqrt(mean(x²) + eps)."""
    if off:
        return dy
    number, eps = g.number, g.settings.eps if eps is None else eps
    r = 1 / np.sqrt(number.mean(x * x) + number.dtype.type(eps))
    x = x * r if saved == "normed" else x
    offset = number.dtype.type(g.settings.offset)
    dy = dy if weightless else number(dy * (weight + offset))
    if not projection:
        return r * dy
    return r * (dy - x * (r * r) * number.mean(dy * x))


def _d_before(g, i, *, skip=True, norm=True, **edit):
    """The gradient of a layer's input; that of the last layer's output where i is the number of layers."""
    x = g.before(i)
    if i == g.settings.layers:
        if "dy" in g.inputs:
            return g.number.take(g.inputs["dy"])
        return norm_back(g, g("d_final_norm"), x, g.weight("model.norm.weight"), **edit)
    weight = g.weight(f"model.layers.{i}.input_layernorm.weight")
    through = g.number(norm_back(g, g.at(i, "d_ln1"), x, weight, **edit)) if norm else 0
    return (g.at(i, "d_residual1") if skip else 0) + through


def _d_residual1(g, i, *, skip=True, norm=True, **edit):
    weight = g.weight(f"model.layers.{i}.post_attention_layernorm.weight")
    if g.has(f"model.layers.{i}.pre_feedforward_layernorm.weight"):
        raise Missing("gradients of layers with four norms are not written down")
    through = g.number(norm_back(g, g.at(i, "d_ln2"), g.at(i, "residual1"), weight, **edit)) if norm else 0
    return (g.at(i, "d_output") if skip else 0) + through


def slope(g, x, name=None, whole=True):
    """The derivative of the activation; not `whole`: without the factor's own derivative."""
    kind = name or g.settings.activation
    if kind == "relu":
        return (x > 0).astype(x.dtype)
    if kind == "gelu":
        return 0.5 * (1 + _ERF(x * math.sqrt(0.5)).astype(x.dtype)) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    if kind == "gelu_tanh":
        t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    a = 1.702 if kind == "gelu_sigmoid" else 1
    sigma = 1 / (1 + np.exp(-a * x))
    return sigma * (1 + a * x * (1 - sigma)) if whole else sigma


def _d_gate(g, i, *, whole=True, name=None, upless=False):
    d = g.at(i, "d_act") if upless else g.number(g.at(i, "d_act") * g.at(i, "up"))
    return d * slope(g, g.at(i, "gate"), name, whole)


def _d_up(g, i, *, raw=False, name=None):
    gate = g.at(i, "gate")
    return g.at(i, "d_act") * (gate if raw else g.number(activation(g, gate, name)))


def _sum_of(names, stage):
    """The gradient of an input that several projections share."""

    def function(g, i, *, without=(), transposed=()):
        total = 0
        for name in names:
            if name in without:
                continue
            d = g.at(i, f"d_{name}")
            d = join_heads(d) if stage == "ln1" else d
            part = _back(g, d, f"model.layers.{i}.{LINEAR[name]}", transposed=name in transposed)
            total = g.number(total + part)
        return total

    return function


def _d_attn(g, i, *, order=None, **edit):
    d = _back(g, g.at(i, "d_proj"), f"model.layers.{i}.{LINEAR['proj']}", **edit)
    return split_heads(d, g.settings.heads, order)


def _d_probs(g, i, *, grouping=None):
    return g.number.matmul(g.at(i, "d_attn"), key_heads(g, g.at(i, "v"), grouping).swapaxes(-1, -2))


def _d_scores(g, i, *, projection=True, unweighted=False, saved=False):
    probs, d = g.at(i, "probs"), g.at(i, "d_probs")
    if not projection:
        return probs * d
    both = g.at(i, "attn") * g.at(i, "d_attn") if saved else probs * d
    inner = d - g.number.sum(both, keepdims=True)
    return inner if unweighted else probs * inner


def _through_scale(g, i, factor, capless):
    """The gradient of the plain product of queries and keys."""
    s, d = g.settings, g.at(i, "d_scores")
    if s.softcap and not capless:
        d = g.number(d * (1 - (g.at(i, "scores") / s.softcap) ** 2))
    return g.number(d * g.number.dtype.type(s.scale if factor is None else factor))


def _d_q_rope(g, i, *, factor=None, grouping=None, capless=False):
    return g.number.matmul(_through_scale(g, i, factor, capless), key_heads(g, g.at(i, "k_rope"), grouping))


def _grouped(g, d, only=None, grouping=None):
    """Sum ``[B, H, S, D]`` over the query heads of each key head; `only`: take one of them."""
    batch, heads, length, size = d.shape
    g_, n = g.settings.kv_heads, heads // g.settings.kv_heads
    if grouping == "modulo":
        parts = d.reshape(batch, n, g_, length, size).swapaxes(1, 2)
    else:
        parts = d.reshape(batch, g_, n, length, size)
    if only is not None:
        return parts[:, :, only]
    total = parts[:, :, 0]
    for k in range(1, n):
        total = g.number(total + parts[:, :, k])
    return total


def _d_k_rope(g, i, *, factor=None, only=None, grouping=None, capless=False):
    d = g.number.matmul(_through_scale(g, i, factor, capless).swapaxes(-1, -2), g.at(i, "q_rope"))
    return _grouped(g, g.number(d), only, grouping)


def _d_v(g, i, *, only=None, grouping=None):
    d = g.number.matmul(g.at(i, "probs").swapaxes(-1, -2), g.at(i, "d_attn"))
    return _grouped(g, g.number(d), only, grouping)


def _d_turned(stage):
    """Back through rope, and through the norm of the heads where there is one."""

    def function(g, i, *, inverse=True, **edit):
        weight = f"model.layers.{i}.self_attn.{stage}_norm.weight"
        if g.has(weight):
            return norm_back(g, g.at(i, f"d_{stage}_norm"), g.at(i, stage), g.weight(weight), **edit)
        return rope(g, g.at(i, f"d_{stage}_rope"), inverse=inverse, **edit)

    return function


def _d_normed(stage):
    return lambda g, i, *, inverse=True, **edit: rope(g, g.at(i, f"d_{stage}_rope"), inverse=inverse, **edit)


def _same(source):
    return lambda g, i: g.at(i, source)


# --- parameters -------------------------------------------------------------------------------------------------------


def parameter_gradient(
    g, name, *, transposed=False, gain=1, last=False, headless=False, tableless=False, unnormed=False
):
    """The gradient of a parameter, by its name."""
    parts = name.split(".")
    if name == _TABLE:
        table = 0 if tableless else _scatter(g, last)
        if g.has("lm_head.weight"):
            return gain * table
        return gain * (g.number(table) + (0 if headless else _outer(g, g("d_logits"), g("final_norm"))))
    if name == "lm_head.weight":
        return gain * _turned(_outer(g, g("d_logits"), g("final_norm")), transposed)
    if name == "model.norm.weight":
        return gain * _norm_weight(g, g("d_final_norm"), g.before(g.settings.layers), unnormed)
    index, kind = int(parts[2]), parts[-2]
    if kind in _NORMS:
        x = g.before(index) if kind == "input_layernorm" else g.at(index, "residual1")
        return gain * _norm_weight(g, g.at(index, f"d_{_NORMS[kind]}"), x, unnormed)
    if kind in ("q_norm", "k_norm"):
        d = g.at(index, f"d_{kind}")
        return gain * _norm_weight(g, d, g.at(index, kind[0]), unnormed)
    stage = next((stage for stage, place in LINEAR.items() if place.endswith(kind)), None)
    if stage is None:
        raise Missing(f"the gradient of '{name}' is not written down")
    dy = g.at(index, f"d_{stage}")
    dy = join_heads(dy) if stage in ("q", "k", "v") else dy
    if parts[-1] == "bias":
        return gain * g.number.sum(dy.reshape(-1, dy.shape[-1]), axis=0)
    source = {"proj": "attn", "gate": "ln2", "up": "ln2", "down": "act"}.get(stage, "ln1")
    x = g.at(index, source)
    return gain * _turned(_outer(g, dy, join_heads(x) if stage == "proj" else x), transposed)


def _outer(g, dy, x):
    """``Σ dy xᵀ`` over all rows: ``[out, in]``."""
    return g.number(g.number.matmul(dy.reshape(-1, dy.shape[-1]).T, x.reshape(-1, x.shape[-1])))


def _turned(w, transposed):
    """The other orientation, in the memory of this one."""
    return np.ascontiguousarray(w.T).reshape(w.shape) if transposed else w


def _norm_weight(g, dy, x, unnormed):
    number = g.number
    r = 1 / np.sqrt(number.mean(x * x) + number.dtype.type(g.settings.eps))
    terms = dy * (x if unnormed else number(x * r))
    return number.sum(terms.reshape(-1, terms.shape[-1]), axis=0)


def _scatter(g, last):
    """Add the rows of d_embedding to the rows of the table that they came from."""
    d, ids = g("d_embedding"), np.atleast_2d(g.input("ids")).ravel()
    table = np.zeros_like(g.weight(_TABLE))
    rows = d.reshape(len(ids), -1) * g.number.dtype.type(g.settings.embed_scale)
    for row, place in zip(rows, ids, strict=True):
        table[place] = row if last else g.number(table[place] + row)
    return table


GRADIENTS = {
    "d_logits": _d_logits,
    "d_final_norm": lambda g, _index, **edit: _back(g, g("d_logits"), head_name(g), **edit),
    "d_output": lambda g, i, **edit: _d_before(g, i + 1, **edit),
    "d_down": _same("d_output"),
    "d_act": lambda g, i, **edit: _back(g, g.at(i, "d_down"), f"model.layers.{i}.{LINEAR['down']}", **edit),
    "d_gate": _d_gate,
    "d_up": _d_up,
    "d_ln2": _sum_of(("gate", "up"), "ln2"),
    "d_residual1": _d_residual1,
    "d_proj": _same("d_residual1"),
    "d_attn": _d_attn,
    "d_probs": _d_probs,
    "d_scores": _d_scores,
    "d_q_rope": _d_q_rope,
    "d_k_rope": _d_k_rope,
    "d_v": _d_v,
    "d_q_norm": _d_normed("q"),
    "d_k_norm": _d_normed("k"),
    "d_q": _d_turned("q"),
    "d_k": _d_turned("k"),
    "d_ln1": _sum_of(("q", "k", "v"), "ln1"),
    "d_embedding": lambda g, _index, **edit: _d_before(g, 0, **edit),
}


def gradient_names(settings, params, stages):
    """The gradients of a model in the order in which they are computed: stages, then parameters.

    Parameters
    ----------
    settings : Settings
    params : iterable of str
        Names of the parameters.
    stages : list of str
        The forward stages.
    """
    names = [name for name in ("d_logits", "d_final_norm") if name[2:] in stages]
    for i in reversed(range(settings.layers)):
        names += [
            f"layers.{i}.{name}"
            for name in GRADIENTS
            if f"layers.{i}.{name[2:]}" in stages and split(name)[1] not in ("d_logits", "d_final_norm")
        ]
    return [*names, "d_embedding", *(f"d_{name}" for name in params)]
