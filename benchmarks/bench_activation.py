"""silu: bound by memory.  Forward reads x and writes y; backward reads x and dy and writes dx."""
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

import ckernels as ck
from harness import run

CASES = {"512x1536": (512, 1536), "4096x4096": (4096, 4096)}


def make(R, C):
    """Inputs for both sides, on the same memory."""
    def make_one(rng):
        s = SimpleNamespace(x=rng.standard_normal((R, C), np.float32), dy=rng.standard_normal((R, C), np.float32))
        s.ctx = ck.silu_forward(s.x)[1]
        s.tx, s.tdy = torch.from_numpy(s.x), torch.from_numpy(s.dy)
        return s
    return make_one


for case, (R, C) in CASES.items():
    run("silu", case, make(R, C), lambda s: ck.silu(s.x), lambda s: F.silu(s.tx), nbytes=8 * R * C)
    run("silu_backward", case, make(R, C), lambda s: ck.silu_backward(s.dy, s.ctx),
        lambda s: torch.ops.aten.silu_backward(s.tdy, s.tx), nbytes=12 * R * C)
