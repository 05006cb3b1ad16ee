/* SPDX-License-Identifier: Apache-2.0 */
/* moe.c - mixture of experts (spec 5): softmax over all experts, the k largest without
 * renormalising, SwiGLU experts, and one shared expert behind a sigmoid gate. Tokens are
 * grouped by expert for the products; what a token gets is independent of its
 * neighbours, because a product's row is, and its k results are added in the order
 * of its own picks (largest first, ties to the lower expert), the shared one first. */
#include "ops/ops.h"

#include <math.h>
#include <string.h>

/* Pick the top k of one row of router logits; false when one is NaN. */
static bool route_row(const float *logits, const bxn_moe *p, int32_t *picked, float *weight)
{
    float max = -INFINITY;
    for (uint32_t e = 0; e < p->experts; e++) {
        if (isnan(logits[e]))
            return false;
        if (logits[e] > max)
            max = logits[e];
    }
    if (isinf(max)) /* all -inf, or an infinite winner: no softmax exists */
        return false;
    double sum = 0;
    for (uint32_t e = 0; e < p->experts; e++)
        sum += exp((double)logits[e] - (double)max);
    for (uint32_t i = 0; i < p->top_k; i++) {
        int32_t best = -1, last = i == 0 ? -1 : picked[i - 1];
        for (uint32_t e = 0; e < p->experts; e++) { /* the best of those that come after the last pick */
            bool left = last < 0 || logits[e] < logits[last] ||
                        (logits[e] == logits[last] && (int32_t)e > last);
            if (left && (best < 0 || logits[e] > logits[best]))
                best = (int32_t)e;
        }
        picked[i] = best;
        weight[i] = (float)(exp((double)logits[best] - (double)max) / sum);
    }
    return true;
}

/* Group picks by expert, stable: first[e] .. first[e + 1] are its pairs. */
static void group_pairs(bxn_workspace *ws, const bxn_moe *p, uint32_t tokens)
{
    uint32_t picks = tokens * p->top_k;
    memset(ws->first, 0, (p->experts + 1) * sizeof *ws->first);
    for (uint32_t i = 0; i < picks; i++)
        ws->first[ws->picked[i] + 1]++;
    for (uint32_t e = 0; e < p->experts; e++)
        ws->first[e + 1] += ws->first[e];
    for (uint32_t i = 0; i < picks; i++) {
        int32_t pair = ws->first[ws->picked[i]]++;
        ws->pair_of[i] = pair;
        ws->pair_row[pair] = (int32_t)(i / p->top_k);
    }
    for (uint32_t e = p->experts; e > 0; e--)
        ws->first[e] = ws->first[e - 1];
    ws->first[0] = 0;
}

/* Jobs are gathered and run when the list is full, so that any number of experts fits. */
typedef struct job_list {
    const bxn_exec *exec;
    bxn_linear_job jobs[64];
    uint32_t count;
    bitaxon_status status;
} job_list;

static void flush(job_list *list)
{
    if (list->status == BITAXON_OK && list->count != 0)
        list->status = bxn_linear_jobs(list->exec, list->jobs, list->count);
    list->count = 0;
}

static void push(job_list *list, const bxn_weight *w, const float *x, size_t ldx, const float *sums,
                 const int32_t *rows, uint32_t count, float *y, size_t ldy)
{
    if (list->count == 64)
        flush(list);
    bxn_linear_job job = { w, { .x = x, .ldx = ldx, .rows = rows, .count = count, .y = y, .ldy = ldy,
                                .xsum = sums, .ldsum = list->exec->ws->ld_sum } };
    list->jobs[list->count++] = job;
}

typedef struct moe_context {
    const bxn_exec *exec;
    const bxn_moe *p;
    uint32_t pairs, dim;
    bool pair_sums, shared_sums;
} moe_context;

/* SwiGLU of one hidden row, and its block sums for the product that follows. */
static void hidden_task(void *context, uint32_t index)
{
    const moe_context *c = context;
    const bxn_workspace *ws = c->exec->ws;
    const bxn_kernels *kernels = c->exec->kernels;
    bool routed = index < c->pairs;
    size_t row = routed ? index : index - c->pairs;
    float *a = (routed ? ws->a : ws->sa) + row * ws->ld_i;
    const float *b = (routed ? ws->b : ws->sb) + row * ws->ld_i;
    kernels->silu_mul(a, b, c->p->inner);
    if (routed ? c->pair_sums : c->shared_sums)
        kernels->block_sums(a, bxn_round_up(c->p->inner, BXN_UNIT_COLS) / BXN_SUB_BLOCK,
                            (routed ? ws->sums : ws->sums2) + row * ws->ld_sum);
}

