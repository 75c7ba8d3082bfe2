#include "reference/reference.h"
#include "reference/kv_store.h"
#include "ops/kv_cache.h"

/* A number as it is stored, and what is stored instead of a scale that is too small. */
static float
rounded(elem *to, float x)
{
    set(to, x);
    return (float)get(to);
}

static float
scaled(elem *to, float scale)
{
    return rounded(to, scale < SMALLEST ? SMALLEST : scale);
}

static float
within(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

static void
affine(uint8_t *codes, elem *scale, elem *bias, const elem *x, size_t first, size_t n, int bits)
{
    const float levels = bits == 8 ? 255 : 15;
    float max = -INFINITY, min = INFINITY;
    for (size_t d = 0; d < n; d++) {
        max = (float)get(&x[d]) > max ? (float)get(&x[d]) : max;
        min = (float)get(&x[d]) < min ? (float)get(&x[d]) : min;
    }
    const float by = scaled(scale, max == min ? 1 : (max - min) / levels);
    const float from = rounded(bias, min + 0.0f);
    for (size_t d = 0; d < n; d++) {
        const float above = (float)get(&x[d]) - from;
        const int code = (int)within(above / by + 0.5f, 0, levels);
        uint8_t *to = &codes[bits == 8 ? first + d : (first + d) / 2];
        *to = (uint8_t)(bits == 8 ? code : d % 2 ? (*to & 15) | code << 4 : code);
    }
}

static float
peak(const elem *x, size_t n)
{
    float most = 0;
    for (size_t d = 0; d < n; d++)
        most = (float)fabs(get(&x[d])) > most ? (float)fabs(get(&x[d])) : most;
    return most;
}

/* The code whose value is nearest to x; of two, the even one. */
static uint8_t
nearest(float x, int kept, int bias)
{
    const int last = kept == 3 ? 126 : 123;
    int best = 0;
    for (int code = 1; code <= last; code++) {
        const double here = fabs(float8((uint8_t)code, kept, bias) - fabs(x)), there = fabs(float8((uint8_t)best, kept, bias) - fabs(x));
        if (here < there || (here == there && code % 2 == 0))
            best = code;
    }
    return (uint8_t)(best | (signbit(x) ? 128 : 0));
}

static void
put(const ck_kv_form *form, const ck_kv_part *part, size_t row, const elem *x)
{
    uint8_t *codes = (uint8_t *)part->codes + row * form->W;
    elem *scales = (elem *)part->scales + row * form->V, *biases = (elem *)part->biases + row * form->V;
    const size_t group = form->format == CK_KV_INT8_SYM ? form->D : form->group;
    const float full = form->format == CK_KV_E4M3 ? 448 : 57344;
    if (form->format == CK_KV_PLAIN) {
        memcpy(codes, x, form->W);
        return;
    }
    for (size_t first = 0, i = 0; first < form->D; first += group, i++) {
        const float most = peak(x + first, group);
        float by = 1;
        if (form->format == CK_KV_INT8 || form->format == CK_KV_INT4) {
            affine(codes, &scales[i], &biases[i], x + first, first, group, form->format == CK_KV_INT8 ? 8 : 4);
            continue;
        }
        if (form->format == CK_KV_INT8_SYM)
            by = scaled(&scales[i], (most > 1e-8f ? most : 1e-8f) / 127);
        else
            by = scaled(&scales[i], most > 0 ? most / full : 1);
        for (size_t d = first; d < first + group; d++) {
            const float y = (float)get(&x[d]) / by;
            if (form->format == CK_KV_INT8_SYM)
                codes[d] = (uint8_t)(int)within(rintf(y), -127, 127);
            else
                codes[d] = nearest(within(y, -full, full), form->format == CK_KV_E4M3 ? 3 : 2, form->format == CK_KV_E4M3 ? 7 : 15);
        }
    }
}

CK_KERNEL(kv_append)
{
    const ck_kv_form form = CK_KV_FORM(a);
    const ck_kv_part k = CK_KV_PART(a, k), v = CK_KV_PART(a, v);
    for (size_t i = task.begin; i < task.end; i++) { /* i = (b * G + g) * T + j */
        const size_t j = i % a->T, g = i / a->T % a->G, b = i / a->T / a->G;
        if (a->counts && (int64_t)j >= a->counts[b])
            continue;
        const size_t row = row_of(&form, b, g, (size_t)a->lengths[b] + j);
        put(&form, &k, row, ck_row(&a->k, i));
        put(&form, &v, row, ck_row(&a->v, i));
    }
}

CK_KERNEL(kv_append_batched)
{
    for (size_t i = task.begin; i < task.end; i++) { /* i = n * G + g */
        const size_t n = i / a->G;
        const ck_kv_form form = {.format = (ck_kv_format)a->format, .group = (size_t)a->group, .G = a->G, .S = a->S[n],
                                 .D = a->D, .W = a->W[n], .V = a->k_scales ? a->V[n] : 0};
        const ck_kv_part k = {a->k_codes[n].data, a->k_scales ? a->k_scales[n].data : NULL, a->k_biases ? a->k_biases[n].data : NULL};
        const ck_kv_part v = {a->v_codes[n].data, a->v_scales ? a->v_scales[n].data : NULL, a->v_biases ? a->v_biases[n].data : NULL};
        const size_t row = row_of(&form, 0, i % a->G, (size_t)a->lengths[n]);
        put(&form, &k, row, ck_row(&a->k, i));
        put(&form, &v, row, ck_row(&a->v, i));
    }
}

/* A row as elements: plain ones as they are, others no larger than the largest number. */
static void
take(elem *to, const ck_kv_form *form, const ck_kv_part *part, size_t row)
{
    for (size_t d = 0; d < form->D; d++)
        if (form->format == CK_KV_PLAIN)
            to[d] = ((const elem *)(const void *)((const uint8_t *)part->codes + row * form->W))[d];
        else {
            const float x = (float)channel(form, part, row, d);
            set(&to[d], within(x, -LARGEST, LARGEST));
        }
}

CK_KERNEL(kv_read)
{
    const ck_kv_form form = CK_KV_FORM(a);
    const ck_kv_part part = {(void *)a->codes, (void *)a->scales, (void *)a->biases};
    for (size_t i = task.begin; i < task.end; i++) /* i = g * L + l */
        take(ck_row(&a->y, i), &form, &part, row_of(&form, (size_t)a->item, i / a->L, (size_t)a->first + i % a->L));
}

CK_KERNEL(kv_quantize)
{
    const ck_kv_form form = {.format = (ck_kv_format)a->format, .group = (size_t)a->group, .D = a->D, .W = a->W, .V = a->V};
    for (size_t r = task.begin; r < task.end; r++)
        put(&form, &(ck_kv_part){ck_row(&a->codes, r), a->scales.data ? ck_row(&a->scales, r) : NULL,
                                 a->biases.data ? ck_row(&a->biases, r) : NULL}, 0, ck_row(&a->x, r));
}

CK_KERNEL(kv_dequantize)
{
    const ck_kv_form form = {.format = (ck_kv_format)a->format, .group = (size_t)a->group, .D = a->D, .W = a->W, .V = a->V};
    for (size_t r = task.begin; r < task.end; r++)
        take(ck_row(&a->y, r), &form, &(ck_kv_part){ck_row(&a->codes, r), a->scales.data ? ck_row(&a->scales, r) : NULL,
                                                    a->biases.data ? ck_row(&a->biases, r) : NULL}, 0);
}

CK_KERNEL(kv_finite)
{
    for (size_t r = task.begin; r < task.end; r++)
        if (!a->counts || (int64_t)(r % a->T) < a->counts[r / a->T / a->G])
            for (size_t d = 0; d < a->D; d++)
                if (!(fabs(get(&((const elem *)ck_row(&a->x, r))[d])) < 0x1p126))
                    a->strange[r] = 1;
}
