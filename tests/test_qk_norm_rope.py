import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.qk_norm_rope import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_gradients_match_torch, assert_matches_torch

# B, H, T, K, D: pairs around each vector width, lanes that pass, more than one block of tokens, a real model's heads.
SIZES = [(2, 3, 5, k, 2 * k) for k in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40)]
SIZES += [(2, 3, 5, k, d) for k, d in ((16, 80), (17, 35), (24, 65), (8, 17), (0, 20))]
SIZES += [(1, 2, 33, 4, 8), (2, 1, 65, 20, 48), (1, 9, 40, 64, 128), (3, 40, 1, 16, 32)]
HOW = [False, True]


def normal(rng, shape, dtype=np.float32):
    return guarded(rng.standard_normal(shape).astype(dtype))


def table(positions, K):
    return [guarded(a) for a in ck.rope_table(np.asarray(positions), 2 * K)]


def inputs(rng, B, H, T, K, D, dtype=np.float32, weights=None, start=7):
    """Heads of differing size, and weights away from one."""
    x = rng.standard_normal((B, H, T, D)) * rng.uniform(0.5, 2, (B, H, T, 1)) + rng.standard_normal((B, H, T, 1)) / 2
    w = rng.uniform(0.5, 1.5, D)
    return guarded(x.astype(dtype)), guarded(w.astype(weights or dtype)), *table(start + np.arange(T), K)


def turned(x, cos, sin, interleaved):
    K = cos.shape[-1]
    lo, hi = (x[..., 0 : 2 * K : 2], x[..., 1 : 2 * K : 2]) if interleaved else (x[..., :K], x[..., K : 2 * K])
    turned = [lo * cos - hi * sin, lo * sin + hi * cos]
    turned = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat([turned, x[..., 2 * K :]], -1)


def torch_op(cos, sin, interleaved, eps=1e-6):
    """What a user of PyTorch writes; the tables stay float32, and the result is rounded to the dtype of x."""

    def op(x, w):
        normed = F.rms_norm(x, w.shape, w, eps)
        tables = [as_torch(a, "float64" if x.dtype == torch.float64 else "float32") for a in (cos, sin)]
        return turned(normed, *tables, interleaved).to(x.dtype)

    return op


def terms_of(x, w, dy, eps=1e-6):
    """The terms that cancel in dx are of the size of rstd * dy * w, and dy is spread over pairs."""
    rows = x.astype("f8")
    rstd = 1 / np.sqrt(np.mean(rows**2, -1, keepdims=True) + eps)
    return np.broadcast_to(rstd * np.abs(dy.astype("f8")).max() * np.abs(w.astype("f8")).max(), x.shape)


def assert_gradients(grads, x, w, cos, sin, dy, interleaved, eps=1e-6):
    op = torch_op(cos, sin, interleaved, eps)
    assert_gradients_match_torch((grads.x, None), op, (x, w), dy, terms=terms_of(x, w, dy, eps))
    assert_gradients_match_torch((None, grads.weight), op, (x, w), dy)


@pytest.mark.parametrize("interleaved", HOW)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_qk_norm_rope_matches_torch(isa, dtype, rng, size, interleaved):
    x, w, cos, sin = inputs(rng, *size, dtype)
    y = ck.qk_norm_rope(x, w, cos, sin, 1e-6, interleaved=interleaved, out=unwritten(x.shape, dtype))
    assert_matches_torch(y, torch_op(cos, sin, interleaved), x, w, trivial={"x": x})


@pytest.mark.parametrize("interleaved", HOW)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_qk_norm_rope_backward_matches_autograd(isa, dtype, rng, size, interleaved):
    x, w, cos, sin = inputs(rng, *size, dtype)
    dy = normal(rng, x.shape, dtype)
    ctx = ck.qk_norm_rope_forward(x, w, cos, sin, interleaved=interleaved)[1]
    out = Gradients(unwritten(x.shape, dtype), unwritten(w.shape, dtype))
    grads = ck.qk_norm_rope_backward(dy, ctx, out=out)
    assert grads.x is out.x and grads.weight is out.weight
    assert_gradients(grads, x, w, cos, sin, dy, interleaved)


