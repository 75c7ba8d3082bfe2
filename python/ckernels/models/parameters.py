"""The parameters of a Llama-type model: their names, shapes and first values."""

import numpy as np

__all__ = ["check_parameters", "parameter_shapes", "random_parameters"]


def parameter_shapes(config):
    """Yield the name and shape of every parameter of a Llama-type model, in the order of a Hugging Face state_dict.

    Lazily: an absurd number of layers costs nothing until somebody asks for them.
    """
    C, F, V, D = config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim
    Q, KV = config.num_attention_heads * D, config.num_key_value_heads * D
    layer = {
        "self_attn.q_proj.weight": (Q, C),
        "self_attn.k_proj.weight": (KV, C),
        "self_attn.v_proj.weight": (KV, C),
        "self_attn.o_proj.weight": (C, Q),
        "mlp.gate_proj.weight": (F, C),
        "mlp.up_proj.weight": (F, C),
        "mlp.down_proj.weight": (C, F),
        "input_layernorm.weight": (C,),
        "post_attention_layernorm.weight": (C,),
    }
    yield "model.embed_tokens.weight", (V, C)
    for i in range(config.num_hidden_layers):
        for name, shape in layer.items():
            yield f"model.layers.{i}.{name}", shape
    yield "model.norm.weight", (C,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (V, C)


def check_parameters(config, shapes, where):
    """Refuse parameters that are missing, left over, or of another shape.

    Parameters
    ----------
    config : Config
        Decides names and shapes.
    shapes : dict
        Parameter name -> shape.
    where : str
        What the error text begins with: a file name, or the call.

    Raises
    ------
    ValueError
    """
    missing, wanted = [], set()
    for name, shape in parameter_shapes(config):
        wanted.add(name)
        if name not in shapes:
            missing.append(name)
            if len(missing) > 8:  # a config of a million layers is not listed in full
                break
        elif tuple(shapes[name]) != shape:
            raise ValueError(f"{where}: {name} has shape {tuple(shapes[name])}, the config asks for {shape}")
    if missing:
        raise ValueError(f"{where}: missing {_some(missing)}")
    if left := [name for name in shapes if name not in wanted]:
        raise ValueError(f"{where}: left over, the config has no use for {_some(left)}")


def _some(names):
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def random_parameters(config, seed=0):
    """Draw parameters for a model that was not trained.

    Matrices are normal with standard deviation 0.02.  Norm weights are normal around 1 with standard deviation 0.1, not
    exactly 1 as a fresh Hugging Face model has them: a norm that forgets its weight must not go unnoticed.

    Parameters
    ----------
    config : Config
        Decides names and shapes.
    seed : int
        The same seed and config give the same bits.

    Returns
    -------
    dict
        Parameter name -> float32 array.
    """
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(1.0, 0.1, shape) if len(shape) == 1 else rng.normal(0.0, 0.02, shape)).astype(np.float32)
        for name, shape in parameter_shapes(config)
    }
