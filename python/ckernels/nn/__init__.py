"""Layers: whole stages of a model in one C call."""
from ckernels.nn.decoder import DecoderLayer

__all__ = ["DecoderLayer"]
