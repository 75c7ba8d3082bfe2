"""What was built, what this machine offers, and whether a few ops give the right numbers."""

import sys
import time

import numpy as np

from .parity.machine import header, machine

#: Extras and the packages they bring, as far as the commands need them.
_EXTRAS = {"models": ("gguf", "safetensors", "tokenizers"), "parity": ("torch", "transformers", "rich")}


def show_config(stream=None):
    """Print compiler, instruction sets, threads, BLAS, CUDA and versions.

    Parameters
    ----------
    stream : text file, optional
        Where to print; standard output by default.

    Returns
    -------
    dict
        The same as plain values.
    """
    stream = stream or sys.stdout
    facts = machine()
    for line in header(facts):
        print(line, file=stream)
    for isa, what in facts["lacking"].items():
        print(f"  {isa}: built, but this CPU lacks {what}", file=stream)
    if "amx" not in (*facts["isas"], *facts["lacking"]):
        print("  amx: not in this build", file=stream)
    only = "" if facts["isa"].startswith("amx") else "; another setting changes nothing without AMX"
    print(f"float32 products: {facts['precision']}{only}", file=stream)
    print(f"CUDA: {facts['cuda'] or 'no: this build has no CUDA kernels'}", file=stream)
    for extra, packages in _EXTRAS.items():
        lacking = [p for p in packages if not _has(p)]
        state = f"lacks {', '.join(lacking)}: pip install 'ckernels[{extra}]'" if lacking else "complete"
        print(f"extra [{extra}]: {state}", file=stream)
    return facts


def _has(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _checks(ck, rng):
    """Yield (name, float32 result, float64 result, error bound) for a few ops, in NumPy alone."""
    u = 2.0**-24
    x, y = (rng.standard_normal((37, 577)).astype(np.float32) for _ in range(2))
    wide, other = x.astype(np.float64), y.astype(np.float64)
    if hasattr(ck, "add"):
        yield "add", ck.add(x, y), wide + other, 2 * u * np.abs(wide + other) + 1e-45
    weight = (0.5 + rng.random(577)).astype(np.float32)
    if hasattr(ck, "rms_norm"):
        exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight.astype(np.float64)
        # The mean of squares is a sum of 577 positive terms in 16 lanes: 40 roundings at most, halved by the root.
        yield "rms_norm", ck.rms_norm(x, weight, eps=1e-6), exact, 25 * u * np.abs(exact) + 1e-45
    if hasattr(ck, "softmax"):
        e = np.exp(wide - wide.max(-1, keepdims=True))
        exact = e / e.sum(-1, keepdims=True)
        # x - max is rounded at up to 8, exp has a few ulp, the sum 40 roundings.
        yield "softmax", ck.softmax(x), exact, 64 * u * exact + 1e-45
    if hasattr(ck, "linear"):
        w = rng.standard_normal((65, 577)).astype(np.float32)
        size = np.abs(wide) @ np.abs(w.astype(np.float64)).T
        yield "linear", ck.linear(x, w), wide @ w.astype(np.float64).T, 577 * u * size


def self_test(stream=None, *, isas=None):
    """Run a few ops on every instruction set against float64 in NumPy.

    Each result must lie within a bound derived from the number of roundings.

    Returns
    -------
    bool
        True when all are within their bounds.
    """
    import ckernels as ck

    stream = stream or sys.stdout
    start, failures, count = time.perf_counter(), [], 0
    for isa in isas or ck.isas():
        with ck.use(isa):
            for name, actual, exact, bound in _checks(ck, np.random.default_rng(3)):
                count += 1
                error = np.abs(actual.astype(np.float64) - exact)
                if actual.shape != exact.shape or not (error <= bound).all():
                    failures.append(f"{name} on {isa}: error {np.nanmax(error):.3g}")
    seconds = time.perf_counter() - start
    for failure in failures:
        print(f"self-test FAILED: {failure}", file=stream)
    if not failures:
        print(f"self-test: {count} results within their bounds, {seconds:.2f} s", file=stream)
    return not failures and count > 0
