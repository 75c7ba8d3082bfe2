"""Time an op as it is used, beside eager PyTorch in the same process, and say how far it is from the machine's limit.

One line a case and instruction set; the heading names the columns::

    op            case            isa     threads  ms     GB/s  limit  x torch best median  x torch out= best median

Ours and PyTorch's calls alternate, so that a slow moment hits both, and every figure of a line comes from the same
seconds.  Inputs are random and there are more of them than the caches hold, taken in turn.  `limit` is the share of
what a copy by the same number of threads reaches, measured just before the case (for a case that counts operations
instead of bytes: of a product of two 1024 x 1024 matrices).  "best" compares the two fastest calls, "median" is the
median of the ratios of neighbours.  The first pair of ratios is as a user calls it, with fresh outputs; the second
gives both an output to write into, where PyTorch takes one: it leaves out what the arena contributes.

    python benchmarks/bench_rms_norm.py --threads 1 --isa avx2 --seconds 2 --case 4096 --format json
"""
import argparse
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace

import numpy as np
import torch

import ckernels as ck

CACHES = 256 << 20  # inputs of a case take at least this much memory together


@cache
def options():
    """Command line of every bench."""
    parser = argparse.ArgumentParser(description="Bench one op against eager PyTorch.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for us and for PyTorch")
    parser.add_argument("--isa", action="append", help="only these instruction sets (default: all but reference)")
    parser.add_argument("--seconds", type=float, default=1.0, help="spent on a line")
    parser.add_argument("--case", default="", help="only cases with this text in 'op case'")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    ck.set_num_threads(chosen.threads)
    if chosen.format == "text":
        print(f"{'op':22} {'case':22} {'isa':9} {'threads':>7} {'ms':>9} {'GB/s,GF/s':>9} {'limit':>6}   "
              f"{'x torch: best  median':>21}   {'with out=: best  median':>23}", flush=True)
    return chosen


def seconds_of(call, *args):
    """How long one call takes; its result lives until the clock has stopped."""
    start = time.perf_counter()
    result = call(*args)
    end = time.perf_counter()
    del result
    return end - start


def copy_rate(threads, nbytes=64 << 20, times=7):
    """Bytes a second, read and written, that ``threads`` copies of their own share of ``nbytes`` reach."""
    source, target = np.ones(nbytes, np.uint8), np.empty(nbytes, np.uint8)
    shares = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        def copy_all():
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), shares))
        copy_all()
        return 2 * nbytes / min(seconds_of(copy_all) for _ in range(times))


def product_rate(times=7):
    """Operations a second that PyTorch's float32 product of 1024 x 1024 matrices reaches."""
    x, y = torch.randn(1024, 1024), torch.randn(1024, 1024)
    torch.mm(x, y)
    return 2 * 1024**3 / min(seconds_of(torch.mm, x, y) for _ in range(times))


def alternate(calls, inputs, seconds):
    """Call each in turn, on one input after another, for so long; return one list of times for each.

    No call gets what the one before it has just brought into the caches.
    """
    apart = max(1, len(inputs) // len(calls))
    times = [[] for _ in calls]
    for call in calls:
        call(inputs[0])
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turn < 5:
        for i, call in enumerate(calls):
            times[i].append(seconds_of(call, inputs[(turn + i * apart) % len(inputs)]))
        turn += 1
    return times


def ratios(ours, theirs):
    """Theirs over ours: of the fastest calls, and the median over neighbours."""
    return min(theirs) / min(ours), statistics.median(t / o for o, t in zip(ours, theirs, strict=True))


def run(op, case, make, ours, theirs, *, nbytes=0, flops=0, ours_out=None, theirs_out=None):
    """Bench one case on every instruction set.

    Parameters
    ----------
    op, case : str
        Printed, and matched by ``--case``.
    make : callable
        ``make(rng)`` returns one set of inputs (and of outputs for the calls with ``out=``); made as often as it
        takes to leave the caches.
    ours, theirs : callable
        Take such a set; return their result, so that freeing it is not measured.
    nbytes, flops : int
        What the call must move (each input read once, each output written once), or the operations it needs.
    ours_out, theirs_out : callable, optional
        The same, writing into an output of the set.
    """
    chosen = options()
    if chosen.case not in f"{op} {case}":
        return
    inputs = [make(np.random.default_rng(0))]
    if nbytes:
        copies = min(64, max(2, -(-CACHES // nbytes)))
        inputs += [make(np.random.default_rng(i)) for i in range(1, copies)]
    calls = [ours, theirs] + ([ours_out, theirs_out] if theirs_out else [])
    for isa in chosen.isa or [name for name in ck.isas() if name != "reference"]:
        limit = copy_rate(chosen.threads) if nbytes else product_rate()
        with ck.use(isa):
            times = alternate(calls, inputs, chosen.seconds)
        line = SimpleNamespace(op=op, case=case, isa=isa, threads=chosen.threads, ms=min(times[0]) * 1e3)
        line.rate = (nbytes or flops) / min(times[0]) / 1e9
        line.limit = line.rate * 1e9 / limit
        line.best, line.median = ratios(times[0], times[1])
        line.out_best, line.out_median = ratios(times[2], times[3]) if theirs_out else (None, None)
        report(line, chosen.format)


def report(line, format):
    """Print one line."""
    if format == "json":
        print(json.dumps(vars(line)), flush=True)
        return
    out = "" if line.out_best is None else f"{line.out_best:15.1f} {line.out_median:7.1f}"
    print(f"{line.op:22} {line.case:22} {line.isa:9} {line.threads:7} {line.ms:9.3f} {line.rate:9.1f} "
          f"{line.limit:6.0%}   {line.best:13.1f} {line.median:7.1f}   {out}", flush=True)