static void combine_task(void *context, uint32_t token)
{
    const moe_context *c = context;
    const bxn_workspace *ws = c->exec->ws;
    float *r = ws->r + token * ws->ld_d;
    if (c->p->shared) {
        float gate = (float)(1.0 / (1.0 + exp(-(double)ws->shared_s[token * (size_t)BXN_UNIT_COLS])));
        for (uint32_t i = 0; i < c->dim; i++)
            r[i] *= gate;
    } else {
        memset(r, 0, c->dim * sizeof *r);
    }
    for (uint32_t i = 0; i < c->p->top_k; i++) {
        size_t pick = (size_t)token * c->p->top_k + i;
        c->exec->kernels->scale_add(r, ws->e + (size_t)ws->pair_of[pick] * ws->ld_d, ws->weight[pick], c->dim);
    }
}

bitaxon_status bxn_moe_forward(const bxn_exec *exec, const bxn_moe *p, uint32_t tokens, uint32_t layer)
{
    bxn_workspace *ws = exec->ws;
    uint32_t dim = p->router.cols;
    bitaxon_status status = bxn_linear_sums(exec, ws->n, ws->ld_d, dim, tokens, ws->sums);
    if (status != BITAXON_OK)
        return status;

    /* What needs no routing: router, shared gate, the shared expert's first half. */
    job_list list = { .exec = exec };
    push(&list, &p->router, ws->n, ws->ld_d, ws->sums, NULL, tokens, ws->route, ws->ld_x);
    if (p->shared) {
        push(&list, &p->shared_gate, ws->n, ws->ld_d, ws->sums, NULL, tokens, ws->shared_s, BXN_UNIT_COLS);
        push(&list, &p->shared_gate_proj, ws->n, ws->ld_d, ws->sums, NULL, tokens, ws->sa, ws->ld_i);
        push(&list, &p->shared_up_proj, ws->n, ws->ld_d, ws->sums, NULL, tokens, ws->sb, ws->ld_i);
    }
    flush(&list);
    if (list.status != BITAXON_OK)
        return list.status;

    for (uint32_t t = 0; t < tokens; t++) {
        if (exec->cancel != NULL && atomic_load_explicit(exec->cancel, memory_order_relaxed) != 0)
            return BITAXON_CANCELLED;
        if (!route_row(ws->route + t * ws->ld_x, p, ws->picked + (size_t)t * p->top_k,
                       ws->weight + (size_t)t * p->top_k))
            return bxn_fail(exec->error, BITAXON_FORMAT,
                            "layer %u: the router gave a value that is not finite (token %u of the pass)",
                            layer, t);
    }
    group_pairs(ws, p, tokens);

    for (uint32_t e = 0; e < p->experts; e++) {
        uint32_t first = (uint32_t)ws->first[e], count = (uint32_t)ws->first[e + 1] - first;
        if (count == 0)
            continue;
        push(&list, &p->gate[e], ws->n, ws->ld_d, ws->sums, ws->pair_row + first, count, ws->a + first * ws->ld_i, ws->ld_i);
        push(&list, &p->up[e], ws->n, ws->ld_d, ws->sums, ws->pair_row + first, count, ws->b + first * ws->ld_i, ws->ld_i);
    }
    flush(&list);
    if (list.status != BITAXON_OK)
        return list.status;

    moe_context c = { exec, p, tokens * p->top_k, dim, bxn_weight_needs_sums(&p->down[0]),
                      p->shared && bxn_weight_needs_sums(&p->shared_down_proj) };
    uint32_t rows = c.pairs + (p->shared ? tokens : 0);
    status = bxn_pool_run(exec->pool, rows, hidden_task, &c, exec->cancel);
    if (status != BITAXON_OK)
        return status;

    for (uint32_t e = 0; e < p->experts; e++) {
        uint32_t first = (uint32_t)ws->first[e], count = (uint32_t)ws->first[e + 1] - first;
        if (count != 0)
            push(&list, &p->down[e], ws->a + first * ws->ld_i, ws->ld_i, ws->sums + first * ws->ld_sum, NULL,
                 count, ws->e + first * ws->ld_d, ws->ld_d);
    }
    if (p->shared)
        push(&list, &p->shared_down_proj, ws->sa, ws->ld_i, ws->sums2, NULL, tokens, ws->r, ws->ld_d);
    flush(&list);
    if (list.status != BITAXON_OK)
        return list.status;
    return bxn_pool_run(exec->pool, tokens, combine_task, &c, exec->cancel);
}
