"""Specs of what moves heads: copies, compared bit by bit."""

from .spec import Probe, family, normal


def _split_formula(torch, qkv, H, G, D):
    parts = qkv.split((H * D, G * D, G * D), -1)
    return tuple(part.unflatten(-1, (-1, D)).transpose(-2, -3) for part in parts)


def _qkv(rng, *batch, T, H, G, D):
    return {"qkv": normal(rng, *batch, T, (H + 2 * G) * D), "H": H, "G": G, "D": D}


SPLIT_QKV = family(
    "split_qkv",
    [
        Probe("GQA 3, D 64", lambda r: _qkv(r, 2, T=17, H=9, G=3, D=64), quick=True),
        Probe("GQA 7, D 33, no batch", lambda r: _qkv(r, T=5, H=7, G=1, D=33)),
        Probe("one token of three texts", lambda r: _qkv(r, 3, T=1, H=4, G=2, D=80)),
    ],
    _split_formula,
    outputs=("q", "k", "v"),
    wrt=("qkv",),
    bitwise=True,
)


def _swap_formula(torch, x):
    return x.transpose(-2, -3)


def _swaps(name):
    return family(
        name,
        [
            Probe("3x5 of 2x33", lambda r: {"x": normal(r, 2, 3, 5, 33)}, quick=True),
            Probe("9x17 of 64", lambda r: {"x": normal(r, 9, 17, 64)}),
            Probe("as many heads as tokens, 5x5 of 33", lambda r: {"x": normal(r, 2, 5, 5, 33)}),
        ],
        _swap_formula,
        bitwise=True,
    )


HEADS = SPLIT_QKV + _swaps("heads_to_tokens") + _swaps("tokens_to_heads")
