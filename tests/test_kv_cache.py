"""KVCache: what is written where, and that attention over it is attention over the whole sequence."""
import numpy as np
import pytest

import ckernels as ck

PAYLOAD = np.uint32(0x7FC0BEEF)  # a NaN that says who wrote it


def poisoned(kv_heads=2, head_dim=8, capacity=11, batch=3):
    cache = ck.KVCache(kv_heads, head_dim, capacity, batch=batch)
    for array in cache.raw.values():
        array.view(np.uint32)[...] = PAYLOAD
    return cache


def tokens(rng, B=3, G=2, n=4, D=8):
    return [rng.standard_normal((B, G, n, D)).astype("f4") for _ in range(2)]


def test_append_writes_each_item_behind_its_own_length(isa, rng):
    cache = poisoned()
    held = [np.zeros((2, 0, 8), "f4") for _ in range(3)]
    for counts in ([4, 0, 2], [1, 3, 4], [0, 4, 1]):
        k, v = tokens(rng)
        cache.append(k, v, counts)
        held = [np.concatenate([h, k[b, :, :n]], 1) for b, (h, n) in enumerate(zip(held, counts, strict=True))]
    assert cache.lengths.tolist() == [5, 7, 7]
    for b in range(3):
        assert cache.keys(b).tobytes() == held[b].tobytes()
        untouched = cache.raw["k"][b, :, cache.lengths[b]:].view(np.uint32)
        assert (untouched == PAYLOAD).all()


def test_append_n_is_n_times_append_1(isa, rng):
    k, v = tokens(rng)
    whole, single = poisoned(), poisoned()
    whole.append(k, v)
    for j in range(4):
        single.append(k[:, :, j:j + 1], v[:, :, j:j + 1])
    for name in whole.raw:
        assert whole.raw[name].tobytes() == single.raw[name].tobytes()


def test_append_takes_views(isa, rng):
    k, v = (a.transpose(0, 2, 1, 3) for a in (rng.standard_normal((3, 4, 2, 8)).astype("f4") for _ in range(2)))
    plain, view = poisoned(), poisoned()
    plain.append(np.ascontiguousarray(k), np.ascontiguousarray(v))
    view.append(k, v)
    assert plain.raw["v"].tobytes() == view.raw["v"].tobytes()


@pytest.mark.parametrize("counts, text", [
    ([4, 4, 5], "'counts' holds 5 for item 2, which brings 4 tokens"),
    ([4, -1, 4], "'counts' holds -1 for item 1"),
    ([4, 4], r"'counts' of shape \(2,\) does not fit \[B\], where B=3"),
])
def test_append_refuses_and_writes_nothing(rng, counts, text):
    cache = poisoned()
    before = {name: array.tobytes() for name, array in cache.raw.items()}
    with pytest.raises(ValueError, match=text):
        cache.append(*tokens(rng), counts)
    assert {name: array.tobytes() for name, array in cache.raw.items()} == before
    assert cache.lengths.tolist() == [0, 0, 0]


def test_append_past_capacity_writes_nothing(rng):
    cache = poisoned(capacity=6)
    cache.append(*tokens(rng))
    before = cache.raw["k"].tobytes()
    with pytest.raises(ValueError, match=r"KVCache.append\(\): item 1 holds 4 tokens of 6: 3 more do not fit"):
        cache.append(*tokens(rng), [1, 3, 1])
    assert cache.raw["k"].tobytes() == before and cache.lengths.tolist() == [4, 4, 4]


def test_truncate_and_append_again_is_never_having_left(isa, rng):
    first, other, last = tokens(rng), tokens(rng), tokens(rng, n=2)
    straight, back = poisoned(), poisoned()
    straight.append(*first)
    straight.append(*last)
    back.append(*first)
    back.append(*other)
    back.truncate(4)
    back.append(*last)
    for b in range(3):
        assert straight.keys(b).tobytes() == back.keys(b).tobytes()
        assert straight.values(b).tobytes() == back.values(b).tobytes()
    with pytest.raises(ValueError, match="not within the lengths"):
        back.truncate([1, 99, 1])
    back.reset()
    assert back.lengths.tolist() == [0, 0, 0]


