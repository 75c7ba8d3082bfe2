#define _GNU_SOURCE /* qsort_r */
#include <stdlib.h>

#include "reference/reference.h"
#include "ops/selection.h"

CK_KERNEL(sample_peaks)
{
    for (size_t r = task.begin; r < task.end; r++) {
        a->peak[r] = -INFINITY;
        for (size_t v = 0; v < a->of->V; v++) {
            const double x = get((const elem *)ck_row(&a->of->logits, r) + v);
            if (isnan(x) || x > a->peak[r])
                a->peak[r] = (float)x;
            if (isnan(x))
                break;
        }
    }
}

/* The larger logit first, the lower index of equals. */
static int
compare(const void *p, const void *q, void *logits)
{
    const uint32_t i = *(const uint32_t *)p, j = *(const uint32_t *)q;
    const double a = get((const elem *)logits + i), b = get((const elem *)logits + j);
    return a != b ? (a < b) - (a > b) : (i > j) - (i < j);
}

/* Salmon et al. 2011, section 3.3: ten rounds of (L, R) -> (mulhi(R) ^ k ^ L, mullo(R)) on two pairs. */
static double
uniform(uint64_t key, uint64_t counter)
{
    uint64_t a = counter & 0xffffffff, b = counter >> 32, c = 0, d = 0, k0 = key & 0xffffffff, k1 = key >> 32;
    for (int i = 0; i < 10; i++) {
        const uint64_t left = 0xD2511F53 * a, right = 0xCD9E8D57 * c;
        a = (right >> 32) ^ b ^ k0;
        b = right & 0xffffffff;
        c = (left >> 32) ^ d ^ k1;
        d = left & 0xffffffff;
        k0 = (k0 + 0x9E3779B9) & 0xffffffff;
        k1 = (k1 + 0xBB67AE85) & 0xffffffff;
    }
    return (double)((a << 21) + (b >> 11)) / 9007199254740992.0;
}

CK_KERNEL(sample_fwd)
{
    const ck_sample_work *work = task.work;
    const size_t V = a->V;
    double *w = task.scratch;
    uint32_t *order = (uint32_t *)(w + V);

    for (size_t r = task.begin; r < task.end; r++) {
        elem *x = ck_row(&a->logits, r);
        double sum = 0, before = 0;
        for (size_t v = 0; v < V; v++) {
            w[v] = exp((get(&x[v]) - work->peak[r]) / a->temperature);
            order[v] = (uint32_t)v;
        }
        qsort_r(order, V, sizeof *order, compare, x);

        for (size_t j = 0; j < V; j++) /* top_k */
            if (j >= (uint64_t)a->top_k && get(&x[order[j]]) < get(&x[order[a->top_k - 1]]))
                w[order[j]] = 0;
        for (size_t v = 0; v < V; v++)
            sum += w[v];
        for (size_t j = 0; j < V; j++) { /* top_p */
            const double own = w[order[j]];
            if (a->top_p < 1 && before >= a->top_p * sum)
                w[order[j]] = 0;
            before += own;
        }
        for (size_t v = 0; v < V; v++) /* min_p, of a largest weight of 1 */
            if (w[v] < a->min_p)
                w[v] = 0;

        sum = before = 0;
        for (size_t v = 0; v < V; v++)
            sum += w[v];
        const double u = a->seeds.data != NULL ? uniform((uint64_t)ck_id(&a->seeds, r), 0) : uniform((uint64_t)a->seed, r);
        size_t drawn = V;
        for (size_t v = 0; v < V && (drawn == V || before <= u * sum); v++) {
            before += w[v];
            if (w[v] > 0)
                drawn = v;
        }
        *(int64_t *)ck_row(&a->y, r) = (int64_t)drawn;
    }
}
