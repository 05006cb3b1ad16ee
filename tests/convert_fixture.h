/* SPDX-License-Identifier: Apache-2.0 */
/* convert_fixture.h - what the tests of conversions share: scratch directories, checks of a
 * call's outcome, a small configuration, reports. */
#ifndef CONVERT_FIXTURE_H
#define CONVERT_FIXTURE_H

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "convert/bxn_convert.h"

#define FP32 "tests/golden/tiny-fp32"
#define Q4 "tests/golden/tiny-q4"

static char scratch[64];
static unsigned made;

/* A path that does not exist yet. */
static inline const char *fresh(void)
{
    static char path[32][96];
    char *p = path[made % 32];
    snprintf(p, sizeof path[0], "%s/d%u", scratch, made++);
    return p;
}

static inline void join(char out[512], const char *directory, const char *name)
{
    assert_true(snprintf(out, 512, "%s/%s", directory, name) < 512);
}

/* Files in a directory, or -1 when there is none. */
static inline int count_files(const char *directory)
{
    DIR *d = opendir(directory);
    int count = 0;
    if (d == NULL)
        return -1;
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        count += e->d_name[0] != '.';
    closedir(d);
    return count;
}

static inline void remove_tree(const char *directory)
{
    DIR *d = opendir(directory);
    char path[512];
    if (d == NULL)
        return;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        join(path, directory, e->d_name);
        if (unlink(path) != 0)
            remove_tree(path);
    }
    closedir(d);
    rmdir(directory);
}

static inline void write_file(const char *directory, const char *name, const void *data,
                              size_t bytes)
{
    char path[512];
    join(path, directory, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static inline unsigned char *read_all(const char *directory, const char *name, size_t *bytes)
{
    char path[512];
    join(path, directory, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *bytes = (size_t)ftell(f);
    rewind(f);
    unsigned char *data = malloc(*bytes + 1);
    assert_int_equal(fread(data, 1, *bytes, f), *bytes);
    data[*bytes] = 0;
    fclose(f);
    return data;
}

static inline bitaxon_convert_params params_of(const char *input, const char *output)
{
    return (bitaxon_convert_params){
        .struct_size = sizeof(bitaxon_convert_params), .input = input, .output = output};
}

#define check_ok(call)                                                                             \
    do {                                                                                           \
        bitaxon_error error = BITAXON_ERROR_INIT;                                                  \
        bitaxon_status status_ = (call);                                                           \
        if (status_ != BITAXON_OK)                                                                 \
            fail_msg("%s: %d %s", #call, (int)status_, error.message);                             \
    } while (0)

#define check_fails(call, expected, part)                                                          \
    do {                                                                                           \
        bitaxon_error error = BITAXON_ERROR_INIT;                                                  \
        bitaxon_status status_ = (call);                                                           \
        if (status_ != (expected) || error.code != (expected) ||                                   \
            strstr(error.message, part) == NULL)                                                   \
            fail_msg("%s: %d '%s', expected %d and '%s'", #call, (int)status_, error.message,      \
                     (int)(expected), part);                                                       \
    } while (0)

/* An opened model directory. */
typedef struct opened {
    bxn_mem mem;
    bxn_bundle *bundle;
    bxn_tensors *tensors;
} opened;

static inline void open_files(opened *o, const char *path)
{
    check_ok(bxn_mem_init(&o->mem, NULL, 0, &error));
    check_ok(bxn_bundle_open(&o->mem, path, NULL, 0, 0, &o->bundle, &error));
    check_ok(bxn_tensors_open(o->bundle, &o->tensors, &error));
}

static inline void close_files(opened *o)
{
    bxn_tensors_free(o->tensors);
    bxn_bundle_free(o->bundle);
    assert_int_equal(o->mem.used, 0);
}

static inline const bxn_tensor *must_find(const opened *o, const char *name)
{
    const bxn_tensor *t = bxn_tensors_find(o->tensors, name);
    if (t == NULL)
        fail_msg("no tensor %s", name);
    return t;
}

static inline const void *bytes_of(const opened *o, const char *name)
{
    const void *p = bxn_tensor_map(o->tensors, must_find(o, name));
    assert_non_null(p);
    return p;
}

/* D, S and E with whole groups; odd in what may be odd. */
static const char tiny_config[] =
    "{\"vocab_size\": 77, \"hidden_dim\": 64, \"num_layers\": 4, \"num_heads\": 2, "
    "\"d_source_model\": 128, \"ssm_d_state\": 3, \"ssm_d_conv\": 3, \"ssm_expand\": 2, "
    "\"swa_window_size\": 16, \"moe_num_experts\": 3, \"moe_top_k\": 2, "
    "\"moe_intermediate_dim\": 192, \"rms_norm_eps\": 1e-5}";

static inline void make_new(const char *output, const char *format, uint64_t seed)
{
    bitaxon_convert_params p = params_of(NULL, output);
    p.config_json = tiny_config;
    p.format = format;
    p.seed = seed;
    check_ok(bitaxon_model_new(&p, &error));
}

typedef struct reports {
    int count, changed;
    double worst_rms;
    uint64_t before, after;
    int cancel_at;
    char first_format[64];
} reports;

static int32_t note(void *user, const bitaxon_tensor_report *t)
{
    reports *r = user;
    assert_int_equal(t->struct_size, sizeof *t);
    assert_true(t->changed || t->bytes_before == t->bytes_after);
    assert_true(t->changed || (t->relative_rms == 0 && t->max_error == 0));
    r->count++;
    r->changed += t->changed != 0;
    r->worst_rms = fmax(r->worst_rms, t->relative_rms);
    r->before += t->bytes_before;
    r->after += t->bytes_after;
    if (t->changed && r->first_format[0] == '\0')
        snprintf(r->first_format, sizeof r->first_format, "%s", t->format);
    return r->count == r->cancel_at;
}

static inline int setup(void **state)
{
    (void)state;
    snprintf(scratch, sizeof scratch, "/tmp/bitaxon-test-convert-XXXXXX");
    return mkdtemp(scratch) == NULL;
}

static inline int teardown(void **state)
{
    (void)state;
    bool empty = count_files(scratch) == 0;
    remove_tree(scratch);
    return empty ? 0 : -1; /* every test tidies up, or something was left behind */
}

#endif
