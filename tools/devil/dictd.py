# SPDX-License-Identifier: Apache-2.0
"""Dictionaries of dictd, and the entries of The Devil's Dictionary in one.

A dictionary is two files. NAME.index has a line for each headword: headword, offset and length of its
text, divided by tabs; the numbers are digits of base 64 (A-Z a-z 0-9 + /), the highest first.
NAME.dict.dz is all the texts, in gzip. Several headwords may share a text; those that begin with
"00database" tell about the dictionary.

`read` and `write` are of any dictionary; `entries` knows how Bierce's are printed.
"""
import gzip
import re
import zlib

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


class BadDictionary(Exception):
    """A file that is not what it should be; says which, where and why."""


def number(text):
    value = 0
    for digit in text:
        value = 64 * value + DIGITS.index(digit)
    return value


def digits(value):
    text = DIGITS[value % 64]
    while value >= 64:
        value //= 64
        text = DIGITS[value % 64] + text
    return text


def read(base):
    """[([headwords], text)] in the order of the texts, of the files BASE.index and BASE.dict.dz."""
    index, packed = base + ".index", base + ".dict.dz"
    try:
        with gzip.open(packed) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise BadDictionary(f"{packed}: {error}") from error
    heads = {}
    try:
        with open(index, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadDictionary(f"{index}: {error}") from error
    for i, line in enumerate(lines):
        if not line and i == len(lines) - 1:
            break
        where = f"{index}: line {i + 1}"
        fields = line.split("\t")
        if len(fields) < 3:
            raise BadDictionary(f"{where}: not a headword, an offset and a length divided by tabs")
        try:
            offset, length = number(fields[1]), number(fields[2])
        except ValueError:
            raise BadDictionary(f"{where}: offset or length of '{fields[0]}' is no number of base 64") from None
        if offset + length > len(data):
            raise BadDictionary(f"{where}: '{fields[0]}' ends at byte {offset + length}, "
                                f"but {packed} has {len(data)}")
        heads.setdefault((offset, length), []).append(fields[0])
    if not heads:
        raise BadDictionary(f"{index}: no headwords")
    found = []
    for offset, length in sorted(heads):
        try:
            found.append((heads[offset, length], data[offset:offset + length].decode()))
        except UnicodeDecodeError as error:
            raise BadDictionary(f"{packed}: text of '{heads[offset, length][0]}': {error}") from None
    return found


def write(base, texts):
    """The two files of [([headwords], text)]."""
    data, lines = b"", []
    for words, text in texts:
        part = text.encode()
        lines += [f"{word}\t{digits(len(data))}\t{digits(len(part))}\n" for word in words]
        data += part
    with open(base + ".dict.dz", "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as to:
        to.write(data)
    with open(base + ".index", "w", encoding="utf-8") as file:
        file.writelines(sorted(lines))


# ---- Bierce's entries ------------------------------------------------------------------------

PARTS = {"n": "noun", "v": "verb", "adj": "adjective", "adv": "adverb", "p": "adjective", "pp": "adjective"}
HEAD = re.compile(r"([A-Z][^a-z\n,]*?)(?:(?:, | or | \(or )[A-Z]{2,}\)?[A-Z ]*)*[,.?]* ?"  # BABE or BABY,
                  r"(?:([a-z]+)\.(?:[a-z]+\.)*(?: and [a-z]+\.)* +|  +)(?=\S)")             # v.t. or nothing
SLURS = re.compile(r"\bnigger|\bnegro", re.I)  # no model has to learn to say these
LONGEST = 240  # characters of a definition; whole sentences, at least one


def definition(text):
    """The first paragraph of what follows a headword, in one line, up to LONGEST, without sentences that only
    introduce the verses behind it, which Bierce ascribes to others."""
    text = re.sub(r"^(\[[^\]]*\]\s*)+", "", text.strip())  # [Latin], [from {ACADEME}]
    text = re.split(r"\n\s*\n", text)[0]
    text = re.sub(r"(?<=\w)-\n\s*", "-", text)
    text = re.sub(r"([.!?][\"')\]]*)\s*\n\s*", r"\1  ", text)  # sentences are two blanks apart
    text = re.sub(r"[_{}]|\s\(See [^)]*\)", "", re.sub(r"\s*\n\s*", " ", text))
    sentences = [re.sub(r"\s+", " ", part) for part in re.split(r"(?<=[.!?\"')\]])\s{2,}", text.strip())]
    while sentences and re.search(r"(:|,|--)$", sentences[-1]):
        sentences.pop()
    while len(sentences) > 1 and len(" ".join(sentences)) > LONGEST:
        sentences.pop()
    return " ".join(sentences)


def entries(base):
    """([(word, part of speech or None, definition)] by spelling, {why: how many are left out}). An entry
    begins with its headword in capitals, a part of speech and two blanks:

        BABE or BABY, n.  A misshapen creature ...
    """
    found, left = {}, {"about the dictionary": 0, "no definition in prose": 0, "slurs": 0}
    for heads, text in read(base):
        match = HEAD.match(text)
        meaning = definition(text[match.end():]) if match else ""
        if heads[0].startswith("00"):
            left["about the dictionary"] += 1
        elif not meaning:
            left["no definition in prose"] += 1
        elif SLURS.search(match[0] + meaning):
            left["slurs"] += 1
        else:
            printed = match[1].strip(" .?").lower()
            plain = {re.sub(r"[^a-z]", "", head) for head in heads}
            word = printed if re.sub(r"[^a-z]", "", printed) in plain else heads[0]
            part = None if ".pl." in match[0] else PARTS.get(match[2])
            found.setdefault(word, (word, part, meaning))
    return [found[word] for word in sorted(found)], left
