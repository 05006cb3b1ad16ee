/* SPDX-License-Identifier: Apache-2.0 */
/* packed_avx2.c - quantised matrix products, 16 output rows in the lanes of two vectors.
 * Called through the kernel table by the linear op. One token: several row groups are
 * walked in lockstep along K, each a sequential stream of memory. More tokens: the codes
 * of a row group are decoded once per unit into a panel on the stack that all tokens use.
 * Both do, lane by lane, the operations of kernels.h in its order, so their bits are
 * equal. Affine 4-bit codes are not centred here: y += scale * sum(code * x) + bias * sum(x) is
 * the same value with one operation per weight less, and this tier is bound by those. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__)
#include "kernels/x86/vec_avx2.h"

#define STREAMS 4
#define CHUNK 144 /* tokens that share one decoding of a unit */
#define TILE 6    /* tokens whose sums are in registers at once */

/* How codes become values: 4 bits through a table; 4 bits as they are, the centre left to
 * the bias; bytes. */
enum { TABLE4, LINEAR4, BYTES8 };

/* Bytes are put into the mantissa of a power of two whose unit is at the byte's place, and
 * that power and the centre are taken away: exact, without shift and conversion. */
typedef struct decoder {
    __m256 low, high; /* TABLE4 */
    __m256i mask[7];  /* LINEAR4: codes 0 .. 6; BYTES8: two bytes */
    __m256i magic[2];
    __m256 offset[2];
} decoder;

/* Where a LINEAR4 code stands in its word: converted there, it is 2^(4 n) times too large, and
 * the input that it meets is made as much smaller; both are exact. The last is shifted down,
 * for it would be taken for a sign. */
static const float places4[8] = {1.0f,      0x1p-4f,  0x1p-8f,  0x1p-12f,
                                 0x1p-16f, 0x1p-20f, 0x1p-24f, 1.0f};

BXN_INLINE unsigned bits_of(int mode)
{
    return mode == BYTES8 ? 8 : 4;
}

BXN_INLINE decoder make_decoder(const bxn_packed *w, int mode)
{
    decoder d;
    d.low = _mm256_loadu_ps(w->table);
    d.high = _mm256_loadu_ps(w->table + 8);
    if (mode == LINEAR4) {
        BXN_UNROLL
        for (unsigned i = 0; i < 7; i++)
            d.mask[i] = _mm256_set1_epi32(15 << (4 * i));
    } else if (mode == BYTES8) {
        BXN_UNROLL
        for (unsigned i = 0; i < 2; i++) {
            unsigned place = i * 8;
            int power = (int)(127 + 23 - place) << 23;
            d.mask[i] = _mm256_set1_epi32(255 << place);
            d.magic[i] = _mm256_set1_epi32(power ^ (0x80 << place)); /* flips the sign bit */
            d.offset[i] = _mm256_set1_ps((float)(1u << (23 - place)) + 128.0f);
        }
    }
    return d;
}

/* Whether table[c] = c - center for a whole centre. */
static int is_linear(const float table[16])
{
    float center = -table[0];
    if (!(center >= 0.0f && center <= 16.0f) || center != (float)(int)center)
        return 0;
    for (int c = 1; c < 16; c++)
        if (table[c] != (float)c - center)
            return 0;
    return 1;
}

/* Value n of each lane's codes; LINEAR4 in place (see places4). */
BXN_INLINE __m256 value(const decoder *d, __m256i codes, unsigned n, int mode)
{
    if (mode == TABLE4) {
        __m256i index = _mm256_srli_epi32(codes, (int)(4 * n));
        __m256 high_half = _mm256_castsi256_ps(_mm256_slli_epi32(codes, (int)(28 - 4 * n)));
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(d->low, index),
                                _mm256_permutevar8x32_ps(d->high, index), high_half);
    }
    if (mode == LINEAR4)
        return _mm256_cvtepi32_ps(n == 7 ? _mm256_srli_epi32(codes, 28)
                                         : _mm256_and_si256(codes, d->mask[n]));
    if (n >= 2)
        codes = _mm256_srli_epi32(codes, 16);
    __m256i mantissa = _mm256_xor_si256(_mm256_and_si256(codes, d->mask[n & 1]), d->magic[n & 1]);
    return _mm256_sub_ps(_mm256_castsi256_ps(mantissa), d->offset[n & 1]);
}

