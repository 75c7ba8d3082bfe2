"""A contiguous key-value cache: every item of the batch has its own length."""
import operator
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from ckernels.kv.formats import Storage, attend_options, integer
from ckernels.runtime import empty

__all__ = ["KVCache", "integers"]


def integers(who, name, value):
    """Return integers as an array, of any shape."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{who}(): '{name}' is no array of integers: {error}") from None
    if array.dtype.kind not in "iu":
        raise TypeError(f"{who}(): '{name}' must be integers, not {array.dtype}")
    return array


def check_counts(who, counts, lengths, tokens, capacity, ring=False):
    """Return the tokens that each item takes of ``tokens`` brought, int64 [B]; ValueError where they do not fit.

    ``capacity`` is None where nothing but the counts themselves is bounded.
    """
    batch = len(lengths)
    if counts is None:
        counts = np.full(batch, tokens, np.int64)
    counts = integers(who, "counts", counts)
    if counts.shape != (batch,):
        raise ValueError(f"{who}(): 'counts' of shape {counts.shape} does not fit [B], where B={batch}")
    counts = counts.astype(np.int64)
    for b, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        if not 0 <= count <= tokens:
            raise ValueError(f"{who}(): 'counts' holds {count} for item {b}, which brings {tokens} tokens")
        if capacity is not None and (count if ring else length + count) > capacity:
            raise ValueError(f"{who}(): item {b} holds {length} tokens of {capacity}: {count} more do not fit")
    return counts


class Writing(NamedTuple):
    """What an append needs to know of where it writes; the C side takes all but the counts in this order."""

    lengths: np.ndarray  # int64 [B], before
    counts: np.ndarray
    table: np.ndarray | None  # int64 [B, P]
    copy_from: np.ndarray | None  # blocks to copy first
    copy_to: np.ndarray | None
    ring: bool


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
    dtype : "float32", "float16" or "bfloat16"
        Of keys, values and queries; and of scales and biases.
    quant : None, "int8", "int4", "int8_sym", "fp8_e4m3" or "fp8_e5m2"
        How they are stored: as they are; affine codes of 8 or 4 bits; symmetric codes of 8 bits with one scale for a
        token and head; 8-bit floats.
    group : int
        Channels that share a scale, 16, 32, 64 or 128, of which D is a multiple ("int8_sym" has D of them).
    ring : bool
        Keep the last ``capacity`` tokens of any number: each append overwrites the oldest.  For sliding windows.

    Attributes
    ----------
    lengths : int64 [B]
        Tokens appended to each item; a copy.
    raw : dict
        The storage itself, writable, [B, G, capacity, ...]: ``{"k", "v"}``, or ``{"k_codes", "k_scales", "k_biases",
        "v_codes", ...}``, biases of affine codes alone.

    Raises
    ------
    TypeError, ValueError, MemoryError, OverflowError
        A size, dtype or format that is none, or that no memory can be had for.

    Notes
    -----
    What a token is stored as depends on the token alone, and attention reads each item up to its own length and nothing
    beyond, so a whole prefill, chunks of it and one token at a time give the same bits.  A stored value is off by at
    most half a step of its group, plus the rounding of its scale and bias; docs/ops/kv_cache.md has the formats.
    One thread at a time may change a cache.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> cache = ck.KVCache(kv_heads=2, head_dim=32, capacity=8, quant="int4")
    >>> k = np.ones((1, 2, 3, 32), "f4")
    >>> cache.append(k, k)
    >>> cache.lengths
    array([3])
    >>> cache.attend(np.ones((1, 2, 1, 32), "f4")).shape
    (1, 2, 1, 32)
    >>> cache.raw["k_codes"].shape
    (1, 2, 8, 4)
    """

    def __init__(self, kv_heads, head_dim, capacity, *, batch=1, dtype="float32", quant=None, group=32, ring=False):
        sizes = {"kv_heads": kv_heads, "head_dim": head_dim, "capacity": capacity, "batch": batch}
        kv_heads, head_dim, capacity, batch = (integer("KVCache", name, value) for name, value in sizes.items())
        self._storage = Storage("KVCache", batch, kv_heads, capacity, head_dim, dtype, quant, group)
        self._capacity, self._ring = capacity, bool(ring)
        self._lengths = np.zeros(batch, np.int64)
        self._first = np.zeros(batch, np.int64)  # the first position that is still there

    @property
    def raw(self):
        """The storage itself, by name; writable."""
        return self._storage.raw

    @property
    def storage(self):
        """Form and arrays, as the C side takes them."""
        return self._storage

    @property
    def lengths(self):
        """Tokens appended to each item, int64 [B]; a copy."""
        return self._lengths.copy()

    @property
    def capacity(self):
        """Tokens an item can hold."""
        return self._capacity

    @property
    def batch(self):
        """How many items there are."""
        return len(self._lengths)

    @property
    def ring(self):
        """Whether the oldest tokens are overwritten."""
        return self._ring

    def __repr__(self):
        s = self._storage
        return (f"KVCache(kv_heads={s.kv_heads}, head_dim={s.head_dim}, capacity={self.capacity}, batch={self.batch}, "
                f"{s.describe()}{', ring=True' if self._ring else ''}, lengths={self._lengths.tolist()})")

    # ---- writing ----

    def counts_of(self, counts, tokens, who="KVCache.append"):
        """Return the tokens that each item takes of ``tokens`` brought, int64 [B]; checked, nothing written.

        Raises
        ------
        ValueError
            A shape that is not [B], a count out of range, or one past the capacity.
        """
        return check_counts(who, counts, self._lengths, tokens, self._capacity, self._ring)

    def reserve(self, counts, tokens, who="KVCache.append"):
        """Return where so many tokens go, a :class:`Writing`; :meth:`commit` or :meth:`cancel` ends it."""
        return Writing(self._lengths.copy(), self.counts_of(counts, tokens, who), None, None, None, self._ring)

    def commit(self, writing):
        """Count what a C function has just written."""
        self._lengths += writing.counts
        if self._ring:
            np.maximum(self._first, self._lengths - self._capacity, out=self._first)

    def cancel(self, writing):
        """Nothing was written after all."""

    def append(self, k, v, counts=None):
        """Write new tokens behind those held.

        Parameters
        ----------
        k, v : [B, G, n, D] of the cache's dtype
        counts : integers [B], optional
            How many of the n tokens each item takes; all of them by default.

        Raises
        ------
        TypeError
            Another dtype.
        ValueError
            Past the capacity, a shape that does not fit, NaN, inf or 2**126 where codes are stored; nothing is written.
        """
        for name, array in ("k", k), ("v", v):
            self._storage.check_shape("KVCache.append", name, array, "[B, G, n, D]", self.batch, self._storage.kv_heads)
        write(self, "KVCache.append", k, v, counts)

    # ---- reading ----

    def attend(self, q, *, scale=None, window=None, softcap=None, sinks=None, out=None):
        """Attention of the queries at the last T positions of each item over what the item holds.

        Parameters
        ----------
        q : [B, H, T, D] of the cache's dtype
            Query t of item b stands at position ``lengths[b] - T + t`` and sees the keys up to there.
        scale, window, softcap, sinks
            As in :func:`ckernels.scaled_dot_product_attention`.
        out : like q, optional

        Returns
        -------
        like q

        Raises
        ------
        ValueError
            T beyond the length of an item; in a ring, a window that reaches back to what is overwritten.
        """
        self._storage.check_shape("KVCache.attend", "q", q, "[B, H, T, D]", self.batch)
        return read(self._storage, "KVCache.attend", q, self._lengths, None, (scale, window, softcap, sinks, out),
                    self._first if self._ring else None)

    def keys(self, b):
        """Return the keys of item b, [G, length, D] of the cache's dtype: a view where they are stored as they are.

        Of a ring, the last ``capacity`` of them.
        """
        return self._held("keys", "k", b)

    def values(self, b):
        """Return the values of item b, like :meth:`keys`."""
        return self._held("values", "v", b)

    def _held(self, method, name, b):
        try:
            item = operator.index(b)
        except TypeError:
            raise TypeError(f"KVCache.{method}(): 'b' must be an integer, not {type(b).__name__}") from None
        if not -self.batch <= item < self.batch:
            raise IndexError(f"KVCache.{method}(): 'b' is {item}, and there are {self.batch} items")
        first, length = int(self._first[item]), int(self._lengths[item])
        if name in self.raw and not self._ring:
            return self.raw[name][item, :, :length]
        return dequantised(self._storage, name, item % self.batch, first, length, None)

    # ---- the rest ----

    def truncate(self, length):
        """Forget what lies behind ``length`` tokens: an int, or integers [B].

        Raises
        ------
        ValueError
            More than an item holds, or negative; nothing is changed.
        """
        wanted = integers("KVCache.truncate", "length", length)
        if wanted.shape not in ((), self._lengths.shape):
            raise ValueError(f"KVCache.truncate(): 'length' of shape {wanted.shape} does not fit [B], "
                             f"where B={self.batch}")
        if ((wanted < 0) | (wanted > self._lengths)).any():
            raise ValueError(f"KVCache.truncate(): 'length' {length} is not within the lengths "
                             f"{self._lengths.tolist()}")
        self._lengths[:] = wanted
        np.minimum(self._first, self._lengths, out=self._first)

    def reset(self):
        """Forget everything."""
        self._lengths[:] = 0
        self._first[:] = 0

    def fork(self):
        """Return an independent copy: what one appends the other does not see."""
        s = self._storage
        other = KVCache(s.kv_heads, s.head_dim, self._capacity, batch=self.batch, dtype=s.dtype, quant=s.quant,
                        group=s.group, ring=self._ring)
        other._lengths[:], other._first[:] = self._lengths, self._first
        for b, length in enumerate(self._lengths.tolist()):
            used = self._capacity if self._ring else length
            for name in self.raw:
                other.raw[name][b, :, :used] = self.raw[name][b, :, :used]
        return other


