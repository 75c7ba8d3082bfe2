import numpy as np
import pytest
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.add_rms_norm import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_gradients_match_torch, assert_matches_torch

# R, C: around each vector width, a block of backward and one more, a row of a real model.
SIZES = [(5, c) for c in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 576)] + [(32, 40), (33, 40), (100, 24), (3, 4096), (2, 9001)]


def normal(rng, shape, dtype=np.float32):
    return guarded(rng.standard_normal(shape).astype(dtype))


def inputs(rng, R, C, dtype=np.float32, weights=None):
    x, residual = (normal(rng, (R, C), dtype) for _ in range(2))
    return x, residual, guarded(rng.uniform(0.5, 1.5, C).astype(weights or dtype))


def rounded_sum(x, residual):
    return (residual.astype("f4") + x.astype("f4")).astype(x.dtype)


def torch_op(eps):
    """Of the sum as it is stored: its rounding to 16 bits is part of the op, which a float64 side must not undo."""
    return lambda h, w: F.rms_norm(h, w.shape, w, eps)


def assert_gradients(grads, arrays, dys, eps):
    """The terms that cancel in dx: dh, and the scaled dy."""
    x, residual, w = arrays
    h, (dy, dh) = rounded_sum(x, residual), dys
    rstd = 1 / np.sqrt(np.mean(h.astype("f8") ** 2, -1, keepdims=True) + eps)
    terms = np.maximum(np.abs(dh.astype("f8")), np.abs(rstd * dy.astype("f8") * w.astype("f8")))
    both = lambda h, w: (torch_op(eps)(h, w), h + 0)
    for got in grads[:2]:
        assert_gradients_match_torch((got, None), both, (h, w), dys, terms=terms, allow_constant=x.size == 1)
    assert_gradients_match_torch((None, grads[2]), torch_op(eps), (h, w), dy, allow_constant=w.size == 1)


def assert_results(got, x, residual, w, eps, **options):
    assert_matches_torch(got[1], lambda x, residual: residual + x, x, residual, **options)
    assert got[1].tobytes() == rounded_sum(x, residual).tobytes()
    assert_matches_torch(got[0], torch_op(eps), got[1], w, **options)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_add_rms_norm_matches_torch(isa, dtype, rng, size):
    x, residual, w = inputs(rng, *size, dtype)
    got = ck.add_rms_norm(x, residual, w, 1e-5, out=(unwritten(size, dtype), unwritten(size, dtype)))
    assert_results(got, x, residual, w, 1e-5, trivial={"x": x, "residual": residual})


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_add_rms_norm_backward_matches_autograd(isa, dtype, rng, size):
    arrays, dys = inputs(rng, *size, dtype), (normal(rng, size, dtype), normal(rng, size, dtype))
    ctx = ck.add_rms_norm_forward(*arrays, 1e-5)[1]
    out = Gradients(unwritten(size, dtype), unwritten(size, dtype), unwritten(size[-1:], dtype))
    grads = ck.add_rms_norm_backward(dys, ctx, out=out)
    assert all(g is o for g, o in zip(grads, out, strict=True))
    assert_gradients(grads, arrays, dys, 1e-5)
    assert grads.x.tobytes() == grads.residual.tobytes()


def test_add_rms_norm_takes_a_float32_weight_beside_16_bits(isa, dtype, rng):
    arrays = inputs(rng, 40, 33, dtype, np.float32)
    dys = normal(rng, (40, 33), dtype), normal(rng, (40, 33), dtype)
    got, ctx = ck.add_rms_norm_forward(*arrays, 1e-5)
    assert_results(got, *arrays, 1e-5)
    grads = ck.add_rms_norm_backward(dys, ctx)
    assert [g.dtype for g in grads] == [dtype, dtype, np.float32]
    assert_gradients(grads, arrays, dys, 1e-5)


