"""The comparison that every other test relies on: the rule, the verdicts, and the ways in which a harness lies."""

import numpy as np
import pytest

from ckernels.parity import Verdict, assert_parity, compare


@pytest.fixture
def parties():
    """An exact result, a peer with a rounding error, and a correctly rounded result."""
    rng = np.random.default_rng(7)
    exact = rng.standard_normal((5, 7, 33))
    peer = (exact * (1 + 1e-7 * rng.standard_normal(exact.shape))).astype(np.float32)
    return exact, peer, exact.astype(np.float32)


def test_correct_rounding_is_exact(parties):
    exact, peer, actual = parties
    report = compare(actual, exact, peer)
    assert report.verdict is Verdict.EXACT
    assert report.ok and report.margin < 0.1 and report.ulp <= 0.5
    assert report.compared == report.size == exact.size


def test_rule_for_the_largest_error(parties):
    exact, peer, actual = parties
    peer_max = np.abs(peer - exact).max()
    allowed = 3 * peer_max + 2 * 2.0**-23 * np.abs(exact).max()
    for factor, passes in ((0.9, True), (1.1, False)):
        moved = actual.astype(np.float64)
        moved[1, 2, 3] = exact[1, 2, 3] + factor * allowed
        report = compare(moved.astype(np.float32), exact, peer)
        assert report.ok is passes
        assert report.allowed_max == pytest.approx(allowed)
        assert report.margin == pytest.approx(factor, rel=0.1)
        assert report.worst(1)[0].index == (1, 2, 3)


def test_rule_for_the_root_mean_square(parties):
    """A bias far below the largest allowed error is still caught."""
    exact, peer, _ = parties
    allowed = 3 * np.sqrt(np.mean((peer - exact) ** 2)) + 2 * 2.0**-23 * np.sqrt(np.mean(exact**2))
    report = compare((exact + 1.2 * allowed).astype(np.float32), exact, peer)
    assert report.verdict is Verdict.EXCESS_DRIFT
    assert report.margin_max < 1 < report.margin_rms
    assert report.allowed_rms == pytest.approx(allowed)


def test_cancelling_terms_set_the_scale():
    exact = np.array([1e-3, -2e-3, 5e-4])
    actual = (exact + 1e-7).astype(np.float32)
    assert compare(actual, exact, exact.astype(np.float32)).verdict is Verdict.EXCESS_DRIFT
    assert compare(actual, exact, exact.astype(np.float32), terms=np.array([1.0, -0.9])).ok


def test_bound_takes_the_place_of_a_peer(parties):
    exact, _, actual = parties
    moved = actual.copy()
    moved[0, 0, 0] += np.float32(3e-6)
    assert compare(moved, exact, bound=1e-5).verdict is Verdict.WITHIN_BUDGET
    assert compare(moved, exact, bound=1e-6).verdict is Verdict.EXCESS_DRIFT
    each = np.full(exact.shape, 1e-6)
    report = compare(moved, exact, bound=each)
    assert report.verdict is Verdict.EXCESS_DRIFT and report.exceeding == 1
    each[0, 0, 0] = 1e-5
    assert compare(moved, exact, bound=each).ok


def test_bound_and_peer_must_both_hold(parties):
    exact, _, actual = parties
    wide = (exact * (1 + 1e-5)).astype(np.float32)
    moved = (exact * (1 + 1e-5)).astype(np.float32)
    assert compare(moved, exact, wide).ok
    assert not compare(moved, exact, wide, bound=1e-6).ok


def test_no_peer_and_no_bound_is_undecided(parties):
    exact, _, actual = parties
    report = compare(actual * np.float32(1 + 1e-6), exact)
    assert report.verdict is Verdict.UNDECIDED
    with pytest.raises(AssertionError, match="UNDECIDED"):
        assert_parity(actual * np.float32(1 + 1e-6), exact)


