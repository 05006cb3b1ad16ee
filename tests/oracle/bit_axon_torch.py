# SPDX-License-Identifier: Apache-2.0
"""A twin of the model in PyTorch, written from the specification's equations (sections 2 to 6, 9
and appendix B): forward as it stands there, backward by autograd. Files are read and written here
too. For make_train_fixtures.py, in any precision, and bench/train_peer.py, which makes it fast.

Needs torch and numpy from PyPI; no part of the build or of the tests."""
import json
import math
import os
import struct

import numpy as np
import torch

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "out_proj", "gate_proj", "up_proj", "down_proj",
           "input_proj", "output_proj")


# ---- files --------------------------------------------------------------------------------

def read(path):
    """Tensors of a safetensors file as NumPy arrays; BF16 as float32."""
    with open(path, "rb") as f:
        raw = f.read()
    size, = struct.unpack("<Q", raw[:8])
    header, data, out = json.loads(raw[8:8 + size]), raw[8 + size:], {}
    kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U32": "<u4", "U8": "u1", "I32": "<i4"}
    for name, item in header.items():
        if name == "__metadata__":
            continue
        begin, end = item["data_offsets"]
        a = np.frombuffer(data[begin:end], kinds[item["dtype"]]).reshape(item["shape"])
        if item["dtype"] == "BF16":
            a = (a.astype(np.uint32) << 16).view(np.float32)
        out[name] = a
    return out


def write(path, tensors, meta):
    header, offset = {"__metadata__": meta}, 0
    kinds = {"float32": "F32", "float64": "F64", "int32": "I32", "uint32": "U32"}
    arrays = {n: np.ascontiguousarray(a) for n, a in sorted(tensors.items(), key=lambda i: -i[1].itemsize)}
    for name, a in arrays.items():
        header[name] = {"dtype": kinds[str(a.dtype)], "shape": list(a.shape), "data_offsets": [offset, offset + a.nbytes]}
        offset += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays.values()))


