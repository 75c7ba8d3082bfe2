"""The parameters of a decoder layer: their names, their shapes, and what the C layer calls them."""

__all__ = ["ACTIVATIONS", "layer_parameters"]

# Activations of an MLP by the names that Hugging Face gives them, and the number that the C layer knows each by.
ACTIVATIONS = {
    "relu": 1,
    "silu": 2,
    "swish": 2,
    "gelu": 3,
    "gelu_new": 4,
    "gelu_fast": 4,
    "gelu_pytorch_tanh": 4,
    "quick_gelu": 5,
}


def layer_parameters(config):
    """Return every parameter of a layer, in the order of a Hugging Face ``state_dict``.

    Parameters
    ----------
    config : ckernels.models.Config
        Decides which there are.

    Returns
    -------
    dict
        Name relative to the layer -> (argument of the C layer, shape, shape with heads as an axis).
    """
    C, F, D = config.hidden_size, config.intermediate_size, config.head_dim
    H, G = config.num_attention_heads, config.num_key_value_heads
    found = {}

    def put(name, argument, shape, heads=None):
        found[name] = (argument, shape, heads or shape)

    def project(name, argument, shape, heads, biased):
        put(f"{name}.weight", f"{argument}_weight", shape, heads)
        if biased:
            put(f"{name}.bias", f"{argument}_bias", shape[:1], heads[: len(heads) - len(shape) + 1])

    for x, n in ("q", H), ("k", G), ("v", G):
        project(f"self_attn.{x}_proj", x, (n * D, C), (n, D, C), config.attention_bias)
    put("self_attn.o_proj.weight", "o_weight", (C, H * D), (C, H, D))
    if config.attention_out_bias:
        put("self_attn.o_proj.bias", "o_bias", (C,))
    if config.qk_norm:
        put("self_attn.q_norm.weight", "q_norm_weight", (D,))
        put("self_attn.k_norm.weight", "k_norm_weight", (D,))
    if config.sinks:
        put("self_attn.sinks", "sinks", (H,))
    for x, shape in ("gate", (F, C)), ("up", (F, C)), ("down", (C, F)):
        if x != "gate" or config.gated_mlp:
            project(f"mlp.{x}_proj", x, shape, shape, config.mlp_bias)

    def norm(name, argument, biased=config.norm_bias):
        put(f"{name}.weight", f"{argument}_weight", (C,))
        if biased:
            put(f"{name}.bias", f"{argument}_bias", (C,))

    norm("input_layernorm", "ln1")
    if config.post_norms:
        norm("post_attention_layernorm", "post_attn_norm", False)
        norm("pre_feedforward_layernorm", "ln2")
        norm("post_feedforward_layernorm", "post_mlp_norm", False)
    elif not config.shared_norm:
        norm("post_attention_layernorm", "ln2")
    return found
