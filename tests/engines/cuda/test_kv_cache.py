"""The int8 KV cache: its contents, reading it back, and where it is available."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache, fitting_slots, slot_bytes
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel
from qlora_chat.settings import ModelSettings, SettingsError


def quantized(values: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 codes and scales (...,) of values (..., D), as kv_cache.cuh's `quantize_head` computes them."""
    most = values.abs().amax(-1)
    steps = torch.where(most > 0, 127 / most, 0.0)
    return (values * steps[..., None]).round().to(torch.int8), most / 127


@pytest.fixture(scope="module")
def caches(demo_fp32: LoadedModel) -> tuple[KVCache, KVCache]:
    """A dialogue's keys and values as the plain pass leaves them, and the same in 8 bits."""
    plain, eight = KVCache(demo_fp32.weights, 2), KVCache(demo_fp32.weights, 2, torch.int8)
    forward = Forward(demo_fp32.weights, plain)
    forward([Span(1, 0, list(range(5, 65)))])
    assert eight.key_scales is not None
    assert eight.value_scales is not None
    eight.keys[:], eight.key_scales[:] = quantized(plain.keys)
    eight.values[:], eight.value_scales[:] = quantized(plain.values)
    return plain, eight


def test_values_read_back_are_within_half_a_step(caches: tuple[KVCache, KVCache]) -> None:
    plain, eight = caches
    for index in range(len(plain.keys)):
        for exact, got in zip(plain.layer(index).prefix(1, 60), eight.layer(index).prefix(1, 60), strict=True):
            assert (got.dtype, got.shape) == (torch.bfloat16, exact.shape)
            largest = exact.abs().amax(-1, keepdim=True)
            assert ((got.float() - exact).abs() <= largest * (0.501 / 127 + 2**-8)).all(), "half a step, and bf16's own"


def test_attention_over_int8_is_near_attention_over_floats(caches: tuple[KVCache, KVCache]) -> None:
    plain = caches[0]
    queries = torch.randn(plain.keys.shape[2], 1, plain.keys.shape[4], generator=torch.Generator().manual_seed(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    for index in range(len(plain.keys)):
        (keys, values), eight = plain.layer(index).prefix(1, 60), caches[1].layer(index).prefix(1, 60)
        expected, got = attend(queries[None], keys, values), attend(queries[None], eight[0].float(), eight[1].float())
        assert (got - expected).norm() < 2e-2 * expected.norm()


def test_a_slot_takes_half_the_bytes_and_a_scale_per_head(demo_fp32: LoadedModel) -> None:
    weights, shape = demo_fp32.weights, demo_fp32.weights.shape
    eight, sixteen = slot_bytes(weights, torch.int8), slot_bytes(weights, torch.bfloat16)
    cache = KVCache(weights, 3, torch.int8)
    parts = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    assert 3 * eight == sum(part.nbytes for part in parts if part is not None)
    assert eight / sixteen == (shape.head_dim + 4) / (2 * shape.head_dim)
    assert fitting_slots(weights, torch.int8) >= fitting_slots(weights, torch.bfloat16)


def test_a_cpu_says_that_int8_has_no_effect(demo_fp32: LoadedModel) -> None:
    lines: list[str] = []
    LocalEngine(lambda: demo_fp32, slots=1, notify=lines.append, kv_cache_dtype="int8").close()
    assert [line for line in lines if "--kv-cache-dtype int8 has no effect" in line]
    with pytest.raises(SettingsError, match="is for a graphics card"):
        ModelSettings(device="cpu", kv_cache_dtype="int8")
    with pytest.raises(SettingsError, match="--kv-cache-dtype is 'fp8', but must be one of auto, int8"):
        ModelSettings(kv_cache_dtype="fp8")  # type: ignore[arg-type]
