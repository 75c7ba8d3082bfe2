"""Reading models from a folder of safetensors files, as Hugging Face lays it out."""

import json
import mmap
import os
import struct

import numpy as np

from ..models.config import Config
from ..models.mapping import places, shapes_of
from ..models.parameters import check_parameters
from .report import TensorReport

__all__ = ["read_safetensors"]

_CONFIG, _SINGLE, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def read_safetensors(folder, dtype=np.float32):
    """Read a model from a folder with ``config.json`` and ``model.safetensors``, or its shards and their index.

    Parameters
    ----------
    folder : str or path-like
        Where those files lie.
    dtype : dtype, optional
        What the parameters become; None: what is stored.

    Returns
    -------
    config : Config
    params : dict
        Parameter name -> array; 16-bit weights are widened, which is exact, before they are anything else.
    report : TensorReport

    Raises
    ------
    ImportError
        The ``safetensors`` package is not installed; the text says how to install it.
    ValueError, EOFError, OSError
        A file is absent or damaged, or the config asks for what is not supported.  The text has the file's name and the
        reason.
    """
    folder = os.fspath(folder)
    config = _config(folder)
    place = _placed(folder)
    found, ignored = places(config, place)
    files = {path: _Shard(path) for path in dict.fromkeys(place.values())}
    for name, path in place.items():
        if name not in files[path].entries:
            raise ValueError(f"{path}: missing {name}, which {_INDEX} places there")
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_word_embeddings else {}
    copies = {name: found.pop(name) for name in tied if name in found}
    check_parameters(config, shapes_of(found, lambda name: files[place[name]].shape(name), folder), folder)
    params = {}
    for name, part in found.items():
        array = part.take(files[place[part.source]].read(part.source, dtype is None))
        params[name] = np.array(array, dtype, order="C") if part.how or dtype is not None else array
    for name, copy in copies.items():
        other = found[tied[name]].source
        if not np.array_equal(files[place[copy.source]].read(copy.source), files[place[other]].read(other)):
            raise ValueError(f"{folder}: {name} differs from {tied[name]}, yet {_CONFIG} says tie_word_embeddings=true")
    kinds = {name: files[path].entries[name]["dtype"] for name, path in place.items()}
    loaded = {name: (part.source, kinds[part.source]) for name, part in found.items()}
    changed = {name: part.how for name, part in found.items() if part.how}
    return config, params, TensorReport(folder, loaded, tied, ignored, changed)


def _config(folder):
    path = os.path.join(folder, _CONFIG)
    try:
        return Config.from_hf(_json(path))
    except (ValueError, TypeError) as error:
        raise ValueError(str(error) if str(error).startswith(path) else f"{path}: {error}") from None


def _placed(folder):
    """Return tensor name -> path of the file that holds it."""
    single, index = os.path.join(folder, _SINGLE), os.path.join(folder, _INDEX)
    if os.path.exists(single):
        return dict.fromkeys(_Shard(single).entries, single)
    if not os.path.exists(index):
        raise FileNotFoundError(f"{folder}: neither {_SINGLE} nor {_INDEX} is there")
    table = _json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"{index}: 'weight_map' must map tensor names to file names")
    for name in table.values():
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise ValueError(f"{index}: file name {name!r} leaves the folder")
    return {tensor: os.path.join(folder, name) for tensor, name in table.items()}


def _json(path):
    with open(path, "rb") as file:
        text = file.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object was expected, not {type(value).__name__}")
    return value


class _Shard:
    """One safetensors file, checked by the package and then memory-mapped."""

    def __init__(self, path):
        self.path = path
        try:
            import safetensors
        except ImportError as error:
            raise ImportError("reading safetensors needs its package: pip install 'ckernels[models]'") from error
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise EOFError(f"{path}: byte 0: the header's length needs 8 bytes, the file has {size}")
            try:
                # Checks that the header is sound and that the tensors cover the file exactly.
                with safetensors.safe_open(path, framework="np"):
                    pass
            except safetensors.SafetensorError as error:
                raise ValueError(f"{path}: {error}") from None
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (length,) = struct.unpack_from("<Q", self._map)
        self._data = 8 + length
        self.entries = json.loads(self._map[8 : self._data])
        self.entries.pop("__metadata__", None)

    def shape(self, name):
        return tuple(self.entries[name]["shape"])

    def read(self, name, as_stored=False):
        """Return one tensor, in new memory: float32, or as it is stored."""
        entry = self.entries[name]
        if entry["dtype"] not in _STORED:
            known = ", ".join(_STORED)
            raise ValueError(f"{self.path}: tensor {name!r} is stored as {entry['dtype']}; supported: {known}")
        start, end = entry["data_offsets"]
        stored = _STORED[entry["dtype"]]
        raw = np.frombuffer(self._map, stored, (end - start) // stored.itemsize, self._data + start)
        if as_stored:
            kind = stored
            if entry["dtype"] == "BF16":
                import ml_dtypes

                kind = np.dtype(ml_dtypes.bfloat16)
            return raw.view(kind).reshape(self.shape(name)).copy()
        if entry["dtype"] == "BF16":  # the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32).reshape(self.shape(name))
