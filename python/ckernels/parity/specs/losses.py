"""Specs of log_softmax and of the losses of two arrays."""

import numpy as np

from .spec import Probe, family, normal


def _log_softmax_formula(torch, x):
    return torch.log_softmax(x, -1)


LOG_SOFTMAX = family(
    "log_softmax",
    [
        Probe("7 rows of 97", lambda r: {"x": normal(r, 7, 97, scale=3)}, quick=True),
        Probe("scores of ±200", lambda r: {"x": (200 * r.uniform(-1, 1, (5, 33))).astype(np.float32)}, quick=True),
        Probe("near ties at 200", lambda r: {"x": normal(r, 5, 65) + np.float32(200)}),
        Probe("rows of 4097", lambda r: {"x": normal(r, 3, 4097, scale=2)}),
        Probe("rows of 17", lambda r: {"x": normal(r, 31, 17)}),
        Probe("one row in pieces", lambda r: {"x": normal(r, 1, 65539)}),
    ],
    _log_softmax_formula,
    eager=_log_softmax_formula,
)


def _pair(rng, *shape, scale=1.0, **options):
    return {"input": normal(rng, *shape, scale=scale), "target": normal(rng, *shape, scale=scale), **options}


def _mse_formula(torch, input, target, reduction="mean"):
    losses = (input - target) ** 2
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _mse_eager(torch, input, target, reduction="mean"):
    return torch.nn.functional.mse_loss(input, target, reduction=reduction)


MSE_LOSS = family(
    "mse_loss",
    [
        Probe("mean", lambda r: _pair(r, 7, 97), quick=True),
        Probe("sum", lambda r: _pair(r, 5, 333, reduction="sum")),
        Probe("none", lambda r: _pair(r, 3, 5, 33, scale=9, reduction="none"), quick=True),
        Probe("mean of 33000", lambda r: _pair(r, 3, 11000)),
    ],
    _mse_formula,
    eager=_mse_eager,
    outputs=("loss",),
    wrt=("input",),
    statistics=("loss",),
)


def _distributions(rng, R, C, *, zeros=0, **options):
    """Log-probabilities, and probabilities of which some are 0; the logarithms of both with log_target."""
    logits = normal(rng, 2, R, C, scale=2).astype(np.float64)
    x, t = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    if not options.get("log_target"):
        t = np.exp(t)
        t.flat[rng.choice(t.size, zeros, replace=False)] = 0
    return {"input": x.astype(np.float32), "target": t.astype(np.float32), **options}


def _kl_div_formula(torch, input, target, reduction="mean", log_target=False):
    p = target.exp() if log_target else target
    log_p = target if log_target else torch.where(target == 0, 1.0, target).log()
    losses = p * log_p - p * input
    if reduction == "none":
        return losses
    return losses.sum() / {"sum": 1, "mean": losses.numel(), "batchmean": len(losses)}[reduction]


def _kl_div_eager(torch, input, target, reduction="mean", log_target=False):
    if reduction == "mean":  # spelled out: PyTorch warns of its own
        return torch.nn.functional.kl_div(input, target, reduction="sum", log_target=log_target) / input.numel()
    return torch.nn.functional.kl_div(input, target, reduction=reduction, log_target=log_target)


KL_DIV = family(
    "kl_div",
    [
        Probe("batchmean, zeros", lambda r: _distributions(r, 7, 97, zeros=20, reduction="batchmean"), quick=True),
        Probe("mean", lambda r: _distributions(r, 5, 333)),
        Probe("none", lambda r: _distributions(r, 13, 33, zeros=5, reduction="none"), quick=True),
        Probe("sum, log_target", lambda r: _distributions(r, 3, 1031, log_target=True, reduction="sum")),
        Probe("none, log_target", lambda r: _distributions(r, 3, 77, log_target=True, reduction="none")),
    ],
    _kl_div_formula,
    eager=_kl_div_eager,
    outputs=("loss",),
    wrt=("input",),
    statistics=("loss",),
)
