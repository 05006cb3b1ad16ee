/* SPDX-License-Identifier: Apache-2.0 */
/* moe.c - mixture of experts (spec 5): softmax over all experts, the k largest without
 * renormalising, SwiGLU experts, and one shared expert behind a sigmoid gate. Tokens are
 * grouped by expert for the products; what a token gets is independent of its
 * neighbours, because a product's row is, and its k results are added in the order
 * of its own picks (largest first, ties to the lower expert), the shared one first.
 *
 * Two regions: gate, up and SwiGLU of all experts; then all downs. With few tokens the routing is
 * the first task of the first region, beside the shared expert, which needs none. With bf16 tiles
 * it comes before, since each expert's rows are gathered into tiles of their own. */
#include "ops/moe_route.h"

#include <math.h>
#include <string.h>

static uint32_t pairs_of(const bxn_workspace *ws, uint32_t expert)
{
    return (uint32_t)(ws->first[expert + 1] - ws->first[expert]);
}

enum { SLOTS = 56, ROUTED_APART = 8, MANY_EXPERTS = 64 };

typedef struct moe_context {
    const bxn_exec *exec;
    const bxn_moe *p;
    uint32_t tokens, layer;
    bxn_input in[2];    /* ws->n with integers of one kind or two, or with tiles */
    bxn_input *routed_in; /* with tiles: the rows of each expert from `slot` on; else NULL */
    uint32_t slot;      /* the used expert that the first item after it stands for */
    uint32_t used;      /* experts that have pairs */
    bitaxon_status status; /* of routing */
    atomic_int routed;
} moe_context;

static bitaxon_status route(moe_context *c)
{
    const bxn_moe *p = c->p;
    bxn_workspace *ws = c->exec->ws;
    for (uint32_t t = 0; t < c->tokens; t++) {
        if (bxn_cancelled(c->exec->cancel))
            return BITAXON_CANCELLED;
        if (!bxn_route_row(ws->route + t * ws->ld_x, p->experts, p->top_k, ws->picked + (size_t)t * p->top_k,
                           ws->weight + (size_t)t * p->top_k))
            return bxn_route_fail(c->exec->error, c->layer, t);
    }
    bxn_route_group(ws->picked, c->tokens, p->experts, p->top_k, ws->first, ws->pair_row, ws->pair_of);
    c->used = 0;
    for (uint32_t e = 0; e < p->experts; e++)
        if (pairs_of(ws, e) != 0)
            ws->used[c->used++] = (int32_t)e;
    return BITAXON_OK;
}

/* y = n W^T for the rows of the tokens (rows NULL: all), which `routed` has as tiles. */
static bxn_mm_args args_for(const moe_context *c, const bxn_weight *w, const bxn_input *routed,
                            const int32_t *rows, uint32_t count, float *y, size_t ldy)
{
    bxn_mm_args args = { .rows = rows, .count = count, .y = y, .ldy = ldy };
    bool tiled = bxn_tiled(c->exec, w);
    if (tiled && routed != NULL) {
        args.rows = NULL;
        bxn_input_use(routed, &args);
    } else {
        bxn_input_use(&c->in[w->xq != BXN_XQ_NONE && !tiled && w->xq != c->in[0].kind ? 1 : 0], &args);
        args.low = c->in[0].low;
        args.low_count = c->in[0].low_count;
    }
    return args;
}

static void routing_products(const moe_context *c)
{
    const bxn_workspace *ws = c->exec->ws;
    const bxn_moe *p = c->p;
    bxn_mm_args args = args_for(c, &p->router, NULL, NULL, c->tokens, ws->route, ws->ld_x);
    bxn_product(c->exec, &p->router, 0, (p->experts + BXN_UNIT_ROWS - 1) / BXN_UNIT_ROWS, &args);
    if (!p->shared)
        return;
    args = args_for(c, &p->shared_gate, NULL, NULL, c->tokens, ws->shared_s, BXN_UNIT_COLS);
    bxn_product(c->exec, &p->shared_gate, 0, 1, &args);
}

/* Hidden columns 16 * begin ... of one expert: gate, up, and SwiGLU of both. */
static void hidden(const moe_context *c, const bxn_weight *gate, const bxn_weight *up,
                   const bxn_input *routed, const int32_t *rows, uint32_t first, uint32_t count,
                   uint32_t begin, uint32_t end)
{
    const bxn_workspace *ws = c->exec->ws;
    float *a = ws->a + first * ws->ld_i, *b = ws->b + first * ws->ld_i;
    bxn_mm_args args = args_for(c, gate, routed, rows, count, a, ws->ld_i);
    bxn_product(c->exec, gate, begin, end, &args);
    args = args_for(c, up, routed, rows, count, b, ws->ld_i);
    bxn_product(c->exec, up, begin, end, &args);
    size_t column = (size_t)begin * BXN_UNIT_ROWS, width = (size_t)end * BXN_UNIT_ROWS;
    width = (width < c->p->inner ? width : c->p->inner) - column;
    for (uint32_t i = 0; i < count; i++)
        c->exec->kernels->silu_mul(a + i * ws->ld_i + column, b + i * ws->ld_i + column, width);
}

