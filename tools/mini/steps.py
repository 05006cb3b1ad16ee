# SPDX-License-Identifier: Apache-2.0
"""What recipes do at each step: say it, run the command, keep its result. Used by recipe.py and by
tools/devil/devil.py."""
import json
import os
import re
import subprocess


def say(text):
    print(f"== {text}", flush=True)


def run(*command, **options):
    print("   " + " ".join(command), flush=True)
    return subprocess.run(command, check=True, **options)


def json_of(*command):
    return json.loads(run(*command, stdout=subprocess.PIPE).stdout)


def write_lines(path, records):
    with open(path + ".new", "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.rename(path + ".new", path)


def resume(folder):
    """The flags with which `bitaxon train --output FOLDER` goes on: none where it has not saved yet."""
    saved = os.path.join(folder, "checkpoints")
    names = os.listdir(saved) if os.path.isdir(saved) else []
    return ["--resume"] if any(re.fullmatch(r"step_\d+(\.old)?", name) for name in names) else []


def write_json(path, value):
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
    os.rename(path + ".new", path)


def trained(folder):
    """Tokens read and seconds spent, as the log of training tells."""
    seen = {"updates": 0, "tokens": 0, "seconds": 0.0}
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            seen["seconds"] += record["seconds"]
            if not record.get("evaluation"):
                seen["updates"] += 1
                seen["tokens"] += record["rows"]
    return seen
