#include "ops/kv_cache.h"

#include "faults.h"
#include "ops/ops.h"
#include "runtime/run.h"

#include <string.h>

/* ---- what does not fit ---- */

/* Bytes of codes of a row of D channels. */
static size_t
row_bytes(ck_kv_format format, size_t D, size_t width)
{
    return format == CK_KV_PLAIN ? D * width : format == CK_KV_INT4 ? D / 2 : D;
}

ck_status
ck_refuse_form(const ck_kv_form *form, const ck_kv_part *part, size_t width)
{
    const bool affine = form->format == CK_KV_INT8 || form->format == CK_KV_INT4, scaled = form->format != CK_KV_PLAIN;
    if ((int)form->format < 0 || form->format >= CK_KV_FORMATS)
        return ck_refuse(CK_BAD_VALUE, "'format' is %d, which is none", (int)form->format);
    if (scaled && form->format != CK_KV_INT8_SYM && (form->group == 0 || form->group % 16 != 0 || form->D % form->group != 0))
        return ck_refuse(CK_BAD_VALUE, "'group' is %zu: a multiple of 16 is needed of which %zu channels are one", form->group,
                         form->D);
    const size_t groups = !scaled ? 0 : form->format == CK_KV_INT8_SYM ? 1 : form->D / form->group;
    if (form->W != row_bytes(form->format, form->D, width))
        return ck_refuse(CK_BAD_VALUE, "'codes' has rows of %zu bytes, %zu channels need %zu", form->W, form->D,
                         row_bytes(form->format, form->D, width));
    if ((part->scales != NULL) != scaled || (part->biases != NULL) != affine || form->V != groups)
        return ck_refuse(CK_BAD_VALUE, "'scales' and 'biases' do not fit the format: %zu of a row, where it has %zu", form->V,
                         groups);
    return CK_OK;
}

ck_status
ck_refuse_lengths(const ck_kv_form *form, const int64_t *lengths, const int64_t *counts, size_t B, size_t T, bool ring)
{
    const size_t capacity = (form->table != NULL ? form->P * form->S : form->S) + (CK_FAULT(kv_past_capacity) ? 4096 : 0);
    if (form->table == NULL && form->N < B)
        return ck_refuse(CK_BAD_VALUE, "%zu items do not fit %zu", B, form->N);
    for (size_t b = 0; b < B; b++) {
        const int64_t length = lengths[b], count = counts != NULL ? counts[b] : (int64_t)T;
        if (count < 0 || (size_t)count > T)
            return ck_refuse(CK_BAD_VALUE, "'counts' holds %lld for item %zu, which brings %zu tokens", (long long)count,
                             b, T);
        if (length < 0 || (ring && (size_t)count > capacity)
            || (!ring && ((size_t)length > capacity || (size_t)count > capacity - (size_t)length)))
            return ck_refuse(CK_BAD_VALUE, "item %zu holds %lld tokens of %zu: %lld more do not fit", b,
                             (long long)length, capacity, (long long)count);
    }
    return CK_OK;
}

ck_status
ck_refuse_table(const ck_kv_form *form, const int64_t *lengths, const int64_t *counts, size_t B, size_t T)
{
    for (size_t b = 0; form->table != NULL && b < B; b++) {
        const size_t held = (size_t)lengths[b] + (counts != NULL ? (size_t)counts[b] : T);
        if (form->S == 0 || ck_blocks(held, form->S) > form->P)
            return ck_refuse(CK_BAD_VALUE, "'table' has %zu blocks of %zu for item %zu, which holds %zu tokens", form->P,
                             form->S, b, held);
        for (size_t i = 0; i < ck_blocks(held, form->S); i++)
            if (form->table[b * form->P + i] < 0 || (size_t)form->table[b * form->P + i] >= form->N)
                return ck_refuse(CK_BAD_INDEX, "'table' holds block %lld, and there are %zu",
                                 (long long)form->table[b * form->P + i], form->N);
    }
    return CK_OK;
}

/* NaN or inf in the rows that are to be quantised: [I,T,D], of which the first counts[i / G] of every T count. */
static ck_status
refuse_strange(const ck_kernels *k, const char *name, const ck_array *x, const int64_t *counts, size_t R, size_t T, size_t G,
               size_t D)
{
    uint8_t *strange = ck_take(R + 1);
    if (strange == NULL)
        return CK_NO_MEMORY;
    memset(strange, 0, R);
    const struct ck_kv_finite a = {.strange = strange, .x = *x, .counts = counts, .R = R, .T = T, .G = G, .D = D};
    ck_status status = ck_tasks(R, ck_grain(D), CK_FAST(kv_finite), &a);
    const uint8_t *at = status == CK_OK ? memchr(strange, 1, R) : NULL;
    if (at != NULL)
        status = ck_refuse(CK_BAD_VALUE, "'%s' holds NaN, inf or a number beyond 2^126 in row %zu: it cannot be quantised", name, (size_t)(at - strange));
    ck_give(strange, R + 1);
    return status;
}

