/* SPDX-License-Identifier: Apache-2.0 */
/* panel_avx512.c - the inner product of panel_avx512.h: tiles of up to 14 tokens x 32 outputs or
 * 9 x 48, whose sums stay in registers over the depth of a panel. Called by the dense and the
 * transposed products of AVX-512. A tile's shape never shows in a result: every output is
 * one chain. */
#include "kernels/x86/panel_avx512.h"

#if defined(__x86_64__)
#include "kernels/x86/transpose_avx512.h"

#define TILE 14 /* tokens: 28 sums, two vectors of weights, one of inputs */
#define TILE3 9 /* with three vectors of weights: 27 sums */

/* What a tile reads and writes. */
typedef struct target {
    const float *panel;
    const float *x; /* [tokens, depth] ldx */
    float *y;
    size_t ldx, ldy, stride_panel;
    unsigned depth;
    const char *ahead; /* `lines` cache lines are fetched from here per 4 inputs, `stride` apart */
    size_t stride;
    unsigned lines;
    const float *next[16]; /* inputs of the tile after this, fetched meanwhile */
    __mmask16 load[3], store[3];
} target;

/* Keeps compilers from making a load an operand of every product that uses it. */
BXN_INLINE __m512 in_register(__m512 v)
{
    __asm__("" : "+v"(v));
    return v;
}

/* One input more: x[i] of every third token, and of the two after it. */
BXN_INLINE void step(__m512 p[TILE][3], const float *w, const float *const x[5], unsigned i,
                     size_t ldx, unsigned tokens, unsigned vectors)
{
    __m512 v[3];
    BXN_UNROLL
    for (unsigned g = 0; g < vectors; g++)
        v[g] = in_register(_mm512_loadu_ps(w + g * 16));
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        __m512 xm = in_register(_mm512_set1_ps(x[m / 3][m % 3 * ldx + i]));
        BXN_UNROLL
        for (unsigned g = 0; g < vectors; g++)
            p[m][g] = _mm512_fmadd_ps(v[g], xm, p[m][g]);
    }
}

BXN_INLINE void tile(const target *t, unsigned tokens, unsigned vectors)
{
    const unsigned depth = t->depth;
    const size_t ldx = t->ldx, stride = t->stride_panel;
    __m512 p[TILE][3];
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        BXN_UNROLL
        for (unsigned g = 0; g < vectors; g++)
            p[m][g] = _mm512_setzero_ps();
    }
    const float *w = t->panel, *x[5];
    BXN_UNROLL
    for (unsigned j = 0; j < 5; j++)
        x[j] = t->x + 3 * j * ldx;
    const char *ahead = t->ahead, *third = ahead + 32 * t->stride; /* of 48 stretches */
    unsigned k = 0;
    for (; k + 4 <= depth; k += 4, ahead += t->stride) {
        const char *next = (const char *)(t->next[k / 8] + k / 4 % 2 * 64);
        BXN_UNROLL
        for (unsigned i = 0; i < 4; i++)
            _mm_prefetch(next + i * 64, _MM_HINT_T0);
        for (unsigned i = 0; i < t->lines; i++)
            _mm_prefetch(ahead + (size_t)i * 64, _MM_HINT_T1);
        if (vectors == 3 && k % 8 == 0) {
            for (unsigned i = 0; i < t->lines; i++)
                _mm_prefetch(third + (size_t)i * 64, _MM_HINT_T1);
            third += t->stride;
        }
        BXN_UNROLL
        for (unsigned i = 0; i < 4; i++, w += stride)
            step(p, w, x, i, ldx, tokens, vectors);
        BXN_UNROLL
        for (unsigned j = 0; j < 5; j++)
            x[j] += 4;
    }
    for (; k < depth; k++, w += stride) {
        step(p, w, x, 0, ldx, tokens, vectors);
        BXN_UNROLL
        for (unsigned j = 0; j < 5; j++)
            x[j]++;
    }
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        float *y = t->y + m * t->ldy;
        BXN_UNROLL
        for (unsigned g = 0; g < vectors; g++) {
            __m512 sum = _mm512_maskz_loadu_ps(t->load[g], y + g * 16);
            _mm512_mask_storeu_ps(y + g * 16, t->store[g], _mm512_add_ps(sum, p[m][g]));
        }
    }
}

