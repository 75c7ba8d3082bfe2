"""rope: bound by memory.  x is read and y written; the table is read once a block of tokens, and stays in the cache.

PyTorch has no rope: the peer is what transformers runs in eager mode, x * cos + rotate_half(x) * sin, on tables of
full width, and for interleaved pairs the same on the pairs stacked again.  Backward is the same kernel with the sign
turned.
"""
from types import SimpleNamespace

import numpy as np
import torch

import ckernels as ck
from harness import run

CASES = {  # B, H, T, D
    "smollm2 512": (1, 9, 512, 64),
    "llama3 1024": (1, 32, 1024, 128),
    "llama3 4096": (1, 32, 4096, 128),
    "32 decode": (32, 32, 1, 128),
}


def make(B, H, T, D, token_major, interleaved):
    """[B,H,T,D], or a view of that shape on [B,T,H,D], as projections leave it."""
    def make_one(rng):
        shape = (B, T, H, D) if token_major else (B, H, T, D)
        x = rng.standard_normal(shape, np.float32)
        s = SimpleNamespace(x=x.transpose(0, 2, 1, 3) if token_major else x, interleaved=interleaved)
        s.cos, s.sin = ck.rope_table(np.arange(100, 100 + T), D)
        s.ctx = (s.cos, s.sin, None, interleaved)
        s.tx = torch.from_numpy(s.x)
        wide = (lambda t: t.repeat_interleave(2, -1)) if interleaved else (lambda t: torch.cat([t, t], -1))
        s.tcos, s.tsin = (wide(torch.from_numpy(a)) for a in (s.cos, s.sin))
        return s
    return make_one


def ours(s):
    """Forward."""
    return ck.rope(s.x, s.cos, s.sin, interleaved=s.interleaved)


def same_layout(s):
    """Forward into an output that lies as x does, which PyTorch makes by itself."""
    B, H, T, D = s.x.shape
    return ck.rope(s.x, s.cos, s.sin, out=ck.empty((B, T, H, D)).transpose(0, 2, 1, 3))


def backward(s):
    """Backward."""
    return ck.rope_backward(s.x, ck.ops.rope.Context(*s.ctx))


def rotate_half(x):
    """As transformers has it."""
    lo, hi = x.chunk(2, -1)
    return torch.cat([-hi, lo], -1)


def rotate_pairs(x):
    """The same of interleaved pairs."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def theirs(s):
    """Eager."""
    return s.tx * s.tcos + (rotate_pairs if s.interleaved else rotate_half)(s.tx) * s.tsin


def theirs_backward(s):
    """Eager, written out: autograd's own takes longer."""
    return s.tx * s.tcos - (rotate_pairs if s.interleaved else rotate_half)(s.tx) * s.tsin


for case, (B, H, T, D) in CASES.items():
    nbytes = 2 * 4 * B * H * T * D
    run("rope", case, make(B, H, T, D, False, False), ours, theirs, nbytes=nbytes)
    run("rope_backward", case, make(B, H, T, D, False, False), backward, theirs_backward, nbytes=nbytes)
    run("rope token-major", case, make(B, H, T, D, True, False), same_layout, theirs, nbytes=nbytes)
    run("rope interleaved", case, make(B, H, T, D, False, True), ours, theirs, nbytes=nbytes)
