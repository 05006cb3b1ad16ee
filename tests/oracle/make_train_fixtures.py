#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Training runs of small models by PyTorch, for tests/test_train_model.c.

The twin of the model is bit_axon_torch.py beside this file, with autograd in the place of our
backward passes; torch.optim.AdamW stands for our optimiser. It reads checkpoints that the tests
have already (tests/golden) and writes what each run starts from, its tokens, and what must come
out: losses and gradient norms of every update and the gradients of the first one. Everything is
computed twice, in float64 (what is written as gradients and "losses64") and in float32 ("losses",
"norms"); the difference of the two is printed and says how far float runs may be apart.

  python3 -m venv venv && venv/bin/pip install torch==2.13.0 numpy
  venv/bin/python tests/oracle/make_train_fixtures.py tests/golden tests/golden/train
"""
import json
import math
import os
import sys

import numpy as np
import torch

from bit_axon_torch import Model, decays, load, start_adapter, write


def orpo(logp, labels, documents, beta, weight):
    """Sum over pairs, and how many count (Hong et al. 2024; spec 9.7)."""
    total, pairs = 0.0, 0
    for pair in zip(documents[::2], documents[1::2]):
        means = []
        for first, count in pair:
            valid = int((labels[first:first + count] >= 0).sum())
            means.append(logp[first:first + count].sum() / valid if valid else None)
        if means[0] is None or means[1] is None:
            continue
        chosen, rejected = (m.clamp(-1000, -1e-6) for m in means)
        odds = (chosen - rejected) - (torch.log(-torch.expm1(chosen)) - torch.log(-torch.expm1(rejected)))
        total = total - means[0] - weight * torch.nn.functional.logsigmoid(beta * odds)
        pairs += 1
    return total, pairs


# ---- runs ---------------------------------------------------------------------------------

def sequence(rng, vocab, count):
    """Something that can be learnt: steps of a few sizes, sometimes a jump."""
    out = [int(rng.integers(vocab))]
    while len(out) < count:
        jump = rng.random() < 0.1
        out.append(int(rng.integers(vocab)) if jump else (out[-1] * 3 + int(rng.integers(3))) % vocab)
    return out


def make_data(seed, vocab, micro_steps, kind, longest):
    """Micro-steps as (tokens, labels, documents)."""
    rng, out = np.random.default_rng(seed), []
    for number in range(micro_steps):
        tokens, labels, documents = [], [], []
        if kind == "orpo":
            for pair in range(2):
                prompt = sequence(rng, vocab, int(rng.integers(2, 8)))
                for side in range(2):
                    own = prompt + sequence(rng, vocab, int(rng.integers(1, longest // 3)))
                    own = own if side == 0 else [int(t) for t in (np.array(own) + (np.arange(len(own)) >= len(prompt))
                                                                  * rng.integers(0, 5, len(own))) % vocab]
                    follow = own[1:] + [-1]
                    empty = number % 7 == 3 and pair == 1 and side == 1
                    keep = [empty or t < len(prompt) - 1 for t in range(len(own))]
                    documents.append((len(tokens), len(own)))
                    tokens += own
                    labels += [-1 if k else f for k, f in zip(keep, follow)]
        else:
            for count in rng.integers(1, longest, int(rng.integers(2, 5))):
                own = sequence(rng, vocab, int(count))
                masked = int(rng.integers(0, 1 + count // 2))
                documents.append((len(tokens), len(own)))
                tokens += own
                labels += [-1 if t < masked else f for t, f in enumerate(own[1:] + [-1])]
        out.append((tokens, labels, documents))
    return out


def learning_rate(run, update):
    peak, low, warmup, total = run["lr"], run["min_lr"], run["warmup"], run["updates"]
    if update < warmup:
        return peak * (update + 1) / warmup
    return low + (peak - low) * (1 + math.cos(math.pi * (update - warmup) / (total - warmup))) / 2


def train(run, config, values, adapter, data, dtype):
    """One run; losses and norms of every update, summed gradients of the first update's micro-steps."""
    base = {n: torch.tensor(a, dtype=dtype) for n, a in values.items()}
    parts = {p: {n: torch.tensor(a, dtype=dtype) for n, a in own.items()} for p, own in adapter.items()}
    if adapter:
        trained = {f"{p}.{ {'a': 'lora_a', 'b': 'lora_b', 'm': 'm'}[n] }": t for p, own in parts.items()
                   for n, t in own.items()}
    else:
        trained = base
    for t in trained.values():
        t.requires_grad_(True)
    model = Model(config, base, parts, run.get("scale", 0.0), run.get("exact", False))
    optimizer = torch.optim.AdamW([
        {"params": [t for n, t in trained.items() if decays(n)], "weight_decay": run["decay"]},
        {"params": [t for n, t in trained.items() if not decays(n)], "weight_decay": 0.0}],
        lr=1.0, betas=(0.9, 0.999), eps=run.get("epsilon", 1e-8))
    losses, norms, first = [], [], None
    for update in range(run["updates"]):
        loss, weight = 0.0, 0
        optimizer.zero_grad()
        for tokens, labels, documents in data[update * run["micro"]:(update + 1) * run["micro"]]:
            labels = torch.tensor(labels)
            logp = model.logprobs(torch.tensor(tokens), labels, documents)
            if run["objective"] == "orpo":
                own, count = orpo(logp, labels, documents, run["beta"], run["lambda"])
            else:
                own, count = -logp.sum(), int((labels >= 0).sum())
            (own + run.get("balance", 0.0) * model.balance * count / len(tokens)).backward()
            loss, weight = loss + float(own.detach()), weight + count
        if first is None:
            first = {n: (torch.zeros_like(t) if t.grad is None else t.grad).detach().numpy().copy()
                     for n, t in trained.items()}
        for t in trained.values():
            if t.grad is not None:
                t.grad /= weight
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), run["max_norm"])))
        losses.append(loss / weight)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run, update)
        optimizer.step()
    return losses, norms, first, model.margin


