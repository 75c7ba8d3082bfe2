import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.ops.glu import Gradients
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import assert_gradients_match_torch, assert_matches_torch

SIZES = [(3, f) for f in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33)] + [(2, 3, 5), (20000,), (128, 1536)]
SCALES = [1.0, 30.0]


def normal(rng, shape, scale=1.0):
    return guarded((scale * rng.standard_normal(shape)).astype("f4"))


def torch_swiglu(gate, up):
    return torch.nn.functional.silu(gate) * up


def torch_packed(both):
    return torch_swiglu(*both.chunk(2, -1))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_swiglu_matches_torch(isa, rng, size, scale):
    gate, up = normal(rng, size, scale), normal(rng, size)
    y = ck.swiglu(gate, up, out=unwritten(size))
    assert_matches_torch(y, torch_swiglu, gate, up, trivial={"gate": gate, "up": up})


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_swiglu_backward_matches_autograd(isa, rng, size, scale):
    gate, up, dy = normal(rng, size, scale), normal(rng, size), normal(rng, size)
    grads = ck.swiglu_backward(dy, ck.swiglu_forward(gate, up)[1], out=Gradients(unwritten(size), unwritten(size)))
    assert_gradients_match_torch(grads, torch_swiglu, (gate, up), dy)


@pytest.mark.parametrize("size", [(3, 2), (3, 34), (2, 3, 66), (65, 640)], ids=str)
def test_swiglu_of_one_array(isa, rng, size):
    both, half = normal(rng, size), (*size[:-1], size[-1] // 2)
    dy = normal(rng, half)
    y, ctx = ck.swiglu_forward(both, out=unwritten(half))
    assert_matches_torch(y, torch_packed, both)
    grads = ck.swiglu_backward(dy, ctx, out=Gradients(unwritten(size)))
    assert grads.up is None
    assert_gradients_match_torch([grads.gate], torch_packed, (both,), dy)
    assert ck.swiglu_backward(dy, ctx).gate.tobytes() == grads.gate.tobytes()
    pair = [np.ascontiguousarray(a) for a in np.split(both, 2, -1)]
    assert y.tobytes() == ck.swiglu(*pair).tobytes()
    assert ck.swiglu_backward(dy, ctx, out=Gradients(both)).gate is both  # in place
    assert both.tobytes() == grads.gate.tobytes()


def test_swiglu_gradient_matches_differences(isa, rng):
    gate, up, dy = (normal(rng, (3, 33)) for _ in range(3))
    dgate, dup = ck.swiglu_backward(dy, ck.swiglu_forward(gate, up)[1])
    assert_gradient(lambda moved: ck.swiglu(moved, up), gate, dgate, dy, rng)
    assert_gradient(lambda moved: ck.swiglu(gate, moved), up, dup, dy, rng)


def test_swiglu_gate_and_up_cannot_be_confused(isa, rng):
    gate, up = normal(rng, (3, 33)), normal(rng, (3, 33))
    with pytest.raises(AssertionError):
        assert_matches_torch(ck.swiglu(up, gate), torch_swiglu, gate, up)


def test_swiglu_in_place(isa, rng):
    arrays = [normal(rng, (5, 33)) for _ in range(3)]
    y, ctx = ck.swiglu_forward(*arrays[:2])
    want = [a.tobytes() for a in ck.swiglu_backward(arrays[2], ctx)]
    for target in 0, 1:
        pair = [guarded(a) for a in arrays[:2]]
        assert ck.swiglu(*pair, out=pair[target]).tobytes() == y.tobytes()
    for dgate, dup in ((0, 1), (1, 0), (2, 0), (0, 2)):
        gate, up, dy = kept = [guarded(a) for a in arrays]
        ctx = ck.swiglu_forward(gate, up)[1]
        got = ck.swiglu_backward(dy, ctx, out=Gradients(kept[dgate], kept[dup]))
        assert [a.tobytes() for a in got] == want


def test_swiglu_bits_do_not_depend_on_threads_or_batch(isa, rng):
    gate, up, dy = (normal(rng, (400, 333)) for _ in range(3))

    def everything():
        y, ctx = ck.swiglu_forward(gate, up)
        return [a.tobytes() for a in (y, *ck.swiglu_backward(dy, ctx))]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    assert ck.swiglu(gate[217:218], up[217:218]).tobytes() == ck.swiglu(gate, up)[217].tobytes()


def test_swiglu_bits_are_the_same_on_avx2_and_avx512(rng):
    gate, up, dy = (normal(rng, (50, 333), 20.0) for _ in range(3))
    bits = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            y, ctx = ck.swiglu_forward(gate, up)
            bits.add(b"".join(a.tobytes() for a in (y, *ck.swiglu_backward(dy, ctx))))
    assert len(bits) == 1


def test_swiglu_of_extremes(isa):
    inf, nan = np.inf, np.nan
    gate = np.array([inf, -inf, nan, 1, -200, 200, 1e-42, 0, 7, 7], "f4")
    up = np.array([2, 2, 2, nan, 200, -200, 200, inf, 7, 7], "f4")
    y, ctx = ck.swiglu_forward(gate, up)
    exact = torch_swiglu(*(torch.tensor(a, dtype=torch.float64) for a in (gate, up))).numpy()
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    assert y[0] == inf
    np.testing.assert_allclose(y[finite], exact[finite], rtol=6 * 2.0**-24, atol=200 * 2.0**-149)
    assert np.isfinite(np.stack(ck.swiglu_backward(np.ones_like(gate), ctx))[:, [4, 5, 6, 8, 9]]).all()


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0,)], ids=str)
def test_swiglu_of_nothing(isa, shape):
    x = np.ones(shape, "f4")
    y, ctx = ck.swiglu_forward(x, x)
    assert y.shape == ck.swiglu_backward(y, ctx).up.shape == shape
    y, ctx = ck.swiglu_forward(x)
    assert y.shape == (*shape[:-1], shape[-1] // 2)
    assert ck.swiglu_backward(y, ctx).gate.shape == shape


def test_swiglu_takes_strided_views(isa, rng):
    gate = spaced(normal(rng, (6, 5, 33))).transpose(1, 0, 2)
    up, dy, out = spaced(normal(rng, (5, 6, 33))), spaced(normal(rng, (5, 6, 33))), spaced(np.zeros((5, 6, 33), "f4"))
    y, ctx = ck.swiglu_forward(gate, up, out=out)
    flat, flat_ctx = ck.swiglu_forward(gate.copy(), up.copy())
    np.testing.assert_array_equal(y, flat)
    assert gaps_untouched(out)
    for got, want in zip(ck.swiglu_backward(dy, ctx), ck.swiglu_backward(dy.copy(), flat_ctx), strict=True):
        np.testing.assert_array_equal(got, want)


def test_swiglu_takes_tensors(rng):
    both = normal(rng, (3, 34))
    y, ctx = ck.swiglu_forward(torch.tensor(both))
    np.testing.assert_array_equal(y, ck.swiglu(both))
    np.testing.assert_array_equal(
        ck.swiglu_backward(y, ctx).gate, ck.swiglu_backward(y, ck.swiglu_forward(both)[1]).gate
    )


X = np.ones((2, 8), "f4")
READ_ONLY = np.ones((2, 8), "f4")
READ_ONLY.flags.writeable = False
PACKED = ck.swiglu_forward(X)[1]
PAIR = ck.swiglu_forward(X, X.copy())[1]
REFUSALS = [
    (TypeError, r"swiglu\(\): 'gate' must be float32, float16 or bfloat16, not float64", lambda: ck.swiglu(X.astype("f8"), X)),
    (TypeError, r"swiglu\(\): 'gate' must be a NumPy array", lambda: ck.swiglu([1.0, 2.0])),
    (
        TypeError,
        r"swiglu\(\): 'gate' does not lend its memory: .*detach",
        lambda: ck.swiglu(torch.ones(4, requires_grad=True)),
    ),
    (TypeError, r"swiglu\(\): 'up' must be a NumPy array", lambda: ck.swiglu(X, [1.0])),
    (ValueError, r"swiglu\(\): 'up' of shape \(2, 7\) does not fit .*F=8", lambda: ck.swiglu(X, X[:, :7])),
    (ValueError, r"swiglu\(\): 'gate' of shape \(2, 7\) does not fit \[..., 2F\]", lambda: ck.swiglu(X[:, :7])),
    (ValueError, r"swiglu\(\): 'gate' must be contiguous along its last axis", lambda: ck.swiglu(X[:, ::2], X[:, :4])),
    (ValueError, r"swiglu\(\): 'out' is written, but read-only", lambda: ck.swiglu(X, X, out=READ_ONLY)),
    (ValueError, r"swiglu\(\): 'out' is written and overlaps 'gate'", lambda: ck.swiglu(X, out=X[:, 2:6])),
    (
        ValueError,
        r"swiglu_backward\(\): 'out.up' must be None",
        lambda: ck.swiglu_backward(X[:, :4], PACKED, out=Gradients(up=X)),
    ),
    (
        ValueError,
        r"swiglu_backward\(\): 'out.gate' of shape \(2, 7\) does not fit \[..., 2F\]",
        lambda: ck.swiglu_backward(X[:, :4], PACKED, out=Gradients(X[:, :7])),
    ),
    (
        ValueError,
        r"swiglu_backward\(\): 'out.gate' of shape \(2, 3\) does not fit",
        lambda: ck.swiglu_backward(X, PAIR, out=Gradients(np.ones((2, 3), "f4"))),
    ),
    (
        ValueError,
        r"swiglu_backward\(\): 'out.gate' is written and overlaps 'out.up'",
        lambda: (lambda a: ck.swiglu_backward(X, PAIR, out=Gradients(a, a)))(np.ones_like(X)),
    ),
]


@pytest.mark.parametrize("error, text, call", REFUSALS)
def test_swiglu_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("which", range(6))
def test_swiglu_takes_one_strided_view_among_flat_arrays(isa, rng, which):
    shape = (7, 33)
    arrays = [normal(rng, shape) for _ in range(3)] + [np.zeros(shape, "f4") for _ in range(3)]
    y, ctx = ck.swiglu_forward(*arrays[:2])
    want = [y, *ck.swiglu_backward(arrays[2], ctx)]
    arrays[which] = spaced(arrays[which])
    gate, up, dy, out, dgate, dup = arrays
    y, ctx = ck.swiglu_forward(gate, up, out=out)
    got = [y.copy(), *ck.swiglu_backward(dy, ctx, out=Gradients(dgate, dup))]
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)
