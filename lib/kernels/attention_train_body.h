/* SPDX-License-Identifier: Apache-2.0 */
/* attention_train_body.h - attention of one head over one document of a training step and its backward
 * (kernels.h, bxn_attention_train_args), written once over the vectors of attention_body.h. A tier's
 * attention file includes this behind it and defines MM_VECTORS, the vectors of a row that a block
 * of sums in registers has at most: 2 (6 rows), 4 (6 rows) or 5 (5 rows, 4 with 6 rows).
 *
 * The work is done in pairs of a tile of queries and a tile of keys. Scores and what follows from
 * them lie as [keys][queries], so that the numbers of a query (maximum, sum) are lanes and need no
 * sums across a vector. Every product is one small matrix product, whose sums stay in registers;
 * what no query of a block sees is left out of it, what is left of it is zero. */
#ifndef BXN_ATTENTION_TRAIN_BODY_H
#define BXN_ATTENTION_TRAIN_BODY_H

#define TILE BXN_QUERIES /* queries or keys */
#define NOTHING_SEEN (-1e30f)

/* ---- products ----------------------------------------------------------------------------- */

/* Which part of a product is needed. Of row r: columns, or terms of the sums (depth), from r + low to
 * below r + high; the rest need not be computed, or is zero. */
typedef enum mm_band { MM_ALL, MM_COLUMNS, MM_DEPTH } mm_band;

/* c[r][n] = (clear ? 0 : c[r][n]) + sum over d ascending of a[r * a_row + d * a_step] * b[d][n]; b is
 * readable and c, when columns are not a multiple of LANES, exact at the end of a row. */
typedef struct mm_job {
    const float *a, *b;
    float *c;
    size_t a_row, a_step, ldb, ldc;
    uint32_t rows, columns, depth;
    bool clear;
    mm_band band;
    int64_t low, high;
} mm_job;

BXN_INLINE void mm_block(const mm_job *j, size_t row, size_t column, size_t begin, size_t end,
                         unsigned rows, unsigned vectors)
{
    float *c = j->c + row * j->ldc + column;
    const size_t a_row = j->a_row, a_step = j->a_step, ldb = j->ldb, ldc = j->ldc;
    const bool whole = column + vectors * LANES <= j->columns;
    const uint32_t left = j->columns - (uint32_t)column;
    vec sum[6][5];
    BXN_UNROLL
    for (unsigned r = 0; r < rows; r++) {
        BXN_UNROLL
        for (unsigned v = 0; v < vectors; v++) {
            if (j->clear)
                sum[r][v] = v_zero();
            else if (whole)
                sum[r][v] = v_load(c + r * ldc + v * LANES);
            else
                sum[r][v] = load_row(c + r * ldc, left, v * LANES);
        }
    }
    const float *a = j->a + row * a_row + begin * a_step, *b = j->b + column + begin * ldb;
    for (size_t d = begin; d < end; d++, a += a_step, b += ldb) {
        vec value[5];
        BXN_UNROLL
        for (unsigned v = 0; v < vectors; v++)
            value[v] = v_held(v_load(b + v * LANES));
        BXN_UNROLL
        for (unsigned r = 0; r < rows; r++) {
            const vec factor = v_held(v_set1(a[r * a_row]));
            BXN_UNROLL
            for (unsigned v = 0; v < vectors; v++)
                sum[r][v] = v_fma(factor, value[v], sum[r][v]);
        }
    }
    BXN_UNROLL
    for (unsigned r = 0; r < rows; r++) {
        BXN_UNROLL
        for (unsigned v = 0; v < vectors; v++) {
            if (whole || left - v * LANES >= LANES)
                v_store(c + r * ldc + v * LANES, sum[r][v]);
            else
                v_store_first(c + r * ldc + v * LANES, left - v * LANES, sum[r][v]);
        }
    }
}

#define MM_BLOCKS(most, vectors)                                                                   \
    do {                                                                                           \
        if (rows == (most))                                                                        \
            mm_block(j, row, first * LANES, begin, end, most, vectors);                            \
        else if (rows == 2)                                                                        \
            mm_block(j, row, first * LANES, begin, end, 2, vectors);                               \
        else                                                                                       \
            mm_block(j, row, first * LANES, begin, end, 1, vectors);                               \
        first += (vectors);                                                                        \
    } while (0)

