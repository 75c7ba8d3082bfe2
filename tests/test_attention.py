"""scaled_dot_product_attention: against the formula in float64 and PyTorch, and its promises about bits and NaN."""
import math

import numpy as np
import pytest
import torch
from guard import guarded, unwritten

import ckernels as ck
from ckernels.ops.attention import attend_cache
from ckernels.parity import assert_parity

torch.set_num_threads(1)


def formula(q, k, v, attn_mask=None, is_causal=False, scale=None, q_offset=0, window=None, softcap=None, sinks=None):
    """The equation in the dtype of q, with all scores at once; returns y, lse."""
    B, H, T, D = q.shape
    S, rep = k.shape[2], H // max(k.shape[1], 1)
    k, v = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1)
    x = q @ k.transpose(-1, -2) * (1 / math.sqrt(D) if scale is None else scale)
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    at = torch.as_tensor(q_offset).reshape(-1, 1, 1, 1) + torch.arange(T).reshape(1, 1, T, 1)
    s = torch.arange(S).reshape(1, 1, 1, S)
    keep = torch.ones((B, 1, T, S), dtype=torch.bool)
    if is_causal:
        keep = keep & (s <= at)
    left, right = window or (None, None)
    if left is not None:
        keep = keep & (s >= at - left)
    if right is not None:
        keep = keep & (s <= at + right)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        keep = keep & attn_mask
    elif attn_mask is not None:
        x = x + attn_mask
    x = x.masked_fill(~keep, -math.inf)
    top = x.detach().amax(-1, keepdim=True) if S else x.new_full((B, H, T, 1), -math.inf)
    if sinks is not None:
        top = torch.maximum(top, sinks.detach().reshape(1, H, 1, 1))
    shift = torch.where(torch.isinf(top), torch.zeros_like(top), top)
    e = torch.exp(x - shift)
    total = e.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks.reshape(1, H, 1, 1) - shift)
    y = (e @ v) / torch.where(total == 0, torch.ones_like(total), total)
    return y, (shift + torch.log(total)).squeeze(-1)


def at(precision, array):
    """An argument as a tensor; floats in a precision."""
    if not isinstance(array, np.ndarray):
        return array
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.to(precision) if tensor.is_floating_point() else tensor


def both(q, k, v, **options):
    """(exact, peer): (y, lse) of the formula in float64 and in float32."""
    return [
        formula(*(at(p, x) for x in (q, k, v)), **{name: at(p, value) for name, value in options.items()})
        for p in (torch.float64, torch.float32)
    ]


def normal(rng, *shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype("f4")


def inputs(rng, B, H, G, T, S, D, scale=1.0):
    return (normal(rng, B, H, T, D, scale=scale), normal(rng, B, G, S, D, scale=scale), normal(rng, B, G, S, D))


SINKS = np.concatenate([[9, -np.inf], np.linspace(-3, 3, 12)]).astype("f4")
# (B, H, G, T, S, D), pairwise distinct where it can be; GQA ratios 1, 2, 3, 7, and what is tested with it.
CASES = {
    "one": ((1, 1, 1, 1, 1, 5), {}),
    "odd": ((2, 3, 3, 4, 7, 5), {}),
    "D33": ((2, 4, 2, 17, 31, 33), {"is_causal": True}),
    "D32 gqa3": ((1, 9, 3, 13, 255, 32), {"is_causal": True, "q_offset": 242}),
    "D64": ((1, 2, 2, 65, 256, 64), {"is_causal": True, "q_offset": 191}),
    "D80 gqa7": ((2, 7, 1, 2, 257, 80), {"is_causal": True, "q_offset": np.array([255, 7])}),
    "D96": ((1, 2, 1, 17, 513, 96), {"scale": 0.31}),
    "D128": ((1, 6, 2, 43, 260, 128), {"is_causal": True, "q_offset": 217}),
    "D256": ((1, 2, 1, 5, 300, 256), {}),
    "more queries than a task": ((1, 1, 1, 259, 270, 16), {"is_causal": True}),
    "window": ((1, 4, 2, 140, 300, 24), {"window": (37, 0), "q_offset": 150}),
    "window both sides": ((2, 2, 1, 70, 290, 12), {"window": (5, 9), "q_offset": np.array([0, 200])}),
    "window right": ((1, 2, 1, 10, 300, 12), {"window": (None, 3), "q_offset": 255}),
    "window causal past a partition": ((1, 2, 1, 9, 4104, 8), {"window": (300, None), "is_causal": True, "q_offset": 4095}),
    "softcap": ((1, 2, 1, 19, 261, 48), {"softcap": 1.5, "is_causal": True, "q_offset": 242}),
    "sinks": ((3, 14, 2, 23, 270, 20), {"sinks": SINKS, "is_causal": True, "q_offset": np.array([0, 7, 247])}),
    "negative offset": ((1, 2, 1, 9, 12, 7), {"is_causal": True, "q_offset": -4}),
}


def masks(rng, B, H, T, S):
    """Masks of every kind that broadcasts."""
    keep = rng.random((B, H, T, S)) < 0.6
    yield keep
    yield keep[:1, :1]
    yield keep[0, 0, 0]
    yield keep[:, :1, :, ::-1].transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2)
    yield np.where(keep, normal(rng, B, H, T, S), -np.inf).astype("f4")
    yield normal(rng, T, S, scale=4)
    yield np.where(keep[0, :, :, :1], 0, -np.inf).astype("f4")


