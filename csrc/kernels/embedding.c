#include "kernels/kernel.h"
#include "ops/embedding.h"
#include "simd/words.h"

#include <string.h>

/* A call that moves more than the caches hold writes its result past them (docs/decisions/0003-streaming-stores.md). */
enum { STREAMED = 32 << 20 };

enum { LINE = 64, AHEAD = 3 };

/* n bytes; with `stream` in whole lines, after those before the first. */
static inline void
copy(char *to, const char *from, size_t n, bool stream)
{
    if (!stream) {
        memcpy(to, from, n);
        return;
    }
    const size_t head = (size_t)(-(uintptr_t)to % LINE), first = head < n ? head : n;
    size_t i = first;
    memcpy(to, from, first);
    for (; i + LINE <= n; i += LINE) {
        v16 line;
        memcpy(&line, from + i, LINE);
        v16_stream_f32((float *)(void *)(to + i), line, 16);
    }
    memcpy(to + i, from + i, n - i);
}

static inline void
clear(char *to, size_t n, bool stream)
{
    if (!stream) {
        memset(to, 0, n);
        return;
    }
    const size_t head = (size_t)(-(uintptr_t)to % LINE), first = head < n ? head : n;
    size_t i = first;
    memset(to, 0, first);
    for (; i + LINE <= n; i += LINE)
        v16_stream_f32((float *)(void *)(to + i), v16_zero(), 16);
    memset(to + i, 0, n - i);
}

static inline const char *
row_of(const struct ck_embedding_fwd *a, size_t r)
{
    return (const char *)a->weight.data + ck_id(&a->ids, r) * a->weight.stride[0];
}

/* The beginning of a row, wherever it is in the table, is asked for while those before it are copied. */
CK_KERNEL(embedding_fwd)
{
    const size_t width = a->C * sizeof(elem), asked = width < 4 * LINE ? width : 4 * LINE;
    const bool stream = 2 * a->R * width > STREAMED;

    for (size_t r = task.begin; r < task.end; r++) {
        if (r + AHEAD < task.end)
            for (size_t i = 0; i < asked; i += LINE)
                ck_prefetch(row_of(a, r + AHEAD) + i);
        copy(ck_row(&a->y, r), row_of(a, r), width, stream);
    }
    ck_stream_end();
}

enum { WIDE = 64 }; /* columns summed at a time */

/* Columns c to c+n-1 of the rows of one id, and of dweight before where `accumulate`: plain loops, as bound by memory
 * as sum_rows.  Whatever the dtype, sums are double, and rounded at the end. */
static void
sum_columns(const struct ck_embedding_bwd *a, const size_t *row, size_t rows, elem *dweight, size_t c, size_t n)
{
    float x[WIDE];
    double sum[WIDE];

    for (size_t k = 0; k < rows; k++) {
        const elem *dy = (const elem *)ck_row(&a->dy, row[k]) + c;
        for (size_t i = 0; i < n; i += 16)
            v16_store_f32(x + i, v16_load(dy + i, n - i), 16);
        for (size_t i = 0; i < n; i++)
            sum[i] = k == 0 ? x[i] : sum[i] + x[i];
    }
    if (a->accumulate) {
        for (size_t i = 0; i < n; i += 16)
            v16_store_f32(x + i, v16_load(dweight + c + i, n - i), 16);
        for (size_t i = 0; i < n; i++)
            sum[i] += x[i];
    }
    for (size_t i = 0; i < n; i++)
        x[i] = (float)sum[i];
    for (size_t i = 0; i < n; i += 16)
        v16_store(dweight + c + i, v16_load_f32(x + i, n - i), n - i);
}

/* A task is rows task.begin to task.end-1 of dweight: each is written once, by one task. */
CK_KERNEL(embedding_bwd)
{
    const ck_embedding_order *order = task.work;
    const size_t C = a->C, width = C * sizeof(elem);
    const bool stream = (a->V + a->R) * width > STREAMED;

    for (size_t v = task.begin; v < task.end; v++) {
        const size_t begin = v == 0 ? 0 : order->end[v - 1], rows = order->end[v] - begin;
        elem *dweight = ck_row(&a->dweight, v); /* [v,:] */
        if (rows == 0 && a->accumulate)
            continue;
        if (rows == 0)
            clear((char *)dweight, width, stream);
        else if (rows == 1 && !a->accumulate)
            copy((char *)dweight, ck_row(&a->dy, order->row[begin]), width, stream);
        else
            for (size_t c = 0; c < C; c += WIDE)
                sum_columns(a, order->row + begin, rows, dweight, c, C - c < WIDE ? C - c : WIDE);
    }
    ck_stream_end();
}
