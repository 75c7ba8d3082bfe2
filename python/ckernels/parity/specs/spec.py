"""Every op declared once for the comparisons: inputs, the float64 result, PyTorch's result, and what to call.

The keys of an input dict are the argument names of the op, so ``ck.<op>(**inputs)`` is the call under test and
``formula(torch, **inputs)`` the same mathematics, run by PyTorch in float64 (exact) with autograd for the gradients.
``eager``, where given, is what a PyTorch user would call, run in the dtype of the call (the peer); elsewhere the peer
is the formula itself, in float32. PyTorch is imported when a spec is evaluated, not before.

Inputs are made in float32 and then rounded to the dtype of the call; every party starts from the rounded values. Some
stay float32 whatever the dtype (tables, statistics), and the weights of norms may be either. Where an input or a
result is float32, the peer computes in float32, as PyTorch promotes a mix, and rounds once to the dtype of its result;
inputs named ``aside`` promote nothing: ``eager`` takes them as they are beside 16 bits.

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

#: The dtypes of the kernels, by name.
DTYPES = ("float32", "float16", "bfloat16")


def dtype_of(name):
    """Return the NumPy dtype of a name of DTYPES."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


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
    extreme : bool or tuple of str
        The documented ceiling is no promise here (or not in these dtypes), the rule is: rounding one score of 200 to
        float32 moves a probability by up to 8e-6 of itself, so that no result in float32 can promise 1e-5. A
        probability near one, kept in 16 bits, says little of what is left to the others, for everyone.
    """

    label: str
    inputs: Callable
    quick: bool = False
    extreme: bool | tuple = False

    def is_extreme(self, dtype):
        """Say whether the documented ceiling is no promise in this dtype."""
        return dtype in self.extreme if isinstance(self.extreme, tuple) else self.extreme


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
        ``exact(inputs)`` in float64 and ``peer(inputs)`` in the dtype of the inputs: dicts with the same names.
    bitwise : bool
        The outputs are copies: compare bits.
    bound : callable or None
        ``bound(inputs)``: largest allowed error, which must hold besides the rule.
    dtypes : tuple of str
        The dtypes it runs in.
    floats : tuple of str
        Inputs that are float32 in every dtype: tables, sinks.
    weights : tuple of str
        Inputs that have the dtype of the call, or float32 beside 16 bits: each 16-bit dtype runs both ways.
    statistics : tuple of str
        Outputs that are float32 in every dtype: losses, log-sum-exps.
    derived : tuple of str
        Outputs that ``run`` computes in float64 from what the code under test returned: frequencies of drawn ids.
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
    dtypes: tuple = DTYPES
    floats: tuple = ()
    weights: tuple = ()
    statistics: tuple = ()
    derived: tuple = ()

    def inputs(self, probe, seed=0, dtype="float32", weights=None):
        """Return the inputs of a probe: the same for every pass, instruction set and run, rounded to ``dtype``.

        ``weights`` is the dtype of the inputs that may have another: by default, that of the call.
        """
        key = zlib.crc32(f"{self.name}/{probe.label}".encode())
        made = probe.inputs(np.random.default_rng([seed, key]))
        kinds = dict.fromkeys(self.floats, "float32") | dict.fromkeys(self.weights, weights or dtype)
        return {name: _rounded(value, kinds.get(name, dtype)) for name, value in made.items()}

    def result_dtype(self, name, inputs):
        """Return the name of the dtype that an output must have."""
        return _result_dtype(name, inputs, self.statistics)


def _rounded(value, dtype):
    """Round float32 arrays to a dtype, also those in lists; leave everything else alone."""
    if isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value):
        return [_rounded(v, dtype) for v in value]
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        with np.errstate(over="ignore"):  # a probe that leaves a dtype's range says so
            return value.astype(dtype_of(dtype))
    return value


def _floating(inputs):
    """Return the names of the dtypes of all floating arrays."""
    arrays = [v for value in inputs.values() for v in (value if isinstance(value, list) else [value])]
    return {v.dtype.name for v in arrays if isinstance(v, np.ndarray) and _is_floating(v)}


def _is_floating(array):
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def call_dtype(inputs):
    """Return the name of the dtype of a call: the 16-bit one, where float32 inputs stand beside it."""
    found = _floating(inputs)
    return next((name for name in reversed(DTYPES) if name in found), "float32")


def _result_dtype(name, inputs, statistics):
    source = inputs.get(name.removeprefix("d"))
    if name.startswith("d") and isinstance(source, np.ndarray):
        return source.dtype.name  # a gradient is like its input
    return "float32" if name in statistics else call_dtype(inputs)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch, in float64 and in the dtypes of the inputs


def as_tensor(array, dtype=None):
    """Copy an array to a tensor, if it is floating of the dtype named."""
    import torch

    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.to(getattr(torch, dtype)) if dtype and tensor.is_floating_point() else tensor


def as_array(tensor, dtype=None):
    """Copy a tensor to an array, if it is floating of the dtype named."""
    import torch

    tensor = tensor.detach()
    if dtype and tensor.is_floating_point():
        tensor = tensor.to(getattr(torch, dtype))
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(dtype_of("bfloat16"))
    return tensor.numpy()


def _tensors(inputs, dtype, aside=()):
    """Turn arrays into tensors, floating ones of the given dtype; leave numbers and options alone."""

    def chosen(key, array):
        return "float32" if key in aside and dtype != "float64" and array.dtype == np.float32 else dtype

    return {key: as_tensor(v, chosen(key, v)) if isinstance(v, np.ndarray) else v for key, v in inputs.items()}


def as_tuple(value):
    return tuple(value) if isinstance(value, tuple | list) else (value,)


@dataclass(frozen=True)
class _Family:
    """What the passes of an op share, for both references."""

    formula: Callable
    eager: Callable | None
    outputs: tuple
    wrt: tuple
    statistics: tuple
    aside: tuple

    def chosen(self, inputs):
        """Return the inputs that have a gradient here."""
        return [name for name in self.wrt if isinstance(inputs.get(name), np.ndarray)]

    def incoming(self, inputs, results):
        """Return the gradients that flow in, in the dtypes of the op's own results."""
        dtypes = [_result_dtype(name, inputs, self.statistics) for name in self.outputs]
        return [_rounded(d, dtype) for d, dtype in zip(_cotangents(results), dtypes, strict=True)]

    def precision(self, name, inputs, dys=()):
        """Return the dtype in which the peer computes one result."""
        promoted = _floating({key: value for key, value in inputs.items() if key not in self.aside})
        flowing = zip(self.outputs, dys, strict=False)
        promoted |= {d.dtype.name for out, d in flowing if d.ndim and out not in self.aside}
        alone = name.startswith("d") and name.removeprefix("d") in self.aside
        result = call_dtype(inputs) if alone else _result_dtype(name, inputs, self.statistics)
        return "float32" if self.eager is None or "float32" in (promoted | {result}) else result

    def forward(self, inputs, *, exact):
        """Return the outputs by name: all of them in float64, or each by its peer."""
        import torch

        function = self.formula if exact or self.eager is None else self.eager

        @functools.cache
        def results(dtype):
            with torch.no_grad():
                return as_tuple(function(torch, **_tensors(inputs, dtype, self.aside)))

        return self._by_name(self.outputs, inputs, exact, results, ())

    def backward(self, inputs, *, exact):
        """Return the gradients by name: all of them in float64, or each by its peer."""
        import torch

        function = self.formula if exact or self.eager is None else self.eager
        chosen = self.chosen(inputs)
        dys = []

        @functools.cache
        def gradients(dtype):
            tensors = _tensors(inputs, dtype, self.aside)
            for name in chosen:
                tensors[name].requires_grad_()
            results = as_tuple(function(torch, **tensors))
            dys[:] = self.incoming(inputs, results)
            incoming = [as_tensor(d).to(r.dtype) for d, r in zip(dys, results, strict=True)]
            return torch.autograd.grad(results, [tensors[name] for name in chosen], incoming)

        if not exact:
            gradients("float32")  # its shapes say what flows in, and so in which dtype the peers compute
        return self._by_name([f"d{name}" for name in chosen], inputs, exact, gradients, dys)

    def _by_name(self, names, inputs, exact, results, dys):
        if exact:
            return {n: as_array(v) for n, v in zip(names, results("float64"), strict=True)}
        found = {}
        for i, name in enumerate(names):
            values = results(self.precision(name, inputs, dys))
            assert len(values) == len(names)
            found[name] = as_array(values[i], _result_dtype(name, inputs, self.statistics))
        return found


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


