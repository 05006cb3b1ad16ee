/* SPDX-License-Identifier: Apache-2.0 */
/* dots_avx512.h - products with integer activations on AVX-512. near_avx512.c and
 * near_avx512vnni.c compile it, each for its own instructions: BXN_VNNI says which.
 *
 * A form says how weights and activations meet. A code vector (64 bytes: 16 rows of 8 or 4
 * columns) is decoded into `steps` vectors of 16 dwords, each a row's next 4 bytes or 2 words;
 * the dword of an activation row that belongs to a step is broadcast to all lanes. An
 * activation row is stored by units of 128 columns: per plane one dword for each step of the
 * unit, then the sums of q over columns 0 .. 31, 0 .. 63, 64 .. 95 and 64 .. 127 (int32). Bytes
 * of weights are unsigned, code + centre; what that adds is taken away by starting a sum at
 * -centre * (sum of q of the block).
 *
 * Few tokens: row groups are walked in lockstep, each a stream of memory, and a code vector is
 * decoded once, in registers, for all tokens. Many tokens: the codes of up to 4 row groups are
 * decoded once per unit into a panel on the stack, then tokens pass by in tiles. Integer sums
 * have no order, and what follows them is done lane by lane in the order of kernels.h. */
#ifndef BXN_DOTS_AVX512_H
#define BXN_DOTS_AVX512_H

#include <string.h>

#include "kernels/kernels_isa.h"
#include "kernels/x86/vec_avx512.h"
#include "runtime/runtime.h"

#if defined(__clang__)
#define BXN_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define BXN_ROLLED _Pragma("GCC unroll 1")
#endif

#define FEW 8        /* tokens that go through in lockstep */
#define STREAMS 4    /* row groups in lockstep */
#define CHUNK 144    /* tokens that share one decoding of a unit */
#define TILE 12      /* tokens whose sums are in registers at once */
#define TILE_PARTS 8 /* the same, where each sum has a part beside it */
#define PAIRS 2      /* pairs of row groups that share the staging of a tile */

typedef enum form {
    TWO_BYTES,  /* codes as bytes; two planes: high and low byte of 16-bit activations */
    ONE_BYTE,   /* codes as bytes; activations of 8 bits */
    ONE_LOOKUP, /* the same, bytes of a table */
    WORDS,      /* values of 16 bits; activations of 16 bits */
    WIDENED     /* values of 16 bits; activations stored in 8 and widened before use */
} form;

BXN_INLINE unsigned in_words(form f)
{
    return f == WORDS || f == WIDENED;
}

BXN_INLINE unsigned planes_of(form f)
{
    return f == TWO_BYTES ? 2 : 1;
}

/* Decoded vectors of a code vector. */
BXN_INLINE unsigned steps_of(form f, unsigned bits)
{
    return (in_words(f) ? 16 : 8) / bits;
}

/* 4 bits: bytes that are not looked up are affine, and only those have a bias. 8 bits: the
 * matrix says it. */
BXN_INLINE int may_have_bias(form f, unsigned bits)
{
    return bits == 8 || f == TWO_BYTES || f == ONE_BYTE;
}

/* Stored bytes of an activation row for a unit, without the sums. */
BXN_INLINE unsigned stored_bytes(form f)
{
    return f == TWO_BYTES || f == WORDS ? 256 : 128;
}

/* Without VNNI bytes are multiplied into 16-bit sums, which hold 32 columns: 8 pairs of
 * products, each at most 2 * 15 * 128. */
BXN_INLINE unsigned in_parts(form f)
{
    return !BXN_VNNI && !in_words(f);
}

/* Sums that a loop carries have a type of their lanes: as __m512i, of 64-bit lanes, GCC keeps a
 * copy of each beside it, which does not fit into the registers. */
typedef int32_t sums __attribute__((vector_size(64)));
typedef int16_t parts __attribute__((vector_size(64)));

BXN_INLINE sums dot(sums sum, __m512i w, __m512i x, form f)
{
#if BXN_VNNI
    return (sums)(in_words(f) ? _mm512_dpwssd_epi32((__m512i)sum, w, x)
                              : _mm512_dpbusd_epi32((__m512i)sum, w, x));
#else
    (void)f;
    return sum + (sums)_mm512_madd_epi16(w, x);
#endif
}

BXN_INLINE parts dot_part(parts part, __m512i w, __m512i x)
{
    return part + (parts)_mm512_maddubs_epi16(w, x);
}

