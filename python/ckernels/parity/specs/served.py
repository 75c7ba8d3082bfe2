"""Specs of what serving engines call: compositions of ops, caches, and the names under which op-diff knows them all.

Each has three sides that share no code: NumPy in float64, position by position; PyTorch in the dtype of the call; and
this package, which unpacks, appends and gathers in its own way.
"""

import numpy as np

from .attention import _attention_eager
from .spec import OpSpec, Probe, as_array, as_tensor, call_dtype, normal

# ---------------------------------------------------------------------------------------------------------------------
# activation_bridge: an array of another library in, one op, an array of that library out


def _odd_values(rng, *shape):
    """Normal numbers, and what a detour through another format would lose: -0, infinities, NaN, the smallest."""
    x = normal(rng, *shape)
    flat = x.reshape(-1)
    flat[::7], flat[1::13], flat[2::17] = -0.0, np.inf, np.nan
    flat[3::19] = np.float32(2.0**-24)  # subnormal in float16
    return x


def _bridge(ck, inputs):
    view = as_tensor(inputs["x"]).transpose(0, 1)  # a strided tensor, handed over without a copy
    return {"y": as_array(as_tensor(ck.heads_to_tokens(view)))}


ACTIVATION_BRIDGE = OpSpec(
    "activation_bridge",
    "forward",
    ("heads_to_tokens",),
    (
        Probe("3x5x17x64 of odd values", lambda r: {"x": _odd_values(r, 3, 5, 17, 64)}, quick=True),
        Probe("2x7x3x33 of odd values", lambda r: {"x": _odd_values(r, 2, 7, 3, 33)}),
    ),
    _bridge,
    lambda inputs: {"y": np.einsum("hbtd->bthd", inputs["x"])},
    lambda inputs: {"y": as_array(as_tensor(inputs["x"]).permute(1, 2, 0, 3).contiguous())},
    bitwise=True,
)

# ---------------------------------------------------------------------------------------------------------------------
# kv_cache_append: every item behind its own length; the whole storage is the result


def _append_inputs(rng, B, G, capacity, D, lengths, counts):
    storage = {name: normal(rng, B, G, capacity, D) for name in ("k_storage", "v_storage")}
    fresh = {name: normal(rng, B, G, max(counts), D) for name in ("k", "v")}
    return storage | fresh | {"lengths": np.array(lengths), "counts": np.array(counts)}


def _append(ck, inputs):
    storage, lengths = inputs["k_storage"], inputs["lengths"]
    B, G, capacity, D = storage.shape
    cache = ck.KVCache(G, D, capacity, batch=B, dtype=call_dtype(inputs))
    held = int(lengths.max())
    cache.append(storage[:, :, :held], inputs["v_storage"][:, :, :held], counts=lengths)
    for name in ("k", "v"):
        cache.raw[name][...] = inputs[f"{name}_storage"]  # behind the lengths stands what nobody may touch
    cache.append(inputs["k"], inputs["v"], counts=inputs["counts"])
    return {"k": cache.raw["k"].copy(), "v": cache.raw["v"].copy(), "lengths": cache.lengths}


def _append_exact(inputs):
    found = {}
    for name in ("k", "v"):
        stored = inputs[f"{name}_storage"].copy()
        for b, (length, count) in enumerate(zip(inputs["lengths"], inputs["counts"], strict=True)):
            for n in range(count):
                stored[b, :, length + n] = inputs[name][b, :, n]
        found[name] = stored
    return found | {"lengths": inputs["lengths"] + inputs["counts"]}


def _append_peer(inputs):
    import torch

    lengths, counts = (torch.from_numpy(inputs[name]) for name in ("lengths", "counts"))
    found = {}
    for name in ("k", "v"):
        stored, fresh = as_tensor(inputs[f"{name}_storage"]), as_tensor(inputs[name])
        slot = torch.arange(fresh.shape[2])[None] + lengths[:, None]
        b, n = (torch.arange(fresh.shape[2])[None] < counts[:, None]).nonzero(as_tuple=True)
        stored[b, :, slot[b, n]] = fresh[b, :, n]
        found[name] = as_array(stored)
    return found | {"lengths": (lengths + counts).numpy()}


