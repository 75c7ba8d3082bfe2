"""OpenBLAS as a backend: what it computes, when it is not there, and that it stays out of everyone's way."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ckernels as ck
from ckernels import _ck
from ckernels.ops.linear import Gradients
from ckernels.parity import assert_parity

HERE = _ck.blas_info()["lacking"] is None


@pytest.fixture
def openblas():
    """Multiply by OpenBLAS during the test; a build without it must say why."""
    if not HERE:
        assert _ck.blas_info()["lacking"].startswith("there is no file")
        pytest.skip(f"not measured here: {_ck.blas_info()['lacking']}")
    before = ck.get_matmul_backend()
    ck.set_matmul_backend("openblas")
    yield
    ck.set_matmul_backend(before)


def run(code, **environment):
    """Run Python code in a process of its own; return its output and its error text."""
    path = os.pathsep.join(filter(None, [str(Path(ck.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, **environment},
                          capture_output=True, text=True, timeout=100)
    return done.stdout.strip(), done.stderr.strip()


def test_blas_says_what_it_is(openblas):
    info = _ck.blas_info()
    assert info["config"].startswith("OpenBLAS") and info["core"]
    folder = Path(info["path"]).parent
    assert [file for file in folder.iterdir() if "LICENSE" in file.name.upper() and file.stat().st_size > 1000]
    assert ck.get_matmul_backend() == "openblas"


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 300, 40), (7, 33, 129), (40, 600, 1100), (600, 20, 33)], ids=str)
def test_linear_by_blas_matches_torch(openblas, rng, size):
    R, K, N = size
    x, w, b, r = (rng.standard_normal(shape).astype("f4") for shape in ((R, K), (N, K), (N,), (R, N)))

    def torch_at(precision):
        tensors = [torch.tensor(a, dtype=precision, requires_grad=True) for a in (x, w, b, r)]
        y = torch.nn.functional.silu(torch.nn.functional.linear(*tensors[:3])) + tensors[3]
        return [y.detach(), *torch.autograd.grad(y, tensors, torch.tensor(r, dtype=precision))]

    y, ctx = ck.linear_forward(x, w, b, activation="silu", residual=r)
    got = [y, *ck.linear_backward(r, ctx)]
    g = np.abs(r.astype("f8"))
    terms = np.abs(x.astype("f8")) @ np.abs(w.T) + np.abs(b) + g, g @ np.abs(w), g.T @ np.abs(x), g.sum(0), g
    for ours, exact, peer, t in zip(got, torch_at(torch.float64), torch_at(torch.float32), terms, strict=True):
        assert_parity(ours, exact, peer, terms=t, allow_constant=ours.size == 1)
    in_place = r.copy()
    ck.linear(x, w, b, activation="silu", residual=in_place, out=in_place)
    assert in_place.tobytes() == y.tobytes()


def test_blas_takes_every_layout(openblas, rng):
    x, w = rng.standard_normal((6, 5, 70)).astype("f4"), rng.standard_normal((35, 70)).astype("f4")
    want = ck.linear(x, w)
    apart = np.full((5, 6, 73), np.nan, "f4").transpose(1, 0, 2)[..., :70]
    apart[...] = x
    doubled = np.repeat(w, 2, 0)
    for view in x[::-1][::-1], apart, x.transpose(1, 0, 2).copy().transpose(1, 0, 2):
        np.testing.assert_array_equal(ck.linear(view, w), want)
    np.testing.assert_array_equal(ck.linear(x, doubled[::2]), want)
    np.testing.assert_array_equal(ck.linear(x, w[::-1].copy()[::-1]), want)
    np.testing.assert_array_equal(ck.linear(x, ck.pack(w)), want)
    rows = np.broadcast_to(x[0, 0], (9, 70))
    np.testing.assert_array_equal(ck.linear(rows, w), ck.linear(rows.copy(), w))
    out = np.full((6, 5, 40), np.nan, "f4")
    ck.linear(x, w, out=out[..., :35])
    np.testing.assert_array_equal(out[..., :35], want)
    assert np.isnan(out[..., 35:]).all()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_matmul_by_blas_is_ours_within_rounding(openblas, rng, ta, tb, shared):
    a = rng.integers(-8, 9, (2, 3, 33, 20) if ta else (2, 3, 20, 33)).astype("f4")  # integers: both are exact
    b = rng.integers(-8, 9, (() if shared else (2, 3)) + ((17, 33) if tb else (33, 17))).astype("f4")
    dy = rng.integers(-8, 9, (2, 3, 20, 17)).astype("f4")

    def everything():
        y, ctx = ck.matmul_forward(a, b, transpose_a=ta, transpose_b=tb)
        return [y, *ck.matmul_backward(dy, ctx)]

    theirs = everything()
    ck.set_matmul_backend("ckernels")
    for got, want in zip(theirs, everything(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_blas_bits_do_not_depend_on_threads(openblas, rng):
    x, w = rng.standard_normal((700, 100)).astype("f4"), rng.standard_normal((1500, 100)).astype("f4")
    ck.set_num_threads(1)
    alone = ck.linear(x, w).tobytes()
    for n in 2, 3:
        ck.set_num_threads(n)
        assert ck.linear(x, w).tobytes() == alone


def test_reference_multiplies_by_its_own_loop(openblas, rng):
    x, w = rng.standard_normal((5, 300)).astype("f4"), rng.standard_normal((7, 300)).astype("f4")
    with ck.use("reference"):
        np.testing.assert_array_equal(ck.linear(x, w), (x.astype("f8") @ w.T.astype("f8")).astype("f4"))


def test_blas_of_nothing_and_of_no_memory(openblas, rng):
    assert ck.linear(np.ones((0, 3), "f4"), np.ones((4, 3), "f4")).shape == (0, 4)
    np.testing.assert_array_equal(ck.linear(np.ones((2, 0), "f4"), np.ones((4, 0), "f4")), np.zeros((2, 4)))
    _ck.fail_allocation(1)
    with pytest.raises(MemoryError, match=r"linear\(\)"):
        ck.linear(np.ones((20, 30), "f4"), np.ones((40, 30), "f4"), out=np.ones((20, 40), "f4"))


def test_backward_by_blas_accumulates(openblas):
    x, w, dy = np.ones((5, 3), "f4"), np.ones((4, 3), "f4"), np.ones((5, 4), "f4")
    given = Gradients(weight=np.full((4, 3), 10, "f4"))
    ck.linear_backward(dy, ck.linear_forward(x, w)[1], out=given, accumulate=True)
    np.testing.assert_array_equal(given.weight, np.full((4, 3), 15, "f4"))


@pytest.mark.parametrize("name, error, text", [
    ("mkl", ValueError, r"set_matmul_backend\(\): 'name' must be 'ckernels' or 'openblas', not 'mkl'"),
    (None, TypeError, r"set_matmul_backend\(\): 'name' must be 'ckernels' or 'openblas', not None"),
])
def test_set_matmul_backend_refuses(name, error, text):
    before = ck.get_matmul_backend()
    with pytest.raises(error, match=text):
        ck.set_matmul_backend(name)
    assert ck.get_matmul_backend() == before


def test_blas_is_opened_on_first_use_and_by_nobody_else():
    maps = "open('/proc/self/maps').read().count('libscipy_openblas.so')"
    out, error = run("import ckernels as ck, numpy as np; ck.linear(np.ones((1, 1), 'f4'), np.ones((1, 1), 'f4'));"
                     f"print({maps}, ck.get_matmul_backend())", CK_MATMUL="ckernels")
    assert (out, error) == ("0 ckernels", "")


def test_environment_chooses_the_backend(openblas):
    assert run("import ckernels as ck; print(ck.get_matmul_backend())", CK_MATMUL="openblas")[0] == "openblas"
    assert "CK_MATMUL='mkl'" in run("import ckernels", CK_MATMUL="mkl")[1].splitlines()[-1]


@pytest.mark.parametrize("library, reason", [
    ("/nowhere/libopenblas.so", "there is no file /nowhere/libopenblas.so"),
    (str(Path(__file__)), "invalid ELF header|file too short"),
    (_ck.__file__, "has no cblas_sgemm"),
    ("", "no path to it is set"),
])
def test_blas_that_cannot_be_opened_says_why(library, reason):
    out, error = run(
        "import numpy as np, ckernels as ck\n"
        "print(ck._ck.blas_info()['lacking'])\n"
        "print(ck.linear(np.ones((1, 2), 'f4'), np.ones((1, 2), 'f4')))\n"
        "try: ck.set_matmul_backend('openblas')\n"
        "except RuntimeError as e: print(e)\n"
        "print(ck.get_matmul_backend())", CK_BLAS_LIB=library)
    why, product, refusal, backend = out.splitlines()
    assert any(part in why for part in reason.split("|"))
    assert product == "[[2.]]" and backend == "ckernels" and error == ""
    assert refusal == f"set_matmul_backend(): OpenBLAS is not there: {why}"
