/* SPDX-License-Identifier: Apache-2.0 */
/* test_train_state.c - checkpoints of training: a resumed run ends with the bits of one that was never
 * stopped; damage, strangers and differing parameters are told; which checkpoints stay; every system call of a
 * save fails once. The kills are in test_train_crash.c. */
#include "trainer_fixture.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- system calls that fail -------------------------------------------------------------------- */

static uint64_t calls, fail_at; /* 0: none */
static int fail_with;

static bool refused(void)
{
    if (fail_at == 0 || ++calls != fail_at)
        return false;
    errno = fail_with;
    return true;
}

static void *next(const char *name)
{
    void *symbol = dlsym(RTLD_NEXT, name);
    assert_non_null(symbol);
    return symbol;
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    ssize_t (*real)(int, const void *, size_t);
    void *symbol = next("write");
    memcpy(&real, &symbol, sizeof real);
    return refused() ? -1 : real(fd, data, bytes);
}

int fsync(int fd)
{
    int (*real)(int);
    void *symbol = next("fsync");
    memcpy(&real, &symbol, sizeof real);
    return refused() ? -1 : real(fd);
}

int rename(const char *from, const char *to)
{
    int (*real)(const char *, const char *);
    void *symbol = next("rename");
    memcpy(&real, &symbol, sizeof real);
    return refused() ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    int (*real)(const char *, mode_t);
    void *symbol = next("mkdir");
    memcpy(&real, &symbol, sizeof real);
    return refused() ? -1 : real(path, mode);
}

/* ---- runs ------------------------------------------------------------------------------------------ */

static fault_host fault;
static char last_warning[512];
static uint64_t warnings;

static void keep_warning(void *user, int32_t level, const char *line)
{
    (void)user;
    if (level < BITAXON_LOG_WARNING)
        return;
    warnings++;
    snprintf(last_warning, sizeof last_warning, "%s", line);
}

typedef struct bench {
    bitaxon_model *model;
    bitaxon_dataset *data, *held;
    bitaxon_trainer_params params;
    char *folder, *home;
} bench;

static void bench_start(bench *b, int32_t method, int32_t objective, uint64_t updates)
{
    memset(b, 0, sizeof *b);
    fault_host_init(&fault);
    fault.host.log = keep_warning;
    b->model = open_model(method == BITAXON_TRAIN_FULL ? FLOAT_MODEL : QUANTISED, 1, &fault.host);
    b->data = count_up(b->model, objective, 20, 1);
    b->held = count_up(b->model, objective, 4, 2);
    b->params = small_run(b->data, method, updates);
    b->params.validation = b->held;
    b->params.targets = method == BITAXON_TRAIN_FULL ? NULL : "q_proj,v_proj,input_proj";
    b->folder = make_folder();
    const char *home = in_folder(b->folder, "run");
    b->home = duplicate(home, strlen(home) + 1);
}

static void bench_end(bench *b)
{
    bitaxon_dataset_free(b->data);
    bitaxon_dataset_free(b->held);
    bitaxon_model_free(b->model);
    remove_folder(b->folder);
    free(b->home);
    assert_string_equal(fault_host_balance(&fault), "");
}

static bitaxon_trainer *again(bench *b, const char *from)
{
    bitaxon_trainer *trainer = make_trainer(b->model, &b->params);
    OK(bitaxon_trainer_resume(trainer, from, &error));
    return trainer;
}

static void save(bitaxon_trainer *trainer, const char *home, uint32_t keep)
{
    OK(bitaxon_trainer_save(trainer, home, keep, &error));
}

static const char *at_step(const bench *b, unsigned number)
{
    static char path[2][512];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/step_%08u", b->home, number);
    return path[turn];
}

static bool exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

