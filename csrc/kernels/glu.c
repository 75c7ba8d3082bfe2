#include "kernels/kernel.h"
#include "ops/glu.h"
#include "ops/elementwise.h"
#include "simd/activation.h"

#define AT(array) ((elem *)ck_row(&(array), s.row) + s.column)

/* Inlined, so that the call of the function they are given is none.  `both` returns f(gate), and g f'(gate) in *back. */
typedef v16 function(v16 gate);
typedef v16 both(v16 gate, v16 g, v16 *back);

static inline __attribute__((always_inline)) v16
forward_at(const elem *gate, const elem *up, size_t n, function *f)
{
    return v16_mul(f(v16_load(gate, n)), v16_load(up, n));
}

static inline __attribute__((always_inline)) void
forward(const struct ck_swiglu_fwd *a, ck_task task, function *f)
{
    const bool in_place = a->y.data == a->gate.data || a->y.data == a->up.data;
    const bool stream = !in_place && ck_streams(3 * a->R * a->F * sizeof(elem));

    for (ck_stretch s = ck_first_stretch(task, a->F); s.n != 0; s = ck_next_stretch(s, task, a->F)) {
        const elem *gate = AT(a->gate), *up = AT(a->up);
        elem *y = AT(a->y);
        size_t c = 0;
        if (stream) {
            for (size_t head = ck_head(y, s.n); c < head; c = c + 16 < head ? c + 16 : head)
                v16_store(y + c, forward_at(gate + c, up + c, head - c, f), head - c);
            for (; c + 16 <= s.n; c += 16)
                v16_stream(y + c, forward_at(gate + c, up + c, 16, f), 16);
        }
        for (; c + 16 <= s.n; c += 16)
            v16_store(y + c, forward_at(gate + c, up + c, 16, f), 16);
        if (c < s.n)
            v16_store(y + c, forward_at(gate + c, up + c, s.n - c, f), s.n - c);
    }
    if (stream)
        ck_stream_end();
}

/* Everything is read before anything is written: outputs may be inputs. */
static inline __attribute__((always_inline)) v16
backward_at(const elem *dy, const elem *gate, const elem *up, size_t n, v16 *dgate, both *f)
{
    const v16 d = v16_load(dy, n), y = f(v16_load(gate, n), v16_mul(d, v16_load(up, n)), dgate);
    return v16_mul(d, y);
}

static inline __attribute__((always_inline)) void
backward(const struct ck_swiglu_bwd *a, ck_task task, both *f)
{
    const void *inputs[] = {a->dy.data, a->gate.data, a->up.data};
    bool stream = ck_streams(5 * a->R * a->F * sizeof(elem));
    for (size_t i = 0; i < 3; i++)
        stream &= inputs[i] != a->dgate.data && inputs[i] != a->dup.data;

    for (ck_stretch s = ck_first_stretch(task, a->F); s.n != 0; s = ck_next_stretch(s, task, a->F)) {
        const elem *gate = AT(a->gate), *up = AT(a->up), *dy = AT(a->dy);
        elem *dgate = AT(a->dgate), *dup = AT(a->dup);
        size_t c = 0;
        v16 g, u;
        if (stream) {
            for (size_t head = ck_head(dgate, s.n); c < head; c = c + 16 < head ? c + 16 : head) {
                u = backward_at(dy + c, gate + c, up + c, head - c, &g, f);
                v16_store(dgate + c, g, head - c);
                v16_store(dup + c, u, head - c);
            }
            for (; c + 16 <= s.n; c += 16) {
                u = backward_at(dy + c, gate + c, up + c, 16, &g, f);
                v16_stream(dgate + c, g, 16);
                v16_stream(dup + c, u, 16);
            }
        }
        for (; c + 16 <= s.n; c += 16) {
            u = backward_at(dy + c, gate + c, up + c, 16, &g, f);
            v16_store(dgate + c, g, 16);
            v16_store(dup + c, u, 16);
        }
        if (c < s.n) {
            u = backward_at(dy + c, gate + c, up + c, s.n - c, &g, f);
            v16_store(dgate + c, g, s.n - c);
            v16_store(dup + c, u, s.n - c);
        }
    }
    if (stream)
        ck_stream_end();
}

/* The units have the same arguments in structs of different names; forward and backward take those of swiglu. */
#define GATED_UNIT(name, function)                                                          \
    CK_KERNEL(name##_fwd)                                                                   \
    {                                                                                       \
        forward((const struct ck_swiglu_fwd *)a, task, v16_##function);                     \
    }                                                                                       \
    CK_KERNEL(name##_bwd)                                                                   \
    {                                                                                       \
        backward((const struct ck_swiglu_bwd *)a, task, function##_both);                   \
    }

#define SMOOTH(function)                                                                    \
    static inline v16 function##_both(v16 gate, v16 g, v16 *back)                           \
    {                                                                                       \
        v16 slope;                                                                          \
        const v16 y = v16_##function##_both(gate, &slope);                                  \
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

GATED_UNIT(swiglu, silu)
GATED_UNIT(geglu, gelu)
GATED_UNIT(geglu_tanh, gelu_tanh)
GATED_UNIT(geglu_sigmoid, gelu_sigmoid)
GATED_UNIT(reglu, relu)
