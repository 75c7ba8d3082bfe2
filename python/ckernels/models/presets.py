"""Small configurations that tests, ``ck parity`` and examples share."""

from collections.abc import Mapping

from .config import Config

__all__ = ["configs", "families"]


class Presets(Mapping):
    """Named configurations, as a mapping and as attributes: ``configs["tiny"]`` is ``configs.tiny``.

    Examples
    --------
    >>> configs.gqa.num_attention_heads // configs["gqa"].num_key_value_heads
    4
    >>> sorted(configs)
    ['deep', 'gqa', 'medium', 'single_layer', 'tiny', 'wide']
    """

    def __init__(self, **entries):
        self._entries = entries

    def __getitem__(self, name):
        """Return the configuration of that name; KeyError says which there are."""
        try:
            return self._entries[name]
        except KeyError:
            raise KeyError(f"no preset {name!r}; there are {', '.join(self._entries)}") from None

    def __getattr__(self, name):
        """Return the configuration of that name."""
        entries = self.__dict__.get("_entries", {})
        if name not in entries:
            raise AttributeError(f"no preset {name!r}; there are {', '.join(entries)}")
        return entries[name]

    def __iter__(self):
        """Iterate over the names."""
        return iter(self._entries)

    def __len__(self):
        """Return the number of presets."""
        return len(self._entries)

    def __dir__(self):
        """Return the names for completion."""
        return [*super().__dir__(), *self._entries]


def _preset(hidden, heads, kv_heads, layers, feed_forward, **others):
    return Config(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        intermediate_size=feed_forward,
        vocab_size=257,
        max_position_embeddings=512,
        **{"rms_norm_eps": 1e-5, **others},
    )


# Odd feed-forward widths and a prime vocabulary: no size is a multiple of a vector, so tails are always exercised.
configs = Presets(
    tiny=_preset(64, 2, 2, 2, 173),
    gqa=_preset(128, 8, 2, 2, 341, tie_word_embeddings=True),
    deep=_preset(64, 2, 2, 6, 173),
    wide=_preset(128, 8, 8, 2, 341, rope_theta=100000.0),
    medium=_preset(256, 4, 4, 4, 683),
    single_layer=_preset(64, 2, 2, 1, 173),
)


_SIZES = dict(
    hidden_size=64, num_attention_heads=4, num_hidden_layers=2, intermediate_size=173, vocab_size=257,
    max_position_embeddings=512,
)  # fmt: skip
_GPT2 = dict(n_embd=64, n_head=4, n_layer=2, n_inner=173, vocab_size=257, n_positions=512)
_GROUPED = dict(_SIZES, num_key_value_heads=2)
_GEMMA = dict(_GROUPED, head_dim=24, query_pre_attn_scalar=40, sliding_window=7)


def _family(kind, sizes, **others):
    """A small configuration of a family, by its own names; its first layer has what sets the family apart."""
    return Config.from_hf({"model_type": kind, **sizes, **others})


families = Presets(
    mistral=_family("mistral", _GROUPED, sliding_window=5),
    qwen2=_family("qwen2", _GROUPED),
    qwen3=_family("qwen3", _GROUPED, head_dim=24),
    gemma2=_family("gemma2", _GEMMA, attn_logit_softcapping=9.0, final_logit_softcapping=7.0),
    gemma3_text=_family("gemma3_text", _GEMMA, layer_types=["sliding_attention", "full_attention"]),
    phi3=_family("phi3", _GROUPED, sliding_window=11, partial_rotary_factor=0.75),
    stablelm=_family("stablelm", _GROUPED, use_qkv_bias=True, use_parallel_residual=True),
    gpt_neox=_family("gpt_neox", _SIZES),
    gpt2=_family("gpt2", _GPT2),
)
