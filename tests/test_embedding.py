import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.embedding import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch

# R, V, C: around each vector width and the columns summed at a time, many places of few ids, few of many, real sizes.
SIZES = [(9, 5, c) for c in (1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65)]
SIZES += [(300, 3, 40), (4, 1000, 24), (1, 2, 5), (8, 49152, 3), (64, 500, 576)]


def inputs(rng, R, V, C, kind=np.int64, dtype=np.float32):
    """Ids that include the last row, and a table, up to unreadable pages."""
    ids = rng.integers(0, V, R).astype(kind)
    ids[0] = V - 1
    return guarded(ids), guarded(rng.standard_normal((V, C)).astype(dtype))


def gradient(rng, *shape, dtype=np.float32):
    return guarded(rng.standard_normal(shape).astype(dtype))


def backward_at(precision, ids, weight, dy):
    weight = as_torch(weight, precision, grad=True)
    y = F.embedding(torch.tensor(ids.astype("i8")), weight)
    return torch.autograd.grad(y, weight, as_torch(dy, precision))[0]


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


def half_an_ulp(exact, dtype):
    """Of the results, in float64; rounding to float on the way adds 2^-12 of it to 16-bit ones."""
    info = ml_dtypes.finfo(dtype)
    exponent = np.frexp(np.maximum(np.abs(exact), float(info.smallest_normal)))[1]
    return np.ldexp(0.5 * (1 + (1e-6 if dtype.itemsize == 4 else 2**-11)), exponent - 1 - info.nmant)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_embedding_matches_torch(isa, dtype, rng, size, kind):
    ids, w = inputs(rng, *size, kind, dtype)
    y = ck.embedding(ids, w, out=unwritten((size[0], size[2]), dtype))
    expected = F.embedding(torch.tensor(ids), torch.from_numpy(bits(w).view(f"i{w.itemsize}")))
    np.testing.assert_array_equal(bits(y), expected.numpy().view(bits(y).dtype))
    if y.size > 1 and size[0] <= size[1]:
        assert (bits(y) != bits(w[: size[0]])).any(), "not the first rows"


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_embedding_backward_matches_autograd(isa, dtype, rng, size, kind):
    ids, w = inputs(rng, *size, kind, dtype)
    dy = gradient(rng, size[0], size[2], dtype=dtype)
    dw, = ck.embedding_backward(dy, ck.embedding_forward(ids, w)[1], out=Gradients(unwritten(w.shape, dtype)))
    exact, peer = (backward_at(p, ids, w, dy) for p in ("float64", dtype))
    assert_parity(dw, exact, peer, bound=half_an_ulp(exact.numpy(), dtype))  # rounded once
    if dtype == np.float32:
        assert np.abs(dw - exact.numpy()).max() <= 1e-2  # the ceiling quoted for this gradient


def test_embedding_accumulates_without_rounding_between(isa, dtype):
    """A sum of 16-bit terms that all vanish beside what is there already, one by one."""
    ids = np.zeros(4096, np.int64)
    given = Gradients(np.full((1, 33), 1, dtype))
    dy = np.full((4096, 33), 2.0**-14, dtype)
    ctx = ck.embedding_forward(ids, np.zeros((1, 33), dtype))[1]
    np.testing.assert_array_equal(ck.embedding_backward(dy, ctx, out=given, accumulate=True).weight.astype("f4"), 1.25)
    np.testing.assert_array_equal(ck.embedding_backward(dy, ctx).weight.astype("f4"), 0.25)


