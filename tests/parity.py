"""Thin words over ckernels.parity for tests that compare with PyTorch."""

import numpy as np
import torch

from ckernels.parity import assert_parity


def as_torch(array, dtype=None, *, grad=False):
    """Return a tensor with a copy of an array; floating arrays become ``dtype``, which may be "float64"."""
    tensor = torch.from_numpy(np.array(array))
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    return tensor.requires_grad_() if grad else tensor


def _outputs(value):
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def assert_matches_torch(actual, function, *arrays, **options):
    """Compare outputs with ``function(*tensors)``, run in float64 as exact and in float32 as peer.

    ``actual`` is an array, or a tuple of them in the order of the results. ``options`` go to ``assert_parity``.
    """
    with torch.no_grad():
        exact, peer = (_outputs(function(*(as_torch(a, d) for a in arrays))) for d in ("float64", "float32"))
    return [assert_parity(a, e, p, **options) for a, e, p in zip(_outputs(actual), exact, peer, strict=True)]


def assert_gradients_match_torch(actual, function, arrays, dys, **options):
    """Compare gradients with autograd, in float64 as exact and in float32 as peer.

    ``actual`` holds one gradient for each of ``arrays``, None where there is none to compare (ids, say); ``dys`` holds
    the gradient of each output of ``function``.
    """
    chosen = [i for i, gradient in enumerate(actual) if gradient is not None]
    sides = []
    for dtype in ("float64", "float32"):
        tensors = [as_torch(a, dtype, grad=i in chosen) for i, a in enumerate(arrays)]
        results = _outputs(function(*tensors))
        incoming = [as_torch(d, dtype) for d in _outputs(dys)]
        sides.append(torch.autograd.grad(results, [tensors[i] for i in chosen], incoming))
    return [assert_parity(actual[i], e, p, **options) for i, e, p in zip(chosen, *sides, strict=True)]
