"""Finding words in turns: FTS5 in SQLite, a GIN index over tsvector in PostgreSQL, and scanning where turns are sealed.

Scope: keeping the index true to the turns, and asking it. Both hold the tokens of words.py, not the text: no case, no accents,
and letters for words in scripts without spaces, so that a word is found wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, TextClause, select, text, update

from qlora_chat.history import SearchHit
from qlora_chat.history.storage.encryption import Cipher, decrypt_text
from qlora_chat.history.storage.schema import CONVERSATIONS, TURNS
from qlora_chat.history.text_match import excerpt, index_tokens, matches, query_phrases

INDEXED_LETTERS = 200_000
"""Of one turn in PostgreSQL, whose index refuses more than a megabyte."""
SCAN_ROWS = 500


class WordIndex:
    """The index beside the turns; every method works in the caller's transaction."""

    def __init__(self, sqlite: bool, seal: Cipher) -> None:
        self._sqlite, self._seal = sqlite, seal

    def add(self, connection: Connection, seq: int, content: str) -> None:
        """Index a turn's words as they now are."""
        if self._seal.sealed:
            return
        if self._sqlite:
            connection.execute(_FTS_ADD, {"seq": seq, "tokens": _joined(content)})
            connection.execute(update(TURNS).where(TURNS.c.seq == seq).values(indexed=1))
        else:
            connection.execute(_TSV_ADD, {"seq": seq, "words": _joined(content[:INDEXED_LETTERS])})

    def add_left_open(self, connection: Connection) -> None:
        """Index answers that a crash has left open, as far as they got, and all turns after a migration of the index."""
        if self._seal.sealed:
            return
        left = select(TURNS.c.seq).where(TURNS.c.indexed == 0, TURNS.c.content != "")
        for seq in connection.execute(left).scalars().all():
            content = connection.execute(select(TURNS.c.content).where(TURNS.c.seq == seq)).scalar_one()
            self.add(connection, seq, content)

    def remove_turn(self, connection: Connection, seq: int) -> None:
        """Take a turn out, before its content changes."""
        if self._sqlite and not self._seal.sealed:
            self._take_out(connection, TURNS.c.seq == seq)

    def remove(self, connection: Connection, conversation_ids: Sequence[str]) -> None:
        """Take conversations out, before they are deleted."""
        if not self._sqlite or self._seal.sealed:
            return
        self._take_out(connection, TURNS.c.conversation_id.in_(conversation_ids))

    @staticmethod
    def _take_out(connection: Connection, which: ColumnElement[bool]) -> None:
        """The index keeps no text, so that it must be told what it held."""
        held = select(TURNS.c.seq, TURNS.c.content).where(which, TURNS.c.indexed == 1)
        for seq, content in connection.execute(held).all():
            connection.execute(_FTS_REMOVE, {"seq": seq, "tokens": _joined(content)})

    def compact(self, connection: Connection) -> None:
        """Rewrite the index without what was taken out: FTS5 marks words as gone and keeps them until it merges."""
        if self._sqlite and not self._seal.sealed:
            connection.execute(text("INSERT INTO turns_words(turns_words) VALUES('optimize')"))

    def find(self, connection: Connection, asked: str, limit: int, owner: str | None) -> list[SearchHit]:
        """Turns that hold every word, the last one as a beginning; the newest first."""
        phrases = query_phrases(asked)
        if not phrases:
            return []
        if self._seal.sealed:
            return self._scan(connection, asked, limit, owner)
        if self._sqlite:
            query = " ".join(f'"{" ".join(phrase)}"' for phrase in phrases) + "*"
            found = _FTS_FIND if owner is None else _FTS_FIND_OWNED
        else:
            query = " & ".join(" <-> ".join(f"'{token}'" for token in phrase) for phrase in phrases) + ":*"
            found = _owned(_columns().where(text("turns.words @@ to_tsquery('simple', :query)")), owner).limit(limit)
        rows = connection.execute(found, {"query": query, "owner": owner, "most": limit}).all()
        return [self._hit(row, asked) for row in rows]

    def _scan(self, connection: Connection, asked: str, limit: int, owner: str | None) -> list[SearchHit]:
        hits: list[SearchHit] = []
        for row in self._newest_first(connection, owner):
            if matches(decrypt_text(self._seal, row.content), asked):
                hits.append(self._hit(row, asked))
                if len(hits) == limit:
                    break
        return hits

    def _newest_first(self, connection: Connection, owner: str | None) -> Iterator[Any]:
        yield from connection.execution_options(yield_per=SCAN_ROWS).execute(_owned(_columns(), owner))

    def _hit(self, row: Any, asked: str) -> SearchHit:
        moment = datetime.fromtimestamp(row.created_at).astimezone()
        content, title = decrypt_text(self._seal, row.content), decrypt_text(self._seal, row.title)
        return SearchHit(row.conversation_id, title, row.id, row.role, excerpt(content, asked), moment)


def _joined(content: str) -> str:
    return " ".join(index_tokens(content))


def _columns() -> Select[*tuple[Any, ...]]:
    table = TURNS.c
    rows = select(table.id, table.conversation_id, table.role, table.content, table.created_at, CONVERSATIONS.c.title)
    return rows.join(CONVERSATIONS, CONVERSATIONS.c.id == table.conversation_id).order_by(table.seq.desc())


def _owned(rows: Select[*tuple[Any, ...]], owner: str | None) -> Select[*tuple[Any, ...]]:
    return rows if owner is None else rows.where(CONVERSATIONS.c.owner == owner)


def _fts_find(owned: str) -> TextClause:
    """In the index's own order, backwards, so that a common word costs no more than a rare one."""
    return text(
        "SELECT t.id, t.conversation_id, t.role, t.content, t.created_at, c.title FROM turns_words w "
        "JOIN turns t ON t.seq = w.rowid JOIN conversations c ON c.id = t.conversation_id "
        f"WHERE turns_words MATCH :query {owned} ORDER BY w.rowid DESC LIMIT :most"
    )


_FTS_FIND, _FTS_FIND_OWNED = _fts_find(""), _fts_find("AND c.owner = :owner")
_FTS_ADD = text("INSERT INTO turns_words(rowid, content) VALUES(:seq, :tokens)")
_FTS_REMOVE = text("INSERT INTO turns_words(turns_words, rowid, content) VALUES('delete', :seq, :tokens)")
_TSV_ADD = text("UPDATE turns SET words = to_tsvector('simple', :words), indexed = 1 WHERE seq = :seq")
