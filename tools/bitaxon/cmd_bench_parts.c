/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench_parts.c - what `bitaxon bench` measures of a model: opening, first token, prefill, decode,
 * batches, idleness, memory. The limit that a result is compared with is the mean of what was measured
 * directly before and after it, so that both see the same machine. Work is counted from public facts of the model. */
#include "cmd_bench.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum {
    DECODE_TOKENS = 16, /* of a round */
    METERED_NS = 30000000, /* of a round with an energy counter, which is read every 10 ms */
    BATCH_TOKENS = 8,
    BATCH_PROMPT = 64,
    FIRST_PROMPT = 512,
    PIECE = 2048, /* of a long prompt, between which the limit is measured */
    ROOM = 512, /* positions kept free behind the longest prompt that is decoded from */
};

/* ---- facts --------------------------------------------------------------------------------- */

static int64_t fact(const bitaxon_model *model, const char *key)
{
    int64_t value = 0;
    (void)bitaxon_model_info_int(model, key, &value, NULL);
    return value;
}

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text);
    size_t b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

/* Cached bytes of one token, from what two sizes of cache would take (history aside). */
static double kv_bytes(bench_run *run, uint64_t window)
{
    bitaxon_host host;
    bitaxon_model_params params;
    uint64_t bytes[2] = {0, 0};
    uint64_t tokens[2] = {window / 2, window}; /* whole pages both */
    tool_model_params(run->path, &run->args->model, 0, &run->progress, &host, &params);
    for (int i = 0; i < 2; i++) {
        bitaxon_cache_params cache = {.struct_size = sizeof cache, .max_tokens = tokens[i]};
        bitaxon_estimate estimate = {.struct_size = sizeof estimate};
        cache.kv_type = tool_kv_type(&run->args->model, BITAXON_KV_DEFAULT);
        if (tokens[i] == 0 ||
            bitaxon_model_estimate(&params, &cache, &estimate, NULL) != BITAXON_OK) {
            return 0.0;
        }
        bytes[i] = estimate.cache_bytes - tokens[i] * sizeof(int32_t);
    }
    return bytes[1] > bytes[0] ? (double)(bytes[1] - bytes[0]) / (double)(tokens[1] - tokens[0])
                               : 0.0;
}

static void count_weights(const bitaxon_model *model, bench_facts *facts)
{
    char tied[16] = "";
    (void)bitaxon_model_info_text(model, "tied", tied, sizeof tied, NULL, NULL);
    bool is_tied = strcmp(tied, "tied") == 0;
    uint64_t scan = 0;
    for (int64_t i = 0; i < fact(model, "tensors"); i++) {
        bitaxon_tensor_info info = {.struct_size = sizeof info};
        if (bitaxon_model_tensor_info(model, (uint64_t)i, &info, NULL) != BITAXON_OK) {
            continue;
        }
        if (strstr(info.name, ".switch_mlp.") != NULL) {
            facts->expert_bytes += (double)info.bytes;
        } else if (strcmp(info.name, "embed_tokens") != 0 || is_tied) {
            facts->other_bytes += (double)info.bytes; /* of an embedding alone, one row */
        }
        facts->quantized = facts->quantized || strcmp(info.format, "float") != 0;
        if (ends_with(info.name, ".q_proj")) {
            facts->attention_layers++;
        }
        if (ends_with(info.name, ".A_log")) {
            scan += info.shape[0] * (info.shape[1] + (uint64_t)fact(model, "ssm_d_conv") - 1);
        }
    }
    facts->state_bytes = (double)scan * sizeof(float);
    facts->head_parameters =
        (double)fact(model, "vocab_size") * (double)fact(model, "d_source_model") * (is_tied ? 1 : 2);
}

