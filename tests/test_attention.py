"""scaled_dot_product_attention: against the formula in float64 and PyTorch, and its promises about bits and NaN."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ckernels as ck
from ckernels.ops.attention import attend_cache
from ckernels.parity import assert_parity
from guard import guarded, unwritten

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
    some = torch.where(total == 0, torch.ones_like(total), total)
    return (e @ v) / some, (shift + torch.log(some)).masked_fill(total == 0, -math.inf).squeeze(-1)


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
    "chunks of queries": ((1, 2, 1, 777, 780, 20), {"is_causal": True, "q_offset": 3}),
    "window": ((1, 4, 2, 140, 300, 24), {"window": (37, 0), "q_offset": 150}),
    "window both sides": ((2, 2, 1, 70, 290, 12), {"window": (5, 9), "q_offset": np.array([0, 200])}),
    "window right": ((1, 2, 1, 10, 300, 12), {"window": (None, 3), "q_offset": 255}),
    "far window": ((1, 2, 1, 9, 4104, 8), {"window": (300, None), "is_causal": True, "q_offset": 4095}),
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
        loss = loss + (lse.masked_fill(torch.isinf(lse), 0) * at(precision, dlse)).sum()
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
    (wide, total), _ = both(q, k, v, **options)
    for name, ours, e, p in zip(("q", "k", "v", "sinks"), grads, exact, peer, strict=False):
        if case == "one" and name in "qk":  # the softmax of one score is constant: what is summed cancels
            assert np.abs(ours).max() <= 2 * np.finfo("f4").eps * np.abs(dy * v).sum() * np.abs(k + q).max()
        elif name == "sinks":  # a sum over queries and channels of either sign
            share = torch.exp(at(torch.float64, options["sinks"]).reshape(1, -1, 1) - total)
            assert_parity(ours, e, p, name=name, terms=share[..., None] * wide * at(torch.float64, dy))
        else:
            assert_parity(ours, e, p, name=name)


# --- against PyTorch's own, and with masks ----------------------------------------------------------------------------


@pytest.mark.parametrize("T, S, causal", [(17, 17, True), (65, 257, False), (300, 300, True)])
@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (7, 1)], ids=str)
def test_attention_matches_torch(isa, rng, T, S, causal, heads):
    q, k, v = inputs(rng, 2, *heads, T, S, 20)
    exact, _ = formula(*(at(torch.float64, x) for x in (q, k, v)), is_causal=causal)
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    peer = F.scaled_dot_product_attention(*tensors, is_causal=causal, enable_gqa=True)
    assert_parity(ck.scaled_dot_product_attention(q, k, v, is_causal=causal), exact, peer)
    y = ck.scaled_dot_product_attention(*tensors, is_causal=causal)  # tensors lend their memory
    assert y.tobytes() == ck.attention(q, k, v, is_causal=causal).tobytes()


@pytest.mark.parametrize("kind", range(7))
def test_attention_backward_with_masks(isa, rng, kind):
    B, H, G, T, S, D = 2, 4, 2, 70, 131, 9
    q, k, v = inputs(rng, B, H, G, T, S, D)
    dy, dlse = normal(rng, B, H, T, D), normal(rng, B, H, T)
    mask = list(masks(rng, B, H, T, S))[kind]
    _, ctx = ck.attention_forward(q, k, v, mask, return_lse=True)
    grads = ck.attention_backward((dy, dlse), ctx)
    exact, peer = (gradients(p, q, k, v, dy, dlse, attn_mask=mask) for p in (torch.float64, torch.float32))
    for name, ours, e, p in zip("qkv", grads, exact, peer, strict=False):
        assert_parity(ours, e, p, name=name)
    assert grads.sinks is None


def test_attention_backward_of_lse_with_sinks_and_softcap(isa, rng):
    q, k, v = inputs(rng, 2, 6, 2, 19, 40, 12)
    dy, dlse, sinks = normal(rng, *q.shape), normal(rng, 2, 6, 19), normal(rng, 6)
    options = {"sinks": sinks, "softcap": 2.5, "window": (12, 3)}
    (_, lse), ctx = ck.attention_forward(q, k, v, **options, return_lse=True)
    (_, exact_lse), (_, peer_lse) = both(q, k, v, **options)
    assert_parity(lse, exact_lse, peer_lse)
    exact, peer = (gradients(p, q, k, v, dy, dlse, **options) for p in (torch.float64, torch.float32))
    terms = np.abs(dlse).max() + np.abs(dy).max() * np.abs(v).max()
    grads = ck.attention_backward((dy, dlse), ctx)
    for name, ours, e, p in zip(("q", "k", "v", "sinks"), grads, exact, peer, strict=True):
        assert_parity(ours, e, p, name=name, terms=terms if name == "sinks" else None)


def test_attention_backward_adds_to_sinks_alone(isa, rng):
    q, k, v = inputs(rng, 1, 4, 2, 9, 11, 8)
    dy = normal(rng, *q.shape)
    _, ctx = ck.attention_forward(q, k, v, sinks=normal(rng, 4))
    once = ck.attention_backward(dy, ctx)
    held = type(once)(*(x.copy() for x in once))
    twice = ck.attention_backward(dy, ctx, out=held, accumulate=True)
    assert all(x is y for x, y in zip(twice, held, strict=True))
    assert [x.tobytes() for x in twice[:3]] == [x.tobytes() for x in once[:3]]
    assert twice.sinks.tobytes() == (2 * once.sinks).tobytes()
    again = ck.attention_backward(dy, ctx, out=held)
    assert again.sinks.tobytes() == once.sinks.tobytes()


def test_the_formula_agrees_with_finite_differences():
    rng = np.random.default_rng(3)
    leaves = [at(torch.float64, x).requires_grad_() for x in (*inputs(rng, 1, 2, 1, 5, 7, 3), normal(rng, 2))]

    def f(q, k, v, sinks):
        y, lse = formula(q, k, v, is_causal=True, q_offset=1, window=(3, None), softcap=1.5, sinks=sinks)
        return y, lse

    assert torch.autograd.gradcheck(f, leaves)


def test_attention_backward_agrees_with_differences_of_our_own_forward(isa, rng):
    """Along our gradient, by Richardson from steps h and 2h; the bound is what the steps and float32 leave open."""
    q, k, v = inputs(rng, 1, 4, 2, 9, 14, 8)
    dy, sinks, h = normal(rng, *q.shape), normal(rng, 4), 2.0**-5
    options = {"is_causal": True, "q_offset": 3, "softcap": 3.0}
    _, ctx = ck.attention_forward(q, k, v, **options, sinks=sinks)
    grads = [g.astype("f8") for g in ck.attention_backward(dy, ctx)]
    along = [(g / np.sqrt((g**2).mean())).astype("f4") for g in grads]

    def loss(step):
        moved = [x + np.float32(step) * a for x, a in zip((q, k, v, sinks), along, strict=True)]
        return (dy.astype("f8") * ck.attention(*moved[:3], **options, sinks=moved[3])).sum()

    near, far = ((loss(s) - loss(-s)) / (2 * s) for s in (h, 2 * h))
    ours = sum((g * a).sum() for g, a in zip(grads, along, strict=True))
    open_ = abs(near - far) / 3 + np.abs(dy).sum() * np.abs(v).max() * 8 * np.finfo("f4").eps / h
    assert abs((4 * near - far) / 3 - ours) <= open_
    assert open_ < 0.05 * ours  # otherwise this shows nothing


@pytest.mark.parametrize("shape", [(1, 6, 2, 70, 150, 40), (2, 4, 1, 1, 270, 96), (1, 2, 1, 3, 300, 80)], ids=str)
def test_attention_of_sixteen_bits(isa, rng, dtype, shape):
    """Against PyTorch's own in the same dtype: a block, and few rows, which are read where they lie."""
    B, H, G, T, S, D = shape
    q, k, v = (x.astype(dtype) for x in inputs(rng, *shape))
    dy = normal(rng, *q.shape).astype(dtype)
    offset = S - T
    keep = torch.from_numpy(np.arange(S) <= np.arange(T)[:, None] + offset)
    exact, peer = [], []
    for results, precision in ((exact, torch.float64), (peer, getattr(torch, dtype.name))):
        leaves = [torch.from_numpy(x.astype("f4")).to(precision).requires_grad_() for x in (q, k, v)]
        y = F.scaled_dot_product_attention(*leaves, keep, enable_gqa=True)
        results += [y.detach(), *torch.autograd.grad(y, leaves, torch.from_numpy(dy.astype("f4")).to(precision))]
    y, ctx = ck.attention_forward(q, k, v, is_causal=True, q_offset=offset)
    grads = ck.attention_backward(dy, ctx)
    for name, ours, e, p in zip(("y", "q", "k", "v"), (y, *grads[:3]), exact, peer, strict=True):
        assert ours.dtype == dtype
        assert_parity(ours, e, p, name=name)


