"""One op, one name, one place in each folder; what includes what; what leaves an object."""

import re
import subprocess
import sys

import pytest

import native

ROOT = native.ROOT
KERNELS = {
    op: kind for kind, op in re.findall(r"^CK_(OP|LAYER|PART)\((\w+)", (ROOT / "csrc/ops.def").read_text(), re.M)
}
CALLED = dict(re.findall(r'^CK_(?:OP|LAYER)\((\w+), "([^"]+)"', (ROOT / "csrc/ops.def").read_text(), re.M))
TILED = re.findall(r"^CK_TILED\((\w+)\)", (ROOT / "csrc/tiles.def").read_text(), re.M)
# Which header declares an op: its family.
HEADERS = [*sorted((ROOT / "csrc/ops").glob("*.h")), *sorted((ROOT / "csrc/layers").glob("*.h"))]
FAMILY = {
    op: header.stem
    for header in HEADERS
    if header.name != "ops.h"
    for op in re.findall(r"^(?:CK_DECLARE\(|struct ck_)(\w+)(?:\)| \{)", header.read_text(), re.M)
}
FOLDER = {header.stem: header.parent.name for header in HEADERS}
SOURCES = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".c", ".h"})
PYTHON = sorted((ROOT / "python").rglob("*.py"))
# A user's name with a dot is a method: KVCache.append, optim.SGD. It lives in that package; all others in ops/.
METHODS = {family for op, family in FAMILY.items() if "." in CALLED.get(op, "")}


def members(family, *kinds):
    """Return the ops of a family that are listed as one of ``kinds``."""
    return [op for op, own in FAMILY.items() if own == family and KERNELS.get(op) in kinds]


def places():
    """Yield every file that must be there."""
    for family in sorted(set(FAMILY.values())):
        yield f"csrc/{FOLDER[family]}/{family}.c"
        if members(family, "OP", "PART"):
            yield f"csrc/kernels/{family}.c"
            yield f"csrc/reference/{family}.c"
        if members(family, "OP", "LAYER"):
            yield f"tests/test_{family}.py"
            if family not in METHODS:
                yield f"python/ckernels/ops/{family}.py"
                yield f"benchmarks/bench_{family}.py"
                yield f"docs/ops/{family}.md"


@pytest.mark.parametrize("place", list(places()))
def test_op_has_its_place(place):
    assert (ROOT / place).is_file()


def test_what_is_listed_is_declared_and_the_reverse():
    assert {*KERNELS, *TILED} == set(FAMILY)


@pytest.mark.parametrize("op", TILED)
def test_kernel_for_a_matrix_unit_stands_in_its_file(op):
    assert (ROOT / f"csrc/tiles/{op}.c").read_text().count(f"CK_KERNEL({op})") == 1


@pytest.mark.parametrize("op", [op for op, kind in KERNELS.items() if kind != "LAYER"])
def test_kernel_and_reference_stand_in_the_family_s_files(op):
    """That is <family>.c, or <family>_<part>.c where one is too long; a family's own macro may make it: RELU(relu)."""
    stem = re.sub("_(fwd|bwd)$", "", op)
    for folder in ("kernels", "reference"):
        text = "".join(p.read_text() for p in (ROOT / f"csrc/{folder}").glob(f"{FAMILY[op]}*.c"))
        assert len(re.findall(rf"^(?:CK_KERNEL\({op}\)|[A-Z_]+\({stem}[,)])", text, re.M)) == 1, folder


@pytest.mark.parametrize("op", CALLED)
def test_python_calls_it(op):
    stem = re.sub(r"_(nn|nt|tn|tt)_(?=fwd|bwd)", "_", op)  # transposes of one function are called by a made name
    assert any(re.search(rf"\b{op}\b", p.read_text()) or (stem != op and FAMILY[op] == p.stem) for p in PYTHON)


def test_no_file_without_an_op():
    for folder in ("kernels", "reference", "tiles"):
        for path in (ROOT / f"csrc/{folder}").glob("*.c"):
            assert "CK_KERNEL(" in path.read_text() or path.name == "table.c", path


# ---- what may include what ----

