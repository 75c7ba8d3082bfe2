"""What must not change a bit of linear and matmul, in every dtype; the ends of a product, in every dtype."""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ckernels as ck
from ckernels.ops.linear import Gradients
from guard import guarded, unwritten
from parity import assert_gradients_match_torch, assert_matches_torch

ENDS = {
    None: lambda z: z,
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "gelu_sigmoid": lambda z: z * torch.sigmoid(1.702 * z),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
ALONE = {  # the op of the same function
    "relu": ck.relu_forward,
    "silu": ck.silu_forward,
    "gelu": ck.gelu_forward,
    "gelu_tanh": lambda x: ck.gelu_forward(x, approximate="tanh"),
    "gelu_sigmoid": lambda x: ck.gelu_forward(x, approximate="sigmoid"),
    "sigmoid": ck.sigmoid_forward,
    "tanh": ck.tanh_forward,
}
BACK = {name: ck.gelu_backward if name.startswith("gelu") else getattr(ck, name + "_backward") for name in ALONE}


def normal(rng, *shape, dtype="f4"):
    return guarded(rng.standard_normal(shape).astype(dtype))


def inputs(rng, R, K, N, dtype):
    """x, weight, bias, residual."""
    return [normal(rng, *shape, dtype=dtype) for shape in ((R, K), (N, K), (N,), (R, N))]


def torch_linear(activation):
    return lambda x, w, b, r: ENDS[activation](F.linear(x, w, b)) + r


@pytest.mark.parametrize("activation", ENDS)
def test_linear_with_each_end_matches_torch(isa, dtype, rng, activation):
    R, K, N = 5, 70, 37
    x, w, b, r = inputs(rng, R, K, N, dtype)
    given = normal(rng, R, N, dtype=dtype)
    y, ctx = ck.linear_forward(x, w, b, activation=activation, residual=r, out=unwritten((R, N), dtype))
    assert_matches_torch(y, torch_linear(activation), x, w, b, r)
    assert ck.linear(x, w, b, activation=activation, residual=r).tobytes() == y.tobytes()
    out = Gradients(*(unwritten(a.shape, dtype) for a in (x, w, b, r)))
    grads = ck.linear_backward(given, ctx, out=out)
    assert_gradients_match_torch(grads[:3], lambda x, w, b: ENDS[activation](F.linear(x, w, b)), (x, w, b), given)
    assert grads.residual.tobytes() == given.tobytes()


@pytest.mark.parametrize("size", [(1, 576, 192), (4, 300, 33), (17, 129, 48), (170, 65, 40)], ids=str)
def test_linear_matches_torch_in_every_dtype(isa, dtype, rng, size):
    x, w, b, r = inputs(rng, *size, dtype)
    y, ctx = ck.linear_forward(x, w, b, residual=r)
    assert_matches_torch(y, torch_linear(None), x, w, b, r)
    assert_gradients_match_torch(ck.linear_backward(r, ctx)[:3], F.linear, (x, w, b), r)


@pytest.mark.parametrize("isa", [isa for isa in ck.isas() if isa != "reference"])  # which rounds once, at the end
@pytest.mark.parametrize("activation", ALONE)
def test_linear_ends_as_the_function_alone(isa, rng, activation):
    with ck.use(isa):
        x, w, b, dy = inputs(rng, 7, 40, 33, "f4")
        y, ctx = ck.linear_forward(x, w, b, activation=activation)
        alone, saved = ALONE[activation](ck.linear(x, w, b))
        assert y.tobytes() == alone.tobytes()
        dz = BACK[activation](dy, saved)[0]
        plain = ck.linear_backward(dz, ck.linear_forward(x, w, b)[1])
        assert [g.tobytes() for g in ck.linear_backward(dy, ctx)[:3]] == [g.tobytes() for g in plain[:3]]


@pytest.mark.parametrize("K", [64, 333, 1100])
def test_a_row_has_the_same_bits_anywhere(isa, dtype, rng, K):
    """Alone, in a batch of 5, of 300; packed and plain; by 1, 2, 3, 7 threads."""
    N, K = (77, K) if isa != "reference" else (35, K // 3)
    x, w, b, r = inputs(rng, 300, K, N, dtype)
    packed = ck.pack(w)
    assert packed.panels.dtype == w.dtype

    def of(rows, weight):
        return ck.linear(x[rows], weight, b, activation="gelu_tanh", residual=r[rows]).tobytes()

    ck.set_num_threads(1)
    whole = ck.linear(x, w, b, activation="gelu_tanh", residual=r)
    for n in 1, 2, 3, 7:
        ck.set_num_threads(n)
        assert of(slice(None), w) == of(slice(None), packed) == whole.tobytes()
        for begin, end in (0, 1), (299, 300), (100, 105), (7, 10), (20, 36), (50, 215):
            rows = slice(begin, end)
            assert of(rows, w) == of(rows, packed) == whole[rows].tobytes()


def test_gradients_have_the_same_bits_by_any_number_of_threads(isa, dtype, rng):
    R, K, N = (300, 200, 77) if isa != "reference" else (30, 40, 33)
    x, w, b, dy = inputs(rng, R, K, N, dtype)
    ctx = ck.linear_forward(x, ck.pack(w), b, activation="gelu")[1]
    ck.set_num_threads(1)
    alone = [g.tobytes() for g in ck.linear_backward(dy, ctx)[:3]]
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert [g.tobytes() for g in ck.linear_backward(dy, ctx)[:3]] == alone


def test_avx2_and_avx512_agree_in_every_dtype(dtype, rng):
    x, w, b, r = inputs(rng, 20, 600, 77, dtype)
    a, c = normal(rng, 3, 70, 50, dtype=dtype), normal(rng, 3, 70, 90, dtype=dtype)
    found = set()
    for isa in {"avx2", "avx512"} & set(ck.isas()):
        with ck.use(isa):
            packed = ck.pack(w)
            results = [ck.linear(x[:n], kind, b, residual=r[:n]) for n in (1, 4, 20) for kind in (w, packed)]
            found.add(b"".join(y.tobytes() for y in (*results, packed.panels, ck.matmul(a, c, transpose_a=True))))
    assert len(found) == 1


@pytest.mark.parametrize("way", [(False, False), (False, True), (True, False), (True, True)], ids=str)
def test_matmul_has_the_same_bits_whichever_way_its_operands_lie(isa, dtype, rng, way):
    B, M, K, N = 3, 19, 150, 37
    a, b = normal(rng, B, M, K, dtype=dtype), normal(rng, B, K, N, dtype=dtype)
    lies = [np.ascontiguousarray(m.swapaxes(1, 2)) if turned else m for m, turned in zip((a, b), way, strict=True)]
    want = ck.matmul(a, b).tobytes()
    assert_matches_torch(ck.matmul(a, b), torch.matmul, a, b)
    for n in 1, 2, 7:
        ck.set_num_threads(n)
        assert ck.matmul(*lies, transpose_a=way[0], transpose_b=way[1]).tobytes() == want
    one = ck.matmul(a[1], b[1])  # an item alone
    assert one.tobytes() == want[one.nbytes : 2 * one.nbytes]


def test_gradients_of_parameters_accumulate_in_their_dtype(isa, dtype, rng):
    x, w, b, dy = inputs(rng, 9, 40, 33, dtype)
    ctx = ck.linear_forward(x, w, b)[1]
    fresh, added = ck.linear_backward(dy, ctx), ck.linear_backward(dy, ctx, accumulate=True)  # to zeros
    assert added.weight.dtype == w.dtype and added.bias.dtype == b.dtype
    np.testing.assert_array_equal(added.weight.astype("f4"), fresh.weight.astype("f4"))
    np.testing.assert_array_equal(added.bias.astype("f4"), fresh.bias.astype("f4"))


def test_matmul_of_a_shared_operand_in_every_dtype(isa, dtype, rng):
    a, b, dy = normal(rng, 2, 5, 70, dtype=dtype), normal(rng, 70, 18, dtype=dtype), normal(rng, 2, 5, 18, dtype=dtype)
    y, ctx = ck.matmul_forward(a, b)
    assert_matches_torch(y, torch.matmul, a, b)
    assert_gradients_match_torch(ck.matmul_backward(dy, ctx), torch.matmul, (a, b), dy)


def test_a_packed_weight_of_16_bits_holds_16_bits(isa, dtype, rng):
    w = normal(rng, 35, 150, dtype=dtype)
    packed = ck.pack(w)
    assert packed.nbytes == 3 * 16 * 150 * w.dtype.itemsize
    turned = packed.panels.transpose(0, 2, 1).reshape(48, 150)
    assert turned[:35].tobytes() == w.tobytes() and not turned[35:].astype("f4").any()
    assert packed.update().panels.transpose(0, 2, 1).reshape(48, 150)[:35].tobytes() == w.tobytes()


def test_a_packed_weight_fits_rows_of_its_dtype_only(dtype, rng):
    other = "f4" if dtype != np.float32 else "f2"
    x, packed = normal(rng, 3, 20, dtype=other), ck.pack(normal(rng, 9, 20, dtype=dtype))
    with pytest.raises(TypeError, match=r"linear\(\): '(weight|packed)' must be "):
        ck.linear(x, packed)
    with pytest.raises(TypeError, match=r"pack\(\): '(weight|out|packed)' must be "):
        ck.pack(normal(rng, 9, 20, dtype=other), out=packed)


def test_one_row_of_a_large_weight_has_the_bits_of_a_batch(isa, dtype, rng):
    """A weight beyond the caches is read another way for one row."""
    K = 2100  # two runs of 1024, and a rest that is no whole chain
    N = (16 << 20) // (K * np.dtype(dtype).itemsize) + 9
    x, w = (a.astype(dtype) for a in (rng.random((5, K), "f4") - 0.5, rng.random((N, K), "f4") - 0.5))
    whole = ck.linear(x, w)
    alone = ck.linear(x[3:4], w)
    assert alone.tobytes() == whole[3:4].tobytes() == ck.linear(x[3:4], ck.pack(w)).tobytes()
    assert_matches_torch(alone, F.linear, x[3:4], w)


@pytest.mark.parametrize("isa", [isa for isa in ck.isas() if isa != "reference"])  # which adds in double
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sixteen_bits_are_multiplied_as_floats_and_rounded_once(isa, rng, name):
    short = ml_dtypes.bfloat16 if name == "bfloat16" else np.float16
    with ck.use(isa):
        for R in 1, 4, 9, 40:
            x, w, b, r = inputs(rng, R, 700, 45, short)
            floats = [a.astype("f4") for a in (x, w, b, r)]
            want = ck.linear(*floats[:3], residual=floats[3]).astype(short)
            assert ck.linear(x, w, b, residual=r).tobytes() == want.tobytes()
            assert ck.linear(x, ck.pack(w), b, residual=r).tobytes() == want.tobytes()
            grads = ck.linear_backward(r, ck.linear_forward(x, w, b)[1])
            plain = ck.linear_backward(floats[3], ck.linear_forward(*floats[:3])[1])
            for got, exact in zip(grads[:3], plain[:3], strict=True):
                assert got.tobytes() == exact.astype(short).tobytes()


HASHES = """
import hashlib, numpy as np, ckernels as ck
rng = np.random.default_rng(7)
x, w = rng.standard_normal((500, 300), "f4"), rng.standard_normal((70, 300), "f4")
print(hashlib.sha256(ck.linear(x, w).tobytes() + ck.matmul(w, x, transpose_b=True).tobytes()).hexdigest())
"""


def test_bits_do_not_depend_on_the_size_of_the_cache():
    """Blocks of 42 rows, of 210, of 336."""
    found = set()
    for size in 128 << 10, 1 << 20, 4 << 20:
        command = [sys.executable, "-c", HASHES]
        environment = os.environ | {"CK_L2": str(size), "PYTHONPATH": str(Path(ck.__file__).parent.parent)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.add(run.stdout)
    assert len(found) == 1
