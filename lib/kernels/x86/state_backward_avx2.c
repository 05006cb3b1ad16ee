/* SPDX-License-Identifier: Apache-2.0 */
/* state_backward_avx2.c - gradients of the selective scan and of the convolution before it, 8
 * channels in the lanes of a vector. Called through the kernel table by the state-space op in
 * training. A strip of 8 channels goes through a chunk in four loops: what does not depend on the
 * state, states forwards, gradients backwards, what follows from the sums over states; the
 * middle two by groups of states that stay in registers. Sums over channels are kept as lanes
 * until the last strip is done. */
#include <string.h>

#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx2.h"

#define CHUNK BXN_SCAN_CHUNK
#define GROUP 4 /* states */
#define LN2 0x1.62e43p-1f

/* Of one strip, a vector for each token. */
typedef struct strip {
    float dt[CHUNK][8];
    float u[CHUNK][8];     /* dt * x */
    float slope[CHUNK][8]; /* of dt by the argument of softplus; 0: clipped */
    float p[CHUNK][8];     /* gradient before the gate */
    float gate[CHUNK][8];  /* dz less the sum before the gate */
    float sum[CHUNK][8];   /* of C * h over the states */
    float du[CHUNK][8];
    float r[CHUNK][8];
    bool deep[CHUNK]; /* an exponent may be below -125 or not a number */
} strip;

/* The scratch: the strip, lanes of ddt [CHUNK], then for each group of `count` states h
 * [CHUNK + 1][count] and lanes of dB and dC [CHUNK][count][2], all vectors. */
typedef struct room {
    strip *s;
    float (*ddt)[8];
    float *h, *sums;
} room;

_Static_assert(sizeof(strip) + CHUNK * 8 * sizeof(float) <= (size_t)16 * 9 * CHUNK * sizeof(float),
               "half the vectors of bxn_scan_backward_floats leave room for the flags");

static room room_of(const bxn_scan_backward_args *a)
{
    room m;
    m.h = a->scratch;
    m.sums = m.h + (size_t)(CHUNK + 1) * a->states * 8;
    m.ddt = (float(*)[8])(void *)(m.sums + (size_t)CHUNK * a->states * 16);
    m.s = (strip *)(void *)(m.ddt + CHUNK);
    return m;
}

/* s * (1 + v * (1 - s)) */
BXN_INLINE __m256 silu_slope(__m256 v, __m256 s)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_mul_ps(s, _mm256_fmadd_ps(v, _mm256_sub_ps(one, s), one));
}

/* The least exponent per unit of dt; NaN when one is not finite. */
static __m256 lowest_of(const bxn_scan_backward_args *a, uint32_t e)
{
    const float *a2 = a->a2 + (size_t)(e / 16) * a->states * 16 + e % 16;
    __m256 lowest = _mm256_setzero_ps(), finite = lowest;
    for (uint32_t n = 0; n < a->states; n++) {
        __m256 v = _mm256_loadu_ps(a2 + n * 16);
        lowest = _mm256_min_ps(lowest, v);
        finite = _mm256_fmadd_ps(v, _mm256_setzero_ps(), finite);
    }
    return _mm256_add_ps(lowest, finite);
}

static void prepare(const bxn_scan_backward_args *a, uint32_t e, uint32_t lanes, strip *s)
{
    const __m256 weight = _mm256_loadu_ps(a->dt_weight + e), bias = _mm256_loadu_ps(a->dt_bias + e);
    const __m256 low = _mm256_set1_ps(1e-4f), high = _mm256_set1_ps(100.0f);
    const __m256 lowest = lowest_of(a, e);
    const float *raw = a->bcd + 2 * (size_t)a->states;
    for (uint32_t t = 0; t < a->tokens; t++) {
        __m256 x = load_first(a->x + t * a->ldx + e, lanes);
        __m256 z = load_first(a->z + t * a->ldz + e, lanes);
        __m256 g = load_first(a->dy + t * a->lddy + e, lanes);
        __m256 v = _mm256_fmadd_ps(_mm256_set1_ps(raw[t * a->ldbcd]), weight, bias);
        __m256 dt = softplus(v);
        __m256 within = _mm256_and_ps(_mm256_cmp_ps(dt, low, _CMP_NLE_UQ),
                                      _mm256_cmp_ps(dt, high, _CMP_NGE_UQ)); /* and NaN */
        dt = _mm256_min_ps(high, _mm256_max_ps(low, dt)); /* NaN stays: second operand */
        __m256 shallow =
            _mm256_cmp_ps(_mm256_mul_ps(dt, lowest), _mm256_set1_ps(-125.0f), _CMP_GE_OQ);
        s->deep[t] = _mm256_movemask_ps(shallow) != 0xFF;
        __m256 gate = sigmoid(z);
        _mm256_store_ps(s->dt[t], dt);
        _mm256_store_ps(s->u[t], _mm256_mul_ps(dt, x));
        _mm256_store_ps(s->slope[t], _mm256_and_ps(within, sigmoid(v)));
        _mm256_store_ps(s->p[t], _mm256_mul_ps(g, _mm256_mul_ps(z, gate)));
        _mm256_store_ps(s->gate[t], _mm256_mul_ps(g, silu_slope(z, gate)));
        _mm256_store_ps(s->sum[t], _mm256_setzero_ps());
        _mm256_store_ps(s->du[t], _mm256_setzero_ps());
        _mm256_store_ps(s->r[t], _mm256_setzero_ps());
    }
}

