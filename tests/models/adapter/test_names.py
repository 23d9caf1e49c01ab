"""Tensor names of other tools mean what PEFT means by them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.names import TensorName, normalize, renamed_tensors
from qlora_chat.models.weights.checkpoint import TensorHeader

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("stored", "part"),
    [
        (f"base_model.model.{Q}.lora_A.weight", "lora_A.weight"),
        (f"base_model.model.{Q}.lora_A.default.weight", "lora_A.weight"),
        (f"{Q}.lora_B.weight", "lora_B.weight"),
        (f"base_model.model.base_model.model.{Q}.lora_A.weight", "lora_A.weight"),
        (f"module.base_model.model.{Q}.lora_B.law.weight", "lora_B.weight"),
        (f"{Q}.lora_a", "lora_A.weight"),
        (f"base_model.model.{Q}.lora_A.my-law.weight", "lora_A.weight"),
        (f"base_model.model._orig_mod.{Q}.lora_A.weight", "lora_A.weight"),
        ("base_model.model.module.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight", "lora_A.weight"),
        (f"model.base_model.model.{Q}.lora_A.weight", "lora_A.weight"),
        (f"base_model.model.{Q}.lora_B.bias", "lora_B.bias"),
        (f"base_model.model.{Q}.lora_magnitude_vector.default.weight", "lora_magnitude_vector"),
        (f"base_model.model.{Q}.base_layer.bias", "bias"),
        (f"base_model.model.{Q}.modules_to_save.default.weight", "weight"),
        (f"base_model.model.{Q}.lora_embedding_A.default", "lora_embedding_A"),
        (f"base_model.model.{Q}.token_adapter.trainable_tokens_delta", "token_adapter.trainable_tokens_delta"),
    ],
)
def test_every_known_spelling_names_a_module_and_a_part(stored: str, part: str) -> None:
    assert TensorName.of(stored) == TensorName(Q, part)
    assert TensorName.of(str(TensorName.of(stored))) == TensorName(Q, part)


def test_another_name_has_no_part() -> None:
    assert TensorName.of("base_model.model.prompt_embeddings").part == ""


def test_two_names_of_one_tensor_are_refused() -> None:
    header = TensorHeader("F32", (4, 8), 128)
    with pytest.raises(ModelError, match="are the same tensor"):
        normalize(Path("a"), {f"{Q}.lora_A.weight": header, f"{Q}.lora_A.default.weight": header}, 4)


def test_mlxs_matrices_are_turned_round() -> None:
    headers, stored = normalize(Path("a"), {f"{Q}.lora_a": TensorHeader("F32", (8, 4), 128)}, rank=4)
    name = f"base_model.model.{Q}.lora_A.weight"
    assert headers[name].shape == (4, 8)
    written = torch.arange(32.0).view(8, 4)
    tensors = renamed_tensors({f"{Q}.lora_a": written}, stored)
    assert torch.equal(tensors[name], written.t())
    assert list(tensors) == [name]


def test_a_module_that_peft_saved_twice_is_read_once_and_must_be_the_same() -> None:
    plain, copy, original = "lm_head.weight", "lm_head.modules_to_save.weight", "lm_head.original_module.weight"
    header = TensorHeader("F32", (4, 8), 128)
    headers, stored = normalize(Path("a"), dict.fromkeys((copy, original, plain), header), rank=4)
    assert list(headers) == ["base_model.model.lm_head.weight"]
    same, other = torch.ones(4, 8), torch.zeros(4, 8)
    tensors = renamed_tensors({plain: same, copy: same, original: other}, stored)
    assert torch.equal(tensors["base_model.model.lm_head.weight"], same)
    with pytest.raises(ModelError, match="twice.* and they differ"):
        renamed_tensors({plain: same, copy: other, original: other}, stored)["base_model.model.lm_head.weight"]
