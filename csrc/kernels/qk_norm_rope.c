#include "kernels/norm.h"
#include "ops/qk_norm_rope.h"

/* What turns one row: its part of the table, and the sign of the angle. */
typedef struct { const float *cos, *sin; size_t K, D; v16 sign; } turn;

/* Reads and writes of a row that is turned: normed and of the dtype, or the reverse. */
typedef struct { const elem *x; const float *weight; v16 scale; } source;
typedef v16 reader(const source *of, size_t c, size_t n);
typedef void writer(void *to, size_t c, v16 x, size_t n);

CK_TEMPLATE v16
normed(const source *of, size_t c, size_t n)
{
    return v16_mul(v16_mul(v16_load(of->x + c, n), of->scale), v16_load_f32(of->weight + (CK_FAULT(qk_norm_rope_partner) ? c % 16 : c), n));
}
CK_TEMPLATE v16 as_it_is(const source *of, size_t c, size_t n) { return v16_load(of->x + c, n); }
CK_TEMPLATE void to_dtype(void *to, size_t c, v16 x, size_t n) { v16_store((elem *)to + c, x, n); }
CK_TEMPLATE void past_caches(void *to, size_t c, v16 x, size_t n) { v16_stream((elem *)to + c, x, n); }
CK_TEMPLATE void to_float(void *to, size_t c, v16 x, size_t n) { v16_store_f32((float *)to + c, x, n); }

/* The pairs k..k+15 of which n are left: their halves, or 32 channels that alternate. */
CK_TEMPLATE void
turn_some(const turn *by, const source *of, reader *read, void *to, writer *write, size_t k, size_t n, bool pairs)
{
    const size_t K = by->K, second = n > 8 ? 2 * n - 16 : 0; /* pairs: elements behind the first 16 */
    const v16 c = v16_load_f32(by->cos + k, n), s = v16_mul(v16_load_f32(by->sin + k, n), by->sign);
    const v16 a = pairs ? read(of, 2 * k, 2 * n) : read(of, k, n);
    const v16 b = !pairs ? read(of, K + k, n) : second != 0 ? read(of, 2 * k + 16, second) : v16_zero();
    const v16 lo = pairs ? v16_evens(a, b) : a, hi = pairs ? v16_odds(a, b) : b;
    const v16 new_lo = v16_fma(hi, v16_neg(s), v16_mul(lo, c)), new_hi = v16_fma(hi, c, v16_mul(lo, s));
    write(to, pairs ? 2 * k : k, pairs ? v16_zip_lo(new_lo, new_hi) : new_lo, pairs ? 2 * n : n);
    if (!pairs || second != 0)
        write(to, pairs ? 2 * k + 16 : K + k, pairs ? v16_zip_hi(new_lo, new_hi) : new_hi, pairs ? second : n);
}

CK_TEMPLATE void
turn_all(const turn *by, const source *of, reader *read, void *to, writer *write, bool pairs)
{
    size_t k = 0;
    for (; k + 16 <= by->K; k += 16)
        turn_some(by, of, read, to, write, k, 16, pairs);
    if (k < by->K)
        turn_some(by, of, read, to, write, k, by->K - k, pairs);
}

/* A row; from channel 2K on it is only read and written. */
CK_TEMPLATE void
turn_row(const turn *by, const source *of, reader *read, void *to, writer *write, bool pairs)
{
    if (pairs)
        turn_all(by, of, read, to, write, true);
    else
        turn_all(by, of, read, to, write, false);
    for (size_t c = 2 * by->K; c < by->D; c += 16)
        write(to, c, read(of, c, by->D - c), by->D - c);
}

/* Whether the heads of a token lie together, [B,T,H,D] seen as [B,H,T,D], rather than the tokens of a head. */
static inline bool
heads_together(const ck_array *x)
{
    return x->n > 1 && x->stride[x->n - 1] > x->stride[x->n - 2];
}

static inline size_t
table_row(const ck_array *positions, size_t N, size_t P, size_t n, size_t t)
{
    return positions->data != NULL ? (size_t)ck_position(positions, P > 1 ? n / (N / P) : 0, t) : t;
}

