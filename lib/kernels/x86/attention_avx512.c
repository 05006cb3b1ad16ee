/* SPDX-License-Identifier: Apache-2.0 */
/* attention_avx512.c - windowed attention of one head over cached pages. Called through
 * the kernel table by the attention op. Scores have 16 keys in the lanes, outputs have 16
 * features. Up to four queries share every load. Each score, each lane sum and each output
 * has one chain of operations in the order of the keys' positions, whatever the number of
 * queries; keys outside a query's window are masked or left out, never multiplied by 0. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx512.h"

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

BXN_INLINE __m512 load16(const uint8_t *base, size_t index, int f32)
{
    if (f32)
        return _mm512_loadu_ps((const float *)(const void *)(base + 4 * index));
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(base + 2 * index)));
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
    __m512 dot[BXN_QUERIES][4];
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < n; b++)
            dot[i][b] = _mm512_setzero_ps();
    }
    const unsigned bytes = n * (f32 ? 64 : 32); /* read for each feature */
    for (size_t d = 0; d < dim; d++) {
        if (bytes >= 64) {
            BXN_UNROLL
            for (unsigned i = 0; i < bytes; i += 64)
                _mm_prefetch((const char *)next + d * bytes + i, _MM_HINT_T0);
        }
        __m512 keys[4];
        BXN_UNROLL
        for (unsigned b = 0; b < n; b++)
            keys[b] = load16(k, first + (b * dim + d) * 16, f32);
        BXN_UNROLL
        for (unsigned i = 0; i < count; i++) {
            __m512 q = _mm512_set1_ps(args->q[i * args->ldq + d]);
            BXN_UNROLL
            for (unsigned b = 0; b < n; b++)
                dot[i][b] = _mm512_fmadd_ps(q, keys[b], dot[i][b]);
        }
    }
    const __m512 scale = _mm512_set1_ps(args->scale);
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < n; b++)
            _mm512_storeu_ps(args->scores + i * args->score_stride + (position - base) + b * 16,
                             _mm512_mul_ps(dot[i][b], scale));
    }
}

/* The lanes of the block at `position` that the query sees. */
BXN_INLINE __mmask16 seen(span s, uint64_t position)
{
    uint32_t mask = 0xFFFF;
    if (s.begin > position)
        mask = s.begin - position < 16 ? mask << (s.begin - position) : 0;
    if (s.end < position + 16)
        mask &= s.end > position ? 0xFFFFu >> (position + 16 - s.end) : 0;
    return (__mmask16)mask;
}

/* Turn the scores of one query into e^(score - max); returns the sum of them. */
static float softmax(span s, uint64_t base, float *scores)
{
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    const uint64_t first = s.begin & ~(uint64_t)15;
    __m512 max = lowest;
    for (uint64_t p = first; p < s.end; p += 16)
        max = _mm512_max_ps(_mm512_mask_loadu_ps(lowest, seen(s, p), scores + (p - base)), max);
    max = _mm512_set1_ps(_mm512_reduce_max_ps(max));
    __m512 sum = _mm512_setzero_ps();
    for (uint64_t p = first; p < s.end; p += 16) {
        __mmask16 mask = seen(s, p);
        __m512 e = exp_nonpositive(_mm512_sub_ps(_mm512_loadu_ps(scores + (p - base)), max));
        e = _mm512_maskz_mov_ps(mask, e);
        _mm512_storeu_ps(scores + (p - base), e);
        sum = _mm512_add_ps(sum, e);
    }
    return tree_sum(sum);
}

/* Output vectors [v, v + n) of all queries. Keys that every query sees are the core; those
 * before it are seen by the first queries only, those after it by the last only. */
