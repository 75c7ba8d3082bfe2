"""The C library without Python: a program that runs a decoder layer on every instruction set."""
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import ckernels as ck

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Build the static library and the program against it."""
    made = subprocess.run([sys.executable, "setup.py", "-q", "build_library"], cwd=ROOT, text=True, capture_output=True)
    assert made.returncode == 0, made.stderr
    target = tmp_path_factory.mktemp("c") / "layer"
    subprocess.run([*shlex.split(os.environ.get("CC", "cc")), "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror",
                    "-I", "csrc", "tests/c/layer.c", "build/libckernels.a", "-o", str(target), "-pthread", "-ldl", "-lm"],
                   cwd=ROOT, check=True)
    return target


@pytest.mark.parametrize("isa", ck.isas())
def test_decoder_layer_runs_without_python(program, isa):
    run = subprocess.run([program], env=os.environ | {"CK_ISA": isa}, text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "decode gives the bits of forward" in run.stdout


def test_library_has_no_python_in_it(program):
    names = subprocess.run(["nm", "-u", str(program)], text=True, capture_output=True, check=True).stdout
    assert "Py" not in names


def test_unknown_instruction_set_has_no_kernels(program):
    assert subprocess.run([program], env=os.environ | {"CK_ISA": "mmx"}).returncode == 2
