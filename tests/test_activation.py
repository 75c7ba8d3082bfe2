import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.activation import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_gradients_match_torch, assert_matches_torch

# Sizes around each vector width, and other scales at one of them.
CASES = [((3, c), 1.0) for c in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33)] + [((2, 3, 5), 1.0), ((20000,), 1.0)]
CASES += [((40, 33), 30.0), ((40, 33), 1e-3)]


def function(name, torch_function, *arguments):
    """One op with its arguments: what to call, and PyTorch's."""
    return SimpleNamespace(
        name=name,
        torch=torch_function,
        arguments=arguments,
        forward=lambda x, **out: getattr(ck, name + "_forward")(x, *arguments, **out),
        value=lambda x, **out: getattr(ck, name)(x, *arguments, **out),
        backward=getattr(ck, name + "_backward"),
    )


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


CAP = 4.7
FUNCTIONS = {
    "relu": function("relu", F.relu),
    "silu": function("silu", F.silu),
    "gelu": function("gelu", F.gelu),
    "gelu tanh": function("gelu", lambda x: F.gelu(x, approximate="tanh"), "tanh"),
    "gelu sigmoid": function("gelu", quick_gelu, "sigmoid"),
    "sigmoid": function("sigmoid", torch.sigmoid),
    "tanh": function("tanh", torch.tanh),
    "softcap": function("softcap", lambda x: CAP * torch.tanh(x / CAP), CAP),
}


@pytest.fixture(params=FUNCTIONS)
def f(request):
    """Run the test once per function."""
    return FUNCTIONS[request.param]


def normal(rng, shape, scale=1.0, dtype="f4"):
    x = scale * rng.standard_normal(shape)
    x.flat[:1] = -np.abs(x.flat[:1])  # of positive numbers alone, large ones, x itself would pass
    return guarded(x.astype(dtype))


def everything(f, x, dy):
    """Bytes of both passes."""
    y, ctx = f.forward(x)
    return y.tobytes(), f.backward(dy, ctx).x.tobytes()


@pytest.mark.parametrize("size, scale", CASES, ids=str)
def test_matches_torch(isa, dtype, rng, f, size, scale):
    x = normal(rng, size, scale, dtype)
    y = f.value(x, out=unwritten(size, dtype))
    near = f.name in ("tanh", "softcap") and (scale == 1e-3 or size[-1] == 1)  # to x itself
    trivial = None if near else x
    options = {"allow_constant": True} if size[-1] == 1 or f.name in ("relu", "sigmoid", "tanh", "softcap") else {}
    assert_matches_torch(y, f.torch, x, trivial=trivial, **options)


@pytest.mark.parametrize("size, scale", CASES, ids=str)
def test_backward_matches_autograd(isa, dtype, rng, f, size, scale):
    x, dy = normal(rng, size, scale, dtype), normal(rng, size, 1.0, dtype)
    grads = f.backward(dy, f.forward(x)[1], out=Gradients(unwritten(size, dtype)))
    assert_gradients_match_torch(grads, f.torch, (x,), dy, allow_constant=True)


def test_one_real_shape(isa, dtype, rng):
    x, dy = normal(rng, (512, 1536), 1.0, dtype), normal(rng, (512, 1536), 1.0, dtype)
    y, ctx = ck.silu_forward(x)
    assert_matches_torch(y, F.silu, x, trivial=x)
    assert_gradients_match_torch(ck.silu_backward(dy, ctx), F.silu, (x,), dy)


def test_gradient_matches_differences(isa, rng, f):
    x, dy = normal(rng, (3, 33)), normal(rng, (3, 33))
    x += np.copysign(np.float32(0.1), x)  # away from the corner of relu
    assert_gradient(f.value, x, f.backward(dy, f.forward(x)[1]).x, dy, rng)


def test_functions_cannot_be_confused(isa, rng):
    x = normal(rng, (30, 33), 2.0)
    for name, f in FUNCTIONS.items():
        for other, g in FUNCTIONS.items():
            if other != name:
                with pytest.raises(AssertionError):
                    assert_matches_torch(f.value(x), g.torch, x)
                with pytest.raises(AssertionError):
                    assert_gradients_match_torch(
                        f.backward(np.ones_like(x), f.forward(x)[1]), g.torch, (x,), np.ones_like(x)
                    )


