"""What every op does with what Python hands it: layouts taken as they are, refusals by name, no reference lost."""

import gc
import inspect
import sys
import tracemalloc

import numpy as np
import pytest

import ckernels as ck
import declared
from ckernels import _ck

X = np.random.default_rng(11).standard_normal((6, 5, 32)).astype(np.float32)
W = np.random.default_rng(12).standard_normal(32).astype(np.float32)


def fresh(shape=(6, 5, 32)):
    """Return an output that shows what is left out."""
    return np.full(shape, np.nan, np.float32)


def same(a, b):
    """Whether two arrays agree bit for bit."""
    return a.shape == b.shape and a.tobytes() == np.ascontiguousarray(b).tobytes()


# ---- layouts ----


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[::2],
        lambda a: a[:, ::-1],
        lambda a: a[::-1, 1:4],
        lambda a: a.transpose(1, 0, 2),
        lambda a: a[:, :, 3:17],
        lambda a: a[2],
        lambda a: a[2, 3],
        lambda a: a[None, :, None],
        lambda a: np.broadcast_to(a[:1], (4, 5, 32)),
        lambda a: np.broadcast_to(a[0, 0], (3, 2, 32)),
        lambda a: a[:0],
        lambda a: a[..., :0],
        lambda a: a[..., 1:2],
    ],
    ids=[
        "all",
        "step",
        "reversed",
        "both",
        "transposed",
        "columns",
        "row axis",
        "one row",
        "ones",
        "broadcast",
        "broadcast row",
        "no rows",
        "no columns",
        "one column",
    ],
)
def test_any_stride_of_the_leading_axes(isa, view):
    x = view(X)
    x.flags.writeable = False
    assert same(ck.add(x, x), x + x)
    w = W[: x.shape[-1]].copy()
    assert same(ck.rms_norm(x, w), ck.rms_norm(np.ascontiguousarray(x), w))


@pytest.mark.parametrize(
    "view",
    [lambda a: a[::2], lambda a: a[::-1], lambda a: a.transpose(1, 0, 2), lambda a: a[:, 1:3, 5:9]],
    ids=["step", "reversed", "transposed", "inner"],
)
def test_strided_outputs_touch_only_themselves(isa, view):
    base, x = fresh(), view(X)
    out = view(base)
    assert ck.add(x, x, out=out) is out
    assert same(out, x + x)
    out[...] = np.nan
    assert np.isnan(base).all()


def test_axes_without_end():
    many = X.reshape(2, 3, 1, 5, 1, 1, 2, 2, 2, 1, 1, 4)
    assert same(ck.add(many, many), many + many)
    # ten axes that do not merge are one too many to describe; the message says what to do
    twisted = np.zeros((2,) * 10 + (4,), np.float32).transpose(9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 10)
    with pytest.raises(
        ValueError, match=r"add\(\): '.*' has too many axes that cannot be merged: pass numpy.ascontiguousarray"
    ):
        ck.add(twisted, twisted)


def test_an_output_of_more_axes_than_numpy_has_is_refused():
    with pytest.raises(ValueError, match=r"embedding\(\): 'out' .*axes"):
        ck.embedding(np.zeros((1,) * 64, np.int64), np.ones((2, 3), np.float32))


def test_in_place_of_a_vector_is_an_overlap():
    x, w = np.ones(16, np.float32), np.full(16, 3, np.float32)
    with pytest.raises(ValueError, match=r"add_rms_norm\(\): 'h' is written and overlaps 'weight'"):
        ck.add_rms_norm(x, x.copy(), w, out=(None, w))
    with pytest.raises(ValueError, match=r"rms_norm\(\): 'out' is written and overlaps 'weight'"):
        ck.rms_norm(x, w, out=w)
    with pytest.raises(ValueError, match=r"softmax\(\): 'out' is written and overlaps 'mask'"):
        ck.softmax(x, mask=w, out=w)
    assert (w == 3).all()


