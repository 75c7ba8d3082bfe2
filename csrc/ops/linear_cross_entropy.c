#include "ops/linear_cross_entropy.h"

#include "ops/ops.h"
#include "ops/pieces.h"
#include "runtime/dispatch.h"
#include "runtime/run.h"

#include <math.h>

enum { WIDTH = sizeof(float) };

/* ---- operands as floats, block by block ---- */

/* A call: its operands as rows of floats, and the blocks that are at work. */
typedef struct {
    const ck_kernels *k, *floats; /* of the call's dtype, and of float32 */
    ck_array x, dx, weight;       /* x and dx as floats, at one distance; the weight as it is */
    float *logits;                /* [CK_LCE_ROWS, CK_LCE_CLASSES], or of all classes, block after block */
    float *wide, *dweight;        /* [CK_LCE_CLASSES, C] where the weight, or its gradient, need a place to be floats */
    size_t R, C, V;
    void *taken;
    size_t size;
} blocks;

/* Whether rows are floats at one distance, so that a block of them is an array. */
static bool
lies_well(const ck_array *x)
{
    return x->width == WIDTH && x->n <= 1;
}

static ck_array
part(const ck_array *x, size_t row, size_t rows)
{
    const ptrdiff_t stride = x->n != 0 ? x->stride[0] : 0;
    return (ck_array){(char *)x->data + (ptrdiff_t)row * stride, x->width, 1, {rows}, {stride}};
}

static ck_status
widen_rows(const ck_kernels *k, float *to, ck_array from, size_t R, size_t C)
{
    return ck_linear_dz(k, &(struct ck_linear_dz){.dz = ck_rows(to, R, C, WIDTH), .dy = from, .R = R, .N = C});
}

/* Rounds rows of floats to where they belong, or adds them to what is there. */
static ck_status
narrow_rows(const ck_kernels *k, const ck_array *to, float *from, size_t R, size_t C, bool accumulate)
{
    const bool flat = ck_is_flat(to, C);
    ck_status status = CK_OK;
    for (size_t r = 0; r < (flat ? 1 : R) && status == CK_OK; r++) {
        const size_t n = flat ? R * C : C;
        status = ck_sum_rows(k, &(struct ck_sum_rows){
            .sum = {.data = ck_row(to, r), .width = to->width, .n = 1, .size = {n}, .stride = {(ptrdiff_t)to->width}},
            .x = ck_rows(from + r * C, 1, n, WIDTH), .accumulate = accumulate, .R = 1, .C = n});
    }
    return status;
}

/* Takes all the memory that a call needs; x and dx (or none) as floats; logits of `width` classes.  Seen: [R], or NULL. */
static ck_status
begin(blocks *b, const ck_array *x, const ck_array *dx, bool fold, size_t width, ck_seen **seen)
{
    const size_t rows = b->R < CK_LCE_ROWS ? b->R : CK_LCE_ROWS, classes = b->V < CK_LCE_CLASSES ? b->V : CK_LCE_CLASSES;
    const size_t all = b->R * b->C, state = seen != NULL ? b->R * (sizeof(ck_seen) / WIDTH) : 0;
    const size_t logits = rows * (b->V < width ? b->V : width);
    const size_t of_x = lies_well(x) ? 0 : all, of_dx = dx->data == NULL || lies_well(dx) ? 0 : all;
    const size_t of_weight = b->weight.width == WIDTH ? 0 : classes * b->C, of_dweight = fold ? classes * b->C : 0;

    b->floats = ck_kernels_for(b->k->isa, CK_F32);
    b->size = (state + logits + of_x + of_dx + of_weight + of_dweight) * WIDTH + 1;
    if ((b->taken = ck_take(b->size)) == NULL)
        return CK_NO_MEMORY;
    float *at = b->taken;
    if (seen != NULL)
        *seen = (ck_seen *)b->taken;
    b->logits = at += state;
    at += logits;
    b->x = of_x != 0 ? ck_rows(at, b->R, b->C, WIDTH) : *x;
    at += of_x;
    b->dx = of_dx != 0 ? ck_rows(at, b->R, b->C, WIDTH) : *dx;
    at += of_dx;
    b->wide = at;
    b->dweight = at + of_weight;
    return of_x != 0 ? widen_rows(b->k, b->x.data, *x, b->R, b->C) : CK_OK;
}