def test_fork_is_independent(rng):
    cache = poisoned()
    cache.append(*tokens(rng))
    copy = cache.fork()
    before = cache.raw["k"].tobytes()
    copy.append(*tokens(rng))
    assert cache.raw["k"].tobytes() == before
    assert cache.lengths.tolist() == [4, 4, 4] and copy.lengths.tolist() == [8, 8, 8]
    assert copy.keys(1)[:, :4].tobytes() == cache.keys(1).tobytes()


@pytest.mark.parametrize("H", [2, 6, 14])
def test_attend_is_attention_over_the_sequence_so_far(isa, rng, H):
    lengths, T, D = [9, 5, 7], 3, 8
    cache = poisoned()
    k, v = tokens(rng, n=9)
    cache.append(k, v, lengths)
    q = rng.standard_normal((3, H, T, D)).astype("f4")
    got = cache.attend(q)
    for b, n in enumerate(lengths):
        alone = ck.scaled_dot_product_attention(q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n], is_causal=True,
                                                q_offset=n - T)
        assert got[b].tobytes() == alone[0].tobytes()


def test_attend_refuses_more_queries_than_tokens(rng):
    cache = poisoned()
    cache.append(*tokens(rng), [4, 2, 4])
    with pytest.raises(ValueError, match=r"KVCache.attend\(\): 'q' has 3 positions, item 1 holds 2"):
        cache.attend(np.zeros((3, 2, 3, 8), "f4"))


@pytest.mark.parametrize("arguments, error, text", [
    (dict(quant="int4"), ValueError, "'head_dim' is 4, which is no multiple of 'group', 32"),
    (dict(quant=["int4"]), ValueError, r"'quant' must be one of None, .*, not \['int4'\]"),
    (dict(dtype="float64"), ValueError, "'dtype' must be float32, float16 or bfloat16, not 'float64'"),
    (dict(capacity=-1), ValueError, "'capacity' must not be negative"),
    (dict(batch=1.5), TypeError, "'batch' must be an integer"),
    (dict(dtype="no such type"), ValueError, "'dtype' must be float32"),
    (dict(capacity=2**60), MemoryError, r"KVCache\(\): no memory for keys and values of shape \(1, 1, "),
    (dict(capacity=2**70), OverflowError, r"KVCache\(\): no memory for keys and values of shape \(1, 1, "),
])
def test_refusals_name_the_argument(arguments, error, text):
    with pytest.raises(error, match=text):
        ck.KVCache(**(dict(kv_heads=1, head_dim=4, capacity=4) | arguments))


@pytest.mark.parametrize("error, text, call", [
    (ValueError, r"append\(\): 'k' of shape \(2, 4, 5\) does not fit \[B, G, n, D\], where B=2, G=3, D=5",
     lambda cache, k: cache.append(k[0, :2], k)),
    (ValueError, r"append\(\): 'v' of shape \(1, 3, 4, 5\) does not fit", lambda cache, k: cache.append(k, k[:1])),
    (TypeError, r"append\(\): 'k' must be a NumPy array", lambda cache, k: cache.append(k.tolist(), k)),
    (ValueError, r"append\(\): 'counts' is no array of integers", lambda cache, k: cache.append(k, k, [[1], [1, 2]])),
    (ValueError, r"attend\(\): 'q' of shape \(1, 3, 4, 5\) does not fit \[B, H, T, D\], where B=2, D=5",
     lambda cache, k: cache.attend(k[:1])),
    (TypeError, r"attend\(\): 'q' must be a NumPy array", lambda cache, k: cache.attend(None)),
    (ValueError, r"truncate\(\): 'length' of shape \(3,\) does not fit \[B\], where B=2",
     lambda cache, k: cache.truncate([0, 0, 0])),
    (IndexError, r"keys\(\): 'b' is 2, and there are 2 items", lambda cache, k: cache.keys(2)),
    (TypeError, r"values\(\): 'b' must be an integer, not str", lambda cache, k: cache.values("a")),
])
def test_methods_refuse_by_name_and_change_nothing(error, text, call):
    cache = ck.KVCache(3, 5, 8, batch=2)
    with pytest.raises(error, match=r"^KVCache\." + text):
        call(cache, np.ones((2, 3, 4, 5), "f4"))
    assert cache.lengths.tolist() == [0, 0]
