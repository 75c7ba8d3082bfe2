"""No memory, at every allocation of every op: MemoryError, nothing lost, nothing broken afterwards."""

import numpy as np
import pytest

import ckernels as ck
import declared
from ckernels import _ck


def outputs(result):
    """Return the arrays an op returned."""
    flat = [b for a in (result if isinstance(result, tuple) else (result,)) for b in (a if isinstance(a, list) else [a])]
    return [a for a in flat if a is not None]


@pytest.fixture(autouse=True)
def no_fault_left():
    """Never leave a failure behind for the next test."""
    yield
    _ck.fail_allocation(0)


@pytest.mark.parametrize("absent", [False, True], ids=["all", "least"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("op", declared.OPS)
def test_every_allocation_may_fail(op, threads, absent, rng):
    ck.set_num_threads(threads)
    arguments = declared.arguments(op, rng, star=(40, 9), absent=absent)
    run = getattr(_ck, op)
    expected = [a.copy() for a in outputs(run(*arguments))]
    before = ck.memory_stats()["in_use"]
    for n in range(1, 100):
        _ck.fail_allocation(n)
        try:
            result = run(*arguments)
        except MemoryError as error:
            assert "(): " in str(error)  # the op's name
            assert ck.memory_stats()["in_use"] == before, f"allocation {n} failed, and something is lost"
            continue
        break
    else:
        pytest.fail("it never succeeds")
    _ck.fail_allocation(0)
    for a, b in zip(outputs(result), expected, strict=True):
        if not (op.endswith("_step") or op in ("sum_of_squares", "grad_scale")):  # these update what is there, which here is nothing in particular
            np.testing.assert_array_equal(a, b)
    result = a = None
    assert ck.memory_stats()["in_use"] == before


def test_the_sweep_sees_workspace_too(rng):
    counts = {}
    for op in declared.OPS:
        arguments = declared.arguments(op, rng, star=(40, 9))
        n = 1
        while True:
            _ck.fail_allocation(n)
            try:
                getattr(_ck, op)(*arguments)
                break
            except MemoryError:
                n += 1
        counts[op] = n - 1
    assert counts["rms_norm_bwd"] == 3  # dx, dweight, and the parts of dweight
    assert sum(counts.values()) > len(counts)


def test_empty_says_that_there_is_no_memory():
    with pytest.raises(MemoryError):
        ck.empty((2**40, 2**20))
    with pytest.raises(MemoryError):
        ck.empty((2**62, 2**62))
    _ck.fail_allocation(1)
    with pytest.raises(MemoryError):
        ck.empty(3)


def test_an_output_that_finds_no_memory_is_named():
    x = np.lib.stride_tricks.as_strided(np.ones(4, np.float32), (2**30, 2**28, 4), (0, 0, 4))
    with pytest.raises(
        MemoryError, match=r"rms_norm\(\): 'out' finds no memory for its shape \(1073741824, 268435456, 4\)"
    ):
        ck.rms_norm(x)
