"""Whole models: configurations, weights, forward, gradients, generation."""

from .config import Config
from .presets import configs

__all__ = ["Config", "configs"]
