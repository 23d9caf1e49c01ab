"""An empty store of every kind, and turns to put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from qlora_chat.history import ComparedAnswer, ConversationInfo, HistoryStore, TurnRecord, Vote
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.history.open import open_history
from qlora_chat.history.savable import SavableHistory
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.messages import Conversation, FinishReason, Message
from qlora_chat.settings import HistorySettings, LogSettings, Sampling
from tests.postgres import PASSWORD, Server

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
NEW_KEY = KEY.replace("M", "N", 1)


def sqlite_history(path: Path, key: str | None = None, old_key: str | None = None) -> HistoryStore:
    return open_history(HistorySettings(f"sqlite:///{path}", key=key, old_key=old_key), LogSettings()).store


OPENERS: dict[str, Callable[[Path], HistoryStore]] = {
    "memory": lambda folder: MemoryHistory(),
    "savable": lambda folder: cast(HistoryStore, SavableHistory(MemoryHistory(), folder / "chats.db", sqlite_history)),
    "sqlite": lambda folder: sqlite_history(folder / "chats.db"),
    "jsonl": lambda folder: open_history(HistorySettings(f"jsonl:{folder / 'chats'}"), LogSettings()).store,
    "encrypted": lambda folder: sqlite_history(folder / "chats.db", KEY),
}


def postgres_history(server: Server) -> HistoryStore:
    """An empty history in that server."""
    store = open_history(HistorySettings(server.network_url, PASSWORD), LogSettings()).store
    assert isinstance(store, SqlHistory)
    with store.database.write() as connection:
        for table in ("names", "votes", "feedback", "turns", "conversations", "outbox", "outbox_bodies"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    return store


@pytest.fixture(params=[*OPENERS, "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HistoryStore]:
    """A store of every kind."""
    if request.param == "postgresql":
        opened = postgres_history(request.getfixturevalue("postgres_server"))
    else:
        opened = OPENERS[request.param](tmp_path)
    with closing(opened):
        yield opened


def with_open_answer(conversation: Conversation, question: str) -> Conversation:
    """The conversation with a question and an answer that has not begun."""
    return conversation.adding(Message("user", question)).adding(Message("assistant", "", (), "partial"))


def add_turn(
    store: HistoryStore, conversation: Conversation, question: str, answer: str, reason: FinishReason = "stop"
) -> Conversation:
    """Store a whole turn as chat.py does. Returns the conversation with its new head."""
    saved = store.save(
        with_open_answer(conversation, question), ConversationInfo("a-model", "an-adapter", {"temperature": 0.5})
    )
    done = saved.replacing_last(replace(saved.messages[-1], content=answer, ids=(5, 6), finish_reason=reason))
    store.finish(TurnRecord(done, f"### Human: {question}### Assistant:", Sampling(seed=3)))
    return replace(done, head=done.messages[-1].id)


def compared(store: HistoryStore, *answers: str, owner: str | None = None) -> Conversation:
    """A conversation with one question, and several answers to it."""
    talk = store.save(with_open_answer(Conversation(), "Which?"), ConversationInfo(owner=owner))
    for each in answers:
        talk = store.save(talk.before_last().adding(Message("assistant", each, (), "stop")))
    return talk


def vote_on(store: HistoryStore, talk: Conversation, best: int | None, **more: Any) -> Vote:
    """A vote for the answer of that number, or for a tie, on all finished answers."""
    stored = store.read(talk.id)
    assert stored
    ids = [turn.message.id for turn in stored.turns if turn.message.finish_reason == "stop"]
    answers = tuple(ComparedAnswer(turn_id, f"adapter {number}") for number, turn_id in enumerate(ids))
    return Vote(answers, "tie" if best is None else "best", None if best is None else ids[best], **more)
