"""matmul: batches as attention has them, and each way the operands lie."""
from types import SimpleNamespace

import ckernels as ck
from harness import normal, run, tensor, torch
from openblas import through

SIZES = [(1, 2048, 2048, 2048), (1, 1024, 1024, 1024), (1, 700, 1111, 901), (9, 512, 64, 512),
         (9, 512, 512, 64), (64, 31, 33, 35)]


def make(ta, tb, batch, M, K, N):
    """PyTorch's product is of views: nothing is copied on either side."""
    def make_one(rng):
        s = SimpleNamespace(a=normal(rng, (batch, K, M) if ta else (batch, M, K)),
                            b=normal(rng, (batch, N, K) if tb else (batch, K, N)))
        if torch:
            s.x, s.y = (t.mT if turned else t for t, turned in ((tensor(s.a), ta), (tensor(s.b), tb)))
        return s
    return make_one


def bench(ta, tb, batch, M, K, N):
    """One way of lying."""
    def ours(s):
        return ck.matmul(s.a, s.b, transpose_a=ta, transpose_b=tb)
    run(f"matmul {'nt'[ta]}{'nt'[tb]}", f"{batch}x {M}x{K}x{N}", make(ta, tb, batch, M, K, N), ours,
        lambda s: s.x @ s.y, flops=2 * batch * M * K * N, beside=through(ours))


for size in SIZES:
    for way in (False, False), (False, True), (True, False):
        bench(*way, *size)
