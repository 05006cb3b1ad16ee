/* SPDX-License-Identifier: Apache-2.0 */
/* check_attention.c - checks of windowed attention: head dimensions 1 to 130, windows that
 * begin and end anywhere in blocks and pages, slots that hold garbage, extreme scores, and
 * equal bits for any grouping of queries. */
#include "checkkern.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"

typedef struct cached {
    bxn_kv_type type;
    bool tiles; /* the entry that rounds operands to bf16 */
    uint32_t dim;
    uint64_t first_page;
    uint8_t *pages[64];
    size_t k_offset, v_offset;
    float *k, *v; /* [positions, dim], as stored; from position first_page * BXN_PAGE on */
} cached;

static bool has_scales(bxn_kv_type type)
{
    return type == BXN_KV_I8 || type == BXN_KV_Q4;
}

/* Bytes of n values and of the scales before them. */
static size_t region_bytes(bxn_kv_type type, size_t n)
{
    static const size_t twice[] = {0, 4, 8, 2, 1};
    return n * twice[type] / 2 + (has_scales(type) ? BXN_PAGE * sizeof(float) : 0);
}

/* As an operand of the products. */
static float operand(const cached *c, float value)
{
    return !c->tiles ? value : bxn_bf16_f32(bxn_f32_bf16(fabsf(value) < 0x1p-126f ? 0.0f : value));
}

/* Element `index` of a region, or for 4 bits nibble `nibble` of word `index`; the value that
 * it stands for goes to *stored. */
static void put(const cached *c, uint8_t *region, size_t slot, size_t index, size_t nibble,
                float value, float *stored)
{
    static const float levels[8] = BXN_KV_LEVELS;
    uint8_t *codes = region + BXN_PAGE * sizeof(float);
    if (c->type == BXN_KV_F32) {
        memcpy(region + 4 * index, &value, sizeof value);
        *stored = operand(c, value);
    } else if (c->type == BXN_KV_F16) {
        uint16_t bits = bxn_f32_f16(value);
        memcpy(region + 2 * index, &bits, sizeof bits);
        *stored = operand(c, f16_value(bits));
    } else {
        float scale;
        memcpy(&scale, region + slot * sizeof scale, sizeof scale);
        if (!isfinite(value)) { /* such a row has a scale that is not a number */
            scale = NAN;
            memcpy(region + slot * sizeof scale, &scale, sizeof scale);
            *stored = NAN;
        } else if (c->type == BXN_KV_I8) {
            int8_t code = (int8_t)fmaxf(-127, fminf(127, 40 * value));
            memcpy(codes + index, &code, 1);
            *stored = (float)code * scale;
        } else {
            uint32_t word, code = (uint32_t)(fabsf(value) * 1000) % 8 + (value < 0 ? 8 : 0);
            memcpy(&word, codes + 4 * index, sizeof word);
            word = (word & ~((uint32_t)15 << 4 * nibble)) | code << 4 * nibble;
            memcpy(codes + 4 * index, &word, sizeof word);
            *stored = operand(c, code & 8 ? -levels[code & 7] : levels[code & 7]) * scale;
        }
    }
}

static void put_key(const cached *c, uint8_t *page, size_t slot, size_t d, float value,
                    float *stored)
{
    size_t row =
        c->type == BXN_KV_Q4 ? slot / 16 * ((c->dim + 7) / 8) + d / 8 : slot / 16 * c->dim + d;
    put(c, page + c->k_offset, slot, row * 16 + slot % 16, d % 8, value, stored);
}

static void put_value(const cached *c, uint8_t *page, size_t slot, size_t d, float value,
                      float *stored)
{
    size_t row = c->type == BXN_KV_Q4 ? slot / 8 : slot;
    put(c, page + c->v_offset, slot, row * bxn_round_up(c->dim, 16) + d, slot % 8, value, stored);
}

