import ml_dtypes
import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.ops.rope import Gradients
from ckernels.parity import assert_parity
from conftest import DTYPES, OFFERED
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_gradients_match_torch, assert_matches_torch

# B, H, T, K, D: pairs around each vector width, lanes that pass, more than one block of tokens, a real model's heads.
SIZES = [(2, 3, 5, k, 2 * k) for k in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40)]
SIZES += [(2, 3, 5, k, d) for k, d in ((16, 80), (17, 35), (24, 65), (8, 17))] + [
    (1, 2, 33, 4, 8),
    (2, 1, 65, 20, 48),
    (1, 9, 40, 32, 64),
]
HOW = [False, True]


def table(positions, K, base=10000.0):
    return [guarded(a) for a in ck.rope_table(np.asarray(positions), 2 * K, base)]


def inputs(rng, B, H, T, K, D, start=7, dtype="f4"):
    return guarded(rng.standard_normal((B, H, T, D)).astype(dtype)), *table(start + np.arange(T), K)


def torch_rope(x, cos, sin, interleaved):
    K = cos.shape[-1]
    lo, hi = (x[..., 0 : 2 * K : 2], x[..., 1 : 2 * K : 2]) if interleaved else (x[..., :K], x[..., K : 2 * K])
    turned = [lo * cos - hi * sin, lo * sin + hi * cos]
    turned = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat([turned, x[..., 2 * K :]], -1)


def turned(interleaved):
    """Return what PyTorch is to compute; on 16-bit x it works in float32, as the tables are, and rounds once."""
    return lambda x, cos, sin: torch_rope(x, cos, sin, interleaved)


@pytest.mark.parametrize("interleaved", HOW)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rope_matches_torch(isa, dtype, rng, size, interleaved):
    x, cos, sin = inputs(rng, *size, dtype=dtype)
    y = ck.rope(x, cos, sin, interleaved=interleaved, out=unwritten(x.shape, dtype))
    assert_matches_torch(y, turned(interleaved), x, cos, sin, trivial=x)
    assert y[..., 2 * size[3] :].tobytes() == x[..., 2 * size[3] :].tobytes()


@pytest.mark.parametrize("interleaved", HOW)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rope_backward_matches_autograd(isa, dtype, rng, size, interleaved):
    x, cos, sin = inputs(rng, *size, dtype=dtype)
    dy = guarded(rng.standard_normal(x.shape).astype(dtype))
    ctx = ck.rope_forward(x, cos, sin, interleaved=interleaved)[1]
    dx = ck.rope_backward(dy, ctx, out=Gradients(unwritten(x.shape, dtype))).x
    assert_gradients_match_torch((dx, None, None), turned(interleaved), (x, cos, sin), dy, trivial=dy)


@pytest.mark.parametrize("interleaved", HOW)
def test_rope_gradient_matches_differences(isa, rng, interleaved):
    x, cos, sin = inputs(rng, 2, 1, 5, 17, 36)
    dy = rng.standard_normal(x.shape).astype("f4")
    y, ctx = ck.rope_forward(x, cos, sin, interleaved=interleaved)
    dx = ck.rope_backward(dy, ctx).x
    assert_gradient(lambda moved: ck.rope(moved, cos, sin, interleaved=interleaved), x, dx, dy, rng)


@pytest.mark.parametrize("interleaved", HOW)
def test_rope_in_place(isa, dtype, rng, interleaved):
    x, cos, sin = inputs(rng, 2, 3, 35, 17, 36, dtype=dtype)
    dy = guarded(rng.standard_normal(x.shape).astype(dtype))
    y, ctx = ck.rope_forward(x, cos, sin, interleaved=interleaved)
    dx = ck.rope_backward(dy, ctx).x
    assert ck.rope_backward(dy, ctx, out=Gradients(dy)).x is dy
    assert dy.tobytes() == dx.tobytes()
    assert ck.rope(x, cos, sin, interleaved=interleaved, out=x) is x
    assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("interleaved", HOW)
