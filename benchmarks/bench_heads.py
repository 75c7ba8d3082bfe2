"""split_qkv, heads_to_tokens, tokens_to_heads: copies, bound by memory."""
from types import SimpleNamespace

import ckernels as ck
from harness import normal, run, tensor, torch

# B, T, H, G, D: a large model's prefill, a small one's, a decode step of 16 texts
CASES = {"1x4096, 32/8 of 128": (1, 4096, 32, 8, 128), "1x512, 9/3 of 64": (1, 512, 9, 3, 64),
         "16x1, 9/3 of 64": (16, 1, 9, 3, 64)}


def make_qkv(B, T, H, G, D):
    """Inputs and outputs for both sides, on the same memory."""
    def make_one(rng, dtype):
        s = SimpleNamespace(x=normal(rng, (B, T, (H + 2 * G) * D), dtype))
        s.dy, s.ctx = ck.split_qkv_forward(s.x, H, G, D)
        s.out = tuple(part.copy() for part in s.dy)
        s.tx, s.tout, s.tdy = tensor(s.x), [tensor(part) for part in s.out], [tensor(part) for part in s.dy]
        return s
    return make_one


def make_heads(B, T, H, D):
    """Make x [B,H,T,D] and y [B,T,H,D], for both sides."""
    def make_one(rng, dtype):
        s = SimpleNamespace(x=normal(rng, (B, H, T, D), dtype), y=normal(rng, (B, T, H, D), dtype))
        s.xout, s.yout = s.x.copy(), s.y.copy()
        s.heads, s.tokens = ck.heads_to_tokens_forward(s.x)[1], ck.tokens_to_heads_forward(s.y)[1]
        s.tx, s.ty, s.txout, s.tyout = (tensor(a) for a in (s.x, s.y, s.xout, s.yout))
        return s
    return make_one


def torch_split(H, G, D):
    """As models do: split, view, transpose, copy; eager, and once more into outputs."""
    def views(s):
        B, T, _ = s.tx.shape
        return [part.view(B, T, -1, D).transpose(1, 2) for part in s.tx.split((H * D, G * D, G * D), -1)]
    return (lambda s: [v.contiguous() for v in views(s)],
            lambda s: [o.copy_(v) for o, v in zip(s.tout, views(s), strict=True)])


def torch_join(s):
    """What autograd does with the three gradients, at its best."""
    return torch.cat([part.transpose(1, 2).flatten(2) for part in s.tdy], -1)


def bench(case, B, T, H, G, D):
    """All three."""
    eager, into = torch_split(H, G, D)
    make, aim = make_qkv(B, T, H, G, D), (None, 0.8)

    def moved(heads):
        return lambda size: 2 * size * B * T * heads * D
    run("split_qkv", case, make, lambda s: ck.split_qkv(s.x, *s.ctx), eager, nbytes=moved(H + 2 * G), aim=aim,
        ours_out=lambda s: ck.split_qkv(s.x, *s.ctx, out=s.out), theirs_out=into)
    run("split_qkv_backward", case, make, lambda s: ck.split_qkv_backward(s.dy, s.ctx), torch_join, aim=aim,
        nbytes=moved(H + 2 * G))
    make = make_heads(B, T, H, D)
    run("heads_to_tokens", case, make, lambda s: ck.heads_to_tokens(s.x), lambda s: s.tx.transpose(1, 2).contiguous(),
        nbytes=moved(H), ours_out=lambda s: ck.heads_to_tokens(s.x, out=s.yout), aim=aim,
        theirs_out=lambda s: s.tyout.copy_(s.tx.transpose(1, 2)))
    run("heads_to_tokens_backward", case, make, lambda s: ck.heads_to_tokens_backward(s.y, s.heads),
        lambda s: s.ty.transpose(1, 2).contiguous(), nbytes=moved(H), aim=aim)
    run("tokens_to_heads_backward", case, make, lambda s: ck.tokens_to_heads_backward(s.x, s.tokens),
        lambda s: s.tx.transpose(1, 2).contiguous(), nbytes=moved(H), aim=aim)
    run("tokens_to_heads", case, make, lambda s: ck.tokens_to_heads(s.y), lambda s: s.ty.transpose(1, 2).contiguous(),
        nbytes=moved(H), ours_out=lambda s: ck.tokens_to_heads(s.y, out=s.xout), aim=aim,
        theirs_out=lambda s: s.txout.copy_(s.ty.transpose(1, 2)))


for case, sizes in CASES.items():
    bench(case, *sizes)
