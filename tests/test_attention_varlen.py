"""attention_varlen: each sequence against the formula, and bit for bit against attention on it alone."""

import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.parity import assert_parity
from guard import guarded, unwritten
from test_attention import formula, normal

torch.set_num_threads(1)

# Lengths of queries and keys, heads, kv heads, D, options: empty sequences, more queries than keys, several blocks.
CASES = {
    "one query each": ([1, 1, 1], [2, 3, 5], 2, 1, 8, {}),
    "causal": ([5, 0, 140, 17], [5, 0, 140, 17], 3, 1, 33, {"is_causal": True}),
    "keys behind": ([3, 1, 0, 30], [260, 7, 5, 300], 4, 2, 16, {"is_causal": True}),
    "more queries": ([9, 4], [4, 0], 2, 2, 20, {"is_causal": True}),
    "options": ([20, 33], [41, 33], 6, 2, 24, {"window": (11, 4), "softcap": 2.0, "scale": 0.4}),
    "offsets": ([7, 130], [20, 150], 7, 1, 10, {"is_causal": True, "q_offset": np.array([3, 15])}),
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def ends(lengths, dtype=np.int64):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)


def packed(rng, case, dtype="f32"):
    """(q, k, v, dy, cu_q, cu_k, options) of a case; tensors of the dtype."""
    Ts, Ss, H, G, D, options = CASES[case]
    shapes = (sum(Ts), H, D), (sum(Ss), G, D), (sum(Ss), G, D), (sum(Ts), H, D)
    arrays = [torch.from_numpy(normal(rng, *s)).to(DTYPES[dtype]) for s in shapes]
    return *arrays, ends(Ts), ends(Ss, np.int32), dict(options)


def alone(tensors, cu_q, cu_k, options):
    """Yield, sequence by sequence, rows of q, rows of k, [1,heads,rows,D] of each tensor, and its options."""
    for b in range(len(cu_q) - 1):
        rows_q, rows_k = slice(*cu_q[b:b + 2]), slice(*cu_k[b:b + 2])
        own = dict(options)
        own["q_offset"] = (
            int(options["q_offset"][b])
            if "q_offset" in options
            else (rows_k.stop - rows_k.start) - (rows_q.stop - rows_q.start)
        )
        rows = rows_q, rows_k, rows_k, rows_q
        yield rows_q, rows_k, [x[r].transpose(0, 1)[None] for x, r in zip(tensors, rows, strict=True)], own


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_a_sequence_has_the_bits_it_has_alone(isa, rng, case, dtype):
    q, k, v, dy, cu_q, cu_k, options = packed(rng, case, dtype)
    sinks, dlse = normal(rng, q.shape[1]), normal(rng, q.shape[1], q.shape[0])
    (y, lse), ctx = ck.attention_varlen_forward(q, k, v, cu_q, cu_k, sinks=sinks, return_lse=True, **options)
    grads = ck.attention_varlen_backward((dy, dlse), ctx)
    assert lse.shape == dlse.shape
    for rows_q, rows_k, own, rest in alone((q, k, v, dy), cu_q, cu_k, options):
        share = np.ascontiguousarray(dlse[:, rows_q])[None]
        (y1, lse1), ctx1 = ck.attention_forward(*own[:3], sinks=sinks, return_lse=True, **rest)
        grads1 = ck.attention_backward((own[3], share), ctx1)
        assert y[rows_q].tobytes() == y1[0].swapaxes(0, 1).tobytes()
        assert lse[:, rows_q].tobytes() == lse1[0].tobytes()
        assert grads.q[rows_q].tobytes() == grads1.q[0].swapaxes(0, 1).tobytes()
        for whole, single in ((grads.k, grads1.k), (grads.v, grads1.v)):
            assert whole[rows_k].tobytes() == single[0].swapaxes(0, 1).tobytes()


@pytest.mark.parametrize("case", CASES)
def test_attention_varlen_matches_the_formula(isa, rng, case):
    q, k, v, dy, cu_q, cu_k, options = packed(rng, case)
    y, ctx = ck.attention_varlen_forward(
        *(guarded(x.numpy()) for x in (q, k, v)), cu_q, cu_k, out=unwritten(q.shape), **options
    )
    grads = ck.attention_varlen_backward(guarded(dy.numpy()), ctx)
    results = []
    for precision in torch.float64, torch.float32:
        leaves = [x.to(precision).requires_grad_() for x in (q, k, v)]
        parts = [
            formula(*own[:3], **rest)[0][0].transpose(0, 1)
            for _, _, own, rest in alone((*leaves, dy), cu_q, cu_k, options)
        ]
        whole = torch.cat(parts)
        results.append((whole, *torch.autograd.grad((whole * dy.to(precision)).sum(), leaves)))
    for name, ours, exact, peer in zip(("y", "q", "k", "v"), (y, *grads[:3]), *results, strict=True):
        assert_parity(ours, exact.detach(), peer.detach(), name=name)


