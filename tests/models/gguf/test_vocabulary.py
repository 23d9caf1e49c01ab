"""Tokenizers written as GGUF metadata: the file gives the ids that the tokenizer gives, or none is written."""

from __future__ import annotations

import json

import pytest

from qlora_chat.models import ModelError
from qlora_chat.models.gguf.tokenizer import BYTE, CONTROL, PRE_TOKENIZERS, UNKNOWN, UNUSED, tokenizer_of
from qlora_chat.models.gguf.vocabulary import vocabulary_of
from qlora_chat.models.locate import BUNDLED
from tests.models.gguf.making import TOKENS, metadata


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_byte_level_tokenizer_gets_the_name_that_llama_cpp_splits_by(name: str) -> None:
    source = metadata(tokenizer__ggml__pre=name)
    made = vocabulary_of(tokenizer_of(source, "x").to_str(), len(TOKENS) + 3)
    assert made["tokenizer.ggml.pre"] == name
    assert made["tokenizer.ggml.tokens"][: len(TOKENS)] == TOKENS
    assert made["tokenizer.ggml.merges"] == source["tokenizer.ggml.merges"]
    assert made["tokenizer.ggml.token_type"][:4] == [CONTROL] * 3 + [1]
    assert made["tokenizer.ggml.token_type"][len(TOKENS) :] == [UNUSED] * 3, "each row of the embeddings has a token"
    assert len(set(made["tokenizer.ggml.tokens"])) == len(TOKENS) + 3


def test_a_sentencepiece_tokenizer_gets_scores_in_the_order_of_its_merges() -> None:
    text = (BUNDLED / "base" / "tokenizer.json").read_text()
    made = vocabulary_of(text, 8192)
    assert (made["tokenizer.ggml.model"], made["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    tokens, scores = made["tokenizer.ggml.tokens"], made["tokenizer.ggml.scores"]
    merged = ["".join(pair) for pair in json.loads(text)["model"]["merges"]]
    ranked = [scores[tokens.index(each)] for each in dict.fromkeys(merged)]
    assert ranked == sorted(ranked, reverse=True)
    kinds = dict(zip(tokens, made["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x0A>"]) == (UNKNOWN, CONTROL, BYTE)


def test_a_tokenizer_that_splits_in_an_unknown_way_is_refused() -> None:
    described = json.loads(tokenizer_of(metadata(), "x").to_str())
    described["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(ModelError, match="no name for here"):
        vocabulary_of(json.dumps(described), len(TOKENS))


def test_a_tokenizer_that_would_give_other_ids_is_refused() -> None:
    described = json.loads(tokenizer_of(metadata(), "x").to_str())
    described["normalizer"] = {"type": "Lowercase"}
    with pytest.raises(ModelError, match="would give other ids for"):
        vocabulary_of(json.dumps(described), len(TOKENS))
