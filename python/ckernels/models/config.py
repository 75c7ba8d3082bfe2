"""What a model is: the fields of a Hugging Face configuration that decide its arithmetic."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ckernels.ops.rope import rope_table

__all__ = ["Config"]

# Fields of a Hugging Face configuration that change no number of a forward or backward pass: labels, token ids, what
# generation or a server does with the model, how weights were drawn or stored.  Names that start with "_" are
# bookkeeping of transformers and are ignored too.
_WITHOUT_ARITHMETIC = frozenset(
    """
    architectures attn_implementation auto_map base_model_pp_plan base_model_tp_plan bad_words_ids begin_suppress_tokens
    bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample
    dtype early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id id2label initializer_range is_llama_config keys_to_ignore_at_inference
    label2id length_penalty max_length min_length name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp
    problem_type pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()
)

# Fields that would change the arithmetic, with the only values under which they do not.
_NEUTRAL = {
    "attention_dropout": (0, 0.0, None),
    "hidden_dropout": (0, 0.0, None),
    "resid_pdrop": (0, 0.0, None),
    "embd_pdrop": (0, 0.0, None),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "is_decoder": (True, False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
    "quantization_config": (None,),
}


class _Derived(dict):
    """``rope_parameters`` as computed from the other fields, so that ``dataclasses.replace`` computes it anew."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape and the constants of a Llama-type decoder, with the field names of a Hugging Face configuration.

    Parameters
    ----------
    hidden_size : int
        C, channels of the residual stream.
    intermediate_size : int
        F, channels inside the gated MLP.
    num_hidden_layers : int
        Number of decoder layers.
    num_attention_heads : int
        H, query heads.
    num_key_value_heads : int, optional
        G, key and value heads; H must be a multiple of it.  Default: H.
    head_dim : int, optional
        D, channels of one head, even.  Default: C / H, which must then be whole.
    vocab_size : int
        V, rows of the embedding table.
    rms_norm_eps : float
        Added to the mean square, inside the root.
    rope_theta : float
        Base of the rotary angles: pair i of position p turns by ``p * rope_theta**(-2i/D)`` radians.
    rope_scaling : dict, optional
        How the rotary angles are stretched: what :func:`ckernels.rope_table` takes as ``scaling``.  None and the type
        "default", which becomes None, leave them as they are.
    rope_parameters : dict, optional
        The form that transformers 5 uses for the two fields above: ``{"rope_type": "default", "rope_theta": 10000.0}``.
        Given, it sets them; read, it always holds them.
    tie_word_embeddings : bool
        The output projection is the embedding table itself.
    max_position_embeddings : int
        Tokens that the model was trained on at once.  Kept for information: no length is refused because of it.
    hidden_act : str
        Activation of the gate; "silu".
    attention_bias, mlp_bias : bool
        Whether projections have biases; False.

    Raises
    ------
    ValueError
        A field is out of range, does not fit another, or asks for arithmetic that is not there; the text names it.
    TypeError
        A field is of the wrong kind.

    Examples
    --------
    >>> config = Config(hidden_size=64, intermediate_size=172, num_attention_heads=4)
    >>> config.num_key_value_heads, config.head_dim, config.rope_parameters
    (4, 16, {'rope_type': 'default', 'rope_theta': 10000.0})
    >>> Config.from_hf({"model_type": "llama", "hidden_act": "gelu"})
    Traceback (most recent call last):
    ...
    ValueError: Config: hidden_act='gelu' is not supported; supported: 'silu'
    """

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int = 32000
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = dataclasses.field(default=None, hash=False)
    rope_parameters: dict | None = dataclasses.field(default=None, compare=False, repr=False)
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self):
        self._fold_rope()
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
        ):
            self._set(name, _whole(name, getattr(self, name)))
        for name in "rms_norm_eps", "rope_theta":
            self._set(name, _positive(name, getattr(self, name)))
        for name in "tie_word_embeddings", "attention_bias", "mlp_bias":
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"Config: {name} must be a bool, got {getattr(self, name)!r}")
        self._fit_heads()
        if self.hidden_act != "silu":
            raise ValueError(f"Config: hidden_act={self.hidden_act!r} is not supported; supported: 'silu'")
        for name in "attention_bias", "mlp_bias":
            if getattr(self, name):
                raise ValueError(f"Config: {name}=True is not supported; layers have no biases")
        self._check_rope()
        rule = self.rope_scaling or {"rope_type": "default"}
        self._set("rope_parameters", _Derived(rule, rope_theta=self.rope_theta))

    def _set(self, name, value):
        object.__setattr__(self, name, value)  # the class is frozen for everyone else

    def _fold_rope(self):
        """One spelling of the rotary fields, whichever one was given."""
        given = self.rope_parameters
        if given is not None and not isinstance(given, _Derived):
            if not isinstance(given, Mapping):
                raise TypeError(f"Config: rope_parameters must be a dict, got {given!r}")
            if "rope_theta" in given:
                self._set("rope_theta", given["rope_theta"])
            self._set("rope_scaling", {k: v for k, v in given.items() if k != "rope_theta"})
        scaling = self.rope_scaling
        if scaling is None:
            return
        if not isinstance(scaling, Mapping):
            raise TypeError(f"Config: rope_scaling must be a dict, got {scaling!r}")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        rule = {"rope_type": kind, **{k: v for k, v in scaling.items() if k not in ("rope_type", "type")}}
        if kind != "default":
            if kind in ("yarn", "llama3", "longrope"):  # as transformers does
                rule.setdefault("original_max_position_embeddings", self.max_position_embeddings)
            self._set("rope_scaling", rule)
            return
        for name, value in rule.items():
            if name != "rope_type" and value not in _NEUTRAL.get(name, (None,)):
                raise ValueError(f"Config: rope field {name}={value!r} is not supported")
        self._set("rope_scaling", None)

    def _check_rope(self):
        """Refuse here what the table would refuse later."""
        try:
            rope_table(np.arange(1), self.head_dim, self.rope_theta, scaling=self.rope_rule)
        except (TypeError, ValueError) as error:
            text = str(error).removeprefix("rope_table(): ").replace("of 'scaling'", "of rope_scaling")
            raise type(error)(f"Config: {text}") from None

    @property
    def rope_rule(self):
        """``scaling`` of :func:`ckernels.rope_table`: ``rope_scaling`` with what it leaves to the other fields.

        Examples
        --------
        >>> Config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}).rope_rule
        {'rope_type': 'dynamic', 'factor': 2.0, 'original_max_position_embeddings': 2048}
        """
        if self.rope_scaling is None:
            return None
        rule, trained = dict(self.rope_scaling), self.max_position_embeddings
        if rule["rope_type"] == "dynamic":
            if rule.setdefault("original_max_position_embeddings", trained) != trained:
                raise ValueError(
                    f"Config: original_max_position_embeddings={rule['original_max_position_embeddings']} of "
                    f"rope_scaling contradicts max_position_embeddings={trained}, which 'dynamic' goes by"
                )
        longrope = rule["rope_type"] == "longrope" and rule.get("attention_factor") is None
        if rule.get("factor", 0) is None or (longrope and "factor" not in rule):
            original = rule["original_max_position_embeddings"]
            if rule["rope_type"] in ("yarn", "longrope") and isinstance(original, int) and original > 0:
                rule["factor"] = trained / original
        return rule

    def _fit_heads(self):
        C, H = self.hidden_size, self.num_attention_heads
        G = H if self.num_key_value_heads is None else _whole("num_key_value_heads", self.num_key_value_heads)
        if H % G:
            raise ValueError(f"Config: num_attention_heads={H} is not a multiple of num_key_value_heads={G}")
        if self.head_dim is None and C % H:
            raise ValueError(f"Config: hidden_size={C} is not a multiple of num_attention_heads={H}; give head_dim")
        D = C // H if self.head_dim is None else _whole("head_dim", self.head_dim)
        if D % 2:
            raise ValueError(f"Config: head_dim={D} is odd; rotary embedding turns pairs")
        self._set("num_key_value_heads", G)
        self._set("head_dim", D)

    @classmethod
    def from_hf(cls, source):
        """Read a Hugging Face configuration.

        Parameters
        ----------
        source : dict or object
            The content of a ``config.json``, or any object with ``to_dict()``, such as a ``LlamaConfig``.

        Returns
        -------
        Config
            Fields that ``source`` leaves out have the defaults of ``LlamaConfig``.

        Raises
        ------
        ValueError
            A field changes the arithmetic in a way that is not supported, or is not known; the text names it.
            Fields that change no number (token ids, ``torch_dtype``, ``use_cache``, ...) are ignored.
        """
        if hasattr(source, "to_dict"):
            source = source.to_dict()
        if not isinstance(source, Mapping):
            raise TypeError(f"Config.from_hf(): expected a dict or a configuration, got {type(source).__name__}")
        kind = source.get("model_type", "llama")
        if kind != "llama":
            raise ValueError(f"Config: model_type={kind!r} is not supported; supported: 'llama'")
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {}
        for name, value in source.items():
            if name in known:
                fields[name] = value
            elif not (name == "model_type" or name in _WITHOUT_ARITHMETIC or str(name).startswith("_")):
                _refuse_unless_neutral(name, value)
        fields = {name: value for name, value in fields.items() if value is not None}
        _refuse_two_bases(fields)
        return cls(**fields)

    def to_hf(self):
        """Return the configuration as a dict that ``LlamaConfig(**d)`` and :meth:`from_hf` read.

        Examples
        --------
        >>> config = Config(num_attention_heads=8, rope_theta=5e5)
        >>> Config.from_hf(config.to_hf()) == config
        True
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["rope_theta"], fields["rope_scaling"]
        fields["rope_parameters"] = dict(self.rope_parameters)
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **fields}


def _whole(name, value):
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"Config: {name} must be an integer, got {value!r}")
    value = value.__index__()
    if not 1 <= value < 2**31:
        raise ValueError(f"Config: {name}={value} is outside 1 .. {2**31 - 1}")
    return value


def _positive(name, value):
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"Config: {name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"Config: {name}={value} must be finite and above 0")
    return number


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


def _refuse_two_bases(fields):
    """Older and newer spelling side by side must say the same."""
    inner = fields.get("rope_parameters")
    inner = inner.get("rope_theta") if isinstance(inner, Mapping) else None
    if inner is not None and fields.get("rope_theta", inner) != inner:
        raise ValueError(f"Config: rope_theta={fields['rope_theta']} contradicts rope_parameters['rope_theta']={inner}")
    older = fields.get("rope_scaling")
    if isinstance(fields.get("rope_parameters"), Mapping) and isinstance(older, Mapping):
        rules = [Config(**{**fields, "rope_parameters": None, "rope_scaling": rule}) for rule in (older, {
            name: value for name, value in fields["rope_parameters"].items() if name != "rope_theta"
        })]
        if rules[0].rope_scaling != rules[1].rope_scaling:
            raise ValueError(f"Config: rope_scaling={older} contradicts rope_parameters={fields['rope_parameters']}")
