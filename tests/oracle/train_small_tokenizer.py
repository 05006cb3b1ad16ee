#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the project's small vocabulary: examples/models/tokenizer/.

4096 ids of byte-level BPE: 256 bytes (0..255), 3837 merges in rank order (256..4092), and the
control tokens <|endoftext|>, <|im_start|>, <|im_end|> on the last three ids.

Text: three Debian packages whose text is free of conditions or carries a permissive licence:
  r-cran-janeaustenr  six novels of Jane Austen                 public domain
  sword-text-web      World English Bible                       public domain
  wordnet-base        glosses and examples of WordNet 3.0       WordNet licence

    python3 -m venv VENV && VENV/bin/pip install tokenizers==0.23.3
    mkdir DEBS && (cd DEBS && apt-get download r-cran-janeaustenr sword-text-web wordnet-base)
    VENV/bin/python tests/oracle/train_small_tokenizer.py DEBS examples/models/tokenizer

The result is the same, byte for byte, on every run.
"""
import json
import os
import re
import subprocess
import sys
import tempfile

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/mini"))
import texts

SIZE = 4096
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def austen(root):
    """The six novels, a string each: the lines of a paragraph are joined."""
    return [re.sub(r"(?<!\n)\n(?!\n)", " ", text) + "\n" for text in texts.novels(root)]


def wordnet(root):
    lines = []
    for part in ("noun", "verb", "adj", "adv"):
        with open(os.path.join(root, "usr/share/wordnet/data." + part), encoding="utf-8") as file:
            for line in file:
                if line.startswith("  ") or " | " not in line:
                    continue
                words, gloss = line.split(" | ", 1)
                word = words.split()[4].replace("_", " ")
                lines.append(f"{word}: {gloss.strip()}\n")
    return ["".join(lines)]


def main():
    packages, out = sys.argv[1:]
    with tempfile.TemporaryDirectory() as root:
        for name in sorted(os.listdir(packages)):
            if name.endswith(".deb"):
                subprocess.run(["dpkg", "-x", os.path.join(packages, name), root], check=True)
        learned = austen(root) + texts.bible(root) + wordnet(root)
    for text in learned:
        print(f"{len(text):9d} characters: {text[:60]!r}")

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=SIZE - len(SPECIALS), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    lines = [line for text in learned for line in text.splitlines(keepends=True)]
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(SPECIALS)

    data = json.loads(tokenizer.to_str())
    data["model"]["merges"] = [m if isinstance(m, str) else " ".join(m)
                               for m in data["model"]["merges"]]
    assert len(data["model"]["vocab"]) == SIZE - len(SPECIALS)
    assert [t["id"] for t in data["added_tokens"]] == [SIZE - 3, SIZE - 2, SIZE - 1]
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
                         " + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
                         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    }
    with open(os.path.join(out, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
