"""Build _ck: csrc/kernels once per instruction set and dtype, all else once; metadata is in pyproject.toml.

Objects are kept in build/objects and compiled again only when a file they include has changed.

    CC=clang-14         another compiler
    CK_WERROR=1         warnings are errors
    CK_CFLAGS="-g"      more flags, for every file (sanitizers, say)
    CK_BLAS=none        without OpenBLAS
    MAX_JOBS=1          compilers at a time
"""
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from importlib import metadata
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
WARN = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-psabi", "-fvisibility=hidden", "-fPIC"]
# Flags that let loops vectorise without changing what they compute.
FAST = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]

# isa.def names these too: one table, one name in Python each.
ISAS = {"reference": ("csrc/reference", ["-O2", "-ffp-contract=off"]),
        "baseline": ("csrc/kernels", FAST)}
if platform.machine() in ("x86_64", "AMD64"):
    ISAS["avx2"] = ("csrc/kernels", [*FAST, "-mavx2", "-mfma", "-mf16c", "-mbmi2"])
    ISAS["avx512"] = ("csrc/kernels", [*FAST, "-march=x86-64-v4", "-mprefer-vector-width=512"])
    # A matrix unit added to the kernels of another set: csrc/tiles alone is compiled, for the dtypes below.
    ISAS["amx"] = ("csrc/tiles", [*ISAS["avx512"][1], "-DCK_REST=avx512"])
    ISAS["amx_model"] = ("csrc/tiles", [*ISAS["avx2"][1], "-DCK_REST=avx2", "-DCK_MATRIX_MODEL"])
DTYPES = ["f32", "bf16", "f16"]
TILED = ["f32", "bf16"]
BLAS = "libscipy_openblas.so"


def compiler():
    flags = [*WARN, "-Icsrc", *shlex.split(os.environ.get("CK_CFLAGS", ""))]
    if os.environ.get("CK_WERROR"):
        flags.append("-Werror")
    return [*shlex.split(os.environ.get("CC", "cc")), *flags]


def is_current(target):
    """Whether no file that went into it is newer (the compiler's own list of them lies beside it)."""
    if not target.exists():
        return False
    made = target.stat().st_mtime
    files = re.sub(r"\\\n", " ", target.with_suffix(".d").read_text()).split(":", 1)[1].split()
    return all(os.path.exists(f) and os.path.getmtime(f) <= made for f in files)


def compile_all(units):
    """Compile (source, flags) units in parallel; return the objects in order."""
    def compile_one(unit):
        source, flags = unit
        command = [*compiler(), *flags]
        key = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:12]
        target = Path("build/objects") / key / Path(source).with_suffix(".o")
        if not is_current(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*command, "-MMD", "-c", source, "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        return list(pool.map(compile_one, units))


def library_units():
    """The C library without Python: slow passes first, so that they do not end alone."""
    units = []
    for isa, (folder, flags) in reversed(ISAS.items()):
        for dtype in DTYPES:
            tiled = folder == "csrc/tiles" and dtype in TILED
            sources = glob(f"{folder}/*.c") if tiled or folder != "csrc/tiles" else []
            here = [*flags, f"-DCK_ISA={isa}", f"-DCK_DTYPE={dtype}", *(["-DCK_MATRIX_UNIT"] if tiled else [])]
            units += [(source, here) for source in sorted({*sources, "csrc/kernels/table.c"})]
    once = sorted(glob("csrc/runtime/*.c") + glob("csrc/ops/*.c") + glob("csrc/layers/*.c"))
    return units + [(source, ["-O2", "-ffp-contract=off"]) for source in once]


def vendor_blas(folder):
    """Copy OpenBLAS with its licences to ``folder``, or clear it: ``CK_BLAS=none``, or no build of it for this CPU."""
    shutil.rmtree(folder, ignore_errors=True)
    if os.environ.get("CK_BLAS") == "none" or platform.machine() not in ("x86_64", "AMD64"):
        return
    import scipy_openblas32
    folder.mkdir(parents=True)
    shutil.copy2(Path(scipy_openblas32.get_lib_dir()) / BLAS, folder)
    files = metadata.distribution("scipy-openblas32").files
    licences = [file for file in files if "LICENSE" in file.name.upper() and ".dist-info" in str(file)]
    if not licences:
        raise RuntimeError("scipy-openblas32 has no licence file to ship with its library")
    for file in licences:
        shutil.copy2(file.locate(), folder / f"{BLAS}.{file.name}")


def binding_units():
    """The Python side, for the limited API."""
    import numpy
    python = [f"-I{path}" for path in (sysconfig.get_path("include"), numpy.get_include())]
    flags = ["-O2", "-DPy_LIMITED_API=0x030B0000", "-Wno-cast-function-type", *python]
    return [(source, flags) for source in sorted(glob("csrc/bindings/*.c"))]


def has_faults(source, flags):
    """Whether a file, or what it includes, asks for planted faults (csrc/faults.h)."""
    made = subprocess.run([*compiler(), *flags, "-MM", source], check=True, text=True, capture_output=True).stdout
    files = re.sub(r"\\\n", " ", made).split(":", 1)[1].split()
    texts = (Path(file).read_text() for file in files if not file.endswith("csrc/faults.h"))
    return any("CK_FAULT(" in text or "#ifdef CK_FAULTS" in text for text in texts)


class BuildExtension(build_ext):
    """The extension from objects compiled as above."""

    def build_extension(self, ext):
        os.chdir(ROOT)
        objects = compile_all(library_units() + binding_units())
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*compiler(), "-shared", *objects, "-o", str(target), "-pthread", "-ldl", "-lm"], check=True)
        vendor_blas(target.parent / "_libs")

    def copy_extensions_to_source(self):
        """For ``--inplace`` and editable installs, the library beside the extension too."""
        super().copy_extensions_to_source()
        vendor_blas(ROOT / "python/ckernels/_libs")


