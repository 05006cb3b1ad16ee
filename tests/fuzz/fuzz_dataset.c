/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_dataset.c - a data set from a file of any bytes. The first byte chooses objective, mask and kind of file, the
 * second max_tokens. What opens must give every example that it counted, and pack; with `strict` it opens
 * exactly when no record is bad, and is the same then. */
#include "fuzz.h"

#include <string.h>
#include <unistd.h>

#include "train/dataset_parts.h"

enum { CEILING = 64 << 20 };

static struct {
    fault_host fault;
    bxn_mem mem;
    bxn_tokenizer *tokenizer;
    char folder[64], path[2][80];
} world;

static void write_bytes(const char *path, const uint8_t *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    FUZZ_CHECK(file != NULL && fwrite(data, 1, size, file) == size);
    FUZZ_CHECK(fclose(file) == 0);
}

static void leave(void)
{
    unlink(world.path[0]);
    unlink(world.path[1]);
    rmdir(world.folder);
}

static void enter(void)
{
    static char json[1 << 20];
    FILE *file = fopen("examples/models/tokenizer/tokenizer.json", "rb");
    FUZZ_CHECK(file != NULL);
    size_t bytes = fread(json, 1, sizeof json, file);
    fclose(file);
    fault_host_init(&world.fault);
    world.fault.ceiling = CEILING;
    FUZZ_CHECK(bxn_mem_init(&world.mem, &world.fault.host, CEILING, NULL) == BITAXON_OK);
    FUZZ_CHECK(bxn_tokenizer_create(&world.mem, "fuzz", json, bytes, NULL, 0, NULL, 0, &world.tokenizer, NULL) ==
               BITAXON_OK);
    memcpy(world.folder, "/tmp/bitaxon-fuzz-XXXXXX", 25);
    FUZZ_CHECK(mkdtemp(world.folder) != NULL);
    snprintf(world.path[0], sizeof world.path[0], "%s/data.json", world.folder);
    snprintf(world.path[1], sizeof world.path[1], "%s/data.txt", world.folder);
    atexit(leave);
}

static void use(const bxn_dataset *d, const bxn_dataset_facts *facts, uint32_t max_tokens)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bxn_reader reader;
    bxn_example side[2];
    uint64_t tokens = 0, counted = 0;
    int sides = d->params.objective == BXN_OBJECTIVE_ORPO ? 2 : 1;
    bxn_reader_open(&reader, d);
    for (size_t i = 0; i < d->count; i++) {
        FUZZ_CHECK(bxn_reader_example(&reader, i, side, &error) == BITAXON_OK);
        for (int s = 0; s < sides; s++) {
            uint64_t labels = 0;
            FUZZ_CHECK(side[s].count >= 2 && side[s].count <= max_tokens);
            FUZZ_CHECK(side[s].count == reader.sequences[s].count);
            for (uint32_t t = 0; t < side[s].count; t++) {
                FUZZ_CHECK(side[s].tokens[t] >= 0 && (uint32_t)side[s].tokens[t] < facts->vocabulary);
                labels += t > 0 && side[s].mask[t] != 0;
            }
            FUZZ_CHECK(labels != 0);
            tokens += side[s].count;
            counted += labels;
        }
    }
    bxn_reader_close(&reader);
    FUZZ_CHECK(d->count == facts->examples && tokens == facts->tokens && counted == facts->counted);
    for (int isolate = 0; isolate < 2; isolate++) {
        const bxn_packing packing = {.block_tokens = max_tokens, .blocks = 2, .isolate = isolate != 0, .shuffle = true};
        bxn_packer *packer = NULL;
        bxn_cursor cursor = {0, 0};
        bxn_micro_step step;
        FUZZ_CHECK(bxn_packer_create(&world.mem, d, &packing, &packer, &error) == BITAXON_OK);
        uint64_t rows = 0;
        do {
            FUZZ_CHECK(bxn_packer_next(packer, &cursor, false, &step, &error) == BITAXON_OK);
            FUZZ_CHECK(step.rows <= bxn_packer_rows(packer));
            rows += step.rows;
        } while (step.rows != 0);
        FUZZ_CHECK(isolate || sides == 2 ? rows == facts->tokens : rows >= facts->tokens);
        bxn_packer_free(packer);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (world.tokenizer == NULL)
        enter();
    if (size < 2)
        return 0;
    const char *path = world.path[data[0] >> 3 & 1];
    bxn_dataset_params params = {.path = path,
                                 .objective = (data[0] & 4) != 0 ? BXN_OBJECTIVE_ORPO : BXN_OBJECTIVE_SFT,
                                 .mask = (bxn_mask)(BXN_MASK_CONTENT + data[0] % 4 % 3),
                                 .max_tokens = 4 + data[1]};
    int64_t blocks = world.fault.blocks;
    bxn_dataset_facts facts[2];
    bitaxon_status status[2];
    write_bytes(path, data + 2, size - 2);
    for (int strict = 0; strict < 2; strict++) {
        bitaxon_error error = BITAXON_ERROR_INIT;
        bxn_dataset *d = NULL;
        params.strict = strict != 0;
        status[strict] = bxn_dataset_open(&world.mem, world.tokenizer, &params, NULL, &d, &error);
        FUZZ_STATUS(status[strict], &error);
        FUZZ_CHECK((status[strict] == BITAXON_OK) == (d != NULL));
        if (d != NULL) {
            bxn_dataset_facts_get(d, &facts[strict]);
            if (!strict)
                use(d, &facts[0], params.max_tokens);
        }
        bxn_dataset_free(d);
    }
    if (status[0] == BITAXON_OK) {
        FUZZ_CHECK((status[1] == BITAXON_OK) == (facts[0].bad_lines == 0));
        FUZZ_CHECK(status[1] != BITAXON_OK || memcmp(facts[0].id, facts[1].id, sizeof facts[0].id) == 0);
    } else {
        FUZZ_CHECK(status[1] == status[0]);
    }
    FUZZ_CHECK(world.fault.above_ceiling == 0 && world.fault.wrong_frees == 0 && world.fault.blocks == blocks);
    return 0;
}
