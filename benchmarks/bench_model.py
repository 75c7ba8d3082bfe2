"""Whole models beside transformers in float32: SmolLM2-135M forward and decode, and a training step of small models."""
import numpy as np
import torch

import ckernels as ck
from ckernels.io.fetch import fetch
from ckernels.parity.peer import llama
from harness import options, ratios, seconds_of


def line(case, ours, theirs, seconds, tokens):
    """Alternate two calls and print the fastest of each."""
    times = [], []
    ours(), theirs()
    while sum(times[0]) + sum(times[1]) < seconds or len(times[0]) < 3:
        times[0].append(seconds_of(ours))
        times[1].append(seconds_of(theirs))
    best, median = ratios(*times)
    print(f"{case:34} {min(times[0]) * 1e3:10.2f} {min(times[1]) * 1e3:12.2f} {tokens / min(times[0]):10.0f} "
          f"{best:8.2f} {median:8.2f}", flush=True)


def hugging_face(path):
    """Return the same file as transformers reads it, float32."""
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()


def bench_real_model(seconds):
    """Forward of 512 tokens with all logits, and one token after 256."""
    path = fetch("smollm2-135m", progress=False)
    ours, theirs = ck.models.load(path), hugging_face(path)
    ids = np.random.default_rng(0).integers(0, ours.config.vocab_size, 512)
    tids = torch.from_numpy(ids)[None]
    with torch.inference_mode():
        line("SmolLM2-135M, 512 tokens, all logits", lambda: ours(ids), lambda: theirs(tids).logits, seconds, 512)
        cache = ours.new_cache(300)
        ours(ids[:256], cache=cache)
        past = theirs(tids[:, :256], use_cache=True).past_key_values

        def decode():
            ours(ids[256:257], cache=cache)
            cache.truncate(256)

        def decode_theirs():
            theirs(tids[:, 256:257], past_key_values=past, use_cache=True)
            past.crop(-1)

        line("SmolLM2-135M, decode after 256", decode, decode_theirs, seconds, 1)


def bench_training(name, seconds, tokens=64):
    """One SGD step of a small model, batch of one."""
    config = ck.models.configs[name]
    ours = ck.models.Model(config, seed=0)
    theirs = llama(config, ours.params)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, tokens + 1))
    inputs, labels = ids[:, :-1], ids[:, 1:]
    tin, tout = torch.from_numpy(inputs.copy()), torch.from_numpy(labels.copy())
    opt, topt = ck.optim.SGD(ours.params, lr=1e-3), torch.optim.SGD(theirs.parameters(), lr=1e-3)

    def step():
        opt.step(ours.loss_and_grads(inputs, labels)[1])

    def step_theirs():
        topt.zero_grad()
        logits = theirs(tin).logits
        torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), tout.view(-1)).backward()
        topt.step()

    line(f"{name}, training step, {tokens} tokens", step, step_theirs, seconds, tokens)


chosen = options()
print(f"{'model':34} {'ours ms':>10} {'transformers':>12} {'tokens/s':>10} {'x best':>8} {'x median':>8}")
bench_training("tiny", 2 * chosen.seconds)
bench_training("medium", 2 * chosen.seconds)
bench_real_model(6 * chosen.seconds)
