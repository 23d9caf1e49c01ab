"""Files of dialogues and datasets of the Hub: bad records named by line, folders, compressed files, unanswered questions."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from qlora_chat.training import TrainError
from qlora_chat.training.data.dialogues import find_data, read_dialogues

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


def test_a_small_file_that_expands_into_a_large_one_is_refused(tmp_path: Path) -> None:
    bomb, packer = tmp_path / "a.jsonl.xz", lzma.LZMACompressor()
    with bomb.open("wb") as file:
        for _ in range(70):
            file.write(packer.compress(b" " * 2**20))
        file.write(packer.flush())
    assert bomb.stat().st_size < 20_000
    with pytest.raises(TrainError, match="expands to more than 64 MiB.*decompress it and use the .jsonl file"):
        read_dialogues([bomb])


def test_files_that_are_too_large_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_chat.training.data.dialogues.MAX_BYTES", 3 * 2**20)
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n" * 2 * 2**20)
    with pytest.raises(TrainError, match=r"more than 3 MiB, up to .*b\.jsonl: use a part"):
        read_dialogues([tmp_path])


def test_millions_of_bad_records_are_counted_and_few_are_remembered(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("7\n" * 20_000 + "9" * 5000)
    with pytest.raises(TrainError) as raised:
        read_dialogues([tmp_path / "a.jsonl"])
    assert str(raised.value).startswith("20,001 records cannot be used")
    assert len(str(raised.value)) < 3000


def test_a_line_that_is_too_long_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n[" + "[], " * 5_000_000 + "[]]")
    with pytest.raises(TrainError, match=r"a\.jsonl:2: is longer than 16 MiB"):
        read_dialogues([tmp_path / "a.jsonl"])


def test_half_a_compressed_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(b"{}\n" * 1000)[:-20])
    with pytest.raises(TrainError, match="cannot be read"):
        read_dialogues([tmp_path / "a.jsonl.xz"])


def in_hub_cache(tmp_path: Path, *names: str) -> Path:
    """A dataset where the Hub's client would have downloaded it (own_folders names the cache)."""
    root = tmp_path / "hf" / "hub" / "datasets--some--dialogues"
    snapshot = root / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    for name in names:
        (snapshot / name).write_text("{}\n")
    return snapshot


def test_a_path_is_taken_as_it_is(tmp_path: Path, notices: list[str]) -> None:
    assert find_data(str(tmp_path), notices.append) == [tmp_path]
    assert find_data("no/such.jsonl", notices.append) == [Path("no/such.jsonl")]
    assert notices == []


def test_a_datasets_id_stands_for_its_files_to_train_on(tmp_path: Path, notices: list[str]) -> None:
    snapshot = in_hub_cache(tmp_path, "dialogues_train.jsonl", "dialogues_eval.jsonl", "README.md")
    assert find_data("some/dialogues", notices.append) == [snapshot / "dialogues_train.jsonl"]


def test_a_dataset_that_is_nowhere_is_told(notices: list[str]) -> None:
    with pytest.raises(TrainError, match="other/dialogues is no file here, and no dataset of the Hub"):
        find_data("other/dialogues", notices.append)


def test_a_dataset_without_a_form_that_is_read_is_told(tmp_path: Path, notices: list[str]) -> None:
    in_hub_cache(tmp_path, "train.parquet")
    with pytest.raises(TrainError, match="has no .jsonl"):
        find_data("some/dialogues", notices.append)
