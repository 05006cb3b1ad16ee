#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make the model that ships with the project, from nothing: texts, vocabulary, training, quantising,
figures, card. One command, a fixed seed, Debian packages as the only source of text:

    tools/mini/recipe.py --work DIR [--bitaxon PATH] [--quick]

DIR keeps every step's result; run again, finished steps are left alone, and training goes on from
its newest checkpoint. The model appears in DIR/mini (quantised) and DIR/float. --quick makes a
small model of stories alone, in about a minute, by the same steps: the tests run that.

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
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bpe
import stories
import texts

SEED = 1
FULL = {
    "vocab": 4096, "stories": 60000, "definitions": 20000, "questions": 1000, "preset": "mini",
    "steps": 2400, "block": 1024, "blocks": 4, "accumulate": 2, "rate": 3e-3, "warmup": 100,
}
QUICK = {
    "vocab": 512, "stories": 400, "definitions": 0, "questions": 20, "preset": None,
    "steps": 30, "block": 256, "blocks": 2, "accumulate": 1, "rate": 5e-3, "warmup": 3,
}
QUICK_CONFIG = {
    "vocab_size": 512, "hidden_dim": 64, "num_layers": 3, "num_heads": 2, "d_source_model": 64, "ssm_d_state": 4,
    "ssm_d_conv": 4, "ssm_expand": 2, "ssm_scan_step": 8, "swa_window_size": 64, "moe_num_experts": 2,
    "moe_top_k": 1, "moe_intermediate_dim": 64, "moe_shared_expert": True, "weight_tying": True,
    "max_seq_len": 4096, "rms_norm_eps": 1e-6,
}
HELD_OUT_NOVEL = "Persuasion"


def say(text):
    print(f"== {text}", flush=True)


def run(*command, **options):
    print("   " + " ".join(command), flush=True)
    return subprocess.run(command, check=True, **options)


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
        article = "an" if word[0] in "aeiou" else "a"
        ask = {"noun": f"What is {article} {word}?", "verb": f"What does it mean to {word}?"}
        answer = meaning[0].upper() + meaning[1:] + "."
        messages = [{"role": "user", "content": ask.get(part, f"What does \"{word}\" mean?")},
                    {"role": "assistant", "content": answer}]
        if example:
            messages += [{"role": "user", "content": f"Give an example of \"{word}\"."},
                         {"role": "assistant", "content": example[0].upper() + example[1:] + "."}]
        yield {"messages": messages}


def write_lines(path, records):
    with open(path + ".new", "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.rename(path + ".new", path)


def make_texts(work, plan):
    """train.jsonl, valid.jsonl, questions.jsonl, and held-out files that training never sees."""
    records = list(stories.generate(f"train{SEED}", plan["stories"]))
    asked = {r["messages"][0]["content"] for r in records if "messages" in r}
    held = [q for q in stories.held_out(f"held{SEED}", plan["questions"]) if q["question"] not in asked]
    write_lines(os.path.join(work, "questions.jsonl"), held)
    valid = list(stories.generate(f"valid{SEED}", max(20, plan["stories"] // 300)))
    if plan["definitions"]:
        root = texts.fetch(work)
        novels = texts.austen(root)
        bible = texts.bible(root)
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
    write_lines(os.path.join(work, "train.jsonl"), records)


def all_text(work):
    with open(os.path.join(work, "train.jsonl"), encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield record.get("text") or "\n".join(m["content"] for m in record["messages"])