/* The eight inputs that the eight codes of a lane meet. */
BXN_INLINE __m256 placed_inputs(const float *x, int mode)
{
    __m256 v = _mm256_loadu_ps(x);
    return mode == LINEAR4 ? _mm256_mul_ps(v, _mm256_loadu_ps(places4)) : v;
}

BXN_INLINE __m256i codes_at(const uint8_t *codes)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)codes);
}

/* Half h of the 16 scales of a block. */
BXN_INLINE __m256 scales_at(const uint8_t *values, int f32, uint32_t block, unsigned h)
{
    size_t index = (size_t)block * 16 + h * 8;
    if (f32)
        return _mm256_loadu_ps((const float *)(const void *)(values + index * 4));
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(values + index * 2)));
}

/* Scale and bias' (LINEAR4: bias) of half h of a block. */
BXN_INLINE void block_at(const bxn_packed *w, const uint8_t *unit, uint32_t block, unsigned h,
                         int mode, __m256 *scale, __m256 *bias)
{
    *scale = scales_at(unit, w->scale_f32, block, h);
    *bias = _mm256_setzero_ps();
    if (!w->has_bias)
        return;
    *bias = scales_at(unit, w->scale_f32, block + w->blocks, h);
    if (mode != LINEAR4)
        *bias = _mm256_fmadd_ps(_mm256_set1_ps(w->center), *scale, *bias);
}

BXN_INLINE void store_rows(const bxn_packed *w, uint32_t group, unsigned h, float *out, __m256 y)
{
    size_t row = (size_t)group * BXN_UNIT_ROWS + h * 8;
    if (row < w->rows)
        store_first(out + row, w->rows - row, y);
}

/* One token, n row groups `step` apart beginning at `group`. */
BXN_INLINE void gemv(const bxn_packed *w, const decoder *d, uint32_t group, uint32_t step,
                     const float *x, const float *xsum, float *out, unsigned n, int mode)
{
    const uint32_t codes_offset = bxn_unit_scale_bytes(w);
    const size_t ahead = 2 * (size_t)w->unit_bytes;
    const unsigned bits = bits_of(mode), per = 32 / bits;
    const uint8_t *unit[STREAMS];
    __m256 y[STREAMS][2];
    BXN_UNROLL
    for (unsigned s = 0; s < n; s++) {
        unit[s] = w->data + (size_t)(group + s * step) * w->k_units * w->unit_bytes;
        y[s][0] = y[s][1] = _mm256_setzero_ps();
    }
    for (uint32_t u = 0; u < w->k_units; u++) {
        for (unsigned j = 0; j < 4; j++) {
            __m256 p[STREAMS][2];
            BXN_UNROLL
            for (unsigned s = 0; s < n; s++) {
                _mm_prefetch((const char *)unit[s] + ahead + j * 64, _MM_HINT_T0);
                p[s][0] = p[s][1] = _mm256_setzero_ps();
            }
            const float *xj = x + (size_t)u * BXN_UNIT_COLS + j * BXN_SUB_BLOCK;
            _Alignas(32) float placed[BXN_SUB_BLOCK];
            if (mode == LINEAR4) {
                BXN_UNROLL
                for (unsigned i = 0; i < 4; i++)
                    _mm256_store_ps(placed + i * 8, placed_inputs(xj + i * 8, mode));
                xj = placed;
            }
            size_t at = codes_offset + (size_t)j * bits * 64;
            for (unsigned v = 0; v < bits; v++, at += 64, xj += per) {
                BXN_UNROLL
                for (unsigned s = 0; s < n; s++)
                    _mm_prefetch((const char *)unit[s] + ahead + at, _MM_HINT_T0);
                BXN_UNROLL
                for (unsigned k = 0; k < per; k++) {
                    __m256 xk = _mm256_set1_ps(xj[k]);
                    BXN_UNROLL
                    for (unsigned s = 0; s < n; s++) {
                        BXN_UNROLL
                        for (unsigned h = 0; h < 2; h++)
                            p[s][h] = _mm256_fmadd_ps(
                                value(d, codes_at(unit[s] + at + h * 32), k, mode), xk,
                                p[s][h]);
                    }
                }
            }
            BXN_UNROLL
            for (unsigned s = 0; s < n; s++) {
                BXN_UNROLL
                for (unsigned h = 0; h < 2; h++) {
                    __m256 scale, bias;
                    block_at(w, unit[s], j * w->blocks / 4, h, mode, &scale, &bias);
                    y[s][h] = _mm256_fmadd_ps(scale, p[s][h], y[s][h]);
                    if (w->has_bias)
                        y[s][h] = _mm256_fmadd_ps(bias, _mm256_set1_ps(xsum[u * 4 + j]), y[s][h]);
                }
            }
        }
        BXN_UNROLL
        for (unsigned s = 0; s < n; s++)
            unit[s] += w->unit_bytes;
    }
    BXN_UNROLL
    for (unsigned s = 0; s < n; s++) {
        store_rows(w, group + s * step, 0, out, y[s][0]);
        store_rows(w, group + s * step, 1, out, y[s][1]);
    }
}

