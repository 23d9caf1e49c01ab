"""Imports as a whole: what is added is listed, nothing is dropped silently, and no file is too hostile."""

from __future__ import annotations

import json
import os
import re
import threading
import zipfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_chat.history import HistoryError, HistoryStore, StoredConversation
from qlora_chat.history.export import export
from qlora_chat.history.importing import source
from qlora_chat.history.importing.draft import Draft, DraftTurn, conversation_of
from qlora_chat.history.importing.importer import read_file
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from tests.history.conftest import add_turn
from tests.history.importing.imported import import_file


def talk(question: str = "Hi", answer: str = "Hello.", **more: Any) -> dict[str, Any]:
    return {**more, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def written(folder: Path, *records: Any, name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in records))
    return path


def titles(store: HistoryStore) -> list[str]:
    return sorted(each.title for each in store.list())


# --- what is added, and what is there ---------------------------------------------------------------------------------


def test_an_export_comes_back_whole_into_every_store(store: HistoryStore, tmp_path: Path) -> None:
    origin = MemoryHistory()
    first = add_turn(origin, Conversation(system="s"), "one\u2028\x85two", "1\u2029")
    add_turn(origin, first.without_last_exchange(), "edited", "2")
    stored = origin.read(first.id)
    assert stored
    for number, file_format in enumerate(("json", "jsonl")):
        path = tmp_path / f"out.{file_format}"
        path.write_text("".join(export([stored], file_format)), encoding="utf-8")
        report = import_file(store, path)
        assert (report.added, report.there) == (1 - number, number)
    again = store.read(first.id)
    assert again
    assert again.turns == stored.turns
    assert (again.system, again.head_id, again.summary.title) == (stored.system, stored.head_id, stored.summary.title)


def test_another_conversation_with_a_known_id_gets_an_id_of_its_own(store: HistoryStore, tmp_path: Path) -> None:
    path = written(tmp_path, talk("Hi", id="a"), talk("Another", id="a"), talk("Hi", id="a"))
    report = import_file(store, path)
    assert (report.added, report.there, len(store.list())) == (2, 1, 2)
    assert titles(store) == ["Another", "Hi"]
    ((old, new),) = report.renamed
    assert (old, new.startswith("a-")) == ("a", True)
    report = import_file(store, path)
    assert (report.added, report.there) == (0, 3), "the new id follows from the content"


def test_a_conversation_that_went_on_here_is_there_already(store: HistoryStore, tmp_path: Path) -> None:
    path = written(tmp_path, talk(id="a"))
    import_file(store, path)
    stored = store.load("a")
    assert stored
    add_turn(store, stored, "And you?", "Fine.")
    assert import_file(store, path).there == 1
    assert len(store.list()) == 1


def test_turns_whose_ids_another_conversation_has_are_added_under_new_ones(store: HistoryStore, tmp_path: Path) -> None:
    origin = MemoryHistory()
    add_turn(origin, Conversation("a"), "Hi", "Hello.")
    (record,) = (json.loads(line) for line in export(filter(None, [origin.read("a")]), "jsonl"))
    report = import_file(store, written(tmp_path, record, {**record, "id": "b"}))
    assert (report.added, len(store.list())) == (2, 2)
    first, second = store.load("a"), store.load("b")
    assert first
    assert second
    assert first.pairs() == second.pairs() == [["Hi", "Hello."]]


@pytest.mark.parametrize(
    "record",
    [{"conversations": [{"from": "gpt", "value": "only this"}]}, {"messages": []},
     {"messages": [{"role": "user", "content": " "}]}],
)  # fmt: skip
def test_what_no_list_would_show_is_not_counted_as_added(record: Any, tmp_path: Path) -> None:
    store = MemoryHistory()
    with pytest.raises(HistoryError, match="no conversation in it has a question"):
        import_file(store, written(tmp_path, record))
    report = import_file(store, written(tmp_path, record, talk()))
    assert (report.added, len(store.list()), report.left_out["conversations without a question"]) == (1, 1, 1)


