"""Files of dialogues: bad records named by line, folders, compressed files, unanswered questions."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from qlora_chat.training import TrainError
from qlora_chat.training.data.dialogues import read_dialogues

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


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
