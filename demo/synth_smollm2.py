"""Our own training dialogues for SmolLM2: facts, memory, sums, instructions, code, stories, honest answers. By seed.

    python3 demo/synth_smollm2.py [--count 26000] [--seed 0] > synth.jsonl

Scope: dialogues as JSON lines, {"messages": [...], "src": "synth_smollm2", "kinds": [...]}. The facts are in
smollm2_tables.txt. Knows no questions of `eval questions`: mix_smollm2.py leaves out what comes near one.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import synth_people
import synth_tasks
from synth_words import Dialogue, Tables, Turns, Words

KINDS: tuple[tuple[str, Callable[[Words], Turns], float], ...] = (
    ("fact", synth_tasks.fact, 13),
    ("country", synth_tasks.country, 6),
    ("animal", synth_tasks.animal, 6),
    ("term", synth_tasks.term, 9),
    ("person", synth_tasks.person, 3),
    ("word", synth_tasks.word, 6),
    ("calendar", synth_tasks.calendar, 3),
    ("sum", synth_tasks.sum_, 26),
    ("count", synth_tasks.count, 3),
    ("instruction", synth_tasks.instruction, 14),
    ("code", synth_tasks.code, 5),
    ("story", synth_tasks.story, 4),
    ("advice", synth_tasks.advice, 4),
    ("memory", synth_people.memory, 22),
    ("human", synth_people.human, 10),
    ("unknown", synth_people.unknown, 7),
    ("about", synth_people.about, 3),
    ("small talk", synth_people.small_talk, 6),
)


def one_dialogue(words: Words) -> tuple[Dialogue, list[str]]:
    """Return a dialogue of one to three kinds, sometimes with a greeting before and thanks after it."""
    if words.chance(0.07):
        return synth_people.with_system(words), ["system"]
    names, makers, weights = zip(*KINDS, strict=True)
    count = words.random.choices((1, 2, 3), (7, 2, 1))[0]
    turns: Turns = []
    kinds: list[str] = []
    if words.chance(0.12):
        turns += synth_people.greeting(words)
        kinds.append("greeting")
    for index in words.random.choices(range(len(names)), weights, k=count):
        turns += makers[index](words)
        kinds.append(names[index])
    if words.chance(0.1):
        turns += synth_people.ending(words)
        kinds.append("ending")
    return Dialogue(turns), kinds


def dialogues(count: int, seed: int) -> Iterator[dict[str, object]]:
    """Yield `count` different dialogues; the same seed gives the same ones."""
    words = Words(random.Random(seed), Tables.read(Path(__file__).with_name("smollm2_tables.txt")))
    seen: set[str] = set()
    while len(seen) < count:
        dialogue, kinds = one_dialogue(words)
        key = re.sub(r"\W+", " ", json.dumps(dialogue.turns)).casefold()
        if key not in seen:
            seen.add(key)
            yield {"messages": dialogue.messages(), "src": "synth_smollm2", "kinds": kinds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=26_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for each in dialogues(chosen.count, chosen.seed):
        sys.stdout.write(json.dumps(each, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
