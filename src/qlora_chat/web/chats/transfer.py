"""Conversations as a file that the browser downloads, and from one that it sends.

Scope: one owner's conversations. Formats are history/export.py's and history/importing/'s.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_chat.history import HistoryError, HistoryStore
from qlora_chat.history.export import export
from qlora_chat.history.importing.importer import read_file
from qlora_chat.web.chats.view import report_in_words

EXPORTS = {"markdown": ("md", "text/markdown"), "json": ("json", "application/json"),
           "jsonl": ("jsonl", "application/jsonl"), "guanaco": ("jsonl", "application/jsonl")}  # fmt: skip
"""Suffix and type of a file in each format."""
_UNSAFE = re.compile(r"[^\w .()-]+")


@dataclass(frozen=True)
class Download:
    """A file for the browser."""

    name: str
    media_type: str
    pieces: Iterator[str]


def exported(history: HistoryStore, owner: str | None, ids: Sequence[str], file_format: str) -> Download:
    """These conversations of an owner, or all of them for no ids. HistoryError for an unknown format or id."""
    if file_format not in EXPORTS:
        raise HistoryError(f"The format is {file_format[:40]!r}, but must be one of {', '.join(EXPORTS)}.")
    summaries = [history.summary(each, owner=owner) for each in ids] if ids else history.list(owner=owner)
    known = [each for each in summaries if each]
    if not known:
        raise HistoryError("There is no such conversation.")
    name = _UNSAFE.sub("_", known[0].title).strip(" .")[:60] if len(ids) == 1 else "conversations"
    suffix, media_type = EXPORTS[file_format]
    stored = (found for each in known if (found := history.read(each.id)))
    return Download(f"{name or 'conversation'}.{suffix}", media_type, export(stored, file_format))


def imported(history: HistoryStore, owner: str | None, name: str, data: bytes) -> list[str]:
    """Add a file's conversations to those of an owner, and say what was added. HistoryError if nothing can be imported."""
    shown = _UNSAFE.sub("_", Path(name.replace("\\", "/")).name)[:100] or "file"
    with tempfile.TemporaryDirectory(prefix="qlora-chat-import-") as folder:  # mode 0700, gone when the import ends
        path = Path(folder) / "file"
        path.touch(mode=0o600)
        path.write_bytes(data)
        try:
            report = read_file(path).add_to(history, owner=owner)
        except HistoryError as problem:
            raise type(problem)(str(problem).replace(str(path), shown)) from None
    return report_in_words(report, str(path), shown)