def test_add_rms_norm_gradient_matches_differences(isa, rng):
    x, residual, w = inputs(rng, 3, 33)
    dys = normal(rng, (3, 33)), normal(rng, (3, 33))
    grads = ck.add_rms_norm_backward(dys, ck.add_rms_norm_forward(x, residual, w, 0.1)[1])
    dy = np.stack(dys)
    assert_gradient(lambda moved: np.stack(ck.add_rms_norm(moved, residual, w, 0.1)), x, grads.x, dy, rng)
    assert_gradient(lambda moved: np.stack(ck.add_rms_norm(x, moved, w, 0.1)), residual, grads.residual, dy, rng)
    assert_gradient(lambda moved: ck.add_rms_norm(x, residual, moved, 0.1)[0], w, grads.weight, dys[0], rng)


def test_add_rms_norm_has_the_bits_of_its_parts(isa, dtype, rng):
    x, residual, w = inputs(rng, 40, 333, dtype)
    dy, dh = normal(rng, x.shape, dtype), normal(rng, x.shape, dtype)
    (y, h), ctx = ck.add_rms_norm_forward(x, residual, w, 1e-5)
    want, norm_ctx = ck.rms_norm_forward(ck.add(residual, x), w, 1e-5)
    assert y.tobytes() == want.tobytes() and h.tobytes() == ck.add(residual, x).tobytes()
    grads, parts = ck.add_rms_norm_backward((dy, dh), ctx), ck.rms_norm_backward(dy, norm_ctx)
    assert grads.weight.tobytes() == parts.weight.tobytes()
    if isa != "reference" and dtype == np.float32:  # elsewhere the parts round twice, and the whole once
        assert grads.x.tobytes() == ck.add(dh, parts.x).tobytes()


def test_add_rms_norm_gradients_of_the_sum_are_one_array(isa, rng):
    arrays, dys = inputs(rng, 5, 33), (normal(rng, (5, 33)), normal(rng, (5, 33)))
    ctx = ck.add_rms_norm_forward(*arrays)[1]
    grads = ck.add_rms_norm_backward(dys, ctx)
    assert grads.x is grads.residual
    again = ck.add_rms_norm_backward(dys, ctx, out=grads)
    assert all(a is b for a, b in zip(again, grads, strict=True))
    only = normal(rng, (5, 33))
    assert ck.add_rms_norm_backward(dys, ctx, out=Gradients(residual=only)).x is only


def test_add_rms_norm_accumulates_the_weight_gradient(isa, dtype, rng):
    arrays, dys = inputs(rng, 40, 33, dtype), (normal(rng, (40, 33), dtype), normal(rng, (40, 33), dtype))
    ctx = ck.add_rms_norm_forward(*arrays)[1]
    fresh = ck.add_rms_norm_backward(dys, ctx)
    wide = ck.add_rms_norm_backward(dys, ctx._replace(weight=arrays[2].astype("f4"))).weight
    given = Gradients(weight=np.full(33, 1000, dtype))
    added = ck.add_rms_norm_backward(dys, ctx, out=given, accumulate=True)
    assert added.weight is given.weight
    total = 1000 + wide.astype("f8")  # of a sum that was rounded to float32 before
    half = np.array([abs(float(np.nextafter(t, dtype.type(np.inf)) - t)) for t in total.astype(dtype)]) / 2
    assert_parity(added.weight, total, bound=half + np.spacing(np.abs(wide)).astype("f8"))
    np.testing.assert_array_equal(added.x, fresh.x)


def test_add_rms_norm_in_place(isa, dtype, rng):
    x, residual, w = inputs(rng, 35, 33, dtype)
    dys = normal(rng, x.shape, dtype), normal(rng, x.shape, dtype)
    (y, h), ctx = ck.add_rms_norm_forward(x, residual, w)
    want = ck.add_rms_norm_backward(dys, ctx).x.tobytes()
    for target in 0, 1:
        kept = [guarded(d) for d in dys]
        assert ck.add_rms_norm_backward(kept, ctx, out=Gradients(kept[target])).x is kept[target]
        assert kept[target].tobytes() == want
        assert kept[1 - target].tobytes() == dys[1 - target].tobytes()
    for first, second in ((0, 1), (1, 0)):
        kept = [guarded(x), guarded(residual)]
        got = ck.add_rms_norm(*kept, w, out=(kept[first], kept[second]))
        assert got[0] is kept[first] and got[1] is kept[second]
        assert got[0].tobytes() == y.tobytes() and got[1].tobytes() == h.tobytes()


