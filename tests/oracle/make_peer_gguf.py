#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a GGUF of random weights for `bitaxon bench --compare`: the hybrid that llama.cpp runs and
that is nearest to the preset bitaxon-3b (its architecture `jamba`: Mamba-1, attention, experts).

  pip install gguf numpy
  make_peer_gguf.py OUT.gguf [--layers 24] [--width 2560] [--vocab 32000]

Matrices are Q4_0 (4.5 bits a weight, as affine4 with groups of 64), the embedding, which is the
head too, Q8_0. The state-space parameters have the size of a trained model's (A = -1 .. -N,
softplus(dt_bias) in 0.001 .. 0.1), so that the state neither dies nor explodes and no denormals
disturb the clock. docs/performance.md tells in what the shape differs from bitaxon-3b.

A tool for people who measure, not a part of the build or the tests."""
import argparse
import math

import gguf
import numpy as np
from gguf import quants

STATES, TAPS, EXPERTS, TOP_K, HEADS = 16, 4, 8, 2, 32
SIGMA = 0.02


def shapes(layers, width, vocab):
    """(name, shape as numpy has it, kind) of every tensor, in the order of the file."""
    inner, rank, ff = 2 * width, width // 16, width * 4 // 5
    yield "token_embd.weight", (vocab, width), "embedding"
    yield "output_norm.weight", (width,), "ones"
    for i in range(layers):
        block = f"blk.{i}."
        third = i * 3 // layers
        yield block + "attn_norm.weight", (width,), "ones"
        if third == 1:
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                yield block + name + ".weight", (width, width), "matrix"
        else:
            yield block + "ssm_in.weight", (2 * inner, width), "matrix"
            yield block + "ssm_conv1d.weight", (inner, TAPS), "taps"
            yield block + "ssm_conv1d.bias", (inner,), "zeros"
            yield block + "ssm_x.weight", (rank + 2 * STATES, inner), "matrix"
            yield block + "ssm_dt.weight", (inner, rank), "matrix"
            yield block + "ssm_dt.bias", (inner,), "dt"
            yield block + "ssm_a", (inner, STATES), "decay"
            yield block + "ssm_d", (inner,), "ones"
            yield block + "ssm_out.weight", (width, inner), "matrix"
            yield block + "ssm_dt_norm.weight", (rank,), "ones"
            yield block + "ssm_b_norm.weight", (STATES,), "ones"
            yield block + "ssm_c_norm.weight", (STATES,), "ones"
        yield block + "ffn_norm.weight", (width,), "ones"
        if third == 0:  # the architecture wants a feed-forward part in every layer
            yield block + "ffn_gate.weight", (ff, width), "matrix"
            yield block + "ffn_up.weight", (ff, width), "matrix"
            yield block + "ffn_down.weight", (width, ff), "matrix"
        else:
            yield block + "ffn_gate_inp.weight", (EXPERTS, width), "router"
            yield block + "ffn_gate_exps.weight", (EXPERTS, ff, width), "matrix"
            yield block + "ffn_up_exps.weight", (EXPERTS, ff, width), "matrix"
            yield block + "ffn_down_exps.weight", (EXPERTS, width, ff), "matrix"


def format_of(shape, kind):
    types = gguf.GGMLQuantizationType
    if kind == "embedding":
        return types.Q8_0
    return types.Q4_0 if kind == "matrix" and shape[-1] % 32 == 0 else types.F32


def values(shape, kind, rng):
    if kind == "ones":
        return np.ones(shape, np.float32)
    if kind == "zeros":
        return np.zeros(shape, np.float32)
    if kind == "decay":
        return np.broadcast_to(-np.arange(1, shape[1] + 1, dtype=np.float32), shape).copy()
    if kind == "dt":
        dt = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), shape))
        return np.log(np.expm1(dt)).astype(np.float32)
    spread = 0.5 if kind == "taps" else SIGMA
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(spread)


def add_vocabulary(writer, vocab):
    """Byte tokens, then numbered words: enough for a program that measures with token ids."""
    tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % b for b in range(256)]
    kinds = [2, 3, 3] + [6] * 256
    while len(tokens) < vocab:
        tokens.append(b"\xe2\x96\x81w%d" % len(tokens))
        kinds.append(1)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--context", type=int, default=131072)
    args = parser.parse_args()
    if args.layers % 3 or args.width % 320:
        parser.error("layers come in thirds, the width in multiples of 320")

    writer = gguf.GGUFWriter(args.out, "jamba")
    writer.add_name("random weights, shape near bitaxon-3b")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_context_length(args.context)
    writer.add_embedding_length(args.width)
    writer.add_block_count(args.layers)
    writer.add_vocab_size(args.vocab)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_feed_forward_length(args.width * 4 // 5)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([HEADS if i * 3 // args.layers == 1 else 0
                              for i in range(args.layers)])
    writer.add_key_length(args.width // HEADS)
    writer.add_value_length(args.width // HEADS)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(TOP_K)
    writer.add_ssm_conv_kernel(TAPS)
    writer.add_ssm_inner_size(2 * args.width)
    writer.add_ssm_state_size(STATES)
    writer.add_ssm_time_step_rank(args.width // 16)
    add_vocabulary(writer, args.vocab)

    tensors = list(shapes(args.layers, args.width, args.vocab))
    total = active = 0
    for name, shape, kind in tensors:
        form = format_of(shape, kind)
        count = math.prod(shape)
        total += count
        active += count * TOP_K // EXPERTS if "_exps" in name else count
        block, size = gguf.GGML_QUANT_SIZES[form]
        if form == gguf.GGMLQuantizationType.F32:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * count)
        else:
            stored = (*shape[:-1], shape[-1] // block * size)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(1)
    for name, shape, kind in tensors:
        data = values(shape, kind, rng)
        form = format_of(shape, kind)
        if form != gguf.GGMLQuantizationType.F32:
            data = quants.quantize(data, form)
        writer.write_tensor_data(data)
    writer.close()
    print(f"{args.out}: {total / 1e6:.1f} M parameters, {active / 1e6:.1f} M touched per token")


main()
