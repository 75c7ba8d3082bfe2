"""Traces: the named stages of one run of a model, in memory and as a folder that any language can write.

The folder holds ``manifest.json`` and two safetensors files, ``arrays.safetensors`` and ``inputs.safetensors``. The
manifest lists every array with its shape and dtype, so that a truncated or foreign file is told apart from a good one.
``docs/stages.md`` has the names of the stages, their equations and their shapes, ``docs/traces.md`` the format.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .digests import digest

FORMAT = "ckernels-trace"
SCHEMA = 1
_FILES = {"arrays": "arrays.safetensors", "inputs": "inputs.safetensors"}


class Trace:
    """The stages of one run, by name, with what went in.

    Parameters
    ----------
    config : object, dict or None
        The configuration of the model, with the field names of a Hugging Face config. It is kept as a dict of what JSON
        can hold.
    arrays : dict of str to array
        Stages: ``embedding``, ``layers.<i>.<stage>``, ``final_norm``, ``logits``, ``loss``, their gradients
        (``layers.<i>.d_<stage>``) and gradients of parameters (``d_<parameter name>``).
    inputs : dict of str to array, optional
        ``ids``, ``targets``, ``positions``, or ``x`` for a single layer.

    Examples
    --------
    >>> import numpy as np
    >>> trace = Trace({"hidden_size": 4}, arrays={"layers.0.ln1": np.zeros((1, 3, 4), np.float32)})
    >>> trace
    Trace(1 arrays, inputs: none)
    >>> trace.arrays["layers.0.ln1"].shape
    (1, 3, 4)
    """

    def __init__(self, config=None, arrays=None, inputs=None):
        self.config = _plain_config(config)
        self.arrays = _checked_arrays("arrays", arrays)
        self.inputs = _checked_arrays("inputs", inputs)
        self._hashes = {}

    def __repr__(self):
        """Say how many arrays there are, and the names of the inputs."""
        return f"Trace({len(self.arrays)} arrays, inputs: {', '.join(self.inputs) or 'none'})"

    @property
    def hashes(self):
        """Shape, dtype, sha256, RMS and maximum of every array; all that is left of a trace saved as hashes."""
        return self._hashes or {name: digest(array) for name, array in self.arrays.items()}

    def save(self, folder, *, hashes=False):
        """Write the folder.

        Parameters
        ----------
        folder : path
            Made if it is missing. A folder with other files in it is refused; an earlier trace in it is replaced.
        hashes : bool
            Leave the arrays out and keep what `hashes` says of them: a few kilobytes for a model of any size.

        Raises
        ------
        FileExistsError
            The folder holds something that is not a trace.
        ImportError
            The ``safetensors`` package is not installed.
        OSError
            It cannot be written.
        """
        save_file = _safetensors().numpy.save_file
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        ours = {"manifest.json", "manifest.json.part", *_FILES.values()}
        foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in ours)
        if foreign:
            raise FileExistsError(f"{folder}: '{foreign[0]}' is no part of a trace; choose an empty folder")
        kept = {"arrays": {} if hashes else self.arrays, "inputs": self.inputs}
        manifest = {"format": FORMAT, "schema": SCHEMA, "config": self.config}
        if hashes or self._hashes:
            manifest["hashes"] = self.hashes
        for part in _FILES:
            manifest[part] = {
                name: {"shape": list(array.shape), "dtype": array.dtype.name} for name, array in kept[part].items()
            }
        # The manifest goes first and comes back last: a save that was cut short leaves no folder that loads.
        (folder / "manifest.json").unlink(missing_ok=True)
        for part, name in _FILES.items():
            plain = {key: np.ascontiguousarray(array).reshape(array.shape) for key, array in kept[part].items()}
            save_file(plain, folder / name)
        pending = folder / "manifest.json.part"
        pending.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        os.replace(pending, folder / "manifest.json")

    @classmethod
    def load(cls, folder):
        """Read a folder that `save`, or a program in any language, has written.

        Parameters
        ----------
        folder : path
            The folder with ``manifest.json``.

        Returns
        -------
        Trace

        Raises
        ------
        FileNotFoundError
            A file is missing.
        ValueError
            A file is damaged, of an unknown schema, or does not hold what the manifest says; the text names the file
            and the place.
        """
        folder = Path(folder)
        place = folder / "manifest.json"
        manifest = _read_manifest(place)
        parts = {part: _read_arrays(folder / name, place, part, manifest[part]) for part, name in _FILES.items()}
        trace = cls(manifest["config"], **parts)
        trace._hashes = manifest.get("hashes", {})
        return trace


def _safetensors():
    """Import the package that reads and writes arrays; the ImportError says what to install."""
    with contextlib.suppress(ImportError):
        import ml_dtypes  # noqa: F401  (gives NumPy the bfloat16 that a file may hold)
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("a trace's folder needs safetensors: pip install 'ckernels[models]'") from None
    return safetensors


def _plain_config(config):
    """The configuration as a dict of what JSON can hold; anything else in it is left out."""
    if config is None:
        return {}
    if isinstance(config, Mapping):
        fields = dict(config)
    elif hasattr(config, "to_hf"):
        fields = config.to_hf()
    elif hasattr(config, "to_dict"):
        fields = config.to_dict()
    elif dataclasses.is_dataclass(config):
        fields = dataclasses.asdict(config)
    else:
        raise TypeError(f"Trace: 'config' of type {type(config).__name__} is neither a dict nor a configuration")

    kept = {}
    for name, value in fields.items():
        # Through JSON and back, so that a trace in memory and the one read from its folder have the same config.
        with contextlib.suppress(TypeError, ValueError):
            kept[str(name)] = json.loads(json.dumps(value, allow_nan=False))
    return kept


def _checked_arrays(what, arrays):
    """Arrays by name, as NumPy arrays of numbers."""
    if arrays is None:
        return {}
    if not isinstance(arrays, Mapping):
        raise TypeError(f"Trace: '{what}' of type {type(arrays).__name__} is not a dict of arrays")
    checked = {}
    for name, value in arrays.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"Trace: '{what}' has the key {name!r}; names are non-empty strings")
        if hasattr(value, "detach"):  # a torch tensor, told without importing torch
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array  # which holds every one of them
        if array.dtype.kind not in "fiub":
            raise TypeError(f"Trace: {what}['{name}'] of dtype {array.dtype} does not hold numbers")
        checked[name] = array
    return checked


def _read_manifest(place):
    """The manifest, checked for everything that `Trace.load` relies on."""
    try:
        manifest = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{place}: not there; the folder is no trace, or its writing was cut short") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{place}: nested too deeply") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{place}: 'format' is not '{FORMAT}'")
    if manifest.get("schema") != SCHEMA:
        raise ValueError(f"{place}: schema {manifest.get('schema')!r} is not known; this version reads {SCHEMA}")
    for part in ("config", *_FILES):
        if not isinstance(manifest.get(part), dict):
            raise ValueError(f"{place}: '{part}' is not an object")
    if not isinstance(manifest.get("hashes", {}), dict):
        raise ValueError(f"{place}: 'hashes' is not an object")
    for name, entry in manifest.get("hashes", {}).items():
        _check_entry(f"{place}: hashes['{name}']", entry)
        if not isinstance(entry.get("sha256"), str):
            raise ValueError(f"{place}: hashes['{name}']: needs 'sha256'")
    for part in _FILES:
        for name, entry in manifest[part].items():
            _check_entry(f"{place}: {part}['{name}']", entry)
    return manifest


def _check_entry(where, entry):
    shape = entry.get("shape") if isinstance(entry, dict) else None
    whole = isinstance(shape, list) and all(type(extent) is int and extent >= 0 for extent in shape)
    if not whole or not isinstance(entry.get("dtype"), str):
        raise ValueError(f"{where}: needs 'shape', a list of whole numbers, and 'dtype', a name")


def _read_arrays(file, place, part, entries):
    """The arrays of one safetensors file, each as the manifest describes it."""
    package = _safetensors()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not there, though {place.name} lists its arrays")
    try:
        found = package.numpy.load_file(file)
    except (package.SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"{file}: not a readable safetensors file: {error}") from None
    for name, entry in entries.items():
        if name not in found:
            raise ValueError(f"{file}: the array '{name}', which {place.name} lists, is missing")
        have = f"{found[name].dtype.name} {list(found[name].shape)}"
        want = f"{entry['dtype']} {entry['shape']}"
        if have != want:
            raise ValueError(f"{file}: '{name}' is {have}; {place.name} says {want}")
    extra = found.keys() - entries.keys()
    if extra:
        raise ValueError(f"{file}: the array '{min(extra)}' is not listed in {place.name}")
    return {name: found[name] for name in entries}


# --- a trace of a Hugging Face module ------------------------------------------------------------------------------


class Recorder:
    """Holds the captured tensors and how each is turned into the shape of its stage."""

    def __init__(self):
        self.tensors, self.shapers = {}, {}

    def put(self, name, tensor, shaper=None):
        self.tensors[name] = tensor
        self.shapers[name] = shaper

    def array(self, name, tensor):
        """A tensor of a stage, or its gradient, in the shape of the stage."""
        shaper = self.shapers[name]
        return _to_numpy(tensor if shaper is None else shaper(tensor))


def _to_numpy(tensor):
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    return np.array(tensor.numpy(), order="C")


def _heads(count):
    """``[B, T, count·D]`` to ``[B, count, T, D]``."""
    return lambda tensor: tensor.unflatten(-1, (count, -1)).transpose(1, 2)


def _tracing_attention(recorder, prefixes):
    """An attention function for transformers that does what its eager one does, and records what it computes."""
    import torch

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        prefix = prefixes[module]
        scaling = module.head_dim**-0.5 if scaling is None else scaling
        group = query.shape[1] // key.shape[1]
        keys, values = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        scores = torch.matmul(query, keys.transpose(2, 3)) * scaling
        visible = scores if attention_mask is None else scores + attention_mask
        probs = torch.softmax(visible, dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
        attn = torch.matmul(probs, values)
        for name, tensor in (("q_rope", query), ("k_rope", key), ("scores", scores), ("probs", probs), ("attn", attn)):
            recorder.put(prefix + name, tensor)
        return attn.transpose(1, 2).contiguous(), probs

    return attention


def _hook_layer(layer, prefix, recorder, config):
    """Register the hooks of one decoder layer; returns their handles."""
    attention, mlp = layer.self_attn, layer.mlp

    def output(module, name, shaper=None):
        def hook(_module, _args, result):
            recorder.put(prefix + name, result[0] if isinstance(result, tuple) else result, shaper)

        return module.register_forward_hook(hook)

    def argument(module, name):
        def hook(_module, args, kwargs):
            recorder.put(prefix + name, args[0] if args else kwargs["hidden_states"])

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    kv_heads = config.num_key_value_heads
    return [
        output(layer.input_layernorm, "ln1"),
        output(attention.q_proj, "q", _heads(config.num_attention_heads)),
        output(attention.k_proj, "k", _heads(kv_heads)),
        output(attention.v_proj, "v", _heads(kv_heads)),
        output(attention.o_proj, "proj"),
        argument(layer.post_attention_layernorm, "residual1"),
        output(layer.post_attention_layernorm, "ln2"),
        output(mlp.gate_proj, "gate"),
        output(mlp.up_proj, "up"),
        argument(mlp.down_proj, "act"),
        output(mlp.down_proj, "down"),
        output(layer, "output"),
    ]


@contextlib.contextmanager
def hooked(module, recorder):
    """A Llama module with hooks on every stage and the recording attention, left as it was found."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = module.config
    prefixes = {layer.self_attn: f"layers.{i}." for i, layer in enumerate(module.model.layers)}
    name = f"ckernels_trace_{id(recorder)}"
    training = {part: part.training for part in module.modules()}
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    before = config._attn_implementation
    handles = []

    def keep(stage):
        return lambda _module, _args, result: recorder.put(stage, result)

    try:
        handles.append(module.model.embed_tokens.register_forward_hook(keep("embedding")))
        for index, layer in enumerate(module.model.layers):
            handles += _hook_layer(layer, f"layers.{index}.", recorder, config)
        handles.append(module.model.norm.register_forward_hook(keep("final_norm")))
        handles.append(module.lm_head.register_forward_hook(keep("logits")))
        ALL_ATTENTION_FUNCTIONS.register(name, _tracing_attention(recorder, prefixes))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        config._attn_implementation = name
        module.eval()
        yield
    finally:
        config._attn_implementation = before
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)
        for handle in handles:
            handle.remove()
        for part, value in training.items():
            part.training = value
        for parameter, value in flags.items():
            parameter.requires_grad_(value)


