import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ckernels as ck
from ckernels.ops.log_softmax import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch

# R, C: around each vector width, around a block of the sum, a row of a real model, and rows that are cut into pieces.
SIZES = [(5, c) for c in (2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 576, 2047, 2049)]
SIZES += [(40, 300), (2, 49152), (2, 65537)]
CASES = [(size, 0) for size in SIZES] + [(size, 200) for size in ((5, 33), (5, 2049), (40, 300))]


def inputs(rng, dtype, *shape, spread=3.0):
    """Scores up to an unreadable page."""
    return guarded((spread * rng.standard_normal(shape)).astype(dtype))


def both_at(precision, x, dy):
    """Result and gradient."""
    x = as_torch(x, precision, grad=True)
    y = torch.log_softmax(x, -1)
    return y.detach(), torch.autograd.grad(y, x, as_torch(dy, precision))[0]


def assert_both(x, dy, y, dx):
    (exact, dexact), (peer, dpeer) = (both_at(p, x, dy) for p in ("float64", x.dtype.name))
    assert_parity(y, exact, peer)
    total = np.abs(dy.astype("f8").sum(-1, keepdims=True))  # what cancels: dy, and its total times a probability
    terms = np.nan_to_num(np.maximum(np.abs(dy.astype("f8")), np.exp(exact.numpy()) * total))
    assert_parity(dx, dexact, dpeer, terms=terms)


@pytest.mark.parametrize("size, peak", CASES, ids=str)
def test_log_softmax_matches_torch_and_autograd(isa, dtype, rng, size, peak):
    x, dy = inputs(rng, dtype, *size), inputs(rng, dtype, *size)
    x[...] = x + peak * rng.choice([-1, 1], size).astype(dtype)
    x[:, :2] = np.abs(x[:, :2])  # a row of which one is far above the rest has no gradient to speak of
    y, ctx = ck.log_softmax_forward(x, out=unwritten(size, dtype))
    assert_both(x, dy, y, ck.log_softmax_backward(dy, ctx, out=Gradients(unwritten(size, dtype))).x)


def test_log_softmax_gradient_matches_differences(isa, rng):
    x, dy = inputs(rng, "f4", 3, 17, spread=1.0), inputs(rng, "f4", 3, 17)
    dx = ck.log_softmax_backward(dy, ck.log_softmax_forward(x)[1]).x
    assert_gradient(ck.log_softmax, x, dx, dy, rng)


def test_log_softmax_is_the_logarithm_of_softmax(isa, rng):
    x = inputs(rng, "f4", 4, 50)
    y, p = ck.log_softmax(x), np.asarray(ck.softmax(x), "f8")
    assert_parity(y, np.log(p), bound=2e-6)  # an ulp of p, and one of log p up to 16


def test_log_softmax_never_takes_the_logarithm_of_a_probability(isa):
    y = ck.log_softmax(np.array([[0, 200], [0, -1e30]], "f4"))
    np.testing.assert_array_equal(y, np.array([[-200, 0], [0, -1e30]], "f4"))


def test_log_softmax_does_not_see_a_shift(isa, rng):
    x = np.round(inputs(rng, "f4", 4, 50) * 64) / 64
    exact = torch.log_softmax(as_torch(x, "float64"), -1)
    for shift in 512, -2048, 8192:  # all sums exact
        shifted = x + np.float32(shift)
        assert_parity(ck.log_softmax(shifted), exact, torch.log_softmax(as_torch(shifted), -1))


@pytest.mark.parametrize("size", [(6, 333), (2, 70001)], ids=str)
def test_log_softmax_in_place(isa, dtype, rng, size):
    x, dy = inputs(rng, dtype, *size), inputs(rng, dtype, *size)
    y, ctx = ck.log_softmax_forward(x)
    dx = ck.log_softmax_backward(dy, ctx).x
    assert ck.log_softmax(x, out=x) is x and x.tobytes() == y.tobytes()
    assert ck.log_softmax_backward(dy.copy(), ctx, out=Gradients(y)).x is y and y.tobytes() == dx.tobytes()
    assert ck.log_softmax_backward(dy, ctx._replace(y=x), out=Gradients(dy)).x is dy and dy.tobytes() == dx.tobytes()


