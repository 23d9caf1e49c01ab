"""Quality of an adapter: questions with exact rules, perplexity, a blind pairwise comparison.

Scope: sends prompts to an engine and scores the answers; here, the files that a person hands in. Knows nothing of training
steps, merging or pages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qlora_chat.errors import UserError
from qlora_chat.text import split_lines

Parsed = TypeVar("Parsed")


class EvaluationError(UserError, ValueError):
    """Text, questions, choices or a report that cannot be used or written; the message names the file, and the line."""


def read_file(path: Path) -> str:
    """Text of a UTF-8 file. EvaluationError for one that cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise EvaluationError(f"{path} cannot be read ({problem})") from problem


def read_lines(path: Path, parse: Callable[[str], Parsed], *, what: str, hint: str = "") -> list[Parsed]:
    """Parsed value of every line that is not blank. EvaluationError names a line that `parse` refuses, or an empty file."""
    parsed: list[Parsed] = []
    for number, line in enumerate(split_lines(read_file(path)), start=1):
        try:
            parsed += [parse(line)] if line.strip() else []
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as problem:
            raise EvaluationError(f"{path}, line {number}: {problem}{hint}") from problem
    if not parsed:
        raise EvaluationError(f"{path} holds no {what}")
    return parsed
