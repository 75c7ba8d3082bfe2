"""matmul: batches as attention has them, and each way the operands lie."""
import numpy as np
import torch
from products import run

import ckernels as ck


def upright(tensor, transposed):
    """Return the operand as PyTorch takes it."""
    return tensor.mT if transposed else tensor


for batch, M, K, N in [(9, 512, 64, 512), (9, 512, 512, 64), (1, 1024, 1024, 1024), (64, 31, 33, 35)]:
    for ta, tb in (False, False), (False, True), (True, False):
        rng = np.random.default_rng(0)
        a = rng.standard_normal((batch, K, M) if ta else (batch, M, K), dtype="f4")
        b = rng.standard_normal((batch, N, K) if tb else (batch, K, N), dtype="f4")
        x, y = upright(torch.from_numpy(a), ta), upright(torch.from_numpy(b), tb)
        run(f"{'nt'[ta]}{'nt'[tb]} {batch}x {M}x{K}x{N}", 2 * batch * M * K * N,
            {"": lambda: ck.matmul(a, b, transpose_a=ta, transpose_b=tb)}, lambda: x @ y)
