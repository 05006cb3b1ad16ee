/* SPDX-License-Identifier: Apache-2.0 */
/* test_train_thermal.c - training under a thermal policy with a scripted sensor and a clock that only moves
 * with work and sleep: pauses, stops within and between updates, rest of one thread, energy; and
 * that none of it shows in a bit of what was trained. */
#include "trainer_fixture.h"

#define MS 1000000u

typedef struct machine {
    uint64_t now, slept;
    int32_t mc;              /* temperature that the next readings give */
    int32_t cooled;          /* and after a sleep; 0: no change */
    uint64_t energy, sleeps, cancel_at;
    bitaxon_trainer *trainer;
} machine;

static uint64_t fake_now(void *user)
{
    return ((machine *)user)->now;
}

/* The host's executor: a region of work takes a millisecond. */
static int32_t fake_work(void *user, uint32_t count, void (*task)(void *context, uint32_t index), void *context)
{
    ((machine *)user)->now += MS;
    for (uint32_t i = 0; i < count; i++)
        task(context, i);
    return 0;
}

static void fake_sleep(void *user, uint64_t ns)
{
    machine *m = user;
    m->now += ns;
    m->slept += ns;
    if (++m->sleeps == m->cancel_at)
        bitaxon_trainer_cancel(m->trainer);
    if (m->cooled != 0)
        m->mc = m->cooled;
}

static int32_t fake_read(void *user, bitaxon_reading *out)
{
    machine *m = user;
    out->known = BITAXON_READ_TEMPERATURE | BITAXON_READ_ENERGY;
    out->temperature_mc = m->mc;
    out->energy_uj = m->energy += 500;
    return 0;
}

typedef struct bench {
    machine m;
    bitaxon_host host;
    bitaxon_thermal *thermal;
    bitaxon_model *model;
    bitaxon_dataset *data;
} bench;

static void bench_start(bench *b, bool own_threads, const bitaxon_thermal_params *changes)
{
    memset(b, 0, sizeof *b);
    b->m.mc = 50000;
    b->m.now = 1000u * MS;
    b->host = (bitaxon_host){ .struct_size = sizeof b->host, .user = &b->m, .now_ns = fake_now };
    bitaxon_thermal_params p = *changes;
    p.struct_size = sizeof p;
    p.host = &b->host;
    p.read = fake_read;
    p.sleep_ns = fake_sleep;
    p.user = &b->m;
    p.sample_ms = 10;
    p.dwell_ms = 20;
    OK(bitaxon_thermal_create(&p, &b->thermal, &error));
    if (!own_threads)
        b->host.parallel_for = fake_work;
    b->model = open_model(QUANTISED, 2, &b->host);
    b->data = count_up(b->model, BITAXON_OBJECTIVE_SFT, 30, 1);
}

static void bench_end(bench *b)
{
    bitaxon_dataset_free(b->data);
    bitaxon_model_free(b->model);
    bitaxon_thermal_free(b->thermal);
}

static bitaxon_trainer *bench_trainer(bench *b, bool policed)
{
    bitaxon_trainer_params p = small_run(b->data, BITAXON_TRAIN_DORA, 8);
    p.thermal = policed ? b->thermal : NULL;
    return b->m.trainer = make_trainer(b->model, &p);
}

static const bitaxon_thermal_params plain;

static void test_cool(void **state)
{
    (void)state;
    bench b;
    bench_start(&b, false, &plain);
    bitaxon_trainer *trainer = bench_trainer(&b, false);
    steps(trainer, 8);
    outcome want = outcome_of(trainer);
    bitaxon_trainer_free(trainer);
    trainer = bench_trainer(&b, true);
    for (int u = 0; u < 8; u++) {
        bitaxon_train_result r = step(trainer);
        assert_true(r.energy_uj > 0 && r.step_ns > 0 && r.paused_ns == 0);
    }
    assert_true(b.m.slept == 0);
    check_outcome(trainer, &want);
    bitaxon_trainer_free(trainer);
    outcome_free(&want);
    bench_end(&b);
}

/* HOT: waits until it is cool. Cancel is heard while it waits. */
static void test_pause(void **state)
{
    (void)state;
    bench b;
    bench_start(&b, false, &plain);
    bitaxon_trainer *trainer = bench_trainer(&b, false);
    steps(trainer, 8);
    outcome want = outcome_of(trainer);
    bitaxon_trainer_free(trainer);
    trainer = bench_trainer(&b, true);
    steps(trainer, 2);
    b.m.mc = 87000;
    b.m.cooled = 78000;
    uint64_t before = b.m.slept;
    bitaxon_train_result r = step(trainer);
    assert_true(b.m.slept > before && r.paused_ns >= b.m.slept - before && r.paused_ns < r.step_ns);
    b.m.mc = 87000;
    b.m.cooled = 0;
    b.m.cancel_at = b.m.sleeps + 3;
    EXPECT(CANCELLED, bitaxon_trainer_step(trainer, &r, &error));
    assert_true(b.m.sleeps == b.m.cancel_at);
    b.m.mc = 50000;
    steps(trainer, 5);
    check_outcome(trainer, &want);
    bitaxon_trainer_free(trainer);
    outcome_free(&want);
    bench_end(&b);
}

/* CRITICAL at every place where the policy is asked: the run stops, is saved, goes on later in another trainer, and
 * ends with the same bits. */
