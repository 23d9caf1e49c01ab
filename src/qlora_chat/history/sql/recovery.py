"""Recovers a damaged SQLite history: all conversations and waiting records of which anything can be read.

Scope: recognising rows by their columns in the leaves that sqlite_pages.py reads, and rebuilding conversations from them.
SQLite has no checksums: readable but altered text is detected only if it was encrypted. Knows no command line.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Table

from qlora_chat.history import Feedback, HistoryError, StoredConversation, StoredTurn, Summary, Vote
from qlora_chat.history.outbox.queue import Outbox
from qlora_chat.history.outbox.recovery import recover_records, remove_database, rename_database
from qlora_chat.history.sql.row_mapping import RowMapper
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.history.storage.database import open_database
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.history.storage.key_check import CHECK_FACT, check_cipher, check_key
from qlora_chat.history.storage.schema import CONVERSATIONS, FEEDBACK, TURNS, VOTES
from qlora_chat.history.storage.sqlite_pages import read_pages
from qlora_chat.history.text_match import title_of
from qlora_chat.messages import Conversation, Message

LOST = "(this turn could not be read)"
"""Text of a placeholder for a lost turn."""
TAG = "rescued"


@dataclass(frozen=True)
class Recovered:
    """Result of a recovery."""

    conversations: int
    turns: int
    gaps: int
    """Turns that must have existed, because others follow them or they should answer one, and were not found."""
    unreadable: int
    """Rows that were found and could not be read. Rows on lost pages are not counted."""
    records: int
    """Records to deliver; dead letters are queued again."""
    damaged_file: Path
    """New name of the damaged file, which no erasure reaches."""


@dataclass
class _Found:
    """Readable rows by table."""

    headings: dict[str, StoredConversation] = field(default_factory=dict)
    """Conversations without their turns, by id."""
    owners: dict[str, str | None] = field(default_factory=dict)
    """By the id of a conversation."""
    turns: dict[str, tuple[int, str, StoredTurn]] = field(default_factory=dict)
    """(row id, conversation id, turn) by the turn's id."""
    feedback: list[tuple[str, Feedback]] = field(default_factory=list)
    votes: list[tuple[str, Vote]] = field(default_factory=list)
    key_check: str | None = None
    """Check value of the file's key."""
    unreadable: int = 0


def recover(path: Path, cipher: Cipher, cap_bytes: int) -> Recovered:
    """Replace a damaged history with a new one, and rename the damaged file.

    HistoryError, with nothing changed, if the file is intact or missing, has another key, or holds nothing of a history.
    """
    if not path.is_file():
        raise HistoryError(f"there is no history at {path}")
    if _is_intact(path):
        raise HistoryError(f"{path} is not damaged; nothing was changed")
    found = _read_rows(path, cipher)
    records, damaged = recover_records(path, cipher)
    conversations = [*_conversations(found)]
    if not conversations and not records:
        raise HistoryError(f"nothing in {path} is a conversation or a record of this program; nothing was changed")
    new = path.with_name(f"{path.name}.new")
    remove_database(new)
    with closing(_new_history(new, cipher, cap_bytes)) as store:
        for each in conversations:
            store.restore(each, found.owners.get(each.summary.id))
        store.outbox.import_recovered(records, damaged)
    damaged_file = path.with_name(f"{path.name}.damaged-{datetime.now():%Y%m%d-%H%M%S}")
    rename_database(path, damaged_file)
    os.replace(new, path)
    turns = [turn for each in conversations for turn in each.turns]
    gaps = sum(turn.message.content == LOST for turn in turns)
    return Recovered(len(conversations), len(turns) - gaps, gaps, found.unreadable, len(records), damaged_file)