int bench_open_model(bench_run *run)
{
    bench_facts *facts = &run->facts;
    bitaxon_error error = BITAXON_ERROR_INIT;
    int code = tool_model_open(run->path, &run->args->model, BITAXON_MODEL_NO_TOKENIZER,
                               &run->progress, &run->model);
    if (code != TOOL_OK) {
        return code;
    }
    (void)bitaxon_model_info_text(run->model, "kernels", facts->kernels, sizeof facts->kernels,
                                  NULL, NULL);
    (void)bitaxon_model_info_text(run->model, "accuracy", facts->accuracy, sizeof facts->accuracy,
                                  NULL, NULL);
    (void)bitaxon_model_info_text(run->model, "fingerprint", facts->fingerprint,
                                  sizeof facts->fingerprint, NULL, NULL);
    facts->features = (uint64_t)fact(run->model, "cpu_features");
    facts->parameters = (uint64_t)fact(run->model, "parameters");
    facts->active = (uint64_t)fact(run->model, "active_parameters");
    facts->context = (uint64_t)fact(run->model, "max_seq_len");
    facts->window = (uint64_t)fact(run->model, "swa_window_size");
    facts->vocab = (uint64_t)fact(run->model, "vocab_size");
    facts->mapped = (uint64_t)fact(run->model, "mapped_bytes");
    facts->threads = (unsigned)fact(run->model, "threads");
    facts->experts = (double)fact(run->model, "moe_num_experts");
    facts->top_k = (double)fact(run->model, "moe_top_k");
    facts->hidden = (double)fact(run->model, "hidden_dim");
    if (facts->window > facts->context) {
        facts->window = facts->context;
    }
    count_weights(run->model, facts);
    facts->kv_bytes = facts->attention_layers > 0 ? kv_bytes(run, facts->window) : 0.0;
    run->threads = facts->threads;
    run->peak = bench_peak_for(facts->features, facts->quantized && strcmp(facts->accuracy, "exact") != 0);
    run->float_peak = bench_peak_for(facts->features, false);

    bitaxon_cache_params cache = {.struct_size = sizeof cache};
    bitaxon_session_params params = {.struct_size = sizeof params, .cache_params = &cache};
    cache.kv_type = tool_kv_type(&run->args->model, BITAXON_KV_DEFAULT);
    uint64_t need = run->lengths[run->length_count - 1] + ROOM;
    if (need < facts->window + ROOM) {
        need = facts->window + ROOM;
    }
    cache.max_tokens = need < facts->context ? need : facts->context;
    bitaxon_status status = bitaxon_session_create(run->model, &params, &run->session, &error);
    return status == BITAXON_OK ? TOOL_OK : tool_fail(status, &error);
}

/* Of an expert's weights a pass reads those that some token of it chose; that many are expected
 * when choices are even and independent. */
double bench_weights_bytes(const bench_facts *facts, double sequences)
{
    double untouched = 1.0;
    for (double i = 0; i < sequences; i++) {
        untouched *= 1.0 - facts->top_k / facts->experts;
    }
    double touched = sequences > 1.0 ? 1.0 - untouched : facts->top_k / facts->experts;
    return facts->other_bytes + facts->expert_bytes * touched;
}

/* Keys, values and states that a token at `position` reads. */
static double cache_bytes(const bench_facts *facts, uint64_t position)
{
    uint64_t seen = position < facts->window ? position : facts->window;
    return facts->state_bytes + facts->kv_bytes * (double)seen;
}

double bench_keys(const bench_facts *facts, uint64_t length)
{
    double n = (double)length;
    double w = (double)facts->window;
    return n <= w ? n * (n + 1) / 2 : w * (w + 1) / 2 + (n - w) * w;
}

/* Useful operations of a prompt from the start: the products of every token, the head's of the last,
 * and in attention two products of length hidden for every key that a token sees. */
static double prefill_flops(const bench_facts *facts, uint64_t length)
{
    return 2.0 * ((double)facts->active - facts->head_parameters) * (double)length +
           2.0 * facts->head_parameters +
           4.0 * facts->hidden * facts->attention_layers * bench_keys(facts, length);
}

/* ---- reading ------------------------------------------------------------------------------- */

