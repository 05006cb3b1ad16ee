/* SPDX-License-Identifier: Apache-2.0 */
/* trainer.c - the run of training in memory: made from a model, data and parameters; one update at a time;
 * evaluated. Called by the API.
 *
 * An update takes gradients of `accumulate` micro-steps, divides by what they were summed over, and moves
 * the values. Until the values move nothing of the run has changed: a step that is cancelled, or stopped by the
 * thermal policy, clears its gradients, and the next call begins it again from the same place in the data
 * with the same random numbers, so that the bits are those of a run that was never stopped. */
#include <math.h>
#include <string.h>

#include "io/io.h"
#include "train/bxn_trainer.h"

#define LARGEST_NORM 1e18 /* of a gradient that is not shortened: its squares fit f32 */

/* ---- making -------------------------------------------------------------------------------- */

typedef struct collect {
    bxn_trainer *t;
    uint32_t count;
} collect;

static bitaxon_status collect_array(void *user, const char *name, uint32_t weight_id, size_t offset, uint32_t rows,
                                    uint32_t cols, size_t ld)
{
    collect *c = user;
    bxn_trainer *t = c->t;
    uint32_t at = c->count++;
    if (t->own.items == NULL)
        return BITAXON_OK;
    bxn_parameter *p = &t->own.items[at];
    size_t bytes = strlen(name);
    bytes = bytes < sizeof p->name - 1 ? bytes : sizeof p->name - 1;
    memcpy(p->name, name, bytes);
    p->name[bytes] = '\0';
    p->offset = offset;
    p->rows = rows;
    p->cols = cols;
    p->ld = ld;
    const bxn_lora *lora = &t->adapter.loras[weight_id - 1];
    bxn_weight_grads *grads = &t->weight_grads[weight_id - 1];
    float *grad = t->own.grad + offset;
    const float *value = t->adapter.values + offset;
    if (value == lora->a)
        grads->a = grad;
    else if (value == lora->b)
        grads->b = grad;
    else
        grads->m = grad;
    p->decay = value != lora->m; /* a magnitude that decays would take the base with it */
    t->trainable_values += (uint64_t)rows * cols;
    return BITAXON_OK;
}

/* Gradients, moments and views of them for the adapter's arrays. */
static bitaxon_status make_adapter(bxn_trainer *t, const bxn_adapter *start, bitaxon_error *error)
{
    const bxn_model *model = t->model;
    bxn_adapter_plan plan;
    bxn_trainer_plan(&t->params, &plan);
    void *memory;
    collect c = { t, 0 };
    bitaxon_status status = start != NULL ? bxn_adapter_copy(start, t->mem, &t->adapter, error)
                                          : bxn_adapter_create(t->mem, model, &plan, &t->adapter, error);
    if (status != BITAXON_OK)
        return status;
    if (start != NULL)
        memcpy(t->start_id, start->id, sizeof t->start_id);
    size_t floats = t->adapter.floats;
    (void)bxn_adapter_each(model, &t->adapter, collect_array, &c);
    t->own.count = c.count;
    t->own.floats = floats;
    t->own.value = t->adapter.values;
    status = bxn_calloc(t->mem, 3 * floats * sizeof(float), "gradients and moments", &t->arrays, error);
    if (status != BITAXON_OK)
        return status;
    t->own.grad = t->arrays;
    t->own.m = t->own.grad + floats;
    t->own.v = t->own.m + floats;
    status = bxn_calloc(t->mem, model->weight_count * sizeof *t->weight_grads, "gradients", &memory, error);
    if (status != BITAXON_OK)
        return status;
    t->weight_grads = memory;
    status = bxn_calloc(t->mem, c.count * sizeof *t->own.items, "parameters", &memory, error);
    if (status != BITAXON_OK)
        return status;
    t->own.items = memory;
    c.count = 0;
    (void)bxn_adapter_each(model, &t->adapter, collect_array, &c);
    t->adapter_grads.weights = t->weight_grads;
    t->grads = &t->adapter_grads;
    t->parameters = &t->own;
    return BITAXON_OK;
}

