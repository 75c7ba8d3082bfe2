"""Instruction sets, threads and memory: what is chosen for all ops."""
import os

import numpy as np

from ckernels import _ck

__all__ = ["empty", "empty_cache", "get_num_threads", "isa", "isas", "memory_stats", "set_num_threads", "use"]


def isas():
    """Return the instruction sets that this build and this CPU offer.

    Returns
    -------
    list of str
        Names that :class:`use` and ``CK_ISA`` take, best first; "reference" is the specification, in double.

    Examples
    --------
    >>> import ckernels as ck
    >>> ck.isas()[-1]
    'reference'
    """
    return _ck.isas()


def isa():
    """Return the instruction set in use: the best one, unless ``CK_ISA`` or :class:`use` chose another.

    Returns
    -------
    str

    Examples
    --------
    >>> import ckernels as ck
    >>> ck.isa() in ck.isas()
    True
    """
    return _ck.isa()


def set_num_threads(n):
    """Choose how many threads an op may use, the calling one included; no bit of any result depends on it.

    Parameters
    ----------
    n : int
        1 to 64.  Before the first call it is ``CK_NUM_THREADS``, or the number of CPUs that the process may use.

    Raises
    ------
    TypeError, ValueError
        No integer, or out of range.

    Examples
    --------
    >>> import ckernels as ck
    >>> before = ck.get_num_threads()
    >>> ck.set_num_threads(1)
    >>> ck.get_num_threads()
    1
    >>> ck.set_num_threads(before)
    """
    _ck.set_num_threads(n)


def get_num_threads():
    """Return how many threads an op may use.

    Returns
    -------
    int

    Examples
    --------
    >>> import ckernels as ck
    >>> ck.get_num_threads() >= 1
    True
    """
    return _ck.get_num_threads()


def memory_stats():
    """Return what the arena holds.

    Returns
    -------
    dict of str to int
        In bytes: ``in_use``, ``cached`` (kept for reuse), ``peak`` (of both, since the last
        :func:`empty_cache`), ``limit`` (of what is kept,
        ``CK_CACHE_LIMIT``).  In calls: ``takes`` and ``reuses`` of large blocks.

    Examples
    --------
    >>> import ckernels as ck
    >>> sorted(ck.memory_stats())
    ['cached', 'in_use', 'limit', 'peak', 'reuses', 'takes']
    """
    return _ck.memory_stats()


def empty_cache():
    """Give the memory that the arena keeps for reuse back to the system; arrays in use stay, ``peak`` begins anew.

    Examples
    --------
    >>> import ckernels as ck
    >>> ck.empty_cache()
    >>> ck.memory_stats()["cached"]
    0
    """
    _ck.empty_cache()


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
