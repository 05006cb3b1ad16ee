/* SPDX-License-Identifier: Apache-2.0 */
/* linear.c - y = x W^T for weights in any form, and lists of such products that share
 * one parallel region (q, k, v; the downs of all experts). Called by every op. What products read of
 * their inputs besides the floats - sums of blocks, integers of the near and fast tiers, or bf16
 * tiles in prefill with AMX - is made once per row here, and so is what adapters need (ops.h). How rows are cut into
 * tasks never shows in a result: kernels compute each output by one fixed order. */
#include "ops/ops.h"

#include <assert.h>
#include <string.h>

#include "ops/train_ops.h"
#include "quant/quant.h"

#define MAX_JOBS 64
#define MAX_RANGES 1024
#define TILED_GROUPS 8u /* of a range of tiled products at least: four panels */
#define SERIAL_ROWS 8 /* fewer rows are not worth waking anybody for */

bool bxn_needs_sums(const bxn_exec *exec, const bxn_weight *w)
{
    return w->kind == BXN_WEIGHT_PACKED && w->packed.has_bias && !bxn_tiled(exec, w);
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

/* ---- parallel regions ------------------------------------------------------------------ */

typedef struct range {
    uint32_t item, begin, end;
} range;

typedef struct ranges_context {
    bxn_range_task task;
    void *context;
    const atomic_int *cancel;
    _Atomic uint32_t next;
    uint32_t count;
    range ranges[MAX_RANGES];
} ranges_context;

/* One thread at work: range after range, as long as there are any. */
static void ranges_task(void *context, uint32_t index)
{
    ranges_context *c = context;
    (void)index;
    while (!bxn_cancelled(c->cancel)) {
        uint32_t at = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
        if (at >= c->count)
            return;
        c->task(c->context, c->ranges[at].item, c->ranges[at].begin, c->ranges[at].end);
    }
}

/* Long ranges first, which kernels walk as several streams, and short ones at the end of the
 * list, so that nobody waits long for the last: each takes a fixed part of what is left. Of items whose ranges are
 * best long each takes a thread's share of what is left, or, where a share is few ranges of the least length, one
 * of the whole. */
static uint32_t cut(const bxn_item *items, uint32_t count, uint32_t threads, range *out)
{
    const uint64_t most = (uint64_t)16 << 20; /* work units of a task: some milliseconds in plain C */
    uint64_t left = 0;
    for (uint32_t i = 0; i < count; i++)
        left += items[i].groups * items[i].cost;
    const uint64_t least = left / (MAX_RANGES / 4) + 1, share = left / threads;
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t cost = items[i].cost == 0 ? 1 : items[i].cost;
        const uint64_t few = items[i].least * cost;
        for (uint32_t begin = 0; begin < items[i].groups;) {
            uint64_t work = left / (2 * (uint64_t)threads), size;
            if (few != 0) {
                work = share < 4 * few ? share : 2 * work > few ? 2 * work : few;
                size = (work / cost + 1) & ~(uint64_t)1; /* pairs of groups */
            } else {
                work = work < most ? work : most;
                size = (work > least ? work : least) / cost;
                size = size >= 4 ? size / 4 * 4 : size;
            }
            size = size < 2 ? 2 : size;
            uint64_t rest = items[i].groups - begin;
            size = n + (count - i) >= MAX_RANGES || size > rest ? rest : size;
            out[n++] = (range){ i, begin, begin + (uint32_t)size };
            begin += (uint32_t)size;
            left -= left < size * cost ? left : size * cost;
        }
    }
    return n;
}

bitaxon_status bxn_ranges_run(const bxn_exec *exec, const bxn_item *items, uint32_t count,
                              bxn_range_task task, void *context)
{
    ranges_context c;
    uint32_t threads = bxn_pool_threads(exec->pool);
    c.task = task;
    c.context = context;
    c.cancel = exec->cancel;
    c.count = cut(items, count, threads, c.ranges);
    atomic_init(&c.next, 0);
    /* More loops than threads: who is late finds nothing left, and a host may have more threads. */
    return bxn_pool_run(exec->pool, c.count < 2 * threads ? c.count : 2 * threads, ranges_task, &c, exec->cancel);
}

bitaxon_status bxn_rows_run(const bxn_exec *exec, uint32_t rows, bxn_task task, void *context)
{
    if (rows >= SERIAL_ROWS)
        return bxn_pool_run(exec->pool, rows, task, context, exec->cancel);
    for (uint32_t t = 0; t < rows; t++)
        task(context, t);
    return BITAXON_OK;
}

