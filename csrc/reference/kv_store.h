#ifndef CK_REFERENCE_KV_STORE_H
#define CK_REFERENCE_KV_STORE_H
/* ops/kv_store.h as it is written there: one row, one channel at a time; the formats are defined in float32. */
#include "reference/reference.h"
#include "ops/kv_store.h"

/* The row of position s of head g of item b. */
static inline size_t
row_of(const ck_kv_form *form, size_t b, size_t g, size_t s)
{
    const size_t block = form->table ? (size_t)form->table[b * form->P + s / form->S] : b;
    return (block * form->G + g) * form->S + s % form->S;
}

static const float smallest_f32 = 0x1p-126f, smallest_bf16 = 0x1p-126f, smallest_f16 = 0x1p-14f;
static const float largest_f32 = 0x1.fffffep127f, largest_bf16 = 0x1.fep127f, largest_f16 = 65504.0f;
#define SMALLEST CK_SPELL(smallest, CK_DTYPE)
#define LARGEST CK_SPELL(largest, CK_DTYPE)

/* The value of a float8 with `kept` bits of fraction and that bias. */
static inline double
float8(uint8_t code, int kept, int bias)
{
    const int size = code & 127, exponent = size >> kept, fraction = size & ((1 << kept) - 1);
    double x = exponent == 0 ? ldexp(fraction, 1 - bias - kept) : ldexp((1 << kept) + fraction, exponent - bias - kept);
    if (kept == 3 && size == 127)
        x = NAN;
    if (kept == 2 && exponent == 31)
        x = fraction ? NAN : INFINITY;
    return code & 128 ? -x : x;
}

/* Channel d of a row of a store; no rounding but that of a float32 product and sum. */
static inline double
channel(const ck_kv_form *form, const ck_kv_part *part, size_t row, size_t d)
{
    const uint8_t *codes = (const uint8_t *)part->codes + row * form->W;
    const elem *scales = part->scales ? (const elem *)part->scales + row * form->V : NULL;
    const elem *biases = part->biases ? (const elem *)part->biases + row * form->V : NULL;
    const size_t i = form->format == CK_KV_PLAIN || form->format == CK_KV_INT8_SYM ? 0 : d / form->group;
    const float scale = scales ? (float)get(&scales[i]) : 1, bias = biases ? (float)get(&biases[i]) : 0;
    float code;
    switch (form->format) {
    case CK_KV_PLAIN: return get((const elem *)(const void *)codes + d);
    case CK_KV_INT8: code = codes[d]; break;
    case CK_KV_INT4: code = (float)(d % 2 ? codes[d / 2] >> 4 : codes[d / 2] & 15); break;
    case CK_KV_INT8_SYM: return (float)(int8_t)codes[d] * scale;
    case CK_KV_E4M3: return (float)float8(codes[d], 3, 7) * scale;
    default: return (float)float8(codes[d], 2, 15) * scale;
    }
    const float product = code * scale;
    return product + bias;
}
#endif