def test_qk_norm_rope_takes_a_float32_weight_beside_16_bits(isa, dtype, rng):
    x, w, cos, sin = inputs(rng, 2, 3, 9, 16, 40, dtype, np.float32)
    dy = normal(rng, x.shape, dtype)
    y, ctx = ck.qk_norm_rope_forward(x, w, cos, sin)
    assert_matches_torch(y, torch_op(cos, sin, False), x, w)
    grads = ck.qk_norm_rope_backward(dy, ctx)
    assert (grads.x.dtype, grads.weight.dtype) == (dtype, np.float32)
    assert_gradients(grads, x, w, cos, sin, dy, False)


@pytest.mark.parametrize("interleaved", HOW)
def test_qk_norm_rope_gradient_matches_differences(isa, rng, interleaved):
    x, w, cos, sin = inputs(rng, 2, 1, 5, 17, 36)
    dy = normal(rng, x.shape)
    ctx = ck.qk_norm_rope_forward(x, w, cos, sin, 0.1, interleaved=interleaved)[1]
    grads = ck.qk_norm_rope_backward(dy, ctx)

    def forward(x, w):
        return ck.qk_norm_rope(x, w, cos, sin, 0.1, interleaved=interleaved)

    assert_gradient(lambda moved: forward(moved, w), x, grads.x, dy, rng)
    assert_gradient(lambda moved: forward(x, moved), w, grads.weight, dy, rng)


@pytest.mark.parametrize("interleaved", HOW)
def test_qk_norm_rope_is_as_exact_as_its_parts(isa, dtype, rng, interleaved):
    """Bit for bit the parts in float32; in 16 bits closer to exact than they are, with their error as the peer's."""
    x, w, cos, sin = inputs(rng, 2, 3, 33, 33, 80, dtype)
    dy = normal(rng, x.shape, dtype)
    y, ctx = ck.qk_norm_rope_forward(x, w, cos, sin, interleaved=interleaved)
    normed, norm_ctx = ck.rms_norm_forward(x, w)
    parts, rope_ctx = ck.rope_forward(normed, cos, sin, interleaved=interleaved)
    grads = ck.qk_norm_rope_backward(dy, ctx)
    part_grads = ck.rms_norm_backward(ck.rope_backward(dy, rope_ctx).x, norm_ctx)
    if dtype == np.float32 and isa != "reference":  # which rounds once, from end to end
        assert y.tobytes() == parts.tobytes() and grads.x.tobytes() == part_grads.x.tobytes()
    leaves = [as_torch(a, "float64", grad=True) for a in (x, w)]
    exact = torch_op(cos, sin, interleaved)(*leaves)
    wanted = torch.autograd.grad(exact, leaves, as_torch(dy, "float64"))
    for got, want, part in (y, exact.detach(), parts), *zip(grads, wanted, part_grads, strict=True):
        report = assert_parity(got, want, part)
        assert report.rms <= np.sqrt(np.mean((part.astype("f8") - want.numpy()) ** 2)) * (1 + 1e-6 if dtype != np.float32 else 2)


@pytest.mark.parametrize("heads", [1, 2, 3, 7])
def test_qk_norm_rope_of_queries_and_keys(isa, dtype, rng, heads):
    """Called twice, each with its weight; each head is treated as if it were alone."""
    q, wq, cos, sin = inputs(rng, 2, 2 * heads, 5, 16, 32, dtype)
    k, wk = guarded(q[:, ::heads].copy()), normal(rng, 32, dtype)
    new_q, new_k = ck.qk_norm_rope(q, wq, cos, sin), ck.qk_norm_rope(k, wk, cos, sin)
    assert ck.qk_norm_rope(k, wq, cos, sin).tobytes() == new_q[:, ::heads].tobytes() != new_k.tobytes()
    for h in range(2):
        assert new_k[:, h : h + 1].tobytes() == ck.qk_norm_rope(k[:, h : h + 1].copy(), wk, cos, sin).tobytes()


