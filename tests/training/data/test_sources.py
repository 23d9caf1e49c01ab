"""Where dialogues come from: a path, or a dataset that the Hub's client keeps on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_chat.training import TrainError
from qlora_chat.training.data.sources import find_data


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


def test_a_path_is_taken_as_it_is(tmp_path: Path, said: list[str]) -> None:
    assert find_data(str(tmp_path), said.append) == [tmp_path]
    assert find_data("no/such.jsonl", said.append) == [Path("no/such.jsonl")]
    assert said == []


def test_a_datasets_id_stands_for_its_files_to_train_on(tmp_path: Path, said: list[str]) -> None:
    snapshot = in_hub_cache(tmp_path, "dialogues_train.jsonl", "dialogues_eval.jsonl", "README.md")
    assert find_data("some/dialogues", said.append) == [snapshot / "dialogues_train.jsonl"]


def test_a_dataset_that_is_nowhere_is_told(said: list[str]) -> None:
    with pytest.raises(TrainError, match="other/dialogues is no file here, and the Hub does not give"):
        find_data("other/dialogues", said.append)


def test_a_dataset_without_a_form_that_is_read_is_told(tmp_path: Path, said: list[str]) -> None:
    in_hub_cache(tmp_path, "train.parquet")
    with pytest.raises(TrainError, match="holds no .jsonl"):
        find_data("some/dialogues", said.append)
