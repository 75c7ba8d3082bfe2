"""The families of models: how each names the fields of its Hugging Face configuration, and what it leaves unsaid."""

import dataclasses
from collections.abc import Mapping

__all__ = ["FAMILIES", "read_hf", "write_hf"]

# Fields of a Hugging Face configuration that change no number of a forward or backward pass: labels, token ids, what
# generation or a server does with the model, how weights were drawn or stored.  Names that start with "_" are
# bookkeeping of transformers and are ignored too.
_WITHOUT_ARITHMETIC = frozenset(
    """
    architectures attn_implementation auto_map base_model_pp_plan base_model_tp_plan bad_words_ids begin_suppress_tokens
    bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label initializer_range
    is_llama_config keys_to_ignore_at_inference label2id length_penalty max_length min_length name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type pruned_heads
    remove_invalid_values reorder_and_upcast_attn repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()
)

# Fields that would change the arithmetic, with the only values under which they do not.
_NEUTRAL = {
    "attention_dropout": (0, 0.0, None),
    "hidden_dropout": (0, 0.0, None),
    "resid_pdrop": (0, 0.0, None),
    "embd_pdrop": (0, 0.0, None),
    "attn_pdrop": (0, 0.0, None),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "qk_layernorm": (False, None),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "is_decoder": (True, False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
    "quantization_config": (None,),
}

_SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "max_position_embeddings hidden_act tie_word_embeddings"
)
_ROPE = " rope_theta rope_scaling rope_parameters"
_LLAMA = _SIZES + _ROPE + " head_dim rms_norm_eps"
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family's configuration is read.

    Parameters
    ----------
    architecture : str
        The class of transformers.
    reads : str
        Fields that it has under the name that ``Config`` has.
    renamed : dict
        Its name of a field -> ``Config``'s.
    defaults : dict
        What a field is that is left out, where ``Config`` has another default; names of ``Config``.
    implied : dict
        What no field says, because all models of the family have it.
    ignored : tuple of str
        Fields that change nothing here, beside those that change nothing anywhere.
    """

    architecture: str
    reads: str
    renamed: dict = dataclasses.field(default_factory=dict)
    defaults: dict = dataclasses.field(default_factory=dict)
    implied: dict = dataclasses.field(default_factory=dict)
    ignored: tuple = ()

    def name_of(self, name):
        """Return the field of ``Config`` that a field of the family says, or None."""
        return self.renamed.get(name, name if name in self.reads.split() else None)


_QWEN = dict(vocab_size=151936, intermediate_size=22016, max_position_embeddings=32768)
_GEMMA = dict(
    hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4,
    head_dim=256, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True, query_pre_attn_scalar=256,
    sliding_window=4096,
)  # fmt: skip
_GEMMA_NAMES = " attention_bias query_pre_attn_scalar sliding_window layer_types final_logit_softcapping"
_LAYER_NORMS = dict(norm_type="layer_norm", norm_bias=True)

FAMILIES = {
    "llama": Family("LlamaForCausalLM", _LLAMA + " attention_bias mlp_bias"),
    "mistral": Family(
        "MistralForCausalLM",
        _LLAMA + " sliding_window",
        defaults=dict(
            intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096
        ),
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _LLAMA + " sliding_window layer_types",
        defaults=dict(_QWEN, num_key_value_heads=32, sliding_window=4096),
        implied=dict(attention_bias=True, attention_out_bias=False),
        ignored=("use_sliding_window", "max_window_layers"),
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _LLAMA + " sliding_window layer_types attention_bias",
        defaults=dict(_QWEN, num_key_value_heads=32, head_dim=128, sliding_window=4096),
        implied=dict(qk_norm=True),
        ignored=("use_sliding_window", "max_window_layers"),
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _LLAMA.replace("hidden_act ", "") + _GEMMA_NAMES + " attn_logit_softcapping",
        renamed={"hidden_activation": "hidden_act"},
        defaults=dict(
            _GEMMA, vocab_size=256000, max_position_embeddings=8192, final_logit_softcapping=30.0,
            attn_logit_softcapping=50.0,
        ),
        implied=dict(rms_norm_offset=1.0, post_norms=True),
        ignored=("hidden_act",),
    ),  # fmt: skip
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _LLAMA.replace("hidden_act ", "") + _GEMMA_NAMES + " rope_local_base_freq",
        renamed={"hidden_activation": "hidden_act"},
        defaults=dict(
            _GEMMA, vocab_size=262208, max_position_embeddings=131072, rope_theta=1e6, rope_local_base_freq=1e4
        ),
        implied=dict(rms_norm_offset=1.0, post_norms=True, qk_norm=True),
        ignored=("hidden_act", "sliding_window_pattern"),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        _SIZES + _ROPE + " rms_norm_eps sliding_window partial_rotary_factor",
        defaults=dict(
            vocab_size=32064, hidden_size=3072, intermediate_size=8192, max_position_embeddings=4096, rms_norm_eps=1e-5
        ),
        ignored=("original_max_position_embeddings",),
    ),
    "stablelm": Family(
        "StableLmForCausalLM",
        _SIZES + _ROPE + " use_parallel_residual partial_rotary_factor",
        renamed={"layer_norm_eps": "rms_norm_eps", "use_qkv_bias": "attention_bias"},
        defaults=dict(
            vocab_size=50304, hidden_size=2560, intermediate_size=6912, max_position_embeddings=4096, rms_norm_eps=1e-5,
            partial_rotary_factor=0.25, num_key_value_heads=32,
        ),
        implied=dict(_LAYER_NORMS, attention_out_bias=False),
    ),  # fmt: skip
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        (_SIZES + _ROPE).replace("num_key_value_heads ", "") + " attention_bias use_parallel_residual "
        "partial_rotary_factor",
        renamed={
            "layer_norm_eps": "rms_norm_eps", "rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor",
        },
        defaults=dict(
            vocab_size=50432, hidden_size=6144, num_hidden_layers=44, num_attention_heads=64, intermediate_size=24576,
            hidden_act="gelu", rms_norm_eps=1e-5, use_parallel_residual=True, attention_bias=True,
            partial_rotary_factor=0.25,
        ),
        implied=dict(_LAYER_NORMS, gated_mlp=False, mlp_bias=True),
    ),  # fmt: skip
    "gpt2": Family(
        "GPT2LMHeadModel",
        "vocab_size tie_word_embeddings",
        renamed={
            "n_embd": "hidden_size", "n_inner": "intermediate_size", "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads", "n_positions": "max_position_embeddings",
            "layer_norm_epsilon": "rms_norm_eps", "activation_function": "hidden_act",
        },
        defaults=dict(
            vocab_size=50257, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
            max_position_embeddings=1024, rms_norm_eps=1e-5, hidden_act="gelu_new", tie_word_embeddings=True,
        ),
        implied=dict(
            _LAYER_NORMS, gated_mlp=False, mlp_bias=True, attention_bias=True, learned_positions=True
        ),
        # Its defaults are 0.1, in every file: dropout belongs to transformers' training mode, which is not here.
        ignored=("attn_pdrop", "embd_pdrop", "resid_pdrop", "n_ctx"),
    ),  # fmt: skip
}


