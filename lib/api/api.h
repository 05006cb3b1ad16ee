/* SPDX-License-Identifier: Apache-2.0 */
/* api.h - the handles behind the public pointers, and the habits of the exported
 * functions: check arguments, copy parameter structs, count references, then call the
 * floors below. Nothing else in the library knows these structs. */
#ifndef BXN_API_H
#define BXN_API_H

#include <bitaxon/bitaxon.h>

#include "import/import.h"
#include "session/bxn_session.h"
#include "thermal/bxn_thermal.h"
#include "tokenizer/bxn_tokenizer.h"
#include "train/bxn_trainer.h"

/* Immutable once opened, but for the counters of mem and refs. */
struct bitaxon_model {
    bxn_mem mem; /* the account of the model and of everything made from it */
    _Atomic uint32_t refs;
    bxn_model core;
    bxn_loaded loaded;
    bxn_bundle *bundle; /* keeps mappings; NULL when nothing is used in place */
    char where[256];    /* the path, cut if long */
    bxn_bundle *tokenizer_files; /* NULL: those of the model */
    bxn_tokenizer *tokenizer;
    uint64_t mapped_bytes;
    uint64_t parameters, active_parameters;
    bool has_weights;
    bool packed;
};

struct bitaxon_cache {
    _Atomic uint32_t refs; /* the host's, and the session's it serves */
    atomic_int attached;   /* serves a session */
    bitaxon_model *model;
    bxn_cache core;
};

struct bitaxon_adapter {
    _Atomic uint32_t refs; /* the host's, and those of the sessions that use it */
    bitaxon_model *model;
    bxn_adapter core;
};

struct bitaxon_session {
    bitaxon_model *model;
    bitaxon_cache *cache;
    bitaxon_adapter *adapters[BITAXON_ADAPTERS_MAX]; /* references; NULL behind the last */
    bitaxon_thermal *thermal; /* nullable; a reference */
    bxn_session core;
};

struct bitaxon_dataset {
    _Atomic uint32_t refs; /* the host's, and those of the trainers that use it */
    atomic_int taken;      /* a trainer has it: no more is added */
    bitaxon_model *model;  /* of the tokenizer and the memory */
    bitaxon_dataset_params params; /* with defaults; pointers NULL */
    bool from_file;
    bxn_dataset *core;
};

struct bitaxon_trainer {
    bitaxon_model *model;
    bitaxon_dataset *data, *validation; /* references; validation is nullable, as is thermal */
    bitaxon_thermal *thermal;
    bxn_trainer core;
};

struct bitaxon_thermal {
    _Atomic uint32_t refs; /* the host's, and those of sessions and trainers that use it */
    bxn_thermal core;
};

/* Copy a parameter struct given by the host into *out (zeroed, `known` bytes): what the host does
 * not know is 0; what this library does not know must be 0 (UNSUPPORTED). in NULL gives
 * zeros. `least` is the size of the first released form. */
bitaxon_status bxn_copy_params(const void *in, void *out, size_t known, size_t least,
                               const char *name, bitaxon_error *error);
/* The other way: copy at most struct_size bytes of a result; struct_size is kept. */
bitaxon_status bxn_copy_result(const void *in, void *out, size_t known, size_t least,
                               const char *name, bitaxon_error *error);

/* A model of which the headers were read alone: configuration and shapes, no data. *estimate is what
 * bitaxon_model_estimate tells of the model. Params as bitaxon_model_open. */
bitaxon_status bxn_model_plan(const bitaxon_model_params *params, bitaxon_model **out, bitaxon_estimate *estimate,
                              bitaxon_error *error);
void bxn_model_ref(bitaxon_model *model);
void bxn_thermal_ref(bitaxon_thermal *thermal);
void bxn_dataset_ref(bitaxon_dataset *dataset); /* for a trainer: nothing is added from now on */
void bxn_cache_unref(bitaxon_cache *cache);
void bxn_adapter_ref(bitaxon_adapter *adapter);
/* A handle of `model` with an empty core, to be filled; free with bitaxon_adapter_free. */
bitaxon_status bxn_adapter_handle(bitaxon_model *model, bitaxon_adapter **out, bitaxon_error *error);
const bxn_tokenizer *bxn_model_tokenizer(const bitaxon_model *model); /* or NULL */
bxn_mem *bxn_model_mem(const bitaxon_model *model);

/* NULL handles and pointers: `return bxn_null(error, "model")`. */
bitaxon_status bxn_null(bitaxon_error *error, const char *what);

#endif
