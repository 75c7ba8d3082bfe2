import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.l2_norm import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_matches_torch

# R, C: around each vector width and the pairs of vectors, heads of a real model, a row of more than one block of sums.
SIZES = [(5, c) for c in (2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 576)] + [(100, 128), (3, 4096), (2, 9001)]


def normal(rng, shape, dtype=np.float32):
    return guarded(rng.standard_normal(shape).astype(dtype))


def inputs(rng, R, C, dtype=np.float32):
    """Rows of differing length and mean, whose squares add up to a float16."""
    x = rng.standard_normal((R, C)) * rng.uniform(0.5, 2, (R, 1)) + rng.standard_normal((R, 1))
    x *= 0.1 if C > 10000 else 1
    return guarded(x.astype(dtype))


def torch_op(eps):
    return lambda x: x / torch.sqrt((x * x).sum(-1, keepdim=True) + eps)


def assert_gradient_of_x(dx, x, dy, eps):
    """The terms that cancel are of the size of dy over the length."""
    rnorm = 1 / np.sqrt(np.sum(x.astype("f8") ** 2, -1, keepdims=True) + eps)
    terms = np.abs(rnorm * dy.astype("f8"))
    sides = []
    for precision in "float64", dx.dtype:
        leaf = as_torch(x, precision, grad=True)
        sides.append(torch.autograd.grad(torch_op(eps)(leaf), leaf, as_torch(dy, precision))[0])
    assert_parity(dx, *sides, terms=terms)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_l2_norm_matches_torch(isa, dtype, rng, size):
    x = inputs(rng, *size, dtype)
    y = ck.l2_norm(x, 1e-6, out=unwritten(size, dtype))
    assert_matches_torch(y, torch_op(1e-6), x, trivial={"x": x})


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_l2_norm_backward_matches_autograd(isa, dtype, rng, size):
    x = inputs(rng, *size, dtype)
    dy = normal(rng, size, dtype)
    ctx = ck.l2_norm_forward(x, 1e-6)[1]
    out = Gradients(unwritten(size, dtype))
    assert ck.l2_norm_backward(dy, ctx, out=out).x is out.x
    assert_gradient_of_x(out.x, x, dy, 1e-6)


def test_l2_norm_gradient_matches_differences(isa, rng):
    x = inputs(rng, 3, 33)
    dy = normal(rng, x.shape)
    dx = ck.l2_norm_backward(dy, ck.l2_norm_forward(x, 0.1)[1]).x
    assert_gradient(lambda moved: ck.l2_norm(moved, 0.1), x, dx, dy, rng)


def test_l2_norm_makes_rows_of_length_one(isa, dtype, rng):
    x = inputs(rng, 7, 333, dtype)
    y, ctx = ck.l2_norm_forward(x, 0.0)
    exact = 1 / np.sqrt(np.sum(x.astype("f8") ** 2, -1))
    assert ctx.rnorm.dtype == np.float32
    sums = (333 / 32 + 6) * 2.0**-24  # the additions of a lane, and those of the fold
    assert_parity(ctx.rnorm, exact, bound=sums * exact)
    unit = float(torch.finfo(as_torch(y).dtype).eps)
    assert np.abs(np.sum(y.astype("f8") ** 2, -1) - 1).max() < unit + 2 * sums
    ours, theirs = (a.astype("f8") for a in (y, F.normalize(as_torch(x).double(), dim=-1).numpy()))  # the same where eps is 0
    assert np.abs(ours - theirs).max() <= (unit + sums) * np.abs(theirs).max()


def test_l2_norm_default_eps(isa, rng):
    x = inputs(rng, 3, 33) * np.float32(1e-3)
    assert ck.l2_norm(x).tobytes() == ck.l2_norm(x, 1e-6).tobytes() != ck.l2_norm(x, 1e-5).tobytes()


def test_l2_norm_sees_eps(isa, dtype, rng):
    x = (normal(rng, (3, 64)) * 1.25e-4).astype(dtype)  # the sum of squares is about eps
    dy = normal(rng, x.shape, dtype)
    y, ctx = ck.l2_norm_forward(x, 1e-6)
    assert_matches_torch(y, lambda x: torch_op(1e-6)(x if x.dtype == torch.float64 else x.float()).to(x.dtype), x)
    leaf = as_torch(x, "float64", grad=True)
    exact = torch.autograd.grad(torch_op(1e-6)(leaf), leaf, as_torch(dy, "float64"))[0]
    unit = float(torch.finfo(as_torch(y).dtype).eps)
    if float(exact.abs().max()) < float(torch.finfo(as_torch(y).dtype).max):
        terms = np.abs(dy.astype("f8") / np.sqrt(np.sum(x.astype("f8") ** 2, -1, keepdims=True) + 1e-6)).max()
        assert_parity(ck.l2_norm_backward(dy, ctx).x, exact, bound=unit * float(exact.abs().max()) + 8e-7 * terms)
    with pytest.raises(AssertionError):
        assert_matches_torch(ck.l2_norm(x, 1e-5), torch_op(1e-6), x)


