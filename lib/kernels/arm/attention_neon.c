/* SPDX-License-Identifier: Apache-2.0 */
/* attention_neon.c - windowed attention of one head over cached pages. Called through the
 * kernel table by the attention op. Scores have 16 keys in the lanes of four vectors, outputs
 * have 4 features. Up to four queries share every load. Each score, each lane sum and each
 * output has one chain of operations in the order of the keys' positions, whatever the number
 * of queries; keys outside a query's window are masked or left out, never multiplied by 0. */
#include "kernels/kernels_isa.h"

#if defined(__aarch64__)
#include "kernels/arm/vec_neon.h"

#define MOST_VECTORS 20 /* of an output at once */

/* The keys that query i sees. */
typedef struct span {
    uint64_t begin, end;
} span;

static span keys_of(const bxn_attention_args *args, uint32_t i)
{
    uint64_t end = args->position + i + 1;
    span s = {end > args->window ? end - args->window : 0, end};
    return s;
}

BXN_INLINE const uint8_t *page_of(const bxn_attention_args *args, uint64_t position)
{
    return (const uint8_t *)args->pages[position / BXN_PAGE - args->first_page];
}

BXN_INLINE float32x4_t load(const uint8_t *base, size_t index, int f32)
{
    return f32 ? load4(base + 4 * index) : load4_f16(base + 2 * index);
}

/* Where the page after that of `position` begins, or what is wanted after the last. */
BXN_INLINE const uint8_t *after(const bxn_attention_args *args, uint64_t position, uint64_t end,
                                const uint8_t *last)
{
    uint64_t next = (position / BXN_PAGE + 1) * BXN_PAGE;
    return next < end ? page_of(args, next) : last;
}

/* Scores of n blocks of 16 keys in one page, for all queries; `next` is fetched meanwhile. */
BXN_INLINE void score_blocks(const bxn_attention_args *args, uint64_t position, uint64_t base,
                             const uint8_t *next, unsigned count, unsigned n, int f32)
{
    const uint8_t *k = page_of(args, position) + args->k_offset;
    const size_t dim = args->head_dim, first = (size_t)(position % BXN_PAGE / 16) * dim * 16;
    float32x4_t dot[BXN_QUERIES][16];
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < 4 * n; b++)
            dot[i][b] = vdupq_n_f32(0.0f);
    }
    const unsigned bytes = n * (f32 ? 64 : 32); /* read for each feature */
    for (size_t d = 0; d < dim; d++) {
        if (bytes >= 64) {
            BXN_UNROLL
            for (unsigned i = 0; i < bytes; i += 64)
                __builtin_prefetch(next + d * bytes + i, 0, 3);
        }
        float32x4_t keys[16];
        BXN_UNROLL
        for (unsigned b = 0; b < 4 * n; b++)
            keys[b] = load(k, first + (b / 4 * dim + d) * 16 + b % 4 * 4, f32);
        BXN_UNROLL
        for (unsigned i = 0; i < count; i++) {
            const float q = args->q[i * args->ldq + d];
            BXN_UNROLL
            for (unsigned b = 0; b < 4 * n; b++)
                dot[i][b] = vfmaq_n_f32(dot[i][b], keys[b], q);
        }
    }
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < 4 * n; b++)
            vst1q_f32(args->scores + i * args->score_stride + (position - base) + b * 4,
                      vmulq_n_f32(dot[i][b], args->scale));
    }
}

/* The lanes of the quarter block at `position` that the query sees. */
BXN_INLINE uint32x4_t seen(span s, uint64_t position)
{
    const uint32_t lanes[4] = {0, 1, 2, 3};
    const uint32x4_t lane = vld1q_u32(lanes);
    uint64_t first = s.begin > position ? s.begin - position : 0;
    uint64_t end = s.end > position ? s.end - position : 0;
    return vandq_u32(vcgeq_u32(lane, vdupq_n_u32((uint32_t)(first < 4 ? first : 4))),
                     vcltq_u32(lane, vdupq_n_u32((uint32_t)(end < 4 ? end : 4))));
}

/* The larger of each lane; a lane of `value` that is NaN counts for nothing. */
BXN_INLINE float32x4_t larger(float32x4_t most, float32x4_t value)
{
    return vbslq_f32(vcgtq_f32(value, most), value, most);
}

/* Turn the scores of one query into e^(score - max); returns the sum of them. */
static float softmax(span s, uint64_t base, float *scores)
{
    const float32x4_t lowest = vdupq_n_f32(-__builtin_inff());
    const uint64_t first = s.begin & ~(uint64_t)15;
    float32x4_t max = lowest;
    for (uint64_t p = first; p < s.end; p += 4)
        max = larger(max, vbslq_f32(seen(s, p), vld1q_f32(scores + (p - base)), lowest));
    max = vdupq_n_f32(vmaxvq_f32(max));
    float32x4_t sum[4];
    BXN_UNROLL
    for (unsigned q = 0; q < 4; q++)
        sum[q] = vdupq_n_f32(0.0f);
    for (uint64_t p = first; p < s.end; p += 16) {
        BXN_UNROLL
        for (unsigned q = 0; q < 4; q++) {
            float *at = scores + (p - base) + q * 4;
            float32x4_t e = exp_nonpositive(vsubq_f32(vld1q_f32(at), max));
            e = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(e), seen(s, p + q * 4)));
            vst1q_f32(at, e);
            sum[q] = vaddq_f32(sum[q], e);
        }
    }
    return tree_sum(sum[0], sum[1], sum[2], sum[3]);
}

