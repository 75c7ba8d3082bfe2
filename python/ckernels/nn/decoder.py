"""One decoder layer, driven by its config: forward, backward and decode, each one C call."""
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.kv.kv_cache import KVCache, cancelled
from ckernels.kv.paged import PagedBatch
from ckernels.nn.parameters import ACTIVATIONS, layer_parameters
from ckernels.ops.rope import rope_table
from ckernels.ops.rope_scaling import frequencies_depend_on
from ckernels.runtime import empty

__all__ = ["DecoderLayer"]

# Every stage that a layer may have, in the order of computation; docs/stages.md has their equations.
STAGES = ("ln1", "q", "k", "v", "q_norm", "k_norm", "q_rope", "k_rope", "scores", "probs", "attn", "proj",
          "post_attn_norm", "residual1", "ln2", "gate", "up", "act", "down", "post_mlp_norm", "output")

# Stages that are heads in tokens [B,T,H,D] in memory and [B,H,T,D] to the reader.
_HEADS = ("q", "k", "v", "q_norm", "k_norm", "q_rope", "k_rope", "attn")

# What is float32 whatever the dtype of the layer.
_FLOATS = ("mean1", "rstd1", "rstd_q", "rstd_k", "scores", "probs", "max", "sum", "rstd_attn", "mean2", "rstd2",
           "rstd_mlp", "d_scores", "d_probs", "sinks")

DTYPES = ("float32", "bfloat16", "float16")


@functools.cache
def _arguments(function):
    return function.__text_signature__.removeprefix("($module, ").removesuffix(", /)").split(", ")


def call(function, **given):
    """Call a C layer by the names of its arguments; an array that is not given is absent, a number 0."""
    names = _arguments(function)
    if unknown := given.keys() - set(names):
        raise TypeError(f"no argument of {function.__name__} is called {', '.join(sorted(unknown))}")
    return function(*(given.get(name, 0 if name in _NUMBERS else None) for name in names))


_STORED = ("k_codes", "k_scales", "k_biases", "v_codes", "v_scales", "v_biases")
_WRITING = ("lengths", "counts", "table", "copy_from", "copy_to")
_NUMBERS = ("format", "group", "activation", "window", "eps", "offset", "scale", "softcap", "layer_norm", "parallel",
            "accumulate")


class Context(NamedTuple):
    """What backward needs of a forward pass; refers to ``x``: do not overwrite it before."""

    x: np.ndarray
    kept: dict  # by the names of csrc/layers/decoder.h
    positions: np.ndarray | None
    size: int  # floats of the block that holds them


def _padded(shape, dtype):
    """Return the floats that an array takes in a block: whole lines."""
    return (math.prod(shape) * dtype.itemsize + 63) // 64 * 16


def _carve(shapes, dtype, other=0):
    """Return an array of each shape by name, all of them parts of one block: the arena then keeps few of them.

    What a layer keeps for backward and its gradients are made by this: of two blocks of about one size the smaller is
    made as large as the ``other``, so that the gradients of a layer take the place of what the layer above it kept.
    """
    kinds = {name: np.dtype(np.float32) if name in _FLOATS else dtype for name in shapes}
    total = sum(_padded(shape, kinds[name]) for name, shape in shapes.items())
    size = other if total < other <= 1.5 * total else total
    block = empty((size,))
    made, at = {}, 0
    for name, shape in shapes.items():
        here = block[at :] if kinds[name] == np.float32 else block[at:].view(kinds[name])
        made[name] = here[: math.prod(shape)].reshape(shape)
        at += _padded(shape, kinds[name])
    return made, size


def _as_read(name, array):
    """Return a stage as docs/stages.md describes it: a copy of its own in float32, heads before tokens."""
    turned = array.transpose(0, 2, 1, 3) if name.removeprefix("d_") in _HEADS else array
    return np.array(turned, np.float32, order="C")


def _as_numpy(name, array):
    try:
        return array if isinstance(array, np.ndarray) else np.from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"DecoderLayer(): '{name}' does not lend its memory as an array: {error}") from None