@pytest.mark.parametrize("wrong", ["shape", "peer shape", "bound shape", "negative bound", "NaN bound", "NaN terms"])
def test_bad_arguments(parties, wrong):
    exact, peer, actual = parties
    calls = {
        "shape": ((actual[1:], exact), {}, r"\(4, 7, 33\).*\(5, 7, 33\)"),
        "peer shape": ((actual, exact, peer[..., 1:]), {}, r"'peer' of shape \(5, 7, 32\)"),
        "bound shape": ((actual, exact), {"bound": np.ones(5)}, "'bound' of shape"),
        "negative bound": ((actual, exact), {"bound": -1.0}, "'bound' must be 0 or more"),
        "NaN bound": ((actual, exact), {"bound": float("nan")}, "'bound' must be 0 or more"),
        "NaN terms": ((actual, exact, peer), {"terms": np.array([np.nan])}, "'terms' holds NaN"),
    }
    arguments, options, message = calls[wrong]
    with pytest.raises(ValueError, match=message):
        compare(*arguments, **options)


def test_kinds_without_a_comparison():
    with pytest.raises(TypeError, match="'actual' of dtype complex128"):
        compare(np.ones(3, complex), np.ones(3))
    with pytest.raises(TypeError, match="no bits to compare"):
        compare(np.ones(3, np.float32), np.ones(3), bitwise=True)


def test_integers_are_compared_exactly():
    exact = np.arange(12).reshape(3, 4)
    assert compare(exact.astype(np.int32), exact).verdict is Verdict.EXACT
    wrong = exact.astype(np.int32)
    wrong[2, 1] += 1
    report = compare(wrong, exact)
    assert not report.ok and report.exceeding == 1 and "axis 0: 2 of 3" in report.where
    assert compare(np.array([2**60 + 1]), np.array([2**60])).exceeding == 1, "float64 cannot tell these two apart"


def test_bits():
    a = np.array([1.0, -0.0, 3.0], np.float32)
    b = a.copy()
    assert compare(a, b, bitwise=True).verdict is Verdict.EXACT
    b[1] = 0.0
    assert not compare(a, b, bitwise=True).ok
    payload = np.array([0x7FC00001, 0x3F800000, 0], np.uint32).view(np.float32)
    other = np.array([0x7FC00002, 0x3F800000, 0], np.uint32).view(np.float32)
    assert compare(payload, payload.copy(), bitwise=True).ok
    assert not compare(payload, other, bitwise=True).ok


@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed", "zero stride"])
def test_any_strides(parties, layout):
    exact, peer, actual = parties
    view = {
        "transposed": lambda a: a.transpose(2, 0, 1),
        "strided": lambda a: a[::2, :, 1::3],
        "reversed": lambda a: a[:, ::-1],
        "zero stride": lambda a: np.broadcast_to(a[0], a.shape),
    }[layout]
    plain = compare(view(actual).copy(), view(exact).copy(), view(peer).copy())
    report = compare(view(actual), view(exact), view(peer))
    assert report.to_dict() == plain.to_dict()


def test_more_than_one_block_gives_the_same_figures(monkeypatch, parties):
    exact, peer, actual = parties
    whole = compare(actual * np.float32(1 + 3e-7), exact, peer)
    monkeypatch.setattr("ckernels.parity.figures.BLOCK", 64)
    pieces = compare(actual * np.float32(1 + 3e-7), exact, peer)
    assert pieces.max_abs == whole.max_abs and pieces.compared == whole.compared
    assert pieces.rms == pytest.approx(whole.rms, rel=1e-12)
    assert [e.index for e in pieces.worst()] == [e.index for e in whole.worst()]


def test_figures():
    exact = np.array([3.0, 4.0, 0.5, -1.0])
    actual = np.array([3.0, 4.5, 0.5, -1.0], np.float32)
    report = compare(actual, exact, bound=1.0)
    assert report.max_abs == 0.5 and report.rms == 0.25
    assert report.nmse == pytest.approx(0.25 / np.sum(exact**2))
    assert report.ulp == 0.5 / 2.0**-21
    assert report.margin == 0.5
    assert report.cosine == pytest.approx(np.dot(exact, actual) / np.linalg.norm(exact) / np.linalg.norm(actual))
    assert report.correlation == pytest.approx(np.corrcoef(exact, actual)[0, 1])
    zero = compare(np.full(3, 1e-16, np.float32), np.array([0.0, 1e-20, 0.0]), bound=1e-10)
    assert zero.nmse == pytest.approx(1e-32, rel=1e-3), "all but zero: the plain mean square"