#define TRY(call)                         \
    do {                                  \
        const ck_status status_ = (call); \
        if (status_ != CK_OK)             \
            return status_;               \
    } while (0)

/* ---- the ops ---- */

static void
copy_block(const ck_kv_form *form, const ck_kv_part *part, size_t width, size_t from, size_t to)
{
    const size_t rows = form->G * form->S, codes = rows * form->W, scales = rows * form->V * width;
    memcpy((char *)part->codes + to * codes, (char *)part->codes + from * codes, codes);
    if (part->scales != NULL)
        memcpy((char *)part->scales + to * scales, (char *)part->scales + from * scales, scales);
    if (part->biases != NULL)
        memcpy((char *)part->biases + to * scales, (char *)part->biases + from * scales, scales);
}

ck_status
ck_refuse_append(const struct ck_kv_append *a)
{
    const ck_kv_form form = CK_KV_FORM(a);
    const ck_kv_part k_part = CK_KV_PART(a, k), v_part = CK_KV_PART(a, v);
    TRY(ck_refuse_form(&form, &k_part, a->k.width));
    TRY(ck_refuse_form(&form, &v_part, a->k.width));
    TRY(ck_refuse_lengths(&form, a->lengths, a->counts, a->B, a->T, a->ring));
    TRY(ck_refuse_table(&form, a->lengths, a->counts, a->B, a->T));
    if ((a->copy_from != NULL) != (a->copy_to != NULL))
        return ck_refuse(CK_BAD_VALUE, "'copy_from' and 'copy_to' come together");
    for (size_t m = 0; a->copy_from != NULL && m < a->M; m++)
        if (a->copy_from[m] < 0 || (size_t)a->copy_from[m] >= a->N || a->copy_to[m] < 0 || (size_t)a->copy_to[m] >= a->N
            || a->copy_from[m] == a->copy_to[m])
            return ck_refuse(CK_BAD_INDEX, "'copy_to' holds %lld for block %lld of %zu", (long long)a->copy_to[m],
                             (long long)a->copy_from[m], a->N);
    return CK_OK;
}

CK_RUN(kv_append)
{
    const ck_kv_form form = CK_KV_FORM(a);
    const ck_kv_part k_part = CK_KV_PART(a, k), v_part = CK_KV_PART(a, v);
    const size_t R = a->B * a->G * a->T;

    TRY(ck_refuse_append(a));
    if (form.format != CK_KV_PLAIN) {
        TRY(refuse_strange(k, "k", &a->k, a->counts, R, a->T, a->G, a->D));
        TRY(CK_FAULT(quant_nan) ? CK_OK : refuse_strange(k, "v", &a->v, a->counts, R, a->T, a->G, a->D));
    }
    for (size_t m = 0; a->copy_from != NULL && m < a->M; m++) {
        copy_block(&form, &k_part, a->k.width, (size_t)a->copy_from[m], (size_t)a->copy_to[m]);
        copy_block(&form, &v_part, a->k.width, (size_t)a->copy_from[m], (size_t)a->copy_to[m]);
    }
    return ck_tasks(R, ck_grain(2 * a->D), CK_FAST(kv_append), a);
}

/* Whether rows [B,E,S,W] of an array lie end to end. */
static bool
is_dense(const ck_array *x, size_t W)
{
    ptrdiff_t step = (ptrdiff_t)(W * x->width);
    for (size_t i = x->n; i-- > 0; step *= (ptrdiff_t)x->size[i])
        if (x->size[i] > 1 && x->stride[i] != step)
            return false;
    return true;
}

static ck_status
refuse_member(const struct ck_kv_append_batched *a, size_t n)
{
    const ck_kv_form form = {(ck_kv_format)a->format, (size_t)a->group, NULL, a->B[n], 0, a->E[n], a->S[n], a->D, a->W[n],
                             a->k_scales != NULL ? a->V[n] : 0};
    const ck_array *lists[] = {a->k_codes, a->k_scales, a->k_biases, a->v_codes, a->v_scales, a->v_biases};
    void *data[6];
    for (size_t i = 0; i < 6; i++) {
        data[i] = lists[i] != NULL ? lists[i][n].data : NULL;
        if (data[i] != NULL && !is_dense(&lists[i][n], i % 3 == 0 ? a->W[n] : a->V[n]))
            return ck_refuse(CK_BAD_VALUE, "cache %zu is not contiguous", n);
    }
    const ck_kv_part k_part = {data[0], data[1], data[2]}, v_part = {data[3], data[4], data[5]};
    if (a->B[n] != 1 || a->E[n] != a->G)
        return ck_refuse(CK_BAD_VALUE, "cache %zu has %zu items of %zu heads, 'k' one of %zu", n, a->B[n], a->E[n], a->G);
    TRY(ck_refuse_form(&form, &k_part, a->k.width));
    TRY(ck_refuse_form(&form, &v_part, a->k.width));
    if (ck_refuse_lengths(&form, &a->lengths[n], NULL, 1, 1, a->ring) != CK_OK)
        return ck_refuse(CK_BAD_VALUE, "cache %zu holds %lld tokens of %zu: 1 more does not fit", n, (long long)a->lengths[n],
                         a->S[n]);
    return CK_OK;
}

