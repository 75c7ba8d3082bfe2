"""Specs of the activations and the gated units."""

import numpy as np

from .spec import Probe, family, normal


def _silu_formula(torch, x):
    return x * torch.sigmoid(x)


def _silu_eager(torch, x):
    return torch.nn.functional.silu(x)


def _pointwise_probes(small=1e-2, **options):
    return [
        Probe("of order one", lambda r: {"x": normal(r, 5, 33, scale=3), **options}, quick=True),
        Probe("±200", lambda r: {"x": (200 * r.uniform(-1, 1, (7, 97))).astype(np.float32), **options}),
        Probe("-90 to -2", lambda r: {"x": r.uniform(-90, -2, (3, 1031)).astype(np.float32), **options}),
        Probe("near zero", lambda r: {"x": normal(r, 7, 65, scale=small), **options}),
    ]


SILU = family("silu", _pointwise_probes(), _silu_formula, eager=_silu_eager)


def _relu(torch, x):
    return torch.relu(x)


# Where every input is negative, relu is zero everywhere, and an output of zeros would pass.
RELU = family("relu", [p for p in _pointwise_probes() if p.label != "-90 to -2"], _relu, eager=_relu)


def _gelu_formula(torch, x, approximate="none"):
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    if approximate == "sigmoid":
        return x * torch.sigmoid(1.702 * x)
    return 0.5 * x * torch.erfc(x * -(0.5**0.5))


def _gelu_eager(torch, x, approximate="none"):
    if approximate == "sigmoid":  # PyTorch has none: in float32, rounded once
        return _gelu_formula(torch, x.float(), approximate).to(x.dtype)
    return torch.nn.functional.gelu(x, approximate=approximate)


def _gelu_probes():
    """Each form in full, but the tails where the result is 0 to the last bit, for PyTorch from -5.5 on."""
    for form in ("none", "tanh", "sigmoid"):
        for probe in _pointwise_probes(approximate=form):
            if probe.label != "-90 to -2":
                yield Probe(f"{form}, {probe.label}", probe.inputs, probe.quick)
        yield Probe(
            f"{form}, -5 to -1",
            lambda r, form=form: {"x": r.uniform(-5, -1, (3, 1031)).astype(np.float32), "approximate": form},
        )


GELU = family("gelu", list(_gelu_probes()), _gelu_formula, eager=_gelu_eager)


def _sigmoid(torch, x):
    return torch.sigmoid(x)


SIGMOID = family("sigmoid", _pointwise_probes(), _sigmoid, eager=_sigmoid)


def _tanh(torch, x):
    return torch.tanh(x)


# From -9 down tanh is -1, and near zero it is its input: a constant or the input would pass.
TANH = family("tanh", [p for p in _pointwise_probes(0.3) if p.label != "-90 to -2"], _tanh, eager=_tanh)


def _softcap_formula(torch, x, cap):
    return cap * torch.tanh(x / cap)


SOFTCAP = family(
    "softcap",
    [
        Probe("cap 30, of order ten", lambda r: {"x": normal(r, 5, 33, scale=20), "cap": 30.0}, quick=True),
        Probe("cap 50, ±200", lambda r: {"x": (200 * r.uniform(-1, 1, (7, 97))).astype(np.float32), "cap": 50.0}),
        Probe("cap 0.7, near zero", lambda r: {"x": normal(r, 7, 65, scale=0.1), "cap": 0.7}),
    ],
    _softcap_formula,
)


def _swiglu_formula(torch, gate, up=None):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def _swiglu_eager(torch, gate, up=None):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


SWIGLU = family(
    "swiglu",
    [
        Probe("gate and up", lambda r: {"gate": normal(r, 5, 33, scale=3), "up": normal(r, 5, 33)}, quick=True),
        Probe("packed", lambda r: {"gate": normal(r, 3, 7, 2 * 97, scale=2)}, quick=True),
        Probe("gate of ±200", lambda r: {"gate": normal(r, 7, 577, scale=80), "up": normal(r, 7, 577, scale=5)}),
    ],
    _swiglu_formula,
    eager=_swiglu_eager,
    wrt=("gate", "up"),
)


def _geglu_formula(torch, gate, up=None, approximate="none"):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return _gelu_formula(torch, gate, approximate) * up


def _geglu_eager(torch, gate, up=None, approximate="none"):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return _gelu_eager(torch, gate, approximate) * up


def _gated(rng, rows, columns, scale=3.0, **options):
    return {"gate": normal(rng, rows, columns, scale=scale), "up": normal(rng, rows, columns), **options}


GEGLU = family(
    "geglu",
    [
        Probe("none", lambda r: _gated(r, 5, 33), quick=True),
        Probe("tanh", lambda r: _gated(r, 7, 65, approximate="tanh")),
        Probe("sigmoid", lambda r: _gated(r, 7, 97, approximate="sigmoid")),
        Probe("packed", lambda r: {"gate": normal(r, 3, 7, 2 * 97, scale=2)}, quick=True),
        Probe("gate of ±200", lambda r: _gated(r, 7, 577, scale=80)),
    ],
    _geglu_formula,
    eager=_geglu_eager,
    wrt=("gate", "up"),
)


def _reglu(torch, gate, up=None):
    if up is None:
        gate, up = gate.chunk(2, -1)
    return torch.relu(gate) * up


REGLU = family(
    "reglu",
    [
        Probe("gate and up", lambda r: _gated(r, 5, 33), quick=True),
        Probe("packed", lambda r: {"gate": normal(r, 3, 7, 2 * 97, scale=2)}),
    ],
    _reglu,
    eager=_reglu,
    wrt=("gate", "up"),
)

ACTIVATIONS = RELU + GELU + SILU + SIGMOID + TANH + SOFTCAP
GATED = SWIGLU + GEGLU + REGLU