@pytest.mark.parametrize("ids", ["i4", "i8"])
@pytest.mark.parametrize("interleaved", HOW)
def test_qk_norm_rope_positions_pick_rows(isa, dtype, rng, ids, interleaved):
    x, w, *_ = inputs(rng, 3, 2, 35, 9, 20, dtype)  # B, H and T differ, and H does not divide B
    cos, sin = table(np.arange(100), 9)
    for shape in (35,), (3, 35):
        positions = guarded(rng.integers(0, 100, shape).astype(ids))
        how = {"positions": positions, "interleaved": interleaved}
        y, ctx = ck.qk_norm_rope_forward(x, w, cos, sin, **how, out=unwritten(x.shape, dtype))
        dx = ck.qk_norm_rope_backward(x, ctx, out=Gradients(unwritten(x.shape, dtype))).x
        for b in range(3):
            picked = positions if len(shape) == 1 else positions[b]
            want, b_ctx = ck.qk_norm_rope_forward(x[b], w, cos[picked], sin[picked], interleaved=interleaved)
            assert y[b].tobytes() == want.tobytes()
            assert dx[b].tobytes() == ck.qk_norm_rope_backward(x[b], b_ctx).x.tobytes()


def test_qk_norm_rope_pairs_cannot_be_confused(isa, dtype, rng):
    x, w, cos, sin = inputs(rng, 2, 3, 5, 33, 80, dtype)
    with pytest.raises(AssertionError):
        assert_matches_torch(ck.qk_norm_rope(x, w, cos, sin), torch_op(cos, sin, True), x, w)
    with pytest.raises(AssertionError):  # normed after it was turned: the weight would not turn
        assert_matches_torch(ck.rms_norm(ck.rope(x, cos, sin), w), torch_op(cos, sin, False), x, w)


def test_qk_norm_rope_sees_eps(isa, dtype, rng):
    x, w, cos, sin = inputs(rng, 2, 3, 5, 16, 32, dtype)
    x[...] = (normal(rng, x.shape) * 3e-3).astype(dtype)  # the mean square is about eps
    dy = normal(rng, x.shape, dtype)
    y, ctx = ck.qk_norm_rope_forward(x, w, cos, sin, 1e-5)
    assert_matches_torch(y, torch_op(cos, sin, False, 1e-5), x, w)
    assert_gradients(ck.qk_norm_rope_backward(dy, ctx), x, w, cos, sin, dy, False, 1e-5)
    with pytest.raises(AssertionError):
        assert_matches_torch(ck.qk_norm_rope(x, w, cos, sin, 1e-4), torch_op(cos, sin, False, 1e-5), x, w)


def test_qk_norm_rope_accumulates_the_weight_gradient(isa, dtype, rng):
    x, w, cos, sin = inputs(rng, 2, 3, 19, 16, 40, dtype)
    dy = normal(rng, x.shape, dtype)
    ctx = ck.qk_norm_rope_forward(x, w, cos, sin)[1]
    fresh = ck.qk_norm_rope_backward(dy, ctx)
    wide = ck.qk_norm_rope_backward(dy, ctx._replace(weight=w.astype("f4"))).weight
    given = Gradients(weight=np.full(w.shape, 100, dtype))
    added = ck.qk_norm_rope_backward(dy, ctx, out=given, accumulate=True)
    assert added.weight is given.weight and added.x.tobytes() == fresh.x.tobytes()
    total = 100 + wide.astype("f8")  # of a sum that was rounded to float32 before
    half = np.array([abs(float(np.nextafter(s, dtype.type(np.inf)) - s)) for s in total.astype(dtype)]) / 2
    assert_parity(added.weight, total, bound=half + np.spacing(np.abs(wide)).astype("f8"))
    assert ck.qk_norm_rope_backward(dy, ctx, out=given).weight.tobytes() == fresh.weight.tobytes()


@pytest.mark.parametrize("interleaved", HOW)
def test_qk_norm_rope_in_place(isa, dtype, rng, interleaved):
    x, w, cos, sin = inputs(rng, 2, 3, 35, 17, 36, dtype)
    dy = normal(rng, x.shape, dtype)
    y, ctx = ck.qk_norm_rope_forward(x, w, cos, sin, interleaved=interleaved)
    dx = ck.qk_norm_rope_backward(dy, ctx).x
    assert ck.qk_norm_rope_backward(dy, ctx, out=Gradients(dy)).x is dy
    assert dy.tobytes() == dx.tobytes()
    assert ck.qk_norm_rope(x, w, cos, sin, interleaved=interleaved, out=x) is x
    assert x.tobytes() == y.tobytes()