/* Where a group of `count` states from n on has its part of the vectors. */
typedef struct place {
    const float *bcd, *a2, *h_in;
    float *carry, *da_log; /* da_log may be NULL */
    float *h, *sums;
} place;

BXN_INLINE void step_forwards(const bxn_scan_backward_args *a, place at, unsigned count, uint32_t t,
                              bool deep, __m256 *state, strip *s)
{
    const __m256 dt = _mm256_load_ps(s->dt[t]), u = _mm256_load_ps(s->u[t]);
    const float *b = at.bcd + t * a->ldbcd, *c = b + a->states;
    float *h = at.h + (t + 1) * (size_t)count * 8;
    __m256 sum = _mm256_load_ps(s->sum[t]);
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++) {
        __m256 decay = decay_of(dt, _mm256_loadu_ps(at.a2 + n * 16), deep);
        __m256 added = _mm256_mul_ps(u, _mm256_set1_ps(b[n]));
        state[n] = _mm256_fmadd_ps(decay, state[n], added);
        _mm256_store_ps(h + n * 8, state[n]);
        sum = _mm256_fmadd_ps(_mm256_set1_ps(c[n]), state[n], sum);
    }
    _mm256_store_ps(s->sum[t], sum);
}

/* States forwards; count is a constant where it is called. */
BXN_INLINE void forwards(const bxn_scan_backward_args *a, place at, unsigned count, strip *s)
{
    __m256 state[GROUP];
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++) {
        state[n] = _mm256_loadu_ps(at.h_in + n * 16);
        _mm256_store_ps(at.h + n * 8, state[n]);
    }
    for (uint32_t t = 0; t < a->tokens; t++) {
        if (s->deep[t])
            step_forwards(a, at, count, t, true, state, s);
        else
            step_forwards(a, at, count, t, false, state, s);
    }
}

BXN_INLINE void step_backwards(const bxn_scan_backward_args *a, place at, unsigned count,
                               bool rates, uint32_t t, bool deep, __m256 *carry, __m256 *da,
                               strip *s)
{
    const __m256 dt = _mm256_load_ps(s->dt[t]), u = _mm256_load_ps(s->u[t]);
    const __m256 p = _mm256_load_ps(s->p[t]);
    const __m256 step = _mm256_mul_ps(dt, _mm256_set1_ps(LN2));
    const float *b = at.bcd + t * a->ldbcd, *c = b + a->states;
    const float *h = at.h + (size_t)t * count * 8;
    float *sums = at.sums + (size_t)t * count * 16;
    __m256 du = _mm256_load_ps(s->du[t]), r = _mm256_load_ps(s->r[t]);
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++) {
        const __m256 a2 = _mm256_loadu_ps(at.a2 + n * 16);
        __m256 decay = decay_of(dt, a2, deep);
        __m256 q = _mm256_fmadd_ps(_mm256_set1_ps(c[n]), p, carry[n]);
        __m256 db = _mm256_load_ps(sums + n * 16), dc = _mm256_load_ps(sums + n * 16 + 8);
        _mm256_store_ps(sums + n * 16, _mm256_fmadd_ps(q, u, db));
        dc = _mm256_fmadd_ps(p, _mm256_load_ps(h + (count + n) * 8), dc);
        _mm256_store_ps(sums + n * 16 + 8, dc);
        du = _mm256_fmadd_ps(q, _mm256_set1_ps(b[n]), du);
        carry[n] = _mm256_mul_ps(decay, q);
        __m256 rn = _mm256_mul_ps(_mm256_mul_ps(carry[n], _mm256_load_ps(h + n * 8)), a2);
        r = _mm256_add_ps(r, rn);
        if (rates)
            da[n] = _mm256_fmadd_ps(rn, step, da[n]);
    }
    _mm256_store_ps(s->du[t], du);
    _mm256_store_ps(s->r[t], r);
}

