"""Every op declared once for the comparisons; ``spec.py`` says what a declaration is."""

from .attention import ATTENTION, LSE, SOFTMAX
from .heads import HEADS
from .pointwise import CROSS_ENTROPY, SGD, SILU, SWIGLU
from .products import LINEAR, MATMUL
from .rotary import ROPE, ROPE_TABLE
from .rows import ADD, ADD_RMS_NORM, EMBEDDING, RMS_NORM
from .selection import SELECTION
from .spec import OpSpec, Probe

__all__ = ["SPECS", "OpSpec", "Probe", "names"]

#: Every spec, in the order in which a token meets the ops.
SPECS = tuple(
    EMBEDDING + RMS_NORM + ADD + ADD_RMS_NORM + ROPE_TABLE + ROPE + LINEAR + MATMUL + SOFTMAX + ATTENTION
    + LSE + HEADS + SELECTION + SILU + SWIGLU + CROSS_ENTROPY + SGD
)  # fmt: skip


def names():
    """Return the names of all ops that have a spec, in order."""
    return list(dict.fromkeys(spec.name for spec in SPECS))
