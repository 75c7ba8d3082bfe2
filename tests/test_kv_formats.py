"""Quantised keys and values: the codes are those of a NumPy oracle, bit for bit; errors; refusals."""
import ml_dtypes
import numpy as np
import pytest

import ckernels as ck
from ckernels.parity import kv_exact as kv_model
from guard import PAYLOADS

QUANTS = kv_model.QUANTS[1:]


def hard(rng, dtype, D=128):
    """Rows of every kind: plain, constant, all zero of both signs, tiny and huge ranges, huge biases, subnormal, extreme."""
    info = ml_dtypes.finfo(dtype)
    tiny, most = float(info.tiny), min(float(info.max), 2.0**125)
    rows = [rng.standard_normal(D), np.full(D, 2.5), np.zeros(D), np.where(rng.random(D) < 0.5, 0.0, -0.0),
            rng.standard_normal(D) * 30 * tiny, rng.standard_normal(D) * tiny / 16, rng.standard_normal(D) * most / 64,
            1000 + rng.standard_normal(D), -1000 + rng.standard_normal(D) * 1e-3, rng.integers(-8, 8, D),
            np.linspace(-1, 1, D), rng.standard_normal(D) * 10.0 ** rng.integers(-4, 4, D),
            np.where(np.arange(D) == D - 1, most / 2, 0), np.full(D, -most), np.full(D, tiny / 2)]
    with np.errstate(over="ignore"):
        return np.clip(np.array(rows), -most, most).astype(dtype)


def cache_of(x, quant, group, slack=3):
    """Return a cache that holds rows [n, D] as its one head's keys, and three times them as values; the rest poisoned."""
    n, D = x.shape
    cache = ck.KVCache(1, D, n + slack, dtype=x.dtype, quant=quant, group=group)
    for array in cache.raw.values():
        array.view(np.uint8)[...] = 0xEB
    cache.append(x[None, None], x[None, None])
    return cache


@pytest.mark.parametrize("group", [16, 32, 64, 128])
@pytest.mark.parametrize("quant", QUANTS)
def test_codes_are_those_of_the_oracle(isa, dtype, rng, quant, group):
    x = hard(rng, dtype)
    cache, want = cache_of(x, quant, group), kv_model.quantised(x, quant, group)
    for part, array in want.items():
        for side in "kv":
            got = cache.raw[f"{side}_{part}"][0, 0]
            assert got.dtype == array.dtype and got[: len(x)].tobytes() == array.tobytes(), part
            assert (got[len(x) :].view(np.uint8) == 0xEB).all()
    assert set(cache.raw) == {f"{side}_{part}" for side in "kv" for part in want}
    with np.errstate(over="ignore"):
        assert cache.keys(0)[0].tobytes() == kv_model.elements(x, quant, group).tobytes()
    assert cache.values(0).tobytes() == cache.keys(0).tobytes()


@pytest.mark.parametrize("bits", [4, 8])
def test_kv_quantize_and_back(isa, dtype, rng, bits):
    x = hard(rng, dtype)[:, None].repeat(2, 1)
    parts = ck.kv_quantize(x.transpose(1, 0, 2), bits, 64)
    want = kv_model.quantised(x.transpose(1, 0, 2), f"int{bits}", 64)
    for got, array in zip(parts, want.values(), strict=True):
        assert got.shape == array.shape and got.tobytes() == array.tobytes()
    with np.errstate(over="ignore"):
        back = kv_model.elements(x.transpose(1, 0, 2), f"int{bits}", 64)
    assert ck.kv_dequantize(*parts, bits, 64).tobytes() == back.tobytes()


@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_round_trip_of_one_position_is_within_half_a_step(isa, dtype, rng, quant):
    """8 kv heads, head size 128, capacity 64, group 32, position 7."""
    cache = ck.KVCache(8, 128, 64, dtype=dtype, quant=quant, group=32)
    k, v = (rng.standard_normal((1, 8, 8, 128)).astype(dtype) for _ in range(2))
    cache.append(k[:, :, :7], v[:, :, :7])
    cache.append(k[:, :, 7:], v[:, :, 7:])
    for x, got, scales in (k, cache.keys(0), cache.raw["k_scales"]), (v, cache.values(0), cache.raw["v_scales"]):
        assert got.shape == (8, 8, 128)
        x, scale = x[0].astype("f8"), scales[0, :, :8].astype("f8").repeat(32, -1)
        levels, eps = 2 ** int(quant[3:]) - 1, float(ml_dtypes.finfo(dtype).eps)
        # Half a step; the scale's rounding moves the last level, the dtype's rounds the result, float32's the steps.
        bound = scale / 2 + levels * scale * eps / 2 + abs(x).max() * (eps / 2 + 4 * 2.0**-24)
        assert (abs(got.astype("f8") - x) <= bound).all()
        assert abs(got.astype("f8") - x).max() > scale.min() / 3  # it is quantised, not copied


