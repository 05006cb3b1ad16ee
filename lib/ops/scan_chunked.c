/* SPDX-License-Identifier: Apache-2.0 */
/* scan_chunked.c - chunked forms of state-space recurrences (see scan_chunked.h). Called by tests
 * and benches for Mamba-1, by layers with one decay per head when there are some.
 *
 * The decay from step j to step i >= j is exp2(cs[i] - cs[j]) with cs the running sum of
 * dt * a2. Pairs with i < j are not computed, so no exponent is positive and nothing
 * overflows. Differences of long sums cancel: cs is kept in double, and a term below
 * LEAST (whose decay is 0 in any case) is cut to it, so that cs stays small enough for the
 * difference of two neighbours to be right to 1e-10. */
#include "ops/scan_chunked.h"

#include <math.h>
#include <string.h>

#include "runtime/runtime.h"

#define LANES 16
#define LEAST (-1100.0)

static float softplus(float v)
{
    return (v > 0.0f ? v : v < 0.0f ? 0.0f : v) + log1pf(expf(-fabsf(v)));
}

/* 2^t for t <= 0: as the kernels have it (vec_avx2.h); below 2^-126 it is 0. */
static inline float exp2_nonpositive(float t)
{
    t = t < -127.0f ? -127.0f : t;
    float z = t + 12582912.0f; /* the nearest integer, in the low bits */
    float f = t - (z - 12582912.0f);
    float p = 0x1.5bda58p-10f * f + 0x1.3ce8aep-7f;
    p = p * f + 0x1.c6b6d8p-5f;
    p = p * f + 0x1.ebf9c2p-3f;
    p = p * f + 0x1.62e42ap-1f;
    p = p * f + 1.0f;
    return p * bxn_bits_f32((bxn_f32_bits(z) + 127u) << 23);
}

/* cs after a term. */
static inline double add_term(double cs, float dt, float a2)
{
    double term = (double)dt * (double)a2;
    return cs + (term < LEAST ? LEAST : term);
}

/* ---- one decay per channel and state ------------------------------------------------- */

/* Of 16 channels; the tokens of a chunk are the rows. */
typedef struct chunk_rows {
    double (*cs)[LANES]; /* of one state */
    float (*dt)[LANES];
    float (*u)[LANES];     /* dt * x */
    float (*added)[LANES]; /* u * B of one state */
    float (*sum)[LANES];   /* C * h over the states */
} chunk_rows;

static chunk_rows rows_at(void *scratch, uint32_t chunk)
{
    chunk_rows r;
    r.cs = scratch;
    r.dt = (void *)(r.cs + chunk);
    r.u = r.dt + chunk;
    r.added = r.u + chunk;
    r.sum = r.added + chunk;
    return r;
}

size_t bxn_scan_chunked_bytes(uint32_t chunk)
{
    return (size_t)chunk * LANES * (sizeof(double) + 4 * sizeof(float));
}

/* acc += exp2(to - from) * value. */
static inline void add_decayed(float *acc, const double *to, const double *from, const float *value)
{
    for (size_t l = 0; l < LANES; l++)
        acc[l] += exp2_nonpositive((float)(to[l] - from[l])) * value[l];
}

/* One state of a chunk: h [16] goes from its beginning to its end. */
static void chunk_state(const bxn_scan_args *args, uint32_t t, uint32_t tokens, uint32_t n,
                        const float *a2, float *h, const chunk_rows *r)
{
    static const double zero[LANES];
    float acc[LANES] = {0};
    for (uint32_t i = 0; i < tokens; i++) {
        float b = args->bcd[(t + i) * args->ldbcd + n];
        for (size_t l = 0; l < LANES; l++) {
            r->cs[i][l] = add_term(i == 0 ? 0.0 : r->cs[i - 1][l], r->dt[i][l], a2[l]);
            r->added[i][l] = r->u[i][l] * b;
        }
    }
    for (uint32_t i = 0; i < tokens; i++) {
        float c = args->bcd[(t + i) * args->ldbcd + args->states + n];
        memset(acc, 0, sizeof acc);
        add_decayed(acc, r->cs[i], zero, h);
        for (uint32_t j = 0; j < i; j++)
            add_decayed(acc, r->cs[i], r->cs[j], r->added[j]);
        for (size_t l = 0; l < LANES; l++) {
            acc[l] += r->added[i][l];
            r->sum[i][l] += c * acc[l];
        }
    }
    memcpy(h, acc, sizeof acc);
}

