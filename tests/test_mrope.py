"""Rotary embedding with several positions a token: the questions of test_rope.py, and transformers' own models."""

import mpmath
import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels.ops.rope import Gradients
from ckernels.parity import assert_parity
from differences import assert_gradient
from guard import gaps_untouched, guarded, spaced, unwritten
from parity import as_torch, assert_gradients_match_torch, assert_matches_torch

# B, H, T, sections, D: one to four axes, an empty section, pairs around each vector width, lanes that pass.
SIZES = [
    (2, 3, 5, (1,), 2),
    (2, 3, 5, (2, 1, 1), 8),
    (2, 3, 9, (4, 3), 14),
    (2, 3, 5, (6, 6, 5), 40),
    (1, 2, 11, (6, 0, 3), 18),
    (2, 1, 17, (6, 5, 5), 32),
    (3, 2, 4, (9, 8, 8, 8), 80),
    (1, 7, 19, (24, 20, 20), 128),
]
CONTIGUOUS = [*SIZES, (1, 5, 8, (16, 24, 24), 128), (2, 3, 5, (3, 0, 9), 24)]
HOW = [(False, False), (True, False), (False, True), (True, True)]  # pairs of neighbours, sections that take turns
S = 90


def sizes(turns):
    return SIZES if turns else CONTIGUOUS


CASES = [(size, *how) for how in HOW for size in sizes(how[1])]


def axis_of(k, sections, turns):
    """The rule as Qwen2-VL's and Qwen3-VL's papers tell it."""
    if turns:
        axis = k % len(sections)
        return axis if axis and k // len(sections) < sections[axis] else 0
    return int(np.searchsorted(np.cumsum(sections), k, side="right"))


def inputs(rng, B, H, T, sections, D, batched=True, dtype="f4"):
    x = guarded(rng.standard_normal((B, H, T, D)).astype(dtype))
    cos, sin = (guarded(a) for a in ck.rope_table(np.arange(S), 2 * sum(sections)))
    shape = (len(sections), B, T) if batched else (len(sections), T)
    return x, cos, sin, guarded(rng.integers(0, S, shape))


def formula(x, cos, sin, positions, sections, interleaved, turns):
    """[..., T, K] tables put together pair by pair, then the rotation."""
    K = sum(sections)
    picked = [positions[axis_of(k, sections, turns)] for k in range(K)]
    cos, sin = (torch.stack([table[p, k] for k, p in enumerate(picked)], -1) for table in (cos, sin))
    if positions.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]
    lo, hi = (x[..., 0 : 2 * K : 2], x[..., 1 : 2 * K : 2]) if interleaved else (x[..., :K], x[..., K : 2 * K])
    turned = [lo * cos - hi * sin, lo * sin + hi * cos]
    turned = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat([turned, x[..., 2 * K :]], -1)


def turned(positions, *how):
    """Return what PyTorch is to compute; on 16-bit x it works in float32, as the tables are, and rounds once."""
    return lambda x, cos, sin: formula(x, cos, sin, torch.tensor(positions), *how)


def options(interleaved, turns):
    return {"interleaved": interleaved, "interleaved_sections": turns}


@pytest.mark.parametrize("batched", [True, False], ids=["[A,B,T]", "[A,T]"])
@pytest.mark.parametrize(("size", "interleaved", "turns"), CASES, ids=str)
def test_mrope_matches_torch(isa, dtype, rng, size, interleaved, turns, batched):
    x, cos, sin, positions = inputs(rng, *size, batched, dtype)
    sections, how = size[3], options(interleaved, turns)
    y = ck.mrope(x, cos, sin, positions, sections, **how, out=unwritten(x.shape, dtype))
    assert_matches_torch(y, turned(positions, sections, interleaved, turns), x, cos, sin, trivial=x)
    assert y[..., 2 * sum(sections) :].tobytes() == x[..., 2 * sum(sections) :].tobytes()


@pytest.mark.parametrize(("size", "interleaved", "turns"), CASES, ids=str)
def test_mrope_backward_matches_autograd(isa, dtype, rng, size, interleaved, turns):
    x, cos, sin, positions = inputs(rng, *size, dtype=dtype)
    dy, sections = guarded(rng.standard_normal(x.shape).astype(dtype)), size[3]
    ctx = ck.mrope_forward(x, cos, sin, positions, sections, **options(interleaved, turns))[1]
    dx = ck.mrope_backward(dy, ctx, out=Gradients(unwritten(x.shape, dtype))).x
    function = turned(positions, sections, interleaved, turns)
    assert_gradients_match_torch((dx, None, None), function, (x, cos, sin), dy, trivial=dy)


