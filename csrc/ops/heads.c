#include "ops/ops.h"
#include "runtime/run.h"

/* `width` elements a token; none to move where there are none. */
static ck_status
move(ck_kernel *kernel, const void *args, size_t B, size_t T, size_t width)
{
    const size_t rows = T < CK_HEADS_T ? T : CK_HEADS_T;
    return ck_tasks(width == 0 ? 0 : B * ck_heads_blocks(T), ck_grain(rows * width), kernel, args);
}

static ck_status
check_width(int64_t H, int64_t G, int64_t D, size_t C)
{
    const unsigned __int128 heads = (unsigned __int128)H + 2 * (unsigned __int128)G;
    if (heads * (unsigned __int128)D == C)
        return CK_OK;
    return ck_refuse(CK_BAD_VALUE, "'qkv' of %zu columns is not (H + 2G) * D, where H=%lld, G=%lld, D=%lld", C,
                     (long long)H, (long long)G, (long long)D);
}

CK_RUN(split_qkv_fwd)
{
    const ck_status status = check_width(a->H, a->G, a->D, a->C);
    return status != CK_OK ? status : move(CK_FAST(split_qkv_fwd), a, a->B, a->T, a->C);
}

CK_RUN(split_qkv_bwd)
{
    const ck_status status = check_width(a->H, a->G, a->D, (size_t)a->C);
    return status != CK_OK ? status : move(CK_FAST(split_qkv_bwd), a, a->B, a->T, (size_t)a->C);
}

CK_RUN(heads_to_tokens_fwd)
{
    return move(CK_FAST(heads_to_tokens_fwd), a, a->B, a->T, a->H * a->D);
}

CK_RUN(heads_to_tokens_bwd)
{
    return move(CK_FAST(heads_to_tokens_bwd), a, a->B, a->T, a->H * a->D);
}

CK_RUN(tokens_to_heads_fwd)
{
    return move(CK_FAST(tokens_to_heads_fwd), a, a->B, a->T, a->H * a->D);
}

CK_RUN(tokens_to_heads_bwd)
{
    return move(CK_FAST(tokens_to_heads_bwd), a, a->B, a->T, a->H * a->D);
}