static void chunk_strip(const bxn_scan_args *args, uint32_t e, uint32_t t, uint32_t tokens,
                        const chunk_rows *r)
{
    const size_t base = (size_t)(e / LANES) * args->states * LANES;
    for (uint32_t i = 0; i < tokens; i++) {
        float raw = args->bcd[(t + i) * args->ldbcd + 2 * (size_t)args->states];
        for (size_t l = 0; l < LANES; l++) {
            float dt = softplus(raw * args->dt_weight[e + l] + args->dt_bias[e + l]);
            dt = dt < 1e-4f ? 1e-4f : dt > 100.0f ? 100.0f : dt;
            r->dt[i][l] = dt;
            r->u[i][l] = dt * args->x[(t + i) * args->ldx + e + l];
            r->sum[i][l] = 0.0f;
        }
    }
    for (uint32_t n = 0; n < args->states; n++)
        chunk_state(args, t, tokens, n, args->a2 + base + n * LANES, args->h_out + base + n * LANES,
                    r);
    for (uint32_t i = 0; i < tokens; i++) {
        for (size_t l = 0; l < LANES; l++) {
            float z = args->z[(t + i) * args->ldz + e + l];
            float skip = args->d[e + l] * args->x[(t + i) * args->ldx + e + l];
            float gate = z * (1.0f / (1.0f + expf(-z)));
            args->y[(t + i) * args->ldy + e + l] = (r->sum[i][l] + skip) * gate;
        }
    }
}

void bxn_scan_chunked(const bxn_scan_args *args, uint32_t chunk, void *scratch)
{
    const chunk_rows r = rows_at(scratch, chunk);
    const size_t floats = (size_t)args->states * LANES;
    for (uint32_t e = args->begin; e < args->end; e += LANES) {
        if (args->h_out != args->h_in)
            memcpy(args->h_out + e / LANES * floats, args->h_in + e / LANES * floats,
                   floats * sizeof(float));
        for (uint32_t t = 0; t < args->tokens; t += chunk)
            chunk_strip(args, e, t, args->tokens - t < chunk ? args->tokens - t : chunk, &r);
    }
}

/* ---- one decay per head ----------------------------------------------------------------- */

/* Matrices of a chunk of Q tokens. The left operands of products have rows padded with zeros as
 * activations have, the right ones are dense. */
typedef struct ssd_rows {
    double *cs;      /* [Q] */
    float *c;        /* [Q, N] ld_n */
    float *b;        /* [Q, N] dense */
    float *scores;   /* [Q, Q] ld_q: C B^T */
    float *weighted; /* [Q, Q] ld_q: scores times decays, lower triangle */
    float *u;        /* [P, Q] ld_q: dt * x */
    float *u_dense;  /* [P, Q] dense */
    float *b_end;    /* [N, Q] dense: B times the decay to the end of the chunk */
    float *from_h;   /* [Q, P] dense: C h^T */
    float *inside;   /* [Q, P] dense: weighted times u */
    float *h_added;  /* [P, N] dense */
    size_t ld_n, ld_q;
    size_t bytes;
} ssd_rows;

static ssd_rows ssd_rows_at(void *scratch, size_t q, size_t p, size_t n)
{
    ssd_rows r = {.ld_n = bxn_round_up(n, BXN_UNIT_COLS), .ld_q = bxn_round_up(q, BXN_UNIT_COLS)};
    struct {
        float **place;
        size_t count;
    } parts[] = {
        {&r.c, q * r.ld_n}, {&r.b, q * n},       {&r.scores, q * r.ld_q}, {&r.weighted, q * r.ld_q},
        {&r.u, p * r.ld_q}, {&r.u_dense, p * q}, {&r.b_end, n * q},       {&r.from_h, q * p},
        {&r.inside, q * p}, {&r.h_added, p * n},
    };
    r.cs = scratch;
    r.bytes = bxn_round_up(q * sizeof *r.cs, BXN_ALIGN);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (scratch != NULL)
            *parts[i].place = (float *)(void *)((char *)scratch + r.bytes);
        r.bytes += bxn_round_up(parts[i].count * sizeof(float), BXN_ALIGN);
    }
    return r;
}

size_t bxn_ssd_chunked_bytes(uint32_t chunk, uint32_t head_dim, uint32_t states)
{
    return ssd_rows_at(NULL, chunk, head_dim, states).bytes;
}

/* y [rows, w_rows] = x [rows, cols] w^T; y has rows of ldy floats. */
static void multiply(const bxn_kernels *kernels, const float *w, size_t w_rows, size_t cols,
                     const float *x, size_t ldx, size_t rows, float *y, size_t ldy)
{
    bxn_dense dense = {w, BXN_F32, (uint32_t)w_rows, (uint32_t)cols};
    bxn_mm_args args = {.x = x, .ldx = ldx, .count = (uint32_t)rows, .y = y, .ldy = ldy};
    kernels->mm_f32(&dense, 0, (uint32_t)w_rows, &args);
}

/* B and C of a group, and all their products. */
static void ssd_group(const bxn_kernels *kernels, const bxn_ssd_args *a, uint32_t group, uint32_t t,
                      uint32_t tokens, const ssd_rows *r)
{
    const size_t n = a->states;
    for (uint32_t i = 0; i < tokens; i++) {
        memcpy(r->b + i * n, a->b + (t + i) * a->ldbc + group * n, n * sizeof *r->b);
        memcpy(r->c + i * r->ld_n, a->c + (t + i) * a->ldbc + group * n, n * sizeof *r->c);
        memset(r->c + i * r->ld_n + n, 0, (r->ld_n - n) * sizeof *r->c);
    }
    multiply(kernels, r->b, tokens, n, r->c, r->ld_n, tokens, r->scores, r->ld_q);
}

