"""Transformer kernels in plain C that a person can read, trust and measure.

Arrays are NumPy arrays, or anything on the CPU that lends its memory by ``__dlpack__``; results are NumPy arrays.
Every op names its arguments, shapes and errors in its docstring; ``ck.isas()`` says what this machine offers.
"""
import importlib

from ckernels.kv import KVCache, PagedKVCache, kv_append_batched, kv_dequantize, kv_quantize
from ckernels.matmul_backend import get_matmul_backend, get_matmul_precision, set_matmul_backend, set_matmul_precision
from ckernels.ops.activation import (
    relu,
    relu_backward,
    relu_forward,
    sigmoid,
    sigmoid_backward,
    sigmoid_forward,
    silu,
    silu_backward,
    silu_forward,
    softcap,
    softcap_backward,
    softcap_forward,
    tanh,
    tanh_backward,
    tanh_forward,
)
from ckernels.ops.add import add, add_backward, add_forward
from ckernels.ops.add_rms_norm import add_rms_norm, add_rms_norm_backward, add_rms_norm_forward
from ckernels.ops.attention import (
    attention,
    attention_backward,
    attention_forward,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    scaled_dot_product_attention_forward,
)
from ckernels.ops.attention_varlen import attention_varlen, attention_varlen_backward, attention_varlen_forward
from ckernels.ops.cross_entropy import cross_entropy, cross_entropy_backward, cross_entropy_forward
from ckernels.ops.embedding import embedding, embedding_backward, embedding_forward
from ckernels.ops.gelu import gelu, gelu_backward, gelu_forward
from ckernels.ops.glu import (
    geglu,
    geglu_backward,
    geglu_forward,
    reglu,
    reglu_backward,
    reglu_forward,
    swiglu,
    swiglu_backward,
    swiglu_forward,
)
from ckernels.ops.heads import (
    heads_to_tokens,
    heads_to_tokens_backward,
    heads_to_tokens_forward,
    split_qkv,
    split_qkv_backward,
    split_qkv_forward,
    tokens_to_heads,
    tokens_to_heads_backward,
    tokens_to_heads_forward,
)
from ckernels.ops.kl_div import kl_div, kl_div_backward, kl_div_forward
from ckernels.ops.l2_norm import l2_norm, l2_norm_backward, l2_norm_forward
from ckernels.ops.layer_norm import layer_norm, layer_norm_backward, layer_norm_forward
from ckernels.ops.linear import linear, linear_backward, linear_forward
from ckernels.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
    linear_cross_entropy_grads,
)
from ckernels.ops.log_softmax import log_softmax, log_softmax_backward, log_softmax_forward
from ckernels.ops.matmul import matmul, matmul_backward, matmul_forward
from ckernels.ops.mrope import mrope, mrope_backward, mrope_forward
from ckernels.ops.mse_loss import mse_loss, mse_loss_backward, mse_loss_forward
from ckernels.ops.pack import PackedWeight, pack
from ckernels.ops.qk_norm_rope import qk_norm_rope, qk_norm_rope_backward, qk_norm_rope_forward
from ckernels.ops.rms_norm import rms_norm, rms_norm_backward, rms_norm_forward
from ckernels.ops.rope import rope, rope_backward, rope_forward, rope_table
from ckernels.ops.selection import argmax, sample, topk
from ckernels.ops.softmax import softmax, softmax_backward, softmax_forward
from ckernels.runtime import (
    empty,
    empty_cache,
    get_num_threads,
    isa,
    isas,
    memory_stats,
    set_num_threads,
    use,
)

__version__ = "0.1.0"

__all__ = [
    "KVCache", "PagedKVCache", "kv_append_batched", "kv_dequantize", "kv_quantize",
    "add", "add_forward", "add_backward",
    "add_rms_norm", "add_rms_norm_forward", "add_rms_norm_backward",
    "linear", "linear_forward", "linear_backward", "pack", "PackedWeight",
    "matmul", "matmul_forward", "matmul_backward", "get_matmul_backend", "set_matmul_backend",
    "get_matmul_precision", "set_matmul_precision",
    "attention", "attention_backward", "attention_forward",
    "attention_varlen", "attention_varlen_backward", "attention_varlen_forward",
    "scaled_dot_product_attention", "scaled_dot_product_attention_backward", "scaled_dot_product_attention_forward",
    "empty", "empty_cache", "get_num_threads", "isa", "isas", "memory_stats", "set_num_threads", "use",
    "cross_entropy", "cross_entropy_forward", "cross_entropy_backward",
    "linear_cross_entropy", "linear_cross_entropy_forward", "linear_cross_entropy_backward",
    "linear_cross_entropy_grads",
    "mse_loss", "mse_loss_forward", "mse_loss_backward",
    "kl_div", "kl_div_forward", "kl_div_backward",
    "embedding", "embedding_forward", "embedding_backward",
    "rms_norm", "rms_norm_forward", "rms_norm_backward",
    "layer_norm", "layer_norm_forward", "layer_norm_backward",
    "l2_norm", "l2_norm_forward", "l2_norm_backward",
    "qk_norm_rope", "qk_norm_rope_forward", "qk_norm_rope_backward",
    "relu", "relu_forward", "relu_backward",
    "gelu", "gelu_forward", "gelu_backward",
    "silu", "silu_forward", "silu_backward",
    "sigmoid", "sigmoid_forward", "sigmoid_backward",
    "tanh", "tanh_forward", "tanh_backward",
    "softcap", "softcap_forward", "softcap_backward",
    "swiglu", "swiglu_forward", "swiglu_backward",
    "rope", "rope_forward", "rope_backward", "rope_table", "mrope", "mrope_forward", "mrope_backward",
    "geglu", "geglu_forward", "geglu_backward",
    "reglu", "reglu_forward", "reglu_backward",

    "softmax", "softmax_forward", "softmax_backward",
    "log_softmax", "log_softmax_forward", "log_softmax_backward",
    "argmax", "sample", "topk",
    "split_qkv", "split_qkv_forward", "split_qkv_backward",
    "heads_to_tokens", "heads_to_tokens_forward", "heads_to_tokens_backward",
    "tokens_to_heads", "tokens_to_heads_forward", "tokens_to_heads_backward",
]

_LAZY = ("io", "kv", "models", "nn", "optim", "parity", "training")


def __getattr__(name):
    if name == "show_config":
        return importlib.import_module("ckernels.doctor").show_config
    if name in _LAZY:
        return importlib.import_module(f"ckernels.{name}")
    raise AttributeError(f"module 'ckernels' has no attribute '{name}'")


def __dir__():
    return sorted([*__all__, *_LAZY, "show_config"])
