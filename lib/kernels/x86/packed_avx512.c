/* SPDX-License-Identifier: Apache-2.0 */
/* packed_avx512.c - quantised matrix products, 16 output rows in the lanes of a vector.
 * Called through the kernel table by the linear op. One token: several row groups are
 * walked in lockstep along K, each a sequential stream of memory. More tokens: the codes
 * of two row groups are decoded once per unit into a panel on the stack that all tokens
 * use. Both do, lane by lane, the operations of kernels.h in its order, so their bits are
 * equal. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx512.h"

#define STREAMS 4
#define CHUNK 144 /* tokens that share one decoding of a unit */
#define TILE 12   /* tokens whose sums are in registers at once */

/* What turns codes into values. 8 bits: a byte, sign flipped, is put into the mantissa of
 * 2^23 (low byte) or 2^15 (second byte), and 2^23 + 128 or 2^15 + 128 is taken away:
 * exact, and cheaper than a shift pair and a conversion. */
typedef struct decoder {
    __m512 table;
    __m512i mask[2], magic[2];
    __m512 offset[2];
} decoder;

BXN_INLINE decoder make_decoder(const bxn_packed *w)
{
    decoder d;
    d.table = _mm512_loadu_ps(w->table);
    d.mask[0] = _mm512_set1_epi32(0x000000FF);
    d.mask[1] = _mm512_set1_epi32(0x0000FF00);
    d.magic[0] = _mm512_set1_epi32(0x4B000080);
    d.magic[1] = _mm512_set1_epi32(0x47008000);
    d.offset[0] = _mm512_set1_ps(8388736.0f);
    d.offset[1] = _mm512_set1_ps(32896.0f);
    return d;
}

/* Value n of each lane's 32 / bits codes. */
BXN_INLINE __m512 value(const decoder *d, __m512i codes, unsigned n, unsigned bits)
{
    if (bits == 4)
        return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * n), d->table);
    if (n >= 2)
        codes = _mm512_srli_epi32(codes, 16);
    __m512i mantissa = _mm512_ternarylogic_epi32(codes, d->mask[n & 1], d->magic[n & 1], 0x6A);
    return _mm512_sub_ps(_mm512_castsi512_ps(mantissa), d->offset[n & 1]);
}

BXN_INLINE __m512 scales_at(const uint8_t *values, int f32, uint32_t block)
{
    if (f32)
        return _mm512_loadu_ps((const float *)(const void *)(values + (size_t)block * 64));
    return _mm512_cvtph_ps(
        _mm256_loadu_si256((const __m256i *)(const void *)(values + (size_t)block * 32)));
}

/* Scale and bias' of a block. */
BXN_INLINE void block_at(const bxn_packed *w, const uint8_t *unit, uint32_t block, __m512 *scale,
                         __m512 *bias)
{
    *scale = scales_at(unit, w->scale_f32, block);
    *bias = _mm512_setzero_ps();
    if (w->has_bias)
        *bias = _mm512_fmadd_ps(_mm512_set1_ps(w->center), *scale,
                                scales_at(unit, w->scale_f32, block + w->blocks));
}

BXN_INLINE __mmask16 row_mask(const bxn_packed *w, uint32_t group)
{
    uint32_t left = w->rows - group * BXN_UNIT_ROWS;
    return left >= 16 ? (__mmask16)0xFFFF : tail_mask(left);
}

