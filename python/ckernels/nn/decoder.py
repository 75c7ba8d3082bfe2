"""One decoder layer of the Llama family: forward, backward and decode, each one C call."""
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.kv.kv_cache import KVCache, cancelled
from ckernels.kv.paged import PagedBatch
from ckernels.ops.rope import rope_table
from ckernels.ops.rope_scaling import frequencies_depend_on
from ckernels.runtime import empty

__all__ = ["DecoderLayer"]

STAGES = ("ln1", "q", "k", "v", "q_rope", "k_rope", "scores", "probs", "attn", "proj", "residual1", "ln2", "gate", "up",
          "act", "down", "output")

# Parameters in the order in which the C layer takes them.
NAMES = ("input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
         "self_attn.o_proj.weight", "post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
         "mlp.down_proj.weight")

# Stages that are heads in tokens [B,T,H,D] in memory and [B,H,T,D] to the reader.
_HEADS = ("q", "k", "v", "q_rope", "k_rope", "attn")


class Context(NamedTuple):
    """What backward needs of a forward pass; refers to ``x``: do not overwrite it before."""

    x: np.ndarray
    rstd1: np.ndarray
    ln1: np.ndarray
    v: np.ndarray
    q_rope: np.ndarray
    k_rope: np.ndarray
    max: np.ndarray
    sum: np.ndarray
    attn: np.ndarray
    residual1: np.ndarray
    rstd2: np.ndarray
    ln2: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    act: np.ndarray
    positions: np.ndarray | None


def _padded(shape):
    """Return the elements that an array takes in a block: whole lines."""
    return (math.prod(shape) + 15) // 16 * 16


def _carve(shapes, other=0):
    """Return a float32 array of each shape by name, all of them parts of one block: the arena then keeps few of them.

    What a layer keeps for backward and its gradients are made by this: of two blocks of about one size the smaller is
    made as large as the ``other``, so that the gradients of a layer take the place of what the layer above it kept.
    """
    total = sum(map(_padded, shapes.values()))
    block = empty((other if total < other <= 1.5 * total else total,))
    starts, at = {}, 0
    for name, shape in shapes.items():
        starts[name], at = at, at + _padded(shape)
    return {name: block[starts[name] :][: math.prod(shape)].reshape(shape) for name, shape in shapes.items()}


def _as_read(name, array):
    """Return a stage as docs/stages.md describes it: a copy of its own, heads before tokens."""
    plain = name.removeprefix("d_")
    return np.ascontiguousarray(array.transpose(0, 2, 1, 3)) if plain in _HEADS else array.copy()


def _as_numpy(name, array):
    try:
        return array if isinstance(array, np.ndarray) else np.from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"DecoderLayer(): '{name}' does not lend its memory as an array: {error}") from None