int bench_outcome(bench_run *run, bitaxon_status status, const bitaxon_error *error)
{
    if (status == BITAXON_OK || (status == BITAXON_CANCELLED && bench_stopped(run))) {
        return TOOL_OK;
    }
    tool_progress_clear(&run->progress);
    return tool_fail(status, error);
}

static int32_t token_at(const bench_run *run, uint64_t i)
{
    return (int32_t)((i * 2654435761u + (i >> 7)) % run->facts.vocab);
}

int32_t *bench_prompt(const bench_run *run, uint64_t first, uint64_t count)
{
    int32_t *ids = tool_alloc((size_t)count * sizeof *ids + 1);
    for (uint64_t i = 0; i < count; i++) {
        ids[i] = token_at(run, first + i);
    }
    return ids;
}

/* Read tokens first .. first + count - 1 of the text. */
static bitaxon_status read_text(bench_run *run, bitaxon_session *session, uint64_t first,
                                uint64_t count, bitaxon_error *error)
{
    int32_t *ids = bench_prompt(run, first, count);
    bench_watch(session);
    bitaxon_status status = bitaxon_session_prefill(session, ids, (size_t)count, error);
    bench_watch(NULL);
    free(ids);
    return status;
}

/* Bring the one session to a position, on from where it is when that is before. */
static bitaxon_status move_to(bench_run *run, uint64_t position, bitaxon_error *error)
{
    uint64_t at = bitaxon_session_position(run->session);
    if (at > position) {
        bitaxon_cache_reset(bitaxon_session_cache(run->session));
        at = 0;
    }
    return at == position ? BITAXON_OK : read_text(run, run->session, at, position - at, error);
}

/* ---- opening and the first token ------------------------------------------------------------- */

double bench_process_bytes(const char *name)
{
    char line[256];
    double value = -1.0;
    FILE *file = fopen("/proc/self/status", "r");
    if (file == NULL) {
        return value;
    }
    size_t length = strlen(name);
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, name, length) == 0 && line[length] == ':') {
            value = strtod(line + length + 1, NULL) * 1024.0;
        }
    }
    fclose(file);
    return value;
}

static bitaxon_status open_again(bench_run *run, bitaxon_model **model, bitaxon_error *error)
{
    bitaxon_host host;
    bitaxon_model_params params;
    tool_model_params(run->path, &run->args->model, BITAXON_MODEL_NO_TOKENIZER, &run->progress,
                      &host, &params);
    params.progress = NULL;
    return bitaxon_model_open(&params, model, error);
}

int bench_measure_open(bench_run *run, uint32_t rounds)
{
    bench_row *row = bench_row_add(run, BENCH_SECONDS, "open", "open, warm");
    bench_row *private_row =
        bench_row_add(run, BENCH_PERCENT, "open_adds", "memory that opening again adds");
    for (uint32_t i = 0; i < rounds; i++) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        bitaxon_model *model = NULL;
        if (!bench_go_on(run, "opening", i, rounds, 0.1)) {
            break;
        }
        double before = bench_process_bytes("RssAnon");
        uint64_t start = tool_now_ns();
        bitaxon_status status = open_again(run, &model, &error);
        if (status != BITAXON_OK) {
            return bench_outcome(run, status, &error);
        }
        bench_add(&row->value, (double)(tool_now_ns() - start) * 1e-9);
        double after = bench_process_bytes("RssAnon");
        double all = (double)run->facts.mapped + (double)fact(model, "bytes_used");
        if (before >= 0 && after >= 0 && all > 0) {
            bench_add(&private_row->value, 100.0 * (after > before ? after - before : 0.0) / all);
        }
        bitaxon_model_free(model);
    }
    return TOOL_OK;
}

