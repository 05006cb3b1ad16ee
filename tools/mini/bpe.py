# SPDX-License-Identifier: Apache-2.0
"""Train a byte-level BPE vocabulary (Sennrich et al. 2016; bytes as in GPT-2) and write it as
tokenizer.json and tokenizer_config.json.

Words are what the pre-tokeniser's pattern cuts the text into, with how often each occurs. Of all
pairs of neighbours in them the most frequent becomes a token, ties to the pair of lower ids, until
the vocabulary is full. Counts are kept up to date: a merge touches only the words that have the pair.

    train(texts, size) -> list of merges (pairs of byte strings)
    write(merges, size, folder)

Ids: 0..255 the bytes, then the merges in rank order, then <|endoftext|>, <|im_start|>, <|im_end|>.
"""
import heapq
import json
import os
from collections import Counter, defaultdict

import regex

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
            " + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def alphabet():
    """The printable character that stands for each byte in tokenizer.json."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def train(texts, size):
    """Merges of a vocabulary of `size` ids, specials included, from an iterable of strings."""
    pattern = regex.compile(PATTERN)
    counts = Counter()
    for text in texts:
        counts.update(pattern.findall(text))
    words = [list(word.encode()) for word in counts]
    often = list(counts.values())
    pairs, where = Counter(), defaultdict(set)
    for i, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += often[i]
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    pieces = [bytes([b]) for b in range(256)]
    known = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    while len(pieces) < size - len(SPECIALS):
        while heap and -heap[0][0] != pairs[heap[0][1]]:
            heapq.heappop(heap)  # an old count
        if not heap or heap[0][0] == 0:
            raise ValueError(f"the text has pairs for {len(pieces)} tokens only")
        pair = heap[0][1]
        piece = pieces[pair[0]] + pieces[pair[1]]
        merges.append((pieces[pair[0]], pieces[pair[1]]))
        new = known.setdefault(piece, len(pieces))
        if new == len(pieces):  # else another pair has made the same token
            pieces.append(piece)
        changed = set()
        for i in where.pop(pair):
            word, out, at = words[i], [], 0
            for old in zip(word, word[1:]):
                pairs[old] -= often[i]
                changed.add(old)
            while at < len(word):
                if at + 1 < len(word) and (word[at], word[at + 1]) == pair:
                    out.append(new)
                    at += 2
                else:
                    out.append(word[at])
                    at += 1
            for made in zip(out, out[1:]):
                pairs[made] += often[i]
                where[made].add(i)
                changed.add(made)
            words[i] = out
        for old in changed:
            heapq.heappush(heap, (-pairs[old], old))
    return merges


def write(merges, size, folder):
    letters = alphabet()
    spell = lambda piece: "".join(letters[b] for b in piece)
    vocab = {letters[b]: b for b in range(256)}
    for one, two in merges:
        vocab.setdefault(spell(one + two), len(vocab))
    assert len(vocab) == size - len(SPECIALS)
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(vocab) + i, "content": text, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True}
                         for i, text in enumerate(SPECIALS)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": False, "vocab": vocab,
                  "merges": [f"{spell(one)} {spell(two)}" for one, two in merges]},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
