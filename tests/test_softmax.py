import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.ops.softmax import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch

# R, C: around each vector width, around a block of the sum and more than one, a row of a real model, and rows that are
# cut into pieces.
SIZES = [(5, c) for c in (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 576, 2047, 2049)]
SIZES += [(40, 300), (2, 49152), (2, 65537)]
CASES = [(size, 0) for size in SIZES] + [(size, 200) for size in ((5, 33), (5, 2049), (40, 300))]


def inputs(rng, *shape, spread=3.0, dtype="f4"):
    """Scores up to an unreadable page."""
    return guarded((spread * rng.standard_normal(shape)).astype(dtype))


def torch_softmax(x, scale=1.0, mask=None):
    """In the dtype of x; a boolean mask becomes 0 or -inf."""
    scores = x * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(x.dtype)
    return torch.softmax(scores, -1)


def both_at(precision, x, dy, **options):
    """Result and gradient."""
    x = as_torch(x, precision, grad=True)
    y = torch_softmax(x, **options)
    return y.detach(), torch.autograd.grad(y, x, as_torch(dy, precision))[0]


def assert_both(x, dy, y, dx, **options):
    (exact, dexact), (peer, dpeer) = (both_at(p, x, dy, **options) for p in ("float64", x.dtype.name))
    constant = x.shape[-1] == 1
    assert_parity(y, exact, peer, allow_constant=constant)
    terms = np.nan_to_num(np.abs(options.get("scale", 1) * exact.numpy() * dy.astype("f8")))  # the larger of the two that cancel
    assert_parity(dx, dexact, dpeer, terms=terms, allow_constant=constant)


@pytest.mark.parametrize("size, peak", CASES, ids=str)
def test_softmax_matches_torch_and_autograd(isa, dtype, rng, size, peak):
    x, dy = inputs(rng, *size, dtype=dtype), inputs(rng, *size, dtype=dtype)
    x[...] = x + peak * rng.choice([-1, 1], size).astype(dtype)
    x[:, :2] = np.abs(x[:, :2])  # a row of which one is far above the rest has no gradient to speak of
    y, ctx = ck.softmax_forward(x, out=unwritten(size, dtype))
    assert_both(x, dy, y, ck.softmax_backward(dy, ctx, out=Gradients(unwritten(size, dtype))).x)


@pytest.mark.parametrize("scale", [0.125, -2.0])
@pytest.mark.parametrize("C", [5, 16, 33])
def test_softmax_scales(isa, dtype, rng, C, scale):
    x, dy = inputs(rng, 7, C, dtype=dtype), inputs(rng, 7, C, dtype=dtype)
    y, ctx = ck.softmax_forward(x, scale=scale, out=unwritten(x.shape, dtype))
    assert_both(x, dy, y, ck.softmax_backward(dy, ctx).x, scale=scale)


def test_softmax_gradient_matches_differences(isa, rng):
    x, dy = inputs(rng, 3, 17, spread=1.0), inputs(rng, 3, 17)
    dx = ck.softmax_backward(dy, ck.softmax_forward(x, scale=0.7)[1]).x
    assert_gradient(lambda moved: ck.softmax(moved, scale=0.7), x, dx, dy, rng)


B, H, T, S = 2, 3, 5, 37
MASKS = {"full": (B, H, T, S), "keys of an item": (B, 1, 1, S), "pairs": (T, S), "queries": (T, 1), "keys": (S,),
         "heads": (H, 1, 1)}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["bool", "float", "float with -inf"])
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_softmax_takes_masks(isa, dtype, rng, shape, kind, causal):
    x, dy = inputs(rng, B, H, T, S, dtype=dtype), inputs(rng, B, H, T, S, dtype=dtype)
    mask = rng.standard_normal(shape).astype(dtype)
    if kind == "bool":
        mask = mask < 0.5
        mask.flat[[0, -1]] = True
    elif kind != "float":
        mask[rng.random(shape) < 0.3] = -np.inf
        mask.flat[[0, -1]] = 1
    mask = guarded(mask)
    seen = np.tril(np.ones((T, S), bool)) if causal else np.ones((T, S), bool)
    exact = np.where(mask, 0, -np.inf) if kind == "bool" else mask.astype("f8")
    exact = np.where(seen, np.broadcast_to(exact, x.shape), -np.inf)
    rows = np.isfinite(exact).any(-1)  # PyTorch has NaN where all is masked
    poisoned = np.where(exact == -np.inf, np.nan, x.astype("f4")).astype(dtype)  # nobody should use what is masked
    y, ctx = ck.softmax_forward(guarded(poisoned), scale=0.5, mask=mask, causal=causal,
                                out=unwritten(x.shape, dtype))
    dx = ck.softmax_backward(dy, ctx).x
    assert (y[exact == -np.inf] == 0).all() and (dx[exact == -np.inf] == 0).all()
    assert_both(x[rows], dy[rows], y[rows], dx[rows], scale=0.5, mask=torch.tensor(exact[rows]))


