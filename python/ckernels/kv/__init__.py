"""Key-value caches: what decoding keeps of the tokens before."""
from ckernels.kv.batched import kv_append_batched
from ckernels.kv.kv_cache import KVCache
from ckernels.kv.paged import OutOfBlocks, PagedBatch, PagedKVCache
from ckernels.kv.quantize import kv_dequantize, kv_quantize

__all__ = [
    "KVCache", "OutOfBlocks", "PagedBatch", "PagedKVCache", "kv_append_batched", "kv_dequantize", "kv_quantize",
]  # fmt: skip
