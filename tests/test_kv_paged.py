"""PagedKVCache: blocks are taken, shared, copied on write and given back; and many caches appended to at once."""
import numpy as np
import pytest

import ckernels as ck
from ckernels.kv import OutOfBlocks
from ckernels.parity import kv_exact as kv_model
from test_kv_attend import draw, poison

QUANTS = kv_model.QUANTS


def pool_of(num_blocks=12, block_size=3, quant=None, dtype="f4", D=32):
    pool = ck.PagedKVCache(2, D, num_blocks, block_size, dtype=dtype, quant=quant)
    poison(pool.raw)
    return pool


def bits(raw):
    return {name: array.tobytes() for name, array in raw.items()}


@pytest.mark.parametrize("quant", QUANTS)
def test_forks_share_blocks_until_one_writes(isa, dtype, rng, quant):
    pool = pool_of(quant=quant, dtype=dtype)
    k, v = draw(rng, (1, 2, 7, 32), dtype), draw(rng, (1, 2, 7, 32), dtype)
    a = pool.new()
    pool.append([a], k, v)
    b = pool.fork(a)
    assert pool.block_table(a).tolist() == pool.block_table(b).tolist() == [0, 1, 2] and pool.free_blocks == 9
    keys = pool.keys(a).tobytes()
    before = {name: array[:3].tobytes() for name, array in pool.raw.items()}
    more = draw(rng, (2, 2, 4, 32), dtype)
    pool.append([b, a], more, more, [1, 0])
    assert pool.block_table(b).tolist() == [0, 1, 3] and pool.block_table(a).tolist() == [0, 1, 2]
    assert {name: array[:3].tobytes() for name, array in pool.raw.items()} == before
    assert pool.keys(a).tobytes() == keys == np.ascontiguousarray(pool.keys(b)[:, :7]).tobytes()
    pool.append([a], more[:1], more[:1])  # the block is its own now: no copy
    assert pool.block_table(a).tolist() == [0, 1, 2, 4] and pool.free_blocks == 7
    assert pool.keys(b)[:, 7:].tobytes() == kv_model.elements(more[0, :, :1], quant, 32).tobytes()
    assert pool.keys(a)[:, 7:].tobytes() == kv_model.elements(more[0], quant, 32).tobytes()
    pool.free(a)
    assert pool.free_blocks == 9 and pool.keys(b).shape == (2, 8, 32)
    pool.free(b)
    assert pool.free_blocks == 12


def test_two_forks_that_write_in_one_call_do_not_both_copy(rng):
    pool = pool_of()
    x = draw(rng, (1, 2, 4, 32), "f4")
    a = pool.new()
    pool.append([a], x, x)
    b, c = pool.fork(a), pool.fork(a)
    y = draw(rng, (3, 2, 1, 32), "f4")
    pool.append([a, b, c], y, y)
    tables = [pool.block_table(s).tolist() for s in (a, b, c)]
    assert len({t[1] for t in tables}) == 3 and {t[0] for t in tables} == {0} and pool.free_blocks == 12 - 4
    for s, new in zip((a, b, c), y, strict=True):
        assert pool.keys(s).tobytes() == np.concatenate([x[0], new], 1).tobytes()


def test_truncate_gives_blocks_back_and_protects_what_is_shared(rng):
    pool = pool_of()
    x = draw(rng, (1, 2, 8, 32), "f4")
    a = pool.new()
    pool.append([a], x, x)
    b = pool.fork(a)
    pool.truncate(b, 4)
    assert pool.free_blocks == 9 and pool.length(b) == 4
    y = draw(rng, (1, 2, 1, 32), "f4")
    pool.append([b], y, y)  # within a block that a still reads
    assert pool.keys(a).tobytes() == x[0].tobytes()
    assert pool.keys(b).tobytes() == np.concatenate([x[0, :, :4], y[0]], 1).tobytes()
    pool.truncate(a, 0)
    assert pool.block_table(a).tolist() == [] and pool.keys(a).shape == (2, 0, 32)


@pytest.mark.parametrize("quant", [None, "int4"])
def test_out_of_blocks_writes_nothing_and_takes_nothing(rng, quant):
    pool = pool_of(num_blocks=4, quant=quant)
    a, b = pool.new(), pool.new()
    x = draw(rng, (2, 2, 5, 32), "f4")
    pool.append([a, b], x, x, [4, 3])
    before, free = bits(pool.raw), list(pool._free)
    for error in OutOfBlocks, MemoryError, ValueError:
        with pytest.raises(error, match=r"^PagedKVCache.append\(\): 2 blocks are needed, 1 of 4 are free"):
            pool.append([a, b], x, x, [5, 1])
    fork = pool.fork(a)
    with pytest.raises(OutOfBlocks):  # one for the copy, one more
        pool.append([fork], x[:1], x[:1], [3])
    bad = x.copy()
    bad[0, 0, 0, 0] = np.inf
    if quant:
        with pytest.raises(ValueError, match=r"^PagedKVCache.append\(\): 'v' holds NaN, inf"):
            pool.append([fork, b], x, bad, [1, 0])
    assert bits(pool.raw) == before and pool._free == free
    assert [pool.length(s) for s in (a, b, fork)] == [4, 3, 4]
    pool.append([fork], x[:1], x[:1], [1])
    assert pool.free_blocks == 0


