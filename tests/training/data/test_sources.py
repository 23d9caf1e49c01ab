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