/* Pages for positions [begin, end); slots outside hold bytes that are NaN. */
static void make_cache(run *r, cached *c, uint64_t begin, uint64_t end, float key_size)
{
    const size_t stride = bxn_round_up(c->dim, 16);
    const size_t k_bytes =
        region_bytes(c->type, BXN_PAGE * (c->type == BXN_KV_Q4 ? bxn_round_up(c->dim, 8) : c->dim));
    const size_t v_bytes = region_bytes(c->type, BXN_PAGE * stride);
    c->first_page = begin / BXN_PAGE;
    c->k_offset = below(r, 2) * 64;
    c->v_offset = c->k_offset + k_bytes;
    size_t count = (size_t)((end + BXN_PAGE - 1) / BXN_PAGE - c->first_page);
    for (size_t i = 0; i < count; i++) {
        c->pages[i] = guarded(c->v_offset + v_bytes);
        memset(c->pages[i], 0xFF, c->v_offset + v_bytes);
    }
    c->k = calloc(count * BXN_PAGE * c->dim, sizeof(float));
    c->v = calloc(count * BXN_PAGE * c->dim, sizeof(float));
    for (uint64_t p = begin; p < end; p++) {
        uint8_t *page = c->pages[p / BXN_PAGE - c->first_page];
        size_t slot = (size_t)(p % BXN_PAGE), row = (size_t)(p - c->first_page * BXN_PAGE) * c->dim;
        float k_scale = key_size / (c->type == BXN_KV_I8 ? 40.0f : 1.0f) * uniform(r, 0.5f, 2.0f),
              unused;
        float v_scale = uniform(r, 0.01f, 0.1f);
        if (has_scales(c->type)) {
            memcpy(page + c->k_offset + slot * sizeof(float), &k_scale, sizeof k_scale);
            memcpy(page + c->v_offset + slot * sizeof(float), &v_scale, sizeof v_scale);
        }
        for (uint32_t d = c->dim; d < stride; d++)
            put_value(c, page, slot, d, 0.0f, &unused);
        for (uint32_t d = 0; d < c->dim; d++) {
            put_key(c, page, slot, d, (has_scales(c->type) ? 1 : key_size) * normal(r),
                    &c->k[row + d]);
            put_value(c, page, slot, d, normal(r), &c->v[row + d]);
        }
    }
}

static void attend(const bxn_kernels *k, const cached *c, const bxn_attention_args *a)
{
    void (*const entries_of[])(const bxn_attention_args *) = {
        NULL, k->attention_f16, k->attention_f32, k->attention_i8, k->attention_q4};
    if (c->tiles)
        k->attention_tile(a, c->type);
    else
        entries_of[c->type](a);
}

static void expect(run *r, const cached *c, const bxn_attention_args *a, uint32_t i,
                   const float *got, const float *plain)
{
    const uint64_t end = a->position + i + 1, begin = end > a->window ? end - a->window : 0;
    const size_t origin = (size_t)(c->first_page * BXN_PAGE), keys = (size_t)(end - begin);
    const float scale = a->scale * 1.44269504f; /* tiles: of the operand, to base 2 */
    const double unit = c->tiles ? log(2.0) : (double)a->scale;
    double *score = malloc(keys * sizeof *score), max = -INFINITY, worst = 0, total = 0;
    for (uint64_t p = begin; p < end; p++) {
        double dot = 0, size = 0;
        for (uint32_t d = 0; d < c->dim; d++) {
            const float q = a->q[i * a->ldq + d];
            double term = (double)(c->tiles ? operand(c, q * scale) : q) *
                          (double)c->k[((size_t)p - origin) * c->dim + d];
            dot += term;
            size += fabs(term);
        }
        dot *= unit;
        score[p - begin] = dot;
        max = dot > max ? dot : max;
        double error = (c->dim + 5.0) * UNIT_ROUNDOFF * size * unit;
        worst = error > worst ? error : worst;
    }
    for (size_t j = 0; j < keys; j++) {
        /* the difference to the maximum is rounded too */
        double rounding = UNIT_ROUNDOFF * fabs(score[j] - max);
        worst = rounding > worst && score[j] > max - 100 ? rounding : worst;
        score[j] = exp(score[j] - max);
        total += score[j];
    }
    /* every merge of parts multiplies by two more exponentials, of differences of maxima */
    const double merges = (double)((end - 1) / BXN_PART - begin / BXN_PART);
    double relative = (6 + 4 * merges) * worst + (2 + 2 * merges) * EXP_ERROR +
                      (2.0 * (double)keys + 20 + 6 * merges) * UNIT_ROUNDOFF;
    if (c->tiles) /* weights are rounded to bf16, either way where they differ in a last bit */
        relative += 0x1p-8;
    for (uint32_t d = 0; d < c->dim; d++) {
        double sum = 0, size = 0;
        for (size_t j = 0; j < keys; j++) {
            double term = score[j] * (double)c->v[((size_t)begin - origin + j) * c->dim + d];
            sum += term;
            size += fabs(term);
        }
        bool use_double = r->is_plain && isfinite(sum / total);
        double bound = relative * size / total + TINY;
        compare(r, "value", i * (size_t)c->dim + d, (double)got[d],
                use_double ? sum / total : (double)plain[d], use_double ? bound : 2 * bound);
    }
    free(score);
}

