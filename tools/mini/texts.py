# SPDX-License-Identifier: Apache-2.0
"""The texts that the shipped model learns from, out of Debian packages alone.

    r-cran-janeaustenr   six novels of Jane Austen                public domain
    golang-github-klauspost-compress-dev
                         The Adventures of Tom Sawyer (test data)  public domain
    sword-text-web       World English Bible                      public domain
    wordnet-base         WordNet 3.0: glosses                     WordNet licence, notice kept

`fetch` downloads the packages with apt-get (no root) and unpacks them; the other functions read
the unpacked tree. Each file's layout is told where it is read.
"""
import glob
import gzip
import os
import re
import struct
import subprocess
import zlib

PACKAGES = ["r-cran-janeaustenr", "golang-github-klauspost-compress-dev", "sword-text-web", "wordnet-base"]
NOVELS = ["Sense and Sensibility", "Pride and Prejudice", "Mansfield Park", "Emma", "Northanger Abbey",
          "Persuasion"]


def fetch(folder, packages=PACKAGES):
    """Download what is missing to folder/debs, unpack all to folder/root. Returns the root."""
    debs, root = os.path.join(folder, "debs"), os.path.join(folder, "root")
    os.makedirs(debs, exist_ok=True)
    for package in packages:
        if not glob.glob(os.path.join(debs, package + "_*.deb")):
            subprocess.run(["apt-get", "download", package], cwd=debs, check=True)
        for deb in glob.glob(os.path.join(debs, package + "_*.deb")):
            subprocess.run(["dpkg", "-x", deb, root], check=True)
    return root


def novels(root):
    """The lines of each novel, joined, in the order of the package. R's lazy-load data base: Rdata.rdx (gzip) holds integer pairs (offset, length)
    into Rdata.rdb; a record there is a big-endian length and a zlib stream of one XDR character
    vector, whose elements are flags (ending in 0x09), length, bytes."""
    base = os.path.join(root, "usr/lib/R/site-library/janeaustenr/data/Rdata")
    with gzip.open(base + ".rdx") as file:
        index = file.read()
    with open(base + ".rdb", "rb") as file:
        data = file.read()
    found = []
    for pair in re.finditer(rb"\0\0\0\r\0\0\0\x02(.{4})(.{4})", index, re.S):
        offset, length = (struct.unpack(">I", group)[0] for group in pair.groups())
        vector = zlib.decompress(data[offset + 4:offset + length])
        at = re.search(rb"\0\0\0\x10(?=....\0[\0\x04][\0\x80]\t)", vector, re.S).end()
        count, at = struct.unpack(">i", vector[at:at + 4])[0], at + 4
        lines = []
        for _ in range(count):
            flags, size = struct.unpack(">Ii", vector[at:at + 8])
            assert flags & 0xFF == 9 and size >= 0
            lines.append(vector[at + 8:at + 8 + size].decode())
            at += 8 + size
        found.append("\n".join(lines))
    assert len(found) == 6, f"expected six novels, found {len(found)}"
    return found


def austen(root):
    """{title: text}."""
    titled = {}
    for text in map(paragraphs, novels(root)):
        title = next((t for t in NOVELS if t.lower() in text[:400].lower()), None)
        assert title is not None and title not in titled, text[:80]
        titled[title] = text
    return titled


def paragraphs(text):
    """The lines of a paragraph are joined; an empty line divides paragraphs."""
    return re.sub(r"\n{2,}", "\n\n", re.sub(r"(?<!\n)\n(?!\n)", " ", text)).strip() + "\n"


def sawyer(root):
    """From the preface on."""
    path = "usr/share/gocode/src/github.com/klauspost/compress/testdata/Mark.Twain-Tom.Sawyer.txt"
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
        text = file.read().replace("\r\n", "\n")
    text = text[text.index("P R E F A C E"):]
    end = text.rfind("End of the Project Gutenberg")
    return paragraphs(text[:end] if end > 0 else text)


