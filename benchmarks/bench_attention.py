"""scaled_dot_product_attention: prefill and backward are bound by arithmetic, decoding over a long cache by memory.

Operations counted: 4 T S D a head forward, half of it under a causal mask, and 2.5 times as many backward (five
products where forward has two), as is usual; ours computes seven in backward, to write no result from two tasks.
"""
from types import SimpleNamespace

import ckernels as ck
from harness import F, normal, run, tensor, torch

# B, H, G, T, S, D, causal
CASES = {
    "H8 T1024 D128 causal": (1, 8, 8, 1024, 1024, 128, True),
    "H8 T1024 D64 causal": (1, 8, 8, 1024, 1024, 64, True),
    "H8 T1024 D128": (1, 8, 8, 1024, 1024, 128, False),
    "H8 T1024 D80": (1, 8, 8, 1024, 1024, 80, False),
    "H9/3 T512 D64 causal": (1, 9, 3, 512, 512, 64, True),
    "H8 T777 D96 causal": (1, 8, 8, 777, 777, 96, True),
}
DECODING = {"H32/8 S8192 D128 T1": (1, 32, 8, 1, 8192, 128), "H9/3 S512 D64 T1": (1, 9, 3, 1, 512, 64)}


def make(B, H, G, T, S, D, causal, graph):
    """Inputs for both sides, on the same memory."""
    def make_one(rng):
        s = SimpleNamespace(causal=causal, gqa=H != G)
        shapes = (B, H, T, D), (B, G, S, D), (B, G, S, D), (B, H, T, D)
        s.q, s.k, s.v, s.dy = (normal(rng, shape) for shape in shapes)
        s.tq, s.tk, s.tv, s.tdy = (tensor(x) for x in (s.q, s.k, s.v, s.dy))
        if graph:
            s.ctx = ck.attention_forward(s.q, s.k, s.v, is_causal=causal)[1]
        if graph and torch:
            s.leaves = [x.clone().requires_grad_() for x in (s.tq, s.tk, s.tv)]
            s.ty = F.scaled_dot_product_attention(*s.leaves, is_causal=causal, enable_gqa=s.gqa)
        return s
    return make_one


def ours(s):
    """A new output."""
    return ck.attention(s.q, s.k, s.v, is_causal=s.causal)


def theirs(s):
    """Eager, without recording."""
    with torch.no_grad():
        return F.scaled_dot_product_attention(s.tq, s.tk, s.tv, is_causal=s.causal, enable_gqa=s.gqa)


def torch_backward(s):
    """Eager, over the recorded graph."""
    return torch.autograd.grad(s.ty, s.leaves, s.tdy, retain_graph=True)


def bench(case, B, H, G, T, S, D, causal):
    """Forward and backward."""
    flops = 4 * B * H * T * S * D // (2 if causal else 1)
    run("attention", case, make(B, H, G, T, S, D, causal, False), ours, theirs, flops=flops)
    run("attention_backward", case, make(B, H, G, T, S, D, causal, True), lambda s: ck.attention_backward(s.dy, s.ctx),
        torch_backward, flops=flops * 5 // 2)


for case, sizes in CASES.items():
    bench(case, *sizes)
for case, (B, H, G, T, S, D) in DECODING.items():
    run("attention decode", case, make(B, H, G, T, S, D, False, False), ours, theirs, nbytes=8 * B * G * S * D,
        limit="read")
