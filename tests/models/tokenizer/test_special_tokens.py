"""Ids that begin and end a text: as declared if that can be right, else repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from qlora_chat.models.folders import ModelConfigs
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.special_tokens import SpecialIds, special_ids
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer


def judged(
    tmp_path: Path,
    config: dict[str, Any],
    generation: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    tokenizer: ModelTokenizer | None = None,
) -> SpecialIds:
    tokenizer = tokenizer or ModelTokenizer.read(BUNDLED / "base", None)
    configs = ModelConfigs({"vocab_size": 8192, **config}, settings or {}, generation or {})
    return special_ids("org/base", configs, tokenizer)


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ({"bos_token_id": 0, "eos_token_id": 0}, {"bos_token_id": 0, "eos_token_id": 0}),
        ({"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}, {}),
        ({"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": [0, 2]}),
        ({"eos_token_id": 99_999}, {}),
    ],
)
def test_wrong_ids_of_old_llamas_are_repaired_with_one_notice(
    config: dict[str, Any], generation: dict[str, Any], tmp_path: Path
) -> None:
    special = judged(tmp_path, config, generation)
    assert (special.bos, special.stops) == (1, {2})
    assert (special.config["bos_token_id"], special.config["eos_token_id"]) == (1, 2)
    assert special.config["pad_token_id"] is None
    assert special.generation["eos_token_id"] == 2
    (notice,) = special.notices
    assert notice.startswith("org/base names wrong ids")


def test_every_declared_end_is_a_stop_and_right_ids_give_no_notice(tmp_path: Path) -> None:
    special = judged(
        tmp_path, {"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": [2, 77]}, {"eos_token": {"content": "</s>"}}
    )
    assert (special.bos, special.stops, special.notices) == (1, {2, 77}, ())
    assert special.config["eos_token_id"] == [2, 77]


def test_a_tokenizer_that_says_it_adds_no_bos_is_believed(tmp_path: Path) -> None:
    assert judged(tmp_path, {}, settings={"add_bos_token": False}).bos is None


def test_another_vocabulary_keeps_its_own_ids_and_no_bos(tmp_path: Path) -> None:
    words = ModelTokenizer(Tokenizer(WordLevel({"a": 0, "<|end|>": 5, "<|begin|>": 6}, unk_token="a")), None)
    special = judged(tmp_path, {"eos_token_id": 5}, {}, {"eos_token": "<|end|>", "bos_token": "<|begin|>"}, words)
    assert (special.bos, special.stops, special.notices) == (None, {5}, ())
    adding = judged(tmp_path, {"eos_token_id": 0}, {}, {"bos_token": "<|begin|>", "add_bos_token": True}, words)
    assert (adding.bos, adding.stops) == (6, {0})


def test_a_model_without_an_end_says_so(tmp_path: Path) -> None:
    words = ModelTokenizer(Tokenizer(WordLevel({"a": 0}, unk_token="a")), None)
    (notice,) = judged(tmp_path, {}, tokenizer=words).notices
    assert "names no id that ends a text" in notice
