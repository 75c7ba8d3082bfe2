"""Models from files, and from a Hugging Face module in memory."""

import os

import numpy as np

from .config import Config
from .model import Model

__all__ = ["from_torch", "load"]


def load(path, dtype="float32"):
    """Read a model from a GGUF file, or from a folder with safetensors as Hugging Face lays it out.

    Parameters
    ----------
    path : str or path-like
        A ``.gguf`` file; or a folder with ``config.json`` and ``model.safetensors``, or its shards and their index.
    dtype : "float32"
        What the parameters become: quantised and 16-bit weights are widened.

    Returns
    -------
    Model
        ``model.report`` says where each parameter came from.

    Raises
    ------
    ImportError
        The package that reads this format is missing; the text says how to install it.
    ValueError, EOFError, OverflowError, MemoryError, OSError
        The file is damaged or holds what is not supported.  The text has the file's name, the place and the reason.
    """
    from ckernels.io import read_gguf, read_safetensors

    try:
        wanted = None if dtype is None else np.dtype(dtype)
    except TypeError:
        raise TypeError(f"load(): 'dtype' {dtype!r} is no data type") from None
    if wanted != np.float32:
        raise ValueError(f"load(): dtype={dtype!r} is not supported; supported: 'float32'")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"load(): 'path' must be a file or folder, not {type(path).__name__}")
    path = os.fspath(path)
    config, params, report = read_safetensors(path) if os.path.isdir(path) else read_gguf(path)
    model = Model(config, params)
    model.report = report
    return model


def from_torch(hf_module):
    """Copy the config and the weights of a Hugging Face ``LlamaForCausalLM``.

    Parameters
    ----------
    hf_module : transformers.LlamaForCausalLM
        On any device; float32, or a 16-bit type, which is widened.

    Returns
    -------
    Model
        With memory of its own: training the one leaves the other alone.

    Raises
    ------
    TypeError
        Another class of model, or weights in a type that float32 cannot hold exactly; the text names it.
    ValueError
        The config asks for arithmetic that is not supported; the text names the field.
    """
    if not any(kind.__name__ == "LlamaForCausalLM" for kind in type(hf_module).__mro__):
        raise TypeError(f"from_torch(): {type(hf_module).__name__} is not supported; supported: LlamaForCausalLM")
    config = Config.from_hf(hf_module.config)
    params = {name: _copied(name, tensor) for name, tensor in hf_module.state_dict().items()}
    if config.tie_word_embeddings:
        head = params.pop("lm_head.weight", None)
        if head is not None and not np.array_equal(head, params["model.embed_tokens.weight"], equal_nan=True):
            raise ValueError("from_torch(): tie_word_embeddings=True, but lm_head.weight differs from the embedding")
    return Model(config, params)


def _copied(name, tensor):
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in ("float32", "float16", "bfloat16"):
        raise TypeError(f"from_torch(): {name} is {kind}; float32 cannot hold it exactly, convert the module first")
    return np.array(tensor.detach().cpu().float().numpy(), order="C")
