"""Attention straight from a cache, in whatever form: the bits of attention over the values that it holds."""
import numpy as np
import pytest

import ckernels as ck
from ckernels.parity import assert_parity
from ckernels.parity import kv_exact as kv_model
from guard import PAYLOADS

QUANTS = kv_model.QUANTS
LENGTHS = np.array([301, 17, 256])  # past a partition of 256, below a tile, a partition exactly


def draw(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def poison(raw):
    """Fill arrays so that what is read by mistake shows: NaN in floats and float8, large codes elsewhere."""
    for array in raw.values():
        word = PAYLOADS.get(array.dtype.name)
        if word is None:
            array.view(np.uint8)[...] = 0xFF  # NaN in both float8, the largest or -1 in integers
        else:
            array.view(f"u{array.itemsize}")[...] = word


def filled(rng, dtype, quant, D=64, lengths=LENGTHS, G=2, slack=19, **options):
    """Return a cache at these lengths, and what went in."""
    n = int(lengths.max())
    k, v = draw(rng, (len(lengths), G, n, D), dtype), draw(rng, (len(lengths), G, n, D), dtype)
    cache = ck.KVCache(G, D, n + slack, batch=len(lengths), dtype=dtype, quant=quant, **options)
    poison(cache.raw)
    cache.append(k, v, lengths)
    return cache, k, v


def paged(cache, k, v, rng, block_size=7, **options):
    """Return a pool and sequences that hold the same tokens in blocks scattered at random."""
    lengths = cache.lengths
    s = cache.storage
    need = int((-(-lengths // block_size)).sum())
    pool = ck.PagedKVCache(s.kv_heads, s.head_dim, 2 * need + 5, block_size, dtype=s.dtype, quant=s.quant, group=s.group)
    poison(pool.raw)
    rng.shuffle(pool._free)
    sequences = [pool.new() for _ in lengths]
    left = lengths.copy()
    while left.any():  # in steps, so that blocks of different sequences lie among each other
        counts = np.minimum(left, rng.integers(1, 40, len(left)))
        at = lengths - left
        width = int(counts.max())
        part = [np.stack([np.pad(x[b, :, a : a + n], ((0, 0), (0, width - n), (0, 0))) for b, (a, n) in
                          enumerate(zip(at, counts, strict=True))]) for x in (k, v)]
        pool.append(sequences, *part, counts)
        left -= counts
    return pool, sequences


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("options", [{}, {"window": (37, None), "softcap": 3.0, "sinks": True}], ids=["plain", "options"])
def test_float32_attention_is_that_over_the_values_held(isa, rng, quant, options):
    """Bit for bit; the paged one too, and so is one query alone."""
    cache, k, v = filled(rng, np.dtype("f4"), quant)
    pool, sequences = paged(cache, k, v, rng)
    q = draw(rng, (3, 6, 5, 64), "f4")
    if "sinks" in options:
        options = options | {"sinks": draw(rng, 6, "f4")}
    got = cache.attend(q, **options)
    for b, n in enumerate(LENGTHS.tolist()):
        assert cache.keys(b).tobytes() == kv_model.elements(k[b, :, :n], quant, 32).tobytes()
        assert cache.keys(b).tobytes() == pool.keys(sequences[b]).tobytes()
        want = ck.attention(q[b : b + 1], np.ascontiguousarray(cache.keys(b))[None],
                            np.ascontiguousarray(cache.values(b))[None], is_causal=True, q_offset=n - 5, **options)
        assert got[b].tobytes() == want[0].tobytes()
    assert pool.attend(sequences, q, **options).tobytes() == got.tobytes()
    assert pool.attend(sequences[::-1], q[::-1], **options).tobytes() == got[::-1].tobytes()
    last = cache.attend(np.ascontiguousarray(q[:, :, 4:]), **options)
    assert last.tobytes() == np.ascontiguousarray(got[:, :, 4:]).tobytes()


@pytest.mark.parametrize("quant", QUANTS)
def test_every_dtype_against_float64(isa, dtype, rng, quant):
    cache, k, v = filled(rng, dtype, quant, D=32)
    pool, sequences = paged(cache, k, v, rng, block_size=16)
    q = draw(rng, (3, 6, 3, 32), dtype)
    got = cache.attend(q)
    assert pool.attend(sequences, q).tobytes() == got.tobytes()
    for b, n in enumerate(LENGTHS.tolist()):
        held = [x[b, :, :n] if quant is None else
                kv_model.values(kv_model.quantised(x[b, :, :n], quant, 32), quant, 32, 32) for x in (k, v)]
        exact = kv_model.attention(q[b], *held)
        peer = kv_model.attention(q[b], *held, dtype=np.float32).astype(dtype)
        assert_parity(got[b], exact, peer)


@pytest.mark.parametrize("D", [8, 80, 128])
def test_a_row_that_ends_anywhere(isa, dtype, rng, D):
    """Symmetric codes have one scale a row, which may have any number of channels."""
    cache, k, v = filled(rng, dtype, "int8_sym", D=D, lengths=np.array([20, 9]))
    q = draw(rng, (2, 2, 2, D), dtype)
    for b, n in ((0, 20), (1, 9)):
        held = [kv_model.values(kv_model.quantised(x[b, :, :n], "int8_sym", 32), "int8_sym", 32, D) for x in (k, v)]
        assert_parity(cache.attend(q)[b], kv_model.attention(q[b], *held),
                      kv_model.attention(q[b], *held, dtype=np.float32).astype(dtype))


@pytest.mark.parametrize("quant", QUANTS)
def test_ring_gives_the_bits_of_all_tokens_within_the_window(isa, dtype, rng, quant):
    window, T, total = 20, 3, 90
    k, v = draw(rng, (2, 2, total, 32), dtype), draw(rng, (2, 2, total, 32), dtype)
    whole = ck.KVCache(2, 32, total, batch=2, dtype=dtype, quant=quant)
    ring = ck.KVCache(2, 32, window + T, batch=2, dtype=dtype, quant=quant, ring=True)
    poison(ring.raw)
    for at in range(0, total, T):
        counts = [T, T - 1 if at % 2 else T]
        part = [np.stack([x[b, :, n : n + T] for b, n in enumerate(whole.lengths)]) for x in (k, v)]
        whole.append(*part, counts)
        ring.append(*part, counts)
        q = draw(rng, (2, 4, 2, 32), dtype)
        assert ring.attend(q, window=(window, None)).tobytes() == whole.attend(q, window=(window, None)).tobytes()
    assert ring.lengths.tolist() == whole.lengths.tolist() and ring.lengths.min() > 3 * (window + T)
    n = int(ring.lengths[1])
    assert ring.keys(1).tobytes() == np.ascontiguousarray(whole.keys(1)[:, n - window - T :]).tobytes()
    with pytest.raises(ValueError, match=r"KVCache.attend\(\): item 0 keeps positions from \d+ on, and 'window' reaches"):
        ring.attend(q)
    with pytest.raises(ValueError, match="item 0 keeps positions"):
        ring.attend(q, window=(window + 2, None))
    with pytest.raises(ValueError, match=r"24 more do not fit"):
        ring.append(np.zeros((2, 2, 24, 32), dtype), np.zeros((2, 2, 24, 32), dtype))
    ring.truncate([int(ring.lengths[0]), n - 2])
    with pytest.raises(ValueError, match="item 1 keeps positions"):
        ring.attend(q, window=(window, None))
    assert np.isfinite(ring.attend(q, window=(window - 2, None)).astype("f4")).all()


def test_sixteen_positions_at_once(isa, dtype, rng):
    """Of two items, whose caches go on at different lengths: the bits of one at a time."""
    many, single = (filled(np.random.default_rng(7), dtype, "int8", lengths=np.array([40, 3]))[0] for _ in range(2))
    k, v = draw(rng, (2, 2, 16, 64), dtype), draw(rng, (2, 2, 16, 64), dtype)
    q = draw(rng, (2, 6, 16, 64), dtype)
    many.append(k, v)
    got = many.attend(q)
    for t in range(16):
        single.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        assert single.attend(q[:, :, t : t + 1]).tobytes() == np.ascontiguousarray(got[:, :, t : t + 1]).tobytes()
    for name in many.raw:
        assert many.raw[name].tobytes() == single.raw[name].tobytes()


@pytest.mark.parametrize("H", [4, 8, 12, 28])
def test_groups_of_heads(isa, rng, H):
    cache, _, _ = filled(rng, np.dtype("f4"), "int4", G=4, lengths=np.array([65, 64]))
    q = draw(rng, (2, H, 1, 64), "f4")
    for h in range(H):
        g = h // (H // 4)
        exact = kv_model.attention(q[1, h : h + 1], cache.keys(1)[g : g + 1], cache.values(1)[g : g + 1])
        peer = kv_model.attention(q[1, h : h + 1], cache.keys(1)[g : g + 1], cache.values(1)[g : g + 1], np.float32)
        assert_parity(cache.attend(q)[1, h : h + 1], exact, peer)


def test_threads_give_the_same_bits(isa, rng):
    cache, k, v = filled(rng, np.dtype("f4"), "int4")
    q = draw(rng, (3, 6, 4, 64), "f4")
    found = set()
    for n in (1, 2, 3, 7):
        ck.set_num_threads(n)
        again, _, _ = filled(np.random.default_rng(3), np.dtype("f4"), "int4")
        found.add((cache.attend(q).tobytes(), again.raw["k_codes"].tobytes()))
    assert len(found) == 1


PAIRS = [pair for pair in [("avx2", "avx512")] if set(pair) <= set(ck.isas())]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("quant", QUANTS)
def test_avx2_and_avx512_give_the_same_bits(dtype, quant, pair):
    found = []
    for isa in pair:
        with ck.use(isa):
            rng = np.random.default_rng(11)
            cache, _, _ = filled(rng, dtype, quant)
            found.append((cache.attend(draw(rng, (3, 6, 4, 64), dtype)).tobytes(), cache.keys(0).tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("options, error, text", [
    (dict(window=3), TypeError, r"'window' must be \(left, right\) or None, not 3"),
    (dict(window=(-1, None)), ValueError, "'window' must hold integers of at least 0"),
    (dict(softcap=0), ValueError, "'softcap' must be above 0"),
    (dict(softcap="3"), TypeError, "'softcap' must be a number or None"),
    (dict(scale=np.inf), ValueError, "'scale' must be finite"),
    (dict(sinks=np.zeros(3, "f4")), ValueError, r"'sinks' of shape \(3,\) does not fit \[H\], where H=4"),
    (dict(out=np.zeros((2, 4, 1, 32), "f2")), TypeError, "'out' must be float32"),
])
def test_options_are_refused_by_name(options, error, text):
    cache = ck.KVCache(2, 32, 4, batch=2, quant="int8")
    cache.append(np.ones((2, 2, 3, 32), "f4"), np.ones((2, 2, 3, 32), "f4"))
    pool = ck.PagedKVCache(2, 32, 4, 4, quant="int8")
    sequences = [pool.new(), pool.new()]
    pool.append(sequences, np.ones((2, 2, 3, 32), "f4"), np.ones((2, 2, 3, 32), "f4"))
    for who, call in (("KVCache", cache.attend), ("PagedKVCache", lambda q, **o: pool.attend(sequences, q, **o))):
        with pytest.raises(error, match=rf"^{who}.attend\(\): {text}"):
            call(np.ones((2, 4, 1, 32), "f4"), **options)
        with pytest.raises(TypeError, match=rf"^{who}.attend\(\): 'q' must be float32, as the cache is, not float16"):
            call(np.ones((2, 4, 1, 32), "f2"))
        with pytest.raises(ValueError, match=rf"^{who}.attend\(\): 'q' has 3 heads, which is no multiple of the 2"):
            call(np.ones((2, 3, 1, 32), "f4"))
