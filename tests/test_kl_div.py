import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.kl_div import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_gradients_match_torch, assert_matches_torch

# Around each vector width, around a block of the sum and a task of it.
SIZES = [(3, c) for c in (1, 7, 8, 9, 15, 16, 17, 31, 33)] + [(1, 1023), (1024,), (5, 205), (2, 3, 577), (3, 11000)]
REDUCTIONS = ["mean", "sum", "none", "batchmean"]
CASES = [(size, "batchmean") for size in SIZES] + [(size, r) for size in ((3, 33), (5, 205)) for r in REDUCTIONS[:3]]


def inputs(rng, dtype, *shape, log_target=False):
    """Logarithms of probabilities, and probabilities of which one is 0 (or their logarithms), up to an unreadable page."""
    x, t = (np.asarray(ck.log_softmax((2 * rng.standard_normal(shape)).astype("f4"))) for _ in range(2))
    if not log_target:
        t = np.exp(t)
        if t.size > 1:
            t.flat[rng.integers(t.size)] = 0
    return [guarded(a.astype(dtype)) for a in (x, t)]


def upstream(rng, shape, reduction):
    return guarded(rng.standard_normal(shape).astype("f4")) if reduction == "none" else 1.75


def terms(x, t, reduction, log_target):
    """Of those that cancel in a loss, the largest: p log p and p x, summed as the losses are."""
    x, t = x.astype("f8"), t.astype("f8")
    p, log_p = (np.exp(t), t) if log_target else (t, np.log(np.where(t == 0, 1, t)))
    each = np.maximum(np.abs(p * log_p), np.abs(p * x))
    return {"none": each.max, "sum": each.sum, "mean": each.mean, "batchmean": lambda: each.sum() / len(x)}[reduction]()


@pytest.mark.parametrize("log_target", [False, True], ids=["target", "log_target"])
@pytest.mark.parametrize("size, reduction", CASES, ids=str)
def test_kl_div_matches_torch_and_autograd(isa, dtype, rng, size, reduction, log_target):
    x, t = inputs(rng, dtype, *size, log_target=log_target)
    if size[-1] == 1:
        x[...] -= 1  # else all is log 1
    dy = upstream(rng, size, reduction)
    shape = size if reduction == "none" else ()
    loss, ctx = ck.kl_div_forward(x, t, reduction=reduction, log_target=log_target, out=unwritten(shape))
    assert loss.dtype == np.float32

    def in_torch(x, t):
        return F.kl_div(x, t, reduction=reduction, log_target=log_target)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of PyTorch, that "mean" is not what one may think
        assert_matches_torch(loss, in_torch, x, t, terms=terms(x, t, reduction, log_target), allow_constant=x.size < 4)
        dx, = ck.kl_div_backward(dy, ctx, out=Gradients(unwritten(size, dtype)))
        assert_gradients_match_torch((dx, None), in_torch, (x, t), np.float32(dy), allow_constant=size[-1] == 1)


@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div_gradient_matches_differences(isa, rng, log_target):
    x, t = inputs(rng, "f4", 3, 33, log_target=log_target)
    dy = upstream(rng, x.shape, "none")
    for reduction, d in ("none", dy), ("batchmean", -3.0):
        options = {"reduction": reduction, "log_target": log_target}
        dx, = ck.kl_div_backward(d, ck.kl_div_forward(x, t, **options)[1])
        assert_gradient(lambda moved: ck.kl_div(moved, t, **options), x, dx, d, rng)  # noqa: B023


def test_kl_div_reductions_are_of_the_same_losses(isa, dtype):
    """PyTorch could be wrong as we are; a target of 1 and an input of -4 cannot."""
    x, t = np.full((7, 11), -4, dtype), np.ones((7, 11), dtype)
    expected = {"none": np.full((7, 11), 4), "sum": 4 * 77, "mean": 4, "batchmean": 44}
    gradient = {"sum": -1, "mean": -1 / 77, "batchmean": -1 / 7}
    for log_target, target in (False, t), (True, np.zeros_like(t)):
        for reduction, loss in expected.items():
            got, ctx = ck.kl_div_forward(x, target, reduction=reduction, log_target=log_target)
            np.testing.assert_array_equal(got, np.asarray(loss, "f4"))
            if reduction in gradient:
                dx, = ck.kl_div_backward(1.0, ctx)
                np.testing.assert_array_equal(dx, np.full((7, 11), gradient[reduction]).astype("f4").astype(dtype))


