"""Reading llama models from GGUF files.

The file is memory-mapped.  Its header is walked here, with every length checked against the end of the file before it
is used, because a damaged header must end in a sentence and not in a crash; the ``gguf`` package, which knows the
storage types, dequantises the tensors.
"""

import dataclasses
import math
import mmap
import os
import struct

import numpy as np

from ..models.config import Config
from ..models.parameters import check_parameters
from .report import TensorReport

__all__ = ["GGUFFile", "read_gguf", "unpermute_rows"]

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SMALLEST_FIELD = 8 + 4 + 1  # an empty key, its type, one byte
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # an empty name, no dimension, type, offset
_MOST_DIMENSIONS = 4

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One entry of the tensor table: where the data lie and what they are."""

    name: str
    shape: tuple  # rows first, as NumPy has it; the file has the fastest axis first
    kind: int  # a number of ggml's list of storage types
    offset: int  # from the start of the file
    size: int  # bytes


class GGUFFile:
    """A memory-mapped GGUF file: metadata, the table of tensors, and the tensors.

    Parameters
    ----------
    path : str or path-like
        The file; its name does not matter.

    Attributes
    ----------
    metadata : dict
        Key -> int, float, bool, str or list of these.
    tensors : dict
        Name -> :class:`TensorInfo`.

    Raises
    ------
    ImportError
        The ``gguf`` package is not installed.
    OSError
        The file cannot be opened.
    EOFError
        The file ends before what its header promises.
    ValueError
        The header contradicts itself or holds what is not known.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        self._gguf = _package()
        with open(self.path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise EOFError(f"{self.path}: the file is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        walk = _Walk(self.path, self._map)
        tensor_count, field_count = walk.start()
        self.metadata = walk.fields(field_count)
        self.tensors = walk.tensors(tensor_count, self._alignment(), self._gguf)

    def _alignment(self):
        value = self.metadata.get("general.alignment", 32)
        if type(value) is not int or value <= 0 or value & (value - 1):
            raise ValueError(f"{self.path}: general.alignment={value!r} is no power of two")
        return value

    def kind(self, name):
        """Return the name of the storage type of a tensor, such as "Q4_1"."""
        return self._gguf.GGMLQuantizationType(self.tensors[name].kind).name

    def read(self, name):
        """Return one tensor, dequantised.

        Returns
        -------
        float32 array
            New memory, writeable.
        """
        info = self.tensors[name]
        kind = self._gguf.GGMLQuantizationType(info.kind)
        out = np.empty(info.shape, np.float32)
        if not out.size:
            return out
        raw = np.frombuffer(self._map, np.uint8, info.size, info.offset).reshape(*info.shape[:-1], -1)
        try:
            with np.errstate(all="ignore"):  # an inf or NaN scale of a block is data, not an accident
                out[...] = self._gguf.dequantize(raw, kind)
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"{self.path}: tensor {name!r} is stored as {kind.name}: {error}") from None
        return out


class _Walk:
    """A position in the mapped file that never passes its end."""

    def __init__(self, path, data):
        self.path, self.data, self.at, self.end = path, data, 0, len(data)

    def wrong(self, reason, at=None):
        return ValueError(f"{self.path}: byte {self.at if at is None else at}: {reason}")

    def take(self, size, what):
        """Return the position of the next ``size`` bytes and step over them."""
        at = self.at
        if size > self.end - at:
            raise EOFError(f"{self.path}: byte {at}: {what} needs {size} bytes, the file has {self.end - at} more")
        self.at = at + size
        return at

    def number(self, code, what):
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, smallest, what):
        """Return a number of items, each at least ``smallest`` bytes, that the rest of the file can hold."""
        value = self.number("Q", what)
        if value * smallest > self.end - self.at:
            raise EOFError(f"{self.path}: byte {self.at - 8}: {what} {value} does not fit the file of {self.end} bytes")
        return value

    def text(self, what):
        size = self.count(1, f"length of {what}")
        at = self.take(size, what)
        try:
            return self.data[at : at + size].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(f"{what} is not UTF-8: {error.reason}", at) from None

    def start(self):
        at = self.take(4, "the magic number")
        if self.data[at : at + 4] != _MAGIC:
            raise self.wrong(f"no GGUF file: it begins with {self.data[:4]!r}", 0)
        version = self.number("I", "the version")
        if version not in (2, 3):
            reason = "big-endian files are not supported" if version & 0xFFFF == 0 else "supported: 2, 3"
            raise self.wrong(f"version {version}; {reason}", 4)
        tensor_count = self.count(_SMALLEST_TENSOR, "number of tensors")
        return tensor_count, self.count(_SMALLEST_FIELD, "number of metadata fields")

    def fields(self, count):
        fields = {}
        for _ in range(count):
            at = self.at
            key = self.text("a metadata key")
            if key in fields:
                raise self.wrong(f"metadata key {key!r} appears twice", at)
            kind = self.number("I", f"type of {key!r}")
            fields[key] = self.array(key) if kind == _ARRAY else self.value(kind, key)
        return fields

    def value(self, kind, key):
        if kind == _STRING:
            return self.text(f"value of {key!r}")
        if kind not in _SCALARS:
            raise self.wrong(f"metadata {key!r} has the unknown type {kind}", self.at - 4)
        return self.number(_SCALARS[kind], f"value of {key!r}")

    def array(self, key):
        kind = self.number("I", f"item type of {key!r}")
        if kind == _STRING:
            return [self.text(f"an item of {key!r}") for _ in range(self.count(8, f"length of {key!r}"))]
        if kind not in _SCALARS:
            raise self.wrong(f"metadata {key!r} is an array of the unknown type {kind}", self.at - 4)
        size = struct.calcsize("<" + _SCALARS[kind])
        count = self.count(size, f"length of {key!r}")
        at = self.take(count * size, f"items of {key!r}")
        return list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.data, at))

    def tensors(self, count, alignment, package):
        entries = [self.tensor_entry() for _ in range(count)]
        start = -(-self.at // alignment) * alignment
        table = {}
        for at, name, shape, kind, offset in entries:
            if name in table:
                raise self.wrong(f"tensor {name!r} appears twice", at)
            if offset % alignment:
                raise self.wrong(f"tensor {name!r} has offset {offset}, no multiple of {alignment}", at)
            size = self.tensor_bytes(at, name, shape, kind, package)
            if start + offset + size > self.end:
                raise EOFError(
                    f"{self.path}: tensor {name!r} needs bytes {start + offset} to {start + offset + size}, "
                    f"the file ends at {self.end}"
                )
            table[name] = TensorInfo(name, shape, kind, start + offset, size)
        return table

    def tensor_entry(self):
        at = self.at
        name = self.text("a tensor's name")
        rank = self.number("I", f"rank of tensor {name!r}")
        if rank > _MOST_DIMENSIONS:
            raise self.wrong(f"tensor {name!r} has {rank} dimensions, at most {_MOST_DIMENSIONS} are possible", at)
        shape = tuple(self.number("Q", f"shape of tensor {name!r}") for _ in range(rank))[::-1]
        kind = self.number("I", f"type of tensor {name!r}")
        return at, name, shape, kind, self.number("Q", f"offset of tensor {name!r}")

    def tensor_bytes(self, at, name, shape, kind, package):
        try:
            block, size = package.GGML_QUANT_SIZES[package.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise self.wrong(f"tensor {name!r} has the unknown storage type {kind}", at) from None
        if (shape[-1] if shape else 1) % block:
            raise self.wrong(f"tensor {name!r} of shape {shape} has rows that are no multiple of {block}", at)
        elements = math.prod(shape)
        if elements >= 2**60 or max(shape, default=1) >= 2**60:
            raise OverflowError(f"{self.path}: byte {at}: tensor {name!r} has the absurd shape {shape}")
        return elements // block * size


def unpermute_rows(weight, heads):
    """Bring the rows of a query or key projection from llama's GGUF order into Hugging Face's.

    GGUF stores row ``s * D/2 + i`` of a head (half ``s``, pair ``i``) as row ``2 i + s``, so that the two members of a
    rotated pair are neighbours.  This is the inverse: ``out[h, s * D/2 + i] = weight[h, 2 * i + s]``.

    Parameters
    ----------
    weight : array [heads * D, C]
        As stored.
    heads : int
        Query heads for a query projection, key-value heads for a key projection.

    Returns
    -------
    array [heads * D, C]
        New memory.

    Examples
    --------
    >>> unpermute_rows(np.arange(8).reshape(8, 1), heads=2).ravel()
    array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def read_gguf(path):
    """Read a llama model from a GGUF file.

    Parameters
    ----------
    path : str or path-like
        The file; its name does not matter.

    Returns
    -------
    config : Config
    params : dict
        Hugging Face parameter name -> float32 array.
    report : TensorReport

    Raises
    ------
    ImportError
        The ``gguf`` package is not installed; the text says how to install it.
    ValueError, EOFError, OverflowError, OSError
        The file is damaged, holds another architecture, or asks for arithmetic that is not supported.  The text has the
        file's name, the place and the reason.
    """
    file = GGUFFile(path)
    config = _config(file)
    sources = {}
    for name in file.tensors:
        sources[_parameter_name(file, name, config)] = name
    check_parameters(config, {new: file.tensors[old].shape for new, old in sources.items()}, file.path)
    params = {}
    for new, old in sources.items():
        weight = file.read(old)
        if new.endswith("q_proj.weight"):
            weight = unpermute_rows(weight, config.num_attention_heads)
        elif new.endswith("k_proj.weight"):
            weight = unpermute_rows(weight, config.num_key_value_heads)
        params[new] = weight
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_word_embeddings else {}
    return config, params, TensorReport(file.path, {n: (o, file.kind(o)) for n, o in sources.items()}, tied)


def _package():
    try:
        import gguf
    except ImportError as error:
        raise ImportError("reading GGUF files needs the gguf package: pip install 'ckernels[models]'") from error
    return gguf


def _parameter_name(file, name, config):
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    prefix, _, rest = name.partition(".")
    layer, _, kind = rest.partition(".")
    if prefix == "blk" and layer.isascii() and layer.isdigit() and kind in _LAYER_NAMES:
        if str(int(layer)) == layer and int(layer) < config.num_hidden_layers:
            return f"model.layers.{layer}.{_LAYER_NAMES[kind]}"
    raise ValueError(f"{file.path}: tensor {name!r} has no place in a llama model of {config.num_hidden_layers} layers")


# Metadata of a llama file that decide the arithmetic, and the only values under which they leave it as it is.
_NEUTRAL = {
    "llama.rope.scaling.type": ("none",),
    "llama.rope.scaling.finetuned": (False, True),
    "llama.tensor_data_layout": ("Meta AI original pth",),
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
    "llama.use_parallel_residual": (False,),
    "llama.attention.causal": (True,),
}
_PREFIX = "llama."


def _config(file):
    """Translate the metadata into a Config; what is not understood is refused."""
    fields = file.metadata
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{file.path}: general.architecture={architecture!r} is not supported; supported: 'llama'")
    fields = _Fields(file)
    C, H = fields.whole("embedding_length"), fields.whole("attention.head_count")
    if H == 0 or (C % H and not fields.has("attention.key_length")):
        raise ValueError(f"{file.path}: llama.embedding_length={C} is no multiple of llama.attention.head_count={H}")
    D = fields.whole("attention.key_length", C // H)
    for name in "attention.value_length", "rope.dimension_count":
        if fields.whole(name, D) != D:
            raise ValueError(f"{file.path}: llama.{name}={fields.whole(name)} differs from the head size {D}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{file.path}: missing the matrix 'token_embd.weight'")
    layers = fields.whole("block_count")
    if layers > len(file.tensors):
        raise ValueError(f"{file.path}: llama.block_count={layers}, but the file has {len(file.tensors)} tensors")
    values = dict(
        hidden_size=C,
        intermediate_size=fields.whole("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=H,
        num_key_value_heads=fields.whole("attention.head_count_kv", H),
        head_dim=D,
        vocab_size=fields.whole("vocab_size", embedding.shape[0]),
        rms_norm_eps=fields.real("attention.layer_norm_rms_epsilon"),
        rope_theta=fields.real("rope.freq_base", 10000.0),
        tie_word_embeddings="output.weight" not in file.tensors,
        max_position_embeddings=fields.whole("context_length", 2048),
    )
    fields.refuse_the_rest()
    try:
        return Config(**values)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None


class _Fields:
    """The ``llama.`` metadata, remembering which of them were asked for."""

    def __init__(self, file):
        self.file, self.used = file, set()

    def has(self, name):
        return _PREFIX + name in self.file.metadata

    def _get(self, name, default, kinds, what):
        key = _PREFIX + name
        self.used.add(key)
        value = self.file.metadata.get(key, default)
        if value is None:
            raise ValueError(f"{self.file.path}: metadata {key!r} is missing")
        if type(value) not in kinds:
            raise ValueError(f"{self.file.path}: metadata {key!r} is {value!r:.60}, expected {what}")
        return value

    def whole(self, name, default=None):
        return self._get(name, default, (int,), "an integer")

    def real(self, name, default=None):
        """A float32 as the shortest decimal that names it, so that 1e-5 reads as 1e-5 and not 9.999999747378752e-06."""
        return float(str(np.float32(self._get(name, default, (float,), "a real number"))))

    def refuse_the_rest(self):
        for key, value in self.file.metadata.items():
            if key.startswith(_PREFIX) and key not in self.used and value not in _NEUTRAL.get(key, ()):
                raise ValueError(f"{self.file.path}: metadata {key}={value!r:.60} is not supported")
