#include "ops/matmul.h"

#include "ops/ops.h"
#include "runtime/run.h"

/* The four ways have the same fields; these carry them on, with the way as two flags. */
typedef struct {
    ck_array y, a, b, da, db; /* dy is y in backward */
    bool ta, tb;
    size_t B, D, M, N, K;
} product;

static ck_status
refuse_batch(const product *p)
{
    if (p->D != 1 && p->D != p->B)
        return ck_refuse(CK_BAD_VALUE, "'b' has %zu matrices, 'a' %zu", p->D, p->B);
    return CK_OK;
}

static ck_status
forward(const ck_kernels *k, const product *p)
{
    const ck_status status = refuse_batch(p);
    if (status != CK_OK)
        return status;
    const bool one = p->D == 1 && !p->ta; /* rows of all items times one b */
    return ck_gemm(k, &(struct ck_gemm){.c = p->y, .a = p->a, .b = p->b, .transpose_a = p->ta, .transpose_b = p->tb,
                                        .share_b = p->D == 1, .B = one ? 1 : p->B, .M = one ? p->B * p->M : p->M,
                                        .N = p->N, .K = p->K});
}

/* dA as a lies: dy B^T, or its transpose B dy^T. */
static ck_status
gradient_of_a(const ck_kernels *k, const product *p)
{
    struct ck_gemm g = {.c = p->da, .B = p->B, .K = p->N};
    if (p->ta)
        g.a = p->b, g.transpose_a = p->tb, g.share_a = p->D == 1, g.b = p->y, g.transpose_b = true, g.M = p->K, g.N = p->M;
    else
        g.a = p->y, g.b = p->b, g.transpose_b = !p->tb, g.share_b = p->D == 1, g.M = p->M, g.N = p->K;
    return ck_gemm(k, &g);
}

/* Items from `item` on of x, which has `rows` rows an item; gemm counts its rows from there. */
static ck_array
from_item(ck_array x, size_t item, size_t rows)
{
    const size_t inner = x.n > 0 ? x.size[x.n - 1] : 1;
    ck_array one = {rows != 0 ? ck_row(&x, item * rows) : x.data, x.width, 0, {0}, {0}};
    if (x.n > 0 && inner > 1) { /* the rows of one item lie on the innermost axis */
        one.n = 1;
        one.size[0] = rows;
        one.stride[0] = x.stride[x.n - 1];
    }
    return one;
}

/* dB as b lies: A^T dy, or its transpose dy^T A. */
static ck_status
gradient_of_b(const ck_kernels *k, const product *p)
{
    struct ck_gemm g = {.c = p->db, .B = p->B, .K = p->M, .M = p->K, .N = p->N, .a = p->a, .transpose_a = !p->ta, .b = p->y};
    if (p->tb)
        g.a = p->y, g.transpose_a = true, g.b = p->a, g.transpose_b = p->ta, g.M = p->N, g.N = p->K;
    if (p->D == p->B || p->B == 0) {
        g.B = p->D; /* no items: a shared b gets zeros */
        g.K = p->B == 0 ? 0 : g.K;
        return ck_gemm(k, &g);
    }
    if (!p->ta) {
        g.B = 1, g.K = p->B * p->M;
        return ck_gemm(k, &g);
    }
    ck_status status = CK_OK;
    for (size_t item = 0; item < p->B && status == CK_OK; item++) {
        struct ck_gemm each = g;
        each.B = 1;
        each.a = p->tb ? from_item(p->y, item, p->M) : from_item(p->a, item, p->K);
        each.b = p->tb ? from_item(p->a, item, p->K) : from_item(p->y, item, p->M);
        each.residual = item > 0 ? p->db : (ck_array){0};
        status = ck_gemm(k, &each);
    }
    return status;
}

static ck_status
backward(const ck_kernels *k, const product *p)
{
    ck_status status = refuse_batch(p);
    if (status == CK_OK && p->da.data != NULL)
        status = gradient_of_a(k, p);
    if (status == CK_OK && p->db.data != NULL)
        status = gradient_of_b(k, p);
    return status;
}

#define CK_WAY(way, ta_, tb_)                                                                                          \
    CK_RUN(matmul_##way##_fwd)                                                                                         \
    {                                                                                                                  \
        return forward(k, &(product){.y = a->y, .a = a->a, .b = a->b, .ta = ta_, .tb = tb_,                            \
                                     .B = a->B, .D = a->D, .M = a->M, .N = a->N, .K = a->K});                          \
    }                                                                                                                  \
    CK_RUN(matmul_##way##_bwd)                                                                                         \
    {                                                                                                                  \
        return backward(k, &(product){.y = a->dy, .a = a->a, .b = a->b, .da = a->da, .db = a->db, .ta = ta_, .tb = tb_, \
                                      .B = a->B, .D = a->D, .M = a->M, .N = a->N, .K = a->K});                         \
    }
CK_WAY(nn, false, false)
CK_WAY(nt, false, true)
CK_WAY(tn, true, false)
CK_WAY(tt, true, true)
