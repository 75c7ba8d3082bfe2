#include "kernels/kernel.h"
#include "ops/rope.h"
#include "simd/words.h"

#include <string.h>

/* What is the same for a whole task, and known where the functions below are inlined. */
typedef struct {
    bool interleaved, back, stream; /* back: by the opposite angle; stream: past the caches */
} how;

CK_TEMPLATE v16 new_lo(v16 lo, v16 hi, v16 c, v16 s, how h) { return v16_fma(hi, h.back != CK_FAULT(rope_sign) ? s : v16_neg(s), v16_mul(lo, c)); }
CK_TEMPLATE v16 new_hi(v16 lo, v16 hi, v16 c, v16 s, how h) { return v16_fma(hi, c, v16_mul(lo, h.back != CK_FAULT(rope_sign) ? v16_neg(s) : s)); }

/* Pairs k .. k + n - 1, at most 16, of one head of one token. */
CK_TEMPLATE void
turn_halves(elem *y, const elem *x, const float *cos, const float *sin, size_t k, size_t n, size_t K, how h)
{
    const v16 c = v16_load_f32(cos + k, n), s = v16_load_f32(sin + k, n);
    const v16 lo = v16_load(x + k, n), hi = v16_load(x + K + k, n);
    v16_put(y + k, new_lo(lo, hi, c, s, h), n, h.stream);
    v16_put(y + K + k, new_hi(lo, hi, c, s, h), n, h.stream);
}

CK_TEMPLATE void
turn_neighbours(elem *y, const elem *x, const float *cos, const float *sin, size_t k, size_t n, how h)
{
    const size_t first = n < 8 ? 2 * n : 16, second = 2 * n - first; /* elements of the two loads */
    const v16 c = v16_load_f32(cos + k, n), s = v16_load_f32(sin + k, n);
    const v16 a = v16_load(x + 2 * k, first), b = second != 0 ? v16_load(x + 2 * k + 16, second) : v16_zero();
    const v16 lo = v16_evens(a, b), hi = v16_odds(a, b);
    const v16 turned_lo = new_lo(lo, hi, c, s, h), turned_hi = new_hi(lo, hi, c, s, h);
    v16_put(y + 2 * k, v16_zip_lo(turned_lo, turned_hi), first, h.stream);
    if (second != 0)
        v16_put(y + 2 * k + 16, v16_zip_hi(turned_lo, turned_hi), second, h.stream);
}

CK_TEMPLATE void
turn_pairs(elem *y, const elem *x, const float *cos, const float *sin, size_t k, size_t n, size_t K, how h)
{
    if (h.interleaved != CK_FAULT(rope_interleaved))
        turn_neighbours(y, x, cos, sin, k, n, h);
    else
        turn_halves(y, x, cos, sin, k, n, K, h);
}

CK_TEMPLATE void
turn_head(elem *y, const elem *x, const float *cos, const float *sin, size_t K, size_t D, how h)
{
    size_t k = 0;
    for (; k + 16 <= K; k += 16)
        turn_pairs(y, x, cos, sin, k, 16, K, h);
    if (k < K)
        turn_pairs(y, x, cos, sin, k, K - k, K, h);
    if (D > 2 * K && y != x && !CK_FAULT(rope_rest_unwritten))
        memcpy(y + 2 * K, x + 2 * K, (D - 2 * K) * sizeof *y);
}

/* The cosines and sines of a block of tokens. */
typedef struct {
    const float *cos[CK_ROPE_T], *sin[CK_ROPE_T];
} angles;

static const float *
row_of(const ck_array *table, int64_t p)
{
    return (const float *)((const char *)table->data + p * table->stride[0]);
}

/* Tokens t .. t + tokens - 1 of item p.  rope finds them in the table, mrope puts them together in scratch. */
static void
look_up(const struct ck_mrope_fwd *a, size_t p, size_t t, size_t tokens, float *scratch, angles *at)
{
    for (size_t i = 0; i < tokens; i++) {
        if (a->axes == NULL) {
            const size_t item = CK_FAULT(rope_item_0) ? 0 : p, token = CK_FAULT(rope_block_frozen) ? t : t + i;
            const int64_t row = a->positions.data != NULL ? ck_position(&a->positions, item, token) : (int64_t)token;
            at->cos[i] = row_of(&a->cos, row);
            at->sin[i] = row_of(&a->sin, row);
            continue;
        }
        float *cos = scratch + 2 * i * a->K, *sin = cos + a->K;
        for (size_t axis = 0; axis < a->A; axis++) {
            const int64_t row = ck_position(&a->positions, CK_FAULT(mrope_axis) ? p : axis * a->P + p, t + i);
            const float *from_cos = row_of(&a->cos, row), *from_sin = row_of(&a->sin, row);
            for (size_t k = 0; k < a->K; k++)
                if (a->axes[k] == (int64_t)axis) {
                    cos[k] = from_cos[k];
                    sin[k] = from_sin[k];
                }
        }
        at->cos[i] = cos;
        at->sin[i] = sin;
    }
}