def test_rope_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, interleaved):
    x, cos, sin = inputs(rng, 3, 7, 70, 33, 80, dtype=dtype)

    def everything():
        y, ctx = ck.rope_forward(x, cos, sin, interleaved=interleaved)
        return y.tobytes(), ck.rope_backward(x, ctx).x.tobytes()

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    y = ck.rope(x, cos, sin, interleaved=interleaved)
    one = ck.rope(x[2:, 4:5, 41:42], cos[41:42], sin[41:42], interleaved=interleaved)
    assert one.tobytes() == y[2, 4, 41].tobytes()


def test_rope_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    x, cos, sin = inputs(rng, 2, 3, 33, 33, 80, dtype=dtype)
    bits = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            results = [ck.rope_forward(x, cos, sin, interleaved=how) for how in HOW]
            bits.add(b"".join(y.tobytes() + ck.rope_backward(x, ctx).x.tobytes() for y, ctx in results))
    assert len(bits) == 1


@pytest.mark.parametrize("offset", [0, 7, 4095])
def test_rope_at_an_offset(isa, dtype, rng, offset):
    x, cos, sin = inputs(rng, 2, 3, 5, 32, 64, start=offset, dtype=dtype)
    whole = table(np.arange(offset + 5), 32)
    y = ck.rope(x, cos, sin)
    assert_matches_torch(y, turned(False), x, cos, sin, trivial=x)
    assert y.tobytes() == ck.rope(x, *whole, positions=offset + np.arange(5)).tobytes()


@pytest.mark.parametrize("ids", ["i4", "i8"])
def test_rope_positions_pick_rows(isa, dtype, rng, ids):
    x, cos, sin = inputs(rng, 3, 2, 35, 9, 20, dtype=dtype)  # B, H and T differ, and H does not divide B
    cos, sin = table(np.arange(100), 9)
    for shape in (35,), (3, 35):
        positions = guarded(rng.integers(0, 100, shape).astype(ids))
        y, ctx = ck.rope_forward(x, cos, sin, positions=positions, out=unwritten(x.shape, dtype))
        dx = ck.rope_backward(x, ctx, out=Gradients(unwritten(x.shape, dtype))).x
        for b in range(3):
            picked = positions if len(shape) == 1 else positions[b]
            rows = cos[picked], sin[picked]
            assert y[b].tobytes() == ck.rope(x[b], *rows).tobytes()
            assert dx[b].tobytes() == ck.rope_backward(x[b], ck.rope_forward(x[b], *rows)[1]).x.tobytes()


def test_rope_gives_every_item_of_a_batch_its_own_position(isa, dtype, rng):
    x = rng.standard_normal((4, 7, 1, 32)).astype(dtype)  # decoding: one token an item
    cos, sin = table(np.arange(50), 16)
    positions = np.array([[3], [49], [0], [17]])
    y = ck.rope(x, cos, sin, positions=positions)
    for b, p in enumerate(positions[:, 0]):
        assert y[b].tobytes() == ck.rope(x[b], cos[p : p + 1], sin[p : p + 1]).tobytes()
    assert y[2].tobytes() == x[2].tobytes()  # position 0 turns by nothing


@pytest.mark.parametrize("heads", [1, 2, 3, 7])
def test_rope_of_grouped_heads(isa, dtype, rng, heads):
    """Queries and keys have differing numbers of heads, and each head is turned as if it were alone."""
    q, cos, sin = inputs(rng, 2, 2 * heads, 5, 16, 32, dtype=dtype)
    k = q[:, ::heads]
    turned_q, turned_k = ck.rope(q, cos, sin), ck.rope(k, cos, sin)
    assert turned_k.shape == (2, 2, 5, 32)
    assert turned_k.tobytes() == turned_q[:, ::heads].tobytes()


