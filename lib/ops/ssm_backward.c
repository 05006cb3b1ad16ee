/* SPDX-License-Identifier: Apache-2.0 */
/* ssm_backward.c - the state-space mixer in training: the twin of ssm.c for whole documents, and its gradients
 * (spec 3.4, appendix B). Called by the forward and backward of the model. Unless the forward left them
 * (bxn_keep), the backward computes in_proj, convolution, x_proj and scan again, and of the scan keeps the
 * states at chunk starts. Buffers are used again where what they held is spent: y lies over xc, which a second
 * convolution brings back; gradients of z and x lie over z and x.
 *
 * A document begins with zeros for its state and its tail. Channels are shared out among threads; sums over
 * channels are taken by blocks of a fixed size, which are then added in order. */
#include "ops/train_ops.h"

#include <string.h>

#define BLOCK 128 /* channels whose part of a sum over channels is one number */

typedef struct ssm_train {
    const bxn_train_pass *pass;
    const bxn_ssm *p;
    const bxn_sublayer_grads *grads;
    size_t ld_2e, ld_e, ld_bcd, ld_d, width; /* width: B, C, dt */
    size_t state;  /* floats of a state */
    uint32_t blocks;
    float *xz, *xc, *bcd;
    float *zeros;  /* a state and a tail at a document's start */
    float *h;      /* states that nobody reads */
    /* backward */
    float *dxz;    /* xz itself, unless the result of in_proj is asked for later */
    float *dxc;    /* at first the gradient of y */
    float *dbcd;
    float *r;      /* result of out_proj where a magnitude trains, or NULL */
    float *starts; /* [chunks] states at the starts of chunks, but those of documents; NULL: not kept */
    float *carry, *room, *parts; /* parts [blocks][rows][width] of dbcd */
} ssm_train;

static bool magnitude_trains(const bxn_train_pass *pass, const bxn_weight *w)
{
    return pass->grads != NULL && w->id != 0 && pass->grads[w->id - 1].m != NULL;
}

/* ---- buffers ---------------------------------------------------------------------------- */

/* home: of what a backward needs too. starts: states at the starts of chunks are kept. */
static void take_forward(ssm_train *c, const bxn_ssm *p, bxn_scratch *home, bxn_scratch *scratch, size_t rows,
                         bool starts)
{
    c->p = p;
    c->ld_2e = bxn_train_ld(2 * (uint64_t)p->channels);
    c->ld_e = bxn_train_ld(p->channels);
    c->width = 2 * (size_t)p->states + 1;
    c->ld_bcd = bxn_train_ld(c->width);
    c->ld_d = bxn_train_ld(p->out_proj.rows);
    c->state = (size_t)p->channels16 * p->states;
    c->blocks = (p->channels + BLOCK - 1) / BLOCK;
    c->xz = bxn_scratch_rows(home, rows, c->ld_2e);
    c->xc = bxn_scratch_rows(home, rows, c->ld_e);
    c->bcd = bxn_scratch_rows(home, rows, c->ld_bcd);
    if (starts)
        c->starts = bxn_scratch_rows(home, rows / BXN_SCAN_CHUNK, c->state); /* as many, however rows are cut */
    c->zeros = bxn_scratch_rows(scratch, (size_t)p->states + p->taps - 1, p->channels16);
    c->h = bxn_scratch_rows(scratch, p->states, p->channels16);
}

static void take_backward(ssm_train *c, bxn_scratch *scratch, size_t rows, bool in_result, bool out_result)
{
    c->dxz = in_result ? bxn_scratch_rows(scratch, rows, c->ld_2e) : c->xz;
    c->r = out_result ? bxn_scratch_rows(scratch, rows, c->ld_d) : NULL;
    c->dxc = bxn_scratch_rows(scratch, rows, c->ld_e);
    c->dbcd = bxn_scratch_rows(scratch, rows, c->ld_bcd);
    c->carry = bxn_scratch_rows(scratch, 1, c->state);
    c->room = bxn_scratch_rows(scratch, c->blocks, bxn_scan_backward_floats(c->p->states));
    c->parts = bxn_scratch_rows(scratch, c->blocks * rows, c->width);
}

