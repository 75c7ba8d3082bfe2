#include "kernels/kernel.h"
#include "ops/activation.h"
#include "ops/elementwise.h"
#include "simd/activation.h"

/* Inlined, so that the call of the function they are given is none; `cap` is softcap's. */
typedef v16 function(v16 x, v16 cap);
typedef v16 gradient(v16 dy, v16 x, v16 cap);

static inline __attribute__((always_inline)) void
forward(const ck_array *y_, const ck_array *x_, size_t R, size_t C, v16 cap, ck_task task, function *f)
{
    const bool stream = y_->data != x_->data && ck_streams(2 * R * C * sizeof(elem));

    for (ck_stretch s = ck_first_stretch(task, C); s.n != 0; s = ck_next_stretch(s, task, C)) {
        const elem *x = (const elem *)ck_row(x_, s.row) + s.column;
        elem *y = (elem *)ck_row(y_, s.row) + s.column;
        size_t c = 0;
        if (stream) {
            for (size_t head = ck_head(y, s.n); c < head; c = c + 16 < head ? c + 16 : head)
                v16_store(y + c, f(v16_load(x + c, head - c), cap), head - c);
            for (; c + 16 <= s.n; c += 16)
                v16_stream(y + c, f(v16_load(x + c, 16), cap), 16);
        }
        for (; c + 16 <= s.n; c += 16)
            v16_store(y + c, f(v16_load(x + c, 16), cap), 16);
        if (c < s.n)
            v16_store(y + c, f(v16_load(x + c, s.n - c), cap), s.n - c);
    }
    if (stream)
        ck_stream_end();
}

static inline __attribute__((always_inline)) void
backward(const ck_array *dx_, const ck_array *dy_, const ck_array *x_, size_t R, size_t C, v16 cap, ck_task task, gradient *g)
{
    const bool in_place = dx_->data == dy_->data || dx_->data == x_->data;
    const bool stream = !in_place && ck_streams(3 * R * C * sizeof(elem));

    for (ck_stretch s = ck_first_stretch(task, C); s.n != 0; s = ck_next_stretch(s, task, C)) {
        const elem *x = (const elem *)ck_row(x_, s.row) + s.column, *dy = (const elem *)ck_row(dy_, s.row) + s.column;
        elem *dx = (elem *)ck_row(dx_, s.row) + s.column;
        size_t c = 0;
        if (stream) {
            for (size_t head = ck_head(dx, s.n); c < head; c = c + 16 < head ? c + 16 : head)
                v16_store(dx + c, g(v16_load(dy + c, head - c), v16_load(x + c, head - c), cap), head - c);
            for (; c + 16 <= s.n; c += 16)
                v16_stream(dx + c, g(v16_load(dy + c, 16), v16_load(x + c, 16), cap), 16);
        }
        for (; c + 16 <= s.n; c += 16)
            v16_store(dx + c, g(v16_load(dy + c, 16), v16_load(x + c, 16), cap), 16);
        if (c < s.n)
            v16_store(dx + c, g(v16_load(dy + c, s.n - c), v16_load(x + c, s.n - c), cap), s.n - c);
    }
    if (stream)
        ck_stream_end();
}

#define ACTIVATION(name, value, slope, parameter)                                                 \
    static inline v16 name##_of(v16 x, v16 cap) { return (void)cap, value; }                      \
    static inline v16 name##_back(v16 dy, v16 x, v16 cap) { return (void)cap, slope; }            \
    CK_KERNEL(name##_fwd)                                                                         \
    {                                                                                             \
        forward(&a->y, &a->x, a->R, a->C, parameter, task, name##_of);                            \
    }                                                                                             \
    CK_KERNEL(name##_bwd)                                                                         \
    {                                                                                             \
        backward(&a->dx, &a->dy, &a->x, a->R, a->C, parameter, task, name##_back);                \
    }

#define PLAIN(name, value, slope) ACTIVATION(name, value, slope, v16_zero())
PLAIN(relu, v16_relu(x), v16_relu_back(dy, x))
PLAIN(silu, v16_silu(x), v16_mul(dy, v16_silu_slope(x)))
PLAIN(gelu, v16_gelu(x), v16_mul(dy, v16_gelu_slope(x)))
PLAIN(gelu_tanh, v16_gelu_tanh(x), v16_mul(dy, v16_gelu_tanh_slope(x)))
PLAIN(gelu_sigmoid, v16_gelu_sigmoid(x), v16_mul(dy, v16_gelu_sigmoid_slope(x)))
PLAIN(sigmoid, v16_sigmoid(x), v16_mul(dy, v16_sigmoid_slope(x)))
PLAIN(tanh, v16_tanh(x), v16_mul(dy, v16_tanh_slope(x)))
ACTIVATION(softcap, v16_softcap(x, cap), v16_mul(dy, v16_softcap_slope(x, cap)), v16_splat((float)a->cap))