/* ---- inputs ------------------------------------------------------------------------------ */

/* Bytes of one row of sums, integers of the largest kind, and their scales. */
size_t bxn_input_bytes(size_t columns)
{
    columns = bxn_round_up(columns, BXN_UNIT_COLS);
    return bxn_round_up(columns / BXN_SUB_BLOCK * sizeof(float), BXN_ALIGN) + bxn_xq_bytes(BXN_XQ_NEAR8, columns) +
           bxn_round_up(columns / BXN_XQ_BLOCK * sizeof(float), BXN_ALIGN);
}

size_t bxn_tiled_input_bytes(size_t columns, size_t rows, size_t blocks)
{
    columns = bxn_round_up(columns, BXN_UNIT_COLS);
    return rows * bxn_round_up(columns / BXN_SUB_BLOCK * sizeof(float), BXN_ALIGN) +
           blocks * bxn_tile_bytes(columns);
}

size_t bxn_low_rank_bytes(size_t rows, uint32_t rank)
{
    if (rank == 0)
        return 0;
    size_t parts = (size_t)BXN_INPUT_ADAPTED * BXN_ADAPTERS;
    return bxn_round_up(parts * sizeof(bxn_low_rank), BXN_ALIGN) + parts * BXN_ALIGN +
           BXN_INPUT_ADAPTED * rows * rank * sizeof(float);
}

static bool adapted(const bxn_exec *exec, const bxn_weight *w)
{
    for (uint32_t i = 0; exec->adapters != NULL && i < exec->adapters->count; i++)
        if (bxn_lora_of(exec->adapters, i, w) != NULL)
            return true;
    return false;
}

void bxn_input_adapt(bxn_input *in, const bxn_exec *exec, const bxn_weight *w)
{
    if (!adapted(exec, w))
        return;
    assert(in->from == NULL && in->adapted_count < BXN_INPUT_ADAPTED);
    in->adapted[in->adapted_count++] = w;
}

void bxn_input_want(bxn_input *in, const bxn_exec *exec, const bxn_weight *w)
{
    bxn_input_adapt(in, exec, w);
    in->summed |= bxn_needs_sums(exec, w);
    if (bxn_tiled(exec, w))
        in->tiled = true;
    else if (w->xq != BXN_XQ_NONE)
        in->kind = w->xq;
}

typedef struct inputs_context {
    const bxn_kernels *kernels;
    const bxn_input *inputs;
    uint32_t count;
} inputs_context;

static void input_task(void *context, uint32_t row)
{
    const inputs_context *c = context;
    const bxn_input *in = c->inputs;
    for (; row >= in->rows; in++)
        row -= in->rows;
    const float *x = in->x + (in->from != NULL ? (size_t)in->from[row] : row) * in->ldx;
    size_t columns = bxn_round_up(in->cols, BXN_UNIT_COLS);
    if (in->tiled)
        c->kernels->quant_bf16(x, columns, in->xq + row / 16 * in->ldxq, row % 16);
    if (in->sums != NULL)
        c->kernels->block_sums(x, columns / BXN_SUB_BLOCK, in->sums + row * in->ldsum);
    if (in->kind != BXN_XQ_NONE)
        c->kernels->quant_x(in->kind, x, columns, in->xq + row * in->ldxq, in->xscale + row * in->ldxscale);
}

/* ---- adapters ------------------------------------------------------------------------------ */

enum { LOW_ROWS = 32, LOW_COLUMNS = 256 };

static void *take(bxn_workspace *ws, size_t bytes)
{
    void *at = ws->low + ws->taken.low;
    ws->taken.low += bxn_round_up(bytes, BXN_ALIGN);
    assert(ws->taken.low <= ws->low_bytes);
    return at;
}

/* Places what adapters need of the input. */
static void place_low_rank(const bxn_exec *exec, bxn_input *in)
{
    const bxn_adapters *adapters = exec->adapters;
    in->low = NULL;
    in->low_count = 0;
    if (in->adapted_count == 0)
        return;
    bxn_low_rank *low = take(exec->ws, (size_t)in->adapted_count * adapters->count * sizeof *low);
    for (uint32_t j = 0; j < in->adapted_count; j++) {
        for (uint32_t i = 0; i < adapters->count; i++) {
            const bxn_lora *lora = bxn_lora_of(adapters, i, in->adapted[j]);
            if (lora == NULL)
                continue;
            bxn_low_rank *part = &low[in->low_count++];
            *part = (bxn_low_rank){ .lora = lora, .id = in->adapted[j]->id, .rows = in->rows,
                                    .cols = in->adapted[j]->cols, .x = in->x, .ldx = in->ldx,
                                    .weight = adapters->weights[i] };
            part->u = take(exec->ws, (size_t)in->rows * lora->rank * sizeof(float));
            if (adapters->dropout > 0)
                part->dropped = take(exec->ws, in->rows * lora->lda * sizeof(float));
        }
    }
    in->low = low;
}

