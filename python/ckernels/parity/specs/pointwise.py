"""Specs of the activations and the loss."""

import numpy as np

from .spec import Probe, family, normal


def _silu_formula(torch, x):
    return x * torch.sigmoid(x)


def _silu_eager(torch, x):
    return torch.nn.functional.silu(x)


SILU = family(
    "silu",
    [
        Probe("of order one", lambda r: {"x": normal(r, 5, 33, scale=3)}, quick=True),
        Probe("±200", lambda r: {"x": (200 * r.uniform(-1, 1, (7, 97))).astype(np.float32)}),
        Probe("-90 to -2", lambda r: {"x": r.uniform(-90, -2, (3, 1031)).astype(np.float32)}),
    ],
    _silu_formula,
    eager=_silu_eager,
)


def _swiglu_formula(torch, gate, up=None):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def _swiglu_eager(torch, gate, up=None):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


SWIGLU = family(
    "swiglu",
    [
        Probe("gate and up", lambda r: {"gate": normal(r, 5, 33, scale=3), "up": normal(r, 5, 33)}, quick=True),
        Probe("packed", lambda r: {"gate": normal(r, 3, 7, 2 * 97, scale=2)}, quick=True),
        Probe("gate of ±200", lambda r: {"gate": normal(r, 7, 577, scale=80), "up": normal(r, 7, 577, scale=5)}),
    ],
    _swiglu_formula,
    eager=_swiglu_eager,
    wrt=("gate", "up"),
)


def _loss_inputs(rng, R, V, *, scale=3.0, ignored=0, **options):
    target = rng.integers(0, V, R)
    target[rng.choice(R, ignored, replace=False)] = options.get("ignore_index", -100)
    return {"logits": normal(rng, R, V, scale=scale), "target": target, **options}


def _cross_entropy_formula(torch, logits, target, ignore_index=-100, reduction="mean"):
    counted = target != ignore_index
    chosen = logits.gather(-1, target.masked_fill(~counted, 0)[:, None])[:, 0]
    losses = (torch.logsumexp(logits, -1) - chosen).masked_fill(~counted, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / counted.sum() if reduction == "mean" else losses.sum()


def _cross_entropy_eager(torch, logits, target, ignore_index=-100, reduction="mean"):
    return torch.nn.functional.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)


CROSS_ENTROPY = family(
    "cross_entropy",
    [
        Probe("mean, three ignored", lambda r: _loss_inputs(r, 13, 49, ignored=3), quick=True),
        Probe("none", lambda r: _loss_inputs(r, 7, 97, ignored=2, reduction="none"), quick=True),
        Probe("sum, ignore_index 5", lambda r: _loss_inputs(r, 11, 33, ignored=4, ignore_index=5, reduction="sum")),
        Probe("logits of ±200", lambda r: _loss_inputs(r, 9, 65, scale=100.0, reduction="none")),
        Probe("4097 classes", lambda r: _loss_inputs(r, 5, 4097)),
        Probe("rows of 17", lambda r: _loss_inputs(r, 31, 17, reduction="sum")),
    ],
    _cross_entropy_formula,
    eager=_cross_entropy_eager,
    wrt=("logits",),
    outputs=("loss",),
    statistics=("loss",),
)