#define TILE_FUNCTION(tokens)                                                                      \
    static void tile_##tokens(const target *t, unsigned vectors)                                   \
    {                                                                                              \
        if (vectors == 3 && (tokens) <= TILE3)                                                     \
            tile(t, (tokens) <= TILE3 ? (tokens) : 1, 3);                                          \
        else if (vectors == 2)                                                                     \
            tile(t, tokens, 2);                                                                    \
        else                                                                                       \
            tile(t, tokens, 1);                                                                    \
    }
TILE_FUNCTION(1)
TILE_FUNCTION(2)
TILE_FUNCTION(3)
TILE_FUNCTION(4)
TILE_FUNCTION(5)
TILE_FUNCTION(6)
TILE_FUNCTION(7)
TILE_FUNCTION(8)
TILE_FUNCTION(9)
TILE_FUNCTION(10)
TILE_FUNCTION(11)
TILE_FUNCTION(12)
TILE_FUNCTION(13)
TILE_FUNCTION(14)

static void tile_of(const target *t, unsigned tokens, unsigned vectors)
{
    switch (tokens) {
#define CASE(tokens)                                                                               \
    case tokens:                                                                                   \
        tile_##tokens(t, vectors);                                                                 \
        break
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        CASE(11);
        CASE(12);
        CASE(13);
    default:
        tile_14(t, vectors);
        break;
    }
}

BXN_INLINE const float *input_row(const bxn_mm_args *args, uint32_t token)
{
    return args->x + (args->rows != NULL ? (size_t)args->rows[token] : token) * args->ldx;
}

void bxn_panel_avx512(const float *panel, size_t stride, unsigned columns, unsigned depth,
                      size_t first_input, const bxn_mm_args *args, float *y, uint32_t valid,
                      int clear, const panel_ahead *ahead)
{
    /* Inputs of a tile are put side by side when their rows are scattered, or so far apart that
     * all fall on the same cache sets. */
    _Alignas(64) float x[TILE * PANEL_DEPTH];
    const int direct = args->rows == NULL && args->ldx % 1024 != 0;
    target t = {.panel = panel,
                .x = x,
                .ldx = direct ? args->ldx : PANEL_DEPTH,
                .ldy = args->ldy,
                .stride_panel = stride,
                .depth = depth,
                .ahead = ahead->data,
                .stride = ahead->stride};
    for (uint32_t g = 0; g < 3; g++) {
        uint32_t left = valid > g * 16 ? valid - g * 16 : 0;
        t.store[g] = left >= 16 ? (__mmask16)0xFFFF : tail_mask(left);
        t.load[g] = clear ? 0 : t.store[g];
    }
    /* Tiles of nearly equal size: a small last one would be slow. */
    const uint32_t most = columns == 48 ? TILE3 : TILE;
    uint32_t tiles = (args->count + most - 1) / most, token = 0;
    uint32_t lines = ahead->bytes / 64, share = (lines + tiles - 1) / tiles;
    for (uint32_t i = 0; i < tiles; i++) {
        uint32_t tokens = (args->count - token + tiles - i - 1) / (tiles - i);
        if (direct)
            t.x = input_row(args, token) + first_input;
        for (uint32_t m = 0; m < tokens && !direct; m++) {
            const float *in = input_row(args, token + m) + first_input;
            for (unsigned k = 0; k < depth; k += 16) /* rows are readable to a multiple of 128 */
                _mm512_store_ps(x + m * PANEL_DEPTH + k, _mm512_loadu_ps(in + k));
        }
        /* The tile that follows is of the same inputs, or after the last of those behind them. */
        const int last = i + 1 == tiles;
        for (uint32_t m = 0; m < 16; m++) {
            uint32_t next = last ? m : token + tokens + m;
            t.next[m] =
                input_row(args, next < args->count ? next : 0) + first_input + (last ? depth : 0);
        }
        t.y = y + token * args->ldy;
        t.lines = lines < share ? lines : share;
        tile_of(&t, tokens, columns / 16);
        t.ahead += (size_t)t.lines * 64;
        lines -= t.lines;
        token += tokens;
    }
}

void bxn_panel_transpose_avx512(const float *in, size_t ld, unsigned depth, float *out,
                                unsigned columns)
{
    for (unsigned k = 0; k < depth; k += 4, in += 4, out += 4 * columns) {
        __m512 v[4];
        transpose_16x4(in, ld, v);
        BXN_UNROLL
        for (unsigned i = 0; i < 4; i++)
            _mm512_store_ps(out + i * columns, v[i]);
    }
}
#endif
