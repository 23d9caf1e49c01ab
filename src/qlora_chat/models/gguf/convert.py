"""A GGUF file -> an ordinary model folder in the cache, made once.

Scope: the steps and their order. What the folder means is for the code that reads any other base.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_chat.models import ModelError, Notify
from qlora_chat.models.cache import Cache, CacheUnusable, key_of, sha256
from qlora_chat.models.gguf.config import ROPE_FACTORS, config_of, hf_name, in_hf_order
from qlora_chat.models.gguf.file import GgufFile
from qlora_chat.models.gguf.tokenizer import write_tokenizer
from qlora_chat.models.part import ModelPart


def is_gguf(text: str) -> bool:
    """True for the path of a GGUF file."""
    return text.lower().endswith(".gguf")


def gguf_part(path: Path, cache: Cache, notify: Notify) -> ModelPart:
    """The base in a GGUF file, dequantised into the cache at its first use.

    Quantised tensors become bf16; others stay as they are stored. ModelError for a missing or broken file, for a model that
    this program does not run, and where the cache has no room.
    """
    path = path.expanduser()
    if not path.is_file():
        raise ModelError(f"--base is {str(path)!r}, but there is no such file; give the path of a .gguf file")
    digest = sha256(path)
    key = key_of(path.stem, {"gguf": digest})
    entry = cache.find("gguf", key)
    if entry is None:
        file = GgufFile(path)
        config = config_of(file)
        size = sum(2 * tensor_size(each.shape) for each in file.tensors.values())
        notify(f"{path.name} is dequantised once into the cache ({size / 1e9:.1f} GB)")
        try:
            cache.check_free_space("gguf", size)
            entry = cache.write("gguf", key, lambda folder: _convert(file, config, digest, folder))
        except CacheUnusable as problem:
            raise ModelError(
                f"{path.name} could not be dequantised: {problem}; set QLORA_CHAT_CACHE to another folder"
            ) from problem
    return ModelPart(path.stem, entry.folder)


def tensor_size(shape: tuple[int, ...]) -> int:
    """Number of values."""
    size = 1
    for each in shape:
        size *= each
    return size


def _convert(file: GgufFile, config: dict[str, Any], digest: str, folder: Path) -> dict[str, Any]:
    from qlora_chat.models.weights.shards import write_json, write_shards

    write_tokenizer(file, folder)
    write_json(folder / "config.json", config)
    write_shards(_tensors(file, config), folder)
    return {"converted_from": file.path.name, "sha256": digest}


def _tensors(file: GgufFile, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    import torch

    for each in file.tensors.values():
        if each.name == ROPE_FACTORS:
            continue
        tensor = torch.from_numpy(in_hf_order(each.name, each.read(), config))
        yield hf_name(each.name), tensor.to(torch.bfloat16) if each.is_quantized or each.kind == "BF16" else tensor
