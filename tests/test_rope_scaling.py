"""Tables of scaled frequencies: every rule against its formula in 40 digits, and against transformers' own tables."""

import functools

import mpmath
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import ckernels as ck
from ckernels.parity import assert_parity
from guard import guarded


def rule(kind, **fields):
    return {"rope_type": kind, **fields}


LLAMA3 = rule("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
YARN = rule("yarn", factor=40.0, original_max_position_embeddings=4096)
LONGROPE = rule(
    "longrope",
    short_factor=[1 + k / 100 for k in range(48)],
    long_factor=[1.05 * 1.09**k for k in range(48)],
    original_max_position_embeddings=4096,
)
NEAR, FAR = [0, 1, 2, 7, 40, 63], [4095, 4097, 131071, 1048577]

# dim, base, rule, length of the sequence
CASES = {
    "linear": (64, 1e4, rule("linear", factor=4.0), 64),
    "linear, no whole factor": (34, 1e4, rule("linear", factor=2.7), 64),
    "ntk": (128, 1e4, rule("ntk", factor=8.0), 64),
    "ntk, two pairs": (4, 1e4, rule("ntk", factor=3.0), 64),
    "dynamic, longer": (64, 1e4, rule("dynamic", factor=2.0, original_max_position_embeddings=2048), 5000),
    "dynamic, just longer": (64, 1e4, rule("dynamic", factor=4.0, original_max_position_embeddings=2048), 2049),
    "yarn": (128, 1e4, YARN, 64),
    "yarn of DeepSeek": (64, 1e4, YARN | {"mscale": 1.0, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1}, 64),
    "yarn of gpt-oss": (64, 150000.0, YARN | {"factor": 32.0, "truncate": False, "beta_fast": 32.0}, 64),
    "yarn, betas": (96, 1e6, YARN | {"beta_fast": 16, "beta_slow": 2.5}, 64),
    "yarn, no room for a ramp": (8, 1e4, YARN | {"beta_fast": 3, "beta_slow": 3, "truncate": False}, 64),
    "yarn, attention": (80, 1e4, YARN | {"attention_factor": 1.25}, 64),
    "yarn, factor 1": (80, 1e4, YARN | {"factor": 1.0, "beta_fast": 20}, 64),
    "llama3 of 8B": (128, 500000.0, LLAMA3, 64),
    "llama3 of 1B": (64, 500000.0, LLAMA3 | {"factor": 32.0}, 64),
    "llama3, other ends": (64, 1e4, LLAMA3 | {"low_freq_factor": 0.5, "high_freq_factor": 30.0, "factor": 3.0}, 64),
    "longrope, short": (96, 1e4, LONGROPE | {"factor": 32.0}, 4096),
    "longrope, long": (96, 1e4, LONGROPE | {"factor": 32.0}, 4097),
    "longrope, attention": (96, 1e4, LONGROPE | {"attention_factor": 1.19}, 5000),
    "longrope, factor 1": (96, 1e4, LONGROPE | {"factor": 1}, 5000),
}
EQUAL = {"yarn, factor 1"}  # to the table without scaling


# ---- the exact side: each rule from its paper, in 40 digits ----


def exact_yarn(dim, base, fields):
    """The pair that makes r turns in L tokens is where L = 2 pi r base^(2k/dim)."""
    original, factor = fields["original_max_position_embeddings"], mpmath.mpf(fields["factor"])

    def pair_of(turns):
        return mpmath.log(original / (2 * mpmath.pi * turns), base) * dim / 2

    first, last = pair_of(fields.get("beta_fast", 32)), pair_of(fields.get("beta_slow", 1))
    if fields.get("truncate", True):
        first, last = mpmath.floor(first), mpmath.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += mpmath.mpf("0.001")
    result = []
    for k in range(dim // 2):
        stretched = min(max((k - first) / (last - first), 0), 1)
        wavelength = mpmath.mpf(base) ** (mpmath.mpf(2 * k) / dim)
        result.append(((1 - stretched) + stretched / factor) / wavelength)
    m, m_all = (mpmath.mpf(fields.get(name, 0)) for name in ("mscale", "mscale_all_dim"))
    attention = 1 + mpmath.log(factor) / 10
    if m:
        attention = (1 + m * mpmath.log(factor) / 10) / (1 + m_all * mpmath.log(factor) / 10)
    return result, mpmath.mpf(fields.get("attention_factor", attention))


def exact_llama3(dim, base, fields):
    original, factor = fields["original_max_position_embeddings"], mpmath.mpf(fields["factor"])
    low, high = fields["low_freq_factor"], fields["high_freq_factor"]
    result = []
    for k in range(dim // 2):
        f = mpmath.mpf(base) ** (-mpmath.mpf(2 * k) / dim)
        kept = (original * f / (2 * mpmath.pi) - low) / (mpmath.mpf(high) - low)
        kept = min(max(kept, 0), 1)
        result.append(kept * f + (1 - kept) * f / factor)
    return result, mpmath.mpf(1)


def exact_rule(dim, base, fields, length):
    kind, factor = fields["rope_type"], mpmath.mpf(fields.get("factor", 1))
    if kind in ("yarn", "llama3"):
        return {"yarn": exact_yarn, "llama3": exact_llama3}[kind](dim, base, fields)
    base, attention, divisors = mpmath.mpf(base), mpmath.mpf(1), [mpmath.mpf(1)] * (dim // 2)
    original = fields.get("original_max_position_embeddings")
    if kind == "linear":
        divisors = [factor] * (dim // 2)
    elif kind == "ntk":
        base *= factor ** (mpmath.mpf(dim) / (dim - 2))
    elif kind == "dynamic" and length > original:
        base *= (factor * length / original - factor + 1) ** (mpmath.mpf(dim) / (dim - 2))
    elif kind == "longrope":
        divisors = fields["long_factor" if length > original else "short_factor"]
        attention = mpmath.sqrt(1 + mpmath.log(factor) / mpmath.log(original))
        attention = mpmath.mpf(fields.get("attention_factor", attention))
    return [1 / (divisors[k] * base ** (mpmath.mpf(2 * k) / dim)) for k in range(dim // 2)], attention


@functools.cache
def exact(name, positions):
    """Return cos and sin [T, K] rounded to float64, and the frequencies."""
    with mpmath.workdps(40):
        frequencies, attention = exact_rule(*CASES[name])
        angles = [[p * f for f in frequencies] for p in positions]
        tables = [np.array([[float(attention * of(a)) for a in row] for row in angles]) for of in (mpmath.cos, mpmath.sin)]
        return *tables, np.array([float(f) for f in frequencies])


def theirs(name, positions):
    """Compute transformers' table as its models do: frequencies, angles, cosines in float32."""
    dim, base, fields, length = CASES[name]
    fields = fields | {"rope_theta": base}
    trained = fields.get("original_max_position_embeddings", 2048)
    if fields["rope_type"] == "ntk":  # which transformers knows as another base
        fields = rule("linear", factor=1.0, rope_theta=base * fields["factor"] ** (dim / (dim - 2)))
    if fields["rope_type"] == "dynamic":
        del fields["original_max_position_embeddings"]
    config = LlamaConfig(
        hidden_size=2 * dim, num_attention_heads=2, max_position_embeddings=trained, rope_parameters=fields
    )
    frequencies, attention = ROPE_INIT_FUNCTIONS[fields["rope_type"]](config, torch.device("cpu"), seq_len=length)
    angles = torch.outer(torch.tensor(positions).float(), frequencies)
    return (angles.cos() * attention).numpy(), (angles.sin() * attention).numpy()


def ours(name, positions):
    dim, base, fields, length = CASES[name]
    return ck.rope_table(guarded(np.array(positions)), dim, base, scaling=fields, length=length)


# ---- the comparisons ----


@pytest.mark.parametrize("name", CASES)
def test_scaled_table_matches_transformers(isa, name):
    dim, base, *_ = CASES[name]
    *exact_tables, frequencies = exact(name, tuple(NEAR))
    plain = ck.rope_table(np.array(NEAR), dim, base)
    trivial = {} if name in EQUAL else {"trivial": np.stack(plain)}
    peer = np.stack(theirs(name, NEAR))
    assert_parity(np.stack(ours(name, NEAR)), np.stack(exact_tables), peer, **trivial)
    # Theirs must be the same function: a float32 power to an exponent of ln(base), roundings of the angle and after it.
    angle = np.outer(NEAR, frequencies)
    assert_parity(peer, np.stack(exact_tables), bound=2.0**-19 * angle + 2.0**-22)


@pytest.mark.parametrize("positions", [NEAR, FAR], ids=["near", "far"])
@pytest.mark.parametrize("name", CASES)
def test_scaled_table_is_rounded_once(isa, name, positions):
    *exact_tables, frequencies = exact(name, tuple(positions))
    for got, want in zip(ours(name, positions), exact_tables, strict=True):
        half_ulp = np.spacing(np.abs(want).astype("f4")).astype("f8") / 2
        assert got.dtype == np.float32
        assert_parity(got, want, bound=half_ulp * (1 + 2.0**-20) + 2.0**-51 * np.outer(positions, frequencies))


@pytest.mark.parametrize("name", CASES)
def test_scaled_table_bits_do_not_depend_on_isa_threads_or_rows(name):
    dim, base, fields, length = CASES[name]
    positions, bits = np.arange(700), set()
    for isa in ck.isas():
        for n in 1, 3:
            ck.set_num_threads(n)
            with ck.use(isa):
                tables = ck.rope_table(positions, dim, base, scaling=fields, length=length)
                bits.add(b"".join(a.tobytes() for a in tables))
    assert len(bits) == 1
    one = ck.rope_table(positions[345:346].astype("i4"), dim, base, scaling=fields, length=length)
    assert [a.tobytes() for a in one] == [a[345].tobytes() for a in tables]


@pytest.mark.parametrize("fields", [CASES["dynamic, longer"][2], CASES["longrope, short"][2]], ids=["dynamic", "longrope"])
def test_length_is_the_last_position_and_one(isa, fields):
    original = fields["original_max_position_embeddings"]

    def bits(positions, **length):
        return [a[:3].tobytes() for a in ck.rope_table(np.array(positions), 96, scaling=fields, **length)]

    short, longer = bits([0, 5, 9]), bits([0, 5, 9], length=original + 1)
    assert short != longer
    assert bits([0, 5, 9, original - 1]) == bits([0, 5, 9], length=original) == bits([0, 5, 9], length=1) == short
    assert bits([0, 5, 9, original]) == longer
    assert bits([0, 5, 9, original, 1]) == longer  # the largest, wherever it stands
    assert bits([0, 5, 9, original], length=original) == short  # what is given wins
    assert bits([0, 5, 9, -7]) == short


def test_dynamic_within_the_trained_length_is_no_scaling(isa):
    fields = rule("dynamic", factor=3.0, original_max_position_embeddings=512)
    tables = ck.rope_table(np.arange(512), 64, scaling=fields)
    assert [a.tobytes() for a in tables] == [a.tobytes() for a in ck.rope_table(np.arange(512), 64)]
    longer = [a[:512] for a in ck.rope_table(np.arange(514), 64, scaling=fields)]
    assert not np.array_equal(tables[1], longer[1])


@pytest.mark.parametrize(
    "fields",
    [rule("default"), rule("default", rope_theta=5e5), {"type": "default"}, rule("default", type="default", factor=None)],
    ids=str,
)
def test_default_and_no_rule_are_the_same(isa, fields):
    tables = ck.rope_table(np.arange(9), 32, 5e5, scaling=fields)
    assert [a.tobytes() for a in tables] == [a.tobytes() for a in ck.rope_table(np.arange(9), 32, 5e5)]


def test_a_rule_has_two_spellings_of_its_name():
    spellings = LLAMA3, {"type" if name == "rope_type" else name: value for name, value in LLAMA3.items()}
    spellings += (LLAMA3 | {"type": "llama3", "rope_theta": 1e4, "partial_rotary_factor": 1.0, "beta_fast": None},)
    assert len({ck.rope_table(np.arange(9), 32, scaling=fields)[0].tobytes() for fields in spellings}) == 1


def test_one_pair_turns_by_its_position_under_every_base():
    for fields in rule("ntk", factor=8.0), rule("dynamic", factor=8.0, original_max_position_embeddings=1):
        tables = ck.rope_table(np.arange(9), 2, scaling=fields)
        assert [a.tobytes() for a in tables] == [a.tobytes() for a in ck.rope_table(np.arange(9), 2)]


@pytest.mark.parametrize("name", CASES)
def test_of_nothing(isa, name):
    dim, base, fields, length = CASES[name]
    assert [a.shape for a in ck.rope_table(np.arange(0), dim, base, scaling=fields, length=length)] == [(0, dim // 2)] * 2
    if "longrope" not in name:
        assert [a.shape for a in ck.rope_table(np.arange(3), 0, base, scaling=fields)] == [(3, 0)] * 2


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


DYNAMIC = rule("dynamic", factor=2.0, original_max_position_embeddings=64)
LONG = LONGROPE | {"factor": 2.0}
REFUSED = [
    (TypeError, "'scaling' must be a dict, not list", []),
    (ValueError, "'rope_type' of 'scaling' is missing", {}),
    (ValueError, "'rope_type' of 'scaling' is missing", {"factor": 2.0}),
    (ValueError, "'rope_type' of 'scaling' is 'su'; there are default, linear, ntk", rule("su", factor=2.0)),
    (TypeError, "'rope_type' of 'scaling' must be a string, not int", rule(3)),
    (TypeError, "'type' of 'scaling' must be a string, not list", rule("linear", factor=2.0, type=["linear"])),
    (ValueError, "'rope_type' of 'scaling' is 'linear', and 'type' 'yarn'", rule("linear", type="yarn", factor=2.0)),
    (ValueError, "'factor' of 'scaling' is no field of 'default'|'factor' of 'scaling'", rule("default", factor=2.0)),
    (ValueError, "'rope_theta' of 'scaling' is 500000.0, and 'base' 10000.0", LLAMA3 | {"rope_theta": 5e5}),
    (ValueError, "'partial_rotary_factor' of 'scaling' is 0.5", LLAMA3 | {"partial_rotary_factor": 0.5}),
    (ValueError, "'mrope_section' of 'scaling' belongs to mrope", rule("default", mrope_section=[16, 24, 24])),
    (ValueError, "'mrope_interleaved' of 'scaling' belongs to mrope", rule("default", mrope_interleaved=True)),
    (ValueError, "'llama_4_scaling_beta' of 'scaling' is no field of 'yarn'", YARN | {"llama_4_scaling_beta": 0.1}),
    (ValueError, "'beta_fast' of 'scaling' is no field of 'llama3'", LLAMA3 | {"beta_fast": 32}),
    (ValueError, "'truncate' of 'scaling' is no field of 'longrope'", LONG | {"truncate": True}),
    (ValueError, "'original_max_position_embeddings' of 'scaling' is no field of 'linear'",
     rule("linear", factor=2.0, original_max_position_embeddings=4096)),
    (TypeError, "'truncate' of 'scaling' must be a bool, not int", YARN | {"truncate": 1}),
    (ValueError, "'mscale' of 'scaling' has no effect alone", YARN | {"mscale": 1.0}),
    (ValueError, "'mscale_all_dim' of 'scaling' has no effect alone", YARN | {"mscale_all_dim": 1.0}),
    (ValueError, "'mscale_all_dim' of 'scaling' must be positive and finite, not 0",
     YARN | {"mscale": 1.0, "mscale_all_dim": 0.0}),
    (ValueError, "'mscale' of 'scaling' has no effect beside 'attention_factor'",
     YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.0}),
    (ValueError, "'attention_factor' must be positive and finite, not -1", YARN | {"attention_factor": -1.0}),
    (ValueError, "'attention_factor' must be positive and finite, not 0", LONG | {"attention_factor": 0}),
    (ValueError, "'beta_slow' must be positive and finite, not 0", YARN | {"beta_slow": 0}),
    (ValueError, "'beta_fast' must be finite and at least 'beta_slow'=2, not 1", YARN | {"beta_slow": 2, "beta_fast": 1}),
    (ValueError, "'high_freq_factor' must be finite and above 'low_freq_factor'=4, not 4", LLAMA3 | {"low_freq_factor": 4}),
    (ValueError, "'low_freq_factor' must be positive and finite, not -1", LLAMA3 | {"low_freq_factor": -1}),
    (ValueError, "'high_freq_factor' must be finite", LLAMA3 | {"high_freq_factor": np.inf}),
    (TypeError, "'short_factor' of 'scaling' must be a list of numbers, not float", LONG | {"short_factor": 1.0}),
    (ValueError, "'long_factor' of 'scaling' has 47 numbers, and there are K=48", LONG | {"long_factor": [1.0] * 47}),
    (TypeError, "'long_factor' of 'scaling' must be a number, not str", LONG | {"long_factor": ["1"] * 48}),
    (ValueError, "'short_factor' must be positive and finite, and holds 0 at 3",
     LONG | {"short_factor": [1.0] * 3 + [0.0] * 45}),
    (ValueError, "'long_factor' must be positive and finite, and holds nan at 0", LONG | {"long_factor": [np.nan] * 48}),
    (ValueError, "'factor' of 'scaling' is missing, which 'longrope' needs without", without(LONG, "factor")),
    (ValueError, "'original_max_position_embeddings' of 'scaling' must be above 1",
     LONG | {"original_max_position_embeddings": 1}),
]  # fmt: skip
for complete in rule("linear", factor=2.0), rule("ntk", factor=2.0), DYNAMIC, YARN, LLAMA3, LONG:
    kind = complete["rope_type"]
    for field in complete.keys() - {"rope_type"} - ({"factor"} if kind == "longrope" else set()):
        REFUSED.append((ValueError, f"'{field}' of 'scaling' is missing, which '{kind}' needs", without(complete, field)))
        REFUSED.append((ValueError, f"'{field}' of 'scaling' is missing, which '{kind}' needs", complete | {field: None}))
    for value in 0.5, -2, np.nan, np.inf:
        REFUSED.append((ValueError, "'factor' must be finite and at least 1, not", complete | {"factor": value}))
    REFUSED.append((ValueError, "'factor' of 'scaling' must be finite", complete | {"factor": 10**400}))
    for value in "2", True, [2.0]:
        REFUSED.append((TypeError, "'factor' of 'scaling' must be a number", complete | {"factor": value}))
    if "original_max_position_embeddings" in complete:
        text = "'original_max_position_embeddings' must be finite and at least 1, not"
        REFUSED += [(ValueError, text, complete | {"original_max_position_embeddings": value}) for value in (0, -1, np.nan)]
REFUSED.sort(key=str)


@pytest.mark.parametrize(("error", "text", "fields"), REFUSED, ids=[f"{text}-{n}" for n, (_, text, _) in enumerate(REFUSED)])
def test_refuses(error, text, fields):
    with pytest.raises(error, match=rf"^rope_table\(\): ({text})"):
        ck.rope_table(np.arange(3), 96, scaling=fields)


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (ValueError, "'length' must be positive, not 0", {"length": 0}),
        (TypeError, "'length' must be an integer, not float", {"length": 3.0}),
        (TypeError, "'length' must be an integer, not bool", {"length": True}),
        (OverflowError, "'length' does not fit 64 bits", {"length": 2**70}),
        (ValueError, "'base' must be above 1 for yarn, not 1", {"base": 1.0, "scaling": YARN}),
    ],
)
def test_refuses_arguments(error, text, arguments):
    with pytest.raises(error, match=rf"rope_table\(\): {text}"):
        ck.rope_table(np.arange(3), 96, **arguments)
