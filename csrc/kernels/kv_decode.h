#ifndef CK_KV_DECODE_H
#define CK_KV_DECODE_H
/* Rows of a key-value cache back to numbers: the arithmetic that ops/kv_store.h writes down. */
#include "kernels/kernel.h"
#include "ops/kv_store.h"
#include "simd/codes.h"

#include <string.h>

/* The largest number of the dtype. */
#define CK_HUGE_f32 0x1.fffffep127f
#define CK_HUGE_bf16 0x1.fep127f
#define CK_HUGE_f16 65504.0f

/* Columns d to d+15 of n rows of a format: to[16 i]. */
CK_TEMPLATE void
kv_get_some(float *to, const ck_kv_form *form, const ck_kv_part *from, const size_t *rows, size_t n, size_t d, ck_kv_format format)
{
    const size_t V = form->V, group = format == CK_KV_INT8_SYM ? 0 : d / form->group;
    const uint8_t *codes = (const uint8_t *)from->codes + (format == CK_KV_INT4 ? d / 2 : d);
    const elem *scales = (const elem *)from->scales + (CK_FAULT(quant_next_scale) ? (group + 1) % V : group);
    const elem *biases = (const elem *)from->biases + (CK_FAULT(quant_next_bias) ? (group + 1) % V : group);
    const bool whole = form->D - d >= 16; /* with one scale a row, a row may end anywhere */
    for (size_t i = 0; i < n; i++) {
        const uint8_t *at = codes + rows[i] * form->W;
        const v16 scale = v16_load_all(scales + rows[i] * V);
        uint8_t few[16] = {0};
        v16 x;
        if (format == CK_KV_INT8_SYM && !whole)
            at = memcpy(few, at, form->D - d);
        switch (format) {
        case CK_KV_INT4: x = v16_load_u4(v16_levels(scale, v16_load_all(biases + rows[i] * V)), at); break;
        case CK_KV_INT8: x = v16_affine(v16_load_u8(at), scale, v16_load_all(biases + rows[i] * V)); break;
        case CK_KV_INT8_SYM: x = v16_mul(v16_load_i8(at), scale); break;
        case CK_KV_E4M3: x = v16_mul(v16_load_e4m3(at), scale); break;
        default: x = v16_mul(v16_load_e5m2(at), scale);
        }
        v16_store_f32(to + 16 * i, x, 16);
    }
}

/* Columns d.. of n rows of a quantised store, up to 16, as floats: to[16 i]; lanes past D are 0. */
static inline void
kv_get_columns(float *to, const ck_kv_form *form, const ck_kv_part *from, const size_t *rows, size_t n, size_t d)
{
    switch (form->format) {
    case CK_KV_INT4: kv_get_some(to, form, from, rows, n, d, CK_KV_INT4); break;
    case CK_KV_INT8: kv_get_some(to, form, from, rows, n, d, CK_KV_INT8); break;
    case CK_KV_INT8_SYM: kv_get_some(to, form, from, rows, n, d, CK_KV_INT8_SYM); break;
    case CK_KV_E4M3: kv_get_some(to, form, from, rows, n, d, CK_KV_E4M3); break;
    default: kv_get_some(to, form, from, rows, n, d, CK_KV_E5M2);
    }
}

/*
 * Row `row` of a store as elements: of a plain one, bit for bit; what rounds past the largest number is that number.
 */
static inline void
kv_get(elem *to, const ck_kv_form *form, const ck_kv_part *from, size_t row)
{
    const v16 most = v16_splat(CK_WORD(CK_HUGE, CK_DTYPE));
    if (form->format == CK_KV_PLAIN) {
        memcpy(to, (const uint8_t *)from->codes + row * form->W, form->W);
        return;
    }
    for (size_t d = 0; d < form->D; d += 16) {
        float wide[16];
        kv_get_columns(wide, form, from, &row, 1, d);
        const v16 x = v16_max(v16_neg(most), v16_min(most, v16_load_f32(wide, 16))); /* NaN stays */
        v16_store(to + d, x, form->D - d);
    }
}
#endif