CK_TEMPLATE void
forward_row(const struct ck_qk_norm_rope_fwd *a, size_t n, size_t t, bool stream)
{
    const size_t r = n * a->T + t, p = table_row(&a->positions, a->N, a->P, n, t);
    const elem *x = ck_row(&a->x, r);
    const float rstd = (float)norm_rstd(norm_sum(norm_square, x, a->D).a, a->D, a->eps);
    const turn by = {ck_row(&a->cos, p), ck_row(&a->sin, p), a->K, a->D, v16_splat(1.0f)};
    const source of = {x, a->weight.data, v16_splat(rstd)};

    if (a->rstd != NULL)
        a->rstd[r] = rstd;
    elem *y = ck_row(&a->y, r);
    if (stream)
        turn_row(&by, &of, normed, y, past_caches, a->interleaved);
    else
        turn_row(&by, &of, normed, y, to_dtype, a->interleaved);
}

/* One stretch of heads in one block of tokens after the other, each in the order of memory. */
CK_KERNEL(qk_norm_rope_fwd)
{
    const bool by_token = heads_together(&a->x), stream = norm_streams(&a->y, &a->x, 2, a->N * a->T, a->D);

    for (size_t i = task.begin, heads; i < task.end; i += heads) { /* i = block * N + n */
        const size_t n = i % a->N, t = i / a->N * CK_ROPE_T, tokens = a->T - t < CK_ROPE_T ? a->T - t : CK_ROPE_T;
        heads = a->N - n < task.end - i ? a->N - n : task.end - i;
        for (size_t outer = 0; outer < (by_token ? tokens : heads); outer++)
            for (size_t inner = 0; inner < (by_token ? heads : tokens); inner++)
                forward_row(a, n + (by_token ? inner : outer), t + (by_token ? outer : inner), stream);
    }
    if (stream)
        ck_stream_end();
}

/* A row of backward, turned back: dv is [D]. */
typedef struct { const elem *x; const float *dv, *weight; float *dweight; v16 scale, pull; bool first; } backward_of;

CK_TEMPLATE norm_lanes
add_product(const void *of, size_t c, size_t n, norm_lanes sum)
{
    const backward_of *row = of;
    const v16 g = v16_mul(v16_load_f32(row->dv + c, n), v16_load_f32(row->weight + c, n));
    sum.a = v16_fma(g, v16_load(row->x + c, n), sum.a);
    return sum;
}

CK_TEMPLATE v16
gradient(const void *of, size_t c, size_t n)
{
    const backward_of *row = of;
    const v16 x = v16_load(row->x + c, n), dv = v16_load_f32(row->dv + c, n);
    if (row->dweight != NULL)
        norm_add_to(row->dweight + c, row->first, dv, v16_mul(x, row->scale), n);
    return v16_mul(row->scale, v16_fma(x, row->pull, v16_mul(dv, v16_load_f32(row->weight + c, n))));
}

CK_TEMPLATE void
backward_row(const struct ck_qk_norm_rope_bwd *a, size_t n, size_t t, float *dv, float *dweight, bool first,
             bool stream)
{
    const size_t r = n * a->T + t, p = table_row(&a->positions, a->N, a->P, n, t);
    const turn by = {ck_row(&a->cos, p), ck_row(&a->sin, p), a->K, a->D, v16_splat(CK_FAULT(qk_norm_rope_turned_on) ? 1.0f : -1.0f)};
    const source of = {.x = ck_row(&a->dy, r)};
    backward_of row = {ck_row(&a->x, r), dv, a->weight.data, dweight, v16_splat(a->rstd[r]), v16_zero(), first};
    const double rstd = a->rstd[r];

    turn_row(&by, &of, as_it_is, dv, to_float, a->interleaved);
    row.pull = v16_splat((float)(-rstd * rstd * norm_sum(add_product, &row, a->D).a / (double)a->D));
    norm_write(ck_row(&a->dx, r), a->D, stream, gradient, &row);
}

/* Item by item, since the order of the rows is that in which their shares of dweight are added. */
CK_KERNEL(qk_norm_rope_bwd)
{
    const size_t each = ck_qk_items(a->T);
    const bool stream = norm_streams(&a->dx, &a->dy, 3, a->N * a->T, a->D);

    for (size_t i = task.begin; i < task.end; i++) {
        const size_t n = i % a->N, t = i / a->N * CK_ROPE_T, tokens = a->T - t < CK_ROPE_T ? a->T - t : CK_ROPE_T;
        float *dweight = a->dweight.data != NULL ? (float *)task.work + (i - task.begin) / each * a->D : NULL;
        for (size_t row = 0; row < tokens; row++)
            backward_row(a, n, t + row, task.scratch, dweight, i % each == 0 && row == 0, stream);
    }
    if (stream)
        ck_stream_end();
}