def test_rope_pairs_cannot_be_confused(isa, dtype, rng):
    x, cos, sin = inputs(rng, 2, 3, 5, 33, 80, dtype=dtype)
    assert_matches_torch(ck.rope(x, cos, sin, interleaved=True), turned(True), x, cos, sin)
    with pytest.raises(AssertionError):
        assert_matches_torch(ck.rope(x, cos, sin), turned(True), x, cos, sin)
    order = np.arange(66).reshape(2, 33).T.ravel()  # 0 33 1 34 ...: one convention is the other's, permuted
    both = ck.rope(x, cos, sin)[..., order], ck.rope(np.ascontiguousarray(x[..., order]), cos, sin, interleaved=True)
    assert both[0].tobytes() == both[1].tobytes()


@pytest.mark.parametrize("far", [1 << 12, 1 << 20])
@pytest.mark.parametrize("interleaved", HOW)
def test_rope_twice_adds_the_angles(isa, dtype, rng, interleaved, far):
    x, *_ = inputs(rng, 2, 3, 5, 32, 64, dtype=dtype)
    a, b = rng.integers(far, 2 * far, (2, 5))
    first, second, both = table(a, 32), table(b, 32), [t.astype("f8") for t in exact_table(a + b, 64, 10000.0)]
    twice = ck.rope(ck.rope(x, *first, interleaved=interleaved), *second, interleaved=interleaved)

    def turn(tensor, tables):  # in float32, and rounded
        return torch_rope(tensor.float(), *map(as_torch, tables), interleaved).to(tensor.dtype)

    peer = turn(turn(as_torch(x), first), second)
    exact = torch_rope(*(as_torch(t, torch.float64) for t in (x, *both)), interleaved)
    assert_parity(twice, exact, peer, trivial=x)


def test_rope_keeps_lengths_and_backward_undoes_forward(isa, dtype, rng):
    x, cos, sin = inputs(rng, 2, 3, 5, 32, 64, dtype=dtype)
    y, ctx = ck.rope_forward(x, cos, sin)
    there, back = x.astype("f8"), ck.rope_backward(y, ctx).x
    # A table of floats turns by a length of 1 +- eps / 2, twice; each turn rounds, a result of at most sqrt(2) max |x|.
    bound = 3 * 2**0.5 * (np.finfo("f4").eps + float(ml_dtypes.finfo(dtype).eps)) * np.abs(there).max()
    assert_parity(back, there, bound=bound, trivial=y)


@pytest.mark.parametrize("interleaved", HOW)
def test_rope_of_extremes(isa, dtype, interleaved):
    inf, nan = np.inf, np.nan
    limits = ml_dtypes.finfo(dtype)
    tiny, large = 3 * float(limits.smallest_subnormal), 0.9 * float(limits.max)
    rows = np.array(
        [
            [nan, 1, 2, 3],
            [1, inf, 2, -3],
            [tiny, -tiny, 0, tiny],
            [-200, 200, -200, 200],
            [7, 7, 7, 7],
            [large, 1, 1, 1],
        ],
        "f8",
    ).astype(dtype)
    x = np.concatenate([rows, np.full((6, 1), nan, dtype)], 1)
    cos, sin = table(3 + np.arange(6), 2)
    y = ck.rope(x, cos, sin, interleaved=interleaved)
    for r in range(6):
        assert_matches_torch(y[r], turned(interleaved), x[r], cos[r], sin[r])


@pytest.mark.parametrize("interleaved", HOW)
def test_rope_rounds_once(isa, interleaved):
    """A 16-bit result is the rounded float32 result of the same numbers: nothing is kept in 16 bits on the way."""
    rng = np.random.default_rng(5)
    for dtype in OFFERED:
        x, cos, sin = inputs(rng, 2, 3, 9, 33, 70, dtype=DTYPES[dtype])
        wide = ck.rope(x.astype("f4"), cos, sin, interleaved=interleaved)
        if isa != "reference":  # which rounds from double
            assert ck.rope(x, cos, sin, interleaved=interleaved).tobytes() == wide.astype(DTYPES[dtype]).tobytes()


