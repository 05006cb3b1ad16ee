#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Small models of many configurations and the logits that they must give.

Written from the specification's equations in float64 NumPy, independently of the C code:
odd sizes, one tap, many states, a window of one, no shared expert, one expert, untied
heads, final norm, rotary position, mixed float types, every affine width and group size,
NF4 with plain and nested absmax. Needs python3-numpy only.

  python3 tests/oracle/make_config_fixtures.py tests/golden/configs
"""
import json
import os
import struct
import sys

import numpy as np

NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
                -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
                0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
                0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                0.7229568362236023, 1.0], dtype=np.float32)


def bf16_bits(x):
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_value(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


class File:
    """A safetensors file in memory: data in reverse declaration order, unaligned."""

    def __init__(self):
        self.items = []

    def add(self, name, dtype, array):
        self.items.append((name, dtype, np.ascontiguousarray(array)))

    def write(self, path, meta=None):
        header, blobs, at = {"__metadata__": meta}, [], 0
        for name, dtype, array in reversed(self.items):
            raw = array.tobytes()
            header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(raw)]}
            blobs.append(raw)
            at += len(raw)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (1 - len(text) % 2)  # odd length: data are unaligned on purpose
        with open(path, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def pack_bits(codes, bits):
    """Rows of codes to uint32 words: a little-endian stream of bits, lowest first."""
    rows, cols = codes.shape
    stream = ((codes[:, :, None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(rows, cols * bits)
    return np.packbits(stream, axis=1, bitorder="little").view("<u4")


def store(f, rng, name, w, form):
    """Store matrix (or stack) w under NAME.weight in a form; return the values that it stands for."""
    if form == "F32":
        f.add(name + ".weight", "F32", w.astype(np.float32))
        return w.astype(np.float32).astype(np.float64)
    if form == "F16":
        f.add(name + ".weight", "F16", w.astype(np.float16))
        return w.astype(np.float16).astype(np.float64)
    if form == "BF16":
        bits = bf16_bits(w)
        f.add(name + ".weight", "BF16", bits)
        return bf16_value(bits).astype(np.float64)
    cols = w.shape[-1]
    flat = w.reshape(-1, cols).astype(np.float32)
    if form.startswith("a"):
        bits, group, dtype = form[1:].split("-")
        bits, group = int(bits), int(group)
        parts = flat.reshape(flat.shape[0], -1, group)
        low, high = parts.min(-1), parts.max(-1)
        scale = (high - low) / (2 ** bits - 1) * rng.choice([-1, 1], low.shape)
        bias = np.where(scale > 0, low, high)
        to = {"F32": lambda x: x.astype(np.float32), "F16": lambda x: x.astype(np.float16),
              "BF16": lambda x: bf16_bits(x)}[dtype]
        back = (lambda x: bf16_value(x)) if dtype == "BF16" else (lambda x: x)
        scale, bias = to(scale.astype(np.float32)), to(bias.astype(np.float32))
        s, b = back(scale).astype(np.float64), back(bias).astype(np.float64)
        codes = np.clip(np.rint((parts - b[..., None]) / s[..., None]), 0, 2 ** bits - 1).astype(np.int64)
        words = pack_bits(codes.reshape(flat.shape), bits)
        lead = w.shape[:-1]
        f.add(name + ".weight", "U32", words.reshape(lead + (-1,)))
        f.add(name + ".scales", dtype, scale.reshape(lead + (-1,)))
        f.add(name + (".biases_quant" if w.ndim == 3 else ".biases"), dtype, bias.reshape(lead + (-1,)))
        return (codes * s[..., None] + b[..., None]).reshape(w.shape)
    assert form in ("nf4", "nf4n")
    blocks = flat.reshape(-1, 64)
    absmax = np.abs(blocks).max(-1).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(w.shape)}
    if form == "nf4n":
        offset = np.float32(absmax.mean())
        signed = [0.0, 1.0]
        for i in range(7):
            edges = np.linspace(0.1, 1, 2 ** i + 1)
            mid = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (i - 6)
            signed += list(mid) + list(-mid)
        table = np.sort(np.array(signed)).astype(np.float32)
        assert table.shape == (256,)
        diff = absmax - offset
        outer = np.array([np.abs(diff[i:i + 256]).max() for i in range(0, len(diff), 256)], np.float32)
        ratio = diff / np.maximum(np.repeat(outer, 256)[:len(diff)], np.float32(1e-30))
        codes8 = np.abs(ratio[:, None] - table[None]).argmin(1).astype(np.uint8)
        state.update(nested_blocksize=256, nested_dtype="float32", nested_offset=float(offset))
        f.add(name + ".weight.absmax", "U8", codes8)
        f.add(name + ".weight.nested_absmax", "F32", outer)
        f.add(name + ".weight.nested_quant_map", "F32", table)
        value = (table[codes8] * np.repeat(outer, 256)[:len(diff)] + offset).astype(np.float32)
    else:
        f.add(name + ".weight.absmax", "F32", absmax)
        value = absmax
    codes = np.abs(blocks[:, :, None] / absmax[:, None, None] - NF4).argmin(-1).astype(np.uint8).reshape(-1)
    f.add(name + ".weight", "U8", (codes[0::2] << 4 | codes[1::2]).reshape(-1, 1))
    f.add(name + ".weight.quant_map", "F32", NF4)
    f.add(name + ".weight.quant_state.bitsandbytes__nf4", "U8", np.frombuffer(json.dumps(state).encode(), np.uint8))
    return (NF4[codes].reshape(-1, 64).astype(np.float64) * value[:, None].astype(np.float64)).reshape(w.shape)


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


class Model:
    def __init__(self, config, forms, seed):
        self.c = c = config
        self.file = File()
        self.rng = rng = np.random.default_rng(seed)
        V, S, D, L = c["vocab_size"], c["d_source_model"], c["hidden_dim"], c["num_layers"]
        N, K, E = c["ssm_d_state"], c["ssm_d_conv"], c["hidden_dim"] * c["ssm_expand"]
        X, I = c["moe_num_experts"], c["moe_intermediate_dim"]
        self.w = {}
        self.at = 0

        def matrix(name, *shape, gain=1.0, form=None):
            form = form or forms[self.at % len(forms)]
            self.at += 1
            w = rng.standard_normal(shape) * gain / np.sqrt(shape[-1])
            self.w[name] = store(self.file, rng, name, w, form)

        def vector(name, values):
            values = values.astype(np.float32)
            self.file.add(name, "F32", values)
            self.w[name] = values.astype(np.float64)

        matrix("embed_tokens", V, S, gain=3.0)
        matrix("input_proj", D, S)
        matrix("output_proj", S, D)
        if not c["weight_tying"]:
            matrix("lm_head", V, S, gain=2.0)
        third = L // 3
        self.kinds = ["ssm"] * third + ["swa"] * third + ["both"] * (L - 2 * third)
        for i, kind in enumerate(self.kinds):
            p = f"layer_{i}."
            vector(p + "input_norm.weight", 1 + 0.3 * rng.standard_normal(D))
            if kind == "swa":
                for n in "qkvo":
                    matrix(p + f"attention.{n}_proj", D, D, gain=1.5)
                vector(p + "post_attention_norm.weight", 1 + 0.3 * rng.standard_normal(D))
            else:
                s = p + "ssm."
                matrix(s + "in_proj", 2 * E, D)
                matrix(s + "x_proj", 2 * N + 1, E)
                matrix(s + "out_proj", D, E)
                vector(s + "conv1d.weight", rng.standard_normal((E, K, 1)) / np.sqrt(K))
                vector(s + "conv1d.bias", 0.2 * rng.standard_normal(E))
                vector(s + "dt_proj.weight", rng.standard_normal((E, 1)))
                vector(s + "dt_proj.bias", rng.standard_normal(E))
                vector(s + "A_log", np.log(np.tile(np.arange(1, N + 1.0), (E, 1))) + 0.2 * rng.standard_normal((E, N)))
                vector(s + "D", 1 + 0.3 * rng.standard_normal(E))
                if kind == "both":
                    vector(p + "post_ssm_norm.weight", 1 + 0.3 * rng.standard_normal(D))
            if kind != "ssm":
                m = p + "moe."
                matrix(m + "gate", X, D)
                matrix(m + "switch_mlp.gate_proj", X, I, D)
                matrix(m + "switch_mlp.up_proj", X, I, D)
                matrix(m + "switch_mlp.down_proj", X, D, I)
                if c["moe_shared_expert"]:
                    matrix(m + "shared_expert_gate", 1, D)
                    matrix(m + "shared_expert.gate_proj", I, D)
                    matrix(m + "shared_expert.up_proj", I, D)
                    matrix(m + "shared_expert.down_proj", D, I)
        if c.get("final_norm"):
            vector("final_norm.weight", 1 + 0.3 * rng.standard_normal(D))

    def ssm(self, p, u):
        c, w = self.c, self.w
        N, K, E, T = c["ssm_d_state"], c["ssm_d_conv"], c["hidden_dim"] * c["ssm_expand"], len(u)
        xz = u @ w[p + "in_proj"].T
        x, z = xz[:, :E], xz[:, E:]
        padded = np.vstack([np.zeros((K - 1, E)), x])
        conv = sum(padded[j:j + T] * w[p + "conv1d.weight"][:, j, 0] for j in range(K)) + w[p + "conv1d.bias"]
        x = silu(conv)
        r = x @ w[p + "x_proj"].T
        A = -np.exp(w[p + "A_log"])
        h, y = np.zeros((E, N)), np.zeros((T, E))
        for t in range(T):
            pre = r[t, 2 * N] * w[p + "dt_proj.weight"][:, 0] + w[p + "dt_proj.bias"]
            dt = np.clip(np.logaddexp(0, pre), 1e-4, 100)[:, None]
            h = np.exp(dt * A) * h + dt * r[t, :N] * x[t][:, None]
            y[t] = h @ r[t, N:2 * N] + w[p + "D"] * x[t]
        return (y * silu(z)) @ w[p + "out_proj"].T

    def attention(self, p, u):
        c, w = self.c, self.w
        H, W, T = c["num_heads"], c["swa_window_size"], len(u)
        d = c["hidden_dim"] // H
        q, k, v = (np.stack(np.split(u @ w[p + n].T, H, axis=1)) for n in ("q_proj", "k_proj", "v_proj"))
        if c.get("rope_theta"):
            angle = np.arange(T)[:, None] * c["rope_theta"] ** (-2 * np.arange(d // 2) / d)

            def rotate(m):
                a, b = m[..., :d // 2], m[..., d // 2:]
                return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)
            q, k = rotate(q), rotate(k)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(d)
        i, j = np.arange(T)[:, None], np.arange(T)[None]
        scores = np.where((j <= i) & (i - j < W), scores, -np.inf)
        a = np.exp(scores - scores.max(-1, keepdims=True))
        a /= a.sum(-1, keepdims=True)
        return np.concatenate(list(a @ v), axis=1) @ w[p + "o_proj"].T

    def moe(self, p, u):
        c, w = self.c, self.w
        g = u @ w[p + "gate"].T
        prob = np.exp(g - g.max(-1, keepdims=True))
        prob /= prob.sum(-1, keepdims=True)
        out = np.zeros_like(u)
        for t in range(len(u)):
            for e in np.argsort(-prob[t], kind="stable")[:c["moe_top_k"]]:
                hidden = silu(w[p + "switch_mlp.gate_proj"][e] @ u[t]) * (w[p + "switch_mlp.up_proj"][e] @ u[t])
                out[t] += prob[t, e] * (w[p + "switch_mlp.down_proj"][e] @ hidden)
        if c["moe_shared_expert"]:
            hidden = silu(u @ w[p + "shared_expert.gate_proj"].T) * (u @ w[p + "shared_expert.up_proj"].T)
            gate = 1 / (1 + np.exp(-(u @ w[p + "shared_expert_gate"].T)))
            out += gate * (hidden @ w[p + "shared_expert.down_proj"].T)
        return out

    def logits(self, ids):
        c, w = self.c, self.w
        eps = c["rms_norm_eps"]
        x = w["embed_tokens"][ids] @ w["input_proj"].T
        for i, kind in enumerate(self.kinds):
            p = f"layer_{i}."
            u = norm(x, w[p + "input_norm.weight"], eps)
            x = x + (self.attention(p + "attention.", u) if kind == "swa" else self.ssm(p + "ssm.", u))
            if kind != "ssm":
                name = "post_attention_norm" if kind == "swa" else "post_ssm_norm"
                x = x + self.moe(p + "moe.", norm(x, w[p + name + ".weight"], eps))
        if c.get("final_norm"):
            x = norm(x, w["final_norm.weight"], eps)
        head = w["embed_tokens"] if c["weight_tying"] else w["lm_head"]
        return x @ w["output_proj"].T @ head.T


BASE = dict(vocab_size=50, hidden_dim=24, num_layers=3, num_heads=3, d_source_model=20, ssm_d_state=4, ssm_d_conv=4,
            ssm_expand=2, ssm_scan_step=8, swa_window_size=9, moe_num_experts=4, moe_top_k=2, moe_intermediate_dim=20,
            moe_shared_expert=True, weight_tying=True, max_seq_len=1000, rms_norm_eps=1e-6)
WIDE = dict(hidden_dim=128, d_source_model=128, num_heads=4, moe_intermediate_dim=128, moe_num_experts=2, ssm_expand=1)
CASES = {
    "one_tap": (dict(ssm_d_conv=1, ssm_d_state=5, ssm_expand=3, num_layers=5, moe_num_experts=5, moe_top_k=3), ["F32"], 40),
    "one_expert": (dict(num_layers=1, ssm_d_state=1, ssm_d_conv=2, ssm_expand=1, moe_num_experts=1, moe_top_k=1,
                        moe_shared_expert=False), ["F32"], 30),
    "window_one": (dict(num_layers=4, ssm_d_conv=7, ssm_d_state=19, swa_window_size=1, num_heads=1, hidden_dim=20), ["F32"], 30),
    "extensions": (dict(hidden_dim=32, num_heads=2, d_source_model=48, weight_tying=False, final_norm=True,
                        rope_theta=10000.0, swa_window_size=20, moe_top_k=4), ["F32"], 90),
    "odd_sizes": (dict(num_layers=6, hidden_dim=17, num_heads=17, d_source_model=33, vocab_size=37, ssm_d_state=3,
                       swa_window_size=100, moe_intermediate_dim=7), ["F32"], 150),
    "half_types": (dict(num_layers=4, hidden_dim=40, num_heads=2), ["F16", "BF16", "F32"], 60),
    "affine_narrow": (WIDE, ["a2-32-F32", "a3-64-F16", "a4-128-BF16"], 70),
    "affine_wide": (WIDE, ["a5-64-F32", "a6-32-F16", "a8-128-F32", "a8-64-BF16"], 70),
    "nf4": (dict(WIDE, hidden_dim=64, d_source_model=64, moe_intermediate_dim=64, ssm_expand=2), ["nf4", "nf4n"], 70),
}


def main(out):
    for number, (name, (changes, forms, length)) in enumerate(sorted(CASES.items())):
        config = dict(BASE, **changes)
        model = Model(config, forms, 100 + number)
        ids = np.random.default_rng(number).integers(0, config["vocab_size"], length)
        logits = model.logits(ids)
        directory = os.path.join(out, name)
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, "config.json"), "w") as f:
            json.dump(config, f, indent=2)
            f.write("\n")
        model.file.write(os.path.join(directory, "weights.safetensors"))
        expected = File()
        expected.add("ids", "I32", ids.astype(np.int32))
        expected.add("logits", "F32", logits.astype(np.float32))
        expected.write(os.path.join(directory, "expected.bin"))
        size = os.path.getsize(os.path.join(directory, "weights.safetensors"))
        print(f"{name}: {size} bytes, logits std {logits.std():.3f}, max {np.abs(logits).max():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
