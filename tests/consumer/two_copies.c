/* SPDX-License-Identifier: Apache-2.0 */
/* two_copies.c - one copy of the library linked in statically, another loaded with dlopen,
 * both at work in one process: they must be two different copies and give the same tokens.
 * Arguments: the shared object, a model. Built by consumers.sh. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

typedef struct copy {
    bitaxon_status (*open)(const bitaxon_model_params *, bitaxon_model **, bitaxon_error *);
    void (*close)(bitaxon_model *);
    bitaxon_status (*tokenize)(const bitaxon_model *, const char *, size_t, uint32_t, int32_t *,
                               size_t, size_t *, bitaxon_error *);
    bitaxon_status (*create)(bitaxon_model *, const bitaxon_session_params *, bitaxon_session **,
                             bitaxon_error *);
    void (*destroy)(bitaxon_session *);
    bitaxon_status (*prefill)(bitaxon_session *, const int32_t *, size_t, bitaxon_error *);
    bitaxon_status (*decode)(bitaxon_session *, int32_t *, bitaxon_error *);
    bitaxon_model *model;
    bitaxon_session *session;
} copy;

static int load(void *library, const char *name, void *pointer)
{
    void *symbol = dlsym(library, name);

    memcpy(pointer, &symbol, sizeof symbol);
    return symbol != NULL;
}

static int start(copy *c, const char *path)
{
    static const char prompt[] = "Two at once";
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model_params params = {0};
    int32_t ids[64];
    size_t count = 0;

    params.struct_size = sizeof params;
    params.path = path;
    if (c->open(&params, &c->model, &error) == BITAXON_OK &&
        c->tokenize(c->model, prompt, strlen(prompt), 0, ids, 64, &count, &error) == BITAXON_OK &&
        c->create(c->model, NULL, &c->session, &error) == BITAXON_OK &&
        c->prefill(c->session, ids, count, &error) == BITAXON_OK)
        return 1;
    fprintf(stderr, "%s\n", error.message);
    return 0;
}

int main(int argc, char **argv)
{
    copy linked = {bitaxon_model_open,     bitaxon_model_free,      bitaxon_model_tokenize,
                   bitaxon_session_create, bitaxon_session_free,    bitaxon_session_prefill,
                   bitaxon_session_decode, NULL,                    NULL};
    copy loaded = {0};
    void *library;

    if (argc != 3)
        return 2;
    library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    if (!load(library, "bitaxon_model_open", &loaded.open) ||
        !load(library, "bitaxon_model_free", &loaded.close) ||
        !load(library, "bitaxon_model_tokenize", &loaded.tokenize) ||
        !load(library, "bitaxon_session_create", &loaded.create) ||
        !load(library, "bitaxon_session_free", &loaded.destroy) ||
        !load(library, "bitaxon_session_prefill", &loaded.prefill) ||
        !load(library, "bitaxon_session_decode", &loaded.decode) || loaded.open == linked.open)
        return 3;
    if (!start(&linked, argv[2]) || !start(&loaded, argv[2]))
        return 4;
    for (int i = 0; i < 16; i++) {
        int32_t a = -1, b = -2;

        if (linked.decode(linked.session, &a, NULL) != BITAXON_OK ||
            loaded.decode(loaded.session, &b, NULL) != BITAXON_OK || a != b) {
            fprintf(stderr, "step %d: %d and %d\n", i, (int)a, (int)b);
            return 5;
        }
    }
    linked.destroy(linked.session);
    linked.close(linked.model);
    loaded.close(loaded.model);
    loaded.destroy(loaded.session);
    return dlclose(library) == 0 ? 0 : 6;
}