def read_hf(source):
    """Turn a Hugging Face configuration into the fields of ``Config``.

    Parameters
    ----------
    source : dict
        Its ``model_type`` names the family; "llama" where it is left out.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        The family is not known, or a field changes the arithmetic in a way that is not supported; the text names it.
    """
    kind = source.get("model_type", "llama")
    if kind not in FAMILIES:
        raise ValueError(f"Config: model_type={kind!r} is not supported; supported: {', '.join(map(repr, FAMILIES))}")
    family = FAMILIES[kind]
    fields = {"model_type": kind}
    for name, value in source.items():
        if family.name_of(name) is not None:
            if value is not None:
                fields[family.name_of(name)] = value
        elif not (
            name == "model_type" or name in _WITHOUT_ARITHMETIC or name in family.ignored or str(name).startswith("_")
        ):
            _refuse_unless_neutral(name, value)
    # A cap, a window or an own head size that is null is none, not the family's usual one.
    for name, value in family.defaults.items():
        given = any(family.name_of(key) == name for key in source)
        if not given or (name not in _MAY_BE_NONE and name not in fields):
            fields.setdefault(name, value)
    fields |= family.implied
    _rotary(fields, family, source)
    _REFINE.get(kind, lambda *unused: None)(fields, source)
    return fields


