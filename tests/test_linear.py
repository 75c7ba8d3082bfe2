import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.linear import Gradients
from ckernels.parity import assert_parity
from guard import guarded, unwritten

# R, K, N: around vector widths, panels, tiles of every instruction set, tasks, chains and blocks of k; a real model's.
SIZES = [(1, 1, 1), (1, 5, 7), (2, 7, 15), (3, 8, 16), (5, 15, 17), (6, 16, 31), (7, 17, 32), (13, 31, 33),
         (14, 63, 48), (15, 64, 47), (12, 65, 49), (16, 255, 16), (17, 256, 9), (4, 257, 18), (27, 511, 33),
         (28, 512, 8), (29, 513, 65), (167, 20, 255), (169, 40, 257), (1, 576, 192), (3, 1025, 300)]
ACTIVATIONS = {None: lambda z: z, "relu": torch.relu, "silu": F.silu}  # the others: test_linear_bits.py
CASES = [(None, size) for size in SIZES] + [("relu", size) for size in SIZES[1::4]] + [("silu", size) for size in SIZES[3::4]]


def inputs(rng, R, K, N):
    """x, weight, bias, residual, up to unreadable pages."""
    shapes = (R, K), (N, K), (N,), (R, N)
    return [guarded(rng.standard_normal(shape).astype("f4")) for shape in shapes]


def spaced(array, gap=3):
    """Copy ``array`` to rows that lie apart, NaN between them."""
    whole = np.full((*array.shape[:-1], array.shape[-1] + gap), np.nan, "f4")
    whole[..., :array.shape[-1]] = array
    return whole[..., :array.shape[-1]]


def torch_linear(precision, activation, x, w, b, r):
    x, w, b, r = (torch.tensor(a, dtype=precision) for a in (x, w, b, r))
    return ACTIVATIONS[activation](F.linear(x, w, b)) + r


def torch_gradients(precision, activation, dy, *arrays):
    tensors = [torch.tensor(a, dtype=precision, requires_grad=True) for a in arrays]
    x, w, b, r = tensors
    y = ACTIVATIONS[activation](F.linear(x, w, b)) + r
    return torch.autograd.grad(y, tensors, torch.tensor(dy, dtype=precision))


@pytest.mark.parametrize("activation, size", CASES, ids=str)
def test_linear_matches_torch(isa, rng, size, activation):
    x, w, b, r = inputs(rng, *size)
    y = ck.linear(x, w, b, activation=activation, residual=r, out=unwritten(r.shape))
    terms = np.abs(x.astype("f8")) @ np.abs(w.T.astype("f8")) + np.abs(b) + np.abs(r)
    exact, peer = (torch_linear(p, activation, x, w, b, r) for p in (torch.float64, torch.float32))
    assert_parity(y, exact, peer, terms=terms, allow_constant=y.size == 1)


@pytest.mark.parametrize("activation, size", CASES, ids=str)
def test_linear_backward_matches_autograd(isa, rng, size, activation):
    x, w, b, r = inputs(rng, *size)
    dy = guarded(rng.standard_normal(r.shape).astype("f4"))
    _, ctx = ck.linear_forward(x, w, b, activation=activation, residual=r)
    grads = ck.linear_backward(dy, ctx, out=Gradients(*(unwritten(a.shape) for a in (x, w, b, r))))
    exact, peer = (torch_gradients(p, activation, dy, x, w, b, r) for p in (torch.float64, torch.float32))
    g = np.abs(dy.astype("f8"))
    terms = g @ np.abs(w), g.T @ np.abs(x), g.sum(0), g
    for got, e, p, t in zip(grads, exact, peer, terms, strict=True):
        dead = activation == "relu" and not e.any()  # every z below zero: zeros are the answer
        if dead:
            np.testing.assert_array_equal(got, np.zeros(got.shape))
        else:
            assert_parity(got, e, p, terms=t, allow_constant=got.size == 1)
    assert grads.residual.tobytes() == dy.tobytes()