/* Vectors first ... last - 1 of 6, 2 or 1 rows, or of 5 when all goes by fives. */
static void mm_rows(const mm_job *j, size_t row, unsigned rows, size_t first, size_t last,
                    size_t begin, size_t end, bool fives)
{
    while (first < last) {
#if MM_VECTORS == 5
        if (fives) {
            MM_BLOCKS(5, 5);
            continue;
        }
#else
        (void)fives;
#endif
#if MM_VECTORS >= 4
        if (last - first >= 4) {
            MM_BLOCKS(6, 4);
            continue;
        }
#endif
        if (last - first >= 2)
            MM_BLOCKS(6, 2);
        else
            MM_BLOCKS(6, 1);
    }
}

static size_t within(int64_t at, size_t end)
{
    return at < 0 ? 0 : (uint64_t)at < end ? (size_t)at : end;
}

static void mm_run(const mm_job *j)
{
    const size_t vectors = (j->columns + LANES - 1) / LANES;
    const bool fives = MM_VECTORS == 5 && vectors % 5 == 0 && vectors % 4 != 0;
    const unsigned most = fives ? 5 : 6;
    for (uint32_t row = 0; row < j->rows;) {
        const uint32_t left = j->rows - row;
        const unsigned rows = left >= most ? most : left >= 2 ? 2 : 1;
        size_t first = 0, last = vectors, begin = 0, end = j->depth;
        const int64_t low = (int64_t)row + j->low, high = (int64_t)(row + rows - 1) + j->high;
        if (j->band == MM_COLUMNS) {
            first = within(low, j->columns) / LANES;
            last = (within(high, j->columns) + LANES - 1) / LANES;
        } else if (j->band == MM_DEPTH) {
            end = within(high, j->depth);
            begin = within(low, end);
        }
        mm_rows(j, row, rows, first, last, begin, end, fives);
        row += rows;
    }
}

/* ---- tiles ---------------------------------------------------------------------------------- */

/* What a call works in: the tile of queries, and a pair's scores. */
typedef struct train_tiles {
    size_t stride;           /* head_dim rounded up to 16: of the next four */
    float *q, *dout;         /* [TILE, stride], zeros behind head_dim */
    float *other;            /* [TILE, stride] keys or values of the pair */
    float *sums;             /* [TILE, stride] results of the queries */
    float *q_turned, *dout_turned; /* [head_dim, TILE]; q times scale * log2(e) */
    float *s, *ds;           /* [TILE keys, TILE queries] */
    float *top, *sum, *factor, *delta; /* [TILE] by query */
} train_tiles;

static train_tiles train_tiles_of(float *scratch, uint32_t dim)
{
    train_tiles t = {.stride = ((size_t)dim + 15) & ~(size_t)15};
    float **const rows[] = {&t.q, &t.dout, &t.other, &t.sums, &t.q_turned, &t.dout_turned};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++, scratch += TILE * t.stride)
        *rows[i] = scratch;
    t.s = scratch;
    t.ds = t.s + TILE * TILE;
    t.top = t.ds + TILE * TILE;
    t.sum = t.top + TILE;
    t.factor = t.sum + TILE;
    t.delta = t.factor + TILE;
    return t;
}

static void train_copy(const float *x, size_t ld, uint32_t dim, uint32_t count, float *out,
                       size_t stride)
{
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t f = 0; f < dim; f += LANES)
            v_store(out + i * stride + f, load_row(x + i * ld, dim, f));
        for (size_t f = (dim + LANES - 1) / LANES * LANES; f < stride; f++)
            out[i * stride + f] = 0.0f;
    }
}

/* out[f][i] = x[i][f] * factor; zeros from count on. */
static void train_turn(const float *x, size_t stride, uint32_t dim, uint32_t count, float factor,
                       float *out)
{
    uint32_t f = 0;
#ifdef TURN_COLUMNS
    if (count == TILE) {
        const vec times = v_set1(factor);
        for (; f + TURN_COLUMNS <= dim; f += TURN_COLUMNS) {
            for (uint32_t i = 0; i < TILE; i += LANES) {
                vec columns[TURN_COLUMNS];
                v_turn(x + i * stride + f, stride, columns);
                BXN_UNROLL
                for (unsigned c = 0; c < TURN_COLUMNS; c++)
                    v_store(out + (f + c) * TILE + i, v_mul(columns[c], times));
            }
        }
    }
#endif
    for (; f < dim; f++) {
        for (uint32_t i = 0; i < count; i++)
            out[(size_t)f * TILE + i] = x[i * stride + f] * factor;
        for (uint32_t i = count; i < TILE; i++)
            out[(size_t)f * TILE + i] = 0.0f;
    }
}

