#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make the model that ships with the project, from nothing: texts, vocabulary, training, quantising,
figures, card. One command, a fixed seed, Debian packages as the only source of text:

    tools/mini/recipe.py --work DIR [--bitaxon PATH] [--quick]

DIR keeps every step's result; run again, finished steps are left alone, and training goes on from
its newest checkpoint. The model appears in DIR/mini (quantised) and DIR/float. --quick makes a
small model of stories alone by the same steps: the tests run that.

Needs python3, python3-regex, apt-get (not with --quick), xz and 7z for the comparison in the card.
"""
import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bpe
import card
import stories
import texts
from steps import json_of, resume, run, say, trained, write_json, write_lines

SEED = 1
FULL = {
    "vocab": 4096, "stories": 60000, "definitions": 20000, "questions": 1000, "preset": "mini",
    "block": 1024, "blocks": 4, "warmup": 100,
    "read": {"steps": 1800, "rate": 3e-3, "mask": "all"},
    # Stories from one number to another with some questions each, so many others with every question that can be asked,
    # definitions of so many common words so many times, and all of the prose so many times. Between them drills of
    # finding what was told: after `answer` the model did not look back yet, and took any word of the story that fits. At
    # the end definitions come so often that they are known by heart.
    "recited": 600,
    "answer": {"steps": 4200, "rate": 2e-3, "mask": "content", "stories": (0, 40000), "times": 12, "prose": 4},
    "pair": {"steps": 250, "rate": 2e-3, "mask": "content", "pairs": (0, 40000), "warmup": 50, "last": 1e-3},
    "ask": {"steps": 2000, "rate": 2e-3, "mask": "content", "asked": 26000, "pairs": (40000, 49000), "times": 3, "prose": 1.2},
    "recite": {"steps": 300, "rate": 8e-4, "mask": "content", "asked": 2000, "times": 16, "prose": 0.16},
}
QUICK = {
    "vocab": 512, "stories": 400, "definitions": 0, "questions": 20, "preset": None,
    "block": 256, "blocks": 2, "warmup": 3,
    "read": {"steps": 24, "rate": 5e-3, "mask": "all"}, "recited": 0,
    "answer": {"steps": 3, "rate": 1e-3, "mask": "content", "stories": (0, 100)},
    "pair": {"steps": 3, "rate": 1e-3, "mask": "content", "pairs": (0, 100)},
    "ask": {"steps": 3, "rate": 1e-3, "mask": "content", "asked": 100},
    "recite": {"steps": 3, "rate": 1e-3, "mask": "content", "asked": 100},
}
QUICK_CONFIG = {
    "vocab_size": 512, "hidden_dim": 64, "num_layers": 3, "num_heads": 2, "d_source_model": 64, "ssm_d_state": 4,
    "ssm_d_conv": 4, "ssm_expand": 2, "ssm_scan_step": 8, "swa_window_size": 64, "moe_num_experts": 2,
    "moe_top_k": 1, "moe_intermediate_dim": 64, "moe_shared_expert": True, "weight_tying": True,
    "max_seq_len": 4096, "rms_norm_eps": 1e-6,
}
STAGES = {"read": "reader", "answer": "answerer", "pair": "finder", "ask": "asked", "recite": "float"}  # and what they make
HELD_OUT_NOVEL = "Persuasion"


def pieces(text, size=3000):
    """A long text in pieces that end with a paragraph, or a sentence where a paragraph is long."""
    out = ""
    for paragraph in re.split(r"(?<=\n\n)", text):
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z\"])", paragraph) if len(paragraph) > size else [paragraph]:
            if out and len(out) + len(sentence) > size:
                yield out
                out = ""
            out += sentence if not out or out.endswith("\n") else " " + sentence
    if out.strip():
        yield out


def definition_turns(root, count):
    for word, part, meaning, example in texts.definitions(root, count):
        messages = [{"role": "user", "content": texts.question(word, part)},
                    {"role": "assistant", "content": texts.sentence(meaning)}]
        if example:
            messages += [{"role": "user", "content": f"Give an example of \"{word}\"."},
                         {"role": "assistant", "content": texts.sentence(example)}]
        yield {"messages": messages}


def make_texts(work, plan):
    """read.jsonl, valid.jsonl, questions.jsonl, and held-out files that training never sees."""
    records = list(stories.generate(f"train{SEED}", plan["stories"]))
    asked = {r["messages"][0]["content"] for r in records if "messages" in r}
    held = [q for q in stories.held_out(f"held{SEED}", plan["questions"]) if q["question"] not in asked]
    assert len(held) == plan["questions"], "some held-out questions are in the training set: take another seed"
    write_lines(os.path.join(work, "questions.jsonl"), held)
    valid = list(stories.generate(f"valid{SEED}", max(20, plan["stories"] // 300)))
    if plan["definitions"]:
        root = texts.fetch(work)
        novels = texts.austen(root)
        bible = [book.strip() + "\n" for book in texts.bible(root)]
        cut = [len(book) * 9 // 10 for book in bible]
        prose = [text for title, text in sorted(novels.items()) if title != HELD_OUT_NOVEL]
        prose += [texts.sawyer(root)] + [book[:at] for book, at in zip(bible, cut)]
        held_out = {"novel.txt": novels[HELD_OUT_NOVEL], "bible.txt": "".join(b[at:] for b, at in zip(bible, cut))}
        for name, text in held_out.items():
            with open(os.path.join(work, name), "w", encoding="utf-8") as file:
                file.write(text)
        with open(os.path.join(work, "NOTICE"), "w", encoding="utf-8") as file:
            file.write(texts.notices(root))
        with open(os.path.join(work, "prose.txt"), "w", encoding="utf-8") as file:
            file.write("".join(prose))
        records += [{"text": piece} for text in prose for piece in pieces(text)]
        records += list(definition_turns(root, plan["definitions"]))
        valid += [{"text": piece} for piece in list(pieces(held_out["bible.txt"]))[:40]]
    random.Random(SEED).shuffle(records)
    write_lines(os.path.join(work, "valid.jsonl"), valid)
    write_lines(os.path.join(work, "read.jsonl"), records)


def make_more(work, plan, stage):
    """What a later stage learns: stories and their questions, drills, definitions of common words, prose."""
    part = plan[stage]
    told = (stories.record(f"train{SEED}", i, 10) for i in range(*part.get("stories", (0, 0))))
    records = [r for r in told if "messages" in r]
    for i in range(part.get("asked", 0)):
        text, asks = stories.story(f"{stage}{SEED}", i, *((2, 4) if i % 2 else (4, 10)))
        records += [stories.dialogue(text, asks[:10])] if asks else []
    if part.get("times"):
        turns = [{"messages": r["messages"][:2]} for r in definition_turns(texts.fetch(work), plan["recited"])]
        records += part["times"] * turns
    if part.get("prose"):
        with open(os.path.join(work, "prose.txt"), encoding="utf-8") as file:
            prose = [{"text": piece} for piece in pieces(file.read())]
        whole = int(part["prose"])
        records += whole * prose + random.Random(SEED).sample(prose, int((part["prose"] - whole) * len(prose)))
    with open(os.path.join(work, "questions.jsonl"), encoding="utf-8") as file:
        held = {json.loads(line)["question"] for line in file}
    records = [r for r in records if "messages" not in r or r["messages"][0]["content"] not in held]
    random.Random(SEED).shuffle(records)
    records += [{"text": stories.pairs(f"train{SEED}", i)} for i in range(*part.get("pairs", (0, 0)))]
    write_lines(os.path.join(work, stage + ".jsonl"), records)


def all_text(work):
    with open(os.path.join(work, "read.jsonl"), encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield record.get("text") or "\n".join(m["content"] for m in record["messages"])


def make_start(work, plan, bitaxon, start):
    say("model: random start")
    shape = ["--preset", plan["preset"]] if plan["preset"] else ["--config", os.path.join(work, "config.json")]
    if not plan["preset"]:
        with open(shape[1], "w", encoding="utf-8") as file:
            json.dump(QUICK_CONFIG, file)
    run(bitaxon, "new", *shape, "--seed", str(SEED), "--tokenizer", os.path.join(work, "tokenizer"), start)


def train(work, plan, bitaxon, start, stage, out):
    """All parameters of START learn: to read every text, then answers and prose, at last definitions by heart."""
    part = plan[stage]
    every = str(max(3, part["steps"] // 6))
    say(f"training: {stage}")
    folder = os.path.join(work, stage)
    flags = ["--method", "full", "--mask", part["mask"], "--seed", str(SEED), "--steps", str(part["steps"]),
             "--warmup", str(part.get("warmup", plan["warmup"])), "--learning-rate", str(part["rate"]),
             "--min-learning-rate", str(part.get("last", part["rate"] / 20)), "--weight-decay", "0.1", "--balance", "0.01",
             "--block", str(plan["block"]), "--blocks", str(plan["blocks"]), "--accumulate", "1",
             "--save-every", every, "--eval-every", every, "--validation", os.path.join(work, "valid.jsonl"),
             "--output", folder]
    flags += resume(folder)
    run(bitaxon, "train", start, os.path.join(work, stage + ".jsonl"), *flags)
    shutil.move(os.path.join(folder, "model"), out)


def by_kind(work, bitaxon, model):
    """Of each kind of question: how many there are, and how many are answered rightly."""
    kinds = {}
    with open(os.path.join(work, "questions.jsonl"), encoding="utf-8") as file:
        for record in map(json.loads, file):
            asked = record["question"].rsplit("\n", 1)[1]
            kinds.setdefault(next(kind for kind, form in stories.KINDS if re.fullmatch(form, asked)), []).append(record)
    path = os.path.join(work, "kind.jsonl")
    for kind, _ in stories.KINDS:
        if kind in kinds:
            write_lines(path, kinds[kind])
            found = json_of(bitaxon, "eval", model, "--questions", path, "--json")
            yield {"kind": kind, "items": found["items"], "correct": found["correct"]}
            os.remove(path)


def figures(work, plan, bitaxon, model):
    """What the card states, by `bitaxon eval` on what training never saw."""
    kinds = list(by_kind(work, bitaxon, model))
    out = {"kinds": kinds, "questions": {key: sum(kind[key] for kind in kinds) for key in ("items", "correct")}}
    if not plan["definitions"]:
        return out
    for name in ("novel.txt", "bible.txt"):
        out[name] = json_of(bitaxon, "eval", model, os.path.join(work, name), "--json")
    novel, prose = (os.path.join(work, name) for name in ("novel.txt", "prose.txt"))
    size = os.path.getsize(novel)
    with open(novel, "rb") as file:
        packed = subprocess.run(["xz", "-9e", "-c"], stdin=file, stdout=subprocess.PIPE, check=True).stdout
    out["xz -9e"] = 8 * len(packed) / size
    # What PPMd needs for the novel: behind the prose, and behind all that was trained on and the prose once more.
    whole = os.path.join(work, "whole.txt")
    with open(whole, "w", encoding="utf-8") as file:
        file.write("\n".join(all_text(work)) + "\n")
    for name, before in (("7z PPMd after the prose", (prose,)), ("7z PPMd after all texts", (whole, prose))):
        out[name] = 8 * (packed_by_ppmd(work, before + (novel,)) - packed_by_ppmd(work, before)) / size
    os.remove(whole)
    return out


def packed_by_ppmd(work, parts):
    """Bytes of the parts one after another in an archive of order 8 and 1 GB."""
    joined, archive = os.path.join(work, "joined.txt"), os.path.join(work, "joined.7z")
    with open(joined, "wb") as to:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, to)
    if os.path.exists(archive):
        os.remove(archive)
    subprocess.run(["7z", "a", "-m0=PPMd:o=8:mem=1g", archive, joined], check=True, stdout=subprocess.DEVNULL)
    os.remove(joined)
    return os.path.getsize(archive)


def some_definitions(work, plan):
    """30 of the words that were learned often, drawn with the seed: question and WordNet's answer."""
    turns = [r["messages"] for r in definition_turns(texts.fetch(work), plan["recited"])]
    for messages in random.Random(SEED).sample(turns, 30):
        yield messages[0]["content"], messages[1]["content"]


