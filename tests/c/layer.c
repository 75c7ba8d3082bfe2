/*
 * A decoder layer without Python: forward over a sequence, backward, then the same sequence token by token through a
 * cache.  Prints one line and exits 0 when decode gives the bits of the whole forward, and when the gradient agrees
 * with a finite difference.
 */
#include "ckernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 2, T = 5, C = 24, H = 6, G = 2, D = 4, F = 40, K = D / 2, CAPACITY = 9 };

static float *
randoms(size_t n, float scale, float middle)
{
    static uint64_t state = 88172645463325252u; /* xorshift64: Marsaglia 2003 */
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        x[i] = middle + scale * ((float)(state >> 40) / (float)(1 << 24) - 0.5f);
    }
    return x;
}

static float *zeros(size_t n) { return calloc(n, sizeof(float)); }

static ck_array
array3(const float *data, size_t n0, size_t n1, size_t n2)
{
    const ptrdiff_t row = (ptrdiff_t)(n2 * sizeof *data);
    return (ck_array){(void *)data, sizeof *data, 2, {n0, n1}, {(ptrdiff_t)n1 * row, row}};
}

static void
need(ck_status status, const char *what)
{
    if (status != CK_OK) {
        fprintf(stderr, "%s: %s\n", what, ck_error_text());
        exit(1);
    }
}

static void
rope_table(float *cos_table, float *sin_table, size_t rows)
{
    for (size_t p = 0; p < rows; p++)
        for (size_t i = 0; i < K; i++) {
            const double angle = (double)p * pow(10000.0, -2.0 * (double)i / D);
            cos_table[p * K + i] = (float)cos(angle);
            sin_table[p * K + i] = (float)sin(angle);
        }
}

static double
weighted_sum(const float *y, const float *weights, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)y[i] * weights[i];
    return sum;
}

int
main(void)
{
    const ck_kernels *k = ck_kernels_for(getenv("CK_ISA"), CK_F32);
    if (k == NULL)
        return 2;
    ck_set_threads(2);

    float cos_table[CAPACITY * K], sin_table[CAPACITY * K], *x = randoms(B * T * C, 2, 0);
    rope_table(cos_table, sin_table, CAPACITY);
    struct ck_decoder_fwd a = {
        .x = array3(x, B, T, C), .ln1_weight = randoms(C, 1, 1), .q_weight = randoms(H * D * C, 0.5f, 0),
        .k_weight = randoms(G * D * C, 0.5f, 0), .v_weight = randoms(G * D * C, 0.5f, 0),
        .o_weight = randoms(C * H * D, 0.5f, 0), .ln2_weight = randoms(C, 1, 1), .gate_weight = randoms(F * C, 0.5f, 0),
        .up_weight = randoms(F * C, 0.5f, 0), .down_weight = randoms(C * F, 0.5f, 0), .cos = cos_table, .sin = sin_table,
        .eps = 1e-5, .scale = 1 / sqrt(D), .B = B, .T = T, .C = C, .H = H, .G = G, .D = D, .F = F, .P = T, .K = K};

    /* forward, keeping what backward needs */
    float *y = zeros(B * T * C);
    a.y = array3(y, B, T, C);
    a.rstd1 = zeros(B * T), a.ln1 = zeros(B * T * C), a.v = zeros(B * T * G * D), a.q_rope = zeros(B * T * H * D);
    a.k_rope = zeros(B * T * G * D), a.max = zeros(B * H * T), a.sum = zeros(B * H * T), a.attn = zeros(B * T * H * D);
    a.residual1 = zeros(B * T * C), a.rstd2 = zeros(B * T), a.ln2 = zeros(B * T * C);
    a.gate = zeros(B * T * F), a.up = zeros(B * T * F), a.act = zeros(B * T * F);
    need(ck_decoder_fwd(k, &a), "forward");

    /* backward, against a finite difference along dx itself */
    float *dy = randoms(B * T * C, 1, 0), *dx = zeros(B * T * C), *moved = zeros(B * T * C), *y2 = zeros(B * T * C);
    struct ck_decoder_bwd back = {
        .dx = array3(dx, B, T, C), .dy = array3(dy, B, T, C), .x = a.x, .rstd1 = a.rstd1, .ln1 = a.ln1, .v = a.v,
        .q_rope = a.q_rope, .k_rope = a.k_rope, .max = a.max, .sum = a.sum, .attn = a.attn, .residual1 = a.residual1,
        .rstd2 = a.rstd2, .ln2 = a.ln2, .gate = a.gate, .up = a.up, .act = a.act, .ln1_weight = a.ln1_weight,
        .q_weight = a.q_weight, .k_weight = a.k_weight, .v_weight = a.v_weight, .o_weight = a.o_weight,
        .ln2_weight = a.ln2_weight, .gate_weight = a.gate_weight, .up_weight = a.up_weight,
        .down_weight = a.down_weight, .cos = cos_table, .sin = sin_table, .scale = a.scale, .B = B, .T = T, .C = C,
        .H = H, .G = G, .D = D, .F = F, .P = T, .K = K};
    need(ck_decoder_bwd(k, &back), "backward");
    const double norm = sqrt(weighted_sum(dx, dx, B * T * C)), step = 1e-2;
    double sides[2];
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < B * T * C; i++)
            moved[i] = x[i] + (float)((side ? -step : step) * dx[i] / norm);
        struct ck_decoder_fwd shifted = a;
        shifted.x = array3(moved, B, T, C), shifted.y = array3(y2, B, T, C);
        need(ck_decoder_fwd(k, &shifted), "forward of a moved input");
        sides[side] = weighted_sum(y2, dy, B * T * C);
    }
    const double slope = (sides[0] - sides[1]) / (2 * step), error = fabs(slope - norm) / norm;

    /* token by token through a cache, on another number of threads */
    float *keys = zeros(B * G * CAPACITY * D), *values = zeros(B * G * CAPACITY * D), *row = zeros(B * C), *in = zeros(B * C);
    int64_t lengths[B] = {0};
    bool same = true;
    ck_set_threads(1);
    for (size_t t = 0; t < T; t++) {
        struct ck_decoder_fwd one = {
            .y = array3(row, B, 1, C), .k_codes = (uint8_t *)keys,
            .v_codes = (uint8_t *)values, .N = B, .W = D * sizeof(float), .x = array3(in, B, 1, C), .ln1_weight = a.ln1_weight,
            .q_weight = a.q_weight, .k_weight = a.k_weight, .v_weight = a.v_weight, .o_weight = a.o_weight,
            .ln2_weight = a.ln2_weight, .gate_weight = a.gate_weight, .up_weight = a.up_weight,
            .down_weight = a.down_weight, .cos = cos_table, .sin = sin_table, .lengths = lengths, .eps = a.eps,
            .scale = a.scale, .B = B, .T = 1, .C = C, .H = H, .G = G, .D = D, .F = F, .P = CAPACITY, .K = K,
            .S = CAPACITY};
        for (size_t b = 0; b < B; b++)
            memcpy(in + b * C, x + (b * T + t) * C, C * sizeof *in);
        need(ck_decoder_fwd(k, &one), "decode");
        for (size_t b = 0; b < B; b++) {
            same = same && memcmp(row + b * C, y + (b * T + t) * C, C * sizeof *row) == 0;
            lengths[b]++;
        }
    }
    printf("decoder layer in C: finite difference agrees to %.1e, decode %s forward\n", error,
           same ? "gives the bits of" : "DIFFERS from");
    return error < 1e-3 && same ? 0 : 1;
}
