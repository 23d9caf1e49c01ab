"""Where a model can be held, and how: devices, their free memory, and the plan that fits.

Scope: predicts bytes from a base's config and compares them with what is free. Knows nothing of files or the Hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_chat.models import ModelError
from qlora_chat.models.folders import Base
from qlora_chat.settings import AdapterMode, Device, KVCacheDtype, Precision

GIB = 1024**3
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4, blocks of 64, double quantisation: half a byte, a byte a block, four bytes for 256 blocks."""
OVERHEAD = {"cuda": 3 * GIB // 4, "cpu": GIB // 2}
"""Beside weights and cache: dequantised blocks, activations, the allocator's slack; the libraries themselves."""

Held = Literal["bf16", "nf4", "nf4+adapter"]


@dataclass(frozen=True)
class DeviceMemory:
    """A device and its free bytes."""

    device: Literal["cuda", "cpu"]
    free: int


@dataclass(frozen=True)
class Plan:
    """Where a model will be held, and in which precision."""

    place: DeviceMemory
    held: Held


def detect_devices(device: Device) -> tuple[DeviceMemory, ...]:
    """Usable devices, best first. ModelError for cuda where there is none."""
    import psutil
    import torch

    places: list[DeviceMemory] = []
    if device in ("auto", "cuda") and torch.cuda.is_available():
        places.append(DeviceMemory("cuda", _free_on_card()))
    if device == "cuda" and not places:
        raise ModelError("--device cuda was asked for, but PyTorch finds no usable graphics card; use --device cpu or auto")
    if device in ("auto", "cpu"):
        places.append(DeviceMemory("cpu", psutil.virtual_memory().available))
    return tuple(places)


def _free_on_card() -> int:
    """0 where others have left too little to ask even that."""
    import torch

    try:
        return torch.cuda.mem_get_info()[0]
    except RuntimeError:
        return 0


def weight_bytes(base: Base, held: Held) -> int:
    """Predicted bytes of the weights alone, as they lie on disk."""
    embeddings = base.shape.vocabulary * base.shape.hidden
    head = 0 if base.shape.tied_head else embeddings
    inner = sum(out * ins for name, (out, ins) in base.linears().items() if name != "lm_head")
    return int(2 * (embeddings + head) + inner * (2 if held == "bf16" else NF4_BYTES))


def cache_bytes(base: Base, device: str, kv_cache_dtype: KVCacheDtype = "auto") -> int:
    """One chat's keys and values over the whole window: float32 on a CPU; bf16 on a card, or int8 with a float32 scale each."""
    shape = base.shape
    each = 4 * shape.head_dim if device == "cpu" else shape.head_dim + 4 if kv_cache_dtype == "int8" else 2 * shape.head_dim
    return 2 * shape.layers * shape.kv_heads * shape.window * each


def needed_bytes(base: Base, held: Held, adapter_bytes: int, device: str, kv_cache_dtype: KVCacheDtype = "auto") -> int:
    """Predicted bytes of weights, of one chat's keys and values over the whole window, and of overhead."""
    shape = base.shape
    relaid_head = 2 * shape.vocabulary * shape.hidden if shape.tied_head and device == "cpu" else 0
    beside = adapter_bytes if held == "nf4+adapter" else 0
    cache = cache_bytes(base, device, kv_cache_dtype)
    return weight_bytes(base, held) + relaid_head + beside + cache + OVERHEAD[device]


def candidate_formats(precision: Precision, has_adapter: bool, adapter_mode: AdapterMode = "auto") -> tuple[Held, ...]:
    """Ways that a precision allows, best first. Requantising a merge costs quality, so auto never does."""
    if has_adapter and adapter_mode == "exact":
        return ("nf4+adapter",)
    if precision == "bf16":
        return ("bf16",)
    if precision == "nf4":
        return ("nf4",)
    return ("bf16", "nf4+adapter" if has_adapter else "nf4")


def choose_plan(
    base: Base, ways: Sequence[Held], adapter_bytes: int, places: Sequence[DeviceMemory], kv_cache_dtype: KVCacheDtype = "auto"
) -> Plan:
    """The first device, and on it the first way, that fits. ModelError with the bytes needed and free."""
    for place in places:
        for held in ways:
            if needed_bytes(base, held, adapter_bytes, place.device, kv_cache_dtype) <= place.free:
                return Plan(place, held)
    least = min(ways, key=lambda held: needed_bytes(base, held, adapter_bytes, "cpu"))
    gaps = [
        f"{_device_name(place)} has {_gib(place.free)} GiB free and it needs "
        f"{_gib(needed_bytes(base, least, adapter_bytes, place.device, kv_cache_dtype))} GiB"
        for place in places
    ]
    cheaper = "" if "nf4" in least else ", or try --precision nf4"
    raise ModelError(
        f"the model does not fit as {least}: {'; '.join(gaps)}. Free some memory, or take a smaller model{cheaper}"
    )


def explain_cpu_fallback(
    plan: Plan,
    base: Base,
    ways: Sequence[Held],
    adapter_bytes: int,
    places: Sequence[DeviceMemory],
    kv_cache_dtype: KVCacheDtype,
) -> str | None:
    """What to say where there is a card and the model goes to the processor."""
    card = next((place for place in places if place.device == "cuda"), None)
    if card is None or plan.place.device == "cuda":
        return None
    needed = min(needed_bytes(base, held, adapter_bytes, "cuda", kv_cache_dtype) for held in ways)
    eight = min(needed_bytes(base, held, adapter_bytes, "cuda", "int8") for held in ways)
    cheaper = f", or add --kv-cache-dtype int8, with which it needs {_gib(eight)} GiB" if eight <= card.free else ""
    return (
        f"the model runs on the processor, more slowly: the graphics card has {_gib(card.free)} GiB free and it needs "
        f"{_gib(needed)} GiB there; close what else uses the card{cheaper}"
    )


def _device_name(place: DeviceMemory) -> str:
    return "the graphics card" if place.device == "cuda" else "this machine's memory"


def _gib(count: int) -> str:
    return f"{count / GIB:.1f}"
