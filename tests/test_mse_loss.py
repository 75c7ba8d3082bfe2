import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.mse_loss import Gradients
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import assert_gradients_match_torch, assert_matches_torch

# Around each vector width, around a block of the sum and a task of it.
SIZES = [(3, c) for c in (1, 7, 8, 9, 15, 16, 17, 31, 33)] + [(1, 1023), (1024,), (5, 205), (2, 3, 577), (3, 11000)]
REDUCTIONS = ["mean", "sum", "none"]
CASES = [(size, "mean") for size in SIZES] + [(size, r) for size in ((3, 33), (5, 205)) for r in ("sum", "none")]


def inputs(rng, dtype, *shape, spread=3.0):
    """Two arrays up to an unreadable page."""
    return [guarded((spread * rng.standard_normal(shape)).astype(dtype)) for _ in range(2)]


def upstream(rng, shape, reduction):
    return guarded(rng.standard_normal(shape).astype("f4")) if reduction == "none" else 1.75


@pytest.mark.parametrize("size, reduction", CASES, ids=str)
def test_mse_loss_matches_torch_and_autograd(isa, dtype, rng, size, reduction):
    x, t = inputs(rng, dtype, *size)
    dy = upstream(rng, size, reduction)
    shape = size if reduction == "none" else ()
    loss, ctx = ck.mse_loss_forward(x, t, reduction=reduction, out=unwritten(shape))
    assert loss.dtype == np.float32

    def in_torch(x, t):
        return F.mse_loss(x, t, reduction=reduction)

    assert_matches_torch(loss, in_torch, x, t)
    dx, = ck.mse_loss_backward(dy, ctx, out=Gradients(unwritten(size, dtype)))
    assert_gradients_match_torch((dx, None), in_torch, (x, t), np.float32(dy))


def test_mse_loss_gradient_matches_differences(isa, rng):
    x, t = inputs(rng, "f4", 3, 33)
    dy = upstream(rng, x.shape, "none")
    dx, = ck.mse_loss_backward(dy, ck.mse_loss_forward(x, t, reduction="none")[1])
    assert_gradient(lambda moved: ck.mse_loss(moved, t, reduction="none"), x, dx, dy, rng)
    dx, = ck.mse_loss_backward(-3.0, ck.mse_loss_forward(x, t)[1])
    assert_gradient(lambda moved: ck.mse_loss(moved, t), x, dx, -3.0, rng)


def test_mse_loss_reductions_are_of_the_same_losses(isa, dtype, rng):
    """PyTorch could be wrong as we are; 7 times 11 elements cannot."""
    x, t = inputs(rng, dtype, 7, 11)
    x[...], t[...] = 3, 1
    assert ck.mse_loss(x, t, reduction="sum") == 4 * 77 and ck.mse_loss(x, t) == 4
    np.testing.assert_array_equal(ck.mse_loss(x, t, reduction="none"), np.full((7, 11), 4, "f4"))
    for reduction, g in ("sum", 4), ("mean", 4 / 77):
        dx, = ck.mse_loss_backward(1.0, ck.mse_loss_forward(x, t, reduction=reduction)[1])
        np.testing.assert_array_equal(dx, np.full((7, 11), g, dtype))


def test_mse_loss_in_place(isa, dtype, rng):
    x, t = inputs(rng, dtype, 7, 333)
    fresh = ck.mse_loss_backward(1.0, ck.mse_loss_forward(x, t)[1]).input
    for chosen in 0, 1:
        pair = [x.copy(), t.copy()]
        ctx = ck.mse_loss_forward(*pair)[1]
        assert ck.mse_loss_backward(1.0, ctx, out=Gradients(pair[chosen])).input is pair[chosen]
        assert pair[chosen].tobytes() == fresh.tobytes() and pair[1 - chosen].tobytes() == (x, t)[1 - chosen].tobytes()


def test_mse_loss_over_its_incoming_gradient(isa, rng):
    x, t = inputs(rng, "f4", 5, 77)
    dy = upstream(rng, x.shape, "none")
    ctx = ck.mse_loss_forward(x, t, reduction="none")[1]
    fresh = ck.mse_loss_backward(dy, ctx).input
    assert ck.mse_loss_backward(dy, ctx, out=Gradients(dy)).input.tobytes() == fresh.tobytes()


def test_mse_loss_bits_do_not_depend_on_threads(isa, dtype, rng):
    x, t = inputs(rng, dtype, 301, 777)

    def everything():
        losses, ctx = ck.mse_loss_forward(x, t)
        each, = ck.mse_loss_backward(losses, ctx)
        return [a.tobytes() for a in (losses, ck.mse_loss(x, t, reduction="sum"), each,
                                      ck.mse_loss(x, t, reduction="none"))]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone


def test_mse_loss_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    x, t = inputs(rng, dtype, 50, 1003)
    bits = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            loss, ctx = ck.mse_loss_forward(x, t)
            bits.add(loss.tobytes() + ck.mse_loss_backward(1.5, ctx).input.tobytes())
    assert len(bits) == 1


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 2**31), turned=st.booleans())
def test_mse_loss_bits_do_not_depend_on_strides(shape, seed, turned):
    rng = np.random.default_rng(seed)
    x, t = (spaced(rng.standard_normal(shape).astype("f4")) for _ in range(2))
    if turned and len(shape) > 2:
        x, t = x.swapaxes(0, 1), t.swapaxes(0, 1)
    for reduction in REDUCTIONS:
        flat = ck.mse_loss(x.copy(), t.copy(), reduction=reduction)
        assert ck.mse_loss(x, t, reduction=reduction).tobytes() == flat.tobytes()
        assert ck.mse_loss(x, t.copy(), reduction=reduction).tobytes() == flat.tobytes()


