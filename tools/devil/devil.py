#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model that answers like The Devil's Dictionary: fine-tuned on Bierce's definitions (SFT), then taught to
prefer them to WordNet's (ORPO); and what that changes, in answers and figures. One command, a fixed
seed, Debian packages as the only source of text (dict-devil, public domain; wordnet-base):

    tools/devil/devil.py --work DIR --model MODEL [--bitaxon PATH]
    tools/devil/devil.py --work DIR --quick [--bitaxon PATH]

MODEL is a chat model, quantised or not; it stays as it is. In DIR appear sft/adapter, orpo/adapter, answers.md
and figures.json. Run again, finished steps are left alone, and training goes on from its newest
checkpoint. --quick makes a tiny model and a small dictionary by itself: the tests run that.

Needs python3 and apt-get (without --quick), python3-regex (with it).
"""
import argparse
import json
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "mini"))
import dictd
import texts
from steps import json_of, resume, run, say, trained, write_json, write_lines

SEED = 1
PACKAGES = ["dict-devil", "wordnet-base"]
FULL = {
    "words": ["benefactor", "accordion", "year", "love", "politics", "dictionary",  # learned
              "alone", "discussion", "faith", "patience", "saint", "misfortune"],   # held out
    "sft": {"steps": 260, "rate": 1e-3, "flags": ["--rank", "16", "--block", "1024", "--accumulate", "2"]},
    "orpo": {"steps": 200, "rate": 5e-4, "flags": ["--block", "1024", "--blocks", "8", "--accumulate", "1",
                                                   "--beta", "1", "--lambda", "1"]},
    "answer": 64,
}
QUICK = {
    "words": ["baker", "babe", "adore", "rider"],
    "sft": {"steps": 80, "rate": 3e-3, "flags": ["--rank", "8", "--block", "256", "--accumulate", "1"]},
    "orpo": {"steps": 12, "rate": 1e-3, "flags": ["--block", "256", "--blocks", "4", "--accumulate", "1"]},
    "answer": 32, "base": 120,
}
STAGES = ("base", "sft", "orpo")
EVERY = 10  # of so many headwords one is held out


def turns(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


# ---- data --------------------------------------------------------------------------------------

def plain_line(senses, word, part):
    """(part of speech to ask for, WordNet's definition), or None: of the same part of speech if WordNet
    has that, else of the commonest, asked for without one."""
    for form in (word, word.replace("-", " "), word.replace("-", "")):
        if (form, part) in senses:
            return part, senses[form, part][1]
        others = [senses[form, other] for other in ("noun", "verb", "adjective", "adverb") if (form, other) in senses]
        if others:
            return None, max(others)[1]
    return None


def make_data(root, folder):
    """What is learned and what is held out of both: every tenth headword, in order of spelling."""
    entries, left = dictd.entries(os.path.join(root, "usr/share/dictd/devil"))
    senses = texts.first_senses(root)
    learned, held, words = {"sft": [], "pairs": []}, {"sft": [], "pairs": []}, {}
    for i, (word, part, meaning) in enumerate(entries):
        to = held if i % EVERY == EVERY - 1 else learned
        part, plain = plain_line(senses, word, part) or (part, "")
        question = texts.question(word, part)
        plain = texts.sentence(plain) if plain else None
        to["sft"].append(turns(question, meaning))
        if plain and plain != meaning:
            to["pairs"].append({"prompt": question, "chosen": meaning, "rejected": plain})
        words[word] = {"question": question, "bierce": meaning, "wordnet": plain, "held_out": to is held}
    counts = {"entries": len(entries), "left_out": left, "pairs": len(learned["pairs"]) + len(held["pairs"]),
              "learned": {name: len(records) for name, records in learned.items()},
              "held_out": {name: len(records) for name, records in held.items()}}
    for name in ("sft", "pairs"):
        write_lines(os.path.join(folder, name + ".jsonl"), learned[name])
        write_lines(os.path.join(folder, name + "-held.jsonl"), held[name])
    write_lines(os.path.join(folder, "choices-held.jsonl"),
                [{"question": p["prompt"], "choices": [p["chosen"], p["rejected"]], "answer": 0} for p in held["pairs"]])
    for name, records in (("recite", learned["sft"][::EVERY]), ("recite-held", held["sft"])):
        write_lines(os.path.join(folder, name + ".jsonl"),
                    [{"question": r["messages"][0]["content"], "answer": r["messages"][1]["content"]} for r in records])
    write_json(os.path.join(folder, "words.json"), words)
    with open(os.path.join(folder, "NOTICE"), "w", encoding="utf-8") as file:
        file.write("Ambrose Bierce, The Devil's Dictionary: public domain (Debian package dict-devil).\n\n"
                   + texts.notices(root))
    write_json(os.path.join(folder, "counts.json"), counts)


def make_quick_model(work, plan, root, bitaxon):
    """A tiny model that has read WordNet's kind of lines alone."""
    import bpe
    from recipe import QUICK_CONFIG
    folder = os.path.join(work, "base")
    os.makedirs(folder, exist_ok=True)
    data, config, tokenizer = (os.path.join(folder, name) for name in ("plain.jsonl", "config.json", "tokenizer"))
    start, model = os.path.join(folder, "start"), os.path.join(folder, "quantised")
    asked = [(texts.question(word, part), texts.sentence(text))
             for (word, part), (_, text, _) in sorted(texts.first_senses(root).items())]
    write_lines(data, [turns(*pair) for pair in asked])
    write_json(config, QUICK_CONFIG)
    if not os.path.isdir(start):
        shutil.rmtree(tokenizer, ignore_errors=True)
        entries, _ = dictd.entries(os.path.join(root, "usr/share/dictd/devil"))
        vocabulary = QUICK_CONFIG["vocab_size"]
        both = ["\n".join(pair) for pair in asked] + [meaning for _, _, meaning in entries]
        bpe.write(bpe.train(both, vocabulary), vocabulary, tokenizer)
        run(bitaxon, "new", "--config", config, "--seed", str(SEED), "--tokenizer", tokenizer, start)
    learned = os.path.join(folder, "learn", "model")
    if not os.path.isdir(learned):
        train(bitaxon, start, data, os.path.join(folder, "learn"),
              {"steps": plan["base"], "rate": 5e-3, "flags": ["--method", "full", "--block", "256", "--accumulate", "1"]})
    run(bitaxon, "quantize", learned, model)
    os.rename(model, os.path.join(work, "model"))


# ---- training ----------------------------------------------------------------------------------

def train(bitaxon, model, data, folder, part, *more):
    every = str(max(3, part["steps"] // 5))
    run(bitaxon, "train", model, data, "--output", folder, "--seed", str(SEED), "--steps", str(part["steps"]),
        "--learning-rate", str(part["rate"]), "--save-every", every, *part["flags"], *more, *resume(folder))


def teach(work, plan, bitaxon, model):
    """SFT from nothing, ORPO from SFT's adapter."""
    file = lambda name: os.path.join(work, "data", name + ".jsonl")
    result = lambda stage: os.path.join(work, stage, "adapter")
    for stage, data, more in (("sft", "sft", ["--method", "lora"]),
                              ("orpo", "pairs", ["--objective", "orpo", "--adapter", result("sft")])):
        if not os.path.exists(os.path.join(result(stage), "adapters.safetensors")):
            say(f"training: {stage}")
            every = str(max(3, plan[stage]["steps"] // 5))
            train(bitaxon, model, file(data), os.path.join(work, stage), plan[stage], *more,
                  "--validation", file(data + "-held"), "--eval-every", every)


# ---- what came of it -----------------------------------------------------------------------------

def measure(work, bitaxon, model, adapter):
    """How likely the held-out pairs are, and how many definitions are recited word for word."""
    data = lambda name: os.path.join(work, "data", name + ".jsonl")
    with_adapter = ["--adapter", adapter] if adapter else []
    pairs = json_of(bitaxon, "eval", model, "--choices", data("choices-held"), "--json", *with_adapter)
    out = {"pairs": pairs["items"], "nll_chosen": pairs["nll_right"], "nll_rejected": pairs["nll_wrong"],
           "chosen_likelier": pairs["accuracy_per_token"], "standard_error": pairs["standard_error_per_token"],
           "chosen_likelier_per_byte": pairs["accuracy_per_byte"],
           "standard_error_per_byte": pairs["standard_error_per_byte"]}
    for name in ("recite", "recite-held"):
        found = json_of(bitaxon, "eval", model, "--questions", data(name), "--answer-tokens", "192", "--json",
                        *with_adapter)
        out[name] = {"asked": found["items"], "word for word": found["correct"]}
    return out


def ask(bitaxon, model, adapter, question, tokens):
    more = ["--adapter", adapter] if adapter else []
    answer = json_of(bitaxon, "run", model, "--chat", "--greedy", "--max-tokens", str(tokens), "--json", *more,
                     "--", question)
    return answer["text"].strip() + (" ..." if answer["finish"] == "length" else "")


def table(heads, rows):
    cell = lambda text: " ".join(str(text).replace("|", "\\|").split())
    lines = [heads, ["---"] * len(heads)] + rows
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines) + "\n"


def report(words, chosen, answers, found):
    """answers.md: what was asked before and after, then the figures."""
    text = ""
    for held, title in ((False, "Words that it was trained on"), (True, "Words that were held out")):
        rows = [[words[word]["question"]] + [answers[stage][word] for stage in STAGES]
                for word in chosen if words[word]["held_out"] == held]
        if rows:
            text += f"{title}:\n\n" + table(["asked", "before", "after SFT", "after SFT and ORPO"], rows) + "\n"
    figure = lambda name, form: [form(found[stage][name]) for stage in STAGES]
    rows = [["Bierce's line, nats a token"] + figure("nll_chosen", "{:.3f}".format),
            ["WordNet's line, nats a token"] + figure("nll_rejected", "{:.3f}".format),
            ["Bierce's the likelier by token"] + figure("chosen_likelier", "{:.1%}".format),
            ["Bierce's the likelier by byte"] + figure("chosen_likelier_per_byte", "{:.1%}".format)]
    for name, title in (("recite", "learned"), ("recite-held", "held out")):
        rows.append([f"recited word for word, {title}"]
                    + figure(name, lambda value: f"{value['word for word']} of {value['asked']}"))
    return text + f"{found['base']['pairs']} held-out pairs:\n\n" + table(["", "before", "SFT", "SFT and ORPO"], rows)


def finish(work, plan, bitaxon, model):
    words, counts = (read_json(os.path.join(work, "data", name + ".json")) for name in ("words", "counts"))
    answers, found = {}, {}
    for stage in STAGES:
        kept = os.path.join(work, f"after-{stage}.json")
        if not os.path.exists(kept):
            say(f"answers and figures: {stage}")
            adapter = os.path.join(work, stage, "adapter") if stage != "base" else None
            write_json(kept, {"answers": {word: ask(bitaxon, model, adapter, words[word]["question"], plan["answer"])
                                          for word in plan["words"]},
                              "figures": measure(work, bitaxon, model, adapter)})
        kept = read_json(kept)
        answers[stage], found[stage] = kept["answers"], kept["figures"]
    text = report(words, plan["words"], answers, found)
    with open(os.path.join(work, "answers.md.new"), "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(os.path.join(work, "answers.md.new"), os.path.join(work, "answers.md"))
    write_json(os.path.join(work, "figures.json"),
               {"data": counts, "held_out": found,
                "training": {stage: trained(os.path.join(work, stage)) for stage in STAGES[1:]}})
    print("\n" + text)


def same_model(work, bitaxon, model):
    """Results of one model are not taken for another's."""
    path = os.path.join(work, "model.json")
    now = {"fingerprint": json_of(bitaxon, "inspect", model, "--json")["fingerprint"]}
    if not os.path.exists(path):
        write_json(path, now)
    elif read_json(path) != now:
        sys.exit(f"{work} has the results of another model than {model}: give another --work")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder of all results")
    parser.add_argument("--model", help="the model to fine-tune")
    parser.add_argument("--bitaxon", default="build/bitaxon", help="the command (default: build/bitaxon)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and a small dictionary")
    args = parser.parse_args()
    if args.quick == (args.model is not None):
        parser.error("give --model MODEL, or --quick, which makes its own")
    plan = QUICK if args.quick else FULL
    work, bitaxon = os.path.abspath(args.work), os.path.abspath(args.bitaxon)
    root, data = os.path.join(work, "root"), os.path.join(work, "data")
    os.makedirs(work, exist_ok=True)
    if not os.path.isdir(data):
        say("texts")
        if not args.quick:
            texts.fetch(work, PACKAGES)
        elif not os.path.isdir(root):
            import made_up
            made_up.write(root + ".new")
            os.rename(root + ".new", root)
        os.makedirs(data + ".new", exist_ok=True)
        make_data(root, data + ".new")
        os.rename(data + ".new", data)
    counts = read_json(os.path.join(data, "counts.json"))
    say(f"{counts['entries']} entries, {counts['pairs']} pairs with WordNet's lines; held out "
        f"{counts['held_out']['sft']} and {counts['held_out']['pairs']}; left out: "
        + ", ".join(f"{count} {why}" for why, count in counts["left_out"].items()))
    model = os.path.join(work, "model") if args.quick else os.path.abspath(args.model)
    if args.quick and not os.path.isdir(model):
        say("a tiny model")
        make_quick_model(work, plan, root, bitaxon)
    same_model(work, bitaxon, model)
    teach(work, plan, bitaxon, model)
    finish(work, plan, bitaxon, model)


if __name__ == "__main__":
    try:
        main()
    except (dictd.BadDictionary, FileNotFoundError) as error:
        sys.exit(f"devil.py: {error}")
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(f"devil.py: failed with {error.returncode}: {' '.join(error.cmd)}")
