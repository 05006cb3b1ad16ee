/* SPDX-License-Identifier: Apache-2.0 */
/* mpi_sum.h - the all_reduce callback of a trainer over MPI-3: sums in the order of ranks, pieces that
 * are waited for no longer than a deadline, and a check that all ranks begin alike. Read by
 * finetune_mpi.c; nothing in it is about fine-tuning alone. */
#include <mpi.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <bitaxon/bitaxon.h>

enum { PIECE = 1 << 16 }; /* values sent at once */
static int rank, ranks, fast; /* fast: in MPI's own order, which may differ with the number of ranks */
static int lost;              /* a rank did not answer */
static double deadline = 60;  /* seconds */
static double piece[PIECE], spent; /* from another rank; seconds in sums */

/* Wait for a request, not for ever: a rank that is gone never answers. */
static bitaxon_status finish(int code, MPI_Request *request, int peer)
{
    char why[MPI_MAX_ERROR_STRING] = "no answer in time: it or a link is lost";
    double until = MPI_Wtime() + deadline;
    unsigned nap = 20; /* microseconds */
    int done = 0, length;
    while (code == MPI_SUCCESS && !done && MPI_Wtime() < until)
        if ((code = MPI_Test(request, &done, MPI_STATUS_IGNORE)) == MPI_SUCCESS && !done)
            usleep(nap += nap < 500); /* the longer it takes, the less it is looked at */
    if (code == MPI_SUCCESS && done)
        return BITAXON_OK;
    if (code != MPI_SUCCESS)
        MPI_Error_string(code, why, &length);
    lost = 1;
    fprintf(stderr, "mpi: rank %d waits for rank %d (-1: all): %s\n", rank, peer, why);
    return BITAXON_IO;
}

static bitaxon_status transfer(int sends, void *at, int n, MPI_Datatype type, int peer)
{
    MPI_Request request;
    if (peer < 0 || peer == ranks)
        return BITAXON_OK;
    int code = sends ? MPI_Isend(at, n, type, peer, 0, MPI_COMM_WORLD, &request)
                     : MPI_Irecv(at, n, type, peer, 0, MPI_COMM_WORLD, &request);
    return finish(code, &request, peer);
}

/* A running sum goes up the chain of ranks, each adds its own behind it, and the result comes
 * back down, in pieces, so that all links work at once: the order of additions is fixed. */
static bitaxon_status sum(void *values, uint64_t count, MPI_Datatype type, size_t size)
{
    bitaxon_status status = BITAXON_OK;
    MPI_Request request;
    for (int way = 1; way >= (fast ? 1 : -1); way -= 2)
        for (uint64_t i = 0; i < count && status == BITAXON_OK; i += PIECE) {
            int n = (int)(count - i < PIECE ? count - i : PIECE);
            char *own = (char *)values + i * size;
            if (fast) {
                int code = MPI_Iallreduce(MPI_IN_PLACE, own, n, type, MPI_SUM, MPI_COMM_WORLD, &request);
                status = finish(code, &request, -1);
                continue;
            }
            status = transfer(0, way > 0 ? (void *)piece : own, n, type, rank - way);
            if (status == BITAXON_OK && way > 0 && rank > 0)
                MPI_Reduce_local(piece, own, n, type, MPI_SUM);
            if (status == BITAXON_OK)
                status = transfer(1, own, n, type, rank + way);
        }
    return status;
}

static bitaxon_status all_reduce(void *user, float *gradients, uint64_t count, double *sums, uint32_t sum_count)
{
    double began = MPI_Wtime();
    (void)user;
    bitaxon_status status = sum(gradients, count, MPI_FLOAT, sizeof *gradients);
    if (status == BITAXON_OK)
        status = sum(sums, sum_count, MPI_DOUBLE, sizeof *sums);
    spent += MPI_Wtime() - began;
    return status;
}

/* All ranks must begin alike, or each would train an adapter of its own. */
static bitaxon_status compare(bitaxon_model *model, bitaxon_dataset *data, uint64_t step, bitaxon_error *error)
{
    bitaxon_dataset_info facts = {.struct_size = sizeof facts};
    uint64_t all[16] = {step};
    int64_t features = 0;
    char id[33] = "";
    MPI_Request request;
    bitaxon_status status = bitaxon_dataset_get_info(data, &facts, error);
    if (status == BITAXON_OK)
        status = bitaxon_model_info_int(model, "cpu_features", &features, error);
    if (status == BITAXON_OK)
        status = bitaxon_model_info_text(model, "fingerprint", id, sizeof id, NULL, error);
    all[1] = (uint64_t)features;
    memcpy(all + 2, facts.id, 16);
    memcpy(all + 4, id, 32);
    for (int i = 0; i < 8; i++)
        all[8 + i] = ~all[i];
    if (status == BITAXON_OK) /* the highest of x is the lowest: ~(highest of ~x) */
        status = finish(MPI_Iallreduce(MPI_IN_PLACE, all, 16, MPI_UINT64_T, MPI_MAX, MPI_COMM_WORLD, &request),
                        &request, -1);
    for (int i = 0; i < 8 && status == BITAXON_OK; i++)
        if (all[i] != ~all[8 + i]) {
            snprintf(error->message, sizeof error->message, "ranks differ in the %s",
                     i == 0 ? "step they resume from" : i == 1 ? "CPU's features" : i < 4 ? "data" : "model");
            status = BITAXON_MISMATCH;
        }
    return status;
}
