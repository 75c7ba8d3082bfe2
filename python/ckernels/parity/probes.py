"""Inputs of the levels: what a fixture must have so that a fault shows.

Norm weights away from one and of both signs, projections large enough that softmax is not flat, rows of tiny RMS that
let eps be seen, extents that all differ, ids that do not repeat a pattern.
"""

from __future__ import annotations

import numpy as np

BATCH, TOKENS = 2, 17
"""B and T of the layer level: a whole number of no vector, tile or block."""


def parameters(config, seed=0):
    """Draw float32 parameters of a model, by Hugging Face names.

    Parameters
    ----------
    config : ckernels.models.Config
        Decides names and shapes.
    seed : int
        The same seed gives the same bits.

    Returns
    -------
    dict of str to numpy.ndarray
        Matrices with standard deviation 1.5 / sqrt(columns), so that no activation fades; norm weights between 0.4
        and 2, every fifth one negative; rows of the embedding with elements of size one (1 / sqrt(C) where it is the
        head too), and every seventh row 1/300 of that.
    """
    from ckernels.models.parameters import parameter_shapes

    rng = np.random.default_rng([seed, 17])
    params = {}
    for name, shape in parameter_shapes(config):
        if len(shape) == 1:
            value = rng.uniform(0.4, 2.0, shape)
            value[::5] *= -1
        elif name == "model.embed_tokens.weight":
            value = rng.standard_normal(shape) * (shape[1] ** -0.5 if config.tie_word_embeddings else 1.0)
            value[::7] /= 300  # mean square near eps: a wrong eps cannot hide
        else:
            value = rng.standard_normal(shape) * (1.5 / shape[1] ** 0.5)
        params[name] = value.astype(np.float32)
    return params


def layer_parameters(params, index=0):
    """Those of one layer, by their names relative to it."""
    prefix = f"model.layers.{index}."
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def layer_input(config, seed=0, batch=BATCH, tokens=TOKENS):
    """Draw the input of a layer and the gradient of its output.

    Returns
    -------
    x, dy : numpy.ndarray
        float32 ``[B, T, C]``. Every seventh row of x is 1/300 as large; dy has the size that the mean over all tokens
        gives it in training.
    """
    rng = np.random.default_rng([seed, 29])
    x = rng.standard_normal((batch, tokens, config.hidden_size))
    x[:, 3::7] /= 300
    dy = rng.standard_normal(x.shape) / (batch * tokens)
    return x.astype(np.float32), dy.astype(np.float32)


def text(length, start=0):
    """So many characters of prose from the standard library, from the topic number `start` on."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    whole = ""
    while len(whole) < length:
        whole += topics[names[start % len(names)]].strip() + "\n\n"
        start += 1
    return whole[:length]


def training_batches(vocab, steps, seed=0, batch=3):
    """Batches of ids and targets for the training level: bytes of real text.

    Parameters
    ----------
    vocab : int
        Ids are taken modulo this; 257 holds every byte.
    steps : int
        How many batches.
    seed : int
        Where in the text they lie.
    batch : int
        Rows of a batch.

    Yields
    ------
    ids, targets : numpy.ndarray
        ``[B, T]`` int64, T odd and different from step to step. Targets are the next byte; in every batch two of them
        are ignored (-100).
    """
    rng = np.random.default_rng([seed, 41])
    data = np.frombuffer(text(60000, start=seed).encode(), np.uint8).astype(np.int64) % vocab
    for step in range(steps):
        tokens = (19, 13, 23, 17, 29)[step % 5]
        begins = rng.integers(0, data.size - tokens - 1, batch)
        rows = np.stack([data[begin : begin + tokens + 1] for begin in begins])
        targets = rows[:, 1:].copy()
        targets[0, 4] = targets[-1, -1] = -100
        yield rows[:, :-1].copy(), targets
