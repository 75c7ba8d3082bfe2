#include "kernels/kernel.h"
#include "ops/heads.h"
#include "simd/copy.h"

/* Where the rows of an item of the batch lie from token t on: row (h, t + i) at + h * head + i * token. */
typedef struct {
    char *at;
    ptrdiff_t head, token;
} rows;

/* In [B,H,T,D]. */
static inline rows
by_head(const ck_array *x, size_t b, size_t t, size_t H, size_t T)
{
    if (H == 0)
        return (rows){NULL, 0, 0};
    const size_t r = b * H * T + t;
    char *at = ck_row(x, r);
    return (rows){at, H > 1 ? (char *)ck_row(x, r + T) - at : 0, t + 1 < T ? (char *)ck_row(x, r + 1) - at : 0};
}

/* In [B,T,H,D]. */
static inline rows
by_token(const ck_array *x, size_t b, size_t t, size_t H, size_t T)
{
    if (H == 0)
        return (rows){NULL, 0, 0};
    const size_t r = (b * T + t) * H;
    char *at = ck_row(x, r);
    return (rows){at, H > 1 ? (char *)ck_row(x, r + 1) - at : 0, t + 1 < T ? (char *)ck_row(x, r + H) - at : 0};
}

/* In [B,T,C]: heads are `width` bytes apart. */
static inline rows
by_column(const ck_array *x, size_t b, size_t t, size_t T, size_t width)
{
    char *at = ck_row(x, b * T + t);
    return (rows){at, (ptrdiff_t)width, t + 1 < T ? (char *)ck_row(x, b * T + t + 1) - at : 0};
}

enum { STRETCH = 2048 }; /* bytes of a token that are moved before its other heads' */

/* n rows of each head, token by token: so the side of the tokens is read, or written, from end to end. */
CK_TEMPLATE void
move_rows(rows to, rows from, size_t heads, size_t n, size_t width, bool stream)
{
    for (size_t i = 0; i < n; i++) {
        char *y = to.at + (ptrdiff_t)i * to.token;
        const char *x = from.at + (ptrdiff_t)i * from.token;
        for (size_t h = 0; h < heads; h++, y += to.head, x += from.head)
            ck_copy(y, x, width, stream);
    }
}

static inline rows
beyond(rows x, size_t heads)
{
    x.at += (ptrdiff_t)heads * x.head;
    return x;
}

/* Whether every row begins at a line. */
static inline bool
in_lines(rows x)
{
    return ((uintptr_t)x.at | (size_t)x.head | (size_t)x.token) % CK_LINE == 0;
}

/*
 * Past the caches a few heads at a time where the heads' side is read, whose rows lie far apart, or where rows are short
 * and two of them share a line, which waits for its other half.  The shortest are mostly such halves: not past them.
 */
static void
move(rows to, rows from, size_t heads, size_t n, size_t width, bool stream)
{
    const size_t halves = in_lines(to) ? 0 : 2, some = STRETCH / width + (width > STRETCH);
    const bool past = stream && width >= halves * 2 * CK_LINE;
    const bool few = past && some < heads && (from.token < from.head || width < halves * 4 * CK_LINE);
    const size_t group = few ? some : heads;

    for (size_t h = 0; h < heads; h += group) {
        const size_t left = heads - h < group ? heads - h : group;
        if (past)
            move_rows(beyond(to, h), beyond(from, h), left, n, width, true);
        else
            move_rows(beyond(to, h), beyond(from, h), left, n, width, false);
    }
}

static inline size_t left_of(size_t t, size_t T) { return T - t < CK_HEADS_T ? T - t : CK_HEADS_T; }

CK_KERNEL(split_qkv_fwd)
{
    const size_t H = (size_t)a->H, G = (size_t)a->G, width = (size_t)a->D * sizeof(elem), T = a->T;
    const size_t blocks = ck_heads_blocks(T);
    const bool stream = ck_streams(2 * a->B * T * a->C * sizeof(elem));

    for (size_t i = task.begin; i < task.end; i++) {
        const size_t b = i / blocks, t = i % blocks * CK_HEADS_T, n = left_of(t, T);
        const rows qkv = by_column(&a->qkv, b, t, T, width);
        move(by_head(&a->q, b, t, H, T), qkv, H, n, width, stream);
        move(by_head(&a->k, b, t, G, T), beyond(qkv, CK_FAULT(split_k_is_v) ? H + G : H), G, n, width, stream);
        move(by_head(&a->v, b, t, G, T), beyond(qkv, H + G), G, n, width, stream);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(split_qkv_bwd)
{
    const size_t H = (size_t)a->H, G = (size_t)a->G, width = (size_t)a->D * sizeof(elem), T = a->T;
    const size_t blocks = ck_heads_blocks(T);
    const bool stream = ck_streams(2 * a->B * T * (size_t)a->C * sizeof(elem));

    for (size_t i = task.begin; i < task.end; i++) {
        const size_t b = i / blocks, t = i % blocks * CK_HEADS_T, n = left_of(t, T);
        const rows dqkv = by_column(&a->dqkv, b, t, T, width);
        move(dqkv, by_head(&a->dq, b, t, H, T), H, n, width, stream);
        move(beyond(dqkv, H), by_head(&a->dk, b, t, G, T), G, n, width, stream);
        move(beyond(dqkv, H + G), by_head(&a->dv, b, t, G, T), G, n, width, stream);
    }
    if (stream)
        ck_stream_end();
}

/* The items of a task, between heads [B,H,T,D] and tokens [B,T,H,D]. */
static inline void
swap(ck_task task, const ck_array *heads, const ck_array *tokens, bool to_tokens, size_t B, size_t H, size_t T, size_t D)
{
    const size_t blocks = ck_heads_blocks(T), width = D * sizeof(elem);
    const bool stream = ck_streams(2 * B * H * T * width);

    for (size_t i = task.begin; i < task.end; i++) {
        const size_t b = i / blocks, t = i % blocks * CK_HEADS_T, n = left_of(t, T);
        const rows x = CK_FAULT(heads_swapped) && H == T ? by_token(heads, b, t, H, T) : by_head(heads, b, t, H, T), y = by_token(tokens, b, t, H, T);
        move(to_tokens ? y : x, to_tokens ? x : y, H, n, width, stream);
    }
    if (stream)
        ck_stream_end();
}

CK_KERNEL(heads_to_tokens_fwd)
{
    swap(task, &a->x, &a->y, true, a->B, a->H, a->T, a->D);
}

CK_KERNEL(heads_to_tokens_bwd)
{
    swap(task, &a->dx, &a->dy, false, a->B, a->H, a->T, a->D);
}

CK_KERNEL(tokens_to_heads_fwd)
{
    swap(task, &a->y, &a->x, false, a->B, a->H, a->T, a->D);
}

CK_KERNEL(tokens_to_heads_bwd)
{
    swap(task, &a->dy, &a->dx, true, a->B, a->H, a->T, a->D);
}
