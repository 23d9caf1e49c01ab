"""Placement of a model: devices, their free memory, and the plan of device and weight format.

Scope: predicts bytes from a base's config and compares them with what is free. Knows nothing of files or the Hub.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from qlora_chat.models import ModelError, ModelInfo
from qlora_chat.models.folders import Base
from qlora_chat.settings import AdapterMode, Device, KVCacheDtype, Precision

if TYPE_CHECKING:
    import torch

GIB = 1024**3
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4, blocks of 64, double quantization: half a byte, a byte a block, four bytes for 256 blocks."""
OVERHEAD = {"cuda": 3 * GIB // 4, "cpu": GIB // 2}
"""Bytes besides weights and KV cache: dequantized blocks, activations, the allocator's slack; the libraries themselves."""

COMPILERS = ("c++", "g++", "clang++")

DeviceType = Literal["cuda", "cpu"]
WeightFormat = Literal["bf16", "nf4", "nf4+adapter"]
"""nf4: quantized after a merge, or without an adapter. nf4+adapter: an NF4 base with the adapter unmerged."""
_DEVICE_NAMES: dict[DeviceType, str] = {"cuda": "the graphics card", "cpu": "this machine's memory"}


@dataclass(frozen=True)
class DeviceMemory:
    """A device and its free bytes."""

    device: DeviceType
    free: int
    compiled: bool = True
    """False for a CPU without a C++ compiler, where NF4 is dequantized again for every token: bf16 is the faster there."""


@dataclass(frozen=True)
class Plan:
    """Device and weight format of a model."""

    device: DeviceType
    weight_format: WeightFormat


class DoesNotFit(ModelError):
    """No device has room for the model; `gaps` compares free and needed memory of each."""

    def __init__(self, weight_format: WeightFormat, gaps: str) -> None:
        smaller = "" if "nf4" in weight_format else ", or try --precision nf4"
        super().__init__(
            f"the model does not fit as {weight_format}: {gaps}. Free some memory, or take a smaller model{smaller}"
        )
        self.gaps = gaps


def detect_devices(device: Device) -> tuple[DeviceMemory, ...]:
    """Usable devices, best first. ModelError for cuda where there is none."""
    import psutil
    import torch

    devices: list[DeviceMemory] = []
    if device in ("auto", "cuda") and torch.cuda.is_available():
        devices.append(DeviceMemory("cuda", _free_on_card()))
    if device == "cuda" and not devices:
        raise ModelError("--device cuda was given, but PyTorch finds no usable graphics card; use --device cpu or auto")
    if device in ("auto", "cpu"):
        devices.append(DeviceMemory("cpu", psutil.virtual_memory().available, find_compiler() is not None))
    return tuple(devices)


def without(loaded: ModelInfo, devices: Sequence[DeviceMemory]) -> tuple[DeviceMemory, ...]:
    """Devices as they would be if a loaded model were not there, by its predicted need."""
    freed = loaded.predicted_bytes or 0
    return tuple(replace(each, free=each.free + freed) if each.device == loaded.device else each for each in devices)


def find_compiler() -> str | None:
    """Path of the C++ compiler that builds the CPU pass; None without one."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def _free_on_card() -> int:
    """0 if other processes have left too little to ask even that."""
    import torch

    try:
        return torch.cuda.mem_get_info()[0]
    except RuntimeError:
        return 0


def synchronize(device: torch.device) -> None:
    """Wait until a card has done what it was given, as before reading a clock."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Most bytes that PyTorch has had on a card; on a CPU, those of this process now."""
    import psutil
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def weight_bytes(base: Base, weight_format: WeightFormat) -> int:
    """Predicted bytes of the base's weights alone, as they lie on disk."""
    embeddings = base.shape.vocabulary * base.shape.hidden
    head = 0 if base.shape.tied_head else embeddings
    inner = sum(out * ins for out, ins in base.shape.linears().values())
    return int(2 * (embeddings + head) + inner * (2 if weight_format == "bf16" else NF4_BYTES))


def kv_cache_bytes(base: Base, device: DeviceType, kv_cache_dtype: KVCacheDtype = "auto") -> int:
    """One chat's KV cache over the whole window: float32 on a CPU; bf16 on a card, or int8 with a float32 scale each."""
    shape = base.shape
    each = 4 * shape.head_dim if device == "cpu" else shape.head_dim + 4 if kv_cache_dtype == "int8" else 2 * shape.head_dim
    return 2 * shape.layers * shape.kv_heads * shape.window * each


def needed_bytes(
    base: Base, weight_format: WeightFormat, adapter_bytes: int, device: DeviceType, kv_cache_dtype: KVCacheDtype = "auto"
) -> int:
    """Predicted bytes of weights, of one chat's KV cache over the whole window, and of overhead."""
    shape = base.shape
    packed_head = 2 * shape.vocabulary * shape.hidden if shape.tied_head and device == "cpu" else 0
    unmerged = adapter_bytes if weight_format == "nf4+adapter" else 0
    kv_cache = kv_cache_bytes(base, device, kv_cache_dtype)
    return weight_bytes(base, weight_format) + packed_head + unmerged + kv_cache + OVERHEAD[device]


def candidate_formats(
    precision: Precision, has_adapter: bool, adapter_mode: AdapterMode = "auto", *, unmerged_first: bool = False
) -> tuple[WeightFormat, ...]:
    """Weight formats that the settings allow, best first. Requantizing a merge costs quality, so auto never does.

    `unmerged_first`: adapters were trained on NF4, so that over it they are exact; it is also the faster to read
    (docs/decisions/035-base-form.md).
    """
    if has_adapter and adapter_mode == "exact":
        return ("nf4+adapter",)
    if precision == "bf16":
        return ("bf16",)
    if precision == "nf4":
        return ("nf4",)
    formats: tuple[WeightFormat, ...] = ("bf16", "nf4+adapter" if has_adapter else "nf4")
    return formats[::-1] if unmerged_first else formats


def choose_plan(
    base: Base,
    formats: Sequence[WeightFormat],
    adapter_bytes: int,
    devices: Sequence[DeviceMemory],
    kv_cache_dtype: KVCacheDtype = "auto",
) -> Plan:
    """The first device, and on it the first format, that fits. DoesNotFit with the bytes needed and free."""
    for device in devices:
        ordered = formats if device.compiled else sorted(formats, key=lambda each: each != "bf16")
        for weight_format in ordered:
            if needed_bytes(base, weight_format, adapter_bytes, device.device, kv_cache_dtype) <= device.free:
                return Plan(device.device, weight_format)
    smallest = min(formats, key=lambda each: needed_bytes(base, each, adapter_bytes, "cpu"))
    gaps = [
        f"{_DEVICE_NAMES[each.device]} has {_gib(each.free)} GiB free and it "
        f"needs {_gib(needed_bytes(base, smallest, adapter_bytes, each.device, kv_cache_dtype))} GiB"
        for each in devices
    ]
    raise DoesNotFit(smallest, "; ".join(gaps))


def explain_cpu_fallback(
    plan: Plan,
    base: Base,
    formats: Sequence[WeightFormat],
    adapter_bytes: int,
    devices: Sequence[DeviceMemory],
    kv_cache_dtype: KVCacheDtype,
) -> str | None:
    """Line for the user if there is a card and the plan is the CPU; else None."""
    card = next((each for each in devices if each.device == "cuda"), None)
    if card is None or plan.device == "cuda":
        return None
    needed = min(needed_bytes(base, each, adapter_bytes, "cuda", kv_cache_dtype) for each in formats)
    in_int8 = min(needed_bytes(base, each, adapter_bytes, "cuda", "int8") for each in formats)
    smaller = f", or add --kv-cache-dtype int8, with which it needs {_gib(in_int8)} GiB" if in_int8 <= card.free else ""
    return (
        f"the model runs on the processor, more slowly: the graphics card has {_gib(card.free)} GiB free and it needs "
        f"{_gib(needed)} GiB there; close what else uses the card{smaller}"
    )


def _gib(count: int) -> str:
    return f"{count / GIB:.1f}"
