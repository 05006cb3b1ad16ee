/* SPDX-License-Identifier: Apache-2.0 */
/* attention.c - sliding-window attention over pages of cached keys and values (spec
 * 4.1): query p sees keys max(0, p - W + 1) .. p, itself included. Keys and values of
 * the tokens of a pass are stored first, then every query attends, so that a prompt
 * cut anywhere reads the same values. One task is one head of a group of segments. */
#include "ops/ops.h"

#include <math.h>
#include <string.h>

void bxn_kv_layout_init(bxn_kv_layout *layout, uint32_t layers, uint32_t heads, uint32_t head_dim,
                        uint32_t element_bytes)
{
    layout->layers = layers;
    layout->heads = heads;
    layout->head_dim = head_dim;
    layout->v_stride = (uint32_t)bxn_round_up(head_dim, 16);
    layout->element_bytes = element_bytes;
    layout->k_bytes = bxn_round_up((size_t)BXN_PAGE * head_dim * element_bytes, BXN_ALIGN);
    layout->v_bytes = bxn_round_up((size_t)BXN_PAGE * layout->v_stride * element_bytes, BXN_ALIGN);
    layout->page_bytes = (layout->k_bytes + layout->v_bytes) * heads * layers;
}

typedef struct heads_context {
    const bxn_exec *exec;
    const bxn_attention *p;
    const bxn_segment *segments;
    uint32_t n;       /* segments */
    uint32_t groups;  /* tasks of a head: segment i belongs to group i % groups */
    uint32_t queries; /* that a task takes at a time; groups * queries <= BXN_QUERIES */
} heads_context;

/* K lanes are keys: element i of the key at `slot` goes to [slot / 16][i][slot % 16]. */
static void store_key(const bxn_kernels *kernels, const float *row, uint32_t head_dim, void *k,
                      uint32_t slot, uint32_t element_bytes)
{
    size_t base = (size_t)(slot / 16) * head_dim * 16 + slot % 16;
    if (element_bytes == 4) {
        float *dst = (float *)k + base;
        for (uint32_t i = 0; i < head_dim; i++)
            dst[(size_t)i * 16] = row[i];
        return;
    }
    uint16_t *dst = (uint16_t *)k + base, half[256];
    for (uint32_t i = 0; i < head_dim; i += 256) {
        uint32_t n = head_dim - i < 256 ? head_dim - i : 256;
        kernels->to_f16(row + i, n, half);
        for (uint32_t j = 0; j < n; j++)
            dst[(size_t)(i + j) * 16] = half[j];
    }
}

static void store_value(const bxn_kernels *kernels, const float *row, const bxn_kv_layout *layout,
                        void *v, uint32_t slot)
{
    uint32_t d = layout->head_dim, pad = layout->v_stride - d;
    if (layout->element_bytes == 4) {
        float *dst = (float *)v + (size_t)slot * layout->v_stride;
        memcpy(dst, row, d * sizeof *dst);
        memset(dst + d, 0, pad * sizeof *dst);
    } else {
        uint16_t *dst = (uint16_t *)v + (size_t)slot * layout->v_stride;
        kernels->to_f16(row, d, dst);
        memset(dst + d, 0, pad * sizeof *dst);
    }
}

