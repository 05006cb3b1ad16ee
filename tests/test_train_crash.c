/* SPDX-License-Identifier: Apache-2.0 */
/* test_train_crash.c - runs of 200 updates that are killed (SIGKILL) at random moments, 100 times in all, each time
 * gone on with by a new process with another number of threads, from the newest checkpoint that was in place or a later
 * one: the file at the end, of the adapter or the model, has the bytes of a run that was never killed.
 * The processes are this program again. */
#include "trainer_fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
enum { KILLS = 24 }; /* what a kill leaves does not depend on the sanitizer, and each start takes a while */
#else
enum { KILLS = 100 };
#endif
enum { UPDATES = 200, KINDS = 3 };

static const struct kind {
    const char *name, *model, *result;
    int32_t method, objective, optimizer;
    uint32_t accumulate;
} kinds[KINDS] = {
    { "DoRA on 4 bits, two micro-steps", QUANTISED, "adapter.safetensors", BITAXON_TRAIN_DORA, BITAXON_OBJECTIVE_SFT,
      0, 2 },
    { "LoRA on pairs", QUANTISED, "adapter.safetensors", BITAXON_TRAIN_LORA, BITAXON_OBJECTIVE_ORPO, 0, 1 },
    { "all parameters, Muon", FLOAT_MODEL, "model/model.safetensors", BITAXON_TRAIN_FULL, BITAXON_OBJECTIVE_SFT,
      BITAXON_OPTIMIZER_MUON, 1 },
};

/* The run in a process of its own: goes on from what is in `folder`, which has a checkpoint of update `newest` (-1: may
 * have none), and writes the result when it is done. */
static int train(const char *folder, long newest, const struct kind *kind, uint32_t threads)
{
    char home[600], last[600];
    snprintf(home, sizeof home, "%s/run", folder);
    bool full = kind->method == BITAXON_TRAIN_FULL;
    snprintf(last, sizeof last, full ? "%s/model" : "%s/adapter.safetensors", folder);
    bitaxon_model *model = open_model(kind->model, threads, NULL);
    bitaxon_dataset *data = count_up(model, kind->objective, 20, 1);
    bitaxon_trainer_params p = small_run(data, kind->method, UPDATES);
    p.targets = full ? NULL : "q_proj,in_proj";
    p.optimizer = kind->optimizer;
    p.block_tokens = 24;
    p.accumulate = kind->accumulate;
    bitaxon_trainer *trainer = make_trainer(model, &p);
    bitaxon_status status = bitaxon_trainer_resume(trainer, home, &error);
    if (status != BITAXON_OK && newest < 0)
        EXPECT(IO, status); /* nothing there yet */
    else
        OK(status);
    if ((long)trainer->core.at.step < newest)
        fail_msg("resumed at update %llu, there was a checkpoint of %ld", (unsigned long long)trainer->core.at.step,
                 newest);
    while ((status = bitaxon_trainer_step(trainer, NULL, &error)) == BITAXON_OK)
        for (uint64_t every = 7; every <= 14; every += 7) /* some twice, over themselves */
            if (trainer->core.at.step % every == 0)
                OK(bitaxon_trainer_save(trainer, home, 2, &error));
    EXPECT(END, status);
    bitaxon_adapter *adapter = NULL;
    if (full) { /* which makes a new directory: what a kill left of one goes */
        remove_folder(strdup(last));
        OK(bitaxon_trainer_write_model(trainer, last, &error));
    } else {
        OK(bitaxon_trainer_adapter(trainer, &adapter, &error));
        OK(bitaxon_adapter_save(adapter, last, &error));
    }
    bitaxon_adapter_free(adapter);
    bitaxon_trainer_free(trainer);
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
    return 0;
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

/* The update of the newest whole checkpoint, in place or moved aside, -1: none. Its name says that all of it is on the
 * disk; the manifest is looked for all the same. */
static long newest_in(const char *folder)
{
    char home[600], manifest[1200];
    long newest = -1;
    snprintf(home, sizeof home, "%s/run", folder);
    DIR *directory = opendir(home);
    for (const struct dirent *e; directory != NULL && (e = readdir(directory)) != NULL;) {
        char *end;
        if (strncmp(e->d_name, "step_", 5) != 0)
            continue;
        long number = strtol(e->d_name + 5, &end, 10);
        snprintf(manifest, sizeof manifest, "%s/%s/manifest.json", home, e->d_name);
        if ((*end == '\0' || strcmp(end, ".old") == 0) && access(manifest, R_OK) == 0 && number > newest)
            newest = number;
    }
    if (directory != NULL)
        closedir(directory);
    return newest;
}

static pid_t start(const char *folder, uint64_t kind, uint64_t threads)
{
    char newest[24], of[24], by[24];
    snprintf(newest, sizeof newest, "%ld", newest_in(folder));
    snprintf(of, sizeof of, "%llu", (unsigned long long)kind);
    snprintf(by, sizeof by, "%llu", (unsigned long long)threads);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        execl("/proc/self/exe", "test_train_crash", "train", folder, newest, of, by, (char *)NULL);
        _exit(127);
    }
    return child;
}