EPS, TINY = 2.0**-24, 2.0**-149


@pytest.mark.parametrize("first", np.arange(-106, 18, 2.0))
def test_silu_is_right_where_it_is_small(isa, first):
    """Relative to each value, not to the largest: PyTorch gives 0 from -89 down."""
    x = np.linspace(first, first + 2, 1001, dtype="f4")
    wide = x.astype("f8")
    s, rest = 1 / (1 + np.exp(-wide)), 1 / (1 + np.exp(wide))
    exact = wide * s
    # four roundings, e^x's of an ulp
    assert_parity(ck.silu(x), exact, bound=6 * EPS * np.abs(exact) + TINY)
    slope = s * (1 + wide * rest)
    got = ck.silu_backward(np.ones_like(x), ck.silu_forward(x)[1]).x
    terms = s * (1 + np.abs(wide) * rest)  # and where s is subnormal |x| times its last place
    assert_parity(got, slope, bound=8 * EPS * terms + TINY * (2 + np.abs(wide)), allow_constant=True)


@pytest.mark.parametrize("first", np.arange(-14, 7, 1.0))
def test_gelu_is_right_where_it_is_small(isa, first):
    """Relative to each value: PyTorch gives 0 from -5.5 down, by 1 + erf."""
    from math import erfc, exp, pi, sqrt

    x = np.linspace(first, first + 1, 1001, dtype="f4")
    wide = x.astype("f8")
    below = np.array([0.5 * erfc(-v / sqrt(2)) for v in wide])
    exact = wide * below
    # of at most eleven roundings: p and q, each by itself two, the power two, four products, the quotient
    assert_parity(ck.gelu(x), exact, bound=11 * EPS * np.abs(exact) + TINY)
    pull = wide * np.array([exp(-v * v / 2) for v in wide]) / sqrt(2 * pi)
    got = ck.gelu_backward(np.ones_like(x), ck.gelu_forward(x)[1]).x
    terms = below + np.abs(pull)
    assert_parity(got, below + pull, bound=11 * EPS * terms + TINY * (2 + np.abs(wide)), allow_constant=True)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_slope_is_right_where_the_function_is_flat(isa, name):
    """Relative to each value: from y alone it would be 0 where y is 1 to its last place."""
    x = np.linspace(-40, 40, 4001, dtype="f4")
    wide = np.abs(x.astype("f8")) * (2 if name == "tanh" else 1)
    exact = (4 if name == "tanh" else 1) * np.exp(-wide) / (1 + np.exp(-wide)) ** 2
    f = FUNCTIONS[name]
    got = f.backward(np.ones_like(x), f.forward(x)[1]).x
    assert_parity(got, exact, bound=8 * EPS * exact + TINY)


def test_in_place(isa, dtype, rng, f):
    x, dy = normal(rng, (5, 33), 1.0, dtype), normal(rng, (5, 33), 1.0, dtype)
    y, ctx = f.forward(x)
    dx = f.backward(dy, ctx).x.tobytes()
    kept = guarded(dy)
    assert f.backward(kept, ctx, out=Gradients(kept)).x is kept
    assert kept.tobytes() == dx
    kept = guarded(x)
    assert f.value(kept, out=kept) is kept
    assert kept.tobytes() == y.tobytes()
    assert f.backward(dy, ctx, out=Gradients(x)).x.tobytes() == dx


def test_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, f):
    x, dy = normal(rng, (400, 333), 1.0, dtype), normal(rng, (400, 333), 1.0, dtype)
    ck.set_num_threads(1)
    alone = everything(f, x, dy)
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(f, x, dy) == alone
    assert f.value(x[217:218, 5:6]).tobytes() == f.value(x)[217, 5].tobytes()


def test_bits_are_the_same_on_avx2_and_avx512(dtype, rng, f):
    x, dy, bits = normal(rng, (50, 333), 20.0, dtype), normal(rng, (50, 333), 1.0, dtype), set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            bits.add(everything(f, x, dy))
    assert len(bits) == 1


