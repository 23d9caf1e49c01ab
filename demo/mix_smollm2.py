"""Mix our own and third-party dialogues for `train --recipe smollm2`, without anything near a hand-written question.

    PYTHONPATH=src python3 demo/mix_smollm2.py DATA_FOLDER [--mixes own balanced wide] [--out out/mix]

DATA_FOLDER holds chat_train.jsonl.xz and oasst1_sample.jsonl.xz (demo/README.md has the sources and licences); the rest is
made by synth_smollm2.py. Writes MIX.jsonl.xz and, for every mix, how many dialogues of each source went in and how many were
left out because demo/check_overlap.py finds a question in them. Deterministic.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import synth_smollm2
from check_overlap import Overlaps, read_dialogues

from qlora_chat.evaluation.questions import read_questions

Record = dict[str, Any]
MAX_ANSWER_WORDS = 150
"""Longer answers are left out: with the page's limit they would not end."""

MIXES: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "own": {"synth_smollm2": (34_000, 1), "synth_basic": (3_000, 1), "oasst1": (404, 2), "rasbt": (1_053, 1)},
    "balanced": {
        "synth_smollm2": (34_000, 1), "synth_basic": (2_000, 1), "dolly15k": (4_000, 1), "rasbt": (1_053, 2),
        "wordnet": (1_000, 1), "fairytaleqa": (1_000, 1), "personality_chat": (300, 1), "oasst1": (404, 3),
    },
    "wide": {
        "synth_smollm2": (22_000, 1), "synth_basic": (6_000, 1), "dolly15k": (7_500, 1), "rasbt": (1_053, 2),
        "wordnet": (3_000, 1), "fairytaleqa": (2_700, 1), "personality_chat": (500, 1), "oasst1": (404, 3),
    },
}  # fmt: skip
"""mix -> source -> (most dialogues, times each). The collection `snakes` is in none: it would put its name on the model."""


def by_source(folder: Path) -> dict[str, list[Record]]:
    """Read the third-party dialogues by source and make our own."""
    sources: dict[str, list[Record]] = {"oasst1": list(read_dialogues(folder / "oasst1_sample.jsonl.xz"))}
    for record in read_dialogues(folder / "chat_train.jsonl.xz"):
        sources.setdefault(record["src"], []).append(record)
    most = max(mix["synth_smollm2"][0] for mix in MIXES.values())
    sources["synth_smollm2"] = list(synth_smollm2.dialogues(most + most // 20, seed=0))
    return sources


def usable(records: list[Record]) -> Iterator[Record]:
    """Yield the records whose answers are short enough to end."""
    for record in records:
        answers = [each["content"] for each in record["messages"] if each["role"] == "assistant"]
        if answers and max(len(text.split()) for text in answers) <= MAX_ANSWER_WORDS:
            yield record


def mix(
    recipe: Mapping[str, tuple[int, int]], sources: Mapping[str, list[Record]], overlaps: Overlaps
) -> tuple[list[Record], Record]:
    """Return a mix in random order, and how much of each source is in it."""
    mixed: list[Record] = []
    report: Record = {}
    for source, (most, times) in recipe.items():
        chosen: list[Record] = []
        left_out = 0
        for record in _shuffled(list(usable(sources[source])), source):
            if len(chosen) == most:
                break
            if any(True for _ in overlaps.find(record["messages"])):
                left_out += 1
            else:
                chosen.append({"messages": record["messages"], "src": source})
        mixed += chosen * times
        report[source] = {"dialogues": len(chosen), "times": times, "left_out_near_a_question": left_out}
    return _shuffled(mixed, "mix"), {"dialogues": len(mixed), "sources": report}


def _shuffled(records: list[Record], seed: str) -> list[Record]:
    random.Random(seed).shuffle(records)
    return records


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--mixes", nargs="+", choices=list(MIXES), default=list(MIXES))
    parser.add_argument("--out", type=Path, default=Path("out/mix"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    sources, overlaps, report = by_source(chosen.data), Overlaps(read_questions()), {}
    for name in chosen.mixes:
        records, report[name] = mix(MIXES[name], sources, overlaps)
        lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records)
        (chosen.out / f"{name}.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
        counts = Counter(each["src"] for each in records).most_common()
        print(f"{name}: {len(records):,} dialogues; {', '.join(f'{count:,} {source}' for source, count in counts)}")
    (chosen.out / "mixes.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
