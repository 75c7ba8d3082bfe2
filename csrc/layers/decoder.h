#ifndef CK_DECODER_H
#define CK_DECODER_H
#include "ops/gemm.h"
#include "ops/kv_store.h"
/*
 * decoder -- one layer of a decoder-only transformer, whose arguments say of which kind: forward, backward, decode
 *
 *     ln1            [B,T,C]    norm(x, ln1_weight)
 *     q              [B,T,H,D]  linear(ln1, q_weight, q_bias)      k, v [B,T,G,D] likewise
 *     q_norm         [B,T,H,D]  rms_norm(q, q_norm_weight)         k_norm likewise
 *     q_rope         [B,T,H,D]  rope(q_norm) at each token's position, of the table's 2K channels    k_rope likewise
 *     attn           [B,T,H,D]  causal attention of q_rope over k_rope, v; scores times `scale`, then capped by `softcap`
 *     proj           [B,T,C]    linear(attn, o_weight, o_bias)
 *     post_attn_norm [B,T,C]    rms_norm(proj, post_attn_norm_weight)
 *     residual1      [B,T,C]    x + post_attn_norm
 *     ln2            [B,T,C]    norm(residual1, ln2_weight);  parallel: norm(x, ln2_weight)
 *     gate, up       [B,T,F]    linear(ln2, gate_weight, gate_bias), linear(ln2, up_weight, up_bias)
 *     act            [B,T,F]    activation(gate) * up
 *     down           [B,T,C]    linear(act, down_weight, down_bias)
 *     post_mlp_norm  [B,T,C]    rms_norm(down, post_mlp_norm_weight)
 *     output         [B,T,C]    residual1 + post_mlp_norm
 *
 * What is absent is not computed, and its input takes its place: biases, q_norm, k_norm and the norms behind a branch;
 * `gate` (then act = activation(up)); `ln2` in a parallel layer, whose MLP then reads ln1; rope where K = 0.  `norm` is
 * rms_norm with `offset` added to its weight, or with the flag layer_norm that, with ln1_bias and ln2_bias; offset is
 * added in every rms_norm.  `window`: keys that a query sees, itself the last of them; 0: all.  `activation` is one of
 * CK_RELU to CK_GELU_SIGMOID; 0: CK_SILU.  `sinks`: as in attention.
 *
 * With a cache (decode), in any form of ops/kv_store.h: the new keys and values are written behind the lengths[b] tokens
 * that item b holds, token t of item b stands at position lengths[b] + t, and attention reads the cache as it is stored.
 * counts[b] of the T tokens are real; what the rest give means nothing, and they see only what is real.
 *
 * Every stage has a buffer, and a caller who wants to see a stage, or to keep it for backward, gives the buffer; the
 * others come from the arena.  So capture cannot change the path.  Some stages never exist otherwise, and are computed for
 * the capture alone: `scores` and `probs` [B,H,T,T], in double, from q_rope and k_rope (a key that the mask hides has
 * its score there, and probability 0); `q_norm` and `k_norm`, which are made and turned in one pass; `proj` and `down`
 * without a norm behind them, whose products are added to the residual as they are made.
 *
 * Refused before anything is written: heads that do not divide, options that attention refuses, what rope refuses of its
 * table and positions, lengths and counts that the cache has no room for.  Backward refuses the same.
 *
 * Heads are contiguous in tokens ([B,T,H,D]), which is how projections write them and attention reads them: nothing
 * is transposed.  Every weight is [out, in], as in PyTorch.  In 16 bits every stage is rounded once, where it is stored.
 */

/* The weights: X(_, kind, name, shape). */
#define CK_DECODER_WEIGHTS(X, _)                               \
    X(_, INV,     ln1_weight,            "C")                  \
    X(_, OPT_INV, ln1_bias,              "C")                  \
    X(_, INV,     q_weight,              "H D C")              \
    X(_, OPT_INV, q_bias,                "H D")                \
    X(_, INV,     k_weight,              "G D C")              \
    X(_, OPT_INV, k_bias,                "G D")                \
    X(_, INV,     v_weight,              "G D C")              \
    X(_, OPT_INV, v_bias,                "G D")                \
    X(_, OPT_INV, q_norm_weight,         "D")                  \
    X(_, OPT_INV, k_norm_weight,         "D")                  \
    X(_, INV,     o_weight,              "C H D")              \
    X(_, OPT_INV, o_bias,                "C")                  \
    X(_, OPT_INV, post_attn_norm_weight, "C")                  \
    X(_, OPT_INV, ln2_weight,            "C")                  \
    X(_, OPT_INV, ln2_bias,              "C")                  \
    X(_, OPT_INV, gate_weight,           "F C")                \
    X(_, OPT_INV, gate_bias,             "F")                  \
    X(_, INV,     up_weight,             "F C")                \
    X(_, OPT_INV, up_bias,               "F")                  \
    X(_, INV,     down_weight,           "C F")                \
    X(_, OPT_INV, down_bias,             "C")                  \
    X(_, OPT_INV, post_mlp_norm_weight,  "C")
