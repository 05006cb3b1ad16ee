/* SPDX-License-Identifier: Apache-2.0 */
/* scan_neon.c - the selective scan of Mamba-1 with 4 channels in the lanes of a vector.
 * Called through the kernel table by the state-space op. 16 states of 4 channels are half of
 * the registers and stay there over all tokens; other counts live in the output state. Both
 * do the same operations. */
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

BXN_INLINE float32x4_t update(float32x4_t h, float32x4_t dt, float32x4_t a2, float32x4_t u, float b)
{
    float32x4_t decay = exp2_nonpositive(vmulq_f32(dt, a2));
    return vfmaq_f32(vmulq_n_f32(u, b), decay, h);
}

BXN_INLINE float32x4_t gated(const strip *s, float32x4_t sum, float32x4_t x, float32x4_t z)
{
    return vmulq_f32(vfmaq_f32(sum, s->d, x), vmulq_f32(z, sigmoid(z)));
}

static void scan16(const bxn_scan_args *args, uint32_t e)
{
    const strip s = make_strip(args, e);
    const size_t base = (size_t)(e / 16) * 256 + e % 16;
    const float *a2 = args->a2 + base;
    float32x4_t h[16];
    BXN_UNROLL
    for (unsigned n = 0; n < 16; n++)
        h[n] = vld1q_f32(args->h_in + base + n * 16);
    for (uint32_t t = 0; t < args->tokens; t++) {
        const float *bcd = args->bcd + t * args->ldbcd;
        float32x4_t x = vld1q_f32(args->x + t * args->ldx + e);
        float32x4_t z = vld1q_f32(args->z + t * args->ldz + e);
        float32x4_t dt = step_size(&s, bcd[32]);
        float32x4_t u = vmulq_f32(dt, x), sum = vdupq_n_f32(0.0f);
        BXN_UNROLL
        for (unsigned n = 0; n < 16; n++) {
            h[n] = update(h[n], dt, vld1q_f32(a2 + n * 16), u, bcd[n]);
            sum = vfmaq_n_f32(sum, h[n], bcd[16 + n]);
        }
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
                update(vld1q_f32(h + n * 16), dt, vld1q_f32(a2 + n * 16), u, bcd[n]);
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