def test_embedding_beyond_the_caches(isa, dtype, rng):
    """Results are written another way: rows that do and do not begin at a line, before and behind whole lines."""
    for C, shift in (1000, 0), (1001, 3), (37, 1):
        R = (34 << 20) // (2 * C * dtype.itemsize)
        ids, w = inputs(rng, R, 3 * R // 2, C, dtype=dtype)
        out = ck.empty(R * C + shift, dtype)[shift:].reshape(R, C)
        y, ctx = ck.embedding_forward(ids, w, out=out)
        np.testing.assert_array_equal(bits(y), bits(w)[ids])
        given = Gradients(ck.empty(w.size + shift, dtype)[shift:].reshape(w.shape))
        given.weight.view(bits(w).dtype)[...] = 0x7FC1
        dw, = ck.embedding_backward(y, ctx, out=given)
        count = np.bincount(ids, minlength=len(w))
        assert not bits(dw)[count == 0].any()
        np.testing.assert_array_equal(bits(dw)[count == 1], bits(w)[count == 1])
        twice = w[count == 2].astype("f8") * 2
        np.testing.assert_array_equal(bits(dw)[count == 2], bits(twice.astype(dtype)))


def test_embedding_names_the_first_bad_id_of_many():
    ids = np.zeros(400_000, np.int32)
    ids[[70_001, 250_000, 399_999]] = 9
    for n in 1, 2, 3:
        ck.set_num_threads(n)
        with pytest.raises(IndexError, match="'ids' holds 9 at position 70001,"):
            ck.embedding(ids, np.zeros((9, 1), "f4"))


def test_embedding_gradient_matches_differences(isa, rng):
    ids, w = inputs(rng, 20, 5, 7)
    dy = gradient(rng, 20, 7)
    dw, = ck.embedding_backward(dy, ck.embedding_forward(ids, w)[1])
    assert_gradient(lambda moved: ck.embedding(ids, moved), w, dw, dy, rng)


def test_embedding_sums_in_ascending_order_in_double(isa):
    dy = np.array([[1], [2.0**-30], [-1], [7]], "f4")
    dw, = ck.embedding_backward(dy, ck.embedding_forward(np.array([1, 1, 1, 0]), np.zeros((3, 1), "f4"))[1])
    np.testing.assert_array_equal(dw, np.array([[7], [2.0**-30], [0]], "f4"))


def test_embedding_accumulates_into_rows_that_ids_name(isa, rng):
    ids, w = inputs(rng, 9, 40, 70)
    dy = gradient(rng, 9, 70)
    ctx = ck.embedding_forward(ids, w)[1]
    fresh, = ck.embedding_backward(dy, ctx)
    given = Gradients(rng.standard_normal(w.shape).astype("f4"))
    before = given.weight.copy()
    named = np.isin(np.arange(40), ids)
    before[~named] = given.weight[~named] = np.nan  # nobody should read these
    exact = before.astype("f8")
    np.add.at(exact, ids, dy.astype("f8"))
    assert ck.embedding_backward(dy, ctx, out=given, accumulate=True).weight is given.weight
    np.testing.assert_array_equal(given.weight, exact.astype("f4"))
    assert ck.embedding_backward(dy, ctx, out=given).weight.tobytes() == fresh.tobytes()
    assert ck.embedding_backward(dy, ctx, accumulate=True).weight.tobytes() == fresh.tobytes()


def test_embedding_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng):
    ids, w = inputs(rng, 5000, 900, 333, dtype=dtype)
    dy = gradient(rng, 5000, 333, dtype=dtype)

    def everything():
        y, ctx = ck.embedding_forward(ids, w)
        return y.tobytes(), ck.embedding_backward(dy, ctx).weight.tobytes()

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    assert ck.embedding(ids[417:418], w).tobytes() == alone[0][417 * 333 * w.itemsize : 418 * 333 * w.itemsize]


def test_embedding_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    ids, w = inputs(rng, 500, 90, 333, dtype=dtype)
    dy, found = gradient(rng, 500, 333, dtype=dtype), set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            y, ctx = ck.embedding_forward(ids, w)
            found.add(y.tobytes() + ck.embedding_backward(dy, ctx).weight.tobytes())
    assert len(found) == 1


