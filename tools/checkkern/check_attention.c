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
    bool f32;
    uint32_t dim;
    uint64_t first_page;
    uint8_t *pages[64];
    size_t k_offset, v_offset;
    float *k, *v; /* [positions, dim], as stored; from position first_page * BXN_PAGE on */
} cached;

static void put(const cached *c, uint8_t *base, size_t index, float value, float *stored)
{
    if (c->f32) {
        memcpy(base + 4 * index, &value, sizeof value);
        *stored = value;
    } else {
        uint16_t bits = bxn_f32_f16(value);
        memcpy(base + 2 * index, &bits, sizeof bits);
        *stored = f16_value(bits);
    }
}

/* Pages for positions [begin, end); slots outside hold bytes that are NaN. */
static void make_cache(run *r, cached *c, uint64_t begin, uint64_t end, float key_size)
{
    const size_t size = c->f32 ? 4 : 2, stride = bxn_round_up(c->dim, 16);
    const size_t k_bytes = (size_t)BXN_PAGE * c->dim * size, v_bytes = BXN_PAGE * stride * size;
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
        memset(page + c->v_offset + slot * stride * size, 0, stride * size);
        for (uint32_t d = 0; d < c->dim; d++) {
            put(c, page + c->k_offset, (slot / 16 * c->dim + d) * 16 + slot % 16,
                key_size * normal(r), &c->k[row + d]);
            put(c, page + c->v_offset, slot * stride + d, normal(r), &c->v[row + d]);
        }
    }
}

static void attend(const bxn_kernels *k, const cached *c, const bxn_attention_args *a)
{
    (c->f32 ? k->attention_f32 : k->attention_f16)(a);
}

static void expect(run *r, const cached *c, const bxn_attention_args *a, uint32_t i,
                   const float *got, const float *plain)
{
    const uint64_t end = a->position + i + 1, begin = end > a->window ? end - a->window : 0;
    const size_t origin = (size_t)(c->first_page * BXN_PAGE), keys = (size_t)(end - begin);
    double *score = malloc(keys * sizeof *score), max = -INFINITY, worst = 0, total = 0;
    for (uint64_t p = begin; p < end; p++) {
        double dot = 0, size = 0;
        for (uint32_t d = 0; d < c->dim; d++) {
            double term =
                (double)a->q[i * a->ldq + d] * (double)c->k[((size_t)p - origin) * c->dim + d];
            dot += term;
            size += fabs(term);
        }
        dot *= (double)a->scale;
        score[p - begin] = dot;
        max = dot > max ? dot : max;
        double error = (c->dim + 2.0) * UNIT_ROUNDOFF * size * (double)a->scale;
        worst = error > worst ? error : worst;
    }
    for (size_t j = 0; j < keys; j++) {
        /* the difference to the maximum is rounded too */
        double rounding = UNIT_ROUNDOFF * fabs(score[j] - max);
        worst = rounding > worst && score[j] > max - 100 ? rounding : worst;
        score[j] = exp(score[j] - max);
        total += score[j];
    }
    double relative = 6 * worst + 2 * EXP_ERROR + (2.0 * (double)keys + 20) * UNIT_ROUNDOFF;
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

static void attention_case(run *r, bool f32, sizes s)
{
    cached c = {.f32 = f32, .dim = s.dim};
    const uint64_t begin = s.position + 1 > s.window ? s.position + 1 - s.window : 0;
    const uint64_t end = s.position + s.count;
    make_cache(r, &c, begin, end, s.key_size);
    if (s.special != 0) {
        size_t slot = (size_t)((end - 1) % BXN_PAGE);
        uint8_t *page = c.pages[(end - 1) / BXN_PAGE - c.first_page];
        size_t row = (size_t)(end - 1 - c.first_page * BXN_PAGE) * c.dim;
        if (s.special == 1)
            put(&c, page + c.k_offset, slot / 16 * c.dim * 16 + slot % 16, NAN, &c.k[row]);
        else
            put(&c, page + c.v_offset, slot * bxn_round_up(c.dim, 16), INFINITY, &c.v[row]);
    }
    bxn_attention_args a = {.ldq = s.dim + below(r, 3),
                            .count = s.count,
                            .head_dim = s.dim,
                            .scale = 1.0f / sqrtf((float)s.dim),
                            .position = s.position,
                            .window = s.window,
                            .first_page = c.first_page,
                            .k_offset = c.k_offset,
                            .v_offset = c.v_offset};
    const uint64_t most = s.window < end ? s.window : end; /* a window of what exists */
    a.score_stride = bxn_round_up((size_t)most, 16) + 32;
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
    a.scores = guarded_floats(BXN_QUERIES * a.score_stride);
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
    free(c.k);
    free(c.v);
    r->cases++;
    release_guarded(r, "attention");
}

static void check_attention(run *r, bool f32)
{
    for (uint32_t dim = 1; dim <= 130; dim++)
        attention_case(r, f32,
                       (sizes){dim, 1 + dim % 4, below(r, 150), 1 + below(r, 150), 1.0f, 0});
    static const uint32_t dims[] = {64, 80, 96, 128, 256};
    for (uint32_t i = 0; i < 5; i++)
        for (uint32_t count = 1; count <= 4; count++)
            attention_case(r, f32, (sizes){dims[i], count, 700, 512, 1.0f, 0});
    static const uint64_t windows[] = {1, 2, 3, 15, 16, 17, 63, 64, 65, 128};
    for (uint32_t i = 0; i < 10; i++)
        for (uint64_t at = 0; at <= 4; at++)
            for (uint32_t count = 1; count <= 4; count += 3)
                attention_case(r, f32,
                               (sizes){20, count, windows[i] * at / 2 + at, windows[i], 1.0f, 0});
    for (uint64_t position = 0; position <= 80; position++)
        attention_case(r, f32, (sizes){8, 4, position, 30, 1.0f, 0});
    attention_case(r, f32, (sizes){80, 4, 1u << 20, 1000, 1.0f, 0});
    attention_case(r, f32, (sizes){80, 4, 300, UINT64_MAX, 1.0f, 0});
    for (uint32_t count = 1; count <= 4; count++) {
        attention_case(r, f32, (sizes){80, count, 200, 100, 200.0f, 0}); /* nearly one-hot */
        attention_case(r, f32, (sizes){80, count, 200, 100, 0.0f, 0});
        attention_case(r, f32, (sizes){80, count, 70, 100, 1.0f, 1});
        attention_case(r, f32, (sizes){80, count, 70, 30, 1.0f, 2});
    }
}

void check_attention_f16(run *r)
{
    check_attention(r, false);
}

void check_attention_f32(run *r)
{
    check_attention(r, true);
}
