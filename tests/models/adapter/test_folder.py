"""Adapters that cannot be used are refused from config and headers, with what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import AdapterFolder, read_adapter_config
from qlora_chat.models.folders import Base
from tests.models.conftest import MakeAdapter, MakeBase, change_tensors


def test_an_adapter_that_asks_to_run_its_own_code_is_refused(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(make_base(), auto_map={"x": "y"})
    with pytest.raises(ModelError, match="auto_map"):
        read_adapter_config(adapter)


def test_the_first_adapter_tensor_that_does_not_fit_is_named(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    folder = make_base()
    base, adapter = Base.read(folder), make_adapter(folder)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    change_tensors(adapter / "adapter_model.safetensors", **{name: torch.zeros(999, 4)})
    with pytest.raises(
        ModelError, match=rf"{name} is \[999, 4\], but .* must be \[192, 4\].*give the base that it was tuned on"
    ):
        AdapterFolder.read(adapter).check(base)


def test_an_adapter_for_a_deeper_base_is_refused(make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    deep = make_base(tmp_path / "deep", num_hidden_layers=3)
    adapter = make_adapter(deep)
    with pytest.raises(ModelError, match=r"changes model.layers.2.*which the base lacks"):
        AdapterFolder.read(adapter).check(Base.read(make_base()))


def test_half_a_lora_is_refused(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    folder = make_base()
    adapter = make_adapter(folder)
    change_tensors(adapter / "adapter_model.safetensors", **{"base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": None})
    with pytest.raises(ModelError, match=r"only one of lora_A and lora_B for model.layers.0.mlp.up_proj"):
        AdapterFolder.read(adapter).check(Base.read(folder))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"r": 0}, "whole number from 1"),
        ({"r": True}, "says r True"),
        ({"lora_alpha": None}, "lora_alpha None"),
    ],
)
def test_other_adapters_than_lora_are_refused(
    values: dict[str, Any], reason: str, make_base: MakeBase, make_adapter: MakeAdapter
) -> None:
    with pytest.raises(ModelError, match=reason):
        read_adapter_config(make_adapter(make_base(), **values))


def test_a_folder_that_is_no_adapter_is_refused(make_base: MakeBase) -> None:
    folder = make_base()
    with pytest.raises(ModelError, match=r"holds no adapter_config.json; it is a whole model: give it as --base"):
        AdapterFolder.read(folder).check(Base.read(folder))


def test_an_adapter_for_a_larger_vocabulary_is_refused(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    folder = make_base()
    adapter = make_adapter(folder)
    added = {"base_model.model.model.embed_tokens.weight": torch.zeros(9000, 128)}
    change_tensors(adapter / "adapter_model.safetensors", **added)
    with pytest.raises(ModelError, match="for 9,000 tokens, and the base has 8,192: it was tuned with added tokens"):
        AdapterFolder.read(adapter).check(Base.read(folder))


def test_target_modules_must_be_those_of_the_weights(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    folder = make_base()
    base = Base.read(folder)
    with pytest.raises(ModelError, match="the weights change down_proj, which target_modules"):
        AdapterFolder.read(make_adapter(folder, target_modules=["q_proj", "v_proj"])).check(base)
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with pytest.raises(ModelError, match="target_modules names lm_head, for which there are no weights"):
        AdapterFolder.read(make_adapter(folder, target_modules=[*every, "lm_head"])).check(base)
    AdapterFolder.read(make_adapter(folder, target_modules=[*every, "c_attn"])).check(base)  # of other models: PEFT skips it
    AdapterFolder.read(make_adapter(folder, target_modules="all-linear")).check(base)


def test_embeddings_may_have_a_lora_too(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    folder = make_base()
    adapter = make_adapter(folder)
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    change_tensors(adapter / "adapter_model.safetensors", **{name + "A": torch.zeros(4, 8192), name + "B": torch.zeros(128, 4)})
    config = read_adapter_config(adapter)
    targets = [*config["target_modules"], "embed_tokens"]
    AdapterFolder(adapter, {**config, "target_modules": targets}, AdapterFolder.read(adapter).headers).check(Base.read(folder))
