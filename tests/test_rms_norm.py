import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.rms_norm import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_gradients_match_torch, assert_matches_torch

# R, C: around each vector width, a block of backward and one more, a row of a real model.
SIZES = [(5, c) for c in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 576)] + [(32, 40), (33, 40), (100, 24), (3, 4096), (2, 9001)]


def inputs(rng, R, C, dtype=np.float32, weights=None):
    """Rows of differing size and mean, and weights away from one, up to unreadable pages."""
    x = rng.standard_normal((R, C)) * rng.uniform(0.5, 2, (R, 1)) + rng.standard_normal()
    return guarded(x.astype(dtype)), guarded(rng.uniform(0.5, 1.5, C).astype(weights or dtype))


def gradient(rng, shape, dtype=np.float32):
    return guarded(rng.standard_normal(shape).astype(dtype))


def torch_op(eps, offset=0.0):
    return lambda x, w: F.rms_norm(x, w.shape, offset + w, eps)


def largest_term(x, w, dy, eps, offset=0.0):
    """Of the two that cancel in dx."""
    rstd = 1 / np.sqrt(np.mean(x.astype("f8") ** 2, -1, keepdims=True) + eps)
    return np.abs(rstd * dy.astype("f8") * (offset + w.astype("f8")))


def assert_backward(dx, dw, x, w, dy, eps, offset=0.0):
    terms, op = largest_term(x, w, dy, eps, offset), torch_op(eps, offset)
    assert_gradients_match_torch((dx, None), op, (x, w), dy, terms=terms, allow_constant=x.shape[-1] == 1)
    assert_gradients_match_torch((None, dw), op, (x, w), dy)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rms_norm_matches_torch(isa, dtype, rng, size, offset):
    x, w = inputs(rng, *size, dtype)
    y = ck.rms_norm(x, w, 1e-5, offset=offset, out=unwritten(size, dtype))
    assert_matches_torch(y, torch_op(1e-5, offset), x, w, trivial={"x": x}, allow_constant=size[-1] == 1)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rms_norm_backward_matches_autograd(isa, dtype, rng, size, offset):
    x, w = inputs(rng, *size, dtype)
    dy = gradient(rng, size, dtype)
    ctx = ck.rms_norm_forward(x, w, 1e-5, offset=offset)[1]
    dx, dw = ck.rms_norm_backward(dy, ctx, out=Gradients(unwritten(size, dtype), unwritten(size[-1:], dtype)))
    assert_backward(dx, dw, x, w, dy, 1e-5, offset)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_takes_a_float32_weight_beside_16_bits(isa, dtype, rng, offset):
    x, w = inputs(rng, 40, 33, dtype, np.float32)
    dy = gradient(rng, x.shape, dtype)
    y, ctx = ck.rms_norm_forward(x, w, 1e-5, offset=offset)
    assert_matches_torch(y, torch_op(1e-5, offset), x, w)
    grads = ck.rms_norm_backward(dy, ctx)
    assert [g.dtype for g in grads] == [dtype, np.float32]
    assert_backward(*grads, x, w, dy, 1e-5, offset)


def test_rms_norm_gradient_matches_differences(isa, rng):
    x, w = inputs(rng, 3, 33)
    dy = gradient(rng, x.shape)
    dx, dw = ck.rms_norm_backward(dy, ck.rms_norm_forward(x, w, 0.1)[1])
    assert_gradient(lambda moved: ck.rms_norm(moved, w, 0.1), x, dx, dy, rng)
    assert_gradient(lambda moved: ck.rms_norm(x, moved, 0.1), w, dw, dy, rng)


def test_rms_norm_without_weight(isa, dtype, rng):
    x, _ = inputs(rng, 4, 33, dtype)
    dy, ones = gradient(rng, x.shape, dtype), np.ones(33, dtype)
    y, ctx = ck.rms_norm_forward(x)
    assert y.tobytes() == ck.rms_norm(x, ones).tobytes()
    grads = ck.rms_norm_backward(dy, ctx)
    assert grads.weight is None
    assert grads.x.tobytes() == ck.rms_norm_backward(dy, ck.rms_norm_forward(x, ones)[1]).x.tobytes()