static bitaxon_status make_full(bxn_trainer *t, bitaxon_error *error)
{
    bitaxon_status status =
        bxn_trainable_create(t->mem, t->source, t->optimizer.kind == BXN_MUON, &t->trainable, error);
    if (status != BITAXON_OK)
        return status;
    t->model = bxn_trainable_model(t->trainable);
    t->parameters = bxn_trainable_parameters(t->trainable);
    t->grads = bxn_trainable_grads(t->trainable);
    for (uint32_t i = 0; i < t->parameters->count; i++)
        t->trainable_values += (uint64_t)t->parameters->items[i].rows * t->parameters->items[i].cols;
    t->scratch_bytes = bxn_optimizer_scratch(&t->optimizer, t->parameters);
    if (t->scratch_bytes != 0)
        status = bxn_alloc(t->mem, t->scratch_bytes, "products of Muon", &t->optimizer.scratch, error);
    return status;
}

static bitaxon_status check_vocabulary(const bxn_trainer *t, const bxn_dataset *data, const char *what,
                                       bitaxon_error *error)
{
    bxn_dataset_facts facts;
    bxn_dataset_facts_get(data, &facts);
    if (facts.vocabulary <= t->model->config.vocab_size)
        return BITAXON_OK;
    return bxn_fail(error, BITAXON_MISMATCH, "the %s has token %u, the model has %u: it is of another tokenizer", what,
                    facts.vocabulary - 1, t->model->config.vocab_size);
}

static bitaxon_status make_packers(bxn_trainer *t, bitaxon_error *error)
{
    bxn_packing packing;
    bxn_trainer_packing(&t->params, t->separator, &packing);
    bitaxon_status status = check_vocabulary(t, t->data, "data", error);
    if (status == BITAXON_OK)
        status = bxn_packer_create(t->mem, t->data, &packing, &t->packer, error);
    if (status == BITAXON_OK && t->validation != NULL)
        status = check_vocabulary(t, t->validation, "validation data", error);
    if (status != BITAXON_OK || t->validation == NULL)
        return status;
    packing.shuffle = false;
    packing.rank = 0; /* every machine evaluates all, and finds the same */
    packing.ranks = 1;
    return bxn_packer_create(t->mem, t->validation, &packing, &t->validation_packer, error);
}

static bool ordered(const bxn_trainer *t) { return (t->params.flags & BITAXON_TRAIN_ORDERED) != 0; }

bitaxon_status bxn_trainer_init(bxn_trainer *t, bxn_mem *mem, const bxn_model *model, int32_t separator,
                                const bitaxon_trainer_params *params, const bxn_dataset *data,
                                const bxn_dataset *validation, const bxn_adapter *start, bxn_thermal *thermal,
                                bitaxon_error *error)
{
    memset(t, 0, sizeof *t);
    t->mem = mem;
    t->params = *params;
    t->params.targets = NULL;
    t->source = t->model = model;
    t->data = data;
    t->validation = validation;
    t->separator = separator;
    t->thermal = thermal;
    t->progress = (bxn_progress){ params->progress, params->progress_user, BITAXON_STAGE_TRAIN, 0, 1 };
    atomic_init(&t->cancel, 0);
    bxn_trainer_optimizer(params, &t->optimizer);
    bool full = params->method == BITAXON_TRAIN_FULL;
    bitaxon_status status = BITAXON_OK;
    if (params->targets != NULL) {
        status = bxn_copy_text(mem, params->targets, strlen(params->targets), "targets", &t->targets, error);
        t->params.targets = t->targets;
    }
    uint64_t saved = bxn_float_enter();
    if (status == BITAXON_OK)
        status = full ? make_full(t, error) : make_adapter(t, start, error);
    bxn_float_leave(saved);
    if (status == BITAXON_OK && ordered(t))
        status = bxn_alloc(mem, t->parameters->floats * sizeof(float), "sum of an update", &t->sum, error);
    if (status == BITAXON_OK)
        status = make_packers(t, error);
    if (status == BITAXON_OK) {
        uint32_t rows = bxn_packer_rows(t->packer);
        if (t->validation_packer != NULL && bxn_packer_rows(t->validation_packer) > rows)
            rows = bxn_packer_rows(t->validation_packer);
        status = bxn_runner_create(mem, t->model, rows, full ? 0 : t->adapter.rank, !full && t->adapter.dora, full,
                                   BXN_KEEP_BYTES, &t->runner, error);
    }
    if (status != BITAXON_OK)
        bxn_trainer_release(t);
    return status;
}