_MAY_BE_NONE = "sliding_window final_logit_softcapping attn_logit_softcapping head_dim num_key_value_heads".split()


def _rotary(fields, family, source):
    """Take out of ``rope_parameters`` what ``Config`` has a field for, and refuse what contradicts itself."""
    for name in "rope_parameters", "rope_scaling":
        inner = fields.get(name)
        if not isinstance(inner, Mapping) or "partial_rotary_factor" not in inner:
            continue
        inner = dict(inner)
        part = inner.pop("partial_rotary_factor")
        if "partial_rotary_factor" in family.reads.split():
            fields["partial_rotary_factor"] = 1.0 if part is None else part
        elif part not in _NEUTRAL["partial_rotary_factor"]:
            raise ValueError(f"Config: rope field partial_rotary_factor={part!r} is not supported")
        fields[name] = inner
    inner = fields.get("rope_parameters")
    if isinstance(inner, Mapping) and "rope_theta" in inner:
        given = [value for name, value in source.items() if family.name_of(name) == "rope_theta" and value is not None]
        if given and given[0] != inner["rope_theta"]:
            raise ValueError(
                f"Config: rope_theta={given[0]} contradicts rope_parameters['rope_theta']={inner['rope_theta']}"
            )


def _qwen(fields, source):
    """Window where it is switched on, from layer ``max_window_layers`` on."""
    if not source.get("use_sliding_window", False):
        fields["sliding_window"] = None
    layers, first = fields.get("num_hidden_layers", 32), source.get("max_window_layers", 28)
    window = fields.get("sliding_window")
    if window is None:
        fields.pop("layer_types", None)
    else:
        fields.setdefault("layer_types", [_SLIDING if i >= first else _FULL for i in range(layers)])


def _gemma(fields, source):
    """Every second layer has the window, in Gemma 3 all but every sixth; the embedding is scaled."""
    pattern = 2 if fields["model_type"] == "gemma2" else source.get("sliding_window_pattern", 6)
    layers = fields["num_hidden_layers"]
    if fields.get("sliding_window") is None:
        fields.pop("layer_types", None)
    elif isinstance(layers, int):
        fields.setdefault("layer_types", [_SLIDING if (i + 1) % pattern else _FULL for i in range(layers)])
    fields["embedding_multiplier"] = float(fields["hidden_size"]) ** 0.5
    other = source.get("hidden_act")
    if other not in (None, fields["hidden_act"], "gelu"):  # which transformers does not read
        raise ValueError(f"Config: hidden_act={other!r} contradicts hidden_activation={fields['hidden_act']!r}")
    _gemma_rope(fields)


def _gemma_rope(fields):
    """Gemma 3's two rules: the layers with a window turn by a base of their own, unscaled."""
    rules = fields.get("rope_parameters")
    if fields["model_type"] == "gemma2" or not isinstance(rules, Mapping) or not {_FULL, _SLIDING} & rules.keys():
        return
    if left := rules.keys() - {_FULL, _SLIDING}:
        raise ValueError(f"Config: rope field {min(left)}={rules[min(left)]!r} is not known beside {_FULL}")
    local = dict(rules.get(_SLIDING) or {})
    if local.pop("rope_type", "default") != "default" or local.keys() - {"rope_theta"}:
        raise ValueError(f"Config: rope_parameters[{_SLIDING!r}]={rules[_SLIDING]!r} is not supported")
    fields["rope_local_base_freq"] = local.get("rope_theta", 1e4)
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, **(rules.get(_FULL) or {})}


