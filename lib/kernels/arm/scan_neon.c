/* SPDX-License-Identifier: Apache-2.0 */
/* scan_neon.c - the selective scan of Mamba-1 with 4 channels in the lanes of a vector.
 * Called through the kernel table by the state-space op. 16 states of 4 channels are half of
 * the registers and stay there over all tokens; other counts live in the output state. Both
 * do the same operations. */
#include <math.h>

#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/vec_neon.h"

/* What a strip of 4 channels needs at every token. */
typedef struct strip {
    float32x4_t dt_weight, dt_bias, d;
} strip;

BXN_INLINE strip make_strip(const bxn_scan_args *args, uint32_t e)
{
    strip s = {vld1q_f32(args->dt_weight + e), vld1q_f32(args->dt_bias + e),
               vld1q_f32(args->d + e)};
    return s;
}

BXN_INLINE float32x4_t step_size(const strip *s, float raw)
{
    float32x4_t dt = softplus(vfmaq_f32(s->dt_bias, vdupq_n_f32(raw), s->dt_weight));
    dt = vmaxq_f32(vdupq_n_f32(1e-4f), dt); /* NaN stays */
    return vminq_f32(vdupq_n_f32(100.0f), dt);
}

/* 2^(dt * a2): split at the nearest integer n, which the low bits of 1.5 * 2^23 + n show, and a
 * polynomial of degree 5 with p(0) = 1; the product is not rounded. Where no exponent is below
 * -125, n is added to the exponent of p; deep: n stops at -127, which counts as 0. The bits
 * are the same where both are right, and those of the AVX2 tier. */
BXN_INLINE float32x4_t decay_of(float32x4_t dt, float32x4_t a2, int deep)
{
    const float32x4_t magic = vdupq_n_f32(12582912.0f);
    float32x4_t z = vfmaq_f32(magic, dt, a2);
    if (deep) /* NaN stays */
        z = vmaxq_f32(vdupq_n_f32(12582912.0f - 127.0f), z);
    float32x4_t f = vfmaq_f32(vsubq_f32(magic, z), dt, a2);
    if (deep)
        f = vmaxq_f32(vdupq_n_f32(-0.5f), f);
    float32x4_t p = vdupq_n_f32(0x1.5bda58p-10f);
    p = vfmaq_f32(vdupq_n_f32(0x1.3ce8aep-7f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0x1.c6b6d8p-5f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0x1.ebf9c2p-3f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0x1.62e42ap-1f), p, f);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, f);
    int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(z), 23);
    if (!deep)
        return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
    exponent = vaddq_s32(exponent, vdupq_n_s32(127 << 23));
    return vmulq_f32(p, vreinterpretq_f32_s32(exponent));
}

BXN_INLINE float32x4_t update(float32x4_t h, float32x4_t dt, float32x4_t a2, float32x4_t u, float b,
                              int deep)
{
    return vfmaq_f32(vmulq_n_f32(u, b), decay_of(dt, a2, deep), h);
}

BXN_INLINE float32x4_t gated(const strip *s, float32x4_t sum, float32x4_t x, float32x4_t z)
{
    return vmulq_f32(vaddq_f32(sum, vmulq_f32(s->d, x)), vmulq_f32(z, sigmoid(z)));
}

/* Whether an exponent may be below -125 or not a number. */
BXN_INLINE int is_deep(float32x4_t dt, float32x4_t lowest)
{
    return !(vminvq_f32(vmulq_f32(dt, lowest)) >= -125.0f);
}

/* The least of a2 of the strip; NaN when one is not finite, and for few tokens, where looking
 * costs more than it saves: then every step is taken as deep. */
static float32x4_t lowest_of(const bxn_scan_args *args, const float *a2)
{
    if (args->tokens < 4)
        return vdupq_n_f32(NAN);
    float32x4_t lowest = vdupq_n_f32(0.0f), finite = lowest;
    for (uint32_t n = 0; n < args->states; n++) {
        float32x4_t a = vld1q_f32(a2 + n * 16);
        lowest = vminq_f32(lowest, a);
        finite = vfmaq_n_f32(finite, a, 0.0f);
    }
    return vaddq_f32(lowest, finite);
}

/* One token of 16 states: returns C * h. */
BXN_INLINE float32x4_t step16(float32x4_t h[16], const float *a2, const float *bcd, float32x4_t dt,
                              float32x4_t u, int deep)
{
    float32x4_t sum = vdupq_n_f32(0.0f);
    BXN_UNROLL
    for (unsigned n = 0; n < 16; n++) {
        h[n] = update(h[n], dt, vld1q_f32(a2 + n * 16), u, bcd[n], deep);
        sum = vfmaq_n_f32(sum, h[n], bcd[16 + n]);
    }
    return sum;
}

static void scan16(const bxn_scan_args *args, uint32_t e)
{
    const strip s = make_strip(args, e);
    const size_t base = (size_t)(e / 16) * 256 + e % 16;
    const float *a2 = args->a2 + base;
    const float32x4_t lowest = lowest_of(args, a2);
    float32x4_t h[16];
    BXN_UNROLL
    for (unsigned n = 0; n < 16; n++)
        h[n] = vld1q_f32(args->h_in + base + n * 16);
    for (uint32_t t = 0; t < args->tokens; t++) {
        const float *bcd = args->bcd + t * args->ldbcd;
        float32x4_t x = vld1q_f32(args->x + t * args->ldx + e);
        float32x4_t z = vld1q_f32(args->z + t * args->ldz + e);
        float32x4_t dt = step_size(&s, bcd[32]), u = vmulq_f32(dt, x);
        float32x4_t sum = is_deep(dt, lowest) ? step16(h, a2, bcd, dt, u, 1)
                                              : step16(h, a2, bcd, dt, u, 0);
        vst1q_f32(args->y + t * args->ldy + e, gated(&s, sum, x, z));
    }
    BXN_UNROLL
    for (unsigned n = 0; n < 16; n++)
        vst1q_f32(args->h_out + base + n * 16, h[n]);
}

static void scan_any(const bxn_scan_args *args, uint32_t e)
{
    const strip s = make_strip(args, e);
    const uint32_t states = args->states;
    const size_t base = (size_t)(e / 16) * states * 16 + e % 16;
    const float *a2 = args->a2 + base;
    float *h = args->h_out + base;
    for (size_t n = 0; n < states; n++)
        vst1q_f32(h + n * 16, vld1q_f32(args->h_in + base + n * 16));
    for (uint32_t t = 0; t < args->tokens; t++) {
        const float *bcd = args->bcd + t * args->ldbcd;
        float32x4_t x = vld1q_f32(args->x + t * args->ldx + e);
        float32x4_t z = vld1q_f32(args->z + t * args->ldz + e);
        float32x4_t dt = step_size(&s, bcd[2 * states]);
        float32x4_t u = vmulq_f32(dt, x), sum = vdupq_n_f32(0.0f);
        for (uint32_t n = 0; n < states; n++) {
            float32x4_t hn =
                update(vld1q_f32(h + n * 16), dt, vld1q_f32(a2 + n * 16), u, bcd[n], 1);
            vst1q_f32(h + n * 16, hn);
            sum = vfmaq_n_f32(sum, hn, bcd[states + n]);
        }
        vst1q_f32(args->y + t * args->ldy + e, gated(&s, sum, x, z));
    }
}

void bxn_scan_neon(const bxn_scan_args *args)
{
    for (uint32_t e = args->begin; e < args->end; e += 4) {
        if (args->states == 16)
            scan16(args, e);
        else
            scan_any(args, e);
    }
}
#endif