def test_text_says_what_where_and_by_how_much(parties):
    exact, peer, actual = parties
    wrong = actual.copy()
    wrong[:, :, 30:] = 0
    text = str(compare(wrong, exact, peer, name="y"))
    assert text.startswith("STRUCTURAL: y float32 [5, 7, 33]")
    assert "axis 2: 30..32 of 33" in text
    assert "worst at [" in text and "times what is allowed" in text and "the peer's" in text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits(dtype):
    kind = np.float16 if dtype == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    exact = np.random.default_rng(2).standard_normal((7, 33))
    report = compare(exact.astype(kind), exact, exact.astype(kind))
    assert report.verdict is Verdict.EXACT and report.dtype == dtype and report.ulp <= 0.5 + 1e-6
    eps = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    assert report.allowed_max == pytest.approx(3 * report.peer_max + 2 * eps * np.abs(exact).max())
    wrong = exact.astype(kind)
    wrong[3, 3] = wrong[3, 3] + kind(20 * eps)
    assert not compare(wrong, exact, exact.astype(kind)).ok


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors(dtype):
    torch = pytest.importorskip("torch")
    exact = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    actual = exact.to(getattr(torch, dtype)).requires_grad_()
    report = compare(actual, exact, actual.detach().clone())
    assert report.verdict is Verdict.EXACT and report.dtype == dtype


def test_infinities():
    exact = np.array([1.0, np.inf, -np.inf, 2.0, 1e39])
    actual = np.array([1.0, np.inf, -np.inf, 2.0, np.inf], np.float32)
    report = compare(actual, exact, actual.copy())
    assert report.verdict is Verdict.EXACT and report.compared == 2
    actual[2] = np.inf
    assert compare(actual, exact, actual.copy()).verdict is Verdict.STRUCTURAL


EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
LARGEST = {"float32": (2 - 2.0**-23) * 2.0**127, "float16": 65504.0, "bfloat16": (2 - 2.0**-7) * 2.0**127}
STEP = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
every_dtype = pytest.mark.parametrize("dtype", EPS)


def kind_of(dtype):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)


@every_dtype
def test_a_number_beyond_the_range_rounds_to_infinity(dtype):
    """Exact values that the dtype cannot hold are infinities in it: inf is right, the largest number is not."""
    kind = kind_of(dtype)
    exact = np.array([1.0, 1.5 * LARGEST[dtype], -1.01 * LARGEST[dtype] if dtype != "bfloat16" else -1e39, 2.0])
    with np.errstate(over="ignore"):
        actual = exact.astype(kind)
    assert np.isinf(actual.astype(np.float64)).sum() == 2
    report = compare(actual, exact, actual.copy())
    assert report.verdict is Verdict.EXACT and report.compared == 2
    actual[1] = LARGEST[dtype]
    assert compare(actual, exact, actual.copy()).verdict is Verdict.STRUCTURAL
    finite = np.array([1.0, LARGEST[dtype] / 2])
    actual = finite.astype(kind)
    actual[1] = np.inf
    assert compare(actual, finite, finite.astype(kind)).verdict is Verdict.STRUCTURAL, "an overflow where none is due"