# --- equal bits -------------------------------------------------------------------------------------------------------

FUSED = {"window": (200, None), "softcap": 4.0}


def test_attention_bits_do_not_depend_on_threads(isa, rng):
    q, k, v = inputs(rng, 2, 6, 2, 135, 270, 10)
    dy, sinks = normal(rng, *q.shape), normal(rng, 6)

    def everything():
        (y, lse), ctx = ck.attention_forward(q, k, v, None, True, q_offset=130, sinks=sinks, return_lse=True, **FUSED)
        return [a.tobytes() for a in (y, lse, *ck.attention_backward((dy, None), ctx))]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone


def test_attention_bits_of_an_item_do_not_depend_on_its_batch(isa, rng):
    q, k, v = inputs(rng, 5, 4, 2, 70, 300, 17)
    dy, at_ = normal(rng, *q.shape), np.array([0, 7, 230, 100, 4095])
    y, ctx = ck.attention_forward(q, k, v, None, True, q_offset=at_)
    grads = ck.attention_backward(dy, ctx)
    for b in range(5):
        one, own = ck.attention_forward(q[b:b + 1], k[b:b + 1], v[b:b + 1], None, True, q_offset=int(at_[b]))
        assert one[0].tobytes() == y[b].tobytes()
        for single, whole in zip(ck.attention_backward(dy[b:b + 1], own)[:3], grads, strict=False):
            assert single[0].tobytes() == whole[b].tobytes()