/* One token, n row groups `step` apart beginning at `group`. */
BXN_INLINE void gemv(const bxn_packed *w, uint32_t group, uint32_t step, const float *x,
                     const float *xsum, float *out, unsigned n, unsigned bits)
{
    const decoder d = make_decoder(w);
    const uint32_t codes_at = bxn_unit_scale_bytes(w);
    const size_t ahead = 2 * (size_t)w->unit_bytes;
    const unsigned per = 32 / bits; /* codes in a lane */
    const uint8_t *unit[STREAMS];
    __m512 y[STREAMS], p0[STREAMS], p1[STREAMS];
    BXN_UNROLL
    for (unsigned s = 0; s < n; s++) {
        unit[s] = w->data + (size_t)(group + s * step) * w->k_units * w->unit_bytes;
        y[s] = _mm512_setzero_ps();
    }
    for (uint32_t u = 0; u < w->k_units; u++) {
        for (unsigned pair = 0; pair < 2; pair++) {
            BXN_UNROLL
            for (unsigned s = 0; s < n; s++) {
                _mm_prefetch((const char *)unit[s] + ahead + pair * 64, _MM_HINT_T0);
                p0[s] = p1[s] = _mm512_setzero_ps();
            }
            const float *xp = x + (size_t)u * BXN_UNIT_COLS + pair * 64;
            const size_t first = codes_at + (size_t)pair * 2 * bits * 64;
            for (unsigned v = 0; v < bits; v++, xp += per) {
                __m512i c0[STREAMS], c1[STREAMS];
                BXN_UNROLL
                for (unsigned s = 0; s < n; s++) {
                    const uint8_t *codes = unit[s] + first + (size_t)v * 64;
                    c0[s] = _mm512_loadu_si512(codes);
                    c1[s] = _mm512_loadu_si512(codes + (size_t)bits * 64);
                    _mm_prefetch((const char *)codes + ahead, _MM_HINT_T0);
                    _mm_prefetch((const char *)codes + ahead + (size_t)bits * 64, _MM_HINT_T0);
                }
                BXN_UNROLL
                for (unsigned k = 0; k < per; k++) {
                    __m512 x0 = _mm512_set1_ps(xp[k]), x1 = _mm512_set1_ps(xp[k + 32]);
                    BXN_UNROLL
                    for (unsigned s = 0; s < n; s++) {
                        p0[s] = _mm512_fmadd_ps(value(&d, c0[s], k, bits), x0, p0[s]);
                        p1[s] = _mm512_fmadd_ps(value(&d, c1[s], k, bits), x1, p1[s]);
                    }
                }
            }
            uint32_t b0 = pair * 2 * w->blocks / 4, b1 = (pair * 2 + 1) * w->blocks / 4;
            BXN_UNROLL
            for (unsigned s = 0; s < n; s++) {
                __m512 scale, bias;
                block_at(w, unit[s], b0, &scale, &bias);
                y[s] = _mm512_fmadd_ps(scale, p0[s], y[s]);
                if (w->has_bias)
                    y[s] = _mm512_fmadd_ps(bias, _mm512_set1_ps(xsum[u * 4 + pair * 2]), y[s]);
                if (b1 != b0)
                    block_at(w, unit[s], b1, &scale, &bias);
                y[s] = _mm512_fmadd_ps(scale, p1[s], y[s]);
                if (w->has_bias)
                    y[s] = _mm512_fmadd_ps(bias, _mm512_set1_ps(xsum[u * 4 + pair * 2 + 1]), y[s]);
            }
        }
        BXN_UNROLL
        for (unsigned s = 0; s < n; s++)
            unit[s] += w->unit_bytes;
    }
    BXN_UNROLL
    for (unsigned s = 0; s < n; s++) {
        uint32_t g = group + s * step;
        _mm512_mask_storeu_ps(out + (size_t)g * BXN_UNIT_ROWS, row_mask(w, g), y[s]);
    }
}

BXN_INLINE void gemv_range(const bxn_packed *w, uint32_t begin, uint32_t end,
                           const bxn_mm_args *args, unsigned bits)
{
    size_t row = args->rows != NULL ? (size_t)args->rows[0] : 0;
    const float *x = args->x + row * args->ldx;
    const float *xsum = w->has_bias ? args->xsum + row * args->ldsum : NULL;
    uint32_t quarter = (end - begin) / STREAMS, rest = begin + quarter * STREAMS;
    for (uint32_t g = begin; g < begin + quarter; g++)
        gemv(w, g, quarter, x, xsum, args->y, STREAMS, bits);
    switch (end - rest) {
    case 3:
        gemv(w, rest, 1, x, xsum, args->y, 3, bits);
        break;
    case 2:
        gemv(w, rest, 1, x, xsum, args->y, 2, bits);
        break;
    case 1:
        gemv(w, rest, 1, x, xsum, args->y, 1, bits);
        break;
    default:
        break;
    }
}

/* A decoded unit of up to two row groups and the sums of a chunk of tokens. */
typedef struct panel {
    _Alignas(64) float value[BXN_UNIT_COLS * 32];   /* [k][groups * 16] */
    _Alignas(64) float scale[4 * 32], bias[4 * 32]; /* [sub-block][groups * 16] */
    _Alignas(64) float x[TILE * BXN_UNIT_COLS];
    _Alignas(64) float y[CHUNK * 32]; /* [token][groups * 16] */
} panel;

BXN_INLINE void decode_unit(const bxn_packed *w, const decoder *d, const uint8_t *unit, panel *work,
                            unsigned column, unsigned columns, unsigned bits)
{
    const unsigned per = 32 / bits;
    const uint8_t *codes = unit + bxn_unit_scale_bytes(w);
    const size_t ahead = w->unit_bytes;
    for (unsigned j = 0; j < 4; j++) {
        __m512 scale, bias;
        block_at(w, unit, j * w->blocks / 4, &scale, &bias);
        _mm512_store_ps(work->scale + j * columns + column, scale);
        _mm512_store_ps(work->bias + j * columns + column, bias);
        _mm_prefetch((const char *)unit + ahead + j * 64, _MM_HINT_T0);
    }
    float *out = work->value + column;
    for (unsigned v = 0; v < 4 * bits; v++, codes += 64) {
        __m512i c = _mm512_loadu_si512(codes);
        _mm_prefetch((const char *)codes + ahead, _MM_HINT_T0);
        BXN_UNROLL
        for (unsigned k = 0; k < per; k++, out += columns)
            _mm512_store_ps(out, value(d, c, k, bits));
    }
}

