"""attention_varlen: sequences of many lengths in one call, beside PyTorch's attention on each of them in turn."""

from types import SimpleNamespace

import numpy as np

import ckernels as ck
from harness import F, normal, run, tensor, torch

MIXED = [17, 33, 500, 250, 64, 100, 301, 77, 128, 400, 19, 222, 350, 90, 45, 180]
# lengths, H, G, D
CASES = {
    "H8 D64, 16 of 17 to 500, causal": (MIXED, 8, 8, 64),
    "H9/3 D64, 64 of 32, causal": ([32] * 64, 9, 3, 64),
}


def make(lengths, H, G, D, graph):
    """Inputs for both sides, on the same memory."""
    def make_one(rng):
        s = SimpleNamespace(cu=np.concatenate([[0], np.cumsum(lengths)]), gqa=H != G)
        N = int(s.cu[-1])
        s.q, s.k, s.v, s.dy = (normal(rng, shape) for shape in ((N, H, D), (N, G, D), (N, G, D), (N, H, D)))
        s.parts = [[tensor(x[a:b].swapaxes(0, 1)[None]) for x in (s.q, s.k, s.v, s.dy)]
                   for a, b in zip(s.cu[:-1], s.cu[1:], strict=True)]  # fmt: skip
        if graph:
            s.ctx = ck.attention_varlen_forward(s.q, s.k, s.v, s.cu, s.cu, is_causal=True)[1]
        if graph and torch:
            s.leaves = [[x.detach().clone().requires_grad_() for x in p[:3]] for p in s.parts]
            s.ys = [F.scaled_dot_product_attention(*p, is_causal=True, enable_gqa=s.gqa) for p in s.leaves]
        return s
    return make_one


def theirs(s):
    """One sequence after the other, without recording."""
    with torch.no_grad():
        return [F.scaled_dot_product_attention(*p[:3], is_causal=True, enable_gqa=s.gqa) for p in s.parts]


def torch_backward(s):
    """Over the recorded graphs."""
    return [torch.autograd.grad(y, leaves, p[3], retain_graph=True)
            for y, leaves, p in zip(s.ys, s.leaves, s.parts, strict=True)]  # fmt: skip


for case, (lengths, H, G, D) in CASES.items():
    flops = 2 * H * D * sum(n * n for n in lengths)
    run("attention_varlen", case, make(lengths, H, G, D, False),
        lambda s: ck.attention_varlen(s.q, s.k, s.v, s.cu, s.cu, is_causal=True), theirs, flops=flops)  # fmt: skip
    run("attention_varlen_backward", case, make(lengths, H, G, D, True),
        lambda s: ck.attention_varlen_backward(s.dy, s.ctx), torch_backward, flops=flops * 5 // 2)  # fmt: skip
