"""What the tensors of each family are called, and how its joined ones are taken apart."""

import dataclasses
import re

import numpy as np

__all__ = ["Place", "places", "shapes_of"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter comes from.

    Parameters
    ----------
    source : str
        Name of the tensor.
    transposed : bool
        Stored [in, out].
    rows : tuple of int, optional
        First row and the one behind the last, after transposing.
    interleaved : tuple of int, optional
        (heads, head size, part): each head's q, k and v lie together, and this is the part.
    """

    source: str
    transposed: bool = False
    rows: tuple | None = None
    interleaved: tuple | None = None

    def take(self, array):
        """Return the parameter out of the tensor, as a view where it can be one."""
        if self.transposed and array.ndim == 2:
            array = array.T
        if self.rows is not None:
            array = array[slice(*self.rows)]
        if self.interleaved is not None:
            heads, size, part = self.interleaved
            array = array.reshape(heads, 3, size, *array.shape[1:])[:, part]
            array = array.reshape(heads * size, *array.shape[2:])
        return array

    @property
    def how(self):
        """In words what is done to the tensor; empty: nothing."""
        done = ["transposed"] if self.transposed else []
        if self.rows is not None:
            done.append(f"rows {self.rows[0]} to {self.rows[1]}")
        if self.interleaved is not None:
            done.append(f"{'qkv'[self.interleaved[2]]} of every head")
        return ", ".join(done)


def places(config, names):
    """Say which parameter each tensor becomes.

    Parameters
    ----------
    config : Config
    names : iterable of str
        Of the tensors, as the family's module or files call them.

    Returns
    -------
    found : dict
        Parameter name -> Place, in the order of ``names``.
    ignored : tuple of str
        Tensors that hold no parameter and change nothing: masks and rotary tables that older versions stored.
    """
    found, ignored = {}, []
    for name in names:
        if name.endswith(("rotary_emb.inv_freq", ".masked_bias")) or (
            config.model_type in ("gpt2", "gpt_neox") and re.search(r"\.(attn|attention)\.bias$", name)
        ):
            ignored.append(name)
        else:
            found |= _PLACES.get(config.model_type, _as_it_is)(config, name)
    return found, tuple(ignored)


def _as_it_is(config, name):
    return {name: Place(name)}


def _phi3(config, name):
    """Rows of q, k and v one behind the other, and those of gate and up."""
    Q, KV, F = _extents(config)
    front, end = name.rpartition(".")[::2]
    if front.endswith("self_attn.qkv_proj"):
        parts = {"q_proj": (0, Q), "k_proj": (Q, Q + KV), "v_proj": (Q + KV, Q + 2 * KV)}
    elif front.endswith("mlp.gate_up_proj"):
        parts = {"gate_proj": (0, F), "up_proj": (F, 2 * F)}
    else:
        return _as_it_is(config, name)
    return {f"{front.rpartition('.')[0]}.{part}.{end}": Place(name, rows=rows) for part, rows in parts.items()}


_GPT2 = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj",
         "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}  # fmt: skip
_GPT2_ENDS = {"wte": "model.embed_tokens", "wpe": "model.embed_positions", "ln_f": "model.norm"}


def _gpt2(config, name):
    """Matrices stored [in, out], q, k and v side by side in them."""
    front, end = name.removeprefix("transformer.").rpartition(".")[::2]
    if front in _GPT2_ENDS:
        return {f"{_GPT2_ENDS[front]}.{end}": Place(name)}
    layer = re.fullmatch(r"h\.(\d+)\.(.+)", front)
    if not layer:
        return _as_it_is(config, name)
    at, kind = f"model.layers.{layer[1]}.", layer[2]
    turned = end == "weight" and not kind.startswith("ln_")
    if kind == "attn.c_attn":
        C = config.hidden_size
        return {f"{at}self_attn.{part}_proj.{end}": Place(name, turned, (i * C, (i + 1) * C))
                for i, part in enumerate("qkv")}  # fmt: skip
    return {f"{at}{_GPT2.get(kind, kind)}.{end}": Place(name, turned)}


_NEOX = {"attention.dense": "self_attn.o_proj", "mlp.dense_h_to_4h": "mlp.up_proj",
         "mlp.dense_4h_to_h": "mlp.down_proj"}  # fmt: skip
_NEOX_ENDS = {"gpt_neox.embed_in": "model.embed_tokens", "gpt_neox.final_layer_norm": "model.norm",
              "embed_out": "lm_head", "lm_head": "lm_head"}  # fmt: skip


def _gpt_neox(config, name):
    """Head by head q, k and v in one matrix."""
    front, end = name.rpartition(".")[::2]
    if front in _NEOX_ENDS:
        return {f"{_NEOX_ENDS[front]}.{end}": Place(name)}
    layer = re.fullmatch(r"gpt_neox\.layers\.(\d+)\.(.+)", front)
    if not layer:
        return _as_it_is(config, name)
    at, kind = f"model.layers.{layer[1]}.", layer[2]
    if kind == "attention.query_key_value":
        each = config.num_attention_heads, config.head_dim
        return {f"{at}self_attn.{part}_proj.{end}": Place(name, interleaved=(*each, i)) for i, part in enumerate("qkv")}
    return {f"{at}{_NEOX.get(kind, kind)}.{end}": Place(name)}


def _extents(config):
    D = config.head_dim
    return config.num_attention_heads * D, config.num_key_value_heads * D, config.intermediate_size


_PLACES = {"phi3": _phi3, "gpt2": _gpt2, "gpt_neox": _gpt_neox}


def shapes_of(found, shape, where):
    """Return the shape of every parameter.

    Parameters
    ----------
    found : dict
        Of :func:`places`.
    shape : callable
        Name of a tensor -> its shape.
    where : str
        What errors begin with.

    Raises
    ------
    ValueError
        A tensor cannot be taken apart so; the text names it.
    """
    shapes = {}
    for name, place in found.items():
        stored = tuple(shape(place.source))
        nothing = np.broadcast_to(np.float32(0), stored)  # of any size without memory
        try:
            shapes[name] = place.take(nothing).shape
        except ValueError:
            raise ValueError(f"{where}: {place.source} has shape {stored}, the config asks for "
                             f"{place.how} of it") from None  # fmt: skip
        rows = place.rows
        if rows is not None and rows[1] > (stored[-1] if place.transposed else stored[0]):
            raise ValueError(f"{where}: {place.source} has shape {stored}, the config asks for {place.how} of it")
    return shapes