@pytest.mark.parametrize("size", [(1000, 333), (4, 150001)], ids=str)
def test_log_softmax_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, size):
    x, dy = inputs(rng, dtype, *size), inputs(rng, dtype, *size)

    def everything():
        y, ctx = ck.log_softmax_forward(x)
        return [a.tobytes() for a in (y, ck.log_softmax_backward(dy, ctx).x)]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    r, nbytes = size[0] - 2, size[1] * dtype.itemsize
    y, ctx = ck.log_softmax_forward(x[r])
    row = slice(r * nbytes, (r + 1) * nbytes)
    assert y.tobytes() == alone[0][row] and ck.log_softmax_backward(dy[r], ctx).x.tobytes() == alone[1][row]


def test_log_softmax_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    for size in (50, 5003), (2, 70001):
        x, dy, bits = inputs(rng, dtype, *size), inputs(rng, dtype, *size), set()
        for isa in {"avx2", "avx512"} & set(ck.isas()):
            with ck.use(isa):
                y, ctx = ck.log_softmax_forward(x)
                bits.add(y.tobytes() + ck.log_softmax_backward(dy, ctx).x.tobytes())
        assert len(bits) == 1


def test_log_softmax_of_large_arrays_passes_the_caches_unharmed(rng):
    """Streaming stores: rows that start anywhere within a line, a size that only they have."""
    x = rng.standard_normal((4300, 1003), np.float32)
    for isa in {"avx2", "avx512", "baseline"} & set(ck.isas()):
        with ck.use(isa):
            y, ctx = ck.log_softmax_forward(x)
            dx = ck.log_softmax_backward(x, ctx).x
            for r in 0, 1, 2, 3, 2000, 4299:
                alone, ctx_alone = ck.log_softmax_forward(x[r])
                np.testing.assert_array_equal(y[r], alone)
                np.testing.assert_array_equal(dx[r], ck.log_softmax_backward(x[r], ctx_alone).x)


def test_log_softmax_of_extremes(isa, dtype):
    inf, nan, tiny = np.inf, np.nan, 1e-7
    x = np.array([[0, -inf, 0, -inf], [-inf] * 4, [1, nan, 2, 3], [88, 88, 88, 88], [inf, 1, 2, 3], [1, 2, inf, -inf],
                  [-inf, nan, -inf, 0], [tiny, -tiny, 0, 0], [-200, 200, 0, 199], [-103, 0, -90, -104],
                  [nan, nan, nan, nan], [-3e4, 3e4, 0, 1]], dtype)
    dy = np.tile(np.array([1, 2, 3, 5], dtype), (len(x), 1))
    y, ctx = ck.log_softmax_forward(x)
    assert_both(x, dy, y, ck.log_softmax_backward(dy, ctx).x)


def test_log_softmax_of_extremes_in_pieces(isa, dtype, rng):
    C, inf, nan = 140000, np.inf, np.nan
    x = inputs(rng, dtype, 5, C)
    x[0, 70000:] = -inf  # the last pieces
    x[1, :70000] = -inf
    x[2] = -inf
    x[3, 139999] = nan
    x[4, 66000] = inf
    y = ck.log_softmax(x)
    assert_parity(y, torch.log_softmax(as_torch(x, "float64"), -1), torch.log_softmax(as_torch(x), -1))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0), (2, 0, 5)], ids=str)
def test_log_softmax_of_nothing(isa, shape):
    y, ctx = ck.log_softmax_forward(np.ones(shape, "f4"))
    assert y.shape == shape and ck.log_softmax_backward(y, ctx).x.shape == shape


