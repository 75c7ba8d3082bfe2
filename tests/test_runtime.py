"""The choice of an instruction set: by CPU at import, by CK_ISA, by ck.use; wrong names say what there is."""

import subprocess

import numpy as np
import pytest

import ckernels as ck
import native
from ckernels import _ck


def python(code, **environment):
    """Run ``code`` in a Python of its own."""
    return subprocess.run(
        [native.PYTHON, "-c", code], env={**native.ENVIRONMENT, **environment}, capture_output=True, text=True
    )


def test_isas_are_named_best_first():
    order = ["amx", "avx512", "avx2", "neon", "baseline", "reference"]
    assert ck.isas() == [isa for isa in order if isa in ck.isas()]
    assert {"baseline", "reference"} <= set(ck.isas())


def test_flags_of_the_cpu_agree():
    for line in open("/proc/cpuinfo"):
        if line.startswith("flags"):
            flags = set(line.split())
            break
    else:
        pytest.skip("not an x86 Linux")
    assert ("avx2" in ck.isas()) == {"avx2", "fma", "f16c", "bmi2"}.issubset(flags)
    assert ("avx512" in ck.isas()) == {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd", "fma"}.issubset(flags)


def test_what_is_built_and_not_offered_says_why():
    lacking = _ck.build_info()["lacking"]
    assert set(lacking) == set(native.build().ISAS) - {"amx_model"}  # tests alone use it, by its name
    for isa, what in lacking.items():
        assert (what is None) == (isa in ck.isas())


def test_the_best_is_chosen_at_import():
    assert python("import ckernels as ck; print(ck.isa())").stdout.strip() == ck.isas()[0]


@pytest.mark.parametrize("name", ck.isas())
def test_the_environment_chooses(name):
    assert python("import ckernels as ck; print(ck.isa())", CK_ISA=name).stdout.strip() == name


def test_an_unknown_name_in_the_environment_fails_with_the_list():
    run = python("import ckernels", CK_ISA="avx9000")
    assert run.returncode == 1
    assert f"CK_ISA: no instruction set 'avx9000' here; there are {', '.join(ck.isas())}" in run.stderr


def test_use_for_a_block_and_for_good():
    before = ck.isa()
    with ck.use("reference"):
        assert ck.isa() == "reference"
        with ck.use("baseline"):
            assert ck.isa() == "baseline"
        assert ck.isa() == "reference"
    assert ck.isa() == before
    with pytest.raises(LookupError), ck.use("reference"):
        raise LookupError
    assert ck.isa() == before
    ck.use("baseline")
    assert ck.isa() == "baseline"
    ck.use(before)


def test_use_refuses():
    with pytest.raises(ValueError, match=r"use\(\): no instruction set 'sse9' here; there are .*reference"):
        ck.use("sse9")
    for bad in (None, 3, b"avx2"):
        with pytest.raises(TypeError, match=r"use\(\): 'isa' must be a name"):
            ck.use(bad)
    with pytest.raises((UnicodeError, ValueError)):
        ck.use("\ud800")


def test_use_really_changes_the_kernels(rng):
    x = (rng.standard_normal((1, 4099)) * 10.0 ** rng.integers(-8, 8, (1, 4099))).astype(np.float32)
    results = {}
    for isa in ck.isas():
        with ck.use(isa):
            results[isa] = ck.add(x, x[:, ::-1].copy(), alpha=1 / 3).tobytes()
    assert len(set(results.values())) > 1
    if "avx512" in results:
        assert results["avx512"] == results["avx2"]


CPU_OF_2008 = "qemu-x86_64"


def test_a_cpu_without_avx_gets_baseline(tmp_path):
    code = (
        "import ckernels as ck, numpy as np; x = np.ones((3, 70), np.float32); y = ck.rms_norm(x);"
        "print(ck.isas(), ck.isa(), bool((abs(y - 1) < 1e-5).all()), ck.add(x, x)[2, 69])"
    )
    run = subprocess.run(
        [CPU_OF_2008, "-cpu", "Nehalem", native.PYTHON, "-c", code],
        env={**native.ENVIRONMENT, "CK_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Nehalem"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.strip() == "['baseline', 'reference'] baseline True 2.0", run.stderr[-2000:]


try:
    subprocess.run([CPU_OF_2008, "-version"], capture_output=True)
except OSError:  # Debian: qemu-user
    test_a_cpu_without_avx_gets_baseline = pytest.mark.skip(reason="qemu-x86_64 is not installed")(
        test_a_cpu_without_avx_gets_baseline
    )
