"""Whole models: configurations, weights, forward, gradients, generation."""

from .cache import ModelCache
from .config import Config
from .loading import from_torch, load
from .model import Model
from .presets import configs, families

__all__ = ["Config", "Model", "ModelCache", "configs", "families", "from_torch", "load"]
