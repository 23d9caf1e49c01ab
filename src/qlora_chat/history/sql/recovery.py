"""A new history from a damaged SQLite file: every conversation and every waiting record of which something can be read.

Scope: rows found by their shape in the leaves that pages.py reads, and conversations put together from them. SQLite keeps no
checksums: text that is readable but altered cannot be told from what was written, unless it was sealed. Knows no command line.
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

from sqlalchemy import Table, update

from qlora_chat.history import Feedback, HistoryError, StoredConversation, StoredTurn, Summary
from qlora_chat.history.outbox.queue import Outbox
from qlora_chat.history.outbox.recovery import remove_database, salvaged
from qlora_chat.history.sql.row_mapping import Rows
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.history.storage.database import open_database
from qlora_chat.history.storage.encryption import Cipher, check_cipher, check_kept_seal
from qlora_chat.history.storage.schema import CONVERSATIONS, FEEDBACK, TURNS
from qlora_chat.history.storage.sqlite_pages import SUFFIXES, read_pages
from qlora_chat.history.text_match import title_of
from qlora_chat.messages import Conversation, Message

LOST = "(this turn could not be read)"
"""Stands where a turn is missing that others follow."""
TAG = "rescued"


@dataclass(frozen=True)
class Recovered:
    """What came out of a damaged file."""

    conversations: int
    turns: int
    gaps: int
    """Turns known to be missing, because others follow them, or they should have followed."""
    unreadable: int
    """Rows that were found and could not be read; of a page that is wholly lost nothing is known."""
    records: int
    """Waiting to be delivered, or dead letters, which are tried again."""
    damaged_file: Path
    """Where the file now is. What it holds is reached by no erasure."""


@dataclass
class _Found:
    """Rows by table, as far as they make sense."""

    headings: dict[str, tuple[StoredConversation, str | None]] = field(default_factory=dict)
    """Conversations without their turns, and whose they are, by id."""
    turns: dict[str, tuple[int, str, StoredTurn]] = field(default_factory=dict)
    """(order, conversation, turn) by the turn's id."""
    feedback: list[tuple[str, Feedback]] = field(default_factory=list)
    seal: str | None = None
    """How the file says that it was sealed."""
    unreadable: int = 0


def recover(path: Path, seal: Cipher, cap_bytes: int) -> Recovered:
    """Make a new history in the place of a damaged one, which is kept beside it under another name.

    HistoryError where the file is sound or missing, or sealed with another key; then nothing is changed.
    """
    if not path.is_file():
        raise HistoryError(f"there is no history at {path}")
    if _is_sound(path):
        raise HistoryError(f"{path} is not damaged; nothing was changed")
    found = _read(path, seal)
    records, damaged = salvaged(path, seal)
    conversations = [*_conversations(found)]
    fresh = path.with_name(f"{path.name}.new")
    remove_database(fresh)
    with closing(_new_history(fresh, seal, cap_bytes)) as store:
        for kept in conversations:
            store.restore(kept)
        _give_owners(store, found)
        store.outbox.take_over(records, damaged)
    kept_as = _aside(path)
    os.replace(fresh, path)
    turns = [turn for kept in conversations for turn in kept.turns]
    gaps = sum(turn.message.content == LOST for turn in turns)
    return Recovered(len(conversations), len(turns) - gaps, gaps, found.unreadable, len(records), kept_as)


def _is_sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong; it is not let to write, since what it takes for garbage may be what is looked for."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok"
    except sqlite3.DatabaseError:
        return False


def _new_history(path: Path, seal: Cipher, cap_bytes: int) -> SqlHistory:
    database = open_database(f"sqlite:///{path}")
    check_cipher(database, seal)
    return SqlHistory(database, seal, Outbox(database, seal, cap_bytes))


def _give_owners(store: SqlHistory, found: _Found) -> None:
    """An export names no owners, and so `restore` sets none; here they are the same people."""
    with store.database.write() as connection:
        for name, (_, owner) in found.headings.items():
            connection.execute(update(CONVERSATIONS).where(CONVERSATIONS.c.id == name).values(owner=owner))


def _aside(path: Path) -> Path:
    kept_as = path.with_name(f"{path.name}.damaged-{datetime.now():%Y%m%d-%H%M%S}")
    for suffix in SUFFIXES:
        beside = Path(f"{path}{suffix}")
        if beside.exists():
            os.replace(beside, f"{kept_as}{suffix}")
    return kept_as


# --- rows ----------------------------------------------------------------------------------------------------------