/* A tile of queries and the keys of one tile that one of them sees at least. Key a of them is seen by
 * the queries from a + apart to below a + apart + window; `masked`: not by all. */
typedef struct train_pair {
    uint32_t query, queries, width; /* width: queries rounded up to 16 */
    uint32_t key, keys;
    int64_t apart, window;
    bool masked;
} train_pair;

static train_pair train_pair_of(uint32_t query, uint32_t queries, uint32_t tile, uint32_t window)
{
    train_pair p = {.query = query, .queries = queries, .width = (queries + 15) & ~15u, .key = tile};
    const uint32_t first = query + 1 > window ? query + 1 - window : 0;
    uint32_t end = query + queries;
    if (p.key < first)
        p.key = first;
    if (end - tile > TILE)
        end = tile + TILE;
    p.keys = end > p.key ? end - p.key : 0;
    p.apart = (int64_t)p.key - query;
    p.window = window;
    p.masked = end > query + 1 || query + queries - p.key > window;
    return p;
}

/* Tiles of keys that the queries see begin here. */
static uint32_t train_first_tile(uint32_t query, uint32_t window)
{
    return (query + 1 > window ? query + 1 - window : 0) / TILE * TILE;
}

/* value where a query does not see a key. */
static void train_mask(const train_pair *p, float *s, float value)
{
    for (uint32_t a = 0; p->masked && a < p->keys; a++, s += TILE) {
        const size_t low = within((int64_t)a + p->apart, p->width);
        const size_t high = within((int64_t)a + p->apart + p->window, p->width);
        for (size_t i = 0; i < low; i++)
            s[i] = value;
        for (size_t i = high; i < p->width; i++)
            s[i] = value;
    }
}

/* s[key][query] = rows of keys or values with what is turned of the queries. */
static void train_scores(const train_pair *p, const float *rows, size_t ld, uint32_t dim,
                         const float *turned, float *s)
{
    const mm_job j = {.a = rows + p->key * ld,
                      .a_row = ld,
                      .a_step = 1,
                      .b = turned,
                      .ldb = TILE,
                      .c = s,
                      .ldc = TILE,
                      .rows = p->keys,
                      .columns = p->width,
                      .depth = dim,
                      .clear = true,
                      .band = p->masked ? MM_COLUMNS : MM_ALL,
                      .low = p->apart,
                      .high = p->apart + p->window};
    mm_run(&j);
}

/* sums[query] += over keys of s[key][query] * rows[key]. */
static void train_to_queries(const train_pair *p, const float *s, const train_tiles *t)
{
    const mm_job j = {.a = s,
                      .a_row = 1,
                      .a_step = TILE,
                      .b = t->other,
                      .ldb = t->stride,
                      .c = t->sums,
                      .ldc = t->stride,
                      .rows = p->queries,
                      .columns = (uint32_t)t->stride,
                      .depth = p->keys,
                      .band = p->masked ? MM_DEPTH : MM_ALL,
                      .low = 1 - p->window - p->apart,
                      .high = 1 - p->apart};
    mm_run(&j);
}

/* out[key] += over queries of s[key][query] * rows[query]. */
static void train_to_keys(const train_pair *p, const float *s, const float *rows, size_t stride,
                          uint32_t dim, float *out, size_t ldout)
{
    const mm_job j = {.a = s,
                      .a_row = TILE,
                      .a_step = 1,
                      .b = rows,
                      .ldb = stride,
                      .c = out + p->key * ldout,
                      .ldc = ldout,
                      .rows = p->keys,
                      .columns = dim,
                      .depth = p->queries,
                      .band = p->masked ? MM_DEPTH : MM_ALL,
                      .low = p->apart,
                      .high = p->apart + p->window};
    mm_run(&j);
}

static uint32_t train_window(const bxn_attention_train_args *args)
{
    return args->window < args->rows ? (uint32_t)args->window : args->rows;
}

static void train_take_queries(const bxn_attention_train_args *args, const train_tiles *t,
                               uint32_t query, uint32_t count)
{
    const float log2e = 0x1.715476p+0f;
    train_copy(args->q + query * args->ld, args->ld, args->head_dim, count, t->q, t->stride);
    train_turn(t->q, t->stride, args->head_dim, count, args->scale * log2e, t->q_turned);
}