typedef struct low_context {
    const bxn_exec *exec;
    const bxn_input *inputs;
} low_context;

/* Some rows of u = A^T x of one part. */
static void low_rank_task(void *context, uint32_t index)
{
    const low_context *c = context;
    const bxn_input *in = c->inputs;
    uint32_t blocks;
    for (;; in++) {
        blocks = (in->rows + LOW_ROWS - 1) / LOW_ROWS;
        if (index < blocks * in->low_count)
            break;
        index -= blocks * in->low_count;
    }
    const bxn_low_rank *part = &in->low[index / blocks];
    const bxn_lora *lora = part->lora;
    uint32_t first = index % blocks * LOW_ROWS;
    uint32_t count = in->rows - first < LOW_ROWS ? in->rows - first : LOW_ROWS;
    const float *x = part->x + first * part->ldx;
    size_t ldx = part->ldx;
    if (part->dropped != NULL) {
        const bxn_adapters *adapters = c->exec->adapters;
        float *out = part->dropped + first * lora->lda;
        for (uint32_t t = 0; t < count; t++)
            bxn_dropout(adapters, part->id, adapters->first_row + first + t, x + t * ldx, part->cols,
                        out + t * lora->lda);
        bxn_pad_rows(out, lora->lda, part->cols, count);
        x = out;
        ldx = lora->lda;
    }
    bxn_dense a = { lora->a, BXN_F32, lora->rank, (uint32_t)lora->lda };
    bxn_mm_args args = { .x = x, .ldx = ldx, .count = count, .y = part->u + (size_t)first * lora->rank,
                         .ldy = lora->rank };
    c->exec->kernels->mm_f32(&a, 0, lora->rank, &args);
}

static bitaxon_status make_low_rank(const bxn_exec *exec, const bxn_input *inputs, uint32_t count)
{
    low_context c = { exec, inputs };
    uint32_t tasks = 0, rows = 0;
    for (uint32_t i = 0; i < count; i++) {
        tasks += (inputs[i].rows + LOW_ROWS - 1) / LOW_ROWS * inputs[i].low_count;
        rows += inputs[i].low_count != 0 ? inputs[i].rows : 0;
    }
    if (rows >= SERIAL_ROWS)
        return bxn_pool_run(exec->pool, tasks, low_rank_task, &c, exec->cancel);
    for (uint32_t i = 0; i < tasks; i++)
        low_rank_task(&c, i);
    return BITAXON_OK;
}

/* y += coefficient * B u in the order of the ranks. */
static void add_ranks(const bxn_kernels *kernels, const bxn_lora *lora, const float *u, float coefficient,
                      size_t column, size_t n, float *y)
{
    for (uint32_t r = 0; r < lora->rank; r++)
        kernels->scale_add(y, lora->b + r * lora->ldb + column, coefficient * u[r], n);
}

/* Rows [begin, end) of W: y, which is W x, becomes what the adapters make of it. Each element by an order
 * of its own: W x, then adapter after adapter. */
static void add_low_rank(const bxn_exec *exec, const bxn_weight *w, uint32_t begin, uint32_t end,
                         const bxn_mm_args *args)
{
    const bxn_low_rank *parts[BXN_ADAPTERS];
    uint32_t n = 0;
    bool gains = false;
    for (uint32_t i = 0; i < args->low_count; i++) {
        if (args->low[i].id != w->id)
            continue;
        gains |= args->low[i].lora->gain != NULL;
        parts[n++] = &args->low[i];
    }
    const bool alone = n == 1 && parts[0]->weight == 1.0f;
    for (uint32_t m = 0; m < args->count && n != 0; m++) {
        float *y = args->y + m * args->ldy, base[LOW_COLUMNS], z[LOW_COLUMNS];
        for (uint32_t column = begin, width; column < end; column += width) {
            width = gains && end - column > LOW_COLUMNS ? LOW_COLUMNS : end - column;
            if (gains)
                memcpy(base, y + column, width * sizeof *y);
            for (uint32_t i = 0; i < n; i++) {
                const bxn_lora *lora = parts[i]->lora;
                const float *u = parts[i]->u + (size_t)m * lora->rank;
                if (lora->gain == NULL) {
                    add_ranks(exec->kernels, lora, u, parts[i]->weight * lora->scale, column, width, y + column);
                    continue;
                }
                memcpy(z, base, width * sizeof *z);
                add_ranks(exec->kernels, lora, u, lora->scale, column, width, z);
                for (uint32_t j = 0; j < width; j++) {
                    float with = lora->gain[column + j] * z[j];
                    y[column + j] = alone ? with : y[column + j] + parts[i]->weight * (with - base[j]);
                }
            }
        }
    }
}

