"""The words of csrc/simd: the same bits on every instruction set, IEEE arithmetic, tails, and the bounds of math.h."""

import math
import re
import subprocess

import numpy as np
import pytest

import ckernels as ck
import native
from guard import guarded, unwritten

SETS = [isa for isa in ck.isas() if isa != "reference"] + ["portable"]
FUSED = {"avx512", "avx2"}
SPECIAL = np.array(
    [
        0.0,
        -0.0,
        1,
        -1,
        np.inf,
        -np.inf,
        np.nan,
        1e-45,
        -1e-45,
        1.1754942e-38,
        1.17549435e-38,
        3.4028235e38,
        -3.4028235e38,
        88.7,
        88.8,
        -87.3,
        -103.9,
        -104.1,
        0.625,
        0.62499994,
        0.70710677,
        0.7071068,
        1.5,
        2.5,
    ],
    np.float32,
)


@pytest.fixture(params=SETS)
def words(request):
    """Run the test once per set of words."""
    return request.param


def samples(rng, n=4099):
    """Three arrays of floats of every size, the special values against each other among them."""
    bits = rng.integers(0, 2**32, (3, n), np.uint32).view(np.float32)
    tame = rng.standard_normal((3, n)).astype(np.float32)
    pairs = np.stack(np.broadcast_arrays(SPECIAL[:, None, None], SPECIAL[None, :, None], SPECIAL[None, None, ::6]))
    return np.concatenate([bits, tame, pairs.reshape(3, -1)], axis=1)


def same_bits(a, b):
    """Whether two arrays are equal bit for bit, any NaN for any other."""
    return np.array_equal(a.view(np.uint32)[~np.isnan(a)], b.view(np.uint32)[~np.isnan(b)]) and np.array_equal(
        np.isnan(a), np.isnan(b)
    )


PAIRS = [pair for pair in (("avx512", "avx2"), ("baseline", "portable")) if set(pair) <= set(SETS)]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_pairs_give_the_same_bits_for_every_word(pair, rng):
    x, y, z = samples(rng)
    with np.errstate(all="ignore"):
        rounded = {"bf16": (y.view(np.uint32) & 0xFFFF0000).view(np.float32), "f16": y.astype(np.float16).astype(np.float32)}
    names = set(native.words(pair[0]))
    assert names == set(native.words(pair[1])) and len(names) > 25
    for name in sorted(names - {"lanes", "lanes_or"}):
        a, b = (native.run_word(isa, name, x, rounded.get(name, y), z) for isa in pair)
        assert same_bits(a, b), name


def nearest(exact_high, exact_low):
    """Round the sum of two doubles, the second small, to float32 once: by rounding to odd first."""
    odd = exact_high.view(np.int64)
    step = np.where((exact_low > 0) == (exact_high > 0), 1, -1)
    fixed = np.where((exact_low != 0) & (odd & 1 == 0), np.where(step > 0, odd + 1, odd - 1), odd)
    return fixed.view(np.float64).astype(np.float32)


def test_arithmetic_rounds_as_ieee(words, rng):
    x, y, z = samples(rng)
    with np.errstate(all="ignore"):
        for name, exact in {
            "add": x + y,
            "sub": x - y,
            "mul": x * y,
            "div": x / y,
            "sqrt": np.sqrt(x),
            "neg": -x,
            "abs": np.abs(x),
            "copysign": np.copysign(x, y),
            "max": np.where(x > y, x, y),
            "min": np.where(x < y, x, y),
            "lt": np.float32(x < y),
            "le": np.float32(x <= y),
            "eq": np.float32(x == y),
            "is_nan": np.float32(np.isnan(x)),
            "select": np.where(x < y, z, x),
            "stream": x,
        }.items():
            assert same_bits(native.run_word(words, name, x, y, z), exact), name


