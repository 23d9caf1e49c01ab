"""Check that no hand-written question stands in training data, word for word or nearly.

    PYTHONPATH=src python3 demo/check_overlap.py DATA.jsonl.xz [MORE ...] [--questions FILE]

Every turn of a question counts. It stands in the data if a message holds its words in their order (case, punctuation and
white space left out of account), or nearly if one sentence or message of a user shares so many of its groups of three words
that NEAR or more of all groups of both are shared. Prints what it finds, and ends with 1 if there is anything.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_chat.evaluation.questions import HAND_WRITTEN, Question, read_questions

NEAR = 0.6
"""Share of word groups at which two texts count as one question in two wordings."""
_GROUP = 3


def normalised(text: str) -> str:
    """Return the words in small letters, with one space between and around."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return f" {' '.join(words)} "


def groups(text: str) -> frozenset[tuple[str, ...]]:
    """Return the groups of three neighbouring words."""
    words = normalised(text).split()
    return frozenset(zip(*(words[start:] for start in range(_GROUP)), strict=False))


@dataclass(frozen=True)
class Overlap:
    """A text of the data that comes too near a question."""

    question: str
    text: str
    share: float
    """1 for the same words."""


class Overlaps:
    """Questions, indexed to find overlaps with many texts."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._turns = [(question.id, turn) for question in questions for turn in question.ask]
        self._groups = [groups(turn) for _, turn in self._turns]
        self._with_group: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, each in enumerate(self._groups):
            for group in each:
                self._with_group[group].append(index)
        self._exact: dict[str, str] = {normalised(turn): name for name, turn in self._turns}
        self._short = {key for key in self._exact if len(key.split()) < _GROUP}

    def find(self, messages: Sequence[dict[str, Any]]) -> Iterator[Overlap]:
        """Yield the overlaps of one dialogue."""
        for message in messages:
            text = str(message["content"])
            yield from self._inside(text)
            if message["role"] == "user":
                for part in dict.fromkeys((text, *re.split(r"(?<=[.!?:])\s+", text))):
                    yield from self._near(part)

    def _inside(self, text: str) -> Iterator[Overlap]:
        plain, found = normalised(text), groups(text)
        candidates = {index for group in found for index in self._with_group.get(group, ())}
        for key in (*self._short, *(normalised(self._turns[index][1]) for index in candidates)):
            if key in plain:
                yield Overlap(self._exact[key], text, 1.0)

    def _near(self, text: str) -> Iterator[Overlap]:
        mine = groups(text)
        shared = Counter(index for group in mine for index in self._with_group.get(group, ()))
        for index, count in shared.items():
            share = count / (len(mine) + len(self._groups[index]) - count)
            if share >= NEAR and len(self._groups[index]) > 1:
                yield Overlap(self._turns[index][0], text, round(share, 2))


def read_dialogues(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines, packed with xz or not."""
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--questions", type=Path, default=HAND_WRITTEN)
    chosen = parser.parse_args()
    overlaps, count, found = Overlaps(read_questions(chosen.questions)), 0, 0
    for path in chosen.data:
        for record in read_dialogues(path):
            count += 1
            for each in overlaps.find(record["messages"]):
                found += 1
                print(f"{path.name}: {each.question} {each.share:.2f} {' '.join(each.text.split())[:120]}")
    print(f"{count:,} dialogues hold {found or 'no'} overlaps with the questions")
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
