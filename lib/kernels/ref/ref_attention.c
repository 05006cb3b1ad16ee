/* SPDX-License-Identifier: Apache-2.0 */
/* ref_attention.c - windowed attention of one head over cached pages, and the codes of cached
 * rows, in plain C. Called through the kernel table by the attention op. Slots outside a
 * query's window are never looked at, so what lies in them cannot matter. */
#include <math.h>
#include <string.h>

#include "kernels/kernels_isa.h"
#include "runtime/runtime.h"

static const float levels[8] = BXN_KV_LEVELS;

static float level_of(uint32_t code)
{
    return code & 8 ? -levels[code & 7] : levels[code & 7];
}

static float float_at(const uint8_t *base, size_t index)
{
    float value;
    memcpy(&value, base + 4 * index, sizeof value);
    return value;
}

static float plain_value(const uint8_t *base, bxn_kv_type type, size_t index)
{
    if (type == BXN_KV_F32)
        return float_at(base, index);
    uint16_t bits;
    memcpy(&bits, base + 2 * index, sizeof bits);
    return bxn_f16_f32(bits);
}

static uint32_t nibble(const uint8_t *words, size_t word, size_t index)
{
    uint32_t value;
    memcpy(&value, words + 4 * word, sizeof value);
    return value >> 4 * index & 15;
}

/* Feature d of the key in a slot, without its scale. */
static float key_value(const uint8_t *k, bxn_kv_type type, size_t dim, size_t slot, size_t d)
{
    const size_t at = (slot / 16 * dim + d) * 16 + slot % 16;
    const uint8_t *codes = k + BXN_PAGE * sizeof(float);
    switch (type) {
    case BXN_KV_I8:
        return (float)(int8_t)codes[at];
    case BXN_KV_Q4:
        return level_of(
            nibble(codes, (slot / 16 * ((dim + 7) / 8) + d / 8) * 16 + slot % 16, d % 8));
    default:
        return plain_value(k, type, at);
    }
}

static float value_value(const uint8_t *v, bxn_kv_type type, size_t stride, size_t slot, size_t d)
{
    const uint8_t *codes = v + BXN_PAGE * sizeof(float);
    switch (type) {
    case BXN_KV_I8:
        return (float)(int8_t)codes[slot * stride + d];
    case BXN_KV_Q4:
        return level_of(nibble(codes, slot / 8 * stride + d, slot % 8));
    default:
        return plain_value(v, type, slot * stride + d);
    }
}

/* Of the key in a slot; the type without scales has 1. */
static float scale_of(const uint8_t *region, bxn_kv_type type, size_t slot)
{
    return type == BXN_KV_I8 || type == BXN_KV_Q4 ? float_at(region, slot) : 1.0f;
}

static float tree(float lanes[16])
{
    for (uint32_t half = 8; half >= 1; half /= 2)
        for (uint32_t l = 0; l < half; l++)
            lanes[l] += lanes[l + half];
    return lanes[0];
}

/* As an operand of tiles: rounded to bf16, denormals to zero. */
static float operand(float value, bool tiles)
{
    if (!tiles)
        return value;
    uint32_t bits = bxn_f32_bits(value);
    return bxn_bf16_f32(bxn_f32_bf16((bits & 0x7F800000u) == 0 ? bxn_bits_f32(bits & 0x80000000u) : value));
}

/* Query i over its keys of a part, into a partial result. */
static void attend_part(const bxn_attention_args *args, bxn_kv_type type, bool tiles, uint32_t i, uint64_t part,
                        float *partial)
{
    const uint32_t dim = args->head_dim;
    const size_t stride = bxn_round_up(dim, 16);
    const uint64_t first = part * BXN_PART, last = first + BXN_PART, at = args->position + i + 1;
    const uint64_t seen = at > args->window ? at - args->window : 0;
    const uint64_t begin = seen > first ? seen : first, end = at < last ? at : last;
    const float *q = args->q + i * args->ldq, scale = args->scale * 1.44269504f;
    float *scores = args->scratch, max = -INFINITY, lanes[16] = {0};
    bool finite = true;
    memset(partial, 0, (stride + 2) * sizeof *partial);
    if (begin >= end)
        return;
    for (uint64_t p = begin; p < end; p++) {
        const uint8_t *k =
            (const uint8_t *)args->pages[p / BXN_PAGE - args->first_page] + args->k_offset;
        float dot = 0.0f;
        for (uint32_t d = 0; d < dim; d++)
            dot += (tiles ? operand(q[d] * scale, true) : q[d]) *
                   operand(key_value(k, type, dim, p % BXN_PAGE, d), tiles);
        float s = (tiles ? dot : dot * scale) * scale_of(k, type, p % BXN_PAGE);
        scores[p - begin] = s;
        max = s > max ? s : max;
    }
    for (uint64_t p = begin; p < end; p++) {
        scores[p - begin] = exp2f(scores[p - begin] - max);
        lanes[p % 16] += scores[p - begin];
    }
    for (uint64_t p = begin; p < end; p++) {
        const uint8_t *v =
            (const uint8_t *)args->pages[p / BXN_PAGE - args->first_page] + args->v_offset;
        float e = operand(scores[p - begin] * scale_of(v, type, p % BXN_PAGE), tiles);
        for (uint32_t d = 0; d < dim; d++) {
            float value = operand(value_value(v, type, stride, p % BXN_PAGE, d), tiles);
            finite &= isfinite(value) != 0;
            partial[d] += e * value;
        }
    }
    partial[stride] = max;
    partial[stride + 1] = tiles && !finite ? NAN : tree(lanes);
}