BXN_INLINE void gemv_range(const bxn_packed *w, const decoder *d, uint32_t begin, uint32_t end,
                           const bxn_mm_args *args, int mode)
{
    size_t row = args->rows != NULL ? (size_t)args->rows[0] : 0;
    const float *x = args->x + row * args->ldx;
    const float *xsum = w->has_bias ? args->xsum + row * args->ldsum : NULL;
    uint32_t quarter = (end - begin) / STREAMS, rest = begin + quarter * STREAMS;
    for (uint32_t g = begin; g < begin + quarter; g++)
        gemv(w, d, g, quarter, x, xsum, args->y, STREAMS, mode);
    if (end - rest >= 2) {
        gemv(w, d, rest, 1, x, xsum, args->y, 2, mode);
        rest += 2;
    }
    if (end > rest)
        gemv(w, d, rest, 1, x, xsum, args->y, 1, mode);
}

/* A decoded unit of a row group and the sums of a chunk of tokens. */
typedef struct panel {
    _Alignas(32) float value[BXN_UNIT_COLS * 16];   /* [k][16] */
    _Alignas(32) float scale[4 * 16], bias[4 * 16]; /* [sub-block][16] */
    _Alignas(32) float x[TILE * BXN_UNIT_COLS];
    _Alignas(32) float y[CHUNK * 16]; /* [token][16] */
} panel;

BXN_INLINE void decode_unit(const bxn_packed *w, const decoder *d, const uint8_t *unit, panel *work,
                            int mode)
{
    const unsigned bits = bits_of(mode), per = 32 / bits;
    const uint8_t *codes = unit + bxn_unit_scale_bytes(w);
    const size_t ahead = w->unit_bytes;
    for (unsigned j = 0; j < 4; j++) {
        _mm_prefetch((const char *)unit + ahead + j * 64, _MM_HINT_T0);
        BXN_UNROLL
        for (unsigned h = 0; h < 2; h++) {
            __m256 scale, bias;
            block_at(w, unit, j * w->blocks / 4, h, mode, &scale, &bias);
            _mm256_store_ps(work->scale + j * 16 + h * 8, scale);
            _mm256_store_ps(work->bias + j * 16 + h * 8, bias);
        }
    }
    float *out = work->value;
    for (unsigned v = 0; v < 4 * bits; v++, codes += 64) {
        __m256i c0 = codes_at(codes), c1 = codes_at(codes + 32);
        _mm_prefetch((const char *)codes + ahead, _MM_HINT_T0);
        BXN_UNROLL
        for (unsigned k = 0; k < per; k++, out += 16) {
            _mm256_store_ps(out, value(d, c0, k, mode));
            _mm256_store_ps(out + 8, value(d, c1, k, mode));
        }
    }
}

