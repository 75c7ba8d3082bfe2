"""Products on a matrix unit (AMX), on its model in plain C, against a model of the instruction in NumPy."""

import ctypes
import faulthandler
import os
import re
import signal
import subprocess

import ml_dtypes
import numpy as np
import pytest
import torch

import ckernels as ck
import native
from ckernels import _ck
from ckernels.ops.linear import Gradients
from ckernels.parity import assert_parity
from guard import gaps_untouched, guarded, spaced, unwritten

MODEL = "amx_model"
BF16 = np.dtype(ml_dtypes.bfloat16)
pytestmark = pytest.mark.skipif(MODEL not in native.build().ISAS, reason="the model is built on x86-64")

# R, K, N: around tiles of 16, pairs of them, steps of 32, blocks of 256 of k and of 512 x 256 of c; thin ones and others.
SIZES = [
    (1, 1, 1),
    (2, 31, 15),
    (15, 32, 16),
    (16, 33, 17),
    (17, 64, 33),
    (31, 255, 31),
    (33, 257, 48),
    (1, 600, 49),
    (32, 513, 65),
    (40, 520, 47),
    (530, 40, 40),
    (20, 50, 530),
]


@pytest.fixture
def model():
    """The instruction set of the model."""
    with ck.use(MODEL):
        yield


@pytest.fixture(params=["high", "medium"])
def precision(request, model):
    ck.set_matmul_precision(request.param)
    yield request.param
    ck.set_matmul_precision("highest")


# ---- the arithmetic, as documented, in NumPy ----


