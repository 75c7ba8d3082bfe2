"""Both ends of a model: from ids to the first layer's input, and from the last layer's output to logits."""

from typing import NamedTuple

import numpy as np

import ckernels as ck

__all__ = ["EMBEDDING", "HEAD", "NORM", "POSITIONS", "Ends"]

EMBEDDING, POSITIONS = "model.embed_tokens.weight", "model.embed_positions.weight"
NORM, HEAD = "model.norm", "lm_head.weight"


class Embedded(NamedTuple):
    """What the gradient of the embedding needs."""

    rows: tuple
    places: tuple | None


class Ends:
    """Embedding with its scale and learned positions; final norm, output projection and cap of the logits.

    Parameters
    ----------
    config : Config
    params : dict
        Of the model; looked at anew in each call.
    """

    def __init__(self, config, params):
        self.config, self.params = config, params

    def __call__(self, ids, places=None, out=None):
        """Return the input of the first layer, [B, T, C], and a context for :meth:`gradients`."""
        x, rows = ck.embedding_forward(ids, self.params[EMBEDDING], out=out)
        factor = self._factor()
        if factor != 1:
            nothing = np.broadcast_to(np.zeros(x.shape[-1], x.dtype), x.shape)
            ck.add(nothing, x, factor, out=x)  # 0 + factor * x: one rounding
        if not self.config.learned_positions:
            return x, Embedded(rows, None)
        if places is None:
            places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        added, of_places = ck.embedding_forward(np.ascontiguousarray(places), self.params[POSITIONS])
        return ck.add(x, added, out=x), Embedded(rows, of_places)

    def _factor(self):
        """Return what rows are multiplied by, as transformers stores it: float32, and then the dtype of the table."""
        return float(np.float32(self.config.embedding_multiplier).astype(self.params[EMBEDDING].dtype))

    def gradients(self, dy, ctx, onto=None):
        """Return the gradients of the tables by name; ``onto``: that of a tied head, which is added to."""
        grads = {}
        if ctx.places is not None:
            grads[POSITIONS] = ck.embedding_backward(dy, ctx.places).weight
        factor = self._factor()
        if factor != 1:
            dy = ck.add(np.broadcast_to(np.zeros(dy.shape[-1], dy.dtype), dy.shape), dy, factor)
        if onto is None:
            return grads | {EMBEDDING: ck.embedding_backward(dy, ctx.rows).weight}
        # Added to the rows that were read, with no second table.
        both = ck.embedding_backward(dy, ctx.rows, out=(onto,), accumulate=True)
        return grads | {EMBEDDING: both.weight}

    def norm(self, x):
        """Return the normed output of the last layer, and a context."""
        config, weight = self.config, self.params[f"{NORM}.weight"]
        if config.norm_type == "layer_norm":
            return ck.layer_norm_forward(x, weight, self.params.get(f"{NORM}.bias"), config.rms_norm_eps)
        return ck.rms_norm_forward(x, weight, config.rms_norm_eps, offset=config.rms_norm_offset)

    def norm_backward(self, dy, ctx):
        """Return the gradient of the last layer's output, and those of the norm by name."""
        back = ck.layer_norm_backward if self.config.norm_type == "layer_norm" else ck.rms_norm_backward
        found = back(dy, ctx)
        grads = {f"{NORM}.weight": found.weight}
        if self.config.norm_bias:
            grads[f"{NORM}.bias"] = found.bias
        return found.x, grads

    @property
    def head(self):
        """The output projection [V, C]."""
        return self.params[EMBEDDING if self.config.tie_word_embeddings else HEAD]

    def logits(self, x):
        """Return the logits of normed rows."""
        y, cap = ck.linear(x, self.head), self.config.final_logit_softcapping
        return y if cap is None else ck.softcap(y, cap, out=y)

    def check_length(self, call, length):
        """Refuse more tokens than there are learned positions."""
        most = self.config.max_position_embeddings
        if self.config.learned_positions and length > most:
            raise ValueError(f"{call}: {length} tokens, and the model has learned {most} positions")