/* True when it ended by itself within the time (0: any); else it was killed. */
static bool run_for(const char *folder, uint64_t us, uint64_t kind, uint64_t threads)
{
    pid_t child = start(folder, kind, threads);
    int state;
    for (uint64_t began = now_us(); us == 0 || now_us() - began < us;) {
        pid_t ended = waitpid(child, &state, us == 0 ? 0 : WNOHANG);
        if (ended == child) {
            if (!WIFEXITED(state) || WEXITSTATUS(state) != 0)
                fail_msg("a run ended with %d", state);
            return true;
        }
        struct timespec nap = { 0, 200000 };
        nanosleep(&nap, NULL);
    }
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &state, 0), child);
    return WIFEXITED(state) && WEXITSTATUS(state) == 0;
}

static void test_kills(void **state)
{
    (void)state;
    if (access("/proc/self/exe", X_OK) != 0) {
        print_message("SKIP kills: /proc is not mounted\n");
        skip();
    }
    uint64_t whole[KINDS], kills = 0, runs = 0, found = 0;
    size_t size[KINDS];
    unsigned char *want[KINDS];
    for (uint64_t k = 0; k < KINDS; k++) {
        char *folder = make_folder();
        uint64_t began = now_us();
        assert_true(run_for(folder, 0, k, 1));
        whole[k] = now_us() - began;
        assert_int_equal(newest_in(folder), UPDATES / 7 * 7);
        want[k] = read_whole(in_folder(folder, kinds[k].result), &size[k]);
        remove_folder(folder);
    }
    for (; kills < KILLS || runs < KINDS; runs++) {
        const uint64_t k = runs % KINDS;
        char *folder = make_folder();
        bool done = false;
        for (uint64_t n = 0; !done; n++) {
            uint64_t most = whole[k] / 12 + n % 8 * (whole[k] / 24); /* so that some get far on any machine */
            uint64_t us = kills >= KILLS ? 0 : (uint64_t)(bxn_uniform(8, runs, n) * (double)most) + 1;
            done = run_for(folder, us, k, (uint64_t)1 << n % 3);
            kills += !done;
            found += !done && newest_in(folder) >= 0;
        }
        size_t bytes;
        unsigned char *got = read_whole(in_folder(folder, kinds[k].result), &bytes);
        assert_int_equal(bytes, size[k]);
        if (memcmp(got, want[k], bytes) != 0)
            fail_msg("%s: other bytes than a run that was never killed", kinds[k].name);
        free(got);
        remove_folder(folder);
    }
    assert_true(found > 0);
    print_message("%llu kills (%llu with a checkpoint in place) in %llu runs of %d updates, the same bytes each time\n",
                  (unsigned long long)kills, (unsigned long long)found, (unsigned long long)runs, UPDATES);
    for (uint64_t k = 0; k < KINDS; k++)
        free(want[k]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_kills) };
    if (argc == 6 && strcmp(argv[1], "train") == 0)
        return train(argv[2], atol(argv[3]), &kinds[atoi(argv[4])], (uint32_t)atoi(argv[5]));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