bitaxon_status bxn_inputs_make(const bxn_exec *exec, bxn_input *inputs, uint32_t count)
{
    bxn_workspace *ws = exec->ws;
    bool low = false;
    uint32_t rows = 0;
    for (uint32_t i = 0; i < count; i++) {
        bxn_input *in = &inputs[i];
        size_t columns = bxn_round_up(in->cols, BXN_UNIT_COLS);
        unsigned char *at = ws->inputs + ws->taken.inputs;
        in->ldsum = bxn_round_up(columns / BXN_SUB_BLOCK, 16);
        in->ldxq = in->tiled ? bxn_tile_bytes(columns) : bxn_xq_bytes(in->kind, columns);
        in->ldxscale = bxn_round_up(columns / BXN_XQ_BLOCK, 16);
        in->sums = in->summed ? (float *)(void *)at : NULL;
        at += in->summed ? in->rows * in->ldsum * sizeof(float) : 0;
        in->xscale = (float *)(void *)at;
        at += in->kind != BXN_XQ_NONE ? in->rows * in->ldxscale * sizeof(float) : 0;
        in->xq = at;
        at += (in->tiled ? (in->rows + 15) / 16 : in->rows) * in->ldxq;
        ws->taken.inputs = (size_t)(at - ws->inputs);
        place_low_rank(exec, in);
        low |= in->low_count != 0;
        rows += in->summed || in->tiled || in->kind != BXN_XQ_NONE ? in->rows : 0;
    }
    inputs_context c = { exec->kernels, inputs, count };
    bitaxon_status status = BITAXON_OK;
    if (rows != 0) {
        for (uint32_t i = rows = 0; i < count; i++)
            rows += inputs[i].rows;
        status = bxn_rows_run(exec, rows, input_task, &c);
    }
    return status == BITAXON_OK && low ? make_low_rank(exec, inputs, count) : status;
}

void bxn_input_use(const bxn_input *in, bxn_mm_args *args)
{
    args->x = in->x;
    args->ldx = in->ldx;
    args->xsum = in->sums;
    args->ldsum = in->ldsum;
    args->xq = in->xq;
    args->ldxq = in->ldxq;
    args->xscale = in->xscale;
    args->ldxscale = in->ldxscale;
    args->low = in->low;
    args->low_count = in->low_count;
}

/* ---- products ------------------------------------------------------------------------------ */

static void base_product(const bxn_exec *exec, const bxn_weight *w, uint32_t group_begin, uint32_t group_end,
                         const bxn_mm_args *args)
{
    const bxn_kernels *kernels = exec->kernels;
    if (w->kind == BXN_WEIGHT_PACKED) {
        bool four = w->packed.code_bits == 4;
        (w->xq == BXN_XQ_NONE      ? (four ? kernels->mm_packed4 : kernels->mm_packed8)
         : bxn_tiled(exec, w)      ? (four ? kernels->mm_tile4 : kernels->mm_tile8)
         : w->xq < BXN_XQ_FAST4    ? (four ? kernels->mm_near4 : kernels->mm_near8)
                                   : (four ? kernels->mm_fast4 : kernels->mm_fast8))(&w->packed, group_begin,
                                                                                    group_end, args);
        return;
    }
    uint32_t row_end = group_end * BXN_UNIT_ROWS < w->rows ? group_end * BXN_UNIT_ROWS : w->rows;
    (w->dense.dtype == BXN_F32   ? kernels->mm_f32
     : w->dense.dtype == BXN_F16 ? kernels->mm_f16
                                 : kernels->mm_bf16)(&w->dense, group_begin * BXN_UNIT_ROWS, row_end, args);
}

void bxn_product(const bxn_exec *exec, const bxn_weight *w, uint32_t group_begin, uint32_t group_end,
                 const bxn_mm_args *args)
{
    if (args->count == 0)
        return;
    base_product(exec, w, group_begin, group_end, args);
    uint32_t end = group_end * BXN_UNIT_ROWS < w->rows ? group_end * BXN_UNIT_ROWS : w->rows;
    if (args->low_count != 0)
        add_low_rank(exec, w, group_begin * BXN_UNIT_ROWS, end, args);
}