def everything(x, w, cos, sin, dy, interleaved):
    y, ctx = ck.qk_norm_rope_forward(x, w, cos, sin, interleaved=interleaved)
    return [a.tobytes() for a in (y, ctx.rstd, *ck.qk_norm_rope_backward(dy, ctx))]


@pytest.mark.parametrize("interleaved", HOW)
def test_qk_norm_rope_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, interleaved):
    x, w, cos, sin = inputs(rng, 3, 7, 70, 33, 80, dtype)
    dy = normal(rng, x.shape, dtype)
    ck.set_num_threads(1)
    alone = everything(x, w, cos, sin, dy, interleaved)
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(x, w, cos, sin, dy, interleaved) == alone
    y, ctx = ck.qk_norm_rope_forward(x, w, cos, sin, interleaved=interleaved)
    one, one_ctx = ck.qk_norm_rope_forward(x[2:, 4:5, 41:42], w, cos[41:42], sin[41:42], interleaved=interleaved)
    assert one.tobytes() == y[2, 4, 41].tobytes()
    dx = ck.qk_norm_rope_backward(dy, ctx).x
    assert ck.qk_norm_rope_backward(dy[2:, 4:5, 41:42], one_ctx).x.tobytes() == dx[2, 4, 41].tobytes()


def test_qk_norm_rope_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    x, w, cos, sin = inputs(rng, 2, 3, 33, 33, 80, dtype)
    dy, bits = normal(rng, x.shape, dtype), set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            bits.add(b"".join(b"".join(everything(x, w, cos, sin, dy, how)) for how in HOW))
    assert len(bits) == 1


@pytest.mark.parametrize("D", [64, 80])
def test_qk_norm_rope_bits_are_the_same_past_the_caches(isa, dtype, rng, D):
    """The largest calls store otherwise."""
    heads = 2 if isa in ("reference", "baseline") else (40 << 20) // (2 * dtype.itemsize * D * 100) // 2 * 2
    few, w, cos, sin = inputs(rng, 1, 2, 100, 24, D, dtype)
    x = np.tile(few, (1, heads // 2, 1, 1))
    y, ctx = ck.qk_norm_rope_forward(x, w, cos, sin)
    want, few_ctx = ck.qk_norm_rope_forward(few, w, cos, sin)
    dx, few_dx = ck.qk_norm_rope_backward(y, ctx).x, ck.qk_norm_rope_backward(want, few_ctx).x
    for got, wanted in (y, want), (dx, few_dx):
        assert (got.reshape(-1, 2, 100, D).view("u1") == wanted.view("u1")).all()


@pytest.mark.parametrize("interleaved", HOW)
def test_qk_norm_rope_of_extremes(isa, interleaved):
    inf, nan, tiny = np.inf, np.nan, 1e-42
    rows = [[nan, 1, 2, 3], [1, inf, 2, -3], [tiny, -tiny, 0, tiny], [-200, 200, -200, 201], [7, 7, 7, 7], [1e18, 1, 1, 1]]
    x, w = np.array(rows, "f4"), np.float32([1, 0.5, 2, 1.5])
    cos, sin = table(3 + np.arange(6), 2)
    y = ck.qk_norm_rope(x, w, cos, sin, 1e-5, interleaved=interleaved)
    exact, peer = (torch_op(cos, sin, interleaved, 1e-5)(as_torch(x, p), as_torch(w, p)) for p in ("float64", "float32"))
    assert np.isnan(y[0]).all()
    assert (np.isnan(y[1]) == np.isnan(exact[1].numpy())).all()
    for r in range(2, 6):
        assert_parity(y[r], exact[r], peer[r])


def test_qk_norm_rope_of_rows_of_zeros(isa, dtype):
    x, w = np.zeros((2, 3, 32), dtype), np.ones(32, dtype)
    y, ctx = ck.qk_norm_rope_forward(x, w, *table(np.arange(3), 16))
    assert (y == 0).all() and (ck.qk_norm_rope_backward(y, ctx).x == 0).all()


@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8), (3, 4, 0)], ids=str)
def test_qk_norm_rope_of_nothing(isa, dtype, shape):
    x, w = np.ones(shape, dtype), np.ones(shape[2], dtype)
    y, ctx = ck.qk_norm_rope_forward(x, w, *ck.rope_table(np.arange(shape[1]), shape[2]))
    grads = ck.qk_norm_rope_backward(y, ctx)
    assert y.shape == grads.x.shape == shape
    np.testing.assert_array_equal(grads.weight.astype("f4"), np.zeros(shape[2]))


