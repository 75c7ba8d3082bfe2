"""Reading model files, and fetching a small one: ``io.fetch.fetch("smollm2-135m")``."""

from . import fetch
from .gguf import GGUFFile, read_gguf
from .report import TensorReport
from .safetensors import read_safetensors

__all__ = ["GGUFFile", "TensorReport", "fetch", "read_gguf", "read_safetensors"]
