/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench.c - `bitaxon bench`: a model's speed beside the limits of the machine, measured in the same
 * run. This file takes the options, makes the plan (a list of steps) and keeps the time; see
 * cmd_bench.h for the others. Whatever ends the run early, what was measured is printed. */
#include "cmd_bench.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

static const tool_usage usage = {
    "bench", "[MODEL]",
    "Measure this machine's limits and how near a model comes to them: opening, first\n"
    "token, prefill, decode, batches, adapters, idleness, memory, training. Without MODEL the\n"
    "limits alone.",
    0, 1};

/* ---- samples and rows ------------------------------------------------------------------------ */

void bench_add(bench_samples *samples, double value)
{
    if (samples->count < BENCH_SAMPLES && isfinite(value)) {
        samples->value[samples->count++] = value;
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(const bench_samples *samples)
{
    double sorted[BENCH_SAMPLES];
    uint32_t n = samples->count;
    if (n == 0) {
        return (double)NAN;
    }
    memcpy(sorted, samples->value, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_value);
    return n % 2 != 0 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

double bench_least(const bench_samples *samples)
{
    double least = (double)NAN;
    for (uint32_t i = 0; i < samples->count; i++) {
        least = i == 0 ? samples->value[i] : fmin(least, samples->value[i]);
    }
    return least;
}

double bench_most(const bench_samples *samples)
{
    double most = (double)NAN;
    for (uint32_t i = 0; i < samples->count; i++) {
        most = i == 0 ? samples->value[i] : fmax(most, samples->value[i]);
    }
    return most;
}

bench_row *bench_row_add(bench_run *run, bench_unit unit, const char *key, const char *format, ...)
{
    static bench_row surplus; /* more rows than any plan has */
    bench_row *row = run->row_count < BENCH_ROWS ? &run->rows[run->row_count++] : &surplus;
    va_list arguments;
    memset(row, 0, sizeof *row);
    row->unit = unit;
    snprintf(row->key, sizeof row->key, "%s", key);
    va_start(arguments, format);
    vsnprintf(row->name, sizeof row->name, format, arguments);
    va_end(arguments);
    return row;
}

const bench_row *bench_row_find(const bench_run *run, const char *key)
{
    for (uint32_t i = 0; i < run->row_count; i++) {
        if (strcmp(run->rows[i].key, key) == 0 && run->rows[i].value.count != 0) {
            return &run->rows[i];
        }
    }
    return NULL;
}

/* ---- time --------------------------------------------------------------------------------------- */

static _Atomic(bitaxon_session *) watched;
static _Atomic(bitaxon_trainer *) watched_trainer;
static volatile sig_atomic_t expired;

static void on_alarm(int number)
{
    (void)number;
    expired = 1;
    bitaxon_session_cancel(atomic_load(&watched));
    bitaxon_trainer_cancel(atomic_load(&watched_trainer));
}

void bench_watch(bitaxon_session *session)
{
    atomic_store(&watched, session);
    tool_signal_session(session);
    if (session != NULL && expired) {
        bitaxon_session_cancel(session); /* it came just before */
    }
}

void bench_watch_trainer(bitaxon_trainer *trainer)
{
    atomic_store(&watched_trainer, trainer);
    tool_signal_trainer(trainer);
    if (expired) {
        bitaxon_trainer_cancel(trainer);
    }
}

static void start_alarm(uint64_t seconds)
{
    struct sigaction action;
    struct itimerval timer;
    memset(&action, 0, sizeof action);
    memset(&timer, 0, sizeof timer);
    sigemptyset(&action.sa_mask);
    action.sa_handler = on_alarm;
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, NULL);
    timer.it_value.tv_sec = (time_t)seconds;
    setitimer(ITIMER_REAL, &timer, NULL);
}

double bench_seconds(const bench_run *run)
{
    return (double)(tool_now_ns() - run->began_ns) * 1e-9;
}

bool bench_stopped(bench_run *run)
{
    if (!run->stopped && (expired || tool_signal() != 0)) {
        run->stopped = true;
        snprintf(run->stop_reason, sizeof run->stop_reason, "%s",
                 expired ? "the time of --max-seconds was up" : "it was interrupted");
    }
    return run->stopped;
}

void bench_leave_out(bench_run *run, const char *format, ...)
{
    va_list arguments;
    if (run->left_out_count < BENCH_ROWS) {
        char *text = run->left_out[run->left_out_count++];
        va_start(arguments, format);
        vsnprintf(text, sizeof run->left_out[0], format, arguments);
        va_end(arguments);
    }
}

/* ---- the plan --------------------------------------------------------------------------------------- */

typedef enum step_kind {
    STEP_LIMITS,
    STEP_OPEN,
    STEP_FIRST,
    STEP_PREFILL,
    STEP_DECODE,
    STEP_BATCH,
    STEP_ADAPTER,
    STEP_IDLE,
    STEP_TRAIN,
    STEP_PEER
} step_kind;

typedef struct bench_step {
    step_kind kind;
    uint64_t length; /* of a prompt or a context, or sequences */
    uint32_t rounds;
    bool show;   /* a row of the table, or prefill for its memory alone */
    bool memory; /* measure it here */
    const char *key, *name;
} bench_step;

enum { MAX_STEPS = 40, SHORT_CONTEXT = 128, FAR_LONGER = 4 };

/* Seconds that a step will take as far as one can tell; what comparing takes nobody can. */
static double estimate(const bench_run *run, const bench_step *step)
{
    double rounds = step->rounds;
    switch (step->kind) {
    case STEP_LIMITS:
        return 0.7 * rounds;
    case STEP_OPEN:
        return 0.1 * rounds;
    case STEP_FIRST:
        return 1024.0 / run->prefill_rate * rounds;
    case STEP_PREFILL:
        return (double)step->length / run->prefill_rate * rounds;
    case STEP_DECODE:
        return (16.0 / run->decode_rate + BENCH_READ_SECONDS) * rounds;
    case STEP_BATCH:
        return (8.0 * (1.0 + 0.3 * (double)step->length) / run->decode_rate + BENCH_READ_SECONDS) * rounds;
    case STEP_ADAPTER:
        return 0.1 * rounds;
    case STEP_IDLE:
        return rounds;
    case STEP_TRAIN:
        return 3.0 * (double)step->length / run->prefill_rate * rounds;
    default:
        return 0.0;
    }
}

void bench_show(bench_run *run, const char *what, uint32_t round, uint32_t rounds, double left)
{
    if (!run->progress.enabled) {
        return;
    }
    for (uint32_t i = run->step + 1; i < run->step_count; i++) {
        left += estimate(run, &run->steps[i]);
    }
    if (run->args->max_seconds != 0) {
        left = fmin(left, fmax(0.0, (double)run->args->max_seconds - bench_seconds(run)));
    }
    unsigned whole = (unsigned)fmin(left + 0.5, 359999.0);
    fprintf(stderr, "\rmeasuring %s, %u of %u; about %u:%02u:%02u left\033[K", what, round + 1, rounds,
            whole / 3600, whole / 60 % 60, whole % 60);
    fflush(stderr);
    run->progress.shown = true;
}

bool bench_go_on(bench_run *run, const char *what, uint32_t round, uint32_t rounds, double seconds)
{
    if (bench_stopped(run)) {
        return false;
    }
    double left = (double)run->args->max_seconds - bench_seconds(run);
    if (run->args->max_seconds != 0 && seconds > left) {
        if (round == 0) {
            bench_leave_out(run, "%s: takes about %.0f s, %.0f s are left", what, seconds,
                            left > 0 ? left : 0.0);
        }
        run->fewer = run->fewer || round != 0;
        return false;
    }
    bench_show(run, what, round, rounds, seconds * (rounds - round));
    return true;
}

static uint32_t rounds_of(const bench_run *run, uint32_t usual)
{
    if (run->args->rounds != 0) {
        return run->args->rounds;
    }
    return run->args->quick && usual > 3 ? 3 : usual;
}

/* The prompt lengths that the model's context has room for. */
static void fit_lengths(bench_run *run)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < run->length_count; i++) {
        if (run->lengths[i] <= run->facts.context) {
            run->lengths[kept++] = run->lengths[i];
        } else if ((run->parts & (BENCH_PART_PREFILL | BENCH_PART_MEMORY)) != 0) {
            bench_leave_out(run, "prefill, %llu tokens: the model's context is %llu",
                            (unsigned long long)run->lengths[i],
                            (unsigned long long)run->facts.context);
        }
    }
    run->length_count = kept;
}