static void test_resume(void **state)
{
    (void)state;
    static const struct {
        int32_t method, objective, optimizer;
    } kinds[] = {
        { BITAXON_TRAIN_LORA, BITAXON_OBJECTIVE_SFT, 0 },
        { BITAXON_TRAIN_DORA, BITAXON_OBJECTIVE_ORPO, 0 },
        { BITAXON_TRAIN_FULL, BITAXON_OBJECTIVE_SFT, 0 },
        { BITAXON_TRAIN_FULL, BITAXON_OBJECTIVE_SFT, BITAXON_OPTIMIZER_MUON },
    };
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        bench b;
        bench_start(&b, kinds[k].method, kinds[k].objective, 6);
        b.params.optimizer = kinds[k].optimizer;
        bitaxon_trainer *trainer = make_trainer(b.model, &b.params);
        bitaxon_train_result r = { .struct_size = sizeof r };
        for (uint64_t u = 0; u < 6; u++) {
            if (u == 3) {
                OK(bitaxon_trainer_evaluate(trainer, 1, &r, &error));
                save(trainer, b.home, 0);
            }
            step(trainer);
        }
        outcome want = outcome_of(trainer);
        bitaxon_trainer_free(trainer);
        /* From the newest of a directory; by name; with a slash behind; on the way saved and resumed at each update. */
        trainer = again(&b, b.home);
        assert_int_equal(trainer->core.at.step, 3);
        steps(trainer, 3);
        check_outcome(trainer, &want);
        EXPECT(END, bitaxon_trainer_step(trainer, NULL, &error));
        bitaxon_trainer_free(trainer);
        char slashed[600];
        snprintf(slashed, sizeof slashed, "%s//", at_step(&b, 3));
        trainer = again(&b, slashed);
        for (uint64_t u = 3; u < 6; u++) {
            step(trainer);
            save(trainer, b.home, 1);
            bitaxon_trainer_free(trainer);
            trainer = again(&b, b.home);
        }
        check_outcome(trainer, &want);
        assert_true(exists(at_step(&b, 6)) && !exists(at_step(&b, 5)) && !exists(at_step(&b, 3)));
        bitaxon_trainer_free(trainer);
        /* More steps than before are fine, fewer than were made are not. */
        b.params.steps = 8;
        trainer = again(&b, b.home);
        steps(trainer, 2);
        bitaxon_trainer_free(trainer);
        b.params.steps = 5;
        trainer = make_trainer(b.model, &b.params);
        EXPECT(MISMATCH, bitaxon_trainer_resume(trainer, b.home, &error));
        bitaxon_trainer_free(trainer);
        outcome_free(&want);
        bench_end(&b);
    }
}

