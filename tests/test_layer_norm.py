import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.layer_norm import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_matches_torch

# R, C: around each vector width and the pairs of vectors, a block of backward and one more, a row of a real model, a row
# of more than one block of sums.
SIZES = [(5, c) for c in (3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 576)]
SIZES += [(32, 40), (33, 40), (100, 24), (3, 4096), (2, 4129), (2, 9001)]
PARTS = [(True, True), (True, False), (False, True), (False, False)]


def normal(rng, shape, dtype=np.float32):
    return guarded(rng.standard_normal(shape).astype(dtype))


def inputs(rng, R, C, dtype=np.float32, weights=None):
    """Rows of differing size and mean, weights and biases away from one and zero."""
    x = rng.standard_normal((R, C)) * rng.uniform(0.5, 2, (R, 1)) + rng.standard_normal((R, 1))
    w, b = rng.uniform(0.5, 1.5, C), rng.standard_normal(C)
    return guarded(x.astype(dtype)), *(guarded(a.astype(weights or dtype)) for a in (w, b))


def torch_op(eps):
    return lambda x, w=None, b=None: F.layer_norm(x, x.shape[-1:], w, b, eps)


def precision_of(result, arrays):
    return "float32" if any(a.dtype == np.float32 for a in arrays) else result.dtype


def assert_gradients(grads, x, w, b, dy, eps):
    """Of those that are there; the terms that cancel in dx are of the size of rstd * g."""
    rows = x.astype("f8")
    rstd = 1 / np.sqrt(rows.var(-1, keepdims=True) + eps)
    terms = np.abs(rstd * dy.astype("f8") * (1 if w is None else w.astype("f8")))
    given = [a for a in (x, w, b, dy) if a is not None]

    def side(precision):
        leaves = [None if a is None else as_torch(a, precision, grad=True) for a in (x, w, b)]
        y = torch_op(eps)(*leaves)
        return torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], as_torch(dy, precision))

    results = [g for g in grads if g is not None]
    for i, got in enumerate(results):
        peer = side(precision_of(got, given))[i].to(as_torch(got).dtype)
        assert_parity(got, side("float64")[i], peer, terms=terms if i == 0 else None)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_layer_norm_matches_torch(isa, dtype, rng, size):
    x, w, b = inputs(rng, *size, dtype)
    y = ck.layer_norm(x, w, b, 1e-5, out=unwritten(size, dtype))
    assert_matches_torch(y, torch_op(1e-5), x, w, b, trivial={"x": x})


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_layer_norm_backward_matches_autograd(isa, dtype, rng, size):
    x, w, b = inputs(rng, *size, dtype)
    dy = normal(rng, size, dtype)
    ctx = ck.layer_norm_forward(x, w, b, 1e-5)[1]
    out = Gradients(unwritten(size, dtype), unwritten(size[-1:], dtype), unwritten(size[-1:], dtype))
    grads = ck.layer_norm_backward(dy, ctx, out=out)
    assert all(g is o for g, o in zip(grads, out, strict=True))
    assert_gradients(grads, x, w, b, dy, 1e-5)


@pytest.mark.parametrize("has_weight, has_bias", PARTS)
def test_layer_norm_with_and_without_weight_and_bias(isa, dtype, rng, has_weight, has_bias):
    x, w, b = inputs(rng, 35, 77, dtype)
    w, b, dy = w if has_weight else None, b if has_bias else None, normal(rng, x.shape, dtype)
    y, ctx = ck.layer_norm_forward(x, w, b)
    grads = ck.layer_norm_backward(dy, ctx)
    exact, peer = (torch_op(1e-5)(*(None if a is None else as_torch(a, p) for a in (x, w, b))) for p in ("float64", dtype))
    assert_parity(y, exact, peer, trivial={"x": x})
    assert (grads.weight is None, grads.bias is None) == (not has_weight, not has_bias)
    assert_gradients(grads, x, w, b, dy, 1e-5)


