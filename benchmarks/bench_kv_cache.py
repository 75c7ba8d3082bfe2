"""KVCache: attention over a long cache, in every form, is bound by reading it; append is a copy.

PyTorch's attention runs over the same keys and values as arrays of the dtype, which is what it has.
"""
from types import SimpleNamespace

import numpy as np

import ckernels as ck
from harness import F, normal, run, tensor, torch

G, H, D, S = 8, 32, 128, 8192
BYTES = {  # of a channel, scales and biases included, where the dtype has `size` bytes
    None: lambda size: size,
    "int8": lambda size: 1 + 2 * size / 32,
    "int4": lambda size: 0.5 + 2 * size / 32,
    "int8_sym": lambda size: 1 + size / D,
    "fp8_e4m3": lambda size: 1 + size / 32,
    "fp8_e5m2": lambda size: 1 + size / 32,
}


def make(quant, paged):
    """A full cache, the same as arrays, and one token's queries."""
    def make_one(rng, dtype):
        s = SimpleNamespace(q=normal(rng, (1, H, 1, D), dtype))
        k, v = normal(rng, (1, G, S, D), dtype), normal(rng, (1, G, S, D), dtype)
        if paged:
            pool = ck.PagedKVCache(G, D, S // 16, 16, dtype=s.q.dtype, quant=quant)
            np.random.default_rng(1).shuffle(pool._free)
            s.cache = pool.batch([pool.new()])
        else:
            s.cache = ck.KVCache(G, D, S, dtype=s.q.dtype, quant=quant)
        s.cache.append(k, v)
        s.tq, s.tk, s.tv = tensor(s.q), tensor(k), tensor(v)
        return s
    return make_one


def theirs(s):
    """Eager, without recording."""
    with torch.no_grad():
        return F.scaled_dot_product_attention(s.tq, s.tk, s.tv, enable_gqa=True)


def moved(quant):
    """Bytes of keys and values."""
    return lambda size: int(2 * G * S * D * BYTES[quant](size))


for quant in BYTES:
    run("kv attend", f"32/8 of 128, 8192 keys, {quant or 'plain'}", make(quant, False), lambda s: s.cache.attend(s.q),
        theirs, nbytes=moved(quant), limit="read", aim=(None, 0.85))
for quant in None, "int4":
    run("kv attend", f"32/8 of 128, 8192 keys, {quant or 'plain'}, paged", make(quant, True),
        lambda s: s.cache.attend(s.q), theirs, nbytes=moved(quant), limit="read")


def make_append(n, quant=None):
    """An empty cache and n tokens; PyTorch copies them into a slice."""
    def make_one(rng, dtype):
        s = SimpleNamespace(k=normal(rng, (1, G, n, D), dtype), v=normal(rng, (1, G, n, D), dtype))
        s.cache = ck.KVCache(G, D, n + 8, dtype=s.k.dtype, quant=quant)
        s.tk, s.tv = tensor(s.k), tensor(s.v)
        s.keys, s.values = (tensor(normal(rng, (1, G, n + 8, D), dtype)) for _ in range(2))
        return s
    return make_one


def append(s):
    """From the beginning."""
    s.cache.reset()
    s.cache.append(s.k, s.v)


def torch_append(s):
    """Two copies."""
    n = s.tk.shape[2]
    s.keys[:, :, :n] = s.tk
    s.values[:, :, :n] = s.tv


for n in S, 1:
    run("kv append", f"{n} of 8x128", make_append(n), append, torch_append,
        nbytes=lambda size, n=n: 4 * size * G * n * D)
for quant in "int8", "int4":
    run("kv append", f"{S} of 8x128, {quant}", make_append(S, quant), append, nbytes=lambda size: 2 * size * G * S * D)
run("kv keys", f"{S} of 8x128, int8", make("int8", False), lambda s: s.cache.keys(0),
    nbytes=lambda size: int((size + BYTES["int8"](size)) * G * S * D))


def make_batch(rng, dtype):
    """32 caches of different lengths, and a token for each."""
    s = SimpleNamespace(k=normal(rng, (32, G, D), dtype), v=normal(rng, (32, G, D), dtype))
    s.caches = [ck.KVCache(G, D, 64, dtype=s.k.dtype) for _ in range(32)]
    for i, cache in enumerate(s.caches):
        cache.append(normal(rng, (1, G, i, D), dtype), normal(rng, (1, G, i, D), dtype))
    return s


def append_batched(s):
    """And back again."""
    ck.kv_append_batched(s.caches, s.k, s.v)
    for i, cache in enumerate(s.caches):
        cache.truncate(i)


run("kv_append_batched", "32 caches of 8x128", make_batch, append_batched, nbytes=lambda size: 4 * size * 32 * G * D)


def make_rows(rng, dtype):
    """Keys of many tokens, and their codes."""
    s = SimpleNamespace(x=normal(rng, (8192, G * D), dtype))
    s.codes = {bits: ck.kv_quantize(s.x, bits, 32) for bits in (8, 4)}
    return s


for bits in 8, 4:
    run("kv_quantize", f"8192x1024, {bits} bits", make_rows, lambda s, bits=bits: ck.kv_quantize(s.x, bits, 32),
        nbytes=lambda size, bits=bits: int((size + BYTES[f"int{bits}"](size)) * 8192 * G * D))
    run("kv_dequantize", f"8192x1024, {bits} bits", make_rows,
        lambda s, bits=bits: ck.kv_dequantize(*s.codes[bits], bits, 32),
        nbytes=lambda size, bits=bits: int((size + BYTES[f"int{bits}"](size)) * 8192 * G * D))
