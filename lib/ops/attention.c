/* SPDX-License-Identifier: Apache-2.0 */
/* attention.c - sliding-window attention over pages of cached keys and values (spec
 * 4.1): query p sees keys max(0, p - W + 1) .. p, itself included. Keys and values of
 * the tokens of a pass are stored first, then every query attends, so that a prompt
 * cut anywhere reads the same values. A piece of work is one head of one segment; when there
 * are few and one token is read, one head of one part of the window (the kernels' parts, so that
 * the bits are the same). A few tasks take pieces until none is left, each with its own scratch. */
#include "ops/ops.h"

#include <math.h>
#include <string.h>

#define TASKS 16 /* at most; their scratch is in the workspace */

typedef struct attention_context {
    const bxn_exec *exec;
    const bxn_attention *p;
    const bxn_segment *segments;
    uint32_t pieces;
    uint32_t parts; /* of each head; 0: heads are whole */
    uint64_t first_part;
    float *partials; /* [heads, parts, bxn_partial_floats] */
    atomic_uint next;
} attention_context;

static uint32_t most_tasks(uint32_t heads)
{
    return heads < TASKS ? heads : TASKS;
}

static size_t rows_floats(uint32_t head_dim)
{
    return BXN_QUERIES * bxn_round_up(head_dim, 16);
}

size_t bxn_attention_floats(uint32_t heads, uint32_t head_dim, uint64_t window, size_t *of_task)
{
    size_t parts = (size_t)(window / BXN_PART) + 2;
    *of_task = bxn_attention_scratch(head_dim) + 2 * rows_floats(head_dim);
    return most_tasks(heads) * *of_task + heads * parts * bxn_partial_floats(head_dim);
}

typedef struct head_job {
    const attention_context *c;
    const bxn_segment *segment;
    uint32_t head;
    size_t column; /* of the head in q, k, v and o */
    size_t k_offset, v_offset;
    bool rotated;
    float *scratch, *rows, *more; /* of the task: rows and more hold BXN_QUERIES rows each */
} head_job;

/* Keys and values of the segment's tokens, into their pages. */
static void store_segment(const head_job *j)
{
    const bxn_exec *exec = j->c->exec;
    const bxn_workspace *ws = exec->ws;
    const bxn_kv_view *kv = j->segment->kv;
    const bxn_kv_layout *layout = kv->layout;
    uint32_t d = layout->head_dim, stride = layout->v_stride;
    float theta = j->c->p->rope_theta;
    for (uint32_t i = 0; theta > 0 && i < j->segment->count; i++)
        bxn_rope_row(ws->k + (size_t)(j->segment->first + i) * ws->ld_d + j->column, d,
                     j->segment->position + i, theta);
    for (uint32_t i = 0; i < j->segment->count; i++) {
        uint64_t at = j->segment->position + i;
        char *page = kv->pages[at / BXN_PAGE - kv->first];
        size_t row = (size_t)(j->segment->first + i) * ws->ld_d + j->column;
        const float *key = ws->k + row, *value = ws->v + row;
        if (j->rotated) {
            if (i % BXN_QUERIES == 0) { /* some rows at a time */
                uint32_t left = j->segment->count - i, n = left < BXN_QUERIES ? left : BXN_QUERIES;
                exec->kernels->kv_rotate(ws->rotation, d, key, ws->ld_d, n, j->rows);
                exec->kernels->kv_rotate(ws->rotation, d, value, ws->ld_d, n, j->more);
            }
            key = j->rows + i % BXN_QUERIES * (size_t)stride;
            value = j->more + i % BXN_QUERIES * (size_t)stride;
        }
        bxn_kv_store(exec->kernels, layout, key, value, page + j->k_offset, page + j->v_offset,
                     (uint32_t)(at % BXN_PAGE), j->scratch);
    }
}

/* Queries first .. first + count - 1 of the segment as the kernel wants them: in place, or turned
 * into `rows` (position, then rotation). */
