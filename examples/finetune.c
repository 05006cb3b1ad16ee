/* SPDX-License-Identifier: Apache-2.0 */
/* finetune.c - teach a model a few answers: train a LoRA adapter on chat examples, ask before and after, save it.
 *   finetune MODEL EXAMPLES.jsonl QUESTION ADAPTER.safetensors [STEPS] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bitaxon/bitaxon.h>

static bitaxon_error error = BITAXON_ERROR_INIT;

static int32_t print_text(void *user, const bitaxon_generated *step)
{
    (void)user;
    fwrite(step->text, 1, step->text_bytes, stdout);
    return 0;
}

/* The likeliest answer, with the adapter or (NULL) without: the model itself never changes. */
static int ask(bitaxon_model *model, bitaxon_adapter *adapter, const char *question)
{
    bitaxon_session *session = NULL;
    bitaxon_message message = {
        .struct_size = sizeof message, .role = "user", .content = question, .content_bytes = strlen(question)};
    bitaxon_generate_params generate = {.struct_size = sizeof generate, .max_tokens = 16, .on_token = print_text};
    int32_t tokens[1024];
    size_t count = 0;
    printf("%s: %s -> ", adapter == NULL ? "before" : "after", question);
    int fine =
        bitaxon_session_create(model, NULL, &session, &error) == BITAXON_OK &&
        bitaxon_session_set_adapters(session, &adapter, NULL, adapter != NULL, &error) == BITAXON_OK &&
        bitaxon_model_chat(model, &message, 1, BITAXON_CHAT_GENERATE, tokens, 1024, &count, NULL, &error) ==
            BITAXON_OK &&
        bitaxon_session_prefill(session, tokens, count, &error) == BITAXON_OK &&
        bitaxon_session_generate(session, &generate, NULL, &error) == BITAXON_OK;
    printf("\n");
    bitaxon_session_free(session);
    return fine;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return fprintf(stderr, "usage: finetune MODEL EXAMPLES.jsonl QUESTION ADAPTER [STEPS]\n"), 2;
    bitaxon_model *model = NULL;
    bitaxon_dataset *data = NULL;
    bitaxon_trainer *trainer = NULL;
    bitaxon_adapter *adapter = NULL;
    bitaxon_train_result result = {.struct_size = sizeof result};
    bitaxon_status status = BITAXON_OK;
    bitaxon_model_params model_params = {.struct_size = sizeof model_params, .path = argv[1]};
    bitaxon_dataset_params data_params = {.struct_size = sizeof data_params, .path = argv[2], .max_tokens = 256};
    int fine = bitaxon_model_open(&model_params, &model, &error) == BITAXON_OK &&
               bitaxon_dataset_open(model, &data_params, &data, &error) == BITAXON_OK && ask(model, NULL, argv[3]);
    bitaxon_trainer_params params = {
        .struct_size = sizeof params,
        .method = BITAXON_TRAIN_LORA,
        .data = data,
        .accumulate = 1, /* a micro-step is an update: there are few examples */
        .steps = argc > 5 ? strtoull(argv[5], NULL, 10) : 40,
        .warmup = 4,
        .learning_rate = 2e-3,
        .seed = 1,
    };
    fine = fine && bitaxon_trainer_create(model, &params, &trainer, &error) == BITAXON_OK;
    while (fine && (status = bitaxon_trainer_step(trainer, &result, &error)) == BITAXON_OK)
        printf("step %llu loss %.3f\n", (unsigned long long)result.step, result.loss);
    fine = fine && status == BITAXON_END && bitaxon_trainer_adapter(trainer, &adapter, &error) == BITAXON_OK &&
           ask(model, adapter, argv[3]) && bitaxon_adapter_save(adapter, argv[4], &error) == BITAXON_OK;
    if (!fine)
        fprintf(stderr, "finetune: %s\n", error.message);
    bitaxon_adapter_free(adapter);
    bitaxon_trainer_free(trainer);
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
    return fine ? 0 : 1;
}
