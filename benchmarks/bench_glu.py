"""Gated units: bound by memory.  Forward reads gate and up and writes y; backward reads three and writes two.

gate and up are halves of one array, as one projection leaves them; packed, the op is given the array itself.
"""
from harness import F, normal, pair

CASES = [(4096, 4096), (512, 1536), (2048, 5632), (16384, 1000), (65536, 64), (1, 1536)]
PEERS = {  # op, variant: (arguments, PyTorch's activation)
    ("swiglu", ""): ({}, lambda gate: F.silu(gate)),
    ("geglu", "tanh"): ({"approximate": "tanh"}, lambda gate: F.gelu(gate, approximate="tanh")),
    ("geglu", "erf"): ({}, lambda gate: F.gelu(gate)),
    ("reglu", ""): ({}, lambda gate: F.relu(gate)),
}


def bench(op, variant, R, C):
    """Beside the activation and a product."""
    options, activation = PEERS[op, variant]

    def draw(rng, dtype):
        both = normal(rng, (R, 2 * C), dtype)
        return [both[:, :C], both[:, C:]]
    pair(op, f"{R}x{C}", draw, lambda gate, up: activation(gate) * up, moves=(3 * R * C, 5 * R * C), options=options,
         aims=((8, 0.8), (8, 0.8)) if op == "swiglu" else ((None, 0.8), (None, 0.8)), variant=variant)


def bench_packed(R, C):
    """The same of one array [R, 2C]."""
    def peer(both):
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up
    pair("swiglu", f"{R}x{C}", lambda rng, dtype: [normal(rng, (R, 2 * C), dtype)], peer,
         moves=(3 * R * C, 5 * R * C), variant="packed")


for op, variant in PEERS:
    for R, C in CASES if op == "swiglu" else CASES[:1]:
        bench(op, variant, R, C)
bench_packed(*CASES[0])
