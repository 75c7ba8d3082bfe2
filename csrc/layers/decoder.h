#ifndef CK_DECODER_H
#define CK_DECODER_H
#include "ops/kv_store.h"
/*
 * decoder -- one layer of a decoder-only transformer (Llama): forward, backward, decode
 *
 *     ln1       [B,T,C]    rms_norm(x, ln1_weight, eps)
 *     q         [B,T,H,D]  linear(ln1, q_weight)                k, v [B,T,G,D] likewise
 *     q_rope    [B,T,H,D]  rope(q) at each token's position     k_rope likewise
 *     attn      [B,T,H,D]  causal attention of q_rope over k_rope, v; scores times `scale`
 *     proj      [B,T,C]    linear(attn, o_weight)
 *     residual1 [B,T,C]    x + proj
 *     ln2       [B,T,C]    rms_norm(residual1, ln2_weight, eps)
 *     gate, up  [B,T,F]    linear(ln2, gate_weight), linear(ln2, up_weight)
 *     act       [B,T,F]    silu(gate) * up
 *     down      [B,T,C]    linear(act, down_weight)
 *     output    [B,T,C]    residual1 + down
 *
 * With a cache (decode), in any form of ops/kv_store.h: the new keys and values are written behind the lengths[b] tokens
 * that item b holds, token t of item b stands at position lengths[b] + t, and attention reads the cache as it is stored.  counts[b] of the T tokens are real;
 * what the rest give means nothing, and they see only what is real.
 *
 * Every stage has a buffer, and a caller who wants to see a stage, or to keep it for backward, gives the buffer; the
 * others come from the arena.  So capture cannot change the path.  Some stages never exist otherwise, and are computed for
 * the capture alone: `scores` and `probs` [B,H,T,T], in double, from q_rope and k_rope (a key that the mask hides has
 * its score there, and probability 0), and `proj` and `down`, whose products are added to the residual as they are made.
 *
 * Refused before anything is written: heads that do not divide, a scale that is not finite, what rope refuses of its
 * table and positions, lengths and counts that the cache has no room for.  Backward refuses the same.
 *
 * Heads are contiguous in tokens ([B,T,H,D]), which is how projections write them and attention reads them: nothing
 * is transposed.  Every weight is [out, in], as in PyTorch.
 */
#define CK_ARGS_decoder_fwd(_)                       \
    _(OUT,      float,   y,           "B T C")       \
    _(OPT_OUTV, uint8_t, k_codes,     "N G S W")     \
    _(OPT_OUTV, float,   k_scales,    "N G S V")     \
    _(OPT_OUTV, float,   k_biases,    "N G S V")     \
    _(OPT_OUTV, uint8_t, v_codes,     "N G S W")     \
    _(OPT_OUTV, float,   v_scales,    "N G S V")     \
    _(OPT_OUTV, float,   v_biases,    "N G S V")     \
    _(OPT_OUTV, float,   rstd1,       "B T")         \
    _(OPT_OUTV, float,   ln1,         "B T C")       \
    _(OPT_OUTV, float,   q,           "B T H D")     \
    _(OPT_OUTV, float,   k,           "B T G D")     \
    _(OPT_OUTV, float,   v,           "B T G D")     \
    _(OPT_OUTV, float,   q_rope,      "B T H D")     \
    _(OPT_OUTV, float,   k_rope,      "B T G D")     \
    _(OPT_OUTV, float,   scores,      "B H T T")     \
    _(OPT_OUTV, float,   probs,       "B H T T")     \
    _(OPT_OUTV, float,   max,         "B H T")       \
    _(OPT_OUTV, float,   sum,         "B H T")       \
    _(OPT_OUTV, float,   attn,        "B T H D")     \
    _(OPT_OUTV, float,   proj,        "B T C")       \
    _(OPT_OUTV, float,   residual1,   "B T C")       \
    _(OPT_OUTV, float,   rstd2,       "B T")         \
    _(OPT_OUTV, float,   ln2,         "B T C")       \
    _(OPT_OUTV, float,   gate,        "B T F")       \
    _(OPT_OUTV, float,   up,          "B T F")       \
    _(OPT_OUTV, float,   act,         "B T F")       \
    _(OPT_OUTV, float,   down,        "B T C")       \
    _(IN,       float,   x,           "B T C")       \
    _(INV,      float,   ln1_weight,  "C")           \
    _(INV,      float,   q_weight,    "H D C")       \
    _(INV,      float,   k_weight,    "G D C")       \
    _(INV,      float,   v_weight,    "G D C")       \
    _(INV,      float,   o_weight,    "C H D")       \
    _(INV,      float,   ln2_weight,  "C")           \
    _(INV,      float,   gate_weight, "F C")         \
    _(INV,      float,   up_weight,   "F C")         \
    _(INV,      float,   down_weight, "C F")         \
    _(INV,      float,   cos,         "P K")         \
    _(INV,      float,   sin,         "P K")         \
    _(OPT_INV,  int64_t, positions,   "B T")         \
    _(OPT_INV,  int64_t, lengths,     "B")           \
    _(OPT_INV,  int64_t, counts,      "B")           \
    _(OPT_INV,  int64_t, table,       "B L")         \
    _(OPT_INV,  int64_t, copy_from,   "M")           \
    _(OPT_INV,  int64_t, copy_to,     "M")           \
    _(INT,      int64_t, format,      "")            \
    _(INT,      int64_t, group,       "")            \
    _(REAL,     double,  eps,         "")            \
    _(REAL,     double,  scale,       "")            \
    _(SIZE,     size_t,  B,           "")            \
    _(SIZE,     size_t,  T,           "")            \
    _(SIZE,     size_t,  C,           "")            \
    _(SIZE,     size_t,  H,           "")            \
    _(SIZE,     size_t,  G,           "")            \
    _(SIZE,     size_t,  D,           "")            \
    _(SIZE,     size_t,  F,           "")            \
    _(SIZE,     size_t,  P,           "")            \
    _(SIZE,     size_t,  K,           "")            \
    _(SIZE,     size_t,  S,           "")            \
    _(SIZE,     size_t,  N,           "")            \
    _(SIZE,     size_t,  W,           "")            \
    _(SIZE,     size_t,  V,           "")            \
    _(SIZE,     size_t,  L,           "")            \
    _(SIZE,     size_t,  M,           "")
