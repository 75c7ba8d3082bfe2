"""Instruction sets, threads and memory: what is chosen for all ops."""
import os

import numpy as np

from ckernels import _ck
from ckernels._ck import empty_cache, get_num_threads, isa, isas, memory_stats, set_num_threads

__all__ = ["empty", "empty_cache", "get_num_threads", "isa", "isas", "memory_stats", "set_num_threads", "use"]


class use:  # noqa: N801 - a function to its caller
    """Choose the instruction set: ``ck.use("avx2")`` for good, ``with ck.use("avx2"):`` for a block.

    Parameters
    ----------
    isa : str
        A name from ``ck.isas()``.

    Raises
    ------
    ValueError
        This build or this CPU does not have it; the message lists what there is.

    Notes
    -----
    The choice is the process's, not the thread's.

    Examples
    --------
    >>> import ckernels as ck
    >>> with ck.use("reference"):
    ...     ck.isa()
    'reference'
    """

    def __init__(self, isa):
        self._before = _ck.use_isa(isa)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        _ck.use_isa(self._before)


def empty(shape, dtype=np.float32):
    """Return a new array, not cleared, 64-byte aligned, from the arena: what every op uses without ``out=``.

    Parameters
    ----------
    shape : int or sequence of int
    dtype : number type

    Raises
    ------
    ValueError, TypeError, MemoryError

    Examples
    --------
    >>> import ckernels as ck
    >>> ck.empty((2, 3)).shape
    (2, 3)
    """
    return _ck.empty(shape, dtype)


def _from_environment(name, default, least, most):
    """Return the integer in an environment variable; ValueError names the variable."""
    text = os.environ.get(name)
    try:
        value = default if text is None else int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise ValueError(f"{name}={text!r}: an integer from {least} to {most} expected")
    return value


set_num_threads(_from_environment("CK_NUM_THREADS", min(64, len(os.sched_getaffinity(0))), 1, 64))
_ck.set_cache_limit(_from_environment("CK_CACHE_LIMIT", 2 << 30, 0, 2**62))
