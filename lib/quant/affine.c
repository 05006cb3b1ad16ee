/* SPDX-License-Identifier: Apache-2.0 */
/* affine.c - the affine format of MLX: per group of a row a scale and an offset, codes of
 * b bits in a little-endian bit stream. Called by import (unpacking) and convert (encoding).
 * Encoding is exact f32 arithmetic in the order that spec 2.4 states (built without
 * contraction), so that codes equal the reference's on a CPU. */
#include "quant/quant.h"

#include <math.h>
#include <string.h>

#define LANES 16u /* divides every group; loops of this length become vector code */

bool bxn_affine_supported(uint32_t bits, uint32_t group)
{
    return (bits == 2 || bits == 3 || bits == 4 || bits == 5 || bits == 6 || bits == 8) &&
           (group == 32 || group == 64 || group == 128);
}

uint64_t bxn_affine_words(uint64_t cols, uint32_t bits)
{
    return cols * bits / 32;
}

bool bxn_affine_range(const float *w, uint32_t count, uint32_t bits, float *scale, float *bias)
{
    float top = (float)((1u << bits) - 1), low = w[0], high = w[0], lows[LANES], highs[LANES];
    for (uint32_t j = 0; j < LANES; j++)
        lows[j] = highs[j] = w[j];
    for (uint32_t i = LANES; i < count; i += LANES)
        for (uint32_t j = 0; j < LANES; j++) {
            lows[j] = w[i + j] < lows[j] ? w[i + j] : lows[j];
            highs[j] = w[i + j] > highs[j] ? w[i + j] : highs[j];
        }
    for (uint32_t j = 0; j < LANES; j++) {
        low = lows[j] < low ? lows[j] : low;
        high = highs[j] > high ? highs[j] : high;
    }
    bool from_low = fabsf(low) > fabsf(high);
    float s = (high - low) / top;
    s = s > 1e-7f ? s : 1e-7f;
    s = from_low ? s : -s;
    float edge = from_low ? low : high, b = 0;
    float q0 = rintf(edge / s);
    if (q0 != 0) {
        s = edge / q0;
        b = edge;
    }
    *scale = s;
    *bias = b;
    return low != high;
}

/* Clamping before rounding gives what rounding before clamping does, as both ends are
 * integers; adding 1.5 * 2^23 rounds to the nearest even. */
static void encode_group(const float *w, uint32_t count, uint32_t bits, float s, float b,
                         uint8_t *codes)
{
    float top = (float)((1u << bits) - 1), q[LANES];
    for (uint32_t i = 0; i < count; i += LANES) {
        for (uint32_t j = 0; j < LANES; j++) {
            q[j] = (w[i + j] - b) / s;
            q[j] = q[j] > 0 ? q[j] : 0;
            q[j] = q[j] < top ? q[j] : top;
        }
        for (uint32_t j = 0; j < LANES; j++) /* the low bits of the sum's significand */
            codes[i + j] = (uint8_t)bxn_f32_bits(q[j] + 12582912.0f);
    }
}

/* Append codes to a bit stream of 32-bit words, least significant bit first. */
static void pack_codes(const uint8_t *codes, uint32_t count, uint32_t bits, uint32_t *words)
{
    uint64_t pending = 0;
    uint32_t held = 0;
    for (uint32_t i = 0; i < count; i++) {
        pending |= (uint64_t)codes[i] << held;
        held += bits;
        if (held >= 32) {
            *words++ = (uint32_t)pending;
            pending >>= 32;
            held -= 32;
        }
    }
}

void bxn_affine_encode_row(const float *w, uint32_t cols, uint32_t bits, uint32_t group,
                           uint32_t *words, float *scales, float *biases)
{
    uint8_t codes[128];
    for (uint32_t g = 0; g < cols / group; g++) {
        const float *values = w + (size_t)g * group;
        bxn_affine_range(values, group, bits, scales + g, biases + g);
        encode_group(values, group, bits, scales[g], biases[g], codes);
        /* a group of 32, 64 or 128 codes fills whole words at any width */
        pack_codes(codes, group, bits, words + (size_t)g * (group * bits / 32));
    }
}

void bxn_affine_unpack_row(const void *words, uint32_t cols, uint32_t bits, uint8_t *codes)
{
    const uint8_t *bytes = words;
    if (bits == 8) {
        memcpy(codes, bytes, cols);
        return;
    }
    if (bits == 4) {
        for (uint32_t i = 0; i < cols / 2; i++) {
            codes[2 * i] = bytes[i] & 15;
            codes[2 * i + 1] = bytes[i] >> 4;
        }
        return;
    }
    uint32_t mask = (1u << bits) - 1, pending = 0, held = 0;
    for (uint32_t i = 0; i < cols; i++) {
        if (held < bits) {
            pending |= (uint32_t)*bytes++ << held;
            held += 8;
        }
        codes[i] = (uint8_t)(pending & mask);
        pending >>= bits;
        held -= bits;
    }
}
