#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write tests/golden/quant.safetensors: what other implementations make of known weights.

    python3 -m venv venv && venv/bin/pip install "mlx[cpu]" numpy bitsandbytes torch
    venv/bin/python tests/oracle/make_quant_fixtures.py tests/golden/quant.safetensors

Affine codes, scales, offsets and dequantised values come from MLX on the CPU. NF4 blocks
come from bitsandbytes on the CPU when it can be imported; without it those tensors are
left out, and the script says so.
"""
import json
import struct
import sys

import mlx.core as mx
import numpy as np

ROWS, COLS = 6, 256


def weights():
    rng = np.random.default_rng(20240501)
    w = rng.standard_normal((ROWS, COLS)).astype(np.float32)
    w[0] *= 0.02
    w[1] = np.abs(w[1]) * 0.1 + 0.3  # one sign: the edge is far from zero
    w[2] = -np.abs(w[2]) * 3
    w[3, ::17] *= 40  # outliers
    w[4, :128] = 0  # all zero, then constant
    w[4, 128:] = -0.75
    w[5] = np.round(w[5] * 4) / 8  # many exact ties
    return w


def write(path, tensors, meta):
    header, offset = {"__metadata__": meta}, 0
    for name, a in tensors.items():
        kind = {"float32": "F32", "uint32": "U32", "uint8": "U8"}[str(a.dtype)]
        header[name] = {"dtype": kind, "shape": list(a.shape),
                        "data_offsets": [offset, offset + a.nbytes]}
        offset += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for a in tensors.values():
            f.write(np.ascontiguousarray(a).tobytes())


def affine(tensors, w):
    mx.set_default_device(mx.cpu)
    x = mx.array(w)
    for bits in (2, 3, 4, 5, 6, 8):
        for group in (32, 64, 128):
            codes, scales, biases = mx.quantize(x, group_size=group, bits=bits)
            back = mx.dequantize(codes, scales, biases, group_size=group, bits=bits)
            mx.eval(codes, scales, biases, back)
            p = f"a{bits}g{group}"
            tensors[p + ".codes"] = np.array(codes)
            tensors[p + ".scales"] = np.array(scales)
            tensors[p + ".biases"] = np.array(biases)
            tensors[p + ".values"] = np.array(back)


def nf4(tensors, w):
    try:
        import bitsandbytes as bnb
        import bitsandbytes.functional as bnf
        import torch
    except ImportError as missing:
        print("no NF4 fixture:", missing, file=sys.stderr)
        return None
    x = torch.from_numpy(w.copy())
    codes, state = bnf.quantize_4bit(x, blocksize=64, quant_type="nf4")
    tensors["nf4.codes"] = codes.numpy().reshape(-1, 1)
    tensors["nf4.absmax"] = state.absmax.float().numpy()
    tensors["nf4.table"] = state.code.float().numpy()
    tensors["nf4.values"] = bnf.dequantize_4bit(codes, state).float().numpy()
    big = torch.from_numpy(np.random.default_rng(7).standard_normal((64, 512)).astype(np.float32))
    codes, state = bnf.quantize_4bit(big, blocksize=64, quant_type="nf4", compress_statistics=True)
    tensors["nested.codes"] = state.absmax.numpy()
    tensors["nested.map"] = state.state2.code.float().numpy()
    tensors["nested.absmax"] = state.state2.absmax.float().numpy()
    tensors["nested.offset"] = np.array([float(state.offset)], dtype=np.float32)
    plain = bnf.quantize_4bit(big, blocksize=64, quant_type="nf4")[1].absmax
    tensors["nested.plain"] = plain.float().numpy()
    values = bnf.dequantize_blockwise(state.absmax, state.state2) + state.offset
    tensors["nested.values"] = values.float().numpy()
    return bnb.__version__


def main():
    w = weights()
    tensors = {"w": w}
    affine(tensors, w)
    version = nf4(tensors, w)
    meta = {"mlx": mx.__version__}
    if version:
        meta["bitsandbytes"] = version
    write(sys.argv[1], tensors, meta)


if __name__ == "__main__":
    main()
