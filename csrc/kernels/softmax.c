#include "kernels/kernel.h"
#include "ops/softmax.h"
#include "simd/math.h"
#include "simd/words.h"

enum { BLOCK = CK_SOFTMAX_BLOCK };

static inline size_t block_end(size_t begin, size_t n) { return n - begin < BLOCK ? n : begin + BLOCK; }

/* scale * x, -inf behind the n elements that are left */
static inline v16
scaled(const elem *x, size_t n, v16 scale)
{
    const v16 z = v16_mul(v16_load(x, n), scale);
    return n >= 16 ? z : v16_select(v16_first(n), z, v16_splat(-INFINITY));
}

/* The largest of scale * x. */
static inline float
largest(const elem *x, size_t n, v16 scale)
{
    v16 peaks = v16_splat(-INFINITY);
    size_t c = 0;
    for (; c + 16 <= n; c += 16)
        peaks = v16_max(peaks, v16_mul(v16_load(x + c, 16), scale));
    if (c < n)
        peaks = v16_max(peaks, scaled(x + c, n - c, scale));
    return v16_peak(peaks);
}

/* row = exp(scale * x - peak), and their sum, of a block of n elements: whole vectors first, which pipeline better. */
static inline float
exponentials(float *row, const elem *x, size_t n, v16 scale, v16 peak)
{
    v16 sums = v16_zero();
    size_t c = 0;
    for (; c + 16 <= n; c += 16) {
        const v16 e = v16_exp(v16_sub(v16_mul(v16_load(x + c, 16), scale), peak));
        sums = v16_add(sums, e);
        v16_store_f32(row + c, e, 16);
    }
    if (c < n) {
        const v16 e = v16_exp(v16_sub(scaled(x + c, n - c, scale), peak));
        sums = v16_add(sums, e);
        v16_store_f32(row + c, e, n - c);
    }
    return v16_sum(sums);
}

/* The same where row holds what is masked already: -inf less a peak of -inf is no number. */
static inline float
masked_exponentials(float *row, size_t n, v16 peak)
{
    const v16 nothing = v16_splat(-INFINITY);
    v16 sums = v16_zero();
    for (size_t c = 0; c < n; c += 16) {
        const v16 z = v16_load_or_f32(row + c, n - c, -INFINITY);
        const v16 e = v16_select(v16_eq(z, nothing), v16_zero(), v16_exp(v16_sub(z, peak)));
        sums = v16_add(sums, e);
        v16_store_f32(row + c, e, n - c);
    }
    return v16_sum(sums);
}

/* Up to 16 elements of a mask as numbers to add: 0 or -inf for a boolean; -inf behind the n that are left. */
static inline v16
mask_words(const char *mask, ptrdiff_t step, bool boolean, size_t n)
{
    elem number[16];
    float zero_or_inf[16];

    if (!boolean && step == sizeof(elem))
        return v16_load_or((const elem *)mask, n, -INFINITY);
    for (size_t i = 0; i < 16 && i < n; i++)
        if (boolean)
            zero_or_inf[i] = mask[(ptrdiff_t)i * step] ? 0.0f : -INFINITY;
        else
            number[i] = *(const elem *)(mask + (ptrdiff_t)i * step);
    return boolean ? v16_load_or_f32(zero_or_inf, n, -INFINITY) : v16_load_or(number, n, -INFINITY);
}

/* z of a row into `row`; its largest in `peak`; false where all is masked. */
static inline bool
masked_row(const struct ck_softmax_fwd *a, size_t r, size_t n, float *row, float *peak)
{
    const elem *x = ck_row(&a->x, r);
    const char *mask = ck_mask_row(&a->mask, r);
    const ptrdiff_t step = a->mask.stride[a->mask.n - 1];
    const bool boolean = a->mask.width == 1;
    const v16 scale = v16_splat((float)a->scale), nothing = v16_splat(-INFINITY);
    v16 peaks = nothing, open = v16_zero();

    for (size_t c = 0; c < n; c += 16) {
        const v16 m = mask_words(mask + (ptrdiff_t)c * step, step, boolean, n - c);
        const v16_mask closed = v16_eq(m, nothing);
        const v16 z = v16_select(closed, nothing, v16_add(v16_mul(v16_load(x + c, n - c), scale), m));
        open = v16_add(open, v16_select(closed, v16_zero(), v16_splat(1.0f)));
        peaks = v16_max(peaks, z);
        v16_store_f32(row + c, z, n - c);
    }
    *peak = v16_peak(peaks);
    return v16_sum(open) > 0;
}

static inline void
fill(elem *y, size_t n, v16 with)
{
    for (size_t c = 0; c < n; c += 16)
        v16_store(y + c, with, n - c);
}

/* The exponentials are kept as floats in the thread's scratch: y may be of 16 bits, and taking them twice costs more. */
CK_KERNEL(softmax_fwd)
{
    const v16 scale = v16_splat((float)a->scale);
    const bool masked = a->mask.data != NULL;
    float *row = task.scratch; /* [C] */

    for (size_t r = task.begin; r < task.end; r++) {
        const size_t place = a->causal ? r % (size_t)a->queries : 0, n = a->causal && place < a->C ? place + 1 : a->C;
        const elem *x = ck_row(&a->x, r); /* [r,:] */
        elem *y = ck_row(&a->y, r);
        float peak = -INFINITY;
        double sum = 0;

        if (masked && !masked_row(a, r, n, row, &peak)) {
            fill(y, a->C, v16_zero());
            continue;
        }
        if (!masked)
            peak = largest(x, n, scale);
        for (size_t begin = 0; begin < n; begin += BLOCK) {
            const size_t size = block_end(begin, n) - begin;
            sum += masked ? masked_exponentials(row + begin, size, v16_splat(peak))
                          : exponentials(row + begin, x + begin, size, scale, v16_splat(peak));
        }
        const v16 inverse = v16_splat((float)(1 / sum));
        size_t c = 0;
        for (; c + 16 <= n; c += 16)
            v16_store(y + c, v16_mul(v16_load_f32(row + c, 16), inverse), 16);
        if (c < n)
            v16_store(y + c, v16_mul(v16_load_f32(row + c, n - c), inverse), n - c);
        fill(y + n, a->C - n, v16_mul(v16_zero(), inverse)); /* 0, but NaN in a row of NaN */
    }
}

CK_KERNEL(softmax_bwd)
{
    const size_t C = a->C;
    const v16 scale = v16_splat((float)a->scale);

    for (size_t r = task.begin; r < task.end; r++) {
        const elem *dy = ck_row(&a->dy, r), *y = ck_row(&a->y, r); /* [r,:] */
        elem *dx = ck_row(&a->dx, r);
        double dot = 0;

        for (size_t begin = 0; begin < C; begin += BLOCK) {
            v16 dots = v16_zero();
            for (size_t c = begin, end = block_end(begin, C); c < end; c += 16)
                dots = v16_fma(v16_load(dy + c, C - c), v16_load(y + c, C - c), dots);
            dot += v16_sum(dots);
        }
        const v16 mean = v16_splat((float)dot);
        for (size_t c = 0; c < C; c += 16) {
            const v16 moved = v16_sub(v16_load(dy + c, C - c), mean);
            v16_store(dx + c, v16_mul(v16_mul(v16_load(y + c, C - c), scale), moved), C - c);
        }
    }
}
