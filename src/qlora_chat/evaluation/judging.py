"""A person as the judge: at the terminal, or with a sheet to take away.

Scope: shows pairs without saying which model gave what. Knows no models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from qlora_chat.evaluation.blind import CHOICES, BlindError, Choice, Pair


def ask_person(index: int, pair: Pair) -> Choice:
    """Show one pair and read a choice. BlindError at the end of input."""
    print(f"\n--- {index + 1} ---\n{pair.prompt}\n\n[1] {pair.answers[0]}\n\n[2] {pair.answers[1]}\n", file=sys.stderr)
    while True:
        try:
            typed = input("better: 1, 2 or = > ").strip()
        except EOFError:
            raise BlindError(
                "the input ended before every pair was judged; judge at a terminal, or with --sheet FILE and then --judge FILE"
            ) from None
        for choice in CHOICES:
            if typed == choice:
                return choice
        print("type 1, 2 or =", file=sys.stderr)


def write_sheet(path: Path, pairs: Sequence[Pair]) -> None:
    """Prompts and answers in blind order as JSON lines. BlindError where the file cannot be written."""
    shown = [{"prompt": each.prompt, "1": each.answers[0], "2": each.answers[1]} for each in pairs]
    lines = [json.dumps(each, ensure_ascii=False) for each in shown]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as problem:
        raise BlindError(f"{path} cannot be written ({problem.strerror})") from problem
    print(f"wrote {path}: write 1, 2 or = for each into a file, a line each, and give it with --judge", file=sys.stderr)
