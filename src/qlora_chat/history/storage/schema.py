"""Tables as queries name them; migrations.py creates them, and a test compares the two."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, LargeBinary, MetaData, Table, Text

METADATA = MetaData()

CONVERSATIONS = Table(
    "conversations",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("owner", Text),
    Column("title", Text, nullable=False),
    Column("tags", Text, nullable=False),  # JSON list
    Column("model", Text),
    Column("adapter", Text),
    Column("system", Text),
    Column("settings", Text, nullable=False),  # JSON object
    Column("head_id", Text),
    Column("turns", Integer, nullable=False),
    Column("created_at", Float, nullable=False),  # seconds since 1970, UTC, as all times here
    Column("updated_at", Float, nullable=False),
)

HIDDEN = Table(
    "hidden",
    METADATA,
    Column("conversation_id", Text, primary_key=True),
    Column("since", Float, nullable=False),
)
"""Conversations that a user has deleted and can still bring back. No column: recovery knows rows by their number of columns."""

NAMES = Table(
    "names",
    METADATA,
    Column("name_key", Text, primary_key=True),
    Column("conversation_id", Text, nullable=False),
)
"""Conversations that API clients find by a name; a table of its own, because recovery.py knows a row by its columns."""

ENDED_SESSIONS = Table(
    "ended_sessions",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("ends_at", Float, nullable=False),
)
"""Sessions of the page that were logged out before their end."""

TURNS = Table(
    "turns",
    METADATA,
    Column("seq", BigInteger, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("conversation_id", Text, nullable=False),
    Column("parent_id", Text),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("token_ids", Text, nullable=False),  # decimal, with spaces between
    Column("finish_reason", Text),
    Column("details", Text, nullable=False),  # JSON object
    Column("indexed", Integer, nullable=False),  # 1 if the search index has the current content
    Column("created_at", Float, nullable=False),
)

FEEDBACK = Table(
    "feedback",
    METADATA,
    Column("seq", BigInteger, primary_key=True, autoincrement=True),
    Column("conversation_id", Text, nullable=False),
    Column("turn_id", Text, nullable=False),
    Column("rating", Integer),
    Column("edited", Text),
    Column("comment", Text),
    Column("created_at", Float, nullable=False),
)

VOTES = Table(
    "votes",
    METADATA,
    Column("seq", BigInteger, primary_key=True, autoincrement=True),
    Column("conversation_id", Text, nullable=False),
    Column("answers", Text, nullable=False),  # JSON list of turn ids and names
    Column("verdict", Text, nullable=False),  # best, tie or bad; its place tells a row from one of feedback
    Column("chosen", Text),
    Column("blind", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)

OUTBOX = Table(
    "outbox",
    METADATA,
    Column("seq", BigInteger, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("conversation_id", Text, nullable=False),
    Column("cost", BigInteger, nullable=False),  # bytes counted against the cap
    Column("state", Text, nullable=False),  # waiting or dead
    Column("attempts", Integer, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("reason", Text),
    Column("created_at", Float, nullable=False),
    Column("address", Text),  # LOGGING_URL that it is for; NULL if an earlier version queued it
)

BODIES = Table(
    "outbox_bodies",
    METADATA,
    Column("seq", BigInteger, primary_key=True),
    Column("frame", LargeBinary, nullable=False),  # the only column, so that recovery.py can find it in a page
)

FACTS = Table(
    "facts",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""Counters of the outbox, the check value of the encryption key, and the time that retention goes by."""
