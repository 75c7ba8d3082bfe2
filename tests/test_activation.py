import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.ops.activation import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import assert_gradients_match_torch, assert_matches_torch

SIZES = [(3, c) for c in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33)] + [(2, 3, 5), (20000,), (512, 1536)]
SCALES = [1.0, 30.0, 1e-3]
silu = torch.nn.functional.silu


def normal(rng, shape, scale=1.0):
    return guarded((scale * rng.standard_normal(shape)).astype("f4"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_silu_matches_torch(isa, rng, size, scale):
    x = normal(rng, size, scale)
    x.flat[:1] = -np.abs(x.flat[:1])  # of positive numbers alone, large ones, x itself would pass
    assert_matches_torch(ck.silu(x, out=unwritten(size)), silu, x, trivial=x)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_silu_backward_matches_autograd(isa, rng, size, scale):
    x, dy = normal(rng, size, scale), normal(rng, size)
    grads = ck.silu_backward(dy, ck.silu_forward(x)[1], out=Gradients(unwritten(size)))
    assert_gradients_match_torch(grads, silu, (x,), dy)


def test_silu_gradient_matches_differences(isa, rng):
    x, dy = normal(rng, (3, 33)), normal(rng, (3, 33))
    assert_gradient(ck.silu, x, ck.silu_backward(dy, ck.silu_forward(x)[1]).x, dy, rng)


@pytest.mark.parametrize("first", np.arange(-100, 18, 2.0))
def test_silu_is_right_where_it_is_small(isa, first):
    """Relative to each value, not to the largest: PyTorch gives 0 from -89 down."""
    x = np.linspace(first, first + 2, 1001, dtype="f4")
    wide = x.astype("f8")
    s = 1 / (1 + np.exp(-wide))
    rest = 1 / (1 + np.exp(wide))
    tiny, eps = 2.0**-149, 2.0**-24
    exact = wide * s
    # four roundings, exp's of an ulp; and where the exponential is subnormal |x| times its last place
    assert_parity(ck.silu(x), exact, bound=6 * eps * np.abs(exact) + tiny * (1 + np.abs(wide)))
    slope = s * (1 + wide * rest)
    got = ck.silu_backward(np.ones_like(x), ck.silu_forward(x)[1]).x
    terms = s * (1 + np.abs(wide) * rest)
    assert_parity(got, slope, bound=8 * eps * terms + tiny * (2 + np.abs(wide)), allow_constant=True)


def test_silu_in_place(isa, rng):
    x, dy = normal(rng, (5, 33)), normal(rng, (5, 33))
    y, ctx = ck.silu_forward(x)
    dx = ck.silu_backward(dy, ctx).x.tobytes()
    kept = guarded(dy)
    assert ck.silu_backward(kept, ctx, out=Gradients(kept)).x is kept
    assert kept.tobytes() == dx
    kept = guarded(x)
    assert ck.silu(kept, out=kept) is kept
    assert kept.tobytes() == y.tobytes()
    assert ck.silu_backward(dy, ctx, out=Gradients(x)).x.tobytes() == dx


def test_silu_bits_do_not_depend_on_threads_or_batch(isa, rng):
    x, dy = normal(rng, (400, 333)), normal(rng, (400, 333))

    def everything():
        y, ctx = ck.silu_forward(x)
        return y.tobytes(), ck.silu_backward(dy, ctx).x.tobytes()

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    assert ck.silu(x[217:218, 5:6]).tobytes() == ck.silu(x)[217, 5].tobytes()


def test_silu_bits_are_the_same_on_avx2_and_avx512(rng):
    x, dy, bits = normal(rng, (50, 333), 20.0), normal(rng, (50, 333)), set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            y, ctx = ck.silu_forward(x)
            bits.add(y.tobytes() + ck.silu_backward(dy, ctx).x.tobytes())
    assert len(bits) == 1


def test_silu_of_extremes(isa):
    x = np.array([np.inf, -np.inf, np.nan, -200, 200, 3e38, -3e38, 1e-42, -1e-42, 0.0, -0.0, 7, 7, 7, -104, -110], "f4")
    y, ctx = ck.silu_forward(x)
    wide = torch.tensor(x, dtype=torch.float64)
    exact = silu(wide).numpy()
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))  # NaN, and -inf: -inf * 0
    with np.errstate(over="ignore", under="ignore"):
        near = exact.astype("f4").astype("f8")
    np.testing.assert_array_equal(np.signbit(y[3:]), np.signbit(near[3:]))
    # below -87 the exponential is a subnormal number, off by up to 2^-149, and |x| times it is the result
    np.testing.assert_allclose(y[3:], near[3:], rtol=4 * 2.0**-24, atol=110 * 2.0**-149)
    assert y[0] == np.inf
    dx = ck.silu_backward(np.ones_like(x), ctx).x
    leaf = wide.requires_grad_()
    exact = torch.autograd.grad(silu(leaf).sum(), leaf)[0].numpy()
    np.testing.assert_array_equal(np.isnan(dx), np.isnan(exact))
    finite = np.isfinite(exact)
    np.testing.assert_allclose(dx[finite], exact[finite], rtol=8 * 2.0**-24, atol=120 * 2.0**-149)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,)], ids=str)