static void plan_decode(const bench_run *run, bench_step *steps, uint32_t *n, uint64_t context,
                        const char *key, const char *name)
{
    if ((run->parts & BENCH_PART_DECODE) != 0) {
        steps[(*n)++] = (bench_step){.kind = STEP_DECODE, .length = context, .key = key, .name = name,
                                     .rounds = rounds_of(run, 9)};
    }
}

/* Short things first, the longest prompt last. Decoding at a full window follows a prompt that has
 * filled it, or comes before one that is far longer. */
static uint32_t make_plan(const bench_run *run, bench_step *steps)
{
    static const char window_key[] = "decode_window";
    static const char window_name[] = "decode, full window";
    uint64_t window = run->facts.window;
    uint64_t longest = 0;
    uint32_t n = 0;
    bool window_done = false;
    if ((run->parts & BENCH_PART_LIMITS) != 0) {
        steps[n++] = (bench_step){.kind = STEP_LIMITS, .rounds = rounds_of(run, 5)};
    }
    if (run->model == NULL) {
        return n;
    }
    if ((run->parts & BENCH_PART_OPEN) != 0) {
        steps[n++] = (bench_step){.kind = STEP_OPEN, .rounds = rounds_of(run, 7)};
    }
    plan_decode(run, steps, &n, SHORT_CONTEXT, "decode_short", "decode, short context");
    for (uint32_t b = 1; b <= 8 && (run->parts & BENCH_PART_BATCH) != 0; b *= 2) {
        if (!run->args->quick || b == 1 || b == 4) {
            steps[n++] = (bench_step){.kind = STEP_BATCH, .length = b, .rounds = rounds_of(run, 5)};
        }
    }
    if ((run->parts & BENCH_PART_ADAPTER) != 0) {
        steps[n++] = (bench_step){.kind = STEP_ADAPTER, .rounds = rounds_of(run, 9)};
    }
    if ((run->parts & BENCH_PART_IDLE) != 0) {
        steps[n++] = (bench_step){.kind = STEP_IDLE, .rounds = run->args->quick ? 1 : 3};
    }
    if ((run->parts & BENCH_PART_FIRST) != 0) {
        steps[n++] = (bench_step){.kind = STEP_FIRST, .rounds = run->args->quick ? 1 : rounds_of(run, 5)};
    }
    for (uint32_t i = 0; i < run->length_count; i++) {
        longest = run->lengths[i];
        bool show = (run->parts & BENCH_PART_PREFILL) != 0;
        bool memory = i + 1 == run->length_count && (run->parts & BENCH_PART_MEMORY) != 0;
        uint32_t rounds = rounds_of(run, longest <= 2048 ? 5 : longest <= 8192 ? 3 : 1);
        if (longest > FAR_LONGER * window && !window_done) {
            window_done = true;
            plan_decode(run, steps, &n, window, window_key, window_name);
        }
        if (show || memory) {
            steps[n++] = (bench_step){.kind = STEP_PREFILL, .length = longest, .show = show,
                                      .rounds = show ? rounds : 1, .memory = memory};
        }
        if (longest >= window && !window_done) {
            window_done = true;
            plan_decode(run, steps, &n, window, window_key, window_name);
        }
    }
    if (longest > FAR_LONGER * window) {
        plan_decode(run, steps, &n, longest, "decode_long", "decode, longest context");
    }
    if ((run->parts & BENCH_PART_TRAIN) != 0) {
        uint64_t length = run->args->quick ? 256 : 2048;
        steps[n++] = (bench_step){.kind = STEP_TRAIN, .rounds = run->args->quick ? 1 : rounds_of(run, 3),
                                  .length = length < run->facts.context ? length : run->facts.context};
    }
    if (run->args->compare != NULL) {
        steps[n++] = (bench_step){.kind = STEP_PEER, .rounds = 1};
    }
    return n;
}

