"""Train a small character model on a text of the standard library, beside PyTorch, and plot both curves.

    python examples/train_character_model.py                        500 steps, about a minute
    python examples/train_character_model.py --steps 100 --out runs/first

Both start from the same weights and see the same batches. PyTorch takes part where torch and transformers are
installed; without them our curve is drawn alone. The folder holds log.jsonl, loss.png and a checkpoint that
``ck.models.load`` reads.
"""

import argparse
import pathlib
import pydoc_data.topics
import time

import numpy as np

import ckernels as ck
from ckernels.training import TextBatches, Trainer, plot_losses

CONFIG = ck.models.Config(
    hidden_size=128, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3, intermediate_size=344,
    vocab_size=256, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True,
)  # fmt: skip
OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}


def read_text():
    """The help pages of Python as bytes: 256 different tokens."""
    topics = pydoc_data.topics.topics
    return np.frombuffer("\n\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8)


def train_ours(params, text, arguments):
    """Losses of every step, and the model."""
    model = ck.models.Model(CONFIG, {name: value.copy() for name, value in params.items()})
    batches = TextBatches(text, arguments.batch, arguments.tokens, arguments.seed)
    log = arguments.out / "log.jsonl"
    log.unlink(missing_ok=True)
    trainer = Trainer(model, ck.optim.AdamW(model.params, **OPTIONS), batches, max_norm=1.0, log=log)
    start = time.perf_counter()
    trainer.run(arguments.steps)
    print(f"ckernels: loss {np.mean(trainer.losses[-20:]):.4f}, {time.perf_counter() - start:.1f} s")
    trainer.save(arguments.out / "checkpoint")
    return trainer.losses, model


def train_pytorch(params, text, arguments):
    """The same with transformers and torch.optim; None where they are not installed."""
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        print(f"PyTorch: left out, {error}")
        return None
    module = LlamaForCausalLM(LlamaConfig(**CONFIG.to_hf()))
    state = {name: torch.tensor(value) for name, value in params.items()}
    module.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    optimizer = torch.optim.AdamW(module.parameters(), **OPTIONS)
    batches = TextBatches(text, arguments.batch, arguments.tokens, arguments.seed)
    losses, start = [], time.perf_counter()
    for _ in range(arguments.steps):
        ids, targets = (torch.from_numpy(array) for array in next(batches))
        optimizer.zero_grad()
        logits = module(ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    print(f"PyTorch:  loss {np.mean(losses[-20:]):.4f}, {time.perf_counter() - start:.1f} s")
    return losses


def main(argv=None):
    """Train, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("character_model"))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)

    text = read_text()
    params = ck.models.Model(CONFIG, seed=arguments.seed).params
    ours, model = train_ours(params, text, arguments)
    theirs = train_pytorch(params, text, arguments)
    curves = {"ckernels": ours} if theirs is None else {"ckernels": ours, "PyTorch": theirs}
    plot_losses(arguments.out / "loss.png", curves, title=f"{text.size:,} characters of Python's help")
    if theirs is not None:
        apart = np.abs(np.subtract(ours, theirs))
        print(f"losses apart: {apart[0]:.1e} at step 1, at most {apart.max():.1e}")
    prompt = np.frombuffer(b"The import statement ", np.uint8).astype(np.int64)
    tokens = bytes(model.generate(prompt, max_new_tokens=120))
    print(f"{prompt.astype(np.uint8).tobytes().decode()}{tokens.decode(errors='replace')}")
    print(f"see {arguments.out / 'loss.png'}")


if __name__ == "__main__":
    main()
