"""The forward equations of a decoder in NumPy, one function a stage, in any arithmetic, with the mistakes people make.

The keywords of the functions are edits: what `hypotheses` changes to see whether a candidate did the same. Without
edits these are the equations of docs/stages.md. Letters as there.
"""

from __future__ import annotations

import math

import numpy as np

from .arithmetic import round_to
from .equations import LINEAR, Missing

_ERF = np.frompyfunc(math.erf, 1, 1)


# --- norms and products -----------------------------------------------------------------------------------------------


def rms_norm(g, x, weight, *, off=False, eps=None, outside=False, divisor=None, lanes=None, toggle=False, cast=None,
             weightless=False, centred=False):  # fmt: skip
    """``(offset + w) · x / sqrt(mean(x²) + eps)``."""
    if off:
        return x
    number, eps = g.number, g.settings.eps if eps is None else eps
    x = x - number.mean(x) if centred else x
    seen = x if lanes is None else x[..., :lanes]
    square = number.sum(seen * seen, keepdims=True) / number.dtype.type(divisor or seen.shape[-1])
    root = np.sqrt(square) + eps if outside else np.sqrt(square + number.dtype.type(eps))
    y = number(x * (1 / root))
    y = y if cast is None else round_to(y, cast)
    if weightless:
        return y
    offset = 1 - g.settings.offset if toggle else g.settings.offset
    return y * (weight + number.dtype.type(offset) if offset else weight)


def linear(g, x, name, *, weight=None, transposed=False, bias=None, inner=None, operands=None, accumulate=None):
    """``x Wᵀ (+ b)``, W ``[out, in]``."""
    w = g.weight(f"{weight or name}.weight")
    if operands:
        x, w = round_to(x, operands), round_to(w, operands)
    w = w.reshape(w.shape[::-1]) if transposed else w.T  # the same memory, read as [in, out]
    if inner is not None:
        x, w = x[..., :inner], w[:inner]
    rows = x.reshape(-1, x.shape[-1])
    y = _narrow_sum(rows, w, accumulate) if accumulate else g.number.matmul(rows, w)
    y = g.number(y).reshape(*x.shape[:-1], w.shape[-1])
    if g.has(f"{name}.bias") and bias != "missing":
        b = g.weight(f"{name}.bias")
        y = y + (2 * b if bias == "doubled" else b)
    return y


def _narrow_sum(x, w, name):
    """``x w`` with a running sum that is rounded after every term."""
    total = np.zeros((x.shape[0], w.shape[1]), x.dtype)
    for k in range(x.shape[1]):
        total = round_to(total + x[:, k, None] * w[k], name)
    return total


def _projection(stage, x):
    def function(g, i, **edit):
        return linear(g, x(g, i), f"model.layers.{i}.{LINEAR[stage]}", **_local(edit, i))

    return function


def _local(edit, i):
    """Names of parameters inside an edit belong to the layer."""
    return edit | {"weight": f"model.layers.{i}.{edit['weight']}"} if "weight" in edit else edit


def split_heads(flat, count, order=None):
    """``[B, T, count·D]`` to ``[B, count, T, D]``; `order` names a mistake."""
    batch, length, _ = flat.shape
    if order == "not transposed":
        return flat.reshape(batch, count, length, -1)
    if order == "lanes first":
        return flat.reshape(batch, length, -1, count).transpose(0, 3, 1, 2)
    return flat.reshape(batch, length, count, -1).transpose(0, 2, 1, 3)


def join_heads(x, order=None):
    """``[B, H, T, D]`` to ``[B, T, H·D]``."""
    batch, heads, length, size = x.shape
    if order == "not transposed":
        return x.reshape(batch, length, heads * size)
    if order == "lanes first":
        return x.transpose(0, 2, 3, 1).reshape(batch, length, heads * size)
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


def _heads(stage):
    def function(g, i, order=None, **edit):
        s = g.settings
        flat = linear(g, g.at(i, "ln1"), f"model.layers.{i}.{LINEAR[stage]}", **_local(edit, i))
        return split_heads(flat, s.heads if stage == "q" else s.kv_heads, order)

    return function