/* ---- forward ------------------------------------------------------------------------------- */

/* Scores become e^(score - maximum so far); what was summed before is scaled to the maximum. */
static void train_soften(const train_pair *p, const train_tiles *t)
{
    bool moved = false;
    for (uint32_t i = 0; i < p->width; i += LANES) {
        const vec before = v_load(t->top + i);
        vec top = before, sum = v_zero();
        for (uint32_t a = 0; a < p->keys; a++)
            top = v_max(v_load(t->s + a * TILE + i), top);
        for (uint32_t a = 0; a < p->keys; a++) {
            const vec e = v_exp2(v_sub(v_load(t->s + a * TILE + i), top));
            v_store(t->s + a * TILE + i, e);
            sum = v_add(sum, e);
        }
        const vec less = v_exp2(v_sub(before, top));
        v_store(t->top + i, top);
        v_store(t->factor + i, less);
        v_store(t->sum + i, v_fma(v_load(t->sum + i), less, sum));
    }
    for (uint32_t i = 0; i < p->queries; i++)
        moved |= t->factor[i] != 1.0f;
    for (uint32_t i = 0; moved && i < p->queries; i++) {
        const vec factor = v_set1(t->factor[i]);
        for (size_t f = 0; f < t->stride; f += LANES)
            v_store(t->sums + i * t->stride + f,
                    v_mul(v_load(t->sums + i * t->stride + f), factor));
    }
}

static void attention_train(const bxn_attention_train_args *args)
{
    const train_tiles t = train_tiles_of(args->scratch, args->head_dim);
    const uint32_t window = train_window(args);
    for (uint32_t query = args->begin; query < args->end; query += TILE) {
        const uint32_t left = args->end - query, count = left < TILE ? left : TILE;
        train_take_queries(args, &t, query, count);
        memset(t.sums, 0, TILE * t.stride * sizeof(float));
        for (uint32_t i = 0; i < TILE; i++) {
            t.top[i] = NOTHING_SEEN;
            t.sum[i] = 0.0f;
        }
        for (uint32_t key = train_first_tile(query, window); key < query + count; key += TILE) {
            const train_pair p = train_pair_of(query, count, key, window);
            train_scores(&p, args->k, args->ld, args->head_dim, t.q_turned, t.s);
            train_mask(&p, t.s, -INFINITY);
            train_soften(&p, &t);
            train_copy(args->v + p.key * args->ld, args->ld, args->head_dim, p.keys, t.other,
                       t.stride);
            train_to_queries(&p, t.s, &t);
        }
        for (uint32_t i = 0; i < count; i++) {
            const vec sum = v_set1(t.sum[i]);
            float *out = args->out + (query + i) * args->ldout;
            for (size_t f = 0; f < args->head_dim; f += LANES) {
                const size_t n = args->head_dim - f;
                const vec y = v_div(v_load(t.sums + i * t.stride + f), sum);
                if (n >= LANES)
                    v_store(out + f, y);
                else
                    v_store_first(out + f, n, y);
            }
            args->top[query + i] = t.top[i];
            args->inverse[query + i] = 1.0f / t.sum[i];
        }
    }
}

/* ---- backward -------------------------------------------------------------------------------- */

static void train_take_gradients(const bxn_attention_train_args *args, const train_tiles *t,
                                 uint32_t query, uint32_t count)
{
    train_take_queries(args, t, query, count);
    train_copy(args->dout + query * args->lddout, args->lddout, args->head_dim, count, t->dout,
               t->stride);
    train_turn(t->dout, t->stride, args->head_dim, count, 1.0f, t->dout_turned);
    for (uint32_t i = 0; i < TILE; i++) {
        const bool there = i < count;
        t->top[i] = there ? args->top[query + i] : 0.0f;
        t->sum[i] = there ? args->inverse[query + i] : 0.0f;
        t->factor[i] = there ? args->inverse[query + i] * args->scale : 0.0f;
        t->delta[i] = there ? args->delta[query + i] : 0.0f;
    }
}

