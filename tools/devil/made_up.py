# SPDX-License-Identifier: Apache-2.0
"""A small dictionary and the lines of WordNet for its words, made up, in the files that the packages
dict-devil and wordnet-base have: `devil.py --quick` and the tests read these where the real ones
would have to be downloaded. Every way in which real entries are printed is there once."""
import os

import dictd

VERBS = ("bake carve climb count dance dream drive farm fetch fold glaze guard hunt judge keep lend mend "
         "mine mow paint plant play plough print rhyme ride row sail seek sell sing smoke speak teach "
         "think trade travel walk wander warn wash watch weave whisper").split()
THINGS = ("bread", "stone", "hope", "fish", "gold", "grass", "wool")
JESTS = ("One who would rather {verb} the {thing} of his neighbor than his own.",
         "A person whose {thing} is always for sale.  He is paid in {other}.",
         "One who takes {thing} from\nthe poor and calls it {other}.")

# (headwords, text, what has to come of it or None, WordNet's line as (word, part, gloss) or None)
ODD = (
    (["babe", "baby"], "BABE or BABY, n.  A mis-\nshapen creature of no _particular_ age.\n\n\n",
     ("babe", "noun", "A mis-shapen creature of no particular age."), ("babe", "noun", "a very young child")),
    (["academy"], "ACADEMY, n.  [from {ACADEME}]  A school.  Where football\nis taught.\n\n"
     "    A verse that nobody\n    Has to learn.\n                              G.J.\n\n",
     ("academy", "noun", "A school. Where football is taught."),
     ("academy", "noun", "a school for special training; \"the academy closed\"")),
    (["adore"], "ADORE, v.t.  To venerate expectantly.\n\n",
     ("adore", "verb", "To venerate expectantly."), ("adore", "verb", "love intensely")),
    (["rattle head"], "RATTLE-HEAD, adj.  In the condition of a drum.  As the poet says:\n\n    Boom.\n\n",
     ("rattle-head", "adjective", "In the condition of a drum."), None),
    (["abracadabra"], "ABRACADABRA.\n\n    By _Abracadabra_ we signify\n        Nothing.\n\n", None,
     ("abracadabra", "noun", "gibberish")),
    (["x"], "X in our alphabet is a needless letter.\n\n", None, None),
)


def nouns():
    """(word, Bierce's kind of line, WordNet's kind of line), always the same."""
    for i, verb in enumerate(VERBS):
        word = (verb if verb.endswith("e") else verb + "e") + "r"
        thing, other = THINGS[i % len(THINGS)], THINGS[(3 * i + 1) % len(THINGS)]
        yield word, JESTS[i % len(JESTS)].format(verb=verb, thing=thing, other=other), f"someone who can {verb} {thing}"


def write(root):
    """The files below ROOT, as the packages unpack them."""
    folder = {name: os.path.join(root, "usr/share", name) for name in ("dictd", "wordnet", "doc/wordnet-base")}
    for path in folder.values():
        os.makedirs(path, exist_ok=True)
    texts = [(["00databaseinfo"], "A dictionary that was made up.\n")]
    texts += [(heads, text) for heads, text, _, _ in ODD]
    texts += [([word], f"{word.upper()}, n.  {jest}\n\n\n") for word, jest, _ in nouns()]
    dictd.write(os.path.join(folder["dictd"], "devil"), texts)
    lines = [line for _, _, _, line in ODD if line] + [(word, "noun", plain) for word, _, plain in nouns()]
    for suffix, part in (("noun", "noun"), ("verb", "verb"), ("adj", "adjective"), ("adv", "adverb")):
        with open(os.path.join(folder["wordnet"], "data." + suffix), "w", encoding="utf-8") as data, \
             open(os.path.join(folder["wordnet"], "index." + suffix), "w", encoding="utf-8") as index:
            data.write("  1 a line of the licence\n")
            index.write("  1 a line of the licence\n")
            for at, (word, _, gloss) in enumerate(line for line in lines if line[1] == part):
                data.write(f"{at:08} 18 {suffix[0]} 01 {word} 0 000 | {gloss}\n")
                index.write(f"{word} {suffix[0]} 1 0 1 0 {at:08}\n")
    with open(os.path.join(folder["wordnet"], "cntlist.rev"), "w", encoding="utf-8") as file:
        file.write("".join(f"{word}%1:18:00:: 1 3\n" for word, _, _ in nouns()))
    with open(os.path.join(folder["doc/wordnet-base"], "copyright"), "w", encoding="utf-8") as file:
        file.write("Made up.\n")
