"""Specs of the rotary table and embedding."""

import numpy as np

from ..frequencies import exact_frequencies
from .spec import OpSpec, Probe, family, normal


def _angles(positions, dim, base):
    """Return angle = position * base^(-2i/dim) in float64."""
    return np.multiply.outer(np.asarray(positions, np.float64), base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim))


def _frequencies(inputs):
    positions = np.asarray(inputs["positions"])
    length = int(positions.max(initial=0)) + 1
    return exact_frequencies(inputs["dim"], inputs.get("base", 10000.0), inputs.get("scaling"), length)


def _rope_table_exact(inputs):
    frequencies, attention = _frequencies(inputs)
    angles = np.multiply.outer(np.asarray(inputs["positions"], np.float64), frequencies)
    return {"cos": attention * np.cos(angles), "sin": attention * np.sin(angles)}


def _rope_table_peer(inputs):
    """Compute what transformers does: frequencies and angles in float32."""
    import torch

    dim, attention = inputs["dim"], 1.0
    frequency = 1.0 / inputs.get("base", 10000.0) ** (torch.arange(0, dim, 2).float() / dim)
    if "scaling" in inputs:
        stretched, attention = _frequencies(inputs)
        frequency = torch.from_numpy(stretched).float()
    angles = torch.outer(torch.from_numpy(np.asarray(inputs["positions"])).float(), frequency)
    return {"cos": (angles.cos() * attention).numpy(), "sin": (angles.sin() * attention).numpy()}


def _table_probe(label, start, count, dim, quick=False, **options):
    return Probe(label, lambda r: {"positions": np.arange(start, start + count), "dim": dim, **options}, quick)


_LENGTH = {"original_max_position_embeddings": 1024}
_SCALED = {
    kind: {"scaling": {"rope_type": kind, **fields}}
    for kind, fields in {
        "linear": {"factor": 3.0},
        "ntk": {"factor": 3.0},
        "dynamic": {"factor": 2.0, **_LENGTH},
        "yarn": {"factor": 4.0, **_LENGTH},
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **_LENGTH},
        "longrope": {
            "factor": 8.0,
            "short_factor": [1.0] * 32,
            "long_factor": [1.0 + k / 8 for k in range(32)],
            **_LENGTH,
        },
    }.items()
}

ROPE_TABLE = [
    OpSpec(
        "rope_table",
        "forward",
        ("rope_table",),
        (
            _table_probe("positions 0 to 16", 0, 17, 64, quick=True),
            _table_probe("positions from 4095", 4095, 5, 96, quick=True),
            _table_probe("base 500000", 7, 33, 80, base=500000.0),
            _table_probe("dim 128", 1000, 3, 128),
            *(_table_probe(label, 4090, 7, 64, **options) for label, options in _SCALED.items()),
        ),
        lambda ck, inputs: dict(zip(("cos", "sin"), ck.rope_table(**inputs), strict=True)),
        _rope_table_exact,
        _rope_table_peer,
        # Angles are double, so each value is rounded once: half an ulp of one.
        bound=lambda inputs: 2.0**-24,
        dtypes=("float32",),
    )
]


def _rope_formula(torch, x, cos, sin, positions=None, interleaved=False):
    if positions is not None:
        cos, sin = cos[positions.long()], sin[positions.long()]
        if positions.ndim == 2:  # [B,T,K] beside [B,H,T,D]
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat((turned, rest), -1)


def _rope_inputs(rng, B, H, T, D, *, start=1, width=None, positions=None, interleaved=False):
    width = width or D
    rows = start + T if positions is None else int(np.max(positions)) + 1
    angles = _angles(np.arange(rows), width, 10000.0)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    inputs = {"x": normal(rng, B, H, T, D), "cos": cos, "sin": sin, "interleaved": interleaved}
    if positions is None:
        inputs |= {"cos": cos[start:], "sin": sin[start:]}
    else:
        inputs["positions"] = np.asarray(positions, np.int64)
    return inputs


ROPE = family(
    "rope",
    [
        Probe("half split, D 64", lambda r: _rope_inputs(r, 2, 3, 17, 64), quick=True),
        Probe("interleaved, D 80", lambda r: _rope_inputs(r, 2, 3, 5, 80, interleaved=True), quick=True),
        Probe("offset 4095, D 96", lambda r: _rope_inputs(r, 1, 5, 3, 96, start=4095)),
        Probe("partial width 32 of 80", lambda r: _rope_inputs(r, 2, 3, 7, 80, width=32)),
        Probe("partial, interleaved", lambda r: _rope_inputs(r, 2, 5, 7, 96, width=24, interleaved=True)),
        Probe("positions [T]", lambda r: _rope_inputs(r, 2, 3, 5, 32, positions=[9, 4, 4095, 7, 31])),
        Probe(
            "positions [B,T], D 128",
            lambda r: _rope_inputs(r, 2, 3, 5, 128, positions=[[1, 2, 3, 4, 5], [70, 71, 8, 9, 1000]]),
        ),
        Probe("D 34", lambda r: _rope_inputs(r, 3, 2, 19, 34, start=7)),
    ],
    _rope_formula,
    floats=("cos", "sin"),
)


def _mrope_formula(torch, x, cos, sin, positions, sections, interleaved=False, interleaved_sections=False):
    """Each pair by the table's row of its own axis, then one rotation."""
    axes = [axis for axis, pairs in enumerate(sections) for _ in range(pairs)]
    if interleaved_sections:  # 0 1 2 0 1 2 ... while an axis has pairs left, else 0
        n = len(sections)
        axes = [k % n if k // n < sections[k % n] else 0 for k in range(sum(sections))]
    pairs = torch.arange(len(axes))
    rows = positions.long()[axes].movedim(0, -1)  # [..., T, K]
    cos, sin = cos[rows, pairs], sin[rows, pairs]
    if positions.ndim == 3:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rope_formula(torch, x, cos, sin, None, interleaved)


def _mrope_inputs(rng, B, H, T, sections, D, *, batched=True, **options):
    pairs, rows = sum(sections), 97
    angles = _angles(np.arange(rows), 2 * pairs, 10000.0)
    shape = (len(sections), B, T) if batched else (len(sections), T)
    return {
        "x": normal(rng, B, H, T, D),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "positions": rng.integers(1, rows, shape),
        "sections": sections,
        **options,
    }


MROPE = family(
    "mrope",
    [
        Probe("sections 16 24 24, D 128", lambda r: _mrope_inputs(r, 1, 5, 8, (16, 24, 24), 128), quick=True),
        Probe("taking turns", lambda r: _mrope_inputs(r, 1, 7, 19, (24, 20, 20), 128, interleaved_sections=True)),
        Probe("pairs of neighbours", lambda r: _mrope_inputs(r, 2, 3, 5, (6, 6, 5), 40, interleaved=True), quick=True),
        Probe("an empty section, positions [A,T]", lambda r: _mrope_inputs(r, 2, 3, 5, (6, 0, 3), 18, batched=False)),
        Probe("two axes, partial width", lambda r: _mrope_inputs(r, 2, 3, 9, (4, 3), 80)),
    ],
    _mrope_formula,
    floats=("cos", "sin"),
)
