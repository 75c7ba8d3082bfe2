"""Specs of softmax and attention, packed sequences too."""

import dataclasses

import numpy as np

from .spec import OUT, Probe, family, normal


def _apply_masks(torch, scores, mask, keep):
    """Add a float mask, take away what a bool mask or ``keep`` forbids; return scores and the rows with no key left."""
    gone = torch.zeros(scores.shape, dtype=torch.bool)
    if keep is not None:
        gone = gone | ~keep
    if mask is not None and mask.dtype == torch.bool:
        gone = gone | ~mask
    elif mask is not None:
        gone = gone | (mask == OUT)
        scores = scores + mask.masked_fill(mask == OUT, 0.0)
    dead = gone.all(-1, keepdim=True)
    return scores.masked_fill(gone & ~dead, OUT), dead


def _softmax_formula(torch, x, scale=1.0, mask=None, causal=False):
    keep = None
    if causal:
        T, S = x.shape[-2:]
        keep = torch.arange(S)[None, :] <= torch.arange(T)[:, None]
    scores, dead = _apply_masks(torch, x * scale, mask, keep)
    return torch.softmax(scores, -1).masked_fill(dead, 0.0)


def _softmax_mask(rng):
    mask = normal(rng, 5, 33)
    mask[rng.random(mask.shape) < 0.3] = OUT
    mask[3] = OUT
    return {"x": normal(rng, 2, 3, 5, 33), "mask": mask}


def _increasing(rng, *shape):
    """Scores that grow along the row: a running maximum must rescale at every block."""
    return (normal(rng, *shape) + np.linspace(0, 40, shape[-1])).astype(np.float32)


SOFTMAX = family(
    "softmax",
    [
        Probe("7 rows of 97", lambda r: {"x": normal(r, 7, 97, scale=3)}, quick=True),
        Probe(
            "logits of ±200",
            lambda r: {"x": (200 * r.uniform(-1, 1, (5, 33))).astype(np.float32)},
            quick=True,
            extreme=("float16", "bfloat16"),
        ),
        Probe("near ties at 200", lambda r: {"x": normal(r, 5, 65) + np.float32(200)}),
        Probe("increasing", lambda r: {"x": _increasing(r, 3, 1031)}),
        Probe("float mask, one row empty", _softmax_mask),
        Probe("causal, scaled", lambda r: {"x": normal(r, 3, 7, 19, scale=9), "scale": 0.125, "causal": True}),
        Probe("rows of 17", lambda r: {"x": normal(r, 5, 17)}),
    ],
    _softmax_formula,
    eager=_softmax_formula,
)


def _attention_keep(torch, B, T, S, is_causal, q_offset, window):
    """Return what a query may see, [B,1,T,S]: query t stands at q_offset + t, key s at s."""
    offset = torch.as_tensor(q_offset).reshape(-1, 1, 1, 1)
    at = offset + torch.arange(T).reshape(1, 1, T, 1)
    key = torch.arange(S).reshape(1, 1, 1, S)
    keep = torch.ones(1, 1, T, S, dtype=torch.bool)
    if is_causal:
        keep = keep & (key <= at)
    if window is not None and window[0] is not None:
        keep = keep & (key >= at - window[0])
    if window is not None and window[1] is not None:
        keep = keep & (key <= at + window[1])
    return keep


def _attention_formula(
    torch,
    q,
    k,
    v,
    attn_mask=None,
    is_causal=False,
    scale=None,
    q_offset=0,
    window=None,
    softcap=None,
    sinks=None,
    return_lse=False,
):
    B, H, T, D = q.shape
    repeat = H // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q @ k.mT) * (D**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    keep = _attention_keep(torch, B, T, k.shape[2], is_causal, q_offset, window)
    scores, dead = _apply_masks(torch, scores, attn_mask, keep.expand(B, H, T, -1))
    if sinks is not None:  # one more key, whose value is zero
        column = sinks.reshape(1, H, 1, 1).expand(B, H, T, 1)
        scores = torch.cat((scores.masked_fill(dead, OUT), column), -1)
        y = torch.softmax(scores, -1)[..., :-1] @ v
        dead = torch.zeros_like(dead)
    else:
        y = torch.softmax(scores, -1).masked_fill(dead, 0.0) @ v
    return (y, torch.logsumexp(scores, -1).masked_fill(dead[..., 0], OUT)) if return_lse else y


