"""The package: its type stub, a wheel with all it needs, versions of Python, import beside others."""

import inspect
import subprocess
import zipfile

import pytest

import declared
import native
import stubs
from ckernels import _ck


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel, from the objects that are there."""
    folder = tmp_path_factory.mktemp("wheel")
    run = subprocess.run(
        [
            native.PYTHON,
            "-m",
            "pip",
            "wheel",
            str(native.ROOT),
            "--no-build-isolation",
            "--no-deps",
            "-q",
            "-w",
            str(folder),
        ],
        capture_output=True,
        text=True,
    )
    if "No module named pip" in run.stderr:
        pytest.skip("no pip here")
    assert run.returncode == 0, run.stderr[-3000:]
    (found,) = folder.glob("*.whl")
    return found


def entry_points(wheel):
    """Return the text that says what other programs load from a wheel."""
    files = zipfile.ZipFile(wheel)
    (name,) = [name for name in files.namelist() if name.endswith("entry_points.txt")]
    return files.read(name).decode()


def test_one_wheel_for_all_versions_of_python(wheel):
    assert wheel.name.startswith("ckernels-") and "-cp311-abi3-linux_" in wheel.name


def test_the_wheel_has_all_it_needs_and_no_source(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("__init__.py", "_ck.abi3.so", "_ck.pyi", "py.typed", "cli.py", "ops/rms_norm.py", "parity/pages/page.html"):
        assert f"ckernels/{name}" in names
    assert not [name for name in names if name.endswith((".c", ".h", ".o")) or name.startswith(("tests", "csrc"))]
    assert "ckernels.pytest_plugin = ckernels.pytest_plugin" in entry_points(wheel)
    vendored = [name for name in names if name.startswith("ckernels/_libs/")]
    if _ck.blas_info()["lacking"] is None and vendored:
        assert any("LICENSE" in name.upper() for name in vendored)


def test_the_wheel_works_where_it_is_unpacked(wheel, tmp_path):
    subprocess.run(
        [native.PYTHON, "-m", "pip", "install", "--no-deps", "-q", "--target", str(tmp_path), str(wheel)], check=True
    )
    code = (
        "import ckernels as ck, numpy as np; print(ck.__file__); x = np.ones((3, 4), 'f4');"
        "print(ck.add(x, x).sum(), ck.__version__)"
    )
    paths = f"{tmp_path}:{native.ENVIRONMENT['PYTHONPATH']}"
    run = subprocess.run(
        [native.PYTHON, "-c", code],
        env={**native.ENVIRONMENT, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    file, *numbers = run.stdout.split()
    assert file == str(tmp_path / "ckernels/__init__.py") and numbers == ["24.0", "0.1.0"]


def functions():
    """Return the functions of the extension."""
    return {name: f for name, f in vars(_ck).items() if inspect.isbuiltin(f)}


@pytest.mark.parametrize("name", functions())
def test_every_c_function_has_a_signature_and_a_docstring(name):
    function = functions()[name]
    inspect.signature(function)
    assert function.__doc__.strip()


def test_every_op_is_there():
    assert set(declared.OPS) <= set(functions())


def test_the_stub_says_what_the_extension_has():
    """`python tests/stubs.py` writes it."""
    assert stubs.PATH.read_text() == stubs.stub()


def test_stubtest_agrees():
    pytest.importorskip("mypy")
    run = subprocess.run(
        [native.PYTHON, "-m", "mypy.stubtest", "ckernels._ck"], env=native.ENVIRONMENT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("order", ["ckernels, torch", "torch, ckernels", "numpy, ckernels, torch"])
def test_import_in_any_order_beside_torch(order):
    pytest.importorskip("torch")
    code = (
        f"import {order}, numpy as np\n"
        "import ckernels as ck, torch\n"
        "t = torch.ones(3000, 40)\n"
        "for _ in range(3):\n"
        "    t = torch.from_numpy(ck.add(t, t)) @ torch.eye(40)\n"
        "print(float(t.sum()))"
    )
    run = subprocess.run([native.PYTHON, "-c", code], env=native.ENVIRONMENT, capture_output=True, text=True)
    assert run.stdout.strip() == str(float(3000 * 40 * 8)), run.stderr
