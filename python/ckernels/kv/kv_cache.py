"""A contiguous key-value cache: every item of the batch has its own length."""
import operator

import numpy as np

from ckernels import _ck
from ckernels.runtime import empty

__all__ = ["KVCache"]


def _integers(who, name, value):
    """Return integers as an array, of any shape."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{who}(): '{name}' is no array of integers: {error}") from None
    if array.dtype.kind not in "iu":
        raise TypeError(f"{who}(): '{name}' must be integers, not {array.dtype}")
    return array


class KVCache:
    """Keys and values of one layer, [B, G, capacity, D], each item with a length of its own.

    Parameters
    ----------
    kv_heads : int
        G.
    head_dim : int
        D.
    capacity : int
        Tokens an item can hold.
    batch : int
        B.
    dtype : "float32"
        Of the stored keys and values.
    quant : None
        Quantised storage is not built yet: anything else is a ValueError.
    group : int
        Channels that share a scale once storage is quantised.

    Attributes
    ----------
    lengths : int64 [B]
        Tokens held by each item; a copy.
    raw : dict
        The storage itself, writable: ``{"k", "v"}``, float32 [B, G, capacity, D].

    Notes
    -----
    Appending copies bit for bit, and attention reads each item up to its own length and nothing beyond, so a whole
    prefill, chunks of it and one token at a time give the same bits.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> cache = ck.KVCache(kv_heads=2, head_dim=4, capacity=8)
    >>> k = np.ones((1, 2, 3, 4), "f4")
    >>> cache.append(k, k)
    >>> cache.lengths
    array([3])
    >>> cache.attend(np.ones((1, 2, 1, 4), "f4")).shape
    (1, 2, 1, 4)
    """

    def __init__(self, kv_heads, head_dim, capacity, *, batch=1, dtype="float32", quant=None, group=32):
        for name, value in (("kv_heads", kv_heads), ("head_dim", head_dim), ("capacity", capacity), ("batch", batch)):
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise TypeError(f"KVCache(): '{name}' must be an integer, not {type(value).__name__}")
            if value < 0:
                raise ValueError(f"KVCache(): '{name}' must not be negative, not {value}")
        if quant is not None:
            raise ValueError(f"KVCache(): 'quant' must be None, not {quant!r}: quantised storage is not built")
        if dtype is None or dtype not in ("float32", np.float32):
            raise ValueError(f"KVCache(): 'dtype' must be float32, not {dtype!r}")
        shape = batch, kv_heads, capacity, head_dim
        try:
            self.raw = {name: empty(shape) for name in ("k", "v")}
        except (MemoryError, OverflowError) as error:
            raise type(error)(f"KVCache(): no memory for keys and values of shape {shape}") from None
        self._lengths = np.zeros(batch, np.int64)

    @property
    def lengths(self):
        """Tokens held by each item, int64 [B]; a copy."""
        return self._lengths.copy()

    @property
    def capacity(self):
        """Tokens an item can hold."""
        return self.raw["k"].shape[2]

    @property
    def batch(self):
        """How many items there are."""
        return self.raw["k"].shape[0]

    def __repr__(self):
        B, G, S, D = self.raw["k"].shape
        return f"KVCache(kv_heads={G}, head_dim={D}, capacity={S}, batch={B}, lengths={self._lengths.tolist()})"

    def counts_of(self, counts, tokens, who="KVCache.append"):
        """Return the tokens that each item takes of ``tokens`` brought, int64 [B]; checked, nothing written.

        Raises
        ------
        ValueError
            A shape that is not [B], a count out of range, or one past the capacity.
        """
        if counts is None:
            counts = np.full(self.batch, tokens, np.int64)
        counts = _integers(who, "counts", counts)
        if counts.shape != (self.batch,):
            raise ValueError(f"{who}(): 'counts' of shape {counts.shape} does not fit [B], where B={self.batch}")
        counts = counts.astype(np.int64)
        for b, (length, count) in enumerate(zip(self._lengths.tolist(), counts.tolist(), strict=True)):
            if not 0 <= count <= tokens:
                raise ValueError(f"{who}(): 'counts' holds {count} for item {b}, which brings {tokens} tokens")
            if length + count > self.capacity:
                raise ValueError(f"{who}(): item {b} holds {length} tokens of {self.capacity}: "
                                 f"{count} more do not fit")
        return counts

    def _fits(self, method, name, array, declared, G=None):
        """Refuse what is no array [B, heads, tokens, D]; ``G`` is the number of heads where it is fixed."""
        shape = getattr(array, "shape", None)
        if shape is None:
            raise TypeError(f"KVCache.{method}(): '{name}' must be a NumPy array or lend its memory by __dlpack__, "
                            f"not {type(array)!r}")
        B, _, _, D = self.raw["k"].shape
        if len(shape) != 4 or shape[0] != B or shape[3] != D or G is not None and shape[1] != G:
            where = f"B={B}, " + (f"G={G}, " if G is not None else "") + f"D={D}"
            raise ValueError(f"KVCache.{method}(): '{name}' of shape {tuple(shape)} does not fit {declared}, "
                             f"where {where}")

    def append(self, k, v, counts=None):
        """Write new tokens behind those held.

        Parameters
        ----------
        k, v : float32 [B, G, n, D]
        counts : integers [B], optional
            How many of the n tokens each item takes; all of them by default.

        Raises
        ------
        ValueError
            Past the capacity, or a shape that does not fit; nothing is written.
        """
        for name, array in ("k", k), ("v", v):
            self._fits("append", name, array, "[B, G, n, D]", G=self.raw["k"].shape[1])
        counts = self.counts_of(counts, k.shape[2])
        _ck.kv_cache_append(self.raw["k"], self.raw["v"], k, v, self._lengths, counts)
        self._lengths += counts

    def attend(self, q, *, scale=None, window=None, softcap=None, sinks=None, out=None):
        """Attention of the queries at the last T positions of each item over what the item holds.

        Parameters
        ----------
        q : float32 [B, H, T, D]
            Query t of item b stands at position ``lengths[b] - T + t`` and sees the keys up to there.
        scale, window, softcap, sinks
            As in :func:`ckernels.scaled_dot_product_attention`.
        out : float32 [B, H, T, D], optional

        Returns
        -------
        float32 [B, H, T, D]

        Raises
        ------
        ValueError
            T beyond the length of an item.
        """
        from ckernels.ops.attention import attend_cache

        self._fits("attend", "q", q, "[B, H, T, D]")
        T = q.shape[2]
        if (self._lengths < T).any():
            b = int(np.argmax(self._lengths < T))
            raise ValueError(f"KVCache.attend(): 'q' has {T} positions, item {b} holds {self._lengths[b]}")
        return attend_cache(q, self.raw["k"], self.raw["v"], self._lengths - T, self._lengths.copy(), scale=scale,
                            window=window, softcap=softcap, sinks=sinks, out=out)

    def advance(self, counts):
        """Count tokens that a layer has just written itself: int64 [B] from :meth:`counts_of`."""
        self._lengths += counts

    def keys(self, b):
        """Return the keys of item b, float32 [G, length, D]; a view."""
        return self._held("keys", "k", b)

    def values(self, b):
        """Return the values of item b, float32 [G, length, D]; a view."""
        return self._held("values", "v", b)

    def _held(self, method, name, b):
        try:
            item = operator.index(b)
        except TypeError:
            raise TypeError(f"KVCache.{method}(): 'b' must be an integer, not {type(b).__name__}") from None
        if not -self.batch <= item < self.batch:
            raise IndexError(f"KVCache.{method}(): 'b' is {item}, and there are {self.batch} items")
        return self.raw[name][item, :, :self._lengths[item]]

    def truncate(self, length):
        """Forget what lies behind ``length`` tokens: an int, or integers [B].

        Raises
        ------
        ValueError
            More than an item holds, or negative; nothing is changed.
        """
        wanted = _integers("KVCache.truncate", "length", length)
        if wanted.shape not in ((), self._lengths.shape):
            raise ValueError(f"KVCache.truncate(): 'length' of shape {wanted.shape} does not fit [B], "
                             f"where B={self.batch}")
        if ((wanted < 0) | (wanted > self._lengths)).any():
            raise ValueError(f"KVCache.truncate(): 'length' {length} is not within the lengths "
                             f"{self._lengths.tolist()}")
        self._lengths[:] = wanted

    def reset(self):
        """Forget everything."""
        self._lengths[:] = 0

    def fork(self):
        """Return an independent copy: what one appends the other does not see."""
        other = object.__new__(KVCache)
        other.raw = {name: empty(array.shape) for name, array in self.raw.items()}
        other._lengths = self._lengths.copy()
        for b, length in enumerate(self._lengths.tolist()):
            for name in self.raw:
                other.raw[name][b, :, :length] = self.raw[name][b, :, :length]
        return other
