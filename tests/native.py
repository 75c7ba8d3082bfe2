"""Build the C programs of ``tests/c`` with the compiler and flags of ``setup.py``; objects are kept in ``build/``."""

import contextlib
import ctypes
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
# For a Python of one's own: it finds the package that the tests found.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("CK_")} | {
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)
}


@functools.cache
def build():
    """Return ``setup.py`` as a module: ISAS, compiler(), compile_all(units), library_units()."""
    spec = importlib.util.spec_from_file_location("ckernels_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_all(units):
    """Compile (source, flags) units: the paths of their objects."""
    with contextlib.chdir(ROOT):
        return [str(ROOT / path) for path in build().compile_all(units)]


def library_units():
    """The (source, flags) units of the C library."""
    with contextlib.chdir(ROOT):
        return build().library_units()


def link(name, units, *options):
    """Compile (source, flags) units and link them with ``options``: the path of ``build/tests/<name>``."""
    objects = compile_all(units)
    with contextlib.chdir(ROOT):
        target = Path("build/tests") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [*build().compiler(), *objects, "-o", str(target), *options, "-pthread", "-ldl", "-lm"], check=True
        )
    return ROOT / target


def word_units():
    """The words of every instruction set that is built, and the portable ones."""
    sets = {isa: flags for isa, (folder, flags) in build().ISAS.items() if folder == "csrc/kernels"}
    sets["portable"] = [*sets["baseline"], "-DCK_PORTABLE"]
    return [("tests/c/words.c", [*flags, f"-DCK_ISA={isa}", "-DCK_DTYPE=f32"]) for isa, flags in sets.items()]


class _Word(ctypes.Structure):
    _floats = ctypes.POINTER(ctypes.c_float)
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("run", ctypes.CFUNCTYPE(None, _floats, _floats, _floats, _floats, ctypes.c_size_t)),
    ]


@functools.cache
def _library():
    return ctypes.CDLL(str(link("words.so", word_units(), "-shared")))


@functools.cache
def words(isa):
    """Return {name: function(x, y, z, out, n)} of one instruction set."""
    table = ctypes.cast(getattr(_library(), f"words_{isa}"), ctypes.POINTER(_Word))
    found = {}
    for i in range(1000):
        if table[i].name is None:
            return found
        found[table[i].name.decode()] = table[i].run
    raise AssertionError("the table does not end")


def run_word(isa, name, x, y=None, z=None, out=None, n=None):
    """Return word ``name`` of float32 arrays, element by element."""
    out = np.full_like(x, np.nan) if out is None else out
    given = [np.ascontiguousarray(x if a is None else a, np.float32) for a in (x, y, z)]
    pointers = [a.ctypes.data_as(_Word._floats) for a in (*given, out)]
    words(isa)[name](*pointers, out.size if n is None else n)
    return out
