#ifndef CK_PAIRS_H
#define CK_PAIRS_H
/*
 * Operands of a product in tiles of a matrix unit (simd/matrix.h), as bfloat16, in parts (ops/gemm_tiles.h).
 *
 * A tile takes 32 of k and 16 of the other axis.  That of a left operand has a row for each of the 16, with k along it; that
 * of a right one has a row for two of k, with a word for each of the 16.  As words of 32 bits one is the other turned.
 * So an array whose rows run along k is a left tile as it lies, and one whose rows run across is a right tile once
 * two rows are paired; the other two ways are turned.
 */
#include "simd/panel.h"

enum { CK_PAIRS_K = 32, CK_PAIRS_TILE = 16 * 16, /* words */ CK_PAIRS_PARTS = 4 };

typedef union {
    ck_bf16 half[2 * CK_PAIRS_TILE];
    float word[CK_PAIRS_TILE]; /* moved, never computed with */
} ck_pairs;

/* 16 numbers as bfloat16 numbers that add up to them: part p to to[p]. */
static inline void
ck_split_parts(ck_bf16 *const *to, size_t parts, v16 x)
{
    const float largest = 0x1.fep127f; /* what is finite stays so */
    const v16_mask finite = v16_lt(v16_abs(x), v16_splat(INFINITY));
    const v16 near = v16_select(finite, v16_copysign(v16_min(v16_abs(x), v16_splat(largest)), x), x);
    v16 rest = v16_select(finite, x, v16_zero());

    v16_store_bf16(to[0], near, 16);
    if (parts > 1)
        v16_store_bf16(to[1], v16_select(finite, near, v16_zero()), 16);
    for (size_t p = 2; p < parts; p++) {
        rest = v16_sub(rest, v16_load_bf16(to[p - 1], 16)); /* exact */
        v16_store_bf16(to[p], rest, 16);
    }
}

/* 16 numbers of a row from place j on, n of them there. */
static inline void
ck_take_parts(ck_bf16 *const *to, size_t parts, const char *row, size_t width, size_t j, size_t n)
{
    if (!CK_IS_FLOAT && width == sizeof(ck_bf16) && parts == 1 && n >= 16)
        __builtin_memcpy(to[0], (const ck_bf16 *)row + j, 16 * sizeof(ck_bf16));
    else
        ck_split_parts(to, parts, ck_load_either(row, width, n != 0 ? j : 0, n));
}

/* The words of a tile, turned. */
static inline void
ck_turn_words(float *to, const ck_pairs *from)
{
    const float *rows[16];
    for (size_t i = 0; i < 16; i++)
        rows[i] = from->word + 16 * i;
    v16_transpose(to, 16, rows, 16);
}

/*
 * `tiles` tiles one after the other along k, from rows of x that run along k: 16 of them from `row` on, `have` of which
 * exist, from `column` on, where `left` columns exist.  Part p goes `each` bytes behind part p-1.  `turned`: a right operand.
 */
static inline void
ck_pairs_along(char *to, size_t each, size_t parts, const ck_array *x, size_t row, size_t have, size_t column, size_t left,
               size_t tiles, bool turned)
{
    const char *from[16];
    for (size_t i = 0; i < 16; i++)
        from[i] = i < have ? ck_row(x, row + i) : x->data;
    for (size_t tile = 0; tile < tiles; tile++, to += sizeof(ck_pairs)) {
        ck_pairs staged[CK_PAIRS_PARTS];
        for (size_t j = 0; j < CK_PAIRS_K; j += 16) {
            const size_t k = tile * CK_PAIRS_K + j, n = k < left ? left - k : 0;
            for (size_t i = 0; i < 16; i++) {
                ck_bf16 *part[CK_PAIRS_PARTS];
                for (size_t p = 0; p < parts; p++)
                    part[p] = (turned ? &staged[p] : (ck_pairs *)(to + p * each))->half + i * CK_PAIRS_K + j;
                ck_take_parts(part, parts, from[i], x->width, column + k, i < have ? n : 0);
            }
        }
        for (size_t p = 0; turned && p < parts; p++)
            ck_turn_words((float *)(to + p * each), &staged[p]);
    }
}

/* The same from rows of x that run across k: from `row` on, `left` of which exist, 16 columns of each from `column` on. */
static inline void
ck_pairs_across(char *to, size_t each, size_t parts, const ck_array *x, size_t row, size_t left, size_t column, size_t have,
                size_t tiles, bool turned)
{
    for (size_t tile = 0; tile < tiles; tile++, to += sizeof(ck_pairs)) {
        ck_bf16 staged[CK_PAIRS_PARTS][CK_PAIRS_K][16];
        for (size_t k = 0; k < CK_PAIRS_K; k++) {
            const bool there = tile * CK_PAIRS_K + k < left;
            ck_bf16 *part[CK_PAIRS_PARTS];
            for (size_t p = 0; p < parts; p++)
                part[p] = staged[p][k];
            const char *from = ck_row(x, row + (there ? tile * CK_PAIRS_K + k : 0));
            ck_take_parts(part, parts, from, x->width, column, there ? have : 0);
        }
        for (size_t p = 0; p < parts; p++) {
            ck_pairs words, *const at = turned ? &words : (ck_pairs *)(to + p * each);
            for (size_t k = 0; k < CK_PAIRS_K; k += 2)
                for (size_t i = 0; i < 16; i++) {
                    at->half[16 * k + 2 * i] = staged[p][k][i];
                    at->half[16 * k + 2 * i + 1] = staged[p][k + 1][i];
                }
            if (turned)
                ck_turn_words((float *)(to + p * each), &words);
        }
    }
}
#endif
