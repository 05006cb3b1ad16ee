/* SPDX-License-Identifier: Apache-2.0 */
/* fault_files.c - model files in memory for the fault tests: loading, taking apart, putting
 * together, and small models made with the library's own conversions. */
#include "fault_files.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

unsigned char *read_whole(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    unsigned char *data = malloc(*size + (*size == 0));
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *size, file), *size);
    fclose(file);
    return data;
}

void write_whole(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL)
        fail_msg("cannot write %s", path);
    if (size != 0)
        assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

char *make_folder(void)
{
    char name[] = "/tmp/bitaxon-test-XXXXXX";
    assert_non_null(mkdtemp(name));
    return strdup(name);
}

void remove_folder(char *folder)
{
    DIR *directory = opendir(folder);
    if (directory != NULL) {
        for (const struct dirent *entry; (entry = readdir(directory)) != NULL;) {
            if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
                continue;
            const char *path = in_folder(folder, entry->d_name);
            struct stat info;
            if (lstat(path, &info) == 0 && S_ISDIR(info.st_mode))
                remove_folder(strdup(path));
            else
                unlink(path);
        }
        closedir(directory);
    }
    rmdir(folder);
    free(folder);
}

const char *in_folder(const char *folder, const char *name)
{
    static char buffers[8][512];
    static unsigned next;
    char *buffer = buffers[next++ % 8];
    snprintf(buffer, sizeof buffers[0], "%s/%s", folder, name);
    return buffer;
}

/* ---- sets ------------------------------------------------------------------------------ */

int file_set_find(const file_set *set, const char *name)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (strcmp(set->name[i], name) == 0)
            return (int)i;
    return -1;
}

void file_set_put(file_set *set, const char *name, const void *data, size_t size)
{
    int at = file_set_find(set, name);
    unsigned char *copy = malloc(size + (size == 0));
    assert_non_null(copy);
    if (size != 0)
        memcpy(copy, data, size);
    if (at < 0) {
        assert_true(set->count < FILE_SET_MAX);
        at = (int)set->count++;
        snprintf(set->name[at], sizeof set->name[at], "%s", name);
        set->data[at] = NULL;
    }
    free(set->data[at]);
    set->data[at] = copy;
    set->size[at] = size;
}

void file_set_load(file_set *set, const char *folder)
{
    memset(set, 0, sizeof *set);
    DIR *directory = opendir(folder);
    if (directory == NULL)
        fail_msg("cannot list %s", folder);
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        size_t size;
        unsigned char *data = read_whole(in_folder(folder, entry->d_name), &size);
        file_set_put(set, entry->d_name, data, size);
        free(data);
    }
    closedir(directory);
}

void file_set_copy(file_set *to, const file_set *from)
{
    memset(to, 0, sizeof *to);
    to->no_map = from->no_map;
    for (uint32_t i = 0; i < from->count; i++)
        file_set_put(to, from->name[i], from->data[i], from->size[i]);
}

void file_set_free(file_set *set)
{
    for (uint32_t i = 0; i < set->count; i++)
        free(set->data[i]);
    memset(set, 0, sizeof *set);
}

void file_set_use(file_set *set, bitaxon_model_params *params)
{
    for (uint32_t i = 0; i < set->count; i++) {
        assert_int_equal(bitaxon_source_memory(set->data[i], set->size[i], &set->sources[i], NULL), BITAXON_OK);
        if (set->no_map)
            set->sources[i].map = NULL;
        set->files[i] = (bitaxon_file){ set->name[i], &set->sources[i] };
    }
    params->files = set->files;
    params->file_count = set->count;
}

void file_set_save(const file_set *set, const char *folder)
{
    for (uint32_t i = 0; i < set->count; i++)
        write_whole(in_folder(folder, set->name[i]), set->data[i], set->size[i]);
}

/* ---- safetensors --------------------------------------------------------------------------- */

void st_split(const unsigned char *file, size_t size, st_parts *out)
{
    uint64_t length;
    assert_true(size > 8);
    memcpy(&length, file, 8);
    assert_true(length <= size - 8);
    out->header = json_loadb((const char *)file + 8, (size_t)length, 0, NULL);
    assert_non_null(out->header);
    out->data_bytes = size - 8 - (size_t)length;
    out->data = malloc(out->data_bytes + 1);
    assert_non_null(out->data);
    memcpy(out->data, file + 8 + length, out->data_bytes);
}

