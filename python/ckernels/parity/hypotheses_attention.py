"""The mistakes people make in rope, in attention and in the cache of keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import fits
from .equations import Missing, split
from .forward_equations import rms_norm
from .forward_equations import rope as turned
from .hypotheses import BASES, TILES, Hypothesis

# --- rope -------------------------------------------------------------------------------------------------------------


def rope(graft, index):
    s = graft.settings
    table = [
        ("half-split for interleaved" if s.interleaved else "interleaved for half-split",
         "pair lane 2i with 2i + 1" if s.interleaved else "pair lane i with i + D/2", {"toggle": True}),
        ("sign", "rotate by +position: a cos - b sin", {"sign": -1}),
        ("positions +1", "the first token stands at position 0", {"shift": 1}),
        ("positions -1", "the first token stands at position 0", {"shift": -1}),
        ("positions frozen at 0", "count the positions up", {"frozen": 0}),
        ("head 0 only", "rotate every head", {"heads": 1}),
        ("angles in float32", "compute position · frequency in double and round the table once", {"angles": "float32"}),
        ("angles in bfloat16", "compute position · frequency in double and round the table once",
         {"angles": "bfloat16"}),
        ("angles in float16", "compute position · frequency in double and round the table once", {"angles": "float16"}),
    ]  # fmt: skip
    if graft.format == "float32":
        table += [(f"table in {t}", "keep cosines and sines in float32", {"table": t}) for t in ("bfloat16", "float16")]
    if s.rope.get("rope_type", s.rope.get("type", "default")) != "default":
        table.append(("scaling ignored", "stretch the frequencies as rope_parameters says", {"scaling": False}))
    for width in dict.fromkeys((s.head_dim, s.head_dim // 2, s.head_dim // 4)):
        if 1 < width != s.width:
            table.append((f"partial width {width}", f"rotate {s.width} of {s.head_dim} lanes", {"width": width}))
    for base in dict.fromkeys((*BASES, *fits.base(graft, index))):
        if abs(base - s.base) > 1e-3 * s.base:
            table.append((f"base {base:g}", f"use rope_theta = {s.base:g}", {"base": base}))
    length = fits.length(graft)
    if length:
        table.append((f"positions frozen at {length - 1}", "count the positions up", {"frozen": length - 1}))
        for lag in fits.shift(graft, index):
            if abs(lag) > 1:
                table.append((f"positions {lag:+d}", "the first token stands at position 0", {"shift": lag}))
    yield Hypothesis("rope: missing", {"q_rope": {"off": True}, "k_rope": {"off": True}}, "rotate queries and keys")
    yield Hypothesis("rope: q only", {"k_rope": {"off": True}}, "rotate the keys too")
    yield Hypothesis("rope: k only", {"q_rope": {"off": True}}, "rotate the queries too")
    for name, fix, edit in table:
        fitted = edit.get("base", BASES[0]) not in BASES or abs(edit.get("shift", 1)) != 1
        yield Hypothesis(f"rope: {name}", {"q_rope": edit, "k_rope": edit}, fix, fitted)
        yield Hypothesis(f"rope: {name} (q alone)", {"q_rope": edit}, fix, fitted)
        yield Hypothesis(f"rope: {name} (k alone)", {"k_rope": edit}, fix, fitted)
    if f"model.layers.{index}.self_attn.q_norm.weight" in graft.weights:
        edits = {f"{x}_{part}": {"post": _norm_after_rope} for x in "qk" for part in ("norm", "rope")}
        yield Hypothesis("norm: after rope", edits, "normalise the heads before they are rotated")


def _norm_after_rope(g, name, value):
    """Rope first, then the norm: at the norm's stage the plain projection, at rope's the norm of the rotated."""
    index, stage = split(name)
    which = stage[0]
    if stage.endswith("norm"):
        return turned(g, g.at(index, which))
    weight = g.weight(f"model.layers.{index}.self_attn.{which}_norm.weight")
    return rms_norm(g, turned(g, g.at(index, which)), weight)


# --- attention --------------------------------------------------------------------------------------------------------


def attention(graft, index):
    s = graft.settings

    def make(name, fix, fitted=False, **edits):
        return Hypothesis(f"attention: {name}", edits, fix, fitted)

    fix = f"scale the scores by {s.scale:.6g}"
    factors = {
        "scale missing": 1.0,
        "scale 1/D": 1 / s.head_dim,
        "scale 1/sqrt(C)": s.hidden**-0.5,
        "scale 1/sqrt(C/H)": (s.hidden / s.heads) ** -0.5,
        "scale applied twice": s.scale**2,
        "scale sqrt(D)": s.head_dim**0.5,
        "scale × 1.05": 1.05 * s.scale,
    }
    usual = set(factors)
    for times in fits.scale(graft, index):
        if min(abs(times * s.scale / f - 1) for f in factors.values()) > 1e-3:
            factors[f"scale × {times:g}"] = times * s.scale
    for name, factor in factors.items():
        if abs(factor / s.scale - 1) > 1e-9:
            yield make(name, fix, name not in usual, scores={"factor": factor})
    if s.softcap:
        yield make(
            "softcap missing", f"cap the scores: {s.softcap:g} · tanh(x / {s.softcap:g})", scores={"capless": True}
        )
    if s.heads > s.kv_heads > 1:
        fix = f"query head h reads key head h // {s.heads // s.kv_heads}"
        yield make("group map h % G, k alone", fix, scores={"grouping": "modulo"})
        yield make("group map h % G, v alone", fix, attn={"grouping": "modulo"})
        yield make("group map h % G", fix, scores={"grouping": "modulo"}, attn={"grouping": "modulo"})
    yield make("causal +1", "key s is seen by query t where s <= t", probs={"shift": 1})
    yield make("causal -1", "key s is seen by query t where s <= t, itself included", probs={"shift": -1})
    yield make("mask ignored", "hide the keys after the query", probs={"open_": True})
    if s.window:
        fix = f"query t sees keys t - {s.window - 1} .. t"
        yield make("window +1", fix, probs={"wider": 1})
        yield make("window -1", fix, probs={"wider": -1})
        yield make("window ignored", fix, probs={"windowless": True})
    if f"model.layers.{index}.self_attn.sinks" in graft.weights:
        yield make("sinks ignored", "the sink takes part in the softmax", probs={"sinkless": True})
    yield make("no max subtraction", "subtract the row's maximum before exp", probs={"raw": True})
    length = fits.length(graft) or 0
    for tile in TILES:
        pad = -length % tile
        if pad:
            fix = f"mask the {pad} keys that pad the last tile"
            yield make(f"key tail not masked (tiles of {tile})", fix, probs={"tile": tile})
        if length > tile:
            fix = "multiply the earlier sum and output by exp(old maximum - new maximum)"
            yield make(f"no rescale when merging (blocks of {tile})", fix, attn={"block": tile})
            name = f"no rescale of the output when merging, of the sum alone (blocks of {tile})"
            yield make(name, fix, attn={"block": tile, "both": False})
    start = fits.empty_tail(graft, f"layers.{index}.attn", axis=2)
    if start:
        yield make("last query tile never run", "run the tile that is not full", attn={"empty_from": start})


def cache(graft):
    """Keys, values or both are read from other places of a cache than they were written to."""
    kinds = {
        "writer head-major, reader token-major": ("tokens first", "one layout for writer and reader: [G, S, D]"),
        "writer token-major, reader head-major": ("heads first", "one layout for writer and reader: [S, G, D]"),
        "every item uses item 0's": ("item 0", "index the cache by the item of the batch"),
        "layer ignored": ("layer 0", "index the cache by the layer"),
        "slot one late": ("late", "token s stands in slot s"),
        "slot one early": ("early", "token s stands in slot s"),
    }
    table = [(name, {"cache": _Read(kind)}, fix) for name, (kind, fix) in kinds.items()]
    for capacity in fits.capacities(graft):
        fix = "the stride of a head is the capacity of the cache, in writer and reader alike"
        name = f"stride = length instead of capacity ({capacity})"
        table.append((name, {"cache": _Read("stride", capacity)}, fix))
    for name, edit, fix in table:
        yield Hypothesis(f"kv: {name}", {"scores": edit, "attn": edit}, fix)
        yield Hypothesis(f"kv: {name}, keys alone", {"scores": edit}, fix)
        yield Hypothesis(f"kv: {name}, values alone", {"attn": edit}, fix)


@dataclass(frozen=True)
class _Read:
    """What a reader of the cache sees: ``[B, G, S, D]`` of keys or values."""

    kind: str
    capacity: int = 0

    def __call__(self, g, x, name, index):
        batch, groups, length, size = x.shape
        if self.kind == "tokens first":
            return x.reshape(batch, length, groups, size).transpose(0, 2, 1, 3)
        if self.kind == "heads first":
            return x.transpose(0, 2, 1, 3).reshape(x.shape)
        if self.kind == "item 0":
            return np.broadcast_to(x[:1], x.shape)
        if self.kind == "layer 0":
            if index == 0:
                raise Missing("the first layer has the right cache")
            return g(name.format(0))
        if self.kind == "late":
            return np.concatenate((np.zeros_like(x[:, :, :1]), x[:, :, :-1]), 2)
        if self.kind == "early":
            return np.concatenate((x[:, :, 1:], np.zeros_like(x[:, :, :1])), 2)
        whole = np.zeros((batch, groups, self.capacity, size), x.dtype)
        whole[:, :, :length] = x
        flat = whole.reshape(batch, -1, size)
        return flat[:, : groups * length].reshape(x.shape)