@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize("isa", [isa for isa in ck.isas() if isa != "reference"])
def test_large_arrays_have_the_same_bits(isa, dtype, rng, offset):
    """Above 32 MiB outputs pass the caches by, in whole lines: heads and tails are their own loops."""
    n = (17 << 20) // dtype.itemsize + 21
    small, dy = normal(rng, 4096, 3.0, dtype), normal(rng, 4096, 1.0, dtype)
    with ck.use(isa):
        y, ctx = ck.silu_forward(small)
        dx = ck.silu_backward(dy, ctx).x
        whole = np.resize(small, n)
        out = ck.empty(n + 8, dtype)
        out[...] = np.nan
        out = out[offset:][:n]
        assert ck.silu(whole, out=out).tobytes() == np.resize(y, n).tobytes()
        dys = np.resize(dy, n)
        assert ck.silu_backward(dys, ck.silu_forward(whole)[1], out=Gradients(out)).x.tobytes() == np.resize(dx, n).tobytes()


EXTREMES = [np.inf, -np.inf, np.nan, -200, 200, 1e30, -1e30, 3e38, -3e38, 1e-42, -1e-42, 0.0, -0.0, 7, 7, 7, -104, -110]


def test_extremes(isa, f):
    x = np.array(EXTREMES, "f4")
    y, ctx = f.forward(x)
    wide = torch.tensor(x, dtype=torch.float64)
    exact = f.torch(wide).numpy()
    if f.name in ("silu", "gelu"):
        assert np.isnan(exact[1])  # -inf * 0
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    with np.errstate(over="ignore", under="ignore"):
        near = exact.astype("f4").astype("f8")
    finite = np.isfinite(near)
    np.testing.assert_array_equal(y[~finite], near[~finite].astype("f4"))
    if f.name != "relu":  # of which PyTorch's CPU code gives either zero
        ours, theirs = np.signbit(y[finite]), np.signbit(near[finite])
        silent = (near[finite] == 0) & (x[finite] < 0) & (x[finite] > -1e-30)
        np.testing.assert_array_equal(ours[~silent], theirs[~silent])
    bound = 12 * EPS * np.abs(near[finite]) + 2 * TINY
    bound += 200 * EPS * np.abs(near[finite]) * (f.arguments != ())  # e^w of a rounded w
    assert (np.abs(y[finite] - near[finite]) <= bound).all()


def test_gradients_of_extremes(isa, f):
    x = np.array(EXTREMES, "f4")
    dx = f.backward(np.ones_like(x), f.forward(x)[1]).x
    leaf = torch.tensor(x, dtype=torch.float64).requires_grad_()
    exact = torch.autograd.grad(f.torch(leaf).sum(), leaf)[0].numpy()
    np.testing.assert_array_equal(np.isnan(dx), np.isnan(exact))
    finite = np.isfinite(exact)
    np.testing.assert_allclose(dx[finite], exact[finite], rtol=12 * EPS, atol=2.0**-52)  # of 1 - y * y


def test_relu_stops_what_would_be_nan(isa):
    """Where x is not positive the gradient is 0, whatever dy is."""
    x, dy = np.float32([-1, 0, -0.0, 2, np.nan]), np.float32([np.inf, np.nan, 3, np.inf, 5])
    dx = ck.relu_backward(dy, ck.relu_forward(x)[1]).x
    np.testing.assert_array_equal(dx, np.float32([0, 0, 0, np.inf, 5]))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,)], ids=str)
def test_of_nothing(isa, dtype, f, shape):
    y, ctx = f.forward(np.ones(shape, dtype))
    assert y.shape == f.backward(y, ctx).x.shape == shape
    assert y.dtype == dtype


def test_takes_strided_views(isa, dtype, rng, f):
    x = spaced(normal(rng, (6, 5, 33), 1.0, dtype)).transpose(1, 0, 2)
    dy, out = spaced(normal(rng, (5, 6, 33), 1.0, dtype)), spaced(np.zeros((5, 6, 33), dtype))
    y, ctx = f.forward(x, out=out)
    assert y.tobytes() == f.value(x.copy()).tobytes()
    assert gaps_untouched(out)
    assert f.backward(dy, ctx).x.tobytes() == f.backward(dy.copy(), f.forward(x.copy())[1]).x.tobytes()