@every_dtype
def test_at_the_edge_of_the_range_either_side_may_be_right(dtype):
    """A result within two ulp of the largest number may round to it or to infinity, whatever the last bit did."""
    kind, largest = kind_of(dtype), LARGEST[dtype]
    inf, half = np.inf, largest * EPS[dtype] / 4  # about half a step
    for value, rounded in ((largest + 0.5 * half, largest), (largest + 1.5 * half, inf), (largest - half, largest)):
        for sign in (1.0, -1.0):
            exact = sign * np.array([value, 1.0, value / 4])
            with np.errstate(over="ignore"):
                peer = exact.astype(kind)
            peer[0] = sign * rounded
            good, other = peer.copy(), peer.copy()
            assert compare(good, exact, peer).verdict is Verdict.EXACT
            other[0] = sign * (largest if rounded == inf else inf)
            report = compare(other, exact, peer)
            assert report.verdict is Verdict.WITHIN_BUDGET and report.max_abs <= 2.1 * half
            assert compare(good, exact, other).verdict is Verdict.EXACT, "nor does it break a peer"
            other[0] = -sign * inf
            assert compare(other, exact, peer).verdict is Verdict.STRUCTURAL


@every_dtype
def test_subnormal_results_have_a_floor(dtype):
    """Down there a step is a step, however small the number: two of them are allowed, more are not."""
    exact = np.array([2.0, 7.0, -5.0, 90.0]) * STEP[dtype]
    right = exact.astype(kind_of(dtype))
    for steps, passes in ((1, True), (2, True), (3, False)):
        bits = right.copy().view(f"u{right.itemsize}")
        bits[0] += steps
        report = compare(bits.view(right.dtype), exact, right.copy())
        assert report.ok is passes and report.allowed_max == 2 * STEP[dtype]


@every_dtype
@pytest.mark.parametrize("steps, passes", [(3, True), (4, False)])
def test_the_rule_takes_the_ulp_of_the_result(dtype, steps, passes):
    """Two ulp of ``actual``, relative to the largest: here a little less than four steps of the numbers about 16."""
    exact = 18 + np.round(np.random.default_rng(1).uniform(-1, 1, (5, 33)) * 8) / 8  # all hold in eight bits
    exact[2, 2] = 31.875
    actual = exact.astype(kind_of(dtype))
    assert (actual.astype(np.float64) == exact).all()
    actual[1, 1] = exact[1, 1] + steps * 16 * EPS[dtype]
    report = compare(actual, exact, exact.astype(np.float32))
    assert report.dtype == dtype and report.allowed_max == 2 * EPS[dtype] * 31.875
    assert report.ok is passes


@every_dtype
def test_bits_of_every_dtype(dtype):
    kind = kind_of(dtype)
    quiet = {2: 0x7E00 if dtype == "float16" else 0x7FC0, 4: 0x7FC00000}[kind.itemsize]
    bits = np.array([quiet + 1, 0x3C00, 0, 0x8000 if kind.itemsize == 2 else 0x80000000], f"u{kind.itemsize}")
    for i, change in ((0, 1), (1, 1), (2, 0x8000 << 8 * (kind.itemsize - 2))):
        other = bits.copy()
        other[i] += change
        assert compare(bits.view(kind), bits.copy().view(kind), bitwise=True).ok
        assert not compare(other.view(kind), bits.view(kind), bitwise=True).ok


# The ways in which a harness lies, each planted.


def test_lie_nothing_compared():
    empty = np.empty((0, 5), np.float32)
    assert compare(empty, empty.astype(np.float64), empty.copy()).verdict is Verdict.VACUOUS
    with pytest.raises(AssertionError, match="nothing was compared"):
        assert_parity(empty, empty.astype(np.float64), empty.copy())
    assert assert_parity(empty, empty.astype(np.float64), allow_empty=True).compared == 0
    with pytest.raises(ValueError, match="does not fit"):
        assert_parity(empty, np.empty((5, 0)), allow_empty=True)


def test_lie_the_reference_is_the_result_itself(parties):
    exact, peer, actual = parties
    assert compare(exact, exact, peer).verdict is Verdict.VACUOUS
    assert compare(actual, exact, actual).verdict is Verdict.VACUOUS
    assert compare(actual, exact, actual[:]).verdict is Verdict.VACUOUS


