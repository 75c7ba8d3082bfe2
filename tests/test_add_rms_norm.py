import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.add_rms_norm import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_matches_torch

# R, C: around each vector width, a block of backward and one more, a row of a real model.
SIZES = [(5, c) for c in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 576)] + [(32, 40), (33, 40), (100, 24), (3, 4096)]


def normal(rng, shape):
    return guarded(rng.standard_normal(shape).astype("f4"))


def inputs(rng, R, C):
    x, residual = (normal(rng, (R, C)) for _ in range(2))
    return x, residual, guarded(rng.uniform(0.5, 1.5, C).astype("f4"))


def torch_op(eps):
    return lambda x, residual, w: (F.rms_norm(residual + x, w.shape, w, eps), residual + x)


def gradients(precision, arrays, dys, eps):
    tensors = [as_torch(a, precision, grad=True) for a in arrays]
    return torch.autograd.grad(torch_op(eps)(*tensors), tensors, [as_torch(d, precision) for d in dys])


def assert_gradients(grads, arrays, dys, eps):
    """The terms that cancel in dx: dh, and the scaled dy."""
    x, residual, w = (a.astype("f8") for a in arrays)
    rstd = 1 / np.sqrt(np.mean((x + residual) ** 2, -1, keepdims=True) + eps)
    terms = np.maximum(np.abs(dys[1]), np.abs(rstd * dys[0] * w))
    exact, peer = (gradients(p, arrays, dys, eps) for p in ("float64", "float32"))
    for i in range(3):
        assert_parity(grads[i], exact[i], peer[i], terms=terms if i < 2 else None, allow_constant=arrays[i].size == 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_add_rms_norm_matches_torch(isa, rng, size):
    x, residual, w = inputs(rng, *size)
    got = ck.add_rms_norm(x, residual, w, 1e-5, out=(unwritten(size), unwritten(size)))
    assert_matches_torch(got, torch_op(1e-5), x, residual, w, trivial={"x": x, "residual": residual})


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_add_rms_norm_backward_matches_autograd(isa, rng, size):
    arrays, dys = inputs(rng, *size), (normal(rng, size), normal(rng, size))
    ctx = ck.add_rms_norm_forward(*arrays, 1e-5)[1]
    out = Gradients(unwritten(size), unwritten(size), unwritten(size[-1:]))
    grads = ck.add_rms_norm_backward(dys, ctx, out=out)
    assert all(g is o for g, o in zip(grads, out, strict=True))
    assert_gradients(grads, arrays, dys, 1e-5)
    assert grads.x.tobytes() == grads.residual.tobytes()


def test_add_rms_norm_gradient_matches_differences(isa, rng):
    x, residual, w = inputs(rng, 3, 33)
    dys = normal(rng, (3, 33)), normal(rng, (3, 33))
    grads = ck.add_rms_norm_backward(dys, ck.add_rms_norm_forward(x, residual, w, 0.1)[1])
    dy = np.stack(dys)
    assert_gradient(lambda moved: np.stack(ck.add_rms_norm(moved, residual, w, 0.1)), x, grads.x, dy, rng)
    assert_gradient(lambda moved: np.stack(ck.add_rms_norm(x, moved, w, 0.1)), residual, grads.residual, dy, rng)
    assert_gradient(lambda moved: ck.add_rms_norm(x, residual, moved, 0.1)[0], w, grads.weight, dys[0], rng)


def test_add_rms_norm_has_the_bits_of_its_parts(isa, rng):
    x, residual, w = inputs(rng, 40, 333)
    dy, dh = normal(rng, x.shape), normal(rng, x.shape)
    (y, h), ctx = ck.add_rms_norm_forward(x, residual, w, 1e-5)
    want, norm_ctx = ck.rms_norm_forward(ck.add(residual, x), w, 1e-5)
    assert y.tobytes() == want.tobytes() and h.tobytes() == ck.add(residual, x).tobytes()
    if isa != "reference":  # which rounds once, from end to end
        grads, parts = ck.add_rms_norm_backward((dy, dh), ctx), ck.rms_norm_backward(dy, norm_ctx)
        assert grads.x.tobytes() == ck.add(dh, parts.x).tobytes()
        assert grads.weight.tobytes() == parts.weight.tobytes()


def test_add_rms_norm_gradients_of_the_sum_are_one_array(isa, rng):
    arrays, dys = inputs(rng, 5, 33), (normal(rng, (5, 33)), normal(rng, (5, 33)))
    ctx = ck.add_rms_norm_forward(*arrays)[1]
    grads = ck.add_rms_norm_backward(dys, ctx)
    assert grads.x is grads.residual
    again = ck.add_rms_norm_backward(dys, ctx, out=grads)
    assert all(a is b for a, b in zip(again, grads, strict=True))
    only = normal(rng, (5, 33))
    assert ck.add_rms_norm_backward(dys, ctx, out=Gradients(residual=only)).x is only


def test_add_rms_norm_accumulates_the_weight_gradient(isa, rng):
    arrays, dys = inputs(rng, 40, 33), (normal(rng, (40, 33)), normal(rng, (40, 33)))
    ctx = ck.add_rms_norm_forward(*arrays)[1]
    fresh = ck.add_rms_norm_backward(dys, ctx)
    given = Gradients(weight=np.full(33, 1000, "f4"))
    added = ck.add_rms_norm_backward(dys, ctx, out=given, accumulate=True)
    assert added.weight is given.weight
    roundings = np.spacing(added.weight).astype("f8") / 2 + np.spacing(np.abs(fresh.weight)).astype("f8") / 2
    assert_parity(added.weight, 1000 + fresh.weight.astype("f8"), bound=roundings)
    np.testing.assert_array_equal(added.x, fresh.x)


def test_add_rms_norm_in_place(isa, rng):
    x, residual, w = inputs(rng, 35, 33)
    dys = normal(rng, x.shape), normal(rng, x.shape)
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


def test_add_rms_norm_bits_do_not_depend_on_threads_or_batch(isa, rng):
    x, residual, w = inputs(rng, 500, 333)

    def everything():
        (y, h), ctx = ck.add_rms_norm_forward(x, residual, w)
        return [a.tobytes() for a in (y, h, *ck.add_rms_norm_backward((x, residual), ctx))]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    one = ck.add_rms_norm(x[417:418], residual[417:418], w)
    assert one[0].tobytes() == ck.add_rms_norm(x, residual, w)[0][417].tobytes()


def test_add_rms_norm_bits_are_the_same_on_avx2_and_avx512(rng):
    x, residual, w = inputs(rng, 50, 333)
    bits = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            (y, h), ctx = ck.add_rms_norm_forward(x, residual, w)
            bits.add(b"".join(a.tobytes() for a in (y, h, *ck.add_rms_norm_backward((x, residual), ctx))))
    assert len(bits) == 1


def test_add_rms_norm_sees_eps(isa, rng):
    x, residual, w = inputs(rng, 3, 64)
    x *= np.float32(3e-3)
    residual *= np.float32(3e-3)  # the mean square of the sum is about eps
    assert_matches_torch(ck.add_rms_norm(x, residual, w, 1e-5), torch_op(1e-5), x, residual, w)
    with pytest.raises(AssertionError):
        assert_matches_torch(ck.add_rms_norm(x, residual, w, 1e-4), torch_op(1e-5), x, residual, w)


def test_add_rms_norm_of_extremes(isa):
    inf, nan, tiny, low = np.inf, np.nan, 1e-42, -200.0
    x = np.array([[1, nan, 2, 3], [1, inf, 2, -3], [tiny, -tiny, 0, tiny], [low, 200, low, 200], [7, 7, 7, 7]], "f4")
    residual = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [tiny, tiny, 0, 0], [0, 0, 1, 1], [7, 7, 7, 7]], "f4")
    y, h = ck.add_rms_norm(x, residual, np.ones(4, "f4"), 1e-5)
    np.testing.assert_array_equal(h, residual + x)
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], np.array([0, nan, 0, -0.0], "f4"))
    exact, peer = (
        torch_op(1e-5)(*(as_torch(a, p) for a in (x, residual, np.ones(4))))[0] for p in ("float64", "float32")
    )
    assert_parity(y[2:], exact[2:], peer[2:])


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)], ids=str)
def test_add_rms_norm_of_nothing(isa, shape):
    x, w = np.ones(shape, "f4"), np.ones(shape[1], "f4")
    (y, h), ctx = ck.add_rms_norm_forward(x, x, w)
    grads = ck.add_rms_norm_backward((y, h), ctx)
    assert (y.shape, h.shape, grads.x.shape, grads.weight.shape) == (shape, shape, shape, w.shape)
    np.testing.assert_array_equal(grads.weight, np.zeros_like(w))


def test_add_rms_norm_takes_strided_views(isa, rng):
    w = normal(rng, 33)
    x = spaced(normal(rng, (6, 5, 33))).transpose(1, 0, 2)
    residual, dy, dh = (spaced(normal(rng, (5, 6, 33))) for _ in range(3))
    out = spaced(np.zeros(x.shape, "f4")), spaced(np.zeros(x.shape, "f4"))
    got, ctx = ck.add_rms_norm_forward(x, residual, w, out=out)
    flat, flat_ctx = ck.add_rms_norm_forward(x.copy(), residual.copy(), w)
    given = Gradients(spaced(np.zeros(x.shape, "f4")), spaced(np.zeros(x.shape, "f4")))
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
