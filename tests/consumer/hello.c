/* SPDX-License-Identifier: Apache-2.0 */
/* hello.c - what a host program looks like, in the part of C that C90 with long long, C99
 * and C++ share. Prints the ids of a few tokens; consumers.sh builds it in every way that
 * the packages offer and compares what it prints. */
#include <stdio.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

static int complain(const char *what, bitaxon_status status, const bitaxon_error *error)
{
    fprintf(stderr, "%s: %s: %s\n", what, bitaxon_status_name(status), error->message);
    return 1;
}

int main(int argc, char **argv)
{
    static const char prompt[] = "Once upon a time";
    bitaxon_error error = BITAXON_ERROR_INIT;
    bitaxon_model_params params;
    bitaxon_model *model = NULL;
    bitaxon_session *session = NULL;
    bitaxon_status status;
    int32_t ids[64];
    size_t count = 0;
    int i;

    if (argc != 2)
        return 2;
    if (bitaxon_abi_version() != BITAXON_ABI_VERSION ||
        bitaxon_version() != BITAXON_VERSION_NUMBER ||
        strcmp(bitaxon_version_string(), BITAXON_VERSION_STRING) != 0 ||
        bitaxon_struct_size("bitaxon_model_params") != sizeof params)
        return 3;

    memset(&params, 0, sizeof params);
    params.struct_size = sizeof params;
    params.path = "/nonexistent/model";
    status = bitaxon_model_open(&params, &model, &error);
    if (status != BITAXON_IO || model != NULL || error.code != BITAXON_IO ||
        strstr(error.message, "/nonexistent/model") == NULL)
        return complain("opening nothing", status, &error);

    params.path = argv[1];
    status = bitaxon_model_open(&params, &model, &error);
    if (status != BITAXON_OK)
        return complain("open", status, &error);
    status = bitaxon_model_tokenize(model, prompt, strlen(prompt), 0, ids, 64, &count, &error);
    if (status == BITAXON_OK)
        status = bitaxon_session_create(model, NULL, &session, &error);
    bitaxon_model_free(model); /* the session keeps it */
    if (status == BITAXON_OK)
        status = bitaxon_session_prefill(session, ids, count, &error);
    for (i = 0; i < 8 && status == BITAXON_OK; i++) {
        int32_t token = -1;
        status = bitaxon_session_decode(session, &token, &error);
        printf("%d ", (int)token);
    }
    printf("\n");
    bitaxon_session_free(session);
    return status == BITAXON_OK ? 0 : complain("generate", status, &error);
}
