"""Checkpoints: a folder that ``ck.models.load`` reads as a model, with optimizer and counters beside it."""

import json
import os
import pathlib
import shutil

import numpy as np

__all__ = ["load_checkpoint", "save_checkpoint"]

FORMAT, SCHEMA = "ckernels-checkpoint", 1
_MODEL, _STATE, _MANIFEST = "model.safetensors", "optimizer.safetensors", "training.json"


def save_checkpoint(folder, model, optimizer, state=None):
    """Write weights, optimizer state and whatever else a training must remember.

    Parameters
    ----------
    folder : path
        Made anew: an earlier checkpoint of that name is replaced once this one is complete.
    model : ckernels.models.Model
        ``config.json`` and ``model.safetensors`` are written as Hugging Face lays them out.
    optimizer : optimizer of ckernels.optim
        Its arrays go to ``optimizer.safetensors``, its options to ``training.json``.
    state : dict, optional
        What JSON can hold: the step, the state of the batches.

    Raises
    ------
    ImportError
        The ``safetensors`` package is not installed.
    FileExistsError
        The folder is there and holds no checkpoint.
    OSError
        It cannot be written; an earlier checkpoint is as it was.
    """
    save_file = _safetensors().save_file
    folder = pathlib.Path(folder)
    if folder.exists() and not (folder / _MANIFEST).is_file():
        raise FileExistsError(f"{folder}: no checkpoint, so it is not replaced; choose another folder")
    part, before = (folder.with_name(f"{folder.name}.{word}") for word in ("part", "before"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    told = optimizer.state_dict()
    arrays = {f"{index}.{name}": np.ascontiguousarray(value).reshape(np.shape(value))
              for index, entry in told["state"].items() for name, value in entry.items()}  # fmt: skip
    save_file(dict(model.params), part / _MODEL, metadata={"format": "pt"})
    save_file(arrays, part / _STATE)
    manifest = {"format": FORMAT, "schema": SCHEMA, "param_groups": told["param_groups"], "state": state or {}}
    (part / "config.json").write_text(json.dumps(model.config.to_hf(), indent=1) + "\n", encoding="utf-8")
    (part / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        os.replace(folder, before)
    os.replace(part, folder)
    shutil.rmtree(before, ignore_errors=True)


def load_checkpoint(folder, model, optimizer):
    """Read what :func:`save_checkpoint` wrote into a model and its optimizer, to the bit.

    Parameters
    ----------
    folder : path
    model : ckernels.models.Model
        Of the same shape; its arrays are overwritten in place.
    optimizer : optimizer of ckernels.optim
        Made for the model's parameters.

    Returns
    -------
    dict
        The ``state`` given to :func:`save_checkpoint`.

    Raises
    ------
    ImportError
        The ``safetensors`` package is not installed.
    FileNotFoundError
        A file is missing.
    ValueError
        A file is damaged, or does not fit the model or the optimizer. Nothing has been changed.
    """
    folder = pathlib.Path(folder)
    manifest = _manifest(folder / _MANIFEST)
    weights, arrays = _read(folder / _MODEL), _read(folder / _STATE)
    if weights.keys() != model.params.keys():
        odd = sorted(weights.keys() ^ model.params.keys())
        raise ValueError(f"{folder / _MODEL}: '{odd[0]}' is missing, or the model has no use for it")
    for name, value in weights.items():
        have = model.params[name]
        if value.shape != have.shape or value.dtype != have.dtype:
            raise ValueError(
                f"{folder / _MODEL}: {name} is {value.dtype} of shape {value.shape}, the model's {have.dtype} of "
                f"shape {have.shape}"
            )
    state = {}
    for key, value in arrays.items():
        index, _, name = key.partition(".")
        if not index.isdigit():
            raise ValueError(f"{folder / _STATE}: '{key}' is no array of an optimizer's state")
        state.setdefault(int(index), {})[name] = value
    groups = [dict(group) for group in manifest["param_groups"]]
    for group in groups:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}: {error}") from None
    for name, value in weights.items():
        model.params[name][...] = value
    return manifest["state"]


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("a checkpoint needs safetensors: pip install 'ckernels[training]'") from None
    return safetensors.numpy


def _read(path):
    """All arrays of a file."""
    load_file = _safetensors().load_file
    import safetensors

    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; the folder is no checkpoint, or a part of one")
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: {error}") from None


def _manifest(path):
    """What ``training.json`` holds, checked for all that is read from it."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not there; the folder is no checkpoint") from None
    except ValueError as error:
        raise ValueError(f"{path}: no valid JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not a {FORMAT} of schema {SCHEMA}")
    groups, state = manifest.get("param_groups"), manifest.get("state")
    if not isinstance(state, dict) or not (isinstance(groups, list) and all(isinstance(g, dict) for g in groups)):
        raise ValueError(f"{path}: 'param_groups' must be a list of objects and 'state' an object")
    return manifest