def test_lie_the_reference_is_inaccurate(parties):
    """A budget of three times a broken peer's error would let anything pass."""
    exact, peer, actual = parties
    broken = (exact + 1.0).astype(np.float32)
    assert compare(actual, exact, broken).verdict is Verdict.REFERENCE_WRONG
    assert compare((exact - 1).astype(np.float32), exact, broken).verdict is Verdict.STRUCTURAL
    assert compare((exact * 1.01).astype(np.float32), exact, broken).verdict is Verdict.UNDECIDED
    slightly = (exact * 1.001).astype(np.float32)
    assert compare(actual, exact, slightly).verdict is Verdict.REFERENCE_WRONG
    for verdict in (broken, slightly):
        with pytest.raises(AssertionError, match="REFERENCE_WRONG"):
            assert_parity(actual, exact, verdict)
    holes = peer.copy()
    holes[1, 2, 3] = np.nan
    assert compare(actual, exact, holes).verdict is Verdict.REFERENCE_WRONG


def test_lie_exact_is_the_outlier(parties):
    exact, peer, actual = parties
    assert compare(actual, exact + 1, peer).verdict is Verdict.REFERENCE_WRONG


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_lie_nan_lost_in_a_maximum(parties, value):
    exact, peer, actual = parties
    wrong = actual.copy()
    wrong[4, 6, 32] = value
    report = compare(wrong, exact, peer)
    assert report.verdict is Verdict.STRUCTURAL and report.worst(1)[0].index == (4, 6, 32)
    assert not compare(wrong, exact, wrong.copy()).ok, "not even where the peer does the same"


def test_lie_nan_equal_to_nan():
    nothing = np.full(7, np.nan, np.float32)
    report = compare(nothing, nothing.astype(np.float64), nothing.copy())
    assert report.verdict is Verdict.VACUOUS and report.compared == 0
    some = np.array([1, np.nan, 3], np.float32)
    report = compare(some, some.astype(np.float64), some.copy())
    assert report.verdict is Verdict.EXACT and report.compared == 2


def test_lie_missing_nan(parties):
    exact, peer, actual = parties
    exact, peer = exact.copy(), peer.copy()
    exact[0, 0, 0] = peer[0, 0, 0] = np.nan
    assert compare(actual, exact, peer).verdict is Verdict.STRUCTURAL


def test_lie_one_wrong_element_in_a_mean():
    rng = np.random.default_rng(3)
    exact = rng.standard_normal(1_000_000)
    peer = (exact * (1 + 1e-7 * rng.standard_normal(exact.size))).astype(np.float32)
    actual = exact.astype(np.float32)
    actual[777_777] += np.float32(1e-4)
    report = compare(actual, exact, peer)
    assert report.nmse < 1e-13 and report.cosine > 1 - 1e-12, "what a looser check would look at"
    assert report.verdict is Verdict.EXCESS_DRIFT
    assert report.worst(1)[0].index == (777_777,) and report.exceeding == 1


def test_lie_a_figure_that_is_nan():
    huge = np.array([1e200, -1e200, 3.0])
    report = compare(huge * 1.5, huge, huge * (1 + 1e-15))
    assert not report.ok
    assert not np.isfinite(report.nmse) and report.to_dict()["nmse"] is None


def test_lie_a_trivial_output_would_pass(parties):
    exact, peer, actual = parties
    zeros = np.zeros(5, np.float32)
    assert compare(zeros, zeros.astype(np.float64), zeros.copy()).verdict is Verdict.VACUOUS
    tiny = np.full(5, 1e-9)
    assert compare(tiny.astype(np.float32), tiny, np.full(5, 2e-9, np.float32), bound=1e-6).verdict is not Verdict.EXACT
    assert compare((tiny * 1.5).astype(np.float32), tiny, bound=1e-6).verdict is Verdict.VACUOUS
    assert compare(actual, exact, peer, trivial={"x": actual.copy()}).verdict is Verdict.VACUOUS
    assert compare(actual, exact, peer, trivial=[actual + 1]).ok
    assert compare(actual, exact, peer, trivial=actual[0]).ok, "another shape is no trivial version"


