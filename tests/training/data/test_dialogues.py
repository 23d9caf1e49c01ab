"""The four forms of dialogues, and what is said of records that are none."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.training import TrainError
from qlora_chat.training.data.dialogues import BadRecord, parse, read_dialogues

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def texts(record: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in parse(record)[1].messages]


@pytest.mark.parametrize(
    ("form", "record"),
    [
        ("messages", {"messages": TURNS}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello."}),
        ("guanaco", {"text": "### Human: Hi### Assistant: Hello."}),
    ],
)
def test_each_form_is_recognised(form: str, record: Any) -> None:
    assert parse(record)[0] == form
    assert texts(record) == [("user", "Hi"), ("assistant", "Hello.")]


def test_system_texts_are_kept() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert parse({"messages": [system, *TURNS]})[1].system == "Be brief."
    assert (
        parse({"system": "S", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})[1].system
        == "S"
    )
    assert parse({"text": "S\n### Human: a### Assistant: b"})[1].system == "S"


def test_an_instruction_and_its_input_are_one_question() -> None:
    assert texts({"instruction": "Sum up:", "input": "A text.", "output": "T."})[0] == ("user", "Sum up:\n\nA text.")


def test_guanaco_text_with_several_turns_and_an_open_marker() -> None:
    record = {"text": "### Human: a### Assistant: b ### sub ### Human: c### Assistant: d### Human:"}
    assert texts(record) == [("user", "a"), ("assistant", "b ### sub"), ("user", "c"), ("assistant", "d")]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (3, "is a number, but must be an object"),
        ({"prompt": "x"}, "has 'prompt', but must have 'messages'"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: 'content' is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'role' is 'robot'"),
        ({"messages": [TURNS[1]]}, "a dialogue begins with the user"),
        ({"messages": [TURNS[0], TURNS[0]]}, r"messages\[1\] is the user's, but must be the assistant's: turns alternate"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": "  "}]}, "the assistant's text is empty"),
        ({"messages": [*TURNS, {"role": "system", "content": "x"}]}, "can only come first"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no turn of a user"),
        ({"instruction": "x", "output": None}, "'output' is null"),
        ({"text": "Once upon a time"}, "holds no '### Human:'"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(record: Any, problem: str) -> None:
    with pytest.raises(BadRecord, match=problem):
        parse(record)


def test_bad_records_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": TURNS}) + "\n\n{broken\n" + json.dumps({"messages": [TURNS[1]]}) + "\n")
    with pytest.raises(TrainError) as caught:
        read_dialogues([path])
    assert f"{path}:3: is not JSON" in str(caught.value)
    assert f"{path}:4: messages[0] is the assistant's" in str(caught.value)
    kept = read_dialogues([path], skip_bad=True)
    assert (len(kept.conversations), kept.skipped) == (1, 2)


def test_a_json_list_names_the_line_on_which_a_record_begins(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"messages": TURNS}, {"text": "no markers"}], indent=1))
    line = 1 + path.read_text()[: path.read_text().index('"text"')].count("\n") - 1
    with pytest.raises(TrainError, match=rf"d\.json:{line} \(record 2\): 'text' holds no"):
        read_dialogues([path])


def test_compressed_files_and_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress((json.dumps({"messages": TURNS}) + "\n").encode()))
    (tmp_path / "b.json").write_text(json.dumps([{"messages": TURNS}]))
    (tmp_path / "notes.txt").write_text("no data")
    read = read_dialogues([tmp_path])
    assert len(read.conversations) == 2
    assert read.digest != read_dialogues([tmp_path / "b.json"]).digest


def test_a_question_that_nobody_answered_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": [*TURNS, {"role": "user", "content": "And?"}]}) + "\n")
    read = read_dialogues([path])
    assert read.unanswered == 1
    assert len(read.conversations[0].messages) == 2


@pytest.mark.parametrize("name", ["none.jsonl", "d.txt", "empty"])
def test_a_path_that_holds_no_dialogues_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "d.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainError, match=name):
        read_dialogues([tmp_path / name])