def test_mse_loss_takes_strided_views(isa, dtype, rng):
    x, t = (spaced(a).transpose(1, 0, 2) for a in inputs(rng, dtype, 6, 5, 33))
    dy = spaced(rng.standard_normal(x.shape).astype("f4"))
    losses, ctx = ck.mse_loss_forward(x, t, reduction="none", out=spaced(np.zeros(x.shape, "f4")))
    dx, = ck.mse_loss_backward(dy, ctx, out=Gradients(spaced(np.zeros(x.shape, dtype))))
    flat, flat_ctx = ck.mse_loss_forward(x.copy(), t.copy(), reduction="none")
    np.testing.assert_array_equal(losses, flat)
    np.testing.assert_array_equal(dx, ck.mse_loss_backward(dy.copy(), flat_ctx).input)
    assert gaps_untouched(losses) and gaps_untouched(dx)


def test_mse_loss_of_extremes(isa, dtype):
    """NaN and infinities stay where they are; a difference that overflows when squared is infinite."""
    inf, nan = np.inf, np.nan
    x, t = np.array([[inf, -inf, inf, nan, 1, 3e4]], dtype), np.array([[1, inf, inf, 1, nan, -3e4]], dtype)
    with np.errstate(all="ignore"):
        exact = (x.astype("f4") - t.astype("f4")) ** 2
        np.testing.assert_array_equal(ck.mse_loss(x, t, reduction="none"), exact)
    assert np.isnan(ck.mse_loss(x, t)) and ck.mse_loss(x[:, :1], t[:, :1]) == inf
    if dtype == np.float32:
        assert ck.mse_loss(np.full((1, 2), 3e19, "f4"), np.zeros((1, 2), "f4")) == inf


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,), (2, 0, 5)], ids=str)
def test_mse_loss_of_nothing(isa, shape):
    x = np.ones(shape, "f4")
    loss, ctx = ck.mse_loss_forward(x, x)
    assert np.isnan(loss) and ck.mse_loss_backward(1.0, ctx).input.shape == shape  # 0 / 0, as in PyTorch
    assert ck.mse_loss(x, x, reduction="sum") == 0 and ck.mse_loss(x, x, reduction="none").shape == shape


def test_mse_loss_takes_tensors(rng):
    x, t = inputs(rng, "f4", 4, 9)
    assert ck.mse_loss(torch.tensor(x), torch.tensor(t)) == ck.mse_loss(x, t)


X = np.ones((2, 8), "f4")
MEAN, NONE = (lambda: ck.mse_loss_forward(X, X)[1]), (lambda: ck.mse_loss_forward(X, X, reduction="none")[1])


@pytest.mark.parametrize("error, text, call", [
    (TypeError, r"mse_loss\(\): 'input' must be .*not float64", lambda: ck.mse_loss(X.astype("f8"), X)),
    (TypeError, r"mse_loss\(\): 'target' must be float32, not float16", lambda: ck.mse_loss(X, X.astype("f2"))),
    (TypeError, r"mse_loss\(\): 'input' must be a NumPy array", lambda: ck.mse_loss([1.0], X)),
    (ValueError, r"mse_loss\(\): 'target' of shape \(1, 8\) does not fit", lambda: ck.mse_loss(X, X[:1])),
    (ValueError, r"mse_loss\(\): 'input' of shape \(\) does not fit", lambda: ck.mse_loss(X[0, 0, ...], X)),
    (ValueError, r"mse_loss\(\): 'input' must be contiguous along its last axis", lambda: ck.mse_loss(X[:, ::2], X)),
    (ValueError, r"mse_loss\(\): 'reduction' must be 'none', 'mean' or 'sum', not 'batchmean'",
     lambda: ck.mse_loss(X, X, reduction="batchmean")),
    (ValueError, r"mse_loss\(\): 'reduction' must be 'none', 'mean' or 'sum', not \['mean'\]",
     lambda: ck.mse_loss(X, X, reduction=["mean"])),
    (ValueError, r"mse_loss\(\): 'out' of shape \(1,\) does not fit \[\]", lambda: ck.mse_loss(X, X, out=X[0, :1])),
    (TypeError, r"mse_loss\(\): 'out' must be float32", lambda: ck.mse_loss(X, X, out=np.zeros((), "f8"))),
    (ValueError, r"mse_loss\(\): 'out' is written and overlaps",
     lambda: ck.mse_loss(X, X, reduction="none", out=X)),
    (ValueError, r"mse_loss_backward\(\): '(dy|input)' of shape", lambda: ck.mse_loss_backward(X[:1], NONE())),
    (TypeError, r"mse_loss_backward\(\): 'dy' must be a number", lambda: ck.mse_loss_backward(None, NONE())),
    (TypeError, r"mse_loss_backward\(\): 'dy' must be a number", lambda: ck.mse_loss_backward("1", MEAN())),
    (TypeError, r"mse_loss_backward\(\): 'dy' must be a NumPy array", lambda: ck.mse_loss_backward(1.0, NONE())),
    (ValueError, r"mse_loss_backward\(\): 'out.input' is written and overlaps",
     lambda: (lambda a: ck.mse_loss_backward(1.0, ck.mse_loss_forward(a[:2], X)[1], out=Gradients(a[1:])))(
         np.ones((3, 8), "f4"))),
])
def test_mse_loss_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()
    assert (X == 1).all()


def test_mse_loss_reports_a_lack_of_memory():
    x = np.ones((70, 40000), "f4")  # more tasks than fit the call's own memory
    out = np.full((), 7, "f4")
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match="mse_loss"):
        ck.mse_loss(x, x, out=out)
    assert out == 7