/* One head of one segment; scores: room for c->queries rows. */
static void head_segment(const heads_context *c, uint32_t head, const bxn_segment *segment, float *scores)
{
    const bxn_exec *exec = c->exec;
    const bxn_workspace *ws = exec->ws;
    const bxn_kv_view *kv = segment->kv;
    const bxn_kv_layout *layout = kv->layout;
    const bxn_attention *p = c->p;
    uint32_t end = segment->first + segment->count;
    uint32_t d = p->head_dim;
    size_t column = (size_t)head * d;
    size_t k_offset = ((size_t)p->kv_index * p->heads + head) * (layout->k_bytes + layout->v_bytes);
    size_t v_offset = k_offset + layout->k_bytes;

    for (uint32_t t = segment->first; t < end; t++) {
        uint64_t at = segment->position + (t - segment->first);
        char *page = kv->pages[at / BXN_PAGE - kv->first];
        float *key = ws->k + t * ws->ld_d + column;
        if (p->rope_theta > 0) {
            bxn_rope_row(key, d, at, p->rope_theta);
            bxn_rope_row(ws->q + t * ws->ld_d + column, d, at, p->rope_theta);
        }
        store_key(exec->kernels, key, d, page + k_offset, (uint32_t)(at % BXN_PAGE), layout->element_bytes);
        store_value(exec->kernels, ws->v + t * ws->ld_d + column, layout, page + v_offset,
                    (uint32_t)(at % BXN_PAGE));
    }
    bxn_attention_args args = {
        .ldq = ws->ld_d,
        .scale = (float)(1.0 / sqrt((double)d)),
        .head_dim = d,
        .window = p->window,
        .pages = (const void *const *)kv->pages,
        .first_page = kv->first,
        .k_offset = k_offset,
        .v_offset = v_offset,
        .scores = scores,
        .score_stride = ws->score_stride,
        .ldout = ws->ld_d,
    };
    for (uint32_t t = segment->first; t < end; t += c->queries) {
        if (exec->cancel != NULL && atomic_load_explicit(exec->cancel, memory_order_relaxed) != 0)
            return;
        args.q = ws->q + t * ws->ld_d + column;
        args.out = ws->o + t * ws->ld_d + column;
        args.position = segment->position + (t - segment->first);
        args.count = end - t < c->queries ? end - t : c->queries;
        (layout->element_bytes == 4 ? exec->kernels->attention_f32 : exec->kernels->attention_f16)(&args);
    }
}

static void head_task(void *context, uint32_t index)
{
    const heads_context *c = context;
    const bxn_workspace *ws = c->exec->ws;
    uint32_t head = index / c->groups, group = index % c->groups;
    float *scores = ws->scores + ((size_t)head * BXN_QUERIES + group * c->queries) * ws->score_stride;
    for (uint32_t i = group; i < c->n; i += c->groups)
        head_segment(c, head, &c->segments[i], scores);
}

bitaxon_status bxn_attention_forward(const bxn_exec *exec, const bxn_attention *p, uint32_t tokens,
                                     const bxn_segment *segments, uint32_t n)
{
    bxn_workspace *ws = exec->ws;
    bitaxon_status status = BITAXON_OK;
    if (bxn_weight_needs_sums(&p->q_proj) || bxn_weight_needs_sums(&p->k_proj) ||
        bxn_weight_needs_sums(&p->v_proj))
        status = bxn_linear_sums(exec, ws->n, ws->ld_d, p->q_proj.cols, tokens, ws->sums);
    if (status != BITAXON_OK)
        return status;
    bxn_mm_args args = { .x = ws->n, .ldx = ws->ld_d, .count = tokens, .ldy = ws->ld_d,
                         .xsum = ws->sums, .ldsum = ws->ld_sum };
    bxn_linear_job jobs[3] = { { &p->q_proj, args }, { &p->k_proj, args }, { &p->v_proj, args } };
    jobs[0].args.y = ws->q;
    jobs[1].args.y = ws->k;
    jobs[2].args.y = ws->v;
    status = bxn_linear_jobs(exec, jobs, 3);
    if (status != BITAXON_OK)
        return status;
    uint32_t groups = n < BXN_QUERIES ? n : BXN_QUERIES;
    heads_context c = { exec, p, segments, n, groups, BXN_QUERIES / groups };
    status = bxn_pool_run(exec->pool, p->heads * groups, head_task, &c, exec->cancel);
    if (status != BITAXON_OK)
        return status;
    return bxn_linear(exec, &p->o_proj, ws->o, ws->ld_d, tokens, ws->r, ws->ld_d);
}
