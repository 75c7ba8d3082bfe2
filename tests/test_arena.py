"""The arena: aligned, reused, limited, counted, and never under an array that somebody still sees."""

import gc
import subprocess

import numpy as np
import pytest

import ckernels as ck
from ckernels import _ck
from native import ENVIRONMENT, PYTHON

MIB = 1 << 20
HUGE = 2 * MIB


@pytest.fixture(autouse=True)
def clean():
    """Start with an empty cache, and put the limit back."""
    gc.collect()
    before = ck.memory_stats()["limit"]
    ck.empty_cache()
    yield
    _ck.set_cache_limit(before)
    ck.empty_cache()


def stats(*names):
    """Return these of ck.memory_stats()."""
    found = ck.memory_stats()
    return tuple(found[name] for name in names)


def test_large_arrays_are_aligned_to_huge_pages_and_small_ones_to_a_line():
    for n in (1, 2, 3, 5, 9, 17):
        assert ck.empty((n, MIB // 4)).ctypes.data % HUGE == 0
    for n in (0, 1, 7, 1000):
        assert ck.empty(n).ctypes.data % 64 == 0


def test_huge_pages_are_advised():
    y = ck.empty(8 * MIB // 4)
    at, advised = False, None
    for line in open("/proc/self/smaps"):
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            low, high = (int(part, 16) for part in fields[0].split("-"))
            at = low <= y.ctypes.data < high
        elif at and fields[0] == "VmFlags:":
            advised = "hg" in fields
    assert advised


def test_what_dies_is_reused_and_what_lives_is_not():
    a = ck.empty((4, MIB))
    address = a.ctypes.data
    b = ck.empty((4, MIB))
    assert b.ctypes.data != address
    takes, reuses = stats("takes", "reuses")
    del a
    c = ck.empty((4, MIB))
    assert c.ctypes.data == address
    assert stats("takes", "reuses") == (takes + 1, reuses + 1)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[5:],
        lambda a: a.T,
        lambda a: a.reshape(-1)[3:4],
        memoryview,
        lambda a: a.view("u4"),
        lambda a: np.from_dlpack(a),
    ],
    ids=["slice", "T", "element", "buffer", "dtype", "dlpack"],
)
def test_a_view_keeps_the_memory(view):
    a = ck.empty((MIB, 4))
    a[...] = 7
    address = a.ctypes.data
    v = view(a)
    del a
    gc.collect()
    others = [ck.empty((MIB, 4)) for _ in range(3)]
    for other in others:
        assert other.ctypes.data != address
        other[...] = 0
    assert (np.asarray(v, dtype=None) == np.float32(7).view("u4" if np.asarray(v).dtype == np.uint32 else "f4")).all()
    del v
    gc.collect()
    assert ck.empty((MIB, 4)).ctypes.data == address


def test_what_an_op_returns_and_what_backward_saves_are_kept_too(rng):
    x = rng.standard_normal((1024, 512)).astype(np.float32)
    y = ck.add(x, x)
    kept = y[3]
    expected = kept.copy()
    del y
    for _ in range(4):
        ck.add(x, x, alpha=5.0)
    assert kept.tobytes() == expected.tobytes()


def test_counts_add_up():
    gc.collect()
    in_use, cached = stats("in_use", "cached")
    assert cached == 0
    a = ck.empty(4 * MIB // 4)
    assert stats("in_use", "cached") == (in_use + 4 * MIB, 0)
    del a
    assert stats("in_use", "cached") == (in_use, 4 * MIB)
    small = ck.empty(25)
    assert stats("in_use", "cached") == (in_use + 100, 4 * MIB)
    assert stats("peak")[0] >= in_use + 4 * MIB
    del small
    ck.empty_cache()
    assert stats("in_use", "cached") == (in_use, 0)


def test_empty_cache_gives_pages_back():
    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * 4096

    a = ck.empty(256 * MIB // 4)
    a[...] = 1
    full = resident()
    del a
    assert resident() > full - 16 * MIB  # kept
    ck.empty_cache()
    assert resident() < full - 200 * MIB


def test_the_limit_holds():
    _ck.set_cache_limit(10 * MIB)
    arrays = [ck.empty(4 * MIB // 4) for _ in range(4)]
    arrays.clear()
    assert stats("cached", "limit") == (8 * MIB, 10 * MIB)
    big = ck.empty(12 * MIB // 4)
    del big
    assert stats("cached")[0] <= 10 * MIB  # larger than the limit: not kept
    _ck.set_cache_limit(5 * MIB)
    assert stats("cached")[0] <= 5 * MIB
    _ck.set_cache_limit(0)
    a = ck.empty(4 * MIB // 4)
    del a
    assert stats("cached")[0] == 0


def test_more_blocks_than_the_list_holds():
    arrays = [ck.empty(MIB // 4) for _ in range(300)]
    _ck.set_cache_limit(1 << 40)
    arrays.clear()
    assert 250 * HUGE <= stats("cached")[0] <= 256 * HUGE


def test_classes_of_size_waste_at_most_an_eighth():
    for mib in (17, 33, 50, 100, 129, 257):
        before = stats("in_use")[0]
        a = ck.empty(mib * MIB // 4)
        assert a.nbytes <= stats("in_use")[0] - before <= max(a.nbytes * 9 / 8, a.nbytes + HUGE)
        del a


@pytest.mark.parametrize("text, limit", [("0", 0), ("12345678", 12345678)])
def test_the_limit_comes_from_the_environment(text, limit):
    code = "import ckernels as ck; print(ck.memory_stats()['limit'])"
    run = subprocess.run(
        [PYTHON, "-c", code], env={**ENVIRONMENT, "CK_CACHE_LIMIT": text}, capture_output=True, text=True
    )
    assert run.stdout.strip() == str(limit), run.stderr


@pytest.mark.parametrize(
    "name, text",
    [
        ("CK_CACHE_LIMIT", "much"),
        ("CK_CACHE_LIMIT", "-1"),
        ("CK_NUM_THREADS", "0"),
        ("CK_NUM_THREADS", "many"),
        ("CK_NUM_THREADS", "65"),
    ],
)
def test_bad_numbers_in_the_environment_name_the_variable(name, text):
    run = subprocess.run(
        [PYTHON, "-c", "import ckernels"], env={**ENVIRONMENT, name: text}, capture_output=True, text=True
    )
    assert run.returncode == 1 and f"ValueError: {name}='{text}': an integer from" in run.stderr


@pytest.mark.parametrize(
    "shape, dtype, error",
    [
        (-1, "f4", r"'shape' has a negative size, -1"),
        ((2, -3), "f4", "'shape' has a negative size, -3"),
        ("ab", "f4", "'shape' must hold integers"),
        (None, "f4", "'shape' must hold integers"),
        (1.5, "f4", "'shape' must hold integers"),
        ((1,) * 65, "f4", "'shape' has 65 axes"),
        (3, "S5", "'dtype' must be a number type"),
        (3, object, "'dtype' must be a number type"),
        (3, "no such type", "'dtype' must be a number type, not 'no such type'"),
        (3, ">f4", "native byte order"),
        (3, "M8[s]", "'dtype' must be a number type"),
        (3, [("a", "f4")], "'dtype' must be a number type"),
    ],
)
def test_empty_refuses(shape, dtype, error):
    with pytest.raises((ValueError, TypeError), match=r"empty\(\): .*" + error):
        ck.empty(shape, dtype)


@pytest.mark.parametrize(
    "shape, kind, error",
    [
        ((2**40, 2**40), MemoryError, "no memory for 'shape'"),
        (2**60, MemoryError, "no memory for 'shape'"),
        (2**70, OverflowError, "'shape' holds a size beyond 64 bits"),
    ],
)
def test_empty_refuses_absurd_sizes(shape, kind, error):
    with pytest.raises(kind, match=r"empty\(\): " + error):
        ck.empty(shape)


def test_empty_makes_any_number_type():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in ("f4", "f2", "f8", "i8", "u1", "?", "c8", ml_dtypes.bfloat16):
        a = ck.empty((2, 0, 3), dtype)
        assert a.shape == (2, 0, 3) and a.dtype == np.dtype(dtype) and a.flags.writeable
    assert ck.empty(np.int64(3)).shape == (3,) and ck.empty([]).shape == ()
