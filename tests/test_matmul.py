import itertools

import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.ops.matmul import Gradients
from ckernels.parity import assert_parity
from guard import guarded, unwritten

# batch, M, K, N
SIZES = [((), 1, 1, 1), ((), 5, 300, 7), ((3,), 17, 33, 40), ((2, 3), 13, 65, 19), ((5,), 1, 64, 16),
         ((2,), 33, 257, 15), ((), 170, 31, 300)]
WAYS = list(itertools.product((False, True), repeat=2))  # transpose_a, transpose_b


def spaced(array, gap=3):
    """Copy ``array`` to rows that lie apart, NaN between them."""
    whole = np.full((*array.shape[:-1], array.shape[-1] + gap), np.nan, "f4")
    whole[..., :array.shape[-1]] = array
    return whole[..., :array.shape[-1]]


def operands(rng, size, way, shared=False):
    batch, M, K, N = size
    a = (*batch, K, M) if way[0] else (*batch, M, K)
    b = (*(() if shared else batch), *((N, K) if way[1] else (K, N)))
    return [guarded(rng.standard_normal(shape).astype("f4")) for shape in (a, b, (*batch, M, N))]


def upright(array, transposed):
    return array.swapaxes(-1, -2) if transposed else array


def torch_matmul(precision, a, b, way, dy=None):
    a, b = (torch.tensor(x, dtype=precision, requires_grad=True) for x in (a, b))
    y = upright(a, way[0]) @ upright(b, way[1])
    return y.detach() if dy is None else torch.autograd.grad(y, (a, b), torch.tensor(dy, dtype=precision))


def terms(a, b, way):
    """What one element's sum is made of, at most."""
    return np.abs(upright(a, way[0]).astype("f8")) @ np.abs(upright(b, way[1]))


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matmul_matches_torch(isa, rng, size, shared, way):
    a, b, dy = operands(rng, size, way, shared)
    options = {"transpose_a": way[0], "transpose_b": way[1]}
    y, ctx = ck.matmul_forward(a, b, **options, out=unwritten(dy.shape))
    exact, peer = (torch_matmul(p, a, b, way) for p in (torch.float64, torch.float32))
    assert_parity(y, exact, peer, terms=terms(a, b, way), allow_constant=y.size == 1)
    assert ck.matmul(a, b, **options).tobytes() == y.tobytes()

    grads = ck.matmul_backward(dy, ctx, out=Gradients(unwritten(a.shape), unwritten(b.shape)))
    exact, peer = (torch_matmul(p, a, b, way, dy) for p in (torch.float64, torch.float32))
    sizes = torch_matmul(torch.float64, np.abs(a), np.abs(b), way, np.abs(dy))
    for got, e, p, t in zip(grads, exact, peer, sizes, strict=True):
        assert_parity(got, e, p, terms=t, allow_constant=got.size == 1)


def test_matmul_is_linear_in_each_operand(isa, rng):
    """Its gradients belong to it: <dy, f(a, v)> = <db, v>, and the same for a."""
    for way in WAYS:
        a, b, dy = operands(rng, ((2,), 5, 7, 9), way)
        options = {"transpose_a": way[0], "transpose_b": way[1]}
        da, db = ck.matmul_backward(dy, ck.matmul_forward(a, b, **options)[1])
        u, v = (rng.integers(-4, 5, x.shape).astype("f4") for x in (a, b))
        bound = 2.0**-18 * np.abs(dy).sum() * 4  # sums of nine terms below sixteen
        assert abs(np.vdot(dy.astype("f8"), ck.matmul(u, b, **options)) - np.vdot(da.astype("f8"), u)) < bound
        assert abs(np.vdot(dy.astype("f8"), ck.matmul(a, v, **options)) - np.vdot(db.astype("f8"), v)) < bound


def test_matmul_has_the_same_bits_whichever_way_its_operands_lie(isa, rng):
    size = ((3,), 40, 150, 35)
    a, b, _ = operands(rng, size, (False, False))
    y = ck.matmul(a, b)
    for ta, tb in WAYS:
        lying = [np.ascontiguousarray(upright(x, t)) for x, t in ((a, ta), (b, tb))]
        assert ck.matmul(*lying, transpose_a=ta, transpose_b=tb).tobytes() == y.tobytes()
    for item in range(3):
        assert ck.matmul(a[item], b[item]).tobytes() == y[item].tobytes()
        assert ck.matmul(a[item, 7:8], b[item]).tobytes() == y[item, 7:8].tobytes()
    weight = np.ascontiguousarray(b[0].T)
    assert ck.matmul(a, b[0]).tobytes() == ck.linear(a, weight).tobytes()


def test_matmul_bits_do_not_depend_on_threads(isa, rng):
    a, b, dy = operands(rng, ((6,), 50, 70, 300), (False, True))

    def everything():
        y, ctx = ck.matmul_forward(a, b, transpose_b=True)
        return [x.tobytes() for x in (y, *ck.matmul_backward(dy, ctx))]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone


def test_matmul_bits_are_the_same_on_avx2_and_avx512(rng):
    a, b, dy = operands(rng, ((2,), 30, 300, 45), (True, False))
    bits = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            y, ctx = ck.matmul_forward(a, b, transpose_a=True)
            bits.add(b"".join(x.tobytes() for x in (y, *ck.matmul_backward(dy, ctx))))
    assert len(bits) == 1


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("size", [((0,), 3, 4, 5), ((2,), 0, 4, 5), ((2,), 3, 0, 5), ((2,), 3, 4, 0), ((), 0, 0, 0)],
                         ids=str)