BXN_INLINE void mix_values(const bxn_attention_args *args, const span *spans, uint64_t base,
                           const float *sums, unsigned v, unsigned count, unsigned n, int f32)
{
    const size_t stride = ((size_t)args->head_dim + 15) & ~(size_t)15;
    const uint64_t begin = spans[0].begin, end = spans[count - 1].end;
    const unsigned step = f32 ? 1 : 2; /* vectors in a line */
    const uint64_t core = spans[count - 1].begin, core_end = spans[0].end;
    __m512 out[BXN_QUERIES][5];
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned j = 0; j < n; j++)
            out[i][j] = _mm512_setzero_ps();
    }
    for (uint64_t p = begin; p < end;) {
        const uint8_t *values = page_of(args, p) + args->v_offset;
        const uint8_t *next = after(args, p, end, page_of(args, p)) + args->v_offset;
        uint64_t page_end = (p / BXN_PAGE + 1) * BXN_PAGE;
        page_end = page_end < end ? page_end : end;
        for (; p < page_end; p++) {
            size_t row = (size_t)(p % BXN_PAGE) * stride + (size_t)v * 16;
            __m512 value[5];
            BXN_UNROLL
            for (unsigned j = 0; j < n; j += step)
                _mm_prefetch((const char *)next + (row + j * 16) * (f32 ? 4 : 2), _MM_HINT_T0);
            BXN_UNROLL
            for (unsigned j = 0; j < n; j++)
                value[j] = load16(values, row + j * 16, f32);
            if (count == 1 || (p >= core && p < core_end)) {
                BXN_UNROLL
                for (unsigned i = 0; i < count; i++) {
                    __m512 e = _mm512_set1_ps(args->scores[i * args->score_stride + (p - base)]);
                    BXN_UNROLL
                    for (unsigned j = 0; j < n; j++)
                        out[i][j] = _mm512_fmadd_ps(e, value[j], out[i][j]);
                }
            } else {
                BXN_UNROLL
                for (unsigned i = 0; i < count; i++) {
                    if (p < spans[i].begin || p >= spans[i].end)
                        continue;
                    __m512 e = _mm512_set1_ps(args->scores[i * args->score_stride + (p - base)]);
                    BXN_UNROLL
                    for (unsigned j = 0; j < n; j++)
                        out[i][j] = _mm512_fmadd_ps(e, value[j], out[i][j]);
                }
            }
        }
    }
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        const __m512 sum = _mm512_set1_ps(sums[i]);
        BXN_UNROLL
        for (unsigned j = 0; j < n; j++) {
            size_t at = (size_t)(v + j) * 16, left = args->head_dim - at;
            _mm512_mask_storeu_ps(args->out + i * args->ldout + at,
                                  left >= 16 ? (__mmask16)0xFFFF : tail_mask(left),
                                  _mm512_div_ps(out[i][j], sum));
        }
    }
}

BXN_INLINE void attend(const bxn_attention_args *args, unsigned count, int f32)
{
    span spans[BXN_QUERIES];
    float sums[BXN_QUERIES];
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++)
        spans[i] = keys_of(args, i);
    const uint64_t base = spans[0].begin & ~(uint64_t)15, end = spans[count - 1].end;
    const uint8_t *first_values = page_of(args, base) + args->v_offset;
    for (uint64_t p = base; p < end;) {
        const uint8_t *next = after(args, p, end, NULL);
        next = next != NULL ? next + args->k_offset : first_values;
        if (p % BXN_PAGE == 0 && end - p > 48) {
            score_blocks(args, p, base, next, count, 4, f32);
            p += 64;
        } else {
            score_blocks(args, p, base, next, count, 1, f32);
            p += 16;
        }
    }
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++)
        sums[i] = softmax(spans[i], base, args->scores + i * args->score_stride);
    const unsigned vectors = (args->head_dim + 15) / 16;
    for (unsigned v = 0; v < vectors;) {
        unsigned left = vectors - v;
        if (left == 5) {
            mix_values(args, spans, base, sums, v, count, 5, f32);
            v += 5;
        } else if (left >= 4) {
            mix_values(args, spans, base, sums, v, count, 4, f32);
            v += 4;
        } else if (left >= 2) {
            mix_values(args, spans, base, sums, v, count, 2, f32);
            v += 2;
        } else {
            mix_values(args, spans, base, sums, v, count, 1, f32);
            v += 1;
        }
    }
}

BXN_INLINE void attention(const bxn_attention_args *args, int f32)
{
    switch (args->count) {
    case 1:
        attend(args, 1, f32);
        break;
    case 2:
        attend(args, 2, f32);
        break;
    case 3:
        attend(args, 3, f32);
        break;
    case 4:
        attend(args, 4, f32);
        break;
    default:
        break;
    }
}

void bxn_attention_f16_avx512(const bxn_attention_args *args)
{
    attention(args, 0);
}

void bxn_attention_f32_avx512(const bxn_attention_args *args)
{
    attention(args, 1);
}
#endif