class DecoderLayer:
    """Norm, attention and gated MLP with their residual connections.

    Parameters
    ----------
    config : ckernels.models.Config
    params : dict
        Hugging Face names relative to the layer ("self_attn.q_proj.weight", ...) to float32 arrays, contiguous, each
        [out, in].  They are not copied: what an optimizer writes into them, the next call sees.

    Raises
    ------
    ValueError
        A parameter is missing, left over, or of another shape; the message names it.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> config = ck.models.configs["tiny"]
    >>> model = ck.models.Model(config, seed=0)
    >>> prefix = "model.layers.0."
    >>> layer = ck.nn.DecoderLayer(config, {name[len(prefix):]: array for name, array in model.params.items()
    ...                                     if name.startswith(prefix)})
    >>> y, ctx = layer.forward(np.ones((1, 3, config.hidden_size), "f4"))
    >>> dx, grads = layer.backward(y, ctx)
    >>> y.shape, dx.shape, grads["mlp.up_proj.weight"].shape == layer.params["mlp.up_proj.weight"].shape
    ((1, 3, 64), (1, 3, 64), True)
    """

    stages = STAGES

    def __init__(self, config, params):
        if not hasattr(config, "hidden_size"):
            raise TypeError(f"DecoderLayer(): 'config' must be a Config, not {type(config).__name__}")
        self.config = config
        C, F, D = config.hidden_size, config.intermediate_size, config.head_dim
        H, G = config.num_attention_heads, config.num_key_value_heads
        flat = {"input_layernorm.weight": (C,), "self_attn.q_proj.weight": (H * D, C),
                "self_attn.k_proj.weight": (G * D, C), "self_attn.v_proj.weight": (G * D, C),
                "self_attn.o_proj.weight": (C, H * D), "post_attention_layernorm.weight": (C,),
                "mlp.gate_proj.weight": (F, C), "mlp.up_proj.weight": (F, C), "mlp.down_proj.weight": (C, F)}
        self._shapes = {**flat, "self_attn.q_proj.weight": (H, D, C), "self_attn.k_proj.weight": (G, D, C),
                        "self_attn.v_proj.weight": (G, D, C), "self_attn.o_proj.weight": (C, H, D)}
        if not isinstance(params, Mapping):
            raise TypeError(f"DecoderLayer(): 'params' must be a dict of arrays, not {type(params).__name__}")
        if missing := [name for name in NAMES if name not in params]:
            raise ValueError(f"DecoderLayer(): 'params' misses {', '.join(missing)}")
        if left := [name for name in params if name not in flat]:
            raise ValueError(f"DecoderLayer(): 'params' has no place for {', '.join(map(str, left))}")
        for name in NAMES:
            if np.shape(params[name]) != flat[name]:
                raise ValueError(f"DecoderLayer(): '{name}' of shape {tuple(np.shape(params[name]))} does not fit "
                                 f"{flat[name]}")
        self.params = {name: _as_numpy(name, params[name]) for name in NAMES}
        for name, array in self.params.items():
            if array.dtype != np.float32:
                raise TypeError(f"DecoderLayer(): '{name}' must be float32, not {array.dtype}")
            if not array.flags.c_contiguous:
                raise ValueError(f"DecoderLayer(): '{name}' must be contiguous: pass numpy.ascontiguousarray of it")
        self._table = self._needs = None

    def _weights(self):
        """Return the parameters as the C layer takes them: views with heads as an axis."""
        return [self.params[name].reshape(self._shapes[name]) for name in NAMES]

    def table(self, length):
        """Return the rotary table (cos, sin) for ``length`` tokens, each float32 [at least ``length``, D/2].

        It is made once and grown by doubling; anew for each length where the frequencies depend on it.
        """
        rule = getattr(self.config, "rope_rule", None)
        needs = frequencies_depend_on(rule, length)
        if self._table is None or len(self._table[0]) < length or needs != self._needs:
            rows = max(64, 1 << max(length - 1, 1).bit_length())
            try:
                positions = np.arange(rows)
            except ValueError:  # NumPy's word for more than there are addresses
                raise MemoryError(f"no memory for {rows} positions") from None
            self._table = rope_table(positions, self.config.head_dim, self.config.rope_theta, scaling=rule,
                                     length=max(length, 1))
            self._needs = needs
        return self._table

    def share_table(self, other):
        """Use the rotary table of another layer of the same model instead of one's own."""
        self._table, self._needs = other._table, other._needs

    def _angles(self, positions, T):
        """Return the rows of the table that the tokens need: the first T, or all up to the last position."""
        if positions is None:
            return tuple(part[:T] for part in self.table(T))
        last = int(positions.max(initial=0))
        try:
            return self.table(last + 1)
        except MemoryError:
            raise MemoryError(f"DecoderLayer.forward(): no memory for the angles up to position {last}") from None

    @staticmethod
    def _place(positions, B, T):
        """Return positions as int64 [B,T], or None."""
        if positions is None:
            return None
        positions = np.asarray(positions)
        if positions.dtype.kind not in "iu":
            raise TypeError(f"DecoderLayer.forward(): 'positions' must be integers, not {positions.dtype}")
        if positions.shape not in ((T,), (B, T)):
            raise ValueError(f"DecoderLayer.forward(): 'positions' of shape {positions.shape} does not fit [T] or "
                             f"[B, T], where B={B}, T={T}")
        if positions.size and positions.min() < 0:
            raise IndexError(f"DecoderLayer.forward(): 'positions' holds {positions.min()}")
        return np.ascontiguousarray(np.broadcast_to(positions, (B, T)), np.int64)

    def _sizes(self, x, who):
        if not hasattr(x, "shape"):
            raise TypeError(f"DecoderLayer.{who}(): 'x' must be a NumPy array or lend its memory by __dlpack__, "
                            f"not {type(x)!r}")
        shape = tuple(x.shape)
        if len(shape) != 3 or shape[2] != self.config.hidden_size:
            raise ValueError(f"DecoderLayer.{who}(): 'x' of shape {shape} does not fit [B, T, C], where "
                             f"C={self.config.hidden_size}")
        return shape[:2]

    def forward(self, x, positions=None, *, stages=None, keep=True, out=None):
        """Run the layer over whole sequences.

        Parameters
        ----------
        x : float32 [B, T, C]
        positions : integers [T] or [B, T], optional
            Where each token stands, for its rotation; 0 .. T-1 by default.  The causal mask goes by index.
        stages : dict, optional
            Filled with a copy of every stage by name (``layer.stages``; shapes in docs/stages.md).  The bits of the
            result do not depend on it.
        keep : bool
            Whether backward will follow; without, ``ctx`` is None and less memory is used.
        out : float32 [B, T, C], optional

        Returns
        -------
        y : float32 [B, T, C]
        ctx : Context or None
        """
        B, T = self._sizes(x, "forward")
        C, F, D = self.config.hidden_size, self.config.intermediate_size, self.config.head_dim
        H, G = self.config.num_attention_heads, self.config.num_key_value_heads
        positions = self._place(positions, B, T)
        want = keep or stages is not None
        shapes = {"rstd1": (B, T), "ln1": (B, T, C), "q": (B, T, H, D), "k": (B, T, G, D), "v": (B, T, G, D),
                  "q_rope": (B, T, H, D), "k_rope": (B, T, G, D), "scores": (B, H, T, T), "probs": (B, H, T, T),
                  "max": (B, H, T), "sum": (B, H, T), "attn": (B, T, H, D), "proj": (B, T, C), "residual1": (B, T, C),
                  "rstd2": (B, T), "ln2": (B, T, C), "gate": (B, T, F), "up": (B, T, F), "act": (B, T, F),
                  "down": (B, T, C)}
        only_seen = ("q", "k", "scores", "probs", "proj", "down")
        wanted = {name: shape for name, shape in shapes.items()
                  if (stages is not None if name in only_seen else want)}
        gradients = sum(_padded(array.shape) for array in self.params.values()) if keep else 0
        made = dict.fromkeys(shapes) | _carve(wanted, gradients)
        cos, sin = self._angles(positions, T)
        y = _ck.decoder_fwd(out, *[None] * 6, *made.values(), x, *self._weights(), cos, sin, positions,
                            *[None] * 5, 0, 0, self.config.rms_norm_eps, D ** -0.5)[0]
        if stages is not None:
            for name in STAGES:
                stages[name] = _as_read(name, y if name == "output" else made[name])
        kept = Context(x, *(made[name] for name in Context._fields[1:-1]), positions) if keep else None
        return y, kept

    def backward(self, dy, ctx, *, stages=None, accumulate_into=None):
        """Gradients of the loss by the layer's input and by every parameter.

        Parameters
        ----------
        dy : float32 [B, T, C]
            Gradient by the layer's output.
        ctx : Context
            Of :meth:`forward`.
        stages : dict, optional
            Filled with the gradient of every stage, ``d_<stage>``.
        accumulate_into : dict, optional
            Gradients by parameter name to add into (one by one; a name that is absent gets a new array).

        Returns
        -------
        dx : float32 [B, T, C]
        grads : dict
            Keyed like ``params``.
        """
        if ctx is None:
            raise ValueError("DecoderLayer.backward(): 'ctx' is None: call forward with keep=True")
        B, T = ctx.x.shape[:2]
        C, F, D = self.config.hidden_size, self.config.intermediate_size, self.config.head_dim
        H, G = self.config.num_attention_heads, self.config.num_key_value_heads
        shapes = {"d_ln1": (B, T, C), "d_q": (B, T, H, D), "d_k": (B, T, G, D), "d_v": (B, T, G, D),
                  "d_q_rope": (B, T, H, D), "d_k_rope": (B, T, G, D), "d_scores": (B, H, T, T),
                  "d_probs": (B, H, T, T), "d_attn": (B, T, H, D), "d_residual1": (B, T, C), "d_ln2": (B, T, C),
                  "d_gate": (B, T, F), "d_up": (B, T, F), "d_act": (B, T, F)}
        made = dict.fromkeys(shapes) if stages is None else _carve(shapes)
        grads, add = self._gradients(accumulate_into, getattr(ctx.rstd1.base, "size", 0))
        cos, sin = self._angles(ctx.positions, T)
        dx = _ck.decoder_bwd(None, *(grads[name].reshape(self._shapes[name]) for name in NAMES), *made.values(), dy,
                             *ctx[:-1], *self._weights(), cos, sin, ctx.positions, D ** -0.5, add)[0]
        if stages is not None:
            made |= {"d_proj": made["d_residual1"], "d_down": np.asarray(dy), "d_output": np.asarray(dy)}
            stages.update({f"d_{name}": _as_read(f"d_{name}", made[f"d_{name}"]) for name in STAGES})
        return dx, grads

    def _gradients(self, accumulate_into, kept):
        """Return an array for every gradient, and whether to add: all given, or none; ``kept``: the block of ctx."""
        given = accumulate_into or {}
        if unknown := [name for name in given if name not in self.params]:
            raise ValueError(f"DecoderLayer.backward(): 'accumulate_into' has no parameter {', '.join(unknown)}")
        grads = {name: given.get(name) for name in NAMES}
        if not given:
            return _carve({name: self.params[name].shape for name in NAMES}, kept), False
        for name in NAMES:
            if grads[name] is None:
                grads[name] = np.zeros(self.params[name].shape, np.float32)
            elif np.shape(grads[name]) != self.params[name].shape or not grads[name].flags.c_contiguous:
                raise ValueError(f"DecoderLayer.backward(): gradient '{name}' of shape {np.shape(grads[name])} does "
                                 f"not fit {self.params[name].shape}, contiguous")
        return grads, True

    def decode(self, x, cache, *, counts=None, out=None):
        """Run the layer over new tokens of sequences whose earlier keys and values are in a cache.

        Parameters
        ----------
        x : float32 [B, T, C]
            Token t of item b stands at position ``cache.lengths[b] + t``.
        cache : ckernels.KVCache, or sequences of a ckernels.PagedKVCache by its ``batch``
            Of this layer, float32, in any format; the new keys and values are appended.
        counts : integers [B], optional
            How many of the T tokens each item takes; all by default.  Rows behind them hold nothing of meaning.
        out : float32 [B, T, C], optional

        Returns
        -------
        float32 [B, T, C]
            The same bits as rows of :meth:`forward` over the whole sequence, where keys and values are stored as they
            are; the same bits in one chunk, several, or one by one in every format.

        Raises
        ------
        ValueError
            Past the cache's capacity; nothing is written.
        """
        B, T = self._sizes(x, "decode")
        if not isinstance(cache, (KVCache, PagedBatch)):
            raise TypeError(f"DecoderLayer.decode(): 'cache' must be a KVCache or a PagedBatch, "
                            f"not {type(cache).__name__}")
        held, wanted = cache.storage, (self.config.num_key_value_heads, self.config.head_dim)
        if (held.kv_heads, held.head_dim) != wanted:
            raise ValueError(f"DecoderLayer.decode(): 'cache' has {held.kv_heads} heads of {held.head_dim} channels, "
                             f"the config {wanted[0]} of {wanted[1]}")
        if held.dtype != np.float32 or cache.ring:
            what = "is a ring, and the layer sees all tokens" if cache.ring else f"holds {held.dtype}, not float32"
            raise ValueError(f"DecoderLayer.decode(): 'cache' {what}")
        if B != cache.batch:
            raise ValueError(f"DecoderLayer.decode(): 'x' has {B} items, the cache {cache.batch}")
        writing = cache.reserve(counts, T, "DecoderLayer.decode")
        try:
            cos, sin = self.table(int(writing.lengths.max(initial=0)) + T)
            y = _ck.decoder_fwd(out, *held.parts, *[None] * 20, x, *self._weights(), cos, sin, None, *writing[:-1],
                                held.format.number, held.group, self.config.rms_norm_eps, self.config.head_dim**-0.5)[0]
        except BaseException as error:
            cancelled(cache, writing, "DecoderLayer.decode", error)
        cache.commit(writing)
        return y
