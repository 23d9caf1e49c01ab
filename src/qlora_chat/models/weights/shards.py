"""Tensors -> an ordinary Hugging Face model folder that both this program and plain Transformers load.

Scope: safetensors shards with their index, config.json, and the small files of the base. Knows nothing of merging.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from qlora_chat.models import ModelError
from qlora_chat.models.cache import write_json
from qlora_chat.models.trust import TOKENIZER_FILE, own_file
from qlora_chat.models.weights.checkpoint import read_headers

SHARD_BYTES = 1024**3
"""Bytes gathered in memory, at most, before they are written."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "chat_template.jinja")  # fmt: skip
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

StoredFormat = Literal["bf16", "nf4", "int8"]
NamedTensor = tuple[str, Tensor]


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """The same tensor. ModelError if it holds NaN or infinity."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{name} would hold NaN or infinite weights: base or adapter is broken; fetch them again")
    return tensor


def write_shards(tensors: Iterable[NamedTensor], folder: Path) -> None:
    """Write model.safetensors, or numbered shards with an index above SHARD_BYTES."""
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
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _part(folder: Path, index: int) -> Path:
    return folder / f"part-{index}.safetensors"


def _write_shard(tensors: dict[str, Tensor], folder: Path, index: int) -> list[str]:
    save_file(tensors, _part(folder, index), metadata={"format": "pt"})
    return list(tensors)


def write_small_files(
    folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any], tokenizer: Path, base: Path, *, stored: StoredFormat
) -> None:
    """Write config.json with the stored format of the weights, generation_config.json, and the tokenizer's files.

    A head of its own and the rows of the embeddings are as the weights in the folder have them: a merge may change both.
    """
    written = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    written["dtype"] = "bfloat16"
    headers = read_headers(folder)
    if "lm_head.weight" in headers:
        written["tie_word_embeddings"] = False
    if embeddings := headers.get("model.embed_tokens.weight"):
        written["vocab_size"] = embeddings.shape[0]
    if stored != "bf16":
        written["quantization_config"] = dict(NF4_CONFIG if stored == "nf4" else INT8_CONFIG)
    write_json(folder / "config.json", written)
    write_json(folder / "generation_config.json", generation)
    for name in TOKENIZER_FILES:
        for source in (tokenizer, base):
            if (source / name).is_file():
                shutil.copyfile(own_file(source / name, TOKENIZER_FILE), folder / name)
                break