def test_rms_norm_accumulates_the_weight_gradient(isa, dtype, rng):
    x, w = inputs(rng, 40, 33, dtype)
    dy = gradient(rng, x.shape, dtype)
    ctx = ck.rms_norm_forward(x, w)[1]
    fresh = ck.rms_norm_backward(dy, ctx)
    wide = ck.rms_norm_backward(dy, ctx._replace(weight=w.astype("f4"))).weight
    given = Gradients(weight=np.full_like(w, 1000))
    added = ck.rms_norm_backward(dy, ctx, out=given, accumulate=True)
    assert added.weight is given.weight
    total = 1000 + wide.astype("f8")  # of a sum that was rounded to float32 before
    half = np.array([abs(float(np.nextafter(t, dtype.type(np.inf)) - t)) for t in total.astype(dtype)]) / 2
    assert_parity(added.weight, total, bound=half + np.spacing(np.abs(wide)).astype("f8"))
    np.testing.assert_array_equal(added.x, fresh.x)
    overwritten = ck.rms_norm_backward(dy, ctx, out=given)
    assert overwritten.weight.tobytes() == fresh.weight.tobytes()


def test_rms_norm_in_place(isa, dtype, rng):
    x, w = inputs(rng, 35, 33, dtype)
    dy = gradient(rng, x.shape, dtype)
    y, ctx = ck.rms_norm_forward(x, w)
    dx = ck.rms_norm_backward(dy, ctx).x
    assert ck.rms_norm_backward(dy, ctx, out=Gradients(x=dy)).x is dy
    assert dy.tobytes() == dx.tobytes()
    assert ck.rms_norm(x, w, out=x) is x
    assert x.tobytes() == y.tobytes()


def everything(x, w, dy):
    y, ctx = ck.rms_norm_forward(x, w)
    return [a.tobytes() for a in (y, *ck.rms_norm_backward(dy, ctx))]


@pytest.mark.parametrize("C", [333, 5000])
def test_rms_norm_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, C):
    x, w = inputs(rng, 200, C, dtype)
    dy = gradient(rng, x.shape, dtype)
    ck.set_num_threads(1)
    alone = everything(x, w, dy)
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(x, w, dy) == alone
    one, row = everything(x[41:42], w, dy[41:42]), x.itemsize * C
    assert [a[41 * row : 42 * row] for a in alone[:2]] == one[:2]


def test_rms_norm_of_rows_that_are_cut(isa, dtype, rng):
    """Two of three pieces and eighteen slices each (ops/norm_rows.h)."""
    test_rms_norm_matches_torch(isa, dtype, rng, (2, 140001), 1.0)
    test_rms_norm_backward_matches_autograd(isa, dtype, rng, (2, 140001), 1.0)


def test_rms_norm_bits_of_rows_that_are_cut(isa, dtype, rng):
    """Three of 90000 are cut into pieces and slices, two are not."""
    x, w = inputs(rng, 3, 90000, dtype)
    dy = gradient(rng, x.shape, dtype)
    ck.set_num_threads(3)
    three, two = everything(x, w, dy), everything(x[:2], w, dy[:2])
    ck.set_num_threads(1)
    assert everything(x, w, dy) == three
    for i in (0, 1):
        assert len(three[i]) == x.nbytes and three[i].startswith(two[i])


def test_rms_norm_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    for C in 333, 4500:
        x, w = inputs(rng, 50, C, dtype)
        dy, bits = gradient(rng, x.shape, dtype), set()
        for isa in {"avx2", "avx512"} & set(ck.isas()):
            with ck.use(isa):
                bits.add(b"".join(everything(x, w, dy)))
        assert len(bits) == 1