def test_qk_norm_rope_of_no_pairs_is_the_norm(isa, dtype, rng):
    x, w, cos, sin = inputs(rng, 2, 3, 5, 0, 33, dtype)
    assert ck.qk_norm_rope(x, w, cos, sin).tobytes() == ck.rms_norm(x, w).tobytes()


@pytest.mark.parametrize("interleaved", HOW)
def test_qk_norm_rope_takes_strided_views(isa, dtype, rng, interleaved):
    B, H, T, D = 2, 3, 35, 36
    x, dy, out, dx = (spaced(normal(rng, (B, T, H, D), dtype)).transpose(0, 2, 1, 3) for _ in range(4))
    w, (cos, sin) = normal(rng, D, dtype), (spaced(a) for a in table(np.arange(90), 17))
    positions = rng.integers(0, 90, (T, B)).astype("i4")[:, ::-1].T.copy()
    how = {"positions": positions, "interleaved": interleaved}
    y, ctx = ck.qk_norm_rope_forward(x, w, cos, sin, **how, out=out)
    grads = ck.qk_norm_rope_backward(dy, ctx, out=Gradients(x=dx))
    flat = [np.ascontiguousarray(a) for a in (x, cos, sin)]
    want, flat_ctx = ck.qk_norm_rope_forward(flat[0], w, *flat[1:], **how)
    flat_grads = ck.qk_norm_rope_backward(np.ascontiguousarray(dy), flat_ctx)
    for a, b in (y, want), (ctx.rstd, flat_ctx.rstd), *zip(grads, flat_grads, strict=True):
        np.testing.assert_array_equal(a, b)
    assert gaps_untouched(out.transpose(0, 2, 1, 3)) and gaps_untouched(dx.transpose(0, 2, 1, 3))


def test_qk_norm_rope_takes_tensors(dtype, rng):
    x, w, cos, sin = inputs(rng, 1, 2, 5, 4, 8, dtype)
    tensors = [as_torch(a) for a in (x, w, cos, sin)]
    got = ck.qk_norm_rope(*tensors, positions=torch.arange(5))
    assert got.tobytes() == ck.qk_norm_rope(x, w, cos, sin).tobytes()


