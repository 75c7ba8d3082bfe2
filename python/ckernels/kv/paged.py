"""A pool of blocks from which sequences of any length take what they need."""
import operator

import numpy as np

from ckernels.kv.formats import Storage, integer
from ckernels.kv.kv_cache import Writing, check_counts, dequantised, integers, read, write

__all__ = ["OutOfBlocks", "PagedBatch", "PagedKVCache"]


class OutOfBlocks(MemoryError, ValueError):
    """The pool has fewer free blocks than an append needs; nothing was written."""


class _Sequence:
    """Its blocks, in order, and how many tokens they hold."""

    def __init__(self, blocks=(), length=0):
        self.blocks, self.length = list(blocks), length


class PagedKVCache:
    """Keys and values of one layer in blocks of ``block_size`` tokens, shared by any number of sequences.

    Parameters
    ----------
    kv_heads, head_dim : int
        G and D.
    num_blocks, block_size : int
        Blocks of the pool, and tokens of a block: any number of at least 1.
    dtype, quant, group
        As for :class:`KVCache`.

    Attributes
    ----------
    free_blocks : int
        Blocks that belong to no sequence.
    raw : dict
        The storage itself, writable, named as for :class:`KVCache`, [num_blocks, G, block_size, ...].

    Notes
    -----
    A sequence is an integer from :meth:`new` or :meth:`fork`.  Position s of it lies in slot ``s % block_size`` of
    block ``block_table(sequence)[s // block_size]``.  Sequences may share blocks; one that appends to a shared block
    first copies it.  Attention gives the bits of a :class:`KVCache` that holds the same tokens, whichever blocks hold
    them.  One thread at a time may change a pool.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> pool = ck.PagedKVCache(kv_heads=2, head_dim=4, num_blocks=8, block_size=2)
    >>> s = pool.new()
    >>> k = np.ones((1, 2, 3, 4), "f4")
    >>> pool.append([s], k, k)
    >>> pool.block_table(s), pool.free_blocks
    (array([0, 1]), 6)
    >>> pool.attend([s], np.ones((1, 2, 1, 4), "f4")).shape
    (1, 2, 1, 4)
    """

    def __init__(self, kv_heads, head_dim, num_blocks, block_size=16, *, dtype="float32", quant=None, group=32):
        sizes = {"kv_heads": kv_heads, "head_dim": head_dim, "num_blocks": num_blocks}
        kv_heads, head_dim, num_blocks = (integer("PagedKVCache", name, value) for name, value in sizes.items())
        self._size = integer("PagedKVCache", "block_size", block_size, 1)
        self._storage = Storage("PagedKVCache", num_blocks, kv_heads, self._size, head_dim, dtype, quant, group)
        self._owners = [0] * num_blocks  # sequences that have the block
        self._free = list(range(num_blocks))[::-1]
        self._sequences, self._next = {}, 0

    @property
    def raw(self):
        """The storage itself, by name; writable."""
        return self._storage.raw

    @property
    def storage(self):
        """Form and arrays, as the C side takes them."""
        return self._storage

    @property
    def num_blocks(self):
        """Blocks of the pool."""
        return len(self._owners)

    @property
    def block_size(self):
        """Tokens of a block."""
        return self._size

    @property
    def free_blocks(self):
        """Blocks that belong to no sequence."""
        return len(self._free)

    def __repr__(self):
        s = self._storage
        return (f"PagedKVCache(kv_heads={s.kv_heads}, head_dim={s.head_dim}, num_blocks={self.num_blocks}, "
                f"block_size={self._size}, {s.describe()}, sequences={len(self._sequences)}, "
                f"free_blocks={self.free_blocks})")

    # ---- sequences ----

    def _of(self, who, sequence):
        try:
            return self._sequences[operator.index(sequence)]
        except TypeError:
            raise TypeError(f"PagedKVCache.{who}(): a sequence is an integer from new(), "
                            f"not {type(sequence).__name__}") from None
        except KeyError:
            raise IndexError(f"PagedKVCache.{who}(): there is no sequence {sequence}") from None

    def _all(self, who, sequences):
        try:
            listed = [operator.index(sequences)] if np.ndim(sequences) == 0 else list(sequences)
        except TypeError:
            raise TypeError(f"PagedKVCache.{who}(): 'sequences' must be a list of integers from new(), "
                            f"not {type(sequences).__name__}") from None
        return [self._of(who, sequence) for sequence in listed]

    def _add(self, sequence):
        self._sequences[self._next] = sequence
        self._next += 1
        return self._next - 1

    def new(self):
        """Return a new, empty sequence: an integer that was none before."""
        return self._add(_Sequence())

    def fork(self, sequence):
        """Return a new sequence that holds the same tokens in the same blocks, until one of the two appends."""
        of = self._of("fork", sequence)
        for block in of.blocks:
            self._owners[block] += 1
        return self._add(_Sequence(of.blocks, of.length))

    def free(self, sequence):
        """Give back a sequence's blocks; it is no sequence any more."""
        self._drop(self._of("free", sequence), 0)
        del self._sequences[operator.index(sequence)]

    def truncate(self, sequence, length):
        """Forget what lies behind ``length`` tokens, and give back the blocks that then hold nothing.

        Raises
        ------
        ValueError
            More than the sequence holds, or negative; nothing is changed.
        """
        of = self._of("truncate", sequence)
        length = integer("PagedKVCache.truncate", "length", length)
        if length > of.length:
            raise ValueError(f"PagedKVCache.truncate(): 'length' is {length}, sequence {sequence} holds {of.length} "
                             f"tokens")
        self._drop(of, length)

    def _drop(self, of, length):
        kept = -(-length // self._size)
        for block in reversed(of.blocks[kept:]):
            self._owners[block] -= 1
            if self._owners[block] == 0:
                self._free.append(block)
        del of.blocks[kept:]
        of.length = length

    def block_table(self, sequence):
        """Return the blocks of a sequence, in order, int64."""
        return np.array(self._of("block_table", sequence).blocks, np.int64)

    def length(self, sequence):
        """Return how many tokens a sequence holds."""
        return self._of("length", sequence).length

    def keys(self, sequence):
        """Return the keys of a sequence, [G, length, D] of the cache's dtype; a copy."""
        return self._held("keys", "k", sequence)

    def values(self, sequence):
        """Return the values of a sequence, [G, length, D] of the cache's dtype; a copy."""
        return self._held("values", "v", sequence)

    def _held(self, who, name, sequence):
        of = self._of(who, sequence)
        return dequantised(self._storage, name, 0, 0, of.length, self._table([of.blocks]))

    def batch(self, sequences):
        """Return these sequences as one cache, a :class:`PagedBatch`: what a layer takes.

        Raises
        ------
        ValueError
            The same sequence twice.
        """
        return PagedBatch(self, sequences)

    # ---- tokens ----

    @staticmethod
    def _table(rows):
        """Return lists of blocks as a table [B, P]."""
        table = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
        for row, blocks in zip(table, rows, strict=True):
            row[: len(blocks)] = blocks
        return table

    def append(self, sequences, k, v, counts=None):
        """Write new tokens behind those that each sequence holds.

        Parameters
        ----------
        sequences : list of int
            B different ones.
        k, v : [B, G, n, D] of the cache's dtype
        counts : integers [B], optional
            How many of the n tokens each sequence takes; all of them by default.

        Raises
        ------
        OutOfBlocks
            A MemoryError and a ValueError: too few free blocks; nothing is written.
        TypeError, ValueError, IndexError
            Another dtype, a shape that does not fit, NaN, inf or 2**126 where codes are stored, no such sequence, one
            twice; nothing is written.
        """
        batch = PagedBatch(self, sequences, "append")
        for name, array in ("k", k), ("v", v):
            self._storage.check_shape("PagedKVCache.append", name, array, "[B, G, n, D]", batch.batch,
                                      self._storage.kv_heads)
        write(batch, "PagedKVCache.append", k, v, counts)

    def attend(self, sequences, q, *, scale=None, window=None, softcap=None, sinks=None, out=None):
        """Attention of the queries at the last T positions of each sequence over what it holds.

        Parameters
        ----------
        sequences : list of int
            B of them; one may be there twice.
        q : [B, H, T, D] of the cache's dtype
            Query t of sequence b stands at position ``length(b) - T + t``.
        scale, window, softcap, sinks
            As in :func:`ckernels.scaled_dot_product_attention`.
        out : like q, optional

        Returns
        -------
        like q

        Raises
        ------
        ValueError
            T beyond the length of a sequence.
        """
        found = self._all("attend", sequences)
        return self._attend(found, "PagedKVCache.attend", q, (scale, window, softcap, sinks, out))

    def _attend(self, found, who, q, options):
        self._storage.check_shape(who, "q", q, "[B, H, T, D]", len(found))
        lengths = np.array([of.length for of in found], np.int64)
        return read(self._storage, who, q, lengths, self._table([of.blocks for of in found]), options)

    def _reserve(self, found, counts, who):
        """Take blocks for so many more tokens of each; return (blocks of each, blocks taken, from, to)."""
        rows, copies, taken, owners = [], [], [], {}
        for of, count in zip(found, counts.tolist(), strict=True):
            blocks = list(of.blocks)
            if count and of.length % self._size:  # goes on in the last block
                last = blocks[-1]
                owners.setdefault(last, self._owners[last])
                if owners[last] > 1:
                    owners[last] -= 1
                    blocks[-1] = self._take(taken)
                    copies.append((last, blocks[-1]))
            while len(blocks) * self._size < of.length + count:
                blocks.append(self._take(taken))
            rows.append(blocks)
        if taken and taken[-1] is None:
            lacking = taken.count(None)
            self._free += [block for block in reversed(taken) if block is not None]
            raise OutOfBlocks(f"{who}(): {len(taken)} blocks are needed, {len(taken) - lacking} of {self.num_blocks} "
                              f"are free")
        return rows, copies, taken

    def _take(self, taken):
        taken.append(self._free.pop() if self._free else None)
        return taken[-1]


class PagedBatch:
    """Sequences of a pool as one cache, which has the methods of :class:`KVCache` that a layer or model calls.

    Parameters
    ----------
    pool : PagedKVCache
    sequences : list of int
        B different ones.

    Attributes
    ----------
    pool, sequences
        As given.
    lengths : int64 [B]
        Tokens of each; a copy.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> pool = ck.PagedKVCache(kv_heads=1, head_dim=4, num_blocks=8, block_size=2)
    >>> cache = pool.batch([pool.new(), pool.new()])
    >>> cache.append(np.ones((2, 1, 3, 4), "f4"), np.ones((2, 1, 3, 4), "f4"), counts=[3, 1])
    >>> cache.lengths
    array([3, 1])
    """

    ring = False

    def __init__(self, pool, sequences, who="batch"):
        found = pool._all(who, sequences)
        if len({id(of) for of in found}) != len(found):
            raise ValueError(f"PagedKVCache.{who}(): a sequence is there twice")
        self.pool = pool
        self.sequences = [operator.index(sequences)] if np.ndim(sequences) == 0 else [int(s) for s in sequences]

    @property
    def _found(self):
        return self.pool._all("batch", self.sequences)

    @property
    def storage(self):
        """Form and arrays of the pool."""
        return self.pool.storage

    @property
    def lengths(self):
        """Tokens of each sequence, int64 [B]; a copy."""
        return np.array([of.length for of in self._found], np.int64)

    @property
    def batch(self):
        """How many sequences there are."""
        return len(self.sequences)

    @property
    def capacity(self):
        """Tokens that one of them could hold if it had all blocks of the pool."""
        return self.pool.num_blocks * self.pool.block_size

    def counts_of(self, counts, tokens, who="PagedKVCache.append"):
        """Return the tokens that each sequence takes of ``tokens`` brought, int64 [B]; ValueError out of range."""
        return check_counts(who, counts, self.lengths, tokens, None)

    def reserve(self, counts, tokens, who="PagedKVCache.append"):
        """Take the blocks for so many tokens; :meth:`commit` or :meth:`cancel` ends it.

        Raises
        ------
        OutOfBlocks
            Too few are free; nothing is taken.
        """
        counts = self.counts_of(counts, tokens, who)
        rows, copies, self._taken = self.pool._reserve(self._found, counts, who)
        self._rows = rows
        pairs = np.array(copies, np.int64).reshape(-1, 2)
        return Writing(self.lengths, counts, self.pool._table(rows), pairs[:, 0].copy(), pairs[:, 1].copy(), False)

    def commit(self, writing):
        """Count what a C function has just written."""
        owners = self.pool._owners
        for block in self._taken:
            owners[block] = 1
        for block in writing.copy_from.tolist():
            owners[block] -= 1
        for of, blocks, count in zip(self._found, self._rows, writing.counts.tolist(), strict=True):
            of.blocks, of.length = blocks, of.length + count

    def cancel(self, writing):
        """Give back the blocks that were taken."""
        self.pool._free += reversed(self._taken)

    def append(self, k, v, counts=None):
        """As :meth:`PagedKVCache.append`."""
        self.pool.append(self.sequences, k, v, counts)

    def attend(self, q, **options):
        """As :meth:`PagedKVCache.attend`."""
        return self.pool.attend(self.sequences, q, **options)

    def keys(self, b):
        """Return the keys of item b, [G, length, D]; a copy."""
        return self.pool.keys(self.sequences[b])

    def values(self, b):
        """Return the values of item b, [G, length, D]; a copy."""
        return self.pool.values(self.sequences[b])

    def truncate(self, length):
        """Forget what lies behind ``length`` tokens: an int, or integers [B]; as :meth:`KVCache.truncate`."""
        wanted, held = integers("PagedBatch.truncate", "length", length), self.lengths
        if wanted.shape not in ((), held.shape):
            raise ValueError(f"PagedBatch.truncate(): 'length' of shape {wanted.shape} does not fit [B], "
                             f"where B={self.batch}")
        if ((wanted < 0) | (wanted > held)).any():
            raise ValueError(f"PagedBatch.truncate(): 'length' {length} is not within the lengths {held.tolist()}")
        for of, n in zip(self._found, np.broadcast_to(wanted, held.shape).tolist(), strict=True):
            self.pool._drop(of, n)

    def reset(self):
        """Forget everything."""
        self.truncate(0)

    def fork(self):
        """Return the same of forks of all sequences, in the same pool."""
        return PagedBatch(self.pool, [self.pool.fork(s) for s in self.sequences])
