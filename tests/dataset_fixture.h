/* SPDX-License-Identifier: Apache-2.0 */
/* dataset_fixture.h - what the tests of data sets share: memory that counts, the small tokenizer, a folder of files,
 * and opening with less to write. */
#ifndef DATASET_FIXTURE_H
#define DATASET_FIXTURE_H

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fault_files.h"
#include "fault_host.h"
#include "tokenizer_fixture.h"
#include "train/dataset_parts.h"

static fault_host fault;
static bxn_mem mem;
static bxn_tokenizer *tokenizer;
static char *folder;
static bitaxon_error error;

static UNUSED_OK bxn_tokenizer *load_tokenizer(const char *path)
{
    bxn_tokenizer *t = NULL;
    text json = need_file(path);
    assert_int_equal(bxn_tokenizer_create(&mem, "test", json.data, json.bytes, NULL, 0, NULL, 0, &t, &error),
                     BITAXON_OK);
    free(json.data);
    return t;
}

static UNUSED_OK int begin(void **state)
{
    (void)state;
    fault_host_init(&fault);
    error = (bitaxon_error)BITAXON_ERROR_INIT;
    assert_int_equal(bxn_mem_init(&mem, &fault.host, 0, &error), BITAXON_OK);
    tokenizer = load_tokenizer(SMALL "tokenizer.json");
    folder = make_folder();
    return 0;
}

static UNUSED_OK int end(void **state)
{
    (void)state;
    bxn_tokenizer_free(tokenizer);
    remove_folder(folder);
    assert_string_equal(fault_host_balance(&fault), "");
    assert_int_equal(mem.used, 0);
    return 0;
}

static UNUSED_OK const char *write_file(const char *name, const char *content, size_t bytes)
{
    const char *path = in_folder(folder, name);
    write_whole(path, content, bytes);
    return path;
}

typedef struct options {
    bxn_objective objective;
    bxn_mask mask;
    uint32_t max_tokens;
    bool strict;
} options;

static UNUSED_OK bitaxon_status try_open(const char *path, options o, bxn_dataset **out)
{
    const bxn_dataset_params params = {.path = path,
                                       .objective = o.objective != 0 ? o.objective : BXN_OBJECTIVE_SFT,
                                       .mask = o.mask != 0 ? o.mask : BXN_MASK_CONTENT,
                                       .max_tokens = o.max_tokens != 0 ? o.max_tokens : 512,
                                       .strict = o.strict};
    error = (bitaxon_error)BITAXON_ERROR_INIT;
    return bxn_dataset_open(&mem, tokenizer, &params, NULL, out, &error);
}

static UNUSED_OK bxn_dataset *open_text(const char *name, const char *content, options o)
{
    bxn_dataset *d = NULL;
    if (try_open(write_file(name, content, strlen(content)), o, &d) != BITAXON_OK)
        fail_msg("%s: %s", content, error.message);
    return d;
}

/* The status of opening, which must be a failure whose message has this in it. */
static UNUSED_OK void fails(const char *name, const char *content, size_t bytes, options o, bitaxon_status want,
                            const char *part)
{
    bxn_dataset *d = NULL;
    bitaxon_status status = try_open(write_file(name, content, bytes), o, &d);
    if (status != want || strstr(error.message, part) == NULL)
        fail_msg("%.80s: status %d, \"%s\", wanted %d, \"%s\"", content, (int)status, error.message, (int)want, part);
    assert_null(d);
    assert_true(strstr(error.message, name) != NULL); /* the file is named */
}

static UNUSED_OK bxn_dataset_facts facts_of(const bxn_dataset *d)
{
    bxn_dataset_facts facts;
    bxn_dataset_facts_get(d, &facts);
    return facts;
}

#define G "{\"text\":\"good text\"}"

#endif