@pytest.mark.parametrize("case", CASES)
def test_attention_matches_the_formula(isa, rng, case):
    shape, options = CASES[case]
    q, k, v = inputs(rng, *shape)
    (exact, exact_lse), (peer, peer_lse) = both(q, k, v, **options)
    y, lse = ck.attention(*map(guarded, (q, k, v)), **options, return_lse=True, out=unwritten(q.shape))
    assert_parity(y, exact, peer)
    assert_parity(lse, exact_lse, peer_lse)


@pytest.mark.parametrize("kind", range(7))
def test_attention_masks(isa, rng, kind):
    B, H, G, T, S, D = 2, 4, 2, 11, 263, 9
    q, k, v = inputs(rng, B, H, G, T, S, D)
    mask = list(masks(rng, B, H, T, S))[kind]
    (exact, _), (peer, _) = both(q, k, v, attn_mask=mask)
    given = guarded(mask) if mask.flags.c_contiguous else mask
    assert_parity(ck.attention(*map(guarded, (q, k, v)), given, out=unwritten(q.shape)), exact, peer)


def gradients(precision, q, k, v, dy, dlse=None, **options):
    """Autograd through the formula in a precision: of q, k, v and, where there are some, sinks."""
    leaves = [at(precision, x).requires_grad_() for x in (q, k, v)]
    rest = {name: at(precision, value) for name, value in options.items()}
    if "sinks" in rest:
        leaves.append(rest["sinks"].requires_grad_())
    y, lse = formula(*leaves[:3], **rest)
    loss = (y * at(precision, dy)).sum()
    if dlse is not None:
        loss = loss + (lse * at(precision, dlse)).masked_fill(torch.isinf(lse), 0).sum()
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("case", CASES)
def test_attention_backward_matches_autograd(isa, rng, case):
    shape, options = CASES[case]
    q, k, v = inputs(rng, *shape)
    dy = normal(rng, *q.shape)
    _, ctx = ck.attention_forward(*map(guarded, (q, k, v)), **options)
    out = type(ck.attention_backward(dy, ctx))(*(unwritten(x.shape) for x in (q, k, v)))
    grads = ck.attention_backward(guarded(dy), ctx, out=out)
    exact, peer = (gradients(p, q, k, v, dy, **options) for p in (torch.float64, torch.float32))
    wide, total = formula(*(at(torch.float64, x) for x in (q, k, v)), **{n: at(torch.float64, x) for n, x in options.items()})
    for name, ours, e, p in zip(("q", "k", "v", "sinks"), grads, exact, peer, strict=False):
        if case == "one" and name in "qk":  # the softmax of one score is constant: what is summed cancels
            assert np.abs(ours).max() <= 2 * np.finfo("f4").eps * np.abs(dy * v).sum() * np.abs(k + q).max()
        elif name == "sinks":  # a sum over queries and channels of either sign
            share = torch.exp(at(torch.float64, options["sinks"]).reshape(1, -1, 1) - total)
            assert_parity(ours, e, p, name=name, terms=share[..., None] * wide * at(torch.float64, dy))
        else:
            assert_parity(ours, e, p, name=name)
