/* SPDX-License-Identifier: Apache-2.0 */
/* finetune_mpi.c - train one LoRA adapter on several machines (docs/distributed.md).
 *   mpicc finetune_mpi.c -o finetune_mpi $(pkg-config --cflags --libs bitaxon)
 *   mpirun -n RANKS finetune_mpi MODEL EXAMPLES.jsonl DIRECTORY STEPS [batch=N] [every=N]
 *       [deadline=SECONDS] [threads=N] [fast=1] [resume=1]
 * batch: micro-steps of an update, over all ranks. Rank 0 saves every N updates; DIRECTORY/step_N has
 * the adapter. Exit code: 0, 1 (failed), 2 (usage), 3 (a rank or a link is lost). */
#include <stdlib.h>

#include "mpi_sum.h"

static int option(int argc, char **argv, const char *name, int value)
{
    size_t length = strlen(name);
    for (int i = 5; i < argc; i++)
        if (strncmp(argv[i], name, length) == 0 && argv[i][length] == '=')
            value = atoi(argv[i] + length + 1);
    return value;
}

int main(int argc, char **argv)
{
    bitaxon_error error = BITAXON_ERROR_INIT, why = BITAXON_ERROR_INIT;
    bitaxon_model *model = NULL;
    bitaxon_dataset *data = NULL;
    bitaxon_trainer *trainer = NULL;
    bitaxon_train_result result = {.struct_size = sizeof result};
    bitaxon_trainer_info at = {.struct_size = sizeof at};
    int begun = 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int batch = option(argc, argv, "batch", ranks), every = option(argc, argv, "every", 50);
    deadline = option(argc, argv, "deadline", 60);
    fast = option(argc, argv, "fast", 0);
    if (argc < 5 || batch < 1 || batch % ranks != 0 || every < 1 || deadline <= 0) {
        if (rank == 0)
            fprintf(stderr, "usage: finetune_mpi MODEL EXAMPLES DIRECTORY STEPS [batch=N] [every=N]\n"
                            "    [deadline=SECONDS] [threads=N] [fast=1] [resume=1]\n"
                            "batch (here %d) is a multiple of the ranks (here %d)\n", batch, ranks);
        MPI_Finalize();
        return 2;
    }
    fprintf(stderr, "rank %d of %d is process %d\n", rank, ranks, (int)getpid());
    bitaxon_model_params model_params = {.struct_size = sizeof model_params, .path = argv[1],
                                         .threads = (uint32_t)option(argc, argv, "threads", 0)};
    bitaxon_dataset_params data_params = {.struct_size = sizeof data_params, .path = argv[2], .max_tokens = 256};
    bitaxon_trainer_params params = {
        .struct_size = sizeof params,
        .method = BITAXON_TRAIN_LORA,
        .flags = fast ? 0 : BITAXON_TRAIN_ORDERED,
        .accumulate = (uint32_t)(batch / ranks),
        .machine = (uint32_t)rank,
        .machines = (uint32_t)ranks,
        .all_reduce = all_reduce,
        .steps = strtoull(argv[4], NULL, 10),
        .warmup = 4,
        .learning_rate = 2e-3,
        .seed = 1,
    };
    bitaxon_status status = bitaxon_model_open(&model_params, &model, &error);
    if (status == BITAXON_OK)
        status = bitaxon_dataset_open(model, &data_params, &data, &error);
    params.data = data;
    if (status == BITAXON_OK)
        status = bitaxon_trainer_create(model, &params, &trainer, &error);
    if (status == BITAXON_OK && option(argc, argv, "resume", 0))
        status = bitaxon_trainer_resume(trainer, argv[3], &error);
    if (status == BITAXON_OK)
        status = bitaxon_trainer_get_info(trainer, &at, &error);
    if (status == BITAXON_OK) /* nobody writes before all have read */
        status = compare(model, data, at.step, &error);
    begun = status == BITAXON_OK;
    if (status == BITAXON_OK && rank == 0) /* does the directory serve? */
        status = bitaxon_trainer_save(trainer, argv[3], 0, &error);

    double start = MPI_Wtime();
    while (status == BITAXON_OK && (status = bitaxon_trainer_step(trainer, &result, &error)) == BITAXON_OK) {
        if (rank != 0)
            continue;
        printf("step %llu loss %.6f\n", (unsigned long long)result.step, result.loss);
        fflush(stdout);
        if (result.step % (uint64_t)every == 0)
            status = bitaxon_trainer_save(trainer, argv[3], 0, &error);
    }
    if (status == BITAXON_END && rank == 0)
        printf("%d ranks: %.3f s, of them %.3f s in sums of %llu values\n", ranks, MPI_Wtime() - start, spent,
               (unsigned long long)at.trainable);
    if (rank == 0 && begun && status < 0 && status != BITAXON_BAD_STATE)
        (void)bitaxon_trainer_save(trainer, argv[3], 0, &why); /* as of the last whole update */
    if (status == BITAXON_END && rank == 0)
        status = bitaxon_trainer_save(trainer, argv[3], 0, &error) == BITAXON_OK ? BITAXON_END : BITAXON_IO;
    if (status != BITAXON_END) {
        fprintf(stderr, "finetune_mpi: rank %d ends: %s\n", rank, error.message);
        sleep(rank == 0 ? 0 : 2); /* rank 0 may be saving: an abort ends it too */
        alarm(3); /* nor does an abort have to return where a link is lost */
        MPI_Abort(MPI_COMM_WORLD, lost ? 3 : 1);
    }
    bitaxon_trainer_free(trainer);
    bitaxon_dataset_free(data);
    bitaxon_model_free(model);
    MPI_Finalize();
    return 0;
}
