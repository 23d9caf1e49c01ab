"""A base in a GGUF file, compared with Transformers' own reading of the same file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_chat.models import ModelError
from qlora_chat.models.cache import Cache
from qlora_chat.models.folders import Base
from qlora_chat.models.gguf.cached import gguf_part
from qlora_chat.models.gguf.file import READABLE
from tests.models.gguf.making import HEADS, HIDDEN, TEMPLATE, write_gguf

KINDS = sorted(kind.name for kind in READABLE)


@pytest.fixture
def cache(tmp_path: Path, notices: list[str]) -> Cache:
    return Cache(tmp_path / "cache", notices.append)


def converted(path: Path, cache: Cache) -> Path:
    return gguf_part(path, cache).existing_folder()


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_equals_transformers_reading_bit_for_bit(kind: str, tmp_path: Path, cache: Cache) -> None:
    path = write_gguf(tmp_path / "model.gguf", kind)
    weights = load_file(converted(path, cache) / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).state_dict()
    assert weights.keys() | {"lm_head.weight"} == reference.keys()
    for name, tensor in weights.items():
        expected = reference[name].to(tensor.dtype)
        assert torch.equal(tensor.nan_to_num(7.0), expected.nan_to_num(7.0)), name


def test_the_folder_is_a_base_like_any_other(tmp_path: Path, cache: Cache, notices: list[str]) -> None:
    folder = converted(write_gguf(tmp_path / "small.gguf"), cache)
    base = Base.read(folder)
    base.check_weights()
    assert (base.shape.layers, base.shape.heads, base.shape.window, base.shape.tied_head) == (1, HEADS, 512, True)
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert notices == ["small.gguf is dequantised once into the cache (0.0 GB)"]


def test_it_is_dequantised_once(tmp_path: Path, cache: Cache, notices: list[str]) -> None:
    path = write_gguf(tmp_path / "small.gguf")
    first = converted(path, cache)
    notices.clear()
    assert converted(path, cache) == first
    assert notices == []


def test_another_file_of_the_same_name_is_another_base(tmp_path: Path, cache: Cache) -> None:
    first = converted(write_gguf(tmp_path / "small.gguf", "F16"), cache)
    assert converted(write_gguf(tmp_path / "small.gguf", "Q8_0"), cache) != first


@pytest.mark.parametrize("text", ["hello 1234", "  two  spaces\n\n", "Grüße, 世界 🙂", "<|im_start|>hi<|im_end|>", "it's", ""])
@pytest.mark.parametrize("pre", ["gpt-2", "smollm"])
def test_texts_have_the_ids_that_transformers_gives_them(pre: str, text: str, tmp_path: Path, cache: Cache) -> None:
    folder = converted(write_gguf(tmp_path / "small.gguf", tokenizer__ggml__pre=pre), cache)
    ours = AutoTokenizer.from_pretrained(folder)
    assert ours.decode(ours(text).input_ids) == text
    if pre == "gpt-2" or not any(letter.isdigit() for letter in text):  # Transformers reads every file as GPT-2's
        assert ours(text).input_ids == AutoTokenizer.from_pretrained(tmp_path, gguf_file="small.gguf")(text).input_ids


def test_smollm_splits_numbers_into_digits(tmp_path: Path, cache: Cache) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted(write_gguf(tmp_path / "small.gguf"), cache))
    assert tokenizer.tokenize("12 3") == ["1", "2", "Ġ", "3"]


def test_a_sentencepiece_vocabulary_is_read(tmp_path: Path, cache: Cache) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{each:02X}>" for each in range(256)), "▁", "h", "i", "hi", "▁hi"]
    path = write_gguf(
        tmp_path / "small.gguf",
        tokenizer__ggml__model="llama",
        tokenizer__ggml__tokens=pieces,
        tokenizer__ggml__scores=[0.0] * 262 + [-1.0, -2.0],
        tokenizer__ggml__token_type=[2, 3, 3, *[6] * 256, *[1] * 5],
        tokenizer__ggml__add_bos_token=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(converted(path, cache))
    assert tokenizer.tokenize("hi hi é") == ["▁hi", "▁hi", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer("hi é").input_ids, skip_special_tokens=True) == "hi é"


def test_llama_3_scaling_is_recovered_from_its_factors(tmp_path: Path, cache: Cache) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    config = LlamaConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, rope_parameters=scaling, max_position_embeddings=131_072
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500_000.0 ** -(np.arange(0, HIDDEN // HEADS, 2) / (HIDDEN // HEADS))
    factors = (plain / scaled.numpy()).astype(np.float32)
    path = write_gguf(tmp_path / "small.gguf", more={"rope_freqs.weight": factors}, llama__rope__freq_base=500_000.0)
    rope = json.loads((converted(path, cache) / "config.json").read_text())["rope_parameters"]
    assert {**rope, "factor": round(rope["factor"], 3)} == scaling


def test_factors_of_another_scaling_are_refused(tmp_path: Path, cache: Cache) -> None:
    factors = np.linspace(1, 40, HIDDEN // HEADS // 2, dtype=np.float32)
    with pytest.raises(ModelError, match="not Llama 3's"):
        converted(write_gguf(tmp_path / "small.gguf", more={"rope_freqs.weight": factors}), cache)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architecture": "mamba"}, "a model of kind 'mamba'; this program runs llama"),
    "experts": ({"llama__expert_count": 8}, "mixture of experts"),
    "scaling": ({"llama__rope__scaling__type": "longrope"}, "scales positions by 'longrope'"),
    "missing setting": ({"llama__block_count": None}, "lacks llama.block_count"),
    "tokenizer": ({"tokenizer__ggml__model": "bert"}, "a tokenizer of kind 'bert'"),
    "pre-tokenizer": ({"tokenizer__ggml__pre": "tekken"}, "splits text as 'tekken'"),
    "tensor": ({"more": {"blk.0.ssm_a": np.zeros(4, np.float32)}}, "'blk.0.ssm_a', which is not one of the LLaMA family"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_this_program_does_not_run_is_refused_by_name(case: str, tmp_path: Path, cache: Cache) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        converted(write_gguf(tmp_path / "small.gguf", **options), cache)
    assert cache.entries("gguf") == []


def test_a_missing_file_is_named(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(ModelError, match=r"nowhere.gguf', but there is no such file"):
        gguf_part(tmp_path / "nowhere.gguf", cache)
