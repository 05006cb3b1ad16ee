/* SPDX-License-Identifier: Apache-2.0 */
/* state_backward_avx512.c - gradients of the selective scan and of the convolution before it, 16
 * channels in the lanes of a vector. Called through the kernel table by the state-space op in
 * training. A strip of 16 channels goes through a chunk in four loops: what does not depend on the
 * state, states forwards, gradients backwards, what follows from the sums over states; the
 * middle two by groups of states that stay in registers. Sums over channels are kept as lanes
 * until the last strip is done. */
#include <string.h>

#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx512.h"

#define CHUNK BXN_SCAN_CHUNK
#define GROUP 8 /* states */
#define AHEAD 8 /* tokens whose rows are fetched early */
#define LN2 0x1.62e43p-1f

/* Of one strip, a vector for each token. */
typedef struct strip {
    float dt[CHUNK][16];
    float u[CHUNK][16];     /* dt * x */
    float slope[CHUNK][16]; /* of dt by the argument of softplus; 0: clipped */
    float p[CHUNK][16];     /* gradient before the gate */
    float gate[CHUNK][16];  /* dz less the sum before the gate */
    float sum[CHUNK][16];   /* of C * h over the states */
    float du[CHUNK][16];
    float r[CHUNK][16];
} strip;

/* The scratch: the strip, lanes of ddt [CHUNK], then for each group of `count` states h
 * [CHUNK + 1][count] and lanes of dB and dC [CHUNK][count][2], all vectors. */
typedef struct room {
    strip *s;
    float (*ddt)[16];
    float *h, *sums;
} room;

static room room_of(const bxn_scan_backward_args *a)
{
    room m;
    m.s = (strip *)(void *)a->scratch;
    m.ddt = (float(*)[16])(void *)(m.s + 1);
    m.h = (float *)(void *)(m.ddt + CHUNK);
    m.sums = m.h + (size_t)(CHUNK + 1) * a->states * 16;
    return m;
}

BXN_INLINE __m512 sigmoid(__m512 v)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 limited = _mm512_min_ps(_mm512_set1_ps(200.0f), v); /* second operand when NaN */
    limited = _mm512_max_ps(_mm512_set1_ps(-200.0f), limited);
    __m512 e = exp_above(_mm512_xor_ps(limited, _mm512_set1_ps(-0.0f)));
    return _mm512_div_ps(one, _mm512_add_ps(one, e));
}

/* s * (1 + v * (1 - s)) */
BXN_INLINE __m512 silu_slope(__m512 v, __m512 s)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_mul_ps(s, _mm512_fmadd_ps(v, _mm512_sub_ps(one, s), one));
}

static void prepare(const bxn_scan_backward_args *a, uint32_t e, __mmask16 lanes, strip *s)
{
    const __m512 weight = _mm512_loadu_ps(a->dt_weight + e), bias = _mm512_loadu_ps(a->dt_bias + e);
    const __m512 low = _mm512_set1_ps(1e-4f), high = _mm512_set1_ps(100.0f);
    const float *raw = a->bcd + 2 * (size_t)a->states;
    for (uint32_t t = 0; t < a->tokens; t++) {
        if (t + AHEAD < a->tokens) { /* rows are pages apart */
            _mm_prefetch((const char *)(a->x + (t + AHEAD) * a->ldx + e), _MM_HINT_T0);
            _mm_prefetch((const char *)(a->z + (t + AHEAD) * a->ldz + e), _MM_HINT_T0);
            _mm_prefetch((const char *)(a->dy + (t + AHEAD) * a->lddy + e), _MM_HINT_T0);
            _mm_prefetch((const char *)(a->dz + (t + AHEAD) * a->lddz + e), _MM_HINT_T0);
        }
        __m512 x = _mm512_maskz_loadu_ps(lanes, a->x + t * a->ldx + e);
        __m512 z = _mm512_maskz_loadu_ps(lanes, a->z + t * a->ldz + e);
        __m512 g = _mm512_maskz_loadu_ps(lanes, a->dy + t * a->lddy + e);
        __m512 v = _mm512_fmadd_ps(_mm512_set1_ps(raw[t * a->ldbcd]), weight, bias);
        __m512 dt = softplus(v);
        __mmask16 within = _mm512_cmp_ps_mask(dt, low, _CMP_NLE_UQ) &
                           _mm512_cmp_ps_mask(dt, high, _CMP_NGE_UQ); /* and NaN */
        dt = _mm512_min_ps(high, _mm512_max_ps(low, dt)); /* NaN stays: second operand */
        __m512 gate = sigmoid(z);
        _mm512_store_ps(s->dt[t], dt);
        _mm512_store_ps(s->u[t], _mm512_mul_ps(dt, x));
        _mm512_store_ps(s->slope[t], _mm512_maskz_mov_ps(within, sigmoid(v)));
        _mm512_store_ps(s->p[t], _mm512_mul_ps(g, _mm512_mul_ps(z, gate)));
        _mm512_store_ps(s->gate[t], _mm512_mul_ps(g, silu_slope(z, gate)));
        _mm512_store_ps(s->sum[t], _mm512_setzero_ps());
        _mm512_store_ps(s->du[t], _mm512_setzero_ps());
        _mm512_store_ps(s->r[t], _mm512_setzero_ps());
    }
}