@pytest.mark.parametrize("block_size", [1, 2, 16, 33])
def test_any_block_size_and_permutation_holds_the_same(isa, rng, block_size):
    x = draw(rng, (2, 2, 50, 32), "f4")
    q = draw(rng, (2, 4, 3, 32), "f4")
    whole = ck.KVCache(2, 32, 50, batch=2, quant="int8")
    whole.append(x, -x, [50, 31])
    for seed in range(3):
        pool = pool_of(2 * -(-50 // block_size) + 3, block_size, "int8")
        np.random.default_rng(seed).shuffle(pool._free)
        both = [pool.new(), pool.new()]
        pool.append(both, x[:, :, :20], -x[:, :, :20])
        pool.append(both, x[:, :, 20:], -x[:, :, 20:], [30, 11])
        assert pool.attend(both, q).tobytes() == whole.attend(q).tobytes()
        for b in range(2):
            assert pool.values(both[b]).tobytes() == whole.values(b).tobytes()


@pytest.mark.parametrize("call, error, text", [
    (lambda p, s, x: p.append([s, s], x, x), ValueError, r"append\(\): a sequence is there twice"),
    (lambda p, s, x: p.append([s, 9], x, x), IndexError, r"append\(\): there is no sequence 9"),
    (lambda p, s, x: p.append([s, "1"], x, x), TypeError, r"append\(\): a sequence is an integer from new\(\), not str"),
    (lambda p, s, x: p.append(None, x, x), TypeError, r"append\(\): "),
    (lambda p, s, x: p.append([s], x, x), ValueError, r"append\(\): 'k' of shape \(2, 2, 3, 32\) does not fit .* B=1"),
    (lambda p, s, x: p.append([s], x[:1], x[:1], [4]), ValueError, r"append\(\): 'counts' holds 4 for item 0"),
    (lambda p, s, x: p.append([s], x[:1].astype("f2"), x[:1]), TypeError, r"append\(\): 'k' must be float32"),
    (lambda p, s, x: p.truncate(s, 3), ValueError, r"truncate\(\): 'length' is 3, sequence 0 holds 2 tokens"),
    (lambda p, s, x: p.truncate(s, -1), ValueError, r"truncate\(\): 'length' must not be negative"),
    (lambda p, s, x: p.free(5), IndexError, r"free\(\): there is no sequence 5"),
    (lambda p, s, x: p.attend([s], x[:1]), ValueError, r"attend\(\): 'q' has 3 positions, item 0 holds 2"),
    (lambda p, s, x: ck.PagedKVCache(2, 32, 4, 0), ValueError, r"\(\): 'block_size' must be at least 1, not 0"),
])
def test_refusals_name_the_argument_and_change_nothing(rng, call, error, text):
    pool, x = pool_of(), draw(rng, (2, 2, 3, 32), "f4")
    s = pool.new()
    pool.append([s], x[:1], x[:1], [2])
    before = bits(pool.raw)
    with pytest.raises(error, match=text):
        call(pool, s, x)
    assert bits(pool.raw) == before and pool.length(s) == 2 and pool.free_blocks == 11


@pytest.mark.parametrize("changes, error, text", [
    (dict(table=[[0, 12]]), IndexError, "'table' holds block 12, and there are 12"),
    (dict(table=[[0, -1]]), IndexError, "'table' holds block -1"),
    (dict(table=[[0]]), ValueError, "item 0 holds 2 tokens of 3: 3 more do not fit"),
    (dict(copy_from=[3], copy_to=[12]), IndexError, "'copy_to' holds 12 for block 3 of 12"),
    (dict(copy_from=[3]), ValueError, "'copy_from' and 'copy_to' come together"),
    (dict(lengths=[-1]), ValueError, "item 0 holds -1 tokens"),
    (dict(format=6), ValueError, "'format' is 6, which is none"),
    (dict(format=1), ValueError, "'codes' has rows of 128 bytes, 32 channels need 32|'scales' and 'biases'"),
])
def test_the_c_function_refuses_by_itself(rng, changes, error, text):
    pool, x = pool_of(), draw(rng, (1, 2, 3, 32), "f4")
    given = dict(lengths=[2], counts=[3], table=[[0, 1]], copy_from=None, copy_to=None) | changes
    arrays = [None if given[name] is None else np.array(given[name], np.int64)
              for name in ("lengths", "counts", "table", "copy_from", "copy_to")]
    before = bits(pool.raw)
    with pytest.raises(error, match=text):
        ck._ck.kv_append(*pool.storage.parts, x, x, *arrays, False, changes.get("format", 0), 32)
    assert bits(pool.raw) == before


def test_a_freed_sequence_is_none_and_no_number_comes_back():
    pool = pool_of()
    a = pool.new()
    pool.free(a)
    assert pool.new() != a
    with pytest.raises(IndexError, match="there is no sequence 0"):
        pool.length(a)


# ---- one token for each of many caches ----


@pytest.mark.parametrize("quant", QUANTS)
def test_batched_append_is_append_to_each_at_its_own_length(isa, dtype, rng, quant):
    """M = 4, 8 kv heads, head size 128, capacity 64."""
    sides = []
    for _ in range(2):
        caches = [ck.KVCache(8, 128, 64, dtype=dtype, quant=quant) for _ in range(4)]
        for cache, length in zip(caches, (0, 7, 40, 63), strict=True):
            poison(cache.raw)
            x = draw(np.random.default_rng(length), (1, 8, length, 128), dtype)
            cache.append(x, x)
        sides.append(caches)
    together, each = sides
    k, v = draw(rng, (4, 8, 128), dtype), draw(rng, (4, 8, 128), dtype)
    ck.kv_append_batched(together, k, v)
    for i, cache in enumerate(each):
        cache.append(k[i][None, :, None], v[i][None, :, None])
    for a, b in zip(together, each, strict=True):
        assert bits(a.raw) == bits(b.raw) and a.lengths.tolist() == b.lengths.tolist()
    assert [int(cache.lengths[0]) for cache in together] == [1, 8, 41, 64]


def test_batched_append_touches_no_other_slot(isa, rng):
    """Every byte of every cache but the one slot each is as it was."""
    caches = [ck.KVCache(2, 32, capacity) for capacity in (5, 9, 3)]
    for cache, length in zip(caches, (4, 0, 2), strict=True):
        poison(cache.raw)
        cache._lengths[:] = length
    before = [{name: array.copy() for name, array in cache.raw.items()} for cache in caches]
    k, v = draw(rng, (3, 2, 32), "f4"), draw(rng, (3, 2, 32), "f4")
    ck.kv_append_batched(caches, k, v)
    for i, (cache, old, slot) in enumerate(zip(caches, before, (4, 0, 2), strict=True)):
        for name, new in ("k", k), ("v", v):
            old[name][0, :, slot] = new[i]
            assert cache.raw[name].tobytes() == old[name].tobytes()


def test_batched_append_to_rings(rng):
    caches = [ck.KVCache(1, 4, 3, ring=True) for _ in range(2)]
    for _ in range(5):
        x = draw(rng, (2, 1, 4), "f4")
        ck.kv_append_batched(caches, x, x)
    assert caches[0].lengths.tolist() == [5] and caches[1].keys(0)[:, -1].tobytes() == x[1].tobytes()


@pytest.mark.parametrize("caches, error, text", [
    (lambda c: [c(), c(capacity=2)], ValueError, r"'caches\[1\]' holds 2 tokens of 2: 1 more does not fit"),
    (lambda c: [c(), c(batch=2)], ValueError, r"'caches\[1\]' has 2 items: one is needed"),
    (lambda c: [c(), c(quant="int8")], ValueError, r"'caches\[1\]' has quant int8, 'caches\[0\]' None"),
    (lambda c: [c(), c(kv_heads=1)], ValueError, r"'caches\[1\]' has kv_heads 1, 'caches\[0\]' 2"),
    (lambda c: [c(), c(dtype="f2")], ValueError, r"'caches\[1\]' has dtype float16"),
    (lambda c: [c(), c(ring=True)], ValueError, "are not both rings"),
    (lambda c: [c()] * 2, ValueError, "'caches' holds the same cache twice"),
    (lambda c: [c()], ValueError, r"'k' of shape \(2, 2, 32\) does not fit \[m, G, D\], where m=1, G=2, D=32"),
    (lambda c: [], ValueError, "'caches' is empty"),
    (lambda c: c(), TypeError, "'caches' must be a list of KVCache, not KVCache"),
    (lambda c: [c(), None], TypeError, r"'caches\[1\]' must be a KVCache, not NoneType"),
])
def test_batched_append_refuses_and_writes_nothing(rng, caches, error, text):
    made = []

    def cache(**changes):
        made.append(ck.KVCache(**(dict(kv_heads=2, head_dim=32, capacity=9) | changes)))
        poison(made[-1].raw)
        if changes.get("capacity") == 2:
            made[-1]._lengths[:] = 2
        return made[-1]

    given = caches(cache)
    before = [bits(c.raw) for c in made]
    with pytest.raises(error, match=rf"^kv_append_batched\(\): .*{text}"):
        ck.kv_append_batched(given, draw(rng, (2, 2, 32), "f4"), draw(rng, (2, 2, 32), "f4"))
    assert [bits(c.raw) for c in made] == before


def test_batched_append_refuses_nan_everywhere(rng):
    caches = [ck.KVCache(2, 32, 4, quant="int4") for _ in range(3)]
    x = draw(rng, (3, 2, 32), "f4")
    bad = x.copy()
    bad[2, 1, 31] = np.nan
    for k, v, name in (bad, x, "k"), (x, bad, "v"):
        with pytest.raises(ValueError, match=rf"^kv_append_batched\(\): '{name}' holds NaN"):
            ck.kv_append_batched(caches, k, v)
    assert [cache.lengths.tolist() for cache in caches] == [[0]] * 3