def test_log_softmax_of_one_class_is_0(isa, dtype):
    x = np.array([[3], [-200], [1e-3]], dtype)
    y, ctx = ck.log_softmax_forward(x)
    assert (y == 0).all() and (ck.log_softmax_backward(x, ctx).x == 0).all()


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 2**31), turned=st.booleans())
def test_log_softmax_bits_do_not_depend_on_strides(shape, seed, turned):
    rng = np.random.default_rng(seed)
    x, dy = (spaced(rng.standard_normal(shape).astype("f4")) for _ in range(2))
    if turned and len(shape) > 2:
        x, dy = x.swapaxes(0, 1), dy.swapaxes(0, 1)
    y, ctx = ck.log_softmax_forward(x, out=spaced(np.zeros(x.shape, "f4")))
    flat, flat_ctx = ck.log_softmax_forward(x.copy())
    np.testing.assert_array_equal(y, flat)
    dx = ck.log_softmax_backward(dy, ctx, out=Gradients(spaced(np.zeros(x.shape, "f4")))).x
    np.testing.assert_array_equal(dx, ck.log_softmax_backward(dy.copy(), flat_ctx).x)
    assert gaps_untouched(y) and gaps_untouched(dx)


def test_log_softmax_takes_strided_views(isa, dtype, rng):
    for shape in (6, 5, 33), (2, 3, 66000):
        x, dy = (spaced(inputs(rng, dtype, *shape)).transpose(1, 0, 2) for _ in range(2))
        y, ctx = ck.log_softmax_forward(x, out=spaced(np.zeros(x.shape, dtype)))
        dx = ck.log_softmax_backward(dy, ctx, out=Gradients(spaced(np.zeros(x.shape, dtype)))).x
        flat, flat_ctx = ck.log_softmax_forward(x.copy())
        np.testing.assert_array_equal(y, flat)
        np.testing.assert_array_equal(dx, ck.log_softmax_backward(dy.copy(), flat_ctx).x)
        assert gaps_untouched(y) and gaps_untouched(dx)


def test_log_softmax_takes_tensors(rng):
    x = inputs(rng, "f4", 3, 5, 5)
    np.testing.assert_array_equal(ck.log_softmax(torch.tensor(x)), ck.log_softmax(x))


X = np.ones((2, 8), "f4")


@pytest.mark.parametrize("error, text, call", [
    (TypeError, r"log_softmax\(\): 'x' must be .*not float64", lambda: ck.log_softmax(X.astype("f8"))),
    (TypeError, r"log_softmax\(\): 'x' must be a NumPy array", lambda: ck.log_softmax([1.0])),
    (TypeError, r"log_softmax\(\): '(out|x)' must be float", lambda: ck.log_softmax(X, out=X.astype("f2"))),
    (ValueError, r"log_softmax\(\): 'x' must be contiguous along its last axis", lambda: ck.log_softmax(X[:, ::2])),
    (ValueError, r"log_softmax\(\): 'x' of shape \(\) does not fit", lambda: ck.log_softmax(np.array(1, "f4"))),
    (ValueError, r"log_softmax\(\): 'out' of shape \(2, 7\) does not fit",
     lambda: ck.log_softmax(X, out=np.empty((2, 7), "f4"))),
    (ValueError, r"log_softmax\(\): 'out' is written and overlaps 'x'",
     lambda: (lambda a: ck.log_softmax(a[:2], out=a[1:]))(np.ones((3, 8), "f4"))),
    (ValueError, r"log_softmax_backward\(\): '(y|dy)' of shape",
     lambda: ck.log_softmax_backward(X[:1], ck.log_softmax_forward(X)[1])),
])
def test_log_softmax_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


def test_log_softmax_reports_a_lack_of_memory():
    x = np.ones((2, 70000), "f4")
    out = np.full_like(x, 7)
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match="log_softmax"):
        ck.log_softmax(x, out=out)
    assert (out == 7).all()
