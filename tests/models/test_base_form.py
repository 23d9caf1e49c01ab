"""An adapter is used on the form of the base that it was trained on: everywhere, in one line, and in a cache of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qlora_chat.models import open_model
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.adapter.merge import merge_bf16
from qlora_chat.models.folders import Base
from qlora_chat.models.weights.quantize import quantize_nf4
from qlora_chat.models.weights.shards import write_shards, write_small_files
from qlora_chat.settings import ModelSettings
from tests.models.conftest import MakeAdapter, MakeBase


@pytest.fixture
def pair(make_base: MakeBase, make_adapter: MakeAdapter) -> tuple[Path, Path]:
    """A base in 16 bits, and an adapter that QLoRA trained on it."""
    base = make_base()
    adapter = make_adapter(base)
    (adapter / "qlora_chat.json").write_text('{"quantisation": "nf4, double"}')
    return base, adapter


def settings(pair: tuple[Path, Path], **changes: object) -> ModelSettings:
    return ModelSettings(base=str(pair[0]), adapter=str(pair[1]), device="cpu", **changes)  # type: ignore[arg-type]


def test_a_merge_starts_from_the_values_that_training_saw(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = Base.read(pair[0]), AdapterFolder.read(pair[1])
    nf4 = tmp_path / "nf4"
    nf4.mkdir()
    write_shards(quantize_nf4(base, "cpu"), nf4)
    write_small_files(nf4, base.config, {}, base.folder, base.folder, stored="nf4")
    expected = dict(merge_bf16(Base.read(nf4), adapter, "cpu"))
    actual = dict(merge_bf16(base, adapter, "cpu", through_nf4=True))
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_each_form_has_its_own_merge_in_the_cache(pair: tuple[Path, Path], notices: list[str]) -> None:
    trained = open_model(settings(pair, precision="bf16"), notices.append)
    assert (trained.info.base_form, trained.info.precision) == ("nf4", "bf16")
    assert "tiny-adapter: merged into the base in NF4, as it was trained (its qlora_chat.json says so)" in notices
    original = open_model(settings(pair, precision="bf16", base_form="16-bit"), notices.append)
    assert original.info.base_form == "16-bit"
    assert not torch.equal(trained.weights.layers[0].mlp_down.weight, original.weights.layers[0].mlp_down.weight)  # type: ignore[attr-defined]
    notices.clear()
    again = open_model(settings(pair, precision="bf16"), notices.append)
    assert torch.equal(again.weights.layers[0].mlp_down.weight, trained.weights.layers[0].mlp_down.weight)  # type: ignore[attr-defined]
    assert not any("once; later starts" in line for line in notices)


def test_auto_leaves_an_adapter_unmerged_on_the_nf4_base_of_its_training(pair: tuple[Path, Path], notices: list[str]) -> None:
    info = open_model(settings(pair), notices.append).info
    assert (info.precision, info.base_form) == ("nf4+adapter", "nf4")
    assert "tiny-adapter: unmerged on the base in NF4, as it was trained (its qlora_chat.json says so)" in notices


def test_auto_merges_what_only_a_merge_can_apply(pair: tuple[Path, Path], notices: list[str]) -> None:
    config = pair[1] / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rank_pattern": {"q_proj": 4}}))
    info = open_model(settings(pair), notices.append).info
    assert (info.precision, info.base_form) == ("bf16", "nf4")


def test_without_a_trace_the_original_weights_are_used_and_the_doubt_is_named(
    make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str]
) -> None:
    base = make_base()
    info = open_model(settings((base, make_adapter(base))), notices.append).info
    assert (info.precision, info.base_form) == ("bf16", "16-bit")
    (line,) = [each for each in notices if "on which form it was trained is not known" in each]
    assert "merged into the base in its original 16 bits" in line
    assert "add --base-form nf4" in line


def test_a_setting_stands_above_the_record(pair: tuple[Path, Path], notices: list[str]) -> None:
    info = open_model(settings(pair, base_form="16-bit"), notices.append).info
    assert (info.precision, info.base_form) == ("bf16", "16-bit")
    assert "tiny-adapter: merged into the base in its original 16 bits, as --base-form says" in notices


@pytest.mark.parametrize(("precision", "expected"), [("auto", "nf4"), ("bf16", "bf16")])
def test_adapters_that_requests_choose_from_stand_on_the_base_of_their_training(
    precision: str, expected: str, pair: tuple[Path, Path], notices: list[str]
) -> None:
    base, adapter = pair
    named = ModelSettings(base=str(base), adapters=(("chat", str(adapter)),), device="cpu", precision=precision)  # type: ignore[arg-type]
    model = open_model(named, notices.append)
    assert (model.info.precision, model.info.base_form) == (expected, "nf4")
    assert "chat: unmerged on the base in NF4, as it was trained (its qlora_chat.json says so)" in notices
    if precision == "bf16":
        plain = open_model(ModelSettings(base=str(base), device="cpu", precision="bf16"), notices.append)
        assert not torch.equal(plain.weights.layers[0].mlp_down.weight, model.weights.layers[0].mlp_down.weight)  # type: ignore[attr-defined]


def test_a_base_in_nf4_has_one_form_only(tiny_nf4_base: Path, make_adapter: MakeAdapter, notices: list[str]) -> None:
    adapter = make_adapter(tiny_nf4_base)
    info = open_model(settings((tiny_nf4_base, adapter), precision="bf16"), notices.append).info
    assert info.base_form == "nf4"
    assert not any("on which form" in line for line in notices)