def _attention_eager(torch, q, k, v, attn_mask=None, is_causal=False, scale=None, **rest):
    if rest.get("sinks") is not None:  # as transformers does: one more column of the scores, in their dtype
        rest["sinks"] = rest["sinks"].to(q.dtype)
        return _attention_formula(torch, q, k, v, attn_mask, is_causal, scale, **rest)
    asked = any(value is not None and not (key == "q_offset" and isinstance(value, int)) for key, value in rest.items())
    if asked or rest.get("q_offset", 0) or (is_causal and attn_mask is not None):  # not in PyTorch: in float32
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.float()
        result = _attention_formula(torch, q.float(), k.float(), v.float(), attn_mask, is_causal, scale, **rest)
        return tuple(r.to(q.dtype) for r in result) if isinstance(result, tuple) else result.to(q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _attention_inputs(rng, B, H, G, T, S, D, *, loud=1.0, grow=False, **options):
    inputs = {"q": normal(rng, B, H, T, D, scale=loud), "k": normal(rng, B, G, S, D), "v": normal(rng, B, G, S, D)}
    if grow:  # keys along the query's direction, longer and longer
        direction = normal(rng, 1, G, 1, D)
        inputs["q"] = (np.repeat(direction, H // G, 1) + normal(rng, B, H, T, D, scale=0.1)).astype(np.float32)
        growth = np.linspace(0, 30 / D**0.5, S).reshape(1, 1, S, 1)
        inputs["k"] = (inputs["k"] * 0.3 + growth * direction).astype(np.float32)
    for key, value in options.items():
        inputs[key] = value(rng) if callable(value) else value
    return inputs


def _bool_mask(*shape):
    def make(rng):
        mask = rng.random(shape) < 0.6
        mask[..., 0] = True
        return mask

    return make


def _dead_row_mask(*shape):
    def make(rng):
        mask = rng.random(shape) < 0.6
        mask[..., 2, :] = False
        return mask

    return make


def _float_mask(*shape):
    def make(rng):
        mask = normal(rng, *shape)
        mask[..., 1:][rng.random(mask[..., 1:].shape) < 0.3] = OUT
        return mask

    return make


def _sinks(heads):
    return lambda rng: normal(rng, heads)


def _attention_probes():
    def probe(label, *sizes, quick=False, **options):
        extreme = options.get("loud", 1.0) > 20 or (("float16", "bfloat16") if options.get("grow") else False)
        return Probe(label, lambda r: _attention_inputs(r, *sizes, **options), quick, extreme)

    return [
        # B, H, G, T, S, D
        probe("GQA 3, causal, D 64", 2, 9, 3, 17, 17, 64, is_causal=True, quick=True),
        probe("decode at 7 of 8, GQA 2, D 32", 1, 6, 3, 1, 8, 32, is_causal=True, q_offset=7, quick=True),
        probe("GQA 1, D 80", 2, 3, 3, 5, 33, 80),
        probe("GQA 7, causal, D 96", 1, 14, 2, 19, 19, 96, is_causal=True),
        probe("GQA 2, D 128, scale", 1, 4, 2, 7, 65, 128, scale=0.2),
        probe("100 queries, 130 keys, causal", 1, 2, 1, 100, 130, 64, is_causal=True, q_offset=30),
        probe("offset 4095", 1, 8, 2, 7, 4102, 32, is_causal=True, q_offset=4095),
        probe("offsets by item", 2, 6, 3, 5, 23, 32, is_causal=True, q_offset=np.array([3, 18])),
        probe("window 5 back", 1, 4, 2, 29, 29, 64, is_causal=True, window=(5, None)),
        probe("window 3 back 2 on", 1, 6, 2, 21, 27, 32, window=(3, 2), q_offset=4),
        probe("softcap", 1, 3, 1, 11, 13, 64, softcap=5.0, loud=6.0, is_causal=True, q_offset=2),
        probe("sinks", 2, 21, 3, 5, 15, 32, sinks=_sinks(21), is_causal=True, q_offset=10),
        probe("bool mask [T,S]", 2, 4, 2, 7, 18, 32, attn_mask=_bool_mask(7, 18)),
        probe("float mask [B,1,T,S]", 2, 3, 3, 5, 19, 64, attn_mask=_float_mask(2, 1, 5, 19)),
        probe("mask with an empty row", 2, 4, 2, 7, 18, 32, attn_mask=_dead_row_mask(7, 18)),
        probe("scores of ±200", 3, 8, 2, 31, 65, 64, loud=60.0, is_causal=True, q_offset=34),
        probe("increasing scores", 1, 4, 2, 5, 300, 64, grow=True),
    ]


ATTENTION = family(
    "scaled_dot_product_attention",
    _attention_probes(),
    _attention_formula,
    eager=_attention_eager,
    wrt=("q", "k", "v", "sinks"),
    floats=("sinks",),
    aside=("sinks",),
)


def _lse_probe(label, *sizes, quick=False, **options):
    extreme = options.get("loud", 1.0) > 20 or (("float16", "bfloat16") if options.get("grow") else False)
    return Probe(label, lambda r: _attention_inputs(r, *sizes, return_lse=True, **options), quick, extreme)


# With return_lse=True there are two outputs, and two gradients come in.
LSE = [
    dataclasses.replace(spec, what=f"{spec.what} +lse")
    for spec in family(
        "scaled_dot_product_attention",
        [
            _lse_probe("GQA 3, causal", 2, 9, 3, 17, 17, 64, is_causal=True, quick=True),
            _lse_probe("scores of ±200", 3, 8, 2, 31, 65, 64, loud=60.0, is_causal=True, q_offset=34),
            _lse_probe("increasing scores", 1, 4, 2, 5, 300, 64, grow=True),
            _lse_probe("mask with an empty row", 2, 4, 2, 7, 18, 32, attn_mask=_dead_row_mask(7, 18)),
            _lse_probe("sinks and an empty row", 2, 6, 3, 7, 18, 32, attn_mask=_dead_row_mask(7, 18), sinks=_sinks(6)),
        ],
        _attention_formula,
        eager=_attention_eager,
        outputs=("y", "lse"),
        wrt=("q", "k", "v", "sinks"),
        floats=("sinks",),
        statistics=("lse",),
        aside=("sinks", "lse"),
    )
]


def _each_sequence(attention):
    """Make the packed form of a formula: every sequence by itself, its last query with its last key."""

    def packed(torch, q, k, v, cu_seqlens_q, cu_seqlens_k, **options):
        def heads(x, ends, b):
            return x[int(ends[b]) : int(ends[b + 1])].transpose(0, 1)[None]

        parts = [q[:0]]
        for b in range(len(cu_seqlens_q) - 1):
            of = heads(q, cu_seqlens_q, b), heads(k, cu_seqlens_k, b), heads(v, cu_seqlens_k, b)
            if of[0].shape[2] != 0:
                y = attention(torch, *of, q_offset=of[1].shape[2] - of[0].shape[2], **options)
                parts.append(y[0].transpose(0, 1))
        return torch.cat(parts)

    return packed


def _varlen_probe(label, queries, keys, H, G, D, quick=False, **options):
    def make(rng):
        q, k, v = normal(rng, sum(queries), H, D), normal(rng, sum(keys), G, D), normal(rng, sum(keys), G, D)
        ends = {"cu_seqlens_q": np.cumsum([0, *queries]), "cu_seqlens_k": np.cumsum([0, *keys])}
        made = {key: value(rng) if callable(value) else value for key, value in options.items()}
        return {"q": q, "k": k, "v": v} | ends | made

    return Probe(label, make, quick)


ATTENTION_VARLEN = family(
    "attention_varlen",
    [
        _varlen_probe("some are empty, causal", (5, 17, 0, 33) * 4, (5, 17, 0, 33) * 4, 6, 2, 64, True, is_causal=True),
        _varlen_probe("more keys than queries, causal", (3, 1, 20) * 5, (19, 65, 27) * 5, 7, 1, 80, is_causal=True),
        _varlen_probe("no mask, 300 keys", (21, 2) * 5, (300, 7) * 5, 3, 3, 96),
        _varlen_probe("window, softcap", (29, 13) * 5, (29, 31) * 5, 4, 2, 32, window=(5, 0), softcap=5.0),
        _varlen_probe("sinks", (11, 23) * 4, (11, 23) * 4, 9, 3, 64, is_causal=True, sinks=_sinks(9)),
    ],
    _each_sequence(_attention_formula),
    eager=_each_sequence(_attention_eager),
    wrt=("q", "k", "v", "sinks"),
    floats=("sinks",),
    aside=("sinks",),
)