@pytest.mark.parametrize("activation", [None, "silu"])
def test_linear_gradient_matches_differences(isa, rng, activation):
    arrays = inputs(rng, 5, 33, 18)
    dy = rng.standard_normal((5, 18)).astype("f4")

    def forward(x, w, b, r):
        return ck.linear(x, w, b, activation=activation, residual=r).astype("f8")

    grads = ck.linear_backward(dy, ck.linear_forward(*arrays[:3], activation=activation, residual=arrays[3])[1])
    h = 2.0**-7
    for i, grad in enumerate(grads):
        v = rng.choice([-1.0, 1.0], arrays[i].shape).astype("f4")

        def slope(h, i=i, v=v):
            up, down = ([a + np.float32(s * h) * v if j == i else a for j, a in enumerate(arrays)] for s in (1, -1))
            return np.sum(dy * (forward(*up) - forward(*down))) / (2 * h)

        coarse, fine = slope(h), slope(h / 2)
        best = fine + (fine - coarse) / 3
        # what the two steps disagree about, and roundings of the forward: its inputs moved, and sums of 33 terms
        doubt = abs(fine - coarse) + 2.0**-23 * 8 * np.abs(forward(*arrays)).max() * np.abs(dy).sum() / h
        size = np.sqrt(np.sum(grad.astype("f8") ** 2))
        assert doubt < 0.2 * size, "the differences show nothing"
        assert abs(np.sum(grad * v.astype("f8")) - best) <= doubt


def test_linear_without_bias_or_residual(isa, rng):
    x, w, b, r = inputs(rng, 20, 300, 40)
    zero_b, zero_r = np.zeros_like(b), np.zeros_like(r)
    np.testing.assert_array_equal(ck.linear(x, w), ck.linear(x, w, zero_b, residual=zero_r))
    y, ctx = ck.linear_forward(x, w)
    assert ctx.pre is None
    grads = ck.linear_backward(r, ctx)
    assert grads.bias is None and grads.residual is None
    full = ck.linear_backward(r, ck.linear_forward(x, w, b, residual=r)[1])
    np.testing.assert_array_equal(grads.x, full.x)
    np.testing.assert_array_equal(grads.weight, full.weight)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_in_place_of_its_residual(isa, rng, activation):
    x, w, b, r = inputs(rng, 20, 300, 40)
    y = ck.linear(x, w, b, activation=activation, residual=r)
    assert ck.linear(x, w, b, activation=activation, residual=r, out=r) is r
    assert r.tobytes() == y.tobytes()


def test_linear_accumulates_gradients_of_parameters(isa, rng):
    x, w, b, r = inputs(rng, 300, 20, 33)
    ctx = ck.linear_forward(x, w, b)[1]
    fresh = ck.linear_backward(r, ctx)
    given = Gradients(None, np.full_like(w, 1000), np.full_like(b, 1000))
    added = ck.linear_backward(r, ctx, out=given, accumulate=True)
    assert added.weight is given.weight and added.bias is given.bias
    if isa != "reference":  # which adds before it rounds
        np.testing.assert_array_equal(added.weight, np.float32(1000) + fresh.weight)
    np.testing.assert_allclose(added.weight - 1000.0, fresh.weight, atol=2.0**-13)  # half an ulp of 1000 and a bit
    np.testing.assert_allclose(added.bias - 1000.0, fresh.bias, atol=2.0**-13)
    np.testing.assert_array_equal(added.x, fresh.x)
    alone = ck.linear_backward(r, ctx, accumulate=True)  # what is not given starts at zero
    np.testing.assert_array_equal(alone.weight, fresh.weight)
    np.testing.assert_array_equal(alone.bias, fresh.bias)
    overwritten = ck.linear_backward(r, ctx, out=given)
    assert overwritten.weight.tobytes() == fresh.weight.tobytes()


def everything(x, w, b, r, dy, activation="silu"):
    """Bytes of forward and backward, in order."""
    y, ctx = ck.linear_forward(x, w, b, activation=activation, residual=r)
    return [a.tobytes() for a in (y, *ck.linear_backward(dy, ctx))]