size_t bxn_ssm_train_bytes(const bxn_ssm *p, uint32_t rows, uint32_t rank, bool magnitudes, bool full)
{
    bxn_scratch scratch = { 0 };
    ssm_train c = { 0 };
    const bxn_weight *weights[3] = { &p->in_proj, &p->x_proj, &p->out_proj };
    size_t most = 0;
    (void)full;
    take_forward(&c, p, &scratch, &scratch, rows, true);
    take_backward(&c, &scratch, rows, magnitudes, magnitudes);
    for (size_t i = 0; i < 3; i++) {
        size_t bytes = bxn_train_linear_bytes(weights[i], rank, rows);
        most = bytes > most ? bytes : most;
    }
    return scratch.most + most;
}

size_t bxn_ssm_kept_bytes(const bxn_ssm *p, uint32_t rows)
{
    bxn_scratch kept = { 0 }, scratch = { 0 };
    ssm_train c = { 0 };
    take_forward(&c, p, &kept, &scratch, rows, true);
    return kept.most;
}

/* ---- forward ------------------------------------------------------------------------------ */

/* Groups of 16 channels, all documents. */
static void convolve_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const ssm_train *c = context;
    const bxn_ssm *p = c->p;
    (void)item;
    for (uint32_t i = 0; i < c->pass->document_count; i++) {
        const bxn_document *document = &c->pass->documents[i];
        bxn_conv_args args = { document->count, begin * 16, end * 16, p->taps,
                               c->xz + document->first * c->ld_2e, c->ld_2e, c->zeros + c->state, p->conv_weight,
                               p->conv_bias, p->channels16, c->xc + document->first * c->ld_e, c->ld_e };
        c->pass->exec.kernels->conv_silu(&args);
    }
}

static void scan_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const ssm_train *c = context;
    const bxn_ssm *p = c->p;
    float *start = c->starts;
    (void)item;
    for (uint32_t i = 0; i < c->pass->document_count; i++) {
        const bxn_document *document = &c->pass->documents[i];
        const float *h_in = c->zeros;
        for (uint32_t t = 0, count; t < document->count; t += count) {
            const uint32_t left = document->count - t;
            const size_t row = (size_t)document->first + t;
            count = start == NULL || left < BXN_SCAN_CHUNK ? left : BXN_SCAN_CHUNK;
            const bool kept = count < left;
            bxn_scan_args args = { count, begin * 16, end * 16, p->states, c->xc + row * c->ld_e, c->ld_e,
                                   c->xz + row * c->ld_2e + p->channels, c->ld_2e, c->bcd + row * c->ld_bcd,
                                   c->ld_bcd, p->dt_weight, p->dt_bias, p->a2, p->d, h_in, kept ? start : c->h,
                                   c->xc + row * c->ld_e, c->ld_e };
            c->pass->exec.kernels->scan(&args);
            h_in = start;
            start += kept ? c->state : 0;
        }
    }
}

static bitaxon_status convolve(ssm_train *c)
{
    bxn_item item = { c->p->channels16 / 16, (uint64_t)16 * 4 * c->p->taps * c->pass->rows, 0 };
    return bxn_ranges_run(&c->pass->exec, &item, 1, convolve_task, c);
}

static void clear_zeros(const ssm_train *c)
{
    memset(c->zeros, 0, ((size_t)c->p->states + c->p->taps - 1) * c->p->channels16 * sizeof(float));
}

/* y over xc; with what leads to it: xz, bcd. */
static bitaxon_status run_scan(bxn_train_pass *pass, ssm_train *c, const float *n, size_t ldn)
{
    const bxn_ssm *p = c->p;
    bxn_pad_rows(c->xz, c->ld_2e, 2 * p->channels, pass->rows);
    bxn_pad_rows(c->xc, c->ld_e, p->channels, pass->rows);
    bitaxon_status status = bxn_train_linear(pass, &p->in_proj, n, ldn, pass->rows, c->xz, c->ld_2e);
    if (status == BITAXON_OK)
        status = convolve(c);
    if (status == BITAXON_OK)
        status = bxn_train_linear(pass, &p->x_proj, c->xc, c->ld_e, pass->rows, c->bcd, c->ld_bcd);
    bxn_item item = { p->channels16 / 16, (uint64_t)16 * 16 * p->states * pass->rows, 0 };
    return status == BITAXON_OK ? bxn_ranges_run(&pass->exec, &item, 1, scan_task, c) : status;
}