/* Gradients backwards. The decay is computed again, which costs no more than keeping it. */
BXN_INLINE void backwards(const bxn_scan_backward_args *a, place at, unsigned count, bool rates,
                          strip *s)
{
    __m256 carry[GROUP], da[GROUP];
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++) {
        carry[n] = _mm256_loadu_ps(at.carry + n * 16);
        da[n] = rates ? _mm256_loadu_ps(at.da_log + n * 16) : _mm256_setzero_ps();
    }
    for (uint32_t t = a->tokens; t-- > 0;) {
        if (s->deep[t])
            step_backwards(a, at, count, rates, t, true, carry, da, s);
        else
            step_backwards(a, at, count, rates, t, false, carry, da, s);
    }
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++) {
        _mm256_storeu_ps(at.carry + n * 16, carry[n]);
        if (rates)
            _mm256_storeu_ps(at.da_log + n * 16, da[n]);
    }
}

BXN_INLINE void group(const bxn_scan_backward_args *a, uint32_t e, uint32_t n, unsigned count,
                      const room *m)
{
    const size_t base = ((size_t)(e / 16) * a->states + n) * 16 + e % 16;
    place at = {.bcd = a->bcd + n,
                .a2 = a->a2 + base,
                .h_in = a->h_in + base,
                .carry = a->carry + base,
                .da_log = a->da_log == NULL ? NULL : a->da_log + base,
                .h = m->h + (size_t)n * (CHUNK + 1) * 8,
                .sums = m->sums + (size_t)n * CHUNK * 16};
    forwards(a, at, count, m->s);
    if (at.da_log != NULL)
        backwards(a, at, count, true, m->s);
    else
        backwards(a, at, count, false, m->s);
}

static void finish(const bxn_scan_backward_args *a, uint32_t e, uint32_t lanes, const room *m)
{
    const strip *s = m->s;
    const __m256 d = _mm256_loadu_ps(a->d + e), weight = _mm256_loadu_ps(a->dt_weight + e);
    float *const out[3] = {a->dd, a->ddt_weight, a->ddt_bias};
    __m256 sum[3];
    for (int i = 0; i < 3; i++)
        sum[i] = out[i] == NULL ? _mm256_setzero_ps() : load_first(out[i] + e, lanes);
    for (uint32_t t = a->tokens; t-- > 0;) {
        __m256 x = load_first(a->x + t * a->ldx + e, lanes);
        __m256 raw = _mm256_set1_ps(a->bcd[t * a->ldbcd + 2 * (size_t)a->states]);
        __m256 p = _mm256_load_ps(s->p[t]), du = _mm256_load_ps(s->du[t]);
        __m256 slope = _mm256_load_ps(s->slope[t]);
        __m256 whole = _mm256_fmadd_ps(d, x, _mm256_load_ps(s->sum[t]));
        __m256 dz = _mm256_mul_ps(_mm256_load_ps(s->gate[t]), whole);
        __m256 dx = _mm256_fmadd_ps(d, p, _mm256_mul_ps(_mm256_load_ps(s->dt[t]), du));
        __m256 dv =
            _mm256_fmadd_ps(_mm256_set1_ps(LN2), _mm256_load_ps(s->r[t]), _mm256_mul_ps(x, du));
        __m256 within = _mm256_cmp_ps(slope, _mm256_setzero_ps(), _CMP_NEQ_UQ);
        dv = _mm256_and_ps(within, _mm256_mul_ps(dv, slope));
        store_first(a->dz + t * a->lddz + e, lanes, dz);
        store_first(a->dx + t * a->lddx + e, lanes, dx);
        _mm256_store_ps(m->ddt[t], _mm256_fmadd_ps(dv, weight, _mm256_load_ps(m->ddt[t])));
        sum[0] = _mm256_fmadd_ps(p, x, sum[0]);
        sum[1] = _mm256_fmadd_ps(dv, raw, sum[1]);
        sum[2] = _mm256_add_ps(dv, sum[2]);
    }
    for (int i = 0; i < 3; i++)
        if (out[i] != NULL)
            store_first(out[i] + e, lanes, sum[i]);
}

