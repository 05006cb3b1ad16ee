/* SPDX-License-Identifier: Apache-2.0 */
/* scan_avx512.c - the selective scan of Mamba-1 with 16 channels in the lanes of a vector.
 * Called through the kernel table by the state-space op. Tokens go by in blocks: what does
 * not depend on the state (step size, input, skip, gate) is computed for a whole block into
 * the first cache, and then groups of states stay in registers over the block; each
 * loop alone has registers enough. Neither cut shows in a bit. */
#include <stdbool.h>
#include <string.h>

#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx512.h"

#define BLOCK 32 /* vectors of 16 channels: tokens of one strip, or few tokens of several */

/* Tokens [t, t + tokens) of the strip at channel e, in the vectors from `row` on. */
typedef struct span {
    uint32_t e, t, tokens, row;
} span;

typedef struct block {
    float dt[BLOCK][16];
    float u[BLOCK][16];    /* dt * x */
    float skip[BLOCK][16]; /* d * x */
    float gate[BLOCK][16]; /* z * sigmoid(z) */
    float sum[BLOCK][16];  /* of C * h over the states */
    /* Rows of the next block, fetched while this one computes: a row lies in a page of its own,
     * where the processor does not look ahead. */
    const float *next_x, *next_z, *next_y;
    size_t ldx, ldz, ldy;
} block;

static void prepare(const bxn_scan_args *args, span at, block *b)
{
    const uint32_t e = at.e;
    const __m512 weight = _mm512_loadu_ps(args->dt_weight + e);
    const __m512 bias = _mm512_loadu_ps(args->dt_bias + e), d = _mm512_loadu_ps(args->d + e);
    const float *raw = args->bcd + at.t * args->ldbcd + 2 * (size_t)args->states;
    const float *x = args->x + at.t * args->ldx + e, *z = args->z + at.t * args->ldz + e;
    for (uint32_t i = at.row; i < at.row + at.tokens; i++) {
        __m512 xi = _mm512_loadu_ps(x), zi = _mm512_loadu_ps(z);
        __m512 dt = softplus(_mm512_fmadd_ps(_mm512_set1_ps(*raw), weight, bias));
        dt = _mm512_max_ps(_mm512_set1_ps(1e-4f), dt); /* NaN stays: it is the second operand */
        dt = _mm512_min_ps(_mm512_set1_ps(100.0f), dt);
        _mm512_store_ps(b->dt[i], dt);
        _mm512_store_ps(b->u[i], _mm512_mul_ps(dt, xi));
        _mm512_store_ps(b->skip[i], _mm512_mul_ps(d, xi));
        _mm512_store_ps(b->gate[i], silu(zi));
        _mm512_store_ps(b->sum[i], _mm512_setzero_ps());
        raw += args->ldbcd;
        x += args->ldx;
        z += args->ldz;
    }
}

/* `count` states over the tokens of a block, read at `from` and written to h; two chains of C * h
 * are added to the sums. count is a constant where it is called. */
BXN_INLINE void group(const float *bcd, size_t ldbcd, uint32_t states, span at, const float *a2,
                      const float *from, float *h, unsigned count, block *b)
{
    __m512 state[16];
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++)
        state[n] = _mm512_loadu_ps(from + n * 16);
    for (uint32_t i = at.row; i < at.row + at.tokens; i++) {
        const float *c = bcd + states;
        _mm_prefetch((const char *)(b->next_x + (i - at.row) * b->ldx), _MM_HINT_T0);
        _mm_prefetch((const char *)(b->next_z + (i - at.row) * b->ldz), _MM_HINT_T0);
        _mm_prefetch((const char *)(b->next_y + (i - at.row) * b->ldy), _MM_HINT_T0);
        const __m512 dt = _mm512_load_ps(b->dt[i]), u = _mm512_load_ps(b->u[i]);
        __m512 sum[2] = {_mm512_load_ps(b->sum[i]), _mm512_setzero_ps()};
        BXN_UNROLL
        for (unsigned n = 0; n < count; n++) {
            __m512 decay = exp2_nonpositive(_mm512_mul_ps(dt, _mm512_loadu_ps(a2 + n * 16)));
            __m512 added = _mm512_mul_ps(u, _mm512_set1_ps(bcd[n]));
            state[n] = _mm512_fmadd_ps(decay, state[n], added);
            sum[n & 1] = _mm512_fmadd_ps(_mm512_set1_ps(c[n]), state[n], sum[n & 1]);
        }
        _mm512_store_ps(b->sum[i], _mm512_add_ps(sum[0], sum[1]));
        bcd += ldbcd;
    }
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++)
        _mm512_storeu_ps(h + n * 16, state[n]);
}