def _proj(g, i, order=None, **edit):
    return linear(g, join_heads(g.at(i, "attn"), order), f"model.layers.{i}.{LINEAR['proj']}", **_local(edit, i))


# --- rope -------------------------------------------------------------------------------------------------------------


def rope_tables(
    g, batch, length, *, base=None, width=None, scaling=True, shift=0, frozen=None, angles=None, table=None
):
    """Cos and sin, ``[B, 1, T, K]``, in float64 before the last rounding."""
    at = g.positions(batch, length) + shift if frozen is None else np.full((batch, length), frozen)
    turns, factor = g.settings.frequencies(int(at.max(initial=0)) + 1, base=base, width=width, scaled=scaling)
    if angles:
        phi = (at[..., None].astype(np.float32) * turns.astype(np.float32)).astype(np.float32)
        phi = round_to(phi, angles).astype(np.float64)
    else:
        phi = at[..., None] * turns
    cos, sin = (np.asarray(f(phi) * factor)[:, None] for f in (np.cos, np.sin))
    if table:
        cos, sin = round_to(cos, table), round_to(sin, table)
    return g.number.take(cos), g.number.take(sin)


def rope(g, x, *, off=False, toggle=False, sign=1, heads=None, inverse=False, **tables):
    """Rotate pairs of lanes: halves, or neighbours where `interleaved`; lanes beyond the tables pass."""
    if off:
        return x
    number = g.number
    cos, sin = rope_tables(g, x.shape[0], x.shape[2], **tables)
    sin = -sin if (sign < 0) != inverse else sin
    k = cos.shape[-1]
    neighbours = g.settings.interleaved != toggle
    first, second = (slice(0, 2 * k, 2), slice(1, 2 * k, 2)) if neighbours else (slice(0, k), slice(k, 2 * k))
    y = np.array(x)
    a, b = x[..., first], x[..., second]
    y[..., first] = number(a * cos) - number(b * sin)
    y[..., second] = number(b * cos) + number(a * sin)
    if heads is not None:
        y[:, heads:] = x[:, heads:]
    return y


def _rope(stage):
    def function(g, i, **edit):
        source = f"{stage}_norm" if g.has(f"model.layers.{i}.self_attn.{stage}_norm.weight") else stage
        return rope(g, g.at(i, source), **edit)

    return function


def _norm_of(source, weight):
    return lambda g, i, **edit: rms_norm(g, source(g, i), g.weight(weight.format(i)), **edit)


# --- attention --------------------------------------------------------------------------------------------------------


def key_heads(g, x, grouping=None):
    """The key head of each query head: ``[B, G, S, D]`` to ``[B, H, S, D]``."""
    s = g.settings
    return x[:, np.arange(s.heads) % s.kv_heads if grouping == "modulo" else s.heads_of()]


def _scores(g, i, *, factor=None, capless=False, grouping=None, cache=None, operands=None):
    s, number = g.settings, g.number
    q, k = g.at(i, "q_rope"), g.at(i, "k_rope")
    k = k if cache is None else cache(g, k, "layers.{}.k_rope", i)
    if operands:
        q, k = round_to(q, operands), round_to(k, operands)
    k = key_heads(g, k, grouping)
    scores = number(number.matmul(q, k.swapaxes(-1, -2))) * number.dtype.type(s.scale if factor is None else factor)
    if s.softcap and not capless:
        scores = number(s.softcap * np.tanh(number(scores) / number.dtype.type(s.softcap)))
    return scores


def visible(g, length, keys, shift=0, open_=False, wider=0, windowless=False):
    """Which key a query sees: ``[T, S]``."""
    t, s = np.arange(length)[:, None], np.arange(keys)
    seen = np.ones((length, keys), bool) if open_ else s <= t + shift
    window = g.settings.window
    if window is not None and not windowless:
        seen &= s > t - window - wider
    return seen


