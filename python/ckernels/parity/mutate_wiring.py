"""Faults in how ops are put together: planted in Python, in the place of the package's own functions.

Each is a function of the package that gives back what a program with that mistake would: another axis, the wrong
weight, a cache that forgets. Where a fault needs a second one in C, its name there is `planted`.
"""

import contextlib
import dataclasses
from typing import NamedTuple

import numpy as np

#: name: (what is wrong, the function that plants it)
WIRING = {}


class Place(NamedTuple):
    """An attribute that is replaced while the fault is planted."""

    owner: object
    name: str
    value: object


def _wiring(what, planted=""):
    def keep(function):
        WIRING[function.__name__] = (what, function, planted)
        return function

    return keep


@contextlib.contextmanager
def planted(name):
    """Plant a fault of this list for a block.

    Parameters
    ----------
    name : str
        Of ``WIRING``.
    """
    places = WIRING[name][1]()
    before = [getattr(place.owner, place.name) for place in places]
    try:
        for place in places:
            setattr(place.owner, place.name, place.value)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place.owner, place.name, value)


# ---- ops that do not fit one another ----


@_wiring("qk_norm_rope: the norm after rope")
def norm_after_rope():
    import ckernels as ck

    def turned_first(x, weight, cos, sin, eps=1e-6, *, positions=None, interleaved=False, out=None):
        return ck.rms_norm(ck.rope(x, cos, sin, positions=positions, interleaved=interleaved), weight, eps, out=out)

    return [Place(ck, "qk_norm_rope", turned_first)]


def _grouped(of_k, of_v):
    """Attention in which query head h reads the key and value heads that these say."""
    import ckernels as ck

    right = ck.scaled_dot_product_attention

    def wrong(q, k, v, *arguments, **options):
        heads, groups = np.arange(q.shape[1]), k.shape[1]
        return right(q, k[:, of_k(heads, groups)], v[:, of_v(heads, groups)], *arguments, **options)

    return [Place(ck, "scaled_dot_product_attention", wrong), Place(ck, "attention", wrong)]


def _modulo(heads, groups):
    return heads % groups


def _by_group(heads, groups):
    return heads // (len(heads) // groups)


@_wiring("attention: group map h % G")
def group_map():
    return _grouped(_modulo, _modulo)


@_wiring("attention: group map h % G, k alone")
def group_map_k():
    return _grouped(_modulo, _by_group)


@_wiring("attention: group map h % G, v alone")
def group_map_v():
    return _grouped(_by_group, _modulo)


@_wiring("linear: the weight read as its transpose")
def weight_transposed():
    import ckernels as ck

    right = ck.linear

    def wrong(x, weight, *arguments, **options):
        return right(x, np.ascontiguousarray(weight.reshape(weight.shape[::-1]).T), *arguments, **options)

    return [Place(ck, "linear", wrong)]


@_wiring("linear: dW transposed")
def dweight_transposed():
    import ckernels as ck

    right = ck.linear_backward

    def wrong(*arguments, **options):
        grads = right(*arguments, **options)
        dweight = np.ascontiguousarray(grads.weight.T).reshape(grads.weight.shape)
        return grads._replace(weight=dweight)

    return [Place(ck, "linear_backward", wrong)]


@_wiring("residual: the sum written over the residual")
def residual_aliased():
    import ckernels as ck

    right = ck.add_rms_norm

    def wrong(x, residual, *arguments, **options):
        y, h = right(x, residual, *arguments, **options)
        residual[...] = h
        return y, h

    return [Place(ck, "add_rms_norm", wrong)]


@_wiring("embedding: the row after")
def embedding_next_row():
    import ckernels as ck

    right = ck.embedding
    return [Place(ck, "embedding", lambda ids, weight, **options: right((ids + 1) % len(weight), weight, **options))]


@_wiring("rms_norm: a result of another dtype")
def norm_widened():
    import ckernels as ck

    right = ck.rms_norm
    return [Place(ck, "rms_norm", lambda *arguments, **options: np.asarray(right(*arguments, **options), np.float64))]


