/* SPDX-License-Identifier: Apache-2.0 */
/* attention_neon.c - windowed attention over cached pages and the codes of cached rows, for
 * 4 lanes. Called through the kernel table by the attention op. What is computed stands in
 * attention_body.h; here are its vectors. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/vec_neon.h"

#define LANES 4
#define SCORE_KEYS 1
#define MIX_QUERIES 4
#define MM_VECTORS 4

typedef float32x4_t vec;

BXN_INLINE vec v_zero(void)
{
    return vdupq_n_f32(0.0f);
}
BXN_INLINE vec v_set1(float x)
{
    return vdupq_n_f32(x);
}
BXN_INLINE vec v_load(const float *x)
{
    return vld1q_f32(x);
}
BXN_INLINE void v_store(float *y, vec v)
{
    vst1q_f32(y, v);
}
BXN_INLINE vec v_add(vec a, vec b)
{
    return vaddq_f32(a, b);
}
BXN_INLINE vec v_sub(vec a, vec b)
{
    return vsubq_f32(a, b);
}
BXN_INLINE vec v_mul(vec a, vec b)
{
    return vmulq_f32(a, b);
}
BXN_INLINE vec v_div(vec a, vec b)
{
    return vdivq_f32(a, b);
}
BXN_INLINE vec v_fma(vec a, vec b, vec c)
{
    return vfmaq_f32(c, a, b);
}
/* FMAX would return a NaN of either. */
BXN_INLINE vec v_max(vec a, vec b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
BXN_INLINE vec v_abs(vec a)
{
    return vabsq_f32(a);
}
BXN_INLINE vec v_round(vec a)
{
    return vrndnq_f32(a);
}
BXN_INLINE vec v_exp2(vec t)
{
    return exp2_nonpositive(t);
}
BXN_INLINE float v_tree(const vec *v)
{
    return tree_sum(v[0], v[1], v[2], v[3]);
}
BXN_INLINE void v_store_first(float *y, size_t n, vec v)
{
    store_first(y, n, v);
}
BXN_INLINE void v_prefetch(const uint8_t *at)
{
    __builtin_prefetch(at, 0, 2);
}

BXN_INLINE vec v_greater(vec a, vec b)
{
    const uint32x4_t one = vreinterpretq_u32_f32(vdupq_n_f32(1.0f));
    return vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(a, b), one));
}

BXN_INLINE vec v_load_f16(const uint8_t *at)
{
    return load4_f16(at);
}

BXN_INLINE vec v_load_i8(const uint8_t *at)
{
    uint32_t four;
    memcpy(&four, at, sizeof four);
    int16x8_t halves = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(halves)));
}

/* The look-up of bytes has 32 of them, eight levels; the fourth bit of a code is the sign. */
BXN_INLINE vec v_load_q4(const uint8_t *at, unsigned shift)
{
    static const float level[8] = BXN_KV_LEVELS;
    const uint8x16x2_t levels = {
        {vreinterpretq_u8_f32(vld1q_f32(level)), vreinterpretq_u8_f32(vld1q_f32(level + 4))}};
    uint32x4_t words = vreinterpretq_u32_u8(vld1q_u8(at));
    uint32x4_t top = vshlq_u32(words, vdupq_n_s32(28 - (int)shift)); /* the code in bits 28 ... */
    uint32x4_t index = vandq_u32(vshrq_n_u32(top, 28), vdupq_n_u32(7));
    uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100), index, 0x04040404);
    uint32x4_t size = vreinterpretq_u32_u8(vqtbl2q_u8(levels, vreinterpretq_u8_u32(bytes)));
    return vreinterpretq_f32_u32(vorrq_u32(size, vandq_u32(top, vdupq_n_u32(0x80000000u))));
}

/* Keeps compilers from making a load an operand of every product that uses it. */
BXN_INLINE vec v_held(vec v)
{
    __asm__("" : "+w"(v));
    return v;
}

#include "kernels/attention_body.h"
#include "kernels/attention_train_body.h"

BXN_ATTENTION_ENTRIES(neon)
BXN_ATTENTION_TRAIN_ENTRIES(neon)
#endif