/* Classes v.. of the weight as floats. */
static ck_status
take_weight(const blocks *b, size_t v, size_t n, ck_array *weight)
{
    *weight = part(&b->weight, v, n);
    if (b->weight.width == WIDTH)
        return CK_OK;
    const ck_status status = widen_rows(b->k, b->wide, *weight, n, b->C);
    *weight = ck_rows(b->wide, n, b->C, WIDTH);
    return status;
}

/* Blocks of `size` that cover n, at least one: sums over nothing are written too. */
static size_t
blocks_of(size_t n, size_t size)
{
    return n == 0 ? 1 : ck_blocks(n, size);
}

static size_t
length_of(size_t begin, size_t n, size_t size)
{
    return n - begin < size ? n - begin : size;
}

/* logits [R,N] of rows r.. */
static ck_status
multiply(const blocks *b, float *logits, size_t r, size_t R, const ck_array *weight, size_t N)
{
    return ck_gemm(b->floats, &(struct ck_gemm){.c = ck_rows(logits, R, N, WIDTH), .a = part(&b->x, r, R), .b = *weight,
                                                .transpose_b = true, .B = 1, .M = R, .N = N, .K = b->C});
}

CK_RUN(logits_block_fwd)
{
    return ck_tasks(a->R, ck_rows_grain(a->R, a->N), CK_FAST(logits_block_fwd), a);
}

CK_RUN(logits_block_bwd)
{
    return ck_tasks(a->R, ck_rows_grain(a->R, a->N), CK_FAST(logits_block_bwd), a);
}

/* ---- forward ---- */

/* One block: logits, and what is seen of them. */
static ck_status
look(const blocks *b, const struct ck_linear_cross_entropy_fwd *a, ck_seen *seen, float *logits, size_t r, size_t v,
     const ck_array *weight)
{
    const size_t R = length_of(r, a->R, CK_LCE_ROWS), N = length_of(v, a->V, CK_LCE_CLASSES);
    const ck_status status = multiply(b, logits, r, R, weight, N);
    if (status != CK_OK)
        return status;
    return ck_logits_block_fwd(b->floats, &(struct ck_logits_block_fwd){
        .state = seen + r, .logits = ck_rows(logits, R, N, WIDTH), .target = a->target, .ignore_index = a->ignore_index,
        .smooth = a->label_smoothing > 0, .softcap = a->softcap, .row = r, .first = v, .R = R, .N = N});
}

/* The losses of rows r.., added to the total, and what is kept of them. */
static void
finish(const struct ck_linear_cross_entropy_fwd *a, const ck_seen *seen, size_t r, size_t R, double *total)
{
    for (const size_t end = r + R; r < end; r++) {
        const ck_seen *row = &seen[r];
        const double s = a->label_smoothing;
        double loss = 0;
        if (ck_id(&a->target, r) != a->ignore_index) {
            const double lse = row->peak + log(row->sum);
            loss = lse - (1 - s) * row->target + a->z_loss * lse * lse;
            if (s > 0)
                loss -= s / (double)a->V * row->other;
        }
        if (a->losses != NULL)
            a->losses[r] = (float)loss;
        if (a->peak != NULL)
            a->peak[r] = row->peak;
        if (a->sum != NULL)
            a->sum[r] = (float)row->sum;
        *total += loss;
    }
}

static void
forget(ck_seen *seen, size_t R)
{
    for (size_t r = 0; r < R; r++)
        seen[r] = (ck_seen){.peak = -INFINITY};
}

CK_RUN(linear_cross_entropy_fwd)
{
    blocks b = {.k = k, .weight = a->weight, .R = a->R, .C = a->C, .V = a->V};
    const ck_array none = {.data = NULL};
    ck_seen *seen;
    size_t counted;
    double total = 0;

    ck_status status = ck_refuse_loss_options(a->label_smoothing, a->z_loss, a->softcap);
    if (status == CK_OK)
        status = ck_count_targets(&a->target, a->ignore_index, a->R, a->V, "weight", &counted);
    if (status != CK_OK || (status = begin(&b, &a->x, &none, false, CK_LCE_CLASSES, &seen)) != CK_OK)
        return status;
    forget(seen, a->R);
    for (size_t v = 0; v < a->V && status == CK_OK; v += CK_LCE_CLASSES) {
        ck_array weight;
        status = take_weight(&b, v, length_of(v, a->V, CK_LCE_CLASSES), &weight);
        for (size_t r = 0; r < a->R && status == CK_OK; r += CK_LCE_ROWS)
            status = look(&b, a, seen, b.logits, r, v, &weight);
    }
    if (status == CK_OK) {
        finish(a, seen, 0, a->R, &total);
        if (a->loss != NULL)
            *a->loss = (float)(total / (a->mean ? (double)counted : 1));
    }
    ck_give(b.taken, b.size);
    return status;
}