def everything(x, residual, w):
    (y, h), ctx = ck.add_rms_norm_forward(x, residual, w)
    return [a.tobytes() for a in (y, h, *ck.add_rms_norm_backward((x, residual), ctx))]


@pytest.mark.parametrize("C", [333, 5000])
def test_add_rms_norm_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, C):
    x, residual, w = inputs(rng, 100, C, dtype)
    ck.set_num_threads(1)
    alone = everything(x, residual, w)
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(x, residual, w) == alone
    one = ck.add_rms_norm(x[41:42], residual[41:42], w)
    assert one[0].tobytes() == ck.add_rms_norm(x, residual, w)[0][41].tobytes()


def test_add_rms_norm_of_rows_that_are_cut(isa, dtype, rng):
    """Two of three pieces and eighteen slices each (ops/norm_rows.h)."""
    test_add_rms_norm_matches_torch(isa, dtype, rng, (2, 140001))
    test_add_rms_norm_backward_matches_autograd(isa, dtype, rng, (2, 140001))


def test_add_rms_norm_bits_of_rows_that_are_cut(isa, dtype, rng):
    """Three of 90000 are cut into pieces and slices, two are not."""
    x, residual, w = inputs(rng, 3, 90000, dtype)
    ck.set_num_threads(3)
    three, two = everything(x, residual, w), everything(x[:2], residual[:2], w)
    ck.set_num_threads(1)
    assert everything(x, residual, w) == three
    for i in (0, 1, 2):
        assert len(three[i]) == x.nbytes and three[i].startswith(two[i])


def test_add_rms_norm_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    for C in 333, 4500:
        arrays, bits = inputs(rng, 50, C, dtype), set()
        for isa in {"avx2", "avx512"} & set(ck.isas()):
            with ck.use(isa):
                bits.add(b"".join(everything(*arrays)))
        assert len(bits) == 1


@pytest.mark.parametrize("C", [1000, 4096])
def test_add_rms_norm_bits_are_the_same_past_the_caches(isa, dtype, rng, C):
    """The largest calls store otherwise; rows of 1000 start anywhere in a line."""
    R = 40 if isa in ("reference", "baseline") else (40 << 20) // (4 * dtype.itemsize * C) // 20 * 20
    x, residual, w = (np.tile(a, (R // 20, 1)) if a.ndim == 2 else a for a in inputs(rng, 20, C, dtype))
    (y, h), ctx = ck.add_rms_norm_forward(x, residual, w)
    few, few_ctx = ck.add_rms_norm_forward(x[:20], residual[:20], w)
    dx, few_dx = (ck.add_rms_norm_backward(dys, c).x for dys, c in (((y, h), ctx), (few, few_ctx)))
    kept = residual.copy()  # in place: the sum is stored as ever, the norm past the caches
    got = ck.add_rms_norm(x, kept, w, out=(None, kept))
    for a, b in (y, few[0]), (h, few[1]), (dx, few_dx), (got[0], few[0]), (kept, few[1]):
        assert (a.reshape(-1, 20, C).view("u1") == b.view("u1")).all()


def test_add_rms_norm_sees_eps(isa, dtype, rng):
    _, _, w = inputs(rng, 3, 64, dtype)
    x, residual = ((normal(rng, (3, 64)) * 3e-3).astype(dtype) for _ in range(2))  # the mean square of the sum is about eps
    assert_results(ck.add_rms_norm(x, residual, w, 1e-5), x, residual, w, 1e-5)
    with pytest.raises(AssertionError):
        assert_results(ck.add_rms_norm(x, residual, w, 1e-4), x, residual, w, 1e-5)


def test_add_rms_norm_of_extremes(isa):
    inf, nan, tiny, low = np.inf, np.nan, 1e-42, -200.0
    x = np.array([[1, nan, 2, 3], [1, inf, 2, -3], [tiny, -tiny, 0, tiny], [low, 200, low, 200], [7, 7, 7, 7]], "f4")
    residual = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [tiny, tiny, 0, 0], [0, 0, 1, 1], [7, 7, 7, 7]], "f4")
    y, h = ck.add_rms_norm(x, residual, np.ones(4, "f4"), 1e-5)
    np.testing.assert_array_equal(h, residual + x)
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], np.array([0, nan, 0, -0.0], "f4"))
    exact, peer = (
        torch_op(1e-5)(*(as_torch(a, p) for a in (h, np.ones(4)))) for p in ("float64", "float32")
    )
    assert_parity(y[2:], exact[2:], peer[2:])


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)], ids=str)
def test_add_rms_norm_of_nothing(isa, dtype, shape):
    x, w = np.ones(shape, dtype), np.ones(shape[1], dtype)
    (y, h), ctx = ck.add_rms_norm_forward(x, x, w)
    grads = ck.add_rms_norm_backward((y, h), ctx)
    assert (y.shape, h.shape, grads.x.shape, grads.weight.shape) == (shape, shape, shape, w.shape)
    np.testing.assert_array_equal(grads.weight, np.zeros_like(w))


