/* SPDX-License-Identifier: Apache-2.0 */
/* load_steps.c - the normalizer, pre-tokenizer, post-processor and decoder of tokenizer.json.
 *
 * Called by bpe_load.c. A part that is not known, or a key that is not known of a known part,
 * is refused by name: leaving it out would change ids silently. */
#include "tokenizer/bpe.h"

#include <string.h>

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

bitaxon_status bxn_load_check_keys(bxn_loader *l, json_t *node, const char *what,
                                   const char *const *keys)
{
    const char *key;
    json_t *value;
    if (!json_is_object(node))
        return bxn_fail(l->error, BITAXON_FORMAT, "%.80s: tokenizer.json: %s is not an object",
                        l->where, what);
    json_object_foreach(node, key, value)
    {
        size_t i = 0;
        while (keys[i] != NULL && strcmp(keys[i], key) != 0)
            i++;
        if (keys[i] == NULL)
            return bxn_fail(l->error, BITAXON_UNSUPPORTED,
                            "%.80s: tokenizer.json: %s: unknown key \"%.60s\"", l->where, what,
                            key);
    }
    return BITAXON_OK;
}

bitaxon_status bxn_load_flag(bxn_loader *l, json_t *node, const char *what, const char *key,
                             bool *value)
{
    json_t *flag = json_object_get(node, key);
    if (flag == NULL)
        return BITAXON_OK;
    if (!json_is_boolean(flag))
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: tokenizer.json: %s: \"%s\" is not true or false", l->where, what,
                        key);
    *value = json_is_true(flag);
    return BITAXON_OK;
}

/* The "type" of a part; NULL after a failure. */
static const char *type_of(bxn_loader *l, json_t *node, const char *what, bitaxon_status *status)
{
    const char *type = json_string_value(json_object_get(node, "type"));
    *status = BITAXON_OK;
    if (type == NULL)
        *status =
            bxn_fail(l->error, BITAXON_FORMAT,
                     "%.80s: tokenizer.json: %s is not an object with a \"type\"", l->where, what);
    return type;
}

static bitaxon_status unknown_type(bxn_loader *l, const char *what, const char *type)
{
    return bxn_fail(l->error, BITAXON_UNSUPPORTED,
                    "%.80s: tokenizer.json: %s \"%.60s\" is not supported", l->where, what, type);
}

/* Each part of a Sequence through load. */
static bitaxon_status load_sequence(bxn_loader *l, json_t *node, const char *what, const char *list,
                                    bitaxon_status (*load)(bxn_loader *l, json_t *node))
{
    const char *keys[] = {"type", list, NULL};
    json_t *parts = json_object_get(node, list), *part;
    size_t i;
    bitaxon_status status = bxn_load_check_keys(l, node, what, keys);
    if (status != BITAXON_OK)
        return status;
    if (!json_is_array(parts))
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: tokenizer.json: %s: \"%s\" is not an array", l->where, what, list);
    json_array_foreach(parts, i, part)
    {
        if (json_is_null(part))
            return bxn_fail(l->error, BITAXON_FORMAT,
                            "%.80s: tokenizer.json: %s: \"%s\" has a null in it", l->where, what,
                            list);
        status = load(l, part);
        if (status != BITAXON_OK)
            return status;
    }
    return BITAXON_OK;
}

/* ---- normalizer ---------------------------------------------------------------------- */

bitaxon_status bxn_load_normalizer(bxn_loader *l, json_t *node)
{
    static const char *const names[] = {"NFC", "NFD", "NFKC", "NFKD"};
    static const bxn_form forms[] = {BXN_NFC, BXN_NFD, BXN_NFKC, BXN_NFKD};
    static const char *const keys[] = {"type", NULL};
    bitaxon_status status;
    if (node == NULL || json_is_null(node))
        return BITAXON_OK;
    const char *type = type_of(l, node, "normalizer", &status);
    if (type == NULL)
        return status;
    if (strcmp(type, "Sequence") == 0)
        return load_sequence(l, node, "normalizer", "normalizers", bxn_load_normalizer);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(type, names[i]) != 0)
            continue;
        if (l->t->form_count == BXN_MAX_STEPS)
            return bxn_fail(l->error, BITAXON_LIMIT,
                            "%.80s: tokenizer.json: more than %u normalizers", l->where,
                            BXN_MAX_STEPS);
        l->t->forms[l->t->form_count++] = forms[i];
        return bxn_load_check_keys(l, node, "normalizer", keys);
    }
    return unknown_type(l, "normalizer", type);
}

