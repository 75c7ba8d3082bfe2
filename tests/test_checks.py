"""What every op with a backward does alike with ``out``, ``ctx`` and ``accumulate``."""

import numpy as np
import pytest

import ckernels as ck


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype("f4")


CALLS = {
    "add": (normal(3, 8), normal(3, 8)),
    "add_rms_norm": (normal(3, 8), normal(3, 8), normal(8)),
    "attention": (normal(1, 2, 3, 4), normal(1, 1, 5, 4), normal(1, 1, 5, 4)),
    "attention_varlen": (*[normal(3, 2, 4)] * 3, np.array([0, 1, 3]), np.array([0, 1, 3])),
    "cross_entropy": (normal(3, 8), np.array([1, 0, 7])),
    "embedding": (np.array([2, 0, 2]), normal(4, 8)),
    "l2_norm": (normal(3, 8),),
    "layer_norm": (normal(3, 8), normal(8), normal(8)),
    "kl_div": (normal(3, 8), np.abs(normal(3, 8))),
    "heads_to_tokens": (normal(2, 3, 5, 4),),
    "linear": (normal(3, 8), normal(5, 8)),
    "linear_cross_entropy": (normal(3, 8), normal(5, 8), np.array([1, 0, 4])),
    "log_softmax": (normal(3, 8),),
    "matmul": (normal(3, 8), normal(8, 5)),
    "qk_norm_rope": (normal(3, 8), normal(8), *ck.rope_table(np.arange(3), 8)),
    "mrope": (normal(3, 8), *ck.rope_table(np.arange(9), 8), np.arange(6).reshape(2, 3), (3, 1)),
    "mse_loss": (normal(3, 8), normal(3, 8)),
    "rms_norm": (normal(3, 8), normal(8)),
    "rope": (normal(3, 8), *ck.rope_table(np.arange(3), 8)),
    "gelu": (normal(3, 8),),
    "relu": (normal(3, 8),),
    "sigmoid": (normal(3, 8),),
    "silu": (normal(3, 8),),
    "softcap": (normal(3, 8), 2.0),
    "tanh": (normal(3, 8),),
    "softmax": (normal(3, 8),),
    "split_qkv": (normal(2, 3, 16), 2, 1, 4),
    "geglu": (normal(3, 8), normal(3, 8)),
    "reglu": (normal(3, 8), normal(3, 8)),
    "swiglu": (normal(3, 8), normal(3, 8)),
    "tokens_to_heads": (normal(2, 3, 5, 4),),
}
PARAMETERS = {"weight", "bias", "sinks"}


def run(op):
    """Return (dy, ctx, backward) of a call of ``op``."""
    y, ctx = getattr(ck, op + "_forward")(*CALLS[op])
    dy = tuple(np.ones_like(part) for part in y) if isinstance(y, tuple) else np.ones_like(y)
    return dy, ctx, getattr(ck, op + "_backward")


def test_every_op_with_a_backward_is_here():
    assert set(CALLS) == {n.removesuffix("_backward") for n in ck.__all__ if n.endswith("_backward")} - {
        "scaled_dot_product_attention"
    }


@pytest.mark.parametrize("op", CALLS)
def test_out_is_an_earlier_result_or_a_plain_tuple(op):
    dy, ctx, backward = run(op)
    first = backward(dy, ctx)
    bits = [None if a is None else a.tobytes() for a in first]
    for out in first, tuple(first):
        again = backward(dy, ctx, out=out)
        assert type(again) is type(first) and all(a is b for a, b in zip(again, first, strict=True))
        assert [None if a is None else a.tobytes() for a in again] == bits


@pytest.mark.parametrize("op", CALLS)
def test_accumulate_adds_to_parameters_and_overwrites_the_rest(op):
    dy, ctx, backward = run(op)
    first = backward(dy, ctx)
    before = [None if a is None else a.copy() for a in first]
    for name, a, b in zip(first._fields, before, backward(dy, ctx, out=first, accumulate=True), strict=True):
        if a is not None:
            np.testing.assert_array_equal(b, 2 * a if name in PARAMETERS else a)


@pytest.mark.parametrize("op", CALLS)
def test_out_of_another_kind_is_refused(op):
    dy, ctx, backward = run(op)
    for out in (normal(3, 8), (), {"x": None}, [None] * len(backward(dy, ctx))):
        with pytest.raises(TypeError, match=r"_backward\(\): 'out' must be a tuple \("):
            backward(dy, ctx, out=out)


@pytest.mark.parametrize("op", CALLS)
def test_context_of_another_op_is_refused(op):
    dy, _, backward = run(op)
    other = run("silu" if op != "silu" else "softmax")[1]
    for ctx in (None, (1, 2), other):
        with pytest.raises(TypeError, match=r"_backward\(\): 'ctx' must be what \w+_forward\(\) returned"):
            backward(dy, ctx)


@pytest.mark.parametrize("op, field", [("linear", "bias"), ("linear", "residual"), ("attention", "sinks"),
                                       ("rms_norm", "weight"), ("layer_norm", "weight"),
                                       ("layer_norm", "bias"), ("swiglu", "up")])  # fmt: skip
def test_a_gradient_of_what_forward_did_not_have_is_refused(op, field):
    arguments = {"rms_norm": CALLS["rms_norm"][:1], "layer_norm": CALLS["layer_norm"][:1], "swiglu": CALLS["swiglu"][:1]}.get(op, CALLS[op])
    y, ctx = getattr(ck, op + "_forward")(*arguments)
    kind = type(getattr(ck, op + "_backward")(np.ones_like(y), ctx))
    with pytest.raises(ValueError, match=f"'out.{field}' must be None, as forward had no '{field}'"):
        getattr(ck, op + "_backward")(np.ones_like(y), ctx, out=kind(**{field: normal(8)}))


@pytest.mark.parametrize("op", sorted(CALLS.keys() - {"add_rms_norm", "cross_entropy", "kl_div", "linear_cross_entropy", "mse_loss", "split_qkv"}))
def test_out_of_forward_must_be_an_array(op):
    for out in (True, [1.0], 1.0):
        with pytest.raises(TypeError, match=r"\(\): 'out' must be a NumPy array"):
            getattr(ck, op)(*CALLS[op], out=out)


def test_a_flag_must_be_true_or_false():
    with pytest.raises(TypeError, match=r"softmax\(\): 'causal' must be true or false"):
        ck.softmax(normal(3, 8), causal=np.ones(2))
    with pytest.raises(TypeError, match=r"rope\(\): 'interleaved' must be true or false"):
        ck.rope(*CALLS["rope"], interleaved=np.ones(2))


@pytest.mark.parametrize("op", ["add_rms_norm", "embedding", "layer_norm", "linear", "linear_cross_entropy",
                                "qk_norm_rope", "rms_norm"])
def test_accumulate_must_be_true_or_false(op):
    dy, ctx, backward = run(op)
    first = backward(dy, ctx)
    with pytest.raises(TypeError, match=rf"{op}_backward\(\): 'accumulate' must be true or false"):
        backward(dy, ctx, out=first, accumulate=np.ones(2))


@pytest.mark.parametrize("op, count", [("add_rms_norm", "two"), ("split_qkv", "three")])
def test_out_of_several_outputs_must_be_a_tuple_of_them(op, count):
    for function in getattr(ck, op), getattr(ck, op + "_forward"):
        for out in (normal(3, 8), normal(2, 3, 8), 5, (None,), True):
            with pytest.raises(TypeError, match=rf"{op}\(\): 'out' must be a tuple of {count} arrays"):
                function(*CALLS[op], out=out)