ALLOWED = {
    "runtime": r"runtime/\w+\.h|isa\.def",
    "ops": r"(ops|runtime)/\w+\.h|(ops|tiles)\.def|faults\.h",
    "reference": r"reference/\w+\.h|kernels/kernel\.h|ops/\w+\.h",
    "kernels": r"(kernels|simd|ops)/\w+\.h|(ops|tiles)\.def|faults\.h",
    "tiles": r"(kernels|simd|ops)/\w+\.h",
    "simd": r"simd/\w+\.h|ops/op\.h",
    "layers": r"(layers|ops|runtime)/\w+\.h|ops\.def|faults\.h",
    "bindings": r"(bindings|layers|ops|runtime)/\w+\.h|ops\.def|ckernels\.h|faults\.h",
}


@pytest.mark.parametrize("folder", ALLOWED)
def test_includes_point_one_way(folder):
    for path in SOURCES:
        if path.parent.name != folder:
            continue
        for what in re.findall(r'^#include "([^"]+)"', path.read_text(), re.M):
            assert re.fullmatch(ALLOWED[folder], what), f"{path.name} includes {what}"


def test_every_folder_has_its_rule():
    assert {p.parent.name for p in SOURCES} - {"csrc"} <= set(ALLOWED)


def holders(pattern):
    """Return the C files where ``pattern`` occurs."""
    return {str(p.relative_to(ROOT / "csrc")) for p in SOURCES if re.search(pattern, p.read_text())}


def test_python_stays_in_bindings_and_numpy_behind_one_header():
    assert {name.split("/")[0] for name in holders(r"#include <Python\.h>|\bPyObject\b")} == {"bindings"}
    assert holders(r"#include <numpy/") == {"bindings/numpy.h"}


def test_intrinsics_stay_in_simd():
    words = r"#include <(\w*mmintrin|immintrin|x86intrin|arm_neon)\.h>|\b_mm\d*_\w+\(|\b__m(128|256|512)"
    assert {name.split("/")[0] for name in holders(words)} == {"simd"}
    assert {name.split("/")[0] for name in holders(r"__(AVX|SSE|FMA|ARM_NEON)\w*__")} == {"simd"}


def test_kernels_do_not_allocate_or_start_threads():
    for folder in ("kernels", "reference", "tiles"):
        found = {
            name
            for name in holders(r"\b(malloc|calloc|realloc|free|ck_take|ck_give|ck_run|pthread_\w+|printf|fopen)\(")
            if name.startswith(folder)
        }
        assert not found


# ---- names and sizes ----


def test_no_file_is_long():
    long = {
        str(p.relative_to(ROOT)): n
        for p in [*SOURCES, *PYTHON, ROOT / "setup.py"]
        if (n := len(p.read_text().splitlines())) > 500
    }
    assert not long


def test_no_drawer_for_odds_and_ends():
    bad = {"utils", "util", "common", "misc", "helpers", "helper", "legacy", "old", "new", "v2"}
    for path in [*SOURCES, *PYTHON, *(ROOT / "tests").rglob("*.*"), *(ROOT / "benchmarks").rglob("*.py")]:
        assert not bad & set(path.stem.split("_")) and path.parent.name not in bad, path


# ---- objects ----


@pytest.mark.parametrize("isa", native.build().ISAS)
def test_only_kernels_leave_a_kernel_object(isa):
    build = native.build()
    units = [unit for unit in native.library_units() if f"-DCK_ISA={isa}" in unit[1]]
    if build.ISAS[isa][0] == "csrc/tiles":
        expected = {f"ck_{op}_{dtype}_{isa}" for op in TILED for dtype in build.TILED}
    else:
        expected = {f"ck_{op}_{dtype}_{isa}" for op, kind in KERNELS.items() if kind != "LAYER" for dtype in build.DTYPES}
    expected |= {f"ck_kernels_{dtype}_{isa}" for dtype in build.DTYPES}
    objects = native.compile_all(units)
    listed = subprocess.run(
        ["nm", "-P", "-g", "--defined-only", *objects], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[0] for line in listed.splitlines() if line and not line.endswith(":")}
    assert names == expected


def test_nothing_but_the_module_leaves_the_extension():
    import ckernels._ck

    listed = subprocess.run(
        ["nm", "-D", "-P", "--defined-only", ckernels._ck.__file__], capture_output=True, text=True, check=True
    )
    names = {line.split()[0] for line in listed.stdout.splitlines()} - {"_init", "_fini"}
    assert names == {"PyInit__ck"}


def test_linter_finds_nothing():
    run = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", str(ROOT)], text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
