#include "kernels/rows.h"
#include "ops/log_softmax.h"
#include "ops/pieces.h"

#include <math.h>

/* x - lse, lse as a float and what that leaves: the first difference is exact where the result is small. */
typedef struct {
    const elem *x;
    v16 high, low;
} difference;

CK_TEMPLATE v16
less_lse(const void *of, size_t c, size_t n)
{
    const difference *d = of;
    return v16_sub(v16_sub(v16_load(d->x + c, n), d->high), d->low);
}

CK_TEMPLATE void
write_differences(elem *y, const elem *x, size_t n, float peak, double log, bool stream)
{
    const double lse = (peak == -INFINITY ? 0 : (double)peak) + log;
    const float high = (float)lse;
    const difference d = {x, v16_splat(high), v16_splat(isinf(high) ? 0.0f : (float)(lse - high))};
    write_row(y, n, stream, less_lse, &d);
}

/* Rows r to r+n-1, short ones, with one wait for the folds of all. */
static void
short_rows(const struct ck_log_softmax_fwd *a, size_t r, size_t n, bool stream)
{
    const v16 one = v16_splat(1.0f);
    v16 lanes[CK_ROW_GANG];
    float peak[CK_ROW_GANG], sum[CK_ROW_GANG];
    double log[CK_ROW_GANG];

    for (size_t j = 0; j < n; j++)
        lanes[j] = largest_lanes(ck_row(&a->x, r + j), a->C, one);
    fold_gang(peak, lanes, n, true);
    for (size_t j = 0; j < n; j++) {
        const elem *x = ck_row(&a->x, r + j);
        lanes[j] = exponential_lanes(NULL, x, a->C, one, base_of(peak[j]), x);
    }
    fold_gang(sum, lanes, n, false);
    for (size_t j = 0; j < n; j++)
        log[j] = ck_log(sum[j]);
    for (size_t j = 0; j < n; j++)
        write_differences(ck_row(&a->y, r + j), ck_row(&a->x, r + j), a->C, peak[j], log[j], stream);
}

CK_KERNEL(log_softmax_fwd)
{
    const ck_pieces *cut = task.work;
    const bool stream = streams(2, &a->y, &a->x, a->R, a->C);
    const v16 one = v16_splat(1.0f);
    size_t i = task.begin;

    if (cut == NULL && a->C <= CK_ROW_SHORT)
        for (; i < task.end; i += i + CK_ROW_GANG < task.end ? CK_ROW_GANG : task.end - i)
            short_rows(a, i, task.end - i < CK_ROW_GANG ? task.end - i : CK_ROW_GANG, stream);
    for (; i < task.end; i++) {
        const ck_span s = cut != NULL ? ck_piece_at(cut, i, a->C) : (ck_span){i, 0, a->C, NULL, NULL};
        const elem *x = (const elem *)ck_row(&a->x, s.row) + s.begin;
        elem *y = (elem *)ck_row(&a->y, s.row) + s.begin;
        if (cut != NULL && cut->write) {
            write_differences(y, x, s.n, s.whole->peak, ck_log(s.whole->sum), stream);
            continue;
        }
        const elem *next = cut == NULL && i + 1 < task.end ? ck_row(&a->x, i + 1) : x;
        const float peak = largest(x, s.n, one);
        const double sum = exponentials(NULL, x, s.n, one, base_of(peak), next);
        if (cut != NULL)
            *s.part = (ck_measure){.peak = peak, .sum = sum};
        else
            write_differences(y, x, s.n, peak, ck_log(sum), stream);
    }
    if (stream)
        ck_stream_end();
}

/* The sum of a row: what it leaves of terms that cancel goes into every element, so that its blocks are short. */
static inline double
total(const elem *x, size_t n)
{
    double sum = 0;
    size_t c = 0;
    for (; c + 256 <= n; c += 256) {
        v16 sums[4];
        for (size_t i = 0; i < 4; i++)
            sums[i] = v16_load(x + c + 16 * i, 16);
        for (size_t at = 64; at < 256; at += 64)
            for (size_t i = 0; i < 4; i++)
                sums[i] = v16_add(sums[i], v16_load(x + c + at + 16 * i, 16));
        sum += v16_sum(v16_add(v16_add(sums[0], sums[1]), v16_add(sums[2], sums[3])));
    }
    v16 rest = v16_zero();
    for (; c < n; c += 16)
        rest = v16_add(rest, v16_load(x + c, n - c));
    return sum + v16_sum(rest);
}

typedef struct {
    const elem *dy, *y;
    v16 total;
} pull;

CK_TEMPLATE v16
less_share(const void *of, size_t c, size_t n)
{
    const pull *p = of;
    return v16_fma(v16_exp_elem(v16_load(p->y + c, n)), CK_FAULT(log_softmax_jacobian) ? v16_zero() : p->total, v16_load(p->dy + c, n));
}

CK_KERNEL(log_softmax_bwd)
{
    const ck_pieces *cut = task.work;
    const bool stream = streams(3, &a->dx, &a->dy, a->R, a->C) && a->dx.data != a->y.data;

    for (size_t i = task.begin; i < task.end; i++) {
        const ck_span s = cut != NULL ? ck_piece_at(cut, i, a->C) : (ck_span){i, 0, a->C, NULL, NULL};
        const elem *dy = (const elem *)ck_row(&a->dy, s.row) + s.begin;
        double sum;
        if (cut != NULL && cut->write)
            sum = s.whole->sum;
        else
            sum = total(dy, s.n);
        if (cut != NULL && !cut->write) {
            *s.part = (ck_measure){.sum = sum};
            continue;
        }
        const pull p = {dy, (const elem *)ck_row(&a->y, s.row) + s.begin, v16_splat((float)-sum)};
        write_row((elem *)ck_row(&a->dx, s.row) + s.begin, s.n, stream, less_share, &p);
    }
    if (stream)
        ck_stream_end();
}