static void test_which_stay(void **state)
{
    (void)state;
    bench b;
    bench_start(&b, BITAXON_TRAIN_LORA, BITAXON_OBJECTIVE_SFT, 20);
    bitaxon_trainer *trainer = make_trainer(b.model, &b.params), *other;
    EXPECT(IO, bitaxon_trainer_resume(trainer, b.home, &error)); /* no such directory */
    save(trainer, b.home, 0);
    for (int u = 0; u < 6; u++) {
        step(trainer);
        save(trainer, b.home, 0);
    }
    for (unsigned n = 0; n <= 6; n++)
        assert_true(exists(at_step(&b, n)) == (n >= 4));
    save(trainer, b.home, 2); /* the same step again */
    assert_true(!exists(at_step(&b, 4)) && exists(at_step(&b, 5)) && exists(at_step(&b, 6)));
    /* A run that has no part in them does not touch them. */
    other = make_trainer(b.model, &b.params);
    EXPECT(BAD_STATE, bitaxon_trainer_save(other, b.home, 0, &error));
    expect_message("another run");
    assert_true(exists(at_step(&b, 5)) && exists(at_step(&b, 6)));
    /* From an earlier one the run takes another way: the later ones go when its own is in place. */
    OK(bitaxon_trainer_resume(other, at_step(&b, 5), &error));
    save(other, b.home, 5);
    assert_true(exists(at_step(&b, 5)) && !exists(at_step(&b, 6)));
    bitaxon_trainer_free(other);
    /* What a killed process leaves is cleared up; what it moved aside comes back. */
    char from[600], to[640];
    snprintf(from, sizeof from, "%s", at_step(&b, 5));
    snprintf(to, sizeof to, "%s.old", from);
    assert_int_equal(rename(from, to), 0);
    snprintf(to, sizeof to, "%s.tmp", at_step(&b, 7));
    assert_int_equal(mkdir(to, 0700), 0);
    write_whole(in_folder(to, "half"), "x", 1);
    snprintf(to, sizeof to, "%s.old", at_step(&b, 5));
    other = again(&b, b.home);
    assert_int_equal(other->core.at.step, 5);
    assert_true(exists(from) && !exists(to));
    snprintf(to, sizeof to, "%s.tmp", at_step(&b, 7));
    assert_true(!exists(to));
    /* A save that is refused clears up nothing: another process may be writing there. Aside counts as there. */
    assert_int_equal(mkdir(to, 0700), 0);
    bitaxon_trainer *stranger = make_trainer(b.model, &b.params);
    EXPECT(BAD_STATE, bitaxon_trainer_save(stranger, b.home, 0, &error));
    assert_true(exists(to));
    assert_int_equal(rmdir(to), 0);
    snprintf(to, sizeof to, "%s.old", from);
    assert_int_equal(rename(from, to), 0);
    EXPECT(BAD_STATE, bitaxon_trainer_save(stranger, b.home, 0, &error));
    assert_true(exists(to) && !exists(from));
    /* By its name it comes back too. */
    OK(bitaxon_trainer_resume(stranger, from, &error));
    assert_true(exists(from) && !exists(to));
    bitaxon_trainer_free(stranger);
    /* Both are there: the one moved aside goes. */
    snprintf(to, sizeof to, "%s.old", at_step(&b, 5));
    assert_int_equal(mkdir(to, 0700), 0);
    save(other, b.home, 0);
    assert_true(exists(from) && !exists(to));
    /* Files and directories of others stay. */
    write_whole(in_folder(b.home, "step_7"), "mine", 4);
    step(other);
    save(other, b.home, 1);
    assert_true(exists(in_folder(b.home, "step_7")) && !exists(from));
    bitaxon_trainer_free(other);
    bitaxon_trainer_free(trainer);
    bench_end(&b);
}

/* Whose a directory is does not depend on how it is written, nor on where the process is. */
static void test_other_names(void **state)
{
    (void)state;
    bench b;
    char here[4096], dotted[700], linked[700];
    bench_start(&b, BITAXON_TRAIN_LORA, BITAXON_OBJECTIVE_SFT, 20);
    bitaxon_trainer *trainer = make_trainer(b.model, &b.params);
    save(trainer, b.home, 0);
    step(trainer);
    snprintf(dotted, sizeof dotted, "%s/.//run/", b.folder);
    snprintf(linked, sizeof linked, "%s/link", b.folder);
    assert_int_equal(symlink(b.home, linked), 0);
    save(trainer, dotted, 0);
    save(trainer, linked, 0);
    assert_int_equal(unlink(linked), 0);
    /* The same relative name, another directory: another run's. */
    bitaxon_trainer *other = make_trainer(b.model, &b.params);
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(mkdir(in_folder(b.folder, "a"), 0700), 0);
    assert_int_equal(chdir(in_folder(b.folder, "a")), 0);
    bitaxon_status mine = bitaxon_trainer_save(other, "run", 0, &error);
    assert_int_equal(chdir(".."), 0);
    bitaxon_status theirs = bitaxon_trainer_save(other, "run", 0, &error);
    bitaxon_status own = bitaxon_trainer_save(other, "a/run", 0, &error);
    assert_int_equal(chdir(here), 0);
    OK(mine);
    OK(own);
    EXPECT(BAD_STATE, theirs);
    bitaxon_trainer_free(other);
    bitaxon_trainer_free(trainer);
    bench_end(&b);
}

