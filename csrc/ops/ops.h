#ifndef CK_OPS_H
#define CK_OPS_H
/* Every op's declaration, in the order of ops.def, and the table of kernels that its ISA and dtype fill. */
#include "ops/activation.h"
#include "ops/add.h"
#include "ops/adamw.h"
#include "ops/add_rms_norm.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/gemm.h"
#include "ops/gemm_pack.h"
#include "ops/gemm_tiles.h"
#include "ops/attention.h"
#include "ops/attention_varlen.h"
#include "ops/clip_grad_norm.h"
#include "ops/glu.h"
#include "ops/kl_div.h"
#include "ops/heads.h"
#include "ops/kv_cache.h"
#include "ops/l2_norm.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"
#include "ops/linear_dz.h"
#include "ops/log_softmax.h"
#include "ops/matmul.h"
#include "ops/qk_norm_rope.h"
#include "ops/mse_loss.h"
#include "ops/probe.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/selection.h"
#include "ops/softmax.h"
#include "ops/sgd.h"
#include "ops/sum_rows.h"
#include "ops/widen.h"

enum {
#define CK_OP(op, called) CK_NR_##op,
#define CK_LAYER(op, called)
#define CK_PART(op) CK_NR_##op,
#include "ops.def"
    CK_KERNELS
};

enum {
#define CK_TILED(op) CK_TILES_##op,
#include "tiles.def"
    CK_TILES_KERNELS
};

struct ck_kernels {
    const char *isa;
    ck_dtype dtype;
    ck_kernel *kernel[CK_KERNELS];
    ck_kernel *tiles[CK_TILES_KERNELS]; /* NULL: no matrix unit for this dtype */
};

/* Inside CK_RUN: the kernel in use. */
#define CK_FAST(op) k->kernel[CK_NR_##op]
#endif