def _probs(g, i, *, sinkless=False, raw=False, tile=None, **mask):
    scores, number = g.at(i, "scores"), g.number
    seen = visible(g, *scores.shape[-2:], **mask)
    sinks = f"model.layers.{i}.self_attn.sinks"
    sinks = g.weight(sinks)[None, :, None] if g.has(sinks) and not sinkless else None
    top = np.where(seen, scores, -np.inf).max(-1, initial=-np.inf)
    top = top if sinks is None else np.maximum(top, sinks)
    top = np.zeros_like(top) if raw else np.where(np.isfinite(top), top, 0)
    narrow = np.float32 if raw else number.dtype
    weights = np.where(seen, np.exp((scores - top[..., None]).astype(narrow)), 0).astype(number.dtype)
    total = number.sum(weights)
    total = total if sinks is None else total + np.exp(sinks - top)
    if tile:  # keys of zeros fill the last tile and are not masked
        total = total + (-scores.shape[-1] % tile) * np.exp(-top)
    return weights / np.where(total == 0, 1, total)[..., None]


def _attn(g, i, *, grouping=None, cache=None, empty_from=None, block=None, both=True):
    v = g.at(i, "v")
    v = v if cache is None else cache(g, v, "layers.{}.v", i)
    v = key_heads(g, v, grouping)
    if block:
        return _forgetful(g, i, v, block, both)
    attn = g.number.matmul(g.at(i, "probs"), v)
    if empty_from is not None:
        attn = np.array(attn)
        attn[:, :, empty_from:] = 0
    return attn


def _forgetful(g, i, v, block, both):
    """Softmax block by block whose earlier blocks are not rescaled when the maximum grows."""
    scores = g.at(i, "scores")
    hidden = np.where(visible(g, *scores.shape[-2:]), scores, -np.inf)
    total, attn, top = 0.0, 0.0, np.full(scores.shape[:-1], -np.inf)
    for start in range(0, scores.shape[-1], block):
        part = hidden[..., start : start + block]
        grown = np.maximum(top, part.max(-1))
        weights = np.exp(part - grown[..., None])
        fade = np.where(np.isfinite(top), np.exp(top - grown), 0.0)
        total = total * (1.0 if both else fade) + weights.sum(-1)
        attn = attn + weights @ v[:, :, start : start + block]
        top = grown
    return attn / total[..., None]


# --- the rest of the layer and the model ------------------------------------------------------------------------------


def activation(g, x, name=None):
    """The activation of the gate."""
    kind, one = name or g.settings.activation, g.number.dtype.type
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "gelu":
        return one(0.5) * x * (1 + _ERF(x * one(math.sqrt(0.5))).astype(x.dtype))
    if kind == "gelu_tanh":
        return one(0.5) * x * (1 + np.tanh(one(math.sqrt(2 / math.pi)) * (x + one(0.044715) * x * x * x)))
    if kind == "identity":
        return x
    return x / (1 + np.exp(-(one(1.702) * x if kind == "gelu_sigmoid" else x)))


def _act(g, i, *, name=None, swapped=False, gateless=False, upless=False):
    if g.has(f"model.layers.{i}.mlp.up_proj.weight") and not g.has(f"model.layers.{i}.mlp.gate_proj.weight"):
        return activation(g, g.at(i, "up"), name)
    gate, up = g.at(i, "gate"), g.at(i, "up")
    gate, up = (up, gate) if swapped else (gate, up)
    if gateless:
        return activation(g, up, name)
    lit = g.number(activation(g, gate, name))
    return lit if upless else lit * up


def _residual(base, branch):
    def function(g, i, *, of=None, factor=1, gain=1):
        start = base(g, i) if of is None else g.before(i) if of == "x" else g.at(i, of)
        return factor * start + gain * g.at(i, branch(g, i))

    return function