def test_fma_rounds_once_where_the_hardware_can(words, rng):
    x, y, z = rng.standard_normal((3, 4096)).astype(np.float32)
    z *= np.float32(2.0) ** rng.integers(-24, 24, z.size).astype(np.float32)
    product = x.astype(np.float64) * y  # exact: 48 bits
    total = product + z
    lost = (product - (total - (total - product))) + (z - (total - product))
    exact = nearest(total, lost) if words in FUSED else x * y + z
    assert same_bits(native.run_word(words, "fma", x, y, z), exact)
    assert not same_bits(nearest(total, lost), x * y + z)  # or the test could not tell


def test_max_and_min_return_the_second_where_one_is_nan(words):
    x = np.array([np.nan, 1, 0.0, -0.0], np.float32)
    y = np.array([1, np.nan, -0.0, 0.0], np.float32)
    for name in ("max", "min"):
        assert same_bits(native.run_word(words, name, x, y), y), name


def test_folds_go_by_halves(words):
    x = np.array([1e8, 1, -1e8, 3, 0.1, 7e7, 1e-3, -7e7, 5, -1, 1e8, 2, 0.3, -1e8, 11, 13], np.float32)
    total, peak = x.copy(), x.copy()
    for half in (8, 4, 2, 1):
        total = total[:half] + total[half:]
        peak = np.maximum(peak[:half], peak[half:])
    assert native.run_word(words, "sum", x)[0] == total[0]
    assert native.run_word(words, "peak", x)[0] == peak[0]
    assert total[0] not in (np.cumsum(x)[-1], np.float32(x.astype(np.float64).sum()))  # the order shows


@pytest.mark.parametrize("n", [*range(34), 63, 64, 65])
def test_tails_touch_only_their_elements(words, n, rng):
    x = guarded(rng.standard_normal(n).astype(np.float32))
    for name in ("stream", "add"):
        out = unwritten(n)
        native.run_word(words, name, x, x, x, out=out)
        assert same_bits(out, x + x if name == "add" else x.copy()), name
    if n <= 16:
        for name, rest in (("lanes", 0.0), ("lanes_or", 7.5)):
            lanes = native.run_word(words, name, x, np.float32([7.5]), out=unwritten(16), n=n)
            assert same_bits(lanes, np.concatenate([x, np.full(16 - n, rest, np.float32)])), name
    first = native.run_word(words, "first", x, x, out=unwritten(n))
    assert np.array_equal(first, n - np.arange(n) // 16 * 16)


def test_split_gives_mantissa_and_exponent(words, rng):
    x = np.abs(samples(rng)[0])
    x = x[(x >= 2.0**-126) & np.isfinite(x)]
    m, e = native.run_word(words, "split", x), native.run_word(words, "split_exponent", x)
    assert np.array_equal(m.astype(np.float64) * 2.0 ** e.astype(np.float64), x.astype(np.float64))
    assert m.min() >= np.float32(0.5**0.5) and m.max() < np.float32(2**0.5) + np.float32(2e-7)
    i = np.arange(-126, 128, dtype=np.float32)
    assert np.array_equal(native.run_word(words, "pow2_shifted", i), np.float32(2.0) ** i)


def every_half(words, name, dtype, rng):
    """Values at, beside and halfway between all numbers of 16 bits, and floats of every size; what NumPy makes of them."""
    numbers = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float32)
    finite = np.sort(numbers[np.isfinite(numbers)])
    with np.errstate(all="ignore"):
        halfway = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
        x = np.concatenate([numbers, halfway, np.nextafter(halfway, np.inf), np.nextafter(halfway, -np.inf), samples(rng)[0]])
        x = np.concatenate([x, np.float32([65519.996, 65520, -65520, 65536, 2.0**-25, 2.0**-24 * 1.5, 1e-45])])
        return native.run_word(words, name, x, np.zeros_like(x)), x.astype(dtype).astype(np.float32)


def test_bfloat16_rounds_to_nearest_even(words, rng):
    import ml_dtypes

    assert same_bits(*every_half(words, "bf16", ml_dtypes.bfloat16, rng))


def test_float16_rounds_to_nearest_even(words, rng):
    assert same_bits(*every_half(words, "f16", np.float16, rng))