/* ---- backward ---- */

/* One block of logits: their gradient, and its part of the sums; the part of dweight goes to `dweight`. */
static ck_status
spread(const blocks *b, const struct ck_linear_cross_entropy_bwd *a, double share, float *block, size_t r, size_t v,
       const ck_array *weight, ck_array dweight, bool add)
{
    const size_t R = length_of(r, a->R, CK_LCE_ROWS), N = length_of(v, a->V, CK_LCE_CLASSES);
    const ck_array logits = ck_rows(block, R, N, WIDTH), none = {.data = NULL};
    const ck_array dx = b->dx.data != NULL ? part(&b->dx, r, R) : none;

    ck_status status = ck_logits_block_bwd(b->floats, &(struct ck_logits_block_bwd){
        .dlogits = logits, .logits = logits, .dy = a->dy, .dloss = a->dloss * share, .target = a->target,
        .peak = a->peak + r, .sum = a->sum + r, .ignore_index = a->ignore_index, .label_smoothing = a->label_smoothing,
        .z_loss = a->z_loss, .softcap = a->softcap, .row = r, .first = v, .R = R, .N = N, .V = a->V});
    if (status == CK_OK && dx.data != NULL)
        status = ck_gemm(b->floats, &(struct ck_gemm){.c = dx, .a = logits, .b = *weight, .residual = v == 0 ? none : dx,
                                                      .B = 1, .M = R, .N = a->C, .K = N});
    if (status == CK_OK && dweight.data != NULL)
        status = ck_gemm(b->floats, &(struct ck_gemm){.c = dweight, .a = logits, .b = part(&b->x, r, R),
                                                      .transpose_a = true, .residual = add ? dweight : none,
                                                      .B = 1, .M = N, .N = a->C, .K = R});
    return status;
}

/* All of backward, with `fold` the parts of dweight apart, and rounded or added last. */
static ck_status
gradients(const blocks *b, const struct ck_linear_cross_entropy_bwd *a, double share, bool fold)
{
    const ck_array none = {.data = NULL};
    ck_status status = CK_OK;
    for (size_t j = 0; j < blocks_of(a->V, CK_LCE_CLASSES) && status == CK_OK; j++) {
        const size_t v = j * CK_LCE_CLASSES, N = length_of(v, a->V, CK_LCE_CLASSES);
        const ck_array place = a->dweight.data != NULL ? part(&a->dweight, v, N) : none;
        const ck_array dweight = fold ? ck_rows(b->dweight, N, a->C, WIDTH) : place;
        ck_array weight;
        status = take_weight(b, v, N, &weight);
        for (size_t i = 0; i < blocks_of(a->R, CK_LCE_ROWS) && status == CK_OK; i++) {
            const size_t r = i * CK_LCE_ROWS;
            status = multiply(b, b->logits, r, length_of(r, a->R, CK_LCE_ROWS), &weight, N);
            if (status == CK_OK)
                status = spread(b, a, share, b->logits, r, v, &weight, dweight, i > 0 || (a->accumulate && !fold));
        }
        if (status == CK_OK && fold)
            status = narrow_rows(b->k, &place, b->dweight, N, a->C, a->accumulate);
    }
    if (status == CK_OK && b->dx.data != a->dx.data)
        status = narrow_rows(b->k, &a->dx, b->dx.data, a->R, a->C, false);
    return status;
}

/* Whether parts of dweight are added up apart: they must not be rounded, or what is there comes last. */
static bool
folds(const struct ck_linear_cross_entropy_bwd *a)
{
    return a->dweight.data != NULL && (a->dweight.width != WIDTH || (a->accumulate && a->R > CK_LCE_ROWS));
}

CK_RUN(linear_cross_entropy_bwd)
{
    blocks b = {.k = k, .weight = a->weight, .R = a->R, .C = a->C, .V = a->V};
    const bool fold = folds(a);
    size_t counted;

    ck_status status = ck_refuse_loss_options(a->label_smoothing, a->z_loss, a->softcap);
    if (status == CK_OK)
        status = ck_count_targets(&a->target, a->ignore_index, a->R, a->V, "weight", &counted);
    if (status == CK_OK)
        status = begin(&b, &a->x, &a->dx, fold, CK_LCE_CLASSES, NULL);
    if (status == CK_OK)
        status = gradients(&b, a, a->mean ? 1 / (double)counted : 1, fold);
    ck_give(b.taken, b.size);
    return status;
}

