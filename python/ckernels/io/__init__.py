"""Reading model files, and fetching a small one."""

from .fetch import fetch
from .gguf import GGUFFile, read_gguf
from .report import TensorReport
from .safetensors import read_safetensors

__all__ = ["GGUFFile", "TensorReport", "fetch", "read_gguf", "read_safetensors"]