EDGES = {
    "exp": [(-np.inf, 0), (-104, 0), (-103.9, 1e-45), (-0.0, 1), (89, np.inf), (np.inf, np.inf), (np.nan, np.nan)],
    "log": [
        (0.0, -np.inf),
        (-0.0, -np.inf),
        (-1, np.nan),
        (-np.inf, np.nan),
        (1, 0.0),
        (np.inf, np.inf),
        (np.nan, np.nan),
        (1e-45, -103.27893),
        (-1e-45, np.nan),
    ],
    "sigmoid": [(-np.inf, 0), (-104, 0), (-103.9, 1e-45), (0.0, 0.5), (-0.0, 0.5), (np.inf, 1), (np.nan, np.nan)],
    "tanh": [
        (-np.inf, -1),
        (0.0, 0.0),
        (-0.0, -0.0),
        (1e-45, 1e-45),
        (-1e-45, -1e-45),
        (20, 1),
        (np.inf, 1),
        (np.nan, np.nan),
    ],
    "erf": [
        (-np.inf, -1),
        (0.0, 0.0),
        (-0.0, -0.0),
        (1e-45, 1e-45),
        (-1e-45, -1e-45),
        (4, 1),
        (np.inf, 1),
        (np.nan, np.nan),
    ],
    "gelu": [
        (-np.inf, np.nan),
        (-3e38, -0.0),
        (-14.5, -0.0),
        (-1e-45, -0.0),
        (0.0, 0.0),
        (-0.0, -0.0),
        (1e-30, 5e-31),
        (7, 7),
        (3e38, 3e38),
        (np.inf, np.inf),
        (np.nan, np.nan),
    ],
    "silu": [
        (-np.inf, np.nan),
        (-3e38, -0.0),
        (-109, -0.0),
        (-108.5, -1e-45),
        (-104, -7.0785e-44),
        (-1e-45, -0.0),
        (0.0, 0.0),
        (-0.0, -0.0),
        (1e-30, 5e-31),
        (20, 20),
        (3e38, 3e38),
        (np.inf, np.inf),
        (np.nan, np.nan),
    ],
}


EDGES |= {
    "exp_short": [(-np.inf, 0), (-3e38, 0), (-104, 0), (-0.0, 1), (1e-45, 1), (89, np.inf), (np.inf, np.inf), (np.nan, np.nan)],
    "sigmoid_short": [(-np.inf, 0), (-3e38, 0), (0.0, 0.5), (-0.0, 0.5), (3e38, 1), (np.inf, 1), (np.nan, np.nan)],
    "tanh_short": [(0.0, 0.0), (-0.0, -0.0), (np.nan, np.nan)],
    "sigmoid_slope_short": [(-np.inf, 0), (-3e38, 0), (0.0, 0.25), (3e38, 0), (np.inf, 0), (np.nan, np.nan)],
    "tanh_slope_short": [(-np.inf, 0), (-3e38, 0), (0.0, 1), (3e38, 0), (np.inf, 0), (np.nan, np.nan)],
}
GATED = ("silu", "gelu", "gelu_tanh", "gelu_sigmoid")
EDGES |= {
    f"{name}_short": [
        (-np.inf, np.nan),
        (-3e38, -0.0),
        (-110, -0.0),
        (0.0, 0.0),
        (-0.0, -0.0),
        (40, 40),
        (3e38, 3e38),
        (np.inf, np.inf),
        (np.nan, np.nan),
    ]
    for name in GATED
}
EDGES |= {
    f"{name}_slope_short": [(-np.inf, np.nan), (-3e38, 0), (-110, 0), (40, 1), (3e38, 1), (np.inf, np.nan), (np.nan, np.nan)]
    for name in GATED
}


@pytest.mark.parametrize("name", EDGES)
def test_functions_at_their_edges(words, name):
    x, exact = np.array(EDGES[name], np.float32).T
    got = native.run_word(words, name, np.ascontiguousarray(x))
    if name.endswith("slope_short"):
        got += np.float32(0)  # 0 of either sign
    assert same_bits(got, np.ascontiguousarray(exact))


