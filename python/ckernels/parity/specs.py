"""Every op declared once for the comparisons: inputs, the float64 result, PyTorch's result, and what to call.

The keys of an input dict are the argument names of the op, so ``ck.<op>(**inputs)`` is the call under test and
``formula(torch, **inputs)`` the same mathematics, run by PyTorch in float64 (exact) with autograd for the gradients.
``eager``, where given, is what a PyTorch user would call, run in float32 (the peer); elsewhere the peer is the formula
itself in float32. PyTorch is imported when a spec is evaluated, not before.

Extents within a probe differ pairwise, offsets and lengths are odd, and each probe has a reason, named in its label.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# The negative infinity that masks a key.
_OUT = -math.inf


@dataclass(frozen=True)
class Probe:
    """One set of inputs.

    Attributes
    ----------
    label : str
        What it is there to see.
    inputs : callable
        ``inputs(rng)`` returns them. Enough of them, too: with a handful of rows, PyTorch's error is a matter of luck.
    quick : bool
        It runs under ``--quick`` too.
    extreme : bool
        The documented ceiling is no promise here, the rule is: rounding one score of 200 to float32 moves a probability
        by up to 8e-6 of itself, so that no result in float32 can promise 1e-5.
    """

    label: str
    inputs: Callable
    quick: bool = False
    extreme: bool = False


@dataclass(frozen=True)
class OpSpec:
    """One pass of one op.

    Attributes
    ----------
    name, what : str
        The op, and "forward" or "backward".
    needs : tuple of str
        Names that the package must have; a missing one makes the op UNMEASURED.
    probes : tuple of Probe
    run : callable
        ``run(ck, inputs)`` calls the code under test; returns a dict of outputs by name.
    exact, peer : callable
        ``exact(inputs)`` in float64 and ``peer(inputs)`` in float32: dicts with the same names.
    bitwise : bool
        The outputs are copies: compare bits.
    bound : callable or None
        ``bound(inputs)``: largest allowed error, which must hold besides the rule.
    """

    name: str
    what: str
    needs: tuple
    probes: tuple
    run: Callable
    exact: Callable
    peer: Callable
    bitwise: bool = False
    bound: Callable | None = None

    def inputs(self, probe, seed=0):
        """Return the inputs of a probe: the same for every pass, instruction set and run."""
        key = zlib.crc32(f"{self.name}/{probe.label}".encode())
        return probe.inputs(np.random.default_rng([seed, key]))


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch, in float64 and in float32


def _tensors(torch, inputs, dtype):
    """Turn arrays into tensors, floating ones of the given dtype; leave numbers and options alone."""
    result = {}
    for key, value in inputs.items():
        if isinstance(value, np.ndarray):
            tensor = torch.from_numpy(np.ascontiguousarray(value))
            result[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        else:
            result[key] = value
    return result


def _tuple(value):
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _evaluate(formula, outputs, inputs, dtype):
    import torch

    with torch.no_grad():
        results = _tuple(formula(torch, **_tensors(torch, inputs, getattr(torch, dtype))))
    return {name: value.numpy() for name, value in zip(outputs, results, strict=True)}


def _differentiate(formula, wrt, inputs, dtype):
    import torch

    tensors = _tensors(torch, inputs, getattr(torch, dtype))
    chosen = [name for name in wrt if isinstance(inputs.get(name), np.ndarray)]
    for name in chosen:
        tensors[name].requires_grad_()
    results = _tuple(formula(torch, **tensors))
    dys = [torch.from_numpy(d).to(r.dtype) for d, r in zip(_cotangents(results), results, strict=True)]
    grads = torch.autograd.grad(results, [tensors[name] for name in chosen], dys)
    return {f"d{name}": grad.numpy() for name, grad in zip(chosen, grads, strict=True)}


def _cotangents(results):
    """Return the gradients that flow in: fixed by the shapes, never one, never equal."""
    rng = np.random.default_rng(20)
    return [
        np.full((), 1.7, np.float32) if not r.shape else rng.standard_normal(r.shape).astype(np.float32)
        for r in results
    ]


def _given(value, name):
    """Look up a gradient by its input's name."""
    field = getattr(value, name, None)
    if field is None:
        raise AttributeError(f"backward returned no gradient '{name}'")
    return field