def test_attention_varlen_sums_the_sinks_of_all_sequences(isa, rng):
    q, k, v, dy, cu_q, cu_k, options = packed(rng, "options")
    sinks = normal(rng, 6)
    ctx = ck.attention_varlen_forward(q, k, v, cu_q, cu_k, sinks=sinks, **options)[1]
    grads = ck.attention_varlen_backward(dy, ctx)
    single = [
        ck.attention_backward(own[3], ck.attention_forward(*own[:3], sinks=sinks, **rest)[1]).sinks
        for _, _, own, rest in alone((q, k, v, dy), cu_q, cu_k, options)
    ]
    np.testing.assert_allclose(grads.sinks, np.sum(single, 0, np.float64), rtol=3 * 2.0**-23, atol=0)
    out = type(grads)(*(x.copy() for x in grads))
    twice = ck.attention_varlen_backward(dy, ctx, out=out, accumulate=True).sinks
    assert twice.tobytes() == (2 * grads.sinks).tobytes()


def test_attention_varlen_bits_do_not_depend_on_threads_nor_on_the_type_of_the_lengths(isa, rng):
    q, k, v, dy, cu_q, cu_k, options = packed(rng, "causal")

    def everything(kind):
        y, ctx = ck.attention_varlen_forward(q, k, v, cu_q.astype(kind), cu_k.astype(kind), **options)
        return [a.tobytes() for a in (y, *ck.attention_varlen_backward(dy, ctx)[:3])]

    ck.set_num_threads(1)
    wanted = everything(np.int64)
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(np.int32) == wanted


def test_no_key_of_another_sequence_is_seen(isa, rng):
    q, k, v, dy, cu_q, cu_k, options = packed(rng, "keys behind")
    y, ctx = ck.attention_varlen_forward(q, k, v, cu_q, cu_k, **options)
    want = ck.attention_varlen_backward(dy, ctx)
    k, v = k.clone(), v.clone()
    k[cu_k[1]:cu_k[2]] = v[cu_k[1]:cu_k[2]] = torch.nan
    dirty, ctx = ck.attention_varlen_forward(q, k, v, cu_q, cu_k, **options)
    grads = ck.attention_varlen_backward(dy, ctx)
    others = np.r_[0:cu_q[1], cu_q[2]:cu_q[-1]]
    assert np.isnan(dirty[cu_q[1]:cu_q[2]]).all()
    assert dirty[others].tobytes() == y[others].tobytes() and grads.q[others].tobytes() == want.q[others].tobytes()


def test_attention_varlen_takes_views(isa, rng):
    q, k, v, _, cu_q, cu_k, options = packed(rng, "causal")
    wide = [torch.stack([x, x], 2)[:, :, 0] for x in (q, k, v)]
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    wanted = ck.attention_varlen(q, k, v, cu_q, cu_k, **options).tobytes()
    assert ck.attention_varlen(*wide, cu_q, cu_k, **options).tobytes() == wanted
    assert ck.attention_varlen(*heads_first, np.repeat(cu_q, 2)[::2], cu_k, **options).tobytes() == wanted


@pytest.mark.parametrize("change, error, text", [
    ({"cu_seqlens_q": [1, 3, 5]}, ValueError, "'cu_seqlens_q' must begin with 0"),
    ({"cu_seqlens_q": [0, 5, 3]}, ValueError, "'cu_seqlens_q' falls from 5 to 3 at place 2"),
    ({"cu_seqlens_q": [0, 3, 4]}, ValueError, "'cu_seqlens_q' ends with 4, and 'q' has 5 rows"),
    ({"cu_seqlens_k": [0, 3, 7]}, ValueError, "'cu_seqlens_k' ends with 7, and 'k' has 6 rows"),
    ({"cu_seqlens_k": [0, 6]}, ValueError, "'cu_seqlens_k' of shape"),
    ({"cu_seqlens_q": []}, ValueError, "'cu_seqlens_"),
    ({"cu_seqlens_q": [0.0, 3.0, 5.0]}, TypeError, "'cu_seqlens_q'"),
    ({"cu_seqlens_q": [[0, 3, 5]]}, ValueError, "'cu_seqlens_q' of shape"),
    ({"q_offset": [1]}, ValueError, "'q_offset' has 1 entries for 2 sequences"),
    ({"q_offset": 1.5}, TypeError, "'q_offset' must be an integer"),
    ({"q_offset": [0, 2**62]}, ValueError, "'q_offset' puts sequence 1"),
    ({"window": (1,)}, TypeError, "attention_varlen\\(\\): 'window'"),
    ({"k": np.zeros((6, 3, 4), "f4")}, ValueError, "'v' of shape|no multiple"),
])  # fmt: skip
def test_attention_varlen_refuses_and_writes_nothing(isa, change, error, text):
    call = {
        "q": np.zeros((5, 4, 4), "f4"), "k": np.zeros((6, 2, 4), "f4"), "v": np.zeros((6, 2, 4), "f4"),
        "cu_seqlens_q": [0, 3, 5], "cu_seqlens_k": [0, 3, 6],
    }  # fmt: skip
    call.update(change)
    for name in "cu_seqlens_q", "cu_seqlens_k":
        call[name] = np.array(call[name], None if call[name] else np.int64)
    out = np.full((5, 4, 4), 7, "f4")
    with pytest.raises(error, match=text):
        ck.attention_varlen(**call, out=out)
    assert (out == 7).all()


def test_attention_varlen_of_nothing(isa):
    none = np.zeros((0, 2, 4), "f4")
    y, ctx = ck.attention_varlen_forward(none, none, none, np.array([0, 0]), np.array([0, 0]))
    assert y.shape == (0, 2, 4) and all(g.shape == (0, 2, 4) for g in ck.attention_varlen_backward(y, ctx)[:3])
    assert ck.attention_varlen(none, none, none, np.array([0]), np.array([0])).shape == (0, 2, 4)
