"""What the equations of a decoder need to know of its configuration, read from Hugging Face field names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .frequencies import exact_frequencies

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "gelu_sigmoid",
    "relu": "relu",
}


class ConfigError(ValueError):
    """A field of the configuration is missing, or asks for arithmetic that the equations do not have."""


@dataclass(frozen=True)
class Settings:
    """The numbers that decide a decoder's arithmetic.

    Parameters
    ----------
    layers, hidden, heads, kv_heads, head_dim : int
        Layers, C, H, G, D.
    eps, offset : float
        Of the norms: ``(offset + w) * x / sqrt(mean(x²) + eps)``.
    base, rope, trained, width, interleaved
        Of the rotary angles: base, rule of a Hugging Face config, ``max_position_embeddings``, rotated channels, and
        whether neighbours are paired rather than halves.
    activation : str
        Of the gate: ``silu``, ``gelu``, ``gelu_tanh``, ``gelu_sigmoid`` or ``relu``.
    scale : float
        Of the scores; 1 / sqrt(D) unless the config says otherwise.
    window, softcap, final_softcap
        Keys that a query sees, and the caps of scores and logits; None where there is none.
    embed_scale : float
        Factor of the embedding's rows.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    base: float = 10000.0
    rope: dict = field(default_factory=dict, hash=False)
    trained: int | None = None
    width: int = 0
    interleaved: bool = False
    activation: str = "silu"
    scale: float = 0.0
    window: int | None = None
    softcap: float | None = None
    final_softcap: float | None = None
    offset: float = 0.0
    embed_scale: float = 1.0

    @classmethod
    def of(cls, config):
        """Read a configuration.

        Parameters
        ----------
        config : dict or object
            Fields named as in a Hugging Face config.

        Raises
        ------
        ConfigError
            A field is missing or not understood; the text names it.
        """
        if hasattr(config, "to_hf"):
            config = config.to_hf()
        elif hasattr(config, "to_dict"):
            config = config.to_dict()

        def get(name, default=None):
            value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
            return default if value is None else value

        def need(name):
            if get(name) is None:
                raise ConfigError(f"the configuration has no '{name}'")
            return get(name)

        heads = int(need("num_attention_heads"))
        groups = int(get("num_key_value_heads", heads))
        if groups < 1 or heads % groups:
            raise ConfigError(f"num_attention_heads={heads} is not a multiple of num_key_value_heads={groups}")
        act = get("hidden_activation", get("hidden_act", "silu"))
        if act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act={act!r} is not known; {', '.join(ACTIVATIONS)} are")
        size = int(get("head_dim", 0)) or int(need("hidden_size")) // heads
        rope = dict(get("rope_parameters", get("rope_scaling", {})))
        gemma = str(get("model_type", "")).startswith("gemma")
        window = get("sliding_window") if get("use_sliding_window", True) else None
        found = cls(
            layers=int(need("num_hidden_layers")),
            hidden=int(need("hidden_size")),
            heads=heads,
            kv_heads=groups,
            head_dim=size,
            eps=float(need("rms_norm_eps")),
            base=float(rope.get("rope_theta", get("rope_theta", 10000.0))),
            rope=rope,
            trained=get("max_position_embeddings"),
            width=2 * int(size * float(rope.get("partial_rotary_factor", get("partial_rotary_factor", 1.0))) / 2),
            interleaved=bool(get("rope_interleaved", False)),
            activation=ACTIVATIONS[act],
            scale=float(get("query_pre_attn_scalar", size)) ** -0.5,
            window=None if window is None else int(window),
            softcap=get("attn_logit_softcapping"),
            final_softcap=get("final_logit_softcapping"),
            offset=float(get("rms_norm_offset", 1.0 if gemma else 0.0)),
            embed_scale=float(get("embedding_multiplier", need("hidden_size") ** 0.5 if gemma else 1.0)),
        )
        found.frequencies(1)
        return found

    def frequencies(self, length, *, base=None, width=None, scaled=True):
        """Frequencies of the pairs, float64, and the factor of cosines and sines."""
        rule = (
            {k: v for k, v in self.rope.items() if k not in ("rope_theta", "partial_rotary_factor")} if scaled else {}
        )
        try:
            return exact_frequencies(width or self.width, base or self.base, rule, length, self.trained)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def heads_of(self):
        """The key head that each query head reads, ``[H]``."""
        return np.arange(self.heads) // (self.heads // self.kv_heads)