def test_silu_of_nothing(isa, shape):
    y, ctx = ck.silu_forward(np.ones(shape, "f4"))
    assert y.shape == ck.silu_backward(y, ctx).x.shape == shape


def test_silu_takes_strided_views(isa, rng):
    x = spaced(normal(rng, (6, 5, 33))).transpose(1, 0, 2)
    dy, out = spaced(normal(rng, (5, 6, 33))), spaced(np.zeros((5, 6, 33), "f4"))
    y, ctx = ck.silu_forward(x, out=out)
    np.testing.assert_array_equal(y, ck.silu(x.copy()))
    assert gaps_untouched(out)
    np.testing.assert_array_equal(
        ck.silu_backward(dy, ctx).x, ck.silu_backward(dy.copy(), ck.silu_forward(x.copy())[1]).x
    )


X = np.ones((2, 8), "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False
CTX = ck.silu_forward(X)[1]
REFUSALS = [
    (TypeError, r"silu\(\): 'x' must be float32, float16 or bfloat16, not float64", lambda: ck.silu(X.astype("f8"))),
    (TypeError, r"silu\(\): 'x' must be a NumPy array", lambda: ck.silu([1.0])),
    (ValueError, r"silu\(\): 'x' of shape \(\) does not fit", lambda: ck.silu(np.array(1, "f4"))),
    (ValueError, r"silu\(\): 'x' must be contiguous along its last axis", lambda: ck.silu(X[:, ::2])),
    (ValueError, r"silu\(\): 'out' of shape \(2, 7\) does not fit", lambda: ck.silu(X, out=np.empty((2, 7), "f4"))),
    (ValueError, r"silu\(\): 'out' is written, but read-only", lambda: ck.silu(X, out=READ_ONLY)),
    (ValueError, r"silu\(\): 'out' is written and overlaps 'x'", lambda: ck.silu(X[:, :7], out=X[:, 1:])),
    (ValueError, r"silu_backward\(\): 'x' of shape \(2, 8\) does not fit", lambda: ck.silu_backward(X[:1], CTX)),
    (ValueError, r"silu_backward\(\): 'out.x' of shape \(8,\)", lambda: ck.silu_backward(X, CTX, out=Gradients(X[0]))),
]


@pytest.mark.parametrize("error, text, call", REFUSALS)
def test_silu_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("which", range(4))
def test_silu_takes_one_strided_view_among_flat_arrays(isa, rng, which):
    shape = (7, 33)
    arrays = [normal(rng, shape) for _ in range(2)] + [np.zeros(shape, "f4") for _ in range(2)]
    y, ctx = ck.silu_forward(arrays[0])
    want = [y, ck.silu_backward(arrays[1], ctx).x]
    arrays[which] = spaced(arrays[which])
    x, dy, out, dx = arrays
    y, ctx = ck.silu_forward(x, out=out)
    for g, w in zip([y, ck.silu_backward(dy, ctx, out=Gradients(dx)).x], want, strict=True):
        np.testing.assert_array_equal(g, w)