class DecoderLayer:
    """One layer of a decoder: attention and MLP with their norms and residual connections, as the config has them.

    Parameters
    ----------
    config : ckernels.models.Config
    params : dict
        Hugging Face names relative to the layer ("self_attn.q_proj.weight", ...) to arrays, contiguous, each [out, in];
        all float32, or all bfloat16 or float16 (sinks are float32).  They are not copied: what an optimizer writes into
        them, the next call sees.
    index : int
        Which layer of the model it is: ``config.layer_types`` says whether it has the window.

    Attributes
    ----------
    stages : tuple of str
        The stages of this layer, in order.

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

    def __init__(self, config, params, index=0):
        if not hasattr(config, "hidden_size"):
            raise TypeError(f"DecoderLayer(): 'config' must be a Config, not {type(config).__name__}")
        self.config, self.index = config, index
        self._places = layer_parameters(config)
        self._take(params)
        missing = set()
        if not config.qk_norm:
            missing |= {"q_norm", "k_norm"}
        if not config.post_norms:
            missing |= {"post_attn_norm", "post_mlp_norm"}
        if not config.gated_mlp:
            missing.add("gate")
        if config.shared_norm:
            missing.add("ln2")
        self.stages = tuple(name for name in STAGES if name not in missing)
        self._options = dict(activation=ACTIVATIONS[config.hidden_act], window=config.window(index),
                             offset=config.rms_norm_offset, scale=config.attention_scale,
                             softcap=config.attn_logit_softcapping or 0.0,
                             layer_norm=config.norm_type == "layer_norm", parallel=config.use_parallel_residual)
        self._table = self._needs = None

    def _take(self, params):
        """Check the parameters and keep them."""
        places = self._places
        if not isinstance(params, Mapping):
            raise TypeError(f"DecoderLayer(): 'params' must be a dict of arrays, not {type(params).__name__}")
        if missing := [name for name in places if name not in params]:
            raise ValueError(f"DecoderLayer(): 'params' misses {', '.join(missing)}")
        if left := [name for name in params if name not in places]:
            raise ValueError(f"DecoderLayer(): 'params' has no place for {', '.join(map(str, left))}")
        for name, (_, shape, _) in places.items():
            if np.shape(params[name]) != shape:
                raise ValueError(f"DecoderLayer(): '{name}' of shape {tuple(np.shape(params[name]))} does not fit "
                                 f"{shape}")
        self.params = {name: _as_numpy(name, params[name]) for name in places}
        self.dtype = next(iter(self.params.values())).dtype
        if self.dtype.name not in DTYPES:
            self.dtype = np.dtype(np.float32)
        for name, array in self.params.items():
            wanted = np.dtype(np.float32) if name == "self_attn.sinks" else self.dtype
            if array.dtype != wanted:
                raise TypeError(f"DecoderLayer(): '{name}' must be {wanted}, not {array.dtype}")
            if not array.flags.c_contiguous:
                raise ValueError(f"DecoderLayer(): '{name}' must be contiguous: pass numpy.ascontiguousarray of it")

    def _weights(self):
        """Return the parameters by the names of the C layer: views with heads as an axis."""
        return {argument: self.params[name].reshape(heads) for name, (argument, _, heads) in self._places.items()}

    def table(self, length):
        """Return the rotary table (cos, sin) for ``length`` tokens, each float32 [at least ``length``, K], of K pairs.

        It is made once and grown by doubling; anew for each length where the frequencies depend on it.
        """
        base, rule = self.config.rotary(self.index)
        needs = frequencies_depend_on(rule, length)
        if self._table is None or len(self._table[0]) < length or needs != self._needs:
            rows = max(64, 1 << max(length - 1, 1).bit_length())
            try:
                positions = np.arange(rows)
            except ValueError:  # NumPy's word for more than there are addresses
                raise MemoryError(f"no memory for {rows} positions") from None
            dim = self.config.rotary_dim
            self._table = rope_table(positions, dim, base, scaling=rule, length=max(length, 1)) if dim else tuple(
                np.empty((rows, 0), np.float32) for _ in range(2))  # nothing is turned
            self._needs = needs
        return self._table

    def share_table(self, other):
        """Use the rotary table of another layer of the same model, with the same angles, instead of one's own."""
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
        x : [B, T, C]
            Of the dtype of the parameters, as are all arrays but the stages.
        positions : integers [T] or [B, T], optional
            Where each token stands, for its rotation; 0 .. T-1 by default.  The causal mask goes by index.
        stages : dict, optional
            Filled with a float32 copy of every stage by name (``layer.stages``; shapes in docs/stages.md).  The bits of
            the result do not depend on it.
        keep : bool
            Whether backward will follow; without, ``ctx`` is None and less memory is used.
        out : [B, T, C], optional

        Returns
        -------
        y : [B, T, C]
        ctx : Context or None
        """
        B, T = self._sizes(x, "forward")
        positions = self._place(positions, B, T)
        kept = self._kept(B, T) if keep or stages is not None else {}
        shapes = kept if stages is None else kept | self._seen(B, T)
        made, size = _carve(shapes, self.dtype, self._size_of_gradients() if keep else 0)
        cos, sin = self._angles(positions, T)
        y = call(_ck.decoder_fwd, y=out, x=x, cos=cos, sin=sin, positions=positions, eps=self.config.rms_norm_eps,
                 **made, **self._weights(), **self._options)[0]
        if stages is not None:
            for name in self.stages:
                stages[name] = _as_read(name, y if name == "output" else made[name])
        ctx = Context(x, {name: made[name] for name in kept}, positions, size) if keep else None
        return y, ctx

    def _stage_shapes(self, B, T):
        """Return the shape of every stage that this layer has, but for the output."""
        C, F, D = self.config.hidden_size, self.config.intermediate_size, self.config.head_dim
        H, G = self.config.num_attention_heads, self.config.num_key_value_heads
        shape = {**dict.fromkeys(("q", "q_norm", "q_rope", "attn"), (B, T, H, D)),
                 **dict.fromkeys(("k", "v", "k_norm", "k_rope"), (B, T, G, D)),
                 **dict.fromkeys(("scores", "probs"), (B, H, T, T)), **dict.fromkeys(("gate", "up", "act"), (B, T, F))}
        return {name: shape.get(name, (B, T, C)) for name in self.stages if name != "output"}

    def _kept(self, B, T):
        """Return the shapes of what backward needs."""
        config, stages = self.config, self._stage_shapes(B, T)
        H, G = config.num_attention_heads, config.num_key_value_heads
        names = {"ln1", "v", "q_rope", "k_rope", "attn", "ln2", "gate", "up", "act"}
        names |= {"q", "k"} if config.qk_norm else set()
        names |= {"proj", "down"} if config.post_norms else set()
        names |= set() if config.use_parallel_residual else {"residual1"}
        shapes = {name: shape for name, shape in stages.items() if name in names}
        shapes |= {"rstd1": (B, T), "rstd2": (B, T), "max": (B, H, T), "sum": (B, H, T)}
        if config.norm_type == "layer_norm":
            shapes |= {"mean1": (B, T), "mean2": (B, T)}
        if config.qk_norm:
            shapes |= {"rstd_q": (B, H, T), "rstd_k": (B, G, T)}
        if config.post_norms:
            shapes |= {"rstd_attn": (B, T), "rstd_mlp": (B, T)}
        return shapes

    def _seen(self, B, T):
        """Return the shapes of the other stages, which are captured alone."""
        kept = self._kept(B, T)
        return {name: shape for name, shape in self._stage_shapes(B, T).items() if name not in kept}

    def _size_of_gradients(self):
        """Return the floats of the block that backward makes for the gradients of the parameters."""
        return sum(_padded(array.shape, array.dtype) for array in self.params.values())

    def backward(self, dy, ctx, *, stages=None, accumulate_into=None):
        """Gradients of the loss by the layer's input and by every parameter.

        Parameters
        ----------
        dy : [B, T, C]
            Gradient by the layer's output.
        ctx : Context
            Of :meth:`forward`.
        stages : dict, optional
            Filled with the gradient of every stage, ``d_<stage>``.
        accumulate_into : dict, optional
            Gradients by parameter name to add into (one by one; a name that is absent gets a new array).

        Returns
        -------
        dx : [B, T, C]
        grads : dict
            Keyed like ``params``.
        """
        if ctx is None:
            raise ValueError("DecoderLayer.backward(): 'ctx' is None: call forward with keep=True")
        B, T = ctx.x.shape[:2]
        shapes = {} if stages is None else {f"d_{name}": shape for name, shape in self._own_gradients(B, T).items()}
        made, _ = _carve(shapes, self.dtype)
        grads, add = self._gradients(accumulate_into, ctx.size)
        outputs = {f"d{argument}": grads[name].reshape(heads) for name, (argument, _, heads) in self._places.items()}
        cos, sin = self._angles(ctx.positions, T)
        dx = call(_ck.decoder_bwd, dy=dy, x=ctx.x, cos=cos, sin=sin, positions=ctx.positions, accumulate=add, **made,
                  **outputs, **ctx.kept, **self._weights(), **self._options)[0]
        if stages is not None:
            dy = np.asarray(dy)
            made.setdefault("d_residual1", dy)
            both = {"d_proj": made["d_residual1"], "d_post_attn_norm": made["d_residual1"], "d_down": dy,
                    "d_post_mlp_norm": dy, "d_output": dy}
            made = both | made
            stages.update({f"d_{name}": _as_read(f"d_{name}", made[f"d_{name}"]) for name in self.stages})
        return dx, grads

    def _own_gradients(self, B, T):
        """Return the shapes of the stages whose gradient is not that of another stage."""
        others = {"post_attn_norm", "post_mlp_norm"}
        others |= set() if self.config.post_norms else {"proj", "down"}
        others |= {"residual1"} if self.config.use_parallel_residual else set()
        return {name: shape for name, shape in self._stage_shapes(B, T).items() if name not in others}

    def _gradients(self, accumulate_into, kept):
        """Return an array for every gradient, and whether to add: all given, or none; ``kept``: floats of ctx."""
        given = accumulate_into or {}
        if unknown := [name for name in given if name not in self.params]:
            raise ValueError(f"DecoderLayer.backward(): 'accumulate_into' has no parameter {', '.join(unknown)}")
        grads = {name: given.get(name) for name in self.params}
        if not given:
            shapes = {name.removeprefix("self_attn."): array.shape for name, array in self.params.items()}
            made, _ = _carve(shapes, self.dtype, kept)
            return dict(zip(self.params, made.values(), strict=True)), False
        for name in self.params:
            if grads[name] is None:
                grads[name] = np.zeros(self.params[name].shape, self.params[name].dtype)
            elif np.shape(grads[name]) != self.params[name].shape or not grads[name].flags.c_contiguous:
                raise ValueError(f"DecoderLayer.backward(): gradient '{name}' of shape {np.shape(grads[name])} does "
                                 f"not fit {self.params[name].shape}, contiguous")
        return grads, True

    def decode(self, x, cache, *, counts=None, out=None):
        """Run the layer over new tokens of sequences whose earlier keys and values are in a cache.

        Parameters
        ----------
        x : [B, T, C]
            Token t of item b stands at position ``cache.lengths[b] + t``.
        cache : ckernels.KVCache, or sequences of a ckernels.PagedKVCache by its ``batch``
            Of this layer, of its dtype, in any format; the new keys and values are appended.
        counts : integers [B], optional
            How many of the T tokens each item takes; all by default.  Rows behind them hold nothing of meaning.
        out : [B, T, C], optional

        Returns
        -------
        [B, T, C]
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
        if held.dtype != self.dtype or cache.ring:
            what = "is a ring, and the layer sees all tokens" if cache.ring else f"holds {held.dtype}, not {self.dtype}"
            raise ValueError(f"DecoderLayer.decode(): 'cache' {what}")
        if B != cache.batch:
            raise ValueError(f"DecoderLayer.decode(): 'x' has {B} items, the cache {cache.batch}")
        writing = cache.reserve(counts, T, "DecoderLayer.decode")
        try:
            cos, sin = self.table(int(writing.lengths.max(initial=0)) + T)
            y = call(_ck.decoder_fwd, y=out, x=x, cos=cos, sin=sin, eps=self.config.rms_norm_eps,
                     format=held.format.number, group=held.group, **dict(zip(_STORED, held.parts, strict=True)),
                     **dict(zip(_WRITING, writing[:-1], strict=True)), **self._weights(), **self._options)[0]
        except BaseException as error:
            cancelled(cache, writing, "DecoderLayer.decode", error)
        cache.commit(writing)
        return y
