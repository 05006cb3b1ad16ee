/* SPDX-License-Identifier: Apache-2.0 */
/* trainable.c - a model of which everything trains: f32 copies of all weights and vectors as one flat array
 * of values, with gradients and moments laid out alike. Called by the trainer. Weights lie as in files, row
 * after row; vectors as kernels want them, zero where they are padded. Of the decay of state spaces
 * A_log trains, and what kernels take (a2) is derived from it after each update. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "train/bxn_train.h"

#define LOG2_E 1.4426950408889634
#define MOST_A_LOG 80.0f /* above it a model is not opened: the exponential is no decay */
#define LEAST_A_LOG (-100.0f) /* of an A that rounds to zero */

/* What a parameter is in files. */
typedef struct origin {
    bxn_vector_kind kind; /* weights: PLAIN */
    uint32_t inner;       /* CONV: taps, A: states */
    uint64_t count;       /* elements in the file; of a stack, of one matrix */
    uint32_t matrices;    /* from this one on in the same tensor: of the first of a stack all, else 1 */
    float *a2;            /* A: what is derived */
    uint32_t channels;    /* A */
} origin;

struct bxn_trainable {
    bxn_mem *mem;
    bxn_model model;
    bxn_parameters parameters;
    bxn_model_grads grads;
    origin *origins; /* [parameters.count] */
    float *a2;       /* of all state spaces, one after another */
    size_t a2_used;
    bool muon;
    size_t structure_bytes, float_bytes;
    void *floats;
};

/* ---- sizes, from the configuration alone ---------------------------------------------------------- */

typedef struct sizes {
    uint64_t weights, vectors, sublayers, stacked; /* stacked: weights of experts */
    uint64_t values;             /* that train */
    size_t floats, a2_floats;    /* with padding */
} sizes;

static void add_weights(sizes *s, uint64_t count, uint64_t rows, uint64_t cols)
{
    s->weights += count;
    s->values += count * rows * cols;
    s->floats += count * bxn_round_up(rows * cols, 16);
}

static void add_vector(sizes *s, uint64_t values, size_t floats)
{
    s->vectors++;
    s->values += values;
    s->floats += floats;
}

static void add_ssm(sizes *s, const bxn_config *config)
{
    uint64_t D = config->hidden_dim, E = D * config->ssm_expand, N = config->ssm_d_state, K = config->ssm_d_conv;
    size_t E16 = bxn_round_up(E, 16);
    add_weights(s, 1, 2 * E, D);
    add_weights(s, 1, 2 * N + 1, E);
    add_weights(s, 1, D, E);
    add_vector(s, K * E, K * E16);
    add_vector(s, N * E, N * E16);
    for (int i = 0; i < 4; i++) /* bias of the convolution, dt weight and bias, D */
        add_vector(s, E, E16);
    s->a2_floats += N * E16;
}

static void add_moe(sizes *s, const bxn_config *config)
{
    uint64_t D = config->hidden_dim, X = config->moe_num_experts, I = config->moe_intermediate_dim;
    add_weights(s, 1, X, D);
    add_weights(s, 3 * X, I, D);
    s->stacked += 3 * X;
    if (!config->moe_shared_expert)
        return;
    add_weights(s, 1, 1, D);
    add_weights(s, 3, I, D);
}

static sizes measure(const bxn_config *config, bool tied)
{
    uint64_t D = config->hidden_dim, V = config->vocab_size, S = config->d_source_model;
    size_t D16 = bxn_round_up(D, 16);
    sizes s = { 0 };
    add_weights(&s, tied ? 1 : 2, V, S);
    add_weights(&s, 2, D, S);
    for (uint32_t i = 0; i < config->num_layers; i++) {
        bxn_layer_kind kind = bxn_config_layer(config, i);
        add_vector(&s, D, D16);
        s.sublayers++;
        if (kind == BXN_LAYER_SWA_MOE)
            add_weights(&s, 4, D, D);
        else
            add_ssm(&s, config);
        if (kind == BXN_LAYER_SSM)
            continue;
        add_vector(&s, D, D16);
        s.sublayers++;
        add_moe(&s, config);
    }
    if (config->final_norm)
        add_vector(&s, D, D16);
    return s;
}

