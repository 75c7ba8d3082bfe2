"""Every op declared once for the comparisons: inputs, the float64 result, PyTorch's result, and what to call.

The keys of an input dict are the argument names of the op, so ``ck.<op>(**inputs)`` is the call under test and
``formula(torch, **inputs)`` the same mathematics, run by PyTorch in float64 (exact) with autograd for the gradients.
``eager``, where given, is what a PyTorch user would call, run in float32 (the peer); elsewhere the peer is the formula
itself in float32. PyTorch is imported when a spec is evaluated, not before.

Extents within a probe differ pairwise, offsets and lengths are odd, and each probe has a reason, named in its label.
"""

import functools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# The negative infinity that masks a key.
OUT = -math.inf


@dataclass(frozen=True)
class Probe:
    """One set of inputs.

    Attributes
    ----------
    label : str
        What it is there to see.
    inputs : callable
        ``inputs(rng)`` returns them. Enough of them, too: with a handful of rows, PyTorch's error is a matter of luck.
    quick : bool
        It runs under ``--quick`` too.
    extreme : bool
        The documented ceiling is no promise here, the rule is: rounding one score of 200 to float32 moves a probability
        by up to 8e-6 of itself, so that no result in float32 can promise 1e-5.
    """

    label: str
    inputs: Callable
    quick: bool = False
    extreme: bool = False


@dataclass(frozen=True)
class OpSpec:
    """One pass of one op.

    Attributes
    ----------
    name, what : str
        The op, and "forward" or "backward".
    needs : tuple of str
        Names that the package must have; a missing one makes the op UNMEASURED.
    probes : tuple of Probe
    run : callable
        ``run(ck, inputs)`` calls the code under test; returns a dict of outputs by name.
    exact, peer : callable
        ``exact(inputs)`` in float64 and ``peer(inputs)`` in float32: dicts with the same names.
    bitwise : bool
        The outputs are copies: compare bits.
    bound : callable or None
        ``bound(inputs)``: largest allowed error, which must hold besides the rule.
    """

    name: str
    what: str
    needs: tuple
    probes: tuple
    run: Callable
    exact: Callable
    peer: Callable
    bitwise: bool = False
    bound: Callable | None = None

    def inputs(self, probe, seed=0):
        """Return the inputs of a probe: the same for every pass, instruction set and run."""
        key = zlib.crc32(f"{self.name}/{probe.label}".encode())
        return probe.inputs(np.random.default_rng([seed, key]))


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch, in float64 and in float32


def _tensors(torch, inputs, dtype):
    """Turn arrays into tensors, floating ones of the given dtype; leave numbers and options alone."""
    result = {}
    for key, value in inputs.items():
        if isinstance(value, np.ndarray):
            tensor = torch.from_numpy(np.ascontiguousarray(value))
            result[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        else:
            result[key] = value
    return result


def as_tuple(value):
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _evaluate(formula, outputs, inputs, dtype):
    import torch

    with torch.no_grad():
        results = as_tuple(formula(torch, **_tensors(torch, inputs, getattr(torch, dtype))))
    return {name: value.numpy() for name, value in zip(outputs, results, strict=True)}


def _differentiate(formula, wrt, inputs, dtype):
    import torch

    tensors = _tensors(torch, inputs, getattr(torch, dtype))
    chosen = [name for name in wrt if isinstance(inputs.get(name), np.ndarray)]
    for name in chosen:
        tensors[name].requires_grad_()
    results = as_tuple(formula(torch, **tensors))
    dys = [torch.from_numpy(d).to(r.dtype) for d, r in zip(_cotangents(results), results, strict=True)]
    grads = torch.autograd.grad(results, [tensors[name] for name in chosen], dys)
    return {f"d{name}": grad.numpy() for name, grad in zip(chosen, grads, strict=True)}


def _cotangents(results):
    """Return the gradients that flow in: fixed by the shapes, never one, never equal."""
    rng = np.random.default_rng(20)
    return [
        np.full((), 1.7, np.float32) if not r.shape else rng.standard_normal(r.shape).astype(np.float32)
        for r in results
    ]


def _given(value, name):
    """Look up a gradient by its input's name."""
    field = getattr(value, name, None)
    if field is None:
        raise AttributeError(f"backward returned no gradient '{name}'")
    return field


def family(name, probes, formula, *, eager=None, outputs=("y",), wrt=("x",), bound=None, bitwise=False, lossy=()):
    """Declare the forward and the backward pass of an op."""
    eager = eager or formula

    def forward(ck, inputs):
        return dict(zip(outputs, as_tuple(getattr(ck, name)(**inputs)), strict=True))

    def backward(ck, inputs):
        y, ctx = getattr(ck, f"{name}_forward")(**inputs)
        dys = [float(d) if d.ndim == 0 else d for d in _cotangents([np.asarray(r) for r in as_tuple(y)])]
        grads = getattr(ck, f"{name}_backward")(dys[0] if len(dys) == 1 else tuple(dys), ctx)
        return {f"d{n}": _given(grads, n) for n in wrt if isinstance(inputs.get(n), np.ndarray)}

    passes = [
        OpSpec(
            name,
            "forward",
            (name,),
            tuple(probes),
            forward,
            functools.partial(_evaluate, formula, outputs, dtype="float64"),
            functools.partial(_evaluate, eager, outputs, dtype="float32"),
            bitwise=bitwise,
            bound=bound,
        )
    ]
    if wrt:
        passes.append(
            OpSpec(
                name,
                "backward",
                (f"{name}_forward", f"{name}_backward"),
                tuple(probes),
                backward,
                functools.partial(_differentiate, formula, wrt, dtype="float64"),
                functools.partial(_differentiate, eager, wrt, dtype="float32"),
            )
        )
    return passes


def normal(rng, *shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(np.float32)
