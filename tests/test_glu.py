from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.glu import Gradients
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_gradients_match_torch, assert_matches_torch

# Sizes around each vector width, and a larger scale at one of them.
CASES = [((3, c), 1.0) for c in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33)] + [((2, 3, 5), 1.0), ((20000,), 1.0)]
CASES += [((40, 33), 30.0)]


def unit(name, activation, **options):
    """One op with its arguments: what to call, and PyTorch's."""

    def pair(gate, up):
        return activation(gate) * up

    return SimpleNamespace(
        name=name,
        pair=pair,
        packed=lambda both: pair(*both.chunk(2, -1)),
        forward=lambda *x, **out: getattr(ck, name + "_forward")(*x, **options, **out),
        value=lambda *x, **out: getattr(ck, name)(*x, **options, **out),
        backward=getattr(ck, name + "_backward"),
    )


UNITS = {
    "swiglu": unit("swiglu", F.silu),
    "geglu": unit("geglu", F.gelu),
    "geglu tanh": unit("geglu", lambda x: F.gelu(x, approximate="tanh"), approximate="tanh"),
    "geglu sigmoid": unit("geglu", lambda x: x * torch.sigmoid(1.702 * x), approximate="sigmoid"),
    "reglu": unit("reglu", F.relu),
}


@pytest.fixture(params=UNITS)
def f(request):
    """Run the test once per unit."""
    return UNITS[request.param]


def normal(rng, shape, scale=1.0, dtype="f4"):
    x = scale * rng.standard_normal(shape)
    x.flat[:1] = np.abs(x.flat[:1]) + 0.1  # or reglu might have nothing to show
    return guarded(x.astype(dtype))


@pytest.mark.parametrize("size, scale", CASES, ids=str)
def test_matches_torch(isa, dtype, rng, f, size, scale):
    gate, up = normal(rng, size, scale, dtype), normal(rng, size, 1.0, dtype)
    y = f.value(gate, up, out=unwritten(size, dtype))
    trivial = None if size[-1] == 1 else {"gate": gate, "up": up}
    assert_matches_torch(y, f.pair, gate, up, trivial=trivial, allow_constant=True)


@pytest.mark.parametrize("size, scale", CASES, ids=str)
def test_backward_matches_autograd(isa, dtype, rng, f, size, scale):
    gate, up, dy = normal(rng, size, scale, dtype), normal(rng, size, 1.0, dtype), normal(rng, size, 1.0, dtype)
    out = Gradients(unwritten(size, dtype), unwritten(size, dtype))
    grads = f.backward(dy, f.forward(gate, up)[1], out=out)
    assert_gradients_match_torch(grads, f.pair, (gate, up), dy, allow_constant=True)


