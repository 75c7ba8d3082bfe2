#include "reference/reference.h"
#include "ops/sum_rows.h"

CK_KERNEL(sum_rows)
{
    for (size_t c = task.begin; c < task.end; c++) {
        double sum = a->accumulate ? a->sum[c] : 0;
        for (size_t r = 0; r < a->R; r++)
            sum += a->x[r * a->C + c];
        a->sum[c] = (float)sum;
    }
}
