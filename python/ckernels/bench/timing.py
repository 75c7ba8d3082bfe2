"""The clock: calls in turn, so that a slow moment hits all of them."""

import os
import statistics
import threading
import time

__all__ = ["alternate", "ratios", "rest", "seconds_of"]

_SHORT = 20e-6  # seconds: calls that take less are timed several at a time
_REST = 0.05  # seconds: so long a call waits for threads that spin, at most
_TURNS, _LEAST = 5, 3  # turns: so many unless they take four times as long as they may, and so many in any case


def _others_run():
    """Whether a thread of this process other than the caller runs, or waits for a core."""
    own = str(threading.get_native_id())
    for thread in os.listdir("/proc/self/task"):
        if thread == own:
            continue
        try:
            with open(f"/proc/self/task/{thread}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if state == b"R":
            return True
    return False


def rest():
    """Wait until the threads of the call before are asleep, or ``_REST`` seconds.

    OpenMP's threads, PyTorch's among them, spin for milliseconds after a call.  On as many cores as threads, whoever
    is called meanwhile shares a core with them: a call of ours on two threads took up to twice its time.
    """
    begin = time.perf_counter()
    while _others_run() and time.perf_counter() - begin < _REST:
        time.sleep(1e-4)


def seconds_of(call, *args, repeat=1):
    """Return how long one call takes; its result lives until the clock has stopped.

    With ``repeat``, the mean of so many calls one after the other: for calls of about a microsecond.
    """
    if repeat == 1:
        start = time.perf_counter()
        result = call(*args)
        end = time.perf_counter()
        del result
        return end - start
    turns = range(repeat)
    start = time.perf_counter()
    for _ in turns:
        call(*args)
    return (time.perf_counter() - start) / repeat


def alternate(calls, inputs, seconds):
    """Call each in turn, on one input after another, when the threads of the call before are asleep.

    Parameters
    ----------
    calls : list of (before, call)
        ``before()`` is not timed; ``call(input)`` is.
    inputs : list
        Each call takes one, half-way round from that of the call before it, so that none gets what another has just
        brought into the caches.
    seconds : float
        For so long, and at least five turns; three where PyTorch takes very long.

    Returns
    -------
    list of list of float
        The times of each call.
    """
    apart, times, repeats = max(1, len(inputs) // max(1, len(calls))), [[] for _ in calls], []
    for before, call in calls:
        before()
        call(inputs[0])
        took = seconds_of(call, inputs[-1])
        repeats.append(1 if took > _SHORT else min(256, int(2 * _SHORT / took) + 1))
    begin, turn = time.perf_counter(), 0
    while (took := time.perf_counter() - begin) < seconds or turn < _LEAST or (turn < _TURNS and took < 4 * seconds):
        for i, (before, call) in enumerate(calls):
            before()
            rest()
            times[i].append(seconds_of(call, inputs[(turn + i * apart) % len(inputs)], repeat=repeats[i]))
        turn += 1
    return times


def ratios(ours, theirs):
    """Return theirs over ours: of the fastest calls, and the median over neighbours."""
    return min(theirs) / min(ours), statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
