"""Peak memory of a training step: SmolLM2-135M, 512 tokens, AdamW, float32, each side in a process of its own.

    python benchmarks/memory.py

Two steps, so that the state of the optimizer is there in the second.  Printed is the resident memory of the whole
process at its largest, the interpreter and its libraries included, and how much the steps added to what loading took.
"""
import resource
import subprocess
import sys

import numpy as np

from ckernels.io.fetch import fetch

TOKENS = 512


def peak():
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(path, ids):
    """Return a step."""
    import ckernels as ck
    model = ck.models.load(path)
    opt = ck.optim.AdamW(model.params, lr=1e-5)

    def step():
        opt.step(model.loss_and_grads(ids[:-1], ids[1:])[1])
    return step


def theirs(path, ids):
    """The same by transformers, eager."""
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).train()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.from_numpy(ids)[None]

    def step():
        opt.zero_grad()
        logits = model(ids[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        opt.step()
    return step


SIDES = {"ckernels": ours, "transformers": theirs}


def one(side):
    """Run one side in this process; print its peak after loading, and after two steps."""
    path = fetch("smollm2-135m", progress=False)
    step = SIDES[side](path, np.random.default_rng(0).integers(0, 49152, TOKENS + 1))
    loaded = peak()
    step()
    step()
    print(loaded, peak())


def main():
    """Run both and print the table."""
    found = {}
    for side in SIDES:
        done = subprocess.run([sys.executable, __file__, side], check=True, capture_output=True, text=True)
        found[side] = loaded, most = [float(word) for word in done.stdout.split()[-2:]]
        print(f"{side:13} {most:7.0f} MiB, {most - loaded:6.0f} above the loaded model")
    print(f"ratio         {found['ckernels'][1] / found['transformers'][1]:7.2f}")


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
