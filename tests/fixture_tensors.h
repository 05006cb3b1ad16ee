/* SPDX-License-Identifier: Apache-2.0 */
/* fixture_tensors.h - the least reader of a trusted safetensors file, for tests that must
 * not lean on the library's own reader. Fails the test on anything unexpected. */
#ifndef FIXTURE_TENSORS_H
#define FIXTURE_TENSORS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

typedef struct fixture {
    unsigned char *bytes;
    json_t *header;
    const unsigned char *data;
} fixture;

static inline void fixture_open(fixture *f, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    f->bytes = malloc((size_t)size);
    assert_non_null(f->bytes);
    assert_int_equal(fread(f->bytes, 1, (size_t)size, file), size);
    fclose(file);
    uint64_t length;
    memcpy(&length, f->bytes, 8);
    assert_true(length < (uint64_t)size);
    f->header = json_loadb((const char *)f->bytes + 8, (size_t)length, 0, NULL);
    assert_non_null(f->header);
    f->data = f->bytes + 8 + length;
}

static inline void fixture_close(fixture *f)
{
    json_decref(f->header);
    free(f->bytes);
}

static inline int fixture_has(const fixture *f, const char *name)
{
    return json_object_get(f->header, name) != NULL;
}

/* The bytes of a tensor; *count its elements, dtype checked when not NULL. */
static inline const void *fixture_get(const fixture *f, const char *name, const char *dtype,
                                      size_t *count)
{
    json_t *item = json_object_get(f->header, name);
    if (item == NULL)
        fail_msg("no tensor %s", name);
    if (dtype != NULL)
        assert_string_equal(json_string_value(json_object_get(item, "dtype")), dtype);
    if (count != NULL) {
        *count = 1;
        size_t i;
        json_t *dim;
        json_array_foreach(json_object_get(item, "shape"), i, dim) *count *=
            (size_t)json_integer_value(dim);
    }
    json_t *offsets = json_object_get(item, "data_offsets");
    return f->data + json_integer_value(json_array_get(offsets, 0));
}

#endif