/* Open, session, prompt, one token; then the prompt once more in the same session. */
int bench_measure_first(bench_run *run, uint32_t rounds)
{
    uint64_t length = run->facts.context > FIRST_PROMPT ? FIRST_PROMPT : run->facts.context / 2;
    bench_row *row = bench_row_add(run, BENCH_SECONDS, "first_token",
                                   "open to first token, %llu", (unsigned long long)length);
    bench_row *ratio = bench_row_add(run, BENCH_RATIO, "first_token_ratio",
                                     "  the same / prefill of %llu", (unsigned long long)length);
    int32_t *ids = bench_prompt(run, 0, length);
    int code = TOOL_OK;
    for (uint32_t i = 0; i < rounds && code == TOOL_OK; i++) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        bitaxon_model *model = NULL;
        bitaxon_session *session = NULL;
        int32_t token;
        if (!bench_go_on(run, "open to first token", i, rounds,
                         2.0 * (double)length / run->prefill_rate)) {
            break;
        }
        bitaxon_cache_params cache = {.struct_size = sizeof cache, .max_tokens = length + 1};
        bitaxon_session_params params = {.struct_size = sizeof params, .cache_params = &cache};
        cache.kv_type = tool_kv_type(&run->args->model, BITAXON_KV_DEFAULT);
        uint64_t start = tool_now_ns();
        bitaxon_status status = open_again(run, &model, &error);
        if (status == BITAXON_OK) {
            status = bitaxon_session_create(model, &params, &session, &error);
        }
        bench_watch(session);
        if (status == BITAXON_OK) {
            status = bitaxon_session_prefill(session, ids, (size_t)length, &error);
        }
        if (status == BITAXON_OK) {
            status = bitaxon_session_decode(session, &token, &error);
        }
        double whole = (double)(tool_now_ns() - start) * 1e-9;
        if (status == BITAXON_OK) {
            bitaxon_cache_reset(bitaxon_session_cache(session));
            start = tool_now_ns();
            status = bitaxon_session_prefill(session, ids, (size_t)length, &error);
            double prompt = (double)(tool_now_ns() - start) * 1e-9;
            if (status == BITAXON_OK) {
                bench_add(&row->value, whole);
                bench_add(&ratio->value, whole / prompt);
            }
        }
        bench_watch(NULL);
        code = bench_outcome(run, status, &error);
        bitaxon_session_free(session);
        bitaxon_model_free(model);
    }
    free(ids);
    return code;
}

/* ---- prefill, and memory of the longest ------------------------------------------------------- */

bool bench_memory_reset(void)
{
    int file = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    if (file < 0) {
        return false;
    }
    bool written = write(file, "5", 1) == 1;
    close(file);
    return written;
}

static void measure_memory(bench_run *run, uint64_t length, bool reset)
{
    double peak = bench_process_bytes("VmHWM");
    bench_row *row = bench_row_add(run, BENCH_BYTES, "memory", "peak memory, %llu tokens read",
                                   (unsigned long long)length);
    bench_row *held = bench_row_add(run, BENCH_BYTES, "memory_held",
                                    "  of it: file, session, cache");
    if (reset && peak > 0) {
        bench_add(&row->value, peak);
    }
    bench_add(&held->value, (double)run->facts.mapped + (double)fact(run->model, "bytes_used"));
}

/* A prompt to read from the start, and what it took. */
typedef struct prompt_time {
    const char *what;
    uint64_t length;
    uint32_t round, rounds;
    bool memory;           /* measure it too */
    double seconds, limit; /* limit: mean of the peaks before, after and between pieces */
} prompt_time;

