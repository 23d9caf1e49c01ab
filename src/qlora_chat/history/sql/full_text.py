"""Word search over turns: FTS5 in SQLite, a GIN index over tsvector in PostgreSQL, a scan if the turns are encrypted.

Scope: updating and querying the index. It holds the tokens of text_match.py instead of the text (no case, no accents, single
letters in scripts without spaces), so that a word is found anywhere in a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, column, select, table, text, update

from qlora_chat.history import SearchHit
from qlora_chat.history.sql.row_mapping import HEADING_COLUMNS, TURN_COLUMNS
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.history.storage.schema import CONVERSATIONS, HIDDEN, TURNS
from qlora_chat.history.text_match import excerpt, index_tokens, matches, query_phrases, query_symbols

INDEXED_LETTERS = 200_000
"""Indexed part of a turn in PostgreSQL, which rejects a tsvector above 1 MB."""
SCAN_ROWS = 500


class WordIndex:
    """Search index of the turns; every method works in the caller's transaction."""

    def __init__(self, sqlite: bool, cipher: Cipher) -> None:
        self._sqlite, self._cipher = sqlite, cipher

    def add(self, connection: Connection, seq: int, content: str) -> None:
        """Index the current content of a turn."""
        if self._cipher.encrypts:
            return
        if self._sqlite:
            connection.execute(_FTS_ADD, {"seq": seq, "tokens": _joined(content)})
            connection.execute(update(TURNS).where(TURNS.c.seq == seq).values(indexed=1))
        else:
            connection.execute(_TSV_ADD, {"seq": seq, "words": _joined(content[:INDEXED_LETTERS])})

    def add_missing(self, connection: Connection) -> None:
        """Index answers that a crash has left open, and all turns after a migration of the index."""
        if self._cipher.encrypts:
            return
        missing = select(TURNS.c.seq).where(TURNS.c.indexed == 0, TURNS.c.content != "")
        for seq in connection.execute(missing).scalars().all():
            content = connection.execute(select(TURNS.c.content).where(TURNS.c.seq == seq)).scalar_one()
            self.add(connection, seq, content)

    def remove_turn(self, connection: Connection, seq: int) -> None:
        """Remove a turn; call it before its content changes."""
        self._remove(connection, TURNS.c.seq == seq)

    def remove_conversations(self, connection: Connection, conversation_ids: Sequence[str]) -> None:
        """Remove the turns of conversations; call it before they are deleted."""
        self._remove(connection, TURNS.c.conversation_id.in_(conversation_ids))

    def _remove(self, connection: Connection, condition: ColumnElement[bool]) -> None:
        """Remove turns from FTS5, which stores no text and so needs the indexed tokens. PostgreSQL's index is a column."""
        if not self._sqlite or self._cipher.encrypts:
            return
        indexed = select(TURNS.c.seq, TURNS.c.content).where(condition, TURNS.c.indexed == 1)
        for seq, content in connection.execute(indexed).all():
            connection.execute(_FTS_REMOVE, {"seq": seq, "tokens": _joined(content)})

    def compact(self, connection: Connection) -> None:
        """Rewrite the FTS5 index without removed words, which it only marks as removed until then."""
        if self._sqlite and not self._cipher.encrypts:
            connection.execute(text("INSERT INTO turns_words(turns_words) VALUES('optimize')"))

    def find(self, connection: Connection, query: str, limit: int, owner: str | None) -> list[SearchHit]:
        """Turns that have every word, the last one as a prefix, and every symbol, which are in no index; the newest first."""
        phrases, symbols = query_phrases(query), query_symbols(query)
        if not phrases and not symbols:
            return []
        if self._cipher.encrypts or symbols:
            return self._scan(connection, query, limit, owner)
        found = _with_titles(owner)
        if self._sqlite:
            expression = " ".join(f'"{" ".join(phrase)}"' for phrase in phrases) + "*"
            found = found.join(_WORDS, _WORDS.c.rowid == TURNS.c.seq).where(text("turns_words MATCH :query"))
            found = found.order_by(_WORDS.c.rowid.desc())  # the index's own order: a common word costs no more than a rare one
        else:
            expression = " & ".join(" <-> ".join(f"'{token}'" for token in phrase) for phrase in phrases) + ":*"
            found = found.where(text("turns.words @@ to_tsquery('simple', :query)")).order_by(_NEWEST_FIRST)
        rows = connection.execute(found.limit(limit), {"query": expression}).all()
        return [self._hit(row, query) for row in rows]

    def _scan(self, connection: Connection, query: str, limit: int, owner: str | None) -> list[SearchHit]:
        hits: list[SearchHit] = []
        for row in connection.execution_options(yield_per=SCAN_ROWS).execute(_with_titles(owner).order_by(_NEWEST_FIRST)):
            if matches(self._content(row), query):
                hits.append(self._hit(row, query))
                if len(hits) == limit:
                    break
        return hits

    def _hit(self, row: Any, query: str) -> SearchHit:
        created_at = datetime.fromtimestamp(row.created_at).astimezone()
        title = self._cipher.decrypt_text(row.title, HEADING_COLUMNS.binding("title", row.conversation_id))
        return SearchHit(row.conversation_id, title, row.id, row.role, excerpt(self._content(row), query), created_at)

    def _content(self, row: Any) -> str:
        return self._cipher.decrypt_text(row.content, TURN_COLUMNS.binding_in(row, "content"))


def _joined(content: str) -> str:
    return " ".join(index_tokens(content))


def _with_titles(owner: str | None) -> Select[*tuple[Any, ...]]:
    """Turns of an owner, or of all, with the titles of their conversations."""
    turn = TURNS.c
    rows = select(turn.id, turn.conversation_id, turn.role, turn.content, turn.created_at, CONVERSATIONS.c.title)
    rows = rows.join(CONVERSATIONS, CONVERSATIONS.c.id == turn.conversation_id)
    rows = rows.where(turn.conversation_id.not_in(select(HIDDEN.c.conversation_id)))
    return rows if owner is None else rows.where(CONVERSATIONS.c.owner == owner)


_NEWEST_FIRST = TURNS.c.seq.desc()
_WORDS = table("turns_words", column("rowid"))
_FTS_ADD = text("INSERT INTO turns_words(rowid, content) VALUES(:seq, :tokens)")
_FTS_REMOVE = text("INSERT INTO turns_words(turns_words, rowid, content) VALUES('delete', :seq, :tokens)")
_TSV_ADD = text("UPDATE turns SET words = to_tsvector('simple', :words), indexed = 1 WHERE seq = :seq")
