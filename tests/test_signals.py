"""Ctrl-C reaches a long op within a second; a handler may raise, call ops and change the number of threads."""

import subprocess

import pytest

from native import ENVIRONMENT, PYTHON

# Rows of one element, all of them the same four bytes: some seconds of work on one thread, and an output of which only
# what is written becomes memory.
START = """
import os, signal, sys, threading, time
import numpy as np, ckernels as ck
ck.use("reference")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
def rows(n):
    return np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (n, 1), (0, 4)), np.empty((n, 1), np.float32)
def later(seconds, signal_):
    def send():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal_)
    threading.Timer(seconds, send).start()
sent = []
"""

INTERRUPTED = (
    START
    + """
ck.set_num_threads(int(sys.argv[1]))
x, out = rows(1 << 28)
if sys.argv[2] == "beside":        # another thread holds the pool: this one works alone
    threading.Thread(target=ck.rms_norm, args=rows(1 << 29)[:1], kwargs=dict(out=rows(1 << 29)[1]), daemon=True).start()
    time.sleep(0.1)
later(0.3, signal.SIGINT)
try:
    ck.rms_norm(x, out=out)
    print("finished", flush=True)
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - sent[0] < 1, ck.add(x[:3], x[:3]).tolist() == [[2], [2], [2]], flush=True)
os._exit(0)
"""
)

CAPTURED = (
    START
    + """
from ckernels import _ck
from ckernels.nn.decoder import call
ck.use(ck.isas()[0])
ck.set_num_threads(1)
H, T, D = 64, 512, 256             # seconds of scores, which are computed in double
def of(*shape):
    return np.zeros(shape, np.float32)
weights = dict(ln1_weight=of(1), q_weight=of(H, D, 1), k_weight=of(1, D, 1), v_weight=of(1, D, 1),
               o_weight=of(1, H, D), ln2_weight=of(1), gate_weight=of(1, 1), up_weight=of(1, 1), down_weight=of(1, 1))
scores = np.full((1, H, T, T), np.nan, np.float32)
def when_begun():
    while np.isnan(scores[0, 0, 0, 0]):
        time.sleep(0.005)
    later(0, signal.SIGINT)
threading.Thread(target=when_begun).start()
try:
    call(_ck.decoder_fwd, scores=scores, x=of(1, T, 1), **weights, cos=of(T, 1), sin=of(T, 1), eps=1e-5, scale=1.0)
    print("finished", flush=True)
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - sent[0] < 1, bool(np.isnan(scores).any()), flush=True)
os._exit(0)
"""
)

HANDLED = (
    START
    + """
ck.set_num_threads(2)
done = []
def handler(*unused):
    ck.set_num_threads(3)
    done.append(float(ck.add(x[:40000], x[:40000]).sum()))
signal.signal(signal.SIGUSR1, handler)
x, out = rows(1 << 25)
later(0.05, signal.SIGUSR1)
while not done:
    out[...] = 0
    ck.rms_norm(x, eps=3.0, out=out)
print(done, ck.get_num_threads(), bool((out == 0.5).all()))
"""
)

RAISED = (
    START
    + """
ck.set_num_threads(2)
def handler(*unused):
    raise LookupError("from the handler")
signal.signal(signal.SIGUSR1, handler)
x, out = rows(1 << 28)
later(0.2, signal.SIGUSR1)
try:
    ck.rms_norm(x, out=out)
except LookupError as error:
    print(error, time.monotonic() - sent[0] < 1)
"""
)

BESIDE = (
    START
    + """
ck.set_num_threads(2)
x, out = rows(1 << 26)
thread = threading.Thread(target=ck.rms_norm, args=(x,), kwargs=dict(eps=3.0, out=out))
thread.start()
later(0.1, signal.SIGINT)
try:
    time.sleep(20)
except KeyboardInterrupt:
    print("main", time.monotonic() - sent[0] < 1, end=" ")
start = time.monotonic()
ck.set_num_threads(1)                      # waits for nobody
print(time.monotonic() - start < 0.3, thread.is_alive(), end=" ")
thread.join()
print(bool((out == 0.5).all()))
"""
)


def run(code, *args):
    """Run ``code`` in a Python of its own; return what it prints."""
    done = subprocess.run([PYTHON, "-c", code, *args], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("args", [("1", "alone"), ("2", "alone"), ("2", "beside")], ids="-".join)
def test_ctrl_c_interrupts_within_a_second(args):
    assert run(INTERRUPTED, *args) == ["interrupted", "True", "True"]


def test_ctrl_c_interrupts_the_capture_of_scores():
    assert run(CAPTURED) == ["interrupted", "True", "True"]


def test_a_handler_may_call_ops_and_change_threads_while_an_op_works():
    assert run(HANDLED) == ["[80000.0]", "3", "True"]


def test_what_a_handler_raises_comes_out_of_the_op():
    assert run(RAISED) == ["from", "the", "handler", "True"]


def test_an_op_in_another_thread_goes_on_when_main_is_interrupted():
    assert run(BESIDE) == ["main", "True", "True", "True", "True"]
