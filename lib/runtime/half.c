/* SPDX-License-Identifier: Apache-2.0 */
/* half.c - conversions between f32 and the two 16-bit formats, in integers, equal to
 * the hardware's (round to nearest even). */
#include "runtime/runtime.h"

float bxn_f16_f32(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    if (exponent == 31)
        return bxn_bits_f32(sign | 0x7F800000u | (mantissa != 0 ? 0x400000u | mantissa << 13 : 0));
    if (exponent != 0)
        return bxn_bits_f32(sign | (exponent + 112) << 23 | mantissa << 13);
    float value = (float)mantissa * 0x1p-24f; /* exact */
    return sign != 0 ? -value : value;
}

uint16_t bxn_f32_f16(float value)
{
    uint32_t bits = bxn_f32_bits(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u)
        return (uint16_t)(sign | 0x7E00u | (magnitude >> 13 & 0x1FFu));
    if (magnitude >= 0x477FF000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7C00u);
    if (magnitude >= 0x38800000u) { /* normal */
        uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1);
        return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
    }
    if (magnitude < 0x33000000u) /* below half of the least subnormal */
        return sign;
    uint32_t shift = 126 - (magnitude >> 23);
    uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
    uint32_t kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    kept += rest > half || (rest == half && (kept & 1) != 0);
    return (uint16_t)(sign | kept);
}

uint16_t bxn_f32_bf16(float value)
{
    uint32_t bits = bxn_f32_bits(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}
