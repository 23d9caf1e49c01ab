"""Ids that begin and end a text: as declared if that can be right, else repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from qlora_chat.models import ModelError
from qlora_chat.models.folders import ModelConfigs
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.special_tokens import SpecialIds, check_ids, special_ids
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


def test_an_end_written_as_text_is_that_token(tmp_path: Path) -> None:
    special = judged(tmp_path, {"bos_token_id": 1, "eos_token_id": "</s>"})
    assert (special.stops, special.notices) == ({2}, ())


def test_training_ends_a_text_with_the_tokenizers_own_end_not_the_lowest_stop(tmp_path: Path) -> None:
    words = ModelTokenizer(Tokenizer(WordLevel({"a": 0, "<|endoftext|>": 5, "<|im_end|>": 6}, unk_token="a")), None)
    special = judged(tmp_path, {"eos_token_id": [5, 6]}, {}, {"eos_token": "<|im_end|>"}, words)
    assert (special.eos, special.stops) == (6, {5, 6})
    assert judged(tmp_path, {"eos_token_id": [6, 5]}, {}, {}, words).eos == 6


def test_ids_beyond_the_embeddings_are_refused_where_text_can_become_them() -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.add_tokens([AddedToken("[PAD]", special=True)])
    check_ids(ModelTokenizer(tokenizer, None), 2)  # nobody can type a special token
    tokenizer.add_tokens([AddedToken("<start>", special=False)])
    with pytest.raises(ModelError, match=r"gives ids up to 3, and the base has embeddings for 3 tokens"):
        check_ids(ModelTokenizer(tokenizer, None), 3)
    check_ids(ModelTokenizer(tokenizer, None), 4)


def test_an_adapters_end_of_answer_counts_beside_the_bases(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    words = ModelTokenizer(Tokenizer(WordLevel({"a": 0, "</s>": 5, "<|im_end|>": 6}, unk_token="a")), None)
    configs = ModelConfigs({"vocab_size": 7, "eos_token_id": 5}, {"eos_token": "</s>"}, {}).with_adapter(tmp_path)
    special = special_ids("org/base", configs, words)
    assert (special.stops, special.eos) == ({5, 6}, 6)