def test_numbers_up_to_2_to_the_126_are_taken(isa):
    x = np.linspace(-(2.0**126), 2.0**126, 64)[1:-1].astype("f4")[None, 15:47]
    x[0, 0], x[0, -1] = -(2.0**126) * (1 - 2.0**-24), 2.0**126 * (1 - 2.0**-24)
    codes, scales, biases = ck.kv_quantize(x, 8, 32)
    back = ck.kv_dequantize(codes, scales, biases, 8, 32).astype("f8")
    assert (abs(back - x) <= scales.astype("f8") * 0.501).all()
    x[0, 5] = 2.0**126
    with pytest.raises(ValueError, match=r"beyond 2\^126 in row 0"):
        ck.kv_quantize(x, 8, 32)


@pytest.mark.parametrize("quant", ["fp8_e4m3", "fp8_e5m2"])
def test_float8_codes_read_as_ml_dtypes_does(isa, dtype, quant):
    """All 256 of them, NaN included; where the format has inf, it reads as the largest number."""
    kind = kv_model.FP8[quant][0]
    cache = ck.KVCache(2, 128, 1, dtype=dtype, quant=quant)
    cache.append(np.zeros((1, 2, 1, 128), dtype), np.zeros((1, 2, 1, 128), dtype))
    codes = np.arange(256, dtype=np.uint8).view(kind).reshape(2, 1, 128)
    cache.raw["k_codes"][0], cache.raw["k_scales"][0] = codes, np.asarray(1, dtype)
    want = codes.astype("f4")
    want = np.where(np.isinf(want), np.copysign(np.float32(ml_dtypes.finfo(dtype).max), want), want)
    np.testing.assert_array_equal(cache.keys(0).astype("f4"), want)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quant", QUANTS)
def test_nan_and_inf_are_refused_and_nothing_is_written(isa, dtype, rng, quant, bad):
    cache = ck.KVCache(2, 64, 8, batch=2, dtype=dtype, quant=quant)
    for array in cache.raw.values():
        array.view(np.uint8)[...] = 0xEB
    before = {name: array.tobytes() for name, array in cache.raw.items()}
    for which, at in ("k", (1, 1, 2, 63)), ("v", (0, 0, 0, 0)):
        x = {name: rng.standard_normal((2, 2, 3, 64)).astype(dtype) for name in "kv"}
        x[which][at] = bad
        with pytest.raises(ValueError, match=rf"^KVCache.append\(\): '{which}' holds NaN, inf"):
            cache.append(x["k"], x["v"])
        assert {name: array.tobytes() for name, array in cache.raw.items()} == before
        assert cache.lengths.tolist() == [0, 0]
    x["v"][0, 0, 0, 0], x["v"][1, 1, 2, 5] = 1, bad
    cache.append(x["k"], x["v"], [3, 2])  # what no item takes may hold anything
    assert cache.lengths.tolist() == [3, 2]


def test_a_plain_cache_takes_nan_as_it_is(isa, dtype):
    x = np.full((1, 1, 1, 5), PAYLOADS[dtype.name], f"u{dtype.itemsize}").view(dtype)
    cache = ck.KVCache(1, 5, 2, dtype=dtype)
    cache.append(x, x)
    assert cache.keys(0).tobytes() == x.tobytes()


@pytest.mark.parametrize("call, error, text", [
    (lambda x: ck.kv_quantize(x, 5, 32), ValueError, "'bits' must be 4 or 8, not 5"),
    (lambda x: ck.kv_quantize(x, 4, 8), ValueError, "'group' must be one of 16, 32, 64, 128, not 8"),
    (lambda x: ck.kv_quantize(x, 4.0, 32), TypeError, "'bits' must be an integer, not float"),
    (lambda x: ck.kv_quantize(x[:, :40], 4, 32), ValueError, r"'x' of shape \(2, 40\) does not fit"),
    (lambda x: ck.kv_quantize(x.astype("f8"), 4, 32), TypeError, "'x' must be float32, float16 or bfloat16, not float64"),
    (lambda x: ck.kv_quantize(x.tolist(), 4, 32), TypeError, "'x' must be a NumPy array"),
    (lambda x: ck.kv_quantize(x * np.nan, 4, 32), ValueError, "'x' holds NaN, inf or a number beyond 2"),
    (lambda x: ck.kv_dequantize(x, x, x, 4, 32), TypeError, "'codes' must be a uint32 NumPy array, not float32"),
    (lambda x: ck.kv_dequantize(np.zeros((2, 5), "u4"), x, x, 4, 32), ValueError, r"'codes' of shape \(2, 5\) does not fit"),
    (lambda x: ck.kv_dequantize(np.zeros((2, 8), "u4"), x[:, :1], x[:, :1], 4, 32), ValueError, "'scales' and 'biases'"),
    (lambda x: ck.kv_dequantize(np.zeros((2, 4), "u4"), x[:, :1], x[:1, :1], 4, 32), ValueError, "'biases'"),
    (lambda x: ck.KVCache(1, 48, 4, quant="int8"), ValueError, "'head_dim' is 48, which is no multiple of 'group', 32"),
    (lambda x: ck.KVCache(1, 64, 4, quant="int8", group=48), ValueError, "'group' must be one of 16, 32, 64, 128, not 48"),
    (lambda x: ck.KVCache(1, 64, 4, quant="int2"), ValueError, "'quant' must be one of None, 'int8', .*, not 'int2'"),
])
def test_refusals_name_the_argument(call, error, text):
    with pytest.raises(error, match=text):
        call(np.ones((2, 64), "f4"))
