"""Whole models beside transformers in float32: training steps of small ones and SmolLM2-135M, its forward and decode.

Operations counted: 2 a weight and token forward, 6 in a step; so `limit` is the share of the fused multiply-adds.
"""
from functools import cache
from types import SimpleNamespace

import numpy as np

import ckernels as ck
from harness import F, run, torch


def parameters(model):
    """How many weights take part in a product for every token."""
    tied = model.config.vocab_size * model.config.hidden_size if model.config.tie_word_embeddings else 0
    return tied + sum(p.size for name, p in model.params.items() if "embed_tokens" not in name)


def make_training(name, tokens):
    """A model of a preset, both sides from the same weights, and a batch of one."""
    def make_one(rng):
        s = SimpleNamespace(model=ck.models.Model(ck.models.configs[name], seed=0))
        found = rng.integers(0, s.model.config.vocab_size, (1, tokens + 1))
        s.ids, s.labels = found[:, :-1].copy(), found[:, 1:].copy()
        s.opt = ck.optim.SGD(s.model.params, lr=1e-3)
        if torch:
            from ckernels.parity.peer import llama
            s.peer = llama(s.model.config, s.model.params)
            s.popt = torch.optim.SGD(s.peer.parameters(), lr=1e-3)
            s.tids, s.tlabels = torch.from_numpy(s.ids), torch.from_numpy(s.labels)
        return s
    return make_one


def step(s):
    """One step of SGD."""
    s.opt.step(s.model.loss_and_grads(s.ids, s.labels)[1])


def torch_step(s):
    """The same."""
    s.popt.zero_grad()
    logits = s.peer(s.tids).logits
    F.cross_entropy(logits.view(-1, logits.shape[-1]), s.tlabels.view(-1)).backward()
    s.popt.step()


@cache
def real():
    """SmolLM2-135M on both sides, from one file; a cache of 256 tokens on each."""
    from ckernels.io.fetch import fetch
    path = fetch("smollm2-135m", progress=False)
    s = SimpleNamespace(model=ck.models.load(path), ids=np.random.default_rng(0).integers(0, 49152, 512))
    s.cache = s.model.new_cache(300)
    s.model(s.ids[:256], cache=s.cache)
    if torch:
        from transformers import AutoModelForCausalLM
        s.tids = torch.from_numpy(s.ids)[None]
        s.peer = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
        with torch.inference_mode():
            s.past = s.peer(s.tids[:, :256], use_cache=True).past_key_values
    return s


def decode(s):
    """One token after 256."""
    logits = s.model(s.ids[256:257], cache=s.cache)
    s.cache.truncate(256)
    return logits


def torch_decode(s):
    """The same."""
    with torch.inference_mode():
        logits = s.peer(s.tids[:, 256:257], past_key_values=s.past, use_cache=True).logits
        s.past.crop(-1)
    return logits


@cache
def training():
    """SmolLM2-135M on both sides with AdamW; the weights of both move, which changes no time."""
    s = real()
    s.opt = ck.optim.AdamW(s.model.params, lr=1e-6)
    s.labels = np.roll(s.ids, -1)
    if torch:
        s.popt, s.tlabels = torch.optim.AdamW(s.peer.parameters(), lr=1e-6), torch.from_numpy(s.labels)[None]
    return s


def torch_forward(s):
    """All logits."""
    with torch.inference_mode():
        return s.peer(s.tids).logits


for name in "tiny", "medium":
    flops = 6 * 64 * parameters(ck.models.Model(ck.models.configs[name], seed=0))
    run("training step", f"{name}, 64 tokens", make_training(name, 64), step, torch_step, flops=flops)
FLOPS = 2 * 134_515_008
run("forward", "SmolLM2-135M, 512", lambda rng: real(), lambda s: s.model(s.ids), torch_forward, flops=512 * FLOPS)
run("decode", "SmolLM2-135M, at 256", lambda rng: real(), decode, torch_decode, flops=FLOPS)
run("training step", "SmolLM2-135M, 512", lambda rng: training(), step, torch_step, flops=3 * 512 * FLOPS)
