"""Thin words over ckernels.parity for tests that compare with PyTorch, in any of the kernels' dtypes."""

import numpy as np
import torch

from ckernels.parity import assert_parity


def _torch_dtype(dtype):
    """Return the torch dtype of a name, a NumPy dtype or a torch dtype."""
    if isinstance(dtype, torch.dtype):
        return dtype
    return getattr(torch, dtype if isinstance(dtype, str) else np.dtype(dtype).name)


def as_torch(array, dtype=None, *, grad=False):
    """Return a tensor with a copy of an array; floating arrays become ``dtype``: a name, a NumPy or a torch dtype."""
    array = np.array(array)
    if array.dtype.name == "bfloat16":  # ml_dtypes': torch takes its bits
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(_torch_dtype(dtype))
    return tensor.requires_grad_() if grad else tensor


def _outputs(value):
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _precision(actual, arrays):
    """Return the dtype in which the peer of one result computes.

    That is the dtype of the result, but float32 where an array among the inputs is: PyTorch promotes a mix of dtypes,
    and many of its functions refuse it. The peer's result is then rounded once to the dtype of ``actual``.
    """
    # A number or an array of no axes promotes nothing in PyTorch either.
    mixed = any(a.dtype == np.float32 for a in arrays if getattr(a, "ndim", 0))
    return "float32" if mixed else actual.dtype.name


def assert_matches_torch(actual, function, *arrays, **options):
    """Compare outputs with ``function(*tensors)``, in float64 as exact and in the arrays' own dtype as peer.

    ``actual`` is an array, or a tuple of them in the order of the results; an output may have a dtype of its own (a
    float32 loss of bfloat16 logits), and its peer then computes in that. ``options`` go to ``assert_parity``.
    """
    actual = _outputs(actual)
    sides = {}
    with torch.no_grad():
        for dtype in ("float64", *(_precision(a, arrays) for a in actual)):
            if dtype not in sides:
                sides[dtype] = _outputs(function(*(as_torch(a, dtype) for a in arrays)))
    for side in sides.values():
        assert len(side) == len(actual), f"{len(actual)} results, {len(side)} of PyTorch"
    return [
        assert_parity(a, sides["float64"][i], sides[_precision(a, arrays)][i].to(_torch_dtype(a.dtype)), **options)
        for i, a in enumerate(actual)
    ]


def assert_gradients_match_torch(actual, function, arrays, dys, **options):
    """Compare gradients with autograd, in float64 as exact and in the arrays' own dtype as peer.

    ``actual`` holds one gradient for each of ``arrays``, None where there is none to compare (ids, say); ``dys`` holds
    the gradient of each output of ``function``.
    """
    chosen = [i for i, gradient in enumerate(actual) if gradient is not None]
    dys = _outputs(dys)
    sides = {}

    def side(dtype):
        if dtype not in sides:
            tensors = [as_torch(a, dtype, grad=i in chosen) for i, a in enumerate(arrays)]
            results = _outputs(function(*tensors))
            incoming = [as_torch(d, dtype).to(r.dtype) for d, r in zip(dys, results, strict=True)]
            sides[dtype] = torch.autograd.grad(results, [tensors[i] for i in chosen], incoming)
        return sides[dtype]

    reports = []
    for n, i in enumerate(chosen):
        peer = side(_precision(actual[i], (*arrays, *dys)))[n].to(_torch_dtype(actual[i].dtype))
        reports.append(assert_parity(actual[i], side("float64")[n], peer, **options))
    return reports