/* The parts of the block that holds everything but the flat arrays. */
typedef struct structure {
    bxn_parameter *items;
    origin *origins;
    bxn_sublayer *sublayers;
    bxn_weight *stacked;
    bxn_weight_grads *weight_grads;
    bxn_sublayer_grads *sublayer_grads;
    float *a2;
} structure;

/* Where they lie behind `base`, or with NULL the bytes of all. */
static size_t place(const sizes *s, unsigned char *base, structure *out)
{
    const struct {
        void *slot;
        size_t bytes;
    } table[] = {
        { &out->items, (s->weights + s->vectors) * sizeof *out->items },
        { &out->origins, (s->weights + s->vectors) * sizeof *out->origins },
        { &out->sublayers, s->sublayers * sizeof *out->sublayers },
        { &out->stacked, s->stacked * sizeof *out->stacked },
        { &out->weight_grads, s->weights * sizeof *out->weight_grads },
        { &out->sublayer_grads, s->sublayers * sizeof *out->sublayer_grads },
        { &out->a2, s->a2_floats * sizeof *out->a2 },
    };
    size_t offset = bxn_round_up(sizeof(bxn_trainable), BXN_ALIGN);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        unsigned char *at = base != NULL ? base + offset : NULL;
        memcpy(table[i].slot, &at, sizeof at); /* all pointers to objects are alike */
        offset += bxn_round_up(table[i].bytes, BXN_ALIGN);
    }
    return offset;
}

uint64_t bxn_trainable_bytes(const bxn_model *model, uint64_t *values)
{
    sizes s = measure(&model->config, model->tied);
    structure parts;
    if (values != NULL)
        *values = s.values;
    return bxn_alloc_cost(place(&s, NULL, &parts)) + bxn_alloc_cost(4 * s.floats * sizeof(float));
}

size_t bxn_trainable_floats(const bxn_model *model) { return measure(&model->config, model->tied).floats; }

/* ---- copies ------------------------------------------------------------------------------------------ */

/* The next parameter, `floats` long. */
static bxn_parameter *append(bxn_trainable *t, uint32_t rows, uint32_t cols, size_t ld, size_t floats, origin from)
{
    bxn_parameters *all = &t->parameters;
    t->origins[all->count] = from;
    bxn_parameter *p = &all->items[all->count++];
    p->offset = all->floats;
    p->rows = rows;
    p->cols = cols;
    p->ld = ld;
    all->floats += bxn_round_up(floats, 16);
    return p;
}

static bitaxon_status copy_weight(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    bxn_trainable *t = user;
    origin from = { .count = (uint64_t)w->rows * w->cols,
                    .matrices = expert == 0 ? t->model.config.moe_num_experts : 1 };
    bxn_parameter *p = append(t, w->rows, w->cols, w->cols, (size_t)from.count, from);
    float *value = t->parameters.value + p->offset;
    char index[16] = "";
    if (expert >= 0)
        snprintf(index, sizeof index, ".%d", (int)expert);
    snprintf(p->name, sizeof p->name, "%.*s.weight%s", BXN_WEIGHT_NAME - 16, name, index);
    bool end = w->id == t->model.embed.id || w->id == t->model.head.id;
    p->matrix = t->muon && !end && w->rows > 1 && w->cols > 1;
    p->decay = true;
    for (uint32_t row = 0; row < w->rows; row++)
        bxn_weight_row(w, row, value + (size_t)row * w->cols);
    w->kind = BXN_WEIGHT_DENSE;
    w->xq = BXN_XQ_NONE;
    w->dense = (bxn_dense){ value, BXN_F32, w->rows, w->cols };
    t->grads.weights[w->id - 1].w = t->parameters.grad + p->offset;
    return BITAXON_OK;
}

/* Where the gradient of the vector at `values` goes. */
static float **grad_slot(bxn_trainable *t, const bxn_vector *v)
{
    if (v->sublayer == NULL)
        return &t->grads.final_norm;
    const bxn_ssm *ssm = &v->sublayer->u.ssm;
    bxn_sublayer_grads *g = &t->grads.sublayers[v->sublayer - t->model.sublayers];
    return v->values == &v->sublayer->norm  ? &g->norm
           : v->values == &ssm->conv_weight ? &g->conv_weight
           : v->values == &ssm->conv_bias   ? &g->conv_bias
           : v->values == &ssm->dt_weight   ? &g->dt_weight
           : v->values == &ssm->dt_bias     ? &g->dt_bias
           : v->values == &ssm->a2          ? &g->a_log
                                            : &g->d;
}