static void test_mismatch(void **state)
{
    (void)state;
    bench b;
    bench_start(&b, BITAXON_TRAIN_DORA, BITAXON_OBJECTIVE_SFT, 4);
    bitaxon_trainer *trainer = make_trainer(b.model, &b.params);
    step(trainer);
    save(trainer, b.home, 0);
    bitaxon_trainer_free(trainer);
    const bitaxon_trainer_params same = b.params;
#define DIFFERENT(word, field, value)                                              \
    do {                                                                          \
        b.params = same;                                                          \
        b.params.field = (value);                                                 \
        trainer = make_trainer(b.model, &b.params);                               \
        outcome was = outcome_of(trainer);                                        \
        EXPECT(MISMATCH, bitaxon_trainer_resume(trainer, b.home, &error));        \
        expect_message(word);                                                     \
        check_outcome(trainer, &was);                                             \
        outcome_free(&was);                                                       \
        bitaxon_trainer_free(trainer);                                            \
    } while (0)
    DIFFERENT("method", method, BITAXON_TRAIN_LORA);
    DIFFERENT("exact_norm", flags, BITAXON_TRAIN_EXACT_NORM);
    DIFFERENT("bias_correction", flags, BITAXON_TRAIN_NO_BIAS_CORRECTION);
    DIFFERENT("shuffle", flags, BITAXON_TRAIN_NO_SHUFFLE);
    DIFFERENT("targets", targets, "q_proj");
    DIFFERENT("rank", rank, 5);
    DIFFERENT("scale", scale, 2);
    DIFFERENT("dropout", dropout, 0.2f);
    DIFFERENT("block_tokens", block_tokens, 50);
    DIFFERENT("blocks", blocks, 2);
    DIFFERENT("micro_steps", accumulate, 3);
    DIFFERENT("warmup", warmup, 1);
    DIFFERENT("seed", seed, 12);
    DIFFERENT("learning_rate 0.005, this trainer has 0.006", learning_rate, 6e-3);
    DIFFERENT("learning_rate 0.0050000000000000001, this trainer has 0.005000000000000001:", learning_rate,
              0x1.47ae147ae147cp-8);
    DIFFERENT("min_learning_rate", min_learning_rate, 1e-5);
    DIFFERENT("weight_decay", weight_decay, 0.02);
    DIFFERENT("max_norm", max_norm, 2);
    DIFFERENT("beta1", beta1, 0.8);
    DIFFERENT("beta2", beta2, 0.99);
    DIFFERENT("epsilon", epsilon, 1e-7);
    DIFFERENT("balance", balance, 0.1f);
    bitaxon_dataset *other = count_up(b.model, BITAXON_OBJECTIVE_SFT, 20, 9);
    DIFFERENT("data", data, other);
    bitaxon_dataset_free(other);
    /* Validation, threads, what is watched: none of it is part of the run. */
    b.params = same;
    b.params.validation = NULL;
    b.params.bad_steps = 2;
    trainer = again(&b, b.home);
    bitaxon_trainer_free(trainer);
    /* Another accuracy; other kernels, whose bits may differ, are a warning. */
    b.params = same;
    for (int kind = 0; kind < 2; kind++) {
        bitaxon_model_params mp = { .struct_size = sizeof mp, .path = QUANTISED, .threads = 1, .host = &fault.host,
                                    .accuracy = kind == 0 ? BITAXON_ACCURACY_NEAR : BITAXON_ACCURACY_EXACT,
                                    .cpu_mask = kind == 0 ? 0 : BITAXON_CPU_NONE };
        bitaxon_model *changed;
        OK(bitaxon_model_open(&mp, &changed, &error));
        trainer = make_trainer(changed, &b.params);
        bool differs = kind == 0 ? changed->core.accuracy != b.model->core.accuracy
                                 : changed->core.kernels.features != b.model->core.kernels.features;
        warnings = 0;
        bitaxon_status status = bitaxon_trainer_resume(trainer, b.home, &error);
        if (kind == 0 && differs) {
            EXPECT(MISMATCH, status);
            expect_message("accuracy");
        } else {
            OK(status);
            assert_true((warnings != 0 && strstr(last_warning, "kernels") != NULL) == differs);
        }
        bitaxon_trainer_free(trainer);
        bitaxon_model_free(changed);
    }
    /* Another model. */
    bitaxon_model *model = open_model(FLOAT_MODEL, 1, NULL);
    trainer = make_trainer(model, &b.params);
    EXPECT(MISMATCH, bitaxon_trainer_resume(trainer, b.home, &error));
    expect_message("model");
    bitaxon_trainer_free(trainer);
    bitaxon_model_free(model);
    bench_end(&b);
}

