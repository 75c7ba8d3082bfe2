#ifndef CK_KV_STORE_H
#define CK_KV_STORE_H
#include "faults.h"
#include "ops/op.h"
/*
 * How keys and values are stored: the one description that writers and readers share.
 *
 * Storage is an array of blocks, [N,G,S,...]: S positions of G heads each.  Position s of item b lies in
 *
 *     contiguous   block b, slot s                   N = B items, S the capacity
 *     ring         block b, slot s % S               the last S positions; older ones are overwritten
 *     paged        block table[b, s / S], slot s % S
 *
 * which is one formula: block (table ? table[b, s / S] : b), slot s % S.  ck_kv_run() is the only place that has it.
 *
 * A row, of one head at one position, has D channels in `group`s.  It holds W bytes of codes, and V scales and biases of
 * the cache's dtype.  L is the number of steps, 15 or 255; all arithmetic is float32, rounded at every step:
 *
 *     plain      the channels themselves, bit for bit
 *     int8 int4  bias = min, scale = (max - min) / L, 1 where max = min, both rounded to the dtype;
 *                code = trunc(clamp((x - bias) / scale + 0.5, 0, L));  value = code * scale + bias
 *                the low code first; in uint32, as little-endian bytes
 *     int8_sym   one group, the whole row: scale = max(amax, 1e-8) / 127;  code = rint(x / scale) within +-127
 *     fp8        scale = amax / 448 (e4m3fn) or amax / 57344 (e5m2), 1 where amax = 0;  code = x / scale, saturated and
 *                rounded to nearest even;  value = code * scale
 *
 * A scale below the smallest normal number of its dtype becomes that number: what underflows to 0 cannot be divided by.
 * A bias of -0 is stored as 0.  A quantised store refuses NaN, inf and numbers from 2^126 on, whose differences overflow.
 */
typedef enum { CK_KV_PLAIN, CK_KV_INT8, CK_KV_INT4, CK_KV_INT8_SYM, CK_KV_E4M3, CK_KV_E5M2, CK_KV_FORMATS } ck_kv_format;

/* Keys, or values. */
typedef struct {
    void *codes;          /* [N,G,S,W] bytes */
    void *scales, *biases; /* [N,G,S,V] of the cache's dtype, NULL where the format has none */
} ck_kv_part;

/* The form of a store, the same for keys and values. */
typedef struct {
    ck_kv_format format;
    size_t group;
    const int64_t *table; /* [B,P], or NULL */
    size_t N, P, G, S, D, W, V;
} ck_kv_form;

/* The block where position s of item b lies. */
static inline size_t
ck_kv_block(const ck_kv_form *form, size_t b, size_t s)
{
    if (form->table == NULL)
        return b;
    if (CK_FAULT(kv_identity_table))
        return (b * form->P + s / form->S) % form->N;
    if (CK_FAULT(kv_item_0_table))
        return (size_t)form->table[s / form->S] % form->N;
    return (size_t)form->table[b * form->P + s / form->S];
}

/*
 * The row where position s of head g of item b lies; *n, positions wanted from s on, becomes how many of them lie end to
 * end from there.
 */
static inline size_t
ck_kv_run(const ck_kv_form *form, size_t b, size_t g, size_t s, size_t *n)
{
    const size_t slot = (s + CK_FAULT(kv_slot)) % form->S, here = form->S - slot;
    const size_t block = ck_kv_block(form, b, s);
    if (*n > here)
        *n = here;
    return (block * form->G + g) * form->S + slot;
}

/* The arguments of a store, written or read, in the declarations of ops. */
#define CK_KV_WRITTEN(_)                            \
    _(OUTV,     uint8_t, k_codes,  "N G S W")       \
    _(OPT_OUTV, elem,    k_scales, "N G S V")       \
    _(OPT_OUTV, elem,    k_biases, "N G S V")       \
    _(OUTV,     uint8_t, v_codes,  "N G S W")       \
    _(OPT_OUTV, elem,    v_scales, "N G S V")       \
    _(OPT_OUTV, elem,    v_biases, "N G S V")
#define CK_KV_READ(_)                               \
    _(INV,      uint8_t, k_codes,  "N G S W")       \
    _(OPT_INV,  elem,    k_scales, "N G S V")       \
    _(OPT_INV,  elem,    k_biases, "N G S V")       \
    _(INV,      uint8_t, v_codes,  "N G S W")       \
    _(OPT_INV,  elem,    v_scales, "N G S V")       \
    _(OPT_INV,  elem,    v_biases, "N G S V")

#define CK_KV_FORM(a)                                                                                               \
    ((ck_kv_form){(ck_kv_format)(a)->format, (size_t)(a)->group, (a)->table, (a)->N, (a)->P, (a)->G, (a)->S, (a)->D, \
                  (a)->W, (a)->V})
#define CK_KV_PART(a, of) ((ck_kv_part){(void *)(a)->of##_codes, (void *)(a)->of##_scales, (void *)(a)->of##_biases})

/* A whole cache as attention reads it. */
typedef struct {
    ck_kv_form form;
    ck_kv_part k, v;
} ck_kv_cache;

/* Refuse a form that does not fit its arrays; `width` is of an element of the cache's dtype. */
ck_status ck_refuse_form(const ck_kv_form *form, const ck_kv_part *part, size_t width);

/* Refuse counts and lengths that do not fit: B items bring T tokens each; a ring takes S at once, whatever it holds. */
ck_status ck_refuse_lengths(const ck_kv_form *form, const int64_t *lengths, const int64_t *counts, size_t B, size_t T, bool ring);

/* Refuse a table that does not name a block for each of the tokens that B items hold: lengths, and counts if not NULL. */
ck_status ck_refuse_table(const ck_kv_form *form, const int64_t *lengths, const int64_t *counts, size_t B, size_t T);
#endif
