"""Tensors and metadata -> a GGUF file that llama.cpp reads: a whole model, or a LoRA for one.

Scope: the types of tensors and the order of writing, one tensor in memory at a time. What the metadata mean is in describe.py
and vocabulary.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, quantize
from numpy.typing import NDArray

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.adapter.names import TensorName
from qlora_chat.models.folders import Base
from qlora_chat.models.gguf.describe import architecture_of, hyperparameters, rope_factors
from qlora_chat.models.gguf.names import EMBEDDINGS, HEAD, ROPE_FACTORS, gguf_name, in_gguf_order, interleaved_heads
from qlora_chat.models.weights.checkpoint import read_headers

if TYPE_CHECKING:
    from torch import Tensor

F32, F16, BF16, Q8_0, Q4_0, Q4_1 = (GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"))
KINDS: Mapping[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f16": (F16, LlamaFileType.MOSTLY_F16),
    "bf16": (BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (Q4_1, LlamaFileType.MOSTLY_Q4_1),
}
"""Types that a model can be written in; the gguf library writes no K-quants."""
QUANTIZATION_VERSION = 2
_LARGEST_F16 = float(np.finfo(np.float16).max)

ReadTensor = Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class _Entry:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    read: ReadTensor


def model_bytes(base: Base, rows: int, kind: str) -> int:
    """Size of the tensors that write_model writes, from a base's config."""
    shapes = {**base.tensors(), **base.biases()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in shapes:
            shapes[name] = (rows, base.shape.hidden)
    return sum(_bytes(shape, _kind_of(gguf_name(name), shape, kind)) for name, shape in shapes.items())


def write_model(path: Path, base: Base, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], kind: str) -> list[str]:
    """Write a whole model; returns the matrices that stay in F16 because their rows are not of whole blocks.

    `tensors` are the base's, by Hugging Face's names. ModelError for a weight that F16 cannot hold. OSError for a full disk.
    """
    headers, architecture = read_headers(base.folder), architecture_of(base)
    rows = headers["model.embed_tokens.weight"].shape[0]
    entries: list[_Entry] = []
    for name, header in headers.items():
        if name in {*base.tensors(), *base.biases()}:
            written = gguf_name(name)
            heads = interleaved_heads(written, architecture, base.shape.heads, base.shape.kv_heads)
            entries.append(_Entry(written, header.shape, _kind_of(written, header.shape, kind), _reader(tensors, name, heads)))
    if (factors := rope_factors(base)) is not None:
        entries.append(_Entry(ROPE_FACTORS, factors.shape, F32, lambda: factors))
    values: dict[str, Any] = {
        "general.type": "model",
        "general.file_type": int(KINDS[kind][1]),
        "general.quantization_version": QUANTIZATION_VERSION,
        **hyperparameters(base, rows),
        **metadata,
    }
    _write(path, architecture, values, entries)
    return [each.name for each in entries if each.kind == F16 != KINDS[kind][0]]


def write_lora(path: Path, base: Base, adapter: AdapterFolder, metadata: Mapping[str, Any]) -> None:
    """Write a LoRA in F32, as llama.cpp applies it: B times A times alpha over rank.

    The adapter must hold nothing but lora_A and lora_B. OSError for a full disk.
    """
    architecture, tensors = architecture_of(base), adapter.tensors()
    entries: list[_Entry] = []
    for name in sorted(tensors, key=lambda each: (TensorName.of(each).module, each)):
        parsed = TensorName.of(name)
        written = gguf_name(f"{parsed.module}.weight")
        is_a = parsed.part == "lora_A.weight"
        heads = None if is_a else interleaved_heads(written, architecture, base.shape.heads, base.shape.kv_heads)
        suffix = "lora_a" if is_a else "lora_b"
        entries.append(_Entry(f"{written}.{suffix}", adapter.headers[name].shape, F32, _reader(tensors, name, heads)))
    alpha = float(adapter.config["lora_alpha"])
    if adapter.config.get("use_rslora"):  # alpha over the root of the rank
        alpha *= math.sqrt(adapter.rank)
    values = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha, **metadata}
    _write(path, architecture, values, entries)


def _bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Size of a tensor in the file."""
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


def _kind_of(name: str, shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    """Type of one tensor: vectors in F32; embeddings and head, which lose most, never below 8 bits."""
    chosen = KINDS[kind][0]
    if len(shape) == 1:
        return F32
    if name in (EMBEDDINGS, HEAD) and chosen in (Q4_0, Q4_1):
        chosen = Q8_0
    block, _ = GGML_QUANT_SIZES[chosen]
    return F16 if shape[-1] % block else chosen


def _reader(tensors: Mapping[str, Tensor], name: str, heads: int | None) -> ReadTensor:
    return lambda: in_gguf_order(tensors[name].float().cpu().numpy(), heads)


def _write(path: Path, architecture: str, metadata: Mapping[str, Any], entries: list[_Entry]) -> None:
    writer = GGUFWriter(path, architecture)
    try:
        for key, value in metadata.items():
            _add_value(writer, key, value)
        for each in entries:
            writer.add_tensor_info(each.name, each.shape, np.dtype(np.float16), _bytes(each.shape, each.kind), each.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in entries:
            writer.write_tensor_data(_stored(each))
    finally:
        writer.close()


def _stored(entry: _Entry) -> NDArray[Any]:
    values = np.ascontiguousarray(entry.read(), np.float32)
    if entry.kind == F16 and values.size and float(np.abs(values).max()) > _LARGEST_F16:
        raise ModelError(f"{entry.name} holds weights beyond {_LARGEST_F16:.0f}, the largest of F16; use --type bf16")
    return values if entry.kind == F32 else quantize(values, entry.kind)


def _add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
