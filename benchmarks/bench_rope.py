"""rope, mrope: bound by memory.  x is read and y written; the table is read once a block of tokens, and stays cached.

PyTorch has no rope: the peer is what transformers runs in eager mode, x * cos + rotate_half(x) * sin, on tables of
full width, and for interleaved pairs the same on the pairs stacked again.  Backward is the same kernel with the sign
turned, and so is the peer's, written out: autograd's own takes longer.
"""
from types import SimpleNamespace

import numpy as np

import ckernels as ck
from harness import normal, run, tensor, torch

# B, H, T, D
CASES = {"llama3 4096": (1, 32, 4096, 128), "smollm2 512": (1, 9, 512, 64), "llama3 1024": (1, 32, 1024, 128),
         "20 heads of 100": (1, 20, 4096, 100), "32 decode": (32, 32, 1, 128), "1 token": (1, 9, 1, 64)}
LAYOUTS = "llama3 4096", "32 decode"  # in which these too


def make(B, H, T, D, token_major=False, interleaved=False):
    """[B,H,T,D], or a view of that shape on [B,T,H,D], as projections leave it."""
    def make_one(rng, dtype):
        x = normal(rng, (B, T, H, D) if token_major else (B, H, T, D), dtype)
        s = SimpleNamespace(x=x.transpose(0, 2, 1, 3) if token_major else x, interleaved=interleaved)
        s.cos, s.sin = ck.rope_table(np.arange(100, 100 + T), D)
        s.positions, K = np.tile(np.arange(T), (3, 1)), D // 2
        s.sections = K - 2 * (K // 3), K // 3, K // 3
        s.mctx = ck.mrope_forward(s.x[:, :1], s.cos, s.sin, s.positions, s.sections)[1]
        s.ctx = ck.rope_forward(s.x[:, :1], s.cos, s.sin, interleaved=interleaved)[1]
        if torch:
            s.tx = tensor(x).transpose(1, 2) if token_major else tensor(x)
            wide = (lambda t: t.repeat_interleave(2, -1)) if interleaved else (lambda t: torch.cat([t, t], -1))
            s.tcos, s.tsin = (wide(tensor(a)).to(s.tx.dtype) for a in (s.cos, s.sin))
        return s
    return make_one


def ours(s):
    """Forward."""
    return ck.rope(s.x, s.cos, s.sin, interleaved=s.interleaved)


def multimodal(s):
    """Time, height and width, of which text has the same: PyTorch's work is that of rope and of picking rows."""
    return ck.mrope(s.x, s.cos, s.sin, s.positions, s.sections)


def multimodal_backward(s):
    """The same, turned back."""
    return ck.mrope_backward(s.x, s.mctx)


def same_layout(s):
    """Forward into an output that lies as x does, which PyTorch makes by itself."""
    B, H, T, D = s.x.shape
    return ck.rope(s.x, s.cos, s.sin, out=ck.empty((B, T, H, D), s.x.dtype).transpose(0, 2, 1, 3))


def backward(s):
    """Backward."""
    return ck.rope_backward(s.x, s.ctx)


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
    """Eager, written out."""
    return s.tx * s.tcos - (rotate_pairs if s.interleaved else rotate_half)(s.tx) * s.tsin


def bench(case, *shape):
    """Each direction and layout."""
    def moved(size):
        return 2 * size * int(np.prod(shape))
    run("rope", case, make(*shape), ours, theirs, nbytes=moved, aim=(20, 0.8))
    run("rope_backward", case, make(*shape), backward, theirs_backward, nbytes=moved)
    if case not in LAYOUTS:
        return
    run("mrope", case, make(*shape), multimodal, theirs, nbytes=moved)
    run("mrope_backward", case, make(*shape), multimodal_backward, theirs_backward, nbytes=moved)
    run("rope token-major", case, make(*shape, token_major=True), same_layout, theirs, nbytes=moved)
    run("rope interleaved", case, make(*shape, interleaved=True), ours, theirs, nbytes=moved)


for case, shape in CASES.items():
    bench(case, *shape)