@pytest.mark.parametrize("size", [(300, 600, 333), (5, 300, 1000)], ids=str)
def test_linear_bits_do_not_depend_on_threads(isa, rng, size):
    R, K, N = size if isa != "reference" else (20, 60, 333)
    arrays = [*inputs(rng, R, K, N), rng.standard_normal((R, N)).astype("f4")]
    ck.set_num_threads(1)
    alone = everything(*arrays)
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(*arrays) == alone


@pytest.mark.parametrize("N", [1, 17, 64, 333])
def test_linear_bits_of_a_row_do_not_depend_on_its_batch(isa, rng, N):
    x, w, b, r = inputs(rng, 300, 700 if isa != "reference" else 70, N)
    packed = ck.pack(w)
    whole, ctx = ck.linear_forward(x, w, b, activation="silu", residual=r)
    dx = ck.linear_backward(r, ctx).x
    for begin, end in [(0, 1), (299, 300), (100, 101), (7, 21), (50, 55), (83, 100), (20, 220)]:
        some = slice(begin, end)
        y, ctx = ck.linear_forward(x[some], w, b, activation="silu", residual=r[some])
        assert y.tobytes() == whole[some].tobytes()
        assert ck.linear_backward(r[some], ctx).x.tobytes() == dx[some].tobytes()
        assert ck.linear(x[some], packed, b, activation="silu", residual=r[some]).tobytes() == y.tobytes()


@pytest.mark.parametrize("size", SIZES + [(200, 300, 500)], ids=str)
def test_linear_packed_has_the_same_bits(isa, rng, size):
    x, w, b, r = inputs(rng, *size)
    packed = ck.pack(w)
    assert ck.linear(x, packed, b, residual=r).tobytes() == ck.linear(x, w, b, residual=r).tobytes()
    y, ctx = ck.linear_forward(x, packed, b, activation="relu")
    plain, plain_ctx = ck.linear_forward(x, w, b, activation="relu")
    assert y.tobytes() == plain.tobytes()
    for got, want in zip(ck.linear_backward(r, ctx)[:3], ck.linear_backward(r, plain_ctx)[:3], strict=True):
        assert got.tobytes() == want.tobytes()


def test_linear_bits_are_the_same_on_avx2_and_avx512(rng):
    arrays = [*inputs(rng, 50, 600, 333), rng.standard_normal((50, 333)).astype("f4")]
    bits = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            bits.add(b"".join(everything(*arrays)))
    assert len(bits) == 1


def test_linear_adds_in_the_promised_order(rng):
    """One chain of float32 FMAs for each 64 terms, then the chains: worked out here in exact arithmetic."""
    K = 600
    x, w = rng.standard_normal(K).astype("f4"), rng.standard_normal(K).astype("f4")
    total = np.float32(0)
    for begin in range(0, K, 64):
        chain = np.float32(0)
        for k in range(begin, min(begin + 64, K)):
            # a product of floats is exact in a long double of 64 bits, and a sum of it and a float nearly always
            chain = np.float32(np.longdouble(x[k]) * np.longdouble(w[k]) + np.longdouble(chain))
        total = chain if begin == 0 else np.float32(total + chain)
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            assert ck.linear(x[None], w[None])[0, 0] == total


def test_linear_of_extremes(isa):
    inf, nan = np.inf, np.nan
    x = np.ones((5, 300), "f4")
    w = np.ones((20, 300), "f4")
    x[0, 299], x[1, 0], x[2, 270] = nan, inf, -inf
    w[3, 299] = 0
    w[4, 270] = inf
    x[3], w[5, 0] = 1e38, 1e38
    x[4] = 1e-42  # subnormal
    y = ck.linear(x, w)
    with np.errstate(all="ignore"):
        exact = x.astype("f8") @ w.T.astype("f8")
        np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
        np.testing.assert_array_equal(np.isinf(y), np.isinf(exact.astype("f4")))
    finite = np.isfinite(y)
    assert_parity(y[finite], exact[finite], (torch.tensor(x) @ torch.tensor(w).T).numpy()[finite])
    for activation in "relu", "silu":
        got = ck.linear(x, w, activation=activation)
        with np.errstate(all="ignore"):
            want = ACTIVATIONS[activation](torch.tensor(y)).numpy()
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


