"""Fixtures of every test: the instruction set, the dtype, a random stream of one's own, threads put back."""
import os

import ml_dtypes
import numpy as np
import pytest

import ckernels as ck
from ckernels import _ck

_seed = os.environ.get("CK_TEST_SEED", "0")
# The same inputs every time, so that a red test is red again; CK_TEST_SEED=random draws others, and prints which.
SEED = np.random.SeedSequence().entropy % 10**9 if _seed == "random" else int(_seed)
BUILT = ("amx", "avx512", "avx2", "baseline", "reference")
DTYPES = {"float32": np.dtype("f4"), "float16": np.dtype("f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# What the kernels are compiled for.
OFFERED = [name for name in DTYPES if name in _ck.build_info()["dtypes"].replace(",", " ").split()]


def not_measured():
    """Instruction sets that are built and that this CPU cannot run."""
    return [isa for isa in BUILT if isa not in ck.isas()]


def pytest_report_header():
    """Print what is needed to replay the run, and what it cannot say."""
    lacking = [name for name in DTYPES if name not in OFFERED]
    return [f"ckernels: CK_TEST_SEED={SEED}, instruction sets {' '.join(ck.isas())}, dtypes {' '.join(OFFERED)}",
            f"ckernels: not measured on this CPU: {' '.join([*not_measured(), 'cuda'])}",
            *([f"ckernels: not in this build: {' '.join(lacking)}"] if lacking else [])]


@pytest.fixture(params=ck.isas())
def isa(request):
    """Run the test once per instruction set of this CPU."""
    with ck.use(request.param):
        yield request.param


@pytest.fixture(params=OFFERED)
def dtype(request):
    """Run the test once per dtype of the kernels; give it as a NumPy dtype."""
    return DTYPES[request.param]


@pytest.fixture
def rng(request):
    """Give the same numbers for the same test and seed, whatever else runs."""
    return np.random.default_rng([SEED, *request.node.nodeid.encode()])


@pytest.fixture(autouse=True)
def threads():
    """Put the number of threads back after the test."""
    before = ck.get_num_threads()
    yield
    ck.set_num_threads(before)