def write(cache, who, k, v, counts):
    """Append to what has reserve(), commit() and cancel(); shapes are checked."""
    storage, writing = cache.storage, cache.reserve(counts, k.shape[2], who)
    try:
        _ck.kv_append(*storage.parts, k, v, *writing, storage.format.number, storage.group)
    except BaseException as error:
        cancelled(cache, writing, who, error)
    cache.commit(writing)


def cancelled(cache, writing, who, error):
    """Give back what was reserved and raise again, under the name that the user called."""
    cache.cancel(writing)
    text = str(error)
    if text.startswith(("KVCache.", "DecoderLayer.forward")) and not text.startswith(who + "()"):
        raise type(error)(who + text[text.index("()"):]) from None
    raise error


def read(storage, who, q, lengths, table, options, first=None):
    """Attention over a store: item b holds ``lengths[b]`` positions; ``first``: those that a ring still has."""
    scale, window, softcap, sinks, out = options
    T = q.shape[2]
    if (lengths < T).any():
        b = int(np.argmax(lengths < T))
        raise ValueError(f"{who}(): 'q' has {T} positions, item {b} holds {lengths[b]}")
    left, scale, softcap = attend_options(who, storage.head_dim, scale, window, softcap)
    offsets = lengths - T
    if first is not None and T:
        reach = np.zeros_like(offsets) if left < 0 else np.maximum(offsets - left, 0)
        if (reach < first).any():
            b = int(np.argmax(reach < first))
            raise ValueError(f"{who}(): item {b} keeps positions from {first[b]} on, and 'window' reaches back to "
                             f"{reach[b]}")
    try:
        return _ck.kv_attend(out, q, *storage.parts, table, sinks, offsets, lengths.copy(), left, scale, softcap,
                             first is not None, storage.format.number, storage.group)
    except (ValueError, TypeError) as error:
        text = str(error)
        if not text.startswith("KVCache.attend()") or who == "KVCache.attend":
            raise
        raise type(error)(who + text[text.index("()"):]) from None


def dequantised(storage, name, item, first, length, table):
    """Return positions ``first`` to ``length`` of an item as elements, [G, length - first, D]."""
    out = empty((storage.kv_heads, length - first, storage.head_dim), storage.dtype)
    return _ck.kv_read(out, *storage.part(name), table, item, first, length - first, storage.head_dim,
                       storage.format.number, storage.group)
