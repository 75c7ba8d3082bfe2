"""The kernels that benches take the machine's limits from do what they say."""

import numpy as np
import pytest

from ckernels import _ck

SHAPES = [(1, 1), (3, 16), (2, 127), (2, 129), (5, 1000), (3, 4099), (0, 5), (2, 0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stream", [False, True])
def test_copy(isa, rng, shape, stream):
    x = rng.standard_normal(shape, np.float32)
    out = np.full(shape, np.nan, np.float32)
    assert _ck.probe_copy(out, x, stream) is out
    assert out.tobytes() == x.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_update_negates_in_place(isa, rng, shape):
    x = rng.standard_normal(shape, np.float32)
    before = x.copy()
    _ck.probe_update(x, x)
    assert x.tobytes() == (-before).tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eight", [False, True])
def test_read_meets_every_element_once(isa, rng, shape, eight):
    x = rng.integers(-100, 100, shape).astype(np.float32)  # whole numbers: every order has the same sum
    np.testing.assert_array_equal(_ck.probe_read(None, x, eight), x.sum(1))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000])
def test_fma_counts_its_steps(isa, n):
    y = np.zeros(128)
    for _ in range(n):
        y = y * y - (0.5 - np.arange(128) / 512)
    found = _ck.probe_fma(np.full(3, np.nan, np.float32), n)
    assert (np.abs(found - y.sum()) <= 128 * 4 * 2.0**-24).all()  # the map contracts: an error of a step fades
