#include "kernels/rows.h"
#include "ops/pieces.h"
#include "ops/softmax.h"

#include <string.h>

/* ---- masks ---- */

/* Up to 16 elements of a mask as numbers to add: 0 or -inf for a boolean; -inf behind the n that are left. */
CK_TEMPLATE v16
mask_words(const char *mask, ptrdiff_t step, bool boolean, size_t n)
{
    elem number[16];
    float zero_or_inf[16];

    if (!boolean && step == sizeof(elem))
        return n >= 16 ? v16_load((const elem *)mask, 16) : v16_load_or((const elem *)mask, n, -INFINITY);
    if (boolean && step == 1 && n >= 16) { /* of constant length, which the compiler makes vectors of */
        for (size_t i = 0; i < 16; i++)
            zero_or_inf[i] = mask[i] ? 0.0f : -INFINITY;
        return v16_load_f32(zero_or_inf, 16);
    }
    for (size_t i = 0; i < 16 && i < n; i++)
        if (boolean)
            zero_or_inf[i] = mask[(ptrdiff_t)i * step] ? 0.0f : -INFINITY;
        else
            number[i] = *(const elem *)(mask + (ptrdiff_t)i * step);
    return boolean ? v16_load_or_f32(zero_or_inf, n, -INFINITY) : v16_load_or(number, n, -INFINITY);
}

/* Of a row, elements begin to begin+n-1: z into `row`, its largest in `peak`; whether any of them takes part. */
CK_TEMPLATE bool
add_mask(const struct ck_softmax_fwd *a, size_t r, size_t begin, size_t n, bool boolean, ptrdiff_t step, float *row, float *peak)
{
    const elem *x = (const elem *)ck_row(&a->x, r) + begin;
    const char *mask = (const char *)ck_mask_row(&a->mask, r) + (ptrdiff_t)begin * step;
    const v16 scale = v16_splat((float)a->scale), nothing = v16_splat(-INFINITY);
    v16 peaks = nothing, open = v16_zero();

    CK_WALK(c, w, x, n, false, {
        const v16 m = mask_words(mask + (ptrdiff_t)c * step, step, boolean, w);
        const v16_mask closed = v16_eq(m, nothing);
        const v16 z = v16_select(closed, nothing, v16_add(v16_mul(v16_load(x + c, w), scale), m));
        open = v16_select(closed, open, v16_splat(1.0f));
        peaks = v16_max(peaks, z);
        v16_store_f32(row + c, z, w);
    });
    *peak = v16_peak(peaks);
    return v16_peak(open) > 0;
}

static bool
masked_row(const struct ck_softmax_fwd *a, size_t r, size_t begin, size_t n, float *row, float *peak)
{
    const ptrdiff_t step = a->mask.stride[a->mask.n - 1];
    if (a->mask.width == 1)
        return step == 1 ? add_mask(a, r, begin, n, true, 1, row, peak) : add_mask(a, r, begin, n, true, step, row, peak);
    if (step == sizeof(elem))
        return add_mask(a, r, begin, n, false, sizeof(elem), row, peak);
    return add_mask(a, r, begin, n, false, step, row, peak);
}

/* row = exp(row - base), and their sum. */
static double
masked_exponentials(float *row, size_t n, v16 base)
{
    double sum = 0;
    for (size_t begin = 0; begin < n; begin += CK_ROW_BLOCK) {
        const size_t end = block_end(begin, n);
        v16 sums = v16_zero();
        size_t c = begin;
        for (; c + 16 <= end; c += 16) {
            const v16 e = v16_exp_elem(v16_sub(v16_load_f32(row + c, 16), base));
            sums = v16_add(sums, e);
            v16_store_f32(row + c, e, 16);
        }
        if (c < end) {
            const v16 e = v16_exp_elem(v16_sub(v16_load_or_f32(row + c, end - c, -INFINITY), base));
            sums = v16_add(sums, e);
            v16_store_f32(row + c, e, end - c);
        }
        sum += v16_sum(sums);
    }
    return sum;
}

/* ---- forward ---- */

typedef struct {
    const float *row;
    v16 by;
} product;

CK_TEMPLATE v16
times(const void *of, size_t c, size_t n)
{
    const product *p = of;
    return v16_mul(v16_load_f32(p->row + c, n), p->by);
}

