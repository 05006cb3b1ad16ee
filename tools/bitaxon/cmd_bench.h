/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_bench.h - what the files of `bitaxon bench` share: samples, the rows of its table, the run.
 * cmd_bench.c takes the options and plans; cmd_bench_limits.c, cmd_bench_parts.c, cmd_bench_adapter.c and
 * cmd_bench_train.c measure; cmd_bench_peer.c runs llama.cpp's program; cmd_bench_report.c prints. */
#ifndef BITAXON_CMD_BENCH_H
#define BITAXON_CMD_BENCH_H

#include "tool.h"
#include "tool_model.h"

#include "../../bench/bandwidth.h"
#include "../../bench/peaks.h"

enum { BENCH_SAMPLES = 64, BENCH_ROWS = 64, BENCH_LIMITS = 48, BENCH_LENGTHS = 16 };

/* What is measured, as --only names it. */
enum {
    BENCH_PART_LIMITS = 1,
    BENCH_PART_OPEN = 2,
    BENCH_PART_FIRST = 4,
    BENCH_PART_PREFILL = 8,
    BENCH_PART_DECODE = 16,
    BENCH_PART_BATCH = 32,
    BENCH_PART_IDLE = 64,
    BENCH_PART_MEMORY = 128,
    BENCH_PART_ADAPTER = 256,
    BENCH_PART_TRAIN = 512,
    BENCH_PART_ALL = 1023
};

typedef struct bench_samples {
    double value[BENCH_SAMPLES];
    uint32_t count;
} bench_samples;

void bench_add(bench_samples *samples, double value);
double bench_median(const bench_samples *samples); /* NAN when there are none */
double bench_least(const bench_samples *samples);
double bench_most(const bench_samples *samples);

/* Units that a number may have. */
typedef enum bench_unit {
    BENCH_TOKENS, /* tokens per second */
    BENCH_SECONDS,
    BENCH_BYTES,
    BENCH_RATIO,
    BENCH_PERCENT,
    BENCH_READ, /* bytes per second */
    BENCH_FLOPS,
    BENCH_OPS,
    BENCH_JOULES /* per token */
} bench_unit;

/* One limit of the machine. */
typedef struct bench_limit {
    char name[40];
    char key[32];
    bench_unit unit;
    unsigned threads;
    bench_samples samples;
} bench_limit;

#define BENCH_READ_SECONDS 0.8 /* that the passes around a round take, as far as one can tell */

/* Passes of reading around what is compared with them, bytes per second. */
enum { BENCH_STREAMS = 4 }; /* 1, 2, 4 and 8 streams a thread */
typedef struct bench_reading {
    double sum[BENCH_STREAMS];
    uint32_t passes;
} bench_reading;

/* One result. rate and limit are of one unit, and sample i of both was taken in the same round; without
 * samples there is no limit to compare with. */
typedef struct bench_row {
    char name[48];
    char key[32];
    bench_unit unit;
    bench_samples value;
    bench_unit rate_unit;
    bench_samples rate;
    const char *limit_name;
    bench_samples limit;
} bench_row;

/* The same by llama.cpp's program. */
typedef struct bench_peer_row {
    char name[48];
    char key[32]; /* of the row that it is compared with */
    bench_samples value;
} bench_peer_row;

typedef struct bench_args {
    tool_model_args model;
    const char *only;
    const char *lengths_text;
    const char *compare;
    const char *compare_model;
    uint64_t max_seconds;
    uint32_t rounds;
    const char *root; /* where sys/class is looked for; NULL: / */
    bool quick;
    bool json;
    bool markdown;
} bench_args;

/* Facts of the model. */
typedef struct bench_facts {
    char kernels[80];
    char accuracy[16];
    char fingerprint[40];
    uint64_t features;
    uint64_t parameters, active, context, window, vocab;
    uint64_t mapped;
    unsigned threads;
    bool quantized; /* any weight: prompts of others are f32 in every accuracy */
    double expert_bytes, other_bytes; /* of weights: all routed experts; what every token reads */
    double experts, top_k;
    double head_parameters; /* of active: embedding and head, which a prompt does not multiply by */
    double attention_layers, hidden;
    double kv_bytes;    /* of one token in the window */
    double state_bytes; /* scan states and convolution tails of one sequence */
} bench_facts;