/* What is written does not depend on the host's locale, whose decimal point may be two bytes long (where it is
 * installed). */
static void test_locale(void **state)
{
    (void)state;
    bench b;
    char path[700];
    size_t size[2];
    unsigned char *bytes[2];
    locale_t locale = newlocale(LC_ALL_MASK, "ps_AF.UTF-8", (locale_t)0);
    if (locale == (locale_t)0)
        locale = newlocale(LC_ALL_MASK, "de_DE.UTF-8", (locale_t)0);
    if (locale == (locale_t)0) {
        print_message("SKIP locale: neither ps_AF.UTF-8 nor de_DE.UTF-8 is installed\n");
        skip();
    }
    bench_start(&b, BITAXON_TRAIN_DORA, BITAXON_OBJECTIVE_SFT, 8);
    b.params.scale = 1.75f;
    for (int kind = 0; kind < 2; kind++) {
        locale_t before = kind == 1 ? uselocale(locale) : (locale_t)0;
        bitaxon_trainer *trainer = kind == 0 ? make_trainer(b.model, &b.params) : again(&b, at_step(&b, 0));
        save(trainer, b.home, 0);
        bitaxon_trainer_free(trainer);
        if (kind == 1)
            uselocale(before);
        snprintf(path, sizeof path, "%s/manifest.json", at_step(&b, 0)); /* checksums of all others */
        bytes[kind] = read_whole(path, &size[kind]);
    }
    assert_int_equal(size[0], size[1]);
    assert_memory_equal(bytes[0], bytes[1], size[0]);
    free(bytes[0]);
    free(bytes[1]);
    freelocale(locale);
    bench_end(&b);
}

/* A byte of any file is changed, a file is cut, or missing. */
static void test_damage(void **state)
{
    (void)state;
    static const char *const files[] = { "adapters.safetensors", "optimizer_state.safetensors", "history.safetensors",
                                         "trainer_state.json", "manifest.json" };
    bench b;
    bench_start(&b, BITAXON_TRAIN_LORA, BITAXON_OBJECTIVE_SFT, 8);
    bitaxon_trainer *trainer = make_trainer(b.model, &b.params);
    steps(trainer, 2);
    save(trainer, b.home, 0);
    outcome earlier = outcome_of(trainer);
    steps(trainer, 2);
    save(trainer, b.home, 0);
    outcome later = outcome_of(trainer);
    bitaxon_trainer_free(trainer);
    trainer = make_trainer(b.model, &b.params);
    for (size_t f = 0; f < 5; f++)
        for (int kind = 0; kind < 4; kind++) {
            char path[700];
            size_t size;
            snprintf(path, sizeof path, "%s/%s", at_step(&b, 4), files[f]);
            unsigned char *bytes = read_whole(path, &size);
            unsigned char *copy = duplicate(bytes, size);
            copy[kind == 0 ? size / 2 : 3] ^= 0x10;
            if (kind < 2)
                write_whole(path, copy, size);
            else if (kind == 2)
                write_whole(path, bytes, size - size / 3 - 1);
            else
                assert_int_equal(unlink(path), 0);
            outcome was = outcome_of(trainer);
            bitaxon_status status = bitaxon_trainer_resume(trainer, at_step(&b, 4), &error);
            if (status != BITAXON_FORMAT && status != BITAXON_IO)
                fail_msg("%s, damage %d: %s", files[f], kind, bitaxon_status_name(status));
            check_outcome(trainer, &was);
            outcome_free(&was);
            warnings = 0;
            OK(bitaxon_trainer_resume(trainer, b.home, &error)); /* the one before it */
            assert_true(warnings != 0 && strstr(last_warning, "step_00000004") != NULL);
            check_outcome(trainer, &earlier);
            write_whole(path, bytes, size);
            free(bytes);
            free(copy);
        }
    OK(bitaxon_trainer_resume(trainer, b.home, &error));
    check_outcome(trainer, &later);
    /* A trainer that a failure left with nothing is helped by the one before a damaged one too. */
    assert_int_equal(truncate(in_folder(at_step(&b, 4), "history.safetensors"), 9), 0);
    trainer->core.broken = true;
    EXPECT(BAD_STATE, bitaxon_trainer_save(trainer, b.home, 0, &error));
    OK(bitaxon_trainer_resume(trainer, b.home, &error));
    check_outcome(trainer, &earlier);
    save(trainer, b.home, 0);
    outcome_free(&later);
    outcome_free(&earlier);
    bitaxon_trainer_free(trainer);
    bench_end(&b);
}