static void hidden_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    moe_context *c = context;
    const bxn_workspace *ws = c->exec->ws;
    const bxn_moe *p = c->p;
    if (item == 0) {
        routing_products(c);
        c->status = route(c);
        atomic_store_explicit(&c->routed, 1, memory_order_release);
        return;
    }
    if (item == 1) {
        hidden(c, &p->shared_gate_proj, &p->shared_up_proj, NULL, NULL, c->tokens * p->top_k, c->tokens, begin, end);
        return;
    }
    while (atomic_load_explicit(&c->routed, memory_order_acquire) == 0) { /* the first task is running */
        if (bxn_cancelled(c->exec->cancel))
            return;
        bxn_relax();
    }
    uint32_t slot = c->slot + item - 2;
    if (c->status != BITAXON_OK || slot >= c->used)
        return;
    uint32_t expert = (uint32_t)ws->used[slot], first = (uint32_t)ws->first[expert];
    hidden(c, &p->gate[expert], &p->up[expert], c->routed_in != NULL ? &c->routed_in[item - 2] : NULL,
           ws->pair_row + first, first, pairs_of(ws, expert), begin, end);
}

/* Block sums and integers or tiles of ws->n, for all weights that read it in the tokens' order. */
static bitaxon_status make_input(moe_context *c)
{
    const bxn_moe *p = c->p;
    const bxn_workspace *ws = c->exec->ws;
    const bxn_weight *readers[] = { &p->router, &p->gate[0], &p->up[0], &p->shared_gate, &p->shared_gate_proj,
                                    &p->shared_up_proj };
    uint32_t count = p->shared ? 6 : 3, kinds = 0;
    bool summed = false;
    for (uint32_t i = 0; i < count; i++)
        summed |= bxn_needs_sums(c->exec, readers[i]);
    for (uint32_t i = 0; i < 2; i++)
        c->in[i] =
            (bxn_input){ .x = ws->n, .ldx = ws->ld_d, .cols = p->router.cols, .rows = c->tokens, .summed = summed };
    for (uint32_t i = 0; i < count; i++)
        if (readers[i]->xq != BXN_XQ_NONE && !bxn_tiled(c->exec, readers[i]) && kinds < 2 &&
            (kinds == 0 || c->in[0].kind != readers[i]->xq))
            c->in[kinds++].kind = readers[i]->xq;
    c->in[0].tiled = p->shared && (bxn_tiled(c->exec, &p->shared_gate_proj) || bxn_tiled(c->exec, &p->shared_up_proj));
    if (p->shared) {
        bxn_input_adapt(&c->in[0], c->exec, &p->shared_gate_proj);
        bxn_input_adapt(&c->in[0], c->exec, &p->shared_up_proj);
    }
    return bxn_inputs_make(c->exec, c->in, kinds < 2 ? 1 : 2);
}

/* Rows of ws->n for n experts from c->slot on, as tiles. */
static bitaxon_status gather(const moe_context *c, bxn_input *inputs, uint32_t n)
{
    const bxn_workspace *ws = c->exec->ws;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t expert = (uint32_t)ws->used[c->slot + i];
        inputs[i] = (bxn_input){ .x = ws->n, .ldx = ws->ld_d, .from = ws->pair_row + ws->first[expert],
                                 .cols = c->p->router.cols, .rows = pairs_of(ws, expert), .tiled = true };
    }
    return bxn_inputs_make(c->exec, inputs, n);
}