@pytest.mark.parametrize("isa", [isa for isa in ck.isas() if isa != "reference"])  # which rounds once, at the end
def test_linear_silu_has_the_bits_of_silu(isa, rng):
    with ck.use(isa):
        x, w, b, _ = inputs(rng, 7, 40, 33)
        y, ctx = ck.linear_forward(x, w, b, activation="silu")
        assert y.tobytes() == ck.silu(ck.linear(x, w, b)).tobytes()
        dy = rng.standard_normal(y.shape).astype("f4")
        dz = ck.silu_backward(dy, ck.silu_forward(ck.linear(x, w, b))[1]).x
        plain = ck.linear_backward(dz, ck.linear_forward(x, w, b)[1])
        assert [g.tobytes() for g in ck.linear_backward(dy, ctx)[:3]] == [g.tobytes() for g in plain[:3]]


def test_linear_silu_far_from_zero(isa):
    w = np.ones((1, 1), "f4")
    for z in -1e30, -200, -104, -89, -88, -5, -1e-30, 0, 1e-30, 88, 200, 1e30:  # each alone: no large one hides a small
        z = np.full((1, 1), z, "f4")
        y, ctx = ck.linear_forward(z, w, activation="silu")
        dx = ck.linear_backward(w, ctx).x

        def torch_at(precision, z=z):
            leaf = torch.tensor(z, dtype=precision, requires_grad=True)
            y = F.silu(leaf)
            return y.item(), torch.autograd.grad(y, leaf)[0].item()

        results = (y.item(), dx.item()), torch_at(torch.float64), torch_at(torch.float32)
        for got, exact, peer in zip(*results, strict=True):
            assert abs(got - exact) <= 3 * abs(peer - exact) + 2.0**-22 * abs(exact)


@pytest.mark.parametrize("size", [(0, 8, 5), (3, 0, 5), (3, 8, 0), (0, 0, 0)], ids=str)
def test_linear_of_nothing(isa, rng, size):
    x, w, b, r = inputs(rng, *size)
    y, ctx = ck.linear_forward(x, w, b, residual=r, out=unwritten(r.shape))
    np.testing.assert_array_equal(y, b + r if size[1] == 0 else np.empty(r.shape))
    np.testing.assert_array_equal(ck.linear(x, ck.pack(w), b, residual=r), y)
    grads = ck.linear_backward(r, ctx)
    assert [g.shape for g in grads] == [a.shape for a in (x, w, b, r)]
    np.testing.assert_array_equal(grads.x, np.zeros_like(x))
    np.testing.assert_array_equal(grads.weight, np.zeros_like(w))
    np.testing.assert_array_equal(grads.bias, r.astype("f8").sum(0).astype("f4"))


def test_linear_takes_strided_views(isa, rng):
    x, w, b, r = inputs(rng, 30, 300, 40)
    x3 = spaced(x.reshape(6, 5, 300)).transpose(1, 0, 2)  # rows at two distances
    r3 = spaced(r.reshape(5, 6, 40))
    w2 = spaced(w)[::-1]
    y, ctx = ck.linear_forward(x3, w2, b, activation="silu", residual=r3, out=spaced(np.zeros((5, 6, 40), "f4")))
    given = Gradients(spaced(np.zeros(x3.shape, "f4")), spaced(np.zeros(w.shape, "f4")))
    grads = ck.linear_backward(r3, ctx, out=given)
    flat, flat_ctx = ck.linear_forward(x3.copy(), w2.copy(), b, activation="silu", residual=r3.copy())
    np.testing.assert_array_equal(y, flat)
    for got, want in zip(grads, ck.linear_backward(r3.copy(), flat_ctx), strict=True):
        np.testing.assert_array_equal(got, want)
    for array in y, grads.x, grads.weight:  # the gaps still hold NaN
        whole = array.base
        assert np.isnan(whole[..., -3:]).all() and not np.isnan(whole[..., :-3]).any()
    bias, flat_bias = (ck.linear_backward(dy, ck.linear_forward(x3, w2, b)[1]).bias for dy in (r3, r3.copy()))
    np.testing.assert_array_equal(bias, flat_bias)