BXN_INLINE sums add_part(sums sum, parts part)
{
    return sum + (sums)_mm512_madd_epi16((__m512i)part, _mm512_set1_epi16(1));
}

BXN_INLINE __m512i dword_at(const void *p)
{
    int32_t value;
    memcpy(&value, p, sizeof value);
    return _mm512_set1_epi32(value);
}

/* ---- weights --------------------------------------------------------------------------- */

typedef struct decoder {
    __m512i table, mask;
    int32_t centre; /* that is in the decoded bytes */
} decoder;

BXN_INLINE decoder make_decoder(const bxn_packed *w, form f, unsigned bits, int fast)
{
    decoder d;
    __m512i values = _mm512_cvtps_epi32(
        _mm512_mul_ps(_mm512_loadu_ps(w->table), _mm512_set1_ps(fast ? 127.0f : 8191.0f)));
    d.mask = _mm512_set1_epi8(bits == 8 ? -128 : 15);
    d.table = in_words(f) ? _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(values))
                          : _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(
                                _mm512_add_epi32(values, _mm512_set1_epi32(128))));
    d.centre = in_words(f) ? 0 : bits == 8 || f == ONE_LOOKUP ? 128 : (int32_t)w->center;
    return d;
}

/* Step `n` of a code vector. Words: the table has its 16 values twice, so that the index may
 * have a bit of the next code in it. */
BXN_INLINE __m512i decode(const decoder *d, __m512i codes, unsigned n, form f, unsigned bits)
{
    if (in_words(f) && bits == 4)
        return _mm512_permutexvar_epi16(n == 0 ? codes : _mm512_srli_epi16(codes, 4 * n), d->table);
    if (in_words(f))
        return _mm512_srai_epi16(n == 0 ? _mm512_slli_epi16(codes, 8) : codes, 8);
    if (bits == 8)
        return _mm512_xor_si512(codes, d->mask);
    codes = _mm512_and_si512(n == 0 ? codes : _mm512_srli_epi16(codes, 4), d->mask);
    return f == ONE_LOOKUP ? _mm512_shuffle_epi8(d->table, codes) : codes;
}

BXN_INLINE __m512 scales_at(const uint8_t *values, int f32, uint32_t block)
{
    if (f32)
        return _mm512_loadu_ps((const float *)(const void *)(values + (size_t)block * 64));
    return _mm512_cvtph_ps(
        _mm256_loadu_si256((const __m256i *)(const void *)(values + (size_t)block * 32)));
}

/* Integer blocks: 2 in a unit, or 4 when there are 4 scale blocks. */
BXN_INLINE unsigned blocks_of(const bxn_packed *w)
{
    return w->blocks == 4 ? 4 : 2;
}

/* Scale and bias' of integer block b. */
BXN_INLINE void block_at(const bxn_packed *w, const uint8_t *unit, unsigned b, __m512 *scale,
                         __m512 *bias, form f, unsigned bits)
{
    const uint32_t block = b * w->blocks / blocks_of(w);
    *scale = scales_at(unit, w->scale_f32, block);
    *bias = _mm512_setzero_ps();
    if (may_have_bias(f, bits) && w->has_bias)
        *bias = _mm512_fmadd_ps(_mm512_set1_ps(w->center), *scale,
                                scales_at(unit, w->scale_f32, block + w->blocks));
}

BXN_INLINE __mmask16 row_mask(const bxn_packed *w, uint32_t group)
{
    uint32_t left = w->rows - group * BXN_UNIT_ROWS;
    return left >= 16 ? (__mmask16)0xFFFF : tail_mask(left);
}

/* ---- activations ----------------------------------------------------------------------- */

/* Where a token's rows begin. */
typedef struct source {
    const uint8_t *xq;
    const float *scale, *sum;
} source;

/* One unit of up to TILE tokens: broadcast from here at offsets known to the compiler. */
typedef struct stage {
    _Alignas(64) uint8_t x[TILE][256];
    /* of the integer block that begins at 32-column block j: -centre * sum of q, xs, X */
    int32_t start[TILE][4];
    float scale[TILE][4], sum[TILE][4];
} stage;