@pytest.mark.parametrize("D", [16, 33, 128])
@pytest.mark.parametrize("options", [{}, FUSED], ids=["plain", "window and softcap"])
def test_attention_bits_are_those_of_chunks_and_of_decoding(isa, rng, D, options):
    T = 300 if isa != "reference" else 40
    q, k, v = inputs(rng, 2, 6, 2, T, T, D)
    sinks = normal(rng, 6)
    whole = ck.attention(q, k, v, is_causal=True, sinks=sinks, **options)
    for step in 1, 7, 64, 255:
        for t in range(0, T, step):
            n = min(step, T - t)
            if step == 1 and 3 < t < T - 60 and t % 16 > 1:
                continue  # enough of them
            part = ck.attention(
                q[:, :, t:t + n], k[:, :, :t + n], v[:, :, :t + n], is_causal=True, q_offset=t, sinks=sinks, **options
            )
            assert part.tobytes() == whole[:, :, t:t + n].tobytes(), (step, t)


def test_attention_bits_of_a_query_do_not_depend_on_the_masks_of_others(isa, rng):
    q, k, v = inputs(rng, 1, 3, 1, 40, 270, 9)
    keep = rng.random((40, 270)) < 0.5
    other = rng.random((40, 270)) < 0.1
    other[11] = keep[11]
    assert ck.attention(q, k, v, keep)[:, :, 11].tobytes() == ck.attention(q, k, v, other)[:, :, 11].tobytes()
    position = np.arange(40)[:, None] + 200
    causal = np.arange(270) <= position
    wanted = ck.attention(q, k, v, is_causal=True, q_offset=200)
    assert ck.attention(q, k, v, causal).tobytes() == wanted.tobytes()
    assert ck.attention(q, k, v, np.where(causal, 0, -np.inf).astype("f4")).tobytes() == wanted.tobytes()
    assert ck.attention(q, k, v, window=(None, 0), q_offset=200).tobytes() == wanted.tobytes()