static void ssd_head(const bxn_kernels *kernels, const bxn_ssd_args *a, uint32_t head, uint32_t t,
                     uint32_t tokens, const ssd_rows *r)
{
    const size_t p = a->head_dim, n = a->states;
    float *h = a->h_out + head * p * n;
    const float *x = a->x + t * a->ldx + head * p, *dt = a->dt + t * a->lddt + head;
    for (uint32_t i = 0; i < tokens; i++)
        r->cs[i] = add_term(i == 0 ? 0.0 : r->cs[i - 1], dt[i * a->lddt], a->a2[head]);
    const double end = r->cs[tokens - 1];
    for (uint32_t i = 0; i < tokens; i++) {
        float *row = r->weighted + i * r->ld_q;
        const float *scores = r->scores + i * r->ld_q;
        for (uint32_t j = 0; j <= i; j++)
            row[j] = exp2_nonpositive((float)(r->cs[i] - r->cs[j])) * scores[j];
        memset(row + i + 1, 0, (r->ld_q - i - 1) * sizeof *row);
    }
    for (size_t k = 0; k < p; k++) {
        for (uint32_t j = 0; j < tokens; j++)
            r->u[k * r->ld_q + j] = r->u_dense[k * tokens + j] =
                dt[j * a->lddt] * x[j * a->ldx + k];
        memset(r->u + k * r->ld_q + tokens, 0, (r->ld_q - tokens) * sizeof *r->u);
    }
    for (uint32_t j = 0; j < tokens; j++) {
        float decay = exp2_nonpositive((float)(end - r->cs[j]));
        for (size_t k = 0; k < n; k++)
            r->b_end[k * tokens + j] = decay * r->b[j * n + k];
    }
    multiply(kernels, h, p, n, r->c, r->ld_n, tokens, r->from_h, p);
    multiply(kernels, r->u_dense, p, tokens, r->weighted, r->ld_q, tokens, r->inside, p);
    multiply(kernels, r->b_end, n, tokens, r->u, r->ld_q, p, r->h_added, n);
    for (uint32_t i = 0; i < tokens; i++) {
        float decay = exp2_nonpositive((float)r->cs[i]), *y = a->y + (t + i) * a->ldy + head * p;
        for (size_t k = 0; k < p; k++)
            y[k] = decay * r->from_h[i * p + k] + r->inside[i * p + k] +
                   a->d[head] * x[i * a->ldx + k];
    }
    float decay = exp2_nonpositive((float)end);
    for (size_t k = 0; k < p * n; k++)
        h[k] = decay * h[k] + r->h_added[k];
}

/* One token by the recurrence: sums of C * h run in 16 lanes, then in order. */
static void ssd_step(const bxn_ssd_args *a, uint32_t head, uint32_t t)
{
    const size_t p = a->head_dim, n = a->states, group = head / a->heads_per_group * n;
    const float *x = a->x + t * a->ldx + head * p;
    const float *restrict b = a->b + t * a->ldbc + group, *restrict c = a->c + t * a->ldbc + group;
    float *restrict h = a->h_out + head * p * n, *y = a->y + t * a->ldy + head * p;
    const float dt = a->dt[t * a->lddt + head];
    const float decay = exp2_nonpositive((float)add_term(0.0, dt, a->a2[head]));
    for (size_t k = 0; k < p; k++, h += n) {
        const float u = dt * x[k];
        float lanes[LANES] = {0}, sum = 0.0f;
        size_t i = 0;
        for (; i + LANES <= n; i += LANES) {
            for (size_t l = 0; l < LANES; l++) {
                h[i + l] = decay * h[i + l] + u * b[i + l];
                lanes[l] += c[i + l] * h[i + l];
            }
        }
        for (; i < n; i++) {
            h[i] = decay * h[i] + u * b[i];
            lanes[i % LANES] += c[i] * h[i];
        }
        for (size_t l = 0; l < LANES; l++)
            sum += lanes[l];
        y[k] = sum + a->d[head] * x[k];
    }
}

void bxn_ssd_chunked(const bxn_kernels *kernels, const bxn_ssd_args *args, uint32_t chunk,
                     void *scratch)
{
    const ssd_rows r = ssd_rows_at(scratch, chunk, args->head_dim, args->states);
    const size_t state = (size_t)args->head_dim * args->states;
    if (args->h_out != args->h_in)
        memcpy(args->h_out + args->begin * state, args->h_in + args->begin * state,
               (args->end - args->begin) * state * sizeof(float));
    for (uint32_t t = 0; t < args->tokens; t += chunk) {
        uint32_t tokens = args->tokens - t < chunk ? args->tokens - t : chunk;
        for (uint32_t head = args->begin; head < args->end; head++) {
            if (tokens == 1) {
                ssd_step(args, head, t);
                continue;
            }
            if (head == args->begin || head % args->heads_per_group == 0)
                ssd_group(kernels, args, head / args->heads_per_group, t, tokens, &r);
            ssd_head(kernels, args, head, t, tokens, &r);
        }
    }
}