static int run_step(bench_run *run, const bench_step *step)
{
    switch (step->kind) {
    case STEP_LIMITS:
        return bench_measure_limits(run, step->rounds);
    case STEP_OPEN:
        return bench_measure_open(run, step->rounds);
    case STEP_FIRST:
        return bench_measure_first(run, step->rounds);
    case STEP_PREFILL:
        return bench_measure_prefill(run, step->length, step->rounds, step->show, step->memory);
    case STEP_DECODE:
        return bench_measure_decode(run, step->length, step->key, step->name, step->rounds);
    case STEP_BATCH:
        return bench_measure_batch(run, (uint32_t)step->length, step->rounds);
    case STEP_ADAPTER:
        return bench_measure_adapter(run, step->rounds);
    case STEP_IDLE:
        return bench_measure_idle(run, step->rounds);
    case STEP_TRAIN:
        return bench_measure_train(run, step->length, step->rounds);
    default:
        return bench_measure_peer(run);
    }
}

/* ---- the command --------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    uint32_t part;
} part_names[] = {
    {"limits", BENCH_PART_LIMITS},   {"open", BENCH_PART_OPEN},   {"first", BENCH_PART_FIRST},
    {"prefill", BENCH_PART_PREFILL}, {"decode", BENCH_PART_DECODE}, {"batch", BENCH_PART_BATCH},
    {"adapter", BENCH_PART_ADAPTER}, {"idle", BENCH_PART_IDLE},   {"memory", BENCH_PART_MEMORY},
    {"train", BENCH_PART_TRAIN},
};

static int parse_parts(bench_run *run, const char *text)
{
    run->parts = text == NULL ? BENCH_PART_ALL : 0;
    while (text != NULL) {
        size_t length = strcspn(text, ",");
        uint32_t part = 0;
        for (size_t i = 0; i < sizeof part_names / sizeof part_names[0]; i++) {
            if (strlen(part_names[i].name) == length && strncmp(part_names[i].name, text, length) == 0) {
                part = part_names[i].part;
            }
        }
        if (part == 0) {
            return tool_usage_error(usage.command,
                                    "--only: '%.*s' is not limits, open, first, prefill, decode, batch, "
                                    "adapter, idle, memory or train",
                                    (int)length, text);
        }
        run->parts |= part;
        text = text[length] == ',' ? text + length + 1 : NULL;
    }
    return TOOL_OK;
}

static int parse_lengths(bench_run *run, const char *text)
{
    static const uint64_t usual[] = {128, 512, 2048, 8192, 65536};
    if (text == NULL) {
        run->length_count = run->args->quick ? 2 : 5;
        memcpy(run->lengths, usual, sizeof usual);
        return TOOL_OK;
    }
    while (text != NULL) {
        size_t length = strcspn(text, ",");
        uint64_t value = 0;
        if (!tool_parse_u64(text, length, &value) || value == 0 || value > UINT32_MAX ||
            run->length_count == BENCH_LENGTHS ||
            (run->length_count != 0 && run->lengths[run->length_count - 1] >= value)) {
            return tool_usage_error(usage.command,
                                    "--lengths: '%s' is not numbers of tokens in ascending order, at most %d",
                                    run->args->lengths_text, BENCH_LENGTHS);
        }
        run->lengths[run->length_count++] = value;
        text = text[length] == ',' ? text + length + 1 : NULL;
    }
    return TOOL_OK;
}

/* First guesses for the time left; prefill and decode replace them by what they find. */
static void guess_rates(bench_run *run)
{
    double work = 2.0 * (double)run->facts.active;
    double peak = bench_peak_now(run, run->peak, 1);
    run->prefill_rate = peak > 0 && work > 0 ? 0.4 * peak / work : 100.0;
    run->decode_rate = 10e9 / bench_weights_bytes(&run->facts, 1);
}

