"""One token for each of many caches, in one call."""
import numpy as np

from ckernels import _ck
from ckernels.kv.kv_cache import KVCache, cancelled

__all__ = ["kv_append_batched"]

_NAME = "kv_append_batched"


def kv_append_batched(caches, k, v):
    """Append one new token to each of m separate caches, whose lengths and capacities may all differ.

    Parameters
    ----------
    caches : list of KVCache
        m different ones of one item each, all of the same heads, head size, dtype and format.
    k, v : [m, G, D] of the caches' dtype
        Row i goes to ``caches[i]``, behind what that one holds.

    Raises
    ------
    TypeError
        No caches, or another dtype.
    ValueError
        A cache that is full, is there twice, has several items or another form; a shape that does not fit; NaN, inf or
        2**126 where codes are stored.  Nothing is written.

    Notes
    -----
    The same bits as ``append`` of each.

    Examples
    --------
    >>> import ckernels as ck, numpy as np
    >>> caches = [ck.KVCache(1, 4, 8) for _ in range(2)]
    >>> ck.kv_append_batched(caches, np.ones((2, 1, 4), "f4"), np.ones((2, 1, 4), "f4"))
    >>> [int(cache.lengths[0]) for cache in caches]
    [1, 1]
    """
    if not isinstance(caches, (list, tuple)):
        raise TypeError(f"{_NAME}(): 'caches' must be a list of KVCache, not {type(caches).__name__}")
    for i, cache in enumerate(caches):
        if not isinstance(cache, KVCache):
            raise TypeError(f"{_NAME}(): 'caches[{i}]' must be a KVCache, not {type(cache).__name__}")
    if len({id(cache) for cache in caches}) != len(caches):
        raise ValueError(f"{_NAME}(): 'caches' holds the same cache twice")
    if not caches:
        raise ValueError(f"{_NAME}(): 'caches' is empty")
    first = caches[0].storage
    for i, cache in enumerate(caches):
        _check_member(i, cache, caches[0])
    for name, array in ("k", k), ("v", v):
        shape = getattr(array, "shape", None)
        if shape is not None and tuple(shape) != (len(caches), first.kv_heads, first.head_dim):
            raise ValueError(f"{_NAME}(): '{name}' of shape {tuple(shape)} does not fit [m, G, D], where "
                             f"m={len(caches)}, G={first.kv_heads}, D={first.head_dim}")
    writings = [cache.reserve(None, 1, _NAME) for cache in caches]
    lists = [[cache.storage.parts[i] for cache in caches] if part is not None else None
             for i, part in enumerate(first.parts)]
    lengths = np.concatenate([writing.lengths for writing in writings])
    try:
        _ck.kv_append_batched(*lists, k, v, lengths, caches[0].ring, first.format.number, first.group)
    except BaseException as error:
        cancelled(caches[0], writings[0], _NAME, error)
    for cache, writing in zip(caches, writings, strict=True):
        cache.commit(writing)


def _check_member(i, cache, first):
    mine, theirs = cache.storage, first.storage
    if cache.batch != 1:
        raise ValueError(f"{_NAME}(): 'caches[{i}]' has {cache.batch} items: one is needed")
    if not cache.ring and cache.lengths[0] >= cache.capacity:
        raise ValueError(f"{_NAME}(): 'caches[{i}]' holds {cache.lengths[0]} tokens of {cache.capacity}: "
                         f"1 more does not fit")
    for name in ("kv_heads", "head_dim", "dtype", "quant", "group"):
        if getattr(mine, name) != getattr(theirs, name):
            raise ValueError(f"{_NAME}(): 'caches[{i}]' has {name} {getattr(mine, name)}, 'caches[0]' "
                             f"{getattr(theirs, name)}")
    if cache.ring != first.ring:
        raise ValueError(f"{_NAME}(): 'caches[{i}]' and 'caches[0]' are not both rings")
