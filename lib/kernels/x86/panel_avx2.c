/* SPDX-License-Identifier: Apache-2.0 */
/* panel_avx2.c - the inner product of panel_avx2.h: tiles of up to 6 tokens x 16 outputs
 * whose sums stay in registers over the depth of a panel. Called by the dense and the
 * transposed products of AVX2. A tile's shape never shows in a result: every output is one
 * chain. */
#include "kernels/x86/panel_avx2.h"

#if defined(__x86_64__)
#include "kernels/x86/transpose_avx2.h"

#define TILE 6 /* 12 sums, two vectors of weights, one of inputs */

/* What a tile reads and writes. */
typedef struct target {
    const float *panel;
    const float *x; /* [tokens, depth] ldx */
    float *y;
    size_t ldx, ldy;
    unsigned depth;
    uint32_t valid;
    int clear;
    const char *ahead; /* `lines` cache lines are fetched from here per 8 inputs, `stride` apart */
    size_t stride;
    unsigned lines;
} target;

/* One input more: x[i] of three tokens, and of three more. */
BXN_INLINE void step(__m256 p[TILE][2], const float *w, const float *const x[2], unsigned i,
                     size_t ldx, unsigned tokens)
{
    __m256 v0 = _mm256_load_ps(w), v1 = _mm256_load_ps(w + 8);
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        __m256 xm = _mm256_broadcast_ss(&x[m / 3][m % 3 * ldx + i]);
        p[m][0] = _mm256_fmadd_ps(v0, xm, p[m][0]);
        p[m][1] = _mm256_fmadd_ps(v1, xm, p[m][1]);
    }
}

BXN_INLINE void tile(const target *t, unsigned tokens)
{
    const size_t ldx = t->ldx;
    const unsigned depth = t->depth;
    __m256 p[TILE][2];
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++)
        p[m][0] = p[m][1] = _mm256_setzero_ps();
    const float *w = t->panel, *x[2] = {t->x, t->x + 3 * ldx};
    const char *ahead = t->ahead;
    unsigned k = 0;
    for (; k + 8 <= depth; k += 8, ahead += t->stride) {
        for (unsigned i = 0; i < t->lines; i++)
            _mm_prefetch(ahead + (size_t)i * 64, _MM_HINT_T1);
        BXN_UNROLL
        for (unsigned i = 0; i < 8; i++, w += PANEL_COLUMNS)
            step(p, w, x, i, ldx, tokens);
        x[0] += 8;
        x[1] += 8;
    }
    for (; k < depth; k++, w += PANEL_COLUMNS, x[0]++, x[1]++)
        step(p, w, x, 0, ldx, tokens);
    const uint32_t left = t->valid > 8 ? t->valid - 8 : 0;
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        float *y = t->y + m * t->ldy;
        __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0;
        if (!t->clear) {
            sum0 = load_first(y, t->valid);
            if (left > 0)
                sum1 = load_first(y + 8, left);
        }
        store_first(y, t->valid, _mm256_add_ps(sum0, p[m][0]));
        if (left > 0)
            store_first(y + 8, left, _mm256_add_ps(sum1, p[m][1]));
    }
}

#define TILE_FUNCTION(tokens)                                                                      \
    static void tile_##tokens(const target *t)                                                     \
    {                                                                                              \
        tile(t, tokens);                                                                           \
    }
TILE_FUNCTION(1)
TILE_FUNCTION(2)
TILE_FUNCTION(3)
TILE_FUNCTION(4)
TILE_FUNCTION(5)
TILE_FUNCTION(6)

static void tile_of(const target *t, unsigned tokens)
{
    switch (tokens) {
    case 1:
        tile_1(t);
        break;
    case 2:
        tile_2(t);
        break;
    case 3:
        tile_3(t);
        break;
    case 4:
        tile_4(t);
        break;
    case 5:
        tile_5(t);
        break;
    default:
        tile_6(t);
        break;
    }
}

BXN_INLINE const float *input_row(const bxn_mm_args *args, uint32_t token)
{
    return args->x + (args->rows != NULL ? (size_t)args->rows[token] : token) * args->ldx;
}

void bxn_panel_avx2(const float *panel, unsigned depth, size_t first_input, const bxn_mm_args *args,
                    float *y, uint32_t valid, int clear, const panel_ahead *ahead)
{
    /* Inputs of a tile are put side by side when their rows are scattered. */
    _Alignas(32) float x[TILE * PANEL_DEPTH];
    const int direct = args->rows == NULL;
    target t = {.panel = panel,
                .x = x,
                .ldx = direct ? args->ldx : PANEL_DEPTH,
                .ldy = args->ldy,
                .depth = depth,
                .valid = valid,
                .clear = clear,
                .ahead = ahead->data,
                .stride = ahead->stride};
    /* Tiles of nearly equal size: a small last one would be slow. */
    uint32_t tiles = (args->count + TILE - 1) / TILE, token = 0;
    uint32_t lines = ahead->bytes / 64, share = (lines + tiles - 1) / tiles;
    for (uint32_t i = 0; i < tiles; i++) {
        uint32_t tokens = (args->count - token + tiles - i - 1) / (tiles - i);
        if (direct)
            t.x = input_row(args, token) + first_input;
        for (uint32_t m = 0; m < tokens && !direct; m++)
            memcpy(x + m * PANEL_DEPTH, input_row(args, token + m) + first_input,
                   depth * sizeof *x);
        t.y = y + token * args->ldy;
        t.lines = lines < share ? lines : share;
        tile_of(&t, tokens);
        t.ahead += (size_t)t.lines * 64;
        lines -= t.lines;
        token += tokens;
    }
}

void bxn_panel_transpose_avx2(const float *in, size_t ld, unsigned depth, float *out)
{
    for (unsigned k = 0; k < depth; k += 4, in += 4, out += 4 * PANEL_COLUMNS) {
        __m256 v[4];
        transpose_8x4(in, ld, v);
        BXN_UNROLL
        for (unsigned i = 0; i < 4; i++)
            _mm256_store_ps(out + i * PANEL_COLUMNS, v[i]);
    }
}
#endif
