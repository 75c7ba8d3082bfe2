"""PyTorch's own sample inputs of the ops that both have, run through ours: forward and backward, in every dtype.

The samples are those of ``torch.testing._internal``: shapes, values and options that PyTorch tests itself with.  What
ours does not take is counted by reason; TABLE holds how many samples must run at least, and which reasons there may be.
"""

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing._internal.common_methods_invocations import op_db

import ckernels as ck
from ckernels.parity.specs.spec import as_array
from parity import as_torch, assert_gradients_match_torch, assert_matches_torch


class Refused(Exception):
    """A sample that is outside of what ours takes; the text says why."""


class Call(NamedTuple):
    """A sample as a call of ours: ``ck.<name>(**tensors, **options)``, and the same by PyTorch on the tensors alone."""

    name: str
    tensors: dict
    options: dict
    torch: Callable
    wrt: tuple
    terms: Callable | None = None  # {input: the terms that cancel in its gradient}, from dy and the tensors in float64


def refuse(condition, reason):
    if condition:
        raise Refused(reason)


def last_axis(x, dim):
    """Move an axis to the end, where ours works."""
    refuse(x.ndim == 0, "no axes")
    return x.movedim(dim, -1)


# ---- a sample of PyTorch's as a call of ours ----


def pointwise(name, function):
    def call(x, approximate=None):
        refuse(x.ndim == 0, "no axes")
        options = {} if approximate is None else {"approximate": approximate}
        return Call(name, {"x": x}, options, lambda x: function(x, **options), ("x",))

    return call


def softmax(x, dim, dtype=None):
    refuse(dtype is not None, "dtype= of the result")

    def terms(dy, x):
        return {"x": torch.softmax(x, -1) * dy}

    return Call("softmax", {"x": last_axis(x, dim)}, {}, lambda x: torch.softmax(x, -1), ("x",), terms)


def log_softmax(x, dim, dtype=None):
    refuse(dtype is not None, "dtype= of the result")

    def terms(dy, x):
        return {"x": torch.cat([dy, torch.softmax(x, -1) * dy.sum(-1, keepdim=True)])}

    return Call("log_softmax", {"x": last_axis(x, dim)}, {}, lambda x: torch.log_softmax(x, -1), ("x",), terms)


def norm(name):
    function = {"rms_norm": F.rms_norm, "layer_norm": F.layer_norm}[name]

    def call(x, shape, weight=None, bias=None, eps=None):
        if eps is None:
            eps = 1e-5 if name == "layer_norm" else torch.finfo(x.dtype).eps
        size = int(np.prod(shape))
        given = {"weight": weight, "bias": bias}
        tensors = {"x": x.flatten(x.ndim - len(shape)) if len(shape) else x}
        tensors |= {key: value.flatten() for key, value in given.items() if value is not None}

        def torch_norm(x, **parameters):
            return function(x, (size,), **parameters, eps=eps)

        def terms(dy, x, weight=1.0, bias=None):
            centred = x - x.mean(-1, keepdim=True) if name == "layer_norm" else x
            rstd = 1 / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
            found = {"x": weight * dy * rstd}
            if name == "layer_norm" and "weight" in tensors:  # x less its mean: nothing in rows of one
                found["weight"] = dy * x * rstd
            return found

        return Call(name, tensors, {"eps": eps}, torch_norm, tuple(tensors), terms)

    return call


def add(x, y, alpha=1):
    refuse(x.shape != y.shape, "shapes that broadcast")
    refuse(x.ndim == 0, "no axes")
    return Call("add", {"x": x, "y": y}, {"alpha": alpha}, lambda x, y: torch.add(x, y, alpha=alpha), ("x", "y"))


def embedding(weight, ids, **options):
    for name in options:
        raise Refused(f"{name}=")
    return Call("embedding", {"ids": ids, "weight": weight}, {}, lambda ids, weight: F.embedding(ids, weight), ("weight",))