/* In pieces: any split gives the same bits. */
static bitaxon_status read_prompt(bench_run *run, prompt_time *p, bitaxon_error *error)
{
    bitaxon_cache *cache = bitaxon_session_cache(run->session);
    /* A checkpoint on the way, where decoding goes on from a full context; memory is measured before it. */
    uint64_t mark = p->length + ROOM > run->facts.context && p->length > 2 * ROOM ? p->length - ROOM : p->length;
    double peaks = bench_peak_now(run, run->peak, 3);
    uint32_t taken = 1;
    bool reset = false;
    bitaxon_cache_reset(cache);
    if (p->memory) {
        bench_buffer_drop(run);
        bench_batch_free(run);
        reset = bench_memory_reset();
    }
    int32_t *ids = bench_prompt(run, 0, p->length);
    bitaxon_status status = BITAXON_OK;
    for (uint64_t at = 0, end; at < p->length && status == BITAXON_OK; at = end) {
        end = p->length - at < PIECE ? p->length : at + PIECE;
        end = at < mark && end > mark ? mark : end;
        if (bench_stopped(run)) { /* between two pieces */
            status = BITAXON_CANCELLED;
            break;
        }
        bench_watch(run->session);
        uint64_t start = tool_now_ns();
        status = bitaxon_session_prefill(run->session, ids + at, (size_t)(end - at), error);
        p->seconds += (double)(tool_now_ns() - start) * 1e-9;
        bench_watch(NULL);
        if (status == BITAXON_OK && end == mark && p->memory) {
            measure_memory(run, mark, reset);
        }
        if (status == BITAXON_OK && end == mark && mark < p->length) {
            status = bitaxon_cache_checkpoint(cache, error);
        }
        peaks += bench_peak_now(run, run->peak, 3);
        taken++;
        double left = (double)(p->length - end) + (double)p->length * (p->rounds - p->round - 1);
        bench_show(run, p->what, p->round, p->rounds, p->seconds / (double)end * left);
    }
    p->limit = peaks / taken;
    free(ids);
    return status;
}

int bench_measure_prefill(bench_run *run, uint64_t length, uint32_t rounds, bool show, bool memory)
{
    bench_row *row = NULL;
    char what[48];
    char key[32];
    snprintf(what, sizeof what, "prefill, %llu tokens", (unsigned long long)length);
    snprintf(key, sizeof key, "prefill_%llu", (unsigned long long)length);
    if (show) {
        row = bench_row_add(run, BENCH_TOKENS, key, "%s", what);
        row->rate_unit = BENCH_FLOPS;
        row->limit_name = bench_peak_name(run->peak);
    }
    for (uint32_t i = 0; i < rounds; i++) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        if (!bench_go_on(run, what, i, rounds, (double)length / run->prefill_rate)) {
            break;
        }
        prompt_time p = {.what = what, .length = length, .round = i, .rounds = rounds, .memory = memory && i == 0};
        bitaxon_status status = read_prompt(run, &p, &error);
        if (status != BITAXON_OK) {
            return bench_outcome(run, status, &error);
        }
        run->prefill_rate = (double)length / p.seconds;
        if (row != NULL) {
            bench_add(&row->value, (double)length / p.seconds);
            bench_add(&row->rate, prefill_flops(&run->facts, length) / p.seconds);
            bench_add(&row->limit, p.limit);
        }
    }
    return TOOL_OK;
}

/* ---- decode -------------------------------------------------------------------------------------- */

/* Joules so far; 0 without a meter. */
static double joules(const bench_run *run)
{
    bitaxon_thermal_status s = {.struct_size = sizeof s};
    return run->meter != NULL && bitaxon_thermal_sample(run->meter, &s, NULL) == BITAXON_OK
               ? (double)s.energy_uj / 1e6
               : 0;
}