def _family(name, probes, formula, *, eager=None, outputs=("y",), wrt=("x",), bound=None, bitwise=False, lossy=()):
    """Declare the forward and the backward pass of an op."""
    eager = eager or formula

    def forward(ck, inputs):
        return dict(zip(outputs, _tuple(getattr(ck, name)(**inputs)), strict=True))

    def backward(ck, inputs):
        y, ctx = getattr(ck, f"{name}_forward")(**inputs)
        dys = [float(d) if d.ndim == 0 else d for d in _cotangents([np.asarray(r) for r in _tuple(y)])]
        grads = getattr(ck, f"{name}_backward")(dys[0] if len(dys) == 1 else tuple(dys), ctx)
        return {f"d{n}": _given(grads, n) for n in wrt if isinstance(inputs.get(n), np.ndarray)}

    passes = [
        OpSpec(
            name,
            "forward",
            (name,),
            tuple(probes),
            forward,
            functools.partial(_evaluate, formula, outputs, dtype="float64"),
            functools.partial(_evaluate, eager, outputs, dtype="float32"),
            bitwise=bitwise,
            bound=bound,
        )
    ]
    if wrt:
        passes.append(
            OpSpec(
                name,
                "backward",
                (f"{name}_forward", f"{name}_backward"),
                tuple(probes),
                backward,
                functools.partial(_differentiate, formula, wrt, dtype="float64"),
                functools.partial(_differentiate, eager, wrt, dtype="float32"),
            )
        )
    return passes