X, W = np.ones((2, 3, 8), "f4"), np.ones(8, "f4")
COS, SIN = np.ones((3, 4), "f4"), np.ones((3, 4), "f4")
READ_ONLY = np.ones((2, 3, 8), "f4")
READ_ONLY.flags.writeable = False
CTX = ck.qk_norm_rope_forward(X, W, COS, SIN)[1]
REFUSALS = [
    (TypeError, r"qk_norm_rope\(\): 'x' must be float32, float16 or bfloat16, not float64",
     lambda: ck.qk_norm_rope(X.astype("f8"), W, COS, SIN)),
    (TypeError, r"qk_norm_rope\(\): 'weight' must be a NumPy array", lambda: ck.qk_norm_rope(X, None, COS, SIN)),
    (TypeError, r"qk_norm_rope\(\): 'cos' must be float32, not float16",
     lambda: ck.qk_norm_rope(X.astype("f2"), W, COS.astype("f2"), SIN)),
    (TypeError, r"qk_norm_rope\(\): 'eps' must be a number", lambda: ck.qk_norm_rope(X, W, COS, SIN, "small")),
    (TypeError, r"qk_norm_rope\(\): 'interleaved' must be true or false",
     lambda: ck.qk_norm_rope(X, W, COS, SIN, interleaved=np.ones(2))),
    (ValueError, r"qk_norm_rope\(\): 'weight' of shape \(7,\) does not fit \[D\], where D=8",
     lambda: ck.qk_norm_rope(X, W[:7].copy(), COS, SIN)),
    (ValueError, r"qk_norm_rope\(\): 'weight' must be contiguous",
     lambda: ck.qk_norm_rope(X[..., :4], W[::2], COS[:, :2], SIN[:, :2])),
    (ValueError, r"qk_norm_rope\(\): 'x' must be contiguous along its last axis",
     lambda: ck.qk_norm_rope(X[..., ::2], W[:4], COS[:, :2], SIN[:, :2])),
    (ValueError, r"qk_norm_rope\(\): 'cos' has K=5 pairs, and there are only D=8 channels",
     lambda: ck.qk_norm_rope(X, W, np.ones((3, 5), "f4"), np.ones((3, 5), "f4"))),
    (ValueError, r"qk_norm_rope\(\): 'cos' of shape \(2, 4\) does not fit \[T, K\], where T=3",
     lambda: ck.qk_norm_rope(X, W, COS[:2], SIN[:2])),
    (ValueError, r"qk_norm_rope\(\): 'sin' of shape \(3, 3\) does not fit",
     lambda: ck.qk_norm_rope(X, W, COS, SIN[:, :3])),
    (ValueError, r"qk_norm_rope\(\): 'positions' of shape \(3, 3\) does not fit \[T\] or \[B, T\]",
     lambda: ck.qk_norm_rope(X, W, COS, SIN, positions=np.zeros((3, 3), int))),
    (ValueError, r"qk_norm_rope\(\): 'out' of shape \(2, 3, 7\)",
     lambda: ck.qk_norm_rope(X, W, COS, SIN, out=np.empty((2, 3, 7), "f4"))),
    (ValueError, r"qk_norm_rope\(\): 'out' is written, but read-only",
     lambda: ck.qk_norm_rope(X, W, COS, SIN, out=READ_ONLY)),
    (ValueError, r"qk_norm_rope\(\): 'out' is written and overlaps 'x'",
     lambda: (lambda a: ck.qk_norm_rope(a[:2], W, COS, SIN, out=a[1:]))(np.ones((3, 3, 8), "f4"))),
    (ValueError, r"qk_norm_rope_backward\(\): 'out.x' of shape \(2, 3, 7\)",
     lambda: ck.qk_norm_rope_backward(X, CTX, out=Gradients(np.empty((2, 3, 7), "f4")))),
    (TypeError, r"qk_norm_rope_backward\(\): 'out.weight' must be of its weight's dtype, not float16",
     lambda: ck.qk_norm_rope_backward(X, CTX, out=Gradients(weight=np.empty(8, "f2")))),
    (ValueError, r"qk_norm_rope_backward\(\): 'cos' of shape \(3, 4\) does not fit \[T, K\], where T=4",
     lambda: ck.qk_norm_rope_backward(np.ones((2, 4, 8), "f4"), CTX)),
]


@pytest.mark.parametrize("error, text, call", REFUSALS)
def test_qk_norm_rope_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_qk_norm_rope_refuses_a_position_outside_the_table(isa, dtype, bad):
    x, out = X.astype(dtype), np.full(X.shape, 5, dtype)
    positions = np.array([[0, 1, 2], [0, 1, bad]])
    with pytest.raises(IndexError, match=rf"qk_norm_rope\(\): 'positions' holds {bad}, and the table has 3 rows"):
        ck.qk_norm_rope(x, W, COS, SIN, positions=positions, out=out)
    assert (out == 5).all()
    ctx = ck.qk_norm_rope_forward(x, W, COS, SIN)[1]._replace(positions=positions)
    given = Gradients(out, np.full_like(W, 5))
    with pytest.raises(IndexError, match=rf"qk_norm_rope_backward\(\): 'positions' holds {bad}"):
        ck.qk_norm_rope_backward(x, ctx, out=given)
    assert all((g == 5).all() for g in given)


def test_qk_norm_rope_reports_a_lack_of_memory():
    given = Gradients(np.full_like(X, 5), np.full_like(W, 5))
    for n in 1, 2:
        ck._ck.fail_allocation(n)
        with pytest.raises(MemoryError, match="qk_norm_rope_backward"):
            ck.qk_norm_rope_backward(X, CTX, out=given)
        assert all((g == 5).all() for g in given)