@pytest.mark.parametrize("kinds", [("elem", "float32"), ("float32", "elem"), ("float32", "float32")])
def test_layer_norm_takes_float32_weights_beside_16_bits(isa, dtype, rng, kinds):
    x, w, b = inputs(rng, 40, 33, dtype, np.float32)
    w, b = (a if kind == "float32" else guarded(a.astype(dtype)) for a, kind in zip((w, b), kinds, strict=True))
    dy = normal(rng, x.shape, dtype)
    y, ctx = ck.layer_norm_forward(x, w, b)
    assert_matches_torch(y, torch_op(1e-5), x, w, b)
    grads = ck.layer_norm_backward(dy, ctx)
    assert [g.dtype for g in grads] == [x.dtype, w.dtype, b.dtype]
    assert_gradients(grads, x, w, b, dy, 1e-5)


def test_layer_norm_statistics(isa, dtype, rng):
    x, w, b = inputs(rng, 7, 333, dtype)
    ctx = ck.layer_norm_forward(x, w, b, 1e-3)[1]
    rows = x.astype("f8")
    assert ctx.mean.dtype == ctx.rstd.dtype == np.float32
    sums = (333 / 32 + 6) * 2.0**-24  # of a sum: the additions of a lane, and those of the fold
    assert_parity(ctx.mean, rows.mean(-1), bound=sums * np.abs(rows).mean(-1))
    rstd = 1 / np.sqrt(rows.var(-1) + 1e-3)
    assert_parity(ctx.rstd, rstd, bound=sums * rstd)


def test_layer_norm_gradient_matches_differences(isa, rng):
    x, w, b = inputs(rng, 3, 33)
    dy = normal(rng, x.shape)
    grads = ck.layer_norm_backward(dy, ck.layer_norm_forward(x, w, b, 0.1)[1])
    assert_gradient(lambda moved: ck.layer_norm(moved, w, b, 0.1), x, grads.x, dy, rng)
    assert_gradient(lambda moved: ck.layer_norm(x, moved, b, 0.1), w, grads.weight, dy, rng)
    assert_gradient(lambda moved: ck.layer_norm(x, w, moved, 0.1), b, grads.bias, dy, rng)


@pytest.mark.parametrize("offset", [1e4, -3e5])
@pytest.mark.parametrize("C", [64, 577, 9001])
def test_layer_norm_of_a_huge_common_offset(isa, rng, C, offset):
    """As exact as without one.  PyTorch is off by 1e-3 here: it rounds the mean to a float, which sets no budget."""
    x, w, b = inputs(rng, 5, C)
    x += np.float32(offset)
    dy = normal(rng, x.shape)
    leaves = [as_torch(a, "float64", grad=True) for a in (x, w, b)]
    exact = torch_op(1e-5)(*leaves)
    y, ctx = ck.layer_norm_forward(x, w, b)
    eps = np.finfo("f4").eps
    assert_parity(y, exact.detach(), bound=4 * eps * float(exact.abs().max()))
    peer = torch_op(1e-5)(*(as_torch(a, "float32") for a in (x, w, b))).numpy()
    assert np.abs(y - exact.detach().numpy()).max() <= np.abs(peer - exact.detach().numpy()).max()
    wanted = torch.autograd.grad(exact, leaves, as_torch(dy, "float64"))
    for got, want in zip(ck.layer_norm_backward(dy, ctx), wanted, strict=True):
        assert_parity(got, want, bound=8 * eps * float(want.abs().max()))


def test_layer_norm_adding_a_constant_changes_nothing(isa, rng):
    x = np.round(normal(rng, (5, 96)) * 64) / 64  # so that the sum is exact
    assert_parity(ck.layer_norm((x + 1024).astype("f4")), ck.layer_norm(x.astype("f4")).astype("f8"), bound=1e-6)


def test_layer_norm_accumulates_the_parameters_gradients(isa, dtype, rng):
    x, w, b = inputs(rng, 40, 33, dtype)
    dy = normal(rng, x.shape, dtype)
    ctx = ck.layer_norm_forward(x, w, b)[1]
    fresh = ck.layer_norm_backward(dy, ctx)
    exact = ck.layer_norm_backward(dy, ctx._replace(weight=w.astype("f4"), bias=b.astype("f4")))
    for names in ("weight", "bias"), ("weight",), ("bias",):
        given = Gradients(**{name: np.full(33, 100, dtype) for name in names})
        added = ck.layer_norm_backward(dy, ctx, out=given, accumulate=True)
        assert added.x.tobytes() == fresh.x.tobytes()
        for name in "weight", "bias":
            got = getattr(added, name)
            if name not in names:
                assert got.tobytes() == getattr(fresh, name).tobytes()
                continue
            assert got is getattr(given, name)
            sum_of = 100 + getattr(exact, name).astype("f8")  # a sum that was rounded to float32 before
            half = np.array([abs(float(np.nextafter(s, dtype.type(np.inf)) - s)) for s in sum_of.astype(dtype)]) / 2
            assert_parity(got, sum_of, bound=half + 1e-5)
    overwritten = ck.layer_norm_backward(dy, ctx, out=added)
    assert overwritten.bias.tobytes() == fresh.bias.tobytes()


