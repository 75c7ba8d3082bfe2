"""matmul: batches as attention has them, and each way the operands lie."""
import numpy as np
import torch

import ckernels as ck
from products import run

SIZES = [(9, 512, 64, 512), (9, 512, 512, 64), (1, 1024, 1024, 1024), (64, 31, 33, 35)]


def bench(ta, tb, batch, M, K, N):
    """Compare with PyTorch's product of views: nothing is copied on either side."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((batch, K, M) if ta else (batch, M, K), dtype="f4")
    b = rng.standard_normal((batch, N, K) if tb else (batch, K, N), dtype="f4")
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    x, y = x.mT if ta else x, y.mT if tb else y
    run(f"{'nt'[ta]}{'nt'[tb]} {batch}x {M}x{K}x{N}", 2 * batch * M * K * N,
        {"": lambda: ck.matmul(a, b, transpose_a=ta, transpose_b=tb)}, lambda: x @ y)


for size in SIZES:
    for way in (False, False), (False, True), (True, False):
        bench(*way, *size)