typedef struct sizes {
    uint32_t dim, count;
    uint64_t position, window;
    float key_size;
    int special; /* 1: NaN in a key seen by the last query alone, 2: infinite value there */
} sizes;

/* Part by part and merged: the same bits as in one call. */
static void parts_case(run *r, const cached *c, const bxn_attention_args *args, uint32_t finite)
{
    const size_t apart = bxn_partial_floats(args->head_dim);
    const uint64_t first = c->first_page * BXN_PAGE / BXN_PART;
    const uint32_t parts = (uint32_t)((args->position + args->count - 1) / BXN_PART - first) + 1;
    float *partials = guarded_floats(args->count * apart), *one = guarded_floats(parts * apart);
    float *all = guarded_floats(parts * args->count * apart),
          *merged = guarded_floats(args->head_dim);
    for (uint32_t p = 0; p < parts; p++) {
        bxn_attention_args a = *args;
        a.part = first + p;
        a.out = NULL;
        a.partial = partials;
        fill_pattern(partials, args->count * apart);
        attend(r->kernels, c, &a);
        memcpy(all + p * args->count * apart, partials, args->count * apart * sizeof *all);
    }
    for (uint32_t i = 0; i < finite; i++) {
        for (uint32_t p = 0; p < parts; p++)
            memcpy(one + p * apart, all + (p * args->count + i) * apart, apart * sizeof *one);
        r->kernels->attention_merge(one, parts, args->head_dim, merged);
        same_bits(r, "part by part", args->out + i * args->ldout, merged, args->head_dim);
    }
}

static void attention_case(run *r, bxn_kv_type type, bool tiles, sizes s)
{
    cached c = {.type = type, .tiles = tiles, .dim = s.dim};
    const uint64_t begin = s.position + 1 > s.window ? s.position + 1 - s.window : 0;
    const uint64_t end = s.position + s.count;
    make_cache(r, &c, begin, end, s.key_size);
    if (s.special != 0) {
        size_t slot = (size_t)((end - 1) % BXN_PAGE);
        uint8_t *page = c.pages[(end - 1) / BXN_PAGE - c.first_page];
        size_t row = (size_t)(end - 1 - c.first_page * BXN_PAGE) * c.dim;
        if (s.special == 1)
            put_key(&c, page, slot, 0, NAN, &c.k[row]);
        else
            put_value(&c, page, slot, 0, INFINITY, &c.v[row]);
        /* The scale is all the row's; with tiles a query that sees an infinite value is NaN. */
        for (uint32_t d = 1; (has_scales(type) || (tiles && s.special == 2)) && d < c.dim; d++)
            (s.special == 1 ? c.k : c.v)[row + d] = NAN;
    }
    bxn_attention_args a = {.ldq = s.dim + below(r, 3),
                            .count = s.count,
                            .head_dim = s.dim,
                            .scale = 1.0f / sqrtf((float)s.dim),
                            .position = s.position,
                            .window = s.window,
                            .first_page = c.first_page,
                            .k_offset = c.k_offset,
                            .v_offset = c.v_offset,
                            .part = BXN_ALL_PARTS};
    a.ldout = s.dim + 1;
    float *q = guarded_floats(s.count * a.ldq);
    for (size_t i = 0; i < s.count * a.ldq; i++)
        q[i] = normal(r);
    a.q = q;
    size_t page_count = (size_t)((end + BXN_PAGE - 1) / BXN_PAGE - c.first_page);
    const void **pages = guarded(page_count * sizeof *pages);
    for (size_t i = 0; i < page_count; i++)
        pages[i] = c.pages[i];
    a.pages = pages;
    size_t out_floats = s.count * a.ldout;
    float *out = guarded_floats(out_floats), *plain = guarded_floats(out_floats);
    a.scratch = guarded_floats(bxn_attention_scratch(s.dim));
    fill_pattern(out, out_floats);
    a.out = plain;
    attend(r->plain, &c, &a);
    a.out = out;
    attend(r->kernels, &c, &a);
    for (uint32_t i = 0; i < s.count; i++) {
        expect(r, &c, &a, i, out + i * a.ldout, plain + i * a.ldout);
        if (!has_pattern(out[i * a.ldout + s.dim]))
            fail(r, "wrote beyond the head of query %u", i);
    }
    if (s.count > 1) { /* one query at a time; a special key must not reach the others */
        float *single = guarded_floats(out_floats);
        memcpy(single, out, out_floats * sizeof *single);
        for (uint32_t i = 0; i < s.count; i++) {
            bxn_attention_args one = a;
            fill_pattern(single + i * a.ldout, s.dim);
            one.q = q + i * a.ldq;
            one.out = single + i * a.ldout;
            one.count = 1;
            one.position = a.position + i;
            one.first_page =
                (one.position + 1 > a.window ? one.position + 1 - a.window : 0) / BXN_PAGE;
            one.pages = a.pages + (one.first_page - a.first_page);
            attend(r->kernels, &c, &one);
        }
        size_t finite = (s.special != 0 ? s.count - 1 : s.count) * a.ldout;
        for (size_t i = 0; s.special != 0 && i < finite; i++)
            if (i % a.ldout < s.dim && !isfinite(out[i]))
                fail(r, "a key that query %zu does not see changed it", i / a.ldout);
        same_bits(r, "query by query", out, single, finite);
    }
    parts_case(r, &c, &a, s.special != 0 ? s.count - 1 : s.count);
    free(c.k);
    free(c.v);
    r->cases++;
    release_guarded(r, "attention");
}