/* Where a group of `count` states from n on has its part of the vectors. */
typedef struct place {
    const float *bcd, *a2, *h_in;
    float *carry, *da_log; /* da_log may be NULL */
    float *h, *sums;
} place;

/* States forwards; count is a constant where it is called. */
BXN_INLINE void forwards(const bxn_scan_backward_args *a, place at, unsigned count, strip *s)
{
    __m512 state[GROUP];
    float *h = at.h;
    const float *b = at.bcd, *c = at.bcd + a->states;
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++) {
        state[n] = _mm512_loadu_ps(at.h_in + n * 16);
        _mm512_store_ps(h + n * 16, state[n]);
    }
    for (uint32_t t = 0; t < a->tokens; t++, b += a->ldbcd, c += a->ldbcd) {
        const __m512 dt = _mm512_load_ps(s->dt[t]), u = _mm512_load_ps(s->u[t]);
        __m512 sum[2] = {_mm512_load_ps(s->sum[t]), _mm512_setzero_ps()};
        h += count * 16;
        BXN_UNROLL
        for (unsigned n = 0; n < count; n++) {
            __m512 decay = exp2_nonpositive(_mm512_mul_ps(dt, _mm512_loadu_ps(at.a2 + n * 16)));
            __m512 added = _mm512_mul_ps(u, _mm512_set1_ps(b[n]));
            state[n] = _mm512_fmadd_ps(decay, state[n], added);
            _mm512_store_ps(h + n * 16, state[n]);
            sum[n & 1] = _mm512_fmadd_ps(_mm512_set1_ps(c[n]), state[n], sum[n & 1]);
        }
        _mm512_store_ps(s->sum[t], _mm512_add_ps(sum[0], sum[1]));
    }
}

/* Gradients backwards. The decay is computed again, which costs no more than keeping it. */
BXN_INLINE void backwards(const bxn_scan_backward_args *a, place at, unsigned count, bool rates,
                          strip *s)
{
    __m512 carry[GROUP], da[GROUP];
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++) {
        carry[n] = _mm512_loadu_ps(at.carry + n * 16);
        da[n] = rates ? _mm512_loadu_ps(at.da_log + n * 16) : _mm512_setzero_ps();
    }
    for (uint32_t t = a->tokens; t-- > 0;) {
        const __m512 dt = _mm512_load_ps(s->dt[t]), u = _mm512_load_ps(s->u[t]);
        const __m512 p = _mm512_load_ps(s->p[t]);
        const __m512 step = _mm512_mul_ps(dt, _mm512_set1_ps(LN2));
        const float *b = at.bcd + t * a->ldbcd, *c = b + a->states;
        const float *h = at.h + (size_t)t * count * 16;
        float *sums = at.sums + (size_t)t * count * 32;
        __m512 du = _mm512_load_ps(s->du[t]), r = _mm512_load_ps(s->r[t]);
        BXN_UNROLL
        for (unsigned n = 0; n < count; n++) {
            const __m512 a2 = _mm512_loadu_ps(at.a2 + n * 16);
            __m512 decay = exp2_nonpositive(_mm512_mul_ps(dt, a2));
            __m512 q = _mm512_fmadd_ps(_mm512_set1_ps(c[n]), p, carry[n]);
            __m512 db = _mm512_load_ps(sums + n * 32), dc = _mm512_load_ps(sums + n * 32 + 16);
            _mm512_store_ps(sums + n * 32, _mm512_fmadd_ps(q, u, db));
            dc = _mm512_fmadd_ps(p, _mm512_load_ps(h + (count + n) * 16), dc);
            _mm512_store_ps(sums + n * 32 + 16, dc);
            du = _mm512_fmadd_ps(q, _mm512_set1_ps(b[n]), du);
            carry[n] = _mm512_mul_ps(decay, q);
            __m512 rn = _mm512_mul_ps(_mm512_mul_ps(carry[n], _mm512_load_ps(h + n * 16)), a2);
            r = _mm512_add_ps(r, rn);
            if (rates)
                da[n] = _mm512_fmadd_ps(rn, step, da[n]);
        }
        _mm512_store_ps(s->du[t], du);
        _mm512_store_ps(s->r[t], r);
    }
    BXN_UNROLL
    for (unsigned n = 0; n < count; n++) {
        _mm512_storeu_ps(at.carry + n * 16, carry[n]);
        if (rates)
            _mm512_storeu_ps(at.da_log + n * 16, da[n]);
    }
}