def test_kl_div_in_place(isa, dtype, rng):
    x, t = inputs(rng, dtype, 7, 333)
    ctx = ck.kl_div_forward(x, t)[1]
    fresh = ck.kl_div_backward(1.0, ctx).input
    assert ck.kl_div_backward(1.0, ctx, out=Gradients(t)).input is t
    assert t.tobytes() == fresh.tobytes()


def test_kl_div_over_its_incoming_gradient(isa, rng):
    x, t = inputs(rng, "f4", 5, 77)
    dy = upstream(rng, x.shape, "none")
    ctx = ck.kl_div_forward(x, t, reduction="none")[1]
    fresh = ck.kl_div_backward(dy, ctx).input
    assert ck.kl_div_backward(dy, ctx, out=Gradients(dy)).input.tobytes() == fresh.tobytes()


def test_kl_div_bits_do_not_depend_on_threads(isa, dtype, rng):
    x, t = inputs(rng, dtype, 301, 777)

    def everything():
        losses, ctx = ck.kl_div_forward(x, t)
        each, = ck.kl_div_backward(losses, ctx)
        return [a.tobytes() for a in (losses, ck.kl_div(x, t, reduction="sum"), each,
                                      ck.kl_div(x, t, reduction="none"))]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone


def test_kl_div_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    x, t = inputs(rng, dtype, 50, 1003)
    bits = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            loss, ctx = ck.kl_div_forward(x, t)
            bits.add(loss.tobytes() + ck.kl_div_backward(1.5, ctx).input.tobytes())
    assert len(bits) == 1


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 2**31), turned=st.booleans())
def test_kl_div_bits_do_not_depend_on_strides(shape, seed, turned):
    rng = np.random.default_rng(seed)
    x, t = (spaced(rng.standard_normal(shape).astype("f4")) for _ in range(2))
    if turned and len(shape) > 2:
        x, t = x.swapaxes(0, 1), t.swapaxes(0, 1)
    for reduction in REDUCTIONS:
        flat = ck.kl_div(x.copy(), t.copy(), reduction=reduction)
        assert ck.kl_div(x, t, reduction=reduction).tobytes() == flat.tobytes()
        assert ck.kl_div(x, t.copy(), reduction=reduction).tobytes() == flat.tobytes()


def test_kl_div_takes_strided_views(isa, dtype, rng):
    x, t = (spaced(a).transpose(1, 0, 2) for a in inputs(rng, dtype, 6, 5, 33))
    dy = spaced(rng.standard_normal(x.shape).astype("f4"))
    losses, ctx = ck.kl_div_forward(x, t, reduction="none", out=spaced(np.zeros(x.shape, "f4")))
    dx, = ck.kl_div_backward(dy, ctx, out=Gradients(spaced(np.zeros(x.shape, dtype))))
    flat, flat_ctx = ck.kl_div_forward(x.copy(), t.copy(), reduction="none")
    np.testing.assert_array_equal(losses, flat)
    np.testing.assert_array_equal(dx, ck.kl_div_backward(dy.copy(), flat_ctx).input)
    assert gaps_untouched(losses) and gaps_untouched(dx)


@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div_of_extremes(isa, dtype, log_target):
    """NaN and infinities where PyTorch has them."""
    inf, nan = np.inf, np.nan
    t = np.array([[0, 0, 0, 0, -0.0, -1, nan, inf, inf, 1, 1e-4, -inf, -200]], dtype)
    x = np.array([[-1, 0, -inf, nan, -3, -1, -1, -1, 1, -inf, -200, -2, 7]], dtype)
    got = ck.kl_div(x, t, reduction="none", log_target=log_target)
    in_torch = F.kl_div(as_torch(x, "float32"), as_torch(t, "float32"), reduction="none", log_target=log_target).numpy()
    for what in np.isnan, np.isposinf, np.isneginf:
        np.testing.assert_array_equal(what(got), what(in_torch))
    finite = np.isfinite(in_torch)
    assert_parity(got[finite], F.kl_div(as_torch(x, "float64"), as_torch(t, "float64"), reduction="none",
                                        log_target=log_target).numpy()[finite], in_torch[finite])