def codes_of(words, count):
    """Rows of U32 words as little-endian streams of `count` codes of equal width."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    bits = stream.shape[1] // count
    return stream.reshape(len(words), count, bits).astype(np.int64) @ (1 << np.arange(bits))


def dequantised(tensors, prefix, shape):
    """The values of PREFIX.weight [.., rows, cols] in float64, whatever its form (spec 2.3, 2.4, 6.2)."""
    w, cols = tensors[prefix + ".weight"], shape[-1]
    if prefix + ".scales" in tensors:
        scales = tensors[prefix + ".scales"].astype(np.float64).reshape(-1, 1)
        biases = tensors.get(prefix + ".biases", tensors.get(prefix + ".biases_quant"))
        codes = codes_of(w.reshape(-1, w.shape[-1]), cols).reshape(len(scales), -1)
        return (codes * scales + biases.astype(np.float64).reshape(-1, 1)).reshape(shape)
    if prefix + ".weight.absmax" in tensors:
        absmax = tensors[prefix + ".weight.absmax"]
        state = json.loads(tensors[prefix + ".weight.quant_state.bitsandbytes__nf4"].tobytes())
        if "nested_blocksize" in state:
            table = tensors[prefix + ".weight.nested_quant_map"].astype(np.float64)
            outer = np.repeat(tensors[prefix + ".weight.nested_absmax"].astype(np.float64), state["nested_blocksize"])
            absmax = table[absmax] * outer[:len(absmax)] + state["nested_offset"]
        flat = w.reshape(-1)
        codes = np.stack([flat >> 4, flat & 15], axis=1).reshape(len(absmax), -1)
        return (np.array(NF4)[codes] * absmax.astype(np.float64)[:, None]).reshape(shape)
    return w.astype(np.float64).reshape(shape)


def load(directory):
    """config.json with "kinds" of the layers, and all values in float64."""
    with open(os.path.join(directory, "config.json")) as f:
        c = json.load(f)
    tensors = {}
    for name in sorted(os.listdir(directory)):
        if name.endswith(".safetensors"):
            tensors.update(read(os.path.join(directory, name)))
    V, S, D, L = c["vocab_size"], c["d_source_model"], c["hidden_dim"], c["num_layers"]
    N, E = c["ssm_d_state"], c["hidden_dim"] * c["ssm_expand"]
    X, I = c["moe_num_experts"], c["moe_intermediate_dim"]
    values = {}

    def matrix(name, *shape):
        values[name + ".weight"] = dequantised(tensors, name, shape)

    matrix("embed_tokens", V, S)
    matrix("input_proj", D, S)
    matrix("output_proj", S, D)
    t = L // 3
    c["kinds"] = ["ssm"] * t + ["swa"] * t + ["both"] * (L - 2 * t)
    for i, kind in enumerate(c["kinds"]):
        p = f"layer_{i}."
        if kind == "swa":
            for n in "qkvo":
                matrix(p + f"attention.{n}_proj", D, D)
        else:
            matrix(p + "ssm.in_proj", 2 * E, D)
            matrix(p + "ssm.x_proj", 2 * N + 1, E)
            matrix(p + "ssm.out_proj", D, E)
        if kind != "ssm":
            matrix(p + "moe.gate", X, D)
            matrix(p + "moe.switch_mlp.gate_proj", X, I, D)
            matrix(p + "moe.switch_mlp.up_proj", X, I, D)
            matrix(p + "moe.switch_mlp.down_proj", X, D, I)
            if c["moe_shared_expert"]:
                matrix(p + "moe.shared_expert_gate", 1, D)
                matrix(p + "moe.shared_expert.gate_proj", I, D)
                matrix(p + "moe.shared_expert.up_proj", I, D)
                matrix(p + "moe.shared_expert.down_proj", D, I)
    head = "lm_head.weight"
    if head in tensors and not (c["weight_tying"] and "lm_head.scales" not in tensors
                                and np.array_equal(tensors[head], tensors["embed_tokens.weight"])):
        matrix("lm_head", V, S)
    for name, a in tensors.items(): # vectors
        if name.endswith(("norm.weight", ".bias", ".A_log", ".D", "conv1d.weight", "dt_proj.weight")):
            values[name] = a.astype(np.float64)
    return c, values


def start_adapter(seed, values, rank, dora):
    """Random adapters, B too, of all weights that adapters may change."""
    rng, out = np.random.default_rng(seed), {}
    for name in sorted(values):
        part = name[:-len(".weight")]
        if not name.endswith(".weight") or "switch_mlp" in name or part.split(".")[-1] not in TARGETS:
            continue
        rows, cols = values[name].shape
        own = {"a": rng.uniform(-1, 1, (cols, rank)) / math.sqrt(cols), "b": 0.05 * rng.standard_normal((rank, rows))}
        if dora:
            own["m"] = np.linalg.norm(values[name], axis=1) * (1 + 0.05 * rng.standard_normal(rows))
        out[part] = {n: a.astype(np.float32) for n, a in own.items()}
    return out


def decays(name):
    """Whether the optimiser's decay applies: to matrices and to both halves of an adapter."""
    return name.endswith((".weight", ".lora_a", ".lora_b")) and \
        not name.endswith(("norm.weight", "conv1d.weight", "dt_proj.weight"))


# ---- the model ----------------------------------------------------------------------------

def silu(x):
    return x * torch.sigmoid(x)