def said_by(bitaxon, model, question):
    return run(bitaxon, "run", model, "--chat", "--greedy", "--max-tokens", "60", question,
               stdout=subprocess.PIPE).stdout.decode("utf-8", "replace").strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder of all results")
    parser.add_argument("--bitaxon", default="build/bitaxon", help="the command (default: build/bitaxon)")
    parser.add_argument("--quick", action="store_true", help="a small model of stories alone")
    args = parser.parse_args()
    plan = QUICK if args.quick else FULL
    for program in () if args.quick else ("apt-get", "xz", "7z"):
        if not shutil.which(program):
            sys.exit(f"recipe.py: {program} is missing")
    work, bitaxon = os.path.abspath(args.work), os.path.abspath(args.bitaxon)
    os.makedirs(work, exist_ok=True)
    for stage in STAGES:
        if not os.path.exists(os.path.join(work, stage + ".jsonl")):
            say("texts: " + stage)
            make_texts(work, plan) if stage == "read" else make_more(work, plan, stage)
    tokenizer = os.path.join(work, "tokenizer")
    if not os.path.isdir(tokenizer):
        say(f"vocabulary of {plan['vocab']}")
        bpe.write(bpe.train(all_text(work), plan["vocab"]), plan["vocab"], tokenizer + ".new")
        os.rename(tokenizer + ".new", tokenizer)
    model = os.path.join(work, "start")
    if not os.path.isdir(model):
        make_start(work, plan, bitaxon, model)
    for stage, name in STAGES.items():
        before, model = model, os.path.join(work, name)
        if not os.path.isdir(model):
            train(work, plan, bitaxon, before, stage, model)
    mini = os.path.join(work, "mini")
    if not os.path.isdir(mini):
        say("quantise")
        run(bitaxon, "quantize", model, mini)
    say("figures")
    found = figures(work, plan, bitaxon, mini)
    stages = [trained(os.path.join(work, stage)) for stage in STAGES]
    found["training"] = {key: sum(stage[key] for stage in stages) for key in stages[0]}
    found["size"] = sum(os.path.getsize(os.path.join(mini, name)) for name in os.listdir(mini))
    write_json(os.path.join(work, "figures.json"), found)
    print(json.dumps(found, indent=2))
    if plan["definitions"]:
        said = [(question, gloss, said_by(bitaxon, mini, question)) for question, gloss in some_definitions(work, plan)]
        packages = sorted(name[:-len(".deb")] for name in os.listdir(os.path.join(work, "debs")) if name.endswith(".deb"))
        card.write(mini, os.path.join(work, "NOTICE"), found, plan, SEED, packages, said)


if __name__ == "__main__":
    main()