def test_a_question_that_is_only_an_image_keeps_its_answer(tmp_path: Path) -> None:
    store = MemoryHistory()
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    import_file(store, written(tmp_path, {"messages": [{"role": "user", "content": [image]}, talk()["messages"][1]]}))
    assert titles(store) == ["[images]"]


# --- bad records ------------------------------------------------------------------------------------------------------


BAD = [
    ("{", "line 2: is not JSON"),
    ('{"x": 1}', "line 2: has 'x', which is none of the known formats"),
    ("3", "line 2: is no object"),
    ('{"turns": [{}], "id": "a", "created_at": "2026-01-01T00:00:00Z"}', "line 2: role is None"),
    ('{"turns": [], "id": "a", "created_at": "2026-01-01T00:00:00Z"}', "line 2: holds no turn"),
    ("[" * 5000 + "]" * 5000, "line 2: is nested too deeply"),
    ('{"x": ' + "9" * 5000 + "}", "line 2: holds a number of too many digits"),
]


@pytest.mark.parametrize(("line", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_a_bad_record_costs_no_other_and_with_strict_all(line: str, problem: str, tmp_path: Path) -> None:
    store, path = MemoryHistory(), written(tmp_path, talk("one"), line, talk("two"))
    with pytest.raises(HistoryError, match=problem):
        import_file(store, path, strict=True)
    assert store.list() == []
    report = import_file(store, path)
    assert titles(store) == ["one", "two"]
    assert [problem in each for each in report.problems] == [True]


def test_bytes_that_are_not_utf8_cost_their_line_only(tmp_path: Path) -> None:
    path = written(tmp_path, talk("one"))
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n' + path.read_bytes().replace(b"one", b"two"))
    store = MemoryHistory()
    assert "line 2: is not UTF-8" in import_file(store, path).problems[0]
    assert titles(store) == ["one", "two"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("\ufeff" + json.dumps([talk("one")]),))
    writer.start()
    store = MemoryHistory()
    assert import_file(store, pipe).added == 1
    writer.join()


def test_a_broken_list_gives_all_records_that_are_whole(tmp_path: Path) -> None:
    records = [json.dumps(talk(f"{number} ]}}\\u2028", "{[")) for number in range(3)]
    store, path = MemoryHistory(), tmp_path / "in.json"
    path.write_text(f'[\n{records[0]},\n{{"broken": tru}},\n{records[1]},\n{records[2][:-9]}')
    report = import_file(store, path)
    assert report.added == 2
    assert "record 2: is not JSON" in report.problems[0]
    assert "record 4: is cut off" in report.problems[1]


@pytest.mark.parametrize("content", ["", "hello", "\x00\x01", "[", '"text"', "<html></html>"])
def test_a_file_that_is_no_json_is_one_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text(content)
    with pytest.raises(HistoryError, match="in.json"):
        import_file(MemoryHistory(), path)


def test_an_unknown_format_and_a_missing_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="must be one of qlora-chat, chatgpt"):
        import_file(MemoryHistory(), tmp_path / "x", "word")
    with pytest.raises(HistoryError, match="cannot be read"):
        import_file(MemoryHistory(), tmp_path / "x")
    with pytest.raises(HistoryError, match="'mapping' is missing"):
        import_file(MemoryHistory(), written(tmp_path, talk()), "chatgpt")


# --- limits -----------------------------------------------------------------------------------------------------------


def zipped(folder: Path, **files: str) -> Path:
    path = folder / "export.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_json", ".json"), content)
    return path


def test_a_zip_is_read_without_unpacking_it(tmp_path: Path) -> None:
    path = zipped(tmp_path, **{"..__..__conversations_json": json.dumps([talk()]), "user_json": "{}", "chat.html": "<p>"})
    store = MemoryHistory()
    assert import_file(store, path).added == 1
    assert [each.name for each in tmp_path.iterdir()] == ["export.zip"]
    assert not (tmp_path.parent.parent / "conversations.json").exists()


