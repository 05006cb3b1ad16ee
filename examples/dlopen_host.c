/* SPDX-License-Identifier: Apache-2.0 */
/* dlopen_host.c - a program that runs without libbitaxon and uses it where it is installed,
 * as plug-ins and language bindings do. Types come from the headers, functions at run time.
 *   dlopen_host MODEL PROMPT [LIBRARY] */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define LIBRARY "libbitaxon.so." TEXT(BITAXON_ABI_VERSION)

static struct {
    uint32_t (*abi_version)(void);
    const char *(*build_info)(void);
    bitaxon_status (*open)(const bitaxon_model_params *, bitaxon_model **, bitaxon_error *);
    void (*close)(bitaxon_model *);
    bitaxon_status (*tokenize)(const bitaxon_model *, const char *, size_t, uint32_t, int32_t *,
                               size_t, size_t *, bitaxon_error *);
    bitaxon_status (*create)(bitaxon_model *, const bitaxon_session_params *, bitaxon_session **,
                             bitaxon_error *);
    void (*destroy)(bitaxon_session *);
    bitaxon_status (*prefill)(bitaxon_session *, const int32_t *, size_t, bitaxon_error *);
    bitaxon_status (*generate)(bitaxon_session *, const bitaxon_generate_params *,
                               bitaxon_generate_result *, bitaxon_error *);
} api;

/* dlsym gives an object pointer; copying it is the portable way to a function pointer. */
static int find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);

    if (symbol == NULL)
        fprintf(stderr, "dlopen_host: no %s\n", name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static int32_t print_text(void *user, const bitaxon_generated *step)
{
    (void)user;
    fwrite(step->text, 1, step->text_bytes, stdout);
    return 0;
}

int main(int argc, char **argv)
{
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model *model = NULL;
    bitaxon_session *session = NULL;
    int32_t tokens[256];
    size_t count = 0;
    int failed = 1;

    if (argc < 3) {
        fprintf(stderr, "usage: dlopen_host MODEL PROMPT [LIBRARY]\n");
        return 2;
    }
    void *library = dlopen(argc > 3 ? argv[3] : LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "dlopen_host: %s\n", dlerror());
        return 1;
    }
    if (!find(library, "bitaxon_abi_version", &api.abi_version) ||
        !find(library, "bitaxon_build_info", &api.build_info) ||
        !find(library, "bitaxon_model_open", &api.open) ||
        !find(library, "bitaxon_model_free", &api.close) ||
        !find(library, "bitaxon_model_tokenize", &api.tokenize) ||
        !find(library, "bitaxon_session_create", &api.create) ||
        !find(library, "bitaxon_session_free", &api.destroy) ||
        !find(library, "bitaxon_session_prefill", &api.prefill) ||
        !find(library, "bitaxon_session_generate", &api.generate))
        return 1;
    if (api.abi_version() != BITAXON_ABI_VERSION) {
        fprintf(stderr, "dlopen_host: the library speaks ABI %u\n", (unsigned)api.abi_version());
        return 1;
    }
    printf("%s\n", api.build_info());

    bitaxon_model_params params = {.struct_size = sizeof params, .path = argv[1]};
    bitaxon_generate_params generate = {
        .struct_size = sizeof generate, .max_tokens = 24, .on_token = print_text};
    if (api.open(&params, &model, &error) != BITAXON_OK ||
        api.tokenize(model, argv[2], strlen(argv[2]), 0, tokens, 256, &count, &error) !=
            BITAXON_OK ||
        api.create(model, NULL, &session, &error) != BITAXON_OK ||
        api.prefill(session, tokens, count, &error) != BITAXON_OK ||
        api.generate(session, &generate, NULL, &error) != BITAXON_OK)
        goto done;
    printf("\n");
    failed = 0;

done:
    if (failed)
        fprintf(stderr, "dlopen_host: %s\n", error.message);
    api.destroy(session);
    api.close(model);
    dlclose(library);
    return failed;
}