def test_matmul_of_nothing(isa, rng, size, way):
    for shared in False, True:
        a, b, dy = operands(rng, size, way, shared)
        y, ctx = ck.matmul_forward(a, b, transpose_a=way[0], transpose_b=way[1], out=unwritten(dy.shape))
        np.testing.assert_array_equal(y, np.zeros(dy.shape))
        da, db = ck.matmul_backward(dy, ctx, out=Gradients(unwritten(a.shape), unwritten(b.shape)))
        np.testing.assert_array_equal(da, np.zeros(a.shape))
        np.testing.assert_array_equal(db, np.zeros(b.shape))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_matmul_takes_strided_views(isa, rng, way):
    a, b, dy = operands(rng, ((4, 3), 6, 20, 17), way)
    views = [spaced(x.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3) for x in (a, b, dy)]  # items at two distances
    options = {"transpose_a": way[0], "transpose_b": way[1]}
    y, ctx = ck.matmul_forward(*views[:2], **options, out=spaced(np.zeros(dy.shape, "f4")))
    plain, plain_ctx = ck.matmul_forward(a, b, **options)
    np.testing.assert_array_equal(y, plain)
    for got, want in zip(ck.matmul_backward(views[2], ctx), ck.matmul_backward(dy, plain_ctx), strict=True):
        np.testing.assert_array_equal(got, want)
    assert np.isnan(y.base[..., -3:]).all()
    shared, shared_ctx = ck.matmul_forward(views[0], b[0, 0], **options)
    _, flat_ctx = ck.matmul_forward(a, b[0, 0], **options)
    for got, want in zip(ck.matmul_backward(views[2], shared_ctx), ck.matmul_backward(dy, flat_ctx), strict=True):
        np.testing.assert_array_equal(got, want)


def test_matmul_of_extremes(isa):
    a, b = np.ones((4, 70), "f4"), np.ones((70, 20), "f4")
    a[0, 69], a[1, 0], b[5, 3], b[69, 4] = np.nan, np.inf, -np.inf, 0
    y = ck.matmul(a, b)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, (a.astype("f8") @ b).astype("f4"))


def test_matmul_takes_tensors(rng):
    a, b, _ = operands(rng, ((2,), 3, 4, 5), (False, False))
    np.testing.assert_array_equal(ck.matmul(torch.tensor(a), torch.tensor(b)), ck.matmul(a, b))


A, B = np.ones((2, 3, 4), "f4"), np.ones((2, 4, 5), "f4")


@pytest.mark.parametrize("error, text, call", [
    (TypeError, r"matmul\(\): 'a' must be float32, float16 or bfloat16, not float64", lambda: ck.matmul(A.astype("f8"), B)),
    (TypeError, r"matmul\(\): 'b' must be a NumPy array .* not <class 'list'>", lambda: ck.matmul(A, [[1.0]])),
    (ValueError, r"matmul\(\): 'a' of shape \(4,\) does not fit", lambda: ck.matmul(A[0, 0], B)),
    (ValueError, r"matmul\(\): 'b' of shape \(2, 3, 5\) does not fit \[..., K, N\], where K=4",
     lambda: ck.matmul(A, np.ones((2, 3, 5), "f4"))),
    (ValueError, r"matmul\(\): 'b' of shape \(2, 4, 5\) does not fit \[..., N, K\], where K=4",
     lambda: ck.matmul(A, B, transpose_b=True)),
    (ValueError, r"matmul\(\): 'b' of shape \(2, 4, 5\) does not fit \[..., K, N\], where K=3",
     lambda: ck.matmul(A, B, transpose_a=True)),
    (ValueError, r"matmul\(\): 'b' has leading axes \(3,\), 'a' has \(2,\)",
     lambda: ck.matmul(A, np.ones((3, 4, 5), "f4"))),
    (ValueError, r"matmul\(\): 'b' has leading axes \(1,\), 'a' has \(2,\)", lambda: ck.matmul(A, B[:1])),
    (ValueError, r"matmul\(\): 'b' has leading axes \(2,\), 'a' has \(\)", lambda: ck.matmul(A[0], B)),
    (ValueError, r"matmul\(\): 'b' must be contiguous along its last axis", lambda: ck.matmul(A, A.swapaxes(1, 2))),
    (ValueError, r"matmul\(\): 'out' of shape \(2, 3, 4\) does not fit",
     lambda: ck.matmul(A, B, out=np.ones((2, 3, 4), "f4"))),
    (ValueError, r"matmul\(\): 'out' is written and overlaps 'a'",
     lambda: (lambda s: ck.matmul(s, s.copy(), out=s))(np.ones((4, 4), "f4"))),
    (ValueError, r"matmul_backward\(\): '(dy|a|b)' of shape",
     lambda: ck.matmul_backward(A, ck.matmul_forward(A, B)[1])),
    (ValueError, r"matmul_backward\(\): 'out.b' of shape \(4, 5\) does not fit", lambda: ck.matmul_backward(
        np.ones((2, 3, 5), "f4"), ck.matmul_forward(A, B)[1], out=Gradients(b=B[0].copy()))),
])
def test_matmul_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()