def test_add_rms_norm_takes_strided_views(isa, dtype, rng):
    w = normal(rng, 33, dtype)
    x = spaced(normal(rng, (6, 5, 33), dtype)).transpose(1, 0, 2)
    residual, dy, dh = (spaced(normal(rng, (5, 6, 33), dtype)) for _ in range(3))
    out = spaced(np.zeros(x.shape, dtype)), spaced(np.zeros(x.shape, dtype))
    got, ctx = ck.add_rms_norm_forward(x, residual, w, out=out)
    flat, flat_ctx = ck.add_rms_norm_forward(x.copy(), residual.copy(), w)
    given = Gradients(spaced(np.zeros(x.shape, dtype)), spaced(np.zeros(x.shape, dtype)))
    grads = ck.add_rms_norm_backward((dy, dh), ctx, out=given)
    flat_grads = ck.add_rms_norm_backward((dy.copy(), dh.copy()), flat_ctx)
    for g, f in zip((*got, *grads), (*flat, *flat_grads), strict=True):
        np.testing.assert_array_equal(g, f)
    assert all(gaps_untouched(a) for a in (*out, given.x, given.residual))


X, W = np.ones((2, 8), "f4"), np.ones(8, "f4")
CTX = ck.add_rms_norm_forward(X, X, W)[1]
REFUSALS = [
    (TypeError, r"add_rms_norm\(\): 'x' must be float32, float16 or bfloat16, not float64", lambda: ck.add_rms_norm(X.astype("f8"), X, W)),
    (TypeError, r"add_rms_norm\(\): 'weight' must be a NumPy array", lambda: ck.add_rms_norm(X, X, None)),
    (ValueError, r"add_rms_norm\(\): 'residual' of shape \(8,\) does not fit", lambda: ck.add_rms_norm(X, X[0], W)),
    (ValueError, r"add_rms_norm\(\): 'weight' of shape \(4,\) .*C=8", lambda: ck.add_rms_norm(X, X, W[:4])),
    (ValueError, r"add_rms_norm\(\): 'out' is written and overlaps 'h'", lambda: ck.add_rms_norm(X, X, W, out=(X, X))),
    (TypeError, r"add_rms_norm_backward\(\): 'dy' must be a tuple of two", lambda: ck.add_rms_norm_backward(X, CTX)),
    (
        ValueError,
        r"add_rms_norm_backward\(\): 'out.weight' of shape \(7,\)",
        lambda: ck.add_rms_norm_backward((X, X), CTX, out=Gradients(weight=np.ones(7, "f4"))),
    ),
    (
        ValueError,
        r"add_rms_norm_backward\(\): 'dh' of shape \(1, 8\)",
        lambda: ck.add_rms_norm_backward((X, X[:1]), CTX),
    ),
]


@pytest.mark.parametrize("error, text, call", REFUSALS)
def test_add_rms_norm_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


def test_add_rms_norm_reports_a_lack_of_memory(rng):
    given = Gradients(np.full_like(X, 5), None, np.full_like(W, 5))
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match="add_rms_norm_backward"):
        ck.add_rms_norm_backward((X, X), CTX, out=given)
    assert (given.x == 5).all() and (given.weight == 5).all()