def test_layer_norm_in_place(isa, dtype, rng):
    x, w, b = inputs(rng, 35, 33, dtype)
    dy = normal(rng, x.shape, dtype)
    y, ctx = ck.layer_norm_forward(x, w, b)
    dx = ck.layer_norm_backward(dy, ctx).x
    assert ck.layer_norm_backward(dy, ctx, out=Gradients(x=dy)).x is dy
    assert dy.tobytes() == dx.tobytes()
    assert ck.layer_norm(x, w, b, out=x) is x
    assert x.tobytes() == y.tobytes()


def everything(x, w, b, dy):
    y, ctx = ck.layer_norm_forward(x, w, b)
    return [a.tobytes() for a in (y, ctx.mean, ctx.rstd, *ck.layer_norm_backward(dy, ctx))]


@pytest.mark.parametrize("C", [333, 5000])
def test_layer_norm_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, C):
    x, w, b = inputs(rng, 100, C, dtype)
    dy = normal(rng, x.shape, dtype)
    ck.set_num_threads(1)
    alone = everything(x, w, b, dy)
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(x, w, b, dy) == alone
    row = x.itemsize * C
    one = everything(x[41:42], w, b, dy[41:42])
    assert one[0] == alone[0][41 * row : 42 * row] and one[3] == alone[3][41 * row : 42 * row]


def test_layer_norm_of_rows_that_are_cut(isa, dtype, rng):
    """Two of three pieces and eighteen slices each (ops/norm_rows.h)."""
    test_layer_norm_matches_torch(isa, dtype, rng, (2, 140001))
    test_layer_norm_backward_matches_autograd(isa, dtype, rng, (2, 140001))


def test_layer_norm_bits_of_rows_that_are_cut(isa, dtype, rng):
    """Three of 90000 are cut into pieces and slices, two are not."""
    x, w, b = inputs(rng, 3, 90000, dtype)
    dy = normal(rng, x.shape, dtype)
    ck.set_num_threads(3)
    three, two = everything(x, w, b, dy), everything(x[:2], w, b, dy[:2])
    ck.set_num_threads(1)
    assert everything(x, w, b, dy) == three
    for i in (0, 3):
        assert len(three[i]) == x.nbytes and three[i].startswith(two[i])


def test_layer_norm_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    for C in 333, 4500:
        x, w, b = inputs(rng, 50, C, dtype)
        dy, bits = normal(rng, x.shape, dtype), set()
        for isa in {"avx2", "avx512"} & set(ck.isas()):
            with ck.use(isa):
                bits.add(b"".join(everything(x, w, b, dy)))
        assert len(bits) == 1


