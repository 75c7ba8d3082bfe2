"""What the figures were measured on: processor, instruction sets, threads, compiler, BLAS, versions."""

import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name():
    """Return the processor's name as the system knows it."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def build_info():
    """Return what the extension says about how it was built: compiler, dtypes, lacking, and blas where it has one."""
    return importlib.import_module("ckernels._ck").build_info()


def blas():
    """Return (name of the OpenBLAS in use or None, why there is none or None)."""
    extension = importlib.import_module("ckernels._ck")
    if not hasattr(extension, "blas_info"):
        return None, "this build has none"
    info = extension.blas_info()
    return (None, info["lacking"]) if info["lacking"] else (f"{info['config']}, core {info['core']}", None)


def machine():
    """Describe this machine and build.

    Returns
    -------
    dict
        Plain strings, numbers, lists and None: ``ckernels``, ``cpu``, ``cpus``, ``threads``, ``isa``, ``isas``,
        ``lacking``, ``compiler``, ``matmul``, ``precision``, ``blas``, ``blas_lacking``, ``cuda``, ``python``,
        ``numpy``, ``torch``, ``transformers``, ``platform``.
    """
    ck = importlib.import_module("ckernels")
    info, (blas_name, blas_lacking) = build_info(), blas()
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "ckernels": ck.__version__,
        "cpu": cpu_name(),
        "cpus": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": ck.get_num_threads(),
        "isa": ck.isa(),
        "isas": list(ck.isas()),
        "lacking": {isa: why for isa, why in info.get("lacking", {}).items() if why},
        "compiler": info.get("compiler"),
        "matmul": ck.get_matmul_backend() if hasattr(ck, "get_matmul_backend") else None,
        "precision": ck.get_matmul_precision(),
        "blas": blas_name,
        "blas_lacking": blas_lacking,
        "cuda": info.get("cuda"),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "platform": platform.platform(),
    }


def header(facts):
    """Write the machine in a few lines."""
    numpy, torch, transformers = (facts[name] or "not installed" for name in ("numpy", "torch", "transformers"))
    return [
        f"ckernels {facts['ckernels']} on {facts['cpu']}, {facts['cpus']} CPUs, {facts['threads']} threads",
        f"instruction sets: {', '.join(facts['isas'])} (in use: {facts['isa']}); compiler: {facts['compiler']}; "
        f"matmul: {facts['matmul'] or 'none'}",
        f"BLAS: {facts['blas'] or 'none: ' + facts['blas_lacking']}",
        f"Python {facts['python']}, NumPy {numpy}, PyTorch {torch}, transformers {transformers}",
    ]