def test_embedding_keeps_every_bit_of_extremes(isa):
    bits = np.array([0x7F800001, 0xFFC12345, 0x7F800000, 0xFF800000, 1, 0x80000000, 0x007FFFFF, 0x7F7FFFFF], "u4")
    w = np.stack([bits[::-1], bits]).view("f4")
    assert ck.embedding(np.array([1, 0]), w).tobytes() == w[::-1].tobytes()
    dw, = ck.embedding_backward(w, ck.embedding_forward(np.array([1, 0]), w)[1])
    np.testing.assert_array_equal(dw, w[::-1])


def test_embedding_sums_keep_the_sign_of_zero(isa, dtype):
    """One -0, or several, add up to -0; a row that no id names is +0, and stays so beside it."""
    ids, dy = np.array([0, 0, 1]), np.full((3, 9), -0.0, dtype)
    ctx = ck.embedding_forward(ids, np.zeros((3, 9), dtype))[1]
    given = Gradients(ck.embedding_backward(dy, ctx).weight)
    np.testing.assert_array_equal(np.signbit(given.weight.astype("f4")), [[True] * 9, [True] * 9, [False] * 9])
    ck.embedding_backward(dy, ctx, out=given, accumulate=True)
    np.testing.assert_array_equal(np.signbit(given.weight.astype("f4")), [[True] * 9, [True] * 9, [False] * 9])


def test_embedding_of_extremes_sums_as_arithmetic_does(isa):
    inf, nan = np.inf, np.nan
    dy = np.array([[inf, 1, 1e-42, 3e38, 1], [-inf, nan, 1e-42, 3e38, 2]], "f4")
    dw, = ck.embedding_backward(dy, ck.embedding_forward(np.array([0, 0]), np.zeros((2, 5), "f4"))[1])
    np.testing.assert_array_equal(dw[0], np.array([nan, nan, 2 * np.float32(1e-42), inf, 3], "f4"))
    np.testing.assert_array_equal(dw[1], 0)


@pytest.mark.parametrize("R, V, C", [(0, 8, 3), (0, 0, 3), (4, 8, 0), (0, 0, 0)])
def test_embedding_of_nothing(isa, R, V, C):
    ids, w = np.zeros(R, np.int64), np.ones((V, C), "f4")
    y, ctx = ck.embedding_forward(ids, w)
    dw, = ck.embedding_backward(np.ones((R, C), "f4"), ctx)
    assert y.shape == (R, C)
    np.testing.assert_array_equal(dw, np.zeros((V, C)))


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_embedding_takes_strided_views(isa, dtype, rng, kind):
    ids = rng.integers(0, 50, (6, 9)).astype(kind)
    w = spaced(rng.standard_normal((50, 33)).astype(dtype))
    for view in ids[:, 1:], ids[::2, ::-1], ids.T, ids[3:4, 4:5].reshape(()), np.broadcast_to(ids[:, :1], (6, 4)):
        y, ctx = ck.embedding_forward(view, w, out=spaced(np.zeros((*view.shape, 33), dtype)))
        np.testing.assert_array_equal(y, w[view])
        dy = spaced(rng.standard_normal(y.shape).astype(dtype))
        dw, = ck.embedding_backward(dy, ctx, out=Gradients(spaced(np.full(w.shape, 9, dtype))))
        flat, = ck.embedding_backward(dy.copy(), ck.embedding_forward(view.copy(), w.copy())[1])
        assert dw.tobytes() == flat.tobytes()
        assert gaps_untouched(y) and gaps_untouched(dw)
    row = w[ids]  # [6, 9, 33]
    np.testing.assert_array_equal(ck.embedding(ids.T, w), row.transpose(1, 0, 2))


def test_embedding_of_no_columns_costs_nothing_however_many_rows():
    w = np.empty((2**61 - 1, 0), "f4")
    y, ctx = ck.embedding_forward(np.array([7, 0]), w)
    assert y.shape == (2, 0) and ck.embedding_backward(y, ctx).weight.shape == w.shape
    with pytest.raises(IndexError, match="'ids' holds -1"):
        ck.embedding(np.array([-1]), w)