/* Not inlined, so that the loop around it is not made into vectors of 8 KiB of code. */
static __attribute__((noinline)) source source_of(const bxn_packed *w, const bxn_mm_args *args,
                                                  uint32_t token)
{
    const size_t row = args->rows != NULL ? (size_t)args->rows[token] : token;
    return (source){(const uint8_t *)args->xq + row * args->ldxq,
                    args->xscale + row * args->ldxscale,
                    w->has_bias ? args->xsum + row * args->ldsum : NULL};
}

/* Unit u of `count` tokens. Rows `ahead` tokens later are fetched into the cache. */
static __attribute__((noinline)) void stage_tokens(const bxn_packed *w, const source *from,
                                                   unsigned count, unsigned ahead, uint32_t u,
                                                   int32_t centre, form f, stage *st)
{
    const size_t at = (size_t)u * (stored_bytes(f) + 16);
    const int narrow = blocks_of(w) == 4;
    BXN_ROLLED
    for (unsigned m = 0; m < count; m++) {
        const uint8_t *xq = from[m].xq + at, *later = from[m + ahead].xq + at;
        for (unsigned i = 0; i < 4; i++)
            if (f == WIDENED)
                _mm512_store_si512(st->x[m] + i * 64, _mm512_cvtepi8_epi16(_mm256_loadu_si256(
                                                          (const void *)(xq + i * 32))));
            else if (i < stored_bytes(f) / 64)
                _mm512_store_si512(st->x[m] + i * 64, _mm512_loadu_si512(xq + i * 64));
        for (unsigned i = 0; i <= stored_bytes(f) / 64; i++)
            _mm_prefetch((const char *)later + i * 64, _MM_HINT_T0);
        /* sums of columns 0 .. 31, 0 .. 63, 64 .. 95, 64 .. 127 */
        const __m128i q = _mm_loadu_si128((const void *)(xq + stored_bytes(f)));
        __m128i wide = _mm_shuffle_epi32(q, 0xF5);
        if (narrow)
            wide = _mm_blend_epi16(q, _mm_sub_epi32(q, _mm_shuffle_epi32(q, 0xA0)), 0xCC);
        _mm_store_si128((void *)st->start[m], _mm_mullo_epi32(wide, _mm_set1_epi32(-centre)));
        const __m128 scale =
            _mm_castsi128_ps(_mm_loadl_epi64((const void *)(from[m].scale + (size_t)u * 2)));
        _mm_store_ps(st->scale[m], _mm_unpacklo_ps(scale, scale));
        if (w->has_bias) {
            __m128 sum = _mm_loadu_ps(from[m].sum + (size_t)u * 4);
            if (!narrow)
                sum = _mm_add_ps(sum, _mm_movehdup_ps(sum));
            _mm_store_ps(st->sum[m], sum);
        }
    }
}

/* y of one row group and token: an integer block more. */
BXN_INLINE __m512 add_block(const bxn_packed *w, __m512 y, sums sum, __m512 scale, __m512 bias,
                            const stage *st, unsigned m, unsigned j, form f, unsigned bits)
{
    const __mmask16 has_bias = w->has_bias ? 0xFFFF : 0;
    y = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum),
                        _mm512_mul_ps(scale, _mm512_set1_ps(st->scale[m][j])), y);
    if (!may_have_bias(f, bits))
        return y;
    if (bits == 4)
        return _mm512_fmadd_ps(bias, _mm512_set1_ps(st->sum[m][j]), y);
    return _mm512_mask3_fmadd_ps(bias, _mm512_set1_ps(st->sum[m][j]), y, has_bias);
}

/* ---- few tokens ------------------------------------------------------------------------ */

