"""A model: embedding, decoder layers, final norm, output projection.

Nothing is computed here.  Every number comes out of an op or a layer of the C library; this file says in which order
they are called, and keeps parameters, caches and gradients by their names.
"""

from typing import NamedTuple

import numpy as np

import ckernels as ck

from .arguments import as_counts, check_gradients, checked, from_anything
from .cache import ModelCache
from .config import Config
from .ends import HEAD, Ends
from .padding import padding, rolled
from .parameters import random_parameters
from .sampling import generate

__all__ = ["Model"]

class _Passed(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    embedding: tuple
    layers: list
    norm: tuple
    head: tuple  # gradients already: they are made with the loss


class Model:
    """A decoder-only language model of one of the families of docs/models.md.

    Parameters
    ----------
    config : Config
        Shape and constants.
    params : dict, optional
        Parameter name -> array, with the names of a Hugging Face ``state_dict`` of a Llama, whatever the family; all
        float32, or all bfloat16 or float16.  A model with tied embeddings has no ``lm_head.weight``.  The arrays are
        used as they are, not copied: an optimizer that updates them in place changes what the next call computes.
        Without ``params`` they are drawn at random: matrices normal with standard deviation 0.02, norm weights normal
        around 1 (around 0 where 1 is added to them) with standard deviation 0.1.
    seed : int
        For drawing them.

    Attributes
    ----------
    config : Config
        As given.
    params : dict
        Parameter name -> array.
    dtype : numpy.dtype
        Of the parameters, of everything between the layers, of logits and of gradients.

    Raises
    ------
    ValueError
        A parameter is missing, left over, or of the wrong shape or layout; the text names it.
    TypeError
        A parameter is of another dtype, or ``config`` no Config.

    Examples
    --------
    >>> model = Model(ck.models.configs.tiny)
    >>> model(np.array([5, 3, 8])).shape
    (3, 257)
    >>> loss, grads = model.loss_and_grads(np.array([[5, 3]]), np.array([[3, 8]]))
    >>> grads.keys() == model.params.keys()
    True
    """

    def __init__(self, config, params=None, seed=0):
        if not isinstance(config, Config):
            raise TypeError(f"Model(): 'config' must be a Config, got {type(config).__name__}; see Config.from_hf")
        self.config = config
        self.params = random_parameters(config, seed) if params is None else checked(config, params)
        self.dtype = next(iter(self.params.values())).dtype
        self.report = None  # set by load(): where the parameters came from
        self._layers = [None] * config.num_hidden_layers
        self._held = [{} for _ in self._layers]  # the arrays that each layer was made with
        self._names = [[] for _ in self._layers]  # of its parameters, here and inside the layer
        for name in self.params:
            if name.startswith("model.layers."):
                i, _, inner = name.removeprefix("model.layers.").partition(".")
                self._names[int(i)].append((name, inner))

    @property
    def _ends(self):
        return Ends(self.config, self.params)

    def __repr__(self):
        """Say how large the model is."""
        count = sum(value.size for value in self.params.values())
        return f"Model({self.config.num_hidden_layers} layers, {count:,} parameters)"

    def __call__(self, ids, *, last_only=False, cache=None, counts=None, attention_mask=None):
        """Compute logits.

        Parameters
        ----------
        ids : int32 or int64 [B, T] or [T]
            Token ids.
        last_only : bool
            Only for the last token of each item, which is what generation needs.
        cache : ModelCache, optional
            From :meth:`new_cache`.  The tokens continue what it holds, and are added to it.  All at once, in chunks or
            one by one: the same bits.
        counts : int [B], optional
            With ``cache``: item b has ``counts[b]`` real tokens, the first ones; the rest is padding, which leaves no
            trace in the cache and whose logits mean nothing.  Padding must hold valid ids.
        attention_mask : bool or int [B, T], optional
            Without ``cache``: 1 for the real tokens of an item, which lie in one piece, 0 for padding before them or
            behind.  A real token has the logits that it has without padding, bit for bit: positions count real tokens.
            Logits of padding are NaN.

        Returns
        -------
        float32 [B, T, V] or [T, V]
            With ``last_only`` [B, 1, V] or [1, V]; NaN for an item with no real token.

        Raises
        ------
        IndexError
            An id is outside the vocabulary; the cache is as it was.
        ValueError
            The cache has no room for the tokens (it is as it was), or shapes do not fit.
        TypeError
            ``ids`` are not integers.
        """
        ids, single = self._ids("model()", ids)
        shift = None
        if attention_mask is not None:
            if cache is not None:
                raise ValueError("model(): 'attention_mask' is for whole sequences; with a 'cache' there are 'counts'")
            shift, counts = padding("model()", attention_mask, ids)
            ids = rolled(ids, shift)
        if cache is None:
            if counts is not None and shift is None:
                raise ValueError("model(): 'counts' says what to add to a cache, but no 'cache' is given")
            self._ends.check_length("model()", ids.shape[1])
            x, _ = self._ends(ids)
            for layer in self.layers(ids.shape[1]):
                x, _ = layer.forward(x, keep=False)
        else:
            counts = self._room("model()", cache, ids, counts)
            x = self._continue(ids, cache, counts)
        if last_only:
            x = _last_rows(x, counts)
        logits = self._ends.logits(self._ends.norm(x)[0])
        if last_only and counts is not None:
            logits[counts == 0] = np.nan
        elif shift is not None:
            logits[np.arange(ids.shape[1]) >= counts[:, None]] = np.nan
            logits = rolled(logits, -shift)
        return logits[0] if single else logits

    def layers(self, length=0):
        """Return the decoder layers, first to last, on the present ``params``.

        Parameters
        ----------
        length : int
            Position that a pass will reach: all layers then read one rotary table of so many rows.

        Returns
        -------
        list of ckernels.nn.DecoderLayer
        """
        for i, names in enumerate(self._names):
            # Values may change in place at any time; a layer is only made anew where an array was replaced by another.
            if any(self._held[i].get(inner) is not self.params[name] for name, inner in names):
                self._held[i] = {inner: self.params[name] for name, inner in names}
                self._layers[i] = ck.nn.DecoderLayer(self.config, self._held[i], i)
        tables = {}  # one for all layers that turn alike
        for i, layer in enumerate(self._layers):
            first = tables.setdefault(bool(self.config.window(i)), layer)
            if first is layer:
                layer.table(length)
            else:
                layer.share_table(first)
        return self._layers

    def new_cache(self, capacity, batch=1, quant=None, paged=False):
        """Return an empty cache for this model.

        Parameters
        ----------
        capacity : int
            Tokens that each item can hold.
        batch : int
            Number of items; each may be at another length.
        quant : None, "int8", "int4", "int8_sym", "fp8_e4m3" or "fp8_e5m2"
            How keys and values are stored, as for :class:`ckernels.KVCache`.
        paged : bool or int
            In blocks of 16 tokens; a number says how many a layer has, True: as many as all items can fill.

        Returns
        -------
        ModelCache

        Raises
        ------
        TypeError, ValueError, MemoryError
            As :class:`ckernels.KVCache` and :class:`ckernels.PagedKVCache`.
        """
        return ModelCache(self.config, capacity, batch, quant, paged, self.dtype)

    def loss_and_grads(self, ids, targets, *, reduction="mean", accumulate_into=None, recompute=False):
        """Compute the cross entropy of the next tokens, and its gradient with respect to every parameter.

        Parameters
        ----------
        ids : int32 or int64 [B, T] or [T]
            Token ids.
        targets : int32 or int64, same shape
            The right answer at each position (the caller has shifted them); -100 is not counted.
        reduction : {"mean", "sum"}
            Over the counted positions.  Micro-batches: take "sum", and divide by the number of positions counted in all
            of them.
        accumulate_into : dict, optional
            The ``grads`` of an earlier call.  The new gradients are added into these arrays, one rounded addition per
            element, and the same dict is returned.
        recompute : bool
            Keep the input of each layer alone, and run a layer forward once more before its backward: the same bits,
            less memory, about a third more time.

        Returns
        -------
        loss : float
            NaN under "mean" when no position is counted; the gradients are zero then.
        grads : dict
            Parameter name -> array of the parameter's dtype.  Of a tied embedding: the part of the output projection
            plus the part of the embedding.

        Raises
        ------
        IndexError
            An id or a target is outside the vocabulary.
        ValueError
            Shapes, or the keys of ``accumulate_into``, do not fit.
        """
        ids, targets = self._labelled("loss_and_grads()", ids, targets)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"loss_and_grads(): reduction={reduction!r} is not supported; supported: 'mean', 'sum'")
        if accumulate_into is not None:
            check_gradients(self.params, accumulate_into)
        loss, passed = self._forward(ids, targets, reduction, keep=not recompute)
        grads = self._backward(passed)
        if accumulate_into is None:
            return float(loss), grads
        for name, grad in grads.items():
            ck.add(accumulate_into[name], grad, out=accumulate_into[name])
        return float(loss), accumulate_into

    def generate(
        self, ids, max_new_tokens=128, *, temperature=0.0, top_k=None, top_p=None, seed=0, eos_token_id=None
    ):
        """Continue a text, token by token.

        Parameters
        ----------
        ids : int32 or int64 [T]
            The text so far, at least one token.
        max_new_tokens : int
            How many to generate at most.
        temperature : float
            0 takes the likeliest token, the lowest id of equals.  Otherwise logits are divided by it before sampling.
        top_k : int, optional
            Sample among the k likeliest.
        top_p : float, optional
            Sample among the likeliest that together have at least this probability.
        seed : int
            Of the sampling.
        eos_token_id : int or sequence of int, optional
            Stop behind such a token.

        Yields
        ------
        int
            One token id at a time.

        Raises
        ------
        ValueError, TypeError, IndexError
            Before the first token, for arguments that do not fit.

        Examples
        --------
        >>> model = Model(ck.models.configs.tiny)
        >>> len(list(model.generate([1, 2, 3], max_new_tokens=4)))
        4
        """
        return generate(self, ids, max_new_tokens, temperature, top_k, top_p, seed, eos_token_id)

    def trace(self, ids, targets=None):
        """Record every stage of every layer and, where targets are given, every gradient.

        Parameters
        ----------
        ids : int32 or int64 [B, T] or [T]
            Token ids.
        targets : int32 or int64, same shape, optional
            As for :meth:`loss_and_grads`, with the mean over counted positions.

        Returns
        -------
        ckernels.parity.Trace
            ``embedding``, ``layers.<i>.<stage>``, ``final_norm``, ``logits``; with targets also ``loss``, the gradients
            of the stages, ``d_<stage>`` in the same place, and of the parameters, ``d_<name>``.  The batch axis is
            there even for ids [T].  Capturing changes no bit.
        """
        from ckernels.parity.trace import Trace

        arrays = {}
        if targets is None:
            ids, _ = self._ids("trace()", ids)
            inputs = {"ids": ids}
            self._forward(ids, None, "mean", arrays)
        else:
            ids, targets = self._labelled("trace()", ids, targets)
            inputs = {"ids": ids, "targets": targets}
            _, passed = self._forward(ids, targets, "mean", arrays)
            grads = self._backward(passed, arrays)
            arrays |= {f"d_{name}": grad for name, grad in grads.items()}
        return Trace(self.config, arrays=arrays, inputs=inputs)

    def _forward(self, ids, targets, reduction, arrays=None, keep=True):
        """Run forward and keep what backward needs, or each layer's input alone; ``arrays`` collects the stages."""
        self._ends.check_length("model()", ids.shape[1])
        outputs = ck.empty((len(self._layers) + 1, *ids.shape, self.config.hidden_size), self.dtype)
        x, embedding = self._ends(ids, out=outputs[0])
        _keep(arrays, "embedding", x)
        layers = []
        for i, layer in enumerate(self.layers(ids.shape[1])):
            stages = None if arrays is None else {}
            y, passed = layer.forward(x, stages=stages, keep=keep, out=outputs[i + 1])
            layers.append((layer, passed if keep else x))
            x = y
            for name in stages or ():
                _keep(arrays, f"layers.{i}.{name}", stages[name])
        x, norm = self._ends.norm(x)
        _keep(arrays, "final_norm", x)
        if arrays is not None:  # logits are for the capture alone: the loss does without them
            arrays["logits"] = self._ends.logits(x)
        if targets is None:
            return None, None
        loss, head = ck.linear_cross_entropy_grads(x, self._ends.head, targets, reduction=reduction,
                                                   softcap=self.config.final_logit_softcapping)
        if arrays is not None:
            _, seen = ck.cross_entropy_forward(arrays["logits"], targets, reduction=reduction)
            arrays |= {"loss": np.asarray(loss), "d_logits": ck.cross_entropy_backward(1.0, seen).logits}
        return loss, _Passed(embedding, layers, norm, head)

    def _backward(self, passed, arrays=None):
        """Run backward; ``arrays`` collects the gradients of the stages."""
        grads = dict.fromkeys(self.params)
        head = passed.head
        _keep(arrays, "d_final_norm", head.x)
        dy, of_norm = self._ends.norm_backward(head.x, passed.norm)
        grads.update(of_norm)
        for i in reversed(range(len(passed.layers))):
            layer, context = passed.layers.pop()  # its memory is free as soon as it is used
            if isinstance(context, np.ndarray):  # its input alone was kept
                _, context = layer.forward(context)
            stages = None if arrays is None else {}
            dy, inner = layer.backward(dy, context, stages=stages)
            grads.update({f"model.layers.{i}.{name}": grad for name, grad in inner.items()})
            for name in stages or ():
                _keep(arrays, f"layers.{i}.{name}", stages[name])
        _keep(arrays, "d_embedding", dy)
        if not self.config.tie_word_embeddings:
            grads[HEAD] = head.weight
        grads.update(self._ends.gradients(dy, passed.embedding, head.weight if HEAD not in grads else None))
        return grads

    def _continue(self, ids, cache, counts):
        """Add the tokens to the cache; if anything goes wrong on the way, they were never there."""
        before = cache.lengths
        last = before + (ids.shape[1] if counts is None else counts) - 1
        self._ends.check_length("model()", int(last.max(initial=-1)) + 1)
        places = np.minimum(before[:, None] + np.arange(ids.shape[1]), np.maximum(last, 0)[:, None])
        x, _ = self._ends(ids, places)
        layers = self.layers(int(before.max(initial=0)) + ids.shape[1])
        try:
            for layer, held in zip(layers, cache.layers, strict=True):
                x = layer.decode(x, held, counts=counts)
        except BaseException:
            for held in cache.layers:
                held.truncate(np.minimum(before, held.lengths))
            raise
        return x

    def _ids(self, call, ids, name="ids"):
        """Return ids [B, T] that are all inside the vocabulary, and whether they came as [T]."""
        ids = ids if isinstance(ids, np.ndarray) else from_anything(call, name, ids)
        if ids.dtype not in (np.int32, np.int64):
            raise TypeError(f"{call}: '{name}' must be int32 or int64, got {ids.dtype}")
        if ids.ndim not in (1, 2):
            raise ValueError(f"{call}: '{name}' of shape {ids.shape} is neither [B, T] nor [T]")
        single = ids.ndim == 1
        ids = np.ascontiguousarray(np.atleast_2d(ids))
        wrong = (ids < 0) | (ids >= self.config.vocab_size)
        if name == "targets":
            wrong &= ids != -100
        if wrong.any():
            b, t = np.argwhere(wrong)[0]
            place = t if single else f"{b}, {t}"
            V = self.config.vocab_size
            raise IndexError(f"{call}: {name}[{place}] = {ids[b, t]} is outside the vocabulary of {V} tokens")
        return ids, single

    def _labelled(self, call, ids, targets):
        ids, _ = self._ids(call, ids)
        targets, _ = self._ids(call, targets, "targets")
        if ids.shape != targets.shape:
            raise ValueError(f"{call}: 'targets' of shape {targets.shape} does not fit 'ids' of shape {ids.shape}")
        return ids, targets

    def _room(self, call, cache, ids, counts):
        """Check that the cache can take the tokens; return ``counts`` as an array, or None."""
        if not isinstance(cache, ModelCache) or len(cache.layers) != self.config.num_hidden_layers:
            raise TypeError(f"{call}: 'cache' must come from this model's new_cache(), got {cache!r}")
        B, T = ids.shape
        if cache.batch != B:
            raise ValueError(f"{call}: 'ids' of shape {ids.shape} does not fit a cache of {cache.batch} items")
        if counts is not None:
            counts = as_counts(call, counts)
            if counts.dtype.kind not in "iu":
                raise TypeError(f"{call}: 'counts' must be integers, got {counts.dtype}")
            if counts.shape != (B,):
                raise ValueError(f"{call}: 'counts' of shape {counts.shape} does not fit [B], where B={B}")
            if ((counts < 0) | (counts > T)).any():
                raise ValueError(f"{call}: 'counts' {counts.tolist()} must be between 0 and T={T}")
        after = cache.lengths + (T if counts is None else counts)
        if (after > cache.capacity).any():
            b = int(np.argmax(after))
            raise ValueError(
                f"{call}: item {b} would hold {after[b]} tokens, its cache has a capacity of {cache.capacity}"
            )
        return counts


def _last_rows(x, counts):
    """Return the row of the last real token of each item, [B, 1, C]."""
    B, T, _ = x.shape
    if T == 0:
        raise ValueError("model(): last_only needs at least one token")
    if counts is None:
        return x[:, -1:]
    return x[np.arange(B), np.maximum(counts, 1) - 1][:, None]


def _keep(arrays, name, value):
    if arrays is not None:
        arrays[name] = value
