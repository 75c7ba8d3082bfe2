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


def machine():
    """Describe this machine and build.

    Returns
    -------
    dict
        Plain strings, numbers, lists and None: ``cpu``, ``cpus``, ``threads``, ``isa``, ``isas``, ``lacking``,
        ``compiler``, ``blas``, ``cuda``, ``python``, ``numpy``, ``torch``, ``transformers``, ``ckernels``,
        ``platform``.
    """
    ck = importlib.import_module("ckernels")
    info = build_info()
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
        "blas": info.get("blas"),
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
        f"BLAS: {facts['blas'] or 'none'}",
        f"Python {facts['python']}, NumPy {numpy}, PyTorch {torch}, transformers {transformers}",
    ]