def test_l2_norm_accumulate_makes_no_difference(isa, dtype, rng):
    x, dy = inputs(rng, 4, 33, dtype), normal(rng, (4, 33), dtype)
    ctx = ck.l2_norm_forward(x)[1]
    given = Gradients(normal(rng, x.shape, dtype))
    assert ck.l2_norm_backward(dy, ctx, out=given, accumulate=True).x.tobytes() == ck.l2_norm_backward(dy, ctx).x.tobytes()


def test_l2_norm_in_place(isa, dtype, rng):
    x = inputs(rng, 35, 33, dtype)
    dy = normal(rng, x.shape, dtype)
    y, ctx = ck.l2_norm_forward(x)
    dx = ck.l2_norm_backward(dy, ctx).x
    assert ck.l2_norm_backward(dy, ctx, out=Gradients(x=dy)).x is dy
    assert dy.tobytes() == dx.tobytes()
    assert ck.l2_norm(x, out=x) is x
    assert x.tobytes() == y.tobytes()


def everything(x, dy):
    y, ctx = ck.l2_norm_forward(x)
    return [a.tobytes() for a in (y, ctx.rnorm, ck.l2_norm_backward(dy, ctx).x)]


@pytest.mark.parametrize("C", [333, 5000])
def test_l2_norm_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, C):
    x = inputs(rng, 200, C, dtype)
    dy = normal(rng, x.shape, dtype)
    ck.set_num_threads(1)
    alone = everything(x, dy)
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(x, dy) == alone
    row = x.itemsize * C
    one = everything(x[41:42], dy[41:42])
    assert one[0] == alone[0][41 * row : 42 * row] and one[2] == alone[2][41 * row : 42 * row]


def test_l2_norm_of_rows_that_are_cut(isa, dtype, rng):
    """Two of three pieces and eighteen slices each (ops/norm_rows.h)."""
    test_l2_norm_matches_torch(isa, dtype, rng, (2, 140001))
    test_l2_norm_backward_matches_autograd(isa, dtype, rng, (2, 140001))


def test_l2_norm_bits_of_rows_that_are_cut(isa, dtype, rng):
    """Three of 90000 are cut into pieces and slices, two are not."""
    x = inputs(rng, 3, 90000, dtype)
    dy = normal(rng, x.shape, dtype)
    ck.set_num_threads(3)
    three, two = everything(x, dy), everything(x[:2], dy[:2])
    ck.set_num_threads(1)
    assert everything(x, dy) == three
    for i in (0, 2):
        assert len(three[i]) == x.nbytes and three[i].startswith(two[i])


def test_l2_norm_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    for C in 333, 4500:
        x, bits = inputs(rng, 50, C, dtype), set()
        dy = normal(rng, x.shape, dtype)
        for isa in {"avx2", "avx512"} & set(ck.isas()):
            with ck.use(isa):
                bits.add(b"".join(everything(x, dy)))
        assert len(bits) == 1


@pytest.mark.parametrize("C", [1000, 4096])
def test_l2_norm_bits_are_the_same_past_the_caches(isa, dtype, rng, C):
    """The largest calls store otherwise; rows of 1000 start anywhere in a line."""
    R = 40 if isa in ("reference", "baseline") else (40 << 20) // (2 * dtype.itemsize * C)
    x = np.tile(inputs(rng, 20, C, dtype), (R // 20, 1))
    y, ctx = ck.l2_norm_forward(x)
    few, few_ctx = ck.l2_norm_forward(x[:20])
    for got, want in (y, few), (ck.l2_norm_backward(y, ctx).x, ck.l2_norm_backward(few, few_ctx).x):
        assert (got.reshape(-1, 20, C).view("u1") == want.view("u1")).all()


def test_l2_norm_of_extremes(isa):
    inf, nan, tiny, low = np.inf, np.nan, 1e-42, -200.0
    x = np.array([[1, nan, 2, 3], [1, inf, 2, -3], [tiny, -tiny, 0, tiny], [low, 200, low, 200], [7, 7, 7, 7],
                  [0, 0, 0, 0], [1e18, 1, 1, 1]], "f4")
    y = ck.l2_norm(x, 1e-5)
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], np.array([0, nan, 0, -0.0], "f4"))
    exact, peer = (torch_op(1e-5)(as_torch(x[2:], p)) for p in ("float64", "float32"))
    for r in range(len(x) - 2):
        assert_parity(y[r + 2], exact[r], peer[r], allow_constant=True)


