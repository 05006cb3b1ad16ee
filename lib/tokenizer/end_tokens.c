/* SPDX-License-Identifier: Apache-2.0 */
/* end_tokens.c - which tokens end a turn or a text: what generation_config.json and
 * tokenizer_config.json say, and the usual names where the vocabulary has them. Called by
 * bpe_load.c; the result is sorted and has no id twice. */
#include "tokenizer/bpe.h"

#include <string.h>

static bitaxon_status add_end(bxn_loader *l, bxn_ids *ends, json_t *value)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) >= (json_int_t)BXN_MAX_TOKEN_IDS)
        return bxn_fail(l->error, BITAXON_FORMAT,
                        "%.80s: generation_config.json: \"eos_token_id\" is not a token id",
                        l->where);
    return bxn_ids_push(l->t->mem, ends, (int32_t)json_integer_value(value), l->error);
}

static bitaxon_status add_named_end(bxn_loader *l, bxn_ids *ends, const char *text, size_t bytes)
{
    int32_t id;
    return bxn_tokenizer_id(l->t, text, bytes, &id) ? bxn_ids_push(l->t->mem, ends, id, l->error)
                                                    : BITAXON_OK;
}

static int by_id(const void *left, const void *right)
{
    int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    return a < b ? -1 : a > b;
}

bitaxon_status bxn_load_ends(bxn_loader *l, json_t *config, json_t *generation)
{
    static const char *const usual[] = {"<|im_end|>", "<|endoftext|>", "</s>"};
    bxn_ids ends = {0};
    bitaxon_status status = BITAXON_OK;
    json_t *listed = json_object_get(generation, "eos_token_id"), *id;
    size_t i, kept = 0;
    if (json_array_size(listed) > BXN_MAX_END_TOKENS) {
        status = bxn_fail(l->error, BITAXON_LIMIT,
                          "%.80s: generation_config.json: %zu end tokens, the limit is %u",
                          l->where, json_array_size(listed), BXN_MAX_END_TOKENS);
    } else if (json_is_array(listed)) {
        json_array_foreach(listed, i, id) if (status == BITAXON_OK) status = add_end(l, &ends, id);
    } else if (listed != NULL && !json_is_null(listed)) {
        status = add_end(l, &ends, listed);
    }
    json_t *named = json_object_get(config, "eos_token");
    if (json_is_object(named))
        named = json_object_get(named, "content");
    if (status == BITAXON_OK && named != NULL && !json_is_null(named)) {
        if (json_is_string(named))
            status = add_named_end(l, &ends, json_string_value(named), json_string_length(named));
        else
            status =
                bxn_fail(l->error, BITAXON_FORMAT,
                         "%.80s: tokenizer_config.json: \"eos_token\" is not a token", l->where);
    }
    for (i = 0; i < sizeof usual / sizeof *usual && status == BITAXON_OK; i++)
        status = add_named_end(l, &ends, usual[i], strlen(usual[i]));
    if (status == BITAXON_OK && ends.count != 0) {
        void *eos = NULL;
        bxn_sort(ends.data, ends.count, sizeof *ends.data, by_id);
        for (i = 0; i < ends.count; i++)
            if (kept == 0 || ends.data[i] != ends.data[kept - 1])
                ends.data[kept++] = ends.data[i];
        status = bxn_tokenizer_alloc(l->t, kept * sizeof *ends.data, "end tokens", &eos, l->error);
        if (status == BITAXON_OK) {
            memcpy(eos, ends.data, kept * sizeof *ends.data);
            l->t->eos = eos;
            l->t->eos_count = (uint32_t)kept;
        }
    }
    bxn_ids_free(l->t->mem, &ends);
    return status;
}
