"""Types of the C extension; written by tests/stubs.py from its signatures."""
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias

from numpy.typing import NDArray

_In: TypeAlias = Any  # a NumPy array, or what lends its memory by __dlpack__
_Out: TypeAlias = Any  # the same, written; None or True where the docstring says so
_Array: TypeAlias = Any  # a new NumPy array, or the output that was given

def adamw_step(
    params: _Out, exp_avg: _Out, exp_avg_sq: _Out, max_exp_avg_sq: _Out, zeroed: _Out, grads: _In, step: _In,
    scale: SupportsFloat, lr: SupportsFloat, beta1: SupportsFloat, beta2: SupportsFloat, eps: SupportsFloat,
    weight_decay: SupportsFloat, maximize: object, check: object, /
) -> tuple[_Array, _Array, _Array, _Array, _Array]: ...
def add_bwd(
    dx: _Out, dy: _Out, dout: _In, alpha: SupportsFloat, /
) -> tuple[_Array, _Array]: ...
def add_fwd(
    out: _Out, x: _In, y: _In, alpha: SupportsFloat, /
) -> _Array: ...
def add_rms_norm_bwd(
    dx: _Out, dresidual: _Out, dweight: _Out, dy: _In, dh: _In, h: _In, weight: _In, rstd: _In, accumulate:
    object, /
) -> tuple[_Array, _Array, _Array]: ...
def add_rms_norm_fwd(
    y: _Out, h: _Out, rstd: _Out, x: _In, residual: _In, weight: _In, eps: SupportsFloat, /
) -> tuple[_Array, _Array, _Array]: ...
def argmax_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def attention_bwd(
    dq: _Out, dk: _Out, dv: _Out, dsinks: _Out, q: _In, k: _In, v: _In, y: _In, dy: _In, dlse: _In | None, max:
    _In, sum: _In, attn_mask: _In | None, sinks: _In | None, offsets: _In | None, lengths: _In | None,
    q_offset: SupportsIndex, left: SupportsIndex, right: SupportsIndex, causal: object, scale: SupportsFloat,
    softcap: SupportsFloat, accumulate: object, /
) -> tuple[_Array, _Array, _Array, _Array]: ...
def attention_fwd(
    y: _Out, max: _Out, sum: _Out, lse: _Out, q: _In, k: _In, v: _In, attn_mask: _In | None, sinks: _In | None,
    offsets: _In | None, lengths: _In | None, q_offset: SupportsIndex, left: SupportsIndex, right:
    SupportsIndex, causal: object, scale: SupportsFloat, softcap: SupportsFloat, /
) -> tuple[_Array, _Array, _Array, _Array]: ...
def attention_varlen_bwd(
    dq: _Out, dk: _Out, dv: _Out, dsinks: _Out, q: _In, k: _In, v: _In, y: _In, dy: _In, dlse: _In | None, max:
    _In, sum: _In, cu_seqlens_q: _In, cu_seqlens_k: _In, sinks: _In | None, q_offset: _In | None, left:
    SupportsIndex, right: SupportsIndex, causal: object, scale: SupportsFloat, softcap: SupportsFloat,
    accumulate: object, /
) -> tuple[_Array, _Array, _Array, _Array]: ...
def attention_varlen_fwd(
    y: _Out, max: _Out, sum: _Out, lse: _Out, q: _In, k: _In, v: _In, cu_seqlens_q: _In, cu_seqlens_k: _In, sinks:
    _In | None, q_offset: _In | None, left: SupportsIndex, right: SupportsIndex, causal: object, scale:
    SupportsFloat, softcap: SupportsFloat, /
) -> tuple[_Array, _Array, _Array, _Array]: ...
def blas_info() -> dict[str, str | None]: ...
def build_info() -> dict[str, Any]: ...
def cross_entropy_bwd(
    dlogits: _Out, dy: _In | None, dloss: SupportsFloat, logits: _In, target: _In, peak: _In, sum: _In,
    ignore_index: SupportsIndex, mean: object, label_smoothing: SupportsFloat, z_loss: SupportsFloat, softcap:
    SupportsFloat, /
) -> _Array: ...
def cross_entropy_fwd(
    loss: _Out, losses: _Out, peak: _Out, sum: _Out, logits: _In, target: _In, ignore_index: SupportsIndex, mean:
    object, label_smoothing: SupportsFloat, z_loss: SupportsFloat, softcap: SupportsFloat, /
) -> tuple[_Array, _Array, _Array, _Array]: ...
def decoder_bwd(
    dx: _Out, dln1_weight: _Out, dln1_bias: _Out, dq_weight: _Out, dq_bias: _Out, dk_weight: _Out, dk_bias: _Out,
    dv_weight: _Out, dv_bias: _Out, dq_norm_weight: _Out, dk_norm_weight: _Out, do_weight: _Out, do_bias:
    _Out, dpost_attn_norm_weight: _Out, dln2_weight: _Out, dln2_bias: _Out, dgate_weight: _Out, dgate_bias:
    _Out, dup_weight: _Out, dup_bias: _Out, ddown_weight: _Out, ddown_bias: _Out, dpost_mlp_norm_weight: _Out,
    dsinks: _Out, d_ln1: _Out, d_q: _Out, d_k: _Out, d_v: _Out, d_q_norm: _Out, d_k_norm: _Out, d_q_rope:
    _Out, d_k_rope: _Out, d_scores: _Out, d_probs: _Out, d_attn: _Out, d_proj: _Out, d_residual1: _Out, d_ln2:
    _Out, d_gate: _Out, d_up: _Out, d_act: _Out, d_down: _Out, dy: _In, x: _In, mean1: _In | None, rstd1: _In,
    ln1: _In, q: _In | None, k: _In | None, v: _In, rstd_q: _In | None, rstd_k: _In | None, q_rope: _In,
    k_rope: _In, max: _In, sum: _In, attn: _In, proj: _In | None, rstd_attn: _In | None, residual1: _In |
    None, mean2: _In | None, rstd2: _In | None, ln2: _In | None, gate: _In | None, up: _In, act: _In, down:
    _In | None, rstd_mlp: _In | None, ln1_weight: _In, ln1_bias: _In | None, q_weight: _In, q_bias: _In |
    None, k_weight: _In, k_bias: _In | None, v_weight: _In, v_bias: _In | None, q_norm_weight: _In | None,
    k_norm_weight: _In | None, o_weight: _In, o_bias: _In | None, post_attn_norm_weight: _In | None,
    ln2_weight: _In | None, ln2_bias: _In | None, gate_weight: _In | None, gate_bias: _In | None, up_weight:
    _In, up_bias: _In | None, down_weight: _In, down_bias: _In | None, post_mlp_norm_weight: _In | None,
    sinks: _In | None, cos: _In, sin: _In, positions: _In | None, activation: SupportsIndex, window:
    SupportsIndex, offset: SupportsFloat, scale: SupportsFloat, softcap: SupportsFloat, layer_norm: object,
    parallel: object, accumulate: object, /
) -> tuple[_Array, ...]: ...
def decoder_fwd(
    y: _Out, k_codes: _Out, k_scales: _Out, k_biases: _Out, v_codes: _Out, v_scales: _Out, v_biases: _Out, mean1:
    _Out, rstd1: _Out, ln1: _Out, q: _Out, k: _Out, v: _Out, rstd_q: _Out, rstd_k: _Out, q_rope: _Out, k_rope:
    _Out, max: _Out, sum: _Out, attn: _Out, proj: _Out, rstd_attn: _Out, residual1: _Out, mean2: _Out, rstd2:
    _Out, ln2: _Out, gate: _Out, up: _Out, act: _Out, down: _Out, rstd_mlp: _Out, q_norm: _Out, k_norm: _Out,
    scores: _Out, probs: _Out, post_attn_norm: _Out, post_mlp_norm: _Out, x: _In, ln1_weight: _In, ln1_bias:
    _In | None, q_weight: _In, q_bias: _In | None, k_weight: _In, k_bias: _In | None, v_weight: _In, v_bias:
    _In | None, q_norm_weight: _In | None, k_norm_weight: _In | None, o_weight: _In, o_bias: _In | None,
    post_attn_norm_weight: _In | None, ln2_weight: _In | None, ln2_bias: _In | None, gate_weight: _In | None,
    gate_bias: _In | None, up_weight: _In, up_bias: _In | None, down_weight: _In, down_bias: _In | None,
    post_mlp_norm_weight: _In | None, sinks: _In | None, cos: _In, sin: _In, positions: _In | None, lengths:
    _In | None, counts: _In | None, table: _In | None, copy_from: _In | None, copy_to: _In | None, format:
    SupportsIndex, group: SupportsIndex, activation: SupportsIndex, window: SupportsIndex, eps: SupportsFloat,
    offset: SupportsFloat, scale: SupportsFloat, softcap: SupportsFloat, layer_norm: object, parallel: object,
    /
) -> tuple[_Array, ...]: ...
def embedding_bwd(
    dweight: _Out, dy: _In, ids: _In, weight: _In, accumulate: object, /
) -> _Array: ...
def embedding_fwd(
    y: _Out, ids: _In, weight: _In, /
) -> _Array: ...
def empty(shape: Any, dtype: Any = ..., /) -> NDArray[Any]: ...
def empty_cache() -> None: ...
def fail_allocation(n: Any, /) -> None: ...
def geglu_bwd(
    dgate: _Out, dup: _Out, dy: _In, gate: _In, up: _In, /
) -> tuple[_Array, _Array]: ...
def geglu_fwd(
    y: _Out, gate: _In, up: _In, /
) -> _Array: ...
def geglu_sigmoid_bwd(
    dgate: _Out, dup: _Out, dy: _In, gate: _In, up: _In, /
) -> tuple[_Array, _Array]: ...
def geglu_sigmoid_fwd(
    y: _Out, gate: _In, up: _In, /
) -> _Array: ...
def geglu_tanh_bwd(
    dgate: _Out, dup: _Out, dy: _In, gate: _In, up: _In, /
) -> tuple[_Array, _Array]: ...
def geglu_tanh_fwd(
    y: _Out, gate: _In, up: _In, /
) -> _Array: ...
def gelu_bwd(
    dx: _Out, dy: _In, x: _In, /
) -> _Array: ...
def gelu_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def gelu_sigmoid_bwd(
    dx: _Out, dy: _In, x: _In, /
) -> _Array: ...
def gelu_sigmoid_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def gelu_tanh_bwd(
    dx: _Out, dy: _In, x: _In, /
) -> _Array: ...
def gelu_tanh_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def get_matmul_backend() -> str: ...
def get_matmul_precision() -> str: ...
def get_num_threads() -> int: ...
def grad_scale(
    grads: _Out, scale: SupportsFloat, /
) -> _Array: ...
def heads_to_tokens_bwd(
    dx: _Out, dy: _In, /
) -> _Array: ...
def heads_to_tokens_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def kl_div_bwd(
    dinput: _Out, dy: _In | None, dloss: SupportsFloat, target: _In, divisor: SupportsFloat, log_target: object, /
) -> _Array: ...
def kl_div_fwd(
    loss: _Out, losses: _Out, input: _In, target: _In, divisor: SupportsFloat, log_target: object, /
) -> tuple[_Array, _Array]: ...
def kv_append(
    k_codes: _Out, k_scales: _Out, k_biases: _Out, v_codes: _Out, v_scales: _Out, v_biases: _Out, k: _In, v: _In,
    lengths: _In, counts: _In | None, table: _In | None, copy_from: _In | None, copy_to: _In | None, ring:
    object, format: SupportsIndex, group: SupportsIndex, /
) -> tuple[_Array, _Array, _Array, _Array, _Array, _Array]: ...
def kv_append_batched(
    k_codes: _Out, k_scales: _Out, k_biases: _Out, v_codes: _Out, v_scales: _Out, v_biases: _Out, k: _In, v: _In,
    lengths: _In, ring: object, format: SupportsIndex, group: SupportsIndex, /
) -> tuple[_Array, _Array, _Array, _Array, _Array, _Array]: ...
def kv_attend(
    y: _Out, q: _In, k_codes: _In, k_scales: _In | None, k_biases: _In | None, v_codes: _In, v_scales: _In | None,
    v_biases: _In | None, table: _In | None, sinks: _In | None, offsets: _In, lengths: _In, left:
    SupportsIndex, scale: SupportsFloat, softcap: SupportsFloat, ring: object, format: SupportsIndex, group:
    SupportsIndex, /
) -> _Array: ...
def kv_dequantize(
    y: _Out, codes: _In, scales: _In | None, biases: _In | None, d: SupportsIndex, format: SupportsIndex, group:
    SupportsIndex, /
) -> _Array: ...
def kv_quantize(
    codes: _Out, scales: _Out, biases: _Out, x: _In, format: SupportsIndex, group: SupportsIndex, /
) -> tuple[_Array, _Array, _Array]: ...
def kv_read(
    y: _Out, codes: _In, scales: _In | None, biases: _In | None, table: _In | None, item: SupportsIndex, first:
    SupportsIndex, l: SupportsIndex, d: SupportsIndex, format: SupportsIndex, group: SupportsIndex, /
) -> _Array: ...
def l2_norm_bwd(
    dx: _Out, dy: _In, x: _In, rnorm: _In, /
) -> _Array: ...
def l2_norm_fwd(
    y: _Out, rnorm: _Out, x: _In, eps: SupportsFloat, /
) -> tuple[_Array, _Array]: ...
def layer_norm_bwd(
    dx: _Out, dweight: _Out, dbias: _Out, dy: _In, x: _In, weight: _In | None, bias: _In | None, mean: _In, rstd:
    _In, add_weight: object, add_bias: object, /
) -> tuple[_Array, _Array, _Array]: ...
def layer_norm_fwd(
    y: _Out, mean: _Out, rstd: _Out, x: _In, weight: _In | None, bias: _In | None, eps: SupportsFloat, /
) -> tuple[_Array, _Array, _Array]: ...
def linear_bwd(
    dx: _Out, dweight: _Out, dbias: _Out, dresidual: _Out, dy: _In, x: _In | None, weight: _In | None, pre: _In |
    None, activation: SupportsIndex, accumulate: object, /
) -> tuple[_Array, _Array, _Array, _Array]: ...
def linear_cross_entropy_bwd(
    dx: _Out, dweight: _Out, dy: _In | None, dloss: SupportsFloat, x: _In, weight: _In, target: _In, peak: _In,
    sum: _In, ignore_index: SupportsIndex, mean: object, label_smoothing: SupportsFloat, z_loss:
    SupportsFloat, softcap: SupportsFloat, accumulate: object, /
) -> tuple[_Array, _Array]: ...
def linear_cross_entropy_fwd(
    loss: _Out, losses: _Out, peak: _Out, sum: _Out, x: _In, weight: _In, target: _In, ignore_index:
    SupportsIndex, mean: object, label_smoothing: SupportsFloat, z_loss: SupportsFloat, softcap:
    SupportsFloat, /
) -> tuple[_Array, _Array, _Array, _Array]: ...
def linear_cross_entropy_grads(
    loss: _Out, dx: _Out, dweight: _Out, dloss: SupportsFloat, x: _In, weight: _In, target: _In, ignore_index:
    SupportsIndex, mean: object, label_smoothing: SupportsFloat, z_loss: SupportsFloat, softcap:
    SupportsFloat, accumulate: object, /
) -> tuple[_Array, _Array, _Array]: ...
def linear_fwd(
    y: _Out, pre: _Out, x: _In, weight: _In | None, packed: _In | None, bias: _In | None, residual: _In | None,
    activation: SupportsIndex, /
) -> tuple[_Array, _Array]: ...
def linear_pack(
    packed: _Out, weight: _In, /
) -> _Array: ...
def log_softmax_bwd(
    dx: _Out, dy: _In, y: _In, /
) -> _Array: ...
def log_softmax_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def matmul_nn_bwd(
    da: _Out, db: _Out, dy: _In, a: _In, b: _In, /
) -> tuple[_Array, _Array]: ...
def matmul_nn_fwd(
    y: _Out, a: _In, b: _In, /
) -> _Array: ...
def matmul_nt_bwd(
    da: _Out, db: _Out, dy: _In, a: _In, b: _In, /
) -> tuple[_Array, _Array]: ...
def matmul_nt_fwd(
    y: _Out, a: _In, b: _In, /
) -> _Array: ...
def matmul_tn_bwd(
    da: _Out, db: _Out, dy: _In, a: _In, b: _In, /
) -> tuple[_Array, _Array]: ...
def matmul_tn_fwd(
    y: _Out, a: _In, b: _In, /
) -> _Array: ...
def matmul_tt_bwd(
    da: _Out, db: _Out, dy: _In, a: _In, b: _In, /
) -> tuple[_Array, _Array]: ...
def matmul_tt_fwd(
    y: _Out, a: _In, b: _In, /
) -> _Array: ...
def memory_stats() -> dict[str, int]: ...
def mrope_bwd(
    dx: _Out, dy: _In, cos: _In, sin: _In, axes: _In, positions: _In, interleaved: object, /
) -> _Array: ...
def mrope_fwd(
    y: _Out, x: _In, cos: _In, sin: _In, axes: _In, positions: _In, interleaved: object, /
) -> _Array: ...
def mse_loss_bwd(
    dinput: _Out, dy: _In | None, dloss: SupportsFloat, input: _In, target: _In, divisor: SupportsFloat, /
) -> _Array: ...
def mse_loss_fwd(
    loss: _Out, losses: _Out, input: _In, target: _In, divisor: SupportsFloat, /
) -> tuple[_Array, _Array]: ...
def probe_amx(
    sum: _Out, n: SupportsIndex, /
) -> _Array: ...
def probe_copy(
    out: _Out, x: _In, stream: object, /
) -> _Array: ...
def probe_fma(
    sum: _Out, n: SupportsIndex, /
) -> _Array: ...
def probe_read(
    sum: _Out, x: _In, eight: object, /
) -> _Array: ...
def probe_update(
    out: _Out, x: _In, /
) -> _Array: ...
def qk_norm_rope_bwd(
    dx: _Out, dweight: _Out, dy: _In, x: _In, weight: _In, rstd: _In, cos: _In, sin: _In, positions: _In | None,
    interleaved: object, accumulate: object, /
) -> tuple[_Array, _Array]: ...
def qk_norm_rope_fwd(
    y: _Out, rstd: _Out, x: _In, weight: _In, cos: _In, sin: _In, positions: _In | None, interleaved: object, eps:
    SupportsFloat, /
) -> tuple[_Array, _Array]: ...
def reglu_bwd(
    dgate: _Out, dup: _Out, dy: _In, gate: _In, up: _In, /
) -> tuple[_Array, _Array]: ...
def reglu_fwd(
    y: _Out, gate: _In, up: _In, /
) -> _Array: ...
def relu_bwd(
    dx: _Out, dy: _In, x: _In, /
) -> _Array: ...
def relu_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def rms_norm_bwd(
    dx: _Out, dweight: _Out, dy: _In, x: _In, weight: _In | None, rstd: _In, offset: SupportsFloat, accumulate:
    object, /
) -> tuple[_Array, _Array]: ...
def rms_norm_fwd(
    y: _Out, rstd: _Out, x: _In, weight: _In | None, eps: SupportsFloat, offset: SupportsFloat, /
) -> tuple[_Array, _Array]: ...
def rope_bwd(
    dx: _Out, dy: _In, cos: _In, sin: _In, positions: _In | None, interleaved: object, /
) -> _Array: ...
def rope_fwd(
    y: _Out, x: _In, cos: _In, sin: _In, positions: _In | None, interleaved: object, /
) -> _Array: ...
def rope_table(
    cos: _Out, sin: _Out, positions: _In, short_factor: _In | None, long_factor: _In | None, rule: SupportsIndex,
    length: SupportsIndex, base: SupportsFloat, factor: SupportsFloat, original: SupportsFloat, low:
    SupportsFloat, high: SupportsFloat, truncate: object, attention: SupportsFloat, /
) -> tuple[_Array, _Array]: ...
def sample_fwd(
    y: _Out, logits: _In, seeds: _In | None, seed: SupportsIndex, temperature: SupportsFloat, top_k:
    SupportsIndex, top_p: SupportsFloat, min_p: SupportsFloat, /
) -> _Array: ...
def set_blas_path(path: Any, /) -> None: ...
def set_cache_limit(bytes: Any, /) -> None: ...
def set_matmul_backend(name: Any, /) -> None: ...
def set_matmul_precision(precision: Any, /) -> None: ...
def set_num_threads(n: Any, /) -> None: ...
def sgd_step(
    params: _Out, momentum_buffer: _Out, zeroed: _Out, grads: _In, scale: SupportsFloat, lr: SupportsFloat,
    momentum: SupportsFloat, dampening: SupportsFloat, weight_decay: SupportsFloat, nesterov: object,
    maximize: object, first: object, check: object, /
) -> tuple[_Array, _Array, _Array]: ...
def sigmoid_bwd(
    dx: _Out, dy: _In, x: _In, /
) -> _Array: ...
def sigmoid_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def silu_bwd(
    dx: _Out, dy: _In, x: _In, /
) -> _Array: ...
def silu_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def softcap_bwd(
    dx: _Out, dy: _In, x: _In, cap: SupportsFloat, /
) -> _Array: ...
def softcap_fwd(
    y: _Out, x: _In, cap: SupportsFloat, /
) -> _Array: ...
def softmax_bwd(
    dx: _Out, dy: _In, y: _In, scale: SupportsFloat, /
) -> _Array: ...
def softmax_fwd(
    y: _Out, x: _In, mask: _In | None, scale: SupportsFloat, causal: object, queries: SupportsIndex, /
) -> _Array: ...
def split_qkv_bwd(
    dqkv: _Out, C: SupportsIndex, H: SupportsIndex, G: SupportsIndex, D: SupportsIndex, dq: _In, dk: _In, dv: _In,
    /
) -> _Array: ...
def split_qkv_fwd(
    q: _Out, k: _Out, v: _Out, qkv: _In, H: SupportsIndex, G: SupportsIndex, D: SupportsIndex, /
) -> tuple[_Array, _Array, _Array]: ...
def sum_of_squares(
    sum: _Out, grads: _In, accumulate: object, /
) -> _Array: ...
def swiglu_bwd(
    dgate: _Out, dup: _Out, dy: _In, gate: _In, up: _In, /
) -> tuple[_Array, _Array]: ...
def swiglu_fwd(
    y: _Out, gate: _In, up: _In, /
) -> _Array: ...
def tanh_bwd(
    dx: _Out, dy: _In, x: _In, /
) -> _Array: ...
def tanh_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def tokens_to_heads_bwd(
    dx: _Out, dy: _In, /
) -> _Array: ...
def tokens_to_heads_fwd(
    y: _Out, x: _In, /
) -> _Array: ...
def topk_fwd(
    values: _Out, indices: _Out, x: _In, k: SupportsIndex, /
) -> tuple[_Array, _Array]: ...
def use_isa(isa: Any, /) -> str: ...