class Model:
    """values: name -> tensor. adapter: name of linear -> dict(a [in, r], b [r, out], m [out])."""

    def __init__(self, config, values, adapter=None, scale=0.0, exact=False):
        self.c, self.w, self.adapter, self.scale, self.exact = config, values, adapter or {}, scale, exact
        self.margin = math.inf  # how near a choice of experts was to another one

    def linear(self, name, x):
        w = self.w[name + ".weight"]
        y = x @ w.T
        part = self.adapter.get(name)
        if part is None:
            return y
        y = y + self.scale * ((x @ part["a"]) @ part["b"])
        if "m" in part:
            length = (w + self.scale * (part["a"] @ part["b"]).T).norm(dim=1)
            y = y * (part["m"] / (length if self.exact else length.detach()))
        return y

    def norm(self, name, x):
        r = torch.rsqrt((x * x).mean(-1, keepdim=True) + self.c["rms_norm_eps"])
        return x * r * self.w[name]

    def ssm(self, p, u, documents):
        c, w = self.c, self.w
        N, K, E = c["ssm_d_state"], c["ssm_d_conv"], c["hidden_dim"] * c["ssm_expand"]
        xz = self.linear(p + "in_proj", u)
        x, z = xz[:, :E], xz[:, E:]
        taps = w[p + "conv1d.weight"].reshape(E, K)
        parts = []
        for first, count in documents:
            own = torch.cat([x.new_zeros(K - 1, E), x[first:first + count]])
            parts.append(sum(own[j:j + count] * taps[:, j] for j in range(K)) + w[p + "conv1d.bias"])
        x = silu(torch.cat(parts))
        r = self.linear(p + "x_proj", x)
        pre = r[:, 2 * N:] * w[p + "dt_proj.weight"].reshape(1, E) + w[p + "dt_proj.bias"]
        dt = torch.clamp(torch.logaddexp(pre, torch.zeros_like(pre)), 1e-4, 100)
        decay = torch.exp(dt[:, :, None] * -torch.exp(w[p + "A_log"]))
        entry = (dt * x)[:, :, None] * r[:, None, :N]
        states = []
        for first, count in documents:
            h = torch.zeros_like(entry[0])
            for t in range(first, first + count):
                h = decay[t] * h + entry[t]
                states.append(h)
        y = (torch.stack(states) * r[:, None, N:2 * N]).sum(-1) + w[p + "D"] * x
        return self.linear(p + "out_proj", y * silu(z))

    def attention(self, p, u, documents):
        c = self.c
        H, W, T = c["num_heads"], c["swa_window_size"], len(u)
        d = c["hidden_dim"] // H
        q, k, v = (self.linear(p + n + "_proj", u).reshape(T, H, d).transpose(0, 1) for n in "qkv")
        place = torch.cat([torch.arange(count) for _, count in documents])
        number = torch.cat([torch.full((count,), i) for i, (_, count) in enumerate(documents)])
        if c.get("rope_theta"):
            angle = place[:, None].double() * c["rope_theta"] ** (-2 * torch.arange(d // 2).double() / d)
            cos, sin = angle.cos().to(u.dtype), angle.sin().to(u.dtype)

            def rotate(m):
                a, b = m[..., :d // 2], m[..., d // 2:]
                return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
            q, k = rotate(q), rotate(k)
        scores = q @ k.transpose(1, 2) / math.sqrt(d)
        back = place[:, None] - place[None]
        seen = (number[:, None] == number[None]) & (back >= 0) & (back < W)
        a = torch.softmax(scores.masked_fill(~seen, -math.inf), -1)
        return self.linear(p + "o_proj", (a @ v).transpose(0, 1).reshape(T, H * d))

    def moe(self, p, u):
        c, w = self.c, self.w
        X, k = c["moe_num_experts"], c["moe_top_k"]
        prob = torch.softmax(u @ w[p + "gate.weight"].T, -1)
        order = torch.sort(prob.detach(), dim=-1, descending=True, stable=True)
        if k < X:
            self.margin = min(self.margin, float((order.values[:, k - 1] - order.values[:, k]).min()))
        picked = torch.zeros_like(prob).scatter(1, order.indices[:, :k], 1.0)
        hidden = silu(torch.einsum("td,xid->xti", u, w[p + "switch_mlp.gate_proj.weight"])) * \
            torch.einsum("td,xid->xti", u, w[p + "switch_mlp.up_proj.weight"])
        each = torch.einsum("xti,xdi->xtd", hidden, w[p + "switch_mlp.down_proj.weight"])
        out = torch.einsum("tx,xtd->td", prob * picked, each)
        # Load balancing (Fedus et al. 2021, eq. 4), over the rows, of the k choices of each row.
        share = picked.sum(0) / (k * len(u))
        self.balance = self.balance + X * (share * prob.mean(0)).sum() * len(u)
        if c["moe_shared_expert"]:
            h = silu(self.linear(p + "shared_expert.gate_proj", u)) * self.linear(p + "shared_expert.up_proj", u)
            gate = torch.sigmoid(u @ w[p + "shared_expert_gate.weight"].T)
            out = out + gate * self.linear(p + "shared_expert.down_proj", h)
        return out

    def hidden(self, tokens, documents):
        """What the head reads, [T, S]."""
        self.balance = 0.0
        x = self.linear("input_proj", self.w["embed_tokens.weight"][tokens])
        for i, kind in enumerate(self.c["kinds"]):
            p = f"layer_{i}."
            u = self.norm(p + "input_norm.weight", x)
            x = x + (self.attention(p + "attention.", u, documents) if kind == "swa"
                     else self.ssm(p + "ssm.", u, documents))
            if kind != "ssm":
                name = "post_attention_norm" if kind == "swa" else "post_ssm_norm"
                x = x + self.moe(p + "moe.", self.norm(p + name + ".weight", x))
        if self.c.get("final_norm"):
            x = self.norm("final_norm.weight", x)
        return self.linear("output_proj", x)

    def head(self):
        return self.w.get("lm_head.weight", self.w["embed_tokens.weight"])

    def logprobs(self, tokens, labels, documents):
        """log p(label) of every row, 0 where there is none."""
        logits = self.hidden(tokens, documents) @ self.head().T
        logp = torch.log_softmax(logits, -1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return torch.where(labels >= 0, logp, torch.zeros_like(logp))
