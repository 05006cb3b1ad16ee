/* SPDX-License-Identifier: Apache-2.0 */
/* replay.c - a fuzz target without a fuzzer: every file of the given folder, then seeded random
 * changes of them until a number of rounds or of seconds is over. The same seed gives the
 * same inputs; with FROM and COUNT single rounds can be repeated.
 *     TARGET FOLDER [ROUNDS [SECONDS [FROM]]] */
#include "fuzz.h"

#include <dirent.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { FILES = 64, GREATEST = 1 << 20 };

static struct {
    char name[256];
    uint8_t *data;
    size_t size;
} corpus[FILES];
static int files;
static unsigned long long round_now;

static uint64_t random_state;

static uint32_t dice(uint64_t sides)
{
    random_state += 0x9E3779B97F4A7C15u; /* splitmix64 */
    uint64_t z = random_state;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return sides == 0 ? 0 : (uint32_t)((z ^ z >> 31) % sides);
}

static void load_corpus(const char *folder)
{
    struct dirent **entries;
    int count = scandir(folder, &entries, NULL, alphasort);
    FUZZ_CHECK(count >= 0);
    for (int i = 0; i < count; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        FILE *file = entries[i]->d_name[0] != '.' && files < FILES ? fopen(path, "rb") : NULL;
        if (file != NULL) {
            corpus[files].data = malloc(GREATEST);
            FUZZ_CHECK(corpus[files].data != NULL);
            corpus[files].size = fread(corpus[files].data, 1, GREATEST, file);
            snprintf(corpus[files].name, sizeof corpus[files].name, "%.255s", entries[i]->d_name);
            files++;
            fclose(file);
        }
        free(entries[i]);
    }
    free(entries);
    FUZZ_CHECK(files > 0);
}

/* One change in place; returns the new size. */
static size_t change(uint8_t *data, size_t size)
{
    static const char *const words[] = { "0",
                                         "-1",
                                         "9223372036854775807",
                                         "18446744073709551616",
                                         "null",
                                         "\"\"",
                                         "[]",
                                         "{}",
                                         "1e999",
                                         "\"F32\"",
                                         "\"U32\"",
                                         "true",
                                         ",",
                                         "\\u0000",
                                         "\xff",
                                         "4294967296" };
    static const uint64_t odd[] = { 0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
                                    0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF };
    size_t at = dice(size), n;
    if (size == 0)
        return 0;
    switch (dice(8)) {
    case 0: data[at] ^= (uint8_t)(1u << dice(8)); break;
    case 1: data[at] = (uint8_t)dice(256); break;
    case 2: { /* a number of 1, 2, 4 or 8 bytes */
        uint64_t value = odd[dice(sizeof odd / sizeof odd[0])];
        n = (size_t)1 << dice(4);
        if (n <= size - at)
            memcpy(data + at, &value, n);
        break;
    }
    case 3: return dice(4) == 0 ? at : size; /* cut */
    case 4: { /* a word over what is there */
        const char *word = words[dice(sizeof words / sizeof words[0])];
        n = strlen(word);
        if (n <= size - at)
            memcpy(data + at, word, n);
        break;
    }
    case 5: { /* a word between */
        const char *word = words[dice(sizeof words / sizeof words[0])];
        n = strlen(word);
        if (size + n <= GREATEST) {
            memmove(data + at + n, data + at, size - at);
            memcpy(data + at, word, n);
            return size + n;
        }
        break;
    }
    case 6: /* a piece out */
        n = dice(size - at < 64 ? size - at : 64);
        memmove(data + at, data + at + n, size - at - n);
        return size - n;
    default: { /* a piece of another file, or of this one */
        int other = (int)dice((uint64_t)files);
        size_t from = dice(corpus[other].size);
        n = dice(64);
        if (from + n <= corpus[other].size && n <= size - at)
            memcpy(data + at, corpus[other].data + from, n);
    }
    }
    return size;
}

static void tell(int number)
{
    char line[80];
    int n = snprintf(line, sizeof line, "signal %d in round %llu\n", number, round_now);
    if (n > 0 && write(2, line, (size_t)n) != n)
        _exit(3);
    signal(number, SIG_DFL);
    raise(number);
}

int main(int argc, char **argv)
{
    unsigned long long rounds = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000;
    double seconds = argc > 3 ? strtod(argv[3], NULL) : 5;
    unsigned long long from = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
    struct timespec begin, now;
    uint8_t *buffer = malloc(GREATEST);
    FUZZ_CHECK(argc > 1 && buffer != NULL);
    load_corpus(argv[1]);
    signal(SIGABRT, tell);
    signal(SIGSEGV, tell);
    for (int i = 0; i < files; i++)
        LLVMFuzzerTestOneInput(corpus[i].data, corpus[i].size);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (round_now = from; round_now < from + rounds; round_now++) {
        random_state = round_now * 1000003;
        int base = (int)dice((uint64_t)files);
        size_t size = corpus[base].size;
        memcpy(buffer, corpus[base].data, size);
        for (uint32_t changes = 1 + dice(6); changes > 0; changes--)
            size = change(buffer, size);
        LLVMFuzzerTestOneInput(buffer, size);
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((double)(now.tv_sec - begin.tv_sec) + 1e-9 * (double)(now.tv_nsec - begin.tv_nsec) > seconds) {
            round_now++;
            break;
        }
    }
    printf("%d files, %llu changed inputs\n", files, round_now - from);
    for (int i = 0; i < files; i++)
        free(corpus[i].data);
    free(buffer);
    return 0;
}
