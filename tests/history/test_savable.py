"""Conversations in memory that are saved to a file when a person says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from qlora_chat.history import HistoryError, HistoryStore, TurnRecord
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.history.savable import SavableHistory
from qlora_chat.messages import Conversation
from qlora_chat.settings import Sampling, data_file, history_settings
from tests.history.conftest import add_turn, sqlite_history, with_open_answer


def test_nothing_is_written_before_and_everything_is_there_after(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    store = SavableHistory(MemoryHistory(), file, sqlite_history)
    talk = add_turn(cast(HistoryStore, store), Conversation(), "before", "1")
    store.change(talk.id, title="Mine", tags=["work"])
    assert not file.exists()
    assert store.start_saving() == 1
    talk = add_turn(cast(HistoryStore, store), talk, "after", "2")
    assert store.start_saving() == 1, "a second click changes nothing"
    store.close()
    again = sqlite_history(file)
    stored = again.read(talk.id)
    assert stored
    assert stored.conversation().pairs() == [["before", "1"], ["after", "2"]]
    assert (stored.summary.title, stored.summary.tags) == ("Mine", ("work",))
    again.close()


def test_an_answer_that_is_being_written_meanwhile_is_saved_whole(tmp_path: Path) -> None:
    store = SavableHistory(MemoryHistory(), tmp_path / "chats.db", sqlite_history)
    opened = store.save(with_open_answer(Conversation(), "long question"))
    store.start_saving()
    done = opened.replacing_last(replace(opened.messages[-1], content="long answer", finish_reason="stop"))
    store.finish(TurnRecord(done, "prompt", Sampling()))
    assert [hit.conversation_id for hit in store.search("long answer")] == [opened.id]
    store.close()


def test_a_file_that_cannot_be_created_changes_nothing(tmp_path: Path) -> None:
    def refuse(file: Path) -> HistoryStore:
        raise HistoryError(f"{file} cannot be created")

    store = SavableHistory(MemoryHistory(), tmp_path / "chats.db", refuse)
    talk = add_turn(cast(HistoryStore, store), Conversation(), "one", "1")
    with pytest.raises(HistoryError, match="cannot be created"):
        store.start_saving()
    assert not store.is_saved
    add_turn(cast(HistoryStore, store), talk, "two", "2")
    assert len(store.list()) == 1


def test_the_next_start_goes_on_with_the_saved_file_unless_told_otherwise(tmp_path: Path) -> None:
    saved = data_file({"XDG_DATA_HOME": str(tmp_path)}, "linux")
    assert history_settings(None, {}, saved).url is None, "there is no file yet"
    saved.parent.mkdir()
    saved.touch()
    assert history_settings(None, {}, saved).url == f"sqlite:///{tmp_path}/qlora-chat/chats.db"
    assert history_settings("memory:", {}, saved).url is None
    assert history_settings("jsonl:here", {}, saved).url == "jsonl:here"
    assert history_settings(None, {"QLORA_CHAT_HISTORY": "jsonl:there"}, saved).url == "jsonl:there"


@pytest.mark.parametrize(
    ("platform", "variables", "file"),
    [
        ("linux", {"XDG_DATA_HOME": "/data"}, Path("/data/qlora-chat/chats.db")),
        ("linux", {}, Path.home() / ".local/share/qlora-chat/chats.db"),
        ("darwin", {}, Path.home() / "Library/Application Support/qlora-chat/chats.db"),
        ("win32", {"LOCALAPPDATA": "/local"}, Path("/local/qlora-chat/chats.db")),
    ],
)
def test_the_file_is_in_the_data_folder_of_the_platform(platform: str, variables: dict[str, str], file: Path) -> None:
    assert data_file(variables, platform) == file