void bxn_trainer_release(bxn_trainer *t)
{
    bxn_mem *mem = t->mem;
    if (mem == NULL)
        return;
    bxn_runner_free(&t->runner);
    bxn_packer_free(t->validation_packer);
    bxn_packer_free(t->packer);
    bxn_free(mem, t->optimizer.scratch, t->scratch_bytes);
    if (t->sum != NULL)
        bxn_free(mem, t->sum, t->parameters->floats * sizeof(float));
    bxn_trainable_free(t->trainable);
    bxn_free(mem, t->own.items, t->own.count * sizeof *t->own.items);
    bxn_free(mem, t->weight_grads, t->source->weight_count * sizeof *t->weight_grads);
    bxn_free(mem, t->arrays, 3 * t->adapter.floats * sizeof(float));
    bxn_adapter_free(&t->adapter);
    bxn_free(mem, t->history, t->history_room * sizeof *t->history);
    if (t->targets != NULL)
        bxn_free(mem, t->targets, strlen(t->targets) + 1);
    memset(t, 0, sizeof *t);
}

/* ---- calls --------------------------------------------------------------------------------- */

bitaxon_status bxn_trainer_history_reserve(bxn_trainer *t, size_t count, bitaxon_error *error)
{
    if (count <= t->history_room)
        return BITAXON_OK;
    size_t room = t->history_room < 64 ? 64 : 2 * t->history_room;
    room = room < count ? count : room;
    void *memory = t->history;
    bitaxon_status status = bxn_realloc(t->mem, &memory, t->history_room * sizeof *t->history,
                                        room * sizeof *t->history, "history of a run", error);
    if (status == BITAXON_OK) {
        t->history = memory;
        t->history_room = room;
    }
    return status;
}

static void remember(bxn_trainer *t, const bitaxon_train_result *r, bool evaluation)
{
    t->history[t->history_count++] =
        (bxn_train_point){ r->step, r->loss, r->learning_rate, r->gradient_norm, evaluation };
}

bitaxon_status bxn_trainer_usable(const bxn_trainer *t, bitaxon_error *error)
{
    return !t->broken ? BITAXON_OK
                      : bxn_fail(error, BITAXON_BAD_STATE,
                                 "the trainer's values are of no use since a failure: resume from a checkpoint");
}

bitaxon_status bxn_trainer_settle(bxn_trainer *t, bool identify, bitaxon_error *error)
{
    bitaxon_status status = bxn_trainer_usable(t, error);
    if (status != BITAXON_OK || t->trainable != NULL || !(t->stale || identify))
        return status;
    uint64_t saved = bxn_float_enter();
    status = bxn_adapter_updated(t->model, &t->adapter, identify, NULL, error);
    bxn_float_leave(saved);
    t->stale = t->stale && status != BITAXON_OK;
    return status;
}

/* A call begins: what was used since the last one was the host's. Returns its clock. */
static uint64_t enter(bxn_trainer *t, uint64_t *energy)
{
    uint64_t now = bxn_now_ns(t->mem);
    *energy = 0;
    t->link_lost = false;
    if (t->thermal != NULL) {
        if (t->use.since_ns != 0)
            t->use.since_ns += now - t->left_ns;
        (void)bxn_thermal_energy(t->thermal, energy);
    }
    t->host_float = bxn_float_enter();
    return now;
}