# ---- a model read in the wrong way ----


def _model_of(config=lambda config: config, weights=lambda name, value, params: value):
    """A layer and a model that are made of another configuration, or of other weights."""
    from ckernels import models, nn

    def changed(right):
        def made(given, params=None, *arguments, **options):
            params = {name: weights(name, value, params) for name, value in params.items()}
            return right(config(given), params, *arguments, **options)

        return made

    return [Place(nn, "DecoderLayer", changed(nn.DecoderLayer)), Place(models, "Model", changed(models.Model))]


@_wiring("model: gate and up exchanged by the loader")
def loaded_gate_as_up():
    def other(name, value, params):
        a, b = "mlp.gate_proj", "mlp.up_proj"
        return params[name.replace(a, "?").replace(b, a).replace("?", b)] if a in name or b in name else value

    return _model_of(weights=other)


@_wiring("model: eps of another config")
def other_eps():
    return _model_of(config=lambda config: dataclasses.replace(config, rms_norm_eps=config.rms_norm_eps * 10))


@_wiring("model: w read as 1 + w")
def loaded_one_plus():
    return _model_of(weights=lambda name, value, params: value + np.float32(1) if "norm" in name else value)


@_wiring("model: q and k in the order of another rope convention")
def loaded_rope_order():
    def other(name, value, params):
        if "q_proj.weight" not in name and "k_proj.weight" not in name:
            return value
        pairs = value.reshape(-1, 2, 8, value.shape[1])  # heads of 16: halves become neighbours
        return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)).reshape(value.shape)

    return _model_of(weights=other)


@_wiring("training: micro-batches divided by their own tokens, not by all")
def accumulated_by_n():
    from ckernels import models

    right = models.Model.loss_and_grads

    def wrong(self, ids, targets, *, reduction="mean", accumulate_into=None):
        if reduction != "sum":
            return right(self, ids, targets, reduction=reduction, accumulate_into=accumulate_into)
        loss, grads = right(self, ids, targets)
        found = {name: np.asarray(value) * np.float32(ids.size) for name, value in grads.items()}
        if accumulate_into is not None:
            found = {name: value + accumulate_into[name] for name, value in found.items()}
        return loss * ids.size, found

    return [Place(models.Model, "loss_and_grads", wrong)]


# ---- caches that forget, or do not ----


@_wiring("kv cache: stale after reset")
def stale_after_reset():
    import ckernels as ck

    return [Place(ck.KVCache, "reset", lambda self: None)]


@_wiring("kv cache: truncate without effect")
def stale_after_truncate():
    import ckernels as ck

    return [Place(ck.KVCache, "truncate", lambda self, length: None)]


@_wiring("kv cache: one token past the capacity", planted="kv_past_capacity")
def past_capacity():
    from ckernels.kv import kv_cache

    right = kv_cache.check_counts

    def wrong(who, counts, lengths, tokens, capacity, ring=False):
        return right(who, counts, lengths, tokens, capacity + 4096, ring)

    return [Place(kv_cache, "check_counts", wrong)]


@_wiring("kv cache: the layer ignored")
def layer_ignored():
    from ckernels.models import cache

    right = cache.ModelCache.__init__

    def wrong(self, *arguments, **options):
        right(self, *arguments, **options)
        self.layers = [self.layers[0]] * len(self.layers)

    return [Place(cache.ModelCache, "__init__", wrong)]


@_wiring("kv cache: a fork that is the cache itself")
def fork_shared():
    import ckernels as ck

    return [Place(ck.KVCache, "fork", lambda self: self)]


@_wiring("paged kv cache: a shared block written without a copy")
def shared_block_written():
    from ckernels.kv import paged

    right = paged.PagedKVCache.fork

    def wrong(self, sequence):
        made = right(self, sequence)
        for block in self._sequences[made].blocks:
            self._owners[block] = 1
        return made

    return [Place(paged.PagedKVCache, "fork", wrong)]