/* Integer block b of `together` row groups against `tokens` staged tokens. */
BXN_INLINE void lockstep_block(const bxn_packed *w, const decoder *d, const uint8_t *const *unit,
                               const stage *st, unsigned b, __m512 (*y)[FEW], unsigned tokens,
                               unsigned together, form f, unsigned bits)
{
    const unsigned planes = planes_of(f), steps = steps_of(f, bits);
    const unsigned vectors = 4 * bits / blocks_of(w); /* in a block */
    const unsigned span = in_parts(f) ? bits : vectors;
    const unsigned j = b * 4 / blocks_of(w);
    const size_t first = bxn_unit_scale_bytes(w) + (size_t)b * vectors * 64;
    const size_t ahead = 2 * (size_t)w->unit_bytes;
    const uint8_t *x = st->x[0] + b * vectors * steps * 4;
    sums sum[STREAMS][FEW][2];
    parts part[STREAMS][FEW][2];
    BXN_UNROLL
    for (unsigned r = 0; r < together; r++) {
        _mm_prefetch((const char *)unit[r] + ahead + b * 64, _MM_HINT_T0);
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++) {
            sum[r][m][1] = (sums){0};
            sum[r][m][0] = in_words(f) ? (sums){0} : (sums)_mm512_set1_epi32(st->start[m][j]);
        }
    }
    BXN_ROLLED
    for (unsigned begin = 0; begin < vectors; begin += span) {
        if (in_parts(f)) {
            BXN_UNROLL
            for (unsigned i = 0; i < together * tokens; i++)
                part[i / tokens][i % tokens][0] = part[i / tokens][i % tokens][1] = (parts){0};
        }
        BXN_ROLLED
        for (unsigned v = begin; v < begin + span; v++, x += steps * 4) {
            __m512i c[STREAMS], value[STREAMS];
            BXN_UNROLL
            for (unsigned r = 0; r < together; r++) {
                const uint8_t *codes = unit[r] + first + (size_t)v * 64;
                c[r] = _mm512_loadu_si512(codes);
                _mm_prefetch((const char *)codes + ahead, _MM_HINT_T0);
            }
            BXN_UNROLL
            for (unsigned n = 0; n < steps; n++) {
                BXN_UNROLL
                for (unsigned r = 0; r < together; r++)
                    value[r] = decode(d, c[r], n, f, bits);
                BXN_UNROLL
                for (unsigned i = 0; i < tokens * planes; i++) {
                    const unsigned m = i / planes, p = i % planes;
                    __m512i xm = dword_at(x + m * 256 + (planes - 1 - p) * 128 + n * 4);
                    BXN_UNROLL
                    for (unsigned r = 0; r < together; r++) {
                        if (in_parts(f))
                            part[r][m][p] = dot_part(part[r][m][p], value[r], xm);
                        else
                            sum[r][m][p] = dot(sum[r][m][p], value[r], xm, f);
                    }
                }
            }
        }
        if (in_parts(f)) {
            BXN_UNROLL
            for (unsigned i = 0; i < together * tokens * planes; i++) {
                const unsigned p = i % planes, m = i / planes % tokens, r = i / planes / tokens;
                sum[r][m][p] = add_part(sum[r][m][p], part[r][m][p]);
            }
        }
    }
    BXN_UNROLL
    for (unsigned r = 0; r < together; r++) {
        __m512 scale, bias;
        block_at(w, unit[r], b, &scale, &bias, f, bits);
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++) {
            sums s = sum[r][m][0];
            if (planes == 2)
                s += sum[r][m][1] << 8;
            y[r][m] = add_block(w, y[r][m], s, scale, bias, st, m, j, f, bits);
        }
    }
}

/* Row groups group, group + step, ...: `streams` of them, `together` at a time. */
BXN_INLINE void lockstep(const bxn_packed *w, const decoder *d, uint32_t group, uint32_t step,
                         unsigned streams, const bxn_mm_args *args, unsigned tokens,
                         unsigned together, form f, unsigned bits)
{
    stage st;
    const uint8_t *unit[STREAMS];
    __m512 y[STREAMS][FEW];
    source from[FEW];
    for (uint32_t m = 0; m < tokens; m++)
        from[m] = source_of(w, args, m);
    BXN_ROLLED
    for (unsigned s = 0; s < STREAMS; s++) { /* those too many are the last again */
        const uint32_t g = group + (s < streams ? s : streams - 1) * step;
        unit[s] = w->data + (size_t)g * w->k_units * w->unit_bytes;
        BXN_ROLLED
        for (unsigned m = 0; m < tokens; m++)
            y[s][m] = _mm512_setzero_ps();
    }
    for (uint32_t u = 0; u < w->k_units; u++) {
        stage_tokens(w, from, tokens, 0, u, d->centre, f, &st);
        BXN_ROLLED
        for (unsigned b = 0; b < blocks_of(w); b++)
            BXN_ROLLED
        for (unsigned s = 0; s < streams; s += together)
            lockstep_block(w, d, unit + s, &st, b, y + s, tokens, together, f, bits);
        for (unsigned s = 0; s < STREAMS; s++)
            unit[s] += w->unit_bytes;
    }
    BXN_ROLLED
    for (unsigned s = 0; s < streams; s++)
        BXN_ROLLED
    for (unsigned m = 0; m < tokens; m++) {
        const uint32_t g = group + s * step;
        _mm512_mask_storeu_ps(args->y + m * args->ldy + (size_t)g * BXN_UNIT_ROWS, row_mask(w, g),
                              y[s][m]);
    }
}