static const float *queries(const head_job *j, uint32_t first, uint32_t count, size_t *ldq)
{
    const bxn_exec *exec = j->c->exec;
    const bxn_workspace *ws = exec->ws;
    const bxn_kv_layout *layout = j->segment->kv->layout;
    uint32_t d = layout->head_dim, stride = layout->v_stride;
    float theta = j->c->p->rope_theta;
    const float *q = ws->q + (size_t)(j->segment->first + first) * ws->ld_d + j->column;
    *ldq = ws->ld_d;
    if (theta > 0) {
        float *turned = j->rotated ? j->more : j->rows;
        for (uint32_t i = 0; i < count; i++) {
            memcpy(turned + (size_t)i * stride, q + i * ws->ld_d, d * sizeof *q);
            bxn_rope_row(turned + (size_t)i * stride, d, j->segment->position + first + i, theta);
        }
        q = turned;
        *ldq = stride;
    }
    if (j->rotated) {
        exec->kernels->kv_rotate(ws->rotation, d, q, *ldq, count, j->rows);
        q = j->rows;
        *ldq = stride;
    }
    return q;
}

/* The rows of `more` turned back, to the result. */
static void turn_back(const head_job *j, uint32_t first, uint32_t count)
{
    const bxn_exec *exec = j->c->exec;
    const bxn_workspace *ws = exec->ws;
    uint32_t d = j->c->p->head_dim;
    size_t stride = bxn_round_up(d, 16);
    exec->kernels->kv_rotate(ws->rotation, d, j->more, stride, count, j->rows);
    for (uint32_t i = 0; i < count; i++)
        memcpy(ws->o + (size_t)(j->segment->first + first + i) * ws->ld_d + j->column,
               j->rows + i * stride, d * sizeof(float));
}

static void attend(const bxn_exec *exec, bool tiled, bxn_kv_type type, const bxn_attention_args *args)
{
    if (tiled) {
        exec->kernels->attention_tile(args, type);
        return;
    }
    switch (type) {
    case BXN_KV_F16:
        exec->kernels->attention_f16(args);
        break;
    case BXN_KV_F32:
        exec->kernels->attention_f32(args);
        break;
    case BXN_KV_I8:
        exec->kernels->attention_i8(args);
        break;
    case BXN_KV_Q4:
        exec->kernels->attention_q4(args);
        break;
    }
}

static void run_piece(attention_context *c, uint32_t piece, float *scratch)
{
    const bxn_exec *exec = c->exec;
    const bxn_workspace *ws = exec->ws;
    const bxn_attention *p = c->p;
    uint32_t heads = p->heads, d = p->head_dim, part = c->parts != 0 ? piece % c->parts : 0;
    uint32_t unit = c->parts != 0 ? piece / c->parts : piece;
    const bxn_segment *segment = &c->segments[unit / heads];
    const bxn_kv_layout *layout = segment->kv->layout;
    head_job j = {
        .c = c, .segment = segment, .head = unit % heads, .rotated = layout->type == BXN_KV_Q4};
    j.column = (size_t)j.head * d;
    j.k_offset = ((size_t)p->kv_index * heads + j.head) * (layout->k_bytes + layout->v_bytes);
    j.v_offset = j.k_offset + layout->k_bytes;
    j.scratch = scratch;
    j.rows = scratch + bxn_attention_scratch(d);
    j.more = j.rows + rows_floats(d);
    if (c->parts == 0 || part == c->parts - 1) /* nobody else reads the new token */
        store_segment(&j);
    bxn_attention_args args = {
        .scale = (float)(1.0 / sqrt((double)d)),
        .head_dim = d,
        .window = p->window,
        .pages = (const void *const *)segment->kv->pages,
        .first_page = segment->kv->first,
        .k_offset = j.k_offset,
        .v_offset = j.v_offset,
        .scratch = scratch,
        .part = BXN_ALL_PARTS,
    };
    if (c->parts != 0) {
        args.part = c->first_part + part;
        args.partial = c->partials + ((size_t)j.head * c->parts + part) * bxn_partial_floats(d);
    }
    for (uint32_t t = 0; t < segment->count; t += BXN_QUERIES) {
        if (exec->cancel != NULL && atomic_load_explicit(exec->cancel, memory_order_relaxed) != 0)
            return;
        args.position = segment->position + t;
        args.count = segment->count - t < BXN_QUERIES ? segment->count - t : BXN_QUERIES;
        args.q = queries(&j, t, args.count, &args.ldq);
        args.out = j.rotated ? j.more : ws->o + (size_t)(segment->first + t) * ws->ld_d + j.column;
        args.ldout = j.rotated ? layout->v_stride : ws->ld_d;
        attend(exec, bxn_tiled(exec, &p->q_proj), layout->type, &args);
        if (j.rotated && c->parts == 0)
            turn_back(&j, t, args.count);
    }
}

