#ifndef CK_ATTENTION_RULE_H
#define CK_ATTENTION_RULE_H
/* Which keys a query sees, and what becomes of its scores: scale, softcap, masks. */
#include "kernels/kernel.h"
#include "ops/attention.h"
#include "simd/math.h"

#include <math.h>
#include <string.h>

enum { KEYS = CK_ATTENTION_KEYS };

typedef struct { size_t from, to; } span; /* empty: {0, 0} */

/* The options of a call, for one item: query t stands at offset + t, and there are `keys` keys. */
typedef struct {
    int64_t offset, left, right;
    size_t keys, b;
    int causal;
    float scale, cap;
    ck_array mask;
} rule;

/* The scale of the scores. */
static inline float
scale_of(double scale, size_t D)
{
    return (float)(CK_FAULT(attention_scale_missing) ? 1 : CK_FAULT(attention_scale_1_D) ? 1 / (double)D
                   : CK_FAULT(attention_scale_105) ? 1.05 * scale : scale);
}

#define RULE(a, item, b)                                                                                              \
    ((rule){(item)->offset, (a)->left, (a)->right, (size_t)(item)->S, b, (a)->causal, scale_of((a)->scale, (a)->D),   \
            CK_FAULT(attention_softcap_missing) ? 0 : (float)(a)->softcap,                                            \
            CK_FAULT(attention_mask_ignored) ? (ck_array){.data = NULL} : (a)->attn_mask})

static inline size_t wide(size_t n) { return (n + 15) / 16 * 16; }

/* Keys in reach of query t.  Both ends rise with t. */
static inline span
seen(const rule *u, size_t t)
{
    const int64_t far = INT64_C(1) << 61, p = u->offset + (int64_t)t;
    int64_t from = 0, to = (int64_t)u->keys;
    if (u->causal && p + CK_FAULT(attention_causal_late) < to && !CK_FAULT(attention_causal_ignored))
        to = p + 1 + CK_FAULT(attention_causal_late) - CK_FAULT(attention_causal_early);
    if (u->right >= 0 && u->right < far && p + u->right < to)
        to = p + u->right + 1;
    if (u->left >= 0 && u->left < far && p - u->left > 0)
        from = p - u->left + CK_FAULT(attention_window_narrow) - CK_FAULT(attention_window_wide);
    return from < to ? (span){(size_t)from, (size_t)to} : (span){0, 0};
}

/* The part of x in [at, at + n), counted from `at`. */
static inline span
within(span x, size_t at, size_t n)
{
    const size_t from = x.from > at ? x.from - at : 0, to = x.to > at ? x.to - at : 0;
    return from < (to < n ? to : n) ? (span){from, to < n ? to : n} : (span){0, 0};
}

/* The smallest span around both. */
static inline span
around(span x, span y)
{
    if (x.from == x.to || y.from == y.to)
        return x.from == x.to ? y : x;
    return (span){x.from < y.from ? x.from : y.from, x.to > y.to ? x.to : y.to};
}

/* Keys in reach of some of the queries t0 <= t < t0 + n. */
static inline span
seen_by_some(const rule *u, size_t t0, size_t n)
{
    span all = {0, 0};
    for (size_t t = t0; t < t0 + n; t++)
        all = around(all, seen(u, t));
    return all;
}

/* The first of the rows [b,i,:,:] of an array, whose distance is x->stride[2]. */
static inline char *
rows_at(const ck_array *x, size_t b, size_t i)
{
    return (char *)x->data + (ptrdiff_t)b * x->stride[0] + (ptrdiff_t)i * x->stride[1];
}

/* Where the mask of (h, t, s) lies; NULL without one. */
static inline const char *
mask_at(const rule *u, size_t h, size_t t, size_t s)
{
    if (u->mask.data == NULL)
        return NULL;
    return rows_at(&u->mask, u->b, h) + (ptrdiff_t)t * u->mask.stride[2] + (ptrdiff_t)s * u->mask.stride[3];
}

static inline ptrdiff_t mask_step(const rule *u) { return u->mask.data != NULL ? u->mask.stride[3] : 0; }

/*
 * x = scale * x, bent by softcap; slope, if wanted, its derivative by scale * q.k.  In the vectors that `all`
 * touches; -inf in those of them that `of`, a part of it, does not hold.
 */
static inline void
bend(const rule *u, float *x, float *slope, span of, span all)
{
    const v16 scale = v16_splat(u->scale), cap = v16_splat(u->cap), one = v16_splat(1.0f);
    const size_t begin = all.from / 16 * 16, end = wide(all.to);
    for (size_t i = begin; i < end; i += 16) {
        v16 z = v16_mul(v16_load_f32(x + i, 16), scale);
        if (u->cap > 0.0f) {
            const v16 bent = v16_tanh(v16_div(z, cap));
            z = v16_mul(cap, bent);
            if (slope != NULL)
                v16_store_f32(slope + i, v16_mul(v16_sub(one, bent), v16_add(one, bent)), 16);
        }
        v16_store_f32(x + i, z, 16);
    }
    if (of.from == of.to)
        of = (span){end, end};
    for (size_t i = begin; i < of.from; i++)
        x[i] = -INFINITY;
    for (size_t i = of.to; i < end && !CK_FAULT(attention_key_tail); i++)
        x[i] = -INFINITY;
}

/* Adds the mask's entries of x[of]; -inf where it closes, whatever the score. */
static inline void
add_mask(const rule *u, float *x, span of, const char *m)
{
    const ptrdiff_t step = mask_step(u);
    if (m == NULL)
        return;
    if (u->mask.width == 1) {
        for (size_t i = of.from; i < of.to; i++)
            x[i] = m[(ptrdiff_t)i * step] != 0 ? x[i] : -INFINITY;
        return;
    }
    const bool dense = step == (ptrdiff_t)sizeof(elem);
    const v16 shut = v16_splat(-INFINITY);
    for (size_t i = of.from, n = 1; i < of.to; i += n) {
        n = !dense ? 1 : of.to - i < 16 ? of.to - i : 16;
        const v16 more = v16_load((const elem *)(m + (ptrdiff_t)i * step), n), z = v16_load_f32(x + i, n);
        v16_store_f32(x + i, v16_select(v16_eq(more, shut), shut, v16_add(z, more)), n);
    }
}

/* Whether the mask that begins at m closes entry i. */
static inline bool
is_shut(const rule *u, const char *m, ptrdiff_t step, size_t i)
{
    if (m == NULL)
        return false;
    m += (ptrdiff_t)i * step;
    return u->mask.width == 1 ? *m == 0 : v16_sum(v16_load((const elem *)m, 1)) == -INFINITY;
}
#endif
