"""Held-out text: every format of `train`, with its loss tokens, and plain text."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.evaluation import EvaluationError
from qlora_chat.evaluation.held_out import read_text
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.training import TrainError
from qlora_chat.training.data.batches import Tokenizing
from qlora_chat.training.data.dialogues import load_dialogues
from qlora_chat.training.recipe import TrainSettings

TURNS = [("user", "What is 7 plus 5?"), ("assistant", "12."), ("user", "And 3?"), ("assistant", "15.")]
FORMATS: dict[str, Any] = {
    "messages": {"messages": [{"role": role, "content": text} for role, text in TURNS]},
    "sharegpt": {"conversations": [{"from": "human" if role == "user" else "gpt", "value": text} for role, text in TURNS]},
    "guanaco": {"text": "### Human: What is 7 plus 5?### Assistant: 12.### Human: And 3?### Assistant: 15."},
}
SETTINGS = TrainSettings(base="demo", data=("d",))


@pytest.fixture(scope="module")
def tokenizer() -> ModelTokenizer:
    return ModelTokenizer.read(BUNDLED / "base", 1)


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_tokens_that_count_are_those_of_the_training_loss(name: str, tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "held.jsonl.xz"
    path.write_bytes(lzma.compress(json.dumps(FORMATS[name]).encode()))
    (read,) = read_text(str(path), print).tokenize(tokenizer, 2, 512, 100, DEFAULT_FORMAT).passages
    trained = Tokenizing(SETTINGS, tokenizer, 2).examples(load_dialogues([str(path)], print).train)
    assert list(read.ids) == trained.ids.tolist()
    assert list(read.counted) == trained.loss_mask.tolist()
    counted = tokenizer.decode([each for each, counts in zip(read.ids, read.counted, strict=True) if counts])
    assert counted.replace(" ", "") == "12.###Human:15.", "answers, and their end"


@pytest.mark.parametrize("end_id", [7, None])
def test_a_passage_ends_as_a_trained_dialogue_does(end_id: int | None, tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    path.write_text(json.dumps(FORMATS["messages"]))
    (read,) = read_text(str(path), print).tokenize(tokenizer, end_id, 512, 100, DEFAULT_FORMAT).passages
    trained = Tokenizing(SETTINGS, tokenizer, end_id).examples(load_dialogues([str(path)], print).train)
    assert list(read.ids) == trained.ids.tolist()
    assert (read.ids[-1] == 7) is (end_id == 7), "the base's own end, whatever its name"
    assert read.counted[-1], "an answer's end counts"


def test_a_folder_is_read_until_enough_counts(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.json").write_text(json.dumps([FORMATS["messages"]]))
    one = len(read_text(str(tmp_path / "0.json"), print).tokenize(tokenizer, 2, 512, 1, DEFAULT_FORMAT).targets)
    assert len(read_text(str(tmp_path), print).tokenize(tokenizer, 2, 512, one + 1, DEFAULT_FORMAT).passages) == 2


def test_plain_text_counts_whole_in_windows(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("Once upon a time there was a farmer. " * 20)
    read = read_text(str(path), print).tokenize(tokenizer, 2, 32, 10_000, DEFAULT_FORMAT)
    assert len(read.targets) == len(tokenizer.encode(path.read_text()))
    assert all(len(each.ids) <= 33 for each in read.passages)


def test_bad_text_is_an_error_that_names_the_file(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(EvaluationError, match=r"empty\.txt holds no text to evaluate"):
        read_text(str(tmp_path / "empty.txt"), print).tokenize(tokenizer, 2, 32, 10, DEFAULT_FORMAT)
    with pytest.raises(EvaluationError, match=r"none\.txt cannot be read"):
        read_text(str(tmp_path / "none.txt"), print)
    (tmp_path / "bad.jsonl").write_text('{"messages": 3}\n')
    with pytest.raises(TrainError, match=r"bad\.jsonl:1: 'messages' is a number") as error:
        read_text(str(tmp_path / "bad.jsonl"), print)
    assert "--skip-bad" not in str(error.value), "this command has none"