@pytest.mark.parametrize("size", [(3, 2), (3, 34), (2, 3, 66), (65, 640)], ids=str)
def test_of_one_array(isa, dtype, rng, f, size):
    both, half = normal(rng, size, 1.0, dtype), (*size[:-1], size[-1] // 2)
    dy = normal(rng, half, 1.0, dtype)
    y, ctx = f.forward(both, out=unwritten(half, dtype))
    assert_matches_torch(y, f.packed, both, allow_constant=True)
    grads = f.backward(dy, ctx, out=Gradients(unwritten(size, dtype)))
    assert grads.up is None
    assert_gradients_match_torch([grads.gate], f.packed, (both,), dy, allow_constant=True)
    fresh = f.backward(dy, ctx).gate
    assert fresh.dtype == dtype
    assert fresh.tobytes() == grads.gate.tobytes()
    pair = [np.ascontiguousarray(a) for a in np.split(both, 2, -1)]
    assert y.tobytes() == f.value(*pair).tobytes()
    assert f.backward(dy, ctx, out=Gradients(both)).gate is both  # in place
    assert both.tobytes() == grads.gate.tobytes()


def test_gradient_matches_differences(isa, rng, f):
    gate, up, dy = (normal(rng, (3, 33)) for _ in range(3))
    gate += np.copysign(np.float32(0.1), gate)  # away from the corner of relu
    dgate, dup = f.backward(dy, f.forward(gate, up)[1])
    assert_gradient(lambda moved: f.value(moved, up), gate, dgate, dy, rng)
    assert_gradient(lambda moved: f.value(gate, moved), up, dup, dy, rng)


def test_gate_and_up_cannot_be_confused(isa, rng, f):
    gate, up = normal(rng, (3, 33)), normal(rng, (3, 33))
    with pytest.raises(AssertionError):
        assert_matches_torch(f.value(up, gate), f.pair, gate, up)


def test_units_cannot_be_confused(isa, rng):
    gate, up = normal(rng, (30, 33), 2.0), normal(rng, (30, 33))
    for name, f in UNITS.items():
        for other, g in UNITS.items():
            if other != name:
                with pytest.raises(AssertionError):
                    assert_matches_torch(f.value(gate, up), g.pair, gate, up)


def test_in_place(isa, dtype, rng, f):
    arrays = [normal(rng, (5, 33), 1.0, dtype) for _ in range(3)]
    y, ctx = f.forward(*arrays[:2])
    want = [a.tobytes() for a in f.backward(arrays[2], ctx)]
    for target in 0, 1:
        pair = [guarded(a) for a in arrays[:2]]
        assert f.value(*pair, out=pair[target]).tobytes() == y.tobytes()
    for dgate, dup in ((0, 1), (1, 0), (2, 0), (0, 2)):
        gate, up, dy = kept = [guarded(a) for a in arrays]
        ctx = f.forward(gate, up)[1]
        got = f.backward(dy, ctx, out=Gradients(kept[dgate], kept[dup]))
        assert [a.tobytes() for a in got] == want


def everything(f, gate, up, dy):
    """Bytes of both passes."""
    y, ctx = f.forward(gate, up)
    return b"".join(a.tobytes() for a in (y, *f.backward(dy, ctx)))


def test_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, f):
    arrays = [normal(rng, (400, 333), 1.0, dtype) for _ in range(3)]
    ck.set_num_threads(1)
    alone = everything(f, *arrays)
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(f, *arrays) == alone
    gate, up, _ = arrays
    assert f.value(gate[217:218], up[217:218]).tobytes() == f.value(gate, up)[217].tobytes()


def test_bits_are_the_same_on_avx2_and_avx512(dtype, rng, f):
    arrays, bits = [normal(rng, (50, 333), scale, dtype) for scale in (20.0, 1.0, 1.0)], set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            bits.add(everything(f, *arrays))
    assert len(bits) == 1


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("isa", [isa for isa in ck.isas() if isa != "reference"])
def test_large_arrays_have_the_same_bits(isa, dtype, rng, offset):
    """Above 32 MiB outputs pass the caches by, in whole lines: heads and tails are their own loops."""
    n = (7 << 20) // dtype.itemsize + 21
    gate, up, dy = (normal(rng, 4096, 1.0, dtype) for _ in range(3))
    with ck.use(isa):
        y, ctx = ck.swiglu_forward(gate, up)
        want = [np.resize(a, 2 * n).tobytes() for a in (y, *ck.swiglu_backward(dy, ctx))]
        gate, up, dy = (np.resize(a, 2 * n) for a in (gate, up, dy))
        out = [ck.empty(2 * n + 16, dtype)[offset * i :][: 2 * n] for i in range(3)]
        y, ctx = ck.swiglu_forward(gate, up, out=out[0])
        assert [a.tobytes() for a in (y, *ck.swiglu_backward(dy, ctx, out=Gradients(*out[1:])))] == want


