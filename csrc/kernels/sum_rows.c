#include "kernels/sum_columns.h"
#include "ops/sum_rows.h"

CK_KERNEL(sum_rows)
{
    ck_sum_columns(&a->sum, &a->x, a->R, a->C, 0, task.begin, task.end, a->accumulate);
}