class BuildFaults(Command):
    """`python setup.py build_faults --isa avx2 --into DIR`: DIR/_ck.so with the faults of csrc/faults.def.

    For `ck mutate`.  It has the kernels of one instruction set, under the names of all; what no fault is planted in is
    not compiled again.  Compiled in a third of the time, since it need not be fast: the bits are the same.
    """

    user_options = [("isa=", None, "the instruction set"), ("into=", None, "the folder"),
                    ("dtypes=", None, "in whose kernels faults are planted (default f32,bf16,f16)")]

    def initialize_options(self):
        """Nothing is chosen but all dtypes."""
        self.isa, self.into, self.dtypes = None, None, ",".join(DTYPES)

    def finalize_options(self):
        """Say what is missing."""
        if ISAS.get(self.isa, ("",))[0] != "csrc/kernels" or not self.into:
            raise SystemExit("build_faults: --isa of an instruction set with kernels and --into are needed")
        self.into = Path(self.into).absolute()

    def run(self):
        os.chdir(ROOT)
        units = []
        for source, flags in library_units() + binding_units():
            isa = next((flag[len("-DCK_ISA="):] for flag in flags if flag.startswith("-DCK_ISA=")), self.isa)
            if isa != self.isa and Path(source).name != "table.c":
                continue
            if isa != self.isa:  # a table that names the kernels of the one set
                rest = [flag for flag in flags if not flag.startswith(("-DCK_REST=", "-DCK_MATRIX_UNIT"))]
                flags = [*rest, f"-DCK_REST={self.isa}"]
            of_dtype = [dtype for dtype in DTYPES if f"-DCK_DTYPE={dtype}" in flags]
            planted = has_faults(source, flags) and set(of_dtype) <= set(self.dtypes.split(","))
            units.append((source, [*flags, "-O1", "-DCK_FAULTS"] if planted else flags))
        objects = compile_all([*units, ("csrc/faults.c", ["-O2", "-DCK_FAULTS"])])
        self.into.mkdir(parents=True, exist_ok=True)
        made = self.into / f"{os.getpid()}.so"
        subprocess.run([*compiler(), "-shared", *objects, "-o", str(made), "-pthread", "-ldl", "-lm"], check=True)
        made.replace(self.into / "_ck.so")  # whole, or not there


class BuildLibrary(Command):
    """`python setup.py build_library`: build/libckernels.a, for C programs; prints its path."""

    user_options = []

    def initialize_options(self):
        """Nothing to set."""

    def finalize_options(self):
        """Nothing to set."""

    def run(self):
        os.chdir(ROOT)
        target = Path("build/libckernels.a")
        objects = compile_all(library_units())
        target.unlink(missing_ok=True)
        subprocess.run(["ar", "rcs", str(target), *objects], check=True)
        print(target, file=sys.stderr)


if __name__ == "__main__":  # tests import this file for the compiler's flags
    setup(
        cmdclass={"build_ext": BuildExtension, "build_faults": BuildFaults, "build_library": BuildLibrary},
        ext_modules=[Extension("ckernels._ck", sources=[], py_limited_api=True)],
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