/* Channels are in lanes: element n of channel e. */
static size_t lane(uint64_t e, uint64_t n, uint32_t states) { return (size_t)((e / 16 * states + n) * 16 + e % 16); }

static bitaxon_status copy_vector(void *user, const bxn_vector *v, const char *name)
{
    bxn_trainable *t = user;
    const float *source = *v->values;
    origin from = { .kind = v->kind, .inner = v->inner, .count = (uint64_t)v->count * v->inner,
                    .matrices = 1 };
    uint32_t rows = 1, cols = v->count;
    size_t ld = v->floats;
    if (v->kind == BXN_VECTOR_CONV) {
        rows = v->inner;
        ld = v->floats / v->inner;
    } else if (v->kind == BXN_VECTOR_A) {
        rows = (uint32_t)(v->floats / 16);
        cols = 16;
        ld = 16;
        from.channels = v->count;
        from.a2 = t->a2 + t->a2_used;
        t->a2_used += v->floats;
    }
    bxn_parameter *p = append(t, rows, cols, ld, v->floats, from);
    float *value = t->parameters.value + p->offset;
    snprintf(p->name, sizeof p->name, "%s", name);
    if (v->kind == BXN_VECTOR_A) {
        for (uint64_t e = 0; e < v->count; e++)
            for (uint64_t n = 0; n < v->inner; n++) {
                double a = -(double)source[lane(e, n, v->inner)] / LOG2_E;
                value[lane(e, n, v->inner)] = a > 0 ? (float)log(a) : LEAST_A_LOG;
            }
        *v->values = from.a2;
    } else {
        memcpy(value, source, v->floats * sizeof *value);
        *v->values = value;
    }
    *grad_slot(t, v) = t->parameters.grad + p->offset;
    return BITAXON_OK;
}

void bxn_trainable_updated(bxn_trainable *t)
{
    for (uint32_t i = 0; i < t->parameters.count; i++) {
        const origin *from = &t->origins[i];
        if (from->kind != BXN_VECTOR_A)
            continue;
        float *value = t->parameters.value + t->parameters.items[i].offset;
        for (uint64_t e = 0; e < from->channels; e++)
            for (uint64_t n = 0; n < from->inner; n++) {
                float *a_log = &value[lane(e, n, from->inner)];
                if (*a_log > MOST_A_LOG)
                    *a_log = MOST_A_LOG;
                from->a2[lane(e, n, from->inner)] = (float)(-exp((double)*a_log) * LOG2_E);
            }
    }
}

/* ---- making and reading --------------------------------------------------------------------------------- */

static bitaxon_status check_float(void *user, bxn_weight *w, const char *name, int32_t expert)
{
    bitaxon_error *error = user;
    (void)expert;
    if (w->kind == BXN_WEIGHT_DENSE)
        return BITAXON_OK;
    return bxn_fail(error, BITAXON_UNSUPPORTED,
                    "only float models train in full: %s has codes of %u bits; train an adapter, or the float model",
                    name, w->packed.source_bits);
}

/* Sublayers and stacks of our own, still with the data of the source. */
static void copy_structure(bxn_trainable *t, const bxn_model *source, const structure *parts)
{
    bxn_weight *next = parts->stacked;
    t->model = *source;
    t->model.map = NULL;
    t->model.map_bytes = 0;
    t->model.accuracy = BITAXON_ACCURACY_EXACT;
    t->model.sublayers = parts->sublayers;
    memcpy(parts->sublayers, source->sublayers, source->sublayer_count * sizeof *parts->sublayers);
    for (uint32_t i = 0; i < source->sublayer_count; i++) {
        if (parts->sublayers[i].op != BXN_OP_MOE)
            continue;
        bxn_moe *moe = &parts->sublayers[i].u.moe;
        const bxn_weight **stacks[] = { &moe->gate, &moe->up, &moe->down };
        for (int j = 0; j < 3; j++) {
            memcpy(next, *stacks[j], moe->experts * sizeof *next);
            *stacks[j] = next;
            next += moe->experts;
        }
    }
}

