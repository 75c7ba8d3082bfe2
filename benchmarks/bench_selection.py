"""argmax, topk, sample: a row of scores is read once; a vocabulary of Qwen 3, and one of SmolLM2."""
from types import SimpleNamespace

import ckernels as ck
from harness import normal, run, tensor, torch

# R, V
CASES = [(256, 49152), (1, 151936), (16, 49152), (4096, 1000), (512, 50257), (3, 4000000)]
DRAWN = [(256, 49152), (1, 151936)]  # on which sample too


def make(R, V):
    """Logits for both sides, on the same memory."""
    def make_one(rng, dtype):
        s = SimpleNamespace(x=normal(rng, (R, V), dtype))
        s.t = tensor(s.x)
        return s
    return make_one


def torch_sample(s, top_k=None, top_p=None):
    """Filter as transformers does, without its checks, then torch.multinomial."""
    t = s.t.float()
    if top_k is not None:
        t = t.masked_fill(t < torch.topk(t, top_k)[0][..., -1:], -torch.inf)
    if top_p is not None:
        values, indices = torch.sort(t, descending=False)
        remove = values.softmax(-1).cumsum(-1) <= 1 - top_p
        remove[..., -1:] = False
        t = t.masked_fill(remove.scatter(1, indices, remove), -torch.inf)
    return torch.multinomial(torch.softmax(t, -1), 1)


def bench(R, V):
    """Everything that reads a row and writes a few numbers."""
    def take(name, ours, theirs):
        run(name, f"{R}x{V}", make(R, V), ours, theirs, nbytes=lambda size: size * R * V, limit="read",
            aim=(None, 0.8))
    take("argmax", lambda s: ck.argmax(s.x), lambda s: s.t.argmax(-1))
    take("topk 50", lambda s: ck.topk(s.x, 50), lambda s: s.t.topk(50))
    if (R, V) in DRAWN:
        take("sample", lambda s: ck.sample(s.x, seed=1), torch_sample)
        take("sample top_k 50", lambda s: ck.sample(s.x, top_k=50, seed=1), lambda s: torch_sample(s, top_k=50))
        take("sample top_p 0.9", lambda s: ck.sample(s.x, top_p=0.9, seed=1), lambda s: torch_sample(s, top_p=0.9))


for R, V in CASES:
    bench(R, V)