/* ---- both ---- */

/* Block of rows by block of rows: all of its logits, what is seen of them, then their gradients. */
static ck_status
pass(const blocks *b, const struct ck_linear_cross_entropy_fwd *fwd, const struct ck_linear_cross_entropy_bwd *bwd,
     ck_seen *seen, double share, double *total)
{
    const ck_array none = {.data = NULL};
    ck_status status = CK_OK;
    forget(seen, b->R);
    for (size_t i = 0; i < blocks_of(b->R, CK_LCE_ROWS) && status == CK_OK; i++) {
        const size_t r = i * CK_LCE_ROWS, R = length_of(r, b->R, CK_LCE_ROWS);
        ck_array weight;
        for (size_t v = 0; v < b->V && status == CK_OK; v += CK_LCE_CLASSES) {
            status = take_weight(b, v, length_of(v, b->V, CK_LCE_CLASSES), &weight);
            if (status == CK_OK)
                status = look(b, fwd, seen, b->logits + R * v, r, v, &weight);
        }
        if (status != CK_OK)
            return status;
        finish(fwd, seen, r, R, total);
        for (size_t j = 0; j < blocks_of(b->V, CK_LCE_CLASSES) && status == CK_OK; j++) {
            const size_t v = j * CK_LCE_CLASSES, N = length_of(v, b->V, CK_LCE_CLASSES);
            status = take_weight(b, v, N, &weight);
            if (status == CK_OK)
                status = spread(b, bwd, share, b->logits + R * v, r, v, &weight,
                                bwd->dweight.data != NULL ? part(&bwd->dweight, v, N) : none, i > 0 || bwd->accumulate);
        }
    }
    if (status == CK_OK && b->dx.data != bwd->dx.data)
        status = narrow_rows(b->k, &bwd->dx, b->dx.data, b->R, b->C, false);
    return status;
}

CK_RUN(linear_cross_entropy_grads)
{
    blocks b = {.k = k, .weight = a->weight, .R = a->R, .C = a->C, .V = a->V};
    const size_t kept = 2 * a->R * WIDTH + 1;
    float *const peak = ck_take(kept), *const sum = peak + a->R;
    const struct ck_linear_cross_entropy_fwd fwd = {
        .loss = a->loss, .peak = peak, .sum = sum, .x = a->x, .weight = a->weight, .target = a->target,
        .ignore_index = a->ignore_index, .mean = a->mean, .label_smoothing = a->label_smoothing, .z_loss = a->z_loss,
        .softcap = a->softcap, .R = a->R, .C = a->C, .V = a->V};
    const struct ck_linear_cross_entropy_bwd bwd = {
        .dx = a->dx, .dweight = a->dweight, .dloss = a->dloss, .x = a->x, .weight = a->weight, .target = a->target,
        .peak = peak, .sum = sum, .ignore_index = a->ignore_index, .mean = a->mean, .label_smoothing = a->label_smoothing,
        .z_loss = a->z_loss, .softcap = a->softcap, .accumulate = a->accumulate, .R = a->R, .C = a->C, .V = a->V};
    ck_seen *seen;
    size_t counted;
    double total = 0;

    ck_status status = peak == NULL ? CK_NO_MEMORY : ck_refuse_loss_options(a->label_smoothing, a->z_loss, a->softcap);
    if (status == CK_OK)
        status = ck_count_targets(&a->target, a->ignore_index, a->R, a->V, "weight", &counted);
    if (status == CK_OK && folds(&bwd)) { /* parts of dweight need a place: a block of classes at a time */
        status = ck_linear_cross_entropy_fwd(k, &fwd);
        if (status == CK_OK)
            status = ck_linear_cross_entropy_bwd(k, &bwd);
    }
    else if (status == CK_OK) {
        const double divisor = a->mean ? (double)counted : 1;
        status = begin(&b, &a->x, &a->dx, false, a->V, &seen);
        if (status == CK_OK)
            status = pass(&b, &fwd, &bwd, seen, 1 / divisor, &total);
        if (status == CK_OK && a->loss != NULL)
            *a->loss = (float)(total / divisor);
        ck_give(b.taken, b.size);
    }
    ck_give(peak, kept);
    return status;
}