/* Row groups whose sums and those of `tokens` tokens are in registers at once. */
BXN_INLINE unsigned together_of(unsigned tokens, form f)
{
    const unsigned each = tokens * planes_of(f) * (in_parts(f) ? 2 : 1); /* sums of a row group */
    return each <= 3 ? 4 : each <= 12 ? 2 : 1;
}

/* ---- many tokens ----------------------------------------------------------------------- */

typedef struct panel {
    _Alignas(64) uint8_t value[PAIRS][64][2][64]; /* [step of the unit][row group] */
    _Alignas(64) float scale[PAIRS][4][2][16], bias[PAIRS][4][2][16]; /* [block][row group] */
    _Alignas(64) float y[PAIRS][CHUNK][2][16];                        /* [token][row group] */
    stage st;
    source from[CHUNK + TILE];
} panel;

/* One row group of a pair. */
BXN_INLINE void decode_unit(const bxn_packed *w, const decoder *d, uint32_t group, uint32_t u,
                            panel *work, unsigned pair, unsigned g, form f, unsigned bits)
{
    const unsigned steps = steps_of(f, bits);
    const uint8_t *unit = w->data + ((size_t)group * w->k_units + u) * w->unit_bytes;
    const uint8_t *codes = unit + bxn_unit_scale_bytes(w);
    const size_t ahead = w->unit_bytes;
    BXN_ROLLED
    for (unsigned b = 0; b < blocks_of(w); b++) {
        __m512 scale, bias;
        block_at(w, unit, b, &scale, &bias, f, bits);
        _mm512_store_ps(work->scale[pair][b][g], scale);
        _mm512_store_ps(work->bias[pair][b][g], bias);
        _mm_prefetch((const char *)unit + ahead + b * 64, _MM_HINT_T0);
    }
    uint8_t(*out)[2][64] = work->value[pair];
    BXN_ROLLED
    for (unsigned v = 0; v < 4 * bits; v++, codes += 64) {
        __m512i c = _mm512_loadu_si512(codes);
        _mm_prefetch((const char *)codes + ahead, _MM_HINT_T0);
        BXN_UNROLL
        for (unsigned n = 0; n < steps; n++, out++)
            _mm512_store_si512((*out)[g], decode(d, c, n, f, bits));
    }
}

/* `count` steps of `tokens` staged tokens and a pair of row groups. */
BXN_INLINE void run_steps(const uint8_t (*value)[2][64], const uint8_t *x, sums (*sum)[2],
                          unsigned count, unsigned tokens, form f)
{
    BXN_ROLLED
    for (unsigned i = 0; i < count; i++, value++, x += 4) {
        __m512i v0 = _mm512_load_si512((*value)[0]), v1 = _mm512_load_si512((*value)[1]);
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++) {
            __m512i xm = dword_at(x + m * 256);
            sum[m][0] = dot(sum[m][0], v0, xm, f);
            sum[m][1] = dot(sum[m][1], v1, xm, f);
        }
    }
}

/* The same in parts, 8 steps at a time. */
BXN_INLINE void run_parts(const uint8_t (*value)[2][64], const uint8_t *x, sums (*sum)[2],
                          unsigned count, unsigned tokens)
{
    for (const uint8_t *end = x + count * 4; x < end;) {
        parts part[TILE][2];
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++)
            part[m][0] = part[m][1] = (parts){0};
        BXN_ROLLED
        for (unsigned i = 0; i < 8; i++, value++, x += 4) {
            __m512i v0 = _mm512_load_si512((*value)[0]), v1 = _mm512_load_si512((*value)[1]);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                __m512i xm = dword_at(x + m * 256);
                part[m][0] = dot_part(part[m][0], v0, xm);
                part[m][1] = dot_part(part[m][1], v1, xm);
            }
        }
        BXN_UNROLL
        for (unsigned m = 0; m < tokens; m++) {
            sum[m][0] = add_part(sum[m][0], part[m][0]);
            sum[m][1] = add_part(sum[m][1], part[m][1]);
        }
    }
}

