"""Specs of linear and matmul."""

from .spec import Probe, family, normal


def _linear_inputs(rng, *shape, N, bias=False, residual=False, **options):
    inputs = {"x": normal(rng, *shape), "weight": normal(rng, N, shape[-1], scale=shape[-1] ** -0.5)}
    if bias:
        inputs["bias"] = normal(rng, N, scale=0.3)
    if residual:
        inputs["residual"] = normal(rng, *shape[:-1], N)
    return inputs | options


def _linear_formula(torch, x, weight, bias=None, activation=None, residual=None):
    y = torch.nn.functional.linear(x, weight, bias)
    if activation == "gelu_tanh":
        y = torch.nn.functional.gelu(y, approximate="tanh")
    return y if residual is None else y + residual


LINEAR = family(
    "linear",
    [
        Probe("17 rows, 96 to 33, bias", lambda r: _linear_inputs(r, 17, 96, N=33, bias=True), quick=True),
        Probe("one row, 576 to 192", lambda r: _linear_inputs(r, 1, 576, N=192), quick=True),
        Probe("[2,3,1537] to 65", lambda r: _linear_inputs(r, 2, 3, 1537, N=65)),
        Probe("5 rows, 1 to 7", lambda r: _linear_inputs(r, 5, 1, N=7, bias=True)),
        Probe("3 rows, 80 to 1", lambda r: _linear_inputs(r, 3, 80, N=1)),
        Probe("130 rows, 64 to 100", lambda r: _linear_inputs(r, 130, 64, N=100)),
        Probe(
            "31 rows, 72 to 50, bias, gelu, residual",
            lambda r: _linear_inputs(r, 31, 72, N=50, bias=True, residual=True, activation="gelu_tanh"),
        ),
    ],
    _linear_formula,
    eager=_linear_formula,
    wrt=("x", "weight", "bias", "residual"),
)


def _matmul_inputs(rng, *lead, M, K, N, **options):
    a = (K, M) if options.get("transpose_a") else (M, K)
    b = (N, K) if options.get("transpose_b") else (K, N)
    return {"a": normal(rng, *lead, *a), "b": normal(rng, *lead, *b), **options}


def _matmul_formula(torch, a, b, transpose_a=False, transpose_b=False):
    return torch.matmul(a.mT if transpose_a else a, b.mT if transpose_b else b)


MATMUL = family(
    "matmul",
    [
        Probe("[2,3] of 5x17x33", lambda r: _matmul_inputs(r, 2, 3, M=5, K=17, N=33), quick=True),
        Probe("13x97x65", lambda r: _matmul_inputs(r, M=13, K=97, N=65)),
        Probe("transpose_b", lambda r: _matmul_inputs(r, 3, M=7, K=80, N=19, transpose_b=True)),
        Probe("transpose_a", lambda r: _matmul_inputs(r, 2, M=9, K=31, N=18, transpose_a=True)),
        Probe("both", lambda r: _matmul_inputs(r, M=6, K=257, N=11, transpose_a=True, transpose_b=True)),
    ],
    _matmul_formula,
    eager=_matmul_formula,
    wrt=("a", "b"),
)