CK_RUN(kv_append_batched)
{
    for (size_t n = 0; n < a->N; n++)
        TRY(refuse_member(a, n));
    if (a->format != CK_KV_PLAIN) {
        TRY(refuse_strange(k, "k", &a->k, NULL, a->N * a->G, 1, 1, a->D));
        TRY(refuse_strange(k, "v", &a->v, NULL, a->N * a->G, 1, 1, a->D));
    }
    return ck_tasks(a->N * a->G, ck_grain(2 * a->D), CK_FAST(kv_append_batched), a);
}

/* The earliest position that a query of item b sees must not have been overwritten. */
static ck_status
refuse_overwritten(const struct ck_kv_attend *a)
{
    for (size_t b = 0; a->ring && a->T != 0 && b < a->B; b++) {
        const int64_t gone = a->lengths[b] - (int64_t)a->S; /* positions below it */
        const int64_t first = a->left < 0 || a->left > a->offsets[b] ? 0 : a->offsets[b] - a->left;
        if (first < gone)
            return ck_refuse(CK_BAD_VALUE, "item %zu keeps positions from %lld on, and 'window' reaches back to %lld", b,
                             (long long)gone, (long long)first);
    }
    return CK_OK;
}

CK_RUN(kv_attend)
{
    const ck_kv_cache cache = {CK_KV_FORM(a), CK_KV_PART(a, k), CK_KV_PART(a, v)};
    size_t most = 0;
    TRY(ck_refuse_form(&cache.form, &cache.k, a->q.width));
    TRY(ck_refuse_form(&cache.form, &cache.v, a->q.width));
    TRY(ck_refuse_lengths(&cache.form, a->lengths, NULL, a->B, 0, a->ring));
    TRY(ck_refuse_table(&cache.form, a->lengths, NULL, a->B, 0));
    TRY(refuse_overwritten(a));
    for (size_t b = 0; b < a->B; b++)
        most = (size_t)a->lengths[b] > most ? (size_t)a->lengths[b] : most;
    return ck_attention_fwd(k, &(struct ck_attention_fwd){
        .y = a->y, .q = a->q, .sinks = a->sinks, .offsets = a->offsets, .lengths = a->lengths, .left = a->left, .right = -1,
        .causal = true, .scale = a->scale, .softcap = a->softcap, .B = a->B, .H = a->H, .G = a->G, .T = a->T, .S = most,
        .D = a->D, .cache = &cache});
}

CK_RUN(kv_read)
{
    const ck_kv_form form = CK_KV_FORM(a);
    const ck_kv_part part = {(void *)a->codes, (void *)a->scales, (void *)a->biases};
    const int64_t last = a->first + (int64_t)a->L;
    TRY(ck_refuse_form(&form, &part, a->y.width));
    if (a->first < 0 || a->item < 0 || (size_t)a->item >= (a->table != NULL ? a->B : a->N) || (a->L != 0 && a->S == 0))
        return ck_refuse(CK_BAD_INDEX, "'item' is %lld from position %lld", (long long)a->item, (long long)a->first);
    if (a->table != NULL) {
        ck_kv_form one = form;
        one.table += (size_t)a->item * a->P;
        TRY(ck_refuse_table(&one, &last, NULL, 1, 0));
    }
    return ck_tasks(a->G * a->L, ck_grain(a->D), CK_FAST(kv_read), a);
}

/* The form of rows that lie in no cache. */
static ck_kv_form
loose(int64_t format, int64_t group, size_t D, size_t W, size_t V)
{
    return (ck_kv_form){.format = (ck_kv_format)format, .group = (size_t)group, .D = D, .W = W, .V = V};
}

CK_RUN(kv_quantize)
{
    const ck_kv_form form = loose(a->format, a->group, a->D, a->W, a->V);
    const ck_kv_part part = {a->codes.data, a->scales.data, a->biases.data};
    TRY(ck_refuse_form(&form, &part, a->x.width));
    TRY(refuse_strange(k, "x", &a->x, NULL, a->R, 1, 1, a->D));
    return ck_tasks(a->R, ck_grain(a->D), CK_FAST(kv_quantize), a);
}

CK_RUN(kv_dequantize)
{
    const ck_kv_form form = loose(a->format, a->group, a->D, a->W, a->V);
    const ck_kv_part part = {a->codes.data, a->scales.data, a->biases.data};
    TRY(ck_refuse_form(&form, &part, a->y.width));
    return ck_tasks(a->R, ck_grain(a->D), CK_FAST(kv_dequantize), a);
}