/* The staged unit of tokens first .. first + tokens - 1 of the chunk against a pair. */
BXN_INLINE void tile(const bxn_packed *w, panel *work, unsigned pair, uint32_t first,
                     unsigned tokens, form f, unsigned bits)
{
    const stage *st = &work->st;
    const unsigned planes = planes_of(f);
    const unsigned steps = (in_words(f) ? 64 : 32) / blocks_of(w);
    BXN_ROLLED
    for (unsigned b = 0; b < blocks_of(w); b++) {
        const unsigned j = b * 4 / blocks_of(w);
        sums sum[TILE][2];
        BXN_UNROLL
        for (unsigned p = 0; p < planes; p++) {
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                sums start = {0};
                if (!in_words(f) && p + 1 == planes)
                    start = (sums)_mm512_set1_epi32(st->start[m][j]);
                sum[m][0] = p == 0 ? start : (sum[m][0] << 8) + start;
                sum[m][1] = p == 0 ? start : (sum[m][1] << 8) + start;
            }
            const uint8_t(*value)[2][64] =
                (const uint8_t(*)[2][64])(const void *)(work->value[pair] + b * steps);
            const uint8_t *x = st->x[0] + p * 128 + b * steps * 4;
            if (in_parts(f))
                run_parts(value, x, sum, steps, tokens);
            else
                run_steps(value, x, sum, steps, tokens, f);
        }
        BXN_UNROLL
        for (unsigned g = 0; g < 2; g++) {
            __m512 scale = _mm512_load_ps(work->scale[pair][b][g]);
            __m512 bias = _mm512_load_ps(work->bias[pair][b][g]);
            BXN_UNROLL
            for (unsigned m = 0; m < tokens; m++) {
                float *y = work->y[pair][first + m][g];
                __m512 sum_y = _mm512_load_ps(y);
                sum_y = add_block(w, sum_y, sum[m][g], scale, bias, st, m, j, f, bits);
                _mm512_store_ps(y, sum_y);
            }
        }
    }
}

/* The staged tokens first, first + 1, ... of the chunk, a known number, against a pair. */
typedef void (*pass_tile)(const bxn_packed *w, panel *work, unsigned pair, uint32_t first);

/* `groups` row groups, at most 2 * PAIRS, and `count` tokens, at most CHUNK. An odd group is a
 * pair with itself; a tile has 4, 8 or 12 tokens, the last of them repeated. */
BXN_INLINE void many_groups(const bxn_packed *w, const decoder *d, uint32_t group, unsigned groups,
                            const bxn_mm_args *args, uint32_t chunk, uint32_t count,
                            const pass_tile *tiles, form f, unsigned bits)
{
    panel work;
    const unsigned pairs = (groups + 1) / 2;
    const unsigned full = in_parts(f) ? TILE_PARTS : TILE;
    for (uint32_t m = 0; m < CHUNK + TILE; m++)
        work.from[m] = m < count ? source_of(w, args, chunk + m) : work.from[count - 1];
    BXN_ROLLED
    for (unsigned pair = 0; pair < pairs; pair++)
        for (uint32_t m = 0; m < bxn_round_up(count, 4); m++)
            BXN_ROLLED
    for (unsigned g = 0; g < 2; g++)
        _mm512_store_ps(work.y[pair][m][g], _mm512_setzero_ps());
    for (uint32_t u = 0; u < w->k_units; u++) {
        BXN_ROLLED
        for (unsigned g = 0; g < 2 * pairs; g++)
            decode_unit(w, d, group + (g < groups ? g : groups - 1), u, &work, g / 2, g % 2, f,
                        bits);
        for (uint32_t m = 0; m < count;) {
            const uint32_t left = count - m;
            const unsigned tokens = left > full - 4 ? full : left > 4 ? 8 : 4;
            stage_tokens(w, work.from + m, tokens, full, u, d->centre, f, &work.st);
            BXN_ROLLED
            for (unsigned pair = 0; pair < pairs; pair++)
                tiles[tokens / 4 - 1](w, &work, pair, m);
            m += tokens;
        }
    }
    BXN_ROLLED
    for (uint32_t m = 0; m < count; m++)
        BXN_ROLLED
    for (unsigned g = 0; g < groups; g++)
        _mm512_mask_storeu_ps(args->y + (chunk + m) * args->ldy +
                                  (size_t)(group + g) * BXN_UNIT_ROWS,
                              row_mask(w, group + g), _mm512_load_ps(work.y[g / 2][m][g % 2]));
}