def linear(x, weight, bias=None):
    refuse(weight.ndim != 2, "a weight of one axis")
    tensors = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    return Call("linear", tensors, {}, lambda x, weight, bias=None: F.linear(x, weight, bias), tuple(tensors))


def matmul(a, b):
    refuse(min(a.ndim, b.ndim) < 2, "an operand of one axis")
    refuse(a.shape[:-2] != b.shape[:-2], "batches that broadcast")
    return Call("matmul", {"a": a, "b": b}, {}, lambda a, b: torch.matmul(a, b), ("a", "b"))


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False):
    refuse(dropout_p > 0, "dropout_p=")
    refuse(q.shape[:-2] != k.shape[:-2], "batches that broadcast")
    if q.ndim == 3:
        q, k, v = (t.unsqueeze(1) for t in (q, k, v))

    def sdpa(q, k, v, attn_mask=None):
        return F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal)

    def terms(dy, q, k, v, attn_mask=0.0):
        """Each score's gradient is a difference, which vanishes where one probability is nearly 1."""
        scale = q.shape[-1] ** -0.5
        scores = scale * q @ k.mT + attn_mask
        if is_causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).tril() == 0, -torch.inf)
        parts = scale * torch.softmax(scores, -1) * (dy @ v.mT).abs()
        return {"q": parts @ k.abs(), "k": parts.mT @ q.abs()}

    tensors = {"q": q, "k": k, "v": v} | ({} if attn_mask is None else {"attn_mask": attn_mask})
    name = "scaled_dot_product_attention"
    return Call(name, tensors, {"is_causal": is_causal}, sdpa, ("q", "k", "v"), terms)


def cross_entropy(logits, target, weight=None, **options):
    refuse(weight is not None, "weights of classes")
    refuse(target.is_floating_point(), "probabilities as target")
    refuse(not target.numel(), "no rows")
    classes = min(logits.ndim - 1, 1)
    rows = logits.movedim(classes, -1).flatten(0, -2) if logits.ndim > 1 else logits[None]

    def loss(logits, target):
        return F.cross_entropy(logits, target, **options)

    return Call("cross_entropy", {"logits": rows, "target": target.flatten()}, options, loss, ("logits",))


def pair_loss(name, function):
    def call(x, target, reduction="mean", **options):
        refuse(x.ndim == 0, "no axes")

        def loss(input, target):
            return function(input, target, reduction=reduction, **options)

        return Call(name, {"input": x, "target": target}, {"reduction": reduction} | options, loss, ("input",))

    return call


OPS = {
    "nn.functional.relu": pointwise("relu", F.relu),
    "nn.functional.gelu": pointwise("gelu", F.gelu),
    "nn.functional.silu": pointwise("silu", F.silu),
    "sigmoid": pointwise("sigmoid", torch.sigmoid),
    "tanh": pointwise("tanh", torch.tanh),
    "softmax": softmax,
    "log_softmax": log_softmax,
    "nn.functional.rms_norm": norm("rms_norm"),
    "nn.functional.layer_norm": norm("layer_norm"),
    "add": add,
    "nn.functional.embedding": embedding,
    "nn.functional.linear": linear,
    "matmul": matmul,
    "nn.functional.scaled_dot_product_attention": attention,
    "nn.functional.cross_entropy": cross_entropy,
    "nn.functional.mse_loss": pair_loss("mse_loss", F.mse_loss),
    "nn.functional.kl_div": pair_loss("kl_div", F.kl_div),
}


@functools.cache
def samples(op, dtype):
    """Return (calls, Counter of the reasons of those refused) of an op's samples, all variants."""
    calls, refused = [], collections.Counter()
    torch.manual_seed(0)
    for info in op_db:
        if info.name != op or getattr(torch, dtype) not in info.dtypes:
            continue
        for sample in info.sample_inputs("cpu", getattr(torch, dtype)):
            try:
                calls.append(OPS[op](sample.input, *sample.args, **sample.kwargs))
            except Refused as reason:
                refused[str(reason)] += 1
    return calls, refused


