"""Every op declared once for the comparisons; ``spec.py`` says what a declaration is."""

from .attention import ATTENTION, LSE, SOFTMAX
from .heads import HEADS
from .losses import KL_DIV, LOG_SOFTMAX, MSE_LOSS
from .norms import ADD_RMS_NORM, L2_NORM, LAYER_NORM, QK_NORM_ROPE, RMS_NORM
from .pointwise import CROSS_ENTROPY, SGD, SILU, SWIGLU
from .products import LINEAR, MATMUL
from .rotary import ROPE, ROPE_TABLE
from .rows import ADD, EMBEDDING
from .spec import OpSpec, Probe

__all__ = ["SPECS", "OpSpec", "Probe", "names"]

#: Every spec, in the order in which a token meets the ops.
SPECS = tuple(
    EMBEDDING + RMS_NORM + LAYER_NORM + L2_NORM + ADD + ADD_RMS_NORM + ROPE_TABLE + ROPE + QK_NORM_ROPE
    + LINEAR + MATMUL + SOFTMAX + LOG_SOFTMAX + ATTENTION + LSE + HEADS + SILU + SWIGLU
    + CROSS_ENTROPY + MSE_LOSS + KL_DIV + SGD
)  # fmt: skip


def names():
    """Return the names of all ops that have a spec, in order."""
    return list(dict.fromkeys(spec.name for spec in SPECS))