KV_CACHE_APPEND = OpSpec(
    "kv_cache_append",
    "forward",
    ("KVCache",),
    (
        Probe("one token each", lambda r: _append_inputs(r, 3, 2, 19, 32, (4, 17, 0), (1, 1, 1)), quick=True),
        Probe("ragged, to the end", lambda r: _append_inputs(r, 4, 3, 23, 80, (5, 16, 0, 22), (7, 3, 0, 1)), True),
        Probe("one item, D 33", lambda r: _append_inputs(r, 1, 5, 9, 33, (2,), (6,))),
    ),
    _append,
    _append_exact,
    _append_peer,
    bitwise=True,
)

# ---------------------------------------------------------------------------------------------------------------------
# marlin_matmul: x times a weight in GPTQ's int4, y = x W, W = (q - (z + 1)) scale


def _packed(nibbles, axis):
    """Put eight nibbles along an axis into one int32, the first lowest."""
    apart = np.moveaxis(nibbles, axis, -1).astype(np.uint32)
    apart = apart.reshape(*apart.shape[:-1], -1, 8) << (4 * np.arange(8, dtype=np.uint32))
    return np.ascontiguousarray(np.moveaxis(np.bitwise_or.reduce(apart, -1), -1, axis)).view(np.int32)


def _gptq_inputs(rng, M, K, N, group, order=False):
    g_idx = np.arange(K, dtype=np.int32) // group
    if order:  # as activation order leaves it: every row names its group, and rows keep their places
        g_idx = rng.permutation(g_idx)
    return {
        "x": normal(rng, M, K),
        "qweight": _packed(rng.integers(0, 16, (K, N)), 0),
        "qzeros": _packed(rng.integers(0, 16, (K // group, N)), 1),
        "scales": (rng.uniform(0.3, 1.7, (K // group, N)) / (5 * K**0.5)).astype(np.float32),
        "g_idx": g_idx,
    }


def _gptq_unpacked(inputs):
    """Return the weight as ``linear`` takes it, [N,K] of the call's dtype: nibbles out of bytes, low half first."""

    def nibbles(words):
        octets = np.ascontiguousarray(words).astype("<i4").view(np.uint8).reshape(*words.shape, 4)
        return np.stack((octets & 15, octets >> 4), -1).reshape(*words.shape, 8).astype(np.float32)

    codes = nibbles(inputs["qweight"].T)
    codes = codes.reshape(len(codes), -1)  # [N,K]
    zeros = nibbles(inputs["qzeros"])
    zeros = zeros.reshape(len(zeros), -1) + 1  # [groups,N]
    groups, scales = inputs["g_idx"], inputs["scales"]
    weight = (codes - zeros[groups].T) * scales.astype(np.float32)[groups].T
    return np.ascontiguousarray(weight.astype(inputs["x"].dtype))


def _marlin_exact(inputs):
    K, N = len(inputs["g_idx"]), inputs["scales"].shape[1]
    weight = np.zeros((K, N))
    for k, g in enumerate(inputs["g_idx"].tolist()):
        for n in range(N):
            q = (int(inputs["qweight"][k // 8, n]) >> (4 * (k % 8))) & 15
            z = (int(inputs["qzeros"][g, n // 8]) >> (4 * (n % 8))) & 15
            weight[k, n] = (q - (z + 1)) * float(inputs["scales"][g, n])
    return {"y": inputs["x"].astype(np.float64) @ weight}


def _marlin_peer(inputs):
    import torch

    x, scales = as_tensor(inputs["x"]), as_tensor(inputs["scales"])
    qweight, qzeros, g_idx = (torch.from_numpy(inputs[name]) for name in ("qweight", "qzeros", "g_idx"))
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    q = ((qweight[:, None, :] >> shifts[None, :, None]) & 15).flatten(0, 1)
    z = ((qzeros[:, :, None] >> shifts) & 15).flatten(1) + 1
    weight = (q - z[g_idx.long()]).to(x.dtype) * scales[g_idx.long()]
    return {"y": as_array(x @ weight)}


MARLIN_MATMUL = OpSpec(
    "marlin_matmul",
    "forward",
    ("linear",),
    (
        Probe("7 rows, 256 to 72, groups of 64", lambda r: _gptq_inputs(r, 7, 256, 72, 64), quick=True),
        Probe("one row, 384 to 96, groups of 128", lambda r: _gptq_inputs(r, 1, 384, 96, 128)),
        Probe("17 rows, groups in any order", lambda r: _gptq_inputs(r, 17, 192, 40, 32, order=True), quick=True),
    ),
    lambda ck, inputs: {"y": ck.linear(inputs["x"], _gptq_unpacked(inputs))},
    _marlin_exact,
    _marlin_peer,
)

# ---------------------------------------------------------------------------------------------------------------------
# paged_varlen_attn: items of any length and any number of queries, keys found through block tables


def _paged_inputs(rng, H, G, D, block, lengths, queries, **options):
    blocks = [-(-length // block) for length in lengths]
    order = rng.permutation(sum(blocks) + 3)  # some blocks are nobody's
    tables = np.full((len(lengths), max(blocks)), -1)
    for b, count in enumerate(blocks):
        tables[b, :count], order = order[:count], order[count:]
    return {
        "q": normal(rng, sum(queries), H, D),
        "k_blocks": normal(rng, sum(blocks) + 3, G, block, D),
        "v_blocks": normal(rng, sum(blocks) + 3, G, block, D),
        "tables": tables,
        "lengths": np.array(lengths),
        "queries": np.array(queries),
    } | {key: value(rng) if callable(value) else value for key, value in options.items()}


def _paged_exact(inputs):
    q, tables = inputs["q"].astype(np.float64), inputs["tables"]
    stored = [inputs[name].astype(np.float64) for name in ("k_blocks", "v_blocks")]
    (H, D), (G, block) = q.shape[1:], stored[0].shape[1:3]
    window, softcap, sinks = (inputs.get(name) for name in ("window", "softcap", "sinks"))
    y, row = np.zeros(q.shape), 0
    for b, (length, count) in enumerate(zip(inputs["lengths"], inputs["queries"], strict=True)):
        for position in range(length - count, length):
            first = 0 if window is None else max(0, position - window[0])
            for h in range(H):
                g, scores, values = h // (H // G), [], []
                for s in range(first, position + 1):
                    at = tables[b, s // block], g, s % block
                    score = float(stored[0][at] @ q[row, h]) / D**0.5
                    scores.append(score if softcap is None else softcap * np.tanh(score / softcap))
                    values.append(stored[1][at])
                if sinks is not None:  # one more key, without a value
                    scores.append(float(sinks[h]))
                    values.append(np.zeros(D))
                p = np.exp(np.array(scores) - max(scores))
                y[row, h] = (p / p.sum()) @ np.array(values)
            row += 1
    return {"y": y}


def _paged_peer(inputs):
    import torch

    q, tables = as_tensor(inputs["q"]), torch.from_numpy(inputs["tables"])
    k, v = (as_tensor(inputs[name]) for name in ("k_blocks", "v_blocks"))
    options = {name: inputs[name] for name in ("window", "softcap") if name in inputs}
    if "sinks" in inputs:
        options["sinks"] = as_tensor(inputs["sinks"])
    parts, row = [], 0
    for b, (length, count) in enumerate(zip(inputs["lengths"].tolist(), inputs["queries"].tolist(), strict=True)):
        used = tables[b, : -(-length // k.shape[2])]
        keys, values = (x[used].transpose(0, 1).flatten(1, 2)[None, :, :length] for x in (k, v))
        mine = q[row : row + count].transpose(0, 1)[None]
        if not options:  # what PyTorch has itself; its is_causal starts at 0, ours at the end
            keep = torch.arange(length)[None] <= torch.arange(length - count, length)[:, None]
            y = _attention_eager(torch, mine, keys, values, keep)
        else:
            y = _attention_eager(
                torch, mine, keys, values, is_causal=True, q_offset=length - count, **{"window": None} | options
            )
        parts.append(y[0].transpose(0, 1))
        row += count
    return {"y": as_array(torch.cat(parts))}


def _paged(ck, inputs):
    """Tokens out of the given blocks into a pool, a few at a time in turn, so that its own tables are permuted too."""
    tables, lengths, queries = inputs["tables"], inputs["lengths"], inputs["queries"]
    blocks, G, block, D = inputs["k_blocks"].shape
    pool = ck.PagedKVCache(G, D, blocks, block, dtype=call_dtype(inputs))
    sequences = [pool.new() for _ in lengths]
    step = block - 1
    for start in range(0, int(lengths.max()), step):
        for b, length in enumerate(lengths.tolist()):
            at = np.arange(start, min(start + step, length))
            if at.size:
                k, v = (
                    np.ascontiguousarray(inputs[name][tables[b, at // block], :, at % block].swapaxes(0, 1))[None]
                    for name in ("k_blocks", "v_blocks")
                )
                pool.append([sequences[b]], k, v)
    if len(lengths) > 1 and all(np.all(np.diff(pool.block_table(s)) == 1) for s in sequences):
        raise AssertionError("the pool's tables are not permuted, so this probe shows nothing about them")
    options = {name: inputs[name] for name in ("window", "softcap", "sinks") if name in inputs}
    ends = np.cumsum(queries)
    y = np.empty_like(inputs["q"])
    for count in np.unique(queries):  # items with as many queries go together
        chosen = np.flatnonzero(queries == count)
        rows = ends[chosen, None] - count + np.arange(count)
        q = np.ascontiguousarray(inputs["q"][rows].swapaxes(1, 2))
        y[rows] = pool.attend([sequences[b] for b in chosen], q, **options).swapaxes(1, 2)
    return {"y": y}


PAGED_VARLEN_ATTN = OpSpec(
    "paged_varlen_attn",
    "forward",
    ("PagedKVCache",),
    (
        Probe(
            "decoding, blocks of 16",
            lambda r: _paged_inputs(r, 9, 3, 64, 16, (1, 17, 48, 33, 5), (1,) * 5),
            quick=True,
        ),
        Probe(
            "chunks of 1 to 11 queries, blocks of 7",
            lambda r: _paged_inputs(r, 4, 2, 32, 7, (3, 40, 21, 11), (3, 11, 1, 11)),
            quick=True,
        ),
        Probe("window 9, D 80", lambda r: _paged_inputs(r, 6, 3, 80, 5, (23, 31, 4), (5, 1, 4), window=(9, 0))),
        Probe(
            "softcap and sinks, GQA 7",
            lambda r: _paged_inputs(r, 7, 1, 32, 3, (19, 8), (2, 8), softcap=5.0, sinks=lambda r: normal(r, 7)),
        ),
    ),
    _paged,
    _paged_exact,
    _paged_peer,
    floats=("sinks",),
)

SERVED = (ACTIVATION_BRIDGE, KV_CACHE_APPEND, MARLIN_MATMUL, PAGED_VARLEN_ATTN)

#: The names under which op-diff knows ops, and whose specs they are.
NAMED = {
    "activation_bridge": ("activation_bridge",),
    "argmax_rows": ("argmax",),
    "embedding_lookup": ("embedding",),
    "flash_attention": ("scaled_dot_product_attention",),
    "fused_add_rms_norm": ("add_rms_norm",),
    "gemm": ("linear", "matmul"),
    "kv_cache_append": ("kv_cache_append",),
    "marlin_matmul": ("marlin_matmul",),
    "paged_varlen_attn": ("paged_varlen_attn",),
    "qk_norm_rope": ("qk_norm_rope",),
    "residual_add": ("add",),
    "rms_norm": ("rms_norm",),
    "silu_mul": ("swiglu",),
    "split_qkv": ("split_qkv",),
    "transpose_head_to_token": ("heads_to_tokens", "tokens_to_heads"),
}