#define CK_DECODER_WEIGHT(_, kind, name, shape) _(kind, elem, name, shape)
#define CK_DECODER_GRADIENT(_, kind, name, shape) _(OPT_OUTV, elem, d##name, shape)

/* What backward needs of the forward pass: X(_, kind there, type, name, shape).  OPT_: of a layer that has such a part. */
#define CK_DECODER_KEPT(X, _)                                  \
    X(_, OPT_INV, float, mean1,          "B T")                \
    X(_, INV,     float, rstd1,          "B T")                \
    X(_, INV,     elem,  ln1,            "B T C")              \
    X(_, OPT_INV, elem,  q,              "B T H D")            \
    X(_, OPT_INV, elem,  k,              "B T G D")            \
    X(_, INV,     elem,  v,              "B T G D")            \
    X(_, OPT_INV, float, rstd_q,         "B H T")              \
    X(_, OPT_INV, float, rstd_k,         "B G T")              \
    X(_, INV,     elem,  q_rope,         "B T H D")            \
    X(_, INV,     elem,  k_rope,         "B T G D")            \
    X(_, INV,     float, max,            "B H T")              \
    X(_, INV,     float, sum,            "B H T")              \
    X(_, INV,     elem,  attn,           "B T H D")            \
    X(_, OPT_INV, elem,  proj,           "B T C")              \
    X(_, OPT_INV, float, rstd_attn,      "B T")                \
    X(_, OPT_INV, elem,  residual1,      "B T C")              \
    X(_, OPT_INV, float, mean2,          "B T")                \
    X(_, OPT_INV, float, rstd2,          "B T")                \
    X(_, OPT_INV, elem,  ln2,            "B T C")              \
    X(_, OPT_INV, elem,  gate,           "B T F")              \
    X(_, INV,     elem,  up,             "B T F")              \
    X(_, INV,     elem,  act,            "B T F")              \
    X(_, OPT_INV, elem,  down,           "B T C")              \
    X(_, OPT_INV, float, rstd_mlp,       "B T")
#define CK_DECODER_MADE(_, kind, type, name, shape) _(OPT_OUTV, type, name, shape)
#define CK_DECODER_READ(_, kind, type, name, shape) _(kind, type, name, shape)

#define CK_ARGS_decoder_fwd(_)                                 \
    _(OUT,      elem,    y,              "B T C")              \
    _(OPT_OUTV, uint8_t, k_codes,        "N G S W")            \
    _(OPT_OUTV, elem,    k_scales,       "N G S V")            \
    _(OPT_OUTV, elem,    k_biases,       "N G S V")            \
    _(OPT_OUTV, uint8_t, v_codes,        "N G S W")            \
    _(OPT_OUTV, elem,    v_scales,       "N G S V")            \
    _(OPT_OUTV, elem,    v_biases,       "N G S V")            \
    CK_DECODER_KEPT(CK_DECODER_MADE, _)                        \
    _(OPT_OUTV, elem,    q_norm,         "B T H D")            \
    _(OPT_OUTV, elem,    k_norm,         "B T G D")            \
    _(OPT_OUTV, float,   scores,         "B H T T")            \
    _(OPT_OUTV, float,   probs,          "B H T T")            \
    _(OPT_OUTV, elem,    post_attn_norm, "B T C")              \
    _(OPT_OUTV, elem,    post_mlp_norm,  "B T C")              \
    _(IN,       elem,    x,              "B T C")              \
    CK_DECODER_WEIGHTS(CK_DECODER_WEIGHT, _)                   \
    _(OPT_INV,  float,   sinks,          "H")                  \
    _(INV,      float,   cos,            "P K")                \
    _(INV,      float,   sin,            "P K")                \
    _(OPT_INV,  int64_t, positions,      "B T")                \
    _(OPT_INV,  int64_t, lengths,        "B")                  \
    _(OPT_INV,  int64_t, counts,         "B")                  \
    _(OPT_INV,  int64_t, table,          "B L")                \
    _(OPT_INV,  int64_t, copy_from,      "M")                  \
    _(OPT_INV,  int64_t, copy_to,        "M")                  \
    _(INT,      int64_t, format,         "")                   \
    _(INT,      int64_t, group,          "")                   \
    _(INT,      int64_t, activation,     "")                   \
    _(INT,      int64_t, window,         "")                   \
    _(REAL,     double,  eps,            "")                   \
    _(REAL,     double,  offset,         "")                   \
    _(REAL,     double,  scale,          "")                   \
    _(REAL,     double,  softcap,        "")                   \
    _(FLAG,     int,     layer_norm,     "")                   \
    _(FLAG,     int,     parallel,       "")                   \
    _(SIZE,     size_t,  B,              "")                   \
    _(SIZE,     size_t,  T,              "")                   \
    _(SIZE,     size_t,  C,              "")                   \
    _(SIZE,     size_t,  H,              "")                   \
    _(SIZE,     size_t,  G,              "")                   \
    _(SIZE,     size_t,  D,              "")                   \
    _(SIZE,     size_t,  F,              "")                   \
    _(SIZE,     size_t,  P,              "")                   \
    _(SIZE,     size_t,  K,              "")                   \
    _(SIZE,     size_t,  S,              "")                   \
    _(SIZE,     size_t,  N,              "")                   \
    _(SIZE,     size_t,  W,              "")                   \
    _(SIZE,     size_t,  V,              "")                   \
    _(SIZE,     size_t,  L,              "")                   \
    _(SIZE,     size_t,  M,              "")