def test_attention_takes_and_writes_views(isa, rng):
    q, k, v, dy = (normal(rng, 2, n, h, 10).transpose(0, 2, 1, 3) for n, h in ((45, 6), (70, 2), (70, 2), (45, 6)))
    y, ctx = ck.attention_forward(q, k, v, is_causal=True, out=unwritten((2, 45, 6, 10)).transpose(0, 2, 1, 3))
    wide = np.full((2, 6, 45, 32), np.nan, "f4")
    assert ck.attention(q, k, v, is_causal=True, out=wide[..., 5:15]) is not None
    plain = [np.ascontiguousarray(x) for x in (q, k, v, dy)]
    want, own = ck.attention_forward(*plain[:3], is_causal=True)
    assert y.tobytes() == want.tobytes() == wide[..., 5:15].tobytes()
    assert np.isnan(wide[..., :5]).all() and np.isnan(wide[..., 15:]).all()
    out = type(ck.attention_backward(dy, ctx))(*(unwritten(x.swapaxes(1, 2).shape).swapaxes(1, 2) for x in (q, k, v)))
    ck.attention_backward(dy, ctx, out=out)
    for got, expected in zip(out[:3], ck.attention_backward(plain[3], own), strict=False):
        assert got.tobytes() == expected.tobytes()


@pytest.mark.skipif("avx512" not in ck.isas(), reason="not measured here: this CPU has no AVX-512")
@pytest.mark.parametrize("D", [5, 64, 80])
def test_attention_bits_are_the_same_on_avx2_and_avx512(rng, D):
    q, k, v = inputs(rng, 2, 6, 2, 140, 300, D)
    dy, sinks, bits = normal(rng, *q.shape), normal(rng, 6), {}
    for isa in "avx2", "avx512":
        with ck.use(isa):
            options = {"is_causal": True, "q_offset": 160, "sinks": sinks, "return_lse": True}
            (y, lse), ctx = ck.attention_forward(q, k, v, **options, **FUSED)
            bits[isa] = [a.tobytes() for a in (y, lse, *ck.attention_backward((dy, None), ctx))]
    assert bits["avx2"] == bits["avx512"]


# --- what is not seen -------------------------------------------------------------------------------------------------

PAYLOAD = np.uint32(0x7FC0BEEF)


def hidden_keys(rng, B, T, S):
    """(options, which keys no query sees) for every way to hide keys."""
    keep = rng.random((B, 1, T, S)) < 0.5
    gone = np.zeros((B, S), bool)
    gone[:, [0, 5, S - 1]] = True
    keep &= ~gone[:, None, None]
    yield {"attn_mask": keep}, ~keep.any((1, 2))
    yield {"attn_mask": np.where(keep, 0, -np.inf).astype("f4")}, ~keep.any((1, 2))
    position = np.array([3, 150])[:, None] + np.arange(T)
    sees = np.arange(S) <= position[..., None]
    yield {"is_causal": True, "q_offset": np.array([3, 150])}, ~sees.any(1)
    sees &= np.arange(S) >= position[..., None] - 9
    yield {"is_causal": True, "q_offset": np.array([3, 150]), "window": (9, None)}, ~sees.any(1)


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("poison", [PAYLOAD, np.float32(np.inf).view(np.uint32)], ids=["nan", "inf"])
def test_hidden_keys_contribute_nothing_whatever_they_hold(isa, rng, kind, poison):
    B, H, G, T, S, D = 2, 4, 2, 67, 300, 7
    q, k, v = inputs(rng, B, H, G, T, S, D)
    dy = normal(rng, *q.shape)
    options, hidden = list(hidden_keys(rng, B, T, S))[kind]
    assert hidden.any() and not hidden.all()
    clean, ctx = ck.attention_forward(q, k, v, **options)
    want = ck.attention_backward(dy, ctx)
    for x in k, v:
        x.view(np.uint32)[np.broadcast_to(hidden[:, None, :, None], x.shape)] = poison
    y, ctx = ck.attention_forward(q, k, v, **options)
    assert y.tobytes() == clean.tobytes() and np.isfinite(y).all()
    grads = ck.attention_backward(dy, ctx)
    assert grads.q.tobytes() == want.q.tobytes()
    seen = np.broadcast_to(~hidden[:, None, :, None], k.shape)
    for got, expected in ((grads.k, want.k), (grads.v, want.v)):
        assert got[seen].tobytes() == expected[seen].tobytes()
        assert not got[~seen].any()