int bench_measure_decode(bench_run *run, uint64_t context, const char *key, const char *name,
                         uint32_t rounds)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bench_row *row = bench_row_add(run, BENCH_TOKENS, key, "%s", name);
    row->rate_unit = BENCH_READ;
    row->limit_name = "read, best streams";
    char energy_key[32];
    snprintf(energy_key, sizeof energy_key, "%.20s_energy", key);
    bench_row *energy = bench_row_add(run, BENCH_JOULES, energy_key, "  energy (RAPL)");
    double used = 0;
    uint64_t metered = 0;
    uint32_t room = ROOM / rounds - 1;
    uint32_t most = run->meter != NULL && room > DECODE_TOKENS ? room : DECODE_TOKENS;
    uint64_t need = (uint64_t)rounds * (most + 1);
    uint64_t at = bitaxon_session_position(run->session);
    bool full = context >= run->facts.window; /* then any later position is as good */
    if (context + need > run->facts.context) {
        bool at_checkpoint = context + ROOM > run->facts.context && run->facts.context > 2 * ROOM;
        uint64_t behind = at_checkpoint ? ROOM : need;
        if (behind >= run->facts.context) {
            bench_leave_out(run, "%s: needs %llu positions, the model's context is %llu", name,
                            (unsigned long long)behind, (unsigned long long)run->facts.context);
            return TOOL_OK;
        }
        context = run->facts.context - behind;
    }
    double way = at <= context ? (double)(context - at) : (double)context;
    if (!bench_go_on(run, name, 0, rounds, way / run->prefill_rate + 1.0) || !bench_buffer(run)) {
        return bench_stopped(run) ? TOOL_OK : run->buffer == NULL ? TOOL_FAILURE : TOOL_OK;
    }
    bitaxon_status status = BITAXON_OK;
    if (at > context && context + ROOM == run->facts.context) { /* back to the checkpoint */
        status = bitaxon_session_rewind(run->session, context, &error);
    } else if (!(full && at >= context && at <= 4 * run->facts.window &&
                 at + need <= run->facts.context)) {
        status = move_to(run, context, &error);
    }
    for (uint32_t i = 0; i < rounds && status == BITAXON_OK; i++) {
        double each = DECODE_TOKENS / run->decode_rate + BENCH_READ_SECONDS;
        if (!bench_go_on(run, name, i, rounds, each)) {
            break;
        }
        /* A token from outside first, so that a model that repeats itself does not repeat rounds. */
        status = read_text(run, run->session, 1000000u + i, 1, &error);
        if (status != BITAXON_OK) {
            break;
        }
        bench_reading limit = {{0}, 0};
        bench_read_more(run, &limit);
        double bytes = 0;
        bench_watch(run->session);
        double before = joules(run);
        uint64_t start = tool_now_ns();
        uint32_t tokens = 0;
        while (status == BITAXON_OK &&
               (tokens < DECODE_TOKENS || (tokens < most && tool_now_ns() - start < METERED_NS))) {
            int32_t token;
            bytes += bench_weights_bytes(&run->facts, 1) +
                     cache_bytes(&run->facts, bitaxon_session_position(run->session));
            status = bitaxon_session_decode(run->session, &token, &error);
            tokens++;
        }
        double seconds = (double)(tool_now_ns() - start) * 1e-9;
        bench_watch(NULL);
        if (status == BITAXON_OK) {
            bench_read_more(run, &limit);
            bench_add(&row->value, tokens / seconds);
            bench_add(&row->rate, bytes / seconds);
            bench_add(&row->limit, bench_read_limit(&limit));
            run->decode_rate = tokens / seconds;
            used += joules(run) - before;
            metered += tokens;
        }
    }
    if (used > 0) { /* of all rounds together: the counter's steps are coarse */
        bench_add(&energy->value, used / (double)metered);
    }
    return bench_outcome(run, status, &error);
}

/* ---- batches ------------------------------------------------------------------------------------- */

void bench_batch_free(bench_run *run)
{
    for (uint32_t i = 0; i < run->batch_count; i++) {
        bitaxon_session_free(run->batch[i]);
    }
    run->batch_count = 0;
}

static bitaxon_status grow_batch(bench_run *run, uint32_t count, uint64_t context,
                                 bitaxon_error *error)
{
    bitaxon_status status = BITAXON_OK;
    while (run->batch_count < count && status == BITAXON_OK) {
        bitaxon_session *session = NULL;
        bitaxon_cache_params cache = {.struct_size = sizeof cache, .max_tokens = context};
        bitaxon_session_params params = {.struct_size = sizeof params, .cache_params = &cache};
        cache.kv_type = tool_kv_type(&run->args->model, BITAXON_KV_DEFAULT);
        status = bitaxon_session_create(run->model, &params, &session, error);
        if (status == BITAXON_OK) {
            run->batch[run->batch_count++] = session;
            status = read_text(run, session, 5000u * run->batch_count, BATCH_PROMPT, error);
        }
    }
    return status;
}

