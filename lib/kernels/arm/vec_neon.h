/* SPDX-License-Identifier: Apache-2.0 */
/* vec_neon.h - vector mathematics shared by the Arm files, which compile it themselves. The
 * operations and coefficients are those of the AVX2 tier (minimax fits of the relative error
 * with p(0) = 1 held), so that every result is that of AVX2 to the bit: largest relative errors
 * exp2 1.6e-7, exp 0.8e-7, sigmoid 1.8e-7, softplus 2.3e-7. NaN goes through (FMAX and FMIN
 * return it); exponents that are too low give 0; exp(0) is 1. 16-lane quantities are four
 * vectors, lanes ascending. */
#ifndef BXN_VEC_NEON_H
#define BXN_VEC_NEON_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#define BXN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define BXN_UNROLL _Pragma("GCC unroll 32")
#endif
#define BXN_INLINE static inline __attribute__((always_inline))

/* Four floats at an address of any alignment. */
BXN_INLINE float32x4_t load4(const void *p)
{
    return vreinterpretq_f32_u8(vld1q_u8(p));
}

/* Four f16 at an address of any alignment. */
BXN_INLINE float32x4_t load4_f16(const void *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}

/* The first n of 4 values, zeros after them. */
BXN_INLINE float32x4_t load_first(const float *x, size_t n)
{
    if (n >= 4)
        return vld1q_f32(x);
    float part[4] = {0};
    memcpy(part, x, n * sizeof *x);
    return vld1q_f32(part);
}

BXN_INLINE void store_first(float *y, size_t n, float32x4_t v)
{
    if (n >= 4) {
        vst1q_f32(y, v);
    } else {
        float part[4];
        vst1q_f32(part, v);
        memcpy(y, part, n * sizeof *y);
    }
}

/* sum + v * (lane `lane` of x), fused; the lane is a constant once all is inlined. */
BXN_INLINE float32x4_t fma_lane(float32x4_t sum, float32x4_t v, float32x4_t x, unsigned lane)
{
    switch (lane) {
    case 0:
        return vfmaq_laneq_f32(sum, v, x, 0);
    case 1:
        return vfmaq_laneq_f32(sum, v, x, 1);
    case 2:
        return vfmaq_laneq_f32(sum, v, x, 2);
    default:
        return vfmaq_laneq_f32(sum, v, x, 3);
    }
}

/* Of 16 lanes i and i + 8, then + 4, + 2, + 1. */
BXN_INLINE float tree_sum(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d)
{
    float32x4_t s4 = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
    float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
    return vget_lane_f32(vpadd_f32(s2, s2), 0);
}

/* p * 2^n for whole n >= -127; 2^-127 counts as 0. */
BXN_INLINE float32x4_t times_power(float32x4_t p, float32x4_t n)
{
    int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}

/* 2^t for t <= 0: split at the nearest integer, polynomial of degree 5 with p(0) = 1. */
BXN_INLINE float32x4_t exp2_nonpositive(float32x4_t t)
{
    t = vmaxq_f32(vdupq_n_f32(-127.0f), t);
    float32x4_t n = vrndnq_f32(t), f = vsubq_f32(t, n);
    float32x4_t p = vdupq_n_f32(0x1.5bda58p-10f);
    p = vfmaq_f32(vdupq_n_f32(0x1.3ce8aep-7f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0x1.c6b6d8p-5f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0x1.ebf9c2p-3f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0x1.62e42ap-1f), p, f);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, f);
    return times_power(p, n);
}

/* e^v for v <= 0: split at the nearest multiple of ln 2, polynomial of degree 6. */
BXN_INLINE float32x4_t exp_nonpositive(float32x4_t v)
{
    v = vmaxq_f32(vdupq_n_f32(-88.0f), v); /* there n is -127 and the result 0 */
    float32x4_t n = vrndnq_f32(vmulq_f32(v, vdupq_n_f32(0x1.715476p+0f)));
    float32x4_t r = vfmsq_f32(v, n, vdupq_n_f32(0x1.62e4p-1f));
    r = vfmsq_f32(r, n, vdupq_n_f32(0x1.7f7d1cp-20f));
    float32x4_t p = vdupq_n_f32(0x1.6a3d08p-10f);
    p = vfmaq_f32(vdupq_n_f32(0x1.123856p-7f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.5558bep-5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.555494p-3f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.fffffcp-2f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    return times_power(p, n);
}

/* -|v| */
BXN_INLINE float32x4_t negative_abs(float32x4_t v)
{
    return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0x80000000u)));
}

BXN_INLINE float32x4_t sigmoid(float32x4_t v)
{
    const float32x4_t one = vdupq_n_f32(1.0f);
    float32x4_t e = exp_nonpositive(negative_abs(v));
    return vdivq_f32(vbslq_f32(vcltzq_f32(v), e, one), vaddq_f32(one, e));
}

/* log(1 + e^v) = max(v, 0) + log1p(e^-|v|), log1p(u) = 2 atanh(u / (u + 2)). */
BXN_INLINE float32x4_t softplus(float32x4_t v)
{
    float32x4_t u = exp_nonpositive(negative_abs(v));
    float32x4_t s = vdivq_f32(u, vaddq_f32(u, vdupq_n_f32(2.0f)));
    float32x4_t z = vmulq_f32(s, s);
    float32x4_t p = vdupq_n_f32(0x1.f090acp-4f);
    p = vfmaq_f32(vdupq_n_f32(0x1.b72ad8p-4f), p, z);
    p = vfmaq_f32(vdupq_n_f32(0x1.250514p-3f), p, z);
    p = vfmaq_f32(vdupq_n_f32(0x1.9996d8p-3f), p, z);
    p = vfmaq_f32(vdupq_n_f32(0x1.555558p-2f), p, z);
    s = vaddq_f32(s, s);
    float32x4_t log1p = vfmaq_f32(s, vmulq_f32(p, z), s);
    return vaddq_f32(vmaxq_f32(vdupq_n_f32(0.0f), v), log1p);
}

#endif