def _stage_order(names):
    """Stage names in the order of computation, as the model computes them."""
    from .exact import LAYER_STAGES

    rank = {"embedding": (-1, 0), "final_norm": (1 << 30, 0), "logits": (1 << 30, 1), "loss": (1 << 30, 2)}

    def key(name):
        if name in rank:
            return rank[name]
        _, index, stage = name.split(".")
        return int(index), LAYER_STAGES.index(stage)

    return sorted(names, key=key)


def trace_torch(hf_module, ids, targets=None):
    """Run a ``LlamaForCausalLM`` of transformers and record every stage.

    The attention is computed eagerly whatever the module is set to, because no other implementation has scores to
    show; everything else is the module's own code. The module is left as it was found: hooks, attention setting,
    ``training``, ``requires_grad`` and every ``.grad``.

    Parameters
    ----------
    hf_module : transformers.LlamaForCausalLM
        In any floating dtype, on the CPU or a device.
    ids : array of int
        ``[B, T]`` or ``[T]``.
    targets : array of int, optional
        The shape of `ids`; -100 is ignored. With them the trace has the loss and every gradient.

    Returns
    -------
    Trace
        Stages with the names of ``docs/stages.md``, the batch axis always there. bfloat16 arrays come as float32.

    Raises
    ------
    TypeError
        The module has not the parts of a Llama.
    ValueError
        `targets` do not fit `ids`.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError("trace_torch() needs PyTorch: pip install 'ckernels[parity]'") from error

    for part in ("model.embed_tokens", "model.layers", "model.norm", "lm_head"):
        try:
            torch.nn.Module.get_submodule(hf_module, part)
        except (AttributeError, TypeError):
            raise TypeError(f"trace_torch(): {type(hf_module).__name__} has no '{part}', so it is no Llama") from None
    device = next(hf_module.parameters()).device
    ids = torch.as_tensor(np.atleast_2d(np.asarray(ids)), device=device).long()
    if targets is not None:
        targets = torch.as_tensor(np.atleast_2d(np.asarray(targets)), device=device).long()
        if targets.shape != ids.shape:
            raise ValueError(
                f"trace_torch(): 'targets' of shape {list(targets.shape)} does not fit 'ids' of shape {list(ids.shape)}"
            )
    recorder = Recorder()
    gradients = {}
    with hooked(hf_module, recorder), torch.set_grad_enabled(targets is not None):
        if targets is not None:
            hf_module.requires_grad_(True)
        logits = hf_module(input_ids=ids, use_cache=False).logits
        if targets is not None:
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)), targets.flatten()
            )
            gradients = _gradients(loss, recorder, hf_module)
            recorder.put("loss", loss)
    arrays = {name: recorder.array(name, recorder.tensors[name]) for name in _stage_order(recorder.tensors)}
    arrays.update(gradients)
    inputs = {"ids": ids.cpu().numpy()} | ({} if targets is None else {"targets": targets.cpu().numpy()})
    return Trace(hf_module.config, arrays, inputs)


def _gradients(loss, recorder, module):
    """The gradients of all recorded stages and of the parameters, without touching ``.grad``."""
    import torch

    from .exact import d_name

    names = list(recorder.tensors)
    parameters = dict(module.named_parameters())  # a tied head appears once, under the embedding's name
    found = torch.autograd.grad(loss, [recorder.tensors[name] for name in names] + list(parameters.values()))
    result = {d_name(name): recorder.array(name, grad) for name, grad in zip(names, found, strict=False)}
    for name, grad in zip(parameters, found[len(names) :], strict=True):
        result[f"d_{name}"] = _to_numpy(grad)
    return result
