#include "ops/ops.h"
#include "runtime/run.h"

/* Rows of positions belong to items, which have as many rows of x each; no position lies outside the table. */
static ck_status
refuse_positions(const ck_array *positions, size_t rows, size_t N, size_t T, size_t P, size_t S)
{
    if (P != 1 && (P == 0 ? N != 0 : N % P != 0))
        return ck_refuse(CK_BAD_VALUE, "'positions' has %zu rows, which do not divide the N=%zu of x", P, N);
    for (size_t p = 0; p < rows; p++)
        for (size_t t = 0; t < T; t++) {
            const int64_t position = ck_position(positions, p, t);
            if (position < 0 || (uint64_t)position >= S)
                return ck_refuse(CK_BAD_INDEX, "'positions' holds %lld, and the table has %zu rows",
                                 (long long)position, S);
        }
    return CK_OK;
}

static ck_status
refuse_width(size_t K, size_t D)
{
    return 2 * K <= D ? CK_OK : ck_refuse(CK_BAD_VALUE, "'cos' has K=%zu pairs, and there are only D=%zu channels to rotate",
                                          K, D);
}

ck_status
ck_refuse_rope(const struct ck_rope_fwd *a)
{
    const ck_status status = refuse_width(a->K, a->D);
    if (status != CK_OK || a->positions.data != NULL)
        return status != CK_OK ? status : refuse_positions(&a->positions, a->P, a->N, a->T, a->P, a->S);
    if (a->S != a->T)
        return ck_refuse(CK_BAD_VALUE, "'cos' has S=%zu rows for T=%zu tokens: give 'positions', or a row a token",
                         a->S, a->T);
    return CK_OK;
}

/* Items, and how many make a task. */
static ck_job
job_of(size_t N, size_t T, size_t D, ck_kernel *kernel, const void *args)
{
    const size_t tokens = T < CK_ROPE_T ? T : CK_ROPE_T;
    return (ck_job){.kernel = kernel, .args = args, .n = ck_blocks(T, CK_ROPE_T) * N, .grain = ck_grain(tokens * D)};
}

static ck_status
run(const struct ck_rope_fwd *a, ck_kernel *kernel, const void *args)
{
    const ck_status status = ck_refuse_rope(a);
    const ck_job job = job_of(a->N, a->T, a->D, kernel, args);
    return status != CK_OK ? status : ck_run(&job);
}

CK_RUN(rope_fwd)
{
    return run(a, CK_FAST(rope_fwd), a);
}

CK_RUN(rope_bwd)
{
    const struct ck_rope_fwd same = {a->dx, a->dy, a->cos, a->sin, a->positions, a->interleaved,
                                     a->N, a->T, a->D, a->S, a->K, a->P};
    return run(&same, CK_FAST(rope_bwd), a);
}

static ck_status
run_mrope(const struct ck_mrope_fwd *a, ck_kernel *kernel, const void *args)
{
    ck_status status = refuse_width(a->K, a->D);
    for (size_t i = 0; status == CK_OK && i < a->K; i++)
        if (a->axes[i] < 0 || (uint64_t)a->axes[i] >= a->A)
            status = ck_refuse(CK_BAD_VALUE, "'axes' holds %lld, and 'positions' has A=%zu axes", (long long)a->axes[i],
                               a->A);
    if (status == CK_OK)
        status = refuse_positions(&a->positions, a->A * a->P, a->N, a->T, a->P, a->S);
    if (status != CK_OK)
        return status;
    ck_job job = job_of(a->N, a->T, a->D, kernel, args);
    job.scratch_each = 2 * CK_ROPE_T * a->K * sizeof(float); /* the block's cosines and sines, axes put together */
    return ck_run(&job);
}

CK_RUN(mrope_fwd)
{
    return run_mrope(a, CK_FAST(mrope_fwd), a);
}

CK_RUN(mrope_bwd)
{
    const struct ck_mrope_fwd same = {a->dx, a->dy, a->cos, a->sin, a->axes, a->positions, a->interleaved,
                                      a->N, a->T, a->D, a->S, a->K, a->A, a->P};
    return run_mrope(&same, CK_FAST(mrope_bwd), a);
}