typedef struct {
    const elem *x;
    v16 scale, base, by;
} exponential;

CK_TEMPLATE v16
exp_times(const void *of, size_t c, size_t n)
{
    const exponential *e = of;
    return v16_mul(v16_exp_elem(v16_sub(v16_mul(v16_load(e->x + c, n), e->scale), e->base)), e->by);
}

static inline void
fill(elem *y, size_t n, v16 with)
{
    for (size_t c = 0; c < n; c += 16)
        v16_store(y + c, with, n - c);
}

/* Elements of row r that `causal` leaves. */
static inline size_t
seen(const struct ck_softmax_fwd *a, size_t r)
{
    const size_t place = a->causal ? r % (size_t)a->queries : a->C;
    return place < a->C ? place + !CK_FAULT(softmax_causal_early) : a->C;
}

/* The exponentials are kept as floats in the thread's scratch: y may be of 16 bits, and taking them twice costs more. */
static void
whole_row(const struct ck_softmax_fwd *a, size_t r, const elem *next, float *row, bool stream)
{
    const size_t n = seen(a, r);
    const v16 scale = v16_splat((float)a->scale);
    const elem *x = ck_row(&a->x, r);
    elem *y = ck_row(&a->y, r);
    float peak;
    double sum;

    if (a->mask.data != NULL) {
        if (!masked_row(a, r, 0, n, row, &peak)) {
            fill(y, a->C, v16_zero());
            return;
        }
        sum = masked_exponentials(row, n, base_of(peak));
    } else {
        peak = largest(x, n, scale);
        sum = exponentials(row, x, n, scale, base_of(peak), next);
    }
    const product p = {row, v16_splat((float)(1 / sum))};
    write_row(y, n, stream, times, &p);
    fill(y + n, a->C - n, v16_mul(v16_zero(), p.by)); /* 0, but NaN in a row of NaN */
}

/* Rows r to r+n-1, short ones, whole and without a mask: whole_row of each, with one wait for all. */
static void
short_rows(const struct ck_softmax_fwd *a, size_t r, size_t n, float *rows, bool stream)
{
    const v16 scale = v16_splat((float)a->scale);
    v16 lanes[CK_ROW_GANG];
    float peak[CK_ROW_GANG], sum[CK_ROW_GANG], by[CK_ROW_GANG];

    for (size_t j = 0; j < n; j++)
        lanes[j] = largest_lanes(ck_row(&a->x, r + j), a->C, scale);
    fold_gang(peak, lanes, n, true);
    for (size_t j = 0; j < n; j++) {
        const elem *x = ck_row(&a->x, r + j);
        lanes[j] = exponential_lanes(rows + j * a->C, x, a->C, scale, base_of(peak[j]), x);
    }
    fold_gang(sum, lanes, n, false);
    for (size_t j = 0; j < n; j++)
        by[j] = (float)(1 / (double)sum[j]);
    for (size_t j = 0; j < n; j++) {
        const product p = {rows + j * a->C, v16_splat(by[j])};
        write_row(ck_row(&a->y, r + j), a->C, stream, times, &p);
    }
}

/* `other` of a measure counts the pieces of which something takes part. */
static void
measure_piece(const struct ck_softmax_fwd *a, ck_span s, float *row)
{
    const size_t end = seen(a, s.row), n = s.begin >= end ? 0 : end - s.begin < s.n ? end - s.begin : s.n;
    const v16 scale = v16_splat((float)a->scale);
    const elem *x = (const elem *)ck_row(&a->x, s.row) + s.begin;
    ck_measure m = {.peak = -INFINITY, .other = n != 0};

    if (a->mask.data != NULL) {
        m.other = n != 0 && masked_row(a, s.row, s.begin, n, row, &m.peak);
        m.sum = masked_exponentials(row, n, base_of(m.peak));
    } else {
        m.peak = largest(x, n, scale);
        m.sum = exponentials(NULL, x, n, scale, base_of(m.peak), x);
    }
    *s.part = m;
}

