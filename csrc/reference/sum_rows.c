#include "reference/reference.h"
#include "ops/sum_rows.h"

static double
number(const ck_array *x, size_t i)
{
    return x->width == sizeof(float) ? ((const float *)x->data)[i] : get((const elem *)x->data + i);
}

CK_KERNEL(sum_rows)
{
    for (size_t c = task.begin; c < task.end; c++) {
        double sum = a->accumulate ? number(&a->sum, c) : 0;
        for (size_t r = 0; r < a->R; r++)
            sum += number(&a->x, r * a->C + c);
        if (a->sum.width == sizeof(float))
            ((float *)a->sum.data)[c] = (float)sum;
        else
            set((elem *)a->sum.data + c, sum);
    }
}
