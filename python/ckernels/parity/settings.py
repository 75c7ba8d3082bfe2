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
        Of the rotary angles: base, rule of a Hugging Face config, ``max_position_embeddings``, rotated channels (0
        where positions are learned), and whether neighbours are paired rather than halves.
    activation : str
        Of the gate: ``silu``, ``gelu``, ``gelu_tanh``, ``gelu_sigmoid`` or ``relu``.
    scale : float
        Of the scores; 1 / sqrt(D) unless the config says otherwise.
    window, softcap, final_softcap
        Keys that a query sees, and the caps of scores and logits; None where there is none.
    embed_scale : float
        Factor of the embedding's rows.
    norm : str
        ``rms_norm``, or ``layer_norm`` with a bias where there is a parameter for it.
    parallel : bool
        Whether the MLP reads the layer's input, not the first residual.
    windows : tuple
        Keys that a query of each layer sees; None: all. `window` where they are alike, else None.
    local_base : float or None
        Base of the angles of the layers with a window, unscaled; None: as the others.
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
    norm: str = "rms_norm"
    parallel: bool = False
    windows: tuple = ()
    local_base: float | None = None

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
        config = _plain(config)

        def get(*names, default=None):
            for name in names:
                value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
                if value is not None:
                    return value
            return default

        def need(*names):
            if get(*names) is None:
                raise ConfigError(f"the configuration has no '{names[0]}'")
            return get(*names)

        kind = str(get("model_type", default=""))
        heads = int(need("num_attention_heads", "n_head"))
        groups = int(get("num_key_value_heads", default=heads))
        if groups < 1 or heads % groups:
            raise ConfigError(f"num_attention_heads={heads} is not a multiple of num_key_value_heads={groups}")
        act = get("hidden_activation", "activation_function", "hidden_act", default="silu")
        if act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act={act!r} is not known; {', '.join(ACTIVATIONS)} are")
        hidden, layers = int(need("hidden_size", "n_embd")), int(need("num_hidden_layers", "n_layer"))
        size = int(get("head_dim", default=0)) or hidden // heads
        gemma = kind.startswith("gemma")
        rope, local = _rules(get)
        windows = _windows(get, kind, layers)
        part = rope.get("partial_rotary_factor", get("partial_rotary_factor", "rotary_pct", default=1.0))
        found = cls(
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=groups,
            head_dim=size,
            eps=float(need("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")),
            base=float(rope.get("rope_theta", get("rope_theta", "rotary_emb_base", default=10000.0))),
            rope=rope,
            trained=get("max_position_embeddings", "n_positions"),
            width=0 if kind == "gpt2" or get("learned_positions") else 2 * int(size * float(part) / 2),
            interleaved=bool(get("rope_interleaved", default=False)),
            activation=ACTIVATIONS[act],
            scale=float(get("query_pre_attn_scalar", default=size)) ** -0.5,
            window=windows[0] if len(set(windows)) == 1 else None,
            softcap=get("attn_logit_softcapping"),
            final_softcap=get("final_logit_softcapping"),
            offset=float(get("rms_norm_offset", default=1.0 if gemma else 0.0)),
            embed_scale=float(get("embedding_multiplier", default=hidden**0.5 if gemma else 1.0)),
            norm="layer_norm" if kind in _LAYER_NORM else get("norm_type", default="rms_norm"),
            parallel=bool(get("use_parallel_residual", default=kind == "gpt_neox")),
            windows=windows,
            local_base=local,
        )
        found.frequencies(1)
        return found

    def window_of(self, index):
        """Keys that a query of a layer sees; None: all."""
        return self.windows[index] if self.windows else self.window

    def frequencies_of(self, index, length):
        """As `frequencies`, of the layers that share the window of this one."""
        if self.local_base is None or self.window_of(index) is None:
            return self.frequencies(length)
        return self.frequencies(length, base=self.local_base, scaled=False)

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


_LAYER_NORM = ("gpt2", "gpt_neox", "stablelm")


def _plain(config):
    """A configuration as what its fields can be asked of."""
    if hasattr(config, "to_hf"):
        try:
            return config.to_hf()
        except ValueError:  # no family has words for it; its own fields have
            return config
    return config.to_dict() if hasattr(config, "to_dict") else config


def _rules(get):
    """The rule of the angles, and the base of the layers with a window where they have one of their own."""
    rules = dict(get("rope_parameters", "rope_scaling", default={}))
    if "full_attention" not in rules:
        local = get("rope_local_base_freq")
        return rules, None if local is None else float(local)
    return dict(rules["full_attention"]), float(rules["sliding_attention"]["rope_theta"])


def _windows(get, kind, layers):
    """The window of each layer."""
    window = get("sliding_window")
    if window is None or not get("use_sliding_window", default=not kind.startswith("qwen")):
        return (None,) * layers
    types = get("layer_types")
    if types is None:
        every = {"gemma2": 2, "gemma3_text": int(get("sliding_window_pattern", default=6))}.get(kind)
        types = ["full_attention" if every and (i + 1) % every == 0 else "sliding_attention" for i in range(layers)]
    return tuple(int(window) if name == "sliding_attention" else None for name in types)