def _is_intact(path: Path) -> bool:
    """True if SQLite finds no damage. Read-only: SQLite might overwrite, as garbage, rows that can be recovered."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok"
    except sqlite3.DatabaseError:
        return False


def _new_history(path: Path, cipher: Cipher, cap_bytes: int) -> SqlHistory:
    database = open_database(f"sqlite:///{path}")
    check_cipher(database, cipher)
    return SqlHistory(database, cipher, Outbox(database, cipher, cap_bytes))


# --- rows ----------------------------------------------------------------------------------------------------------


def _read_rows(path: Path, cipher: Cipher) -> _Found:
    found, mapper = _Found(), RowMapper(cipher)
    for row in read_pages(path, committed=True).rows():
        try:
            _add_row(row, found, mapper)
        except (ValueError, TypeError, HistoryError):  # HistoryError: encrypted and altered
            found.unreadable += 1
    if found.key_check is not None:
        check_key(found.key_check, cipher)
    if cipher.encrypts and found.unreadable and not found.turns:
        raise HistoryError("nothing in this history can be decrypted: is QLORA_CHAT_HISTORY_KEY its key?")
    return found


def _add_row(row: tuple[int, list[Any]] | None, found: _Found, mapper: RowMapper) -> None:
    """Add a row to its table, recognised by the number and types of its columns; ValueError if it is unreadable."""
    if row is None:
        raise ValueError("the row is damaged")
    row_id, values = row
    match values:
        case [name, str(value)] if name == CHECK_FACT:
            found.key_check = value
        case [None, str(name), str(conversation_id), _, "user" | "assistant", *_] if len(values) == len(TURNS.columns):
            turn, known = mapper.turn(_named(TURNS, values)), found.turns.get(name)
            if known is None or known[2].message.finish_reason == "partial":
                found.turns[name] = (row_id, conversation_id, turn)
        case [str(name), *_] if len(values) == len(CONVERSATIONS.columns):
            named = _named(CONVERSATIONS, values)
            found.headings[name], found.owners[name] = mapper.conversation(named, (), (), ()), named.owner
        case [None, str(conversation_id), str(), int() | None, *_] if len(values) == len(FEEDBACK.columns):
            found.feedback.append((conversation_id, mapper.feedback(_named(FEEDBACK, values))))
        case [None, str(conversation_id), str(), "best" | "tie" | "bad", *_] if len(values) == len(VOTES.columns):
            found.votes.append((conversation_id, mapper.vote(_named(VOTES, values))))


def _named(table: Table, values: Sequence[Any]) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip((column.name for column in table.columns), values, strict=True)))


# --- conversations -------------------------------------------------------------------------------------------------


def _conversations(found: _Found) -> Iterator[StoredConversation]:
    """Conversation of every id that has a turn, with placeholders for lost turns."""
    by_conversation: dict[str, list[tuple[int, StoredTurn]]] = {}
    for row_id, conversation_id, turn in found.turns.values():
        by_conversation.setdefault(conversation_id, []).append((row_id, turn))
    for name, numbered in by_conversation.items():
        turns = _with_placeholders([turn for _, turn in sorted(numbered, key=lambda each: each[0])])
        conversation = _conversation(name, turns, found)
        try:
            conversation.conversation()
        except ValueError:  # a parent id was altered; the text stays in the damaged file
            found.unreadable += len(numbered)
            continue
        yield conversation


def _with_placeholders(turns: Sequence[StoredTurn]) -> tuple[StoredTurn, ...]:
    """Turns in an order in which each follows its parent, with placeholders for lost parents and lost answers."""
    by_id = {turn.message.id: turn for turn in turns}
    ordered: dict[str, StoredTurn] = {}
    visited: set[str] = set()

    def add(turn: StoredTurn) -> None:
        name, parent = turn.message.id, turn.parent_id
        if name in visited:
            return
        visited.add(name)
        is_cycle = parent in visited and parent not in ordered
        if is_cycle or (parent is None and turn.message.role == "assistant"):
            parent = f"{name}-before"
        if parent is not None and parent not in ordered:
            role = "user" if turn.message.role == "assistant" else "assistant"
            add(by_id.get(parent) or StoredTurn(Message(role, LOST, finish_reason="error", id=parent), None, turn.created_at))
        ordered[name] = replace(turn, parent_id=parent)

    for turn in turns:
        add(turn)
    parents = {turn.parent_id for turn in ordered.values()}
    for turn in [each for each in ordered.values() if each.message.role == "user" and each.message.id not in parents]:
        answer = Message("assistant", LOST, finish_reason="error", id=f"{turn.message.id}-after")
        ordered[answer.id] = StoredTurn(answer, turn.message.id, turn.created_at)
    return tuple(ordered.values())


def _conversation(name: str, turns: tuple[StoredTurn, ...], found: _Found) -> StoredConversation:
    ids, newest = {turn.message.id for turn in turns}, turns[-1].message.id
    feedback = tuple(each for conversation_id, each in found.feedback if conversation_id == name and each.turn_id in ids)
    votes = tuple(each for conversation_id, each in found.votes if conversation_id == name and each.turn_ids <= ids)
    if heading := found.headings.get(name):
        head = heading.head_id if heading.head_id in ids else newest
        return replace(heading, head_id=head, turns=turns, feedback=feedback, votes=votes)
    title = title_of(Conversation(messages=tuple(turn.message for turn in turns if turn.message.role == "user")[:1]))
    summary = Summary(name, title, (TAG,), None, None, len(turns), turns[0].created_at, turns[-1].created_at)
    return StoredConversation(summary, None, {}, newest, turns, feedback, votes)