bitaxon_status bxn_trainable_create(bxn_mem *mem, const bxn_model *source, bool muon, bxn_trainable **out,
                                    bitaxon_error *error)
{
    sizes s = measure(&source->config, source->tied);
    structure parts;
    void *memory, *floats;
    *out = NULL;
    bitaxon_status status = bxn_model_weights(source, check_float, error);
    if (status != BITAXON_OK)
        return status;
    size_t bytes = place(&s, NULL, &parts), float_bytes = 4 * s.floats * sizeof(float);
    status = bxn_calloc(mem, bytes, "parameters", &memory, error);
    if (status != BITAXON_OK)
        return status;
    status = bxn_calloc(mem, float_bytes, "values, gradients and moments", &floats, error);
    if (status != BITAXON_OK) {
        bxn_free(mem, memory, bytes);
        return status;
    }
    bxn_trainable *t = memory;
    place(&s, memory, &parts);
    t->mem = mem;
    t->muon = muon;
    t->structure_bytes = bytes;
    t->float_bytes = float_bytes;
    t->floats = floats;
    t->origins = parts.origins;
    t->a2 = parts.a2;
    t->parameters = (bxn_parameters){ .items = parts.items, .value = floats };
    t->parameters.grad = t->parameters.value + s.floats;
    t->parameters.m = t->parameters.grad + s.floats;
    t->parameters.v = t->parameters.m + s.floats;
    t->grads = (bxn_model_grads){ parts.weight_grads, parts.sublayer_grads, NULL };
    copy_structure(t, source, &parts);
    (void)bxn_model_weights(&t->model, copy_weight, t);
    if (t->model.tied)
        t->model.head = t->model.embed;
    (void)bxn_model_vectors(&t->model, copy_vector, t);
    assert(t->parameters.floats == s.floats && t->parameters.count == s.weights + s.vectors);
    assert(t->a2_used == s.a2_floats);
    bxn_trainable_updated(t);
    *out = t;
    return BITAXON_OK;
}

void bxn_trainable_free(bxn_trainable *t)
{
    if (t == NULL)
        return;
    bxn_free(t->mem, t->floats, t->float_bytes);
    bxn_free(t->mem, t, t->structure_bytes);
}

const bxn_model *bxn_trainable_model(const bxn_trainable *t) { return &t->model; }
bxn_parameters *bxn_trainable_parameters(bxn_trainable *t) { return &t->parameters; }
const bxn_model_grads *bxn_trainable_grads(const bxn_trainable *t) { return &t->grads; }

static const bxn_parameter *find(const bxn_trainable *t, const char *name)
{
    for (uint32_t i = 0; i < t->parameters.count; i++)
        if (strcmp(t->parameters.items[i].name, name) == 0)
            return &t->parameters.items[i];
    return NULL;
}

/* The place of element `at` of the file behind the parameter's first value. */
static size_t place_of(const bxn_parameter *p, const origin *from, uint64_t at)
{
    switch (from->kind) {
    case BXN_VECTOR_CONV:
        return (size_t)(at % from->inner * p->ld + at / from->inner);
    case BXN_VECTOR_A:
        return lane(at / from->inner, at % from->inner, from->inner);
    case BXN_VECTOR_PLAIN:
        break;
    }
    return (size_t)at;
}

bitaxon_status bxn_trainable_read(const bxn_trainable *t, const char *name, uint64_t first, size_t count, float *out,
                                  bitaxon_error *error)
{
    char full[sizeof t->parameters.items->name];
    if (t->model.tied && strcmp(name, "lm_head.weight") == 0)
        name = "embed_tokens.weight";
    const bxn_parameter *p = find(t, name);
    if (p == NULL) { /* a stack: matrix after matrix */
        snprintf(full, sizeof full, "%.*s.0", (int)sizeof full - 3, name);
        p = find(t, full);
    }
    const origin *from = p != NULL ? &t->origins[p - t->parameters.items] : NULL;
    uint64_t total = from != NULL ? from->count * from->matrices : 0;
    if (count > total || first > total - count)
        return bxn_fail(error, BITAXON_INVALID_ARGUMENT, "the trained model has no tensor %s of %llu values", name,
                        (unsigned long long)(first + count));
    for (size_t i = 0; i < count; i++) {
        const bxn_parameter *part = p + (first + i) / from->count;
        out[i] = t->parameters.value[part->offset + place_of(part, from, (first + i) % from->count)];
    }
    return BITAXON_OK;
}
