import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.ops.add import Gradients
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import assert_gradients_match_torch, assert_matches_torch

SIZES = [(3, c) for c in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33)] + [(2, 3, 5), (20000,), (512, 576)]
ALPHAS = [1.0, -0.3]


def normal(rng, shape):
    return guarded(rng.standard_normal(shape).astype("f4"))


def torch_add(alpha):
    return lambda x, y: torch.add(x, y, alpha=alpha if x.dtype == torch.float32 else float(np.float32(alpha)))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_add_matches_torch(isa, rng, size, alpha):
    x, y = normal(rng, size), normal(rng, size)
    got = ck.add(x, y, alpha, out=unwritten(size))
    assert_matches_torch(got, torch_add(alpha), x, y, trivial={"x": x, "y": y})


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_add_backward_matches_autograd(isa, rng, size, alpha):
    x, y, dy = (normal(rng, size) for _ in range(3))
    grads = ck.add_backward(dy, ck.add_forward(x, y, alpha)[1], out=Gradients(unwritten(size), unwritten(size)))
    assert_gradients_match_torch(grads, torch_add(alpha), (x, y), dy)
    assert grads.x.tobytes() == dy.tobytes()


def test_add_gradient_matches_differences(isa, rng):
    x, y, dy = (normal(rng, (3, 33)) for _ in range(3))
    dx, d_of_y = ck.add_backward(dy, ck.add_forward(x, y, 0.7)[1])
    assert_gradient(lambda moved: ck.add(moved, y, 0.7), x, dx, dy, rng)
    assert_gradient(lambda moved: ck.add(x, moved, 0.7), y, d_of_y, dy, rng)


def test_add_in_place(isa, rng):
    x, y = normal(rng, (5, 33)), normal(rng, (5, 33))
    z = ck.add(x, y, 0.3)
    for target in 0, 1:
        pair = [guarded(x), guarded(y)]
        assert ck.add(*pair, 0.3, out=pair[target]) is pair[target]
        assert pair[target].tobytes() == z.tobytes()
        assert pair[1 - target].tobytes() == (x, y)[1 - target].tobytes()
    assert ck.add(x, x).tobytes() == (2 * x).tobytes()
    ctx = ck.add_forward(x, y, 0.3)[1]
    want = [a.tobytes() for a in ck.add_backward(x, ctx)]
    for field in "x", "y":
        dy = guarded(x)
        got = ck.add_backward(dy, ctx, out=Gradients(**{field: dy}))
        assert getattr(got, field) is dy
        assert [a.tobytes() for a in got] == want


def test_add_bits_do_not_depend_on_threads_or_batch(isa, rng):
    x, y = normal(rng, (400, 333)), normal(rng, (400, 333))

    def everything():
        z, ctx = ck.add_forward(x, y, 0.3)
        return [a.tobytes() for a in (z, *ck.add_backward(x, ctx))]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    assert ck.add(x[217:218], y[217:218], 0.3).tobytes() == ck.add(x, y, 0.3)[217].tobytes()


def test_add_bits_are_the_same_on_avx2_and_avx512(rng):
    x, y, bits = normal(rng, (50, 333)), normal(rng, (50, 333)), set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            z, ctx = ck.add_forward(x, y, 0.3)
            bits.add(b"".join(a.tobytes() for a in (z, *ck.add_backward(x, ctx))))
    assert len(bits) == 1


def test_add_of_extremes(isa):
    inf, nan = np.inf, np.nan
    x = np.array([1e-42, nan, inf, inf, -200, 3e38, 0.0, -0.0], "f4")
    y = np.array([1e-42, 1, -inf, 1, 200, 3e38, -0.0, -0.0], "f4")
    want = np.array([2 * np.float32(1e-42), nan, nan, inf, 0, inf, 0.0, -0.0], "f4")
    got = ck.add(x, y)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[-2:]), [False, True])


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,)], ids=str)
def test_add_of_nothing(isa, shape):
    x = np.ones(shape, "f4")
    z, ctx = ck.add_forward(x, x)
    assert z.shape == ck.add_backward(z, ctx).y.shape == shape


def test_add_takes_strided_views(isa, rng):
    x = spaced(normal(rng, (6, 5, 33))).transpose(1, 0, 2)
    y = spaced(normal(rng, (5, 6, 33)))
    out = spaced(np.zeros((5, 6, 33), "f4"))
    z, ctx = ck.add_forward(x, y, 0.3, out=out)
    np.testing.assert_array_equal(z, ck.add(x.copy(), y.copy(), 0.3))
    assert gaps_untouched(out)
    for got, want in zip(ck.add_backward(x, ctx), ck.add_backward(x.copy(), ctx), strict=True):
        np.testing.assert_array_equal(got, want)


X = np.ones((2, 8), "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False
CTX = ck.add_forward(X, X)[1]
REFUSALS = [
    (TypeError, r"add\(\): 'y' must be float32, not float64", lambda: ck.add(X, X.astype("f8"))),
    (TypeError, r"add\(\): 'x' must be a NumPy array", lambda: ck.add(1.0, X)),
    (TypeError, r"add\(\): 'alpha' must be a number", lambda: ck.add(X, X, "1")),
    (ValueError, r"add\(\): 'y' of shape \(8,\) does not fit", lambda: ck.add(X, X[0])),
    (ValueError, r"add\(\): 'y' must be contiguous along its last axis", lambda: ck.add(X[:, :4], X[:, ::2])),
    (ValueError, r"add\(\): 'out' is written, but read-only", lambda: ck.add(X, X, out=READ_ONLY)),
    (ValueError, r"add\(\): 'out' is written and overlaps 'x'", lambda: ck.add(X[:1, :7], X[:1, :7], out=X[:1, 1:])),
    (ValueError, r"add_backward\(\): 'out.y' of shape \(3,\)", lambda: ck.add_backward(X, CTX, out=(None, X[0, :3]))),
    (
        ValueError,
        r"add_backward\(\): 'out.x' is written and overlaps 'out.y'",
        lambda: ck.add_backward(np.ones_like(X), CTX, out=Gradients(X, X)),
    ),
    (TypeError, r"add_backward\(\): 'dy' must be float32", lambda: ck.add_backward(X.astype("f8"), CTX)),
]


@pytest.mark.parametrize("error, text, call", REFUSALS)
def test_add_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("which", range(6))
def test_add_takes_one_strided_view_among_flat_arrays(isa, rng, which):
    shape = (7, 33)
    arrays = [normal(rng, shape) for _ in range(3)] + [np.zeros(shape, "f4") for _ in range(3)]
    z, ctx = ck.add_forward(*arrays[:2], 0.3)
    want = [z, *ck.add_backward(arrays[2], ctx)]
    arrays[which] = spaced(arrays[which])
    x, y, dy, out, dx, d_of_y = arrays
    z, ctx = ck.add_forward(x, y, 0.3, out=out)
    for g, w in zip([z, *ck.add_backward(dy, ctx, out=Gradients(dx, d_of_y))], want, strict=True):
        np.testing.assert_array_equal(g, w)