typedef struct bench_run {
    const bench_args *args;
    const char *path; /* NULL: limits alone */
    uint32_t parts;
    uint64_t lengths[BENCH_LENGTHS];
    uint32_t length_count;
    unsigned threads;
    uint64_t began_ns;
    double stolen, ticks; /* of /proc/stat when it began: taken by a hypervisor, and in all */
    bool stopped; /* by a signal or by --max-seconds: what there is gets printed */
    bool fewer;   /* rounds of something than were asked for, for want of time */
    char stop_reason[80];
    tool_progress progress;
    const struct bench_step *steps; /* [step_count], of which number `step` is at work */
    uint32_t step, step_count;
    double prefill_rate, decode_rate; /* tokens per second, guessed and then measured */
    char *buffer; /* for reading, or NULL */
    size_t buffer_bytes;
    bitaxon_model *model;
    bitaxon_thermal *meter;   /* of energy, RAPL's; NULL: there is none. No session is under it */
    bitaxon_session *session; /* the one sequence */
    bitaxon_session *batch[BITAXON_BATCH_MAX];
    uint32_t batch_count;
    bench_facts facts;
    bench_peak_kind peak;       /* what prefill is compared with */
    bench_peak_kind float_peak; /* and training */
    bench_limit limits[BENCH_LIMITS];
    uint32_t limit_count;
    bench_row rows[BENCH_ROWS];
    uint32_t row_count;
    bench_peer_row peers[BENCH_ROWS];
    uint32_t peer_count;
    char peer_name[160];
    char left_out[BENCH_ROWS][96]; /* what was not measured, and why */
    uint32_t left_out_count;
} bench_run;

/* ---- cmd_bench.c ---- */

/* Is there time for one more round of about `seconds`, and has nobody asked to stop? Shows progress. A step
 * none of whose rounds is begun is noted as left out. */
bool bench_go_on(bench_run *run, const char *what, uint32_t round, uint32_t rounds, double seconds);
/* Show what is at work and the time left: `left` seconds of this step, and the steps after it. */
void bench_show(bench_run *run, const char *what, uint32_t round, uint32_t rounds, double left);
/* The session that a signal or the end of the time cancels; NULL for none. */
void bench_watch(bitaxon_session *session);
void bench_watch_trainer(bitaxon_trainer *trainer);
/* Has the time run out, or has a signal come? Notes why. */
bool bench_stopped(bench_run *run);
void bench_leave_out(bench_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
bench_row *bench_row_add(bench_run *run, bench_unit unit, const char *key, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
const bench_row *bench_row_find(const bench_run *run, const char *key); /* with samples, or NULL */
double bench_seconds(const bench_run *run); /* since the start */

/* ---- cmd_bench_limits.c ---- */

unsigned bench_cpus(void); /* that the process may use */
/* Ticks of all processors since they started, and those that a hypervisor gave to others; zeros where no one tells. */
void bench_stolen(double *stolen, double *ticks);
bool bench_buffer(bench_run *run); /* make it; false after a message */
void bench_buffer_drop(bench_run *run);
/* Two passes more over the buffer with each number of streams, all threads; begin with zeros. */
void bench_read_more(const bench_run *run, bench_reading *reading);
double bench_read_limit(const bench_reading *reading); /* mean of the passes of the best number of streams */
bool bench_has_peak(bench_peak_kind kind);
/* Widest f32 among BITAXON_CPU_* features; of AMX, from the second-level cache, where tiles are used. */
bench_peak_kind bench_peak_for(uint64_t features, bool tiles);
double bench_peak_now(const bench_run *run, bench_peak_kind kind, unsigned repeats); /* the best */
int bench_measure_limits(bench_run *run, uint32_t rounds);

/* ---- cmd_bench_parts.c; all return TOOL_OK, also when stopped, or an exit code after a message ---- */

int bench_open_model(bench_run *run);
double bench_weights_bytes(const bench_facts *facts, double sequences); /* that one pass reads */
int bench_measure_open(bench_run *run, uint32_t rounds);
int bench_measure_first(bench_run *run, uint32_t rounds);
int bench_measure_prefill(bench_run *run, uint64_t length, uint32_t rounds, bool row, bool memory);
int bench_measure_decode(bench_run *run, uint64_t context, const char *key, const char *name,
                         uint32_t rounds);
int bench_measure_batch(bench_run *run, uint32_t count, uint32_t rounds);
void bench_batch_free(bench_run *run);
int bench_measure_idle(bench_run *run, uint32_t rounds);

/* Stopped on purpose is no failure: what there is gets printed. */
int bench_outcome(bench_run *run, bitaxon_status status, const bitaxon_error *error);
int32_t *bench_prompt(const bench_run *run, uint64_t first, uint64_t count); /* tokens of the text; free() it */
double bench_keys(const bench_facts *facts, uint64_t length); /* that the tokens of a prompt see, each in one layer */
double bench_process_bytes(const char *name); /* at "NAME:" of /proc/self/status; -1 where there is none */
bool bench_memory_reset(void); /* let VmHWM begin anew; false where the kernel has no such thing */

/* ---- cmd_bench_adapter.c ---- */

int bench_measure_adapter(bench_run *run, uint32_t rounds); /* as above */

/* ---- cmd_bench_train.c ---- */

int bench_measure_train(bench_run *run, uint64_t length, uint32_t rounds); /* as above; frees the session */

/* ---- cmd_bench_peer.c ---- */

int bench_measure_peer(bench_run *run);

/* ---- cmd_bench_report.c ---- */

void bench_report(const bench_run *run);

#endif