static bitaxon_status leave(bxn_trainer *t, bitaxon_train_result *r, uint64_t began, uint64_t energy,
                            bitaxon_status status, bitaxon_error *error)
{
    uint64_t used;
    bxn_float_leave(t->host_float);
    bxn_pool_limit(t->source->pool, bxn_pool_threads(t->source->pool));
    if (t->thermal != NULL && bxn_thermal_energy(t->thermal, &used) && used > energy)
        r->energy_uj = used - energy;
    t->left_ns = bxn_now_ns(t->mem);
    r->step_ns = t->left_ns - began;
    if (status == BITAXON_OK || status == BITAXON_CANCELLED)
        atomic_store(&t->cancel, 0); /* spent: it was not for the next call */
    if (status == BITAXON_SYSTEM && !t->broken && !t->link_lost)
        return bxn_fail(error, status, "the host's executor failed at update %llu; nothing has changed",
                        (unsigned long long)t->at.step);
    return status;
}

/* Before a micro-step: wait as the policy says. A warm machine gets half of the threads, and where there is
 * one alone, or they are the host's, as much rest as the last micro-step took. */
static bitaxon_status gate(bxn_trainer *t, bitaxon_train_result *r, bitaxon_error *error)
{
    uint32_t threads = bxn_pool_threads(t->source->pool);
    bool narrow = false;
    if (t->thermal == NULL)
        return BITAXON_OK;
    uint64_t began = bxn_now_ns(t->mem);
    bxn_float_leave(t->host_float); /* a host's sensor runs in the host's mode */
    bitaxon_status status = bxn_thermal_gate(t->thermal, &t->use, t->work_rows, &t->cancel, &narrow, error);
    bool fixed = threads == 1 || t->mem->host.parallel_for != NULL;
    if (status == BITAXON_OK && narrow && fixed && t->work_ns != 0)
        status = bxn_thermal_rest(t->thermal, &t->use, t->work_ns, &t->cancel, error);
    if (status == BITAXON_OK)
        t->work_ns = t->work_rows = 0;
    bxn_float_enter();
    bxn_pool_limit(t->source->pool, narrow ? (threads + 1) / 2 : threads);
    r->paused_ns += bxn_now_ns(t->mem) - began;
    return status;
}

static bitaxon_status tell(bxn_trainer *t, uint64_t done, bitaxon_error *error)
{
    bxn_float_leave(t->host_float);
    bitaxon_status status = bxn_progress_step(&t->progress, done, NULL, error);
    bxn_float_enter();
    return status;
}

static bool has_label(const bxn_micro_step *step)
{
    for (uint32_t i = 0; i < step->rows; i++)
        if (step->labels[i] >= 0)
            return true;
    return false;
}

/* What is summed over micro-steps and machines. */
enum { LOSS, TOKENS, PAIRS, SKIPPED_PAIRS, NLL, ODDS, CHOSEN, REJECTED, PREFERRED, BALANCE, ROWS, EMPTY, SUMS };

static void gather(const bxn_losses *l, uint64_t rows, uint64_t empty, double *sums)
{
    sums[LOSS] = l->loss;
    sums[TOKENS] = (double)l->tokens;
    sums[PAIRS] = (double)l->pairs;
    sums[SKIPPED_PAIRS] = (double)l->skipped_pairs;
    sums[NLL] = l->nll;
    sums[ODDS] = l->odds;
    sums[CHOSEN] = l->chosen;
    sums[REJECTED] = l->rejected;
    sums[PREFERRED] = (double)l->preferred;
    sums[BALANCE] = l->balance;
    sums[ROWS] = (double)rows;
    sums[EMPTY] = (double)empty;
}

/* What losses are means over: tokens, or pairs. */
static double weight_of(const bxn_trainer *t, const double *sums)
{
    return t->params.objective == BITAXON_OBJECTIVE_ORPO ? sums[PAIRS] : sums[TOKENS];
}

