"""The mistakes people make in a decoder, each as an edit of the equations: what `diagnose` tries at a stage.

A hypothesis that has a free number (a base, an eps, a scale) is tried with the usual values and with the one that fits
the candidate best. Names follow one scheme: the part of the layer, a colon, the mistake.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import fits
from .arithmetic import round_to
from .equations import LINEAR, split

BASES = (500.0, 1000.0, 5000.0, 10000.0, 26000.0, 50000.0, 100000.0, 160000.0, 250000.0, 500000.0, 1e6, 5e6, 1e7)
EPSILONS = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
NORMS = ("ln1", "ln2", "final_norm", "q_norm", "k_norm", "post_attn_norm", "post_mlp_norm")
TILES = (4, 8, 16, 32, 64, 128)
"""Extents of tiles and vectors whose tails get lost."""


@dataclass(frozen=True)
class Hypothesis:
    """A mistake.

    Attributes
    ----------
    name : str
    edits : dict
        Stage to the keywords of its equation under this mistake.
    fix : str
        What to do about it.
    value : float or None
        The free number, where there is one that was fitted.
    """

    name: str
    edits: dict = field(hash=False)
    fix: str = ""
    value: float | None = None


def catalogue(graft, index):
    """Every hypothesis for a layer, or for the stages outside of layers where `index` is None.

    Parameters
    ----------
    graft : Graft
    index : int or None

    Returns
    -------
    list of Hypothesis
    """
    from .hypotheses_attention import attention, cache, rope
    from .hypotheses_backward import gradients

    s = graft.settings
    found = [*_norms(graft, index), *_linear(graft, index)]
    if index is None:
        found += [*_embedding(s), *_losses()]
    else:
        found += [*rope(graft, index), *attention(graft, index), *cache(graft), *_mlp(s), *_residual()]
    return [*found, *gradients(s, index), *_memory(graft, index)]


def edits_named(names, graft):
    """The edits of hypotheses given by name; ValueError lists near ones where a name is not known."""
    from .grafting import merged

    edits = {}
    if names:
        known = {h.name: h for index in (0, None) for h in catalogue(graft, index)}
        for name in names:
            if name not in known:
                part = name.partition(":")[0]
                near = [other for other in known if other.startswith(part)] or list(known)
                raise ValueError(f"no hypothesis is called {name!r}; there are {', '.join(near[:30])}")
            edits = merged(edits, known[name].edits)
    return edits


# --- norms ------------------------------------------------------------------------------------------------------------


def _norms(graft, index):
    s = graft.settings
    for stage in NORMS:
        if (index is None) != (stage == "final_norm"):
            continue
        needs = "pre_feedforward_layernorm" if stage.startswith("post") else f"self_attn.{stage}"
        if "_" in stage and index is not None and f"model.layers.{index}.{needs}.weight" not in graft.weights:
            continue
        width = s.head_dim if stage in ("q_norm", "k_norm") else s.hidden

        def make(name, fix, stage=stage, value=None, **edit):
            return Hypothesis(f"norm: {name}", {stage: edit}, fix, value)

        yield make("missing", "apply the norm before the projection", off=True)
        yield make("weight missing", "multiply by the norm's weight", weightless=True)
        wrong = "1 + w for w" if not s.offset else "w for 1 + w"
        yield make(wrong, "multiply by " + ("1 + w" if s.offset else "w"), toggle=True)
        fitted = [eps for eps in fits.eps(graft, index, stage) if eps > 1e-3 * s.eps]
        for eps in dict.fromkeys((*EPSILONS, *fitted)):
            if abs(eps - s.eps) > 1e-2 * s.eps:
                name = "eps dropped" if eps == 0 else f"eps {eps:g}"
                yield make(name, f"use rms_norm_eps = {s.eps:g}", value=eps, eps=eps)
        yield make("eps outside the root", "add eps to the mean square, inside the root", outside=True)
        yield make("mean subtracted", "divide by the root mean square alone; the mean stays", centred=True)
        for n in dict.fromkeys((width - 1, width + 1, width // 2, 2 * width, s.head_dim, s.hidden, 1)):
            if n != width and n > 0:
                yield make(f"mean over {n} instead of {width}", f"divide the sum of squares by {width}", divisor=n)
        for lanes in _shorter(width, (1, 2, 4, 8, 16)):
            fix = f"let the statistics see all {width} channels"
            yield make(f"last {width - lanes} lanes skipped", fix, lanes=lanes, divisor=width)
            yield make(f"last {width - lanes} lanes skipped, mean over {lanes}", fix, lanes=lanes)
        for kind in ("bfloat16", "float16"):
            if graft.format != kind:
                fix = "keep float32 until the weight is applied"
                yield make(f"cast to {kind} before the weight", fix, cast=kind)


def _shorter(size, steps):
    """Sizes that a loop without its tail covers."""
    tails = [size - n for n in steps] + [size - size % n for n in (*TILES, 256)]
    return [n for n in dict.fromkeys(tails) if 0 < n < size]


# --- products ---------------------------------------------------------------------------------------------------------


def _linear(graft, index):
    s = graft.settings
    for stage, place in [*LINEAR.items(), ("logits", "lm_head")]:
        if (index is None) != (stage == "logits"):
            continue
        tied = stage == "logits" and "lm_head.weight" not in graft.weights
        name = "model.embed_tokens" if tied else place if index is None else f"model.layers.{index}.{place}"
        if f"{name}.weight" not in graft.weights:
            continue
        out, inner = graft.weights.params[f"{name}.weight"].shape

        def make(name, fix, stage=stage, **edit):
            return Hypothesis(f"linear: {name}", {stage: edit}, fix)

        yield make("W transposed", "the weight is [out, in]: multiply by its transpose", transposed=True)
        if f"{name}.bias" in graft.weights:
            yield make("bias missing", "add the bias", bias="missing")
            yield make("bias doubled", "add the bias once", bias="doubled")
        for kept in _shorter(inner, (1, 2, 4, 8, 16, 32)):
            yield make(f"K tail dropped (last {inner - kept})", f"sum over all {inner} columns", inner=kept)
        for kind in ("bfloat16", "float16", "tf32"):
            if graft.format == "float32":
                fix = "keep the operands of the product in float32"
                yield make(f"operands rounded to {kind}", fix, operands=kind)
        rows = next((a.size // a.shape[-1] for a in graft.given.values() if a.ndim == 3), 1)
        if rows * inner * out < 1 << 24:
            for kind in ("bfloat16", "float16"):
                yield make(f"16-bit accumulation ({kind})", "accumulate in float32", accumulate=kind)
        others = {"k": "v", "v": "k", "gate": "up", "up": "gate"}
        if stage in others and index is not None:
            other = LINEAR[others[stage]]
            yield make(f"weight of {other.split('.')[1]}", f"multiply by {place}", weight=other)
        if stage in ("q", "k", "v", "proj"):
            fix = "[B, T, H, D] and [B, H, T, D] differ by a transpose of axes 1 and 2"
            yield make("heads reshaped, not transposed", fix, order="not transposed")
            yield make("heads in the fastest axis", "channel h·D + d belongs to head h, lane d", order="lanes first")
        if stage in ("q", "k"):
            edits = {"post": _neighbours_last if not s.interleaved else _neighbours_first}
            fix = "rows of the weight were permuted for interleaved rope (as GGUF does): undo it, or rotate neighbours"
            yield Hypothesis("linear: rows permuted for the other rope convention", {stage: edits}, fix)
    if index is not None:
        permuted, turned = {"post": _permuted(s)}, {"toggle": True}
        yield Hypothesis(
            "linear: rows permuted for the other rope convention",
            {"q": permuted, "k": permuted, "q_rope": turned, "k_rope": turned},
            "rows of q_proj and k_proj were permuted and the other pairs are rotated: the same scores",
        )


def _permuted(s):
    return _neighbours_first if s.interleaved else _neighbours_last


def _neighbours_last(g, name, x):
    """Lanes of halves (0, D/2, 1, D/2 + 1, ...): what a weight permuted for interleaved rope gives."""
    half = x.shape[-1] // 2
    return np.stack((x[..., :half], x[..., half:]), -1).reshape(x.shape)


def _neighbours_first(g, name, x):
    return np.concatenate((x[..., 0::2], x[..., 1::2]), -1)


# --- the rest ---------------------------------------------------------------------------------------------------------


def _mlp(s):
    names = {"silu": "SiLU", "gelu": "GELU (erf)", "gelu_tanh": "GELU (tanh)", "gelu_sigmoid": "GELU (sigmoid)",
             "relu": "ReLU", "identity": "none"}  # fmt: skip

    def make(name, fix, **edits):
        return Hypothesis(f"mlp: {name}", edits, fix)

    for kind, name in names.items():
        if kind != s.activation:
            text = f"{name} for {names[s.activation]}" if kind != "identity" else "no activation"
            yield make(text, f"the activation is {names[s.activation]}", act={"name": kind})
    yield make("gate and up swapped", "activate gate_proj's result, multiply by up_proj's", act={"swapped": True})
    yield make("gate and up swapped", "gate_proj and up_proj have changed places",
               gate={"weight": LINEAR["up"]}, up={"weight": LINEAR["gate"]})  # fmt: skip
    yield make("no gate", "multiply by the activated gate", act={"gateless": True})
    yield make("gate without up", "multiply the activated gate by up", act={"upless": True})


def _residual():
    for stage, branch, normed, start in (("residual1", "proj", "ln1", "x"), ("output", "down", "ln2", "residual1")):

        def make(name, fix, stage=stage, **edit):
            return Hypothesis(f"residual: {name}", {stage: edit}, fix)

        yield make("from the normed x", f"add {start}, not what the norm made of it", of=normed)
        yield make("missing", f"add {start} to {branch}", factor=0)
        yield make("doubled", f"add {start} once", factor=2)
        yield make("branch missing", f"add {branch}", gain=0)
        yield make("branch doubled", f"add {branch} once", gain=2)
        yield make("branch subtracted", f"add {branch}", gain=-1)
        yield make("aliasing: the branch has overwritten x", f"keep {start} until it is added", of=branch)
        if stage == "output":
            yield make("from the layer's input", "add residual1, the sum after attention", of="x")


def _embedding(s):
    def make(name, fix, **edit):
        return Hypothesis(f"embedding: {name}", {"embedding": edit}, fix)

    yield make("scaled by sqrt(C)" if s.embed_scale == 1 else "scale missing",
               f"multiply the rows by {s.embed_scale:g}",
               scaled=s.hidden**0.5 if s.embed_scale == 1 else 1.0)  # fmt: skip
    yield make("ids +1", "row ids[b, t] of the table", shift=1)
    yield make("ids -1", "row ids[b, t] of the table", shift=-1)
    if s.final_softcap:
        yield Hypothesis("linear: final softcap missing", {"logits": {"capless": True}}, "cap the logits")


def _losses():
    def make(name, fix, **edit):
        gradient = {k: v for k, v in edit.items() if k != "added"}
        edits = {"loss": edit} | ({"d_logits": gradient} if gradient else {})
        return Hypothesis(f"loss: {name}", edits, fix)

    for added in (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5):
        yield make(f"log(p + {added:g})", "use log-sum-exp minus the target's logit", added=added)
    yield make("sum for mean", "divide by the number of counted targets", reduction="sum")
    yield make(
        "targets shifted by one more", "targets are shifted by the caller: targets[t] labels position t", shift=-1
    )
    yield make("targets shifted back", "targets are shifted by the caller: targets[t] labels position t", shift=1)
    yield make("ignored ids counted", "leave out rows whose target is -100", ignored=True)
    yield make("divided by all rows", "divide by the number of counted targets", all_rows=True)
    for name, stage in (("of the loss alone", "loss"), ("of the gradient alone", "d_logits")):
        fix = "divide by the number of counted targets"
        yield Hypothesis(f"loss: sum for mean {name}", {stage: {"reduction": "sum"}}, fix)
        yield Hypothesis(f"loss: divided by all rows {name}", {stage: {"all_rows": True}}, fix)


def _memory(graft, index):
    """What can happen to the result of any stage: unwritten, cut off, rounded, that of another layer."""
    for name, array in graft.given.items():
        at, stage = split(name)
        if at != index or array.ndim < 2:
            continue

        def make(text, fix, post, stage=name):
            return Hypothesis(f"memory: {text}", {stage: {"post": post}}, fix)

        if not np.any(array):
            yield make("output left unwritten (zeros)", "write the result", lambda g, name, x: np.zeros_like(x))
            continue
        for axis, what in ((-1, "channels"), (-2, "rows")):
            start = fits.empty_tail(graft, name, axis)
            if start and not (stage == "attn" and axis == -2) and stage not in ("probs", "d_probs", "d_scores"):
                text = f"the last {array.shape[axis] - start} {what} are never written"
                yield make(text, "let the loop cover its tail", _Cut(axis, start))
        if graft.format == "float32":
            for kind in ("bfloat16", "float16"):
                yield make(f"rounded to {kind}", "keep the result in float32", _Rounded(kind))
        if index:
            yield make("stale: the previous layer's", "write the result of this layer", _previous)


@dataclass(frozen=True)
class _Cut:
    axis: int
    start: int

    def __call__(self, g, name, x):
        x = np.array(x)
        x[(..., slice(self.start, None)) + (slice(None),) * (-1 - self.axis)] = 0
        return x


@dataclass(frozen=True)
class _Rounded:
    kind: str

    def __call__(self, g, name, x):
        return round_to(x, self.kind)


def _previous(g, name, x):
    index, stage = split(name)
    return g.at(index - 1, stage)
