"""Names of data -> files: paths, folders with files to evaluate, and datasets of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_chat.training import TrainError
from qlora_chat.training.data.sources import DataFile, find_data, find_files


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")
    return folder


def split_of(folder: Path) -> tuple[set[str], set[str]]:
    """Names of the files to train on, and of those to evaluate."""
    files = find_files(folder)
    train, held_out = (
        {str(each.path.relative_to(folder)) for each in files if each.is_held_out is side} for side in (False, True)
    )
    return train, held_out


def test_files_called_test_or_eval_are_held_out(tmp_path: Path) -> None:
    touched(tmp_path, "train.jsonl", "latest.csv", "test.jsonl", "my_eval.json", "dev/a.jsonl.gz", "notes.txt", "README.md")
    assert split_of(tmp_path) == ({"train.jsonl", "latest.csv"}, {"test.jsonl", "my_eval.json", "dev/a.jsonl.gz"})


def test_a_folder_of_the_datasets_library_is_read_without_its_descriptions(tmp_path: Path) -> None:
    touched(
        tmp_path, "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "dataset_info.json", ".cache/a.json"
    )
    assert split_of(tmp_path) == ({"data/train-00000-of-00001.parquet"}, {"data/test-00000-of-00001.parquet"})


def test_a_file_that_is_named_itself_is_trained_on(tmp_path: Path) -> None:
    touched(tmp_path, "test.jsonl")
    assert find_files(tmp_path / "test.jsonl") == [DataFile(tmp_path / "test.jsonl")]


@pytest.mark.parametrize("name", ["none.jsonl", "d.txt", "empty"])
def test_a_path_that_holds_no_dialogues_is_refused(tmp_path: Path, name: str) -> None:
    touched(tmp_path, "d.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainError, match=name):
        find_files(tmp_path / name)


# --- the Hub ---------------------------------------------------------------------------------------------------------


def in_hub_cache(tmp_path: Path, *names: str) -> Path:
    """A dataset where the Hub's client would have downloaded it (own_folders names the cache)."""
    root = tmp_path / "hf" / "hub" / "datasets--some--dialogues"
    snapshot = root / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    return touched(snapshot, *names)


def test_a_path_is_taken_as_it_is(tmp_path: Path, notices: list[str]) -> None:
    touched(tmp_path, "a.jsonl")
    assert find_data(str(tmp_path), notices.append) == [DataFile(tmp_path / "a.jsonl")]
    with pytest.raises(TrainError, match=r"no/such\.jsonl: there is no such file"):
        find_data("no/such.jsonl", notices.append)
    assert notices == []


def test_a_datasets_id_stands_for_its_files_with_those_to_evaluate_held_out(tmp_path: Path, notices: list[str]) -> None:
    snapshot = in_hub_cache(tmp_path, "dialogues_train.jsonl", "dialogues_eval.jsonl", "README.md")
    assert find_data("some/dialogues", notices.append) == [
        DataFile(snapshot / "dialogues_eval.jsonl", is_held_out=True),
        DataFile(snapshot / "dialogues_train.jsonl"),
    ]


def test_a_dataset_that_holds_its_records_twice_is_read_once(tmp_path: Path, notices: list[str]) -> None:
    snapshot = in_hub_cache(tmp_path, "train.jsonl", "data/train.parquet")
    assert find_data("some/dialogues", notices.append) == [DataFile(snapshot / "train.jsonl")]
    assert "only the .jsonl and .json files are read" in notices[-1]


def test_a_dataset_that_is_nowhere_is_told(notices: list[str]) -> None:
    with pytest.raises(TrainError, match="other/dialogues is no file here, and no dataset of the Hub"):
        find_data("other/dialogues", notices.append)


def test_a_dataset_without_a_form_that_is_read_is_told(tmp_path: Path, notices: list[str]) -> None:
    in_hub_cache(tmp_path, "train.arrow")
    with pytest.raises(TrainError, match=r"without a \.jsonl"):
        find_data("some/dialogues", notices.append)