def _read(path: Path, seal: Cipher) -> _Found:
    found, rows = _Found(), Rows(seal)
    for each in read_pages(path, committed=True).rows():
        try:
            _sort(each, found, rows)
        except (ValueError, TypeError, HistoryError):  # HistoryError: sealed, and altered
            found.unreadable += 1
    if found.seal is not None:
        check_kept_seal(found.seal, seal)
    if seal.sealed and found.unreadable and not found.turns:
        raise HistoryError("nothing in this history can be opened: is QLORA_CHAT_HISTORY_KEY its key?")
    return found


def _sort(row: tuple[int, list[Any]] | None, found: _Found, rows: Rows) -> None:
    """A row to its table: which one is told by how many columns it has, and what is in them."""
    if row is None:
        raise ValueError("no row")
    order, values = row
    match values:
        case ["seal", str(kept)]:
            found.seal = kept
        case [None, str(name), str(conversation), _, "user" | "assistant", *_] if len(values) == len(TURNS.columns):
            turn, before = rows.turn(_named(TURNS, values)), found.turns.get(name)
            if before is None or before[2].message.finish_reason == "partial":
                found.turns[name] = (order, conversation, turn)
        case [str(name), *_] if len(values) == len(CONVERSATIONS.columns):
            named = _named(CONVERSATIONS, values)
            found.headings[name] = rows.kept(named, (), ()), named.owner
        case [None, str(conversation), str(), int() | None, *_] if len(values) == len(FEEDBACK.columns):
            found.feedback.append((conversation, rows.feedback(_named(FEEDBACK, values))))


def _named(table: Table, values: Sequence[Any]) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip((column.name for column in table.columns), values, strict=True)))


# --- conversations -------------------------------------------------------------------------------------------------


def _conversations(found: _Found) -> Iterator[StoredConversation]:
    """One for each that has a turn, the gaps in it closed."""
    mine: dict[str, list[tuple[int, StoredTurn]]] = {}
    for order, conversation, turn in found.turns.values():
        mine.setdefault(conversation, []).append((order, turn))
    for name, ordered in mine.items():
        kept = _kept(name, _without_gaps([turn for _, turn in sorted(ordered, key=lambda each: each[0])]), found)
        try:
            kept.conversation()
        except ValueError:  # a turn's place was altered: what it says is in the damaged file still
            found.unreadable += len(ordered)
            continue
        yield kept


def _without_gaps(turns: Sequence[StoredTurn]) -> tuple[StoredTurn, ...]:
    """Turns in an order in which each follows its parent; a parent or an answer that is missing is stood in for."""
    by_id = {turn.message.id: turn for turn in turns}
    placed: dict[str, StoredTurn] = {}
    begun: set[str] = set()

    def place(turn: StoredTurn) -> None:
        mine, parent = turn.message.id, turn.parent_id
        if mine in begun:
            return
        begun.add(mine)
        if parent in begun - placed.keys() or (parent is None and turn.message.role == "assistant"):
            parent = f"{mine}-before"
        if parent is not None and parent not in placed:
            role = "user" if turn.message.role == "assistant" else "assistant"
            place(by_id.get(parent) or StoredTurn(Message(role, LOST, finish_reason="error", id=parent), None, turn.created_at))
        placed[mine] = replace(turn, parent_id=parent)

    for turn in turns:
        place(turn)
    followed = {turn.parent_id for turn in placed.values()}
    for turn in [each for each in placed.values() if each.message.role == "user" and each.message.id not in followed]:
        answer = f"{turn.message.id}-after"
        placed[answer] = StoredTurn(
            Message("assistant", LOST, finish_reason="error", id=answer), turn.message.id, turn.created_at
        )
    return tuple(placed.values())


def _kept(name: str, turns: tuple[StoredTurn, ...], found: _Found) -> StoredConversation:
    known, newest = {turn.message.id for turn in turns}, turns[-1].message.id
    said = tuple(each for conversation, each in found.feedback if conversation == name and each.turn_id in known)
    if name in found.headings:
        heading, _ = found.headings[name]
        head = heading.head_id if heading.head_id in known else newest
        return replace(heading, head_id=head, turns=turns, feedback=said)
    title = title_of(Conversation(messages=tuple(turn.message for turn in turns if turn.message.role == "user")[:1]))
    summary = Summary(name, title, (TAG,), None, None, len(turns), turns[0].created_at, turns[-1].created_at)
    return StoredConversation(summary, None, {}, newest, turns, said)