def test_a_key_that_one_query_sees_may_hold_nan_without_reaching_the_others(isa, rng):
    q, k, v = inputs(rng, 1, 2, 1, 20, 20, 9)
    dy, dirty = normal(rng, *q.shape), [x.copy() for x in (k, v)]
    clean, ctx = ck.attention_forward(q, k, v, is_causal=True)
    want = ck.attention_backward(dy, ctx)
    for x in dirty:
        x[0, 0, 12] = np.nan
    y, ctx = ck.attention_forward(q, *dirty, is_causal=True)
    assert y[:, :, :12].tobytes() == clean[:, :, :12].tobytes() and np.isnan(y[:, :, 12:]).all()
    assert ck.attention_backward(dy, ctx).q[:, :, :12].tobytes() == want.q[:, :, :12].tobytes()
    keep = np.tril(np.ones((20, 20), bool))
    assert ck.attention(q, *dirty, keep)[:, :, :12].tobytes() == clean[:, :, :12].tobytes()


def test_a_query_that_sees_nothing_gives_zero(isa, rng):
    q, k, v = inputs(rng, 1, 3, 1, 8, 270, 5)
    keep = rng.random((8, 270)) < 0.5
    keep[[0, 3]] = False
    (y, lse), ctx = ck.attention_forward(q, k, v, keep, return_lse=True, out=unwritten(q.shape))
    assert not y[:, :, [0, 3]].any() and (lse[:, :, [0, 3]] == -np.inf).all() and np.isfinite(lse[:, :, 1:3]).all()
    grads = ck.attention_backward((np.ones_like(q), None), ctx)
    assert not grads.q[:, :, [0, 3]].any() and all(np.isfinite(g).all() for g in grads[:3])
    sinks = normal(rng, 3)
    y, lse = ck.attention(q, k, v, keep, sinks=sinks, return_lse=True)
    assert not y[:, :, 0].any() and lse[0, :, 0].tobytes() == sinks.tobytes()


def test_keys_past_an_items_length_are_never_read(isa, rng):
    """A cache: capacity above every length, another length and position for each item, NaN behind."""
    lengths = np.array([1, 255, 256, 270], np.int64)
    q, k, v = inputs(rng, 4, 6, 2, 3, 290, 12)
    offsets = lengths - 3
    for b, n in enumerate(lengths):
        for x in k, v:
            x.view(np.uint32)[b, :, n:] = PAYLOAD
    y = attend_cache(q, k, v, offsets, lengths, out=unwritten(q.shape))
    for b, n in enumerate(lengths):
        alone = ck.attention(q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n], is_causal=True, q_offset=int(offsets[b]))
        assert alone.tobytes() == y[b:b + 1].tobytes() and np.isfinite(alone).all()


