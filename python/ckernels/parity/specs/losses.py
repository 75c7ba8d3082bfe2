"""Specs of the losses and of log_softmax."""

import numpy as np

from .spec import Probe, family, normal


def _loss_inputs(rng, R, V, *, scale=3.0, ignored=0, **options):
    target = rng.integers(0, V, R)
    target[rng.choice(R, ignored, replace=False)] = options.get("ignore_index", -100)
    return {"logits": normal(rng, R, V, scale=scale), "target": target, **options}


def _cross_entropy_formula(
    torch, logits, target, ignore_index=-100, reduction="mean", label_smoothing=0.0, z_loss=0.0, softcap=None
):
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    counted = target != ignore_index
    total = torch.logsumexp(logits, -1)
    chosen = logits.gather(-1, target.masked_fill(~counted, 0)[:, None])[:, 0]
    losses = (1 - label_smoothing) * (total - chosen) + label_smoothing * (total - logits.mean(-1))
    losses = (losses + z_loss * total**2).masked_fill(~counted, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / counted.sum() if reduction == "mean" else losses.sum()


def _cross_entropy_eager(torch, logits, target, z_loss=0.0, softcap=None, **options):
    if z_loss or softcap:  # PyTorch has neither: in float32
        return _cross_entropy_formula(torch, logits.float(), target, z_loss=z_loss, softcap=softcap, **options)
    return torch.nn.functional.cross_entropy(logits, target, **options)


CROSS_ENTROPY = family(
    "cross_entropy",
    [
        Probe("mean, three ignored", lambda r: _loss_inputs(r, 13, 49, ignored=3), quick=True),
        Probe("none", lambda r: _loss_inputs(r, 7, 97, ignored=2, reduction="none"), quick=True),
        Probe("sum, ignore_index 5", lambda r: _loss_inputs(r, 11, 33, ignored=4, ignore_index=5, reduction="sum")),
        Probe("logits of ±200", lambda r: _loss_inputs(r, 9, 65, scale=100.0, reduction="none")),
        Probe("4097 classes", lambda r: _loss_inputs(r, 5, 4097)),
        Probe("rows of 17", lambda r: _loss_inputs(r, 31, 17, reduction="sum")),
        Probe("label smoothing", lambda r: _loss_inputs(r, 13, 97, ignored=3, label_smoothing=0.1), quick=True),
        Probe("z-loss", lambda r: _loss_inputs(r, 11, 65, ignored=2, z_loss=1e-2, reduction="none")),
        Probe("softcap", lambda r: _loss_inputs(r, 9, 129, scale=30.0, softcap=30.0)),
        Probe(
            "all of them", lambda r: _loss_inputs(r, 9, 577, scale=9.0, label_smoothing=0.2, z_loss=1e-3, softcap=15.0)
        ),
    ],
    _cross_entropy_formula,
    eager=_cross_entropy_eager,
    wrt=("logits",),
    outputs=("loss",),
    statistics=("loss",),
)


def _hidden_inputs(rng, R, C, V, *, scale=3.0, **options):
    given = _loss_inputs(rng, R, 1, **options)
    del given["logits"]
    ignored = given["target"] == given.get("ignore_index", -100)
    given["target"] = np.where(ignored, given["target"], rng.integers(0, V, R))
    return {"x": normal(rng, R, C, scale=scale), "weight": normal(rng, V, C, scale=C**-0.5), **given}


def _linear_cross_entropy_formula(torch, x, weight, target, **options):
    return _cross_entropy_formula(torch, torch.nn.functional.linear(x, weight), target, **options)


def _linear_cross_entropy_eager(torch, x, weight, target, **options):
    return _cross_entropy_eager(torch, torch.nn.functional.linear(x, weight), target, **options)


LINEAR_CROSS_ENTROPY = family(
    "linear_cross_entropy",
    [
        Probe("mean, three ignored", lambda r: _hidden_inputs(r, 13, 33, 49, ignored=3), quick=True),
        Probe("none", lambda r: _hidden_inputs(r, 7, 64, 97, ignored=2, reduction="none"), quick=True),
        Probe(
            "sum, ignore_index 5", lambda r: _hidden_inputs(r, 11, 17, 33, ignored=4, ignore_index=5, reduction="sum")
        ),
        Probe("logits of ±200", lambda r: _hidden_inputs(r, 9, 80, 65, scale=100.0, reduction="none")),
        Probe("three blocks of classes", lambda r: _hidden_inputs(r, 5, 96, 4133)),
        Probe("two blocks of rows", lambda r: _hidden_inputs(r, 259, 31, 67, ignored=11), quick=True),
        Probe(
            "every option",
            lambda r: _hidden_inputs(r, 19, 40, 2051, scale=9.0, label_smoothing=0.2, z_loss=1e-3, softcap=15.0),
        ),
    ],
    _linear_cross_entropy_formula,
    eager=_linear_cross_entropy_eager,
    wrt=("x", "weight"),
    outputs=("loss",),
    statistics=("loss",),
)


def _log_softmax(torch, x):
    return torch.log_softmax(x, -1)


LOG_SOFTMAX = family(
    "log_softmax",
    [
        Probe("7 rows of 97", lambda r: {"x": normal(r, 7, 97, scale=3)}, quick=True),
        Probe("logits of ±200", lambda r: {"x": (200 * r.uniform(-1, 1, (5, 33))).astype(np.float32)}, quick=True),
        Probe("near ties at 200", lambda r: {"x": normal(r, 5, 65) + np.float32(200)}),
        Probe("one row of 4097", lambda r: {"x": normal(r, 1, 4097)}),
        Probe("rows of 17", lambda r: {"x": normal(r, 31, 17)}),
        Probe("one row in pieces", lambda r: {"x": normal(r, 1, 65539)}),
    ],
    _log_softmax,
    eager=_log_softmax,
)


def _pair(rng, *shape, **options):
    return {"input": normal(rng, *shape, scale=2), "target": normal(rng, *shape), **options}


def _mse_loss(torch, input, target, reduction="mean"):
    return torch.nn.functional.mse_loss(input, target, reduction=reduction)


MSE_LOSS = family(
    "mse_loss",
    [
        Probe("mean", lambda r: _pair(r, 13, 49), quick=True),
        Probe("none", lambda r: _pair(r, 3, 5, 33, reduction="none"), quick=True),
        Probe("sum of 20000", lambda r: _pair(r, 4, 5000, reduction="sum")),
    ],
    _mse_loss,
    eager=_mse_loss,
    wrt=("input",),
    outputs=("loss",),
    statistics=("loss",),
)


def _distributions(rng, *shape, log_target=False, **options):
    """Return logarithms of probabilities, and probabilities or their logarithms."""
    raw, other = normal(rng, *shape, scale=2), normal(rng, *shape, scale=3)
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (raw, other))
    target = log_q if log_target else np.exp(log_q)
    return {"input": log_p, "target": target, "log_target": log_target, **options}


def _kl_div(torch, input, target, reduction="mean", log_target=False):
    if reduction == "mean":  # of which PyTorch warns that its meaning will change
        return torch.nn.functional.kl_div(input, target, reduction="none", log_target=log_target).mean()
    return torch.nn.functional.kl_div(input, target, reduction=reduction, log_target=log_target)


KL_DIV = family(
    "kl_div",
    [
        Probe("batchmean", lambda r: _distributions(r, 13, 49, reduction="batchmean"), quick=True),
        Probe("none, logarithms", lambda r: _distributions(r, 5, 97, reduction="none", log_target=True), quick=True),
        Probe("mean, logarithms", lambda r: _distributions(r, 7, 65, log_target=True)),
        Probe("sum", lambda r: _distributions(r, 3, 1031, reduction="sum")),
    ],
    _kl_div,
    eager=_kl_div,
    wrt=("input",),
    outputs=("loss",),
    statistics=("loss",),
)