int bench_measure_batch(bench_run *run, uint32_t count, uint32_t rounds)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    char what[48];
    char key[32];
    snprintf(what, sizeof what, "decode, %u sequence%s", count, count == 1 ? "" : "s together");
    snprintf(key, sizeof key, "batch_%u", count);
    bench_row *row = bench_row_add(run, BENCH_TOKENS, key, "%s", what);
    row->rate_unit = BENCH_READ;
    row->limit_name = "read, best streams";
    double each = BATCH_TOKENS * (1.0 + 0.3 * count) / run->decode_rate + BENCH_READ_SECONDS;
    if (!bench_go_on(run, what, 0, rounds, each) || !bench_buffer(run)) {
        return bench_stopped(run) ? TOOL_OK : run->buffer == NULL ? TOOL_FAILURE : TOOL_OK;
    }
    uint64_t context = BATCH_PROMPT + 4 * BENCH_SAMPLES * (BATCH_TOKENS + 1);
    context = context < run->facts.context ? context : run->facts.context;
    bitaxon_status status = grow_batch(run, count, context, &error);
    for (uint32_t i = 0; i < rounds && status == BITAXON_OK; i++) {
        if (!bench_go_on(run, what, i, rounds, each)) {
            break;
        }
        for (uint32_t s = 0; s < count && status == BITAXON_OK; s++) {
            if (bitaxon_session_position(run->batch[s]) + BATCH_TOKENS + 1 > context) {
                bitaxon_cache_reset(bitaxon_session_cache(run->batch[s]));
            }
            status = read_text(run, run->batch[s], 2000000u + 100u * i + s, 1, &error);
        }
        if (status != BITAXON_OK) {
            break;
        }
        bench_reading limit = {{0}, 0};
        bench_read_more(run, &limit);
        double bytes = 0;
        int32_t tokens[BITAXON_BATCH_MAX];
        bench_watch(run->batch[0]);
        uint64_t start = tool_now_ns();
        for (int t = 0; t < BATCH_TOKENS && status == BITAXON_OK; t++) {
            bytes += bench_weights_bytes(&run->facts, count);
            for (uint32_t s = 0; s < count; s++) {
                bytes += cache_bytes(&run->facts, bitaxon_session_position(run->batch[s]));
            }
            status = bitaxon_batch_decode(run->batch, count, tokens, NULL, &error);
        }
        double seconds = (double)(tool_now_ns() - start) * 1e-9;
        bench_watch(NULL);
        if (status == BITAXON_OK) {
            bench_read_more(run, &limit);
            bench_add(&row->value, BATCH_TOKENS * (double)count / seconds);
            bench_add(&row->rate, bytes / seconds);
            bench_add(&row->limit, bench_read_limit(&limit));
        }
    }
    return bench_outcome(run, status, &error);
}

/* ---- idleness ------------------------------------------------------------------------------------- */

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_utime.tv_sec + 1e-6 * (double)usage.ru_utime.tv_usec +
           (double)usage.ru_stime.tv_sec + 1e-6 * (double)usage.ru_stime.tv_usec;
}

/* After a token the threads are awake as they ever are; then nobody calls. */
int bench_measure_idle(bench_run *run, uint32_t rounds)
{
    bench_row *row = bench_row_add(run, BENCH_PERCENT, "idle", "CPU between calls");
    for (uint32_t i = 0; i < rounds; i++) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        if (!bench_go_on(run, "CPU between calls", i, rounds, 1.0)) {
            break;
        }
        bitaxon_status status = move_to(run, 0, &error);
        if (status == BITAXON_OK) {
            status = read_text(run, run->session, 3000000u, 1, &error);
        }
        if (status != BITAXON_OK) {
            return bench_outcome(run, status, &error);
        }
        struct timespec second = {1, 0};
        double cpu = cpu_seconds();
        uint64_t start = tool_now_ns();
        int slept = nanosleep(&second, NULL);
        double wall = (double)(tool_now_ns() - start) * 1e-9;
        if (slept == 0) {
            bench_add(&row->value, 100.0 * (cpu_seconds() - cpu) / wall);
        }
    }
    return TOOL_OK;
}