def test_softmax_takes_masks_of_any_stride(isa, dtype, rng):
    x = inputs(rng, 6, 33, dtype=dtype)
    wide = rng.standard_normal((6, 99)).astype(dtype)
    for mask in (wide[:, ::3], wide[:, ::-3], wide.T[:33].T, np.asfortranarray(wide[:, :33]), wide[:, ::3] > 0,
                 np.broadcast_to(wide[:1, :1], x.shape), np.array(2.0, dtype), np.array(True)):
        whole = np.broadcast_to(mask, x.shape).copy()
        np.testing.assert_array_equal(ck.softmax(x, mask=mask), ck.softmax(x, mask=whole))


def test_softmax_is_causal_from_position_0(isa, rng):
    for T, S in (5, 37), (37, 5), (1, 8), (20, 20):
        x = inputs(rng, 2, T, S)
        y = ck.softmax(x, causal=True)
        np.testing.assert_array_equal(y, ck.softmax(x, mask=np.tril(np.ones((T, S), bool))))
        np.testing.assert_array_equal(y[:, 0], np.eye(1, S).repeat(2, 0))


@pytest.mark.parametrize("size", [(6, 333), (2, 70001)], ids=str)
def test_softmax_in_place(isa, dtype, rng, size):
    x, dy = inputs(rng, *size, dtype=dtype), inputs(rng, *size, dtype=dtype)
    y, ctx = ck.softmax_forward(x)
    dx = ck.softmax_backward(dy, ctx).x
    assert ck.softmax(x, out=x) is x and x.tobytes() == y.tobytes()
    assert ck.softmax_backward(dy.copy(), ctx, out=Gradients(y)).x is y and y.tobytes() == dx.tobytes()
    ctx = ctx._replace(y=x)
    assert ck.softmax_backward(dy, ctx, out=Gradients(dy)).x is dy and dy.tobytes() == dx.tobytes()


@pytest.mark.parametrize("size", [(100, 10, 333), (2, 3, 70001)], ids=str)
def test_softmax_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, size):
    x, dy = inputs(rng, *size, dtype=dtype), inputs(rng, *size, dtype=dtype)
    mask = rng.random(size[1:]) < 0.9

    def everything():
        y, ctx = ck.softmax_forward(x, mask=mask)
        return [a.tobytes() for a in (y, ck.softmax_backward(dy, ctx).x, ck.softmax(x))]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    y, ctx = ck.softmax_forward(x[1, 2:3], mask=mask[2])
    r, nbytes = size[1] + 2, size[2] * dtype.itemsize
    row = slice(r * nbytes, (r + 1) * nbytes)
    assert y.tobytes() == alone[0][row] and ck.softmax_backward(dy[1, 2:3], ctx).x.tobytes() == alone[1][row]
    assert ck.softmax(x[1, 2]).tobytes() == alone[2][row]


def test_softmax_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    for size in (50, 5003), (2, 70001):
        x, dy, bits = inputs(rng, *size, dtype=dtype), inputs(rng, *size, dtype=dtype), set()
        mask = rng.standard_normal(size[1]).astype(dtype)
        for isa in {"avx2", "avx512"} & set(ck.isas()):
            with ck.use(isa):
                y, ctx = ck.softmax_forward(x, scale=0.3, mask=mask)
                bits.add(ck.softmax(x).tobytes() + y.tobytes() + ck.softmax_backward(dy, ctx).x.tobytes())
        assert len(bits) == 1


