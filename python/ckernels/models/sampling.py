"""Generating text: one token at a time, the likeliest or a drawn one."""

import math
import numbers

import numpy as np

from ckernels.ops.selection import sample

__all__ = ["generate"]

_KIND = {numbers.Integral: "an integer", numbers.Real: "a number"}


def generate(model, ids, max_new_tokens, temperature, top_k, top_p, seed, eos_token_id):
    """Check the arguments now and return the iterator; see :meth:`Model.generate`."""
    ids, single = model._ids("generate()", ids)
    if not single and len(ids) != 1:
        raise ValueError(f"generate(): 'ids' of shape {ids.shape} is more than one text")
    if ids.shape[1] == 0:
        raise ValueError("generate(): 'ids' must hold at least one token")
    if isinstance(max_new_tokens, bool) or not hasattr(max_new_tokens, "__index__"):
        raise TypeError(f"generate(): 'max_new_tokens' must be an integer, got {max_new_tokens!r}")
    if max_new_tokens < 0:
        raise ValueError(f"generate(): max_new_tokens={max_new_tokens} must be 0 or more")
    for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
        wanted = numbers.Integral if name == "top_k" else numbers.Real
        if not isinstance(value, wanted) and not (value is None and name != "temperature"):
            raise TypeError(f"generate(): '{name}' must be {_KIND[wanted]}, got {value!r}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"generate(): temperature={temperature} must be finite and 0 or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate(): top_k={top_k} must be 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate(): top_p={top_p} must be above 0 and at most 1")
    stop = () if eos_token_id is None else np.atleast_1d(eos_token_id).tolist()
    if not all(isinstance(token, int) for token in stop):
        raise TypeError(f"generate(): 'eos_token_id' must be an integer or several, got {eos_token_id!r}")
    try:
        rng = np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"generate(): 'seed' is none: {error}") from None
    return _tokens(model, ids, max_new_tokens, lambda row: _choose(row, temperature, top_k, top_p, rng), stop)


def _tokens(model, ids, max_new_tokens, choose, stop):
    # The last token is yielded and never put back in, so the cache has no room for it.
    cache = model.new_cache(ids.shape[1] + max(max_new_tokens - 1, 0))
    for _ in range(max_new_tokens):
        token = choose(model(ids, last_only=True, cache=cache)[0, 0])
        yield token
        if token in stop:
            return
        ids = np.array([[token]])


def _choose(row, temperature, top_k, top_p, rng):
    """Return a token for one row of logits."""
    narrow = None if top_k is None else min(top_k, row.size)
    seed = 0 if temperature == 0 else int(rng.integers(-(2**63), 2**63))
    try:
        return int(sample(row, temperature=temperature, top_k=narrow, top_p=top_p, seed=seed))
    except ValueError as error:
        raise ValueError(str(error).replace("sample():", "generate():")) from None