/* `tokens` tokens of the chunk from `first` on: one unit more. */
BXN_INLINE void tile(const bxn_packed *w, const bxn_mm_args *args, panel *work, uint32_t u,
                     uint32_t chunk, uint32_t first, unsigned tokens, int mode)
{
    const float *xsum[TILE];
    for (unsigned m = 0; m < tokens; m++) {
        uint32_t token = chunk + first + m;
        size_t row = args->rows != NULL ? (size_t)args->rows[token] : token;
        const float *x = args->x + row * args->ldx + (size_t)u * BXN_UNIT_COLS;
        xsum[m] = w->has_bias ? args->xsum + row * args->ldsum + (size_t)u * 4 : NULL;
        BXN_UNROLL
        for (unsigned i = 0; i < 16; i++)
            _mm256_store_ps(work->x + m * BXN_UNIT_COLS + i * 8, placed_inputs(x + i * 8, mode));
    }
    for (unsigned j = 0; j < 4; j++) {
        __m256 p[TILE][2];
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++)
            p[m][0] = p[m][1] = _mm256_setzero_ps();
        const float *value = work->value + (size_t)j * BXN_SUB_BLOCK * 16;
        const float *x = work->x + (size_t)j * BXN_SUB_BLOCK;
        for (unsigned k = 0; k < BXN_SUB_BLOCK; k++, value += 16, x++) {
            __m256 v0 = _mm256_load_ps(value), v1 = _mm256_load_ps(value + 8);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                __m256 xm = _mm256_set1_ps(x[m * BXN_UNIT_COLS]);
                p[m][0] = _mm256_fmadd_ps(v0, xm, p[m][0]);
                p[m][1] = _mm256_fmadd_ps(v1, xm, p[m][1]);
            }
        }
        BXN_UNROLL
        for (unsigned h = 0; h < 2; h++) {
            __m256 scale = _mm256_load_ps(work->scale + j * 16 + h * 8);
            __m256 bias = _mm256_load_ps(work->bias + j * 16 + h * 8);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                float *out = work->y + (size_t)(first + m) * 16 + h * 8;
                __m256 y = _mm256_fmadd_ps(scale, p[m][h], _mm256_load_ps(out));
                if (w->has_bias)
                    y = _mm256_fmadd_ps(bias, _mm256_set1_ps(xsum[m][j]), y);
                _mm256_store_ps(out, y);
            }
        }
    }
}

BXN_INLINE void gemm_group(const bxn_packed *w, const decoder *d, uint32_t group,
                           const bxn_mm_args *args, uint32_t chunk, uint32_t count, int mode)
{
    panel work;
    for (size_t i = 0; i < (size_t)count * 16; i += 8)
        _mm256_store_ps(work.y + i, _mm256_setzero_ps());
    for (uint32_t u = 0; u < w->k_units; u++) {
        decode_unit(w, d, w->data + ((size_t)group * w->k_units + u) * w->unit_bytes, &work, mode);
        uint32_t m = 0;
        for (; m + TILE <= count; m += TILE)
            tile(w, args, &work, u, chunk, m, TILE, mode);
        for (; m + 2 <= count; m += 2)
            tile(w, args, &work, u, chunk, m, 2, mode);
        if (m < count)
            tile(w, args, &work, u, chunk, m, 1, mode);
    }
    for (uint32_t m = 0; m < count; m++) {
        float *out = args->y + (chunk + m) * args->ldy;
        store_rows(w, group, 0, out, _mm256_load_ps(work.y + (size_t)m * 16));
        store_rows(w, group, 1, out, _mm256_load_ps(work.y + (size_t)m * 16 + 8));
    }
}

BXN_INLINE void mm_packed(const bxn_packed *w, uint32_t begin, uint32_t end,
                          const bxn_mm_args *args, int mode)
{
    if (begin >= end || args->count == 0)
        return;
    const decoder d = make_decoder(w, mode);
    if (args->count == 1) {
        gemv_range(w, &d, begin, end, args, mode);
        return;
    }
    for (uint32_t chunk = 0; chunk < args->count; chunk += CHUNK) {
        uint32_t left = args->count - chunk, count = left < CHUNK ? left : CHUNK;
        for (uint32_t group = begin; group < end; group++)
            gemm_group(w, &d, group, args, chunk, count, mode);
    }
}

void bxn_mm_packed4_avx2(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                         const bxn_mm_args *args)
{
    if (is_linear(w->table))
        mm_packed(w, group_begin, group_end, args, LINEAR4);
    else
        mm_packed(w, group_begin, group_end, args, TABLE4);
}

void bxn_mm_packed8_avx2(const bxn_packed *w, uint32_t group_begin, uint32_t group_end,
                         const bxn_mm_args *args)
{
    mm_packed(w, group_begin, group_end, args, BYTES8);
}
#endif
