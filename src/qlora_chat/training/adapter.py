"""The finished adapter as a PEFT folder that describes itself.

Scope: weights, PEFT's config, and our record of base, prompt format, stops, data and settings. Knows no training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qlora_chat.models.adapter.config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qlora_chat.models.cache import sync
from qlora_chat.models.chat_format import TEMPLATE_FILE
from qlora_chat.models.folders import RECORD
from qlora_chat.training import TrainError
from qlora_chat.training.recipe import TrainSettings


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    settings: TrainSettings,
    record: Mapping[str, Any],
    chat_template: str | None = None,
) -> None:
    """Write the adapter's files, each one atomically and the record last. TrainError if the disk refuses them."""
    dtype = torch.bfloat16 if settings.adapter_dtype == "bf16" else torch.float32
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in sorted(tensors.items())}
    try:
        replace_file(folder / ADAPTER_WEIGHTS, lambda path: save_file(stored, path, metadata={"format": "pt"}))
        replace_text(folder / ADAPTER_CONFIG, json.dumps(peft_config(settings), indent=2) + "\n")
        if chat_template is not None:
            replace_text(folder / TEMPLATE_FILE, chat_template)
        replace_text(folder / RECORD, json.dumps(dict(record), indent=2, ensure_ascii=False) + "\n")
    except (OSError, SafetensorError) as problem:
        raise TrainError(
            f"the adapter could not be written to {folder} ({problem}); the last checkpoint is intact: make room, then --resume"
        ) from problem


def peft_config(settings: TrainSettings) -> dict[str, Any]:
    """Return the contents of adapter_config.json in PEFT's format."""
    return {
        "base_model_name_or_path": settings.base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        "lora_dropout": settings.dropout,
        "peft_type": "LORA",
        "r": settings.r,
        "target_modules": list(settings.targets),
        "task_type": "CAUSAL_LM",
    }


def replace_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` create a temporary file, sync it, and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