/* Probabilities and gradients of scores (times scale) of a pair, to s and ds. */
static void train_gradients(const bxn_attention_train_args *args, const train_tiles *t,
                            const train_pair *p)
{
    train_scores(p, args->k, args->ld, args->head_dim, t->q_turned, t->s);
    train_scores(p, args->v, args->ld, args->head_dim, t->dout_turned, t->ds);
    for (uint32_t a = 0; a < p->keys; a++) {
        const size_t low = within((int64_t)a + p->apart, p->width) / LANES * LANES;
        const size_t high = within((int64_t)a + p->apart + p->window, p->width);
        float *s = t->s + a * TILE, *ds = t->ds + a * TILE;
        for (size_t i = low; i < high; i += LANES) {
            const vec e = v_exp2(v_sub(v_load(s + i), v_load(t->top + i)));
            const vec d = v_sub(v_load(ds + i), v_load(t->delta + i));
            v_store(s + i, v_mul(e, v_load(t->sum + i)));
            v_store(ds + i, v_mul(v_mul(e, d), v_load(t->factor + i)));
        }
    }
    train_mask(p, t->s, 0.0f);
    train_mask(p, t->ds, 0.0f);
}

static void train_keys_of_pair(const bxn_attention_train_args *args, const train_tiles *t,
                               const train_pair *p)
{
    train_to_keys(p, t->s, t->dout, t->stride, args->head_dim, args->dv, args->lddv);
    train_to_keys(p, t->ds, t->q, t->stride, args->head_dim, args->dk, args->lddk);
}

static void train_clear(float *x, size_t ld, uint32_t dim, uint32_t begin, uint32_t end)
{
    for (uint32_t i = begin; i < end; i++)
        memset(x + i * ld, 0, dim * sizeof *x);
}

/* dk and dv of keys [begin, end). */
static void train_keys(const bxn_attention_train_args *args, const train_tiles *t)
{
    const uint32_t window = train_window(args);
    train_clear(args->dk, args->lddk, args->head_dim, args->begin, args->end);
    train_clear(args->dv, args->lddv, args->head_dim, args->begin, args->end);
    for (uint32_t key = args->begin; key < args->end; key += TILE) {
        for (uint32_t query = key; query < args->rows; query += TILE) {
            const uint32_t left = args->rows - query, count = left < TILE ? left : TILE;
            const train_pair p = train_pair_of(query, count, key, window);
            if (p.keys == 0)
                break;
            train_take_gradients(args, t, query, count);
            train_gradients(args, t, &p);
            train_keys_of_pair(args, t, &p);
        }
    }
}

/* dq of queries [begin, end); with dk, which is then of the whole document, dk and dv. */
static void train_queries(const bxn_attention_train_args *args, const train_tiles *t)
{
    const uint32_t window = train_window(args);
    if (args->dk != NULL) {
        train_clear(args->dk, args->lddk, args->head_dim, 0, args->rows);
        train_clear(args->dv, args->lddv, args->head_dim, 0, args->rows);
    }
    for (uint32_t query = args->begin; query < args->end; query += TILE) {
        const uint32_t left = args->end - query, count = left < TILE ? left : TILE;
        train_take_gradients(args, t, query, count);
        memset(t->sums, 0, TILE * t->stride * sizeof(float));
        for (uint32_t key = train_first_tile(query, window); key < query + count; key += TILE) {
            const train_pair p = train_pair_of(query, count, key, window);
            train_gradients(args, t, &p);
            if (args->dk != NULL)
                train_keys_of_pair(args, t, &p);
            train_copy(args->k + p.key * args->ld, args->ld, args->head_dim, p.keys, t->other,
                       t->stride);
            train_to_queries(&p, t->ds, t);
        }
        for (uint32_t i = 0; i < count; i++)
            memcpy(args->dq + (query + i) * args->lddq, t->sums + i * t->stride,
                   args->head_dim * sizeof(float));
    }
}

static void attention_backward(const bxn_attention_train_args *args)
{
    const train_tiles t = train_tiles_of(args->scratch, args->head_dim);
    if (args->dq != NULL)
        train_queries(args, &t);
    else
        train_keys(args, &t);
}

/* The functions of a tier. */
#define BXN_ATTENTION_TRAIN_ENTRIES(tier)                                                          \
    void bxn_attention_train_##tier(const bxn_attention_train_args *args)                          \
    {                                                                                              \
        attention_train(args);                                                                     \
    }                                                                                              \
    void bxn_attention_backward_##tier(const bxn_attention_train_args *args)                       \
    {                                                                                              \
        attention_backward(args);                                                                  \
    }

#endif
