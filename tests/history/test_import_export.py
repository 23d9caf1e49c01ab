"""Conversations go out and come back as they were, and a bad record changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_chat.history import HistoryError, HistoryStore
from qlora_chat.history.import_export import export, import_into
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from tests.history.conftest import add_turn


@pytest.mark.parametrize("file_format", ["json", "jsonl"])
def test_an_export_is_imported_with_every_branch(file_format: str, store: HistoryStore, tmp_path: Path) -> None:
    talk = add_turn(store, Conversation(system="s"), "one", "1")
    add_turn(store, talk.without_last_exchange(), "edited", "2")
    stored = store.read(talk.id)
    assert stored
    path, other = tmp_path / "out", MemoryHistory()
    path.write_text("".join(export([stored], file_format)))
    assert import_into(other, path) == (1, 0)
    assert other.read(talk.id) == stored
    assert import_into(other, path) == (0, 1), "a second time changes nothing"


def test_sharegpt_is_imported_and_guanaco_exported(tmp_path: Path) -> None:
    store, path = MemoryHistory(), tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    path.write_text(json.dumps([{"id": "a", "conversations": turns}]))
    assert import_into(store, path) == (1, 0)
    stored = store.read("a")
    assert stored
    assert json.loads("".join(export([stored], "guanaco"))) == {"text": "### Human: Hi### Assistant: Hello."}


@pytest.mark.parametrize(
    ("line", "problem"),
    [("{", "not JSON"), ('{"conversations": [{"from": "alien", "value": "x"}]}', "'from' is 'alien'"),
     ("[1]", "record 1: is a number, but must be an object"),
     ('{"x": 1}', "has 'x', but must have")],
)  # fmt: skip
def test_a_bad_record_is_named_and_changes_nothing(line: str, problem: str, tmp_path: Path) -> None:
    store, path = MemoryHistory(), tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(HistoryError, match=problem):
        import_into(store, path)
    assert store.list() == []