def flushed(x):
    """Float32 numbers below the smallest normal one become zeros."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x).astype(np.float32)


def fma(a, b, c):
    """Return a * b + c of float32 rounded once: the product of two bfloat16 is exact in double, so its sum is rounded innocently."""
    return flushed((a.astype(np.float64) * b.astype(np.float64) + c).astype(np.float32))


def instruction(c, a, b):
    """Return c [M,N] + a [M,32] b [32,N] as tdpbf16ps adds them."""
    a, b = flushed(a), flushed(b)
    even, odd = np.zeros_like(c), np.zeros_like(c)
    for k in range(0, a.shape[1], 2):
        even = fma(a[:, k, None], b[k], even)
        odd = fma(a[:, k + 1, None], b[k + 1], odd)
    return flushed(flushed(c) + flushed(even + odd))


def rounded(x):
    return x.astype(BF16).astype(np.float32)


def parts(x):
    """hi, hi where it is finite, mid, low; each the nearest to what is left, and no finite number beyond the largest."""
    most = np.float32(ml_dtypes.finfo(BF16).max)
    finite = np.isfinite(x)
    hi = np.where(finite, rounded(np.clip(x, -most, most)), x)
    rest = np.where(finite, x, 0).astype(np.float32)
    near = np.where(finite, hi, 0).astype(np.float32)
    mid = rounded(rest - near)
    return hi, near, mid, rounded(rest - near - mid)


PRODUCTS = {
    "high": [(3, 1), (2, 1), (2, 2), (1, 2), (1, 3), (0, 0)],
    "medium": [(2, 1), (1, 2), (0, 0)],
    None: [(0, 0)],
}


def product(a, b, precision=None):
    """The float32 sums of a [M,K] times b [K,N], in the order of csrc/ops/gemm_tiles.h."""
    with np.errstate(all="ignore"):
        K = -(-a.shape[1] // 32) * 32
        a = np.pad(np.asarray(a, np.float32), ((0, 0), (0, K - a.shape[1])))
        b = np.pad(np.asarray(b, np.float32), ((0, K - b.shape[0]), (0, 0)))
        block = K if precision is None else 256
        total = None
        for begin in range(0, K, block):
            steps = range(begin, min(begin + block, K), 32)
            c = np.zeros((a.shape[0], b.shape[1]), np.float32)
            for chosen in (PRODUCTS[precision][:-1], PRODUCTS[precision][-1:]):
                for k in steps:
                    for i, j in chosen:
                        c = instruction(c, parts(a[:, k : k + 32])[i], parts(b[k : k + 32])[j])
            total = c if total is None else total + c
        return total


def same(got, exact):
    """Equal bits; a NaN is a NaN."""
    got, exact = np.asarray(got, np.float32), np.asarray(exact, np.float32)
    nan = np.isnan(exact)
    return np.array_equal(np.isnan(got), nan) and got[~nan].tobytes() == exact[~nan].tobytes()


# ---- the words ----


class Shape(ctypes.Structure):
    _fields_ = [
        ("palette", ctypes.c_uint8),
        ("start_row", ctypes.c_uint8),
        ("none", ctypes.c_uint8 * 14),
        ("bytes", ctypes.c_uint16 * 16),
        ("rows", ctypes.c_uint8 * 16),
    ]


@pytest.fixture(scope="module")
def words():
    units = [("tests/c/matrix.c", [*native.build().ISAS[MODEL][1], "-DCK_ISA=words", "-DCK_DTYPE=f32"])]
    library = ctypes.CDLL(str(native.link("matrix.so", units, "-shared")))
    library.matrix_dot.argtypes = [ctypes.c_void_p, ctypes.c_size_t] * 3
    library.matrix_load.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return library


def shape_of(M, K, N):
    """Put c [M,N] in tile 0, a [M,K] in 1, b in pairs [K/2,2N] in 2."""
    shape = Shape(palette=1)
    for t, (rows, size) in enumerate([(M, 4 * N), (M, 2 * K), (K // 2, 4 * N)]):
        shape.rows[t], shape.bytes[t] = rows, size
    return shape


def hard(rng, shape):
    """Numbers of every size, subnormal ones, zeros of both signs."""
    x = rng.standard_normal(shape) * 2.0 ** rng.integers(-70, 60, shape)
    x[rng.random(shape) < 0.2] *= 2.0**-60
    x[rng.random(shape) < 0.05] = -0.0
    return x.astype(BF16)


@pytest.mark.parametrize("M, K, N", [(16, 32, 16), (1, 2, 1), (3, 10, 5), (16, 2, 7), (9, 32, 16)])
def test_the_model_computes_what_the_instruction_does(words, rng, M, K, N):
    for _ in range(10):
        a, b = hard(rng, (M, K)), hard(rng, (K, N))
        c = (rng.standard_normal((M, N)) * 2.0 ** rng.integers(-130, 60, (M, N))).astype("f4")
        pairs = np.ascontiguousarray(b.reshape(K // 2, 2, N).transpose(0, 2, 1))
        got = c.copy()
        words.matrix_configure(ctypes.byref(shape_of(M, K, N)))
        words.matrix_dot(a.ctypes.data, 2 * K, pairs.ctypes.data, 4 * N, got.ctypes.data, 4 * N)
        words.matrix_end()
        assert same(got, instruction(c, a.astype("f4"), b.astype("f4")))


def test_a_load_fills_the_rest_of_a_tile_with_zeros(words):
    full, found = np.arange(1024, dtype="u1") | 1, np.empty((16, 64), "u1")
    shape = shape_of(3, 4, 5)
    words.matrix_configure(ctypes.byref(shape))
    words.matrix_load(full.ctypes.data, 100, found.ctypes.data)
    words.matrix_end()
    for i in range(3):
        assert found[i, :20].tobytes() == full[100 * i : 100 * i + 20].tobytes()
    assert not found[3:].any() and not found[:, 20:].any()


def ends(call):
    """How a child that runs ``call`` ends: 0, or the number of a signal."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # which would print the end that is meant
        call()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def test_the_model_ends_where_the_processor_would(words):
    def configured(change=None, then=lambda: None):
        shape = shape_of(16, 32, 16)
        if change is not None:
            change(shape)
        return lambda: (words.matrix_configure(ctypes.byref(shape)), then())

    page = np.zeros(4096, "u1")
    dot = lambda: words.matrix_dot(*(page.ctypes.data, 64) * 3)  # noqa: E731
    assert ends(configured(then=dot)) == 0
    for bad in (
        dot,  # not configured
        configured(then=lambda: (words.matrix_end(), dot())),  # given up
        configured(then=words.matrix_dot_with_itself),
        configured(lambda s: setattr(s, "palette", 2)),
        configured(lambda s: setattr(s, "start_row", 1)),
        configured(lambda s: s.none.__setitem__(3, 1)),
        configured(lambda s: s.rows.__setitem__(4, 17)),
        configured(lambda s: s.bytes.__setitem__(1, 68)),
        configured(lambda s: s.rows.__setitem__(4, 3)),  # rows without bytes
        configured(lambda s: (s.rows.__setitem__(8, 1), s.bytes.__setitem__(8, 4))),  # a ninth tile
        configured(lambda s: s.rows.__setitem__(2, 15), dot),  # operands that do not fit
        configured(lambda s: s.bytes.__setitem__(0, 60), dot),
    ):
        assert ends(bad) == signal.SIGILL