/* The step directories of the run are whole, and `step` is the newest. */
static void check_newest(bench *b, uint64_t newest)
{
    bitaxon_trainer *reader = again(b, b->home);
    assert_int_equal(reader->core.at.step, newest);
    bitaxon_trainer_free(reader);
}

static void test_failing_calls(void **state)
{
    (void)state;
    static const int errors[] = { ENOSPC, EIO };
    bench b;
    bench_start(&b, BITAXON_TRAIN_LORA, BITAXON_OBJECTIVE_SFT, 1000);
    bitaxon_trainer *trainer = make_trainer(b.model, &b.params);
    save(trainer, b.home, 2);
    uint64_t saved = 0, failed = 0;
    for (int e = 0; e < 2; e++)
        for (uint64_t n = 1, fired = 1; fired != 0; n++) {
            step(trainer);
            fired = 0;
            for (int same = 0; same < 2; same++) { /* a new step; one that is there already */
                uint64_t now = trainer->core.at.step;
                if (same == 1)
                    save(trainer, b.home, 2);
                calls = 0;
                fail_with = errors[e];
                fail_at = n;
                bitaxon_status status = bitaxon_trainer_save(trainer, b.home, 2, &error);
                fired += calls >= n;
                fail_at = 0;
                if (status != BITAXON_OK)
                    EXPECT(IO, status);
                failed += status != BITAXON_OK;
                /* A failure behind the rename leaves the new one in place. */
                assert_true(status != BITAXON_OK || exists(at_step(&b, (unsigned)now)));
                saved = same == 1 || exists(at_step(&b, (unsigned)now)) ? now : saved;
                check_newest(&b, saved);
            }
        }
    /* The same for the first save of all: the next one goes where it failed. */
    bool behind = false;
    for (uint64_t n = 1, fired = 1; fired != 0; n++) {
        bitaxon_trainer *fresh = make_trainer(b.model, &b.params);
        const char *name = in_folder(b.folder, "first");
        char home[600];
        snprintf(home, sizeof home, "%s%llu", name, (unsigned long long)n);
        calls = 0;
        fail_with = EIO;
        fail_at = n;
        bitaxon_status status = bitaxon_trainer_save(fresh, home, 2, &error);
        fired = calls >= n;
        fail_at = 0;
        failed += status != BITAXON_OK;
        behind |= status != BITAXON_OK && exists(in_folder(home, "step_00000000"));
        save(fresh, home, 2);
        step(fresh);
        save(fresh, home, 2);
        bitaxon_trainer_free(fresh);
    }
    assert_true(behind); /* one failed when the checkpoint was in place */
    print_message("%llu saves failed\n", (unsigned long long)failed);
    assert_true(failed > 40);
    bitaxon_trainer_free(trainer);
    bench_end(&b);
}

