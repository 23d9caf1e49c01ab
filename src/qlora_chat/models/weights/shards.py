"""Tensors -> an ordinary Hugging Face model folder that both this program and plain Transformers load.

Scope: safetensors shards with their index, config.json, and the small files of the base. Knows nothing of merging.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from qlora_chat.models import ModelError

SHARD_BYTES = 1024**3
"""At most this much is gathered in memory before it is written."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
NF4_CONFIG: Mapping[str, Any] = {
    "quant_method": "bitsandbytes",
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
INT8_CONFIG: Mapping[str, Any] = {
    "quant_method": "bitsandbytes",
    "_load_in_4bit": False,
    "_load_in_8bit": True,
    "load_in_4bit": False,
    "load_in_8bit": True,
    "llm_int8_threshold": 6.0,
}

Stored = Literal["bf16", "nf4", "int8"]
Named = tuple[str, Tensor]


def finite(named: Named) -> Named:
    """The same pair. ModelError if the tensor holds NaN or infinity."""
    name, tensor = named
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{name} would hold NaN or infinite weights: base or adapter is broken; fetch them again")
    return named


def write_shards(tensors: Iterable[Named], folder: Path) -> None:
    """model.safetensors, or numbered shards with an index where it exceeds SHARD_BYTES."""
    shards: list[list[str]] = []
    gathered: dict[str, Tensor] = {}
    total = size = 0
    for name, tensor in tensors:
        if gathered and size + tensor.nbytes > SHARD_BYTES:
            shards.append(_write_shard(gathered, folder, len(shards)))
            gathered, size = {}, 0
        gathered[name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    shards.append(_write_shard(gathered, folder, len(shards)))
    if len(shards) == 1:
        _part(folder, 0).rename(folder / "model.safetensors")
        return
    names = [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    for index, name in enumerate(names):
        _part(folder, index).rename(folder / name)
    weight_map = {tensor: name for name, held in zip(names, shards, strict=True) for tensor in held}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _part(folder: Path, index: int) -> Path:
    return folder / f"part-{index}.safetensors"


def _write_shard(tensors: dict[str, Tensor], folder: Path, index: int) -> list[str]:
    save_file(tensors, _part(folder, index), metadata={"format": "pt"})
    return list(tensors)


def write_small_files(
    folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any], tokenizer: Path, base: Path, *, stored: Stored
) -> None:
    """config.json that says how the weights are stored, generation_config.json, and the tokenizer's files."""
    said = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    said["dtype"] = "bfloat16"
    if stored != "bf16":
        said["quantization_config"] = dict(NF4_CONFIG if stored == "nf4" else INT8_CONFIG)
    _write_json(folder / "config.json", said)
    _write_json(folder / "generation_config.json", generation)
    for name in TOKENIZER_FILES:
        for origin in (tokenizer, base):
            if (origin / name).is_file():
                shutil.copyfile(origin / name, folder / name)
                break


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