def test_the_kernel_for_amx_has_its_instructions():
    units = [unit for unit in native.library_units() if "-DCK_ISA=amx" in unit[1] and unit[0].startswith("csrc/tiles")]
    assert len(units) == 4
    for path in native.compile_all(units):
        text = subprocess.run(["objdump", "-d", path], check=True, capture_output=True, text=True).stdout
        for name in "ldtilecfg", "tilezero", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease":
            assert re.search(rf"\b{name}\b", text), name
        assert not re.search(r"\bvdpbf16ps\b", text)


# ---- the choice of it ----


def test_the_model_is_chosen_by_its_name_alone():
    assert MODEL not in ck.isas() and MODEL not in _ck.build_info()["lacking"]
    before = ck.isa()
    with ck.use(MODEL):
        assert ck.isa() == MODEL
    assert ck.isa() == before
    with pytest.raises(ValueError) as error:
        ck.use("amx9")
    assert MODEL not in str(error.value)


def test_amx_is_offered_or_says_what_is_missing():
    flags = set(re.search(r"^flags\s*: (.*)$", open("/proc/cpuinfo").read(), re.M)[1].split())
    lacking = _ck.build_info()["lacking"]["amx"]
    if not {"amx_tile", "amx_bf16"} <= flags:
        assert lacking is not None
    assert (lacking is None) == (ck.isas()[0] == "amx")


def test_matmul_precision_is_chosen_by_name():
    assert ck.get_matmul_precision() == "highest"
    for name in "high", "medium", "highest":
        ck.set_matmul_precision(name)
        assert ck.get_matmul_precision() == name
    for bad, error in (("low", ValueError), (None, TypeError), (2, TypeError)):
        with pytest.raises(
            error, match=r"set_matmul_precision\(\): 'precision' must be 'highest', 'high' or 'medium', not "
        ):
            ck.set_matmul_precision(bad)
    assert ck.get_matmul_precision() == "highest"


def test_matmul_precision_changes_nothing_elsewhere(rng):
    x, w = rng.standard_normal((20, 70)).astype("f4"), rng.standard_normal((30, 70)).astype("f4")
    for isa in set(ck.isas()) - {"amx"}:
        with ck.use(isa):
            exact = ck.linear(x, w).tobytes()
            ck.set_matmul_precision("medium")
            assert ck.linear(x, w).tobytes() == exact
            ck.set_matmul_precision("highest")


def test_float16_and_highest_have_the_bits_of_the_other_set(rng):
    x, w = rng.standard_normal((20, 70)).astype("f4"), rng.standard_normal((30, 70)).astype("f4")
    for dtype in "f4", "f2":
        bits = set()
        for isa in "avx2", MODEL:
            with ck.use(isa):
                bits.add(ck.linear(x.astype(dtype), w.astype(dtype)).tobytes())
        assert len(bits) == 1


