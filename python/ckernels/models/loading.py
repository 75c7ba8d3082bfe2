"""Models from files, and from a Hugging Face module in memory."""

import os

import numpy as np

from ckernels.nn.decoder import DTYPES

from .config import Config
from .families import FAMILIES
from .mapping import places, shapes_of
from .model import Model
from .parameters import check_parameters

__all__ = ["from_torch", "load"]


def load(path, dtype="float32"):
    """Read a model from a GGUF file, or from a folder with safetensors as Hugging Face lays it out.

    Parameters
    ----------
    path : str or path-like
        A ``.gguf`` file; or a folder with ``config.json`` and ``model.safetensors``, or its shards and their index.
    dtype : "float32", "bfloat16", "float16" or None
        What the parameters become.  Quantised weights are dequantised; what is stored wider is rounded to nearest even.
        None: as stored, for 16-bit weights of safetensors; quantised ones become float32.

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

    wanted = _dtype("load()", dtype)
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"load(): 'path' must be a file or folder, not {type(path).__name__}")
    path = os.fspath(path)
    config, params, report = read_safetensors(path, wanted) if os.path.isdir(path) else read_gguf(path)
    if wanted is not None:
        for name, value in params.items():
            params[name] = value if value.dtype == wanted else value.astype(wanted)
    model = Model(config, params)
    model.report = report
    return model


def from_torch(hf_module, dtype="float32"):
    """Copy the config and the weights of a causal language model of transformers.

    Parameters
    ----------
    hf_module : torch.nn.Module
        On any device; of one of the families of docs/models.md, such as ``LlamaForCausalLM``.
    dtype : "float32", "bfloat16", "float16" or None
        What the parameters become; None: what they are.  Narrower than they are: rounded to nearest even.

    Returns
    -------
    Model
        With memory of its own: training the one leaves the other alone.  ``model.report`` says what became of every
        tensor: copied, transposed, taken apart, tied.

    Raises
    ------
    TypeError
        Another class of model, or weights in a type that float32 cannot hold exactly; the text names it.
    ValueError
        The config asks for arithmetic that is not supported, or tensors are missing or left over; the text names them.
    """
    from ckernels.io.report import TensorReport

    known = [family.architecture for family in FAMILIES.values()]
    if not any(kind.__name__ in known for kind in type(hf_module).__mro__):
        raise TypeError(f"from_torch(): {type(hf_module).__name__} is not supported; supported: {', '.join(known)}")
    config = Config.from_hf(hf_module.config)
    tensors = hf_module.state_dict()
    found, ignored = places(config, tensors)
    shapes = shapes_of(found, lambda name: tensors[name].shape, "from_torch()")
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_word_embeddings else {}
    for name in tied:
        shapes.pop(name, None)
        copy = found.pop(name, None)
        if copy is not None and not tensors[copy.source].equal(tensors[found[tied[name]].source]):
            raise ValueError("from_torch(): tie_word_embeddings=True, but lm_head.weight differs from the embedding")
    check_parameters(config, shapes, "from_torch()")
    wanted = _dtype("from_torch()", dtype)
    params = {name: _copied(name, place, tensors[place.source], wanted) for name, place in found.items()}
    model = Model(config, params)
    kinds = {name: str(tensors[place.source].dtype).removeprefix("torch.") for name, place in found.items()}
    model.report = TensorReport(
        type(hf_module).__name__,
        {name: (place.source, kinds[name]) for name, place in found.items()},
        tied,
        ignored,
        {name: place.how for name, place in found.items() if place.how},
    )
    return model


def _dtype(call, dtype):
    """Return a dtype that a model can have, or None."""
    if dtype is None:
        return None
    if str(dtype) == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    try:
        wanted = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{call}: 'dtype' {dtype!r} is no data type") from None
    if wanted.name not in DTYPES:
        raise ValueError(f"{call}: dtype={dtype!r} is not supported; supported: {', '.join(map(repr, DTYPES))}")
    return wanted


def _copied(name, place, tensor, wanted):
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in DTYPES:
        reason = "float32 cannot hold it exactly, convert the module first"
        raise TypeError(f"from_torch(): {place.source} is {kind}; {reason}")
    array = place.take(tensor.detach().cpu().float().numpy())
    return np.array(array, _dtype("from_torch()", kind) if wanted is None else wanted, order="C")
