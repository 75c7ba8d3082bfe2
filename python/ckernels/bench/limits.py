"""What the machine can do at most, by the same number of threads: kernels that do nothing but move or multiply."""

import functools
import itertools

import numpy as np

import ckernels as ck
from ckernels import _ck

from .timing import seconds_of

__all__ = ["LIMITS", "amx", "arithmetic", "fma", "measure", "memory"]

_ROW = 65536  # elements a task: what one thread takes at a time
_ROWS = 512  # of the source: 128 MiB, more than the caches hold

#: name of a limit: (share of the bytes that is the array's size, the ways to do it: the faster one counts)
LIMITS = {
    "copy": (1 / 2, ("copy, streamed", "copy, plain")),
    "update": (1 / 2, ("update",)),
    "read": (1, ("read, 1 stream", "read, 8 streams")),
    "fma": (None, ("fma",)),
}


@functools.cache
def _arrays():
    """Return (source, target) of the probes; not from the arena, whose use is reported."""
    source = np.empty((_ROWS, _ROW), np.float32)
    source[:] = np.random.default_rng(0).standard_normal(_ROW, np.float32)
    target = np.zeros((_ROWS // 2, _ROW), np.float32)
    return source, target


def _mover(way, rows):
    """Make the call of one way on so many rows, on other ones every time."""
    source, target = _arrays()
    places = itertools.cycle(range(0, _ROWS - rows + 1, rows))
    target, sums = target[:rows], np.empty(rows, np.float32)

    def call(unused):
        begin = next(places)
        x = source[begin : begin + rows]
        if way.startswith("copy"):
            _ck.probe_copy(target, x, way == "copy, streamed")
        elif way == "update":
            _ck.probe_update(x, x)
        else:
            _ck.probe_read(sums, x, way == "read, 8 streams")

    return call


def memory(limit, nbytes):
    """Make the calls of a limit that move about as many bytes as a case.

    Returns
    -------
    dict of str to (callable, int)
        By the name of the way; the callable takes one argument, which it does not use, and the int is the bytes that
        it moves.
    """
    share, ways = LIMITS[limit]
    rows = int(min(max(1, round(nbytes * share / (4 * _ROW))), _ROWS // 2))
    moved = round(rows * 4 * _ROW / share)
    return {way: (_mover(way, rows), moved) for way in ways}


def fma():
    """Make the call that does fused multiply-adds alone; as :func:`memory`, with operations for bytes."""
    blocks, n = 8 * ck.get_num_threads(), 65536  # a millisecond: waking a thread must not count
    sums = np.empty(blocks, np.float32)
    return {"fma": (lambda unused: _ck.probe_fma(sums, n), 2 * 128 * n * blocks)}


def amx():
    """Make the call that multiplies tiles of bfloat16 alone; as :func:`fma`, but empty without a matrix unit."""
    blocks, n = 8 * ck.get_num_threads(), 65536  # a millisecond: waking a thread must not count
    sums = np.empty(blocks, np.float32)
    if np.isnan(_ck.probe_amx(sums, 0)).any():
        return {}
    return {"amx": (lambda unused: _ck.probe_amx(sums, n), 2 * 4 * 8192 * n * blocks)}


def arithmetic(dtype):
    """Make the call that shows the most operations that products of a dtype may have: AMX or multiply-adds."""
    return (amx() if dtype == "bfloat16" else {}) or fma()


def measure(times=7):
    """Measure every limit once, on arrays larger than the caches.

    Returns
    -------
    dict of str to float
        Bytes (or operations) a second, read and written, of each way; and of NumPy's copy by one thread, for
        comparison: it is no limit.  "amx" is None without a matrix unit.
    """
    calls = {}
    for limit, (share, _) in LIMITS.items():
        calls.update(memory(limit, 64 << 20) if share else fma())
    calls.update(amx())
    rates = {"amx": None}
    for way, (call, work) in calls.items():
        call(None)
        rates[way] = work / min(seconds_of(call, None) for _ in range(times))
    source, target = _arrays()
    half = source[: _ROWS // 2]
    rates["numpy.copyto"] = 2 * half.nbytes / min(seconds_of(np.copyto, target, half) for _ in range(times))
    return rates
