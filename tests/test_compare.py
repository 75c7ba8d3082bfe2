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