def test_lie_a_constant_would_pass():
    same = np.full(9, 1 / 9)
    assert compare(same.astype(np.float32), same, same.astype(np.float32)).verdict is Verdict.VACUOUS
    assert compare(same.astype(np.float32), same, same.astype(np.float32), allow_constant=True).ok
    assert not compare(np.float32([1, 2, 3]), np.ones(3), np.ones(3, np.float32)).ok, "wrong stays wrong"
    assert compare(np.float32(2.5), 2.5, np.float32(2.5)).ok, "a scalar is no constant"


def test_lie_a_limit_relaxed_to_fit():
    """The rule's own numbers, stated once more: three times the peer's error and two ulp."""
    report = compare(np.float32([1, 2, 4]), np.array([1, 2, 4.0]), np.float32([1, 2, 4.5]))
    assert report.allowed_max is None, "a peer that is off by an eighth sets no budget"
    report = compare(np.float32([1, 2, 4]), np.array([1, 2, 4.0]), np.float32([1, 2, 4.001]))
    assert report.allowed_max == 3 * (float(np.float32(4.001)) - 4) + 2 * 2.0**-23 * 4


def test_lie_an_oracle_that_changes(parties):
    exact, peer, actual = parties
    first, second = (compare(actual, exact, peer).to_dict() for _ in range(2))
    assert first == second


def test_the_slice_that_holds_the_error_and_the_bound_that_would_pass():
    rng = np.random.default_rng(5)
    exact = rng.standard_normal((3, 5, 7))
    actual = exact.astype(np.float32)
    actual[:, 2] += np.float32(0.01)
    actual[1, 2, 6] += np.float32(0.5)
    report = compare(actual, exact, peer=exact.astype(np.float32))
    assert [(axis, index) for axis, index, share in report.slices] == [(0, 1), (1, 2), (2, 6)]
    assert all(0.5 < share <= 1 for _, _, share in report.slices)
    text = str(report)
    assert (
        "100% of the squared error at index 2 of axis 1" in text
        and f"would pass with bound={report.needed:.3g}" in text
    )
    assert compare(actual, exact, bound=report.needed).ok and not compare(actual, exact, bound=report.needed * 0.999).ok
    assert report.to_dict()["slices"] == report.slices


def test_no_bound_passes_a_nan():
    exact = np.array([1.0, 2.0, 3.0])
    report = compare(np.float32([1, np.nan, 3]), exact, peer=exact.astype(np.float32))
    assert report.needed is None and "would pass" not in str(report)


def test_without_torch_it_works():
    """What has only NumPy compares, diffs and diagnoses."""
    import subprocess
    import sys

    code = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
import numpy as np
from ckernels.parity import compare, diagnose
from ckernels.parity.acceptance import candidate
assert compare(np.float32([1, 2]), np.array([1.0, 2.0])).verdict == "EXACT"
assert diagnose(*candidate("rope sign", tokens=9)).causes[0][0] == "rope: sign"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_are_counted_by_their_size_in_ulp():
    from ckernels.parity.figures import ULP_EDGES, ulp_histogram

    sizes = np.array([0, 0, 1e-300, 0.1, 0.25, 0.49, 0.5, 0.9, 1, 1.9, 2, 4, 8, 15.9, 16, 63.9, 64, 1023.9, 1024, 1e9])
    wanted = [0] * (len(ULP_EDGES) + 2)
    for size in sizes:
        wanted[0 if size == 0 else 1 + sum(size >= edge for edge in ULP_EDGES)] += 1
    assert ulp_histogram(sizes).tolist() == wanted
    exact = np.array([1.0, 1.0, 1.5, 1.5, np.nan])
    step = 2.0**-23
    report = compare(np.float32([1, 1 + step, 1.5, 1.5 + 5 * step, np.nan]), exact, bound=1e-5)
    assert report.ulp_counts == [2, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0] and sum(report.ulp_counts) == report.compared
    assert report.to_dict()["ulp_counts"] == report.ulp_counts
