import subprocess

import ml_dtypes
import numpy as np
import pytest
import torch

import ckernels as ck
import native
from guard import gaps_untouched, guarded, spaced
from parity import as_torch

ARGMAX_SIZES = [1, 2, 7, 15, 16, 17, 63, 64, 65, 100, 511, 512, 513, 1000, 1025]
LONG = 2 * 65536 + 3  # a row of argmax in three blocks
SIZES = [(1, 0), (1, 1), (5, 0), (5, 2), (5, 5), (16, 3), (17, 17), (63, 20), (64, 1), (65, 64), (200, 5), (200, 100),
         (513, 50), (1000, 999), (1000, 1000)]  # fmt: skip


def unset(*shape):
    """An output of indices, up to an unreadable page, that holds no index."""
    return guarded(np.full(shape, -7, np.int64))


def wide(x):
    return x.astype("f8")


def order(row):
    """The contract: NaN first, then descending, equals by index."""
    row = wide(row)
    nan = np.isnan(row)
    return np.lexsort((np.arange(row.size), -np.where(nan, 0, row), ~nan))


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


def rows_of_all_kinds(rng, dtype, R, C):
    """Numbers, many equals, NaN and infinities, zeros of both signs, ascending, descending, nothing but -inf."""
    x = rng.standard_normal((R, C)).astype(dtype)
    kinds = [x, np.round(wide(x)), np.where(rng.random((R, C)) < 0.05, np.nan, wide(x)), np.sort(wide(x)),
             -np.sort(wide(x)), np.where(rng.random((R, C)) < 0.2, np.inf, -wide(x)), np.full((R, C), -np.inf),
             np.where(rng.random((R, C)) < 0.5, 0.0, -0.0), np.full((R, C), np.nan),
             np.where(np.arange(C) == C - 1, 1.0, -np.inf) + np.zeros((R, 1))]  # fmt: skip
    return guarded(np.concatenate([kind.astype(dtype) for kind in kinds]))


@pytest.mark.parametrize("C", ARGMAX_SIZES)
def test_argmax_is_the_first_in_order(isa, dtype, rng, C):
    x = rows_of_all_kinds(rng, dtype, 3, C)
    y = ck.argmax(x, out=unset(len(x)))
    np.testing.assert_array_equal(y, [order(row)[0] for row in x])
    np.testing.assert_array_equal(y, wide(x).argmax(-1))
    assert y.dtype == np.int64 and ck.argmax(x).tobytes() == y.tobytes()
    np.testing.assert_array_equal(wide(x)[np.arange(len(x)), y], wide(as_torch(x).float().max(-1).values.numpy()))


def test_argmax_of_every_place(isa, dtype):
    for C in 1, 17, 65, 130, 520:
        x = np.where(np.eye(C, dtype=bool), 2, 1).astype(dtype)
        np.testing.assert_array_equal(ck.argmax(guarded(x)), np.arange(C))
        x[:, -1] = 2  # a tie with the last
        np.testing.assert_array_equal(ck.argmax(guarded(x)), np.arange(C))
        x[np.eye(C, dtype=bool)] = np.nan
        np.testing.assert_array_equal(ck.argmax(guarded(x)), np.arange(C))


def test_argmax_of_long_rows(isa, dtype, rng):
    """Rows that are cut: ties and NaN in several blocks, the largest in each."""
    x = np.round(rng.standard_normal((7, LONG)) * 4).astype(dtype)
    for r, places in enumerate([(65535,), (65536,), (LONG - 1,), (9, 70000), (65536, LONG - 1)]):
        x[r, list(places)] = 60
    x[4, 65537] = x[5, [131072, 131075 - 1]] = np.nan
    x[6] = -np.inf
    x = guarded(x)
    expected = wide(x).argmax(-1)
    assert expected.tolist()[:5] == [65535, 65536, LONG - 1, 9, 65537] and expected[6] == 0
    for n in 1, 2, 3, 7:
        ck.set_num_threads(n)
        np.testing.assert_array_equal(ck.argmax(x, out=unset(7)), expected)