static void check_attention(run *r, bxn_kv_type type, bool tiles)
{
    const uint32_t step = tiles ? 5 : 1; /* emulated tiles take long */
    for (uint32_t dim = 1; dim <= 130; dim += step)
        attention_case(r, type, tiles,
                       (sizes){dim, 1 + dim % 7, below(r, 150), 1 + below(r, 150), 1.0f, 0});
    static const uint32_t dims[] = {64, 80, 96, 128, 256};
    for (uint32_t i = 0; i < 5; i++)
        for (uint32_t count = 1; count <= 9; count += step)
            attention_case(r, type, tiles, (sizes){dims[i], count, 700, 512, 1.0f, 0});
    static const uint64_t windows[] = {1, 2, 3, 15, 16, 17, 63, 64, 65, 128};
    for (uint32_t i = 0; i < 10; i++)
        for (uint64_t at = 0; at <= 4; at++)
            for (uint32_t count = 1; count <= 10; count += 3)
                attention_case(r, type, tiles,
                               (sizes){20, count, windows[i] * at / 2 + at, windows[i], 1.0f, 0});
    for (uint64_t position = 0; position <= 80; position += step)
        attention_case(r, type, tiles, (sizes){8, 4, position, 30, 1.0f, 0});
    for (uint64_t position = 440; position <= 520; position += 7 + step / 2) /* begins and ends of parts */
        for (uint32_t count = 1; count <= BXN_QUERIES; count += 21)
            attention_case(r, type, tiles, (sizes){24, count, position, 1 + below(r, 1100), 1.0f, 0});
    for (uint64_t position = 1000; position <= 1100; position += 9 * step)
        attention_case(r, type, tiles, (sizes){16, BXN_QUERIES, position, 512, 1.0f, 0});
    attention_case(r, type, tiles, (sizes){80, BXN_QUERIES, 1500, 1400, 1.0f, 0});
    attention_case(r, type, tiles, (sizes){80, 4, 1u << 20, 1000, 1.0f, 0});
    attention_case(r, type, tiles, (sizes){80, 4, 300, UINT64_MAX, 1.0f, 0});
    for (uint32_t count = 1; count <= 5; count++) {
        attention_case(r, type, tiles, (sizes){80, count, 200, 100, 200.0f, 0}); /* nearly one-hot */
        attention_case(r, type, tiles, (sizes){80, count, 900, 600, 50.0f, 0});
        attention_case(r, type, tiles, (sizes){80, count, 200, 100, 0.0f, 0});
        attention_case(r, type, tiles, (sizes){80, count, 70, 100, 1.0f, 1});
        attention_case(r, type, tiles, (sizes){80, count, 70, 30, 1.0f, 2});
    }
}

