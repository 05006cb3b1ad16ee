# SPDX-License-Identifier: Apache-2.0
"""The card of the model that recipe.py makes: README.md and NOTICE in its folder. Called by recipe.py."""
import os
import shutil


def figure(value, digits=3):
    return f"{value:.{digits}f}"


def write(model, notice, found, plan, seed, packages, said):
    """packages: names with versions, of which the texts are; said: (question, WordNet's answer, the model's) for words
    whose definitions were learned."""
    asked = found["questions"]
    tokens, seconds = found["training"]["tokens"], found["training"]["seconds"]
    rows = [("Jane Austen, *Persuasion*, the model", figure(found["novel.txt"]["bits_per_byte"])),
            ("the same, `xz -9e`", figure(found["xz -9e"]))]
    rows += [("the same, 7-Zip's PPMd after the prose that was trained on", figure(found["7z PPMd after the prose"])),
             ("the same after all that the first part of the training read and the prose once more", figure(found["7z PPMd after all texts"]))]
    rows.append(("World English Bible, the last tenth of each book, the model",
                 figure(found["bible.txt"]["bits_per_byte"])))
    lines = [
        "# mini", "",
        "A language model of 8.6 million parameters, made by the project from nothing with its own trainer, to show",
        "that the library works and to try things with. It reads little stories and answers questions about them,",
        "knows the dictionary's definition of some common words, and continues prose in the manner of 1815. It knows",
        "nothing else, and what it says of the world is not to be relied on.", "",
        "| | |", "|---|---|",
        "| shape | the preset `mini`: 9 layers (3 state space, 3 attention + experts, 3 state space + experts), "
        "hidden size 256, 4 experts, 2 active; context 8192 |",
        "| weights | 4 bits, groups of 64; embedding, tied head and routers 8 bits or float (`bitaxon quantize`) |",
        f"| size | {found['size'] / 1e6:.2f} MB with vocabulary and configuration |",
        f"| vocabulary | {plan['vocab']} tokens of byte-level BPE, trained on the same texts |",
        f"| made by | `tools/mini/recipe.py --work DIR`, seed {seed} |",
        f"| training | {plan['read']['steps']:,} updates that read everything, {plan['answer']['steps']:,} of answers and prose, "
        f"{plan['pair']['steps']:,} of drills in finding what was told, {plan['ask']['steps']:,} of stories with every question "
        f"and prose, {plan['recite']['steps']:,} of definitions above all; {tokens:,} tokens seen, {seconds / 60:.0f} minutes on two cores (busy with other things, too) |",
        "| texts | five novels of Jane Austen, *The Adventures of Tom Sawyer*, nine tenths of the World English Bible "
        "(public domain); definitions of WordNet 3.0 (see [NOTICE](NOTICE)); generated stories "
        f"({plan['stories'] + plan['ask']['asked'] + plan['recite']['asked']:,}; `tools/mini/stories.py`) |",
        f"| packages | {', '.join(packages)} |",
        "| licence | Apache-2.0; the WordNet licence's notice is in [NOTICE](NOTICE) |", "",
        "## On what it has not seen", "",
        f"Of {asked['items']:,} questions about generated stories, none of them in the training set, it answers "
        f"{asked['correct']:,} in the expected words: {100 * asked['correct'] / asked['items']:.1f} %", "(`bitaxon eval MODEL --questions`).", "",
        "| such as | asked | right |", "|---|---:|---:|",
        *[f"| {kind['kind']} | {kind['items']} | {100 * kind['correct'] / kind['items']:.0f} % |" for kind in found["kinds"]], "",
        "| | bits per byte |", "|---|---:|",
        *[f"| {name} | {value} |" for name, value in rows], "",
        "Bits per byte of `bitaxon eval`: windows of 2048 tokens, every 1024. PPMd (order 8, 1 GB) gets the texts before",
        "the novel; its figure is what the archive grows by.", "",
        "## Thirty definitions", "",
        f"Drawn from the {plan['recited']:,} commonest words, whose definitions come often in the later parts of the training; the likeliest answer.", "",
        "| question | WordNet | mini |", "|---|---|---|",
        *["| " + " | ".join(text.replace("\n", " ").replace("|", "/") for text in row) + " |" for row in said], "",
    ]
    with open(os.path.join(model, "README.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
    shutil.copy(notice, os.path.join(model, "NOTICE"))