def test_l2_norm_at_the_edges_of_a_dtype(isa, dtype):
    """Squares beyond float16's range are no concern: they are floats."""
    x = np.array([[6e4, -6e4, 3e4, 0], [6e-8, 0, -6e-8, 1.2e-7]], dtype)
    y = ck.l2_norm(x, 1e-14)
    exact = torch_op(1e-14)(as_torch(x, "float64"))
    assert_parity(y, exact, bound=float(torch.finfo(as_torch(y).dtype).eps))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)], ids=str)
def test_l2_norm_of_nothing(isa, dtype, shape):
    y, ctx = ck.l2_norm_forward(np.ones(shape, dtype))
    assert y.shape == ck.l2_norm_backward(y, ctx).x.shape == shape
    np.testing.assert_array_equal(ctx.rnorm, np.full(shape[0], np.float32(1e3)))


def test_l2_norm_takes_strided_views(isa, dtype, rng):
    x = spaced(normal(rng, (6, 5, 33), dtype)).transpose(1, 0, 2)
    dy = spaced(normal(rng, (5, 6, 33), dtype))
    out, given = (spaced(np.zeros(x.shape, dtype)) for _ in range(2))
    y, ctx = ck.l2_norm_forward(x, out=out)
    dx = ck.l2_norm_backward(dy, ctx, out=Gradients(given)).x
    flat, flat_ctx = ck.l2_norm_forward(x.copy())
    np.testing.assert_array_equal(y, flat)
    np.testing.assert_array_equal(dx, ck.l2_norm_backward(dy.copy(), flat_ctx).x)
    assert gaps_untouched(out) and gaps_untouched(given)


def test_l2_norm_takes_tensors(dtype, rng):
    x = inputs(rng, 3, 5, dtype)
    assert ck.l2_norm(as_torch(x)).tobytes() == ck.l2_norm(x).tobytes()


X = np.ones((2, 8), "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False
CTX = ck.l2_norm_forward(X)[1]
REFUSALS = [
    (TypeError, r"l2_norm\(\): 'x' must be float32, float16 or bfloat16, not float64", lambda: ck.l2_norm(X.astype("f8"))),
    (TypeError, r"l2_norm\(\): 'x' must be a NumPy array .* not <class 'list'>", lambda: ck.l2_norm([1.0])),
    (TypeError, r"l2_norm\(\): 'eps' must be a number", lambda: ck.l2_norm(X, "small")),
    (TypeError, r"l2_norm\(\): 'out' must be float32, not float16", lambda: ck.l2_norm(X, out=X.astype("f2"))),
    (ValueError, r"l2_norm\(\): 'x' must be contiguous along its last axis", lambda: ck.l2_norm(X[:, ::2])),
    (ValueError, r"l2_norm\(\): 'out' of shape \(2, 7\) does not fit", lambda: ck.l2_norm(X, out=np.empty((2, 7), "f4"))),
    (ValueError, r"l2_norm\(\): 'out' is written, but read-only", lambda: ck.l2_norm(X, out=READ_ONLY)),
    (ValueError, r"l2_norm\(\): 'out' is written and overlaps 'x'",
     lambda: (lambda a: ck.l2_norm(a[:2], out=a[1:]))(np.ones((3, 8), "f4"))),
    (ValueError, r"l2_norm_backward\(\): 'x' of shape \(2, 8\)", lambda: ck.l2_norm_backward(np.ones((3, 8), "f4"), CTX)),
    (ValueError, r"l2_norm_backward\(\): 'out.x' of shape \(2, 7\)",
     lambda: ck.l2_norm_backward(X, CTX, out=Gradients(np.empty((2, 7), "f4")))),
    (TypeError, r"l2_norm_backward\(\): 'x' must be float16, not float32",
     lambda: ck.l2_norm_backward(X.astype("f2"), CTX)),
]


@pytest.mark.parametrize("error, text, call", REFUSALS)
def test_l2_norm_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()
