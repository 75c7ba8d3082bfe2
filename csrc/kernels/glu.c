#include "kernels/kernel.h"
#include "ops/glu.h"
#include "ops/elementwise.h"
#include "simd/short.h"

#define AT(array) ((elem *)ck_row(&(array), s.row) + s.column)

/* Inlined, so that the call of the function they are given is none.  `both` returns f(gate), and g f'(gate) in *back. */
typedef v16 function(v16 gate);
typedef v16 both(v16 gate, v16 g, v16 *back);

/* f(gate); what is mistaken for SiLU are the GELUs. */
CK_TEMPLATE v16
gated(function *f, v16 gate)
{
    if (CK_FAULT(mlp_gelu_erf) && f == v16_silu_elem)
        return v16_gelu_elem(gate);
    if (CK_FAULT(mlp_gelu_tanh) && f == v16_silu_elem)
        return v16_gelu_tanh_elem(gate);
    if (CK_FAULT(mlp_gelu_sigmoid) && f == v16_silu_elem)
        return v16_gelu_sigmoid_elem(gate);
    return CK_FAULT(mlp_no_gate) ? v16_splat(1.0f) : f(gate);
}

CK_TEMPLATE void
forward(const struct ck_swiglu_fwd *a, ck_task task, function *f, bool stream)
{
    for (ck_stretch s = ck_first_stretch(task, a->F); s.n != 0; s = ck_next_stretch(s, task, a->F)) {
        const elem *gate = CK_FAULT(mlp_swapped) ? AT(a->up) : AT(a->gate), *up = CK_FAULT(mlp_swapped) ? AT(a->gate) : AT(a->up);
        elem *y = AT(a->y);
        CK_WALK(c, w, y, s.n, stream, {
            v16_put(y + c, v16_mul(gated(f, v16_load(gate + c, w)), v16_load(up + c, w)), w, stream);
        });
    }
    if (stream)
        ck_stream_end();
}

CK_TEMPLATE void
backward(const struct ck_swiglu_bwd *a, ck_task task, both *f, bool stream)
{
    for (ck_stretch s = ck_first_stretch(task, a->F); s.n != 0; s = ck_next_stretch(s, task, a->F)) {
        const elem *gate = AT(a->gate), *up = AT(a->up), *dy = AT(a->dy);
        elem *dgate = AT(a->dgate), *dup = AT(a->dup);
        CK_WALK(c, w, dgate, s.n, stream, { /* everything is read before anything is written: outputs may be inputs */
            const v16 d = v16_load(dy + c, w), u = v16_load(up + c, w);
            v16 back;
            const v16 y = f(v16_load(gate + c, w), v16_mul(d, u), &back);
            v16_put(dgate + c, back, w, stream);
            v16_put(dup + c, v16_mul(d, y), w, stream);
        });
    }
    if (stream)
        ck_stream_end();
}

static inline bool
forward_streams(const struct ck_swiglu_fwd *a)
{
    const void *y = a->y.data;
    return y != a->gate.data && y != a->up.data && ck_streams(3 * a->R * a->F * sizeof(elem));
}

static inline bool
backward_streams(const struct ck_swiglu_bwd *a)
{
    const void *dgate = a->dgate.data, *dup = a->dup.data, *inputs[] = {a->dy.data, a->gate.data, a->up.data};
    for (size_t i = 0; i < 3; i++)
        if (inputs[i] == dgate || inputs[i] == dup)
            return false;
    return ck_streams(5 * a->R * a->F * sizeof(elem));
}

/* The units have the same arguments in structs of different names; forward and backward take those of swiglu. */
#define GATED_UNIT(name, function)                                                          \
    CK_KERNEL(name##_fwd)                                                                   \
    {                                                                                       \
        const struct ck_swiglu_fwd *b = (const struct ck_swiglu_fwd *)a;                    \
        if (forward_streams(b))                                                             \
            forward(b, task, v16_##function, true);                                         \
        else                                                                                \
            forward(b, task, v16_##function, false);                                        \
    }                                                                                       \
    CK_KERNEL(name##_bwd)                                                                   \
    {                                                                                       \
        const struct ck_swiglu_bwd *b = (const struct ck_swiglu_bwd *)a;                    \
        if (backward_streams(b))                                                            \
            backward(b, task, function##_both, true);                                       \
        else                                                                                \
            backward(b, task, function##_both, false);                                      \
    }

#define SMOOTH(function)                                                                    \
    static inline v16 function##_elem_both(v16 gate, v16 g, v16 *back)                           \
    {                                                                                       \
        v16 slope;                                                                          \
        const v16 y = v16_##function##_elem_both(gate, &slope);                                  \
        *back = v16_mul(g, slope);                                                          \
        return y;                                                                           \
    }

static inline v16
relu_both(v16 gate, v16 g, v16 *back)
{
    *back = v16_relu_back(g, gate);
    return v16_relu(gate);
}
SMOOTH(silu)
SMOOTH(gelu)
SMOOTH(gelu_tanh)
SMOOTH(gelu_sigmoid)

GATED_UNIT(swiglu, silu_elem)
GATED_UNIT(geglu, gelu_elem)
GATED_UNIT(geglu_tanh, gelu_tanh_elem)
GATED_UNIT(geglu_sigmoid, gelu_sigmoid_elem)
GATED_UNIT(reglu, relu)