void st_join(const st_parts *parts, file_set *set, const char *name)
{
    char *text = json_dumps(parts->header, JSON_COMPACT);
    assert_non_null(text);
    uint64_t length = strlen(text);
    unsigned char *file = malloc(8 + length + parts->data_bytes);
    assert_non_null(file);
    memcpy(file, &length, 8);
    memcpy(file + 8, text, length);
    memcpy(file + 8 + length, parts->data, parts->data_bytes);
    file_set_put(set, name, file, 8 + length + parts->data_bytes);
    free(file);
    free(text);
}

void st_free(st_parts *parts)
{
    json_decref(parts->header);
    free(parts->data);
    memset(parts, 0, sizeof *parts);
}

/* ---- models --------------------------------------------------------------------------------- */

void write_tokenizer(const char *folder)
{
    static const char *const merges[][2] = { { "t", "h" }, { "th", "e" }, { "i", "n" }, { "a", "n" }, { "o", "u" },
                                             { "e", "r" }, { "r", "e" }, { "in", "g" }, { "an", "d" } };
    static const char *const controls[] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" };
    json_t *vocab = json_object(), *list = json_array(), *added = json_array();
    int id = 0, other = 256;
    for (int byte = 0; byte < 256; byte++) { /* the byte alphabet: printable ones stand for themselves */
        bool plain = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
        int code = plain ? byte : other++;
        char text[4] = { 0 };
        if (code < 0x80) {
            text[0] = (char)code;
        } else {
            text[0] = (char)(0xC0 | code >> 6);
            text[1] = (char)(0x80 | (code & 63));
        }
        json_object_set_new(vocab, text, json_integer(id++));
    }
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        char text[16];
        snprintf(text, sizeof text, "%s%s", merges[i][0], merges[i][1]);
        json_object_set_new(vocab, text, json_integer(id++));
        json_array_append_new(list, json_pack("[s,s]", merges[i][0], merges[i][1]));
    }
    for (size_t i = 0; i < 3; i++)
        json_array_append_new(added,
                              json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", id++, "content", controls[i],
                                        "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1));
    assert_int_equal(id, TOKENIZER_IDS);
    json_t *root = json_pack(
        "{s:s,s:n,s:n,s:o,s:n,s:{s:s,s:b,s:b,s:b},s:n,s:{s:s,s:b,s:b,s:b},s:{s:s,s:n,s:n,s:s,s:s,s:b,s:b,s:o,s:o}}",
        "version", "1.0", "truncation", "padding", "added_tokens", added, "normalizer", "pre_tokenizer", "type",
        "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1, "post_processor", "decoder", "type",
        "ByteLevel", "add_prefix_space", 1, "trim_offsets", 1, "use_regex", 1, "model", "type", "BPE", "dropout",
        "unk_token", "continuing_subword_prefix", "", "end_of_word_suffix", "", "fuse_unk", 0, "byte_fallback", 0,
        "vocab", vocab, "merges", list);
    assert_non_null(root);
    assert_int_equal(json_dump_file(root, in_folder(folder, "tokenizer.json"), JSON_COMPACT), 0);
    json_decref(root);
}

const char *small_config(const char *changes)
{
    static char text[4096];
    json_t *config = json_load_file("tests/golden/tiny-fp32/config.json", 0, NULL);
    assert_non_null(config);
    char wrapped[2048];
    snprintf(wrapped, sizeof wrapped, "{%s}", changes);
    json_t *over = json_loads(wrapped, 0, NULL);
    if (over == NULL)
        fail_msg("not JSON: %s", wrapped);
    json_object_update(config, over);
    char *made = json_dumps(config, 0);
    snprintf(text, sizeof text, "%s", made);
    free(made);
    json_decref(over);
    json_decref(config);
    return text;
}

static void must(bitaxon_status status, const bitaxon_error *error, const char *what)
{
    if (status != BITAXON_OK)
        fail_msg("%s: %s: %s", what, bitaxon_status_name(status), error->message);
}

void new_model(const char *folder, const char *config_json, const char *format, const char *tokenizer)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_convert_params params = { .struct_size = sizeof params, .output = folder, .format = format,
                                      .seed = 7, .config_json = config_json, .tokenizer = tokenizer };
    must(bitaxon_model_new(&params, &error), &error, "new");
}

void new_model_of_words(const char *folder, const char *config_json, const char *format)
{
    char *words = make_folder();
    write_tokenizer(words);
    new_model(folder, config_json, format, words);
    remove_folder(words);
}

void pack_model(const char *from, const char *to)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_convert_params params = { .struct_size = sizeof params, .input = from, .output = to };
    must(bitaxon_model_pack(&params, &error), &error, "pack");
}

void quantize_model(const char *from, const char *to, const char *format)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_convert_params params = { .struct_size = sizeof params, .input = from, .output = to, .format = format };
    must(bitaxon_model_quantize(&params, &error), &error, "quantize");
}