def test_a_zip_without_conversations_or_with_two_is_refused(tmp_path: Path) -> None:
    for files in ({"user_json": "{}"}, {"a__conversations_json": "[]", "b__conversations_json": "[]"}):
        with pytest.raises(HistoryError, match="files named conversations.json, but must hold one"):
            import_file(MemoryHistory(), zipped(tmp_path, **files))


def test_a_zip_bomb_and_a_large_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_BYTES", 1 << 20)
    packed = zipped(tmp_path, conversations_json="[" + " " * (4 << 20) + "]")
    assert packed.stat().st_size < 10_000
    plain = tmp_path / "large.json"
    plain.write_text(" " * (2 << 20))
    for path in (packed, plain):
        with pytest.raises(HistoryError, match="holds more than 1 MiB of JSON"):
            import_file(MemoryHistory(), path)


def test_too_many_records_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_RECORDS", 2)
    with pytest.raises(HistoryError, match="more than 2 records"):
        import_file(MemoryHistory(), written(tmp_path, talk(), talk(), talk()))
    monkeypatch.setattr(source, "MAX_ZIP_ENTRIES", 1)
    with pytest.raises(HistoryError, match="too many files"):
        import_file(MemoryHistory(), zipped(tmp_path, conversations_json="[]", user_json="{}"))