bitaxon_status bxn_ssm_train(bxn_train_pass *pass, const bxn_ssm *p, const float *n, size_t ldn, float *r, size_t ldr)
{
    const size_t used = pass->scratch.used, kept = pass->kept.used;
    const bool leave = pass->keep == BXN_KEEP_LEAVE;
    ssm_train c = { .pass = pass };
    take_forward(&c, p, leave ? &pass->kept : &pass->scratch, &pass->scratch, pass->rows, leave);
    clear_zeros(&c);
    bitaxon_status status = run_scan(pass, &c, n, ldn);
    if (status == BITAXON_OK)
        status = bxn_train_linear(pass, &p->out_proj, c.xc, c.ld_e, pass->rows, r, ldr);
    pass->scratch.used = used;
    pass->kept.used = kept;
    return status;
}

/* ---- backward ----------------------------------------------------------------------------- */

/* The chunks of a document from the last on, for channels [begin, end) of one block. `chunk`: how many
 * starts are kept of the documents before. */
static void scan_document(const ssm_train *c, const bxn_document *document, uint32_t block, size_t chunk)
{
    const bxn_ssm *p = c->p;
    const bxn_sublayer_grads *grads = c->grads;
    const uint32_t begin = block * BLOCK, end = p->channels - begin < BLOCK ? p->channels : begin + BLOCK;
    const size_t first = (size_t)begin * p->states, groups = (end - begin + 15) / 16;
    if (document->count == 0)
        return;
    memset(c->carry + first, 0, groups * 16 * p->states * sizeof(float));
    uint32_t t = (document->count - 1) / BXN_SCAN_CHUNK * BXN_SCAN_CHUNK;
    for (;; t -= BXN_SCAN_CHUNK) {
        const uint32_t left = document->count - t;
        const size_t row = (size_t)document->first + t;
        bxn_scan_backward_args args = {
            .tokens = left < BXN_SCAN_CHUNK ? left : BXN_SCAN_CHUNK,
            .begin = begin,
            .end = end,
            .states = p->states,
            .x = c->xc + row * c->ld_e,
            .ldx = c->ld_e,
            .z = c->xz + row * c->ld_2e + p->channels,
            .ldz = c->ld_2e,
            .bcd = c->bcd + row * c->ld_bcd,
            .ldbcd = c->ld_bcd,
            .dt_weight = p->dt_weight,
            .dt_bias = p->dt_bias,
            .a2 = p->a2,
            .d = p->d,
            .h_in = t == 0 ? c->zeros : c->starts + (chunk + t / BXN_SCAN_CHUNK - 1) * c->state,
            .carry = c->carry,
            .dy = c->dxc + row * c->ld_e,
            .lddy = c->ld_e,
            .dx = c->dxc + row * c->ld_e,
            .lddx = c->ld_e,
            .dz = c->dxz + row * c->ld_2e + p->channels,
            .lddz = c->ld_2e,
            .dbcd = c->parts + ((size_t)block * c->pass->rows + row) * c->width,
            .lddbcd = c->width,
            .ddt_weight = grads->dt_weight,
            .ddt_bias = grads->dt_bias,
            .dd = grads->d,
            .da_log = grads->a_log,
            .scratch = c->room + block * bxn_scan_backward_floats(p->states),
        };
        c->pass->exec.kernels->scan_backward(&args);
        if (t == 0)
            return;
    }
}

static void scan_backward_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const ssm_train *c = context;
    (void)item;
    for (uint32_t block = begin; block < end; block++) {
        size_t chunk = 0;
        for (uint32_t i = 0; i < c->pass->document_count; i++) {
            const bxn_document *document = &c->pass->documents[i];
            scan_document(c, document, block, chunk);
            chunk += document->count == 0 ? 0 : (document->count - 1) / BXN_SCAN_CHUNK;
        }
    }
}

/* A row of dbcd from the blocks. */
static void gather_task(void *context, uint32_t row)
{
    const ssm_train *c = context;
    float *out = c->dbcd + row * c->ld_bcd;
    memcpy(out, c->parts + row * c->width, c->width * sizeof *out);
    for (uint32_t block = 1; block < c->blocks; block++)
        c->pass->exec.kernels->add(out, c->parts + ((size_t)block * c->pass->rows + row) * c->width, c->width);
}