def test_softmax_of_large_arrays_passes_the_caches_unharmed(rng):
    """Streaming stores: rows that start anywhere within a line, a size that only they have."""
    x, mask = rng.standard_normal((4300, 1003), np.float32), rng.random(1003) < 0.9
    for isa in {"avx2", "avx512", "baseline"} & set(ck.isas()):
        with ck.use(isa):
            y, ctx = ck.softmax_forward(x, mask=mask)
            dx = ck.softmax_backward(x, ctx).x
            for r in 0, 1, 2, 3, 2000, 4299:
                alone, ctx_alone = ck.softmax_forward(x[r], mask=mask)
                np.testing.assert_array_equal(y[r], alone)
                np.testing.assert_array_equal(dx[r], ck.softmax_backward(x[r], ctx_alone).x)


@pytest.mark.parametrize("kind", ["bool", "float", "causal"])
def test_softmax_masks_long_rows(isa, dtype, rng, kind):
    """Rows of three pieces: masked at random, one piece masked whole, all masked."""
    T, C = 4, 140003
    x, dy = inputs(rng, T, C, dtype=dtype), inputs(rng, T, C, dtype=dtype)
    keep = rng.random((T, C)) < 0.5
    keep[1, :65536] = False
    keep[2, 65536:131072] = False
    keep[3] = False
    mask = keep if kind == "bool" else np.where(keep, 1.5, -np.inf).astype(dtype)
    if kind == "causal":
        mask, keep = None, np.tril(np.ones((T, C), bool))
    y, ctx = ck.softmax_forward(np.where(keep, x, np.array(np.nan, dtype)), mask=mask, causal=kind == "causal")
    dx = ck.softmax_backward(dy, ctx).x
    assert (y[~keep] == 0).all() and (dx[~keep] == 0).all()
    rows = keep.any(-1)
    assert_both(x[rows], dy[rows], y[rows], dx[rows], mask=torch.tensor(keep[rows]))


def test_softmax_of_extremes_in_pieces(isa, dtype, rng):
    inf, nan = np.inf, np.nan
    x = inputs(rng, 5, 140000, dtype=dtype)
    x[0, 70000:] = -inf  # the last pieces
    x[1, :70000] = -inf
    x[2] = -inf
    x[3, 139999] = nan
    x[4, 66000] = inf
    assert_parity(ck.softmax(x), torch.softmax(as_torch(x, "float64"), -1), torch.softmax(as_torch(x), -1))


def test_softmax_does_not_see_a_shift(isa, rng):
    x = np.round(inputs(rng, 4, 50) * 1024) / 1024  # so that the sums below are exact
    np.testing.assert_array_equal(ck.softmax(x + np.float32(200)), ck.softmax(x))


def test_softmax_of_extremes(isa, dtype):
    inf, nan, tiny = np.inf, np.nan, 1e-42 if dtype == np.float32 else 1e-7
    x = np.array([[0, -inf, 0, -inf], [-inf] * 4, [1, nan, 2, 3], [88, 88, 88, 88], [inf, 1, 2, 3],
                  [-inf, nan, -inf, 0], [tiny, -tiny, 0, 0], [-200, 200, 0, 199], [-103, 0, -90, -104]], dtype)
    dy = np.tile(np.array([1, 2, 3, 5], dtype), (9, 1))
    y, ctx = ck.softmax_forward(x)
    assert_both(x, dy, y, ck.softmax_backward(dy, ctx).x)


def test_softmax_of_a_row_with_nan_is_nan_as_in_torch(isa):
    x = np.array([[np.nan, 1, 2], [3, np.nan, 4], [np.inf, 5, 6], [-np.inf, 7, 8]], "f4")
    seen = np.tril(np.ones((4, 3), bool))
    want = torch_softmax(torch.tensor(x), mask=torch.tensor(seen)).numpy()
    np.testing.assert_array_equal(np.isnan(ck.softmax(x, causal=True)), np.isnan(want))
    np.testing.assert_array_equal(np.isnan(ck.softmax(x, mask=seen)), np.isnan(want))


