#include "kernels/kernel.h"
#include "ops/sum_rows.h"

/* Plain loops: bound by memory, and the compiler knows doubles. */
CK_KERNEL(sum_rows)
{
    enum { WIDE = 64 };

    for (size_t c = task.begin; c < task.end; c += WIDE) {
        const size_t n = task.end - c < WIDE ? task.end - c : WIDE;
        double sum[WIDE] = {0};
        for (size_t r = 0; r < a->R; r++)
            for (size_t i = 0; i < n; i++)
                sum[i] += a->x[r * a->C + c + i];
        for (size_t i = 0; i < n; i++)
            a->sum[c + i] = (float)(a->accumulate ? a->sum[c + i] + sum[i] : sum[i]);
    }
}