/* Sums as the result tells them. */
static void describe(const bxn_trainer *t, const double *sums, bitaxon_train_result *r)
{
    double weight = weight_of(t, sums), each = weight > 0 ? 1 / weight : 0;
    r->loss = sums[LOSS] * each;
    r->tokens = (uint64_t)sums[TOKENS];
    r->rows = (uint64_t)sums[ROWS];
    r->pairs = (uint64_t)sums[PAIRS];
    r->skipped_pairs = (uint64_t)sums[SKIPPED_PAIRS];
    r->balance = sums[ROWS] > 0 ? sums[BALANCE] / sums[ROWS] : 0;
    if (t->params.objective != BITAXON_OBJECTIVE_ORPO)
        return;
    r->nll = sums[NLL] * each;
    r->odds = sums[ODDS] * each;
    r->chosen = sums[CHOSEN] * each;
    r->rejected = sums[REJECTED] * each;
    r->margin = r->chosen - r->rejected;
    r->accuracy = sums[PREFERRED] * each;
}

static bxn_objective_params objective_of(const bxn_trainer *t, bool evaluation)
{
    return (bxn_objective_params){ .kind = t->params.objective == BITAXON_OBJECTIVE_ORPO ? BXN_OBJECTIVE_ORPO
                                                                                        : BXN_OBJECTIVE_SFT,
                                   .beta = t->params.orpo_beta, .lambda = t->params.orpo_lambda,
                                   .balance = evaluation ? 0 : t->params.balance };
}

static bxn_adapters adapters_of(const bxn_trainer *t)
{
    bxn_adapters adapters = { .count = t->trainable == NULL };
    adapters.loras[0] = t->adapter.loras;
    adapters.weights[0] = 1;
    return adapters;
}

/* ---- an update ------------------------------------------------------------------------------ */

/* What a step has found so far; the run itself is as it was. */
typedef struct attempt {
    bxn_cursor cursor;
    uint64_t empty, rows;
    bxn_losses losses;
    bool unsound; /* a pass met values that are not finite */
    bitaxon_error why;
} attempt;

/* Random numbers of a micro-step depend on the update and its number among all machines. */
static uint64_t dropout_key(const bxn_trainer *t, uint64_t micro)
{
    uint32_t words[4];
    bxn_philox(t->params.seed ^ 0x64726f706f757421u, t->at.attempts, micro, words);
    return (uint64_t)words[1] << 32 | words[0];
}

static bitaxon_status micro_step(bxn_trainer *t, attempt *a, uint64_t number, bitaxon_train_result *r,
                                 bitaxon_error *error)
{
    bxn_micro_step step;
    bxn_adapters adapters = adapters_of(t);
    bxn_objective_params objective = objective_of(t, false);
    bitaxon_status status = tell(t, number % t->params.accumulate, error);
    if (status == BITAXON_OK)
        status = gate(t, r, error);
    if (status == BITAXON_OK)
        status = bxn_packer_next(t->packer, &a->cursor, true, &step, error);
    if (status != BITAXON_OK)
        return status;
    if (!has_label(&step)) {
        a->empty++;
        return BITAXON_OK;
    }
    while (t->populated < t->model->map_bytes && !bxn_cancelled(&t->cancel))
        bxn_model_populate(t->model, (uint64_t)64 << 20, &t->populated);
    adapters.dropout = t->params.dropout;
    adapters.dropout_key = dropout_key(t, number * t->params.machines + t->params.machine);
    uint64_t began = bxn_now_ns(t->mem);
    bitaxon_error why = BITAXON_ERROR_INIT;
    status = bxn_runner_step(&t->runner, &step, &objective, adapters.count != 0 ? &adapters : NULL, t->grads,
                             &t->cancel, &a->losses, &why);
    t->work_ns = bxn_now_ns(t->mem) - began;
    t->work_rows = step.rows;
    a->rows += step.rows;
    if (status == BITAXON_FORMAT) { /* told at the end, when all machines know */
        a->unsound = true;
        a->why = why;
        return BITAXON_OK;
    }
    if (status != BITAXON_OK && status != BITAXON_CANCELLED)
        return bxn_fail(error, status, "%s", why.message);
    return status;
}