def check(call, rng):
    """Compare one sample with float64 and PyTorch, forward and backward."""
    arrays = {key: as_array(value.contiguous()) for key, value in call.tensors.items()}
    names = tuple(arrays)

    def function(*tensors):
        return call.torch(**dict(zip(names, tensors, strict=True)))

    rule = {"allow_constant": True, "allow_empty": True}
    y, ctx = getattr(ck, call.name + "_forward")(**arrays, **call.options)
    y = np.asarray(y)
    assert_matches_torch(y, function, *arrays.values(), **rule)
    dy = rng.standard_normal(y.shape).astype(y.dtype)
    grads = getattr(ck, call.name + "_backward")(dy if dy.ndim else float(dy), ctx)
    exact = {key: as_torch(a, "float64") for key, a in arrays.items()}
    terms = {} if call.terms is None or not y.size else call.terms(as_torch(dy, "float64"), **exact)
    for name in names:
        gradient = getattr(grads, name, None)
        assert (name in call.wrt) == (gradient is not None), f"{call.name}: the gradient of {name}"
    for chosen in [[name for name in call.wrt if name not in terms], *([name] for name in terms)]:
        found = [getattr(grads, name) if name in chosen else None for name in names]
        more = {"terms": terms[chosen[0]].numpy()} if chosen and chosen[0] in terms else {}
        if chosen:
            assert_gradients_match_torch(found, function, arrays.values(), dy, **rule, **more)


# At least so many samples of an op run in each dtype, and nothing else is refused than what stands here.
TABLE = {
    "nn.functional.relu": (3, {"no axes"}),
    "nn.functional.gelu": (8, set()),
    "nn.functional.silu": (2, {"no axes"}),
    "sigmoid": (2, {"no axes"}),
    "tanh": (1, set()),
    "softmax": (6, {"no axes", "dtype= of the result"}),
    "log_softmax": (6, {"no axes", "dtype= of the result"}),
    "nn.functional.rms_norm": (6, set()),
    "nn.functional.layer_norm": (6, set()),
    "add": (3, {"no axes", "shapes that broadcast"}),
    "nn.functional.embedding": (3, {"padding_idx=", "max_norm=", "scale_grad_by_freq=", "sparse="}),
    "nn.functional.linear": (18, set()),
    "matmul": (3, {"an operand of one axis", "batches that broadcast"}),
    "nn.functional.scaled_dot_product_attention": (9, {"dropout_p=", "batches that broadcast"}),
    "nn.functional.cross_entropy": (8, {"weights of classes", "probabilities as target"}),
    "nn.functional.mse_loss": (5, {"no axes"}),
    "nn.functional.kl_div": (16, set()),
}


@pytest.mark.parametrize("op", OPS)
def test_samples_of_pytorch(op, isa, dtype, rng):
    calls, refused = samples(op, dtype.name)
    floor, reasons = TABLE[op]
    for call in calls:
        check(call, rng)
    assert len(calls) >= floor, f"{len(calls)} samples ran; refused: {dict(refused)}"
    assert set(refused) == reasons


def test_every_op_has_its_line():
    assert set(TABLE) == set(OPS) and all(floor for floor, _ in TABLE.values())


def test_a_wrong_op_is_seen(monkeypatch, rng):
    """The samples can tell: a silu that is a gelu, a gradient off by a ten-thousandth."""
    (call, *_), _ = samples("nn.functional.silu", "float32")
    forward = ck.silu_forward
    monkeypatch.setattr(ck, "silu_forward", lambda x: (x / (1 + np.exp(-1.702 * x)), forward(x)[1]))
    with pytest.raises(AssertionError, match="STRUCTURAL|EXCESS_DRIFT"):
        check(call, rng)
    backward = ck.rms_norm_backward
    monkeypatch.setattr(ck, "rms_norm_backward", lambda dy, ctx: backward(dy * np.float32(1.0001), ctx))
    (call, *_), _ = samples("nn.functional.rms_norm", "float32")
    with pytest.raises(AssertionError, match="EXCESS_DRIFT"):
        check(call, rng)