/* ---- pre-tokenizer --------------------------------------------------------------------- */

static bitaxon_status add_step(bxn_loader *l, bxn_step **step)
{
    if (l->byte_level)
        return bxn_fail(
            l->error, BITAXON_UNSUPPORTED,
            "%.80s: tokenizer.json: pre_tokenizer: a step after ByteLevel is not supported",
            l->where);
    if (l->t->step_count == BXN_MAX_STEPS)
        return bxn_fail(l->error, BITAXON_LIMIT,
                        "%.80s: tokenizer.json: pre_tokenizer: more than %u steps", l->where,
                        BXN_MAX_STEPS);
    *step = &l->t->steps[l->t->step_count++];
    return BITAXON_OK;
}

static bitaxon_status add_pattern(bxn_loader *l, const char *pattern, bxn_step **step)
{
    bitaxon_status status = add_step(l, step);
    if (status == BITAXON_OK)
        status = bxn_pattern_compile(l->t, l->where, pattern, &(*step)->code, l->error);
    return status;
}

static bitaxon_status load_byte_level(bxn_loader *l, json_t *node)
{
    static const char *const keys[] = {"type", "add_prefix_space", "trim_offsets", "use_regex",
                                       NULL};
    const char *what = "pre_tokenizer ByteLevel";
    bool add_space = false, trim_offsets = false, use_regex = true;
    bxn_step *step;
    bitaxon_status status = bxn_load_check_keys(l, node, what, keys);
    if (status == BITAXON_OK && json_object_get(node, "add_prefix_space") == NULL)
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: tokenizer.json: %s: no \"add_prefix_space\"", l->where, what);
    if (status == BITAXON_OK)
        status = bxn_load_flag(l, node, what, "add_prefix_space", &add_space);
    if (status == BITAXON_OK)
        status = bxn_load_flag(l, node, what, "trim_offsets", &trim_offsets);
    if (status == BITAXON_OK)
        status = bxn_load_flag(l, node, what, "use_regex", &use_regex);
    if (status == BITAXON_OK && add_space) {
        status = add_step(l, &step);
        if (status == BITAXON_OK)
            step->add_space = true;
    }
    if (status == BITAXON_OK && use_regex)
        status = add_pattern(l, GPT2_PATTERN, &step);
    if (status == BITAXON_OK && l->byte_level)
        status = add_step(l, &step); /* a second ByteLevel is a step after the first */
    l->byte_level = true;
    return status;
}