def _normal(rng, *shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Embedding, residual, norms


def _embedding(rng, *, shape, V, C, same=False, kind=np.int64):
    ids = np.full(shape, V - 2, kind) if same else rng.integers(0, V, shape).astype(kind)
    return {"ids": ids, "weight": _normal(rng, V, C)}


def _embedding_formula(torch, ids, weight):
    return torch.nn.functional.embedding(ids.long(), weight)


_EMBEDDING = _family(
    "embedding",
    [
        Probe("repeated ids, int64", lambda r: _embedding(r, shape=(3, 11), V=17, C=33), quick=True),
        Probe("int32, 576 channels", lambda r: _embedding(r, shape=(29,), V=97, C=576, kind=np.int32)),
        Probe("one id 1000 times", lambda r: _embedding(r, shape=(1000,), V=5, C=31, same=True)),
    ],
    _embedding_formula,
    wrt=("weight",),
    bitwise=True,
)


def _add_formula(torch, x, y, alpha=1.0):
    return x + alpha * y


def _add_eager(torch, x, y, alpha=1.0):
    return torch.add(x, y, alpha=alpha)


_ADD = _family(
    "add",
    [
        Probe("alpha 1", lambda r: {"x": _normal(r, 3, 5, 33), "y": _normal(r, 3, 5, 33)}, quick=True),
        Probe("alpha -0.3", lambda r: {"x": _normal(r, 7, 577), "y": _normal(r, 7, 577, scale=9), "alpha": -0.3}),
    ],
    _add_formula,
    eager=_add_eager,
    wrt=("x", "y"),
)


def _norm_inputs(rng, *shape, scale=1.0, weight=True, **options):
    inputs = {"x": _normal(rng, *shape, scale=scale)}
    if weight:
        # Away from one, and of both signs.
        inputs["weight"] = _normal(rng, shape[-1], scale=0.5) + np.float32(0.7)
    return inputs | options


def _rms_norm_formula(torch, x, weight=None, eps=1e-6, offset=0.0):
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * (offset + weight)


def _rms_norm_eager(torch, x, weight=None, eps=1e-6, offset=0.0):
    if weight is not None and offset:
        weight = offset + weight
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def _rows_of_all_sizes(rng):
    inputs = _norm_inputs(rng, 13, 96, eps=1e-5)
    inputs["x"] *= (10.0 ** np.linspace(-5, 3, 13)).astype(np.float32)[:, None]
    return inputs


_RMS_NORM = _family(
    "rms_norm",
    [
        Probe("7 rows of 576", lambda r: _norm_inputs(r, 7, 576), quick=True),
        Probe("tiny rms, eps decides", lambda r: _norm_inputs(r, 5, 97, scale=1e-3, eps=1e-6), quick=True),
        Probe("rows from 1e-5 to 1e3", _rows_of_all_sizes),
        Probe("offset 1", lambda r: _norm_inputs(r, 3, 5, 64, offset=1.0, eps=1e-5)),
        Probe("no weight", lambda r: _norm_inputs(r, 2, 3, 33, weight=False, eps=1e-2)),
        Probe("rows of 17", lambda r: _norm_inputs(r, 5, 17)),
        Probe("one row of 4097", lambda r: _norm_inputs(r, 1, 4097)),
        Probe("300 rows of 31", lambda r: _norm_inputs(r, 300, 31)),
    ],
    _rms_norm_formula,
    eager=_rms_norm_eager,
    wrt=("x", "weight"),
)


def _add_rms_norm_formula(torch, x, residual, weight, eps):
    total = residual + x
    return _rms_norm_formula(torch, total, weight, eps), total


def _add_rms_norm_eager(torch, x, residual, weight, eps):
    total = residual + x
    return _rms_norm_eager(torch, total, weight, eps), total


def _add_norm_inputs(rng, *shape, scale=1.0, eps=1e-6):
    inputs = _norm_inputs(rng, *shape, scale=scale, eps=eps)
    return {"x": inputs["x"], "residual": _normal(rng, *shape, scale=2 * scale), **inputs}


_ADD_RMS_NORM = _family(
    "add_rms_norm",
    [
        Probe("7 rows of 576", lambda r: _add_norm_inputs(r, 7, 576), quick=True),
        Probe("tiny rms, eps decides", lambda r: _add_norm_inputs(r, 3, 5, 97, scale=5e-4)),
        Probe("rows of 17", lambda r: _add_norm_inputs(r, 5, 17, eps=1e-5)),
    ],
    _add_rms_norm_formula,
    eager=_add_rms_norm_eager,
    outputs=("y", "sum"),
    wrt=("x", "residual", "weight"),
)


# ---------------------------------------------------------------------------------------------------------------------
# Rotary positions


def _angles(positions, dim, base):
    """Return angle = position * base^(-2i/dim) in float64."""
    return np.multiply.outer(np.asarray(positions, np.float64), base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim))


def _rope_table_exact(inputs):
    angles = _angles(inputs["positions"], inputs["dim"], inputs.get("base", 10000.0))
    return {"cos": np.cos(angles), "sin": np.sin(angles)}


def _rope_table_peer(inputs):
    """Compute what transformers does: frequencies and angles in float32."""
    import torch

    dim = inputs["dim"]
    frequency = 1.0 / inputs.get("base", 10000.0) ** (torch.arange(0, dim, 2).float() / dim)
    angles = torch.outer(torch.from_numpy(np.asarray(inputs["positions"])).float(), frequency)
    return {"cos": angles.cos().numpy(), "sin": angles.sin().numpy()}


def _table_probe(label, start, count, dim, quick=False, **options):
    return Probe(label, lambda r: {"positions": np.arange(start, start + count), "dim": dim, **options}, quick)


_ROPE_TABLE = [
    OpSpec(
        "rope_table",
        "forward",
        ("rope_table",),
        (
            _table_probe("positions 0 to 16", 0, 17, 64, quick=True),
            _table_probe("positions from 4095", 4095, 5, 96, quick=True),
            _table_probe("base 500000", 7, 33, 80, base=500000.0),
            _table_probe("dim 128", 1000, 3, 128),
        ),
        lambda ck, inputs: dict(zip(("cos", "sin"), ck.rope_table(**inputs), strict=True)),
        _rope_table_exact,
        _rope_table_peer,
        # Angles are double, so each value is rounded once: half an ulp of one.
        bound=lambda inputs: 2.0**-24,
    )
]