BXN_INLINE void many(const bxn_packed *w, const decoder *d, uint32_t begin, uint32_t end,
                     const bxn_mm_args *args, const pass_tile *tiles, form f, unsigned bits)
{
    for (uint32_t chunk = 0; chunk < args->count; chunk += CHUNK) {
        uint32_t left = args->count - chunk, count = left < CHUNK ? left : CHUNK;
        for (uint32_t group = begin; group < end; group += 2 * PAIRS) {
            uint32_t groups = end - group < 2 * PAIRS ? end - group : 2 * PAIRS;
            many_groups(w, d, group, groups, args, chunk, count, tiles, f, bits);
        }
    }
}

/* ---- entries --------------------------------------------------------------------------- */

/* Row groups group, group + step, ..., `streams` of them, against a known number of tokens. */
typedef void (*few_tokens)(const bxn_packed *w, const decoder *d, uint32_t group, uint32_t step,
                           unsigned streams, const bxn_mm_args *args);

/* The range is cut into STREAMS shares that are walked side by side. */
static inline void few(const bxn_packed *w, const decoder *d, uint32_t begin, uint32_t end,
                       const bxn_mm_args *args, few_tokens kernel)
{
    const uint32_t share = (end - begin) / STREAMS, rest = begin + share * STREAMS;
    for (uint32_t g = begin; g < begin + share; g++)
        kernel(w, d, g, share, STREAMS, args);
    if (rest < end)
        kernel(w, d, rest, 1, end - rest, args);
}

/* A product `name` of codes of `bits` bits in form f. */
#define FEW_TOKENS(name, f, bits, n)                                                               \
    static void name##_##n(const bxn_packed *w, const decoder *d, uint32_t group, uint32_t step,   \
                           unsigned streams, const bxn_mm_args *args)                              \
    {                                                                                              \
        lockstep(w, d, group, step, streams, args, n, together_of(n, f), f, bits);                 \
    }
#define PASS_TILE(name, f, bits, n)                                                                \
    static void name##_tile##n(const bxn_packed *w, panel *work, unsigned pair, uint32_t first)    \
    {                                                                                              \
        tile(w, work, pair, first, n, f, bits);                                                    \
    }
