"""Files -> dialogues: bad records named by line, and everything that is left out or changed counted with an example."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.chat_templates.format import TemplateFormat
from qlora_chat.chat_templates.known import named_format
from qlora_chat.chat_templates.vocabulary import TemplateVocabulary
from qlora_chat.models.locate import BUNDLED
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.training import TrainError
from qlora_chat.training.data.dialogues import Dialogues, load_dialogues, text_reader, usable_dialogues

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def usable(path: Path, *, skip_bad: bool = False) -> Dialogues:
    dialogues = load_dialogues([str(path)], print, skip_bad=skip_bad)
    return usable_dialogues(dialogues, text_reader(DEFAULT_FORMAT), skip_bad=skip_bad)


def test_bad_records_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": TURNS}) + "\n\n{broken\n" + json.dumps({"messages": [TURNS[1]]}) + "\n")
    with pytest.raises(TrainError) as caught:
        load_dialogues([str(path)], print)
    assert f"{path}:3: is not JSON" in str(caught.value)
    assert f"{path}:4: messages[0] is the assistant's" in str(caught.value)
    remaining = load_dialogues([str(path)], print, skip_bad=True)
    assert len(remaining.train) == 1
    assert remaining.summary()[1:] == [
        f"  left out: 1 bad record: {path}:3: is not JSON (Expecting property name enclosed in double quotes, column 2)",
        f"  left out: 1 bad record: {path}:4: messages[0] is the assistant's, but must be the user's: "
        "a dialogue begins with the user",
    ]


def test_a_json_list_names_the_line_on_which_a_record_begins(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"messages": TURNS}, {"text": 3}], indent=1))
    line = 1 + path.read_text()[: path.read_text().index('"text"')].count("\n") - 1
    with pytest.raises(TrainError, match=rf"d\.json:{line} \(record 2\): 'text' is a number"):
        load_dialogues([str(path)], print)


def test_compressed_files_and_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress((json.dumps({"messages": TURNS}) + "\n").encode()))
    (tmp_path / "b.json").write_text(json.dumps([{"messages": TURNS}]))
    (tmp_path / "notes.txt").write_text("no data")
    read = load_dialogues([str(tmp_path)], print)
    assert len(read.train) == 2
    assert read.digest != load_dialogues([str(tmp_path / "b.json")], print).digest


def test_the_summary_counts_everything_that_is_left_out_or_changed(tmp_path: Path) -> None:
    path = written(
        tmp_path / "d.jsonl",
        {"messages": TURNS},
        {"messages": [*TURNS, {"role": "user", "content": "And?"}]},
        {"question": " One? ", "answer": "1."},
        {"question": "Two?", "answer": "2 \n"},
        {"messages": TURNS[:1]},
        {"messages": [TURNS[0], {**TURNS[1], "weight": 0}]},
    )
    assert usable(path).summary() == [
        "4 dialogues (2 as messages, 2 as question-answer)",
        f"  left out: 1 without an answer (the first: {path}:5)",
        f"  left out: 1 whose answers are all marked as not to be learned (the first: {path}:6)",
        f"  2 lost white space around a text (the first: {path}:3)",
        f"  1 lost a last question without an answer (the first: {path}:2)",
        f"  1 repeat an earlier one; all copies are on one side of the split (the first: {path}:2)",
    ]


def test_a_dialogue_in_a_test_file_is_not_learned_as_well(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", {"messages": TURNS}, {"question": "One?", "answer": "1."})
    written(tmp_path / "test.jsonl", {"question": "Hi", "answer": "Hello."})
    read = usable(tmp_path)
    assert [each.where for each in read.train] == [f"{tmp_path}/train.jsonl:2"]
    assert [each.where for each in read.held_out] == [f"{tmp_path}/test.jsonl:1"]
    assert read.summary() == [
        "2 dialogues (2 as question-answer), 1 of them in held-out files",
        f"  left out: 1 that stand in a held-out file as well (the first: {tmp_path}/train.jsonl:1)",
    ]


def test_a_text_is_read_in_the_models_own_template(tmp_path: Path) -> None:
    source = named_format("chatml", "--format").source
    assert source
    template = TemplateFormat("chatml", source, TemplateVocabulary((BUNDLED / "base" / "tokenizer.json").read_text()))
    chatml = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>"
    path = written(tmp_path / "d.jsonl", {"text": chatml}, {"text": "### Human: Hi### Assistant: Hello."})
    read = usable_dialogues(load_dialogues([str(path)], print), text_reader(template), skip_bad=False)
    assert [[message.content for message in each.conversation.messages] for each in read.train] == [["Hi", "Hello."]] * 2
    assert read.formats == {"text": 1, "guanaco": 1}
    with pytest.raises(TrainError, match=r"d\.jsonl:1: 'text' is neither in the model's chat template nor has it '### Human:'"):
        usable(path)
    assert usable(path, skip_bad=True).formats == {"guanaco": 1}


def test_nothing_to_learn_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"no dialogue with an answer in .*d\.jsonl"):
        load_dialogues([str(written(tmp_path / "d.jsonl", {"messages": TURNS[:1]}))], print)
    with pytest.raises(TrainError, match=r"no dialogue with an answer that is to be learned in .*w\.jsonl"):
        load_dialogues([str(written(tmp_path / "w.jsonl", {"messages": TURNS, "weight": 0}))], print)
    with pytest.raises(TrainError, match=r"no dialogue with an answer in .*empty\.jsonl"):
        load_dialogues([str(written(tmp_path / "empty.jsonl"))], print)


def test_files_that_are_too_large_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_chat.training.data.files.MAX_BYTES", 3 * 2**20)
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n" * 2 * 2**20)
    with pytest.raises(TrainError, match=r"more than 3 MiB, up to .*b\.jsonl: use a part"):
        load_dialogues([str(tmp_path)], print)


def test_millions_of_bad_records_are_counted_and_few_are_remembered(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("7\n" * 20_000 + "9" * 5000)
    with pytest.raises(TrainError) as raised:
        load_dialogues([str(tmp_path / "a.jsonl")], print)
    assert str(raised.value).startswith("20,001 records cannot be used")
    assert len(str(raised.value)) < 3000


def test_a_line_that_is_too_long_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"a": [' + "[], " * 5_000_000 + "[]]}")
    with pytest.raises(TrainError, match=r"a\.jsonl:2: is longer than 16 MiB"):
        load_dialogues([str(tmp_path / "a.jsonl")], print)
