import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.rms_norm import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten

# R, C: around each vector width, a block of backward and one more, a row of a real model.
SIZES = [(5, c) for c in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 576)] + [(32, 40), (33, 40), (100, 24), (3, 4096)]


def inputs(rng, R, C):
    """Rows of differing size and mean, and weights away from one, up to unreadable pages."""
    x = rng.standard_normal((R, C)) * rng.uniform(0.5, 2, (R, 1)) + rng.standard_normal()
    return guarded(x.astype("f4")), guarded(rng.uniform(0.5, 1.5, C).astype("f4"))


def gradient(rng, shape):
    return guarded(rng.standard_normal(shape).astype("f4"))


def forward_at(precision, x, w, eps, offset=0.0):
    x, w = (torch.tensor(a, dtype=precision) for a in (x, w))
    return F.rms_norm(x, w.shape, offset + w, eps)


def backward_at(precision, x, w, dy, eps, offset=0.0):
    x, w, dy = (torch.tensor(a, dtype=precision) for a in (x, w, dy))
    x.requires_grad_(), w.requires_grad_()
    return torch.autograd.grad(F.rms_norm(x, w.shape, offset + w, eps), (x, w), dy)


def largest_term(x, w, dy, eps, offset=0.0):
    """Of the two that cancel in dx."""
    rstd = 1 / np.sqrt(np.mean(x.astype("f8") ** 2, -1, keepdims=True) + eps)
    return np.abs(rstd * dy * (offset + w))


def assert_backward(dx, dw, x, w, dy, eps, offset=0.0):
    (ex, ew), (px, pw) = (backward_at(p, x, w, dy, eps, offset) for p in (torch.float64, torch.float32))
    assert_parity(dx, ex, px, terms=largest_term(x, w, dy, eps, offset), allow_constant=x.shape[-1] == 1)
    assert_parity(dw, ew, pw)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rms_norm_matches_torch(isa, rng, size, offset):
    x, w = inputs(rng, *size)
    y = ck.rms_norm(x, w, 1e-5, offset=offset, out=unwritten(size))
    assert_parity(y, *(forward_at(p, x, w, 1e-5, offset) for p in (torch.float64, torch.float32)), trivial=x)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rms_norm_backward_matches_autograd(isa, rng, size, offset):
    x, w = inputs(rng, *size)
    dy = gradient(rng, size)
    ctx = ck.rms_norm_forward(x, w, 1e-5, offset=offset)[1]
    dx, dw = ck.rms_norm_backward(dy, ctx, out=Gradients(unwritten(size), unwritten(size[-1:])))
    assert_backward(dx, dw, x, w, dy, 1e-5, offset)


def test_rms_norm_gradient_matches_differences(isa, rng):
    x, w = inputs(rng, 3, 33)
    dy = gradient(rng, x.shape)
    dx, dw = ck.rms_norm_backward(dy, ck.rms_norm_forward(x, w, 0.1)[1])
    assert_gradient(lambda moved: ck.rms_norm(moved, w, 0.1), x, dx, dy, rng)
    assert_gradient(lambda moved: ck.rms_norm(x, moved, 0.1), w, dw, dy, rng)


def test_rms_norm_without_weight(isa, rng):
    x, _ = inputs(rng, 4, 33)
    dy, ones = gradient(rng, x.shape), np.ones(33, "f4")
    y, ctx = ck.rms_norm_forward(x)
    assert y.tobytes() == ck.rms_norm(x, ones).tobytes()
    grads = ck.rms_norm_backward(dy, ctx)
    assert grads.weight is None
    assert grads.x.tobytes() == ck.rms_norm_backward(dy, ck.rms_norm_forward(x, ones)[1]).x.tobytes()


def test_rms_norm_accumulates_the_weight_gradient(isa, rng):
    x, w = inputs(rng, 40, 33)
    dy = gradient(rng, x.shape)
    ctx = ck.rms_norm_forward(x, w)[1]
    fresh = ck.rms_norm_backward(dy, ctx)
    given = Gradients(weight=np.full_like(w, 1000))
    added = ck.rms_norm_backward(dy, ctx, out=given, accumulate=True)
    assert added.weight is given.weight
    wanted = (1000 + fresh.weight.astype("f8")).astype("f4")  # of a sum that has been rounded before
    np.testing.assert_array_max_ulp(added.weight, wanted, 1)
    np.testing.assert_array_equal(added.x, fresh.x)
    overwritten = ck.rms_norm_backward(dy, ctx, out=given)
    assert overwritten.weight.tobytes() == fresh.weight.tobytes()


