"""Config keys are applied, have no effect, or are refused by name; modules are those that PEFT would change."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.config import config_problems, is_target, merged_features, rank_of, read_adapter_config
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import Base
from tests.models.conftest import MakeAdapter, MakeBase

MODULES = [
    *(f"model.layers.{index}.self_attn.{each}_proj" for index in (0, 1, 11) for each in "qkvo"),
    *(f"model.layers.{index}.mlp.{each}_proj" for index in (0, 1, 11) for each in ("gate", "up", "down")),
]


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


@pytest.mark.parametrize(
    "changes",
    [
        {"use_superlora": True},
        {"superlora_scale": 4.0},
        {"alora_invocation_tokens": [5, 6]},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"target_parameters": ["mlp.experts"]},
        {"use_qalora": True},
        {"init_lora_weights": "corda"},
        {"enable_lora": [True, False]},
    ],
)
def test_a_key_that_nothing_applies_is_refused_by_name(
    changes: dict[str, Any], make_base: MakeBase, make_adapter: MakeAdapter
) -> None:
    folder = make_base()
    with pytest.raises(ModelError, match=next(iter(changes))):
        AdapterFolder.read(make_adapter(folder, **changes)).check(Base.read(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_superlora": None, "superlora_config": {}},
        {"enable_lora": None, "merge_weights": False, "fan_in_fan_out": False},
        {"init_lora_weights": "gaussian", "qalora_group_size": 16, "megatron_core": "megatron.core", "task_type": None},
        {"auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True}, "lora_bias": False},
    ],
)
def test_a_key_without_effect_is_not_in_the_way(changes: dict[str, Any]) -> None:
    assert list(config_problems(changes)) == []
    assert merged_features(changes) == []


def test_a_folder_with_checkpoints_names_the_newest(make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter(make_base())
    for step in (500, 1000):
        shutil.copytree(adapter, tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(ModelError, match=r"holds adapters in its own folders .* example .*run/checkpoint-1000"):
        read_adapter_config(tmp_path / "run")


@pytest.mark.parametrize(
    "changes", [{"rank_pattern": {"q": "x"}}, {"target_modules": 3}, {"target_modules": "("}, {"alpha_pattern": {"(": 2}}]
)
def test_patterns_and_lists_must_be_such(changes: dict[str, Any], make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    with pytest.raises(ModelError, match=next(iter(changes))):
        read_adapter_config(make_adapter(make_base(), **changes))
