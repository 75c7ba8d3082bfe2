"""Small random models of transformers, one or more for each family, with what its members differ in."""

import torch
import transformers

_SMALL = dict(
    hidden_size=48, intermediate_size=91, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
    vocab_size=101, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
_EQUAL = {name: value for name, value in _SMALL.items() if name != "num_key_value_heads"}
_GEMMA = dict(head_dim=16, sliding_window=6, query_pre_attn_scalar=24)
_NEOX_ROPE = dict(rope_theta=500.0, partial_rotary_factor=0.5, rope_type="default")
_THREE = ["sliding_attention", "full_attention", "sliding_attention"]

# Name -> class of the module, class of its config, fields.
FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", dict(_SMALL, attention_bias=True, mlp_bias=True)),
    "mistral": ("MistralForCausalLM", "MistralConfig", dict(_SMALL, sliding_window=5, head_dim=16)),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        dict(_SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", dict(_SMALL, head_dim=16)),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        dict(_SMALL, **_GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    ),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextConfig", dict(_SMALL, **_GEMMA, layer_types=_THREE)),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", dict(_SMALL, sliding_window=7)),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", dict(_SMALL, use_qkv_bias=True)),
    "stablelm, parallel": ("StableLmForCausalLM", "StableLmConfig", dict(_SMALL, use_parallel_residual=True)),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _EQUAL),
    "gpt_neox, not parallel": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        dict(_EQUAL, use_parallel_residual=False, rope_parameters=_NEOX_ROPE),
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        dict(n_embd=48, n_layer=3, n_head=6, n_inner=91, vocab_size=101, n_positions=64, bos_token_id=None,
             eos_token_id=None),
    ),
}  # fmt: skip


def configuration(name, **others):
    """The configuration of a family's small model."""
    _, kind, fields = FAMILIES[name]
    return getattr(transformers, kind)(**{**fields, **others}, attn_implementation="eager")


def module(name, dtype="float32", size=1.5):
    """A family's small model in eval mode, every parameter random: norms away from one, biases from zero."""
    built = getattr(transformers, FAMILIES[name][0])(configuration(name)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for place, parameter in built.named_parameters():
            value = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                stored_turned = any(part in place for part in ("c_attn", "c_proj", "c_fc"))
                value *= size / parameter.shape[0 if stored_turned else 1] ** 0.5
            elif place.endswith("weight"):
                value = torch.rand(parameter.shape, generator=generator) + (-0.5 if "gemma" in name else 0.5)
            else:
                value *= 0.3
            parameter.copy_(value)
    return built.to(getattr(torch, dtype))