static float lane_sum(const float *lanes)
{
    return tree_sum(_mm256_load_ps(lanes), _mm256_setzero_ps());
}

/* Lane sums of a group's states become columns of dbcd. */
static void fold(const bxn_scan_backward_args *a, uint32_t n, unsigned count, const room *m)
{
    const float *sums = m->sums + (size_t)n * CHUNK * 16;
    for (uint32_t t = 0; t < a->tokens; t++) {
        float *out = a->dbcd + t * a->lddbcd + n;
        for (unsigned i = 0; i < count; i++, sums += 16) {
            out[i] = lane_sum(sums);
            out[a->states + i] = lane_sum(sums + 8);
        }
    }
}

void bxn_scan_backward_avx2(const bxn_scan_backward_args *args)
{
    const uint32_t states = args->states;
    const room m = room_of(args);
    memset(m.ddt, 0, CHUNK * sizeof *m.ddt);
    memset(m.sums, 0, (size_t)CHUNK * states * 16 * sizeof *m.sums);
    for (uint32_t e = args->begin; e < args->end; e += 8) {
        const uint32_t left = args->end - e, lanes = left < 8 ? left : 8;
        uint32_t n = 0;
        prepare(args, e, lanes, m.s);
        for (; n + GROUP <= states; n += GROUP)
            group(args, e, n, GROUP, &m);
        for (; n < states; n++)
            group(args, e, n, 1, &m);
        finish(args, e, lanes, &m);
    }
    for (uint32_t n = 0; n < states;) {
        unsigned count = n + GROUP <= states ? GROUP : 1;
        fold(args, n, count, &m);
        n += count;
    }
    for (uint32_t t = 0; t < args->tokens; t++)
        args->dbcd[t * args->lddbcd + 2 * (size_t)states] = lane_sum(m.ddt[t]);
}

/* ---- convolution ------------------------------------------------------------------------ */

#define BLOCK 256 /* channels whose weights and sums stay in the first cache */

static void conv_token(const bxn_conv_backward_args *a, uint32_t t, uint32_t e, uint32_t lanes)
{
    const size_t before = a->taps - 1, first = t < before ? before - t : 0;
    const float *x = a->x + e, *w = a->weight + e;
    __m256 c = _mm256_loadu_ps(a->bias + e);
    for (size_t j = first; j < a->taps; j++)
        c = _mm256_fmadd_ps(_mm256_loadu_ps(w + j * a->e16),
                            load_first(x + (t + j - before) * a->ldx, lanes), c);
    __m256 dy = load_first(a->dy + t * a->lddy + e, lanes);
    __m256 dc = _mm256_mul_ps(dy, silu_slope(c, sigmoid(c)));
    if (a->dbias != NULL) {
        float *sum = a->dbias + e;
        store_first(sum, lanes, _mm256_add_ps(load_first(sum, lanes), dc));
        for (size_t j = first; j < a->taps; j++) {
            sum = a->dweight + j * a->e16 + e;
            __m256 p = load_first(x + (t + j - before) * a->ldx, lanes);
            store_first(sum, lanes, _mm256_fmadd_ps(dc, p, load_first(sum, lanes)));
        }
    }
    store_first(a->dy + t * a->lddy + e, lanes, dc);
    __m256 dx = _mm256_setzero_ps();
    for (size_t j = 0; j < a->taps; j++) {
        const size_t row = t + before - j;
        if (row < a->tokens)
            dx = _mm256_fmadd_ps(_mm256_loadu_ps(w + j * a->e16),
                                 load_first(a->dy + row * a->lddy + e, lanes), dx);
    }
    store_first(a->dx + t * a->lddx + e, lanes, dx);
}

void bxn_conv_backward_avx2(const bxn_conv_backward_args *args)
{
    for (uint32_t begin = args->begin; begin < args->end; begin += BLOCK) {
        const uint32_t end = args->end - begin < BLOCK ? args->end : begin + BLOCK;
        for (uint32_t t = args->tokens; t-- > 0;)
            for (uint32_t e = begin; e < end; e += 8)
                conv_token(args, t, e, end - e < 8 ? end - e : 8);
    }
}
#endif