CK_DECLARE(decoder_fwd)

/*
 * Backward of the layer without a cache.  It needs rstd1 ln1 v q_rope k_rope max sum attn residual1 rstd2 ln2 gate up
 * act of the forward pass.  d_<stage> is the gradient of the loss by that stage; again a buffer each, from the arena
 * where the caller gives none.  Gradients of weights are added to what is there when `accumulate`; one that is
 * absent is not computed.
 */
#define CK_ARGS_decoder_bwd(_)                        \
    _(OUT,      float,   dx,           "B T C")       \
    _(OPT_OUTV, float,   dln1_weight,  "C")           \
    _(OPT_OUTV, float,   dq_weight,    "H D C")       \
    _(OPT_OUTV, float,   dk_weight,    "G D C")       \
    _(OPT_OUTV, float,   dv_weight,    "G D C")       \
    _(OPT_OUTV, float,   do_weight,    "C H D")       \
    _(OPT_OUTV, float,   dln2_weight,  "C")           \
    _(OPT_OUTV, float,   dgate_weight, "F C")         \
    _(OPT_OUTV, float,   dup_weight,   "F C")         \
    _(OPT_OUTV, float,   ddown_weight, "C F")         \
    _(OPT_OUTV, float,   d_ln1,        "B T C")       \
    _(OPT_OUTV, float,   d_q,          "B T H D")     \
    _(OPT_OUTV, float,   d_k,          "B T G D")     \
    _(OPT_OUTV, float,   d_v,          "B T G D")     \
    _(OPT_OUTV, float,   d_q_rope,     "B T H D")     \
    _(OPT_OUTV, float,   d_k_rope,     "B T G D")     \
    _(OPT_OUTV, float,   d_scores,     "B H T T")     \
    _(OPT_OUTV, float,   d_probs,      "B H T T")     \
    _(OPT_OUTV, float,   d_attn,       "B T H D")     \
    _(OPT_OUTV, float,   d_residual1,  "B T C")       \
    _(OPT_OUTV, float,   d_ln2,        "B T C")       \
    _(OPT_OUTV, float,   d_gate,       "B T F")       \
    _(OPT_OUTV, float,   d_up,         "B T F")       \
    _(OPT_OUTV, float,   d_act,        "B T F")       \
    _(IN,       float,   dy,           "B T C")       \
    _(IN,       float,   x,            "B T C")       \
    _(INV,      float,   rstd1,        "B T")         \
    _(INV,      float,   ln1,          "B T C")       \
    _(INV,      float,   v,            "B T G D")     \
    _(INV,      float,   q_rope,       "B T H D")     \
    _(INV,      float,   k_rope,       "B T G D")     \
    _(INV,      float,   max,          "B H T")       \
    _(INV,      float,   sum,          "B H T")       \
    _(INV,      float,   attn,         "B T H D")     \
    _(INV,      float,   residual1,    "B T C")       \
    _(INV,      float,   rstd2,        "B T")         \
    _(INV,      float,   ln2,          "B T C")       \
    _(INV,      float,   gate,         "B T F")       \
    _(INV,      float,   up,           "B T F")       \
    _(INV,      float,   act,          "B T F")       \
    _(INV,      float,   ln1_weight,   "C")           \
    _(INV,      float,   q_weight,     "H D C")       \
    _(INV,      float,   k_weight,     "G D C")       \
    _(INV,      float,   v_weight,     "G D C")       \
    _(INV,      float,   o_weight,     "C H D")       \
    _(INV,      float,   ln2_weight,   "C")           \
    _(INV,      float,   gate_weight,  "F C")         \
    _(INV,      float,   up_weight,    "F C")         \
    _(INV,      float,   down_weight,  "C F")         \
    _(INV,      float,   cos,          "P K")         \
    _(INV,      float,   sin,          "P K")         \
    _(OPT_INV,  int64_t, positions,    "B T")         \
    _(REAL,     double,  scale,        "")            \
    _(FLAG,     int,     accumulate,   "")            \
    _(SIZE,     size_t,  B,            "")            \
    _(SIZE,     size_t,  T,            "")            \
    _(SIZE,     size_t,  C,            "")            \
    _(SIZE,     size_t,  H,            "")            \
    _(SIZE,     size_t,  G,            "")            \
    _(SIZE,     size_t,  D,            "")            \
    _(SIZE,     size_t,  F,            "")            \
    _(SIZE,     size_t,  P,            "")            \
    _(SIZE,     size_t,  K,            "")
CK_DECLARE(decoder_bwd)
#endif
