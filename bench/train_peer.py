#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One training step of bitaxon and of PyTorch, side by side: the same weights, tokens, loss,
clipping and AdamW, in turns on the same machine.

  python3 -m venv venv && venv/bin/pip install torch==2.13.0 numpy
  venv/bin/python bench/train_peer.py [--method lora] [--tokens 1024] [--rounds 5] [--json]

The model is the preset mini with random weights, or --model DIR, a float model of the
architecture bit-axon. A round is one process of `bitaxon train` and then each PyTorch twin in
a process of its own, idle in between; all begin at the same values, and of the updates
of a round the first is left out. Losses must agree, of the first update within 1e-4: else the
two did not do the same work, and the exit code is 1. docs/performance.md has the figures.

PyTorch comes in several forms, and the fastest counts; those that round 1 shows to be more than
a quarter slower than the best take no part in the others. The compiled one (torch.compile of all that lies
between products and scans) needs a C++ compiler, and half a minute in its first update.

A tool for people who measure, not a part of the build or the tests."""
import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RANK, SCALE, RATE, DECAY, NORM = 8, 2.0, 1e-3, 0.01, 1.0
FIRST, LATER = 1e-4, 1e-3  # how far losses may be apart, of the first update and of the others
FORMS = {
    "steps": "eager, scan step by step",
    "chunks": "eager, 16 steps of all chunks at once",
    "cached": "eager, scan in cache, own backward",
    "compiled": "compiled, scan in cache, own backward",
}


def fail(text):
    sys.exit(f"train_peer: {text}")


# ---- the twin, fast (in a process of its own) -----------------------------------------------

def make_peer(torch, Model, form):
    """Class of the model with what makes PyTorch fast on a CPU; layers' equations are Model's."""
    F = torch.nn.functional
    compiled = torch.compile if form == "compiled" else lambda function: function
    CHUNK = 16

    # States are [T, N, E]: channels innermost, so that all broadcasts are long rows.
    def scan_steps(dt, x, A, B, C):
        decay, entry = torch.exp(dt[:, None] * A), (dt * x)[:, None] * B[:, :, None]
        h, states = torch.zeros_like(entry[0]), []
        for a, e in zip(decay.unbind(0), entry.unbind(0)):
            h = torch.addcmul(e, a, h)
            states.append(h)
        return (torch.stack(states) * C[:, :, None]).sum(1)

    def scan_chunks(dt, x, A, B, C):
        """Each chunk from zero with its products of decays, then what the chunks before leave."""
        T, E = dt.shape
        pad = -T % CHUNK
        if pad:
            dt, x, B = (F.pad(m, (0, 0, 0, pad)) for m in (dt, x, B))
        shape = (-1, CHUNK, A.shape[0], E)
        decay = torch.exp(dt[:, None] * A).reshape(shape).unbind(1)
        entry = ((dt * x)[:, None] * B[:, :, None]).reshape(shape).unbind(1)
        h, p = entry[0], decay[0]
        states, products = [h], [p]
        for a, e in zip(decay[1:], entry[1:]):
            h, p = torch.addcmul(e, a, h), p * a
            states.append(h)
            products.append(p)
        start = torch.zeros_like(h[0])
        starts = []
        for own, product in zip(h.unbind(0), p.unbind(0)):
            starts.append(start)
            start = torch.addcmul(own, product, start)
        states = torch.addcmul(torch.stack(states, 1), torch.stack(products, 1), torch.stack(starts)[:, None])
        return (states.reshape(-1, A.shape[0], E)[:T] * C[:, :, None]).sum(1)

    class CachedScan(torch.autograd.Function):
        """Chunk by chunk in buffers that stay in the cache; backward computes the states again."""

        @staticmethod
        def states(dt, dtx, A, B, decay, states):
            """states[0] is given; the others and the decays are computed."""
            n = len(dt)
            torch.mul(dt[:, None], A, out=decay[:n])
            decay[:n].exp_()
            torch.mul(dtx[:, None], B[:, :, None], out=states[1:n + 1])
            rows = states.unbind(0)
            for h, a, before in zip(rows[1:n + 1], decay.unbind(0), rows):
                h.addcmul_(a, before)

        @staticmethod
        def forward(ctx, dt, x, A, B, C):
            T, (N, E), dtx = len(dt), A.shape, dt * x
            y, starts = torch.empty_like(dt), dt.new_empty((T + CHUNK - 1) // CHUNK, N, E)
            decay, states = dt.new_empty(CHUNK, N, E), dt.new_zeros(CHUNK + 1, N, E)
            for c, f in enumerate(range(0, T, CHUNK)):
                t = slice(f, min(f + CHUNK, T))
                n = t.stop - f
                starts[c] = states[0]
                CachedScan.states(dt[t], dtx[t], A, B[t], decay, states)
                torch.bmm(C[t, None], states[1:n + 1], out=y[t, None])
                states[0] = states[n]
            ctx.save_for_backward(dt, x, A, B, C, starts)
            return y

        @staticmethod
        def backward(ctx, dy):
            dt, x, A, B, C, starts = ctx.saved_tensors
            T, (N, E), dtx = len(dt), A.shape, dt * x
            d_dt, d_dtx, d_A, d_B, d_C = (torch.empty_like(dt), torch.empty_like(dt), torch.zeros_like(A),
                                          torch.empty_like(B), torch.empty_like(C))
            decay, states = dt.new_empty(CHUNK, N, E), dt.new_empty(CHUNK + 1, N, E)
            grad, later = dt.new_empty(CHUNK, N, E), dt.new_zeros(N, E)
            for c in reversed(range(len(starts))):
                t = slice(c * CHUNK, min((c + 1) * CHUNK, T))
                n = t.stop - t.start
                states[0] = starts[c]
                CachedScan.states(dt[t], dtx[t], A, B[t], decay, states)
                g, d, before, own = grad[:n], decay[:n], states[:n], dy[t]
                torch.mul(own[:, None], C[t, :, None], out=g)
                g[n - 1] += later
                rows, decays = g.unbind(0), d.unbind(0)
                for i in range(n - 2, -1, -1):
                    rows[i].addcmul_(decays[i + 1], rows[i + 1])
                torch.mul(decays[0], rows[0], out=later)
                d_C[t] = torch.bmm(states[1:n + 1], own[:, :, None])[:, :, 0]
                d_B[t] = torch.bmm(g, dtx[t, :, None])[:, :, 0]
                d_dtx[t] = torch.bmm(B[t, None], g)[:, 0]
                g.mul_(before).mul_(d)
                d_A += (g * dt[t, None]).sum(0)
                torch.sum(g.mul_(A), 1, out=d_dt[t])
            return d_dt.addcmul_(d_dtx, x), d_dtx * dt, d_A, d_B, d_C

    scan = {"steps": scan_steps, "chunks": scan_chunks}.get(form, CachedScan.apply)

    @compiled
    def rms_norm(x, w, eps):
        return F.rms_norm(x, w.shape, w, eps)

    @compiled
    def convolve(x, taps, bias):
        K, T = taps.shape[1], len(x)
        own = F.pad(x, (0, 0, K - 1, 0))
        total = bias + own[:T] * taps[:, 0]
        for j in range(1, K):
            total = total + own[j:j + T] * taps[:, j]
        return F.silu(total)

    @compiled
    def step_size(r, w, bias):
        return torch.clamp(F.softplus(r * w + bias), 1e-4, 100)

    @compiled
    def gated(y, x, D, z):
        return (y + D * x) * F.silu(z)

    @compiled
    def swiglu(g, u):
        return F.silu(g) * u

    class Peer(Model):
        masks = {}

        def linear(self, name, x):
            y, part = F.linear(x, self.w[name + ".weight"]), self.adapter.get(name)
            return y if part is None else torch.addmm(y, x @ part["a"], part["b"], alpha=self.scale)

        def norm(self, name, x):
            return rms_norm(x, self.w[name], self.c["rms_norm_eps"])

        def ssm(self, p, u, documents):
            c, w = self.c, self.w
            N, K, E = c["ssm_d_state"], c["ssm_d_conv"], c["hidden_dim"] * c["ssm_expand"]
            x, z = self.linear(p + "in_proj", u).split(E, 1)
            taps, bias = w[p + "conv1d.weight"].reshape(E, K), w[p + "conv1d.bias"]
            sizes = [count for _, count in documents]
            x = torch.cat([convolve(own, taps, bias) for own in x.split(sizes)])
            r = self.linear(p + "x_proj", x)
            dt = step_size(r[:, 2 * N:], w[p + "dt_proj.weight"].reshape(1, E), w[p + "dt_proj.bias"])
            A = -torch.exp(w[p + "A_log"]).T.contiguous()
            parts = zip(dt.split(sizes), x.split(sizes), r[:, :N].split(sizes), r[:, N:2 * N].split(sizes))
            y = torch.cat([scan(a, b, A, B, C) for a, b, B, C in parts])
            return self.linear(p + "out_proj", gated(y, x, w[p + "D"], z))

        def attention(self, p, u, documents):
            if self.c.get("rope_theta"):
                return super().attention(p, u, documents)
            H, W, T = self.c["num_heads"], self.c["swa_window_size"], len(u)
            q, k, v = (self.linear(p + n + "_proj", u).reshape(T, H, -1).transpose(0, 1) for n in "qkv")
            parts = []
            for first, count in documents:
                for f in range(first, first + count, W):  # a window of queries sees two of keys
                    end, begin = min(f + W, first + count), max(first, f - W + 1)
                    key = (end - f, f - begin)
                    if key not in self.masks:
                        back = torch.arange(f, end)[:, None] - torch.arange(begin, end)
                        self.masks[key] = (back >= 0) & (back < W)
                    whole = f == begin
                    parts.append(F.scaled_dot_product_attention(
                        q[None, :, f:end], k[None, :, begin:end], v[None, :, begin:end],
                        attn_mask=None if whole else self.masks[key], is_causal=whole)[0])
            return self.linear(p + "o_proj", torch.cat(parts, 1).transpose(0, 1).reshape(T, -1))

        def moe(self, p, u):
            c, w = self.c, self.w
            prob = torch.softmax(F.linear(u, w[p + "gate.weight"]), -1)
            share, chosen = prob.topk(c["moe_top_k"], -1)
            names = [p + f"switch_mlp.{n}_proj.weight" for n in ("gate", "up", "down")]
            out = torch.zeros_like(u)
            for x, (gate, up, down) in enumerate(zip(*(w[n].unbind(0) for n in names))):
                rows, slot = (chosen == x).nonzero(as_tuple=True)
                own = u[rows]
                h = F.linear(swiglu(F.linear(own, gate), F.linear(own, up)), down)
                out = out.index_add(0, rows, h * share[rows, slot, None])
            if c["moe_shared_expert"]:
                q = p + "shared_expert."
                h = swiglu(self.linear(q + "gate_proj", u), self.linear(q + "up_proj", u))
                gate = torch.sigmoid(F.linear(u, w[p + "shared_expert_gate.weight"]))
                out = out + gate * self.linear(q + "down_proj", h)
            return out

        def loss(self, tokens, labels, documents):
            """Mean over the labels that count."""
            x = self.hidden(tokens, documents)
            return F.cross_entropy(F.linear(x, self.head()), labels, ignore_index=-1)

    return Peer


class Run:
    """What a PyTorch process does: values, optimiser and updates."""

    def __init__(self, form, folder):
        import torch
        sys.path.insert(0, os.path.join(ROOT, "tests", "oracle"))
        import bit_axon_torch as twin
        self.torch, self.twin, self.folder = torch, twin, folder
        with open(os.path.join(folder, "work.json")) as f:
            self.work = json.load(f)
        torch.set_num_threads(self.work["threads"])
        self.Peer = make_peer(torch, twin.Model, form)
        self.reset()
        self.fresh = True

    def reset(self):
        """Everything as at the start of the run."""
        torch, lora = self.torch, self.work["method"] == "lora"
        config, values = self.twin.load(os.path.join(self.folder, "model"))
        base = {n: torch.tensor(a, dtype=torch.float32) for n, a in values.items()}
        parts, trained = {}, base
        if lora:
            loaded = self.twin.read(os.path.join(self.folder, "adapter", "adapters.safetensors"))
            trained = {n: torch.tensor(a) for n, a in loaded.items()}
            parts = {n[:-len(".lora_a")]: {"a": trained[n], "b": trained[n[:-1] + "b"]} for n in trained
                     if n.endswith(".lora_a")}
        for t in trained.values():
            t.requires_grad_(True)
        self.model = self.Peer(config, base, parts, SCALE)
        self.trained = list(trained.values())
        self.optimizer = torch.optim.AdamW(
            [{"params": [t for n, t in trained.items() if self.twin.decays(n) == decay],
              "weight_decay": DECAY if decay else 0.0} for decay in (True, False)
             if any(self.twin.decays(n) == decay for n in trained)],
            lr=RATE, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def updates(self):
        import ctypes
        import gc
        import time
        torch, size, blocks = self.torch, self.work["tokens"], self.work["blocks"]
        ids = torch.tensor(self.work["ids"]).reshape(-1, blocks * size)
        documents = [(i * size, size) for i in range(blocks)]
        if self.fresh:
            self.fresh = False
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")  # VmHWM begins anew: what loading took does not count
        else:
            self.reset()
        seconds, losses = [], []
        for tokens in ids:
            labels = torch.cat([tokens[1:], tokens[:1]])
            labels[size - 1::size] = -1
            start = time.perf_counter()
            self.optimizer.zero_grad()
            loss = self.model.loss(tokens, labels, documents)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trained, NORM)
            self.optimizer.step()
            losses.append(float(loss.detach()))
            seconds.append(time.perf_counter() - start)
        with open("/proc/self/status") as f:
            peak = next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))
        return {"seconds": seconds, "losses": losses, "peak": peak}


def write_adapter(folder, model):
    """The start of both with --method lora: random halves, so that nothing is zero."""
    import numpy as np
    sys.path.insert(0, os.path.join(ROOT, "tests", "oracle"))
    import bit_axon_torch as twin
    parts = twin.start_adapter(1, twin.load(model)[1], RANK, False)
    os.makedirs(os.path.join(folder, "adapter"))
    twin.write(os.path.join(folder, "adapter", "adapters.safetensors"),
               {f"{p}.lora_{n}": np.asarray(a) for p, own in parts.items() for n, a in own.items()},
               {"lora_scale": str(SCALE), "rank": str(RANK), "type": "lora", "format_version": "1"})


def serve(form, folder):
    """A line of standard input, a round; answers are JSON lines."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    if form == "prepare":
        return write_adapter(folder, os.path.join(folder, "model"))
    import torch
    run = Run(form, folder)
    print(json.dumps({"torch": torch.__version__}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(run.updates()), file=answers, flush=True)


class Twin:
    """Such a process, seen from outside."""

    def __init__(self, form, folder):
        # Large pages, and none goes back to the system between updates: without, PyTorch spends
        # half its time in page faults.
        env = dict(os.environ, MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(1 << 40), MALLOC_TOP_PAD_=str(1 << 26),
                   GLIBC_TUNABLES="glibc.malloc.hugetlb=1")
        self.form, self.dead, self.results = form, None, []
        self.errors = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--worker", form, folder],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
                                        env=env)
        self.version = (self.answer() or {}).get("torch")

    def answer(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self.errors.seek(0)
        self.dead = ([line.strip() for line in self.errors if line.strip()] or ["no message"])[-1]
        return None

    def round(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        result = self.answer()
        if result is not None:
            self.results.append(result)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


# ---- bitaxon --------------------------------------------------------------------------------

def ask(bitaxon, *arguments):
    """The JSON object that a command prints."""
    done = subprocess.run([bitaxon, *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        fail((done.stderr.strip() or f"{bitaxon} ended with {done.returncode}").splitlines()[-1])
    return json.loads(done.stdout)


def bitaxon_round(args, folder):
    """One process of `bitaxon train`: {"seconds", "losses", "peak"} as a twin answers."""
    out = os.path.join(folder, "run")
    command = [args.bitaxon, "train", os.path.join(folder, "model"), os.path.join(folder, "text.txt"),
               "--output", out, "--method", args.method, "--mask", "all", "--no-shuffle", "--block", str(args.tokens),
               "--blocks", str(args.blocks), "--accumulate", "1", "--steps", str(args.updates), "--warmup", "1",
               "--learning-rate", str(RATE), "--min-learning-rate", str(RATE), "--weight-decay", str(DECAY),
               "--max-norm", str(NORM), "--threads", str(args.threads), "--no-thermal", "--quiet"]
    if args.method == "lora":
        command += ["--adapter", os.path.join(folder, "adapter")]
    with tempfile.TemporaryFile(mode="w+") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        if process.returncode != 0:
            fail(errors.read().strip() or f"bitaxon train ended with {process.returncode}")
    with open(os.path.join(out, "metrics.jsonl")) as f:
        lines = [json.loads(line) for line in f]
    shutil.rmtree(out)
    rows = args.blocks * args.tokens
    if len(lines) != args.updates or any(line["rows"] != rows for line in lines):
        fail(f"bitaxon trained {[line['rows'] for line in lines]} rows where {args.updates} times {rows} were expected")
    return {"seconds": [line["seconds"] for line in lines], "losses": [line["loss"] for line in lines],
            "peak": usage.ru_maxrss * 1024}


def lend_model(source, folder):
    """The model with a tokenizer of single bytes, so that the tokens of the text are known."""
    os.mkdir(os.path.join(folder, "model"))
    files = [n for n in os.listdir(source) if n == "config.json" or n.endswith(".safetensors")]
    for name in files:
        os.symlink(os.path.abspath(os.path.join(source, name)), os.path.join(folder, "model", name))


def write_text(args, config, folder):
    """Blocks for all updates of a round; returns their ids."""
    rng, vocab = random.Random(1), config["vocab_size"]
    if vocab < 257:
        fail(f"the model has {vocab} tokens; 257 are needed")
    ids = rng.sample(range(vocab), 257)
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    spare = iter(range(256, 512))
    letters = [chr(b) if b in plain else chr(next(spare)) for b in range(256)]
    end = {"id": ids[256], "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}
    tokenizer = {"version": "1.0", "added_tokens": [end], "normalizer": None,
                 "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                                   "use_regex": False},
                 "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                 "model": {"type": "BPE", "vocab": {letters[b]: ids[b] for b in range(256)}, "merges": []}}
    with open(os.path.join(folder, "model", "tokenizer.json"), "w") as f:
        json.dump(tokenizer, f)
    text = bytes(rng.choices(range(97, 123), k=args.updates * args.blocks * args.tokens))
    with open(os.path.join(folder, "text.txt"), "wb") as f:
        f.write(text)
    return [ids[b] for b in text]


# ---- counting and telling -------------------------------------------------------------------

def operations(args, model, config):
    """Useful operations of a token, and the formula in words."""
    kinds, D = config["num_layers"], config["hidden_dim"]
    layers, window = kinds // 3, config["swa_window_size"]
    keys = sum(min(t + 1, window) for t in range(args.tokens)) / args.tokens
    active = model["active_parameters"]
    if model["tied"] != "tied":
        active -= config["vocab_size"] * config["d_source_model"]  # rows of the embedding are only read
    attention, rest = 3 * 4 * D * keys * layers, f"12 x {D} x {keys:.0f} keys x {layers} layers"
    if args.method == "full":
        return 6 * active + attention, f"6 x {active:,} active parameters + {rest}"
    E, S, I = D * config["ssm_expand"], config["d_source_model"], config["moe_intermediate_dim"]
    own = 2 * (D + S) + layers * 8 * D + (kinds - layers) * (D + 2 * E + E + D)
    own += (kinds - layers) * 3 * (D + I) if config["moe_shared_expert"] else 0
    own *= RANK
    return (4 * active + 6 * own + attention,
            f"4 x {active:,} active parameters + 6 x {own:,} of the adapter + {rest}")


def peak_of(limits):
    """The fastest f32 multiply-add on all threads."""
    threads = max(limit["threads"] for limit in limits)
    best = max((limit for limit in limits if limit["key"].startswith("f32_") and limit["threads"] == threads),
               key=lambda limit: limit["value"])
    return best["value"], best["name"], threads


def row_of(name, results, args, useful, peak):
    seconds = [s for r in results for s in r["seconds"][1:]]
    rate = args.blocks * args.tokens / statistics.median(seconds)
    return {"name": name, "tokens_per_second": rate, "slowest": args.blocks * args.tokens / max(seconds),
            "fastest": args.blocks * args.tokens / min(seconds), "samples": len(seconds), "flops": rate * useful,
            "share": rate * useful / peak, "peak_bytes": max(r["peak"] for r in results),
            "losses": results[0]["losses"], "seconds": [r["seconds"] for r in results]}


def apart(ours, theirs):
    """Differences of losses: of the first update, and the largest of all."""
    each = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"])]
    return each[0], max(each)


def show(report, args):
    head = ["", "tokens/s", "slowest .. fastest", "n", "bitaxon is", "GFLOP/s", "of f32 peak", "memory", "first loss",
            "apart", "any apart"]
    body = []
    for row in report["rows"]:
        first = row is report["rows"][0]
        body.append([row["name"], f"{row['tokens_per_second']:.0f}", f"{row['slowest']:.0f} .. {row['fastest']:.0f}",
                     str(row["samples"]), "" if first else f"{row['ratio']:.2f} x", f"{row['flops'] / 1e9:.1f}",
                     f"{100 * row['share']:.1f} %", f"{row['peak_bytes'] / 1e6:.0f} MB", f"{row['losses'][0]:.6f}",
                     "" if first else f"{row['apart_first']:.1e}", "" if first else f"{row['apart']:.1e}"])
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    print(f"{report['model']}: {report['parameters']:,} parameters, {report['active_parameters']:,} used by a token; "
          f"training {report['method']}, f32, AdamW")
    print(f"{args.blocks} x {args.tokens} tokens an update, {report['threads']} threads, rounds {args.rounds} of "
          f"{args.updates} updates, the first of each left out")
    print(f"{report['cpu']}; {report['bitaxon']}; PyTorch {report['torch']}\n")
    for i, line in enumerate([head, *body]):
        cells = [c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(line, widths))]
        print("| " + " | ".join(cells) + " |")
        if i == 0:
            print("|" + "|".join("-" * (w + 2) if k == 0 else "-" * (w + 1) + ":" for k, w in enumerate(widths)) + "|")
    print(f"\nUseful operations of a token: {report['operations'] / 1e6:.1f} MFLOP = {report['formula']};")
    print(f"of {report['peak'] / 1e9:.0f} GFLOP/s, {report['peak_name']}, {report['peak_threads']} threads. Medians; "
          "memory is VmHWM (of PyTorch with its libraries, loading left out).")
    for form, why in report["left_out"].items():
        print(f"Left out: {FORMS[form]}: {why}")
    best = report["rows"][report["fastest"]]
    print(f"Fastest of PyTorch: {best['name']}. bitaxon does {best['ratio']:.2f} times its tokens/s.")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bitaxon", default=os.path.join(ROOT, "build", "bitaxon"), metavar="PATH",
                        help="the command (default: build/bitaxon)")
    parser.add_argument("--model", metavar="DIR", help="float model in safetensors (default: a new one, preset mini)")
    parser.add_argument("--method", choices=("full", "lora"), default="full", help=f"lora: rank {RANK}")
    parser.add_argument("--tokens", type=int, default=1024, metavar="N", help="length of a block (1024)")
    parser.add_argument("--blocks", type=int, default=1, metavar="N", help="blocks of an update (1)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns (5)")
    parser.add_argument("--updates", type=int, default=5, metavar="N",
                        help="updates of a round, of which the first is left out (5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="of both (default: all CPUs)")
    parser.add_argument("--forms", default=",".join(FORMS), metavar="LIST", help="of PyTorch: " + ", ".join(FORMS))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, least in (("tokens", 2), ("blocks", 1), ("rounds", 1), ("updates", 2), ("threads", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}, at least {least} is needed")
    args.forms = args.forms.split(",")
    for form in args.forms:
        if form not in FORMS:
            parser.error(f"--forms: '{form}' is not one of {', '.join(FORMS)}")
    return args


def compare(args, folder, twins):
    if args.model is None:
        args.model = os.path.join(folder, "mini")
        ask(args.bitaxon, "new", "--preset", "mini", "--seed", "1", args.model)
    model = ask(args.bitaxon, "inspect", args.model)
    config = model["config"]
    if model["architecture"] != "bit-axon":
        fail(f"{args.model} has the architecture {model['architecture']}; the twin knows bit-axon alone")
    if any(tensor["format"] != "float" for tensor in model["tensors"]):
        fail(f"{args.model} is quantised; a float model is needed")
    if args.tokens > config["max_seq_len"]:
        fail(f"--tokens: {args.tokens} is more than the model's max_seq_len of {config['max_seq_len']}")
    lend_model(args.model, folder)
    work = {"threads": args.threads, "method": args.method, "tokens": args.tokens, "blocks": args.blocks,
            "ids": write_text(args, config, folder)}
    with open(os.path.join(folder, "work.json"), "w") as f:
        json.dump(work, f)
    if args.method == "lora":
        done = subprocess.run([sys.executable, os.path.abspath(__file__), "--worker", "prepare", folder],
                              stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            fail("writing the adapter: " + (done.stderr.strip() or "no message").splitlines()[-1])

    limits = ask(args.bitaxon, "bench", "--only", "limits", "--rounds", "1", "--threads", str(args.threads))
    peak, peak_name, peak_threads = peak_of(limits["limits"])
    useful, formula = operations(args, model, config)
    twins += [Twin(form, folder) for form in args.forms]
    left_out = {twin.form: twin.dead for twin in twins if twin.dead}
    alive, ours = [twin for twin in twins if not twin.dead], []
    for number in range(args.rounds):
        say(args, f"round {number + 1} of {args.rounds}: bitaxon")
        ours.append(bitaxon_round(args, folder))
        for twin in alive:
            say(args, f"round {number + 1} of {args.rounds}: {FORMS[twin.form]}")
            twin.round()
            if twin.dead:
                left_out[twin.form] = twin.dead
        alive = [twin for twin in alive if not twin.dead]
        if not alive:
            fail("no form of PyTorch ran: " + "; ".join(f"{FORMS[f]}: {why}" for f, why in left_out.items()))
        if number == 0:
            best = min(min(twin.results[0]["seconds"][1:]) for twin in alive)
            for twin in [t for t in alive if min(t.results[0]["seconds"][1:]) > 1.25 * best]:
                alive.remove(twin)
                twin.end()
    say(args, "")
    first = row_of("bitaxon", ours, args, useful, peak)
    rows = [first]
    for twin in twins:
        if twin.results and not twin.dead:
            row = row_of(FORMS[twin.form], twin.results, args, useful, peak)
            row["ratio"] = first["tokens_per_second"] / row["tokens_per_second"]
            row["apart_first"], row["apart"] = apart(first, row)
            rows.append(row)
    fastest = max(range(1, len(rows)), key=lambda i: rows[i]["tokens_per_second"])
    return {"model": args.model if os.path.dirname(args.model) != folder else "mini, random weights",
            "method": args.method, "parameters": model["parameters"], "active_parameters": model["active_parameters"],
            "tokens": args.tokens, "blocks": args.blocks, "rounds": args.rounds, "updates": args.updates,
            "threads": args.threads, "cpu": limits["machine"]["cpu"], "bitaxon": limits["library"],
            "torch": next(twin.version for twin in twins if twin.version), "operations": useful, "formula": formula,
            "peak": peak, "peak_name": peak_name, "peak_threads": peak_threads, "rows": rows, "fastest": fastest,
            "left_out": left_out}


def say(args, text):
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def main():
    args = parse()
    if args.worker:
        return serve(*args.worker)
    for module in ("torch", "numpy"):
        if importlib.util.find_spec(module) is None:
            fail(f"this Python ({sys.executable}) has no {module}: pip install torch==2.13.0 numpy")
    if shutil.which(args.bitaxon) is None:
        fail(f"{args.bitaxon} is not a program that can be run: `make`, or --bitaxon PATH")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that twins end and the folder goes
    twins = []
    with tempfile.TemporaryDirectory(prefix="train_peer.") as folder:
        try:
            report = compare(args, folder, twins)
        finally:
            for twin in twins:
                twin.end()
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        show(report, args)
    for row in report["rows"][1:]:
        if not (row["apart_first"] <= FIRST and row["apart"] <= LATER):
            fail(f"losses differ by {row['apart_first']:.1e} at first and by {row['apart']:.1e} later ({row['name']}): "
                 "not the same work")


if __name__ == "__main__":
    main()