static void test_stop(void **state)
{
    (void)state;
    bench b;
    bench_start(&b, false, &plain);
    bitaxon_trainer *trainer = bench_trainer(&b, false);
    steps(trainer, 8);
    outcome want = outcome_of(trainer);
    bitaxon_trainer_free(trainer);
    char *folder = make_folder();
    trainer = bench_trainer(&b, true);
    uint64_t stops = 0, calls = 0;
    while (trainer->core.at.step < 8) {
        b.m.mc = calls++ % 3 == 1 ? 96000 : 50000;
        b.m.now += 5000u * (uint64_t)MS; /* time to cool between calls */
        bitaxon_status status = bitaxon_trainer_step(trainer, NULL, &error);
        if (status == BITAXON_OK)
            continue;
        EXPECT(THERMAL_STOP, status);
        stops++;
        OK(bitaxon_trainer_save(trainer, in_folder(folder, "run"), 2, &error));
        bitaxon_trainer_free(trainer);
        b.m.mc = 50000;
        b.m.now += 5000u * (uint64_t)MS;
        trainer = bench_trainer(&b, true);
        OK(bitaxon_trainer_resume(trainer, in_folder(folder, "run"), &error));
    }
    assert_true(stops >= 3);
    check_outcome(trainer, &want);
    bitaxon_trainer_free(trainer);
    outcome_free(&want);
    remove_folder(folder);
    bench_end(&b);
}

/* Becomes critical while a micro-step is computed: the gate before the next one stops the update. */
static int32_t heat_up(void *user, const bitaxon_progress *progress)
{
    machine *m = user;
    if (progress->done == 1)
        m->mc = 99000;
    return 0;
}

static void test_stop_within(void **state)
{
    (void)state;
    bench b;
    bench_start(&b, false, &plain);
    bitaxon_trainer *trainer = bench_trainer(&b, false);
    steps(trainer, 8);
    outcome want = outcome_of(trainer);
    bitaxon_trainer_free(trainer);
    bitaxon_trainer_params p = small_run(b.data, BITAXON_TRAIN_DORA, 8);
    p.thermal = b.thermal;
    p.progress = heat_up;
    p.progress_user = &b.m;
    trainer = make_trainer(b.model, &p);
    for (int n = 0; n < 4; n++) {
        b.m.mc = 50000;
        b.m.now += 5000u * (uint64_t)MS;
        EXPECT(THERMAL_STOP, bitaxon_trainer_step(trainer, NULL, &error));
        expect_message("99");
        assert_int_equal(trainer->core.at.step, 0);
    }
    trainer->core.progress.fn = NULL;
    b.m.mc = 50000;
    b.m.now += 5000u * (uint64_t)MS;
    steps(trainer, 8);
    check_outcome(trainer, &want);
    bitaxon_trainer_free(trainer);
    outcome_free(&want);
    bench_end(&b);
}

/* WARM: threads of ours are halved and do not rest; those of the host cannot be, and rest as long as they worked. */
static void test_warm(void **state)
{
    (void)state;
    for (int own_threads = 0; own_threads < 2; own_threads++) {
        bench b;
        bench_start(&b, own_threads != 0, &plain);
        bitaxon_trainer *trainer = bench_trainer(&b, false);
        steps(trainer, 8);
        outcome want = outcome_of(trainer);
        bitaxon_trainer_free(trainer);
        trainer = bench_trainer(&b, true);
        b.m.mc = 77000;
        b.m.now += 1000u * (uint64_t)MS;
        uint64_t began = b.m.now;
        for (int u = 0; u < 8; u++)
            step(trainer);
        double share = (double)b.m.slept / ((double)(b.m.now - began) + 1);
        print_message("warm, %s threads: rested %.2f\n", own_threads ? "own" : "the host's", share);
        assert_true(own_threads ? b.m.slept == 0 : share > 0.4 && share < 0.5);
        check_outcome(trainer, &want);
        bitaxon_trainer_free(trainer);
        outcome_free(&want);
        bench_end(&b);
    }
}

/* Graded, at 82.5 C: 45 percent are rested, whosever the threads are; no bit shows it. */
static void test_graded(void **state)
{
    (void)state;
    bench b;
    bench_start(&b, false, &(bitaxon_thermal_params){ .flags = BITAXON_THERMAL_GRADED });
    bitaxon_trainer *trainer = bench_trainer(&b, false);
    steps(trainer, 8);
    outcome want = outcome_of(trainer);
    bitaxon_trainer_free(trainer);
    trainer = bench_trainer(&b, true);
    b.m.mc = 82500;
    b.m.now += 1000u * (uint64_t)MS;
    uint64_t began = b.m.now;
    for (int u = 0; u < 8; u++)
        step(trainer);
    double share = (double)b.m.slept / (double)(b.m.now - began);
    print_message("graded at 82.5 C: rested %.2f\n", share);
    assert_true(share > 0.40 && share < 0.47);
    check_outcome(trainer, &want);
    bitaxon_trainer_free(trainer);
    outcome_free(&want);
    bench_end(&b);
}

/* Half of the time is rested at 50 percent, and what the host does between steps is not work. */
static void test_duty(void **state)
{
    (void)state;
    bench b;
    bench_start(&b, false, &(bitaxon_thermal_params){ .duty_percent = 50 });
    bitaxon_trainer *trainer = bench_trainer(&b, true);
    uint64_t began = b.m.now, away = 0;
    for (int u = 0; u < 8; u++) {
        step(trainer);
        b.m.now += 3000u * (uint64_t)MS; /* the host draws a picture */
        away += 3000u * (uint64_t)MS;
    }
    double share = (double)b.m.slept / (double)(b.m.now - began - away);
    print_message("rested %.2f of the time of steps\n", share);
    assert_true(share > 0.4 && share < 0.55);
    bitaxon_trainer_free(trainer);
    bench_end(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cool),        cmocka_unit_test(test_pause), cmocka_unit_test(test_stop),
        cmocka_unit_test(test_stop_within), cmocka_unit_test(test_warm),  cmocka_unit_test(test_duty),
        cmocka_unit_test(test_graded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