# --- extreme values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["200", "rising", "falling", "equal", "tiny"])
def test_attention_of_extreme_scores(isa, rng, kind):
    q, k, v = inputs(rng, 1, 4, 2, 9, 600, 24)
    if kind == "200":
        q *= np.float32(200 / 24**0.5)
    elif kind in ("rising", "falling"):  # every partition brings a larger maximum, or a smaller one
        q[:], k[:] = 1, np.linspace(-3, 3, 600, dtype="f4")[::1 if kind == "rising" else -1, None]
        q *= 1 + 0.1 * normal(rng, *q.shape)
    elif kind == "equal":
        k[:] = k[:, :, :1]
    else:
        q, k, v = q * np.float32(1e-30), k * np.float32(1e-10), v * np.float32(1e-38)
    (exact, exact_lse), (peer, peer_lse) = both(q, k, v)
    (y, lse), ctx = ck.attention_forward(q, k, v, return_lse=True)
    assert_parity(y, exact, peer)
    assert_parity(lse, exact_lse, peer_lse, allow_constant=kind in ("equal", "tiny"))
    if kind == "tiny":
        return
    dy = normal(rng, *q.shape)
    wide, narrow = (gradients(p, q, k, v, dy) for p in (torch.float64, torch.float32))
    for name, ours, e, p in zip("qkv", ck.attention_backward((dy, None), ctx), wide, narrow, strict=False):
        if kind == "equal" and name == "q":  # moving q moves all scores alike: 0, and nothing but rounding is left
            largest = np.abs(dy).max() * np.abs(v).max() * np.abs(k).max()
            assert np.abs(ours).max() <= 3 * p.abs().max() + 2 * np.finfo("f4").eps * largest
        else:
            assert_parity(ours, e, p, name=name)


def test_softcap_of_small_scores_does_not_cancel(isa, rng):
    q, k, v = inputs(rng, 1, 2, 1, 7, 30, 8)
    q *= np.float32(1e-3)
    (exact, exact_lse), (peer, peer_lse) = both(q, k, v, softcap=50.0)
    y, lse = ck.attention(q, k, v, softcap=50.0, return_lse=True)
    assert_parity(y, exact, peer)
    assert_parity(lse, exact_lse, peer_lse)


def test_nan_and_inf_go_where_the_arithmetic_puts_them(isa, rng):
    q, k, v = inputs(rng, 1, 2, 1, 9, 300, 8)
    clean = ck.attention(q, k, v)
    q[0, 1, 4, 3] = np.nan
    y = ck.attention(q, k, v)
    assert np.isnan(y[0, 1, 4]).all()
    y[0, 1, 4] = clean[0, 1, 4]
    assert y.tobytes() == clean.tobytes()
    one = ck.attention(q[:, :, 4:5], k[:, :, :1], v[:, :, :1])  # a NaN is all there is
    assert np.isnan(one[0, 1]).all() and np.isfinite(one[0, 0]).all()
    q[0, 1, 4, 3] = 1
    v[0, 0, 299, 2] = np.inf
    y = ck.attention(q, k, v)
    assert (y[..., 2] == np.inf).all() and np.isfinite(np.delete(y, 2, -1)).all()


@pytest.mark.parametrize("sink", [np.inf, np.nan])
def test_a_sink_that_is_no_number_makes_its_rows_none(isa, rng, sink):
    """exp(inf - inf) is NaN, and so is what it is added to: with keys and without."""
    q, k, v = inputs(rng, 1, 2, 1, 3, 5, 8)
    sinks = np.array([sink, 0.5], "f4")
    for keys in 5, 0:
        y, lse = ck.attention(q, k[:, :, :keys], v[:, :, :keys], sinks=sinks, return_lse=True)
        assert np.isnan(y[:, 0]).all() and np.isnan(lse[:, 0]).all()
        assert np.isfinite(y[:, 1]).all() and np.isfinite(lse[:, 1]).all()


# --- sizes, refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4, 2, 3, 5, 8), (1, 0, 0, 3, 5, 8), (1, 4, 2, 0, 5, 8), (1, 4, 2, 3, 0, 8),
                                   (1, 4, 2, 3, 5, 0), (2, 0, 2, 3, 5, 8)], ids=str)  # fmt: skip
def test_attention_of_empty_arrays(isa, rng, shape):
    q, k, v = inputs(rng, *shape)
    (y, lse), ctx = ck.attention_forward(q, k, v, return_lse=True, sinks=None)
    assert y.shape == q.shape and not y.any()
    if shape[4] == 0:
        assert (lse == -np.inf).all()
    out = type(ck.attention_backward((y, None), ctx))(*(unwritten(x.shape) for x in (q, k, v)))
    for grad, x in zip(ck.attention_backward((y, None), ctx, out=out), (q, k, v), strict=False):
        assert grad.shape == x.shape and not grad.any()