static bitaxon_status all_reduce(bxn_trainer *t, double *sums, bitaxon_error *error)
{
    if (t->params.all_reduce == NULL)
        return BITAXON_OK;
    bxn_float_leave(t->host_float);
    bitaxon_status status = t->params.all_reduce(t->params.all_reduce_user, t->parameters->grad, t->parameters->floats,
                                                 sums, SUMS);
    bxn_float_enter();
    t->link_lost = status != BITAXON_OK;
    if (status == BITAXON_OK)
        return status;
    return bxn_fail(error, status < 0 && status >= BITAXON_INTERNAL ? status : BITAXON_SYSTEM,
                    "update %llu: the sum over all machines failed (%d); nothing has changed",
                    (unsigned long long)t->at.step, (int)status);
}

/* One micro-step of each machine, behind those that `sum` and `sums` have. Machine 0 puts its own behind them, the
 * callback the others' behind that: whatever the number of machines, it is one chain of additions. They are in the
 * host's mode, as the callback's are. A micro-step without a label adds its zeros: x + 0 is not x where x is -0. */
static bitaxon_status ordered_step(bxn_trainer *t, attempt *a, uint64_t number, double *sums, bitaxon_train_result *r,
                                   bitaxon_error *error)
{
    float *grad = t->parameters->grad, *sum = t->sum;
    size_t floats = t->parameters->floats;
    double own[SUMS];
    a->losses = (bxn_losses){ 0 };
    a->rows = a->empty = 0;
    memset(grad, 0, floats * sizeof(float));
    bitaxon_status status = micro_step(t, a, number, r, error);
    if (status != BITAXON_OK)
        return status;
    gather(&a->losses, a->rows, a->empty, own);
    if (a->unsound)
        own[LOSS] = NAN;
    if (t->params.machine == 0) {
        bxn_float_leave(t->host_float);
        for (size_t i = 0; i < floats; i++)
            grad[i] = sum[i] + grad[i];
        for (size_t i = 0; i < SUMS; i++)
            own[i] = sums[i] + own[i];
        bxn_float_enter();
    }
    status = all_reduce(t, own, error);
    memcpy(sum, grad, floats * sizeof(float));
    memcpy(sums, own, sizeof own);
    return status;
}

/* Gradients and sums of all micro-steps of an update, of all machines. */
static bitaxon_status accumulate(bxn_trainer *t, attempt *a, double *sums, bitaxon_train_result *r,
                                 bitaxon_error *error)
{
    uint64_t number = 0, first_epoch = a->cursor.epoch;
    if (ordered(t))
        memset(t->sum, 0, t->parameters->floats * sizeof(float));
    for (;;) {
        bitaxon_status status = BITAXON_OK;
        for (uint32_t i = 0; i < t->params.accumulate && status == BITAXON_OK; i++)
            status = ordered(t) ? ordered_step(t, a, number++, sums, r, error) : micro_step(t, a, number++, r, error);
        if (status == BITAXON_OK && !ordered(t)) {
            gather(&a->losses, a->rows, a->empty, sums);
            if (a->unsound)
                sums[LOSS] = NAN;
            status = all_reduce(t, sums, error);
        }
        if (status != BITAXON_OK || isnan(sums[LOSS]) || weight_of(t, sums) > 0)
            return status;
        if (a->cursor.epoch > first_epoch + 1)
            return bxn_fail(error, BITAXON_FORMAT, "no token of the data counts: %llu micro-steps had none",
                            (unsigned long long)number);
    }
}

