"""The ops of ``csrc/ops.def`` as ``_ck`` declares them, and arguments that fit any of them."""

import re
from typing import NamedTuple

import numpy as np

from ckernels import _ck
from native import ROOT

OPS = re.findall(r"^CK_(?:OP|LAYER)\((\w+),", (ROOT / "csrc/ops.def").read_text(), re.M)
LINE = re.compile(r"^ {4}(\w+): (?:bool or |(list) of )?(\w+)(?:,? (?:broadcast to )?\[([^]]*)\])?(.*)$", re.M)
ARRAYS = {"float": np.float32, "double": np.float64, "ids": np.int64, "int64_t": np.int64, "uint8_t": np.uint8}
SIZES = {"K": 8}  # half of the others: rope has K pairs of D = 2K channels
# What excludes other arguments, left out of a full call: a layer that writes to a cache captures no scores.
EXCLUDES = {
    "decoder_fwd": {"lengths", "counts", "table", "copy_from", "copy_to"}
    | {f"{side}_{part}" for side in "kv" for part in ("codes", "scales", "biases")},
    # a plain, contiguous store has elements alone
    **dict.fromkeys(
        ("kv_append", "kv_append_batched", "kv_read", "kv_quantize", "kv_dequantize", "kv_attend"),
        {"k_scales", "k_biases", "v_scales", "v_biases", "scales", "biases", "table", "copy_from", "copy_to"},
    ),
}
# What may be absent in some layers, but not in the plainest.
NEEDED = {"decoder_fwd": {"ln2_weight"}, "decoder_bwd": {"ln2_weight", "residual1", "rstd2", "ln2"}}
ONE = {"kv_append_batched": "BN"}  # sizes that are 1: its lists hold one cache of one item


class Parameter(NamedTuple):
    """One line of a declaration; ``shape`` is None for a number."""

    name: str
    kind: str
    shape: str | None
    written: bool
    optional: bool
    listed: bool = False

    @property
    def letters(self):
        """The sizes in its shape."""
        return set(re.findall("[A-Z]", self.shape or ""))


def parameters(op):
    """Return the parameters of ``op``, in order, from its docstring."""
    found = [
        Parameter(m[1], m[3], m[4], "written" in m[5], "or None" in m[5] or "not wanted" in m[5], m[2] is not None)
        for m in LINE.finditer(getattr(_ck, op).__doc__)
    ]
    assert found, f"{op} has no declaration in its docstring"
    return found


def array_of(parameter, rng, size, star, kinds, ones=""):
    """Return an array that fits, sizes in ``ones`` of 1: ids and counts 0, other numbers between 0.5 and 1.5."""
    shape = []
    sizes = SIZES | ({"P": 1} if "L" in parameter.letters else {})  # one panel of L columns holds a packed weight's N
    sizes |= {"C": 3 * size * size} if parameter.name in ("qkv", "dqkv") else {}  # (H + 2G) * D
    sizes |= {"L": size + 1} if parameter.name.startswith("cu_seqlens") else {}  # ends of B sequences
    sizes |= {"W": size * np.dtype(kinds["elem"]).itemsize} | dict.fromkeys(ones, 1)  # W: bytes of a row of elements
    for axis in parameter.shape.split():
        shape += star if axis.endswith("*") else [int(axis[:-1] or 1) * sizes.get(axis[-1], size)]
    if parameter.kind == "double" and (parameter.written or parameter.listed or parameter.shape == "N"):
        return np.ones(1)  # a total, or the number of a step
    array = np.zeros(shape, kinds[parameter.kind])
    if parameter.name.startswith("cu_seqlens"):  # the first sequence has all rows
        array[1:] = size
    elif parameter.kind in ("elem", "weight", "either", "float"):
        array[...] = rng.uniform(0.5, 1.5, array.shape)
    return array


def arguments(op, rng, size=16, star=(3, 2), absent=False, dtype=np.float32, weights=None):
    """Return arguments that fit ``op``, all that may be absent given or (``absent``) left out.

    ``dtype`` is that of the call; ``weights`` that of norm weights and biases, which may be float32 beside 16-bit x.
    """
    kinds = ARRAYS | {"elem": dtype, "weight": weights or dtype, "either": weights or dtype}
    declared = parameters(op)
    given = set().union(*(p.letters for p in declared if not p.written and not p.optional))
    needed = set().union(*(p.letters for p in declared if p.written and not p.optional))
    known = set().union(*(p.letters for p in declared if not p.written))
    result, ones = [], ONE.get(op, "")
    for p in declared:
        if p.shape is None:
            real = p.kind in ("float", "double") and not (absent and p.name == "momentum")  # which needs a buffer
            if p.name == "top_k":
                result.append(3)
                continue
            of_size = {"C": 3 * size * size} | SIZES if len(p.name) == 1 else {}  # an integer that is a size
            result.append(0.5 if real else of_size.get(p.name.upper(), size) if of_size else 0)
        elif p.name in EXCLUDES.get(op, ()):
            result.append(None)
        elif p.listed:
            result.append(None if p.optional and absent else [array_of(p, rng, size, star, kinds, ones)])
        elif p.written and p.optional and (absent or p.letters <= known):
            result.append(None if absent else True)
        elif p.written:
            result.append(None if p.letters <= known else array_of(p, rng, size, star, kinds, ones))
        elif p.optional and absent and not (p.letters & needed) - given and p.name not in NEEDED.get(op, ()):
            result.append(None)
        else:
            result.append(array_of(p, rng, size, star, kinds, ones))
            given |= p.letters
    return result