@pytest.mark.parametrize("C", [1000, 4096])
def test_layer_norm_bits_are_the_same_past_the_caches(isa, dtype, rng, C):
    """The largest calls store otherwise; rows of 1000 start anywhere in a line."""
    if isa in ("reference", "baseline"):
        R = 40  # stores as ever: enough to see that it works
    else:
        R = (40 << 20) // (2 * dtype.itemsize * C)
    x, w, b = (np.tile(a, (R // 20, 1)) if a.ndim == 2 else a for a in inputs(rng, 20, C, dtype))
    y, ctx = ck.layer_norm_forward(x, w, b)
    dx = ck.layer_norm_backward(y, ctx).x
    few, few_ctx = ck.layer_norm_forward(x[:20], w, b)
    few_dx = ck.layer_norm_backward(few, few_ctx).x
    for got, want in (y, few), (dx, few_dx):
        assert (got.reshape(-1, 20, C).view("u1") == want.view("u1")).all()


def test_layer_norm_sees_eps(isa, dtype, rng):
    x, w, b = inputs(rng, 3, 64, dtype)
    x[...] = (normal(rng, x.shape) * 3e-3).astype(dtype)  # its variance is about eps
    dy = normal(rng, x.shape, dtype)
    y, ctx = ck.layer_norm_forward(x, w, b, 1e-5)
    assert_matches_torch(y, torch_op(1e-5), x, w, b)
    assert_gradients(ck.layer_norm_backward(dy, ctx), x, w, b, dy, 1e-5)
    with pytest.raises(AssertionError):
        assert_matches_torch(ck.layer_norm(x, w, b, 1e-4), torch_op(1e-5), x, w, b)


def test_layer_norm_of_extremes(isa):
    inf, nan, tiny, low = np.inf, np.nan, 1e-42, -200.0
    x = np.array([[1, nan, 2, 3], [1, inf, 2, -3], [1, -inf, inf, -3], [tiny, -tiny, 0, tiny], [low, 200, low, 201],
                  [7, 7, 7, 7], [0, 0, 0, 0], [1e18, 1, 1, 1], [0.1, 0.1, 0.1, 0.1], [-0.0, -0.0, 0, 0]], "f4")
    y, ctx = ck.layer_norm_forward(x, eps=1e-5)
    assert np.isnan(y[:3]).all() and np.isnan(ctx.rstd[:3]).all()
    np.testing.assert_array_equal(y[[5, 6, 8, 9]], np.zeros((4, 4)))
    exact, peer = (torch_op(1e-5)(as_torch(x[3:], p)) for p in ("float64", "float32"))
    for r in range(len(x) - 3):
        assert_parity(y[r + 3], exact[r], peer[r], allow_constant=True)
    np.testing.assert_allclose(ctx.rstd[[5, 6, 8]], 1 / np.sqrt(1e-5), rtol=1e-6)


def test_layer_norm_at_the_edges_of_a_dtype(isa, dtype):
    top = 6e4  # near the largest number of float16; its square is beyond
    x = np.array([[top, -top, top / 2, 0], [6e-8, 0, -6e-8, 1.2e-7], [top, top, top, -top], [1, np.nan, 0, 0]], dtype)
    y = ck.layer_norm(x, eps=1e-5)
    exact, peer = (torch_op(1e-5)(as_torch(x, p)) for p in ("float64", dtype))
    for r in range(3):
        assert_parity(y[r], exact[r], peer[r])
    assert np.isnan(y[3].astype("f4")).all()


@pytest.mark.parametrize("C", [1, 16, 4097])
def test_layer_norm_of_constant_rows_is_the_bias(isa, dtype, rng, C):
    _, w, b = inputs(rng, 1, C, dtype)
    x = np.repeat(np.array([[0.1], [3], [-777]], dtype), C, 1)
    y, ctx = ck.layer_norm_forward(x, w, b)
    np.testing.assert_array_equal(y.astype("f4"), np.tile(b.astype("f4"), (3, 1)))
    np.testing.assert_array_equal(ctx.mean, x[:, 0].astype("f4"))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)], ids=str)
def test_layer_norm_of_nothing(isa, dtype, shape):
    x, w = np.ones(shape, dtype), np.ones(shape[1], dtype)
    y, ctx = ck.layer_norm_forward(x, w, w)
    grads = ck.layer_norm_backward(y, ctx)
    assert (y.shape, grads.x.shape, grads.weight.shape, grads.bias.shape) == (shape, shape, w.shape, w.shape)
    np.testing.assert_array_equal(grads.weight.astype("f4"), np.zeros(shape[1]))
    np.testing.assert_array_equal(grads.bias.astype("f4"), np.zeros(shape[1]))


def test_layer_norm_takes_strided_views(isa, dtype, rng):
    _, w, b = inputs(rng, 1, 33, dtype)
    x = spaced(normal(rng, (6, 5, 33), dtype)).transpose(1, 0, 2)
    dy = spaced(normal(rng, (5, 6, 33), dtype))
    out, given = (spaced(np.zeros(x.shape, dtype)) for _ in range(2))
    y, ctx = ck.layer_norm_forward(x, w, b, out=out)
    grads = ck.layer_norm_backward(dy, ctx, out=Gradients(x=given))
    flat, flat_ctx = ck.layer_norm_forward(x.copy(), w, b)
    flat_grads = ck.layer_norm_backward(dy.copy(), flat_ctx)
    for got, want in zip((y, *grads), (flat, *flat_grads), strict=True):
        np.testing.assert_array_equal(got, want)
    assert gaps_untouched(out) and gaps_untouched(given)