static bitaxon_status load_split(bxn_loader *l, json_t *node)
{
    static const char *const keys[] = {"type", "pattern", "behavior", "invert", NULL};
    static const char *const pattern_keys[] = {"Regex", "String", NULL};
    const char *what = "pre_tokenizer Split";
    bool invert = false, removed;
    bxn_step *step = NULL;
    bitaxon_status status = bxn_load_check_keys(l, node, what, keys);
    if (status == BITAXON_OK)
        status = bxn_load_flag(l, node, what, "invert", &invert);
    json_t *pattern = json_object_get(node, "pattern");
    if (status == BITAXON_OK)
        status = bxn_load_check_keys(l, pattern, "pre_tokenizer Split: \"pattern\"", pattern_keys);
    if (status != BITAXON_OK)
        return status;
    const char *behavior = json_string_value(json_object_get(node, "behavior"));
    if (behavior == NULL)
        return bxn_fail(l->error, BITAXON_FORMAT, "%.80s: tokenizer.json: %s: no \"behavior\"",
                        l->where, what);
    removed = strcmp(behavior, "Removed") == 0;
    if (!removed && strcmp(behavior, "Isolated") != 0)
        return bxn_fail(l->error, BITAXON_UNSUPPORTED,
                        "%.80s: tokenizer.json: %s: behavior \"%.60s\" is not supported", l->where,
                        what, behavior);
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *literal = json_string_value(json_object_get(pattern, "String"));
    if ((regex == NULL) == (literal == NULL) || json_object_size(pattern) != 1)
        return bxn_fail(
            l->error, BITAXON_FORMAT,
            "%.80s: tokenizer.json: %s: \"pattern\" needs one of \"Regex\" and \"String\"",
            l->where, what);
    if (regex != NULL) {
        status = add_pattern(l, regex, &step);
    } else {
        size_t bytes = strlen(literal);
        if (bytes == 0 || bytes > BXN_MAX_PATTERN_BYTES)
            return bxn_fail(l->error, BITAXON_UNSUPPORTED,
                            "%.80s: tokenizer.json: %s: a String of %zu bytes", l->where, what,
                            bytes);
        void *copy = NULL;
        status = add_step(l, &step);
        if (status == BITAXON_OK)
            status = bxn_tokenizer_alloc(l->t, bytes, "pre-tokenizer", &copy, l->error);
        if (status == BITAXON_OK) {
            memcpy(copy, literal, bytes);
            step->literal = copy;
            step->literal_bytes = bytes;
        }
    }
    if (status == BITAXON_OK) {
        step->drop_matches = removed && !invert;
        step->drop_gaps = removed && invert;
    }
    return status;
}

static bitaxon_status load_digits(bxn_loader *l, json_t *node)
{
    static const char *const keys[] = {"type", "individual_digits", NULL};
    bool individual = false;
    bxn_step *step;
    bitaxon_status status = bxn_load_check_keys(l, node, "pre_tokenizer Digits", keys);
    if (status == BITAXON_OK)
        status = bxn_load_flag(l, node, "pre_tokenizer Digits", "individual_digits", &individual);
    if (status == BITAXON_OK)
        status = add_pattern(l, individual ? "\\p{N}" : "\\p{N}+", &step);
    return status;
}

bitaxon_status bxn_load_pre_tokenizer(bxn_loader *l, json_t *node)
{
    bitaxon_status status;
    if (node == NULL || json_is_null(node))
        return BITAXON_OK;
    const char *type = type_of(l, node, "pre_tokenizer", &status);
    if (type == NULL)
        return status;
    if (strcmp(type, "Sequence") == 0)
        return load_sequence(l, node, "pre_tokenizer", "pretokenizers", bxn_load_pre_tokenizer);
    if (strcmp(type, "ByteLevel") == 0)
        return load_byte_level(l, node);
    if (strcmp(type, "Split") == 0)
        return load_split(l, node);
    if (strcmp(type, "Digits") == 0)
        return load_digits(l, node);
    return unknown_type(l, "pre_tokenizer", type);
}

/* ---- what has no effect here -------------------------------------------------------------- */

bitaxon_status bxn_load_post_processor(bxn_loader *l, json_t *node)
{
    bitaxon_status status;
    if (node == NULL || json_is_null(node))
        return BITAXON_OK;
    const char *type = type_of(l, node, "post_processor", &status);
    if (type == NULL)
        return status;
    if (strcmp(type, "Sequence") == 0)
        return load_sequence(l, node, "post_processor", "processors", bxn_load_post_processor);
    if (strcmp(type, "ByteLevel") == 0 || strcmp(type, "TemplateProcessing") == 0)
        return BITAXON_OK;
    return unknown_type(l, "post_processor", type);
}

bitaxon_status bxn_load_decoder(bxn_loader *l, json_t *node)
{
    bitaxon_status status;
    if (node == NULL || json_is_null(node))
        return BITAXON_OK;
    const char *type = type_of(l, node, "decoder", &status);
    if (type == NULL)
        return status;
    if (strcmp(type, "Sequence") == 0)
        return load_sequence(l, node, "decoder", "decoders", bxn_load_decoder);
    return strcmp(type, "ByteLevel") == 0 ? BITAXON_OK : unknown_type(l, "decoder", type);
}