/* The gradient is sound: move the values. Nothing fails from here on but the host's executor. */
static bitaxon_status apply(bxn_trainer *t, uint64_t tokens, double scale, double norm, bitaxon_error *error)
{
    bxn_exec exec = { .kernels = &t->model->kernels, .pool = t->model->pool, .error = error };
    bitaxon_status status = bxn_optimizer_update(&exec, &t->optimizer, t->parameters, t->at.step, scale, norm);
    if (status != BITAXON_OK) {
        t->broken = true;
        return bxn_fail(error, status, "the host's executor failed within update %llu: resume from a checkpoint",
                        (unsigned long long)t->at.step);
    }
    t->at.step++;
    t->at.bad = 0;
    t->at.tokens += tokens;
    if (t->trainable != NULL) {
        bxn_trainable_updated(t->trainable);
    } else { /* without memory for it now, the next call makes up for it */
        bitaxon_error ignored = BITAXON_ERROR_INIT;
        t->stale = true;
        (void)bxn_trainer_settle(t, false, &ignored);
    }
    return BITAXON_OK;
}

/* The step is left out: data and random numbers move on, values and moments stay. */
static bitaxon_status leave_out(bxn_trainer *t, const attempt *a, double loss, double norm, bitaxon_error *error)
{
    memset(t->parameters->grad, 0, t->parameters->floats * sizeof(float));
    t->at.skipped++;
    t->at.bad++;
    bxn_log(t->mem, BITAXON_LOG_WARNING, "update %llu is left out: loss %g, norm of the gradient %g%s%s",
            (unsigned long long)t->at.step, loss, norm, a->unsound ? ": " : "", a->unsound ? a->why.message : "");
    if (t->at.bad < t->params.bad_steps)
        return BITAXON_OK;
    return bxn_fail(error, BITAXON_FORMAT,
                    "%llu steps in a row were not finite, the last at update %llu: loss %g, norm %g%s%.100s",
                    (unsigned long long)t->at.bad, (unsigned long long)t->at.step, loss, norm, a->unsound ? ": " : "",
                    a->unsound ? a->why.message : "");
}

static bitaxon_status try_step(bxn_trainer *t, bitaxon_train_result *r, bitaxon_error *error)
{
    attempt a = { .cursor = t->at.cursor, .why = BITAXON_ERROR_INIT };
    double sums[SUMS] = { 0 }, norm = NAN;
    bxn_exec exec = { .kernels = &t->model->kernels, .pool = t->model->pool, .error = error };
    t->progress.total = t->params.accumulate;
    bitaxon_status status = bxn_trainer_settle(t, false, error);
    if (status == BITAXON_OK)
        status = bxn_trainer_history_reserve(t, t->history_count + 1, error);
    if (status != BITAXON_OK)
        return status;
    status = accumulate(t, &a, sums, r, error);
    double scale = 1 / weight_of(t, sums);
    bool sound = status == BITAXON_OK && isfinite(sums[LOSS]);
    if (sound && (t->params.flags & BITAXON_TRAIN_EXACT_NORM) != 0)
        status = bxn_adapter_updated(t->model, &t->adapter, false, t->parameters->grad, error);
    if (sound && status == BITAXON_OK)
        status = bxn_gradient_norm(&exec, t->parameters, scale, &norm);
    if (status != BITAXON_OK) {
        memset(t->parameters->grad, 0, t->parameters->floats * sizeof(float));
        return status;
    }
    sound = sound && isfinite(norm) && (t->optimizer.max_norm > 0 || norm < LARGEST_NORM);
    describe(t, sums, r);
    r->gradient_norm = norm;
    r->learning_rate = bxn_learning_rate(&t->optimizer, t->at.step);
    status = sound ? apply(t, r->tokens, scale, norm, error) : leave_out(t, &a, r->loss, norm, error);
    if (t->broken)
        return status;
    t->at.attempts++;
    t->at.cursor = a.cursor;
    t->at.empty += (uint64_t)sums[EMPTY];
    r->updated = sound;
    r->step = t->at.step;
    r->epoch = t->at.cursor.epoch;
    r->skipped_steps = t->at.skipped;
    r->empty_micro_steps = t->at.empty;
    if (sound)
        remember(t, r, false);
    return status;
}

