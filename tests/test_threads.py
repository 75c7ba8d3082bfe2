"""The pool: same bits for any number of threads, several callers at once, no race, no wait that never ends."""

import os
import subprocess
import threading

import numpy as np
import pytest

import ckernels as ck
import native

RUNTIME = [f"csrc/runtime/{name}.c" for name in ("pool", "arena", "error")]


def stress(name, flags, *args):
    """Build and run tests/c/pool_stress.c; return what it prints."""
    flags = ["-O1", "-g", "-DCK_POLL_NS=100000", *flags]
    program = native.link(
        name,
        [(source, flags) for source in [*RUNTIME, "tests/c/pool_stress.c"]],
        *[flag for flag in flags if flag.startswith("-fsanitize")],
    )
    run = subprocess.run([program, *args], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_every_task_is_done_once_by_several_callers_while_the_number_of_threads_changes():
    assert stress("pool_stress", [], "1").startswith("ok: ")


def test_the_pool_is_free_of_races():
    assert stress("pool_stress_tsan", ["-fsanitize=thread"], "1").startswith("ok: ")


@pytest.mark.parametrize("n", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(isa, n, rng):
    x, dy = rng.standard_normal((2, 600, 100)).astype(np.float32)
    w = rng.standard_normal(100).astype(np.float32)

    def results():
        y, ctx = ck.rms_norm_forward(x, w)
        return [y, *ck.rms_norm_backward(dy, ctx), ck.add(x, dy)]

    ck.set_num_threads(1)
    alone = results()
    ck.set_num_threads(n)
    for a, b in zip(alone, results(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_many_python_threads_call_at_once(rng):
    ck.set_num_threads(2)
    x = rng.standard_normal((500, 333)).astype(np.float32)
    w = rng.standard_normal(333).astype(np.float32)
    expected = ck.rms_norm(x, w).tobytes()
    wrong, done = [], []

    def call():
        for _ in range(40):
            if ck.rms_norm(x, w).tobytes() != expected:
                wrong.append(threading.get_ident())
        done.append(True)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for i in range(200):
        ck.set_num_threads(1 + i % 4)
    for thread in threads:
        thread.join(60)
    assert not wrong and len(done) == 6


def test_the_gil_is_released_while_an_op_works(rng):
    x = np.ones((1 << 14, 1 << 10), np.float32)
    out = np.empty_like(x)
    inside, seen = threading.Event(), []

    def look():
        inside.wait()
        while inside.is_set():
            seen.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    before = len(seen)
    inside.set()
    with ck.use("reference"):  # slow enough to be looked at
        ck.rms_norm(x, out=out)
    during = len(seen) - before
    inside.clear()
    thread.join()
    assert during > 10_000  # one op: without the GIL's release the thread would get at most a slice around it


def test_number_of_threads_is_checked():
    for bad in (0, -1, 65, 2**70):
        with pytest.raises(ValueError, match=r"set_num_threads\(\): 'n' must be 1 to 64"):
            ck.set_num_threads(bad)
    for bad in ("2", 1.5, None):
        with pytest.raises(TypeError, match=r"set_num_threads\(\): 'n'"):
            ck.set_num_threads(bad)
    ck.set_num_threads(np.int64(3))
    assert ck.get_num_threads() == 3


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_one_thread_starts_no_workers():
    code = (
        "import os, numpy as np, ckernels as ck; x = np.ones((4000, 100), np.float32);"
        "before = len(os.listdir('/proc/self/task')); ck.add(x, x);"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    for n, started in (("1", "0"), ("3", "2")):
        out = subprocess.run(
            [native.PYTHON, "-c", code],
            env={**native.ENVIRONMENT, "CK_NUM_THREADS": n},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == started
