#ifndef CK_AMX_MODEL_H
#define CK_AMX_MODEL_H
/*
 * The words of matrix.h in plain C: what AMX computes, bit for bit, and what it refuses.  Where the processor would end the
 * process (no configuration, a shape that palette 1 does not have, operands that do not fit), so does this.
 */
#include <float.h>
#include <math.h>
#include <string.h>

typedef struct {
    ck_matrix_shape shape; /* palette 0: not configured */
    uint8_t tile[CK_MATRIX_TILES][CK_MATRIX_ROWS][CK_MATRIX_ROW];
} ck_matrix_state;
static _Thread_local ck_matrix_state ck_matrix;

static inline void
ck_matrix_must(int holds)
{
    if (!holds)
        __builtin_trap();
}

static inline void
ck_matrix_configure(const ck_matrix_shape *shape)
{
    ck_matrix_must(shape->palette == 1 && shape->start_row == 0);
    for (size_t i = 0; i < sizeof shape->none; i++)
        ck_matrix_must(shape->none[i] == 0);
    for (size_t t = 0; t < 16; t++) {
        const bool used = shape->rows[t] != 0;
        ck_matrix_must(used == (shape->bytes[t] != 0) && (t < CK_MATRIX_TILES || !used));
        ck_matrix_must(shape->rows[t] <= CK_MATRIX_ROWS && shape->bytes[t] <= CK_MATRIX_ROW);
    }
    memset(&ck_matrix, 0, sizeof ck_matrix);
    ck_matrix.shape = *shape;
}

static inline void
ck_matrix_end(void)
{
    memset(&ck_matrix, 0, sizeof ck_matrix);
}

static inline void
ck_matrix_has(int t)
{
    ck_matrix_must(ck_matrix.shape.palette == 1 && ck_matrix.shape.rows[t] != 0);
}

static inline void
ck_matrix_zero(int t)
{
    ck_matrix_has(t);
    memset(ck_matrix.tile[t], 0, CK_MATRIX_TILE);
}

/* Rows and bytes past the shape become zeros. */
static inline void
ck_matrix_load(int t, const void *p, size_t step)
{
    ck_matrix_zero(t);
    for (size_t i = 0; i < ck_matrix.shape.rows[t]; i++)
        memcpy(ck_matrix.tile[t][i], (const char *)p + i * step, ck_matrix.shape.bytes[t]);
}

static inline void
ck_matrix_store(int t, void *p, size_t step)
{
    ck_matrix_has(t);
    for (size_t i = 0; i < ck_matrix.shape.rows[t]; i++)
        memcpy((char *)p + i * step, ck_matrix.tile[t][i], ck_matrix.shape.bytes[t]);
}

static inline float ck_flushed(float x) { return fabsf(x) < FLT_MIN ? copysignf(0, x) : x; }

/* One half of a word of 32 bits, a bfloat16, as a float. */
static inline float
ck_half_of(uint32_t word, bool odd)
{
    const uint32_t bits = odd ? word & 0xffff0000 : word << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return ck_flushed(x);
}

/* e or o of a row of c. */
static inline void
ck_matrix_chain(float *sum, const uint32_t *a, const uint32_t (*b)[16], size_t words, bool odd)
{
    for (size_t n = 0; n < 16; n++)
        sum[n] = 0;
    for (size_t k = 0; k < words; k++) {
        const float left = ck_half_of(a[k], odd);
        for (size_t n = 0; n < 16; n++)
            sum[n] = ck_flushed(fmaf(left, ck_half_of(b[k][n], odd), sum[n]));
    }
}

static inline void
ck_matrix_dot_bf16(int c, int a, int b)
{
    const ck_matrix_shape *s = &ck_matrix.shape;
    ck_matrix_has(a), ck_matrix_has(b), ck_matrix_has(c);
    ck_matrix_must(a != b && b != c && c != a && s->rows[c] == s->rows[a] && s->bytes[c] == s->bytes[b]);
    ck_matrix_must(s->bytes[a] == 4 * s->rows[b] && s->bytes[c] % 4 == 0);

    uint32_t left[16][16], right[16][16];
    float sum[16][16], even[16], odd[16];
    memcpy(left, ck_matrix.tile[a], sizeof left);
    memcpy(right, ck_matrix.tile[b], sizeof right);
    memcpy(sum, ck_matrix.tile[c], sizeof sum);
    for (size_t m = 0; m < s->rows[c]; m++) {
        ck_matrix_chain(even, left[m], right, s->rows[b], false);
        ck_matrix_chain(odd, left[m], right, s->rows[b], true);
        for (size_t n = 0; n < s->bytes[c] / 4u; n++)
            sum[m][n] = ck_flushed(ck_flushed(sum[m][n]) + ck_flushed(even[n] + odd[n]));
    }
    memcpy(ck_matrix.tile[c], sum, sizeof sum);
}

#define CK_MATRIX_ZERO(t) ck_matrix_zero(t)
#define CK_MATRIX_LOAD(t, p, step) ck_matrix_load(t, p, step)
#define CK_MATRIX_STORE(t, p, step) ck_matrix_store(t, p, step)
#define CK_MATRIX_DOT_BF16(c, a, b) ck_matrix_dot_bf16(c, a, b)
#endif
