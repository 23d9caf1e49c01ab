"""Storing the conversations of a file, and the report of what was added and what was left out.

Scope: one import. A conversation that is stored already is left as it is; another one with the same id gets an id of its own.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_chat.history import HistoryError, HistoryStore, HistoryUnavailable, StoredConversation
from qlora_chat.history.importing import BadExport
from qlora_chat.history.importing.content import NO_QUESTION, clean, text_or_none
from qlora_chat.history.importing.draft import digest
from qlora_chat.history.importing.formats import check_format, conversation_from
from qlora_chat.history.importing.own import with_ids
from qlora_chat.history.importing.silly_tavern import begins_chat
from qlora_chat.history.importing.source import FileRecord, read_records
from qlora_chat.text import counted

MAX_PROBLEM_LETTERS = 500


@dataclass
class ImportReport:
    """Result of an import."""

    added: int = 0
    """Conversations that a list shows now and did not show before."""
    there: int = 0
    """Conversations that were stored already."""
    renamed: list[tuple[str, str]] = field(default_factory=list)
    """(id in the file, new id) of conversations whose id another one had; `added` counts them, too."""
    formats: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """A line for each record that could not be imported, safe to print."""


@dataclass(frozen=True)
class ImportedFile:
    """Conversations of a file that was read as a whole, to be added to a store."""

    conversations: list[StoredConversation]
    report: ImportReport

    def add_to(self, store: HistoryStore, *, owner: str | None = None) -> ImportReport:
        """Add the conversations that a store lacks, for `owner`. HistoryUnavailable says how many had been added by then."""
        for each in self.conversations:
            try:
                _add(store, each, self.report, owner)
            except HistoryUnavailable as problem:
                added = counted(self.report.added, "conversation")
                raise HistoryUnavailable(f"{problem} ({added} had been added; import the file again for the others)") from None
        return self.report


def read_file(path: Path, file_format: str | None = None, *, strict: bool = False) -> ImportedFile:
    """Read the conversations of a file; `file_format` forces one of formats.FORMATS.

    HistoryError if nothing in the file can be imported, and with `strict` if anything cannot.
    """
    check_format(file_format)
    report = ImportReport()
    conversations: list[StoredConversation] = []
    for record in _grouped(read_records(path), file_format):
        where = f"{path}, {record.position}" if record.position else str(path)
        try:
            conversation = _conversation(record, file_format, report)
        except BadExport as problem:
            report.problems.append(text_or_none(f"{where}: {problem}", MAX_PROBLEM_LETTERS) or where)
            continue
        if conversation.turns:
            conversations.append(conversation)
        else:
            report.left_out[NO_QUESTION] += 1
    if report.problems and (strict or not conversations):
        more = len(report.problems) - 1
        others = f"; {counted(more, 'more record')} {'has' if more == 1 else 'have'} problems" if more else ""
        raise HistoryError(f"{report.problems[0]} (nothing was imported{others})")
    if not conversations:
        raise HistoryError(f"{path}: no conversation in it has a question (nothing was imported)")
    return ImportedFile(conversations, report)


def _conversation(record: FileRecord, file_format: str | None, report: ImportReport) -> StoredConversation:
    if record.problem:
        raise BadExport(record.problem)
    name, conversation, left_out = conversation_from(record.value, file_format)
    report.formats[name] += 1
    report.left_out += left_out
    return conversation


def _grouped(records: list[FileRecord], file_format: str | None) -> list[FileRecord]:
    """Records of a file; one for a whole chat of SillyTavern, and for a list of messages that is one conversation."""
    values: list[Any] = [each.value for each in records if each.problem is None]
    is_chat = file_format in (None, "sillytavern") and bool(values) and begins_chat(values[0])
    is_talk = file_format in (None, "messages") and len(values) > 1 and all(map(_is_bare_message, values))
    if not is_chat and not is_talk:
        return records
    return [FileRecord("", values), *(each for each in records if each.problem)]


def _is_bare_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "messages" not in value


def _add(store: HistoryStore, conversation: StoredConversation, report: ImportReport, owner: str | None) -> None:
    """Store a conversation under its id, or under one that follows from its content if another conversation has its id."""
    name, content = conversation.summary.id, _content(conversation)
    for candidate in (name, f"{name[:64]}-{digest(*([owner] if owner else []), *sorted(content))[:16]}"):
        stored = store.read(candidate)
        if stored and store.summary(candidate, owner=owner) and content <= _content(stored):
            report.there += 1
            return
        if stored:
            continue
        renamed = conversation if candidate == name else with_ids(conversation, candidate)
        if not store.restore(renamed, owner) and not store.restore(
            with_ids(renamed, candidate), owner
        ):  # its turns' ids are not free
            raise HistoryError(f"conversation {candidate!r} cannot be added: its id and its turns' ids exist already")
        report.added += 1
        report.renamed += [(name, candidate)] if candidate != name else []
        return
    raise HistoryError(f"conversation {name!r} cannot be added: its id, and the one made of its content, exist already")


def _content(conversation: StoredConversation) -> set[str]:
    """A hash for each turn over the texts from the first one to it: equal trees have equal sets, whatever their ids are."""
    hashes: dict[str | None, bytes] = {None: clean(conversation.system or "").encode()}
    for turn in conversation.turns:
        text = f"{turn.message.role}\0{clean(turn.message.content)}".encode()
        hashes[turn.message.id] = hashlib.sha256(hashes[turn.parent_id] + b"\0" + text).digest()
    return {each.hex() for name, each in hashes.items() if name is not None}