def _rope_formula(torch, x, cos, sin, positions=None, interleaved=False):
    if positions is not None:
        cos, sin = cos[positions.long()], sin[positions.long()]
        if positions.ndim == 2:  # [B,T,K] beside [B,H,T,D]
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat((turned, rest), -1)


def _rope_inputs(rng, B, H, T, D, *, start=1, width=None, positions=None, interleaved=False):
    width = width or D
    rows = start + T if positions is None else int(np.max(positions)) + 1
    angles = _angles(np.arange(rows), width, 10000.0)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    inputs = {"x": _normal(rng, B, H, T, D), "cos": cos, "sin": sin, "interleaved": interleaved}
    if positions is None:
        inputs |= {"cos": cos[start:], "sin": sin[start:]}
    else:
        inputs["positions"] = np.asarray(positions, np.int64)
    return inputs


_ROPE = _family(
    "rope",
    [
        Probe("half split, D 64", lambda r: _rope_inputs(r, 2, 3, 17, 64), quick=True),
        Probe("interleaved, D 80", lambda r: _rope_inputs(r, 2, 3, 5, 80, interleaved=True), quick=True),
        Probe("offset 4095, D 96", lambda r: _rope_inputs(r, 1, 5, 3, 96, start=4095)),
        Probe("partial width 32 of 80", lambda r: _rope_inputs(r, 2, 3, 7, 80, width=32)),
        Probe("partial, interleaved", lambda r: _rope_inputs(r, 2, 5, 7, 96, width=24, interleaved=True)),
        Probe("positions [T]", lambda r: _rope_inputs(r, 2, 3, 5, 32, positions=[9, 4, 4095, 7, 31])),
        Probe(
            "positions [B,T], D 128",
            lambda r: _rope_inputs(r, 2, 3, 5, 128, positions=[[1, 2, 3, 4, 5], [70, 71, 8, 9, 1000]]),
        ),
        Probe("D 34", lambda r: _rope_inputs(r, 3, 2, 19, 34, start=7)),
    ],
    _rope_formula,
)


# ---------------------------------------------------------------------------------------------------------------------
# Products


def _linear_inputs(rng, *shape, N, bias=False):
    inputs = {"x": _normal(rng, *shape), "weight": _normal(rng, N, shape[-1], scale=shape[-1] ** -0.5)}
    if bias:
        inputs["bias"] = _normal(rng, N, scale=0.3)
    return inputs


def _linear_formula(torch, x, weight, bias=None):
    return torch.nn.functional.linear(x, weight, bias)


_LINEAR = _family(
    "linear",
    [
        Probe("17 rows, 96 to 33, bias", lambda r: _linear_inputs(r, 17, 96, N=33, bias=True), quick=True),
        Probe("one row, 576 to 192", lambda r: _linear_inputs(r, 1, 576, N=192), quick=True),
        Probe("[2,3,1537] to 65", lambda r: _linear_inputs(r, 2, 3, 1537, N=65)),
        Probe("5 rows, 1 to 7", lambda r: _linear_inputs(r, 5, 1, N=7, bias=True)),
        Probe("3 rows, 80 to 1", lambda r: _linear_inputs(r, 3, 80, N=1)),
        Probe("130 rows, 64 to 100", lambda r: _linear_inputs(r, 130, 64, N=100)),
    ],
    _linear_formula,
    wrt=("x", "weight", "bias"),
)


def _matmul_inputs(rng, *lead, M, K, N, **options):
    a = (K, M) if options.get("transpose_a") else (M, K)
    b = (N, K) if options.get("transpose_b") else (K, N)
    return {"a": _normal(rng, *lead, *a), "b": _normal(rng, *lead, *b), **options}


def _matmul_formula(torch, a, b, transpose_a=False, transpose_b=False):
    return torch.matmul(a.mT if transpose_a else a, b.mT if transpose_b else b)