SCHEDULE = dict(updates=50, micro=2, lr=2e-3, min_lr=2e-4, warmup=5, decay=0.05, max_norm=1.0, objective="sft")
ONCE = dict(SCHEDULE, updates=1, warmup=1)
LORA = dict(SCHEDULE, rank=4, scale=2.0, lr=1e-2, min_lr=1e-3)
RUNS = {
    "full": dict(SCHEDULE, model="tiny-fp32", seed=1),
    "lora": dict(LORA, model="tiny-fp32", seed=2),
    "dora_affine4": dict(LORA, model="tiny-q4", seed=3, dora=True),
    "dora_exact": dict(LORA, model="tiny-fp32", seed=4, dora=True, exact=True),
    "orpo_nf4": dict(LORA, model="configs/nf4", seed=5, lr=2e-3, min_lr=2e-4, objective="orpo", beta=0.5, **{"lambda": 0.8}),
    # Gradients of one update: what the five leave out (odd sizes, one tap, a window of one, untied
    # head, final norm, rotary position, no shared expert, many layers).
    "grad_extensions": dict(ONCE, model="configs/extensions", seed=6),
    "grad_odd_sizes": dict(ONCE, model="configs/odd_sizes", seed=17, balance=0.5),
    "grad_one_expert": dict(ONCE, model="configs/one_expert", seed=8),
    "grad_window_one": dict(ONCE, model="configs/window_one", seed=9, objective="orpo", beta=1.0, balance=0.5, **{"lambda": 0.1}),
    "grad_dora_half": dict(ONCE, model="configs/half_types", seed=10, rank=3, scale=1.5, dora=True, exact=True),
}


def main(golden, out, names):
    torch.set_num_threads(1)
    for name, run in RUNS.items():
        if names and name not in names:
            continue
        config, values = load(os.path.join(golden, run["model"]))
        data = make_data(run["seed"], config["vocab_size"], run["updates"] * run["micro"], run["objective"], 60)
        adapter = start_adapter(run["seed"], values, run["rank"], run.get("dora", False)) if "rank" in run else {}
        losses64, norms64, grads, margin = train(run, config, values, adapter, data, torch.float64)
        losses, norms, _, _ = train(run, config, values, adapter, data, torch.float32)
        tensors = {
            "tokens": np.array([t for d in data for t in d[0]], np.int32),
            "labels": np.array([t for d in data for t in d[1]], np.int32),
            "documents": np.array([count for d in data for _, count in d[2]], np.uint32),
            "steps": np.array([len(d[2]) for d in data], np.uint32),  # documents of each micro-step
            "losses": np.array(losses), "losses64": np.array(losses64),
            "norms": np.array(norms), "norms64": np.array(norms64),
            "rates": np.array([learning_rate(run, u) for u in range(run["updates"])]),
        }
        for part, own in adapter.items():
            for n, a in own.items():
                tensors[f"start.{part}." + ("m" if n == "m" else "lora_" + n)] = a
        for n, a in grads.items():
            tensors["grad." + n] = a.astype(np.float32)
        path = os.path.join(out, name + ".safetensors")
        write(path, tensors, {k: json.dumps(v) if not isinstance(v, str) else v for k, v in run.items()})
        assert os.path.getsize(path) < 2000000, path
        apart = np.abs(np.array(losses) - np.array(losses64)).max()
        print(f"{name}: {os.path.getsize(path)} bytes, rows {len(tensors['tokens'])}, loss {losses[0]:.4f} -> {losses[-1]:.4f}, "
              f"norm {min(norms):.3g} .. {max(norms):.3g}, float32 apart {apart:.2g} "
              f"(norms {max(abs(a / b - 1) for a, b in zip(norms, norms64)):.2g}), nearest choice {margin:.2g}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