def test_embedding_takes_tensors(rng):
    ids, w = inputs(rng, 9, 5, 8)
    np.testing.assert_array_equal(ck.embedding(torch.tensor(ids), torch.tensor(w)), ck.embedding(ids, w))


@pytest.mark.parametrize("bad", [-1, 5, -(2**63), 2**63 - 1])
def test_embedding_refuses_an_id_before_it_writes(isa, rng, bad):
    ids, w = inputs(rng, 12, 5, 8)
    dy, out, dw = gradient(rng, 3, 4, 8), np.full((3, 4, 8), 7, "f4"), np.full((5, 8), 7, "f4")
    ids = ids.reshape(3, 4)
    ctx = ck.embedding_forward(ids, w)[1]
    ids[2, 1] = bad
    where = rf"'ids' holds {bad} at position 9, and 'weight' has rows 0 to 4"
    with pytest.raises(IndexError, match=r"embedding\(\): " + where):
        ck.embedding(ids, w, out=out)
    with pytest.raises(IndexError, match=r"embedding_backward\(\): " + where):
        ck.embedding_backward(dy, ctx, out=Gradients(dw))
    assert (out == 7).all() and (dw == 7).all()


IDS, W = np.zeros((2, 3), np.int64), np.ones((5, 8), "f4")
DY, CTX = np.ones((2, 3, 8), "f4"), (lambda: ck.embedding_forward(IDS, W)[1])


@pytest.mark.parametrize("error, text, call", [
    (TypeError, r"embedding\(\): 'ids' must be int32 or int64, not float32", lambda: ck.embedding(IDS.astype("f4"), W)),
    (TypeError, r"embedding\(\): 'ids' must be int32 or int64, not bool", lambda: ck.embedding(IDS.astype(bool), W)),
    (TypeError, r"embedding\(\): 'ids' must be a NumPy array", lambda: ck.embedding([0, 1], W)),
    (TypeError, r"embedding\(\): 'weight' must be float32, float16 or bfloat16, not float64", lambda: ck.embedding(IDS, W.astype("f8"))),
    (ValueError, r"embedding\(\): 'weight' of shape \(8,\) does not fit \[V, C\]", lambda: ck.embedding(IDS, W[0])),
    (ValueError, r"embedding\(\): 'weight' must be contiguous along its last axis",
     lambda: ck.embedding(IDS, W[:, ::2])),
    (ValueError, r"embedding\(\): 'out' of shape \(2, 8\) does not fit \[..., C\], where ...=\(2, 3\), C=8",
     lambda: ck.embedding(IDS, W, out=np.empty((2, 8), "f4"))),
    (ValueError, r"embedding\(\): 'out' is written and overlaps 'weight'", lambda: ck.embedding(IDS[0], W, out=W[:3])),
    (IndexError, r"embedding\(\): 'ids' holds 0 at position 0", lambda: ck.embedding(IDS, W[:0])),
    (ValueError, r"embedding_backward\(\): 'ids' of shape \(2, 3\) does not fit \[...\], where ...=\(3, 2\)",
     lambda: ck.embedding_backward(DY.reshape(3, 2, 8), CTX())),
    (ValueError, r"embedding_backward\(\): 'out.weight' of shape \(6, 8\) does not fit \[V, C\], where V=5, C=8",
     lambda: ck.embedding_backward(DY, CTX(), out=Gradients(np.empty((6, 8), "f4")))),
    (ValueError, r"embedding_backward\(\): 'out.weight' is written, and its elements overlap",
     lambda: ck.embedding_backward(DY, CTX(), out=Gradients(as_strided(W.copy(), (5, 8), (0, 4))))),
])
def test_embedding_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


def test_embedding_reports_a_lack_of_memory():
    ctx, given = CTX(), Gradients(np.full_like(W, 5))
    ck._ck.fail_allocation(1)
    with pytest.raises(MemoryError, match="embedding_backward"):
        ck.embedding_backward(DY, ctx, out=given)
    assert (given.weight == 5).all()
