"""Random weights have bitsandbytes' layout, and values as large as a trained model's."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qlora_chat.benchmark.shapes import CONFIG_7B, FREQUENCIES, NF4_VALUES, STD, RandomTensors, config_of, in_floating_point
from qlora_chat.models.folders import Base

SMALL = {**CONFIG_7B, "num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4,
         "num_key_value_heads": 4, "vocab_size": 300}  # fmt: skip
CPU = torch.device("cpu")
GATE = "model.layers.1.mlp.gate_proj"


@pytest.fixture(scope="module")
def four_bits() -> RandomTensors:
    return RandomTensors(SMALL, "nf4", CPU)


def test_bitsandbytes_dequantizes_them_to_the_same_values(four_bits: RandomTensors) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Params4bit

    for name in four_bits.shape.linears():
        stored = {key: four_bits[key] for key in four_bits if key.startswith(f"{name}.weight.")}
        theirs = Params4bit.from_prequantized(four_bits[f"{name}.weight"], stored, device="cpu")
        assert torch.equal(dequantize_4bit(theirs.data, theirs.quant_state), four_bits.in_float(name, torch.bfloat16))


def test_the_layout_is_that_of_weights_quantized_by_bitsandbytes(four_bits: RandomTensors) -> None:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(512, 256).bfloat16(), blocksize=64, compress_statistics=True, quant_type="nf4")
    theirs = {"": packed} | {f".{key}": value for key, value in state.as_dict(packed=True).items()}
    ours = {key.removeprefix(f"{GATE}.weight"): four_bits[key] for key in four_bits if key.startswith(f"{GATE}.weight")}
    assert {key: (each.dtype, each.shape) for key, each in ours.items() if "state" not in key} == {
        key: (each.dtype, each.shape) for key, each in theirs.items() if "state" not in key
    }
    ours_state, theirs_state = (
        json.loads(bytes(next(each for key, each in found.items() if "state" in key).tolist())) for found in (ours, theirs)
    )
    assert ours_state.keys() == theirs_state.keys()
    assert {**ours_state, "nested_offset": 0} == {**theirs_state, "nested_offset": 0}
    assert state.code is not None
    assert state.code.tolist() == torch.tensor(NF4_VALUES).tolist()


@pytest.mark.parametrize("precision", ["nf4", "bf16"])
def test_values_have_the_size_of_a_trained_models_and_no_mean(precision: str) -> None:
    tensors = RandomTensors(SMALL, precision, CPU)
    gate, down = (tensors.in_float(f"model.layers.1.mlp.{each}_proj", torch.float32) for each in ("gate", "down"))
    assert gate.std().item() == pytest.approx(STD, rel=0.03)
    assert down.std().item() == pytest.approx(STD / math.sqrt(2 * SMALL["num_hidden_layers"]), rel=0.03)
    assert abs(gate.mean().item()) < STD / 100
    assert sum(FREQUENCIES) == 256


def test_a_tensor_is_the_same_at_every_access_and_no_two_are_alike(four_bits: RandomTensors) -> None:
    assert torch.equal(four_bits[f"{GATE}.weight"], four_bits[f"{GATE}.weight"])
    assert not torch.equal(four_bits[f"{GATE}.weight"], four_bits["model.layers.0.mlp.gate_proj.weight"])
    assert "lm_head.weight" in four_bits
    assert "lm_head.bias" not in four_bits


def test_the_names_are_those_of_a_checkpoint_of_that_shape(tmp_path: Path) -> None:
    tensors = RandomTensors(SMALL, "bf16", CPU)
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    save_file(dict(tensors), tmp_path / "model.safetensors")
    expected = Base.read(tmp_path).tensors()
    assert {name: tuple(each.shape) for name, each in tensors.items()} == {k: tuple(v) for k, v in expected.items()}
    assert set(in_floating_point(RandomTensors(SMALL, "nf4", CPU))) == set(tensors)


def test_a_dry_run_has_fewer_layers_and_the_same_widths() -> None:
    assert config_of("7b", 2) == {**CONFIG_7B, "num_hidden_layers": 2}
    assert config_of("7b", None) == CONFIG_7B
