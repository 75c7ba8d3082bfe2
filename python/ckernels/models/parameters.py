"""The parameters of a model: their names, shapes and first values."""

import numpy as np

from ckernels.nn.parameters import layer_parameters

__all__ = ["check_parameters", "parameter_shapes", "random_parameters"]


def parameter_shapes(config):
    """Yield the name and shape of every parameter of a model, in the order of a Hugging Face state_dict.

    Lazily: an absurd number of layers costs nothing until somebody asks for them.
    """
    C, V = config.hidden_size, config.vocab_size
    layer = layer_parameters(config)
    yield "model.embed_tokens.weight", (V, C)
    if config.learned_positions:
        yield "model.embed_positions.weight", (config.max_position_embeddings, C)
    for i in range(config.num_hidden_layers):
        for name, (_, shape, _) in layer.items():
            yield f"model.layers.{i}.{name}", shape
    yield "model.norm.weight", (C,)
    if config.norm_bias:
        yield "model.norm.bias", (C,)
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

    Matrices, biases and sinks are normal with standard deviation 0.02.  Norm weights are normal with standard deviation
    0.1 around what leaves a row as it is, 1 or with an offset of 1 zero, not exactly that as a fresh Hugging Face model
    has them: a norm that forgets its weight must not go unnoticed.

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
    params = {}
    for name, shape in parameter_shapes(config):
        is_norm = name.endswith("norm.weight")
        middle, spread = (1.0 - config.rms_norm_offset, 0.1) if is_norm else (0.0, 0.02)
        params[name] = rng.normal(middle, spread, shape).astype(np.float32)
    return params
