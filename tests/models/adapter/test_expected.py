"""An adapter's file holds exactly the tensors that its config implies for the base, or the one that differs is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.expected import is_target, rank_of
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import Base
from tests.models.conftest import MakeAdapter, MakeBase, change_tensors

PREFIX = "base_model.model."
UP = f"{PREFIX}model.layers.0.mlp.up_proj."
MODULES = [
    *(f"model.layers.{index}.self_attn.{each}_proj" for index in (0, 1, 11) for each in "qkvo"),
    *(f"model.layers.{index}.mlp.{each}_proj" for index in (0, 1, 11) for each in ("gate", "up", "down")),
]


def checked(base: Path, adapter: Path, **tensors: torch.Tensor | None) -> None:
    """Change an adapter's tensors and check it against the base."""
    change_tensors(adapter / "adapter_model.safetensors", **tensors)
    AdapterFolder.read(adapter).check(Base.read(base))


def test_missing_layers_are_refused(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    base = make_base()
    adapter = make_adapter(base)
    names = [name for name in load_file(adapter / "adapter_model.safetensors") if ".layers.1." in name]
    with pytest.raises(ModelError, match=r"lacks 14 of the 28 tensors that its config names \(.*layers.1"):
        checked(base, adapter, **dict.fromkeys(names))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("prompt_embeddings", "holds base_model.model.prompt_embeddings"),
        (f"{PREFIX}score.weight", "holds base_model.model.score.weight"),
        (f"{UP}lora_magnitude_vector", "for which adapter_config.json has no setting"),
        (f"{UP}lora_B.bias", "for which adapter_config.json has no setting"),
        (f"{PREFIX}model.embed_tokens.lora_embedding_A", "embed_tokens, which target_modules"),
    ],
)
def test_a_tensor_that_nothing_would_apply_is_refused(
    name: str, reason: str, make_base: MakeBase, make_adapter: MakeAdapter
) -> None:
    base = make_base()
    with pytest.raises(ModelError, match=reason):
        checked(base, make_adapter(base), **{name: torch.zeros(192)})


def test_layers_that_the_config_leaves_out_may_not_have_weights(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    base = make_base()
    with pytest.raises(ModelError, match=r"change model.layers.0\..*, which layers_to_transform"):
        checked(base, make_adapter(base, layers_to_transform=[1]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target_modules": ["q_proj", "input_layernorm"]}, "takes in model.layers.0.input_layernorm, which is no linear"),
        ({"target_modules": ".*mlp.*"}, "takes in model.layers.0.mlp, which is no linear"),
        ({"trainable_token_indices": [5, 9000]}, "names token 9,000, and there are 8,192"),
    ],
)
def test_modules_and_tokens_that_peft_refuses_are_refused(
    changes: dict[str, Any], reason: str, make_base: MakeBase, make_adapter: MakeAdapter
) -> None:
    base = make_base()
    with pytest.raises(ModelError, match=reason):
        checked(base, make_adapter(base, **changes))


def test_a_name_with_a_part_too_many_or_too_few_is_told_from_another_base(
    make_base: MakeBase, make_adapter: MakeAdapter
) -> None:
    base = make_base()
    near = {f"{PREFIX}language_model.model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(4, 128)}
    with pytest.raises(ModelError, match=r"names a module language_model.*, and the base model.layers.0.mlp.up_proj.* rename"):
        checked(base, make_adapter(base), **near)


def test_weights_that_were_saved_empty_say_why(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    base = make_base()
    with pytest.raises(ModelError, match="DeepSpeed ZeRO-3"):
        checked(base, make_adapter(base), **{f"{UP}lora_A.weight": torch.zeros(0)})


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        ({"rank_pattern": {"layers.0.mlp.up_proj": 2}}, {f"{UP}lora_A.weight": (2, 128), f"{UP}lora_B.weight": (192, 2)}),
        ({"modules_to_save": ["lm_head"]}, {f"{PREFIX}lm_head.weight": (8192, 128)}),
        ({"trainable_token_indices": [5, 6]},
         {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": (2, 128)}),
        ({}, {f"{PREFIX}model.norm.weight": (128,)}),
    ],
)  # fmt: skip
def test_what_only_a_merge_can_apply_fits_and_is_named(
    changes: dict[str, Any], tensors: dict[str, tuple[int, ...]], make_base: MakeBase, make_adapter: MakeAdapter
) -> None:
    base = make_base()
    adapter = make_adapter(base, **changes)
    checked(base, adapter, **{name: torch.ones(shape) for name, shape in tensors.items()})
    assert AdapterFolder.read(adapter).merge_only_features() == (list(changes) or list(tensors))


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "mlp.up_proj"]},
        {"target_modules": ["proj"]},
        {"target_modules": ["model.layers.1.self_attn.q_proj", "v_proj"], "layers_to_transform": [0, 11]},
        {"target_modules": r".*layers\.1\.(self_attn|mlp)\.(q_proj|down_proj)"},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["mlp"]},
    ],
)
def test_the_modules_are_those_that_peft_would_change(changes: dict[str, Any]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(**changes)
    expected = [each for each in MODULES if check_target_module_exists(config, each)]
    assert [each for each in MODULES if is_target(changes, each)] == expected


def test_ranks_of_a_pattern_are_those_of_peft() -> None:
    config = {"r": 8, "rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\..*": 2}}
    assert [rank_of(config, each) for each in (MODULES[0], MODULES[1], "model.layers.1.mlp.up_proj")] == [4, 8, 2]