static void
write_piece(const struct ck_softmax_fwd *a, ck_span s, float *row, bool stream)
{
    const size_t end = seen(a, s.row), n = s.begin >= end ? 0 : end - s.begin < s.n ? end - s.begin : s.n;
    const v16 by = v16_splat((float)(1 / s.whole->sum)), base = base_of(s.whole->peak);
    const elem *x = (const elem *)ck_row(&a->x, s.row) + s.begin;
    elem *y = (elem *)ck_row(&a->y, s.row) + s.begin;
    float peak;

    if (s.whole->other == 0) {
        fill(y, s.n, v16_zero());
        return;
    }
    if (a->mask.data != NULL && n != 0) {
        masked_row(a, s.row, s.begin, n, row, &peak);
        masked_exponentials(row, n, base);
        const product p = {row, by};
        write_row(y, n, stream, times, &p);
    } else {
        const exponential e = {x, v16_splat((float)a->scale), base, by};
        write_row(y, n, stream, exp_times, &e);
    }
    fill(y + n, s.n - n, v16_mul(v16_zero(), by));
}

CK_KERNEL(softmax_fwd)
{
    const ck_pieces *cut = task.work;
    const bool stream = streams(2, &a->y, &a->x, a->R, a->C);
    size_t i = task.begin;

    if (cut == NULL && a->C <= CK_ROW_SHORT && a->mask.data == NULL && !a->causal)
        for (; i < task.end; i += i + CK_ROW_GANG < task.end ? CK_ROW_GANG : task.end - i)
            short_rows(a, i, task.end - i < CK_ROW_GANG ? task.end - i : CK_ROW_GANG, task.scratch, stream);
    for (; i < task.end; i++)
        if (cut == NULL)
            whole_row(a, i, ck_row(&a->x, i + 1 < task.end ? i + 1 : i), task.scratch, stream);
        else if (cut->write)
            write_piece(a, ck_piece_at(cut, i, a->C), task.scratch, stream);
        else
            measure_piece(a, ck_piece_at(cut, i, a->C), task.scratch);
    if (stream)
        ck_stream_end();
}

/* ---- backward ---- */

/* In short blocks: what the dot leaves of terms that cancel goes into every element. */
static inline double
dot_product(const elem *x, const elem *y, size_t n)
{
    double dot = 0;
    size_t c = 0;
    for (; c + 512 <= n; c += 512) {
        v16 dots[4] = {v16_zero(), v16_zero(), v16_zero(), v16_zero()};
        for (size_t at = c; at < c + 512; at += 64)
            for (size_t i = 0; i < 4; i++)
                dots[i] = v16_fma(v16_load(x + at + 16 * i, 16), v16_load(y + at + 16 * i, 16), dots[i]);
        dot += v16_sum(v16_add(v16_add(dots[0], dots[1]), v16_add(dots[2], dots[3])));
    }
    v16 rest = v16_zero();
    for (; c < n; c += 16)
        rest = v16_fma(v16_load(x + c, n - c), v16_load(y + c, n - c), rest);
    return dot + v16_sum(rest);
}

typedef struct {
    const elem *dy, *y;
    v16 scale, dot;
} jacobian;

CK_TEMPLATE v16
apply(const void *of, size_t c, size_t n)
{
    const jacobian *j = of;
    return v16_mul(v16_mul(v16_load(j->y + c, n), j->scale), v16_sub(v16_load(j->dy + c, n), CK_FAULT(softmax_jacobian) ? v16_zero() : j->dot));
}

CK_KERNEL(softmax_bwd)
{
    const ck_pieces *cut = task.work;
    const bool stream = streams(3, &a->dx, &a->dy, a->R, a->C) && a->dx.data != a->y.data;
    const v16 scale = v16_splat((float)a->scale);

    for (size_t i = task.begin; i < task.end; i++) {
        const ck_span s = cut != NULL ? ck_piece_at(cut, i, a->C) : (ck_span){i, 0, a->C, NULL, NULL};
        const elem *dy = (const elem *)ck_row(&a->dy, s.row) + s.begin, *y = (const elem *)ck_row(&a->y, s.row) + s.begin;
        const double dot = cut != NULL && cut->write ? s.whole->sum : dot_product(dy, y, s.n);
        if (cut != NULL && !cut->write) {
            *s.part = (ck_measure){.sum = dot};
            continue;
        }
        const jacobian j = {dy, y, scale, v16_splat((float)dot)};
        write_row((elem *)ck_row(&a->dx, s.row) + s.begin, s.n, stream, apply, &j);
        if (CK_FAULT(memory_saved_overwritten))
            memset((elem *)y, 0, s.n * sizeof *y);
    }
    if (stream)
        ck_stream_end();
}
