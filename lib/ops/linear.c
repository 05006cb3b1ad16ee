/* SPDX-License-Identifier: Apache-2.0 */
/* linear.c - y = x W^T for weights in any form, and lists of such products that share
 * one parallel region (q, k, v; gate and up of all experts). How rows are cut into
 * tasks never shows in a result: kernels compute each output by one fixed order. */
#include "ops/ops.h"

#include "quant/quant.h"

#define MAX_JOBS 64

bool bxn_weight_needs_sums(const bxn_weight *w)
{
    return w->kind == BXN_WEIGHT_PACKED && w->packed.has_bias;
}

void bxn_weight_row(const bxn_weight *w, uint32_t row, float *out)
{
    if (w->kind == BXN_WEIGHT_PACKED) {
        bxn_packed_row(&w->packed, row, out);
        return;
    }
    size_t row_bytes = (size_t)w->cols * (w->dense.dtype == BXN_F32 ? 4 : 2);
    bxn_to_f32((const char *)w->dense.data + row * row_bytes, w->dense.dtype, w->cols, out);
}

typedef struct sums_context {
    const bxn_kernels *kernels;
    const float *x;
    float *out;
    size_t ldx, ld_sum, blocks;
} sums_context;

static void sums_task(void *context, uint32_t token)
{
    const sums_context *c = context;
    c->kernels->block_sums(c->x + token * c->ldx, c->blocks, c->out + token * c->ld_sum);
}

/* Few tokens are not worth waking anybody for. */
static bitaxon_status run_rows(const bxn_exec *exec, uint32_t tokens, bxn_task task, void *context)
{
    if (tokens >= 8)
        return bxn_pool_run(exec->pool, tokens, task, context, exec->cancel);
    for (uint32_t t = 0; t < tokens; t++)
        task(context, t);
    return BITAXON_OK;
}

bitaxon_status bxn_linear_sums(const bxn_exec *exec, const float *x, size_t ldx, uint32_t cols,
                               uint32_t tokens, float *out)
{
    sums_context c = { exec->kernels, x, out, ldx, exec->ws->ld_sum,
                       bxn_round_up(cols, BXN_UNIT_COLS) / BXN_SUB_BLOCK };
    return run_rows(exec, tokens, sums_task, &c);
}

/* Row groups of 16 of a job, packed or not. */
static uint32_t job_groups(const bxn_linear_job *job)
{
    return job->args.count == 0 ? 0 : (job->w->rows + BXN_UNIT_ROWS - 1) / BXN_UNIT_ROWS;
}

typedef struct jobs_context {
    const bxn_kernels *kernels;
    const bxn_linear_job *jobs;
    uint32_t block[MAX_JOBS]; /* row groups per task */
    uint32_t end[MAX_JOBS];   /* first task after job i's */
} jobs_context;

static void jobs_task(void *context, uint32_t index)
{
    const jobs_context *c = context;
    uint32_t i = 0;
    while (index >= c->end[i])
        i++;
    const bxn_linear_job *job = &c->jobs[i];
    uint32_t begin = (index - (i == 0 ? 0 : c->end[i - 1])) * c->block[i], end = begin + c->block[i];
    uint32_t groups = job_groups(job);
    if (end > groups)
        end = groups;
    const bxn_weight *w = job->w;
    if (w->kind == BXN_WEIGHT_PACKED) {
        (w->packed.code_bits == 4 ? c->kernels->mm_packed4 : c->kernels->mm_packed8)(&w->packed, begin, end,
                                                                                    &job->args);
        return;
    }
    uint32_t row_end = end * BXN_UNIT_ROWS < w->rows ? end * BXN_UNIT_ROWS : w->rows;
    (w->dense.dtype == BXN_F32   ? c->kernels->mm_f32
     : w->dense.dtype == BXN_F16 ? c->kernels->mm_f16
                                 : c->kernels->mm_bf16)(&w->dense, begin * BXN_UNIT_ROWS, row_end, &job->args);
}

static bitaxon_status run_jobs(const bxn_exec *exec, const bxn_linear_job *jobs, uint32_t count)
{
    jobs_context c;
    c.kernels = exec->kernels;
    c.jobs = jobs;
    uint64_t groups = 0;
    for (uint32_t i = 0; i < count; i++)
        groups += job_groups(&jobs[i]);
    /* One token: long row ranges, which the kernels walk as several memory streams. Many
     * tokens: small panels, which balance. */
    uint64_t share = groups / (4 * (uint64_t)bxn_pool_threads(exec->pool)) + 3;
    uint32_t tasks = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = jobs[i].args.count > 1 ? 2 : (uint32_t)(share < 1024 ? share : 1024) / 4 * 4;
        c.block[i] = block < 2 ? 4 : block;
        tasks += (job_groups(&jobs[i]) + c.block[i] - 1) / c.block[i];
        c.end[i] = tasks;
    }
    return bxn_pool_run(exec->pool, tasks, jobs_task, &c, exec->cancel);
}

bitaxon_status bxn_linear_jobs(const bxn_exec *exec, const bxn_linear_job *jobs, uint32_t count)
{
    bitaxon_status status = BITAXON_OK;
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i += MAX_JOBS)
        status = run_jobs(exec, jobs + i, count - i < MAX_JOBS ? count - i : MAX_JOBS);
    return status;
}

bitaxon_status bxn_linear(const bxn_exec *exec, const bxn_weight *w, const float *x, size_t ldx,
                          uint32_t tokens, float *y, size_t ldy)
{
    if (bxn_weight_needs_sums(w)) {
        bitaxon_status status = bxn_linear_sums(exec, x, ldx, w->cols, tokens, exec->ws->sums);
        if (status != BITAXON_OK)
            return status;
    }
    bxn_linear_job job = { w, { .x = x, .ldx = ldx, .count = tokens, .y = y, .ldy = ldy,
                                .xsum = exec->ws->sums, .ldsum = exec->ws->ld_sum } };
    return bxn_linear_jobs(exec, &job, 1);
}
