"""Dialogues -> examples: the split, what has a loss, and what is left out or cut off, counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.training import TrainError
from qlora_chat.training.data.batches import Tokenizing, TrainingData, prepare_data, split
from qlora_chat.training.data.dialogues import Dialogues, load_dialogues, text_reader, usable_dialogues
from qlora_chat.training.recipe import TrainSettings


@pytest.fixture(scope="module")
def tokenizer() -> ModelTokenizer:
    return ModelTokenizer.read(BUNDLED / "base", 1)


def settings(**values: Any) -> TrainSettings:
    return TrainSettings(base="demo", data=("d",), steps=1, **values)


def pair(question: str, answer: str) -> dict[str, Any]:
    return {"question": question, "answer": answer}


def read(folder: Path, *records: Any) -> Dialogues:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return usable_dialogues(load_dialogues([str(path)], print), text_reader(DEFAULT_FORMAT), skip_bad=False)


def prepared(dialogues: Dialogues, tokenizer: ModelTokenizer, **values: Any) -> TrainingData:
    return prepare_data(dialogues, settings(**values), tokenizer, 2, 512)


def test_dialogues_longer_than_the_bases_window_are_refused_with_the_length_that_fits(
    tmp_path: Path, tokenizer: ModelTokenizer
) -> None:
    with pytest.raises(TrainError, match="max_length is 513, but the base's window is 512: set --max-length 512"):
        prepared(read(tmp_path, pair("Single?", "Yes.")), tokenizer, max_length=513)


def test_copies_of_a_dialogue_are_on_one_side(tmp_path: Path) -> None:
    records = [pair(f"What is {index // 4}?", "This.") for index in range(40)] + [pair("Single?", "Yes.")] * 1
    dialogues = read(tmp_path, *records)
    for seed in range(20):
        train, held_out = split(dialogues, settings(held_out=0.2, data_seed=seed))
        assert len(train) + len(held_out) == 41
        assert held_out
        texts = [{each.conversation.messages[0].content for each in side} for side in (train, held_out)]
        assert not texts[0] & texts[1]
    alike = read(tmp_path, *[pair("Same?", "Yes.")] * 10)
    assert [len(side) for side in split(alike, settings(held_out=0.2))] == [10, 0]


def test_held_out_files_take_the_place_of_a_share(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(pair(f"{index}?", "x")) + "\n" for index in range(20)))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(pair(f"test {index}?", "x")) + "\n" for index in range(600)))
    dialogues = usable_dialogues(load_dialogues([str(tmp_path)], print), text_reader(DEFAULT_FORMAT), skip_bad=False)
    train, held_out = split(dialogues, settings(held_out=0.5))
    assert (len(train), len(held_out)) == (20, 500)
    assert all("test.jsonl" in each.where for each in held_out)


@pytest.mark.parametrize("loss", ["answers", "all"])
def test_an_answer_of_weight_0_has_no_loss(tmp_path: Path, tokenizer: ModelTokenizer, loss: str) -> None:
    turns = [("user", "One?"), ("assistant", "Bad."), ("user", "Two?"), ("assistant", "Good.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    first, last = ([dict[str, object](each) for each in messages] for _ in range(2))
    first[1]["weight"], last[3]["weight"] = 0, 0
    dialogues = read(tmp_path, {"messages": first}, {"messages": last})
    examples = Tokenizing(settings(loss=loss), tokenizer, 2).examples(dialogues.train)

    def learned(index: int) -> str:
        begin, end = examples.offsets[index : index + 2]
        counted = examples.ids[begin:end][examples.loss_mask[begin:end]].tolist()
        return tokenizer.decode(counted) + ("</s>" if counted[-1] == 2 else "")

    assert "Bad" not in learned(0)
    assert learned(0).endswith("Good.</s>")
    assert "Bad." in learned(1)
    assert "Good" not in learned(1)
    assert not learned(1).endswith("</s>")
    assert ("One?" in learned(1)) == (loss == "all")


def test_only_held_out_dialogues_that_are_too_long_stop_no_run(tmp_path: Path, tokenizer: ModelTokenizer) -> None:
    dialogues = read(tmp_path, *[pair(f"Hi {index}", "Yes.") for index in range(3)], pair("word " * 200, "Yes."))
    seen = set()
    for seed in range(8):
        data = prepared(dialogues, tokenizer, max_length=64, data_seed=seed, held_out=0.25)
        seen.add((len(data.train), data.held_out is None))
    assert seen == {(3, True), (2, False)}
    assert any(reason.startswith("without an answer that begins within --max-length") for reason in dialogues.left_out.counts)
    with pytest.raises(TrainError, match="within the first 8 tokens of any of the 3 dialogues to train on"):
        prepared(dialogues, tokenizer, max_length=8, held_out=0.25)


def test_what_is_cut_off_or_escaped_is_counted(tmp_path: Path, tokenizer: ModelTokenizer) -> None:
    dialogues = read(tmp_path, pair("Hi", "word " * 100), pair("What does ### Human: mean?", "A turn."), pair("Hi", "Yes."))
    prepared(dialogues, tokenizer, max_length=64, held_out=0)
    changes = dialogues.summary()[1:]
    assert any("1 are cut off at --max-length (64 tokens)" in each and "d.jsonl:1" in each for each in changes)
    assert any("1 had a role marker of the prompt format in a text" in each and "d.jsonl:2" in each for each in changes)


def test_a_folder_of_files_to_evaluate_alone_cannot_be_trained_on(tmp_path: Path, tokenizer: ModelTokenizer) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(pair("Hi", "Yes.")) + "\n")
    dialogues = usable_dialogues(load_dialogues([str(tmp_path)], print), text_reader(DEFAULT_FORMAT), skip_bad=False)
    with pytest.raises(TrainError, match="every file is to be evaluated, by its name; name a file to train on"):
        prepared(dialogues, tokenizer)
