"""A random sequence of operations on caches against a plain NumPy model, which only knows lists of tokens.

    CK_KV_OPERATIONS=10000 pytest tests/test_kv_random.py            so many of each form; CK_TEST_SEED others

A failure prints the operation's number and the last few operations; the same seed gives the same sequence.
"""
import os

import numpy as np
import pytest

import ckernels as ck
from ckernels.kv import OutOfBlocks
from ckernels.parity import assert_parity
from ckernels.parity import kv_exact as kv_model
from conftest import SEED
from test_kv_attend import poison

OPERATIONS = int(os.environ.get("CK_KV_OPERATIONS", "150"))
G, D, H = 2, 32, 4
BLOCKS, SIZE = 40, 5


class Replay:
    """A pool and contiguous caches of one form beside lists of tokens [G, D]."""

    def __init__(self, rng, quant, dtype):
        self.rng, self.quant, self.dtype = rng, quant, dtype
        self.pool = ck.PagedKVCache(G, D, BLOCKS, SIZE, dtype=dtype, quant=quant)
        poison(self.pool.raw)
        self.tokens = {}  # sequence -> [(k, v)] as read back
        self.caches = []  # (KVCache of two items, [tokens of item 0, of item 1])
        self.log = []

    def draw(self, *shape):
        x = self.rng.standard_normal(shape).astype(self.dtype)
        return x, kv_model.elements(x, self.quant, 32)

    def step(self):
        name = self.rng.choice(["new", "append", "append", "append", "append", "fork", "truncate", "free", "attend",
                                "make", "extend", "extend", "cut", "copy", "look", "batched"])
        self.log.append(str(name))
        getattr(self, name)()
        if len(self.log) % 50 == 0:
            self.check()

    def some(self, most=3):
        known = list(self.tokens)
        n = min(len(known), int(self.rng.integers(1, most + 1)))
        return [int(s) for s in self.rng.choice(known, n, replace=False)] if known else []

    # -- the pool --

    def new(self):
        self.tokens[self.pool.new()] = []

    def append(self):
        chosen = self.some()
        n = int(self.rng.integers(0, 9))
        (k, kept_k), (v, kept_v) = self.draw(len(chosen), G, n, D), self.draw(len(chosen), G, n, D)
        counts = self.rng.integers(0, n + 1, len(chosen))
        if not chosen:
            return
        free = self.pool.free_blocks
        before = {name: array.tobytes() for name, array in self.pool.raw.items()}
        try:
            self.pool.append(chosen, k, v, counts)
        except OutOfBlocks:
            assert free < 3 * len(chosen) and self.pool.free_blocks == free
            assert {name: array.tobytes() for name, array in self.pool.raw.items()} == before
            return
        for i, s in enumerate(chosen):
            self.tokens[s] = self.tokens[s] + [(kept_k[i, :, j], kept_v[i, :, j]) for j in range(counts[i])]

    def fork(self):
        for s in self.some(1):
            self.tokens[self.pool.fork(s)] = list(self.tokens[s])

    def truncate(self):
        for s in self.some(1):
            n = int(self.rng.integers(0, len(self.tokens[s]) + 1))
            self.pool.truncate(s, n)
            self.tokens[s] = self.tokens[s][:n]

    def free(self):
        for s in self.some(1):
            self.pool.free(s)
            del self.tokens[s]

    def attend(self):
        chosen = [s for s in self.some() if self.tokens[s]]
        if not chosen:
            return
        T = int(self.rng.integers(1, 1 + min(len(self.tokens[s]) for s in chosen)))
        q = self.rng.standard_normal((len(chosen), H, T, D)).astype(self.dtype)
        window = None if self.rng.random() < 0.5 else (int(self.rng.integers(0, 12)), None)
        got = self.pool.attend(chosen, q, window=window)
        for i, s in enumerate(chosen):
            self.compare(got[i], q[i], self.tokens[s], window)

    # -- contiguous caches --

    def make(self):
        if len(self.caches) == 3:
            self.caches.pop(int(self.rng.integers(3)))
        ring = bool(self.rng.random() < 0.3)
        cache = ck.KVCache(G, D, int(self.rng.integers(9, 40)), batch=2, dtype=self.dtype, quant=self.quant, ring=ring)
        poison(cache.raw)
        self.caches.append((cache, [[], []]))

    def chosen(self):
        return self.caches[int(self.rng.integers(len(self.caches)))] if self.caches else (None, None)

    def extend(self):
        cache, tokens = self.chosen()
        if cache is None:
            return
        n = int(self.rng.integers(0, 9))
        (k, kept_k), (v, kept_v) = self.draw(2, G, n, D), self.draw(2, G, n, D)
        counts = self.rng.integers(0, n + 1, 2)
        if not cache.ring and any(len(t) + c > cache.capacity for t, c in zip(tokens, counts, strict=True)):
            before = {name: array.tobytes() for name, array in cache.raw.items()}
            with pytest.raises(ValueError, match="do not fit"):
                cache.append(k, v, counts)
            assert {name: array.tobytes() for name, array in cache.raw.items()} == before
            return
        cache.append(k, v, counts)
        for b in range(2):
            tokens[b] += [(kept_k[b, :, j], kept_v[b, :, j]) for j in range(counts[b])]

    def cut(self):
        cache, tokens = self.chosen()
        if cache is None or cache.ring:
            return
        lengths = [int(self.rng.integers(0, len(t) + 1)) for t in tokens]
        cache.truncate(lengths)
        for t, n in zip(tokens, lengths, strict=True):
            del t[n:]

    def copy(self):
        cache, tokens = self.chosen()
        if cache is not None:
            self.caches[self.rng.integers(len(self.caches))] = (cache.fork(), [list(t) for t in tokens])

    def look(self):
        cache, tokens = self.chosen()
        if cache is None or not all(tokens):
            return
        T = int(self.rng.integers(1, 1 + min(3, *map(len, tokens))))
        q = self.rng.standard_normal((2, H, T, D)).astype(self.dtype)
        window = (cache.capacity - T, None) if cache.ring else None
        got = cache.attend(q, window=window)
        for b in range(2):
            self.compare(got[b], q[b], tokens[b], window)

    def batched(self):
        caches = [ck.KVCache(G, D, 4, dtype=self.dtype, quant=self.quant) for _ in range(3)]
        lengths = self.rng.integers(0, 4, 3)
        for cache, n in zip(caches, lengths, strict=True):
            poison(cache.raw)
            cache.append(*(self.draw(1, G, n, D)[0] for _ in range(2)))
        (k, kept_k), (v, kept_v) = self.draw(3, G, D), self.draw(3, G, D)
        ck.kv_append_batched(caches, k, v)
        for i, cache in enumerate(caches):
            assert cache.lengths.tolist() == [lengths[i] + 1]
            assert cache.keys(0)[:, -1].tobytes() == kept_k[i].tobytes()
            assert cache.values(0)[:, -1].tobytes() == kept_v[i].tobytes()

    # -- what must hold --

    def compare(self, got, q, tokens, window):
        k, v = (np.stack([token[side] for token in tokens], 1) for side in (0, 1))
        if self.dtype == np.float32:
            exact, peer = (kv_model.attention(q, k, v, kind, window) for kind in (np.float64, np.float32))
            assert_parity(got, exact, peer.astype(self.dtype))

    def check(self):
        held = 0
        for s, tokens in self.tokens.items():
            assert self.pool.length(s) == len(tokens)
            for side, array in enumerate((self.pool.keys(s), self.pool.values(s))):
                want = [token[side] for token in tokens]
                assert array.tobytes() == (np.stack(want, 1) if want else np.zeros((G, 0, D), self.dtype)).tobytes()
        held = {int(b) for s in self.tokens for b in self.pool.block_table(s)}
        assert len(held) + self.pool.free_blocks == BLOCKS, "a block is lost, or held and free"
        for cache, tokens in self.caches:
            assert cache.lengths.tolist() == [len(t) for t in tokens]
            for b in range(2):
                kept = tokens[b][-cache.capacity :] if cache.ring else tokens[b]
                for side, array in enumerate((cache.keys(b), cache.values(b))):
                    want = [token[side] for token in kept]
                    assert array.tobytes() == (np.stack(want, 1) if want else np.zeros((G, 0, D), self.dtype)).tobytes()


@pytest.mark.parametrize("quant", [None, "int4", "fp8_e4m3"])
def test_random_operations(dtype, quant):
    replay = Replay(np.random.default_rng([SEED, OPERATIONS]), quant, dtype)
    for i in range(OPERATIONS):
        try:
            replay.step()
        except BaseException:
            print(f"operation {i} of seed {SEED}; the last ones: {', '.join(replay.log[-12:])}")
            raise
    replay.check()
    for s in list(replay.tokens):
        replay.pool.free(s)
    assert replay.pool.free_blocks == BLOCKS