@pytest.mark.parametrize("C, k", SIZES, ids=str)
def test_topk_is_the_beginning_of_the_order(isa, dtype, rng, C, k):
    x = rows_of_all_kinds(rng, dtype, 3, C)
    given = guarded(np.full((len(x), k), 77, dtype)), unset(len(x), k)
    values, indices = ck.topk(x, k, out=given)
    assert values is given[0] and indices is given[1]
    expected = np.array([order(row)[:k] for row in x]).reshape(len(x), k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(bits(values), bits(np.take_along_axis(x, expected, -1)))
    made = ck.topk(x, k)
    assert made[0].dtype == dtype and made[1].dtype == np.int64
    assert [m.tobytes() for m in made] == [values.tobytes(), indices.tobytes()]
    peer = torch.topk(as_torch(x).float(), k, -1)
    np.testing.assert_array_equal(wide(values), wide(peer.values.numpy()))


@pytest.mark.parametrize("k", [1, 2, 50, 64, 500])
def test_topk_of_long_rows(dtype, rng, k):
    for row in (rng.standard_normal(5000), np.sort(rng.standard_normal(5000)), np.arange(5000) // 700,
                np.where(rng.random(5000) < 0.3, np.nan, 1), np.where(rng.random(5000) < 0.3, np.inf, np.nan)):
        x = guarded(row.astype(dtype))
        for isa in set(ck.isas()) - {"reference"}:
            with ck.use(isa):
                np.testing.assert_array_equal(ck.topk(x, k)[1], order(x)[:k])


def test_topk_keeps_what_a_nan_carries(isa, dtype):
    quiet, signalling = {"float32": (0x7FC0BEEF, 0xFF812345), "float16": (0x7EEF, 0xFC12), "bfloat16": (0x7FEB, 0xFF91)}[dtype.name]
    x = np.zeros(20, dtype)
    x.view(f"u{dtype.itemsize}")[[4, 9]] = quiet, signalling
    values, indices = ck.topk(x, 3)
    assert indices.tolist() == [4, 9, 0] and bits(values)[:2].tolist() == [quiet, signalling]


def test_bits_do_not_depend_on_threads_or_batch(isa, rng, dtype):
    x = (3 * rng.standard_normal((300, 777))).astype(dtype)
    options = {"temperature": 0.8, "top_k": 200, "top_p": 0.9, "min_p": 0.01}
    seeds = rng.integers(-2**63, 2**63, 300)

    def everything():
        arrays = ck.argmax(x), *ck.topk(x, 9), ck.sample(x, seed=3, **options), ck.sample(x, seed=seeds, **options)
        return [a.tobytes() for a in arrays]

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    drawn = ck.sample(x, seed=3, **options)
    assert ck.argmax(x[41]) == ck.argmax(x)[41] and ck.topk(x[41], 9)[1].tobytes() == ck.topk(x, 9)[1][41].tobytes()
    assert ck.sample(x[:42], seed=3, **options)[41] == drawn[41], "only its row, its number and the seed count"
    changed = x.copy()
    changed[:41] = changed[42:] = 0
    assert ck.sample(changed, seed=3, **options)[41] == drawn[41]
    assert ck.sample(x[41], seed=seeds[41:42].reshape(()), **options) == ck.sample(x, seed=seeds, **options)[41]
    assert ck.sample(x[41], seed=int(seeds[41]), **options) == ck.sample(x, seed=seeds, **options)[41]


def test_bits_are_the_same_on_avx2_and_avx512(rng, dtype):
    x = (3 * rng.standard_normal((64, 5003))).astype(dtype)
    found = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            arrays = (ck.argmax(x), *ck.topk(x, 70), ck.sample(x, seed=1), ck.sample(x, top_p=0.8, seed=1),
                      ck.sample(x, temperature=1.7, top_k=99, min_p=0.02, seed=1))
            found.add(b"".join(a.tobytes() for a in arrays))
    assert len(found) == 1


# ---- sample ----


def philox(key, counter):
    """Philox 4x32-10 of two words of key and four of counter."""
    k, x = [int(w) for w in key], [int(w) for w in counter]
    for _ in range(10):
        p, q = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(q >> 32) ^ x[1] ^ k[0], q & 0xFFFFFFFF, (p >> 32) ^ x[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def test_philox_is_the_one_of_random123():
    """The known answers that its authors publish with it."""
    ones = 0xFFFFFFFF
    for counter, key, answer in (
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, [ones] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
         [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ):  # fmt: skip
        assert philox(key, counter) == answer


def uniform(seed, row):
    seed %= 2**64
    x = philox((seed % 2**32, seed >> 32), (row % 2**32, row >> 32, 0, 0))
    return ((x[0] << 32 | x[1]) >> 11) / 2**53


def weights_of(row, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The contract, in float64."""
    z = wide(row) / temperature
    first = order(row)
    w = np.exp(z - z.max())
    if top_k is not None and top_k < z.size:
        w[z < z[first[top_k - 1]]] = 0
    if top_p is not None and top_p < 1:
        before = np.cumsum(w[first]) - w[first]
        w[first[before >= top_p * w.sum()]] = 0
    if min_p is not None:
        w[w < min_p] = 0
    return w


FILTERS = [{}, {"temperature": 0.5}, {"temperature": 30.0}, {"top_k": 1}, {"top_k": 7}, {"top_k": 10**6}, {"top_p": 0.3},
           {"top_p": 0.9}, {"top_p": 1.0}, {"top_p": 1e-9}, {"min_p": 0.1}, {"min_p": 1.0}, {"min_p": 0.0},
           {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.05}]  # fmt: skip


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_sample_draws_what_the_contract_says(isa, dtype, rng, options):
    """Every draw is that of the formula, in float64 and with another Philox, but for draws on the border of two."""
    for R, V in (3, 1), (40, 2), (40, 16), (60, 50), (40, 65), (40, 1000), (20, 1025), (10, 3001):
        x = guarded((3 * rng.standard_normal((R, V))).astype(dtype))
        drawn = ck.sample(x, seed=R - 2**40, out=unset(R), **options)
        for r, v in enumerate(drawn):
            w = weights_of(x[r], **options)
            sums, u = np.cumsum(w) / w.sum(), uniform(R - 2**40, r)
            assert w[v] > 0
            assert (sums[v - 1] if v else 0) - 1e-6 <= u <= sums[v] + 1e-6, (r, v)


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_sample_keeps_what_transformers_keeps(rng, options):
    """The contract above is that of the warpers; all of them that are kept get drawn, and no other."""
    process = pytest.importorskip("transformers").generation.logits_process
    x = rng.standard_normal(60).astype("f4")
    x[[3, 30, 31, 32]] = x[5]  # equals
    if "top_p" in options or "min_p" in options:
        x += np.linspace(0, 1e-3, 60, dtype="f4")  # its sort does not say which of equals comes first
    scores = torch.from_numpy(x[None])
    for name, warper in (("temperature", "TemperatureLogitsWarper"), ("top_k", "TopKLogitsWarper"),
                         ("top_p", "TopPLogitsWarper"), ("min_p", "MinPLogitsWarper")):
        if name in options:
            scores = getattr(process, warper)(options[name])(None, scores)
    p = torch.softmax(scores.double(), -1)[0].numpy()
    w = weights_of(x, **options)
    np.testing.assert_array_equal(w > 0, p > 0)
    np.testing.assert_allclose(w / w.sum(), p, rtol=1e-5)
    n = 40000
    for isa in set(ck.isas()) - {"reference"}:
        with ck.use(isa):
            count = np.bincount(ck.sample(np.broadcast_to(x, (n, 60)), seed=11, **options), minlength=60)
        assert (count[p == 0] == 0).all() and (count[p * n > 20] > 0).all()
        often = p * n > 5
        chi = ((count - p * n)[often] ** 2 / (p * n)[often]).sum()
        free = often.sum()
        assert chi < free + 5 * np.sqrt(2 * free) + 5, "five standard deviations of chi-square"


def test_sample_of_a_large_vocabulary(rng, dtype):
    """Flat and peaked rows of 151936, with every filter: the drawn one is kept, and the same on every instruction set."""
    V = 151936
    x = np.stack([rng.standard_normal(V) * scale for scale in (0.0, 0.5, 2.0, 6.0)]).astype(dtype)
    for options in FILTERS[:9] + FILTERS[10:]:
        drawn = []
        for isa in set(ck.isas()) - {"reference"}:
            with ck.use(isa):
                drawn.append(ck.sample(x, seed=5, **options).tolist())
        assert all(d == drawn[0] for d in drawn), options
        for r, v in enumerate(drawn[0]):
            w = weights_of(x[r], **options)
            sums = np.cumsum(w) / w.sum()
            assert w[v] > 0
            assert (sums[v - 1] if v else 0) - 1e-5 <= uniform(5, r) <= sums[v] + 1e-5


def test_sample_at_temperature_0_is_argmax(isa, dtype, rng):
    x = rows_of_all_kinds(rng, dtype, 2, 40)
    y = ck.sample(x, temperature=0, top_k=3, top_p=0.1, seed=1)
    np.testing.assert_array_equal(y, ck.argmax(x))


def test_sample_at_the_ends_of_temperature(isa, rng):
    x = np.array([[1, 1.0000001, -1e30, 0.5]], "f4")
    assert (ck.sample(np.repeat(x, 50, 0), temperature=2.0**-126, seed=2) == 1).all()
    drawn = ck.sample(np.repeat(x, 4000, 0), temperature=3e38, seed=2)
    assert (np.bincount(drawn, minlength=4) > 850).all(), "all alike"


def test_sample_of_logits_whose_difference_is_no_float(isa, dtype):
    """Divided by the temperature it is one: the second is e^-2 as likely as the first, not impossible."""
    large = float(ml_dtypes.finfo(dtype).max)
    x = np.repeat(np.array([[large, -large]], dtype), 8000, 0)
    share = ck.sample(x, temperature=large, seed=3).mean()
    expected = np.exp(-2) / (1 + np.exp(-2))
    assert abs(share - expected) < 5 * np.sqrt(expected / 8000)


def test_room_of_a_thread_ends_where_that_of_the_next_may_begin(tmp_path):
    """Kernels keep 64-bit numbers there: any other end is one that the next thread must not read them from."""
    program = tmp_path / "room"
    source = """#include "ops/selection.h"
    int main(void)
    {
        for (size_t n = 1; n < 300; n++)
            if (ck_sample_scratch(n) % 64 != 0 || ck_sample_scratch(n) < 28 * n || ck_topk_scratch(n) % 64 != 0)
                return 1;
        return 0;
    }"""
    command = [*native.build().compiler(), "-x", "c", "-", "-o", str(program)]
    subprocess.run(command, input=source, text=True, check=True, cwd=native.ROOT)
    assert subprocess.run([program]).returncode == 0


def test_sample_never_draws_minus_infinity(isa, dtype):
    x = np.full((500, 37), -np.inf, dtype)
    x[:, [0, 36]] = -3
    x[:, 20] = -3
    for options in FILTERS:
        assert set(ck.sample(x, seed=9, **options).tolist()) <= {0, 20, 36}
    x[:, [0, 36]] = -np.inf
    assert (ck.sample(x, temperature=50, seed=9) == 20).all()


def test_seeds_and_rows_are_unrelated(isa):
    """Draws of 0 or 1: over rows, over seeds, and one beside the other."""
    x = np.zeros((4096, 2), "f4")
    by_row = [ck.sample(x, seed=s) for s in (0, 1, 2**32, -1)]
    by_seed = ck.sample(x, seed=np.arange(4096))
    for draws in (*by_row, by_seed, by_row[0] ^ by_row[1], by_row[0] ^ by_row[2], by_row[0] ^ by_seed, by_seed[1:] ^ by_seed[:-1]):
        assert abs(draws.mean() - 0.5) < 5 * 0.5 / 64


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0, 5)])
def test_selection_of_nothing(isa, dtype, shape):
    x = np.ones(shape, dtype)
    assert ck.argmax(x).shape == ck.sample(x, seed=0).shape == shape[:-1]
    values, indices = ck.topk(x, min(2, shape[-1]))
    assert values.shape == indices.shape == (*shape[:-1], min(2, shape[-1]))
    assert ck.topk(np.ones((4, 0), dtype), 0)[1].shape == (4, 0)


def test_selection_of_one_row_has_no_axes(isa):
    x = np.array([1, 3, 2], "f4")
    assert ck.argmax(x).shape == () and int(ck.argmax(x)) == 1 and ck.topk(x, 2)[1].tolist() == [1, 2]
    assert ck.sample(x, top_k=1, seed=0) == 1


def test_selection_takes_strided_views(isa, dtype, rng):
    whole = rng.standard_normal((6, 5, 40)).astype(dtype)
    for x in whole[:, 1:4, 3:], whole.transpose(1, 0, 2), whole[::-2, ::2], spaced(whole[:, 0]), whole[:1, :1]:
        flat = x.copy()
        out = np.full((*x.shape[:-1], 2), -7)[..., 0]
        np.testing.assert_array_equal(ck.argmax(x, out=out), ck.argmax(flat))
        values, indices = ck.topk(x, 4, out=(spaced(np.zeros((*x.shape[:-1], 4), dtype)), None))
        np.testing.assert_array_equal(indices, ck.topk(flat, 4)[1])
        np.testing.assert_array_equal(bits(values), bits(ck.topk(flat, 4)[0]))
        assert gaps_untouched(values)
        seeds = np.arange(2 * flat[..., 0].size, dtype="i4").reshape(*x.shape[:-1], 2)[..., 0]
        np.testing.assert_array_equal(ck.sample(x, seed=4, out=out), ck.sample(flat, seed=4))
        np.testing.assert_array_equal(ck.sample(x, seed=seeds), ck.sample(flat, seed=seeds.astype("i8")))


def test_selection_takes_tensors(rng):
    x = rng.standard_normal((4, 9)).astype("f4")
    t = torch.from_numpy(x)
    np.testing.assert_array_equal(ck.argmax(t), ck.argmax(x))
    np.testing.assert_array_equal(ck.topk(t, 3)[1], ck.topk(x, 3)[1])
    np.testing.assert_array_equal(ck.sample(t, seed=torch.arange(4)), ck.sample(x, seed=np.arange(4)))


X = np.ones((2, 5), "f4")
BAD = {name: np.array([[1, 2], value], "f4") for name, value in
       {"nan": [np.nan, 1], "inf": [np.inf, 1], "none": [-np.inf, -np.inf]}.items()}  # fmt: skip


@pytest.mark.parametrize("error, text, call", [
    (ValueError, r"argmax\(\): 'x' has rows of no elements", lambda: ck.argmax(X[:, :0])),
    (ValueError, r"argmax\(\): 'x' of shape \(\) does not fit", lambda: ck.argmax(X[0, 0, ...])),
    (ValueError, r"argmax\(\): 'x' must be contiguous along its last axis", lambda: ck.argmax(X[:, ::2])),
    (TypeError, r"argmax\(\): 'x' must be float32, float16 or bfloat16", lambda: ck.argmax(X.astype("f8"))),
    (TypeError, r"argmax\(\): 'out' must be int64, not int32", lambda: ck.argmax(X, out=np.zeros(2, "i4"))),
    (ValueError, r"argmax\(\): 'out' of shape \(3,\) does not fit", lambda: ck.argmax(X, out=np.zeros(3, "i8"))),
    (ValueError, r"topk\(\): 'k' must be 0 to 5, not 6", lambda: ck.topk(X, 6)),
    (ValueError, r"topk\(\): 'k' must be 0 to 5, not 1000000000000000", lambda: ck.topk(X, 10**15)),
    (ValueError, r"topk\(\): 'k' must be 0 or more, not -1", lambda: ck.topk(X, -1)),
    (TypeError, r"topk\(\): 'k' must be an integer", lambda: ck.topk(X, 1.0)),
    (TypeError, r"topk\(\): 'out' must be a tuple of two arrays", lambda: ck.topk(X, 1, out=X)),
    (TypeError, r"topk\(\): 'values' must be float32, not float16",
     lambda: ck.topk(X, 1, out=(np.zeros((2, 1), "f2"), None))),
    (ValueError, r"topk\(\): 'indices' of shape \(2, 2\) does not fit \[..., K\], where ...=\(2,\), K=1",
     lambda: ck.topk(X, 1, out=(None, np.zeros((2, 2), "i8")))),
    (ValueError, r"topk\(\): 'values' is written and overlaps 'x'", lambda: ck.topk(X, 5, out=(X, None))),
    (ValueError, r"sample\(\): 'logits' has rows of no elements", lambda: ck.sample(X[:, :0], seed=0)),
    (ValueError, r"sample\(\): 'temperature' must be 0, or a normal float32 above it, not -1",
     lambda: ck.sample(X, temperature=-1, seed=0)),
    (ValueError, r"sample\(\): 'temperature' must be 0", lambda: ck.sample(X, temperature=np.nan, seed=0)),
    (ValueError, r"sample\(\): 'temperature' must be 0", lambda: ck.sample(X, temperature=np.inf, seed=0)),
    (ValueError, r"sample\(\): 'temperature' must be 0", lambda: ck.sample(X, temperature=1e-40, seed=0)),
    (ValueError, r"sample\(\): 'top_k' must be 1 or more, not 0", lambda: ck.sample(X, top_k=0, seed=0)),
    (ValueError, r"sample\(\): 'top_p' must be above 0 and at most 1, not 0", lambda: ck.sample(X, top_p=0, seed=0)),
    (ValueError, r"sample\(\): 'top_p' must be above 0 and at most 1", lambda: ck.sample(X, top_p=1.1, seed=0)),
    (ValueError, r"sample\(\): 'min_p' must be 0 to 1, not 1.5", lambda: ck.sample(X, min_p=1.5, seed=0)),
    (ValueError, r"sample\(\): 'min_p' must be 0 to 1", lambda: ck.sample(X, min_p=np.nan, seed=0)),
    (TypeError, r"sample\(\): 'top_k' must be an integer", lambda: ck.sample(X, top_k=1.0, seed=0)),
    (TypeError, r"sample\(\): 'seed' must be an integer, or an array", lambda: ck.sample(X, seed=None)),
    (TypeError, r"sample\(\): 'seed' must be an integer, or an array", lambda: ck.sample(X, seed=1.0)),
    (OverflowError, r"sample\(\): 'seed' does not fit 64 bits", lambda: ck.sample(X, seed=2**63)),
    (TypeError, r"sample\(\): 'seed' must be int32 or int64", lambda: ck.sample(X, seed=np.zeros(2))),
    (ValueError, r"sample\(\): 'seed' of shape \(3,\) does not fit", lambda: ck.sample(X, seed=np.arange(3))),
    (ValueError, r"sample\(\): the logits hold NaN in row 1", lambda: ck.sample(BAD["nan"], seed=0)),
    (ValueError, r"sample\(\): the logits hold inf in row 1", lambda: ck.sample(BAD["inf"], seed=0)),
    (ValueError, r"sample\(\): the logits of row 1 are all -inf", lambda: ck.sample(BAD["none"], seed=0)),
])  # fmt: skip
def test_selection_refuses(isa, error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("bad", BAD)
def test_sample_refuses_before_it_writes(isa, bad):
    out = np.full(2, -7)
    with pytest.raises(ValueError, match="row 1"):
        ck.sample(BAD[bad], seed=0, out=out)
    assert (out == -7).all()


def test_selection_reports_a_lack_of_memory():
    out = np.full(2, -7)
    for nth, call in ((1, lambda: ck.argmax(np.zeros((2, LONG), "f4"), out=out)), (1, lambda: ck.sample(X, seed=0, out=out)),
                      (2, lambda: ck.sample(X, seed=0, out=out)), (1, lambda: ck.topk(X, 1, out=(X[:, :1].copy(), out[:, None])))):
        ck._ck.fail_allocation(nth)
        with pytest.raises(MemoryError):
            call()
    assert (out == -7).all()