@pytest.mark.parametrize("C", [1000, 4096])
def test_rms_norm_bits_are_the_same_past_the_caches(isa, dtype, rng, C):
    """The largest calls store otherwise; rows of 1000 start anywhere in a line."""
    R = 40 if isa in ("reference", "baseline") else (40 << 20) // (2 * dtype.itemsize * C) // 20 * 20
    x, w = inputs(rng, 20, C, dtype)
    x = np.tile(x, (R // 20, 1))
    y, ctx = ck.rms_norm_forward(x, w)
    few, few_ctx = ck.rms_norm_forward(x[:20], w)
    for got, want in (y, few), (ck.rms_norm_backward(y, ctx).x, ck.rms_norm_backward(few, few_ctx).x):
        assert (got.reshape(-1, 20, C).view("u1") == want.view("u1")).all()


def test_rms_norm_rounds_once(isa, dtype, rng):
    """The rule allows three times PyTorch's error, which hides a rounding to 16 bits before the weight."""
    x, w = inputs(rng, 20, 333, dtype)
    rows, weights = x.astype("f8"), w.astype("f8")
    normed = rows / np.sqrt(np.mean(rows**2, -1, keepdims=True) + 1e-5)
    exact = normed * weights
    info = torch.finfo(as_torch(x).dtype)
    half = info.eps / 2 * np.maximum(2.0 ** np.floor(np.log2(np.abs(exact))), info.smallest_normal)
    bound = half * (1 + 2.0**-6) + (333 / 32 + 8) * 2.0**-24 * np.abs(exact)
    assert_parity(ck.rms_norm(x, w, 1e-5), exact, bound=bound)
    if dtype != np.float32:
        with pytest.raises(AssertionError):
            assert_parity((normed.astype(dtype).astype("f8") * weights).astype(dtype), exact, bound=bound)


def test_rms_norm_of_a_row_of_millions_is_as_exact_as_a_short_one(rng):
    x = rng.standard_normal((1, 3_000_001)).astype("f4") + np.float32(0.5)
    ctx = ck.rms_norm_forward(x)[1]
    exact = 1 / np.sqrt(np.mean(x.astype("f8") ** 2, -1) + 1e-6)
    assert_parity(ctx.rstd, exact, bound=(4096 / 32 + 6) * 2.0**-24 * exact, allow_constant=True)


def test_rms_norm_sees_eps(isa, dtype, rng):
    _, w = inputs(rng, 3, 64, dtype)
    x = (gradient(rng, (3, 64)) * 3e-3).astype(dtype)  # its mean square is about eps
    dy = gradient(rng, x.shape, dtype)
    y, ctx = ck.rms_norm_forward(x, w, 1e-5)
    assert_matches_torch(y, torch_op(1e-5), x, w)
    assert_backward(*ck.rms_norm_backward(dy, ctx), x, w, dy, 1e-5)
    with pytest.raises(AssertionError):
        assert_matches_torch(ck.rms_norm(x, w, 1e-4), torch_op(1e-5), x, w)


def test_rms_norm_of_extremes(isa):
    inf, nan, tiny, low = np.inf, np.nan, 1e-42, -200.0
    x = np.array([[1, nan, 2, 3], [1, inf, 2, -3], [tiny, -tiny, 0, tiny], [low, 200, low, 200], [7, 7, 7, 7],
                  [0, 0, 0, 0], [1e19, 1, 1, 1]], "f4")
    y = ck.rms_norm(x, np.ones(4, "f4"), 1e-5)
    exact = F.rms_norm(torch.tensor(x).double(), (4,), None, 1e-5)
    assert_parity(y[2:], exact[2:], F.rms_norm(torch.tensor(x), (4,), None, 1e-5)[2:])
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], np.array([0, nan, 0, -0.0], "f4"))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)], ids=str)
def test_rms_norm_of_nothing(isa, dtype, shape):
    x, w = np.ones(shape, dtype), np.ones(shape[1], dtype)
    y, ctx = ck.rms_norm_forward(x, w)
    dx, dw = ck.rms_norm_backward(x, ctx)
    assert (y.shape, dx.shape, dw.shape) == (shape, shape, w.shape)
    np.testing.assert_array_equal(dw, np.zeros_like(w))


