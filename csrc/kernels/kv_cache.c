#include "kernels/kernel.h"
#include "kernels/kv_decode.h"
#include "kernels/kv_encode.h"
#include "ops/kv_cache.h"

/* A row that is appended, for keys and for values, in both stores. */
CK_KERNEL(kv_append)
{
    ck_kv_form form = CK_KV_FORM(a);
    const ck_kv_part k = CK_KV_PART(a, k), v = CK_KV_PART(a, v);
    const bool stream = form.format == CK_KV_PLAIN && ck_streams(4 * a->B * a->G * a->T * form.W);
    if (CK_FAULT(kv_stride) && form.table == NULL && (size_t)a->lengths[0] + a->T < form.S)
        form.S = (size_t)a->lengths[0] + a->T;
    for (size_t i = task.begin; i < task.end; i++) { /* i = (b * G + g) * T + j */
        const size_t j = i % a->T, g = i / a->T % a->G, b = i / a->T / a->G;
        if (a->counts != NULL && j >= (size_t)a->counts[b])
            continue;
        size_t one = 1;
        const size_t length = CK_FAULT(kv_at_start) ? 0 : (size_t)a->lengths[CK_FAULT(kv_item_0_length) ? 0 : b];
        const size_t row = ck_kv_run(&form, b, g, length + j, &one);
        kv_put(&form, &k, row, ck_row(&a->k, i), stream);
        kv_put(&form, &v, row, ck_row(&a->v, i), stream);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(kv_append_batched)
{
#define DATA(list, n) ((list) != NULL ? (list)[n].data : NULL)
    for (size_t i = task.begin; i < task.end; i++) { /* i = n * G + g */
        const size_t n = i / a->G;
        const ck_kv_form form = {(ck_kv_format)a->format, (size_t)a->group, NULL, 1, 0, a->G, a->S[n], a->D, a->W[n],
                                 a->k_scales != NULL ? a->V[n] : 0};
        const ck_kv_part k = {a->k_codes[n].data, DATA(a->k_scales, n), DATA(a->k_biases, n)};
        const ck_kv_part v = {a->v_codes[n].data, DATA(a->v_scales, n), DATA(a->v_biases, n)};
        size_t one = 1;
        const size_t row = ck_kv_run(&form, 0, i % a->G, (size_t)a->lengths[CK_FAULT(kv_batched_first_length) ? 0 : n], &one);
        kv_put(&form, &k, row, ck_row(&a->k, i), false);
        kv_put(&form, &v, row, ck_row(&a->v, i), false);
    }
#undef DATA
}

CK_KERNEL(kv_read)
{
    const ck_kv_form form = CK_KV_FORM(a);
    const ck_kv_part part = {(void *)a->codes, (void *)a->scales, (void *)a->biases};
    for (size_t i = task.begin; i < task.end; i++) { /* i = g * L + l */
        size_t one = 1;
        const size_t row = ck_kv_run(&form, (size_t)a->item, i / a->L, (size_t)a->first + i % a->L, &one);
        kv_get(ck_row(&a->y, i), &form, &part, row);
    }
}

/* Rows that lie in no cache: their arrays may have strides, so that each is a store of one row. */
CK_KERNEL(kv_quantize)
{
    const ck_kv_form form = {.format = (ck_kv_format)a->format, .group = (size_t)a->group, .D = a->D, .W = a->W, .V = a->V};
    for (size_t r = task.begin; r < task.end; r++) {
        const ck_kv_part to = {ck_row(&a->codes, r), a->scales.data != NULL ? ck_row(&a->scales, r) : NULL,
                               a->biases.data != NULL ? ck_row(&a->biases, r) : NULL};
        kv_put(&form, &to, 0, ck_row(&a->x, r), false);
    }
}

CK_KERNEL(kv_dequantize)
{
    const ck_kv_form form = {.format = (ck_kv_format)a->format, .group = (size_t)a->group, .D = a->D, .W = a->W, .V = a->V};
    for (size_t r = task.begin; r < task.end; r++) {
        const ck_kv_part from = {ck_row(&a->codes, r), a->scales.data != NULL ? ck_row(&a->scales, r) : NULL,
                                 a->biases.data != NULL ? ck_row(&a->biases, r) : NULL};
        kv_get(ck_row(&a->y, r), &form, &from, 0);
    }
}

CK_KERNEL(kv_finite)
{
    for (size_t r = task.begin; r < task.end; r++) {
        const elem *x = ck_row(&a->x, r);
        v16 strange = v16_zero();
        if (a->counts != NULL && r % a->T >= (size_t)a->counts[r / a->T / a->G])
            continue;
        for (size_t d = 0; d < a->D; d += 16)
            strange = v16_fma(v16_mul(v16_load(x + d, a->D - d), v16_splat(4.0f)), v16_zero(), strange); /* inf * 0 is NaN */
        a->strange[r] = v16_sum(strange) != 0.0f;
    }
}