/* Files may not grow beyond a size, as on a full disk; a directory that may not be written; a file in its place. */
static void test_no_room(void **state)
{
    (void)state;
    bench b;
    struct rlimit was;
    bench_start(&b, BITAXON_TRAIN_LORA, BITAXON_OBJECTIVE_SFT, 8);
    bitaxon_trainer *trainer = make_trainer(b.model, &b.params);
    step(trainer);
    save(trainer, b.home, 0);
    step(trainer);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    for (rlim_t room = 0; room < 4096; room += 777) {
        struct rlimit limit = { room, was.rlim_max };
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        bitaxon_status status = bitaxon_trainer_save(trainer, b.home, 0, &error);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
        EXPECT(IO, status);
        check_newest(&b, 1);
    }
    signal(SIGXFSZ, handler);
    if (geteuid() == 0) {
        print_message("SKIP a directory that may not be written: root may\n");
    } else {
        assert_int_equal(chmod(b.home, 0500), 0);
        EXPECT(IO, bitaxon_trainer_save(trainer, b.home, 0, &error));
        assert_int_equal(chmod(b.home, 0700), 0);
    }
    if (exists("/proc/self"))
        EXPECT(IO, bitaxon_trainer_save(trainer, "/proc/run", 0, &error)); /* not even root may */
    write_whole(in_folder(b.folder, "file"), "x", 1);
    EXPECT(IO, bitaxon_trainer_save(trainer, in_folder(b.folder, "file"), 0, &error));
    EXPECT(IO, bitaxon_trainer_save(trainer, in_folder(b.folder, "file/run"), 0, &error));
    EXPECT(IO, bitaxon_trainer_resume(trainer, in_folder(b.folder, "file"), &error));
    EXPECT(IO, bitaxon_trainer_resume(trainer, b.folder, &error)); /* nothing there */
    expect_message("no checkpoint");
    save(trainer, b.home, 0);
    check_newest(&b, 2);
    char longer[5000];
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    assert_true(bitaxon_trainer_save(trainer, longer, 0, &error) < 0);
    bitaxon_trainer_free(trainer);
    bench_end(&b);
}

/* Every allocation of a save and of a resume refused once. */
static void test_out_of_memory(void **state)
{
    (void)state;
    bench b;
    bench_start(&b, BITAXON_TRAIN_DORA, BITAXON_OBJECTIVE_SFT, 8);
    bitaxon_trainer *trainer = make_trainer(b.model, &b.params);
    steps(trainer, 2);
    outcome want = outcome_of(trainer);
    trainer->core.stale = true; /* gains that lacked memory: a checkpoint does without */
    save(trainer, b.home, 0);
    assert_true(trainer->core.stale);
    for (uint64_t n = 1;; n++) {
        fault_host_arm(&fault, n, false);
        bitaxon_status status = bitaxon_trainer_save(trainer, b.home, 0, &error);
        bool fired = atomic_load(&fault.refused) != 0;
        fault_host_disarm(&fault);
        if (status != BITAXON_OK)
            EXPECT(OUT_OF_MEMORY, status);
        check_outcome(trainer, &want);
        if (!fired)
            break;
    }
    for (uint64_t n = 1;; n++) {
        bitaxon_trainer *other = make_trainer(b.model, &b.params);
        outcome was = outcome_of(other);
        fault_host_arm(&fault, n, false);
        bitaxon_status status = bitaxon_trainer_resume(other, b.home, &error);
        bool fired = atomic_load(&fault.refused) != 0;
        fault_host_disarm(&fault);
        if (status != BITAXON_OK)
            EXPECT(OUT_OF_MEMORY, status);
        check_outcome(other, status == BITAXON_OK ? &want : &was);
        outcome_free(&was);
        bitaxon_trainer_free(other);
        if (!fired)
            break;
    }
    bitaxon_trainer_free(trainer);
    outcome_free(&want);
    bench_end(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume),        cmocka_unit_test(test_which_stay), cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_other_names),  cmocka_unit_test(test_locale),
        cmocka_unit_test(test_damage),        cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_no_room),       cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
