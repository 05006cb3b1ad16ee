/* SPDX-License-Identifier: Apache-2.0 */
/* scan_avx2.c - the selective scan of Mamba-1 with 8 channels in the lanes of a vector.
 * Called through the kernel table by the state-space op. There are too few registers for
 * the states, which live in the output state, in the first cache. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx2.h"

/* Channels [e, e + 8); states is a constant where the caller has one. */
BXN_INLINE void scan_strip(const bxn_scan_args *args, uint32_t e, uint32_t states)
{
    const size_t base = (size_t)(e / 16) * states * 16 + e % 16;
    const float *a2 = args->a2 + base;
    float *h = args->h_out + base;
    const __m256 dt_weight = _mm256_loadu_ps(args->dt_weight + e);
    const __m256 dt_bias = _mm256_loadu_ps(args->dt_bias + e);
    const __m256 skip = _mm256_loadu_ps(args->d + e);
    for (size_t i = 0; i < (size_t)states * 16; i += 16)
        _mm256_storeu_ps(h + i, _mm256_loadu_ps(args->h_in + base + i));
    for (uint32_t t = 0; t < args->tokens; t++) {
        const float *bcd = args->bcd + t * args->ldbcd;
        __m256 x = _mm256_loadu_ps(args->x + t * args->ldx + e);
        __m256 z = _mm256_loadu_ps(args->z + t * args->ldz + e);
        __m256 raw = _mm256_set1_ps(bcd[2 * states]);
        __m256 dt = softplus(_mm256_fmadd_ps(raw, dt_weight, dt_bias));
        dt = _mm256_max_ps(_mm256_set1_ps(1e-4f), dt); /* NaN stays: it is the second operand */
        dt = _mm256_min_ps(_mm256_set1_ps(100.0f), dt);
        __m256 u = _mm256_mul_ps(dt, x), sum = _mm256_setzero_ps();
        for (uint32_t n = 0; n < states; n++) {
            __m256 decay = exp2_nonpositive(_mm256_mul_ps(dt, _mm256_loadu_ps(a2 + n * 16)));
            __m256 hn = _mm256_fmadd_ps(decay, _mm256_loadu_ps(h + n * 16),
                                        _mm256_mul_ps(u, _mm256_set1_ps(bcd[n])));
            _mm256_storeu_ps(h + n * 16, hn);
            sum = _mm256_fmadd_ps(_mm256_set1_ps(bcd[states + n]), hn, sum);
        }
        __m256 y = _mm256_fmadd_ps(skip, x, sum);
        _mm256_storeu_ps(args->y + t * args->ldy + e,
                         _mm256_mul_ps(y, _mm256_mul_ps(z, sigmoid(z))));
    }
}

void bxn_scan_avx2(const bxn_scan_args *args)
{
    for (uint32_t e = args->begin; e < args->end; e += 8) {
        if (args->states == 16)
            scan_strip(args, e, 16);
        else
            scan_strip(args, e, args->states);
    }
}
#endif
