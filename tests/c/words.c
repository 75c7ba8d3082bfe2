#include "words.h"

#include "simd/short.h"
#include "simd/words.h"

#include <string.h>

#define TRUTH(mask) v16_select(mask, v16_splat(1.0f), v16_zero())

/* Names, and what they do to one vector of each array: X, Y, Z, `left` elements. */
#define WORDS(_)                                                     \
    _(add, v16_add(X, Y))                                            \
    _(sub, v16_sub(X, Y))                                            \
    _(mul, v16_mul(X, Y))                                            \
    _(div, v16_div(X, Y))                                            \
    _(sqrt, v16_sqrt(X))                                             \
    _(fma, v16_fma(X, Y, Z))                                         \
    _(max, v16_max(X, Y))                                            \
    _(min, v16_min(X, Y))                                            \
    _(neg, v16_neg(X))                                               \
    _(abs, v16_abs(X))                                               \
    _(copysign, v16_copysign(X, Y))                                  \
    _(lt, TRUTH(v16_lt(X, Y)))                                       \
    _(le, TRUTH(v16_le(X, Y)))                                       \
    _(eq, TRUTH(v16_eq(X, Y)))                                       \
    _(is_nan, TRUTH(v16_is_nan(X)))                                  \
    _(first, v16_select(v16_first(left), v16_splat((float)left), Y)) \
    _(load_or, v16_load_or_f32(x + c, left, Y_FIRST))                \
    _(select, v16_select(v16_lt(X, Y), Z, X))                        \
    _(sum, v16_splat(v16_sum(X)))                                    \
    _(peak, v16_splat(v16_peak(X)))                                  \
    _(pow2_shifted, v16_pow2_shifted(v16_add(X, v16_splat(12582912.0f)))) \
    _(split, split(X, true))                                         \
    _(split_exponent, split(X, false))                               \
    _(bf16, through_bf16(X, left, Y_FIRST))                          \
    _(f16, through_f16(X, left, Y_FIRST))                            \
    _(exp, v16_exp(X))                                               \
    _(log, v16_log(X))                                               \
    _(sigmoid, v16_sigmoid(X))                                       \
    _(tanh, v16_tanh(X))                                             \
    _(exp_below, v16_exp_below(v16_neg(v16_abs(X))))                 \
    _(erf, v16_erf(X))                                               \
    _(silu, v16_silu(X))                                             \
    _(silu_slope, v16_silu_slope(X))                                 \
    _(gelu, v16_gelu(X))                                             \
    _(gelu_slope, v16_gelu_slope(X))                                 \
    _(gelu_tanh, v16_gelu_tanh(X))                                   \
    _(gelu_tanh_slope, v16_gelu_tanh_slope(X))                       \
    _(gelu_sigmoid, v16_gelu_sigmoid(X))                             \
    _(gelu_sigmoid_slope, v16_gelu_sigmoid_slope(X))                 \
    _(relu, v16_relu(X))                                             \
    _(relu_back, v16_relu_back(Y, X))                                \
    _(sigmoid_slope, v16_sigmoid_slope(X))                           \
    _(tanh_slope, v16_tanh_slope(X))                                 \
    _(softcap, v16_softcap(X, Y))                                    \
    _(softcap_slope, v16_softcap_slope(X, Y))                        \
    _(exp_short, v16_exp_short(X))                                   \
    _(sigmoid_short, v16_sigmoid_short(X))                           \
    _(sigmoid_slope_short, v16_sigmoid_slope_short(X))               \
    _(tanh_short, v16_tanh_short(X))                                 \
    _(tanh_slope_short, v16_tanh_slope_short(X))                     \
    _(silu_short, v16_silu_short(X))                                 \
    _(silu_slope_short, v16_silu_slope_short(X))                     \
    _(gelu_short, v16_gelu_short(X))                                 \
    _(gelu_slope_short, v16_gelu_slope_short(X))                     \
    _(gelu_tanh_short, v16_gelu_tanh_short(X))                       \
    _(gelu_tanh_slope_short, v16_gelu_tanh_slope_short(X))           \
    _(gelu_sigmoid_short, v16_gelu_sigmoid_short(X))                 \
    _(gelu_sigmoid_slope_short, v16_gelu_sigmoid_slope_short(X))

#define X v16_load_f32(x + c, left)
#define Y v16_load_f32(y + c, left)
#define Z v16_load_f32(z + c, left)
#define Y_FIRST y[c]

static inline v16
split(v16 x, bool mantissa)
{
    v16 e;
    const v16 m = v16_split(x, &e);
    return mantissa ? m : e;
}

/* Rounded to 16 bits and back; lanes from n on become f, which must be exact in them. */
#define THROUGH(dtype)                                  \
    static inline v16                                   \
    through_##dtype(v16 x, size_t n, float f)           \
    {                                                   \
        ck_##dtype narrow[16];                          \
        memset(narrow, 0xff, sizeof narrow);            \
        v16_store_##dtype(narrow, x, n);                \
        return v16_load_or_##dtype(narrow, n, f);       \
    }
THROUGH(bf16)
THROUGH(f16)

#define FUNCTION(name, expression)                                                          \
    static void run_##name(const float *x, const float *y, const float *z, float *out, size_t n) \
    {                                                                                       \
        (void)x, (void)y, (void)z;                                                          \
        for (size_t c = 0; c < n; c += 16) {                                                \
            const size_t left = n - c;                                                      \
            const v16 result = expression;                                                  \
            v16_store_f32(out + c, result, left);                                           \
        }                                                                                   \
    }
WORDS(FUNCTION)

static void
run_stream(const float *x, const float *y, const float *z, float *out, size_t n)
{
    (void)y, (void)z;
    for (size_t c = 0; c < n; c += 16) {
        ck_prefetch(x + c + 256); /* beyond the array: no fault */
        v16_stream_f32(out + c, v16_load_f32(x + c, n - c), n - c);
    }
    ck_stream_end();
}

/* All sixteen lanes of what a load of n elements gives. */
static void
run_lanes(const float *x, const float *y, const float *z, float *out, size_t n)
{
    (void)y, (void)z;
    v16_store_f32(out, v16_load_f32(x, n), 16);
}

static void
run_lanes_or(const float *x, const float *y, const float *z, float *out, size_t n)
{
    (void)z;
    v16_store_f32(out, v16_load_or_f32(x, n, y[0]), 16);
}

#define TABLE_(isa) words_##isa
#define TABLE(isa) TABLE_(isa)
#define ROW(name, expression) {#name, run_##name},
const word TABLE(CK_ISA)[] = {
    WORDS(ROW) {"stream", run_stream}, {"lanes", run_lanes}, {"lanes_or", run_lanes_or}, {NULL, NULL},
};