@pytest.mark.parametrize("which", range(4))
def test_takes_one_strided_view_among_flat_arrays(isa, rng, f, which):
    shape = (7, 33)
    arrays = [normal(rng, shape) for _ in range(2)] + [np.zeros(shape, "f4") for _ in range(2)]
    y, ctx = f.forward(arrays[0])
    want = [y, f.backward(arrays[1], ctx).x]
    arrays[which] = spaced(arrays[which])
    x, dy, out, dx = arrays
    y, ctx = f.forward(x, out=out)
    for g, w in zip([y, f.backward(dy, ctx, out=Gradients(dx)).x], want, strict=True):
        np.testing.assert_array_equal(g, w)


def test_takes_tensors(dtype, rng, f):
    x = normal(rng, (3, 5), 1.0, dtype)
    assert f.value(as_torch(x)).tobytes() == f.value(x).tobytes()


X = np.ones((2, 8), "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False
KINDS = "float32, float16 or bfloat16"


def test_refuses(f):
    name, value, backward, ctx = f.name, f.value, f.backward, f.forward(X)[1]
    for error, text, call in [
        (TypeError, rf"{name}\(\): 'x' must be {KINDS}, not float64", lambda: value(X.astype("f8"))),
        (TypeError, rf"{name}\(\): 'x' must be a NumPy array", lambda: value([1.0])),
        (TypeError, rf"{name}\(\): 'out'", lambda: value(X, out=X.astype("f2"))),
        (ValueError, rf"{name}\(\): 'x' of shape \(\) does not fit", lambda: value(np.array(1, "f4"))),
        (ValueError, rf"{name}\(\): 'x' must be contiguous along its last axis", lambda: value(X[:, ::2])),
        (ValueError, rf"{name}\(\): 'out' of shape \(2, 7\) does not fit", lambda: value(X, out=np.empty((2, 7), "f4"))),
        (ValueError, rf"{name}\(\): 'out' is written, but read-only", lambda: value(X, out=READ_ONLY)),
        (ValueError, rf"{name}\(\): 'out' is written and overlaps 'x'", lambda: value(X[:, :7], out=X[:, 1:])),
        (ValueError, rf"{name}_backward\(\): 'x' of shape \(2, 8\) does not fit", lambda: backward(X[:1], ctx)),
        (TypeError, rf"{name}_backward\(\): ", lambda: backward(X.astype("f2"), ctx)),
        (ValueError, rf"{name}_backward\(\): 'out.x' of shape \(8,\)", lambda: backward(X, ctx, out=Gradients(X[0]))),
        (TypeError, rf"{name}_backward\(\): 'ctx' must be what {name}_forward", lambda: backward(X, Gradients(X))),
    ]:
        with pytest.raises(error, match=text):
            call()


@pytest.mark.parametrize("cap", [0.0, -1.0, np.nan, -np.inf, np.inf, 1e-60, 1e39])
def test_softcap_refuses_a_cap_that_is_not_positive_and_finite(cap):
    for call in (lambda: ck.softcap(X, cap), lambda: ck.softcap_forward(X, cap)):
        with pytest.raises(ValueError, match=r"softcap\(\): 'cap' must be positive and finite, not "):
            call()
    ctx = ck.softcap_forward(X, 1.0)[1]._replace(cap=cap)
    with pytest.raises(ValueError, match=r"softcap_backward\(\): 'cap' must be positive and finite, not "):
        ck.softcap_backward(X, ctx)


def test_softcap_refuses_what_is_no_number():
    with pytest.raises(TypeError, match=r"softcap\(\): 'cap' must be a number"):
        ck.softcap(X, "high")


@pytest.mark.parametrize("error, given", [(ValueError, "erf"), (TypeError, None), (TypeError, ["tanh"])])
def test_gelu_refuses_another_form(error, given):
    for name in "gelu", "geglu":
        with pytest.raises(error, match=rf"{name}\(\): 'approximate' must be "):
            getattr(ck, name)(X, approximate=given)
    with pytest.raises(error, match=r"gelu_backward\(\): 'approximate' must be "):
        ck.gelu_backward(X, ck.gelu_forward(X)[1]._replace(approximate=given))


def test_the_arithmetic_warns_of_nothing(f):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f.value(np.array(EXTREMES, "f4"))
