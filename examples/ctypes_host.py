#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The library from Python with ctypes alone: the same steps as dlopen_host.c.

ctypes_host.py MODEL PROMPT [LIBRARY]
"""
import ctypes as c
import sys

ABI = 0  # BITAXON_ABI_VERSION of the headers that this file was written from


class Error(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("code", c.c_int32), ("message", c.c_char * 248)]


class ModelParams(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32), ("flags", c.c_uint32), ("host", c.c_void_p),
        ("path", c.c_char_p), ("files", c.c_void_p), ("file_count", c.c_uint32),
        ("threads", c.c_uint32), ("cpu_mask", c.c_uint64), ("max_bytes", c.c_uint64),
        ("progress", c.c_void_p), ("progress_user", c.c_void_p),
        ("accuracy", c.c_int32), ("reserved0", c.c_uint32),
    ]


class Generated(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32), ("token", c.c_int32), ("text", c.c_void_p),
        ("text_bytes", c.c_size_t), ("logprob", c.c_float), ("top_count", c.c_uint32),
        ("top", c.c_void_p),
    ]


OnToken = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.POINTER(Generated))


class GenerateParams(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32), ("flags", c.c_uint32), ("max_tokens", c.c_uint64),
        ("stop", c.c_void_p), ("stop_count", c.c_uint32), ("eos_count", c.c_uint32),
        ("eos", c.c_void_p), ("top_logprobs", c.c_uint32), ("reserved0", c.c_uint32),
        ("on_token", OnToken), ("user", c.c_void_p),
    ]


def main(model_path, prompt, library=f"libbitaxon.so.{ABI}"):
    lib = c.CDLL(library)
    lib.bitaxon_build_info.restype = c.c_char_p
    lib.bitaxon_status_name.restype = c.c_char_p
    lib.bitaxon_struct_size.restype = c.c_size_t
    for name in ("bitaxon_model_free", "bitaxon_session_free"):
        getattr(lib, name).argtypes = [c.c_void_p]
        getattr(lib, name).restype = None

    # A binding checks once that it means the same structs as the library.
    if lib.bitaxon_abi_version() != ABI:
        raise SystemExit(f"the library speaks ABI {lib.bitaxon_abi_version()}, not {ABI}")
    for name, struct in {b"bitaxon_error": Error, b"bitaxon_model_params": ModelParams,
                         b"bitaxon_generated": Generated,
                         b"bitaxon_generate_params": GenerateParams}.items():
        if lib.bitaxon_struct_size(name) < c.sizeof(struct):  # later versions append
            raise SystemExit(f"{name.decode()} is older here")
    print(lib.bitaxon_build_info().decode())

    error = Error(struct_size=c.sizeof(Error))

    def check(status):
        if status != 0:
            name = lib.bitaxon_status_name(status).decode()
            raise RuntimeError(f"{name}: {error.message.decode(errors='replace')}")

    @OnToken
    def on_token(_user, step):
        # An exception must not cross into C: it is turned into "stop".
        try:
            sys.stdout.buffer.write(c.string_at(step.contents.text, step.contents.text_bytes))
            return 0
        except Exception:
            return 1

    model, session = c.c_void_p(), c.c_void_p()
    try:
        params = ModelParams(struct_size=c.sizeof(ModelParams), path=model_path.encode())
        check(lib.bitaxon_model_open(c.byref(params), c.byref(model), c.byref(error)))
        text = prompt.encode()
        tokens, count = (c.c_int32 * 256)(), c.c_size_t()
        check(lib.bitaxon_model_tokenize(model, text, c.c_size_t(len(text)), 0, tokens,
                                         c.c_size_t(256), c.byref(count), c.byref(error)))
        check(lib.bitaxon_session_create(model, None, c.byref(session), c.byref(error)))
        check(lib.bitaxon_session_prefill(session, tokens, count, c.byref(error)))
        sys.stdout.flush()
        generate = GenerateParams(struct_size=c.sizeof(GenerateParams), max_tokens=24,
                                  on_token=on_token)
        check(lib.bitaxon_session_generate(session, c.byref(generate), None, c.byref(error)))
        sys.stdout.buffer.write(b"\n")
    finally:
        lib.bitaxon_session_free(session)
        lib.bitaxon_model_free(model)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit("usage: ctypes_host.py MODEL PROMPT [LIBRARY]")
    main(*sys.argv[1:])