static void add_ratio(bench_run *run, const char *key, const char *name, const char *above,
                      const char *below)
{
    const bench_row *a = bench_row_find(run, above);
    const bench_row *b = bench_row_find(run, below);
    if (a != NULL && b != NULL) {
        double ratio = bench_median(&a->value) / bench_median(&b->value);
        bench_add(&bench_row_add(run, BENCH_RATIO, key, "%s", name)->value, ratio);
    }
}

static int execute(bench_run *run)
{
    bench_step steps[MAX_STEPS];
    int code = TOOL_OK;
    if (run->path != NULL) {
        code = bench_open_model(run);
        if (code == TOOL_OK) {
            fit_lengths(run);
            guess_rates(run);
        }
    }
    if (code != TOOL_OK) {
        return code;
    }
    run->steps = steps;
    run->step_count = make_plan(run, steps);
    for (run->step = 0; run->step < run->step_count && code == TOOL_OK && !bench_stopped(run); run->step++) {
        code = run_step(run, &steps[run->step]);
    }
    tool_progress_clear(&run->progress);
    add_ratio(run, "prefill_long_ratio", "prefill of 65536 / of 2048", "prefill_65536", "prefill_2048");
    add_ratio(run, "decode_long_ratio", "decode, longest / full window", "decode_long", "decode_window");
    add_ratio(run, "batch_ratio", "8 sequences together / 1", "batch_8", "batch_1");
    return code;
}

