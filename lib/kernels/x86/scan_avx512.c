/* SPDX-License-Identifier: Apache-2.0 */
/* scan_avx512.c - the selective scan of Mamba-1 with 16 channels in the lanes of a vector.
 * Called through the kernel table by the state-space op. 16 states stay in registers over
 * all tokens; other counts live in the output state. Both do the same operations. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx512.h"

/* What a strip of 16 channels needs at every token. */
typedef struct strip {
    __m512 dt_weight, dt_bias, d;
} strip;

BXN_INLINE strip make_strip(const bxn_scan_args *args, uint32_t e)
{
    strip s = {_mm512_loadu_ps(args->dt_weight + e), _mm512_loadu_ps(args->dt_bias + e),
               _mm512_loadu_ps(args->d + e)};
    return s;
}

BXN_INLINE __m512 step_size(const strip *s, float raw)
{
    __m512 dt = softplus(_mm512_fmadd_ps(_mm512_set1_ps(raw), s->dt_weight, s->dt_bias));
    dt = _mm512_max_ps(_mm512_set1_ps(1e-4f), dt); /* NaN stays: it is the second operand */
    return _mm512_min_ps(_mm512_set1_ps(100.0f), dt);
}

BXN_INLINE __m512 update(__m512 h, __m512 dt, __m512 a2, __m512 u, float b)
{
    __m512 decay = exp2_nonpositive(_mm512_mul_ps(dt, a2));
    return _mm512_fmadd_ps(decay, h, _mm512_mul_ps(u, _mm512_set1_ps(b)));
}

BXN_INLINE __m512 gated(const strip *s, __m512 sum, __m512 x, __m512 z)
{
    return _mm512_mul_ps(_mm512_fmadd_ps(s->d, x, sum), _mm512_mul_ps(z, sigmoid(z)));
}

static void scan16(const bxn_scan_args *args, uint32_t e)
{
    const strip s = make_strip(args, e);
    const size_t base = (size_t)(e / 16) * 256;
    const float *a2 = args->a2 + base;
    __m512 h[16];
    BXN_UNROLL
    for (unsigned n = 0; n < 16; n++)
        h[n] = _mm512_loadu_ps(args->h_in + base + n * 16);
    for (uint32_t t = 0; t < args->tokens; t++) {
        const float *bcd = args->bcd + t * args->ldbcd;
        _mm_prefetch((const char *)(args->x + (t + 4) * args->ldx + e), _MM_HINT_T0);
        _mm_prefetch((const char *)(args->z + (t + 4) * args->ldz + e), _MM_HINT_T0);
        __m512 x = _mm512_loadu_ps(args->x + t * args->ldx + e);
        __m512 z = _mm512_loadu_ps(args->z + t * args->ldz + e);
        __m512 dt = step_size(&s, bcd[32]);
        __m512 u = _mm512_mul_ps(dt, x), sum = _mm512_setzero_ps();
        BXN_UNROLL
        for (unsigned n = 0; n < 16; n++) {
            h[n] = update(h[n], dt, _mm512_loadu_ps(a2 + n * 16), u, bcd[n]);
            sum = _mm512_fmadd_ps(_mm512_set1_ps(bcd[16 + n]), h[n], sum);
        }
        _mm512_storeu_ps(args->y + t * args->ldy + e, gated(&s, sum, x, z));
    }
    BXN_UNROLL
    for (unsigned n = 0; n < 16; n++)
        _mm512_storeu_ps(args->h_out + base + n * 16, h[n]);
}

static void scan_any(const bxn_scan_args *args, uint32_t e)
{
    const strip s = make_strip(args, e);
    const uint32_t states = args->states;
    const size_t base = (size_t)(e / 16) * states * 16;
    const float *a2 = args->a2 + base;
    float *h = args->h_out + base;
    for (size_t i = 0; i < (size_t)states * 16; i += 16)
        _mm512_storeu_ps(h + i, _mm512_loadu_ps(args->h_in + base + i));
    for (uint32_t t = 0; t < args->tokens; t++) {
        const float *bcd = args->bcd + t * args->ldbcd;
        __m512 x = _mm512_loadu_ps(args->x + t * args->ldx + e);
        __m512 z = _mm512_loadu_ps(args->z + t * args->ldz + e);
        __m512 dt = step_size(&s, bcd[2 * states]);
        __m512 u = _mm512_mul_ps(dt, x), sum = _mm512_setzero_ps();
        for (uint32_t n = 0; n < states; n++) {
            __m512 hn =
                update(_mm512_loadu_ps(h + n * 16), dt, _mm512_loadu_ps(a2 + n * 16), u, bcd[n]);
            _mm512_storeu_ps(h + n * 16, hn);
            sum = _mm512_fmadd_ps(_mm512_set1_ps(bcd[states + n]), hn, sum);
        }
        _mm512_storeu_ps(args->y + t * args->ldy + e, gated(&s, sum, x, z));
    }
}

void bxn_scan_avx512(const bxn_scan_args *args)
{
    for (uint32_t e = args->begin; e < args->end; e += 16) {
        if (args->states == 16)
            scan16(args, e);
        else
            scan_any(args, e);
    }
}
#endif
