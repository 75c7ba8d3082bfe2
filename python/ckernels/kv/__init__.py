"""Key-value caches: what decoding keeps of the tokens before."""
from ckernels.kv.kv_cache import KVCache

__all__ = ["KVCache"]
