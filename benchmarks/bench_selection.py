"""argmax, topk, sample: a row of scores is read once; a vocabulary of Qwen 3, and one of SmolLM2."""
from types import SimpleNamespace

import numpy as np
import torch

import ckernels as ck
from harness import run

CASES = {"1x151936": (1, 151936), "16x49152": (16, 49152), "256x49152": (256, 49152), "4096x1000": (4096, 1000),
         "3x4000000": (3, 4000000)}  # R, V


def make(R, V):
    """Logits for both sides, on the same memory."""
    def make_one(rng):
        s = SimpleNamespace(x=3 * rng.standard_normal((R, V), np.float32))
        s.t = torch.from_numpy(s.x)
        return s
    return make_one


def torch_sample(s, top_k=None, top_p=None):
    """Filter as transformers does, without its checks, then torch.multinomial."""
    t = s.t
    if top_k is not None:
        t = t.masked_fill(t < torch.topk(t, top_k)[0][..., -1:], -torch.inf)
    if top_p is not None:
        values, indices = torch.sort(t, descending=False)
        remove = values.softmax(-1).cumsum(-1) <= 1 - top_p
        remove[..., -1:] = False
        t = t.masked_fill(remove.scatter(1, indices, remove), -torch.inf)
    return torch.multinomial(torch.softmax(t, -1), 1)


for case, (R, V) in CASES.items():
    nbytes = 4 * R * V
    run("argmax", case, make(R, V), lambda s: ck.argmax(s.x), lambda s: s.t.argmax(-1), nbytes=nbytes)
    run("topk 50", case, make(R, V), lambda s: ck.topk(s.x, 50), lambda s: s.t.topk(50), nbytes=nbytes)
    if V > 1000000:
        continue
    run("sample", case, make(R, V), lambda s: ck.sample(s.x, seed=1), torch_sample, nbytes=nbytes)
    run("sample top_k 50", case, make(R, V), lambda s: ck.sample(s.x, top_k=50, seed=1),
        lambda s: torch_sample(s, top_k=50), nbytes=nbytes)
    run("sample top_p 0.9", case, make(R, V), lambda s: ck.sample(s.x, top_p=0.9, seed=1),
        lambda s: torch_sample(s, top_p=0.9), nbytes=nbytes)