EXACT = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * np.vectorize(math.erfc)(-x * 0.5**0.5),
    "gelu_tanh": lambda x: x / (1 + np.exp(-((8 / np.pi) ** 0.5) * (x + 0.044715 * x**3))),
    "gelu_sigmoid": lambda x: x / (1 + np.exp(-1.702 * x)),
    "sigmoid_slope": lambda x: np.exp(-abs(x)) / (1 + np.exp(-abs(x))) ** 2,
    "tanh_slope": lambda x: 4 * np.exp(-2 * abs(x)) / (1 + np.exp(-2 * abs(x))) ** 2,
}


def every_number(dtype):
    """All finite numbers of 16 bits, as float32."""
    numbers = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float32)
    return numbers[np.isfinite(numbers)]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_short_functions_hardly_show_in_16_bits(words, half, name):
    """Less than 2^-7 ulp of the dtype, where rounding costs half of one."""
    import ml_dtypes

    dtype, bits, least = (np.float16, 10, -14) if half == "float16" else (ml_dtypes.bfloat16, 7, -126)
    x = every_number(dtype)
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64))
        got = native.run_word(words, f"{name}_short", x).astype(np.float64)
    most = float(np.finfo(dtype).max) if half == "float16" else float(ml_dtypes.finfo(dtype).max)
    shown = np.abs(exact) < most
    if half == "bfloat16":  # where e^x overflows, 0 may be given for less than 2^-120
        shown &= (np.abs(exact) > 2.0**-120) | (exact == 0)
        assert np.abs(got[~shown & (np.abs(exact) <= 2.0**-120)]).max(initial=0) <= 2.0**-119
    ulp = 2.0 ** (np.maximum(np.floor(np.log2(np.maximum(np.abs(exact[shown]), 1e-300))), least) - bits)
    assert shown.sum() > 20000
    assert (np.abs(got[shown] - exact[shown]) / ulp).max() < 2.0**-7


@pytest.mark.parametrize("name", GATED)
def test_short_slopes_are_those_of_float32(words, name):
    """Within 2^-17 of their size, which is about 1: where a slope is 0, its terms are a third."""
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16):
        x = every_number(dtype)
        full, short = (native.run_word(words, f"{name}_slope{way}", x) for way in ("", "_short"))
        assert np.abs(full.astype(np.float64) - short).max() <= 2.0**-17


def test_exp_below_has_the_bits_of_exp(words, rng):
    x = -np.abs(np.concatenate([samples(rng)[0], np.linspace(-110, 0, 4096, dtype=np.float32)]))
    assert same_bits(native.run_word(words, "exp_below", x), native.run_word(words, "exp", x))


def promised():
    """The bounds that csrc/simd/math.h states: {function: (with fma, without)}."""
    text = (native.ROOT / "csrc/simd/math.h").read_text().split("*/")[0]
    return {m[1]: (float(m[2]), float(m[3])) for m in re.finditer(r"^ \*\s+(\w+)\s+(\d+\.\d+)\s+(\d+\.\d+)$", text, re.M)}


def test_functions_keep_their_bounds_on_a_sample_of_all_floats():
    sweep = native.link("words_sweep", [("tests/c/words_sweep.c", ["-O2"]), *native.word_units()])
    lines = subprocess.run([sweep, "0", "0xffffffff", "1637", *SETS], check=True, capture_output=True, text=True).stdout
    bounds, seen = promised(), 0
    assert set(bounds) == {name for name in EDGES if not name.endswith("slope_short")} | {"sigmoid_slope_short", "tanh_slope_short"}
    assert all(max(bound) < 128 for bound in bounds.values())  # 2^-17 at most
    assert all(max(bounds[name]) < 1.5 for name in ("exp", "log", "sigmoid", "tanh", "erf"))
    for line in lines.splitlines():
        match line.split():
            case name, isa, error, at:
                assert float(error) <= bounds[name][isa not in FUSED], (name, isa, error, at)
                seen += 1
            case "differ", count:
                assert count == "0"
    assert seen == len(bounds) * len(SETS)