def test_the_probe_counts_its_products(model):
    for n in 0, 1, 7:
        assert (_ck.probe_amx(np.full(3, np.nan, "f4"), n) == 128 * n).all()
    with ck.use("baseline"):
        assert np.isnan(_ck.probe_amx(np.zeros(2, "f4"), 1)).all()


# ---- products ----


def ways(a, b):
    """Multiply a [M,K] by b [K,N] in every way that they may lie."""
    at, bt = (np.ascontiguousarray(x.T) for x in (a, b))
    yield ck.matmul(guarded(a), guarded(b))
    yield ck.matmul(guarded(a), guarded(bt), transpose_b=True)
    yield ck.matmul(guarded(at), guarded(b), transpose_a=True)
    yield ck.matmul(guarded(at), guarded(bt), transpose_a=True, transpose_b=True)
    yield ck.linear(guarded(a), guarded(bt), out=unwritten((a.shape[0], b.shape[1]), a.dtype))
    yield ck.linear(a, ck.pack(bt))
    yield ck.matmul(spaced(a), spaced(b))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bfloat16_products_have_the_bits_of_the_instruction(model, rng, size):
    R, K, N = size
    a, b = rng.standard_normal((R, K)).astype(BF16), rng.standard_normal((K, N)).astype(BF16)
    sums = product(a, b)
    for y in ways(a, b):
        assert y.tobytes() == sums.astype(BF16).tobytes()
    y = sums.astype(BF16)
    rest = ck.linear(a, np.ascontiguousarray(b.T), residual=-y)  # what the rounding hid
    assert rest.tobytes() == (sums - y.astype("f4")).astype(BF16).tobytes()


@pytest.mark.parametrize("size", SIZES[:-2], ids=str)
def test_float32_products_by_parts_have_the_bits_of_the_instruction(precision, rng, size):
    R, K, N = size
    a, b = rng.standard_normal((R, K)).astype("f4"), rng.standard_normal((K, N)).astype("f4")
    sums = product(a, b, precision)
    for y in ways(a, b):
        assert y.tobytes() == sums.tobytes()


def test_batches_share_or_have_their_own(model, rng):
    a, b = rng.standard_normal((3, 20, 40)).astype(BF16), rng.standard_normal((3, 40, 35)).astype(BF16)
    sums = [product(a[i], b[j]).astype(BF16) for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 1), (2, 1))]
    assert ck.matmul(a, b).tobytes() == np.stack(sums[:3]).tobytes()
    assert ck.matmul(a, b[1]).tobytes() == np.stack(sums[3:]).tobytes()
    at = np.ascontiguousarray(a.transpose(0, 2, 1))
    assert ck.matmul(at, b[1], transpose_a=True).tobytes() == np.stack(sums[3:]).tobytes()


def test_writes_only_what_is_its_own(model, rng):
    a, b = rng.standard_normal((37, 33)).astype(BF16), rng.standard_normal((33, 35)).astype(BF16)
    out = spaced(np.zeros((37, 35), BF16))
    ck.matmul(a, b, out=out)
    assert gaps_untouched(out) and out.tobytes() == ck.matmul(a, b).tobytes()


def test_no_terms_are_zero(model):
    assert not ck.linear(np.ones((3, 0), BF16), np.ones((5, 0), BF16)).astype("f4").any()
    assert ck.linear(np.ones((0, 3), BF16), np.ones((5, 3), BF16)).shape == (0, 5)


# ---- promises of bits ----


def everything(x, w, b, r, dy):
    y, ctx = ck.linear_forward(x, w, b, activation="silu", residual=r)
    return [a.tobytes() for a in (y, *ck.linear_backward(dy, ctx))]


