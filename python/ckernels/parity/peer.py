"""The peer of layers and models: transformers' Llama in float32, from our configuration and parameters."""

from __future__ import annotations

import importlib.util

import numpy as np

from .exact import LAYER_STAGES, Run, d_name


def missing(*packages):
    """Why the peer cannot be had here, or "" where it can.

    Parameters
    ----------
    *packages : str
        What is needed; torch and transformers unless given.
    """
    absent = [name for name in packages or ("torch", "transformers") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed (pip install 'ckernels[parity]')" if absent else ""


def llama(config, params, dtype="float32"):
    """Build a ``LlamaForCausalLM`` with the given parameters.

    Parameters
    ----------
    config : ckernels.models.Config
        The configuration.
    params : dict of str to array
        Hugging Face names. They are copied.
    dtype : str
        Of the module.

    Returns
    -------
    transformers.LlamaForCausalLM
        In eval mode, with transformers' default attention.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {name: value for name, value in config.to_hf().items() if name not in ("model_type", "architectures")}
    fields |= dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)  # no row of the embedding is special
    # The library's generator is drawn from and put back: building a peer must not change what a caller draws next.
    with torch.random.fork_rng(devices=[]):
        module = LlamaForCausalLM(LlamaConfig(**fields, attention_dropout=0.0)).to(getattr(torch, dtype)).eval()
    state = {name: torch.tensor(np.asarray(value)) for name, value in params.items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    module.load_state_dict(state, strict=True)
    return module


def layer(config, params, x, dy, *, positions=None, dtype="float32"):
    """One decoder layer of transformers, forward and backward, stage by stage.

    Parameters
    ----------
    config : ckernels.models.Config
        The configuration.
    params : dict of str to array
        Names relative to the layer.
    x, dy : array
        Input and gradient of the output, ``[B, T, C]``.
    positions : array of int, optional
        ``[T]`` or ``[B, T]``.
    dtype : str
        Of the module.

    Returns
    -------
    Run
        As `exact.layer` returns it.
    """
    import dataclasses

    import torch

    from .trace import Recorder, hooked

    one = dataclasses.replace(config, num_hidden_layers=1, vocab_size=2, tie_word_embeddings=True)
    whole = {f"model.layers.0.{name}": value for name, value in params.items()}
    whole["model.embed_tokens.weight"] = np.ones((2, config.hidden_size), np.float32)
    whole["model.norm.weight"] = np.ones(config.hidden_size, np.float32)
    module = llama(one, whole, dtype)
    start = torch.tensor(np.asarray(x)).to(getattr(torch, dtype)).requires_grad_()
    placed = None if positions is None else torch.tensor(np.atleast_2d(positions))
    recorder = Recorder()
    with hooked(module, recorder):
        module.model(inputs_embeds=start, position_ids=placed, use_cache=False)
    stages = {name: recorder.tensors[f"layers.0.{name}"] for name in LAYER_STAGES}
    inner = module.model.layers[0]
    weights = dict(inner.named_parameters())
    upstream = torch.tensor(np.asarray(dy)).to(start.dtype)
    found = torch.autograd.grad(stages["output"], [*stages.values(), *weights.values(), start], upstream)
    run = Run(dx=found[-1].numpy())
    run.stages = {name: recorder.array(f"layers.0.{name}", tensor) for name, tensor in stages.items()}
    for name, gradient in zip(stages, found, strict=False):
        run.stages[d_name(name)] = recorder.array(f"layers.0.{name}", gradient)
    run.grads = {name: gradient.numpy() for name, gradient in zip(weights, found[len(stages) :], strict=False)}
    return run
