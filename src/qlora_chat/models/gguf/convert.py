"""A GGUF file -> the files of an ordinary model folder.

Scope: the steps and their order. What the folder means is for the code that reads any other base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_chat.models.cache import sha256, write_json
from qlora_chat.models.gguf.config import config_of
from qlora_chat.models.gguf.file import GgufFile, GgufTensor
from qlora_chat.models.gguf.names import ROPE_FACTORS, hf_name, in_hf_order, interleaved_heads
from qlora_chat.models.gguf.tokenizer import write_tokenizer
from qlora_chat.models.trust import weight_files
from qlora_chat.models.weights.checkpoint import DTYPE_BITS, TensorHeader

if TYPE_CHECKING:
    import torch


def write_description(file: GgufFile, folder: Path) -> dict[str, Any]:
    """Write config and tokenizer into `folder`, and return the config. ModelError for a model that is not run here."""
    config = config_of(file)
    write_tokenizer(file, folder)
    write_json(folder / "config.json", config)
    return config


def write_base(file: GgufFile, folder: Path, quantized_as: torch.dtype | None = None) -> dict[str, str]:
    """Write the whole base into `folder`, and return the sha256 of each file of weights.

    Quantised tensors become bf16, or `quantized_as`.
    """
    from qlora_chat.models.weights.shards import write_shards

    config = write_description(file, folder)
    write_shards(_tensors(file, config, quantized_as), folder)
    return {shard.name: sha256(shard) for shard in weight_files(folder)}


def headers_of(file: GgufFile) -> dict[str, TensorHeader]:
    """Tensors as the folder will hold them, by Hugging Face's names.

    ModelError for an architecture that this program does not run, and for a tensor that no LLaMA has.
    """
    config_of(file)
    return {hf_name(each.name): _header(each) for each in file.tensors.values() if each.name != ROPE_FACTORS}


def _header(tensor: GgufTensor) -> TensorHeader:
    dtype = tensor.kind if tensor.kind in ("F32", "F16") else "BF16"
    return TensorHeader(dtype, tensor.shape, math.prod(tensor.shape) * DTYPE_BITS[dtype] // 8)


def _tensors(file: GgufFile, config: dict[str, Any], quantized_as: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for each in file.tensors.values():
        if each.name == ROPE_FACTORS:
            continue
        heads = interleaved_heads(each.name, config["model_type"], config["num_attention_heads"], config["num_key_value_heads"])
        tensor = torch.from_numpy(in_hf_order(each.read(), heads))
        widened = torch.bfloat16 if each.kind == "BF16" else quantized_as or torch.bfloat16
        yield hf_name(each.name), tensor.to(widened) if each.is_quantized or each.kind == "BF16" else tensor