def family(
    name,
    probes,
    formula,
    *,
    eager=None,
    outputs=("y",),
    wrt=("x",),
    bound=None,
    bitwise=False,
    dtypes=DTYPES,
    floats=(),
    weights=(),
    statistics=(),
    aside=(),
):
    """Declare the forward and the backward pass of an op.

    Without ``eager`` the peer is ``formula`` in float32. ``aside`` names float32 inputs that ``eager`` takes as they
    are beside 16 bits, and float32 outputs whose gradient does not make the peer compute in float32.
    """
    sides = _Family(formula, eager, outputs, wrt, statistics, aside)
    kinds = {"dtypes": dtypes, "floats": floats, "weights": weights, "statistics": statistics}

    def forward(ck, inputs):
        return dict(zip(outputs, as_tuple(getattr(ck, name)(**inputs)), strict=True))

    def backward(ck, inputs):
        y, ctx = getattr(ck, f"{name}_forward")(**inputs)
        dys = [float(d) if d.ndim == 0 else d for d in sides.incoming(inputs, [np.asarray(r) for r in as_tuple(y)])]
        grads = getattr(ck, f"{name}_backward")(dys[0] if len(dys) == 1 else tuple(dys), ctx)
        return {f"d{n}": _given(grads, n) for n in sides.chosen(inputs)}

    passes = [
        OpSpec(
            name,
            "forward",
            (name,),
            tuple(probes),
            forward,
            functools.partial(sides.forward, exact=True),
            functools.partial(sides.forward, exact=False),
            bitwise=bitwise,
            bound=bound,
            **kinds,
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
                functools.partial(sides.backward, exact=True),
                functools.partial(sides.backward, exact=False),
                **kinds,
            )
        )
    return passes


def normal(rng, *shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(np.float32)
