/* SPDX-License-Identifier: Apache-2.0 */
/* scan_avx2.c - the selective scan of Mamba-1 with 8 channels in the lanes of a vector.
 * Called through the kernel table by the state-space op. Tokens go by in blocks: what does
 * not depend on the state (step size, input, skip, gate) is computed for a whole block into
 * the first cache, and then groups of states stay in registers over the block; each
 * loop alone has registers enough. Neither cut shows in a bit. */
#include <math.h>
#include <stdbool.h>

#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx2.h"

#define BLOCK 32 /* vectors of 8 channels: tokens of one strip, or few tokens of several */
#define GROUP 4  /* states */

/* Tokens [t, t + tokens) of the strip at channel e, in the vectors from `row` on. */
typedef struct span {
    uint32_t e, t, tokens, row;
} span;

typedef struct block {
    float dt[BLOCK][8];
    float u[BLOCK][8];    /* dt * x */
    float skip[BLOCK][8]; /* d * x */
    float gate[BLOCK][8]; /* z * sigmoid(z) */
    float sum[BLOCK][8];  /* of C * h over the states */
    bool deep[BLOCK];     /* an exponent may be below -125 or not a number */
} block;

static void prepare(const bxn_scan_args *args, span at, __m256 lowest, block *b)
{
    const uint32_t e = at.e;
    const __m256 weight = _mm256_loadu_ps(args->dt_weight + e);
    const __m256 bias = _mm256_loadu_ps(args->dt_bias + e), d = _mm256_loadu_ps(args->d + e);
    const float *raw = args->bcd + at.t * args->ldbcd + 2 * (size_t)args->states;
    const float *x = args->x + at.t * args->ldx + e, *z = args->z + at.t * args->ldz + e;
    for (uint32_t i = at.row; i < at.row + at.tokens; i++) {
        __m256 xi = _mm256_loadu_ps(x), zi = _mm256_loadu_ps(z);
        __m256 dt = softplus(_mm256_fmadd_ps(_mm256_set1_ps(*raw), weight, bias));
        dt = _mm256_max_ps(_mm256_set1_ps(1e-4f), dt); /* NaN stays: it is the second operand */
        dt = _mm256_min_ps(_mm256_set1_ps(100.0f), dt);
        __m256 shallow =
            _mm256_cmp_ps(_mm256_mul_ps(dt, lowest), _mm256_set1_ps(-125.0f), _CMP_GE_OQ);
        b->deep[i] = _mm256_movemask_ps(shallow) != 0xFF;
        _mm256_store_ps(b->dt[i], dt);
        _mm256_store_ps(b->u[i], _mm256_mul_ps(dt, xi));
        _mm256_store_ps(b->skip[i], _mm256_mul_ps(d, xi));
        _mm256_store_ps(b->gate[i], _mm256_mul_ps(zi, sigmoid(zi)));
        _mm256_store_ps(b->sum[i], _mm256_setzero_ps());
        raw += args->ldbcd;
        x += args->ldx;
        z += args->ldz;
    }
}

BXN_INLINE void step(const float *bcd, uint32_t states, const float *a2, unsigned count, block *b,
                     uint32_t i, bool deep, __m256 *state)
{
    const __m256 dt = _mm256_load_ps(b->dt[i]), u = _mm256_load_ps(b->u[i]);
    __m256 sum = _mm256_load_ps(b->sum[i]);
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++) {
        __m256 decay = decay_of(dt, _mm256_loadu_ps(a2 + n * 16), deep);
        __m256 added = _mm256_mul_ps(u, _mm256_set1_ps(bcd[n]));
        state[n] = _mm256_fmadd_ps(decay, state[n], added);
        sum = _mm256_fmadd_ps(_mm256_set1_ps(bcd[states + n]), state[n], sum);
    }
    _mm256_store_ps(b->sum[i], sum);
}

/* `count` states over the tokens of a block, read at `from` and written to h; C * h is added to
 * the sums. count is a constant where it is called. */
BXN_INLINE void group(const float *bcd, size_t ldbcd, uint32_t states, span at, const float *a2,
                      const float *from, float *h, unsigned count, block *b)
{
    __m256 state[GROUP];
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++)
        state[n] = _mm256_loadu_ps(from + n * 16);
    for (uint32_t i = at.row; i < at.row + at.tokens; i++, bcd += ldbcd) {
        if (b->deep[i])
            step(bcd, states, a2, count, b, i, true, state);
        else
            step(bcd, states, a2, count, b, i, false, state);
    }
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++)
        _mm256_storeu_ps(h + n * 16, state[n]);
}

/* Rows that are fetched while others are computed: a row lies in a page of its own, where the
 * processor does not look ahead. */
typedef struct ahead {
    const float *x, *z, *y;
    size_t ldx, ldz, ldy;
    uint32_t rows;
} ahead;

/* The next `rows` of them; a burst would wait for the memory. */
static void fetch(ahead *a, uint32_t rows)
{
    for (; rows > 0 && a->rows > 0; rows--, a->rows--) {
        _mm_prefetch((const char *)a->x, _MM_HINT_T0);
        _mm_prefetch((const char *)a->z, _MM_HINT_T0);
        _mm_prefetch((const char *)a->y, _MM_HINT_T0);
        a->x += a->ldx;
        a->z += a->ldz;
        a->y += a->ldy;
    }
}