@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8), (3, 4, 0)], ids=str)
def test_rope_of_nothing(isa, dtype, shape):
    x = np.ones(shape, dtype)
    y, ctx = ck.rope_forward(x, *ck.rope_table(np.arange(shape[1]), shape[2]))
    assert y.shape == ck.rope_backward(y, ctx).x.shape == shape
    no_items = np.ones((0, 4, 8), "f4")
    assert ck.rope(no_items, *ck.rope_table(np.arange(9), 8), positions=np.ones((0, 4), int)).shape == (0, 4, 8)


def test_rope_of_no_pairs_is_a_copy(isa, dtype, rng):
    x = guarded(rng.standard_normal((2, 3, 5)).astype(dtype))
    assert ck.rope(x, *ck.rope_table(np.arange(3), 0), out=unwritten(x.shape, dtype)).tobytes() == x.tobytes()


@pytest.mark.parametrize("interleaved", HOW)
def test_rope_takes_strided_views(isa, dtype, rng, interleaved):
    B, H, T, D = 2, 3, 35, 36
    x = spaced(rng.standard_normal((B, T, H, D)).astype(dtype)).transpose(0, 2, 1, 3)
    out = spaced(np.zeros((B, T, H, D), dtype)).transpose(0, 2, 1, 3)
    cos, sin = (spaced(a) for a in table(np.arange(90), 17))
    positions = rng.integers(0, 90, (T, B)).astype("i4")[:, ::-1].T.copy()
    y, ctx = ck.rope_forward(x, cos, sin, positions=positions, interleaved=interleaved, out=out)
    flat = [np.ascontiguousarray(a) for a in (x, cos, sin)]
    want, flat_ctx = ck.rope_forward(*flat, positions=positions, interleaved=interleaved)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(ck.rope_backward(x, ctx).x, ck.rope_backward(flat[0], flat_ctx).x)
    assert gaps_untouched(out.transpose(0, 2, 1, 3))
    kept = spaced(x)
    ck.rope(kept, cos, sin, positions=positions, interleaved=interleaved, out=kept)
    np.testing.assert_array_equal(kept, want)


def test_rope_takes_tensors(rng):
    x, cos, sin = inputs(rng, 1, 2, 5, 4, 8)
    t = [torch.tensor(a) for a in (x, cos, sin)]
    np.testing.assert_array_equal(ck.rope(*t, positions=torch.arange(5)), ck.rope(x, cos, sin))


def exact_table(positions, dim, base):
    angle = np.asarray(positions, np.longdouble)[:, None] * np.longdouble(base) ** (
        -np.arange(0, dim, 2, dtype=np.longdouble) / dim
    )
    return np.cos(angle), np.sin(angle)


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1e6])
@pytest.mark.parametrize("dim", [2, 34, 64, 128])
def test_rope_table_is_rounded_once(isa, dim, base):
    positions = guarded(np.array([0, 1, 7, 4095, 4096, 131071, 1000003, -5], "i8"))
    for got, exact in zip(ck.rope_table(positions, dim, base), exact_table(positions, dim, base), strict=True):
        exact = exact.astype("f8")
        half_ulp = np.spacing(np.abs(exact).astype("f4")).astype("f8") / 2
        assert_parity(got, exact, bound=half_ulp * (1 + 2.0**-20))
        assert got.dtype == np.float32


def test_rope_table_sees_a_float32_angle(isa):
    positions = np.array([4095, 8190, 100001])
    angle = positions.astype("f4")[:, None] * (np.float32(10000) ** (-np.arange(0, 64, 2, dtype="f4") / 64)).astype(
        "f4"
    )
    cos, _ = ck.rope_table(positions, 64)
    assert np.abs(np.cos(angle, dtype="f4") - exact_table(positions, 64, 10000.0)[0]).max() > 1e-5
    assert np.abs(cos - exact_table(positions, 64, 10000.0)[0]).max() <= 2.0**-25


