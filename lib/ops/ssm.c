/* SPDX-License-Identifier: Apache-2.0 */
/* ssm.c - the selective state-space mixer (Mamba-1; Gu & Dao 2023; spec 3.1):
 * in_proj -> causal convolution and SiLU -> x_proj (B, C, dt) -> scan with skip and gate
 * -> out_proj. The state goes in by one buffer and out by another, so that a pass that
 * fails has changed nothing. Channels are independent: tasks are channel ranges. */
#include "ops/ops.h"

#include <string.h>

typedef struct ssm_context {
    const bxn_exec *exec;
    const bxn_ssm *p;
    const bxn_segment *segments;
    uint32_t block;  /* channels per task, a multiple of 16 */
    uint32_t blocks; /* tasks per segment */
} ssm_context;

static uint32_t range_end(const ssm_context *c, uint32_t begin)
{
    uint32_t end = begin + c->block;
    return end < c->p->channels16 ? end : c->p->channels16;
}

static void conv_task(void *context, uint32_t index)
{
    const ssm_context *c = context;
    const bxn_ssm *p = c->p;
    const bxn_workspace *ws = c->exec->ws;
    const bxn_segment *segment = &c->segments[index / c->blocks];
    uint32_t begin = index % c->blocks * c->block, end = range_end(c, begin);
    size_t tail = p->state_offset + (size_t)p->channels16 * p->states;
    const float *x = ws->xz + segment->first * ws->ld_2e, *tail_in = segment->state_in + tail;
    float *tail_out = segment->state_out + tail;
    bxn_conv_args args = { segment->count, begin, end, p->taps, x, ws->ld_2e, tail_in, p->conv_weight,
                           p->conv_bias, p->channels16, ws->xc + segment->first * ws->ld_e, ws->ld_e };
    c->exec->kernels->conv_silu(&args);
    /* The new tail: the last K - 1 inputs of (old tail, x). */
    uint32_t rows = p->taps - 1, live = end < p->channels ? end : p->channels;
    for (uint32_t j = 0; j < rows && begin < live; j++) {
        uint32_t from = j + segment->count; /* row of the joined sequence */
        const float *src = from < rows ? tail_in + (size_t)from * p->channels16
                                       : x + (size_t)(from - rows) * ws->ld_2e;
        memcpy(tail_out + (size_t)j * p->channels16 + begin, src + begin, (live - begin) * sizeof *src);
    }
}

static void scan_task(void *context, uint32_t index)
{
    const ssm_context *c = context;
    const bxn_ssm *p = c->p;
    const bxn_workspace *ws = c->exec->ws;
    const bxn_segment *segment = &c->segments[index / c->blocks];
    uint32_t begin = index % c->blocks * c->block;
    size_t first = segment->first;
    bxn_scan_args args = {
        .tokens = segment->count,
        .begin = begin,
        .end = range_end(c, begin),
        .states = p->states,
        .x = ws->xc + first * ws->ld_e,
        .ldx = ws->ld_e,
        .z = ws->xz + first * ws->ld_2e + p->channels,
        .ldz = ws->ld_2e,
        .bcd = ws->bcd + first * ws->ld_bcd,
        .ldbcd = ws->ld_bcd,
        .dt_weight = p->dt_weight,
        .dt_bias = p->dt_bias,
        .a2 = p->a2,
        .d = p->d,
        .h_in = segment->state_in + p->state_offset,
        .h_out = segment->state_out + p->state_offset,
        .y = ws->y + first * ws->ld_e,
        .ldy = ws->ld_e,
    };
    c->exec->kernels->scan(&args);
}

bitaxon_status bxn_ssm_forward(const bxn_exec *exec, const bxn_ssm *p, uint32_t tokens,
                               const bxn_segment *segments, uint32_t n)
{
    bxn_workspace *ws = exec->ws;
    ssm_context c = { .exec = exec, .p = p, .segments = segments, .block = 128 };
    if (tokens == 1) { /* little work per channel: few, long ranges */
        uint32_t share = p->channels16 / (2 * bxn_pool_threads(exec->pool)) / 16 * 16;
        c.block = share > 128 ? share : 128;
    }
    c.blocks = (p->channels16 + c.block - 1) / c.block;
    uint32_t tasks = n * c.blocks;

    bitaxon_status status = bxn_linear(exec, &p->in_proj, ws->n, ws->ld_d, tokens, ws->xz, ws->ld_2e);
    if (status == BITAXON_OK)
        status = bxn_pool_run(exec->pool, tasks, conv_task, &c, exec->cancel);
    if (status == BITAXON_OK)
        status = bxn_linear(exec, &p->x_proj, ws->xc, ws->ld_e, tokens, ws->bcd, ws->ld_bcd);
    if (status == BITAXON_OK)
        status = bxn_pool_run(exec->pool, tasks, scan_task, &c, exec->cancel);
    if (status == BITAXON_OK)
        status = bxn_linear(exec, &p->out_proj, ws->y, ws->ld_e, tokens, ws->r, ws->ld_d);
    return status;
}