def test_rms_norm_takes_strided_views(isa, dtype, rng):
    whole, w = inputs(rng, 6 * 5, 33, dtype)
    x = spaced(whole.reshape(6, 5, 33)).transpose(1, 0, 2)
    dy = spaced(gradient(rng, (5, 6, 33), dtype))
    y, ctx = ck.rms_norm_forward(x, w, out=spaced(np.zeros(x.shape, dtype)))
    dx, dw = ck.rms_norm_backward(dy, ctx, out=Gradients(x=spaced(np.zeros(x.shape, dtype))))
    flat, flat_ctx = ck.rms_norm_forward(x.copy(), w)
    flat_dx, flat_dw = ck.rms_norm_backward(dy.copy(), flat_ctx)
    for got, want in (y, flat), (dx, flat_dx), (dw, flat_dw):
        np.testing.assert_array_equal(got, want)
    assert gaps_untouched(y) and gaps_untouched(dx)


def test_rms_norm_takes_tensors(dtype, rng):
    x, w = inputs(rng, 3, 5, dtype)
    assert ck.rms_norm(as_torch(x), as_torch(w)).tobytes() == ck.rms_norm(x, w).tobytes()


X, W = np.ones((2, 8), "f4"), np.ones(8, "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize("error, text, call", [
    (TypeError, r"rms_norm\(\): 'x' must be float32, float16 or bfloat16, not float64", lambda: ck.rms_norm(X.astype("f8"), W)),
    (TypeError, r"rms_norm\(\): 'x' must be a NumPy array .* not <class 'list'>", lambda: ck.rms_norm([1.0], W)),
    (TypeError, r"rms_norm\(\): 'eps' must be a number", lambda: ck.rms_norm(X, W, "small")),
    (ValueError, r"rms_norm\(\): 'weight' of shape \(7,\) does not fit \[C\], where C=8",
     lambda: ck.rms_norm(X, W[:7].copy())),
    (ValueError, r"rms_norm\(\): 'x' must be contiguous along its last axis", lambda: ck.rms_norm(X[:, ::2], W[:4])),
    (ValueError, r"rms_norm\(\): 'weight' must be contiguous", lambda: ck.rms_norm(X[:, :4], W[::2])),
    (ValueError, r"rms_norm\(\): 'out' of shape \(2, 7\) does not fit",
     lambda: ck.rms_norm(X, W, out=np.empty((2, 7), "f4"))),
    (ValueError, r"rms_norm\(\): 'out' is written, but read-only", lambda: ck.rms_norm(X, W, out=READ_ONLY)),
    (ValueError, r"rms_norm\(\): 'out' is written and overlaps 'x'",
     lambda: (lambda a: ck.rms_norm(a[:2], W, out=a[1:]))(np.ones((3, 8), "f4"))),
    (ValueError, r"rms_norm_backward\(\): 'dy' of shape \(3, 8\)|rms_norm_backward\(\): 'x' of shape \(2, 8\)",
     lambda: ck.rms_norm_backward(np.ones((3, 8), "f4"), ck.rms_norm_forward(X, W)[1])),
    (ValueError, r"rms_norm_backward\(\): 'out.weight' of shape \(7,\) does not fit \[C\], where C=8",
     lambda: ck.rms_norm_backward(X, ck.rms_norm_forward(X, W)[1], out=Gradients(weight=np.empty(7, "f4")))),
])
def test_rms_norm_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


def test_rms_norm_reports_a_lack_of_memory(rng):
    x, w = inputs(rng, 40, 33)
    ctx = ck.rms_norm_forward(x, w)[1]
    given = Gradients(np.full_like(x, 5), np.full_like(w, 5))
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match="rms_norm_backward"):
        ck.rms_norm_backward(x, ctx, out=given)
    assert (given.x == 5).all() and (given.weight == 5).all()