static void recur(const bxn_scan_args *args, span at, block *b)
{
    const size_t base = (size_t)(at.e / 16) * args->states * 16, ld = args->ldbcd;
    const float *bcd = args->bcd + at.t * ld, *a2 = args->a2 + base;
    const float *from = (at.t == 0 ? args->h_in : args->h_out) + base;
    float *h = args->h_out + base;
    uint32_t n = 0;
    for (; n + 16 <= args->states; n += 16)
        group(bcd + n, ld, args->states, at, a2 + n * 16, from + n * 16, h + n * 16, 16, b);
    for (; n + 4 <= args->states; n += 4)
        group(bcd + n, ld, args->states, at, a2 + n * 16, from + n * 16, h + n * 16, 4, b);
    for (; n < args->states; n++)
        group(bcd + n, ld, args->states, at, a2 + n * 16, from + n * 16, h + n * 16, 1, b);
}

static void finish(const bxn_scan_args *args, span at, const block *b)
{
    float *y = args->y + at.t * args->ldy + at.e;
    for (uint32_t i = at.row; i < at.row + at.tokens; i++, y += args->ldy) {
        __m512 v = _mm512_add_ps(_mm512_load_ps(b->sum[i]), _mm512_load_ps(b->skip[i]));
        _mm512_storeu_ps(y, _mm512_mul_ps(v, _mm512_load_ps(b->gate[i])));
    }
}

/* What is fetched while `at` computes: its strip's next block, or after the last one the first of
 * the strip `strips` after it. */
static void look_ahead(const bxn_scan_args *args, span at, uint32_t strips, block *b)
{
    bool more = args->tokens - at.t >= 2 * BLOCK;
    bool other = !more && args->end - at.e > 16 * strips;
    size_t t = more ? at.t + BLOCK : other ? 0 : at.t, e = other ? at.e + 16 * strips : at.e;
    b->next_x = args->x + t * args->ldx + e;
    b->next_z = args->z + t * args->ldz + e;
    b->next_y = args->y + t * args->ldy + e;
}

void bxn_scan_avx512(const bxn_scan_args *args)
{
    _Alignas(64) block b;
    b.ldx = args->ldx;
    b.ldz = args->ldz;
    b.ldy = args->ldy;
    if (args->tokens == 0 && args->h_out != args->h_in) {
        const size_t first = (size_t)args->begin * args->states,
                     end = (size_t)args->end * args->states;
        memcpy(args->h_out + first, args->h_in + first, (end - first) * sizeof *args->h_in);
    }
    const uint32_t batch = args->tokens > 0 && args->tokens < BLOCK ? BLOCK / args->tokens : 1;
    for (uint32_t e = args->begin; e < args->end; e += 16 * batch) {
        const uint32_t left = (args->end - e) / 16, strips = left < batch ? left : batch;
        for (uint32_t t = 0; t < args->tokens; t += BLOCK) {
            uint32_t tokens = args->tokens - t < BLOCK ? args->tokens - t : BLOCK;
            for (uint32_t s = 0; s < strips; s++)
                prepare(args, (span){e + 16 * s, t, tokens, s * tokens}, &b);
            for (uint32_t s = 0; s < strips; s++) {
                span at = {e + 16 * s, t, tokens, s * tokens};
                look_ahead(args, at, batch, &b);
                recur(args, at, &b);
            }
            for (uint32_t s = 0; s < strips; s++)
                finish(args, (span){e + 16 * s, t, tokens, s * tokens}, &b);
        }
    }
}
#endif
