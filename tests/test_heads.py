import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.ops.heads import Gradients, SplitGradients
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch

# Batch, T, H, G, D: extents all different but for one, around a block of 32 tokens and a line of 64 bytes, a real size.
SIZES = [((2,), 5, 3, 1, d) for d in (1, 7, 15, 16, 17, 31, 32, 33, 64, 80)]
SIZES += [((3,), t, 4, 2, 32) for t in (1, 7, 17, 31, 32, 33, 65)]
SIZES += [((), 6, 4, 2, 8), ((2, 3), 4, 5, 1, 8), ((1,), 37, 9, 3, 64), ((2,), 3, 7, 7, 16), ((2,), 9, 3, 0, 16)]
SIZES += [((2,), 5, 5, 5, 8)]  # nothing but the elements themselves tells T from H


def bits(array):
    """Elements as integers: NaN compare as well."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


SIGNALLING = {"float32": 0x7F800001, "float16": 0x7C01, "bfloat16": 0x7F81}  # NaN that arithmetic would change


def any_bits(rng, dtype, *shape):
    """Random bits, signalling NaN among them, up to an unreadable page."""
    whole = rng.integers(0, 2 ** (8 * dtype.itemsize), shape, f"u{dtype.itemsize}")
    whole.flat[::5] = SIGNALLING[dtype.name] + whole.flat[::5] % 50
    return guarded(whole.view(dtype))


def assert_bits(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    np.testing.assert_array_equal(bits(actual), bits(expected))


def split_by_torch(qkv, H, G, D):
    """The views that PyTorch makes, moved as integers."""
    whole = torch.from_numpy(bits(qkv).view(f"i{qkv.itemsize}"))
    parts = [part.unflatten(-1, (-1, D)) for part in whole.split((H * D, G * D, G * D), -1)]
    return [part.transpose(-2, -3).contiguous().numpy().view(qkv.dtype) for part in parts]


def swapped(x):
    return np.ascontiguousarray(np.swapaxes(bits(x), -2, -3)).view(x.dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_split_qkv_matches_torch(isa, dtype, rng, size):
    batch, T, H, G, D = size
    qkv = any_bits(rng, dtype, *batch, T, (H + 2 * G) * D)
    out = [unwritten((*batch, heads, T, D), dtype) for heads in (H, G, G)]
    parts = ck.split_qkv(qkv, H, G, D, out=out)
    for part, given, expected in zip(parts, out, split_by_torch(qkv, H, G, D), strict=True):
        assert part is given
        assert_bits(part, expected)
    for part, made in zip(parts, ck.split_qkv(qkv, H, G, D), strict=True):
        assert made.flags.c_contiguous
        assert_bits(made, part)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_split_qkv_backward_joins(isa, dtype, rng, size):
    batch, T, H, G, D = size
    qkv = any_bits(rng, dtype, *batch, T, (H + 2 * G) * D)
    ctx = ck.split_qkv_forward(qkv, H, G, D)[1]
    dy = tuple(guarded(part) for part in split_by_torch(qkv, H, G, D))
    given = SplitGradients(unwritten(qkv.shape, dtype))
    assert ck.split_qkv_backward(dy, ctx, out=given).qkv is given.qkv
    assert_bits(given.qkv, qkv)


def test_split_qkv_backward_matches_autograd(isa, dtype, rng):
    x = as_torch(rng.standard_normal((2, 5, (6 + 2 * 3) * 8)), dtype, grad=True)
    parts = [p.unflatten(-1, (-1, 8)).transpose(1, 2) for p in x.split((48, 24, 24), -1)]
    dy = tuple(rng.standard_normal(p.shape).astype(dtype) for p in parts)
    torch.autograd.backward(parts, [as_torch(d) for d in dy])
    ctx = ck.split_qkv_forward(x.detach(), 6, 3, 8)[1]
    dqkv, = ck.split_qkv_backward(dy, ctx)
    np.testing.assert_array_equal(bits(dqkv), x.grad.view(getattr(torch, f"int{8 * dtype.itemsize}")).numpy().view(f"u{dtype.itemsize}"))


@pytest.mark.parametrize("name", ["heads_to_tokens", "tokens_to_heads"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_swap_matches_numpy_and_backward_undoes_it(isa, dtype, rng, name, size):
    batch, T, H, _, D = size
    shape = (*batch, H, T, D) if name == "heads_to_tokens" else (*batch, T, H, D)
    x = any_bits(rng, dtype, *shape)
    expected = swapped(x)
    y, ctx = getattr(ck, name + "_forward")(x, out=unwritten(expected.shape, dtype))
    assert_bits(y, expected)
    made = getattr(ck, name)(x)
    assert made.flags.c_contiguous
    assert_bits(made, expected)
    dx, = getattr(ck, name + "_backward")(guarded(expected), ctx, out=Gradients(unwritten(shape, dtype)))
    assert_bits(dx, x)


def test_results_beyond_the_caches(isa, dtype, rng):
    """They are written another way: 18 MB in and out, rows that do and do not begin at a line."""
    for D, shift in (64, 0), (64, 4), (65, 0):
        H, G, T = 9, 3, 20000 // dtype.itemsize
        qkv = any_bits(rng, dtype, 1, T, (H + 2 * G) * D)
        assert qkv.nbytes > 16 << 20
        out = [ck.empty(H * T * D + shift, dtype)[shift:].reshape(1, -1, T, D) for _ in range(1)] + [None, None]
        parts = ck.split_qkv(qkv, H, G, D, out=out)
        for part, expected in zip(parts, split_by_torch(qkv, H, G, D), strict=True):
            assert_bits(part, expected)
        assert_bits(ck.split_qkv_backward(parts, ck.split_qkv_forward(qkv[:, :1], H, G, D)[1]).qkv, qkv)
        x = any_bits(rng, dtype, 1, 9, 33000 // dtype.itemsize, D)
        y, ctx = ck.heads_to_tokens_forward(x)
        assert_bits(y, swapped(x))
        assert_bits(ck.tokens_to_heads(y), x)
        assert_bits(ck.heads_to_tokens_backward(y, ctx).x, x)


def test_heads_are_the_same_for_any_number_of_threads(isa, dtype, rng):
    qkv = any_bits(rng, dtype, 3, 301, (6 + 2 * 2) * 24)

    def everything():
        (q, k, v), ctx = ck.split_qkv_forward(qkv, 6, 2, 24)
        y, swap = ck.heads_to_tokens_forward(q)
        x, back = ck.tokens_to_heads_forward(y)
        grads = (ck.split_qkv_backward((q, k, v), ctx).qkv, ck.heads_to_tokens_backward(y, swap).x,
                 ck.tokens_to_heads_backward(x, back).x)
        return [a.tobytes() for a in (q, k, v, y, x, *grads)]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    item = ck.split_qkv(qkv[1:2], 6, 2, 24)[0]
    assert item.tobytes() == alone[0][item.nbytes : 2 * item.nbytes]


def test_heads_take_strided_views(isa, dtype, rng):
    B, T, H, G, D = 2, 11, 6, 2, 20
    whole = any_bits(rng, dtype, B, 2 * T, (H + 2 * G) * D + 3)
    for qkv in whole[:, ::2, 3:], whole[:, T:, :-3][:, ::-1], np.broadcast_to(whole[:, :1, 3:], (B, T, (H + 2 * G) * D)):
        expected = split_by_torch(qkv, H, G, D)
        outs = [
            [spaced(np.zeros((B, n, T, D), dtype)) for n in (H, G, G)],
            [np.zeros((B, T, n, D), dtype).transpose(0, 2, 1, 3) for n in (H, G, G)],  # token-major
            [np.zeros((n, B, T, D), dtype).transpose(1, 0, 2, 3)[:, ::-1] for n in (H, G, G)],
        ]
        for out in outs:
            parts, ctx = ck.split_qkv_forward(qkv, H, G, D, out=out)
            for part, e in zip(parts, expected, strict=True):
                assert_bits(part, e)
            joined = spaced(np.zeros(qkv.shape, dtype))
            ck.split_qkv_backward(parts, ctx, out=SplitGradients(joined))
            assert_bits(joined, qkv)
            assert gaps_untouched(joined)
        assert all(gaps_untouched(part) for part in outs[0])


@pytest.mark.parametrize("name", ["heads_to_tokens", "tokens_to_heads"])
def test_swap_takes_strided_views(isa, dtype, rng, name):
    forward, backward = getattr(ck, name + "_forward"), getattr(ck, name + "_backward")
    whole = any_bits(rng, dtype, 2, 5, 18, 21)
    for x in whole[..., 1:], whole.transpose(0, 2, 1, 3), whole[:, ::-1, ::2], whole.transpose(2, 1, 0, 3)[:3], whole[0]:
        y, ctx = forward(x, out=spaced(np.zeros(swapped(x).shape, dtype)))
        assert_bits(y, swapped(x))
        dx, = backward(y, ctx, out=Gradients(spaced(np.zeros(x.shape, dtype))))
        assert_bits(dx, x)
        assert gaps_untouched(y) and gaps_untouched(dx)


def test_split_qkv_is_what_attention_takes(dtype, rng):
    """The same scores as from views of the projection."""
    B, T, H, G, D = 2, 7, 6, 3, 16
    qkv = rng.standard_normal((B, T, (H + 2 * G) * D)).astype(dtype)
    q, k, v = ck.split_qkv(qkv, H, G, D)
    views = [p.reshape(B, T, -1, D).transpose(0, 2, 1, 3) for p in np.split(qkv, [H * D, (H + G) * D], -1)]
    y = ck.attention(q, k, v, is_causal=True)
    np.testing.assert_array_equal(y, ck.attention(*views, is_causal=True))
    np.testing.assert_array_equal(ck.heads_to_tokens(y), y.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("B, T, H, G, D", [(0, 3, 2, 1, 4), (2, 0, 2, 1, 4), (2, 3, 0, 1, 4), (2, 3, 2, 0, 4),
                                           (2, 3, 2, 1, 0), (2, 3, 0, 0, 4), (0, 0, 0, 0, 0)])
def test_heads_of_nothing(isa, dtype, B, T, H, G, D):
    qkv = np.ones((B, T, (H + 2 * G) * D), dtype)
    (q, k, v), ctx = ck.split_qkv_forward(qkv, H, G, D)
    assert q.shape == (B, H, T, D) and k.shape == v.shape == (B, G, T, D)
    assert (q == 1).all() and (k == 1).all() and (v == 1).all()
    assert_bits(ck.split_qkv_backward((q, k, v), ctx).qkv, qkv)
    y, ctx = ck.heads_to_tokens_forward(q)
    assert y.shape == (B, T, H, D)
    assert ck.heads_to_tokens_backward(y, ctx).x.shape == q.shape
    x, ctx = ck.tokens_to_heads_forward(y)
    assert x.shape == q.shape and ck.tokens_to_heads_backward(x, ctx).x.shape == y.shape


def test_heads_take_tensors_and_numpy_integers(rng):
    qkv = rng.standard_normal((2, 3, 16)).astype("f4")
    for a, b in zip(ck.split_qkv(torch.from_numpy(qkv), np.int64(2), 1, 4), ck.split_qkv(qkv, 2, 1, 4), strict=True):
        assert_bits(a, b)
    x = torch.from_numpy(qkv.reshape(2, 3, 2, 8))
    assert_bits(ck.heads_to_tokens(x), swapped(x.numpy()))


QKV, X = np.ones((2, 3, 16), "f4"), np.ones((2, 3, 5, 4), "f4")
PARTS = tuple(np.ones((2, n, 3, 4), "f4") for n in (2, 1, 1))


def context():
    return ck.split_qkv_forward(QKV, 2, 1, 4)[1]


@pytest.mark.parametrize("error, text, call", [
    (ValueError, r"split_qkv\(\): 'qkv' of 16 columns is not \(H \+ 2G\) \* D, where H=2, G=1, D=5",
     lambda: ck.split_qkv(QKV, 2, 1, 5)),
    (ValueError, r"split_qkv\(\): 'G' must be 0 or more, not -1", lambda: ck.split_qkv(QKV, 6, -1, 4)),
    (TypeError, r"split_qkv\(\): 'H' must be an integer", lambda: ck.split_qkv(QKV, 2.0, 1, 4)),
    (OverflowError, r"split_qkv\(\): 'D' does not fit 64 bits", lambda: ck.split_qkv(QKV, 2, 1, 2**63)),
    (TypeError, r"split_qkv\(\): 'qkv' must be float\d\d", lambda: ck.split_qkv(QKV.astype("i4"), 2, 1, 4)),
    (ValueError, r"split_qkv\(\): 'qkv' of shape \(16,\) does not fit \[..., T, C\]",
     lambda: ck.split_qkv(QKV[0, 0], 2, 1, 4)),
    (ValueError, r"split_qkv\(\): 'qkv' must be contiguous along its last axis",
     lambda: ck.split_qkv(QKV[..., ::2], 1, 0, 8)),
    (TypeError, r"split_qkv\(\): 'out' must be a tuple of three arrays", lambda: ck.split_qkv(QKV, 2, 1, 4, out=QKV)),
    (ValueError, r"split_qkv\(\): 'k' of shape \(2, 2, 3, 4\) does not fit \[..., G, T, D\], where ...=\(2,\), G=1",
     lambda: ck.split_qkv(QKV, 2, 1, 4, out=(None, PARTS[0], None))),
    (ValueError, r"split_qkv\(\): 'k' is written and overlaps 'v'",
     lambda: ck.split_qkv(QKV, 2, 1, 4, out=(None, PARTS[1], PARTS[1]))),
    (ValueError, r"split_qkv\(\): 'q' is written and overlaps 'qkv'",
     lambda: ck.split_qkv(QKV, 2, 1, 4, out=(QKV[..., :8].reshape(2, 3, 2, 4).transpose(0, 2, 1, 3), None, None))),
    (ValueError, r"split_qkv_backward\(\): 'dv' of shape \(2, 2, 3, 4\) does not fit \[..., G, T, D\]",
     lambda: ck.split_qkv_backward((PARTS[0], PARTS[1], PARTS[0]), context())),
    (TypeError, r"split_qkv_backward\(\): 'dy' must be a tuple of three arrays",
     lambda: ck.split_qkv_backward(None, context())),
    (TypeError, r"split_qkv_backward\(\): 'dy' must be a tuple of three arrays",
     lambda: ck.split_qkv_backward(PARTS[:2], context())),
    (ValueError, r"split_qkv_backward\(\): 'out.qkv' of shape \(2, 3, 8\) does not fit",
     lambda: ck.split_qkv_backward(PARTS, context(), out=SplitGradients(np.ones((2, 3, 8), "f4")))),
    (ValueError, r"heads_to_tokens\(\): 'x' of shape \(5, 4\) does not fit \[..., H, T, D\]",
     lambda: ck.heads_to_tokens(X[0, 0])),
    (ValueError, r"heads_to_tokens\(\): 'out' of shape \(2, 3, 5, 4\) does not fit \[..., T, H, D\]",
     lambda: ck.heads_to_tokens(X, out=X.copy())),
    (ValueError, r"heads_to_tokens\(\): 'out' is written and overlaps 'x'",
     lambda: ck.heads_to_tokens(X, out=X.transpose(0, 2, 1, 3))),
    (ValueError, r"tokens_to_heads\(\): 'x' must be contiguous along its last axis",
     lambda: ck.tokens_to_heads(X.transpose(0, 3, 1, 2))),
    (ValueError, r"tokens_to_heads_backward\(\): 'out.x' of shape \(2, 3, 5, 4\) does not fit",
     lambda: ck.tokens_to_heads_backward(X, ck.tokens_to_heads_forward(X)[1], out=Gradients(X.copy()))),
])
def test_heads_refuse(error, text, call):
    with pytest.raises(error, match=text):
        call()
    assert (QKV == 1).all() and (X == 1).all() and all((part == 1).all() for part in PARTS)