static void conv_backward_task(void *context, uint32_t item, uint32_t begin, uint32_t end)
{
    const ssm_train *c = context;
    const bxn_ssm *p = c->p;
    const uint32_t last = end * 16 < p->channels ? end * 16 : p->channels;
    (void)item;
    for (uint32_t i = 0; i < c->pass->document_count; i++) {
        const bxn_document *document = &c->pass->documents[i];
        bxn_conv_backward_args args = {
            .tokens = document->count,
            .begin = begin * 16,
            .end = last,
            .taps = p->taps,
            .x = c->xz + document->first * c->ld_2e,
            .ldx = c->ld_2e,
            .weight = p->conv_weight,
            .bias = p->conv_bias,
            .e16 = p->channels16,
            .dy = c->dxc + document->first * c->ld_e,
            .lddy = c->ld_e,
            .dx = c->dxz + document->first * c->ld_2e,
            .lddx = c->ld_2e,
            .dweight = c->grads->conv_weight,
            .dbias = c->grads->conv_bias,
        };
        c->pass->exec.kernels->conv_backward(&args);
    }
}

static bitaxon_status backward(bxn_train_pass *pass, ssm_train *c, const float *n, size_t ldn, const float *dr,
                               size_t lddr, float *dn, size_t lddn)
{
    const bxn_ssm *p = c->p;
    const uint32_t rows = pass->rows;
    bxn_pad_rows(c->dxz, c->ld_2e, 2 * p->channels, rows);
    bxn_pad_rows(c->dxc, c->ld_e, p->channels, rows);
    bxn_pad_rows(c->dbcd, c->ld_bcd, (uint32_t)c->width, rows);
    clear_zeros(c);
    bitaxon_status status = pass->keep == BXN_KEEP_FIND ? BITAXON_OK : run_scan(pass, c, n, ldn);
    if (status == BITAXON_OK && c->r != NULL)
        status = bxn_train_linear(pass, &p->out_proj, c->xc, c->ld_e, rows, c->r, c->ld_d);
    if (status == BITAXON_OK)
        status = bxn_linear_backward(pass, &p->out_proj, c->xc, c->ld_e, c->r, c->ld_d, dr, lddr, rows, c->dxc,
                                     c->ld_e, false);
    if (status == BITAXON_OK)
        status = convolve(c);
    bxn_item item = { c->blocks, (uint64_t)3 * BLOCK * 16 * p->states * rows, 0 };
    if (status == BITAXON_OK)
        status = bxn_ranges_run(&pass->exec, &item, 1, scan_backward_task, c);
    if (status == BITAXON_OK)
        status = bxn_rows_run(&pass->exec, rows, gather_task, c);
    if (status == BITAXON_OK)
        status = bxn_linear_backward(pass, &p->x_proj, c->xc, c->ld_e, c->bcd, c->ld_bcd, c->dbcd, c->ld_bcd, rows,
                                     c->dxc, c->ld_e, true);
    item = (bxn_item){ p->channels16 / 16, (uint64_t)16 * 16 * p->taps * rows, 0 };
    if (status == BITAXON_OK)
        status = bxn_ranges_run(&pass->exec, &item, 1, conv_backward_task, c);
    if (status == BITAXON_OK)
        status = bxn_linear_backward(pass, &p->in_proj, n, ldn, c->dxz == c->xz ? NULL : c->xz, c->ld_2e, c->dxz,
                                     c->ld_2e, rows, dn, lddn, false);
    return status;
}

bitaxon_status bxn_ssm_backward(bxn_train_pass *pass, const bxn_ssm *p, const bxn_sublayer_grads *grads, const float *n,
                                size_t ldn, float *dr, size_t lddr, float *dn, size_t lddn)
{
    static const bxn_sublayer_grads none;
    const size_t used = pass->scratch.used, kept = pass->kept.used;
    ssm_train c = { .pass = pass, .grads = grads != NULL ? grads : &none };
    take_forward(&c, p, pass->keep == BXN_KEEP_FIND ? &pass->kept : &pass->scratch, &pass->scratch, pass->rows, true);
    take_backward(&c, &pass->scratch, pass->rows, magnitude_trains(pass, &p->in_proj),
                  magnitude_trains(pass, &p->out_proj));
    bitaxon_status status = backward(pass, &c, n, ldn, dr, lddr, dn, lddn);
    pass->scratch.used = used;
    pass->kept.used = kept;
    return status;
}
