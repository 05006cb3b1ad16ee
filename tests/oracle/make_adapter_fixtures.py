#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tiny-adapter/{lora,dora}.safetensors: adapters of rank 2 for two weights of the golden
models tiny-fp32 and tiny-q4, as the original implementation writes them: A [in, r], B [r, out], m [out] in F32, no
metadata. Standard library alone; the same bytes every time."""
import json
import os
import random
import struct

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "tiny-adapter")
WEIGHTS = ["input_proj", "layer_1.attention.q_proj"]
SIZE, RANK = 64, 2


def write(path, tensors):
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        piece = struct.pack("<%df" % len(values), *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def main():
    os.makedirs(ROOT, exist_ok=True)
    for kind in ("lora", "dora"):
        dice = random.Random(kind)
        tensors = {}
        for weight in WEIGHTS:
            tensors[weight + ".lora_a"] = ([SIZE, RANK], [dice.uniform(-0.125, 0.125) for _ in range(SIZE * RANK)])
            tensors[weight + ".lora_b"] = ([RANK, SIZE], [dice.uniform(-0.05, 0.05) for _ in range(SIZE * RANK)])
            if kind == "dora":
                tensors[weight + ".m"] = ([SIZE], [dice.uniform(0.8, 1.2) for _ in range(SIZE)])
        write(os.path.join(ROOT, kind + ".safetensors"), tensors)


main()