static void attention_task(void *context, uint32_t task)
{
    attention_context *c = context;
    float *scratch = c->exec->ws->scores + task * c->exec->ws->score_stride;
    uint32_t piece;
    while ((piece = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed)) < c->pieces)
        run_piece(c, piece, scratch);
}

/* The parts of every head, merged in order. */
static void merge_heads(const attention_context *c)
{
    const bxn_exec *exec = c->exec;
    const bxn_workspace *ws = exec->ws;
    uint32_t d = c->p->head_dim;
    bool rotated = c->segments[0].kv->layout->type == BXN_KV_Q4;
    for (uint32_t head = 0; head < c->p->heads; head++) {
        float *out = ws->o + (size_t)c->segments[0].first * ws->ld_d + (size_t)head * d,
              *rows = ws->scores;
        const float *partials = c->partials + (size_t)head * c->parts * bxn_partial_floats(d);
        exec->kernels->attention_merge(partials, c->parts, d, rotated ? rows : out);
        if (rotated) {
            exec->kernels->kv_rotate(ws->rotation, d, rows, 0, 1, rows + bxn_round_up(d, 16));
            memcpy(out, rows + bxn_round_up(d, 16), d * sizeof *out);
        }
    }
}

static bitaxon_status attend_segments(const bxn_exec *exec, const bxn_attention *p,
                                      const bxn_segment *segments, uint32_t n)
{
    attention_context c = {.exec = exec, .p = p, .segments = segments, .pieces = n * p->heads};
    uint32_t tasks = most_tasks(p->heads);
    if (n == 1 && segments[0].count == 1 && p->heads < 4 * bxn_pool_threads(exec->pool)) {
        uint64_t end = segments[0].position + 1;
        c.first_part = (end > p->window ? end - p->window : 0) / BXN_PART;
        c.parts = (uint32_t)((end - 1) / BXN_PART - c.first_part) + 1;
        c.parts = c.parts > 1 ? c.parts : 0;
        c.pieces = c.parts > 1 ? c.parts * p->heads : p->heads;
        c.partials = exec->ws->scores + tasks * exec->ws->score_stride;
    }
    bitaxon_status status = bxn_pool_run(exec->pool, c.pieces < tasks ? c.pieces : tasks,
                                         attention_task, &c, exec->cancel);
    if (status == BITAXON_OK && c.parts != 0)
        merge_heads(&c);
    return status;
}

bitaxon_status bxn_attention_forward(const bxn_exec *exec, const bxn_attention *p, uint32_t tokens,
                                     const bxn_segment *segments, uint32_t n)
{
    bxn_workspace *ws = exec->ws;
    bxn_mm_args args = {.x = ws->n, .ldx = ws->ld_d, .count = tokens, .ldy = ws->ld_d};
    bxn_linear_job jobs[3] = {{&p->q_proj, args}, {&p->k_proj, args}, {&p->v_proj, args}};
    jobs[0].args.y = ws->q;
    jobs[1].args.y = ws->k;
    jobs[2].args.y = ws->v;
    bitaxon_status status = bxn_linear_jobs(exec, jobs, 3);
    if (status != BITAXON_OK)
        return status;
    status = attend_segments(exec, p, segments, n);
    if (status != BITAXON_OK)
        return status;
    return bxn_linear(exec, &p->o_proj, ws->o, ws->ld_d, tokens, ws->r, ws->ld_d);
}