_MATMUL = _family(
    "matmul",
    [
        Probe("[2,3] of 5x17x33", lambda r: _matmul_inputs(r, 2, 3, M=5, K=17, N=33), quick=True),
        Probe("13x97x65", lambda r: _matmul_inputs(r, M=13, K=97, N=65)),
        Probe("transpose_b", lambda r: _matmul_inputs(r, 3, M=7, K=80, N=19, transpose_b=True)),
        Probe("transpose_a", lambda r: _matmul_inputs(r, 2, M=9, K=31, N=18, transpose_a=True)),
        Probe("both", lambda r: _matmul_inputs(r, M=6, K=257, N=11, transpose_a=True, transpose_b=True)),
    ],
    _matmul_formula,
    wrt=("a", "b"),
)


# ---------------------------------------------------------------------------------------------------------------------
# Softmax and attention


def _apply_masks(torch, scores, mask, keep):
    """Add a float mask, take away what a bool mask or ``keep`` forbids; return scores and the rows with no key left."""
    gone = torch.zeros(scores.shape, dtype=torch.bool)
    if keep is not None:
        gone = gone | ~keep
    if mask is not None and mask.dtype == torch.bool:
        gone = gone | ~mask
    elif mask is not None:
        gone = gone | (mask == _OUT)
        scores = scores + mask.masked_fill(mask == _OUT, 0.0)
    dead = gone.all(-1, keepdim=True)
    return scores.masked_fill(gone & ~dead, _OUT), dead


def _softmax_formula(torch, x, scale=1.0, mask=None, causal=False):
    keep = None
    if causal:
        T, S = x.shape[-2:]
        keep = torch.arange(S)[None, :] <= torch.arange(T)[:, None]
    scores, dead = _apply_masks(torch, x * scale, mask, keep)
    return torch.softmax(scores, -1).masked_fill(dead, 0.0)


def _softmax_mask(rng):
    mask = _normal(rng, 5, 33)
    mask[rng.random(mask.shape) < 0.3] = _OUT
    mask[3] = _OUT
    return {"x": _normal(rng, 2, 3, 5, 33), "mask": mask}


def _increasing(rng, *shape):
    """Scores that grow along the row: a running maximum must rescale at every block."""
    return (_normal(rng, *shape) + np.linspace(0, 40, shape[-1])).astype(np.float32)