bitaxon_status bxn_trainer_step(bxn_trainer *t, bitaxon_train_result *result, bitaxon_error *error)
{
    bitaxon_train_result r = { .struct_size = sizeof r };
    uint64_t energy, began;
    if (t->at.step >= t->params.steps && !t->broken)
        return BITAXON_END;
    began = enter(t, &energy);
    bitaxon_status status = try_step(t, &r, error);
    status = leave(t, &r, began, energy, status, error);
    if (status == BITAXON_CANCELLED)
        return bxn_fail(error, status, "update %llu was cancelled; nothing has changed",
                        (unsigned long long)t->at.step);
    if (status == BITAXON_OK)
        *result = r;
    return status;
}

/* ---- evaluation ---------------------------------------------------------------------------- */

static bitaxon_status try_evaluate(bxn_trainer *t, uint64_t most, bitaxon_train_result *r, bitaxon_error *error)
{
    bxn_cursor cursor = { 0, 0 };
    bxn_losses losses = { 0 };
    bxn_adapters adapters = adapters_of(t);
    bxn_objective_params objective = objective_of(t, true);
    double sums[SUMS];
    uint64_t rows = 0, empty = 0;
    bitaxon_status status = bxn_trainer_settle(t, false, error);
    if (status == BITAXON_OK)
        status = bxn_trainer_history_reserve(t, t->history_count + 1, error);
    bxn_dataset_facts facts;
    bxn_dataset_facts_get(t->validation, &facts);
    t->progress.total = facts.examples;
    for (uint64_t n = 0; status == BITAXON_OK && (most == 0 || n < most); n++) {
        bxn_micro_step step;
        status = tell(t, cursor.index, error);
        if (status == BITAXON_OK)
            status = gate(t, r, error);
        if (status == BITAXON_OK)
            status = bxn_packer_next(t->validation_packer, &cursor, false, &step, error);
        if (status != BITAXON_OK || step.rows == 0)
            break;
        empty += !has_label(&step);
        uint64_t began = bxn_now_ns(t->mem);
        status = bxn_runner_step(&t->runner, &step, &objective, adapters.count != 0 ? &adapters : NULL, NULL,
                                 &t->cancel, &losses, error);
        t->work_ns = bxn_now_ns(t->mem) - began;
        t->work_rows = step.rows;
        rows += step.rows;
    }
    if (status != BITAXON_OK)
        return status;
    gather(&losses, rows, empty, sums);
    if (weight_of(t, sums) == 0)
        return bxn_fail(error, BITAXON_FORMAT, "no token of the validation data counts");
    describe(t, sums, r);
    r->step = t->at.step;
    r->epoch = t->at.cursor.epoch;
    r->learning_rate = bxn_learning_rate(&t->optimizer, t->at.step);
    r->skipped_steps = t->at.skipped;
    r->empty_micro_steps = empty;
    remember(t, r, true);
    return BITAXON_OK;
}

bitaxon_status bxn_trainer_evaluate(bxn_trainer *t, uint64_t max_micro_steps, bitaxon_train_result *result,
                                    bitaxon_error *error)
{
    bitaxon_train_result r = { .struct_size = sizeof r };
    uint64_t energy, began;
    if (t->validation_packer == NULL)
        return bxn_fail(error, BITAXON_BAD_STATE, "the trainer has no validation data");
    began = enter(t, &energy);
    bitaxon_status status = try_evaluate(t, max_micro_steps, &r, error);
    status = leave(t, &r, began, energy, status, error);
    if (status == BITAXON_CANCELLED)
        return bxn_fail(error, status, "the evaluation was cancelled; nothing has changed");
    if (status == BITAXON_OK)
        *result = r;
    return status;
}