@pytest.mark.parametrize("dtype", [BF16, np.dtype("f4")], ids=str)
def test_bits_do_not_depend_on_threads_or_rows(precision, rng, dtype):
    R, K, N = 300, 290, 100
    x, w, b, r, dy = (rng.standard_normal(s).astype(dtype) for s in ((R, K), (N, K), (N,), (R, N), (R, N)))
    ck.set_num_threads(1)
    alone = everything(x, w, b, r, dy)
    for n in 2, 3, 7:
        ck.set_num_threads(n)
        assert everything(x, w, b, r, dy) == alone
    y, ctx = ck.linear_forward(x, w, b, activation="silu", residual=r)
    dx, packed = ck.linear_backward(dy, ctx).x, ck.pack(w)
    for some in slice(0, 1), slice(299, 300), slice(7, 12), slice(20, 53):
        part, ctx = ck.linear_forward(x[some], w, b, activation="silu", residual=r[some])
        assert part.tobytes() == y[some].tobytes()
        assert ck.linear_backward(dy[some], ctx).x.tobytes() == dx[some].tobytes()
        assert ck.linear(x[some], packed, b, activation="silu", residual=r[some]).tobytes() == part.tobytes()


# ---- how exact ----


def torch_linear(precision, arrays, dy):
    x, w, b, r = tensors = [torch.tensor(a.astype("f8"), dtype=precision, requires_grad=True) for a in arrays]
    y = torch.nn.functional.silu(torch.nn.functional.linear(x, w, b)) + r
    return [y, *torch.autograd.grad(y, tensors, torch.tensor(dy.astype("f8"), dtype=precision))]