def _phi3(fields, source):
    """The original length stands beside the rule; "su" and "yarn" are its older names of longrope."""
    for name in "rope_parameters", "rope_scaling":
        rule = fields.get(name)
        if not isinstance(rule, Mapping):
            continue
        kind = rule.get("rope_type", rule.get("type"))
        rule = {key: value for key, value in rule.items() if key != "type"}
        if kind in ("su", "yarn", "longrope"):
            rule["rope_type"] = "longrope"
            original = source.get("original_max_position_embeddings", 4096)
            if rule.setdefault("original_max_position_embeddings", original) != original:
                raise ValueError(f"Config: original_max_position_embeddings={original} contradicts {name}")
        elif kind is not None:
            rule["rope_type"] = kind
        fields[name] = rule


def _stablelm(fields, source):
    """A parallel layer has one norm for both branches."""
    fields["shared_norm"] = bool(fields.get("use_parallel_residual", False))


def _gpt2(fields, source):
    """The feed-forward width is four times the other unless it is given."""
    if isinstance(fields["hidden_size"], int):
        fields.setdefault("intermediate_size", 4 * fields["hidden_size"])


_REFINE = {
    "qwen2": _qwen, "qwen3": _qwen, "gemma2": _gemma, "gemma3_text": _gemma, "phi3": _phi3, "stablelm": _stablelm,
    "gpt2": _gpt2,
}  # fmt: skip


def write_hf(config):
    """Turn a ``Config`` into the dict that its family's configuration class reads.

    Raises
    ------
    ValueError
        The family has no words for what the config says.
    """
    family = FAMILIES[config.model_type]
    said = {name: name for name in family.reads.split() if name not in ("rope_theta", "rope_scaling")}
    inside = ("rope_theta", "partial_rotary_factor")  # of rope_parameters
    said |= {theirs: ours for theirs, ours in family.renamed.items() if ours not in inside}
    out = {"model_type": config.model_type, "architectures": [family.architecture]}
    out |= {theirs: getattr(config, ours) for theirs, ours in said.items()}
    if "query_pre_attn_scalar" in out and config.query_pre_attn_scalar == int(config.query_pre_attn_scalar or 0):
        out["query_pre_attn_scalar"] = int(config.query_pre_attn_scalar)
    if "rope_parameters" in out:
        rule = dict(config.rope_parameters)
        if out.pop("partial_rotary_factor", None) is not None:
            rule["partial_rotary_factor"] = config.partial_rotary_factor
        out["rope_parameters"] = rule
    if "layer_types" in out:
        out["layer_types"] = list(config.types_of_layers)
    if "use_sliding_window" in family.ignored:
        out["use_sliding_window"] = config.sliding_window is not None
    if out.pop("rope_local_base_freq", None) is not None:
        local = {"rope_type": "default", "rope_theta": config.rope_local_base_freq}
        out["rope_parameters"] = {_FULL: out["rope_parameters"], _SLIDING: local}
    if "original_max_position_embeddings" in family.ignored and config.rope_scaling is not None:
        out["original_max_position_embeddings"] = config.rope_scaling["original_max_position_embeddings"]
    return out


def _refuse_unless_neutral(name, value):
    if name in _NEUTRAL:
        if value not in _NEUTRAL[name] and not (name == "quantization_config" and _from_gguf(value)):
            raise ValueError(f"Config: {name}={value!r} is not supported")
    elif value is not None:
        raise ValueError(f"Config: field {name}={value!r} is not known, so what it changes is not either; remove it")


def _from_gguf(quantization):
    """Whether transformers left this note after it read a GGUF file: it has dequantised the weights already."""
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    return getattr(method, "value", method) == "gguf"
