/* SPDX-License-Identifier: Apache-2.0 */
/* attention_avx2.c - windowed attention of one head over cached pages. Called through the
 * kernel table by the attention op. Scores have 16 keys in the lanes of two vectors,
 * outputs have 8 features. Up to four queries share every load. Each score, each lane sum
 * and each output has one chain of operations in the order of the keys' positions,
 * whatever the number of queries; keys outside a query's window are masked or left out,
 * never multiplied by 0. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx2.h"

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

BXN_INLINE __m256 load8(const uint8_t *base, size_t index, int f32)
{
    if (f32)
        return _mm256_loadu_ps((const float *)(const void *)(base + 4 * index));
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(base + 2 * index)));
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
    __m256 dot[BXN_QUERIES][8];
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < 2 * n; b++)
            dot[i][b] = _mm256_setzero_ps();
    }
    const unsigned bytes = n * (f32 ? 64 : 32); /* read for each feature */
    for (size_t d = 0; d < dim; d++) {
        if (bytes >= 64) {
            BXN_UNROLL
            for (unsigned i = 0; i < bytes; i += 64)
                _mm_prefetch((const char *)next + d * bytes + i, _MM_HINT_T0);
        }
        __m256 keys[8];
        BXN_UNROLL
        for (unsigned b = 0; b < 2 * n; b++)
            keys[b] = load8(k, first + (b / 2 * dim + d) * 16 + b % 2 * 8, f32);
        BXN_UNROLL
        for (unsigned i = 0; i < count; i++) {
            __m256 q = _mm256_set1_ps(args->q[i * args->ldq + d]);
            BXN_UNROLL
            for (unsigned b = 0; b < 2 * n; b++)
                dot[i][b] = _mm256_fmadd_ps(q, keys[b], dot[i][b]);
        }
    }
    const __m256 scale = _mm256_set1_ps(args->scale);
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned b = 0; b < 2 * n; b++)
            _mm256_storeu_ps(args->scores + i * args->score_stride + (position - base) + b * 8,
                             _mm256_mul_ps(dot[i][b], scale));
    }
}

/* The lanes of the half block at `position` that the query sees. */
BXN_INLINE __m256 seen(span s, uint64_t position)
{
    uint64_t first = s.begin > position ? s.begin - position : 0;
    uint64_t end = s.end > position ? s.end - position : 0;
    return _mm256_castsi256_ps(
        _mm256_andnot_si256(tail_mask((size_t)first), tail_mask((size_t)end)));
}

/* Turn the scores of one query into e^(score - max); returns the sum of them. */
static float softmax(span s, uint64_t base, float *scores)
{
    const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
    const uint64_t first = s.begin & ~(uint64_t)15;
    __m256 max = lowest;
    for (uint64_t p = first; p < s.end; p += 8)
        max = _mm256_max_ps(
            _mm256_blendv_ps(lowest, _mm256_loadu_ps(scores + (p - base)), seen(s, p)), max);
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    max = _mm256_set1_ps(_mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1))));
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (uint64_t p = first; p < s.end; p += 16) {
        BXN_UNROLL
        for (unsigned h = 0; h < 2; h++) {
            float *at = scores + (p - base) + h * 8;
            __m256 e = exp_nonpositive(_mm256_sub_ps(_mm256_loadu_ps(at), max));
            e = _mm256_and_ps(e, seen(s, p + h * 8));
            _mm256_storeu_ps(at, e);
            sum[h] = _mm256_add_ps(sum[h], e);
        }
    }
    return tree_sum(sum[0], sum[1]);
}

/* Output vectors [v, v + n) of all queries. Keys that every query sees are the core; those
 * before it are seen by the first queries only, those after it by the last only. */
BXN_INLINE void mix_values(const bxn_attention_args *args, const span *spans, uint64_t base,
                           const float *sums, unsigned v, unsigned count, unsigned n, int f32)
{
    const size_t stride = ((size_t)args->head_dim + 15) & ~(size_t)15;
    const uint64_t begin = spans[0].begin, end = spans[count - 1].end;
    const unsigned step = f32 ? 2 : 4; /* vectors in a line */
    const uint64_t core = spans[count - 1].begin, core_end = spans[0].end;
    __m256 out[BXN_QUERIES][10];
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        BXN_UNROLL
        for (unsigned j = 0; j < n; j++)
            out[i][j] = _mm256_setzero_ps();
    }
    for (uint64_t p = begin; p < end;) {
        const uint8_t *values = page_of(args, p) + args->v_offset;
        const uint8_t *next = after(args, p, end, page_of(args, p)) + args->v_offset;
        uint64_t page_end = (p / BXN_PAGE + 1) * BXN_PAGE;
        page_end = page_end < end ? page_end : end;
        for (; p < page_end; p++) {
            size_t row = (size_t)(p % BXN_PAGE) * stride + (size_t)v * 8;
            const int all = count == 1 || (p >= core && p < core_end);
            __m256 value[10];
            BXN_UNROLL
            for (unsigned j = 0; j < n; j += step)
                _mm_prefetch((const char *)next + (row + j * 8) * (f32 ? 4 : 2), _MM_HINT_T0);
            BXN_UNROLL
            for (unsigned j = 0; j < n; j++)
                value[j] = load8(values, row + j * 8, f32);
            BXN_UNROLL
            for (unsigned i = 0; i < count; i++) {
                if (!all && (p < spans[i].begin || p >= spans[i].end))
                    continue;
                __m256 e = _mm256_set1_ps(args->scores[i * args->score_stride + (p - base)]);
                BXN_UNROLL
                for (unsigned j = 0; j < n; j++)
                    out[i][j] = _mm256_fmadd_ps(e, value[j], out[i][j]);
            }
        }
    }
    BXN_UNROLL
    for (unsigned i = 0; i < count; i++) {
        const __m256 sum = _mm256_set1_ps(sums[i]);
        BXN_UNROLL
        for (unsigned j = 0; j < n; j++) {
            size_t at = (size_t)(v + j) * 8;
            if (at < args->head_dim)
                store_first(args->out + i * args->ldout + at, args->head_dim - at,
                            _mm256_div_ps(out[i][j], sum));
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
    const unsigned vectors = (args->head_dim + 15) / 16 * 2;
    unsigned v = 0;
    for (; v + n <= vectors; v += n)
        mix_values(args, spans, base, sums, v, count, n, f32);
    if (n > 4 && v + 4 <= vectors) {
        mix_values(args, spans, base, sums, v, count, 4, f32);
        v += 4;
    }
    for (; v + 2 <= vectors; v += 2)
        mix_values(args, spans, base, sums, v, count, 2, f32);
    if (v < vectors)
        mix_values(args, spans, base, sums, v, count, 1, f32);
}

BXN_INLINE void attention(const bxn_attention_args *args, int f32)
{
    switch (args->count) {
    case 1:
        attend(args, 1, 10, f32);
        break;
    case 2:
        attend(args, 2, 5, f32);
        break;
    case 3:
        attend(args, 3, 3, f32);
        break;
    case 4:
        attend(args, 4, 2, f32);
        break;
    default:
        break;
    }
}

void bxn_attention_f16_avx2(const bxn_attention_args *args)
{
    attention(args, 0);
}

void bxn_attention_f32_avx2(const bxn_attention_args *args)
{
    attention(args, 1);
}
#endif