/* Output vectors [v, v + n) of all queries. Keys that every query sees are the core; those
 * before it are seen by the first queries only, those after it by the last only. */
BXN_INLINE void mix_values(const bxn_attention_args *args, const span *spans, uint64_t base,
                           const float *sums, unsigned v, unsigned count, unsigned n, int f32)
{
    const size_t stride = ((size_t)args->head_dim + 15) & ~(size_t)15;
    const uint64_t begin = spans[0].begin, end = spans[count - 1].end;
    const unsigned step = f32 ? 4 : 8; /* vectors in a line */
    const uint64_t core = spans[count - 1].begin, core_end = spans[0].end;
    float32x4_t out[BXN_QUERIES][MOST_VECTORS];
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned j = 0; j < n; j++)
            out[i][j] = vdupq_n_f32(0.0f);
    }
    for (uint64_t p = begin; p < end;) {
        const uint8_t *values = page_of(args, p) + args->v_offset;
        const uint8_t *next = after(args, p, end, page_of(args, p)) + args->v_offset;
        uint64_t page_end = (p / BXN_PAGE + 1) * BXN_PAGE;
        page_end = page_end < end ? page_end : end;
        for (; p < page_end; p++) {
            size_t row = (size_t)(p % BXN_PAGE) * stride + (size_t)v * 4;
            const int all = count == 1 || (p >= core && p < core_end);
            BXN_UNROLL
            for (unsigned j = 0; j < n; j += step)
                __builtin_prefetch(next + (row + j * 4) * (f32 ? 4 : 2), 0, 3);
            float32x4_t value[MOST_VECTORS];
            BXN_UNROLL
            for (unsigned j = 0; j < n; j++)
                value[j] = load(values, row + j * 4, f32);
            BXN_UNROLL
            for (unsigned i = 0; i < count; i++) {
                if (!all && (p < spans[i].begin || p >= spans[i].end))
                    continue;
                const float e = args->scores[i * args->score_stride + (p - base)];
                BXN_UNROLL
                for (unsigned j = 0; j < n; j++)
                    out[i][j] = vfmaq_n_f32(out[i][j], value[j], e);
            }
        }
    }
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        const float32x4_t sum = vdupq_n_f32(sums[i]);
        BXN_UNROLL
        for (unsigned j = 0; j < n; j++) {
            size_t at = (size_t)(v + j) * 4;
            if (at < args->head_dim)
                store_first(args->out + i * args->ldout + at, args->head_dim - at,
                            vdivq_f32(out[i][j], sum));
        }
    }
}

/* n: output vectors whose sums fit in registers for that many queries. */
BXN_INLINE void attend(const bxn_attention_args *args, unsigned count, unsigned n, int f32)
{
    span spans[BXN_QUERIES];
    float sums[BXN_QUERIES];
    for (unsigned i = 0; i < count; i++)
        spans[i] = keys_of(args, i);
    const uint64_t base = spans[0].begin & ~(uint64_t)15, end = spans[count - 1].end;
    const uint8_t *first_values = page_of(args, base) + args->v_offset;
    for (uint64_t p = base; p < end;) {
        const uint8_t *next = after(args, p, end, NULL);
        next = next != NULL ? next + args->k_offset : first_values;
        if (count == 1 && p % BXN_PAGE == 0 && end - p > 48) {
            score_blocks(args, p, base, next, count, 4, f32);
            p += 64;
        } else {
            score_blocks(args, p, base, next, count, 1, f32);
            p += 16;
        }
    }
    for (unsigned i = 0; i < count; i++)
        sums[i] = softmax(spans[i], base, args->scores + i * args->score_stride);
    const unsigned vectors = (args->head_dim + 15) / 16 * 4;
    unsigned v = 0;
    for (; v + n <= vectors; v += n)
        mix_values(args, spans, base, sums, v, count, n, f32);
    for (; v < vectors; v += 4)
        mix_values(args, spans, base, sums, v, count, 4, f32);
}

BXN_INLINE void attention(const bxn_attention_args *args, int f32)
{
    switch (args->count) {
    case 1:
        attend(args, 1, MOST_VECTORS, f32);
        break;
    case 2:
        attend(args, 2, 8, f32);
        break;
    case 3:
        attend(args, 3, 4, f32);
        break;
    case 4:
        attend(args, 4, 4, f32);
        break;
    default:
        break;
    }
}

void bxn_attention_f16_neon(const bxn_attention_args *args)
{
    attention(args, 0);
}

void bxn_attention_f32_neon(const bxn_attention_args *args)
{
    attention(args, 1);
}
#endif
