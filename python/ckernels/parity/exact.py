"""The exact side of a layer or a whole model: a decoder in functional PyTorch, in any floating dtype.

What the configuration does not say, the parameters do: a bias, a norm of queries, a gate take part where there is a
parameter of that name. So one set of equations covers every family of docs/models.md.

In float64 this is the *exact* party of the three-party rule. transformers run in float64 cannot be: its RMSNorm, its
rope tables and its eager softmax compute in float32 whatever the dtype of the module is. Here every operation is done
in the dtype asked for, with one exception that only adds precision: the angles of rope are computed in float64 before
cos and sin are rounded to that dtype.

The rope tables are the true ones. The kernels keep cos and sin as float32, rounded once from float64, and transformers
computes them in float32 from float32 angles. Both roundings count as errors, ours and the peer's alike, because both
are part of what a user of the model gets.

Nothing here shares code with the kernels, with ``ckernels.models`` or with transformers. ``docs/stages.md`` has the
equation and the shape of every stage. Letters: B batch, T tokens, C channels, H heads, G kv heads, D head size, F
feed-forward, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from ckernels.parity.settings import ConfigError, Settings

from .tape import Params, Run, Tape, as_numpy, d_name, gradients, wide  # noqa: F401 (d_name is for the peer)

LAYER_STAGES = (
    "ln1", "q", "k", "v", "q_rope", "k_rope", "scores", "probs", "attn", "proj", "residual1",
    "ln2", "gate", "up", "act", "down", "output",
)  # fmt: skip
"""The stages of one layer of a Llama, in the order in which they are computed."""

ALL_STAGES = (
    "ln1", "q", "k", "v", "q_norm", "k_norm", "q_rope", "k_rope", "scores", "probs", "attn", "proj", "post_attn_norm",
    "residual1", "ln2", "gate", "up", "act", "down", "post_mlp_norm", "output",
)  # fmt: skip
"""Those of any layer, with the ones that only some families have."""


def _settings(config):
    try:
        return Settings.of(config)
    except ConfigError as error:
        raise ConfigError(f"exact model: {error}") from None


def as_dtype(dtype):
    """The torch dtype of a name such as ``"float64"``; a torch dtype is returned as it is."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"exact model: {dtype!r} is not a floating dtype")
    return found


def _linear(x, params, name):
    """``y = x Wᵀ (+ b)``, W ``[out, in]``; a bias takes part where the model has one."""
    y = x @ params[name + ".weight"].mT
    return y + params[name + ".bias"] if name + ".bias" in params else y


def _rms_norm(x, weight, shape):
    """``y = (offset + w) x / sqrt(mean(x²) + eps)``, all of it in the dtype of x."""
    return (weight + shape.offset) * (x / (x.square().mean(-1, keepdim=True) + shape.eps).sqrt())


def _norm(x, params, name, shape):
    """The norm of a layer's input, of its MLP's, or of the whole: RMSNorm or LayerNorm."""
    weight = params[name + ".weight"]
    if shape.norm == "rms_norm":
        return _rms_norm(x, weight, shape)
    apart = x - x.mean(-1, keepdim=True)
    y = weight * (apart / (apart.square().mean(-1, keepdim=True) + shape.eps).sqrt())
    return y + params[name + ".bias"] if name + ".bias" in params else y


