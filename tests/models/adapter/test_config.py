"""Config keys are applied, have no effect, or are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.config import config_problems, merged_features, read_adapter_config
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import Base
from tests.models.conftest import MakeAdapter, MakeBase


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
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "loftq"},
        {"enable_lora": [True, False]},
        {"layers_to_transform": [0], "target_modules": ".*_proj"},
        {"layers_pattern": "layers"},
        {"lora_bias": True, "use_dora": True},
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
    "changes",
    [{"rank_pattern": {"q": "x"}}, {"rank_pattern": {"q": 8.0}}, {"alpha_pattern": {"(": 2}}, {"target_modules": 3},
     {"target_modules": "("}, {"bias": "some"}, {"lora_alpha": float("nan")}, {"lora_alpha": 10**400}, {"r": None}],
)  # fmt: skip
def test_patterns_and_lists_must_be_such(changes: dict[str, Any], make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    with pytest.raises(ModelError, match=next(iter(changes))):
        read_adapter_config(make_adapter(make_base(), **changes))


def test_a_key_that_is_left_out_has_pefts_value(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(make_base())
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"]}))
    config = read_adapter_config(adapter)
    assert (config["r"], config["lora_alpha"]) == (8, 8)