def test_layer_norm_takes_tensors(dtype, rng):
    x, w, b = inputs(rng, 3, 5, dtype)
    got = ck.layer_norm(*(as_torch(a) for a in (x, w, b)))
    assert got.tobytes() == ck.layer_norm(x, w, b).tobytes()


X, W = np.ones((2, 8), "f4"), np.ones(8, "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False
CTX = ck.layer_norm_forward(X, W, W)[1]
REFUSALS = [
    (TypeError, r"layer_norm\(\): 'x' must be float32, float16 or bfloat16, not float64",
     lambda: ck.layer_norm(X.astype("f8"), W)),
    (TypeError, r"layer_norm\(\): 'x' must be a NumPy array .* not <class 'list'>", lambda: ck.layer_norm([1.0], W)),
    (TypeError, r"layer_norm\(\): 'eps' must be a number", lambda: ck.layer_norm(X, W, W, "small")),
    (TypeError, r"layer_norm\(\): 'bias' must be float32, not float16", lambda: ck.layer_norm(X, W, W.astype("f2"))),
    (TypeError, r"layer_norm\(\): 'weight' must be float16 or float32, not float64",
     lambda: ck.layer_norm(X.astype("f2"), W.astype("f8"))),
    (TypeError, r"layer_norm\(\): 'out' must be float32, not float16", lambda: ck.layer_norm(X, out=X.astype("f2"))),
    (ValueError, r"layer_norm\(\): 'weight' of shape \(7,\) does not fit \[C\], where C=8",
     lambda: ck.layer_norm(X, W[:7].copy())),
    (ValueError, r"layer_norm\(\): 'bias' of shape \(7,\) does not fit \[C\], where C=8",
     lambda: ck.layer_norm(X, None, W[:7].copy())),
    (ValueError, r"layer_norm\(\): 'x' must be contiguous along its last axis", lambda: ck.layer_norm(X[:, ::2], W[:4])),
    (ValueError, r"layer_norm\(\): 'bias' must be contiguous", lambda: ck.layer_norm(X[:, :4], W[:4], W[::2])),
    (ValueError, r"layer_norm\(\): 'out' of shape \(2, 7\) does not fit",
     lambda: ck.layer_norm(X, W, out=np.empty((2, 7), "f4"))),
    (ValueError, r"layer_norm\(\): 'out' is written, but read-only", lambda: ck.layer_norm(X, W, out=READ_ONLY)),
    (ValueError, r"layer_norm\(\): 'out' is written and overlaps 'x'",
     lambda: (lambda a: ck.layer_norm(a[:2], W, out=a[1:]))(np.ones((3, 8), "f4"))),
    (ValueError, r"layer_norm_backward\(\): 'x' of shape \(2, 8\)",
     lambda: ck.layer_norm_backward(np.ones((3, 8), "f4"), CTX)),
    (ValueError, r"layer_norm_backward\(\): 'out.bias' of shape \(7,\) does not fit \[C\], where C=8",
     lambda: ck.layer_norm_backward(X, CTX, out=Gradients(bias=np.empty(7, "f4")))),
    (TypeError, r"layer_norm_backward\(\): 'out.bias' must be of its weight's dtype, not float16",
     lambda: ck.layer_norm_backward(X, CTX, out=Gradients(bias=np.empty(8, "f2")))),
    (TypeError, r"layer_norm_backward\(\): 'x' must be float16, not float32",
     lambda: ck.layer_norm_backward(X.astype("f2"), CTX)),
]


@pytest.mark.parametrize("error, text, call", REFUSALS)
def test_layer_norm_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


def test_layer_norm_reports_a_lack_of_memory(dtype):
    given = Gradients(np.full(X.shape, 5, dtype), np.full(8, 5, dtype), np.full(8, 5, dtype))
    x, w = X.astype(dtype), W.astype(dtype)
    ctx = ck.layer_norm_forward(x, w, w)[1]
    for n in range(1, 2 if dtype == np.float32 else 3):
        ck._ck.fail_allocation(n)
        with pytest.raises(MemoryError, match="layer_norm_backward"):
            ck.layer_norm_backward(x, ctx, out=given)
        assert all((g == 5).all() for g in given)
