"""`train --from`: a run goes on from an adapter as it is, or says what stands in the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_chat.models import ModelError
from qlora_chat.settings import SettingsError
from qlora_chat.training import TrainError
from qlora_chat.training.check import check_run
from qlora_chat.training.recipe import TrainSettings, settings_from
from qlora_chat.training.run_record import open_run
from qlora_chat.training.train import train
from tests.models.conftest import write_adapter

STILL = 1e-9
"""A learning rate that leaves an adapter where it is."""


@pytest.fixture
def settings(tiny_nf4_base: Path, few_dialogues: Path) -> TrainSettings:
    return TrainSettings(
        base=str(tiny_nf4_base), data=(str(few_dialogues),), steps=1, batch=8, max_length=48, learning_rate=STILL, held_out=0
    )


@pytest.fixture
def adapter(tiny_nf4_base: Path, tmp_path: Path) -> Path:
    return write_adapter(tiny_nf4_base, tmp_path / "adapter", lora_alpha=6, use_rslora=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def change_names(folder: Path, old: str, new: str) -> None:
    renamed = {name.replace(old, new): tensor for name, tensor in weights(folder).items()}
    save_file(renamed, folder / "adapter_model.safetensors")


def test_a_run_begins_with_the_adapter_and_its_scale(
    settings: TrainSettings, adapter: Path, tmp_path: Path, notices: list[str]
) -> None:
    began = weights(adapter)
    change_names(adapter, ".weight", ".default.weight")
    alone = train(settings, open_run(tmp_path / "alone", resume=False), notices.append, device="cpu")
    out = tmp_path / "out"
    result = train(replace(settings, start=str(adapter)), open_run(out, resume=False), notices.append, device="cpu")
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, began[name], rtol=0, atol=1e-6)
    assert result.loss != pytest.approx(alone.loss, abs=0.01), "the adapter counts from the first step"
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["lora_alpha"] == pytest.approx(6 * config["r"] ** 0.5), "rsLoRA's scale in plain LoRA's words"
    assert any(line.startswith("going on from adapter: rank 4, alpha 6, q_proj") for line in notices)
    assert json.loads((out / "qlora_chat.json").read_text())["start"]["name"] == "adapter"


def test_a_resumed_run_needs_the_same_adapter(
    settings: TrainSettings, adapter: Path, tmp_path: Path, notices: list[str]
) -> None:
    out, settings = tmp_path / "out", replace(settings, start=str(adapter))
    train(settings, open_run(out, resume=False), notices.append, device="cpu")
    run = open_run(out, resume=True)
    assert train(run.resumed_settings({"steps": 2}), run, notices.append, device="cpu").step == 2
    save_file({name: tensor * 2 for name, tensor in weights(adapter).items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(TrainError, match="went on from has changed"):
        train(settings, open_run(out, resume=True), notices.append, device="cpu")


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"use_dora": True}, ModelError, "lacks 14 .*lora_magnitude_vector"),
        ({"rank_pattern": {"nothing": 2}}, TrainError, "uses rank_pattern, which training does not have: merge it"),
        ({"layers_to_transform": [0]}, ModelError, "layers_to_transform in adapter_config.json does not name"),
        ({"use_superlora": True}, ModelError, "use_superlora True: what it asks for is not known here"),
    ],
)
def test_an_adapter_that_training_cannot_hold_is_refused(
    changes: dict[str, Any], error: type[Exception], reason: str, settings: TrainSettings, tiny_nf4_base: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tiny_nf4_base, tmp_path / "adapter", **changes)
    with pytest.raises(error, match=reason):
        train(replace(settings, start=str(adapter)), open_run(tmp_path / "out", resume=False), print, device="cpu")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_some_layers_is_refused(settings: TrainSettings, adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "layers_to_transform": [1]}))
    second = {name: each for name, each in weights(adapter).items() if ".layers.1." in name}
    save_file(second, adapter / "adapter_model.safetensors")
    with pytest.raises(TrainError, match=r"does not change the same linears in every layer \(model.layers.0"):
        train(replace(settings, start=str(adapter)), open_run(tmp_path / "out", resume=False), print, device="cpu")


def test_a_run_and_its_check_refuse_an_end_of_answers_that_the_base_lacks(
    settings: TrainSettings, adapter: Path, tmp_path: Path
) -> None:
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    settings = replace(settings, start=str(adapter))
    reason = r"--from .*adapter brings its own end of an answer \(id 9\), and training uses the base's"
    with pytest.raises(TrainError, match=reason):
        train(settings, open_run(tmp_path / "out", resume=False), print, device="cpu")
    with pytest.raises(TrainError, match=reason):
        check_run(settings, print, device="cpu")


def test_rank_alpha_and_modules_are_those_of_the_adapter() -> None:
    recipe = {"base": "demo", "data": ["x"], "r": 8}
    assert settings_from(recipe, {"start": "adapter"}).start == "adapter"
    with pytest.raises(SettingsError, match="leave out --r, --targets"):
        settings_from(recipe, {"start": "adapter", "r": 8, "targets": ["q_proj"]})