def bible(root):
    """One string per testament; a SWORD zText module. *.bzs: (offset, bytes, bytes unpacked) of
    each block in *.bzz."""
    base = os.path.join(root, "usr/share/sword/modules/texts/ztext/engWEB2015eb")
    books = []
    for name in ("ot", "nt"):
        with open(os.path.join(base, name + ".bzs"), "rb") as file:
            blocks = list(struct.iter_unpack("<III", file.read()))
        with open(os.path.join(base, name + ".bzz"), "rb") as file:
            packed = file.read()
        text = b"".join(zlib.decompress(packed[o:o + n]) for o, n, _ in blocks if n)
        text = text.decode("utf-8", "replace")
        text = re.sub(r"<(note|title)\b.*?</\1>", " ", text, flags=re.S)
        text = re.sub(r"</?(div|chapter|milestone|lg?)\b[^>]*>", " ", text)
        text = re.sub(r"<[^>]*>", "", text)
        text = re.sub(r"\s+", " ", text)
        books.append(re.sub(r" (?=[,.;:?!])", "", text))
    return books


def synsets(root):
    """(words, part of speech, gloss) of each set of synonyms, in the order of the files. A line is
    offset, file number, kind, hexadecimal count, then word and number in turns, ..., " | " gloss."""
    for part, label in (("noun", "noun"), ("verb", "verb"), ("adj", "adjective"), ("adv", "adverb")):
        with open(os.path.join(root, "usr/share/wordnet/data." + part), encoding="utf-8") as file:
            for line in file:
                if line.startswith("  ") or " | " not in line:
                    continue
                head, gloss = line.split(" | ", 1)
                fields = head.split()
                count = int(fields[3], 16)
                words = [re.sub(r"\((a|p|ip)\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(count)]
                yield fields[0], words, label, gloss.strip()


def first_senses(root):
    """{(word, part): (how common, definition, example or None)} of each word's first sense in each part
    of speech. How common: occurrences in the tagged texts (cntlist.rev: key, sense, occurrences),
    summed over senses, then the number of senses (index.*)."""
    folder = os.path.join(root, "usr/share/wordnet")
    glosses = {(offset, part): gloss for offset, _, part, gloss in synsets(root)}
    kinds = {"1": "noun", "2": "verb", "3": "adjective", "4": "adverb", "5": "adjective"}
    tags = {}
    with open(os.path.join(folder, "cntlist.rev"), encoding="utf-8") as file:
        for line in file:
            key, _, times = line.split()
            word, rest = key.split("%")
            tags[word, kinds[rest[0]]] = tags.get((word, kinds[rest[0]]), 0) + int(times)
    found = {}
    for suffix, part in (("noun", "noun"), ("verb", "verb"), ("adj", "adjective"), ("adv", "adverb")):
        with open(os.path.join(folder, "index." + suffix), encoding="utf-8") as file:
            for line in file:
                if line.startswith("  ") or not re.match(r"[a-z][a-z_-]+ ", line):
                    continue
                fields = line.split()
                senses = int(fields[2])
                gloss = glosses[fields[-senses], part]
                examples = re.findall(r'"([^"]+)"', gloss)
                text = re.sub(r"\s*;?\s*\"[^\"]*\"(\s*-[^;]*)?", "", gloss).strip(" ;")
                rank = (tags.get((fields[0], part), 0), senses)
                found[fields[0].replace("_", " "), part] = (rank, text, examples[0] if examples else None)
    return found


def definitions(root, count):
    """The `count` commonest words of WordNet with the definition of their first sense: (word, part,
    definition, example or None); of equally common ones by spelling. Of a word that is several
    parts of speech, the commonest."""
    best = {}
    for (word, part), (rank, text, example) in first_senses(root).items():
        if word not in best or rank > best[word][0]:
            best[word] = (rank, part, text, example)
    for word in sorted(best, key=lambda word: (-best[word][0][0], -best[word][0][1], word.replace(" ", "_")))[:count]:
        if best[word][2]:
            yield word, *best[word][1:]


def question(word, part):
    """How a word is asked for; part: noun, verb, or another for which only the word's form is asked."""
    article = "an" if word[0] in "aeiou" else "a"
    ask = {"noun": f"What is {article} {word}?", "verb": f"What does it mean to {word}?"}
    return ask.get(part, f"What does \"{word}\" mean?")


def sentence(text):
    """A definition of WordNet as an answer."""
    return text[0].upper() + text[1:] + "."


def notices(root):
    """What has to stand beside a model that learned from these texts."""
    path = os.path.join(root, "usr/share/doc/wordnet-base/copyright")
    with open(path, encoding="utf-8") as file:
        return file.read()