void bxn_attention_merge_ref(const float *partials, uint32_t parts, uint32_t dim, float *out)
{
    const size_t stride = bxn_round_up(dim, 16), apart = bxn_partial_floats(dim);
    float max = 0.0f, sum = 0.0f;
    for (uint32_t p = 0; p < parts; p++) {
        const float *part = partials + p * apart;
        if (part[stride + 1] == 0.0f)
            continue;
        if (sum == 0.0f) {
            memcpy(out, part, dim * sizeof *out);
            max = part[stride];
            sum = part[stride + 1];
            continue;
        }
        float top = part[stride] > max ? part[stride] : max;
        float a = exp2f(max - top), b = exp2f(part[stride] - top);
        for (uint32_t d = 0; d < dim; d++)
            out[d] = out[d] * a + part[d] * b;
        sum = sum * a + part[stride + 1] * b;
        max = top;
    }
    for (uint32_t d = 0; d < dim; d++)
        out[d] /= sum;
}

static void attention(const bxn_attention_args *args, bxn_kv_type type, bool tiles)
{
    const size_t apart = bxn_partial_floats(args->head_dim);
    for (uint32_t i = 0; i < args->count; i++) {
        if (args->part != BXN_ALL_PARTS) {
            attend_part(args, type, tiles, i, args->part, args->partial + i * apart);
            continue;
        }
        /* two partial results at a time: what is merged so far, and the next */
        float *pair = args->scratch + BXN_PART, *out = args->out + i * args->ldout;
        const uint64_t end = args->position + i + 1, last = (end - 1) / BXN_PART;
        uint64_t part = (end > args->window ? end - args->window : 0) / BXN_PART;
        const size_t stride = bxn_round_up(args->head_dim, 16);
        attend_part(args, type, tiles, i, part, pair);
        while (part < last) {
            float *next = pair + apart, top, a, b;
            attend_part(args, type, tiles, i, ++part, next);
            top = next[stride] > pair[stride] ? next[stride] : pair[stride];
            a = exp2f(pair[stride] - top);
            b = exp2f(next[stride] - top);
            for (uint32_t d = 0; d < args->head_dim; d++)
                pair[d] = pair[d] * a + next[d] * b;
            pair[stride + 1] = pair[stride + 1] * a + next[stride + 1] * b;
            pair[stride] = top;
        }
        for (uint32_t d = 0; d < args->head_dim; d++)
            out[d] = pair[d] / pair[stride + 1];
    }
}

void bxn_attention_f16_ref(const bxn_attention_args *args)
{
    attention(args, BXN_KV_F16, false);
}

void bxn_attention_f32_ref(const bxn_attention_args *args)
{
    attention(args, BXN_KV_F32, false);
}

void bxn_attention_i8_ref(const bxn_attention_args *args)
{
    attention(args, BXN_KV_I8, false);
}

void bxn_attention_q4_ref(const bxn_attention_args *args)
{
    attention(args, BXN_KV_Q4, false);
}

/* No table that bxn_kernels_init fills holds it, as those of ref_tile.c. */
void bxn_attention_tile_ref(const bxn_attention_args *args, bxn_kv_type type)
{
    attention(args, type, true);
}

void bxn_quant_i8_ref(const float *x, uint32_t n, int8_t *codes, float *scale)
{
    float max = 0.0f;
    bool finite = true;
    for (uint32_t i = 0; i < n; i++) {
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
        finite &= (bool)isfinite(x[i]);
    }
    memset(codes, 0, n);
    *scale = finite ? 0.0f : NAN;
    if (!finite || !(max >= 1e-30f))
        return;
    *scale = max / 127.0f;
    const float inverse = 127.0f / max;
    for (uint32_t i = 0; i < n; i++)
        codes[i] = (int8_t)rintf(x[i] * inverse);
}

void bxn_quant_q4_ref(const float *x, uint32_t n, uint8_t *codes, float *scale)
{
    static const float borders[7] = BXN_KV_BORDERS;
    float lanes[16] = {0};
    for (uint32_t i = 0; i < n; i++)
        lanes[i % 16] += x[i] * x[i];
    const float sum = tree(lanes);
    memset(codes, 0, n);
    *scale = sum < 1e-30f ? 0.0f : NAN;
    if (!(sum >= 1e-30f) || !isfinite(sum))
        return;
    const float norm = sqrtf(sum), root = sqrtf((float)n), inverse = root / norm;
    *scale = norm / root;
    for (uint32_t i = 0; i < n; i++) {
        const float u = x[i] * inverse;
        uint8_t code = u < 0.0f ? 8 : 0;
        for (uint32_t b = 0; b < 7; b++)
            code = (uint8_t)(code + (fabsf(u) > borders[b]));
        codes[i] = code;
    }
}

void bxn_kv_rotate_ref(const float *r, uint32_t n, const float *x, size_t ldx, uint32_t count,
                       float *y)
{
    const size_t stride = bxn_round_up(n, 16);
    for (uint32_t t = 0; t < count; t++) {
        memset(y + t * stride, 0, stride * sizeof *y);
        for (uint32_t k = 0; k < n; k++)
            for (uint32_t d = 0; d < n; d++)
                y[t * stride + d] += r[k * stride + d] * x[t * ldx + k];
    }
}