def test_rope_table_bits_do_not_depend_on_isa_threads_or_rows():
    positions = np.arange(3000)
    bits = set()
    for isa in ck.isas():
        for n in 1, 2, 3, 7:
            ck.set_num_threads(n)
            with ck.use(isa):
                bits.add(b"".join(a.tobytes() for a in ck.rope_table(positions, 66)))
    assert len(bits) == 1
    whole, one = ck.rope_table(positions, 66), ck.rope_table(positions[2345:2346].astype("i4"), 66)
    assert [a.tobytes() for a in one] == [a[2345].tobytes() for a in whole]


def test_rope_table_takes_strided_positions(isa):
    positions = np.arange(40)
    for view in positions[::2], positions[::-3], positions.reshape(8, 5).T[1], positions.astype("i4")[5::7]:
        expected = ck.rope_table(view.copy(), 12)
        assert [a.tobytes() for a in ck.rope_table(view, 12)] == [a.tobytes() for a in expected]


X, COS = np.ones((2, 3, 8), "f4"), np.ones((3, 4), "f4")
SIN = COS.copy()
READ_ONLY = np.ones((2, 3, 8), "f4")
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "error, text, call",
    [
        (TypeError, r"rope\(\): 'x' must be float32, float16 or bfloat16, not float64", lambda: ck.rope(X.astype("f8"), COS, SIN)),
        (TypeError, r"rope\(\): 'cos' must be a NumPy array .* not <class 'list'>", lambda: ck.rope(X, [1.0], SIN)),
        (
            TypeError,
            r"rope\(\): 'positions' must be int32 or int64, not float64",
            lambda: ck.rope(X, COS, SIN, positions=np.ones(3)),
        ),
        (
            ValueError,
            r"rope\(\): 'sin' of shape \(3, 3\) does not fit \[T, K\], where T=3, K=4",
            lambda: ck.rope(X, COS, SIN[:, :3]),
        ),
        (ValueError, r"rope\(\): 'cos' has K=4 pairs, .* only D=7", lambda: ck.rope(X[..., :7], COS, SIN)),
        (
            ValueError,
            r"rope\(\): 'cos' of shape \(4, 4\) does not fit \[T, K\], where T=3: give 'positions'",
            lambda: ck.rope(X, *table(np.arange(4), 4)),
        ),
        (
            ValueError,
            r"rope\(\): 'cos' of shape \(1, 4\) does not fit \[T, K\], where T=3",
            lambda: ck.rope(X, COS[:1], SIN[:1]),
        ),
        (
            TypeError,
            r"rope\(\): 'positions' must be a NumPy array .* not <class 'list'>",
            lambda: ck.rope(X, COS, SIN, positions=[[0], [1, 2]]),
        ),
        (
            MemoryError,
            r"rope_table\(\): no memory for tables of shape \(3, ",
            lambda: ck.rope_table(np.arange(3), 2**60),
        ),
        (
            OverflowError,
            r"rope_table\(\): no memory for tables of shape \(3, ",
            lambda: ck.rope_table(np.arange(3), 2**70),
        ),
        (
            ValueError,
            r"rope\(\): 'x' must be contiguous along its last axis",
            lambda: ck.rope(X[..., ::2], COS[:, :2], SIN[:, :2]),
        ),
        (ValueError, r"rope\(\): 'x' of shape \(8,\) does not fit", lambda: ck.rope(X[0, 0], COS, SIN)),
        (
            ValueError,
            r"rope\(\): 'positions' of shape \(2,\) does not fit",
            lambda: ck.rope(X, COS, SIN, positions=np.arange(2)),
        ),
        (
            ValueError,
            r"rope\(\): 'positions' of shape \(3, 3\) does not fit \[T\] or \[B, T\]",
            lambda: ck.rope(X, COS, SIN, positions=np.zeros((3, 3), int)),
        ),
        (
            ValueError,
            r"rope\(\): 'positions' of shape \(1, 3\) does not fit",
            lambda: ck.rope(X, COS, SIN, positions=np.zeros((1, 3), int)),
        ),
        (
            ValueError,
            r"rope\(\): 'positions' of shape \(3, 3\)",
            lambda: ck.rope(X[0], COS, SIN, positions=np.zeros((3, 3), int)),
        ),
        (
            ValueError,
            r"rope\(\): 'out' of shape \(2, 3, 7\) does not fit",
            lambda: ck.rope(X, COS, SIN, out=np.empty((2, 3, 7), "f4")),
        ),
        (ValueError, r"rope\(\): 'out' is written, but read-only", lambda: ck.rope(X, COS, SIN, out=READ_ONLY)),
        (
            ValueError,
            r"rope\(\): 'out' is written and overlaps 'x'",
            lambda: (lambda a: ck.rope(a[:2], COS, SIN, out=a[1:]))(np.ones((3, 3, 8), "f4")),
        ),
        (
            ValueError,
            r"rope_backward\(\): 'out.x' of shape \(2, 3, 7\)",
            lambda: ck.rope_backward(X, ck.rope_forward(X, COS, SIN)[1], out=Gradients(np.empty((2, 3, 7), "f4"))),
        ),
        (
            ValueError,
            r"rope_backward\(\): 'positions' of shape \(2, 3\) does not fit .*'dy' of shape \(4, 3, 8\)",
            lambda: ck.rope_backward(
                np.ones((4, 3, 8), "f4"), ck.rope_forward(X, COS, SIN, positions=np.zeros((2, 3), int))[1]
            ),
        ),
        (
            ValueError,
            r"rope_table\(\): 'dim' must be even and not negative, not 5",
            lambda: ck.rope_table(np.arange(3), 5),
        ),
        (
            ValueError,
            r"rope_table\(\): 'dim' must be even and not negative, not -2",
            lambda: ck.rope_table(np.arange(3), -2),
        ),
        (TypeError, r"rope_table\(\): 'dim' must be an integer, not float", lambda: ck.rope_table(np.arange(3), 4.0)),
        (
            ValueError,
            r"rope_table\(\): 'base' must be positive and finite, not -1",
            lambda: ck.rope_table(np.arange(3), 4, -1),
        ),
        (
            ValueError,
            r"rope_table\(\): 'base' must be positive and finite, not nan",
            lambda: ck.rope_table(np.arange(3), 4, np.nan),
        ),
        (
            TypeError,
            r"rope_table\(\): 'scaling' must be a dict, not str",
            lambda: ck.rope_table(np.arange(3), 4, scaling="yarn"),
        ),
        (
            ValueError,
            r"rope_table\(\): 'positions' of shape \(2, 3\) does not fit \[T\]",
            lambda: ck.rope_table(np.zeros((2, 3), int), 4),
        ),
        (
            TypeError,
            r"rope_table\(\): 'positions' must be int32 or int64, not float32",
            lambda: ck.rope_table(np.zeros(3, "f4"), 4),
        ),
        (TypeError, r"rope_table\(\): 'positions' must be a NumPy array", lambda: ck.rope_table(7, 4)),
    ],
)
def test_rope_refuses(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_rope_refuses_a_position_outside_the_table(isa, bad):
    out = np.full_like(X, 5)
    with pytest.raises(IndexError, match=rf"rope\(\): 'positions' holds {bad}, and the table has 3 rows"):
        ck.rope(X, COS, SIN, positions=np.array([[0, 1, 2], [0, 1, bad]]), out=out)
    assert (out == 5).all()