void check_attention_f16(run *r)
{
    check_attention(r, BXN_KV_F16, false);
}

void check_attention_f32(run *r)
{
    check_attention(r, BXN_KV_F32, false);
}

void check_attention_i8(run *r)
{
    check_attention(r, BXN_KV_I8, false);
}

void check_attention_q4(run *r)
{
    check_attention(r, BXN_KV_Q4, false);
}

void check_attention_tile(run *r)
{
    for (int type = BXN_KV_F16; type <= BXN_KV_Q4; type++)
        check_attention(r, (bxn_kv_type)type, true);
}

/* Merging alone; attention's checks hold it to the bits of one call. */
void check_attention_merge(run *r)
{
    for (uint32_t dim = 1; dim <= 300; dim += dim < 140 ? 1 : 37) {
        const uint32_t parts = 1 + below(r, 9), stride = (uint32_t)bxn_round_up(dim, 16);
        const size_t apart = bxn_partial_floats(dim);
        float *partials = guarded_floats(parts * apart), *got = guarded_floats(dim),
              *plain = guarded_floats(dim);
        for (uint32_t p = 0; p < parts; p++) {
            float *part = partials + p * apart;
            for (uint32_t d = 0; d < dim; d++)
                part[d] = normal(r);
            part[stride] = uniform(r, -8, 8);
            part[stride + 1] =
                p != 1 || parts == 2 ? uniform(r, 1, 20) : 0.0f; /* one of them empty */
        }
        r->plain->attention_merge(partials, parts, dim, plain);
        r->kernels->attention_merge(partials, parts, dim, got);
        for (uint32_t d = 0; d < dim; d++) {
            double sum = 0, size = 0, total = 0;
            for (uint32_t p = 0; p < parts; p++) {
                const float *part = partials + p * apart;
                double weight = part[stride + 1] == 0.0f ? 0 : exp2((double)part[stride]);
                sum += weight * (double)part[d];
                size += weight * fabs((double)part[d]);
                total += weight * (double)part[stride + 1];
            }
            double bound = parts * (4 * EXP_ERROR + 60 * UNIT_ROUNDOFF) * size / total + TINY;
            compare(r, "merged", d, (double)got[d], r->is_plain ? sum / total : (double)plain[d],
                    r->is_plain ? bound : 2 * bound);
        }
        r->cases++;
        release_guarded(r, "attention_merge");
    }
}

/* ---- rows ------------------------------------------------------------------------------------ */

static float *random_row(run *r, uint32_t n, uint32_t kind)
{
    static const float sizes_of[] = {1.0f, 1e-3f, 1e6f, 1e-14f, 1e-20f, 1e18f};
    float *x = guarded_floats(n);
    for (uint32_t i = 0; i < n; i++)
        x[i] = sizes_of[kind % 6] * normal(r);
    if (kind == 6)
        memset(x, 0, n * sizeof *x);
    if (kind == 7)
        x[n - 1] = NAN;
    if (kind == 8)
        x[n / 2] = -INFINITY;
    if (kind == 9)
        x[n / 2] *= 100;
    return x;
}

void check_quant_i8(run *r)
{
    for (uint32_t n = 1; n <= 140; n++)
        for (uint32_t kind = 0; kind < 10; kind++) {
            float *x = random_row(r, n, kind), scale = -1, max = 0;
            int8_t *codes = guarded(n);
            memset(codes, 99, n);
            r->kernels->quant_i8(x, n, codes, &scale);
            bool bad = false;
            for (uint32_t i = 0; i < n; i++) {
                bad |= !isfinite(x[i]);
                max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
            }
            if (bad ? !isnan(scale) : scale != (max >= 1e-30f ? max / 127.0f : 0.0f))
                fail(r, "scale of a row of %u is %g", n, (double)scale);
            for (uint32_t i = 0; i < n; i++) {
                /* f32 to the bit: a product by the rounded quotient, to nearest even */
                int want = bad || max < 1e-30f ? 0 : (int)rintf(x[i] * (127.0f / max));
                if (codes[i] != want)
                    fail(r, "code %u of %u is %d, not %d", i, n, codes[i], want);
            }
            r->cases++;
            release_guarded(r, "quant_i8");
        }
}