def _activation(x, name):
    """The functions of an MLP, as their formulas say."""
    import torch

    if name == "relu":
        return x.clamp_min(0)
    if name == "gelu":
        return x * (1 + torch.erf(x / 2**0.5)) / 2
    if name == "gelu_tanh":
        return x * (1 + torch.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2
    return x / (1 + (-(1.702 * x if name == "gelu_sigmoid" else x)).exp())


def _cap(x, limit):
    return x if limit is None else limit * (x / limit).tanh()


def rope_angles(positions, frequencies):
    """The rope angles ``position · frequency``, in float64.

    Parameters
    ----------
    positions : array of int
        ``[T]`` or ``[B, T]``.
    frequencies : float64 [D/2]
        ``base^(-2i/D)``, i = 0 … D/2 - 1, or what the config makes of them.

    Returns
    -------
    torch.Tensor
        ``[..., T, D/2]`` float64.
    """
    import torch

    return torch.as_tensor(np.asarray(positions)).to(torch.float64)[..., None] * torch.as_tensor(frequencies)


def _rope(x, cos, sin):
    """Rotate lane i with lane i + K (the half-split form): x ``[B,H,T,D]``, cos and sin ``[.., T, K]``; 2K on pass."""
    import torch

    pairs = cos.shape[-1]
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _tables(shape, batch, length, positions, dtype):
    """Cos and sin, ``[1 or B, 1, T, K]``, for each layer; nothing is turned where positions are learned."""
    import torch

    positions = np.arange(length) if positions is None else np.asarray(positions)
    if positions.shape not in ((length,), (batch, length)):
        raise ValueError(
            f"exact model: 'positions' of shape {positions.shape} does not fit [T] or [B, T], "
            f"where B={batch}, T={length}"
        )

    def table(index):
        frequencies, attention = shape.frequencies_of(index, int(positions.max(initial=0)) + 1)
        angles = rope_angles(positions, frequencies)
        angles = angles[None, None] if angles.ndim == 2 else angles[:, None]
        return (angles.cos() * attention).to(dtype), (angles.sin() * attention).to(dtype)

    if not shape.width:  # positions are learned
        return [(torch.zeros(1, 1, length, 0, dtype=dtype),) * 2] * shape.layers
    made = {}  # one for all layers with a window, one for the others
    for index in range(shape.layers):
        if (shape.window_of(index) is None) not in made:
            made[shape.window_of(index) is None] = table(index)
    return [made[shape.window_of(index) is None] for index in range(shape.layers)]


def _visible(length, window):
    """Which key a query sees, ``[T, T]``."""
    import torch

    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def _attention(shape, q, k, v, window, sinks, put):
    """Causal attention with grouped keys: head h reads kv head h // (H / G); q ``[B,H,T,D]``, k and v ``[B,G,T,D]``."""
    import torch

    group = shape.heads // shape.kv_heads
    keys, values = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = put("scores", _cap(q @ keys.mT * shape.scale, shape.softcap))
    visible = scores.masked_fill(~_visible(q.shape[-2], window), float("-inf"))
    # Written out, so that the arithmetic is the equation's: subtract the row's maximum, exp, divide by the sum.
    top = visible.detach().amax(-1, keepdim=True)
    if sinks is not None:
        top = torch.maximum(top, sinks.detach()[:, None, None])
    weights = (visible - top).exp()
    total = weights.sum(-1, keepdim=True)
    probs = put("probs", weights / (total if sinks is None else total + (sinks[:, None, None] - top).exp()))
    return put("attn", probs @ values)


def _branch(x, params, prefix, name, shape, put, stage):
    """What a residual connection adds: normed first where the layer has four norms."""
    if prefix + "pre_feedforward_layernorm.weight" not in params:
        return x
    return put(stage, _rms_norm(x, params[f"{prefix}{name}.weight"], shape))


def _mlp(shape, params, prefix, x, put):
    if prefix + "mlp.gate_proj.weight" in params:
        gate = put("gate", _linear(x, params, prefix + "mlp.gate_proj"))
        up = put("up", _linear(x, params, prefix + "mlp.up_proj"))
        act = put("act", _activation(gate, shape.activation) * up)
    else:
        act = put("act", _activation(put("up", _linear(x, params, prefix + "mlp.up_proj")), shape.activation))
    return put("down", _linear(act, params, prefix + "mlp.down_proj"))


def _layer(shape, params, prefix, x, tables, put, index=0):
    """One decoder layer, ``[B,T,C]`` to ``[B,T,C]``; `put` names a stage and hands it on."""
    batch, length, _ = x.shape
    at = prefix + "self_attn."

    def heads(name, count):
        flat = _linear(ln1, params, f"{at}{name}_proj")
        return put(name, flat.reshape(batch, length, count, shape.head_dim).transpose(1, 2))

    def normed(name, of):
        weight = f"{at}{name}.weight"
        return put(name, _rms_norm(of, params[weight], shape)) if weight in params else of

    ln1 = put("ln1", _norm(x, params, prefix + "input_layernorm", shape))
    q, k, v = heads("q", shape.heads), heads("k", shape.kv_heads), heads("v", shape.kv_heads)
    q, k = normed("q_norm", q), normed("k_norm", k)
    q, k = put("q_rope", _rope(q, *tables)), put("k_rope", _rope(k, *tables))
    sinks = params[at + "sinks"] if at + "sinks" in params else None
    attn = _attention(shape, q, k, v, shape.window_of(index), sinks, put)
    joined = attn.transpose(1, 2).reshape(batch, length, shape.heads * shape.head_dim)
    proj = put("proj", _linear(joined, params, at + "o_proj"))
    attended = _branch(proj, params, prefix, "post_attention_layernorm", shape, put, "post_attn_norm")
    residual1 = put("residual1", x + attended)
    second = prefix + "pre_feedforward_layernorm"
    second = second if second + ".weight" in params else prefix + "post_attention_layernorm"
    start = x if shape.parallel else residual1
    ln2 = put("ln2", _norm(start, params, second, shape)) if second + ".weight" in params else ln1
    down = _mlp(shape, params, prefix, ln2, put)
    behind = _branch(down, params, prefix, "post_feedforward_layernorm", shape, put, "post_mlp_norm")
    return put("output", residual1 + behind)


def _embedded(shape, params, ids):
    """The rows of the embedding, scaled, and the rows of the positions where they are learned."""
    x = params["model.embed_tokens.weight"][ids]
    if shape.embed_scale != 1:
        x = x * params.stored(shape.embed_scale, "model.embed_tokens.weight")
    places = "model.embed_positions.weight"
    return x + params[places][: ids.shape[-1]] if places in params else x


def _logits_of(shape, params, x):
    head = params["lm_head.weight"] if "lm_head.weight" in params else params["model.embed_tokens.weight"]
    return _cap(x @ head.mT, shape.final_softcap)


def cross_entropy(logits, targets, *, ignore_index=-100, reduction="mean"):
    """``lse(logits) - logits[target]`` over the rows whose target is not `ignore_index`.

    Parameters
    ----------
    logits : torch.Tensor
        ``[..., V]``.
    targets : torch.Tensor
        Integers, the leading shape of `logits`.
    ignore_index : int
        Rows with this target take no part.
    reduction : {"mean", "sum"}
        "mean" divides by the number of counted rows: NaN, with zero gradient, where there is none.

    Returns
    -------
    torch.Tensor
        A scalar of the dtype of `logits`.
    """
    import torch

    if reduction not in ("mean", "sum"):
        raise ValueError(f"exact model: 'reduction' is {reduction!r}; it may be 'mean' or 'sum'")
    counted = targets != ignore_index
    rows = logits[counted]
    picked = rows.gather(-1, targets[counted][:, None])[:, 0]
    total = (torch.logsumexp(rows, dim=-1) - picked).sum()
    return total / counted.sum() if reduction == "mean" else total


def layer(config, params, x, *, positions=None, dy=None, dtype="float64", index=0):
    """One decoder layer, forward and, where `dy` is given, backward.

    Parameters
    ----------
    config : object or dict
        Fields named as in a Hugging Face config.
    params : dict of str to array
        Names relative to the layer: ``self_attn.q_proj.weight``, …
    x : array
        ``[B, T, C]``.
    positions : array of int, optional
        ``[T]`` or ``[B, T]``; 0 … T-1 unless given. Rope alone uses them; what a query sees is decided by its index.
    dy : array, optional
        The gradient of the output, ``[B, T, C]``.
    dtype : str or torch.dtype
        float64 is *exact*; float32 gives a peer with these very equations.
    index : int
        Which layer of the model it is, where they differ.

    Returns
    -------
    Run
        All stages; with `dy` also ``d_<stage>``, the gradient of every parameter and ``dx``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> config = dict(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, rms_norm_eps=1e-5)
    >>> sizes = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (8, 8), "self_attn.v_proj": (8, 8),
    ...          "self_attn.o_proj": (8, 8), "mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12),
    ...          "input_layernorm": (8,), "post_attention_layernorm": (8,)}
    >>> params = {name + ".weight": rng.standard_normal(size) for name, size in sizes.items()}
    >>> run = layer(config, params, rng.standard_normal((1, 3, 8)), dy=np.ones((1, 3, 8)))
    >>> run.stages["scores"].shape, run.dx.shape
    ((1, 2, 3, 3), (1, 3, 8))
    """
    import torch

    shape, dtype = _settings(config), as_dtype(dtype)
    start = torch.tensor(wide(np.asarray(x))).to(dtype)
    tape, run = Tape(), Run()
    with torch.set_grad_enabled(dy is not None):
        held = Params(params, dtype, gradients=dy is not None)
        start.requires_grad_(dy is not None)
        tables = _tables(shape, start.shape[0], start.shape[1], positions, dtype)
        output = _layer(shape, held, "", start, tables[index], tape.put, index)
    run.stages = tape.arrays()
    if dy is not None:
        upstream = torch.tensor(wide(np.asarray(dy))).to(dtype)
        stage_grads, run.grads, (run.dx,) = gradients(output, upstream, tape, held, [start])
        run.stages.update(stage_grads)
    return run


def model(config, params, ids, targets=None, *, dtype="float64", reduction="mean"):
    """A whole model with every stage and, where `targets` are given, every gradient.

    Parameters
    ----------
    config : object or dict
        Fields named as in a Hugging Face config.
    params : dict of str to array
        Names of a Hugging Face ``state_dict``; without ``lm_head.weight`` the head is tied to the embedding.
    ids : array of int
        ``[B, T]`` or ``[T]``.
    targets : array of int, optional
        The shape of `ids`; -100 is ignored. ``targets[b, t]`` is the label of position t.
    dtype : str or torch.dtype
        float64 is *exact*.
    reduction : {"mean", "sum"}
        Of the loss.

    Returns
    -------
    Run
        ``embedding``, ``layers.<i>.<stage>``, ``final_norm``, ``logits`` and, with targets, ``loss`` and the gradients
        (``d_embedding``, ``layers.<i>.d_<stage>``, …). The batch axis is there even for ids ``[T]``.
    """
    import torch

    shape, dtype = _settings(config), as_dtype(dtype)
    ids = torch.as_tensor(np.atleast_2d(np.asarray(ids))).long()
    if targets is not None:
        targets = torch.as_tensor(np.atleast_2d(np.asarray(targets))).long()
        if targets.shape != ids.shape:
            raise ValueError(
                f"exact model: 'targets' of shape {tuple(targets.shape)} does not fit 'ids' of shape {tuple(ids.shape)}"
            )
    tape, run = Tape(), Run()
    with torch.set_grad_enabled(targets is not None):
        held = Params(params, dtype, gradients=targets is not None)
        x = tape.put("embedding", _embedded(shape, held, ids))
        tables = _tables(shape, *ids.shape, None, dtype)
        for index in range(shape.layers):
            tape.prefix = f"layers.{index}."
            x = _layer(shape, held, f"model.layers.{index}.", x, tables[index], tape.put, index)
        tape.prefix = ""
        x = tape.put("final_norm", _norm(x, held, "model.norm", shape))
        logits = tape.put("logits", _logits_of(shape, held, x))
        if targets is not None:
            loss = tape.put("loss", cross_entropy(logits, targets, reduction=reduction))
    run.stages = tape.arrays()
    if targets is not None:
        stage_grads, run.grads, _ = gradients(loss, None, tape, held)
        run.stages.update(stage_grads)
    return run


def logits(config, params, texts, *, dtype="float64", progress=None):
    """The logits of several texts, layer by layer: one layer's parameters in the wide dtype at a time, no stage kept.

    Parameters
    ----------
    config, params, dtype
        As in `model`. `params` may be anything with ``in`` and ``[name]``.
    texts : list of arrays of int
        Ids, each ``[T]`` with a T of its own.
    progress : callable, optional
        Called with the number of finished layers.

    Returns
    -------
    list of numpy.ndarray
        ``[T, V]`` for each text.
    """
    import torch

    shape, dtype = _settings(config), as_dtype(dtype)
    whole = [torch.as_tensor(np.asarray(ids)).long()[None] for ids in texts]
    with torch.no_grad():
        held = Params(params, dtype, gradients=False)
        rows = [_embedded(shape, held, ids) for ids in whole]
        tables = [_tables(shape, *ids.shape, None, dtype) for ids in whole]
        for index in range(shape.layers):
            prefix = f"model.layers.{index}."
            rows = [
                _layer(shape, held, prefix, x, turn[index], lambda name, tensor: tensor, index)
                for x, turn in zip(rows, tables, strict=True)
            ]
            held.release(prefix)
            if progress is not None:
                progress(index + 1)
        return [as_numpy(_logits_of(shape, held, _norm(x, held, "model.norm", shape)))[0] for x in rows]