BXN_INLINE void group(const bxn_scan_backward_args *a, uint32_t e, uint32_t n, unsigned count,
                      const room *m)
{
    const size_t base = ((size_t)(e / 16) * a->states + n) * 16;
    place at = {.bcd = a->bcd + n,
                .a2 = a->a2 + base,
                .h_in = a->h_in + base,
                .carry = a->carry + base,
                .da_log = a->da_log == NULL ? NULL : a->da_log + base,
                .h = m->h + (size_t)n * (CHUNK + 1) * 16,
                .sums = m->sums + (size_t)n * CHUNK * 32};
    forwards(a, at, count, m->s);
    if (at.da_log != NULL)
        backwards(a, at, count, true, m->s);
    else
        backwards(a, at, count, false, m->s);
}

static void add_lanes(float *at, __mmask16 lanes, __m512 v)
{
    if (at != NULL)
        _mm512_mask_storeu_ps(at, lanes, v);
}

static __m512 start(const float *at, __mmask16 lanes)
{
    return at == NULL ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes, at);
}

static void finish(const bxn_scan_backward_args *a, uint32_t e, __mmask16 lanes, const room *m)
{
    const strip *s = m->s;
    const __m512 d = _mm512_loadu_ps(a->d + e), weight = _mm512_loadu_ps(a->dt_weight + e);
    float *at[3] = {a->dd == NULL ? NULL : a->dd + e, a->ddt_weight == NULL ? NULL : a->ddt_weight + e,
                    a->ddt_bias == NULL ? NULL : a->ddt_bias + e};
    __m512 dd = start(at[0], lanes), dw = start(at[1], lanes), db = start(at[2], lanes);
    for (uint32_t t = a->tokens; t-- > 0;) {
        __m512 x = _mm512_maskz_loadu_ps(lanes, a->x + t * a->ldx + e);
        __m512 p = _mm512_load_ps(s->p[t]), du = _mm512_load_ps(s->du[t]);
        __m512 slope = _mm512_load_ps(s->slope[t]);
        __m512 whole = _mm512_fmadd_ps(d, x, _mm512_load_ps(s->sum[t]));
        __m512 dz = _mm512_mul_ps(_mm512_load_ps(s->gate[t]), whole);
        __m512 dx = _mm512_fmadd_ps(d, p, _mm512_mul_ps(_mm512_load_ps(s->dt[t]), du));
        __m512 dv = _mm512_fmadd_ps(_mm512_set1_ps(LN2), _mm512_load_ps(s->r[t]), _mm512_mul_ps(x, du));
        __mmask16 within = _mm512_cmp_ps_mask(slope, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        dv = _mm512_maskz_mul_ps(within, dv, slope);
        _mm512_mask_storeu_ps(a->dz + t * a->lddz + e, lanes, dz);
        _mm512_mask_storeu_ps(a->dx + t * a->lddx + e, lanes, dx);
        _mm512_store_ps(m->ddt[t], _mm512_fmadd_ps(dv, weight, _mm512_load_ps(m->ddt[t])));
        dd = _mm512_fmadd_ps(p, x, dd);
        dw = _mm512_fmadd_ps(dv, _mm512_set1_ps(a->bcd[t * a->ldbcd + 2 * (size_t)a->states]), dw);
        db = _mm512_add_ps(dv, db);
    }
    add_lanes(at[0], lanes, dd);
    add_lanes(at[1], lanes, dw);
    add_lanes(at[2], lanes, db);
}

/* Lane sums of a group's states become columns of dbcd. */
static void fold(const bxn_scan_backward_args *a, uint32_t n, unsigned count, const room *m)
{
    const float *sums = m->sums + (size_t)n * CHUNK * 32;
    for (uint32_t t = 0; t < a->tokens; t++) {
        float *out = a->dbcd + t * a->lddbcd + n;
        for (unsigned i = 0; i < count; i++, sums += 32) {
            out[i] = tree_sum(_mm512_load_ps(sums));
            out[a->states + i] = tree_sum(_mm512_load_ps(sums + 16));
        }
    }
}

void bxn_scan_backward_avx512(const bxn_scan_backward_args *args)
{
    const uint32_t states = args->states;
    const room m = room_of(args);
    memset(m.ddt, 0, CHUNK * sizeof *m.ddt);
    memset(m.sums, 0, (size_t)CHUNK * states * 32 * sizeof *m.sums);
    for (uint32_t e = args->begin; e < args->end; e += 16) {
        const uint32_t left = args->end - e;
        const __mmask16 lanes = left < 16 ? tail_mask(left) : (__mmask16)0xFFFF;
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
        args->dbcd[t * args->lddbcd + 2 * (size_t)states] = tree_sum(_mm512_load_ps(m.ddt[t]));
}

/* ---- convolution ------------------------------------------------------------------------ */

#define BLOCK 256 /* channels whose weights and sums stay in the first cache */

/* Rows of the token that comes `ahead` tokens later, which is before. */
BXN_INLINE void prefetch_rows(const bxn_conv_backward_args *a, uint32_t t, uint32_t e, uint32_t ahead)
{
    if (t >= ahead + (a->taps - 1)) {
        _mm_prefetch((const char *)(a->x + (t - ahead - (a->taps - 1)) * a->ldx + e), _MM_HINT_T0);
        _mm_prefetch((const char *)(a->dy + (t - ahead) * a->lddy + e), _MM_HINT_T0);
        _mm_prefetch((const char *)(a->dx + (t - ahead) * a->lddx + e), _MM_HINT_T0);
    }
}

static void conv_token(const bxn_conv_backward_args *a, uint32_t t, uint32_t e, __mmask16 lanes)
{
    const size_t before = a->taps - 1, first = t < before ? before - t : 0;
    const float *x = a->x + e, *w = a->weight + e;
    __m512 c = _mm512_loadu_ps(a->bias + e);
    for (size_t j = first; j < a->taps; j++)
        c = _mm512_fmadd_ps(_mm512_loadu_ps(w + j * a->e16),
                            _mm512_maskz_loadu_ps(lanes, x + (t + j - before) * a->ldx), c);
    __m512 dy = _mm512_maskz_loadu_ps(lanes, a->dy + t * a->lddy + e);
    __m512 dc = _mm512_mul_ps(dy, silu_slope(c, sigmoid(c)));
    if (a->dbias != NULL) {
        float *sum = a->dbias + e;
        _mm512_mask_storeu_ps(sum, lanes, _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, sum), dc));
        for (size_t j = first; j < a->taps; j++) {
            sum = a->dweight + j * a->e16 + e;
            __m512 p = _mm512_maskz_loadu_ps(lanes, x + (t + j - before) * a->ldx);
            p = _mm512_fmadd_ps(dc, p, _mm512_maskz_loadu_ps(lanes, sum));
            _mm512_mask_storeu_ps(sum, lanes, p);
        }
    }
    _mm512_mask_storeu_ps(a->dy + t * a->lddy + e, lanes, dc);
    __m512 dx = _mm512_setzero_ps();
    for (size_t j = 0; j < a->taps; j++) {
        const size_t row = t + before - j;
        if (row < a->tokens)
            dx = _mm512_fmadd_ps(_mm512_loadu_ps(w + j * a->e16),
                                 _mm512_maskz_loadu_ps(lanes, a->dy + row * a->lddy + e), dx);
    }
    _mm512_mask_storeu_ps(a->dx + t * a->lddx + e, lanes, dx);
}

void bxn_conv_backward_avx512(const bxn_conv_backward_args *args)
{
    for (uint32_t begin = args->begin; begin < args->end; begin += BLOCK) {
        const uint32_t end = args->end - begin < BLOCK ? args->end : begin + BLOCK;
        const uint32_t ahead = 2 + BLOCK / (end - begin); /* as many channels ahead, however wide a row is */
        for (uint32_t t = args->tokens; t-- > 0;) {
            for (uint32_t e = begin; e < end; e += 16) {
                prefetch_rows(args, t, e, ahead);
                conv_token(args, t, e, end - e < 16 ? tail_mask(end - e) : (__mmask16)0xFFFF);
            }
        }
    }
}
#endif