def test_attention_of_no_channels_costs_nothing_however_many_heads_or_keys(isa):
    q, k = np.empty((1, 2**58, 1, 0), "f4"), np.empty((1, 1, 5, 0), "f4")
    assert ck.attention(q, k, k).shape == q.shape
    q, k = np.empty((1, 0, 5, 0), "f4"), np.empty((1, 2**29, 2**29, 0), "f4")
    assert ck.attention_backward(q, ck.attention_forward(q, k, k)[1]).k.shape == k.shape


def test_attention_backward_without_memory_adds_nothing_to_sinks(rng):
    q, k, v = inputs(rng, 1, 4, 2, 9, 11, 8)
    _, ctx = ck.attention_forward(q, k, v, sinks=normal(rng, 4))
    held = ck.attention_backward(q, ctx)
    before = held.sinks.copy()
    for n in 1, 2, 3:  # the parts of sinks, scratch of either pass
        ck._ck.fail_allocation(n)
        with pytest.raises(MemoryError):
            ck.attention_backward(q, ctx, out=held, accumulate=True)
        assert held.sinks.tobytes() == before.tobytes()


def test_attention_does_not_hold_all_scores():
    n = 8192
    q = np.ones((1, 1, n, 8), "f4")
    before = ck.memory_stats()["peak"]
    ck.attention(q, q, q, is_causal=True)
    assert ck.memory_stats()["peak"] - before < n * n  # a quarter of the scores


def test_attention_leaves_its_inputs_alone(isa, rng):
    arrays = inputs(rng, 1, 2, 1, 20, 30, 6)
    dy, mask = normal(rng, *arrays[0].shape), rng.random((20, 30)) < 0.7
    for x in (*arrays, dy, mask):
        x.flags.writeable = False
    before = [x.tobytes() for x in (*arrays, dy, mask)]
    _, ctx = ck.attention_forward(*arrays, mask)
    ck.attention_backward(dy, ctx)
    assert [x.tobytes() for x in (*arrays, dy, mask)] == before


def zeros(*shape, dtype="f4"):
    return np.zeros(shape, dtype)


Q, K = zeros(2, 4, 3, 8), zeros(2, 2, 5, 8)
NAME = r"scaled_dot_product_attention\(\): "