void check_quant_q4(run *r)
{
    static const float levels[8] = BXN_KV_LEVELS;
    for (uint32_t n = 1; n <= 140; n++)
        for (uint32_t kind = 0; kind < 10; kind++) {
            float *x = random_row(r, n, kind), scale = -1;
            uint8_t *codes = guarded(n);
            memset(codes, 99, n);
            r->kernels->quant_q4(x, n, codes, &scale);
            double squares = 0;
            bool bad = false;
            for (uint32_t i = 0; i < n; i++) {
                squares += (double)x[i] * (double)x[i];
                bad |= !isfinite(x[i]);
            }
            const bool zero = !bad && squares < 1e-30, over = bad || squares > 3.4028e38;
            const double want = sqrt(squares / n);
            if (over)
                compare(r, "scale", 0, (double)scale, NAN, 0);
            else if (zero ? scale != 0.0f
                          : fabs((double)scale - want) > (n / 16.0 + 8) * UNIT_ROUNDOFF * want)
                fail(r, "scale of a row of %u is %g, not %g", n, (double)scale, want);
            for (uint32_t i = 0; i < n; i++) {
                if (codes[i] > 15 || ((over || zero) && codes[i] != 0)) {
                    fail(r, "code %u of %u is %u", i, n, codes[i]);
                    continue;
                }
                if (over || zero)
                    continue;
                const double u = (double)x[i] / want, level = (double)levels[codes[i] & 7];
                double nearest = INFINITY;
                for (uint32_t l = 0; l < 8; l++) { /* no fmin: gcc 12 for Arm64 fails on it here */
                    const double apart = fabs(fabs(u) - (double)levels[l]);
                    nearest = apart < nearest ? apart : nearest;
                }
                if ((codes[i] & 8) != 0 ? u >= 0 : u < 0)
                    fail(r, "code %u of %u has the wrong sign", i, n);
                if (fabs(fabs(u) - level) > nearest + 1e-5 * (1 + fabs(u)))
                    fail(r, "code %u of %u is not the nearest", i, n);
            }
            r->cases++;
            release_guarded(r, "quant_q4");
        }
}

void check_kv_rotate(run *r)
{
    for (uint32_t n = 1; n <= 140; n++) {
        const uint32_t count = 1 + n % 11;
        const size_t stride = bxn_round_up(n, 16), ldx = n + below(r, 3);
        float *matrix = guarded_floats(n * stride), *x = guarded_floats(count * ldx);
        float *y = guarded_floats(count * stride), *plain = guarded_floats(count * stride);
        memset(matrix, 0, n * stride * sizeof *matrix);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t j = i; j < n; j++)
                matrix[i * stride + j] = matrix[j * stride + i] = normal(r);
        for (size_t i = 0; i < count * ldx; i++)
            x[i] = normal(r);
        fill_pattern(y, count * stride);
        r->plain->kv_rotate(matrix, n, x, ldx, count, plain);
        r->kernels->kv_rotate(matrix, n, x, ldx, count, y);
        for (uint32_t t = 0; t < count; t++) {
            for (uint32_t d = 0; d < stride; d++) {
                double sum = 0, size = 0;
                for (uint32_t k = 0; k < n; k++) {
                    double term = (double)matrix[k * stride + d] * (double)x[t * ldx + k];
                    sum += term;
                    size += fabs(term);
                }
                double bound = (n + 1.0) * UNIT_ROUNDOFF * size;
                compare(r, "turned", t * stride + d, (double)y[t * stride + d],
                        r->is_plain ? sum : (double)plain[t * stride + d],
                        r->is_plain ? bound : 2 * bound);
            }
            float *one = guarded_floats(stride);
            r->kernels->kv_rotate(matrix, n, x + t * ldx, ldx, 1, one);
            same_bits(r, "row by row", y + t * stride, one, stride);
        }
        r->cases++;
        release_guarded(r, "kv_rotate");
    }
}