def test_softmax_of_masked_rows(isa):
    x = np.array([[1, 2, 3], [-np.inf, -np.inf, 1], [-np.inf, 1, 2]], "f4")
    mask = np.array([[False] * 3, [True, True, False], [False, True, True]])
    y, ctx = ck.softmax_forward(x, mask=mask)
    np.testing.assert_array_equal(y[0], [0, 0, 0])
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[2] > 0, mask[2])
    np.testing.assert_array_equal(ck.softmax_backward(np.ones((1, 3), "f4"), ctx._replace(y=y[:1])).x, [[0, 0, 0]])


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0), (2, 0, 5)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_softmax_of_nothing(isa, shape, causal):
    y, ctx = ck.softmax_forward(np.ones(shape, "f4"), causal=causal, mask=np.ones(shape[-1], bool))
    assert y.shape == shape and ck.softmax_backward(y, ctx).x.shape == shape


def test_softmax_takes_strided_views(isa, dtype, rng):
    x, dy = (spaced(inputs(rng, 6, 5, 33, dtype=dtype)).transpose(1, 0, 2) for _ in range(2))
    y, ctx = ck.softmax_forward(x, causal=True, out=spaced(np.zeros(x.shape, dtype)))
    dx = ck.softmax_backward(dy, ctx, out=Gradients(spaced(np.zeros(x.shape, dtype)))).x
    flat, flat_ctx = ck.softmax_forward(x.copy(), causal=True)
    np.testing.assert_array_equal(y, flat)
    np.testing.assert_array_equal(dx, ck.softmax_backward(dy.copy(), flat_ctx).x)
    assert gaps_untouched(y) and gaps_untouched(dx)


def test_softmax_takes_tensors(rng):
    x = inputs(rng, 3, 5, 5)
    np.testing.assert_array_equal(ck.softmax(torch.tensor(x), causal=True), ck.softmax(x, causal=True))


X = np.ones((2, 8), "f4")


@pytest.mark.parametrize("error, text, call", [
    (TypeError, r"softmax\(\): 'x' must be float32, float16 or bfloat16, not float64", lambda: ck.softmax(X.astype("f8"))),
    (TypeError, r"softmax\(\): 'x' must be a NumPy array", lambda: ck.softmax([1.0], causal=True)),
    (TypeError, r"softmax\(\): 'scale' must be a number", lambda: ck.softmax(X, scale="large")),
    (TypeError, r"softmax\(\): 'mask' must be bool or float32, not int64",
     lambda: ck.softmax(X, mask=np.ones(8, "i8"))),
    (ValueError, r"softmax\(\): 'mask' of shape \(7,\) does not fit \[..., C\], where ...=\(2,\), C=8",
     lambda: ck.softmax(X, mask=np.ones(7, bool))),
    (ValueError, r"softmax\(\): 'mask' of shape \(1, 2, 8\) does not fit",
     lambda: ck.softmax(X, mask=np.ones((1, 2, 8), bool))),
    (ValueError, r"softmax\(\): 'mask' broadcasts to more axes than are supported, 8",
     lambda: ck.softmax(X.reshape(1, 1, 1, 1, 1, 1, 1, 2, 8), mask=np.ones(8, bool))),
    (TypeError, r"softmax\(\): 'mask' must be bool or float16, not float32",
     lambda: ck.softmax(X.astype("f2"), mask=X)),
    (ValueError, r"softmax\(\): 'causal' needs 'x' to have an axis of queries", lambda: ck.softmax(X[0], causal=True)),
    (ValueError, r"softmax\(\): 'x' must be contiguous along its last axis", lambda: ck.softmax(X[:, ::2])),
    (ValueError, r"softmax\(\): 'x' of shape \(\) does not fit", lambda: ck.softmax(np.array(1, "f4"))),
    (ValueError, r"softmax\(\): 'out' of shape \(2, 7\) does not fit",
     lambda: ck.softmax(X, out=np.empty((2, 7), "f4"))),
    (ValueError, r"softmax\(\): 'out' is written and overlaps 'mask'",
     lambda: (lambda m: ck.softmax(X, mask=m[:2], out=m[1:]))(np.ones((3, 8), "f4"))),
    (ValueError, r"softmax_backward\(\): '(y|dy)' of shape",
     lambda: ck.softmax_backward(X[:1], ck.softmax_forward(X)[1])),
])
def test_softmax_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


def test_softmax_reports_a_lack_of_memory():
    out = np.full_like(X, 7)
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match="softmax"):
        ck.softmax(X, out=out)
    assert (out == 7).all()
