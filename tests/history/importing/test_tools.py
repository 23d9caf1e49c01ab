"""Exports of other tools: texts, branches, dates and titles arrive, and what does not is counted."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.history import StoredConversation
from qlora_chat.history.importing.formats import FORMATS, conversation_from
from qlora_chat.history.importing.importer import ImportReport
from qlora_chat.history.memory import MemoryHistory
from tests.history.importing.imported import import_file

EXPORTS = Path(__file__).parent / "exports"


def imported(source: Path, file_format: str | None = None) -> tuple[ImportReport, list[StoredConversation]]:
    store = MemoryHistory()
    report = import_file(store, source, file_format)
    found = [store.read(each.id) for each in store.list()]
    return report, [each for each in found if each]


def branches(conversation: StoredConversation) -> list[list[str]]:
    """Texts of every branch."""
    by_id = {each.message.id: each for each in conversation.turns}
    parents = {each.parent_id for each in conversation.turns}
    found: list[list[str]] = []
    for leaf in (each for each in conversation.turns if each.message.id not in parents):
        texts, turn = [leaf.message.content], leaf
        while turn.parent_id:
            turn = by_id[turn.parent_id]
            texts.append(turn.message.content)
        found.append(texts[::-1])
    return sorted(found)


def shown(conversation: StoredConversation) -> list[str]:
    return [each.content for each in conversation.conversation().messages]


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


def test_chatgpt_keeps_both_answers_and_the_one_that_was_shown() -> None:
    report, (talk,) = imported(EXPORTS / "chatgpt.json")
    question = "What should I pack for Norway in May?"
    last = ["Layers, and a rain jacket.", "Is this jacket enough?", "Yes, if it is waterproof."]
    assert branches(talk) == [[question, "A warm coat."], [question, *last]]
    assert shown(talk) == [question, *last]
    assert (talk.summary.id, talk.summary.title, talk.summary.model) == ("67ac-norway", "Packing for Norway", "gpt-4o")
    assert talk.summary.created_at.timestamp() == 1730000000.25
    assert talk.turns[0].created_at.timestamp() == 1730000010
    assert talk.summary.updated_at.timestamp() == 1730000600.5
    assert report.left_out == {"system messages": 1, "tool messages": 2, "images": 1, "conversations without a question": 1}


def test_claude_keeps_an_edited_question() -> None:
    report, (bread, hello) = imported(EXPORTS / "claude.json")
    begin = ["Why does my bread not rise?", "Your recipe has no yeast."]
    assert branches(bread) == [[*begin, "How much do I need?", "Seven grams."], [*begin, "How much?"]]
    assert shown(bread)[-1] == "Seven grams."
    assert (bread.summary.title, bread.summary.created_at) == ("Bread that rises", at(2025, 3, 1, 9))
    assert (shown(hello), hello.summary.title) == (["Hello", "Hi!"], "Hello"), "an older export, without parents"
    assert report.left_out == {"attachments": 1, "reasoning": 1}


def test_open_webui_keeps_both_answers_and_the_system_text() -> None:
    report, (talk,) = imported(EXPORTS / "open_webui.json")
    assert branches(talk) == [["Tea or coffee?", "Coffee."], ["Tea or coffee?", "Tea.", "Green?"]]
    assert shown(talk) == ["Tea or coffee?", "Coffee."]
    assert (talk.summary.id, talk.system, talk.summary.model) == ("0a1b-open", "You like tea.", "llama3.2:latest")
    assert talk.turns[1].created_at.timestamp() == 1740000005
    assert report.left_out == {"images": 1, "empty turns": 1}


def test_text_generation_webui_keeps_versions_and_reads_no_html() -> None:
    report, (talk,) = imported(EXPORTS / "text_generation_webui.json")
    assert branches(talk) == [["Is 1 < 2?", "I think so."], ["Is 1 < 2?", "Yes, it is.", "And 2 < 1?", "No."]]
    assert shown(talk)[-1] == "No."
    assert talk.turns[0].created_at == datetime(2025, 5, 20, 14, 30).astimezone()
    assert report.left_out == {"answers before the first question": 1}, "the greeting"


def test_sillytavern_keeps_swipes() -> None:
    report, (talk,) = imported(EXPORTS / "sillytavern.jsonl")
    question = "Where does this path lead?"
    assert branches(talk) == [[question, "To the mill."], [question, "To the river."]]
    assert shown(talk) == [question, "To the river."]
    assert talk.summary.title == "Chat with Seraphina"
    assert talk.turns[0].created_at == datetime(2024, 5, 3, 10, 21).astimezone()
    assert report.left_out == {"answers before the first question": 1, "system messages": 1}


@pytest.mark.parametrize(
    ("name", "system", "left_out"),
    [("librechat.json", "Answer in one word.", {"images": 1, "reasoning": 1, "tool messages": 1}),
     ("librechat_recursive.json", None, {})],
)  # fmt: skip
def test_librechat_keeps_branches_of_both_forms(name: str, system: str | None, left_out: dict[str, int]) -> None:
    report, (talk,) = imported(EXPORTS / name)
    question = "Which city has seven hills?"
    assert branches(talk) == [[question, "Lisbon."], [question, "Rome."]]
    assert shown(talk) == [question, "Lisbon."], "the newest"
    assert (talk.summary.title, talk.system) == ("Seven hills", system)
    assert talk.turns[0].created_at == at(2025, 2, 2, 10)
    assert report.left_out == left_out


def test_messages_may_have_parts_and_tools() -> None:
    report, talks = imported(EXPORTS / "messages.jsonl")
    assert sorted(map(shown, talks)) == [["Hi", "Hello."], ["What is in this picture?", "A cat."]]
    assert {each.system for each in talks} == {"Be brief.", None}
    assert report.left_out == {"images": 1, "tool messages": 2}


def test_a_list_of_messages_is_one_conversation(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]))
    assert [shown(each) for each in imported(path)[1]] == [["Hi", "Hello."]]


def test_alpaca_joins_instruction_and_input() -> None:
    _, talks = imported(EXPORTS / "alpaca.json")
    assert sorted(map(shown, talks)) == [
        ["Count to three.", "One, two, three."],
        ["Name the opposite.\n\nhot", "Cold."],
    ]


FORMAT_OF = {
    "chatgpt.json": "chatgpt", "claude.json": "claude", "open_webui.json": "open-webui",
    "text_generation_webui.json": "text-generation-webui", "sillytavern.jsonl": "sillytavern", "librechat.json": "librechat",
    "librechat_recursive.json": "librechat", "messages.jsonl": "messages", "alpaca.json": "alpaca",
}  # fmt: skip


@pytest.mark.parametrize("name", FORMAT_OF)
def test_every_export_is_recognised_and_may_be_named(name: str) -> None:
    report, found = imported(EXPORTS / name)
    assert set(report.formats) == {FORMAT_OF[name]}
    _, named = imported(EXPORTS / name, FORMAT_OF[name])
    assert [each.summary.id for each in named] == [each.summary.id for each in found]


@pytest.mark.parametrize("file", sorted(path.name for path in EXPORTS.iterdir()))
def test_a_second_import_adds_nothing(file: str) -> None:
    store = MemoryHistory()
    first, again = import_file(store, EXPORTS / file), import_file(store, EXPORTS / file)
    assert first.added == len(store.list()) == again.there
    assert again.added == 0


PLACES = [0, -1, 1e300, True, None, "", "\ud800", "x\0y", [], {}, [[]], [None], {"a": 1}, "9" * 5000, float("inf")]


@pytest.mark.parametrize("name", sorted(set(FORMAT_OF) | {"own"}))
@pytest.mark.parametrize("value", PLACES, ids=repr)
def test_no_value_in_any_place_ends_an_import(name: str, value: Any, tmp_path: Path) -> None:
    """Every field of an export in turn gets the value; a good record beside it always arrives."""
    good = {"messages": [{"role": "user", "content": "still here"}]}
    path, records = tmp_path / "changed.json", list(_with_each_field_changed(_first_record(name), value))
    for changed in records:
        path.write_text(json.dumps([changed, good]))
        found = imported(path)[1]
        assert ["still here"] in map(shown, found)
        assert all(each.turns for each in found)
    path.write_text(json.dumps(records))
    assert all(each.turns for each in _or_nothing(path, FORMAT_OF.get(name, "qlora-chat")))


def _or_nothing(path: Path, file_format: str) -> list[StoredConversation]:
    from qlora_chat.history import HistoryError

    try:
        return imported(path, file_format)[1]
    except HistoryError:
        return []


def _first_record(name: str) -> Any:
    if name == "own":
        from qlora_chat.history.json_codec import conversation_to_json

        return conversation_to_json(imported(EXPORTS / "chatgpt.json")[1][0])
    text = (EXPORTS / name).read_text()
    if name == "sillytavern.jsonl":
        return [json.loads(line) for line in text.split("\n") if line]
    value = json.loads(text.split("\n")[0] if name.endswith("jsonl") else text)
    return value[0] if isinstance(value, list) else value


def _with_each_field_changed(record: Any, value: Any) -> list[Any]:
    """Copies of a record, each with another value somewhere in it."""
    if not isinstance(record, dict | list):
        return []
    found: list[Any] = []
    for key in record if isinstance(record, dict) else range(len(record)):
        for inner in [value, *_with_each_field_changed(record[key], value)]:
            copy: Any = dict(record) if isinstance(record, dict) else list(record)
            copy[key] = inner
            found.append(copy)
    return found


def test_every_format_has_an_export_here() -> None:
    assert set(FORMATS) - set(FORMAT_OF.values()) == {
        "qlora-chat", "sharegpt", "preference", "question-answer", "guanaco",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"question": " Hi", "answer": "Hello. "}, "question-answer"),
        ({"prompt": " Hi", "completion": "Hello. "}, "question-answer"),
        ({"instruction": " Hi", "response": "Hello. "}, "alpaca"),
        ({"conversations": [{"role": "user", "content": " Hi"}, {"role": "assistant", "content": "Hello. "}]}, "sharegpt"),
    ],
)
def test_what_train_reads_can_be_imported_as_it_is(record: dict[str, Any], name: str) -> None:
    found, conversation, _ = conversation_from(record)
    assert found == name
    assert [each.message.content for each in conversation.turns] == [" Hi", "Hello. "]
