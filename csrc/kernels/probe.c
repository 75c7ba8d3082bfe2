#include "kernels/kernel.h"
#include "ops/probe.h"
#include "simd/words.h"

enum { AHEAD = 1024, STREAMS = 8 }; /* bytes ahead of a load that its line is asked for */

static inline void
ask(const elem *x, size_t c)
{
    ck_prefetch((const char *)(x + c) + AHEAD);
}

CK_KERNEL(probe_copy)
{
    for (size_t b = task.begin; b < task.end; b++) {
        const elem *x = ck_row(&a->x, b);
        elem *out = ck_row(&a->out, b);
        if (a->stream)
            for (size_t c = 0; c < a->C; c += 16) {
                ask(x, c);
                v16_stream(out + c, v16_load(x + c, a->C - c), a->C - c);
            }
        else
            for (size_t c = 0; c < a->C; c += 16)
                v16_store(out + c, v16_load(x + c, a->C - c), a->C - c);
    }
    ck_stream_end();
}

CK_KERNEL(probe_update)
{
    for (size_t b = task.begin; b < task.end; b++) {
        const elem *x = ck_row(&a->x, b);
        elem *out = ck_row(&a->out, b);
        for (size_t c = 0; c < a->C; c += 16)
            v16_store(out + c, v16_neg(v16_load(x + c, a->C - c)), a->C - c);
    }
}

/* Streams of whole vectors; what is left over comes last. */
CK_KERNEL(probe_read)
{
    for (size_t b = task.begin; b < task.end; b++) {
        const elem *x = ck_row(&a->x, b);
        const size_t each = a->eight ? a->C / (STREAMS * 16) * 16 : 0, one = a->C / 64 * 64;
        v16 sum[STREAMS];
        for (size_t s = 0; s < STREAMS; s++)
            sum[s] = v16_zero();
        size_t c = 0;
        for (; c < each; c += 16)
            for (size_t s = 0; s < STREAMS; s++) {
                ask(x, s * each + c);
                sum[s] = v16_add(sum[s], v16_load(x + s * each + c, 16));
            }
        if (each == 0)
            for (; c < one; c += 64)
                for (size_t s = 0; s < 4; s++)
                    sum[s] = v16_add(sum[s], v16_load(x + c + 16 * s, 16));
        else
            c = STREAMS * each;
        for (; c < a->C; c += 16)
            sum[0] = v16_add(sum[0], v16_load(x + c, a->C - c));
        for (size_t s = 1; s < STREAMS; s++)
            sum[0] = v16_add(sum[0], sum[s]);
        a->sum[b] = v16_sum(sum[0]);
    }
}

/*
 * Eight chains hide the latency of a fused multiply-add wherever two of them begin in a cycle.  Each lane has its own
 * term: of chains or registers that are alike, compilers compute one.
 */
CK_KERNEL(probe_fma)
{
    float terms[8][16];
    for (int i = 0; i < 128; i++)
        terms[i / 16][i % 16] = -0.5f + (float)i / 512;
#define STEP(j) y##j = v16_fma(y##j, y##j, v16_load_f32(terms[j], 16))
    for (size_t b = task.begin; b < task.end; b++) {
        v16 y0 = v16_zero(), y1 = y0, y2 = y0, y3 = y0, y4 = y0, y5 = y0, y6 = y0, y7 = y0;
        for (int64_t i = 0; i < a->n; i++)
            STEP(0), STEP(1), STEP(2), STEP(3), STEP(4), STEP(5), STEP(6), STEP(7);
        const v16 low = v16_add(v16_add(y0, y1), v16_add(y2, y3)), high = v16_add(v16_add(y4, y5), v16_add(y6, y7));
        a->sum[b] = v16_sum(v16_add(low, high));
    }
}
