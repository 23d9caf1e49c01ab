"""Bases and adapters that cannot be used are refused from their configs and headers, with what to do about it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import Base, is_complete_base
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.trust import read_json
from qlora_chat.models.weights.checkpoint import Checkpoint
from tests.models.conftest import MakeAdapter, MakeBase, change_tensors


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_bundled_demo_passes_every_check() -> None:
    base = Base.read(BUNDLED / "base")
    base.check_weights()
    AdapterFolder.read(BUNDLED / "adapter").check(base)
    assert base.is_nf4
    assert is_complete_base(BUNDLED / "base")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_base_that_asks_to_run_its_own_code_is_refused(name: str, make_base: MakeBase) -> None:
    folder = make_base()
    change(folder / name, auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(ModelError, match="auto_map"):
        Base.read(folder)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but must be"),
        ({"num_key_value_heads": 3}, "do not go with 3 key-value heads"),
        ({"num_attention_heads": 0, "head_dim": None}, "lacks a setting or has an invalid value"),
        ({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "rope_type 'proportional'"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, "short_factor must be 32 numbers"),
        ({"partial_rotary_factor": 0.5}, "rotates whole heads"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized by 'gptq'"),
        ({"quantization_config": {"quant_method": "b", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}}, "'b' in fp4"),
        ({"quantization_config": {"quant_method": "awq"}}, "reads bitsandbytes' NF4"),
    ],
)
def test_configs_that_the_engine_does_not_compute_are_refused(values: dict[str, Any], reason: str, make_base: MakeBase) -> None:
    folder = make_base()
    change(folder / "config.json", **values)
    with pytest.raises(ModelError, match=reason):
        Base.read(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "\x00", "[" * 100_000])
def test_json_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="JSON"):
        read_json(tmp_path / "config.json")


def test_a_base_with_only_pickled_weights_is_refused(make_base: MakeBase) -> None:
    folder = make_base()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"only pickled weights \(pytorch_model.bin\).*use a copy of the model with \*.safetensors"
    ):
        Base.read(folder).check_weights()


def test_missing_and_misshapen_base_tensors_are_named(make_base: MakeBase) -> None:
    folder = make_base()
    name = "model.layers.1.self_attn.k_proj.weight"
    change_tensors(folder / "model.safetensors", **{name: torch.zeros(3, 3)})
    with pytest.raises(ModelError, match=rf"{name} is \[3, 3\], but config.json makes it \[64, 128\]"):
        Base.read(folder).check_weights()
    change_tensors(folder / "model.safetensors", **{name: None})
    with pytest.raises(ModelError, match=rf"lacks 1 of .* tensors \({name}\)"):
        Base.read(folder).check_weights()


@pytest.mark.parametrize("mutations", [150, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("whose", ["adapter", "base"])
def test_a_mutated_weights_file_is_refused_or_says_the_same(
    whose: str, mutations: int, make_base: MakeBase, make_adapter: MakeAdapter
) -> None:
    """Header bytes changed, files cut short. What is not refused has the names and shapes that it had, or no effect on them."""
    folder = make_base()
    base, adapter = Base.read(folder), make_adapter(folder)
    file = (folder / "model.safetensors") if whose == "base" else adapter / "adapter_model.safetensors"
    whole, chance, refused = file.read_bytes(), random.Random(5), 0
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(mutations):
        mutated = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            mutated[chance.randrange(header)] = chance.randrange(256)
        file.write_bytes(mutated if chance.random() < 0.7 else mutated[: chance.randrange(len(mutated))])
        try:  # anything else than a ModelError fails here
            Base.read(folder).check_weights() if whose == "base" else AdapterFolder.read(adapter).check(base)
        except ModelError:
            refused += 1
        else:
            assert len(file.read_bytes()) == len(whole), "a file that was cut short was taken"
    assert refused > 0.9 * mutations


def sharded(base: Path) -> dict[str, torch.Tensor]:
    """Split a base's weights into two shards with an index."""
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, base / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def test_stale_shards_beside_the_index_are_not_read(make_base: MakeBase) -> None:
    base = make_base()
    tensors = sharded(base)
    save_file({name: torch.zeros_like(each) for name, each in tensors.items()}, base / "model-00009-of-00009.safetensors")
    Base.read(base).check_weights()
    assert torch.equal(Checkpoint(base)["lm_head.weight"], tensors["lm_head.weight"])


def test_shards_without_their_index_are_refused(make_base: MakeBase) -> None:
    base = make_base()
    sharded(base)
    (base / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match="2 shards .* and no model.safetensors.index.json"):
        Base.read(base).check_weights()


def test_the_lost_biases_of_a_qwen2_are_named(make_base: MakeBase) -> None:
    base = Base.read(make_base(model_type="qwen2"))
    with pytest.raises(ModelError, match=r"lacks 6 of .*q_proj.bias"):
        base.check_weights()


def test_an_adapter_given_as_the_base_is_called_one(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    with pytest.raises(ModelError, match=r"it is an adapter: give the base that it was tuned on \('tiny'.* as --adapter"):
        Base.read(make_adapter(make_base()))
