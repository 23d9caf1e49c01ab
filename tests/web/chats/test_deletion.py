"""Deletions that can be undone, and that happen whatever becomes of the tab or the process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from qlora_chat.chat import Chat
from qlora_chat.messages import Conversation
from qlora_chat.web.chats.deletion import PendingDeletions
from tests.fakes import ScriptedRecorder, scripted_chat
from tests.history.conftest import add_turn


def recorded_chat() -> tuple[Chat, ScriptedRecorder]:
    recorder = ScriptedRecorder()
    return replace(scripted_chat(), recorder=recorder), recorder


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


def test_a_deletion_hides_at_once_and_erases_everywhere_later() -> None:
    chat, recorder = recorded_chat()
    talk = add_turn(chat.history, Conversation(), "one", "1")
    deletions = PendingDeletions(chat, seconds=0.05)
    assert deletions.delete(talk.id)
    assert chat.history.list() == []
    wait_for(lambda: chat.history.read(talk.id) is None)
    assert len(recorder.tombstones) == 1
    assert not deletions.undo(talk.id), "too late"
    assert not deletions.delete("nobody")
    deletions.close()


def test_undo_keeps_everything() -> None:
    chat, recorder = recorded_chat()
    talk = add_turn(chat.history, Conversation(), "one", "1")
    before = chat.history.read(talk.id)
    deletions = PendingDeletions(chat, seconds=3600)
    deletions.delete(talk.id)
    assert deletions.undo(talk.id)
    deletions.close()
    assert chat.history.read(talk.id) == before
    assert recorder.tombstones == []


def test_the_end_of_the_server_completes_deletions() -> None:
    chat, recorder = recorded_chat()
    talk = add_turn(chat.history, Conversation(), "one", "1")
    deletions = PendingDeletions(chat, seconds=3600)
    deletions.delete(talk.id)
    deletions.close()
    assert chat.history.read(talk.id) is None
    assert len(recorder.tombstones) == 1


def test_a_start_completes_what_a_crash_interrupted() -> None:
    chat, _ = recorded_chat()
    talk = add_turn(chat.history, Conversation(), "one", "1")
    PendingDeletions(chat, seconds=3600).delete(talk.id)  # and the process is gone
    deletions = PendingDeletions(chat, seconds=0.0)
    deletions.resume()
    wait_for(lambda: chat.history.read(talk.id) is None)
    deletions.close()


def test_a_conversation_that_goes_on_in_another_window_is_shown_again() -> None:
    chat, recorder = recorded_chat()
    talk = add_turn(chat.history, Conversation(), "one", "1")
    deletions = PendingDeletions(chat, seconds=3600)
    deletions.delete(talk.id)
    add_turn(chat.history, talk, "still here", "2")
    deletions.close()
    assert [each.id for each in chat.history.list()] == [talk.id]
    assert recorder.tombstones == []