/* Some heads of some tokens, where one stride leads from head to head and one from token to token. */
typedef struct {
    char *first;
    ptrdiff_t head, token;
} patch;

CK_TEMPLATE patch
patch_at(const ck_array *x, size_t T, size_t n, size_t heads, size_t t, size_t tokens)
{
    patch p = {.first = ck_row(x, n * T + t)};
    p.head = heads > 1 ? (char *)ck_row(x, (n + 1) * T + t) - p.first : 0;
    p.token = tokens > 1 ? (char *)ck_row(x, n * T + t + 1) - p.first : 0;
    return p;
}

/* How many heads in a row one stride joins: those of the axis before the tokens', or what is merged with these. */
static size_t
heads_alike(const ck_array *x, size_t T)
{
    size_t n = x->n;
    while (n > 0 && x->size[n - 1] == 1)
        n--;
    if (n > 0 && (T == 1 || x->size[n - 1] != T))
        return x->size[n - 1] / T;
    return n > 1 ? x->size[n - 2] : 1;
}

/* In the order of memory: a head's tokens lie together, or a token's heads, [B,T,H,D] seen as [B,H,T,D]. */
CK_TEMPLATE void
turn_patch(patch y, patch x, const angles *at, size_t heads, size_t tokens, size_t K, size_t D, how h)
{
    if (CK_FAULT(rope_head_0))
        heads = 1;
    if (x.head < x.token) {
        for (size_t t = 0; t < tokens; t++)
            for (size_t n = 0; n < heads; n++)
                turn_head((elem *)(y.first + (ptrdiff_t)n * y.head + (ptrdiff_t)t * y.token),
                          (const elem *)(x.first + (ptrdiff_t)n * x.head + (ptrdiff_t)t * x.token),
                          at->cos[t], at->sin[t], K, D, h);
    }
    else {
        for (size_t n = 0; n < heads; n++)
            for (size_t t = 0; t < tokens; t++)
                turn_head((elem *)(y.first + (ptrdiff_t)n * y.head + (ptrdiff_t)t * y.token),
                          (const elem *)(x.first + (ptrdiff_t)n * x.head + (ptrdiff_t)t * x.token),
                          at->cos[t], at->sin[t], K, D, h);
    }
}

static inline size_t
least(size_t x, size_t y)
{
    return x < y ? x : y;
}

CK_TEMPLATE void
turn_task(const struct ck_mrope_fwd *a, ck_task task, how h)
{
    const size_t each = a->P > 1 ? a->N / a->P : a->N; /* rows of x that share positions */
    const size_t x_alike = heads_alike(&a->x, a->T), y_alike = heads_alike(&a->y, a->T);
    angles at;

    for (size_t i = task.begin, heads; i < task.end; i += heads) { /* i = block * N + n */
        const size_t n = i % a->N, t = i / a->N * CK_ROPE_T, tokens = least(a->T - t, CK_ROPE_T);
        heads = least(least(each - n % each, task.end - i), least(x_alike - n % x_alike, y_alike - n % y_alike));
        look_up(a, n / each, t, tokens, task.scratch, &at);
        turn_patch(patch_at(&a->y, a->T, n, heads, t, tokens), patch_at(&a->x, a->T, n, heads, t, tokens), &at, heads,
                   tokens, a->K, a->D, h);
    }
}

/* Past the caches where x and y have outgrown them, and a plain store would only read its line first; not in place. */
CK_TEMPLATE void
turn_any(const struct ck_mrope_fwd *a, ck_task task, bool interleaved, bool back)
{
    const size_t bytes = 2 * a->N * a->T * a->D * sizeof(elem);
    if (a->y.data != a->x.data && ck_streams(bytes)) {
        turn_task(a, task, (how){interleaved, back, true});
        ck_stream_end();
    }
    else
        turn_task(a, task, (how){interleaved, back, false});
}

CK_TEMPLATE void
turn(const struct ck_mrope_fwd *a, ck_task task, bool back)
{
    if (a->interleaved)
        turn_any(a, task, true, back);
    else
        turn_any(a, task, false, back);
}

CK_KERNEL(mrope_fwd)
{
    turn(a, task, false);
}

CK_KERNEL(mrope_bwd)
{
    const struct ck_mrope_fwd same = {a->dx, a->dy, a->cos, a->sin, a->axes, a->positions, a->interleaved,
                                      a->N, a->T, a->D, a->S, a->K, a->A, a->P};
    turn(&same, task, true);
}

CK_KERNEL(rope_fwd)
{
    const struct ck_mrope_fwd same = {a->y, a->x, a->cos, a->sin, NULL, a->positions, a->interleaved,
                                      a->N, a->T, a->D, a->S, a->K, 1, a->P};
    turn(&same, task, false);
}

CK_KERNEL(rope_bwd)
{
    const struct ck_mrope_fwd same = {a->dx, a->dy, a->cos, a->sin, NULL, a->positions, a->interleaved,
                                      a->N, a->T, a->D, a->S, a->K, 1, a->P};
    turn(&same, task, !CK_FAULT(rope_backward_forward));
}
