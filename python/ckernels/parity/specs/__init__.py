"""Every op declared once for the comparisons; ``spec.py`` says what a declaration is."""

from .attention import ATTENTION, ATTENTION_VARLEN, LSE, SOFTMAX
from .heads import HEADS
from .losses import CROSS_ENTROPY, KL_DIV, LINEAR_CROSS_ENTROPY, LOG_SOFTMAX, MSE_LOSS
from .norms import ADD_RMS_NORM, L2_NORM, LAYER_NORM, QK_NORM_ROPE, RMS_NORM
from .optimizers import ADAMW, CLIP_GRAD_NORM, SGD
from .pointwise import ACTIVATIONS, GATED
from .products import LINEAR, MATMUL
from .rotary import MROPE, ROPE, ROPE_TABLE
from .rows import ADD, EMBEDDING
from .selection import SELECTION
from .served import NAMED, SERVED
from .spec import OpSpec, Probe

__all__ = ["NAMED", "SERVED", "SPECS", "OpSpec", "Probe", "chosen", "names"]

#: Every spec, in the order in which a token meets the ops.
SPECS = tuple(
    EMBEDDING + RMS_NORM + LAYER_NORM + L2_NORM + ADD + ADD_RMS_NORM + ROPE_TABLE + ROPE + MROPE + QK_NORM_ROPE
    + LINEAR + MATMUL + SOFTMAX + ATTENTION + LSE + ATTENTION_VARLEN + HEADS + ACTIVATIONS + GATED + LOG_SOFTMAX
    + CROSS_ENTROPY + LINEAR_CROSS_ENTROPY + MSE_LOSS + KL_DIV + SGD + ADAMW + CLIP_GRAD_NORM + SELECTION
)  # fmt: skip


def names():
    """Return the names of all ops that have a spec, in order."""
    return list(dict.fromkeys(spec.name for spec in SPECS))


def chosen(name=None):
    """Return the specs that a name stands for, its own or one of NAMED; all of them, composed ones last, without one.

    Raises
    ------
    KeyError
        No op has that name.
    """
    every = (*SPECS, *SERVED)
    wanted = None if name is None else NAMED.get(name, (name,))
    found = tuple(spec for spec in every if wanted is None or spec.name in wanted)
    if not found:
        raise KeyError(name)
    return found
