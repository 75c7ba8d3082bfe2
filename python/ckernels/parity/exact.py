"""The exact side of a layer or a whole model: a decoder-only Llama in functional PyTorch, in any floating dtype.

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

from dataclasses import dataclass, field

import numpy as np

from ckernels.parity.frequencies import exact_frequencies

LAYER_STAGES = (
    "ln1", "q", "k", "v", "q_rope", "k_rope", "scores", "probs", "attn", "proj", "residual1",
    "ln2", "gate", "up", "act", "down", "output",
)  # fmt: skip
"""The stages of one decoder layer, in the order in which they are computed."""


@dataclass(frozen=True)
class Shape:
    """What the equations need to know of a Llama configuration.

    Parameters
    ----------
    layers, hidden, heads, kv_heads, head_dim : int
        Number of decoder layers, C, H, G and D.
    eps : float
        The constant inside the root of RMSNorm.
    base : float
        The base of the rope angles (``rope_theta``).
    rope : dict
        How they are stretched: ``rope_parameters``, or ``rope_scaling``, of the config.
    trained : int or None
        ``max_position_embeddings``.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    base: float
    rope: dict = field(default_factory=dict, hash=False)
    trained: int | None = None

    @classmethod
    def of(cls, config) -> Shape:
        """Read a configuration whose fields are named as in a Hugging Face config.

        Parameters
        ----------
        config : object or dict
            ``ckernels.models.Config``, a ``LlamaConfig`` of transformers (4 or 5), or a dict.

        Returns
        -------
        Shape

        Raises
        ------
        ValueError
            A field is missing, or asks for arithmetic that these equations do not have.
        """
        get = config.get if isinstance(config, dict) else lambda name, default=None: getattr(config, name, default)

        def need(name):
            if get(name) is None:
                raise ValueError(f"exact model: the config has no '{name}'")
            return get(name)

        if get("hidden_act", "silu") not in ("silu", "swish"):
            raise ValueError(f"exact model: 'hidden_act' is {get('hidden_act')!r}; only 'silu' is known")
        heads = int(need("num_attention_heads"))
        kv_heads = int(get("num_key_value_heads") or heads)
        if heads % kv_heads:
            raise ValueError(
                f"exact model: 'num_attention_heads' {heads} is not a multiple of 'num_key_value_heads' {kv_heads}"
            )
        shape = cls(
            layers=int(need("num_hidden_layers")),
            hidden=int(need("hidden_size")),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(get("head_dim") or need("hidden_size") // heads),
            eps=float(need("rms_norm_eps")),
            base=_rope_base(get),
            rope=dict(get("rope_parameters") or get("rope_scaling") or {}),
            trained=get("max_position_embeddings"),
        )
        shape.frequencies(1)  # or a ValueError that names what is not known
        return shape

    def frequencies(self, length):
        """Frequencies, float64 [D/2], for a sequence of so many tokens, and the factor of cosines and sines."""
        try:
            return exact_frequencies(self.head_dim, self.base, self.rope, length, self.trained)
        except ValueError as error:
            raise ValueError(f"exact model: {error}") from None


def _rope_base(get) -> float:
    """``rope_theta``, at the top level (transformers 4) or inside ``rope_parameters`` (transformers 5)."""
    base = dict(get("rope_parameters") or {}).get("rope_theta", get("rope_theta"))
    return 10000.0 if base is None else float(base)


@dataclass
class Run:
    """What one run of the exact model left behind.

    Attributes
    ----------
    stages : dict of str to numpy.ndarray
        Every stage in the order of computation; ``d_<stage>`` follows where gradients were asked for.
    grads : dict of str to numpy.ndarray
        The gradient of every parameter, keyed like the parameters.
    dx : numpy.ndarray or None
        The gradient of the input of a layer.
    """

    stages: dict = field(default_factory=dict)
    grads: dict = field(default_factory=dict)
    dx: np.ndarray | None = None


def as_dtype(dtype):
    """The torch dtype of a name such as ``"float64"``; a torch dtype is returned as it is."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"exact model: {dtype!r} is not a floating dtype")
    return found


class _Params:
    """Parameters by name, converted to one dtype when they are first used and kept until they are released."""

    def __init__(self, params, dtype, gradients):
        self.source, self.dtype, self.gradients, self.used = params, dtype, gradients, {}

    def __contains__(self, name):
        return name in self.source

    def __getitem__(self, name):
        import torch

        if name not in self.used:
            if name not in self.source:
                raise ValueError(f"exact model: the parameter '{name}' is missing")
            value = self.source[name]
            tensor = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(np.asarray(value))
            tensor = tensor.to(self.dtype)
            # With gradients a copy even where the dtype is right already: the caller's tensor is no leaf of this graph.
            self.used[name] = tensor.clone().requires_grad_() if self.gradients else tensor
        return self.used[name]

    def release(self, prefix):
        """Forget the converted parameters whose names begin like this."""
        for name in [name for name in self.used if name.startswith(prefix)]:
            del self.used[name]


def _linear(x, params, name):
    """``y = x Wᵀ (+ b)``, W ``[out, in]``; a bias takes part where the model has one."""
    y = x @ params[name + ".weight"].mT
    return y + params[name + ".bias"] if name + ".bias" in params else y


def _rms_norm(x, weight, eps):
    """``y = w x / sqrt(mean(x²) + eps)``, all of it in the dtype of x."""
    return weight * (x / (x.square().mean(-1, keepdim=True) + eps).sqrt())


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
    """Rotate lane i with lane i + D/2 (the half-split form): x ``[B,H,T,D]``, cos and sin ``[.., T, D/2]``."""
    import torch

    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _tables(shape, batch, length, positions, dtype):
    """Cos and sin, ``[1 or B, 1, T, D/2]``."""
    positions = np.arange(length) if positions is None else np.asarray(positions)
    if positions.shape not in ((length,), (batch, length)):
        raise ValueError(
            f"exact model: 'positions' of shape {positions.shape} does not fit [T] or [B, T], "
            f"where B={batch}, T={length}"
        )
    frequencies, attention = shape.frequencies(int(positions.max(initial=0)) + 1)
    angles = rope_angles(positions, frequencies)
    angles = angles[None, None] if angles.ndim == 2 else angles[:, None]
    return (angles.cos() * attention).to(dtype), (angles.sin() * attention).to(dtype)


def _attention(shape, q, k, v, put):
    """Causal attention with grouped keys: head h reads kv head h // (H / G); q ``[B,H,T,D]``, k and v ``[B,G,T,D]``."""
    import torch

    group = shape.heads // shape.kv_heads
    length = q.shape[-2]
    keys, values = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = put("scores", q @ keys.mT / shape.head_dim**0.5)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    visible = scores.masked_fill(hidden, float("-inf"))
    # Written out, so that the arithmetic is the equation's: subtract the row's maximum, exp, divide by the sum.
    weights = (visible - visible.detach().amax(-1, keepdim=True)).exp()
    probs = put("probs", weights / weights.sum(-1, keepdim=True))
    return put("attn", probs @ values)


def _layer(shape, params, prefix, x, tables, put):
    """One decoder layer, ``[B,T,C]`` to ``[B,T,C]``; `put` names a stage and hands it on."""
    batch, length, _ = x.shape

    def heads(name, count):
        flat = _linear(ln1, params, f"{prefix}self_attn.{name}_proj")
        return flat.reshape(batch, length, count, shape.head_dim).transpose(1, 2)

    ln1 = put("ln1", _rms_norm(x, params[prefix + "input_layernorm.weight"], shape.eps))
    q = put("q", heads("q", shape.heads))
    k = put("k", heads("k", shape.kv_heads))
    v = put("v", heads("v", shape.kv_heads))
    q_rope = put("q_rope", _rope(q, *tables))
    k_rope = put("k_rope", _rope(k, *tables))
    attn = _attention(shape, q_rope, k_rope, v, put)
    joined = attn.transpose(1, 2).reshape(batch, length, shape.heads * shape.head_dim)
    proj = put("proj", _linear(joined, params, prefix + "self_attn.o_proj"))
    residual1 = put("residual1", x + proj)
    ln2 = put("ln2", _rms_norm(residual1, params[prefix + "post_attention_layernorm.weight"], shape.eps))
    gate = put("gate", _linear(ln2, params, prefix + "mlp.gate_proj"))
    up = put("up", _linear(ln2, params, prefix + "mlp.up_proj"))
    act = put("act", gate / (1 + (-gate).exp()) * up)
    down = put("down", _linear(act, params, prefix + "mlp.down_proj"))
    return put("output", residual1 + down)


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


class _Tape:
    """Keeps tensors under their stage names and asks autograd for their gradients."""

    def __init__(self):
        self.tensors, self.prefix = {}, ""

    def put(self, name, tensor):
        self.tensors[self.prefix + name] = tensor
        return tensor

    def arrays(self):
        return {name: _numpy(tensor) for name, tensor in self.tensors.items()}


def _numpy(tensor):
    return np.array(tensor.detach().numpy(), order="C")


def _gradients(of, upstream, tape, params, extra=()):
    """The gradients of stages, parameters and `extra` tensors, without touching anybody's ``.grad``."""
    import torch

    stages = {name: tensor for name, tensor in tape.tensors.items() if name != "loss"}
    wanted = [*stages.values(), *params.used.values(), *extra]
    found = torch.autograd.grad(of, wanted, upstream)
    stage_grads = {d_name(name): _numpy(grad) for name, grad in zip(stages, found, strict=False)}
    rest = found[len(stages) :]
    weight_grads = {name: _numpy(grad) for name, grad in zip(params.used, rest, strict=False)}
    return stage_grads, weight_grads, [_numpy(grad) for grad in rest[len(weight_grads) :]]


def d_name(stage):
    """The name of the gradient of a stage: ``layers.0.q`` becomes ``layers.0.d_q``, ``logits`` becomes ``d_logits``."""
    head, dot, tail = stage.rpartition(".")
    return f"{head}{dot}d_{tail}"


def layer(config, params, x, *, positions=None, dy=None, dtype="float64"):
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

    shape, dtype = Shape.of(config), as_dtype(dtype)
    start = torch.tensor(np.asarray(x)).to(dtype)
    tape, run = _Tape(), Run()
    with torch.set_grad_enabled(dy is not None):
        held = _Params(params, dtype, gradients=dy is not None)
        start.requires_grad_(dy is not None)
        tables = _tables(shape, start.shape[0], start.shape[1], positions, dtype)
        output = _layer(shape, held, "", start, tables, tape.put)
    run.stages = tape.arrays()
    if dy is not None:
        upstream = torch.tensor(np.asarray(dy)).to(dtype)
        stage_grads, run.grads, (run.dx,) = _gradients(output, upstream, tape, held, [start])
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

    shape, dtype = Shape.of(config), as_dtype(dtype)
    ids = torch.as_tensor(np.atleast_2d(np.asarray(ids))).long()
    if targets is not None:
        targets = torch.as_tensor(np.atleast_2d(np.asarray(targets))).long()
        if targets.shape != ids.shape:
            raise ValueError(
                f"exact model: 'targets' of shape {tuple(targets.shape)} does not fit 'ids' of shape {tuple(ids.shape)}"
            )
    tape, run = _Tape(), Run()
    with torch.set_grad_enabled(targets is not None):
        held = _Params(params, dtype, gradients=targets is not None)
        table = held["model.embed_tokens.weight"]
        x = tape.put("embedding", table[ids])
        tables = _tables(shape, *ids.shape, None, dtype)
        for index in range(shape.layers):
            tape.prefix = f"layers.{index}."
            x = _layer(shape, held, f"model.layers.{index}.", x, tables, tape.put)
        tape.prefix = ""
        x = tape.put("final_norm", _rms_norm(x, held["model.norm.weight"], shape.eps))
        head = held["lm_head.weight"] if "lm_head.weight" in held else table
        logits = tape.put("logits", x @ head.mT)
        if targets is not None:
            loss = tape.put("loss", cross_entropy(logits, targets, reduction=reduction))
    run.stages = tape.arrays()
    if targets is not None:
        stage_grads, run.grads, _ = _gradients(loss, None, tape, held)
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

    shape, dtype = Shape.of(config), as_dtype(dtype)
    whole = [torch.as_tensor(np.asarray(ids)).long()[None] for ids in texts]
    with torch.no_grad():
        held = _Params(params, dtype, gradients=False)
        table = held["model.embed_tokens.weight"]
        rows = [table[ids] for ids in whole]
        tables = [_tables(shape, *ids.shape, None, dtype) for ids in whole]
        for index in range(shape.layers):
            prefix = f"model.layers.{index}."
            rows = [
                _layer(shape, held, prefix, x, turn, lambda name, tensor: tensor)
                for x, turn in zip(rows, tables, strict=True)
            ]
            held.release(prefix)
            if progress is not None:
                progress(index + 1)
        head = held["lm_head.weight"] if "lm_head.weight" in held else table
        return [_numpy(_rms_norm(x, held["model.norm.weight"], shape.eps) @ head.mT)[0] for x in rows]