/* ws->n -> ws->a: the first region, or several when there are very many experts. */
static bitaxon_status run_hidden(moe_context *c)
{
    const bxn_moe *p = c->p;
    bxn_input gathered[SLOTS];
    bxn_taken taken = c->exec->ws->taken;
    if (bxn_tiled(c->exec, &p->gate[0]) || bxn_tiled(c->exec, &p->up[0]))
        c->routed_in = gathered;
    uint32_t groups = (p->inner + BXN_UNIT_ROWS - 1) / BXN_UNIT_ROWS, slots = c->tokens * p->top_k;
    slots = slots < p->experts ? slots : p->experts;
    bitaxon_status status = BITAXON_OK;
    atomic_init(&c->routed, 0);
    if (c->tokens >= ROUTED_APART || p->experts > MANY_EXPERTS || c->routed_in != NULL) {
        const bxn_workspace *ws = c->exec->ws;
        bxn_linear_job jobs[2] = {
            { &p->router, args_for(c, &p->router, NULL, NULL, c->tokens, ws->route, ws->ld_x) },
            { &p->shared_gate, args_for(c, &p->shared_gate, NULL, NULL, c->tokens, ws->shared_s, BXN_UNIT_COLS) },
        };
        status = bxn_linear_jobs(c->exec, jobs, p->shared ? 2 : 1);
        if (status == BITAXON_OK)
            status = route(c);
        if (status != BITAXON_OK)
            return status;
        slots = c->used;
        atomic_store(&c->routed, 1);
    }
    for (c->slot = 0; c->slot < slots && status == BITAXON_OK; c->slot += SLOTS) {
        bool routed = atomic_load(&c->routed) != 0;
        if (routed && slots > c->used) /* a first slice that routed by itself has told how many there are */
            slots = c->used;
        if (c->slot >= slots)
            break;
        bxn_item items[2 + SLOTS];
        uint32_t n = slots - c->slot < SLOTS ? slots - c->slot : SLOTS;
        items[0] = (bxn_item){ routed ? 0 : 1, 0, 0 };
        items[1] = bxn_product_item(c->exec, &p->gate[0], p->shared && c->slot == 0 ? groups : 0, 2 * c->tokens);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t rows = routed ? pairs_of(c->exec->ws, (uint32_t)c->exec->ws->used[c->slot + i]) : 1;
            items[2 + i] = bxn_product_item(c->exec, &p->gate[0], groups, 2 * rows);
        }
        if (c->routed_in != NULL)
            status = gather(c, gathered, n);
        if (status == BITAXON_OK)
            status = bxn_ranges_run(c->exec, items, 2 + n, hidden_task, c);
        if (status == BITAXON_OK)
            status = c->status;
        c->exec->ws->taken = taken;
    }
    c->routed_in = NULL;
    return status;
}

static void combine_task(void *context, uint32_t token)
{
    const moe_context *c = context;
    const bxn_workspace *ws = c->exec->ws;
    const bxn_moe *p = c->p;
    uint32_t dim = p->router.cols;
    float *r = ws->r + token * ws->ld_d;
    if (p->shared) {
        float gate = (float)(1.0 / (1.0 + exp(-(double)ws->shared_s[token * (size_t)BXN_UNIT_COLS])));
        for (uint32_t i = 0; i < dim; i++)
            r[i] *= gate;
    } else {
        memset(r, 0, dim * sizeof *r);
    }
    for (uint32_t i = 0; i < p->top_k; i++) {
        size_t pick = (size_t)token * p->top_k + i;
        c->exec->kernels->scale_add(r, ws->e + (size_t)ws->pair_of[pick] * ws->ld_d, ws->weight[pick], dim);
    }
}

/* ws->a -> ws->e and, for the shared expert, ws->r. */
static bitaxon_status run_down(const moe_context *c)
{
    const bxn_moe *p = c->p;
    const bxn_workspace *ws = c->exec->ws;
    bxn_linear_job jobs[SLOTS + 1];
    uint32_t count = 0;
    bitaxon_status status = BITAXON_OK;
    if (p->shared)
        jobs[count++] = (bxn_linear_job){ &p->shared_down_proj,
                                          { .x = ws->a + (size_t)c->tokens * p->top_k * ws->ld_i, .ldx = ws->ld_i,
                                            .count = c->tokens, .y = ws->r, .ldy = ws->ld_d } };
    for (uint32_t i = 0; i < c->used && status == BITAXON_OK; i++) {
        uint32_t expert = (uint32_t)ws->used[i], first = (uint32_t)ws->first[expert];
        jobs[count++] = (bxn_linear_job){ &p->down[expert],
                                          { .x = ws->a + first * ws->ld_i,
                                            .ldx = ws->ld_i,
                                            .count = pairs_of(ws, expert),
                                            .y = ws->e + first * ws->ld_d,
                                            .ldy = ws->ld_d } };
        if (count == SLOTS + 1 || i + 1 == c->used) {
            status = bxn_linear_jobs(c->exec, jobs, count);
            count = 0;
        }
    }
    return status;
}

bitaxon_status bxn_moe_forward(const bxn_exec *exec, const bxn_moe *p, uint32_t tokens, uint32_t layer)
{
    bxn_workspace *ws = exec->ws;
    moe_context c = { .exec = exec, .p = p, .tokens = tokens, .layer = layer };
    bxn_taken taken = ws->taken;
    bxn_pad_rows(ws->a, ws->ld_i, p->inner, tokens * (p->top_k + (p->shared ? 1 : 0)));
    bitaxon_status status = make_input(&c);
    if (status == BITAXON_OK)
        status = run_hidden(&c);
    ws->taken = taken;
    if (status == BITAXON_OK)
        status = run_down(&c);
    return status == BITAXON_OK ? bxn_rows_run(exec, tokens, combine_task, &c) : status;
}