CK_DECLARE(decoder_fwd)

/*
 * Backward of the layer without a cache.  d_<stage> is the gradient of the loss by that stage; again a buffer each, from
 * the arena where the caller gives none; d_q_norm, d_k_norm, d_scores and d_probs are for the capture alone.  Those that
 * have no buffer are another's: d_down, d_post_mlp_norm and, in a parallel layer, d_residual1 are dy; d_post_attn_norm is
 * d_residual1, and so is d_proj without a norm behind it.  Gradients of weights are added to what is there when
 * `accumulate`; one that is absent is not computed.
 */
#define CK_ARGS_decoder_bwd(_)                                 \
    _(OUT,      elem,    dx,             "B T C")              \
    CK_DECODER_WEIGHTS(CK_DECODER_GRADIENT, _)                 \
    _(OPT_OUTV, float,   dsinks,         "H")                  \
    _(OPT_OUTV, elem,    d_ln1,          "B T C")              \
    _(OPT_OUTV, elem,    d_q,            "B T H D")            \
    _(OPT_OUTV, elem,    d_k,            "B T G D")            \
    _(OPT_OUTV, elem,    d_v,            "B T G D")            \
    _(OPT_OUTV, elem,    d_q_norm,       "B T H D")            \
    _(OPT_OUTV, elem,    d_k_norm,       "B T G D")            \
    _(OPT_OUTV, elem,    d_q_rope,       "B T H D")            \
    _(OPT_OUTV, elem,    d_k_rope,       "B T G D")            \
    _(OPT_OUTV, float,   d_scores,       "B H T T")            \
    _(OPT_OUTV, float,   d_probs,        "B H T T")            \
    _(OPT_OUTV, elem,    d_attn,         "B T H D")            \
    _(OPT_OUTV, elem,    d_proj,         "B T C")              \
    _(OPT_OUTV, elem,    d_residual1,    "B T C")              \
    _(OPT_OUTV, elem,    d_ln2,          "B T C")              \
    _(OPT_OUTV, elem,    d_gate,         "B T F")              \
    _(OPT_OUTV, elem,    d_up,           "B T F")              \
    _(OPT_OUTV, elem,    d_act,          "B T F")              \
    _(OPT_OUTV, elem,    d_down,         "B T C")              \
    _(IN,       elem,    dy,             "B T C")              \
    _(IN,       elem,    x,              "B T C")              \
    CK_DECODER_KEPT(CK_DECODER_READ, _)                        \
    CK_DECODER_WEIGHTS(CK_DECODER_WEIGHT, _)                   \
    _(OPT_INV,  float,   sinks,          "H")                  \
    _(INV,      float,   cos,            "P K")                \
    _(INV,      float,   sin,            "P K")                \
    _(OPT_INV,  int64_t, positions,      "B T")                \
    _(INT,      int64_t, activation,     "")                   \
    _(INT,      int64_t, window,         "")                   \
    _(REAL,     double,  offset,         "")                   \
    _(REAL,     double,  scale,          "")                   \
    _(REAL,     double,  softcap,        "")                   \
    _(FLAG,     int,     layer_norm,     "")                   \
    _(FLAG,     int,     parallel,       "")                   \
    _(FLAG,     int,     accumulate,     "")                   \
    _(SIZE,     size_t,  B,              "")                   \
    _(SIZE,     size_t,  T,              "")                   \
    _(SIZE,     size_t,  C,              "")                   \
    _(SIZE,     size_t,  H,              "")                   \
    _(SIZE,     size_t,  G,              "")                   \
    _(SIZE,     size_t,  D,              "")                   \
    _(SIZE,     size_t,  F,              "")                   \
    _(SIZE,     size_t,  P,              "")                   \
    _(SIZE,     size_t,  K,              "")
CK_DECLARE(decoder_bwd)
#endif
