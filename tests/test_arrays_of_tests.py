"""The tests' own words, ``parity.py`` and ``guard.py``, in every dtype: a comparison that is too kind proves nothing."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ckernels.parity import Verdict
from conftest import DTYPES
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_gradients_match_torch, assert_matches_torch

kinds = pytest.mark.parametrize("kind", DTYPES.values(), ids=DTYPES)


@kinds
def test_tensors_keep_their_bits(kind, rng):
    x = rng.standard_normal((3, 5)).astype(kind)
    tensor = as_torch(x)
    assert tensor.dtype is getattr(torch, kind.name)
    assert tensor.view(torch.int8).numpy().tobytes() == x.tobytes()
    assert as_torch(x, "float64").numpy().tobytes() == x.astype("f8").tobytes()
    assert as_torch(np.arange(3), "float64").dtype is torch.int64
    assert as_torch(x, kind, grad=True).requires_grad


def norm(x, w):
    return F.rms_norm(x, w.shape, w, 1e-5)


@kinds
def test_peer_computes_in_the_dtype_of_the_arrays(kind, rng):
    """The result of PyTorch's own kernel passes with a ratio of one, and three ulp of the largest beside it fail."""
    x, w = rng.standard_normal((7, 33)).astype(kind), rng.uniform(0.5, 1.5, 33).astype(kind)
    y = norm(as_torch(x), as_torch(w)).float().numpy().astype(kind)
    (report,) = assert_matches_torch(y, norm, x, w)
    assert (report.dtype, report.ratio_max) == (kind.name, 1.0)
    wrong = y.copy()
    wrong[3, 3] = float(y[3, 3]) + 1.1 * report.allowed_max + report.peer_max
    with pytest.raises(AssertionError, match="EXCESS_DRIFT"):
        assert_matches_torch(wrong, norm, x, w)


@kinds
def test_a_float32_weight_beside_16_bits_is_not_rounded(kind, rng):
    """Neither for exact nor for the peer, whose error is then one rounding of its result."""
    x, w = rng.standard_normal((7, 33)).astype(kind), rng.uniform(0.5, 1.5, 33).astype("f4")
    sides = [as_torch(a, "float32", grad=True) for a in (x, w)]
    result = norm(*sides)
    y = result.detach().numpy().astype(kind)
    (report,) = assert_matches_torch(y, norm, x, w)
    assert report.dtype == kind.name and report.ratio_max == 1.0
    dy = rng.standard_normal(x.shape).astype(kind)
    dx, dw = (g.numpy() for g in torch.autograd.grad(result, sides, as_torch(dy, "float32")))
    reports = assert_gradients_match_torch((dx.astype(kind), dw), norm, (x, w), dy)
    assert [r.dtype for r in reports] == [kind.name, "float32"]
    assert all(r.ratio_max == 1.0 for r in reports)
    rounded = norm(as_torch(x, "float64"), as_torch(w.astype(kind), "float64")).numpy().astype("f4")
    if kind != np.float32:
        with pytest.raises(AssertionError):  # float32 results are judged as such, whatever x is
            assert_matches_torch(rounded, norm, x, w)


@kinds
def test_a_float32_result_of_16_bits_has_a_float32_peer(kind, rng):
    logits, target = rng.standard_normal((5, 17)).astype(kind), np.arange(5)
    loss = F.cross_entropy(as_torch(logits, "float32"), as_torch(target), reduction="none").numpy()
    (report,) = assert_matches_torch(loss, lambda x, t: F.cross_entropy(x, t, reduction="none"), logits, target)
    assert report.dtype == "float32" and report.allowed_max < 1e-5


def test_a_result_too_few_is_refused(rng):
    x = rng.standard_normal((3, 5)).astype("f4")
    with pytest.raises(AssertionError, match="1 results, 2 of PyTorch"):
        assert_matches_torch(x + 1, lambda x: (x + 1, x), x)


@kinds
def test_guarded_arrays_hold_what_they_are_given(kind, rng):
    x = rng.standard_normal((3, 7)).astype(kind)
    assert guarded(x).tobytes() == x.tobytes() and guarded(x).dtype == kind
    assert np.isnan(unwritten((3, 7), kind)).all() and unwritten((3, 7), kind).dtype == kind


@kinds
def test_gaps_between_rows_show_a_write(kind, rng):
    x = rng.standard_normal((2, 3, 7)).astype(kind)
    rows = spaced(x)
    assert rows.dtype == kind and rows.tobytes() == x.tobytes() and gaps_untouched(rows)
    assert np.isnan(rows.base.view(kind)[..., 7:].astype("f4")).all()
    for value in (0.0, np.nan):  # another NaN too
        touched = spaced(x)
        touched.base.view(kind)[1, 2, 7] = value
        assert not gaps_untouched(touched)


def test_differences_are_of_float32(rng):
    x = rng.standard_normal((3, 5)).astype("f2")
    with pytest.raises(AssertionError, match="too coarse"):
        assert_gradient(lambda x: x, x, x, x, rng)


def test_the_verdict_of_a_wrong_bfloat16_gradient(rng):
    """A gradient that lost one of 33 terms is far outside, also in eight bits."""
    kind = DTYPES["bfloat16"]
    x, w, dy = (rng.standard_normal(s).astype(kind) for s in ((7, 33), (5, 33), (7, 5)))
    dx = as_torch(dy, "float64") @ as_torch(w, "float64")
    right = dx.numpy().astype(kind)
    (report,) = assert_gradients_match_torch((right, None), F.linear, (x, w), dy)
    assert report.verdict is Verdict.EXACT
    lost = (dx - as_torch(dy, "float64")[:, 4:] @ as_torch(w, "float64")[4:]).numpy().astype(kind)
    with pytest.raises(AssertionError, match="STRUCTURAL"):
        assert_gradients_match_torch((lost, None), F.linear, (x, w), dy)
