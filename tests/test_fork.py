"""fork(): parent and child both go on, with a busy pool, from any thread, and from a signal's handler."""

import multiprocessing
import os
import subprocess
import threading

import numpy as np
import pytest

import ckernels as ck
from native import ENVIRONMENT, PYTHON
from test_threads import stress

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
X = np.random.default_rng(5).standard_normal((2000, 300)).astype(np.float32)


def in_child(work):
    """Run ``work()`` in a forked child that dies after 20 s; return whether it was true."""
    child = os.fork()
    if child == 0:
        import signal

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        os._exit(0 if work() else 1)
    return os.waitpid(child, 0)[1] == 0


def test_children_work_with_workers_of_their_own():
    assert stress("pool_stress", [], "1", "fork").startswith("ok: ")


def test_child_computes_the_same_bits():
    ck.set_num_threads(2)
    expected = ck.rms_norm(X).tobytes()
    assert in_child(lambda: ck.rms_norm(X).tobytes() == expected)
    assert ck.rms_norm(X).tobytes() == expected


def test_fork_while_another_thread_is_in_an_op():
    ck.set_num_threads(2)
    expected = ck.rms_norm(X).tobytes()
    stop, failed = threading.Event(), []

    def work():
        while not stop.is_set():
            if ck.rms_norm(X).tobytes() != expected:
                failed.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert all(in_child(lambda: ck.rms_norm(X).tobytes() == expected) for _ in range(10))
    finally:
        stop.set()
        thread.join()
    assert not failed


def test_fork_from_a_thread():
    ck.set_num_threads(2)
    expected = ck.rms_norm(X).tobytes()
    results = []
    thread = threading.Thread(target=lambda: results.append(in_child(lambda: ck.rms_norm(X).tobytes() == expected)))
    thread.start()
    thread.join(30)
    assert results == [True]


def test_memory_of_the_parent_stays_counted_in_the_child():
    y = ck.add(X, X)
    before = ck.memory_stats()["in_use"]

    def look():
        ck.empty_cache()
        return ck.memory_stats()["in_use"] == before and bool((y == 2 * X).all())

    assert in_child(look)


def _norm(rows):
    return float(ck.rms_norm(X[:rows]).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method):
    ck.set_num_threads(2)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(_norm, [100, 700]).get(60) == [_norm(100), _norm(700)]


HANDLER_FORKS = """
import os, signal, threading, time
import numpy as np, ckernels as ck
ck.set_num_threads(2); ck.use("reference")
x = np.ones((1 << 15, 1 << 10), np.float32); out = np.empty_like(x)
children = []
def handler(*unused):
    child = os.fork()
    if child:
        children.append(child)
    else:
        signal.alarm(20)
        BEFORE_IT_RETURNS
signal.signal(signal.SIGUSR1, handler)
main = os.getpid()
threading.Timer(0.15, os.kill, (main, signal.SIGUSR1)).start()
try:
    for _ in range(100):
        ck.rms_norm(x, out=out)
        if children:
            break
    verdict = 0
except RuntimeError as error:
    assert "rms_norm(): called off: a signal's handler forked" in str(error)
    y = ck.add(x[:999], x[:999])           # and the child goes on
    verdict = 0 if (y == 2).all() else 4
if os.getpid() != main:
    os._exit(verdict + 40)
print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]), len(children))
"""


@pytest.mark.parametrize("first", ["pass", "assert (ck.add(x[:64], x[:64]) == 2).all()"], ids=["nothing", "an op"])
def test_a_handler_that_forks_calls_the_op_off_in_the_child(first):
    """The pool may have done other work in the child before the op that was called off returns."""
    code = HANDLER_FORKS.replace("BEFORE_IT_RETURNS", first)
    run = subprocess.run([PYTHON, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["40", "1"], run.stderr