def test_rms_norm_in_place(isa, rng):
    x, w = inputs(rng, 35, 33)
    dy = gradient(rng, x.shape)
    y, ctx = ck.rms_norm_forward(x, w)
    dx = ck.rms_norm_backward(dy, ctx).x
    assert ck.rms_norm_backward(dy, ctx, out=Gradients(x=dy)).x is dy
    assert dy.tobytes() == dx.tobytes()
    assert ck.rms_norm(x, w, out=x) is x
    assert x.tobytes() == y.tobytes()


def test_rms_norm_bits_do_not_depend_on_threads_or_batch(isa, rng):
    x, w = inputs(rng, 1000, 333)
    dy = gradient(rng, x.shape)

    def everything():
        y, ctx = ck.rms_norm_forward(x, w)
        return [a.tobytes() for a in (y, *ck.rms_norm_backward(dy, ctx))]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    y, ctx = ck.rms_norm_forward(x[417:418], w)
    assert y.tobytes() == alone[0][417 * 333 * 4 : 418 * 333 * 4]
    assert ck.rms_norm_backward(dy[417:418], ctx).x.tobytes() == alone[1][417 * 333 * 4 : 418 * 333 * 4]


def test_rms_norm_bits_are_the_same_on_avx2_and_avx512(rng):
    x, w = inputs(rng, 50, 333)
    dy, bits = gradient(rng, x.shape), set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            y, ctx = ck.rms_norm_forward(x, w)
            bits.add(b"".join(a.tobytes() for a in (y, *ck.rms_norm_backward(dy, ctx))))
    assert len(bits) == 1


def test_rms_norm_sees_eps(isa, rng):
    x, w = inputs(rng, 3, 64)
    dy = gradient(rng, x.shape)
    x *= np.float32(3e-3)  # its mean square is about eps
    exact, peer = (forward_at(p, x, w, 1e-5) for p in (torch.float64, torch.float32))
    y, ctx = ck.rms_norm_forward(x, w, 1e-5)
    assert_parity(y, exact, peer)
    assert_backward(*ck.rms_norm_backward(dy, ctx), x, w, dy, 1e-5)
    with pytest.raises(AssertionError):
        assert_parity(ck.rms_norm(x, w, 1e-4), exact, peer)


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
def test_rms_norm_of_nothing(isa, shape):
    x, w = np.ones(shape, "f4"), np.ones(shape[1], "f4")
    y, ctx = ck.rms_norm_forward(x, w)
    dx, dw = ck.rms_norm_backward(x, ctx)
    assert (y.shape, dx.shape, dw.shape) == (shape, shape, w.shape)
    np.testing.assert_array_equal(dw, np.zeros_like(w))


def test_rms_norm_takes_strided_views(isa, rng):
    whole, w = inputs(rng, 6 * 5, 33)
    x = spaced(whole.reshape(6, 5, 33)).transpose(1, 0, 2)
    dy = spaced(gradient(rng, (5, 6, 33)))
    y, ctx = ck.rms_norm_forward(x, w, out=spaced(np.zeros(x.shape, "f4")))
    dx, dw = ck.rms_norm_backward(dy, ctx, out=Gradients(x=spaced(np.zeros(x.shape, "f4"))))
    flat, flat_ctx = ck.rms_norm_forward(x.copy(), w)
    flat_dx, flat_dw = ck.rms_norm_backward(dy.copy(), flat_ctx)
    for got, want in (y, flat), (dx, flat_dx), (dw, flat_dw):
        np.testing.assert_array_equal(got, want)
    assert gaps_untouched(y) and gaps_untouched(dx)


def test_rms_norm_takes_tensors(rng):
    x, w = inputs(rng, 3, 5)
    np.testing.assert_array_equal(ck.rms_norm(torch.tensor(x), torch.tensor(w)), ck.rms_norm(x, w))


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