/* From token t of the 16 channels at e on. */
static ahead rows_from(const bxn_scan_args *args, uint32_t e, uint32_t t)
{
    uint32_t rows = args->tokens - t < BLOCK ? args->tokens - t : BLOCK;
    ahead a = {args->x + t * args->ldx + e,
               args->z + t * args->ldz + e,
               args->y + t * args->ldy + e,
               args->ldx,
               args->ldz,
               args->ldy,
               rows};
    return a;
}

static void recur(const bxn_scan_args *args, span at, block *b, ahead *next)
{
    const size_t base = (size_t)(at.e / 16) * args->states * 16 + at.e % 16, ld = args->ldbcd;
    const float *bcd = args->bcd + at.t * ld, *a2 = args->a2 + base;
    const float *from = (at.t == 0 ? args->h_in : args->h_out) + base;
    float *h = args->h_out + base;
    uint32_t n = 0;
    for (; n + GROUP <= args->states; n += GROUP) {
        fetch(next, BLOCK / 8);
        group(bcd + n, ld, args->states, at, a2 + n * 16, from + n * 16, h + n * 16, GROUP, b);
    }
    for (; n < args->states; n++)
        group(bcd + n, ld, args->states, at, a2 + n * 16, from + n * 16, h + n * 16, 1, b);
}

static void finish(const bxn_scan_args *args, span at, const block *b)
{
    float *y = args->y + at.t * args->ldy + at.e;
    for (uint32_t i = at.row; i < at.row + at.tokens; i++, y += args->ldy) {
        __m256 v = _mm256_add_ps(_mm256_load_ps(b->sum[i]), _mm256_load_ps(b->skip[i]));
        _mm256_storeu_ps(y, _mm256_mul_ps(v, _mm256_load_ps(b->gate[i])));
    }
}

/* The least exponent per unit of dt of 8 channels; NaN when one is not finite, and for few
 * tokens, where looking costs more than it saves: then every step is taken as deep. */
static __m256 lowest_of(const bxn_scan_args *args, uint32_t e)
{
    const float *a2 = args->a2 + (size_t)(e / 16) * args->states * 16 + e % 16;
    __m256 lowest = _mm256_set1_ps(args->tokens < 4 ? NAN : 0.0f);
    __m256 finite = _mm256_setzero_ps();
    for (uint32_t n = 0; n < args->states && args->tokens >= 4; n++) {
        __m256 a = _mm256_loadu_ps(a2 + n * 16);
        lowest = _mm256_min_ps(lowest, a);
        finite = _mm256_fmadd_ps(a, _mm256_setzero_ps(), finite);
    }
    return _mm256_add_ps(lowest, finite);
}

/* Many tokens: strip by strip, 16 channels by 16, so that both halves use the lines fetched. */
static void scan_blocks(const bxn_scan_args *args, uint32_t e, block *b)
{
    const __m256 lowest[2] = {lowest_of(args, e), lowest_of(args, e + 8)};
    for (uint32_t t = 0; t < args->tokens; t += BLOCK) {
        uint32_t tokens = args->tokens - t < BLOCK ? args->tokens - t : BLOCK;
        ahead next = {0};
        if (t + tokens < args->tokens)
            next = rows_from(args, e, t + tokens);
        else if (e + 16 < args->end)
            next = rows_from(args, e + 16, 0);
        for (uint32_t half = 0; half < 2; half++) {
            const span at = {e + 8 * half, t, tokens, 0};
            prepare(args, at, lowest[half], b);
            recur(args, at, b, &next);
            finish(args, at, b);
        }
    }
}

/* Few tokens: a block holds several strips. */
static void scan_strips(const bxn_scan_args *args, uint32_t e, uint32_t strips, block *b)
{
    const uint32_t tokens = args->tokens;
    for (uint32_t s = 0; s < strips; s++)
        prepare(args, (span){e + 8 * s, 0, tokens, s * tokens}, lowest_of(args, e + 8 * s), b);
    for (uint32_t s = 0; s < strips; s++) {
        ahead next = {0};
        if (tokens > 1 && s % 2 == 0 && args->end - e > 8 * strips + 8 * s)
            next = rows_from(args, e + 8 * strips + 8 * s, 0);
        recur(args, (span){e + 8 * s, 0, tokens, s * tokens}, b, &next);
    }
    for (uint32_t s = 0; s < strips; s++)
        finish(args, (span){e + 8 * s, 0, tokens, s * tokens}, b);
}

void bxn_scan_avx2(const bxn_scan_args *args)
{
    _Alignas(32) block b;
    if (args->tokens == 0 && args->h_out != args->h_in) {
        const size_t first = (size_t)args->begin * args->states,
                     end = (size_t)args->end * args->states;
        memcpy(args->h_out + first, args->h_in + first, (end - first) * sizeof *args->h_in);
    }
    const uint32_t batch = args->tokens == 0 ? 2 : BLOCK / args->tokens;
    for (uint32_t e = args->begin; e < args->end; e += batch >= 2 ? 8 * batch : 16) {
        const uint32_t left = (args->end - e) / 8;
        if (batch >= 2)
            scan_strips(args, e, left < batch ? left : batch, &b);
        else
            scan_blocks(args, e, &b);
    }
}
#endif
