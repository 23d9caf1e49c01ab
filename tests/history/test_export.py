"""Formats of exports, and files that are written as a whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_chat.history import HistoryError
from qlora_chat.history.export import export
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.private_files import write_new_file
from tests.history.conftest import add_turn


def test_guanaco_is_what_the_original_trained_on() -> None:
    store = MemoryHistory()
    talk = add_turn(store, Conversation(), "Hi", "Hello.")
    stored = store.read(talk.id)
    assert stored
    assert json.loads("".join(export([stored], "guanaco"))) == {"text": "### Human: Hi### Assistant: Hello."}
    with pytest.raises(HistoryError, match="must be one of json, markdown, jsonl, guanaco"):
        list(export([stored], "word"))


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        yield "one\n"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_new_file(tmp_path / "out", texts())
    assert list(tmp_path.iterdir()) == []
    write_new_file(tmp_path / "out", ["one\n"])
    with pytest.raises(FileExistsError):
        write_new_file(tmp_path / "out", ["two\n"])
    assert (tmp_path / "out").read_text() == "one\n"
