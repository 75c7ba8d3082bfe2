"""Training: batches, steps with accumulation and clipping, checkpoints that resume to the bit, a log and its curve."""

from .batches import TextBatches
from .checkpoint import load_checkpoint, save_checkpoint
from .curve import plot_losses
from .trainer import Trainer

__all__ = ["TextBatches", "Trainer", "load_checkpoint", "plot_losses", "save_checkpoint"]
