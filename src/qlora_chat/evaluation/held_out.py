"""A file of held-out text -> ids to measure a model on.

Scope: reads dialogues (`messages` JSON lines; answers count) and plain text (.txt; everything counts). Knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_chat.models.loss import Dialogue, HeldOut, Passage, passage
from qlora_chat.models.tokenizer import ModelTokenizer


class HeldOutError(ValueError):
    """A file cannot be measured on; the message names the line."""

    for_people = True


def read_held_out(path: Path, tokenizer: ModelTokenizer, window: int, most: int) -> HeldOut:
    """Passages of at most `window` tokens until about `most` tokens count. HeldOutError for a file of another kind."""
    passages: list[Passage] = []
    counted = 0
    for each in _passages(path, tokenizer, window):
        passages.append(each)
        counted += len(each.rows)
        if counted >= most:
            break
    if not counted:
        raise HeldOutError(f"{path} holds no text to measure on; give `messages` JSON lines with answers, or a .txt file")
    return HeldOut(tuple(each for each in passages if each.rows))


def _passages(path: Path, tokenizer: ModelTokenizer, window: int) -> Iterator[Passage]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise HeldOutError(f"{path} cannot be read as text ({problem})") from problem
    if path.suffix == ".txt":
        yield from _plain(text, tokenizer, window)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield passage(_dialogue(path, number, line), tokenizer, tokenizer.bos_id, window)


def _plain(text: str, tokenizer: ModelTokenizer, window: int) -> Iterator[Passage]:
    """Windows side by side, each begun with BOS; every token counts but the first of a window."""
    ids = tokenizer.encode(text)
    lead = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    step = window + 1 - len(lead)
    for begin in range(0, len(ids), step):
        part = (*lead, *ids[begin : begin + step])
        yield Passage(part, (False, *[True] * (len(part) - 1)))


def _dialogue(path: Path, number: int, line: str) -> Dialogue:
    try:
        messages = json.loads(line)["messages"]
        return _pairs([message for message in messages if message["role"] != "system"])
    except (KeyError, TypeError, ValueError, RecursionError) as problem:
        raise HeldOutError(
            f'{path}, line {number}: {_reason(problem)}; a line is {{"messages": [{{"role": "user", "content": ...}}, '
            '{"role": "assistant", "content": ...}, ...]}'
        ) from problem


def _pairs(messages: list[dict[str, Any]]) -> Dialogue:
    pairs = []
    for user, assistant in zip(messages[::2], messages[1::2], strict=False):
        if (user["role"], assistant["role"]) != ("user", "assistant"):
            raise ValueError(f"roles are {user['role']!r}, {assistant['role']!r} where user, assistant was expected")
        pairs.append((str(user["content"]), str(assistant["content"])))
    return pairs


def _reason(problem: Exception) -> str:
    return f"{problem} is missing" if isinstance(problem, KeyError) else str(problem)