def test_extremes(isa, f):
    inf, nan = np.inf, np.nan
    gate = np.array([inf, -inf, nan, 1, -200, 200, 1e-42, 0, 7, 7], "f4")
    up = np.array([2, 2, 2, nan, 200, -200, 200, inf, 7, 7], "f4")
    y, ctx = f.forward(gate, up)
    exact = f.pair(*(torch.tensor(a, dtype=torch.float64) for a in (gate, up))).numpy()
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    assert y[0] == inf
    np.testing.assert_allclose(y[finite], exact[finite], rtol=8 * 2.0**-24, atol=400 * 2.0**-149)
    assert np.isfinite(np.stack(f.backward(np.ones_like(gate), ctx))[:, [4, 5, 6, 8, 9]]).all()


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,)], ids=str)
def test_of_nothing(isa, dtype, f, shape):
    x = np.ones(shape, dtype)
    y, ctx = f.forward(x, x)
    assert y.shape == f.backward(y, ctx).up.shape == shape
    y, ctx = f.forward(x)
    assert y.shape == (*shape[:-1], shape[-1] // 2)
    assert f.backward(y, ctx).gate.shape == shape


def test_takes_strided_views(isa, dtype, rng, f):
    gate = spaced(normal(rng, (6, 5, 33), 1.0, dtype)).transpose(1, 0, 2)
    up, dy = (spaced(normal(rng, (5, 6, 33), 1.0, dtype)) for _ in range(2))
    out = spaced(np.zeros((5, 6, 33), dtype))
    y, ctx = f.forward(gate, up, out=out)
    flat, flat_ctx = f.forward(gate.copy(), up.copy())
    assert y.tobytes() == flat.tobytes()
    assert gaps_untouched(out)
    for got, want in zip(f.backward(dy, ctx), f.backward(dy.copy(), flat_ctx), strict=True):
        assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("which", range(6))
def test_takes_one_strided_view_among_flat_arrays(isa, rng, f, which):
    shape = (7, 33)
    arrays = [normal(rng, shape) for _ in range(3)] + [np.zeros(shape, "f4") for _ in range(3)]
    y, ctx = f.forward(*arrays[:2])
    want = [y, *f.backward(arrays[2], ctx)]
    arrays[which] = spaced(arrays[which])
    gate, up, dy, out, dgate, dup = arrays
    y, ctx = f.forward(gate, up, out=out)
    got = [y.copy(), *f.backward(dy, ctx, out=Gradients(dgate, dup))]
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


def test_takes_tensors(dtype, rng, f):
    both = normal(rng, (3, 34), 1.0, dtype)
    y, ctx = f.forward(as_torch(both))
    assert y.tobytes() == f.value(both).tobytes()
    assert f.backward(y, ctx).gate.tobytes() == f.backward(y, f.forward(both)[1]).gate.tobytes()


X = np.ones((2, 8), "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False


def test_refuses(f):
    name, value, backward = f.name, f.value, f.backward
    packed, pair = f.forward(X)[1], f.forward(X, X.copy())[1]
    same = np.ones_like(X)
    for error, text, call in [
        (TypeError, r"'gate' must be float32, float16 or bfloat16, not float64", lambda: value(X.astype("f8"), X)),
        (TypeError, r"'gate' must be a NumPy array", lambda: value([1.0, 2.0])),
        (TypeError, r"'gate' does not lend its memory: .*detach", lambda: value(torch.ones(4, requires_grad=True))),
        (TypeError, r"'up' must be a NumPy array", lambda: value(X, [1.0])),
        (TypeError, r"'up'", lambda: value(X, X.astype("f2"))),
        (ValueError, r"'up' of shape \(2, 7\) does not fit .*F=8", lambda: value(X, X[:, :7])),
        (ValueError, r"'gate' of shape \(2, 7\) does not fit \[..., 2F\]", lambda: value(X[:, :7])),
        (ValueError, r"'gate' must be contiguous along its last axis", lambda: value(X[:, ::2], X[:, :4])),
        (ValueError, r"'out' is written, but read-only", lambda: value(X, X, out=READ_ONLY)),
        (ValueError, r"'out' is written and overlaps 'gate'", lambda: value(X, out=X[:, 2:6])),
    ]:
        with pytest.raises(error, match=rf"{name}\(\): " + text):
            call()
    for error, text, call in [
        (ValueError, r"'out.up' must be None", lambda: backward(X[:, :4], packed, out=Gradients(up=X))),
        (
            ValueError,
            r"'out.gate' of shape \(2, 7\) does not fit \[..., 2F\]",
            lambda: backward(X[:, :4], packed, out=Gradients(X[:, :7])),
        ),
        (
            ValueError,
            r"'out.gate' of shape \(2, 3\) does not fit",
            lambda: backward(X, pair, out=Gradients(np.ones((2, 3), "f4"))),
        ),
        (
            ValueError,
            r"'out.gate' is written and overlaps 'out.up'",
            lambda: backward(X, pair, out=Gradients(same, same)),
        ),
        (TypeError, r"'ctx' must be what", lambda: backward(X, Gradients(X, X))),
    ]:
        with pytest.raises(error, match=rf"{name}_backward\(\): " + text):
            call()
