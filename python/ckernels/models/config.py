"""What a model is: the fields of a Hugging Face configuration that decide its arithmetic."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ckernels.nn.parameters import ACTIVATIONS
from ckernels.ops.rope import rope_table

from .families import FAMILIES, read_hf, write_hf

__all__ = ["Config"]

LAYER_TYPES = ("full_attention", "sliding_attention")


class _Derived(dict):
    """``rope_parameters`` as computed from the other fields, so that ``dataclasses.replace`` computes it anew."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape and the constants of a decoder, with the field names of a Hugging Face configuration where it has them.

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
        Of every norm: added to the mean square, or the variance, inside the root.
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
        Activation of the gate, or of a plain MLP: "silu", "gelu", "gelu_new" or "gelu_pytorch_tanh", "quick_gelu",
        "relu".
    attention_bias, mlp_bias : bool
        Whether q, k and v, and the projections of the MLP, have biases.
    model_type : str
        The family, by which ``from_hf`` and ``to_hf`` name fields.
    attention_out_bias : bool, optional
        Whether the projection behind attention has one.  Default: as ``attention_bias``.
    norm_type : "rms_norm" or "layer_norm"
        Of the norms before attention, before the MLP and at the end.
    norm_bias : bool
        Whether layer norms have a bias.
    rms_norm_offset : float
        Added to the weight of every RMSNorm: 1 in Gemma.
    qk_norm : bool
        RMSNorm of each head of queries and keys, before rotation.
    post_norms : bool
        RMSNorm behind attention and behind the MLP, before each is added.
    gated_mlp : bool
        act(gate) * up; without, act(up).
    use_parallel_residual : bool
        The MLP reads the layer's input, not what attention made of it.
    shared_norm : bool
        With ``use_parallel_residual``: both branches read one norm.
    sinks : bool
        Every head of queries has a score without a key.
    sliding_window : int, optional
        Keys that a query of a layer with a window sees, itself included.
    layer_types : sequence of str, optional
        "full_attention" or "sliding_attention" for each layer.  Default: all have the window, if there is one.
    query_pre_attn_scalar : float, optional
        Scores are divided by its root.  Default: D.
    attn_logit_softcapping, final_logit_softcapping : float, optional
        c of ``c tanh(x / c)`` on scores and on logits.
    partial_rotary_factor : float
        Part of the channels of a head that is rotated, from the first on.
    rope_local_base_freq : float, optional
        ``rope_theta`` of layers with a window, which no ``rope_scaling`` stretches.  Default: as the others.
    learned_positions : bool
        A table of positions is added to the embedding, and nothing is rotated.
    embedding_multiplier : float
        Rows of the embedding are multiplied by it, rounded to float32 and to the dtype of the model, as transformers
        does.

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
    >>> Config.from_hf({"model_type": "llama", "logits_scaling": 8.0})
    Traceback (most recent call last):
    ...
    ValueError: Config: field logits_scaling=8.0 is not known, so what it changes is not either; remove it
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
    model_type: str = "llama"
    attention_out_bias: bool | None = None
    norm_type: str = "rms_norm"
    norm_bias: bool = False
    rms_norm_offset: float = 0.0
    qk_norm: bool = False
    post_norms: bool = False
    gated_mlp: bool = True
    use_parallel_residual: bool = False
    shared_norm: bool = False
    sinks: bool = False
    sliding_window: int | None = None
    layer_types: tuple | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    partial_rotary_factor: float = 1.0
    rope_local_base_freq: float | None = None
    learned_positions: bool = False
    embedding_multiplier: float = 1.0

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
        self._check_kinds()
        self._fit_heads()
        self._fit_windows()
        self._check_rope()
        rule = self.rope_scaling or {"rope_type": "default"}
        self._set("rope_parameters", _Derived(rule, rope_theta=self.rope_theta))

    def _check_kinds(self):
        if self.attention_out_bias is None:
            self._set("attention_out_bias", self.attention_bias)
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"Config: {name} must be a bool, got {getattr(self, name)!r}")
        for name in _NUMBERS_OR_NONE:
            if getattr(self, name) is not None:
                self._set(name, _positive(name, getattr(self, name)))
        for name in "partial_rotary_factor", "embedding_multiplier":
            self._set(name, _positive(name, getattr(self, name)))
        if self.rms_norm_offset not in (0, 1):
            raise ValueError(f"Config: rms_norm_offset={self.rms_norm_offset!r} is not supported; supported: 0, 1")
        self._set("rms_norm_offset", float(self.rms_norm_offset))
        choices = {"hidden_act": ACTIVATIONS, "norm_type": ("rms_norm", "layer_norm"), "model_type": FAMILIES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"Config: {name}={getattr(self, name)!r} is not supported; supported: "
                                 f"{', '.join(map(repr, known))}")
        if self.shared_norm and not self.use_parallel_residual:
            raise ValueError("Config: shared_norm=True needs use_parallel_residual=True")
        if self.norm_bias and self.norm_type != "layer_norm":
            raise ValueError("Config: norm_bias=True needs norm_type='layer_norm'")

    def _fit_windows(self):
        if self.sliding_window is not None:
            self._set("sliding_window", _whole("sliding_window", self.sliding_window))
        if self.layer_types is None:
            return
        types = tuple(self.layer_types)
        if wrong := [kind for kind in types if kind not in LAYER_TYPES]:
            raise ValueError(f"Config: layer_types holds {wrong[0]!r}; supported: {', '.join(map(repr, LAYER_TYPES))}")
        if len(types) != self.num_hidden_layers:
            raise ValueError(f"Config: layer_types has {len(types)} entries for {self.num_hidden_layers} layers")
        if "sliding_attention" in types and self.sliding_window is None:
            raise ValueError("Config: layer_types holds 'sliding_attention', and there is no sliding_window")
        plain = "full_attention" if self.sliding_window is None else "sliding_attention"
        self._set("layer_types", None if set(types) == {plain} else types)

    @property
    def types_of_layers(self):
        """``layer_types``, whether it is given or not."""
        plain = "full_attention" if self.sliding_window is None else "sliding_attention"
        return self.layer_types or (plain,) * self.num_hidden_layers

    def window(self, index):
        """Return how many keys a query of a layer sees; 0: all before it."""
        sliding = self.layer_types is None or self.layer_types[index] == "sliding_attention"
        return self.sliding_window if sliding and self.sliding_window is not None else 0

    @property
    def attention_scale(self):
        """What scores are multiplied by."""
        return float(self.query_pre_attn_scalar or self.head_dim) ** -0.5

    @property
    def rotary_dim(self):
        """Channels of a head that are rotated."""
        return 0 if self.learned_positions else int(self.head_dim * self.partial_rotary_factor)

    def rotary(self, index):
        """Return base and ``scaling`` of the rotary table of a layer."""
        if self.rope_local_base_freq is not None and self.window(index):
            return self.rope_local_base_freq, None
        return self.rope_theta, self.rope_rule

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
            if name != "rope_type" and value is not None and (name, value) != ("partial_rotary_factor", 1):
                raise ValueError(f"Config: rope field {name}={value!r} is not supported")
        self._set("rope_scaling", None)

    def _check_rope(self):
        """Refuse here what the table would refuse later."""
        try:
            if self.rotary_dim:
                rope_table(np.arange(1), self.rotary_dim, self.rope_theta, scaling=self.rope_rule)
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
        self._set("num_key_value_heads", G)
        self._set("head_dim", D)
        K = self.rotary_dim
        if self.partial_rotary_factor > 1:
            raise ValueError(f"Config: partial_rotary_factor={self.partial_rotary_factor} is above 1")
        if K % 2:
            what = f"head_dim={D}" if K == D else f"partial_rotary_factor={self.partial_rotary_factor} of head_dim={D}"
            raise ValueError(f"Config: {what} is odd; rotary embedding turns pairs")

    @classmethod
    def from_hf(cls, source):
        """Read a Hugging Face configuration.

        Parameters
        ----------
        source : dict or object
            The content of a ``config.json``, or any object with ``to_dict()``, such as a ``LlamaConfig``.  Its
            ``model_type`` is one of the families of docs/models.md; "llama" where it is left out.

        Returns
        -------
        Config
            Fields that ``source`` leaves out have the defaults of the family's configuration class.

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
        fields = read_hf(source)
        _refuse_two_rules(fields)
        return cls(**fields)

    def to_hf(self):
        """Return the configuration as a dict that the family's configuration class and :meth:`from_hf` read.

        Raises
        ------
        ValueError
            The family has no words for what is said here.

        Examples
        --------
        >>> config = Config(num_attention_heads=8, rope_theta=5e5)
        >>> Config.from_hf(config.to_hf()) == config
        True
        """
        said = write_hf(self)
        read = Config(**read_hf(said))
        if read != self:
            names = [field.name for field in dataclasses.fields(self) if field.compare]
            name = next(name for name in names if getattr(read, name) != getattr(self, name))
            raise ValueError(f"Config: a Hugging Face configuration of type {self.model_type!r} cannot say "
                             f"{name}={getattr(self, name)!r}")
        return said


_NUMBERS_OR_NONE = (
    "query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping rope_local_base_freq"
).split()
_SWITCHES = (
    "tie_word_embeddings attention_bias mlp_bias attention_out_bias norm_bias qk_norm post_norms gated_mlp "
    "use_parallel_residual shared_norm sinks learned_positions"
).split()


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


def _refuse_two_rules(fields):
    """Older and newer spelling side by side must say the same."""
    older = fields.get("rope_scaling")
    if isinstance(fields.get("rope_parameters"), Mapping) and isinstance(older, Mapping):
        rules = [Config(**{**fields, "rope_parameters": None, "rope_scaling": rule}) for rule in (older, {
            name: value for name, value in fields["rope_parameters"].items() if name != "rope_theta"
        })]
        if rules[0].rope_scaling != rules[1].rope_scaling:
            raise ValueError(f"Config: rope_scaling={older} contradicts rope_parameters={fields['rope_parameters']}")