def test_kl_div_of_a_distribution_with_itself_is_0(isa, rng):
    t = inputs(rng, "f4", 5, 97, log_target=True)[1]
    np.testing.assert_array_equal(ck.kl_div(t, t, log_target=True), 0)

    def in_torch(x, t):
        return F.kl_div(x, t, reduction="sum")

    p = np.exp(t)
    assert_matches_torch(ck.kl_div(t, p, reduction="sum"), in_torch, t, p, terms=np.abs(t * p).sum(), allow_constant=True)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,), (2, 0, 5)], ids=str)
def test_kl_div_of_nothing(isa, shape):
    x = np.ones(shape, "f4")
    loss, ctx = ck.kl_div_forward(x, x)
    assert np.isnan(loss) and ck.kl_div_backward(1.0, ctx).input.shape == shape  # 0 / 0, as in PyTorch
    assert ck.kl_div(x, x, reduction="sum") == 0 and ck.kl_div(x, x, reduction="none").shape == shape


def test_kl_div_takes_tensors(rng):
    x, t = inputs(rng, "f4", 4, 9)
    assert ck.kl_div(torch.tensor(x), torch.tensor(t)) == ck.kl_div(x, t)


X = np.ones((2, 8), "f4")
MEAN, NONE = (lambda: ck.kl_div_forward(X, X)[1]), (lambda: ck.kl_div_forward(X, X, reduction="none")[1])


@pytest.mark.parametrize("error, text, call", [
    (TypeError, r"kl_div\(\): 'input' must be .*not float64", lambda: ck.kl_div(X.astype("f8"), X)),
    (TypeError, r"kl_div\(\): 'target' must be float32, not float16", lambda: ck.kl_div(X, X.astype("f2"))),
    (TypeError, r"kl_div\(\): 'input' must be a NumPy array", lambda: ck.kl_div([1.0], X)),
    (ValueError, r"kl_div\(\): 'target' of shape \(1, 8\) does not fit", lambda: ck.kl_div(X, X[:1])),
    (ValueError, r"kl_div\(\): 'input' of shape \(\) does not fit", lambda: ck.kl_div(X[0, 0, ...], X)),
    (ValueError, r"kl_div\(\): 'input' must be contiguous along its last axis", lambda: ck.kl_div(X[:, ::2], X)),
    (ValueError, r"kl_div\(\): 'reduction' must be 'none', 'mean', 'sum' or 'batchmean', not 'avg'",
     lambda: ck.kl_div(X, X, reduction="avg")),
    (TypeError, r"kl_div\(\): 'log_target' must be true or false",
     lambda: ck.kl_div(X, X, log_target=np.ones(2))),
    (ValueError, r"kl_div\(\): 'reduction' must be 'none', 'mean', 'sum' or 'batchmean', not \['mean'\]",
     lambda: ck.kl_div(X, X, reduction=["mean"])),
    (ValueError, r"kl_div\(\): 'out' of shape \(1,\) does not fit \[\]", lambda: ck.kl_div(X, X, out=X[0, :1])),
    (TypeError, r"kl_div\(\): 'out' must be float32", lambda: ck.kl_div(X, X, out=np.zeros((), "f8"))),
    (ValueError, r"kl_div\(\): 'out' is written and overlaps",
     lambda: ck.kl_div(X, X, reduction="none", out=X)),
    (ValueError, r"kl_div_backward\(\): '(dy|target)' of shape", lambda: ck.kl_div_backward(X[:1], NONE())),
    (TypeError, r"kl_div_backward\(\): 'dy' must be a number", lambda: ck.kl_div_backward(None, NONE())),
    (TypeError, r"kl_div_backward\(\): 'dy' must be a number", lambda: ck.kl_div_backward("1", MEAN())),
    (TypeError, r"kl_div_backward\(\): 'dy' must be a NumPy array", lambda: ck.kl_div_backward(1.0, NONE())),
    (ValueError, r"kl_div_backward\(\): 'out.input' is written and overlaps",
     lambda: (lambda a: ck.kl_div_backward(1.0, ck.kl_div_forward(X, a[:2])[1], out=Gradients(a[1:])))(
         np.ones((3, 8), "f4"))),
])
def test_kl_div_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()
    assert (X == 1).all()


def test_kl_div_reports_a_lack_of_memory():
    x = np.ones((70, 40000), "f4")  # more tasks than fit the call's own memory
    out = np.full((), 7, "f4")
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match="kl_div"):
        ck.kl_div(x, x, out=out)
    assert out == 7