#define DOTS(name, f, bits, fast)                                                                  \
    PASS_TILE(name, f, bits, 4)                                                                    \
    PASS_TILE(name, f, bits, 8)                                                                    \
    PASS_TILE(name, f, bits, 12)                                                                   \
    FEW_TOKENS(name, f, bits, 1)                                                                   \
    FEW_TOKENS(name, f, bits, 2)                                                                   \
    FEW_TOKENS(name, f, bits, 3)                                                                   \
    FEW_TOKENS(name, f, bits, 4)                                                                   \
    FEW_TOKENS(name, f, bits, 5)                                                                   \
    FEW_TOKENS(name, f, bits, 6)                                                                   \
    FEW_TOKENS(name, f, bits, 7)                                                                   \
    FEW_TOKENS(name, f, bits, 8)                                                                   \
    static void name(const bxn_packed *w, uint32_t begin, uint32_t end, const bxn_mm_args *args)   \
    {                                                                                              \
        static const few_tokens kernels[FEW] = {name##_1, name##_2, name##_3, name##_4,            \
                                                name##_5, name##_6, name##_7, name##_8};           \
        static const pass_tile tiles[TILE / 4] = {name##_tile4, name##_tile8, name##_tile12};      \
        if (begin >= end || args->count == 0)                                                      \
            return;                                                                                \
        const decoder d = make_decoder(w, f, bits, fast);                                          \
        if (args->count <= FEW)                                                                    \
            few(w, &d, begin, end, args, kernels[args->count - 1]);                                \
        else                                                                                       \
            many(w, &d, begin, end, args, tiles, f, bits);                                         \
    }

/* ---- integers of activations ------------------------------------------------------------ */

BXN_INLINE void store_two_bytes(const __m512i *q, uint8_t *unit, unsigned half, __m512i order)
{
    __m128i high[4], low[4];
    BXN_UNROLL
    for (unsigned i = 0; i < 4; i++) {
        low[i] = _mm512_cvtepi32_epi8(q[i]);
        high[i] = _mm512_cvtepi32_epi8(
            _mm512_srai_epi32(_mm512_add_epi32(q[i], _mm512_set1_epi32(128)), 8));
    }
    const __m128i o = _mm512_castsi512_si128(order);
    BXN_UNROLL
    for (unsigned i = 0; i < 4; i++) {
        _mm_storeu_si128((void *)(unit + half * 64 + i * 16), _mm_shuffle_epi8(high[i], o));
        _mm_storeu_si128((void *)(unit + 128 + half * 64 + i * 16), _mm_shuffle_epi8(low[i], o));
    }
}

/* Half a unit of integers as form f stores them. */
BXN_INLINE void store_integers(const __m512i *q, uint8_t *unit, unsigned half, form f,
                               __m512i order)
{
    if (f == TWO_BYTES) {
        store_two_bytes(q, unit, half, order);
    } else if (f == WORDS) {
        BXN_UNROLL
        for (unsigned i = 0; i < 4; i++)
            _mm256_storeu_si256(
                (void *)(unit + half * 128 + i * 32),
                _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(q[i]), _mm512_castsi512_si256(order)));
    } else {
        BXN_UNROLL
        for (unsigned i = 0; i < 4; i++)
            _mm_storeu_si128(
                (void *)(unit + half * 64 + i * 16),
                _mm_shuffle_epi8(_mm512_cvtepi32_epi8(q[i]), _mm512_castsi512_si128(order)));
    }
    const int32_t first = _mm512_reduce_add_epi32(_mm512_add_epi32(q[0], q[1]));
    const int32_t second = _mm512_reduce_add_epi32(_mm512_add_epi32(q[2], q[3]));
    const int32_t both[2] = {first, first + second};
    memcpy(unit + stored_bytes(f) + half * 8, both, sizeof both);
}

/* Which of 8 columns come in which order: four bytes or two words of a dword belong to one
 * step. In bytes for the shuffle; of words the second half of `order` is used. */
BXN_INLINE __m512i order_of(form f, unsigned bits)
{
    static const uint8_t columns[3][8] = {
        {0, 2, 4, 6, 1, 3, 5, 7}, /* 4 bits as bytes: low nibbles, high nibbles */
        {0, 4, 1, 5, 2, 6, 3, 7}, /* 4 bits as words */
        {0, 2, 1, 3, 4, 6, 5, 7}, /* 8 bits as words; as bytes the columns are in order */
    };
    uint8_t bytes[64];
    for (unsigned i = 0; i < 64; i++) {
        const unsigned at = f == WORDS ? i % 16 / 2 : i % 16;
        unsigned column = at % 8;
        if (in_words(f) || bits == 4)
            column = columns[!in_words(f) ? 0 : bits == 4 ? 1 : 2][column];
        bytes[i] = (uint8_t)(f == WORDS ? column * 2 + i % 2 : column + at / 8 * 8);
    }
    return _mm512_loadu_si512(bytes);
}

BXN_INLINE void quant(const float *x, size_t columns, uint8_t *xq, float *xscale, float limit,
                      float table_unit, form f, unsigned bits)
{
    const __m512i order = order_of(f, bits);
    const __m512 sign = _mm512_set1_ps(-0.0f);
    for (size_t block = 0; block < columns / BXN_XQ_BLOCK; block++, x += BXN_XQ_BLOCK) {
        uint8_t *unit = xq + block / 2 * (stored_bytes(f) + 16);
        __m512 v[4];
        __m512i q[4], most = _mm512_setzero_si512();
        BXN_UNROLL
        for (unsigned i = 0; i < 4; i++) {
            v[i] = _mm512_loadu_ps(x + i * 16);
            most = _mm512_max_epu32(most, _mm512_castps_si512(_mm512_andnot_ps(sign, v[i])));
        }
        const uint32_t bits_of_most = _mm512_reduce_max_epu32(most);
        float m;
        memcpy(&m, &bits_of_most, sizeof m);
        if (bits_of_most >= 0x7F800000u || m < 1e-30f) {
            const uint32_t nan = 0x7FC00000u;
            xscale[block] = 0;
            if (bits_of_most >= 0x7F800000u)
                memcpy(xscale + block, &nan, sizeof nan);
            q[0] = q[1] = q[2] = q[3] = _mm512_setzero_si512();
        } else {
            const __m512 factor = _mm512_set1_ps(limit / m);
            xscale[block] = m / limit / table_unit;
            BXN_UNROLL
            for (unsigned i = 0; i < 4; i++) /* at most limit: the errors of two roundings are
                                              * too small to reach limit + 1/2 */
                q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], factor));
        }
        store_integers(q, unit, block % 2, f, order);
    }
}

#endif