def test_linear_takes_broadcast_rows_and_one_row(isa, rng):
    x, w, b, _ = inputs(rng, 1, 300, 40)
    rows = np.broadcast_to(x[0], (9, 300))
    assert (ck.linear(rows, w, b) == ck.linear(x, w, b)).all()
    assert ck.linear(x[0], w, b).shape == (40,)
    np.testing.assert_array_equal(ck.linear(x[0], w, b), ck.linear(x, w, b)[0])


def test_linear_takes_tensors(rng):
    x, w, b, _ = inputs(rng, 3, 5, 7)
    t = [torch.tensor(a) for a in (x, w, b)]
    np.testing.assert_array_equal(ck.linear(*t), ck.linear(x, w, b))
    np.testing.assert_array_equal(ck.linear(t[0], ck.pack(t[1]), t[2]), ck.linear(x, w, b))


def test_linear_leaves_inputs_alone(isa, rng):
    arrays = [*inputs(rng, 20, 300, 40), rng.standard_normal((20, 40)).astype("f4")]
    for a in arrays:
        a.flags.writeable = False
    before = [a.tobytes() for a in arrays]
    everything(*arrays)
    assert [a.tobytes() for a in arrays] == before


def test_pack_lays_out_panels(isa, rng):
    w = guarded(rng.standard_normal((35, 19)).astype("f4"))
    packed = ck.pack(spaced(w))
    assert packed.shape == (35, 19) and packed.nbytes == 3 * 19 * 16 * 4
    assert repr(packed) == f"PackedWeight(shape=(35, 19), dtype=float32, nbytes={packed.nbytes})"
    unpacked = packed.panels.transpose(0, 2, 1).reshape(48, 19)
    np.testing.assert_array_equal(unpacked[:35], w)
    assert not unpacked[35:].any()


def test_pack_again(isa, rng):
    x, w, _, _ = inputs(rng, 4, 19, 35)
    packed = ck.pack(w)
    before = ck.linear(x, packed)
    w *= 2
    np.testing.assert_array_equal(ck.linear(x, packed), before)
    assert packed.update() is packed
    np.testing.assert_array_equal(ck.linear(x, packed), 2 * before)
    other = w * 2
    assert ck.pack(other, out=packed) is packed and packed.weight is other
    np.testing.assert_array_equal(ck.linear(x, packed), 4 * before)


X, W, B, Y = np.ones((2, 8), "f4"), np.ones((3, 8), "f4"), np.ones(3, "f4"), np.ones((2, 3), "f4")
READ_ONLY = np.ones((2, 3), "f4")
READ_ONLY.flags.writeable = False
SQUARE = np.ones((8, 8), "f4")