/* `tokens` tokens of the chunk from `first` on: one unit more. */
BXN_INLINE void tile(const bxn_packed *w, const bxn_mm_args *args, panel *work, uint32_t u,
                     uint32_t chunk, uint32_t first, unsigned tokens, unsigned groups)
{
    const unsigned columns = groups * 16;
    const float *xsum[TILE];
    BXN_UNROLL
    for (unsigned m = 0; m < tokens; m++) {
        uint32_t token = chunk + first + m;
        size_t row = args->rows != NULL ? (size_t)args->rows[token] : token;
        const float *x = args->x + row * args->ldx + (size_t)u * BXN_UNIT_COLS;
        xsum[m] = w->has_bias ? args->xsum + row * args->ldsum + (size_t)u * 4 : NULL;
        BXN_UNROLL
        for (unsigned i = 0; i < 8; i++)
            _mm512_store_ps(work->x + m * BXN_UNIT_COLS + i * 16, _mm512_loadu_ps(x + i * 16));
    }
    for (unsigned j = 0; j < 4; j++) {
        __m512 p[TILE][2];
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++)
            p[m][0] = p[m][1] = _mm512_setzero_ps();
        const float *value = work->value + (size_t)j * BXN_SUB_BLOCK * columns;
        const float *x = work->x + (size_t)j * BXN_SUB_BLOCK;
        for (unsigned k = 0; k < BXN_SUB_BLOCK; k++, value += columns, x++) {
            __m512 v[2];
            BXN_UNROLL
            for (unsigned g = 0; g < groups; g++)
                v[g] = _mm512_load_ps(value + g * 16);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                __m512 xm = _mm512_set1_ps(x[m * BXN_UNIT_COLS]);
                BXN_UNROLL
                for (unsigned g = 0; g < groups; g++)
                    p[m][g] = _mm512_fmadd_ps(v[g], xm, p[m][g]);
            }
        }
        BXN_UNROLL
        for (unsigned g = 0; g < groups; g++) {
            __m512 scale = _mm512_load_ps(work->scale + j * columns + g * 16);
            __m512 bias = _mm512_load_ps(work->bias + j * columns + g * 16);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                float *out = work->y + (size_t)(first + m) * columns + g * 16;
                __m512 y = _mm512_fmadd_ps(scale, p[m][g], _mm512_load_ps(out));
                if (w->has_bias)
                    y = _mm512_fmadd_ps(bias, _mm512_set1_ps(xsum[m][j]), y);
                _mm512_store_ps(out, y);
            }
        }
    }
}

BXN_INLINE void gemm_groups(const bxn_packed *w, uint32_t group, const bxn_mm_args *args,
                            uint32_t chunk, uint32_t count, unsigned groups, unsigned bits)
{
    panel work;
    const decoder d = make_decoder(w);
    const unsigned columns = groups * 16;
    for (size_t i = 0; i < (size_t)count * columns; i += 16)
        _mm512_store_ps(work.y + i, _mm512_setzero_ps());
    for (uint32_t u = 0; u < w->k_units; u++) {
        BXN_UNROLL
        for (unsigned g = 0; g < groups; g++)
            decode_unit(w, &d, w->data + ((size_t)(group + g) * w->k_units + u) * w->unit_bytes,
                        &work, g * 16, columns, bits);
        uint32_t m = 0;
        for (; m + TILE <= count; m += TILE)
            tile(w, args, &work, u, chunk, m, TILE, groups);
        if (count - m >= 8) {
            tile(w, args, &work, u, chunk, m, 8, groups);
            m += 8;
        }
        if (count - m >= 4) {
            tile(w, args, &work, u, chunk, m, 4, groups);
            m += 4;
        }
        if (count - m >= 2) {
            tile(w, args, &work, u, chunk, m, 2, groups);
            m += 2;
        }
        if (m < count)
            tile(w, args, &work, u, chunk, m, 1, groups);
    }
    for (uint32_t m = 0; m < count; m++)
        for (unsigned g = 0; g < groups; g++)
            _mm512_mask_storeu_ps(
                args->y + (chunk + m) * args->ldy + (size_t)(group + g) * BXN_UNIT_ROWS,
                row_mask(w, group + g), _mm512_load_ps(work.y + (size_t)m * columns + g * 16));
}

BXN_INLINE void mm_packed(const bxn_packed *w, uint32_t begin, uint32_t end,
                          const bxn_mm_args *args, unsigned bits)
{
    if (begin >= end || args->count == 0)
        return;
    if (args->count == 1) {
        gemv_range(w, begin, end, args, bits);
        return;
    }
    for (uint32_t chunk = 0; chunk < args->count; chunk += CHUNK) {
        uint32_t left = args->count - chunk, count = left < CHUNK ? left : CHUNK, group = begin;
        for (; group + 2 <= end; group += 2)
            gemm_groups(w, group, args, chunk, count, 2, bits);
        if (group < end)
            gemm_groups(w, group, args, chunk, count, 1, bits);
    }
}

void bxn_mm_packed4_avx512(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                           const bxn_mm_args *args)
{
    mm_packed(w, group_begin, group_end, args, 4);
}

void bxn_mm_packed8_avx512(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                           const bxn_mm_args *args)
{
    mm_packed(w, group_begin, group_end, args, 8);
}
#endif