def _branch(normed, plain):
    """The name of what the residual adds: normed first where the model has such norms."""

    def name(g, i):
        return normed if g.has(f"model.layers.{i}.pre_feedforward_layernorm.weight") else plain

    return name


def _second_norm(g, i, **edit):
    before = f"model.layers.{i}.pre_feedforward_layernorm.weight"
    name = before if g.has(before) else f"model.layers.{i}.post_attention_layernorm.weight"
    return rms_norm(g, g.at(i, "residual1"), g.weight(name), **edit)


def _embedding(g, _index, *, shift=0, scaled=None):
    table, ids = g.weight("model.embed_tokens.weight"), np.atleast_2d(g.input("ids"))
    if ids.size and not (0 <= ids.min() and ids.max() < len(table)):
        raise Missing(f"'ids' lie outside the {len(table)} rows of the embedding")
    rows = table[(ids + shift) % len(table)]
    factor = g.settings.embed_scale if scaled is None else scaled
    return rows if factor == 1 else rows * g.number.dtype.type(factor)


def _final_norm(g, _index, **edit):
    return rms_norm(g, g.before(g.settings.layers), g.weight("model.norm.weight"), **edit)


def head_name(g):
    """The parameter of the output projection."""
    return "lm_head" if g.has("lm_head.weight") else "model.embed_tokens"


def _logits(g, _index, *, capless=False, **edit):
    logits, cap = linear(g, g("final_norm"), head_name(g), **edit), g.settings.final_softcap
    return cap * np.tanh(logits / cap) if cap and not capless else logits


def log_sum(logits):
    """Log of the sum of the exponentials of each row."""
    top = logits.max(-1, keepdims=True)
    return np.log(np.exp(logits - top).sum(-1)) + top[..., 0]


def _loss(g, _index, *, added=None, reduction="mean", shift=0, ignored=False, all_rows=False):
    logits, targets = g("logits"), np.atleast_2d(g.input("targets"))
    targets = np.roll(targets, shift, axis=-1)
    counted = np.ones_like(targets, bool) if ignored else targets != -100
    rows, picked = logits[counted], np.where(targets == -100, 0, targets)[counted]
    loss = log_sum(rows) - np.take_along_axis(rows, picked[:, None], -1)[:, 0]
    if added is not None:
        loss = -np.log(np.exp(-loss) + added)
    count = {"mean": max(int(counted.sum()), 1), "sum": 1}[reduction]
    return loss.sum() / (targets.size if all_rows else count)


STAGES = {
    "embedding": _embedding,
    "ln1": _norm_of(lambda g, i: g.before(i), "model.layers.{}.input_layernorm.weight"),
    "q": _heads("q"),
    "k": _heads("k"),
    "v": _heads("v"),
    "q_norm": _norm_of(lambda g, i: g.at(i, "q"), "model.layers.{}.self_attn.q_norm.weight"),
    "k_norm": _norm_of(lambda g, i: g.at(i, "k"), "model.layers.{}.self_attn.k_norm.weight"),
    "q_rope": _rope("q"),
    "k_rope": _rope("k"),
    "scores": _scores,
    "probs": _probs,
    "attn": _attn,
    "proj": _proj,
    "post_attn_norm": _norm_of(lambda g, i: g.at(i, "proj"), "model.layers.{}.post_attention_layernorm.weight"),
    "residual1": _residual(lambda g, i: g.before(i), _branch("post_attn_norm", "proj")),
    "ln2": _second_norm,
    "gate": _projection("gate", lambda g, i: g.at(i, "ln2")),
    "up": _projection("up", lambda g, i: g.at(i, "ln2")),
    "act": _act,
    "down": _projection("down", lambda g, i: g.at(i, "act")),
    "post_mlp_norm": _norm_of(lambda g, i: g.at(i, "down"), "model.layers.{}.post_feedforward_layernorm.weight"),
    "output": _residual(lambda g, i: g.at(i, "residual1"), _branch("post_mlp_norm", "down")),
    "final_norm": _final_norm,
    "logits": _logits,
    "loss": _loss,
}
