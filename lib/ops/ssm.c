/* SPDX-License-Identifier: Apache-2.0 */
/* ssm.c - the selective state-space mixer (Mamba-1; Gu & Dao 2023; spec 3.1):
 * in_proj -> causal convolution and SiLU -> x_proj (B, C, dt) -> scan with skip and gate
 * -> out_proj. The state goes in by one buffer and out by another, so that a pass that
 * fails has changed nothing. Channels are independent: a task is a range of channels, and
 * who has multiplied a channel's x convolves it. The small x_proj runs beside the z half of in_proj. */
#include "ops/ops.h"

#include <string.h>

typedef struct ssm_context {
    const bxn_exec *exec;
    const bxn_ssm *p;
    const bxn_segment *segments;
    uint32_t n;
    bxn_mm_args in, x; /* in_proj, x_proj */
} ssm_context;

/* Channels [begin, end) of one segment: convolution, and the last K - 1 inputs of (old tail, x). */
static void convolve(const ssm_context *c, const bxn_segment *segment, uint32_t begin, uint32_t end)
{
    const bxn_ssm *p = c->p;
    const bxn_workspace *ws = c->exec->ws;
    size_t tail = p->state_offset + (size_t)p->channels16 * p->states;
    const float *x = ws->xz + segment->first * ws->ld_2e, *tail_in = segment->state_in + tail;
    float *tail_out = segment->state_out + tail;
    bxn_conv_args args = { segment->count, begin, end, p->taps, x, ws->ld_2e, tail_in, p->conv_weight,
                           p->conv_bias, p->channels16, ws->xc + segment->first * ws->ld_e, ws->ld_e };
    c->exec->kernels->conv_silu(&args);
    uint32_t rows = p->taps - 1, live = end < p->channels ? end : p->channels;
    for (uint32_t j = 0; j < rows && begin < live; j++) {
        uint32_t from = j + segment->count; /* row of the joined sequence */
        const float *src = from < rows ? tail_in + (size_t)from * p->channels16
                                       : x + (size_t)(from - rows) * ws->ld_2e;
        memcpy(tail_out + (size_t)j * p->channels16 + begin, src + begin, (live - begin) * sizeof *src);
    }
}

static void x_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const ssm_context *c = context;
    (void)item;
    bxn_product(c->exec, &c->p->in_proj, begin, end, &c->in);
    for (uint32_t i = 0; i < c->n; i++)
        convolve(c, &c->segments[i], begin * BXN_UNIT_ROWS, end * BXN_UNIT_ROWS);
}

static void z_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const ssm_context *c = context;
    uint32_t first = c->p->channels16 / BXN_UNIT_ROWS;
    if (item == 0)
        bxn_product(c->exec, &c->p->x_proj, begin, end, &c->x);
    else
        bxn_product(c->exec, &c->p->in_proj, first + begin, first + end, &c->in);
}

/* Groups of 16 channels of segment after segment. */
static void scan_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const ssm_context *c = context;
    const bxn_ssm *p = c->p;
    const bxn_workspace *ws = c->exec->ws;
    uint32_t groups = p->channels16 / 16;
    (void)item;
    while (begin < end) {
        const bxn_segment *segment = &c->segments[begin / groups];
        uint32_t at = begin % groups, count = groups - at < end - begin ? groups - at : end - begin;
        size_t first = segment->first;
        bxn_scan_args args = {
            .tokens = segment->count,
            .begin = at * 16,
            .end = (at + count) * 16,
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
        begin += count;
    }
}

static bitaxon_status forward(const bxn_exec *exec, const bxn_ssm *p, uint32_t tokens,
                              const bxn_segment *segments, uint32_t n)
{
    bxn_workspace *ws = exec->ws;
    const bxn_taken taken = ws->taken;
    uint32_t x_groups = p->channels16 / BXN_UNIT_ROWS;
    uint32_t all_groups = (p->in_proj.rows + BXN_UNIT_ROWS - 1) / BXN_UNIT_ROWS;
    ssm_context c = { .exec = exec, .p = p, .segments = segments, .n = n };
    bxn_pad_rows(ws->xc, ws->ld_e, p->channels, tokens);
    /* The scan gates the padded channels too, with what follows z: NaN there would reach y's padding. */
    bxn_pad_rows(ws->xz, ws->ld_2e, 2 * p->channels, tokens);

    bxn_input in = { .x = ws->n, .ldx = ws->ld_d, .cols = p->in_proj.cols, .rows = tokens };
    bxn_input_want(&in, exec, &p->in_proj);
    c.in = (bxn_mm_args){ .count = tokens, .y = ws->xz, .ldy = ws->ld_2e };
    bitaxon_status status = bxn_inputs_make(exec, &in, 1);
    bxn_input_use(&in, &c.in);
    bxn_item items[2] = { bxn_product_item(exec, &p->in_proj, x_groups, tokens) };
    if (status == BITAXON_OK)
        status = bxn_ranges_run(exec, items, 1, x_task, &c);
    if (status != BITAXON_OK)
        return status;

    in = (bxn_input){ .x = ws->xc, .ldx = ws->ld_e, .cols = p->x_proj.cols, .rows = tokens };
    bxn_input_want(&in, exec, &p->x_proj);
    c.x = (bxn_mm_args){ .count = tokens, .y = ws->bcd, .ldy = ws->ld_bcd };
    status = bxn_inputs_make(exec, &in, 1);
    bxn_input_use(&in, &c.x);
    items[0] = bxn_product_item(exec, &p->x_proj, (p->x_proj.rows + BXN_UNIT_ROWS - 1) / BXN_UNIT_ROWS, tokens);
    items[1] = bxn_product_item(exec, &p->in_proj, all_groups - x_groups, tokens);
    if (status == BITAXON_OK)
        status = bxn_ranges_run(exec, items, 2, z_task, &c);
    if (status != BITAXON_OK)
        return status;

    items[0] = (bxn_item){ n * x_groups, (uint64_t)16 * 16 * p->states * tokens / n, 0 };
    status = bxn_ranges_run(exec, items, 1, scan_task, &c);
    ws->taken = taken; /* there is room for two inputs of this op, not for three */
    return status == BITAXON_OK ? bxn_linear(exec, &p->out_proj, ws->y, ws->ld_e, tokens, ws->r, ws->ld_d) : status;
}

bitaxon_status bxn_ssm_forward(const bxn_exec *exec, const bxn_ssm *p, uint32_t tokens,
                               const bxn_segment *segments, uint32_t n)
{
    bxn_taken taken = exec->ws->taken;
    bitaxon_status status = forward(exec, p, tokens, segments, n);
    exec->ws->taken = taken;
    return status;
}
