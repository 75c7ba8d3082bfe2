"""Specs of what chooses by scores: indices and copies, which must be the same."""

import numpy as np

from .spec import OUT, OpSpec, Probe, family, normal


def _scores(rng, *shape, equals=False):
    x = normal(rng, *shape)
    return {"x": np.round(3 * x) if equals else x}


def _with_nan(rng):
    inputs = _scores(rng, 7, 97)
    inputs["x"][[1, 3, 5], [40, 2, 96]] = np.nan
    inputs["x"][2, ::3] = OUT
    return inputs


ARGMAX = family(
    "argmax",
    [
        Probe("7 rows of 997", lambda r: _scores(r, 7, 997), quick=True),
        Probe("equals", lambda r: _scores(r, 3, 5, 130, equals=True)),
        Probe("NaN wins", _with_nan),
        Probe("one row of 151936", lambda r: _scores(r, 1, 151936)),
    ],
    lambda torch, x: torch.argmax(x, -1),
    wrt=(),
    bitwise=True,
)


def _sorted(torch, x, k):
    """Sort stably: equals by index, which torch.topk does not promise."""
    values, indices = torch.sort(x, dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]


TOPK = family(
    "topk",
    [
        Probe("20 of 997", lambda r: _scores(r, 7, 997) | {"k": 20}, quick=True),
        Probe("65 of 130, equals", lambda r: _scores(r, 3, 5, 130, equals=True) | {"k": 65}),
        Probe("all of 33", lambda r: _scores(r, 5, 33) | {"k": 33}),
        Probe("50 of 151936", lambda r: _scores(r, 1, 151936) | {"k": 50}),
    ],
    _sorted,
    outputs=("values", "indices"),
    wrt=(),
    bitwise=True,
)


def _sample_frequencies(inputs):
    """Return how often each id is to be drawn: the probabilities that the filters leave, in float64."""
    x = inputs["logits"][0].astype(np.float64) / inputs["temperature"]
    first = np.lexsort((np.arange(x.size), -x))
    p = np.exp(x - x.max())
    p[x < x[first[inputs["top_k"] - 1]]] = 0
    before = np.cumsum(p[first]) - p[first]
    p[first[before >= inputs["top_p"] * p.sum()]] = 0
    p[p < inputs["min_p"]] = 0
    return {"frequencies": p / p.sum()}


def _drawn_by_torch(inputs):
    """Return how often `torch.multinomial` draws each, of the same probabilities."""
    import torch

    p = torch.from_numpy(_sample_frequencies(inputs)["frequencies"]).float()
    drawn = torch.multinomial(p, len(inputs["logits"]), True, generator=torch.Generator().manual_seed(20))
    return {"frequencies": torch.bincount(drawn, minlength=p.numel()).numpy() / drawn.numel()}


def _draw(ck, inputs):
    drawn = ck.sample(**inputs)
    return {"frequencies": np.bincount(drawn, minlength=inputs["logits"].shape[-1]) / drawn.size}


def _six_deviations(inputs):
    """Return the error of a frequency that one draw in 10^9 exceeds."""
    p = _sample_frequencies(inputs)["frequencies"]
    return 6 * np.sqrt(p * (1 - p) / len(inputs["logits"]))


def _logits(rng, **options):
    given = {"temperature": 1.0, "top_k": 40, "top_p": 1.0, "min_p": 0.0, "seed": 20} | options
    return {"logits": np.repeat(normal(rng, 1, 40), 20000, 0)} | given


SAMPLE = [
    OpSpec(
        "sample",
        "forward",
        ("sample",),
        (
            Probe("no filter", lambda r: _logits(r, temperature=1.5), quick=True, extreme=True),
            Probe("top_k 7", lambda r: _logits(r, top_k=7), extreme=True),
            Probe("top_p 0.8", lambda r: _logits(r, top_p=0.8), quick=True, extreme=True),
            Probe("min_p 0.2", lambda r: _logits(r, min_p=0.2), extreme=True),
            Probe("all three", lambda r: _logits(r, temperature=0.7, top_k=20, top_p=0.9, min_p=0.05), extreme=True),
        ),
        _draw,
        _sample_frequencies,
        _drawn_by_torch,
        bound=_six_deviations,
        derived=("frequencies",),
    )
]

SELECTION = ARGMAX + TOPK + SAMPLE
