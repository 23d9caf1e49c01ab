"""Predicted bytes, and the plan that follows from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from qlora_chat.models import ModelError
from qlora_chat.models.folders import Base, ModelConfigs
from qlora_chat.models.placement import (
    GIB,
    DeviceMemory,
    candidate_formats,
    choose_plan,
    detect_devices,
    explain_cpu_fallback,
    needed_bytes,
)
from qlora_chat.models.weights.llama import LlamaShape
from qlora_chat.settings import Precision

LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
}  # fmt: skip
GUANACO_ADAPTER = 320 * 1000**2
"""r 64 on every linear, in bf16."""


def llama_7b() -> Base:
    return Base(Path("nowhere"), ModelConfigs(LLAMA_7B, {}, {}), LlamaShape.from_config(LLAMA_7B))


def test_the_memory_of_a_7b_is_predicted() -> None:
    # 6.74 G weights; keys and values of 2,048 positions are 1 GiB; 0.75 GiB is kept for the rest
    assert needed_bytes(llama_7b(), "bf16", 0, "cuda") / GIB == pytest.approx(12.55 + 1 + 0.75, abs=0.05)
    assert needed_bytes(llama_7b(), "nf4", 0, "cuda") / GIB == pytest.approx(3.6 + 1 + 0.75, abs=0.1)
    beside = needed_bytes(llama_7b(), "nf4+adapter", GUANACO_ADAPTER, "cuda")
    assert beside - needed_bytes(llama_7b(), "nf4", GUANACO_ADAPTER, "cuda") == GUANACO_ADAPTER
    assert beside < 6 * GIB  # what `auto` asks of a card
    saved = needed_bytes(llama_7b(), "nf4", 0, "cuda") - needed_bytes(llama_7b(), "nf4", 0, "cuda", "int8")
    assert saved / GIB == pytest.approx(0.5 * (1 - 4 / 128), abs=0.01), "a byte of two, but for a scale a head"
    assert needed_bytes(llama_7b(), "nf4", 0, "cpu", "int8") == needed_bytes(llama_7b(), "nf4", 0, "cpu")


@pytest.mark.parametrize(
    ("precision", "card", "memory", "expected"),
    [
        ("auto", 24, 16, ("cuda", "bf16")),
        ("auto", 8, 64, ("cuda", "nf4+adapter")),
        ("auto", 2, 64, ("cpu", "bf16")),
        ("auto", 2, 8, ("cpu", "nf4+adapter")),
        ("nf4", 24, 64, ("cuda", "nf4")),
        ("bf16", 8, 64, ("cpu", "bf16")),
    ],
)
def test_the_best_format_that_fits_is_planned(precision: Precision, card: int, memory: int, expected: tuple[str, str]) -> None:
    devices = (DeviceMemory("cuda", card * GIB), DeviceMemory("cpu", memory * GIB))
    plan = choose_plan(llama_7b(), candidate_formats(precision, has_adapter=True), GUANACO_ADAPTER, devices)
    assert (plan.device, plan.weight_format) == expected


@pytest.mark.parametrize(("compiled", "expected"), [(True, "nf4+adapter"), (False, "bf16")])
def test_an_adapter_trained_on_nf4_stays_on_it_where_nf4_is_read_fast(compiled: bool, expected: str) -> None:
    formats = candidate_formats("auto", has_adapter=True, unmerged_first=True)
    plan = choose_plan(llama_7b(), formats, GUANACO_ADAPTER, [DeviceMemory("cpu", 64 * GIB, compiled)])
    assert plan.weight_format == expected


def test_without_an_adapter_a_small_card_gets_plain_nf4() -> None:
    assert candidate_formats("auto", has_adapter=False) == ("bf16", "nf4")


@pytest.mark.parametrize("precision", ["auto", "nf4"])
def test_exact_means_an_nf4_base_with_the_adapter_unmerged(precision: Precision) -> None:
    assert candidate_formats(precision, has_adapter=True, adapter_mode="exact") == ("nf4+adapter",)


def test_a_model_without_room_is_refused_with_both_figures_for_every_device() -> None:
    devices = (DeviceMemory("cuda", 4 * GIB), DeviceMemory("cpu", 5 * GIB // 2))
    with pytest.raises(ModelError) as caught:
        choose_plan(llama_7b(), ("bf16", "nf4+adapter"), GUANACO_ADAPTER, devices)
    message = str(caught.value)
    assert "the graphics card has 4.0 GiB free and it needs 5.6 GiB" in message
    assert "this machine's memory has 2.5 GiB free and it needs 6.4 GiB" in message
    with pytest.raises(ModelError, match="try --precision nf4"):
        choose_plan(llama_7b(), ("bf16",), 0, (DeviceMemory("cpu", 8 * GIB),))


def test_a_card_that_is_full_has_nothing_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even to ask, CUDA needs some hundred MB of it."""

    def full() -> tuple[int, int]:
        raise torch.OutOfMemoryError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    assert [(each.device, each.free > 0) for each in detect_devices("auto")] == [("cuda", False), ("cpu", True)]


@pytest.mark.parametrize(
    ("card", "reason"), [(5.4, "5.4 GiB free and it needs 5.6 GiB there; .* --kv-cache-dtype int8"), (2, "2.0 GiB free")]
)
def test_a_fallback_to_the_cpu_is_explained(card: float, reason: str) -> None:
    devices, formats = (
        (DeviceMemory("cuda", int(card * GIB)), DeviceMemory("cpu", 64 * GIB)),
        candidate_formats("auto", has_adapter=True),
    )
    plan = choose_plan(llama_7b(), formats, GUANACO_ADAPTER, devices)
    line = explain_cpu_fallback(plan, llama_7b(), formats, GUANACO_ADAPTER, devices, "auto")
    assert re.search(f"runs on the processor.*{reason}", line or "")
    assert ("int8" in (line or "")) == (card > 5)
    assert explain_cpu_fallback(plan, llama_7b(), formats, GUANACO_ADAPTER, devices[1:], "auto") is None


def test_device_cpu_means_the_cpu_alone() -> None:
    (device,) = detect_devices("cpu")
    assert device.device == "cpu"
    assert device.free > 0
    assert len(detect_devices("auto")) == 1 + torch.cuda.is_available()