@pytest.mark.parametrize("size", [(7, 300, 33), (65, 40, 130)], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_linear_matches_torch(model, rng, size, dtype):
    R, K, N = size
    kind = BF16 if dtype == "bfloat16" else np.dtype("f4")
    arrays = [rng.standard_normal(s).astype(kind) for s in ((R, K), (N, K), (N,), (R, N))]
    dy = rng.standard_normal((R, N)).astype(kind)
    ck.set_matmul_precision("high")
    y, ctx = ck.linear_forward(*arrays[:3], activation="silu", residual=arrays[3])
    got = [y, *ck.linear_backward(dy, ctx)]
    ck.set_matmul_precision("highest")
    exact, peer = (torch_linear(p, arrays, dy) for p in (torch.float64, getattr(torch, dtype)))
    for ours, e, p in zip(got, exact, peer, strict=True):
        assert_parity(ours, e.detach(), p.detach().float() if dtype == "float32" else p.detach())


def test_a_float_gradient_beside_bfloat16_keeps_its_digits(model, rng):
    """After an activation dz is float32: as one bfloat16 it would lose what a sum that cancels shows."""
    R, K, N = 30, 50, 400
    x, w = rng.standard_normal((R, K)).astype(BF16), rng.standard_normal((N, K)).astype(BF16)
    dy = rng.standard_normal((R, N)).astype(BF16)
    _, ctx = ck.linear_forward(x, w, activation="silu")
    grads = ck.linear_backward(dy, ctx)
    z = ctx.pre.astype("f8")
    s = 1 / (1 + np.exp(-z))
    dz = dy.astype("f8") * (s + z * s * (1 - s))
    for got, left, right in ((grads.x, dz, w.astype("f8")), (grads.weight, dz.T, x.astype("f8"))):
        exact, terms = left @ right, np.abs(left) @ np.abs(right)
        # the store; dz as the kernel has it and the sum of its float32 roundings; two parts of it
        bound = 2.0**-8 * np.abs(exact) + (2.0**-20 + 2.0**-16) * terms
        assert (np.abs(got.astype("f8") - exact) <= bound).all()


def test_float32_by_parts_is_as_exact_as_promised(model, rng):
    """High is judged as float32 is; medium by what its parts leave out: 2^-16 of each operand, and mid times mid."""
    for K in 576, 3000:
        x, w = rng.standard_normal((40, K)).astype("f4"), rng.standard_normal((30, K)).astype("f4")
        exact, terms = x.astype("f8") @ w.T.astype("f8"), np.abs(x.astype("f8")) @ np.abs(w.T.astype("f8"))
        rms = {}
        for name in "highest", "high", "medium":
            ck.set_matmul_precision(name)
            y = ck.linear(x, w)
            ck.set_matmul_precision("highest")
            rms[name] = np.sqrt(np.mean(((y - exact) / terms) ** 2))
            if name == "high":
                assert_parity(y, exact, x @ w.T, terms=terms)
            if name == "medium":
                assert (np.abs(y - exact) <= (3 * 2.0**-16 + K * 2.0**-24 / 32) * terms).all()
        assert rms["high"] < rms["highest"] < rms["medium"] < 2.0**-21


def test_extremes(precision):
    """Infinite where float32 is, NaN where it is; a finite number stays so though its bfloat16 is not."""
    inf, nan = np.inf, np.nan
    x, w = np.ones((6, 300), "f4"), np.full((20, 300), 1.003, "f4")  # hi 1, mid above: of -1.003 the other sign
    x[0, 299], x[1, 0], x[2, 270] = nan, inf, -inf
    w[3], w[4, 270], w[5, 7], w[6] = 1, inf, nan, 0.998  # 0.998: hi 1, mid below
    w[7, 0] = 0
    x[3] = 0
    x[3, 5] = 3.4e38  # infinite as a bfloat16
    x[4] = 1e-42
    with np.errstate(all="ignore"):
        exact = (x.astype("f8") @ w.T.astype("f8")).astype("f4")
    y = ck.linear(x, w)
    exact[4, 4] = np.nan  # flushed to 0, which infinity makes a NaN of
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    np.testing.assert_array_equal(np.isposinf(y), np.isposinf(exact))
    np.testing.assert_array_equal(np.isneginf(y), np.isneginf(exact))
    assert np.isfinite(y[3, 3]) and abs(y[3, 3] / 3.4e38 - 1) < 2.0**-15
    assert (y[4, :3] == 0).all()  # subnormal: flushed, the exception that docs/numerics.md names
    beyond = ck.linear(x[3:4], x[3:4])  # parts of either sign may make a NaN of it
    assert not np.isfinite(beyond).any()


def test_extremes_in_bfloat16(model):
    x, w = np.ones((5, 70), BF16), np.ones((20, 70), BF16)
    x[0, 69], x[1, 0], x[2, 40], w[3, 69], w[4, 40] = np.nan, np.inf, -np.inf, 0, np.inf
    x[3], w[5, 0] = 1e38, 1e38
    x[4] = 1e-40  # subnormal
    with np.errstate(all="ignore"):
        exact = (x.astype("f8") @ w.T.astype("f8")).astype("f4")
    exact[4, 4] = np.nan
    y = ck.linear(x, w).astype("f4")
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(exact))
    with np.errstate(all="ignore"):
        assert same(y, product(x, w.T).astype(BF16).astype("f4"))
    assert (y[4, :3] == 0).all()


def test_gradients_accumulate_in_place(model, rng):
    x, w, dy = (rng.standard_normal(s).astype(BF16) for s in ((40, 33), (35, 33), (40, 35)))
    ctx = ck.linear_forward(x, w)[1]
    fresh = product(dy.T, x)
    given = Gradients(None, np.full((35, 33), 2, BF16))
    added = ck.linear_backward(dy, ctx, out=given, accumulate=True)
    assert added.weight is given.weight
    assert given.weight.tobytes() == (fresh + np.float32(2)).astype(BF16).tobytes()


def test_the_bench_measures_bfloat16_against_the_probe(model):
    from ckernels.bench import limits

    assert list(limits.arithmetic("bfloat16")) == ["amx"] and list(limits.arithmetic("float32")) == ["fma"]
    (call, flops) = limits.amx()["amx"]
    assert flops == 2 * 16 * 16 * 32 * 4 * 65536 * 8 * ck.get_num_threads()