@pytest.mark.parametrize(("interleaved", "turns"), HOW)
def test_mrope_gradient_matches_differences(isa, rng, interleaved, turns):
    x, cos, sin, positions = inputs(rng, 2, 1, 5, (6, 6, 5), 36)
    dy, how = rng.standard_normal(x.shape).astype("f4"), options(interleaved, turns)
    y, ctx = ck.mrope_forward(x, cos, sin, positions, (6, 6, 5), **how)
    dx = ck.mrope_backward(dy, ctx).x
    assert_gradient(lambda moved: ck.mrope(moved, cos, sin, positions, (6, 6, 5), **how), x, dx, dy, rng)


# ---- transformers ----


def qwen(kind, sections, positions):
    """Return cos and sin [B, T, D] as transformers' model makes them, and its rotation."""
    fields = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections)}
    if kind == "qwen2_vl":
        from transformers.models.qwen2_vl import modeling_qwen2_vl as code
        from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig as Config

        make = code.Qwen2VLRotaryEmbedding
    else:
        from transformers.models.qwen3_vl import modeling_qwen3_vl as code
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig as Config

        make = code.Qwen3VLTextRotaryEmbedding
    D = 2 * sum(sections)
    heads = {"hidden_size": 2 * D, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Config(**heads, rope_parameters=fields, **({"head_dim": D} if kind == "qwen3_vl" else {}))
    return *make(config)(torch.zeros(1), torch.tensor(positions)), code.apply_rotary_pos_emb


def exact_qwen(x, positions, sections, turns):
    K = sum(sections)
    with mpmath.workdps(30):
        f = np.array([float(mpmath.mpf(10) ** (-mpmath.mpf(6 * k) / K)) for k in range(K)])
    picked = np.stack([positions[axis_of(k, sections, turns)] for k in range(K)], -1)
    angle = (picked * f)[:, None]
    lo, hi = x[..., :K].astype("f8"), x[..., K:].astype("f8")
    return np.concatenate([lo * np.cos(angle) - hi * np.sin(angle), lo * np.sin(angle) + hi * np.cos(angle)], -1)


@pytest.mark.parametrize(
    ("kind", "sections"), [("qwen2_vl", (16, 24, 24)), ("qwen2_vl", (3, 5, 8)), ("qwen3_vl", (24, 20, 20))], ids=str
)
def test_mrope_matches_transformers(isa, dtype, rng, kind, sections):
    B, H, T, D, turns = 2, 3, 12, 2 * sum(sections), kind == "qwen3_vl"
    q, k = rng.standard_normal((2, B, H, T, D)).astype(dtype)
    positions = np.stack([np.arange(T) + 3 * b + axis * np.arange(T) % 5 for axis in range(3) for b in range(B)])
    positions = positions.reshape(3, B, T)
    cos, sin, apply = qwen(kind, sections, positions)
    peers = apply(as_torch(q, "float32"), as_torch(k, "float32"), cos, sin)
    table = ck.rope_table(np.arange(positions.max() + 1), D, 1e6)
    for x, peer in zip((q, k), peers, strict=True):
        y = ck.mrope(x, *table, positions, sections, interleaved_sections=turns)
        assert_parity(y, exact_qwen(x, positions, sections, turns), peer.to(getattr(torch, dtype.name)), trivial=x)
        angles = float(np.abs(x).max()) * positions.max() * 2.0**-19  # of float32 angles, as transformers has them
        assert_parity(peer, exact_qwen(x, positions, sections, turns), bound=angles)


# ---- what must not matter, bit for bit ----


@pytest.mark.parametrize(("interleaved", "turns"), HOW)
def test_mrope_of_text_is_rope(isa, dtype, rng, interleaved, turns):
    x, cos, sin, _ = inputs(rng, 2, 3, 35, (6, 6, 5), 36, dtype=dtype)
    positions = rng.integers(0, S, (2, 35))
    y, ctx = ck.mrope_forward(x, cos, sin, np.stack([positions] * 3), (6, 6, 5), **options(interleaved, turns))
    want, rope_ctx = ck.rope_forward(x, cos, sin, positions=positions, interleaved=interleaved)
    assert y.tobytes() == want.tobytes()
    assert ck.mrope_backward(x, ctx).x.tobytes() == ck.rope_backward(x, rope_ctx).x.tobytes()


@pytest.mark.parametrize(("interleaved", "turns"), HOW)
def test_mrope_in_place(isa, dtype, rng, interleaved, turns):
    x, cos, sin, positions = inputs(rng, 2, 3, 35, (6, 6, 5), 36, dtype=dtype)
    dy = guarded(rng.standard_normal(x.shape).astype(dtype))
    y, ctx = ck.mrope_forward(x, cos, sin, positions, (6, 6, 5), **options(interleaved, turns))
    dx = ck.mrope_backward(dy, ctx).x
    assert ck.mrope_backward(dy, ctx, out=Gradients(dy)).x is dy
    assert dy.tobytes() == dx.tobytes()
    assert ck.mrope(x, cos, sin, positions, (6, 6, 5), **options(interleaved, turns), out=x) is x
    assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize(("interleaved", "turns"), HOW)
def test_mrope_bits_do_not_depend_on_threads_or_batch(isa, dtype, rng, interleaved, turns):
    x, cos, sin, positions = inputs(rng, 3, 7, 70, (12, 11, 10), 80, dtype=dtype)
    how = options(interleaved, turns)

    def everything():
        y, ctx = ck.mrope_forward(x, cos, sin, positions, (12, 11, 10), **how)
        return y.tobytes(), ck.mrope_backward(x, ctx).x.tobytes()

    ck.set_num_threads(1)
    alone = everything()
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything() == alone
    y = ck.mrope(x, cos, sin, positions, (12, 11, 10), **how)
    one = ck.mrope(x[2:, 4:5, 41:42], cos, sin, positions[:, 2:, 41:42].copy(), (12, 11, 10), **how)
    assert one.tobytes() == y[2, 4, 41].tobytes()


def test_mrope_bits_are_the_same_on_avx2_and_avx512(dtype, rng):
    x, cos, sin, positions = inputs(rng, 2, 3, 33, (12, 11, 10), 80, dtype=dtype)
    bits = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            results = [ck.mrope_forward(x, cos, sin, positions, (12, 11, 10), **options(*how)) for how in HOW]
            bits.add(b"".join(y.tobytes() + ck.mrope_backward(x, ctx).x.tobytes() for y, ctx in results))
    assert len(bits) == 1


@pytest.mark.parametrize("ids", ["i4", "i8"])
def test_mrope_takes_strided_views(isa, dtype, rng, ids):
    B, H, T, D, sections = 2, 3, 35, 36, (6, 6, 5)
    x = spaced(rng.standard_normal((B, T, H, D)).astype(dtype)).transpose(0, 2, 1, 3)
    out = spaced(np.zeros((B, T, H, D), dtype)).transpose(0, 2, 1, 3)
    cos, sin = (spaced(a) for a in ck.rope_table(np.arange(S), 34))
    positions = rng.integers(0, S, (B, 5, T + 2)).astype(ids).transpose(1, 0, 2)[::2, :, 1:-1]
    y, ctx = ck.mrope_forward(x, cos, sin, positions, sections, out=out)
    flat = [np.ascontiguousarray(a) for a in (x, cos, sin, positions)]
    want, flat_ctx = ck.mrope_forward(*flat, sections)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(ck.mrope_backward(x, ctx).x, ck.mrope_backward(flat[0], flat_ctx).x)
    assert gaps_untouched(out.transpose(0, 2, 1, 3))


def test_mrope_reads_only_the_rows_it_is_told(isa, rng):
    x, cos, sin, positions = inputs(rng, 2, 3, 5, (6, 6, 5), 34)
    want = ck.mrope(x, cos, sin, positions, (6, 6, 5))
    for axis, columns in enumerate((slice(0, 6), slice(6, 12), slice(12, 17))):
        unused = np.setdiff1d(np.arange(S), positions[axis])
        for a in cos, sin:
            a[unused, columns] = np.nan
    assert ck.mrope(x, cos, sin, positions, (6, 6, 5)).tobytes() == want.tobytes()


@pytest.mark.parametrize("shape", [(0, 4, 8), (3, 0, 8), (3, 4, 8)], ids=str)
def test_mrope_of_nothing(isa, dtype, shape):
    x = np.ones(shape, dtype)
    y, ctx = ck.mrope_forward(x, *ck.rope_table(np.arange(5), 0), np.zeros((3, shape[1]), int), (0, 0, 0))
    assert y.tobytes() == ck.mrope_backward(y, ctx).x.tobytes() == x.tobytes()


def test_mrope_takes_tensors_and_lists(rng):
    x, cos, sin, positions = inputs(rng, 2, 2, 5, (2, 1, 1), 8)
    t = [torch.tensor(a) for a in (x, cos, sin, positions)]
    np.testing.assert_array_equal(ck.mrope(*t, [2, 1, 1]), ck.mrope(x, cos, sin, positions, (2, 1, 1)))


# ---- refusals ----

X, COS = np.ones((2, 3, 8), "f4"), np.ones((5, 4), "f4")
AT, AT_B = np.zeros((3, 3), int), np.zeros((3, 2, 3), int)


def call(x=X, cos=COS, sin=COS, positions=AT, sections=(2, 1, 1), **rest):
    return ck.mrope(x, cos, sin, positions, sections, **rest)


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (TypeError, "'x' must be float32, float16 or bfloat16, not float64", {"x": X.astype("f8")}),
        (TypeError, "'cos' must be a NumPy array .* not <class 'list'>", {"cos": [1.0]}),
        (TypeError, "'positions' must be int32 or int64, not float64", {"positions": np.zeros((3, 3))}),
        (TypeError, "'positions' must be a NumPy array", {"positions": [[0] * 3] * 3}),
        (TypeError, "'sections' must be a sequence of integers, not int", {"sections": 4}),
        (TypeError, "'sections' must hold integers, not float", {"sections": (2.0, 1, 1)}),
        (TypeError, "'sections' must hold integers, not bool", {"sections": (2, 1, True)}),
        (ValueError, r"'sections' \(2, 1\) do not share out the K=4 pairs", {"sections": (2, 1)}),
        (ValueError, r"'sections' \(6, -1, -1\) do not share out the K=4 pairs", {"sections": (6, -1, -1)}),
        (ValueError, r"'sections' \(1, 1, 2\) cannot take turns: axis 2 would have pair 5 of K=4",
         {"sections": (1, 1, 2), "interleaved_sections": True}),
        (ValueError, r"'positions' of shape \(3, 3\) does not fit \[A, T\] or \[A, B, T\], where A=2",
         {"sections": (2, 2)}),
        (ValueError, r"'positions' of shape \(3,\) does not fit", {"positions": np.zeros(3, int)}),
        (ValueError, r"'positions' of shape \(3, 1, 3\) does not fit", {"positions": np.zeros((3, 1, 3), int)}),
        (ValueError, r"'positions' of shape \(3, 2, 3\) does not fit", {"positions": AT_B, "x": X[0]}),
        (ValueError, r"'positions' of shape \(3, 4\) does not fit", {"positions": np.zeros((3, 4), int)}),
        (ValueError, r"'sin' of shape \(4, 4\) does not fit \[S, K\]", {"sin": COS[1:]}),
        (ValueError, "'cos' has K=4 pairs, .* only D=7", {"x": X[..., :7]}),
        (ValueError, r"'out' of shape \(2, 3, 7\) does not fit", {"out": np.empty((2, 3, 7), "f4")}),
    ],
)  # fmt: skip
def test_mrope_refuses(error, text, arguments):
    with pytest.raises(error, match=rf"mrope\(\): {text}"):
        call(**arguments)


def test_mrope_backward_refuses_what_is_not_its_own():
    y, ctx = ck.mrope_forward(X, COS, COS, AT_B, (2, 1, 1))
    with pytest.raises(ValueError, match=r"mrope_backward\(\): 'positions' of shape \(3, 2, 3\).*'dy' of shape \(4, 3, 8\)"):
        ck.mrope_backward(np.ones((4, 3, 8), "f4"), ctx)
    with pytest.raises(TypeError, match=r"mrope_backward\(\): 'ctx' must be what mrope_forward"):
        ck.mrope_backward(y, ck.rope_forward(X, COS[:3], COS[:3])[1])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_mrope_refuses_a_position_outside_the_table(isa, bad, axis):
    out, positions = np.full_like(X, 5), AT_B.copy()
    positions[axis, 1, 2] = bad
    with pytest.raises(IndexError, match=rf"mrope\(\): 'positions' holds {bad}, and the table has 5 rows"):
        call(positions=positions, out=out)
    assert (out == 5).all()