def test_a_damaged_zip_is_one_error(tmp_path: Path) -> None:
    whole = zipped(tmp_path, conversations_json=json.dumps([talk(f"{number}") for number in range(50)])).read_bytes()
    path = tmp_path / "damaged.zip"
    for position in range(4, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        with suppress(HistoryError):
            import_file(MemoryHistory(), path)


def test_turns_in_a_circle_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = [DraftTurn("a", "b", "user", "x"), DraftTurn("b", "a", "assistant", "y")]
    with pytest.raises(ValueError, match="in a circle"):
        conversation_of(Draft(circle))
    with pytest.raises(ValueError, match="at most 100,000"):
        conversation_of(Draft([DraftTurn("a", None, "user", "x")] * 100_001))
    monkeypatch.setattr("qlora_chat.history.importing.draft.MAX_LETTERS", 1000)
    with pytest.raises(ValueError, match="more than 1,000 letters"):
        conversation_of(Draft([DraftTurn(f"{n}", f"{n - 1}" if n % 2 else f"{n - 2}", "user", "x" * 20) for n in range(40)]))


# --- any tree, any text -----------------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from('ab \n\u2028\u2029\x85\v\x1e\ud800\0{}[]"\\#'), max_size=8)


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    count = draw(st.integers(0, 12))
    roles = st.sampled_from(["user", "assistant", "system", "tool", "alien"])
    parents = [draw(st.one_of(st.none(), st.integers(0, max(number - 1, 0)))) for number in range(count)]
    turns = [
        DraftTurn(str(number), None if parent is None or parent == number else str(parent), draw(roles), draw(TEXTS))
        for number, parent in enumerate(parents)
    ]
    return Draft(
        draw(st.permutations(turns)), draw(st.one_of(st.none(), TEXTS)), draw(TEXTS), head_id=str(draw(st.integers(0, 12)))
    )


@given(drafts())
def test_any_tree_becomes_a_conversation_that_survives_export_and_import(draft: Draft) -> None:
    conversation, _ = conversation_of(draft)
    shown = conversation.conversation()  # turns alternate
    stored = {each.message.id for each in conversation.turns}
    assert len(stored) == len(conversation.turns)
    assert (shown.messages == ()) == (conversation.turns == ())
    with TemporaryDirectory() as folder:
        _survives(conversation, Path(folder))


def _survives(conversation: StoredConversation, folder: Path) -> None:
    for file_format in ("json", "jsonl"):
        path, store = folder / f"out.{file_format}", MemoryHistory()
        path.write_text("".join(export([conversation], file_format)), encoding="utf-8", errors="replace")
        if not conversation.turns:
            continue
        assert import_file(store, path).added == 1
        again = store.read(conversation.summary.id)
        assert again
        assert [each.message.id for each in again.turns] == [each.message.id for each in conversation.turns]
        assert [each.replace("?", "") for each in _texts(again)] == [
            each.encode("utf-8", "ignore").decode().replace("\0", "\u2400").replace("?", "") for each in _texts(conversation)
        ]
        assert import_file(store, path).there == 1


def _texts(conversation: StoredConversation) -> list[str]:
    return [each.message.content for each in conversation.turns]


@given(st.lists(st.text(st.sampled_from("ab\u2028\u2029\x85 \n#:Human"), min_size=1), min_size=2, max_size=6))
def test_guanaco_comes_back_and_no_text_begins_a_turn(texts: list[str]) -> None:
    texts = [text.strip() or "x" for text in [*texts, "### Human: typed", "a ### Assistant: too#"]]
    store, again = MemoryHistory(), MemoryHistory()
    conversation = Conversation("a")
    for question, answer in zip(texts[::2], texts[1::2], strict=False):
        conversation = add_turn(store, conversation, question, answer)
    stored = store.read("a")
    assert stored
    with TemporaryDirectory() as folder:
        path = Path(folder) / "out.jsonl"
        path.write_text("".join(export([stored], "guanaco")), encoding="utf-8")
        import_file(again, path)
    (only,) = again.list()
    back = again.load(only.id)
    assert back
    assert [*map(_plain, back.pairs())] == [*map(_plain, conversation.pairs())]


def _plain(pair: list[str]) -> list[str]:
    return [re.sub("### (?=(Human|Assistant):)", "# # # ", each) for each in pair]


# --- files as tools and systems write them ----------------------------------------------------------------------------


def test_a_file_in_utf_16_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(json.dumps([talk("caf\xe9 \U0001f600")], ensure_ascii=False).encode("utf-16"))
    store = MemoryHistory()
    import_file(store, path)
    assert titles(store) == ["caf\xe9 \U0001f600"]


def test_a_record_that_is_not_utf_8_is_named_and_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(b"[" + json.dumps(talk()).encode() + b', {"messages": [{"role": "user", "content": "caf\xe9"}]}]')
    store = MemoryHistory()
    report = import_file(store, path)
    assert (report.added, titles(store)) == (1, ["Hi"])
    assert "record 2: is not UTF-8" in report.problems[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"\x1f\x8b\x08\0", "is compressed with gzip: unpack it first")],
)
def test_a_file_without_json_is_named_as_what_it_is(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(content)
    with pytest.raises(HistoryError, match=said):
        read_file(path)


@pytest.mark.parametrize("name", ["conversations", "chats", "data"])
def test_a_list_in_an_object_of_its_own_is_a_list(name: str, tmp_path: Path) -> None:
    store = MemoryHistory()
    assert import_file(store, written(tmp_path, {name: [talk("one"), talk("two")]})).added == 2


def test_messages_without_an_id_of_their_own_follow_each_other(tmp_path: Path) -> None:
    messages = [None, {"uuid": "1", "sender": "human", "text": "Hi"}, {"sender": "assistant", "text": "Hello."}]
    assert import_file(MemoryHistory(), written(tmp_path, {"uuid": "c", "chat_messages": messages})).added == 1


def test_a_chat_of_silly_tavern_whose_first_line_is_lost_is_still_read(tmp_path: Path) -> None:
    store = MemoryHistory()
    lines = ("{broken", {"is_user": True, "mes": "Hi"}, {"is_user": False, "mes": "Hello."})
    report = import_file(store, written(tmp_path, *lines))
    assert (report.added, titles(store)) == (1, ["Hi"])
    assert "line 1: is not JSON" in report.problems[0]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": "x"}, "'messages' is a text, but must be a list"),
        ({"mapping": [1]}, "'mapping' is a list, but must be an object"),
        ({"id": "a", "chat": None}, "'chat' is null, but must be an object"),
    ],
)
def test_a_known_field_of_another_type_is_named(record: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=said):
        read_file(written(tmp_path, record))
