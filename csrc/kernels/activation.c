#include "kernels/kernel.h"
#include "ops/activation.h"
#include "ops/elementwise.h"
#include "simd/short.h"

/* Inlined, so that the call of the function they are given is none; `cap` is softcap's. */
typedef v16 function(v16 x, v16 cap);
typedef v16 gradient(v16 dy, v16 x, v16 cap);

CK_TEMPLATE void
forward(const ck_array *y_, const ck_array *x_, size_t C, v16 cap, ck_task task, function *f, bool stream)
{
    for (ck_stretch s = ck_first_stretch(task, C); s.n != 0; s = ck_next_stretch(s, task, C)) {
        const elem *x = (const elem *)ck_row(x_, s.row) + s.column;
        elem *y = (elem *)ck_row(y_, s.row) + s.column;
        CK_WALK(c, w, y, s.n, stream, {
            v16_put(y + c, f(v16_load(x + c, w), cap), w, stream);
        });
    }
    if (stream)
        ck_stream_end();
}

CK_TEMPLATE void
backward(const ck_array *dx_, const ck_array *dy_, const ck_array *x_, size_t C, v16 cap, ck_task task, gradient *g, bool stream)
{
    for (ck_stretch s = ck_first_stretch(task, C); s.n != 0; s = ck_next_stretch(s, task, C)) {
        const elem *x = (const elem *)ck_row(x_, s.row) + s.column, *dy = (const elem *)ck_row(dy_, s.row) + s.column;
        elem *dx = (elem *)ck_row(dx_, s.row) + s.column;
        CK_WALK(c, w, dx, s.n, stream, {
            v16_put(dx + c, g(v16_load(dy + c, w), v16_load(x + c, w), cap), w, stream);
        });
    }
    if (stream)
        ck_stream_end();
}

#define ACTIVATION(name, value, slope, parameter)                                                       \
    static inline v16 name##_of(v16 x, v16 cap) { return (void)cap, value; }                            \
    static inline v16 name##_back(v16 dy, v16 x, v16 cap) { return (void)cap, slope; }                  \
    CK_KERNEL(name##_fwd)                                                                               \
    {                                                                                                   \
        if (a->y.data != a->x.data && ck_streams(2 * a->R * a->C * sizeof(elem)))                       \
            forward(&a->y, &a->x, a->C, parameter, task, name##_of, true);                              \
        else                                                                                            \
            forward(&a->y, &a->x, a->C, parameter, task, name##_of, false);                             \
    }                                                                                                   \
    CK_KERNEL(name##_bwd)                                                                               \
    {                                                                                                   \
        const bool in_place = a->dx.data == a->dy.data || a->dx.data == a->x.data;                      \
        if (!in_place && ck_streams(3 * a->R * a->C * sizeof(elem)))                                    \
            backward(&a->dx, &a->dy, &a->x, a->C, parameter, task, name##_back, true);                  \
        else                                                                                            \
            backward(&a->dx, &a->dy, &a->x, a->C, parameter, task, name##_back, false);                 \
    }

#define PLAIN(name, value, slope) ACTIVATION(name, value, slope, v16_zero())
PLAIN(relu, v16_relu(x), v16_relu_back(dy, x))
PLAIN(silu, CK_FAULT(silu_gelu) ? v16_gelu_elem(x) : v16_silu_elem(x), v16_mul(dy, CK_FAULT(silu_slope) ? v16_gelu_sigmoid_slope_elem(x) : v16_silu_slope_elem(x)))
PLAIN(gelu, CK_FAULT(gelu_tanh) ? v16_gelu_tanh_elem(x) : v16_gelu_elem(x), v16_mul(dy, v16_gelu_slope_elem(x)))
PLAIN(gelu_tanh, v16_gelu_tanh_elem(x), v16_mul(dy, v16_gelu_tanh_slope_elem(x)))
PLAIN(gelu_sigmoid, CK_FAULT(gelu_sigmoid_silu) ? v16_silu_elem(x) : v16_gelu_sigmoid_elem(x), v16_mul(dy, v16_gelu_sigmoid_slope_elem(x)))
PLAIN(sigmoid, v16_sigmoid_elem(x), v16_mul(dy, v16_sigmoid_slope_elem(x)))
PLAIN(tanh, v16_tanh_elem(x), v16_mul(dy, v16_tanh_slope_elem(x)))
ACTIVATION(softcap, v16_softcap_elem(x, cap), v16_mul(dy, v16_softcap_slope_elem(x, cap)), v16_splat((float)a->cap))
