"""Time products as they are used, beside OpenBLAS and eager PyTorch in the same process.

One line a case, a call after the other in turn, so that a slow moment hits all of them; every ratio comes from the
fastest calls of one run.  OpenBLAS is called through this package (``set_matmul_backend``), by as many threads.

    python benchmarks/bench_linear.py --threads 1 --isa avx512 --seconds 2 --case 2048
"""
import argparse
import os
import statistics
import time
from functools import cache

import torch

import ckernels as ck


@cache
def options():
    """Command line of the benches of products."""
    parser = argparse.ArgumentParser(description="Bench products against OpenBLAS and eager PyTorch.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for all of them")
    parser.add_argument("--isa", action="append", help="only these instruction sets (default: the vector ones)")
    parser.add_argument("--seconds", type=float, default=2.0, help="spent on a case")
    parser.add_argument("--case", default="", help="only cases with this text")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    ck.set_num_threads(chosen.threads)
    chosen.isa = chosen.isa or [isa for isa in ck.isas() if isa not in ("baseline", "reference")] or ["baseline"]
    chosen.openblas = ck._ck.blas_info()["lacking"] is None
    print(f"{chosen.threads} threads, PyTorch {torch.__version__}, OpenBLAS: "
          f"{ck._ck.blas_info()['core'] or ck._ck.blas_info()['lacking']}")
    print(f"{'case':28} {'how':16} {'ms':>9} {'GF/s':>7} {'x OpenBLAS':>11} {'x torch: best':>14} {'median':>7}")
    return chosen


def alternate(calls, seconds):
    """Call each in turn for so long; return the times of each."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["torch"]) < 3:
        for name, call in calls.items():
            start = time.perf_counter()
            result = call()
            times[name].append(time.perf_counter() - start)
            del result
    return times


def chosen_by(isa, backend, call):
    """Make a call that first chooses the kernels."""
    def chosen():
        ck.use(isa)
        ck.set_matmul_backend(backend)
        return call()
    return chosen


def run(case, flops, ours, theirs):
    """Bench one case.

    ``ours`` is a dict of calls by name, of which the first goes by OpenBLAS too; ``theirs`` is PyTorch's call.
    """
    args = options()
    if args.case not in case:
        return
    calls = {"torch": theirs}
    if args.openblas:
        calls["openblas"] = chosen_by(args.isa[0], "openblas", next(iter(ours.values())))
    for isa in args.isa:
        calls.update({f"{isa} {name}".strip(): chosen_by(isa, "ckernels", call) for name, call in ours.items()})
    before = ck.isa(), ck.get_matmul_backend()
    times = alternate(calls, args.seconds)
    ck.use(before[0])
    ck.set_matmul_backend(before[1])
    for name, series in times.items():
        best = min(series)
        blas = f"{min(times['openblas']) / best:11.2f}" if args.openblas else f"{'-':>11}"
        ratio = statistics.median(t / o for t, o in zip(times["torch"], series, strict=True))
        print(f"{case:28} {name:16} {best * 1e3:9.3f} {flops / best / 1e9:7.1f} {blas} "
              f"{min(times['torch']) / best:14.2f} {ratio:7.2f}", flush=True)
