"""What a model is called with, checked: parameters, ids, counts, gradients."""

from collections.abc import Mapping

import numpy as np

from ckernels.nn.decoder import DTYPES

from .parameters import check_parameters, parameter_shapes

__all__ = ["as_counts", "check_gradients", "checked", "from_anything"]

_SINKS = "self_attn.sinks"  # float32 in every model


def checked(config, params):
    """Return ``params`` as a dict in the usual order, or say what is wrong with them."""
    if not isinstance(params, Mapping):
        raise TypeError(f"Model(): 'params' must be a dict of arrays, got {type(params).__name__}")
    arrays, kinds = {}, {}
    for name, value in params.items():
        value = value if isinstance(value, np.ndarray) else from_anything("Model()", name, value)
        kinds.setdefault(name.endswith(_SINKS), np.dtype(np.float32) if name.endswith(_SINKS) else value.dtype)
        if value.dtype != kinds[name.endswith(_SINKS)] or value.dtype.name not in DTYPES:
            wanted = kinds[name.endswith(_SINKS)]
            wanted = wanted if wanted.name in DTYPES else np.dtype(np.float32)
            raise TypeError(f"Model(): {name} must be {wanted}, got {value.dtype}")
        arrays[name] = value
    check_parameters(config, {name: value.shape for name, value in arrays.items()}, "Model()")
    for name, value in arrays.items():
        if not value.flags.c_contiguous:
            raise ValueError(f"Model(): {name} must be contiguous; np.ascontiguousarray makes it so")
    return {name: arrays[name] for name, _ in parameter_shapes(config)}


def from_anything(call, name, value):
    """A list, or an array of another library, as a NumPy array; memory is shared where it can be."""
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(f"{call}: '{name}' does not lend its memory: {error}") from None
    if isinstance(value, (list, tuple)):
        try:
            return np.asarray(value, dtype=None if value else np.int64)
        except ValueError:
            raise ValueError(f"{call}: '{name}' is a list of lists of different lengths") from None
    raise TypeError(f"{call}: '{name}' must be an array, got {type(value).__name__}")


def as_counts(call, value):
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{call}: 'counts' is no array of integers: {error}") from None


def check_gradients(params, grads):
    if not isinstance(grads, Mapping):
        raise TypeError(f"loss_and_grads(): 'accumulate_into' must be a dict of arrays, got {type(grads).__name__}")
    for name in params:
        if name not in grads:
            raise ValueError(f"loss_and_grads(): 'accumulate_into' has no {name}")
        have, want = grads[name], params[name]
        if not isinstance(have, np.ndarray):
            raise TypeError(
                f"loss_and_grads(): accumulate_into[{name!r}] must be a NumPy array, got {type(have).__name__}"
            )
        if have.shape != want.shape or have.dtype != want.dtype:
            raise ValueError(
                f"loss_and_grads(): accumulate_into[{name!r}] is {have.dtype} of shape {have.shape}, "
                f"the parameter is {want.dtype} of shape {want.shape}"
            )
    if left := [name for name in grads if name not in params]:
        raise ValueError(f"loss_and_grads(): 'accumulate_into' has {left[0]}, which is no parameter")