@pytest.mark.parametrize("error, text, call", [
    (TypeError, r"linear\(\): 'x' must be float32, float16 or bfloat16, not float64", lambda: ck.linear(X.astype("f8"), W)),
    (TypeError, r"linear\(\): 'x' must be a NumPy array .* not <class 'list'>", lambda: ck.linear([[1.0]], W)),
    (TypeError, r"linear\(\): 'weight' must be float32, not int64", lambda: ck.linear(X, W.astype("i8"))),
    (TypeError, r"linear\(\): 'weight' must be an array or a packed weight, not None",
     lambda: ck.linear(X, None, out=Y.copy())),
    (ValueError, r"linear\(\): 'weight' of shape \(3, 7\) does not fit \[N, K\], where K=8",
     lambda: ck.linear(X, W[:, :7])),
    (ValueError, r"linear\(\): 'weight' of shape \(3, 7\) does not fit", lambda: ck.linear(X, ck.pack(W[:, :7]))),
    (ValueError, r"linear\(\): 'bias' of shape \(2,\) does not fit \[N\], where N=3", lambda: ck.linear(X, W, B[:2])),
    (ValueError, r"linear\(\): 'residual' of shape \(2, 4\) does not fit",
     lambda: ck.linear(X, W, residual=np.ones((2, 4), "f4"))),
    (ValueError, r"linear\(\): 'x' must be contiguous along its last axis", lambda: ck.linear(X[:, ::2], W[:, :4])),
    (ValueError, r"linear\(\): 'weight' must be contiguous along its last axis", lambda: ck.linear(Y, W.T)),
    (ValueError, r"linear\(\): 'activation' must be None or one of 'relu', .*, 'tanh', not 'swish'",
     lambda: ck.linear(X, W, activation="swish")),
    (TypeError, r"linear\(\): 'activation' must be None or a name, not 1", lambda: ck.linear(X, W, activation=1)),
    (ValueError, r"linear\(\): 'out' of shape \(2, 4\) does not fit",
     lambda: ck.linear(X, W, out=np.ones((2, 4), "f4"))),
    (ValueError, r"linear\(\): 'out' is written, but read-only", lambda: ck.linear(X, W, out=READ_ONLY)),
    (ValueError, r"linear\(\): 'out' is written and overlaps 'x'",
     lambda: ck.linear(SQUARE, SQUARE.copy(), out=SQUARE)),
    (ValueError, r"linear\(\): 'out' is written and overlaps 'weight'",
     lambda: ck.linear(SQUARE.copy(), SQUARE, out=SQUARE)),
    (ValueError, r"linear\(\): 'out' is written and overlaps 'residual'",
     lambda: (lambda a: ck.linear(X, W, residual=a[1:], out=a[:2]))(np.ones((3, 3), "f4"))),
    (ValueError, r"linear_backward\(\): '(dy|x)' of shape",
     lambda: ck.linear_backward(np.ones((3, 3), "f4"), ck.linear_forward(X, W)[1])),
    (ValueError, r"linear_backward\(\): 'out.weight' of shape \(3, 7\) does not fit \[N, K\], where N=3, K=8",
     lambda: ck.linear_backward(Y, ck.linear_forward(X, W)[1], out=Gradients(weight=np.ones((3, 7), "f4")))),
    (ValueError, r"linear_backward\(\): 'out.x' is written and overlaps 'x'",
     lambda: ck.linear_backward(Y, ck.linear_forward(X, W)[1], out=Gradients(x=X))),
    (ValueError, r"linear\(\): 'packed' \[0, 8, 16\] is not a weight of 3 rows",
     lambda: ck._ck.linear_fwd(None, None, X, None, np.empty((0, 8, 16), "f4"), B, None, 0)),
    (TypeError, r"pack\(\): 'weight' must be an array, not <class 'list'>", lambda: ck.pack([[1.0]])),
    (TypeError, r"pack\(\): 'weight' must be float32, float16 or bfloat16, not float64", lambda: ck.pack(W.astype("f8"))),
    (ValueError, r"pack\(\): 'weight' of shape \(3,\) does not fit \[N, K\]", lambda: ck.pack(B)),
    (ValueError, r"pack\(\): 'weight' of shape \(3, 8\) does not fit 'out'", lambda: ck.pack(W, out=ck.pack(SQUARE))),
    (TypeError, r"pack\(\): 'out' must be a PackedWeight", lambda: ck.pack(W, out=W)),
])
def test_linear_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("nth", [1, 2])
def test_linear_reports_a_lack_of_memory(rng, nth):
    x, w, b, r = inputs(rng, 40, 300, 33)
    out = np.full_like(r, 5)
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match=r"linear\(\)"):
        ck.linear(x, w, b, out=out)
    assert (out == 5).all()
    ctx = ck.linear_forward(x, w, b, activation="silu")[1]
    given = Gradients(*(np.full(a.shape, 5, "f4") for a in (x, w, b)))
    ck._ck.fail_allocation(nth)
    with pytest.raises(MemoryError, match=r"linear_backward\(\)"):
        ck.linear_backward(r, ctx, out=given)
    assert all((a == 5).all() for a in given[:3])