@pytest.mark.parametrize("error, text, args, options", [
    (TypeError, "'q' must be a NumPy array", ([[1.0]], K, K), {}),
    (TypeError, "'k' must be float32, not float64", (Q, K.astype("f8"), K), {}),
    (TypeError, "'attn_mask' must be bool or float32, not int64", (Q, K, K), {"attn_mask": zeros(3, 5, dtype="i8")}),
    (TypeError, "'q_offset' must be an integer or integers", (Q, K, K), {"q_offset": 1.5}),
    (TypeError, "'q_offset' must be an integer or integers", (Q, K, K), {"q_offset": zeros(2)}),
    (TypeError, "'window' must be", (Q, K, K), {"window": 5}),
    (TypeError, "'window' must hold integers", (Q, K, K), {"window": (1.0, None)}),
    (ValueError, "'window' must hold integers of at least 0", (Q, K, K), {"window": (-1, None)}),
    (ValueError, r"'q' of shape \(4, 3, 8\) does not fit \[B, H, T, D\]", (Q[0], K, K), {}),
    (ValueError, r"'k' of shape \(2, 2, 5, 7\) does not fit .* D=8", (Q, zeros(2, 2, 5, 7), K), {}),
    (ValueError, r"'v' of shape \(2, 2, 4, 8\) does not fit .* S=5", (Q, K, zeros(2, 2, 4, 8)), {}),
    (ValueError, "'q' has 4 heads, which is no multiple of the 3", (Q, zeros(2, 3, 5, 8), zeros(2, 3, 5, 8)), {}),
    (ValueError, r"'attn_mask' of shape \(3, 4\) does not fit", (Q, K, K), {"attn_mask": zeros(3, 4)}),
    (ValueError, r"'sinks' of shape \(3,\) does not fit \[H\], where H=4", (Q, K, K), {"sinks": zeros(3)}),
    (ValueError, r"'q_offset' of shape \(3,\) does not fit \[B\], where B=2", (Q, K, K), {"q_offset": [1, 2, 3]}),
    (ValueError, "'q_offset' puts item 0 at position", (Q, K, K), {"q_offset": 2**61}),
    (OverflowError, "'q_offset' does not fit 64 bits", (Q, K, K), {"q_offset": 2**70}),
    (ValueError, "'q_offset' must be an integer or integers", (Q, K, K), {"q_offset": [[1], [2, 3]]}),
    (OverflowError, "'q_offset' does not fit 64 bits", (Q, K, K), {"q_offset": np.full(2, 2**63, "u8")}),
    (TypeError, "'softcap' must be a number or None, not 'x'", (Q, K, K), {"softcap": "x"}),
    (TypeError, "'is_causal' must be true or false", (Q, K, K), {"is_causal": zeros(2)}),
    (TypeError, "'return_lse' must be true or false", (Q, K, K), {"return_lse": zeros(2)}),
    (ValueError, "'softcap' must be above 0", (Q, K, K), {"softcap": 0.0}),
    (ValueError, "'softcap' must be above 0", (Q, K, K), {"softcap": -2}),
    (ValueError, "'softcap' must be above 0", (Q, K, K), {"softcap": math.nan}),
    (ValueError, "'scale' must be finite", (Q, K, K), {"scale": math.inf}),
    (TypeError, "'scale' must be a number", (Q, K, K), {"scale": "x"}),
    (ValueError, "'k' must be contiguous along its last axis", (Q, K[..., ::-1], K), {}),
    (ValueError, "'out' is written and overlaps 'q'", (Q, K, K), {"out": Q}),
    (ValueError, r"'out' of shape \(2, 4, 3, 7\) does not fit", (Q, K, K), {"out": zeros(2, 4, 3, 7)}),
])  # fmt: skip
def test_attention_refuses(error, text, args, options):
    with pytest.raises(error, match=NAME + text):
        ck.attention(*args, **options)


def test_attention_backward_refuses():
    _, ctx = ck.attention_forward(Q, K, K)
    name = r"scaled_dot_product_attention_backward\(\): "
    with pytest.raises(ValueError, match=name + r"'dy' of shape \(2, 4, 3, 7\) does not fit"):
        ck.attention_backward(zeros(2, 4, 3, 7), ctx)
    with pytest.raises(ValueError, match=name + r"'out.k' of shape \(2, 2, 4, 8\) does not fit"):
        ck.attention_backward(Q, ctx, out=(None, zeros(2, 2, 4, 8), None, None))
    with pytest.raises(ValueError, match=name + "'out.sinks' must be None, as forward had no 'sinks'"):
        ck.attention_backward(Q, ctx, out=(None, None, None, zeros(4)))
    _, ctx = ck.attention_forward(Q, K, K, return_lse=True)
    with pytest.raises(TypeError, match=name + r"'dy' must be \(dy, dlse\)"):
        ck.attention_backward(Q, ctx)


@pytest.mark.parametrize("lengths, text", [([5, 6], "'lengths' holds 6 for item 1, which has room for 5 keys"),
                                           ([-1, 5], "'lengths' holds -1 for item 0")])  # fmt: skip
def test_attend_cache_refuses_and_writes_nothing(lengths, text):
    out = unwritten(Q.shape)
    with pytest.raises(ValueError, match=text):
        attend_cache(Q, K, K, np.zeros(2, np.int64), np.array(lengths, np.int64), out=out)
    assert np.isnan(out).all()


def test_attention_names_are_the_same_functions():
    assert ck.attention is ck.scaled_dot_product_attention
    assert ck.attention_forward is ck.scaled_dot_product_attention_forward
    assert ck.attention_backward is ck.scaled_dot_product_attention_backward
