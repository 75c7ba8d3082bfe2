"""Time ops beside eager PyTorch, and beside what the machine can do at most.

``ck bench`` and ``benchmarks/bench_<op>.py`` are made of this.  A case is a few lines::

    from ckernels.bench import F, normal, pair

    for R, C in (4096, 4096), (3, 4000000):
        pair("silu", f"{R}x{C}", lambda rng, dtype: [normal(rng, (R, C), dtype)], F.silu, moves=(2 * R * C, 3 * R * C))

which times ``ck.silu`` and ``ck.silu_backward`` in every dtype; :func:`run` is the form for what does not fit
into that.
"""

import importlib

_HOME = {"pair": "cases", "run": "cases"}
_HOME.update(dict.fromkeys(("F", "ids", "normal", "tensor", "torch", "uniform"), "inputs"))

__all__ = ["F", "ids", "normal", "pair", "run", "tensor", "torch", "uniform"]


def __getattr__(name):  # only when asked for: every command of `ck` imports this package, and PyTorch takes seconds
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