bxn_item bxn_product_item(const bxn_exec *exec, const bxn_weight *w, uint32_t groups, uint32_t tokens)
{
    /* Tiles take about a fifth of the time. Each of their ranges brings the inputs into the cache again. */
    const bool tiled = bxn_tiled(exec, w);
    const uint64_t cost = (uint64_t)BXN_UNIT_ROWS * w->cols * tokens / (tiled ? 5 : 1);
    return (bxn_item){ groups, cost, tiled ? TILED_GROUPS : 0 };
}

typedef struct jobs_context {
    const bxn_exec *exec;
    bxn_linear_job jobs[MAX_JOBS];
} jobs_context;

static void jobs_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const jobs_context *c = context;
    bxn_product(c->exec, c->jobs[item].w, begin, end, &c->jobs[item].args);
}

/* What the jobs lack of their inputs, once for all that have the same. */
static bitaxon_status make_inputs(const bxn_exec *exec, bxn_linear_job *jobs, uint32_t count)
{
    bxn_input inputs[MAX_JOBS];
    uint8_t input_of[MAX_JOBS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++) {
        const bxn_weight *w = jobs[i].w;
        const bxn_mm_args *args = &jobs[i].args;
        bool tiled = args->xq == NULL && bxn_tiled(exec, w);
        bxn_xq_kind kind = args->xq == NULL && !tiled ? w->xq : BXN_XQ_NONE;
        bool sums = args->xsum == NULL && bxn_needs_sums(exec, w);
        bool low = args->low == NULL && adapted(exec, w);
        input_of[i] = MAX_JOBS;
        if (args->count == 0 || args->rows != NULL || (kind == BXN_XQ_NONE && !sums && !tiled && !low))
            continue;
        uint32_t at = 0;
        while (at < n && !(inputs[at].x == args->x && inputs[at].rows == args->count &&
                           (!low || inputs[at].adapted_count < BXN_INPUT_ADAPTED) &&
                           (inputs[at].kind == kind || kind == BXN_XQ_NONE || inputs[at].kind == BXN_XQ_NONE)))
            at++;
        if (at == n)
            inputs[n++] = (bxn_input){ .x = args->x, .ldx = args->ldx, .cols = w->cols, .rows = args->count };
        if (kind != BXN_XQ_NONE)
            inputs[at].kind = kind;
        inputs[at].tiled |= tiled;
        inputs[at].summed |= sums;
        if (low)
            bxn_input_adapt(&inputs[at], exec, w);
        input_of[i] = (uint8_t)at;
    }
    bitaxon_status status = n == 0 ? BITAXON_OK : bxn_inputs_make(exec, inputs, n);
    for (uint32_t i = 0; i < count && status == BITAXON_OK; i++) {
        if (input_of[i] == MAX_JOBS)
            continue;
        bxn_mm_args had = jobs[i].args;
        bxn_input_use(&inputs[input_of[i]], &jobs[i].args);
        if (had.xsum != NULL) {
            jobs[i].args.xsum = had.xsum;
            jobs[i].args.ldsum = had.ldsum;
        }
        if (had.xq != NULL) {
            jobs[i].args.xq = had.xq;
            jobs[i].args.ldxq = had.ldxq;
            jobs[i].args.xscale = had.xscale;
            jobs[i].args.ldxscale = had.ldxscale;
        }
        if (had.low != NULL) {
            jobs[i].args.low = had.low;
            jobs[i].args.low_count = had.low_count;
        }
    }
    return status;
}

static bitaxon_status run_jobs(const bxn_exec *exec, const bxn_linear_job *jobs, uint32_t count)
{
    jobs_context c;
    bxn_item items[MAX_JOBS];
    bxn_taken taken = exec->ws->taken;
    c.exec = exec;
    memcpy(c.jobs, jobs, count * sizeof *jobs);
    bitaxon_status status = make_inputs(exec, c.jobs, count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t groups = (jobs[i].w->rows + BXN_UNIT_ROWS - 1) / BXN_UNIT_ROWS;
        items[i] = bxn_product_item(exec, jobs[i].w, jobs[i].args.count == 0 ? 0 : groups, jobs[i].args.count);
    }
    if (status == BITAXON_OK)
        status = bxn_ranges_run(exec, items, count, jobs_task, &c);
    exec->ws->taken = taken;
    return status;
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
    bxn_linear_job job = { w, { .x = x, .ldx = ldx, .count = tokens, .y = y, .ldy = ldy } };
    return bxn_linear_jobs(exec, &job, 1);
}