def test_interleaved_halves_do_not_overlap():
    both = np.concatenate([X, X])
    even, odd = both[::2], both[1::2]
    expected = even + even
    ck.add(even, even, out=odd)
    assert same(odd, expected)
    left, right = np.split(np.concatenate([X, X], axis=-1), 2, axis=-1)
    ck.add(left, left, out=right)
    assert same(right, left + left)


def test_subclasses_and_maps_of_files(tmp_path):
    path = tmp_path / "x"
    X.tofile(path)
    mapped = np.memmap(path, np.float32, "r", shape=X.shape)
    assert same(ck.rms_norm(mapped, W), ck.rms_norm(X, W))
    assert type(ck.rms_norm(mapped, W)) is np.ndarray
    out = np.memmap(tmp_path / "y", np.float32, "w+", shape=X.shape)
    assert ck.rms_norm(X, W, out=out) is out and same(np.asarray(out), ck.rms_norm(X, W))


# ---- refusals ----


def unaligned(a):
    return np.frombuffer(b"\0" + a.tobytes() + b"\0" * 3, np.uint8)[1 : 1 + a.nbytes].view(a.dtype).reshape(a.shape)


BAD_INPUTS = {
    "list": ([1.0, 2.0], TypeError, "must be a NumPy array or lend its memory by __dlpack__, not <class 'list'>"),
    "none": (None, TypeError, "must be a NumPy array"),
    "number": (1.0, TypeError, "must be a NumPy array"),
    "float64": (X.astype("f8"), TypeError, "must be float32, float16 or bfloat16, not float64"),
    "bool": (X > 0, TypeError, "must be float32, float16 or bfloat16, not bool"),
    "object": (X.astype(object), TypeError, "must be float32, float16 or bfloat16, not object"),
    "complex": (X.astype("c8"), TypeError, "must be float32, float16 or bfloat16, not complex64"),
    "int": (X.astype("i4"), TypeError, "must be float32, float16 or bfloat16, not int32"),
    "swapped": (X.astype(">f4"), ValueError, "must be aligned and of native byte order"),
    "unaligned": (unaligned(X), ValueError, "must be aligned and of native byte order"),
    "last axis": (X[..., ::2], ValueError, "must be contiguous along its last axis: pass numpy.ascontiguousarray"),
    "last axis reversed": (X[..., ::-1], ValueError, "must be contiguous along its last axis"),
    "0-d": (X[0, 0, 0:1].reshape(()), ValueError, r"of shape \(\) does not fit"),
    "masked": (np.ma.masked_array(X, X > 0), TypeError, "is a masked array"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_names_op_and_argument(case):
    bad, kind, text = BAD_INPUTS[case]
    with pytest.raises(kind, match=r"rms_norm\(\): 'x' " + text):
        ck.rms_norm(bad, W)


BAD_OUTPUTS = {
    "shape": (
        lambda: fresh((6, 5, 31)),
        ValueError,
        r"of shape \(6, 5, 31\) does not fit \[\.\.\., C\], where \.\.\.=\(6, 5\), C=32",
    ),
    "axes": (lambda: fresh((30, 32)), ValueError, r"of shape \(30, 32\) does not fit"),
    "dtype": (lambda: np.empty(X.shape), TypeError, "must be float32, not float64"),
    "read-only": (lambda: np.broadcast_to(fresh(), X.shape), ValueError, "is written, but read-only"),
    "broadcast": (
        lambda: np.lib.stride_tricks.as_strided(fresh((6, 32)), X.shape, (0, 128, 4)),
        ValueError,
        "is written, and its elements overlap each other",
    ),
    "sliding": (
        lambda: np.lib.stride_tricks.as_strided(fresh(), X.shape, (4, 8, 4)),
        ValueError,
        "is written, and its elements overlap each other",
    ),
    "absurd strides": (
        lambda: np.lib.stride_tricks.as_strided(fresh((1, 1, 32)), X.shape, (2**62, 2**62, 4)),
        ValueError,
        "",
    ),
    "last axis": (lambda: fresh((6, 5, 64))[..., ::2], ValueError, "must be contiguous along its last axis"),
    "list": (lambda: [0.0], TypeError, "must be a NumPy array"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_bad_output_names_op_and_argument(case):
    make, kind, text = BAD_OUTPUTS[case]
    with pytest.raises(kind, match=r"rms_norm\(\): 'out' " + text):
        ck.rms_norm(X, W, out=make())


def test_overlap_of_an_output_is_refused_and_nothing_is_written():
    base = np.concatenate([X, X])
    before = base.copy()
    for out in (base[1:7], base[:6, ::-1]):
        with pytest.raises(ValueError, match=r"rms_norm\(\): 'out' is written and overlaps 'x'"):
            ck.rms_norm(base[:6], W, out=out)
    row = base[0, 0]
    with pytest.raises(ValueError, match="'out' is written and overlaps 'weight'"):
        ck.rms_norm(base[:6], row, out=base[:6])
    assert same(base, before)
    x = X.copy()
    assert ck.rms_norm(x, W, out=x) is x and same(x, ck.rms_norm(X, W))


def test_vectors_must_be_contiguous():
    with pytest.raises(ValueError, match=r"rms_norm\(\): 'weight' must be contiguous: pass numpy.ascontiguousarray"):
        ck.rms_norm(X, np.ones(64, np.float32)[::2])
    with pytest.raises(ValueError, match=r"rms_norm\(\): 'weight' of shape \(31,\) does not fit \[C\], where C=32"):
        ck.rms_norm(X, W[:31])


class Raises:
    def __float__(self):
        raise LookupError("mine")

    __index__ = __float__
    __bool__ = __float__


@pytest.mark.parametrize(
    "bad, kind, text",
    [
        ("1", TypeError, "'alpha' must be a number"),
        (None, TypeError, "'alpha' must be a number"),
        (1j, TypeError, "'alpha' must be a number"),
        (10**400, OverflowError, "'alpha' is too large"),
        (Raises(), LookupError, "^mine$"),
    ],
)
def test_bad_numbers(bad, kind, text):
    with pytest.raises(kind, match=text):
        _ck.add_fwd(None, X, X, bad)


def test_numbers_of_every_kind_are_taken():
    for two in (2, 2.0, np.float32(2), np.int64(2), np.array(2.0), True + 1):
        assert same(_ck.add_fwd(None, X, X, two), X + 2 * X)
    assert np.isnan(_ck.add_fwd(None, X, X, float("nan"))).all()


def test_fake_sizes_do_not_crash():
    one = np.ones(4, np.float32)
    fake = np.lib.stride_tricks.as_strided(one, (2**28, 2**28, 4), (0, 0, 4))
    with pytest.raises(MemoryError, match=r"add\(\): 'out'"):
        ck.add(fake, fake)
    with pytest.raises(ValueError, match="'out'"):
        ck.add(fake, fake, out=np.lib.stride_tricks.as_strided(one, (2**28, 2**28, 4), (0, 0, 4)))
    far = np.lib.stride_tricks.as_strided(np.ones((1, 4), np.float32), (0, 4), (2**62, 4))
    assert ck.add(far, far).shape == (0, 4)


@pytest.mark.parametrize("op", declared.OPS)
def test_every_op_refuses_what_does_not_fit(op, rng):
    run, good, params = getattr(_ck, op), declared.arguments(op, rng), declared.parameters(op)
    with pytest.raises(TypeError, match=rf"{op}\(\) takes {len(params)} arguments, 0 given"):
        run()
    for i, p in enumerate(params):
        bad = list(good)
        bad[i] = object()
        if p.kind != "bool":  # any object has a truth
            with pytest.raises(TypeError, match=r"\w\(\): '"):
                run(*bad)
        if p.shape is None or good[i] is None or good[i] is True:
            continue
        if p.listed:
            alone = sum(q.listed for q in params) == 1 and not p.written  # two arrays are then as good as one
            for wrong in ([object()], *([] if alone else [good[i] * 2]), [good[i][0].astype("c8")], [good[i][0].astype(">f4")], [None]):
                bad[i] = wrong
                with pytest.raises((TypeError, ValueError), match=r"\w\(\): '"):
                    run(*bad)
            continue
        axes = good[i] if "*" in p.shape else good[i][..., None, None]
        for wrong in (
            good[i].astype("c8"),
            good[i].astype("i2"),
            *([] if good[i].itemsize == 1 else [good[i].astype(good[i].dtype.newbyteorder())]),  # a byte has no order
            good[i].astype(object),
            *([] if axes is good[i] else [axes]),
        ):
            bad[i] = wrong
            with pytest.raises((TypeError, ValueError), match=r"\w\(\): '"):
                run(*bad)


OTHER = {"float32": "f2", "float16": "f4", "bfloat16": "f2"}


@pytest.mark.parametrize("op", declared.OPS)
def test_every_op_takes_its_dtype_and_refuses_a_mix(op, dtype, rng):
    run, params = getattr(_ck, op), declared.parameters(op)
    good = declared.arguments(op, rng, dtype=dtype)
    run(*good)
    arrays = [i for i, a in enumerate(good) if isinstance(a, np.ndarray)]
    elems = [i for i in arrays if params[i].kind == "elem"]
    for i in arrays:
        # One element array alone would be a call of another dtype.
        if params[i].kind in ("float", "weight") or params[i].kind == "elem" and len(elems) > 1:
            bad = list(good)
            bad[i] = good[i].astype("f8" if params[i].kind == "weight" and dtype != "f4" else OTHER[dtype.name])
            if bad[i].dtype != good[i].dtype:
                with pytest.raises(TypeError, match=r"\w\(\): '[\w.]+'.* must be"):
                    run(*bad)
    if any(params[i].kind == "weight" for i in arrays):  # float32 beside 16 bits is taken, another 16-bit dtype is not
        run(*declared.arguments(op, rng, dtype=dtype, weights=np.float32))
        if dtype != np.float32:
            mixed = declared.arguments(op, rng, dtype=dtype, weights=np.float16 if dtype != np.float16 else "f8")
            with pytest.raises(TypeError, match=r"\w\(\): '[\w.]+'.* must be"):
                run(*mixed)


@pytest.mark.parametrize("op", declared.OPS)
def test_every_op_has_a_signature_that_names_its_parameters(op):
    names = [p.name for p in declared.parameters(op)]
    assert list(inspect.signature(getattr(_ck, op)).parameters) == names


# ---- references ----


@pytest.mark.parametrize("op", declared.OPS)
def test_no_reference_is_lost(op, rng):
    run, good = getattr(_ck, op), declared.arguments(op, rng)
    arrays = [a for a in good if isinstance(a, np.ndarray)]
    bad = [np.zeros((3, 1, 2, 1, 5), "f8") if isinstance(a, np.ndarray) else a for a in good]

    def use():
        for _ in range(50):
            run(*good)
            try:
                run(*bad)
            except (TypeError, ValueError):
                pass
            for i, a in enumerate(good):  # a refusal at every argument, those before it taken already
                try:
                    run(*good[:i], object() if a is not None else "?", *good[i + 1 :])
                except (TypeError, ValueError):
                    pass

    use()
    gc.collect()
    in_use = ck.memory_stats()["in_use"]
    counts = [sys.getrefcount(a) for a in (*arrays, None, np.dtype("f4"))]
    tracemalloc.start()
    for _ in range(20):  # caches fill in the first rounds; what is lost in each call is lost in every round
        before = tracemalloc.get_traced_memory()[0]
        use()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        if grown < 800:
            break
    tracemalloc.stop()
    after = [sys.getrefcount(a) for a in (*arrays, None, np.dtype("f4"))]
    assert after[: len(arrays)] == counts[: len(arrays)]
    assert all(abs(a - b) < 40 for a, b in zip(after[len(arrays) :], counts[len(arrays) :], strict=True))
    assert ck.memory_stats()["in_use"] == in_use
    assert grown < 800  # the smallest object lost in each of fifty calls is more


def test_results_own_their_memory_alone():
    y = ck.rms_norm(X, W)
    count, block = sys.getrefcount(y), y.base
    block_count = sys.getrefcount(block)
    assert (count, type(block).__name__, block_count) == (2, "Block", 3)  # y and `block`, and each call's own
    with pytest.raises(TypeError):
        type(block)()
