/* SPDX-License-Identifier: Apache-2.0 */
/* import.h - from files to a model: names and configuration to sublayers. One file per
 * family of models; the rest of the library sees bxn_model alone. */
#ifndef BXN_IMPORT_H
#define BXN_IMPORT_H

#include "io/io.h"
#include "model/bxn_adapter.h"
#include "model/bxn_model.h"
#include "quant/quant.h"

/* Parse and validate a Bit-Axon config.json: missing keys take the defaults of spec 1.1,
 * unknown keys are tolerated (logged at DEBUG), wrong types and ranges are FORMAT naming
 * the key and the value. `what` names the document in messages. */
bitaxon_status bxn_config_parse(bxn_mem *mem, const char *json, size_t bytes, const char *what,
                                bxn_config *out, bitaxon_error *error);

/* How a weight is stored in the files. */
typedef struct bxn_stored {
    char name[BXN_MAX_NAME]; /* "layer_0.ssm.in_proj": without ".weight" */
    char format[40];         /* "float", "affine4 g64", "nf4 g64", "packed affine4 g64" */
    const char *dtype;
    uint32_t rank;
    uint64_t shape[4];       /* logical */
    uint64_t bytes;          /* with scales and offsets */
    bool mapped;
} bxn_stored;

/* What opening took: memory blocks the model's views point into, and the table for
 * inspection. */
typedef struct bxn_loaded {
    struct bxn_block *blocks; /* owned memory, freed by bxn_import_free */
    bxn_stored *stored;
    uint64_t stored_count, stored_capacity;
    uint64_t private_bytes;   /* accounted bytes of blocks and tables */
    uint64_t peak_bytes;      /* the most while loading */
    uint64_t mapped_bytes;    /* of weights used in place */
    bool quantised;           /* a weight is */
} bxn_loaded;

/* Fill model (config already set; kernels and pool set unless plan) from tensors.
 * plan: touch no data and allocate nothing that lasts; only bxn_loaded's counts are
 * made, exactly as a real load would make them.
 * Errors name the tensor: missing, misshapen, unexpected, unknown type, value out of range. */
bitaxon_status bxn_import_bit_axon(bxn_mem *mem, const bxn_tensors *tensors, bool plan,
                                   bxn_progress *progress, bxn_model *model, bxn_loaded *loaded,
                                   bitaxon_error *error);
void bxn_import_free(bxn_mem *mem, bxn_model *model, bxn_loaded *loaded);

/* The part of it that the tensors make; or what a packed file's metadata says its source had. */
bitaxon_status bxn_import_digest(const bxn_tensors *tensors, bxn_progress *progress, uint8_t out[16],
                                 bitaxon_error *error);
/* 128 bits that name a model: of the configuration, of all tensors' names and types, and of
 * samples of their bytes. progress (nullable) is called per tensor, so that a cancel is heard
 * on a slow disk. */
bitaxon_status bxn_import_fingerprint(const bxn_config *config, const bxn_tensors *tensors,
                                      bxn_progress *progress, uint8_t out[16], bitaxon_error *error);

/* An adapter for `model` from a file that ends with ".safetensors", or from adapters.safetensors of a directory.
 * scale 0: as the file says, or 20 with a warning in the log when it does not. IO, FORMAT, UNSUPPORTED, LIMIT,
 * MISMATCH (made for another model: by its fingerprint, names or shapes), OUT_OF_MEMORY. */
bitaxon_status bxn_adapter_open(bxn_mem *mem, const bxn_model *model, const char *path, float scale,
                                bxn_adapter *out, bitaxon_error *error);
/* The same without what needs the model's weights: no gains, no id. */
bitaxon_status bxn_adapter_read(bxn_mem *mem, const bxn_model *model, const char *path, float scale,
                                bxn_adapter *out, bitaxon_error *error);

#endif
