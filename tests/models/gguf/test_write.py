"""Models and LoRAs written as GGUF: read back by our reader and by Transformers, they are what was written."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import Base
from qlora_chat.models.gguf.convert import write_base
from qlora_chat.models.gguf.file import GgufFile
from qlora_chat.models.gguf.names import in_hf_order
from qlora_chat.models.gguf.vocabulary import vocabulary_of
from qlora_chat.models.gguf.write import model_bytes, write_lora, write_model
from qlora_chat.models.weights.checkpoint import Checkpoint
from tests.models.conftest import MakeAdapter, MakeBase
from tests.models.gguf.making import TOKENS, metadata

LLAMA_3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama with a head of its own": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
    "llama 3": {"rope_parameters": LLAMA_3},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 32},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_parameters": YARN},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
}


def with_biases(folder: Path) -> Base:
    """The base with a random bias wherever its config names one."""
    base, random = Base.read(folder), torch.Generator().manual_seed(5)
    biases = {name: torch.randn(shape, generator=random).bfloat16() for name, shape in base.biases().items()}
    save_file({**load_file(folder / "model.safetensors"), **biases}, folder / "model.safetensors", metadata={"format": "pt"})
    return Base.read(folder)


def written(base: Base, path: Path, kind: str = "f16") -> Path:
    vocabulary = {key: value for key, value in metadata().items() if key.startswith("tokenizer.")}
    write_model(path, base, Checkpoint(base.folder), vocabulary, kind)
    return path


@pytest.fixture
def make_small(make_base: MakeBase) -> MakeBase:
    """Makes a base with as many tokens as the small vocabulary; tests/exporting writes the demo's own."""
    return partial(make_base, vocab_size=len(TOKENS))


def read_back(path: Path, folder: Path) -> Base:
    folder.mkdir()
    write_base(GgufFile(path), folder, torch.float32)
    return Base.read(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_read_back_is_the_model(family: str, make_small: MakeBase, tmp_path: Path) -> None:
    base = with_biases(make_small(**FAMILIES[family]))
    back = read_back(written(base, tmp_path / "model.gguf", "bf16"), tmp_path / "back")
    ours, theirs = Checkpoint(base.folder), Checkpoint(back.folder)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name].float(), theirs[name].float()) for name in ours)
    back.check_weights()
    assert back.shape.rope_angles()[0].allclose(base.shape.rope_angles()[0], atol=1e-5)
    same = ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocabulary", "window", "tied_head", "biased", "head_norms")
    assert [getattr(back.shape, name) for name in same] == [getattr(base.shape, name) for name in same]


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_1"])
def test_transformers_reads_the_same_weights(kind: str, make_small: MakeBase, tmp_path: Path, transformers: Any) -> None:
    base = Base.read(make_small())
    path = written(base, tmp_path / "model.gguf", kind)
    config = transformers.GgufConfig(dequantize=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file=path.name, quantization_config=config, dtype=torch.float32
        )
    theirs, ours = model.state_dict(), Checkpoint(read_back(path, tmp_path / "back").folder)
    assert all(torch.equal(ours[name].float(), theirs[name].float()) for name in ours)
    original = Checkpoint(base.folder)["model.layers.0.mlp.up_proj.weight"].float()
    error = (ours["model.layers.0.mlp.up_proj.weight"].float() - original).abs().max() / original.abs().max()
    assert error < {"f16": 1e-6, "q8_0": 0.005, "q4_1": 0.07}[kind]


def test_embeddings_and_head_stay_in_8_bits_and_odd_rows_in_f16(make_base: MakeBase, tmp_path: Path) -> None:
    base = Base.read(make_base(intermediate_size=200))
    path = tmp_path / "model.gguf"
    wide = write_model(path, base, Checkpoint(base.folder), {}, "q4_0")
    kinds = {name: each.kind for name, each in GgufFile(path).tensors.items()}
    assert wide == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert (kinds["token_embd.weight"], kinds["output.weight"]) == ("Q8_0", "Q8_0")
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"], kinds["blk.0.attn_norm.weight"]) == (
        "F16",
        "Q4_0",
        "F32",
    )
    assert 0 < path.stat().st_size - model_bytes(base, base.shape.vocabulary, "q4_0") < 10_000


def test_a_weight_beyond_f16_is_refused_by_name(make_small: MakeBase, tmp_path: Path) -> None:
    folder = make_small()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 70_000.0
    save_file(tensors, folder / "model.safetensors")
    base = Base.read(folder)
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight holds weights beyond 65504.*--type bf16"):
        written(base, tmp_path / "model.gguf")
    assert written(base, tmp_path / "model.gguf", "bf16").is_file()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "longrope": (
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "short_factor": [1.0] * 32,
                             "original_max_position_embeddings": 32}},
        "positions scaled by 'longrope'",
    ),
    "yarn's extras": ({"rope_parameters": {**YARN, "attention_factor": 1.5}}, "'yarn' with attention_factor set"),
    "a changed Llama 3": ({"rope_parameters": {**LLAMA_3, "high_freq_factor": 8.0}}, "other parameters than its own"),
    "Llama 3's scaling elsewhere": ({"model_type": "qwen2", "rope_parameters": LLAMA_3}, "a model of another family"),
    "biases of Qwen3": ({"model_type": "qwen3", "attention_bias": True}, "a Qwen3 whose attention has biases"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(case: str, make_base: MakeBase, tmp_path: Path) -> None:
    changes, reason = REFUSED[case]
    with pytest.raises(ModelError, match=reason):
        write_model(tmp_path / "model.gguf", Base.read(make_base(**changes)), {}, {}, "f16")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_is_written_as_llama_cpp_applies_it(
    rslora: bool, make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = Base.read(make_base())
    adapter = AdapterFolder.read(make_adapter(base.folder, use_rslora=rslora))
    write_lora(tmp_path / "lora.gguf", base, adapter, {"general.name": "tiny"})
    file = GgufFile(tmp_path / "lora.gguf")
    named = {key: file.metadata[key] for key in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")}
    assert named == {
        "general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora",
        "adapter.lora.alpha": 16.0 if rslora else 8.0,
    }  # fmt: skip
    stored = adapter.tensors()
    assert len(file.tensors) == len(stored)
    a = file.tensors["blk.1.attn_k.weight.lora_a"].read()
    b = in_hf_order(file.tensors["blk.1.attn_k.weight.lora_b"].read(), base.shape.kv_heads)
    prefix = "base_model.model.model.layers.1.self_attn.k_proj"
    assert np.array_equal(a, stored[f"{prefix}.lora_A.weight"].numpy())
    assert np.array_equal(b, stored[f"{prefix}.lora_B.weight"].numpy())


def test_a_base_that_says_less_than_it_needs_is_no_gguf(make_base: MakeBase) -> None:
    folder = make_base()
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    with pytest.raises(ModelError, match="of kind WordLevel, and BPE can be written"):
        vocabulary_of(json.dumps(described), 8192)