_SOFTMAX = _family(
    "softmax",
    [
        Probe("7 rows of 97", lambda r: {"x": _normal(r, 7, 97, scale=3)}, quick=True),
        Probe("logits of ±200", lambda r: {"x": (200 * r.uniform(-1, 1, (5, 33))).astype(np.float32)}, quick=True),
        Probe("near ties at 200", lambda r: {"x": _normal(r, 5, 65) + np.float32(200)}),
        Probe("increasing", lambda r: {"x": _increasing(r, 3, 1031)}),
        Probe("float mask, one row empty", _softmax_mask),
        Probe("causal, scaled", lambda r: {"x": _normal(r, 3, 7, 19, scale=9), "scale": 0.125, "causal": True}),
        Probe("rows of 17", lambda r: {"x": _normal(r, 5, 17)}),
    ],
    _softmax_formula,
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
        scores = torch.cat((scores.masked_fill(dead, _OUT), column), -1)
        y = torch.softmax(scores, -1)[..., :-1] @ v
        dead = torch.zeros_like(dead)
    else:
        y = torch.softmax(scores, -1).masked_fill(dead, 0.0) @ v
    return (y, torch.logsumexp(scores, -1).masked_fill(dead[..., 0], _OUT)) if return_lse else y


def _attention_eager(torch, q, k, v, attn_mask=None, is_causal=False, scale=None, **rest):
    if any(value is not None and not (key == "q_offset" and isinstance(value, int)) for key, value in rest.items()):
        return _attention_formula(torch, q, k, v, attn_mask, is_causal, scale, **rest)
    if rest.get("q_offset", 0) or (is_causal and attn_mask is not None):
        return _attention_formula(torch, q, k, v, attn_mask, is_causal, scale, **rest)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _attention_inputs(rng, B, H, G, T, S, D, *, loud=1.0, grow=False, **options):
    inputs = {"q": _normal(rng, B, H, T, D, scale=loud), "k": _normal(rng, B, G, S, D), "v": _normal(rng, B, G, S, D)}
    if grow:  # keys along the query's direction, longer and longer
        direction = _normal(rng, 1, G, 1, D)
        inputs["q"] = (np.repeat(direction, H // G, 1) + _normal(rng, B, H, T, D, scale=0.1)).astype(np.float32)
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
        mask = _normal(rng, *shape)
        mask[..., 1:][rng.random(mask[..., 1:].shape) < 0.3] = _OUT
        return mask

    return make


def _sinks(heads):
    return lambda rng: _normal(rng, heads)


def _attention_probes():
    def probe(label, *sizes, quick=False, **options):
        extreme = options.get("loud", 1.0) > 20
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


_ATTENTION = _family(
    "scaled_dot_product_attention",
    _attention_probes(),
    _attention_formula,
    eager=_attention_eager,
    wrt=("q", "k", "v", "sinks"),
)


def _lse_probe(label, *sizes, quick=False, **options):
    extreme = options.get("loud", 1.0) > 20
    return Probe(label, lambda r: _attention_inputs(r, *sizes, return_lse=True, **options), quick, extreme)


# With return_lse=True there are two outputs, and two gradients come in.
_LSE = [
    dataclasses.replace(spec, what=f"{spec.what} +lse")
    for spec in _family(
        "scaled_dot_product_attention",
        [
            _lse_probe("GQA 3, causal", 2, 9, 3, 17, 17, 64, is_causal=True, quick=True),
            _lse_probe("scores of ±200", 3, 8, 2, 31, 65, 64, loud=60.0, is_causal=True, q_offset=34),
            _lse_probe("increasing scores", 1, 4, 2, 5, 300, 64, grow=True),
            _lse_probe("mask with an empty row", 2, 4, 2, 7, 18, 32, attn_mask=_dead_row_mask(7, 18)),
            _lse_probe("sinks and an empty row", 2, 6, 3, 7, 18, 32, attn_mask=_dead_row_mask(7, 18), sinks=_sinks(6)),
        ],
        _attention_formula,
        outputs=("y", "lse"),
        wrt=("q", "k", "v", "sinks"),
    )
]


# ---------------------------------------------------------------------------------------------------------------------
# Activations, loss, optimizer


def _silu_formula(torch, x):
    return x * torch.sigmoid(x)


def _silu_eager(torch, x):
    return torch.nn.functional.silu(x)


_SILU = _family(
    "silu",
    [
        Probe("of order one", lambda r: {"x": _normal(r, 5, 33, scale=3)}, quick=True),
        Probe("±200", lambda r: {"x": (200 * r.uniform(-1, 1, (7, 97))).astype(np.float32)}),
        Probe("-90 to -2", lambda r: {"x": r.uniform(-90, -2, (3, 1031)).astype(np.float32)}),
    ],
    _silu_formula,
    eager=_silu_eager,
)


def _swiglu_formula(torch, gate, up=None):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def _swiglu_eager(torch, gate, up=None):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


_SWIGLU = _family(
    "swiglu",
    [
        Probe("gate and up", lambda r: {"gate": _normal(r, 5, 33, scale=3), "up": _normal(r, 5, 33)}, quick=True),
        Probe("packed", lambda r: {"gate": _normal(r, 3, 7, 2 * 97, scale=2)}, quick=True),
        Probe("gate of ±200", lambda r: {"gate": _normal(r, 7, 577, scale=80), "up": _normal(r, 7, 577, scale=5)}),
    ],
    _swiglu_formula,
    eager=_swiglu_eager,
    wrt=("gate", "up"),
)


def _loss_inputs(rng, R, V, *, scale=3.0, ignored=0, **options):
    target = rng.integers(0, V, R)
    target[rng.choice(R, ignored, replace=False)] = options.get("ignore_index", -100)
    return {"logits": _normal(rng, R, V, scale=scale), "target": target, **options}


def _cross_entropy_formula(torch, logits, target, ignore_index=-100, reduction="mean"):
    counted = target != ignore_index
    chosen = logits.gather(-1, target.masked_fill(~counted, 0)[:, None])[:, 0]
    losses = (torch.logsumexp(logits, -1) - chosen).masked_fill(~counted, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / counted.sum() if reduction == "mean" else losses.sum()


def _cross_entropy_eager(torch, logits, target, ignore_index=-100, reduction="mean"):
    return torch.nn.functional.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)


_CROSS_ENTROPY = _family(
    "cross_entropy",
    [
        Probe("mean, three ignored", lambda r: _loss_inputs(r, 13, 49, ignored=3), quick=True),
        Probe("none", lambda r: _loss_inputs(r, 7, 97, ignored=2, reduction="none"), quick=True),
        Probe("sum, ignore_index 5", lambda r: _loss_inputs(r, 11, 33, ignored=4, ignore_index=5, reduction="sum")),
        Probe("logits of ±200", lambda r: _loss_inputs(r, 9, 65, scale=100.0, reduction="none")),
        Probe("4097 classes", lambda r: _loss_inputs(r, 5, 4097)),
        Probe("rows of 17", lambda r: _loss_inputs(r, 31, 17, reduction="sum")),
    ],
    _cross_entropy_formula,
    eager=_cross_entropy_eager,
    wrt=("logits",),
    outputs=("loss",),
)


def _sgd_inputs(rng, **options):
    return {"p0": _normal(rng, 7, 33), "grads": [_normal(rng, 7, 33, scale=0.5) for _ in range(3)], "options": options}


def _sgd_run(ck, inputs):
    params = {"weight": inputs["p0"].copy()}
    optimizer = ck.optim.SGD(params, **inputs["options"])
    for grad in inputs["grads"]:
        optimizer.step({"weight": grad.copy()})
    return {"weight": params["weight"]}


def _sgd_exact(inputs):
    """torch.optim.SGD, as its documentation writes it, in float64."""
    options = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False} | inputs["options"]
    p, buffer = inputs["p0"].astype(np.float64), None
    for grad in inputs["grads"]:
        g = grad.astype(np.float64) + options["weight_decay"] * p
        if options["momentum"]:
            buffer = g if buffer is None else options["momentum"] * buffer + (1 - options["dampening"]) * g
            g = g + options["momentum"] * buffer if options["nesterov"] else buffer
        p = p - options["lr"] * g
    return {"weight": p}


def _sgd_peer(inputs):
    import torch

    parameter = torch.nn.Parameter(torch.from_numpy(inputs["p0"].copy()))
    optimizer = torch.optim.SGD([parameter], foreach=False, **inputs["options"])
    for grad in inputs["grads"]:
        parameter.grad = torch.from_numpy(grad.copy())
        optimizer.step()
    return {"weight": parameter.detach().numpy()}


def _sgd_probe(label, quick=False, **options):
    return Probe(label, lambda r: _sgd_inputs(r, **options), quick)


_SGD = [
    OpSpec(
        "SGD",
        "3 steps",
        ("optim.SGD",),
        (
            _sgd_probe("plain", lr=0.1, quick=True),
            _sgd_probe("momentum", lr=0.03, momentum=0.9),
            _sgd_probe("nesterov, decay", lr=0.03, momentum=0.9, weight_decay=0.1, nesterov=True, quick=True),
            _sgd_probe("dampening, decay", lr=0.2, momentum=0.7, dampening=0.3, weight_decay=0.05),
        ),
        _sgd_run,
        _sgd_exact,
        _sgd_peer,
    )
]

#: Every spec, in the order in which a token meets the ops.
SPECS = tuple(
    _EMBEDDING + _RMS_NORM + _ADD + _ADD_RMS_NORM + _ROPE_TABLE + _ROPE + _LINEAR + _MATMUL + _SOFTMAX + _ATTENTION
    + _LSE + _SILU + _SWIGLU + _CROSS_ENTROPY + _SGD
)  # fmt: skip


def names():
    """Return the names of all ops that have a spec, in order."""
    return list(dict.fromkeys(spec.name for spec in SPECS))
