"""Weights read from files compute what Transformers computes from the same files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import Base
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.llama import Adapter, LlamaShape, build
from tests.models.conftest import MakeAdapter, MakeBase

PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "default", "rope_theta": 10_000.0}, {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}, LLAMA3],
)
def test_rotary_frequencies_are_transformers_own(rope: dict[str, Any], transformers: Any) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, head_dim=128, max_position_embeddings=16_384, rope_parameters=rope
    )
    theirs: Any = LlamaRotaryEmbedding(config).inv_freq
    ours = LlamaShape.from_config(config.to_dict()).rope_frequencies()
    assert torch.allclose(ours, theirs.float(), rtol=1e-6, atol=0)


def test_configs_of_older_transformers_read_the_same() -> None:
    old = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 4,
           "num_hidden_layers": 1, "vocab_size": 8, "rope_theta": 5e5,
           "rope_scaling": {"type": "linear", "factor": 2.0}}  # fmt: skip
    shape = LlamaShape.from_config(old)
    assert (shape.rope["rope_type"], shape.rope["rope_theta"], shape.window) == ("linear", 5e5, 2048)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_linears_compute_what_the_files_hold(dtype: torch.dtype, make_base: MakeBase) -> None:
    folder = make_base()
    stored, shape = Checkpoint(folder), Base.read(folder).shape
    weights = build(stored, shape, torch.device("cpu"), dtype)
    x, within = torch.randn(3, 128, dtype=dtype), 3e-2 if dtype == torch.bfloat16 else 1e-5
    parts = [x @ stored[f"model.layers.1.self_attn.{each}_proj.weight"].to(dtype).T for each in "qkv"]
    assert torch.allclose(weights.layers[1].qkv(x), torch.cat(parts, -1), atol=within)
    assert torch.allclose(weights.head(x), x @ stored["lm_head.weight"].to(dtype).T, atol=within)
    assert weights.embeddings.dtype == dtype


def test_nf4_linears_compute_the_values_that_bitsandbytes_dequantizes() -> None:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    folder = BUNDLED / "base"
    stored, shape = Checkpoint(folder), Base.read(folder).shape
    weights = build(stored, shape, torch.device("cpu"))
    name = "model.layers.2.mlp.down_proj.weight"
    parts = {key: stored[key] for key in stored if key.startswith(f"{name}.")}
    dense = dequantize_4bit(stored[name], QuantState.from_dict(parts, torch.device("cpu")))
    x = torch.randn(4, 1536).bfloat16()
    assert torch.allclose(weights.layers[2].mlp_down(x).float(), x.float() @ dense.float().T, atol=0.05, rtol=0.02)


def test_an_unmerged_adapter_adds_its_scaled_product(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    folder = make_base()
    adapter = Adapter.read(AdapterFolder.read(make_adapter(folder)))
    stored, shape = Checkpoint(folder), Base.read(folder).shape
    plain, tuned = (build(stored, shape, torch.device("cpu"), torch.float32, each) for each in (None, adapter))
    x = torch.randn(2, 192)
    a, b = (adapter.tensors[f"base_model.model.model.layers.0.mlp.down_proj.lora_{side}.weight"] for side in "AB")
    assert torch.allclose(tuned.layers[0].mlp_down(x), plain.layers[0].mlp_down(x) + 2.0 * (x @ a.T @ b.T), atol=1e-4)


def test_missing_tensors_and_files_are_named(make_base: MakeBase, tmp_path: Path) -> None:
    folder = make_base()
    deeper = LlamaShape.from_config({**Base.read(folder).config, "num_hidden_layers": 3})
    with pytest.raises(ModelError, match=r"lacks model.layers.2.input_layernorm.weight"):
        build(Checkpoint(folder), deeper, torch.device("cpu"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no \*.safetensors"):
        Checkpoint(tmp_path / "empty")
    shutil.copyfile(folder / "config.json", tmp_path / "empty" / "model.safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        Checkpoint(tmp_path / "empty")