/* RAPL alone: a battery tells energy in steps of minutes. */
static void open_meter(bench_run *run)
{
    char source[160] = "";
    bitaxon_thermal_params params = {.struct_size = sizeof params, .sample_ms = 10,
                                     .root = run->args->root};
    bool known = bitaxon_thermal_create(&params, &run->meter, NULL) == BITAXON_OK &&
                 bitaxon_thermal_info(run->meter, "energy_source", source, sizeof source, NULL,
                                      NULL) == BITAXON_OK;
    if (!known || strncmp(source, "RAPL ", 5) != 0) {
        bitaxon_thermal_free(run->meter);
        run->meter = NULL;
    }
}

int cmd_bench(int argc, char **argv)
{
    bench_args args = {0};
    const tool_option options[] = {
        TOOL_FLAG("quick", 0, &args.quick, "short prompts and few rounds: about half a minute"),
        TOOL_TEXT("only", 0, "PARTS", &args.only,
                  "some of limits,open,first,prefill,decode,batch,adapter,idle,\nmemory,train"),
        TOOL_TEXT("lengths", 0, "N,N,...", &args.lengths_text,
                  "prompt lengths (default: 128,512,2048,8192,65536); decode is\n"
                  "measured at contexts up to the last"),
        TOOL_U32("rounds", 0, &args.rounds, 1, 25, "times that each thing is measured (default: 1 to 9)"),
        TOOL_U64("max-seconds", 0, &args.max_seconds, 1, 1e6, "stop after N seconds with what there is"),
        TOOL_TEXT("compare", 0, "PROGRAM", &args.compare, "run llama.cpp's llama-bench too, in the same run"),
        TOOL_TEXT("compare-model", 0, "GGUF", &args.compare_model, "the model for it"),
        TOOL_KV_OPTION(&args.model, "f16"),
        TOOL_MODEL_OPTIONS(&args.model),
        TOOL_TEXT("sensor-root", 0, "DIR", &args.root,
                  "look for energy counters in sys/class below DIR (default /)"),
        TOOL_FLAG("json", 0, &args.json, "print one JSON object"),
        TOOL_FLAG("markdown", 0, &args.markdown, "print Markdown tables"),
        TOOL_OPTIONS_END};
    static bench_run run;
    int first = 0;
    int code = TOOL_OK;
    run.args = &args;
    tool_progress_init(&run.progress);
    if (!tool_parse(&usage, options, argc, argv, &first, &code)) {
        return code;
    }
    run.path = first < argc ? argv[first] : NULL;
    code = tool_model_args_check(usage.command, &args.model);
    if (code == TOOL_OK) {
        code = parse_parts(&run, args.only);
    }
    if (code == TOOL_OK) {
        code = parse_lengths(&run, args.lengths_text);
    }
    if (code == TOOL_OK && args.compare_model != NULL && args.compare == NULL) {
        code = tool_usage_error(usage.command, "--compare-model needs --compare");
    }
    if (code == TOOL_OK && args.json && args.markdown) {
        code = tool_usage_error(usage.command, "--json and --markdown: one of them");
    }
    if (code == TOOL_OK && run.path == NULL) {
        if (args.compare != NULL) {
            code = tool_usage_error(usage.command, "--compare needs a MODEL");
        } else if (args.only != NULL && run.parts != BENCH_PART_LIMITS) {
            code = tool_usage_error(usage.command, "--only: without MODEL there are limits alone");
        }
        run.parts = BENCH_PART_LIMITS;
    }
    if (code != TOOL_OK) {
        return code;
    }
    run.threads = args.model.threads != 0 ? args.model.threads : bench_cpus();
    run.began_ns = tool_now_ns();
    bench_stolen(&run.stolen, &run.ticks);
    if (args.max_seconds != 0) {
        start_alarm(args.max_seconds);
    }
    open_meter(&run);
    code = execute(&run);
    if (code == TOOL_OK) {
        bench_report(&run);
    }
    bench_batch_free(&run);
    bitaxon_session_free(run.session);
    bitaxon_model_free(run.model);
    bitaxon_thermal_free(run.meter);
    bench_buffer_drop(&run);
    return code == TOOL_OK && tool_signal() != 0 ? 128 + tool_signal() : code;
}
