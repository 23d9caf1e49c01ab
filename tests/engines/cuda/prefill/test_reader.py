"""Prefill passes, whole and in parts; attention over a cached prefix, on any build of PyTorch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.prefill.activations import padded_row_counts, padded_rows
from qlora_chat.engines.cuda.prefill.reader import Prefill, causal_attention
from tests.engines.cuda.card import RecordingCard, fake_weights

SPANS = [Span(0, 0, [5, 6, 7, 8], logits=0), Span(2, 3, [9, 10, 11], logits=0)]
OTHERS = [Span(1, 0, [4] * 20, logits=0)]


def test_a_pass_in_parts_launches_the_same_whatever_runs_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    card, weights, adapted = RecordingCard(major=9), fake_weights(), list[tuple[str, int]]()
    card.install(monkeypatch)
    like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
    decoder = Decoder(weights, KVCache(like, 3, torch.bfloat16), None)

    def adapter(name: str) -> Any:
        def added(x: Tensor, y: Tensor) -> None:
            adapted.append((name, len(x)))

        return SimpleNamespace(deltas=[[added] * 5] * 2)

    def recorded() -> tuple[list[Any], list[tuple[str, int]]]:
        """Launches, and rows of adapters, since the last call."""
        launched = [(each.name, each.grid, each.name == "rope_and_cache" and each.arguments.keys) for each in card.launches]
        result = launched, [*adapted]
        card.launches.clear()
        adapted.clear()
        return result

    adapters = {0: adapter("first"), 2: adapter("second")}
    prefill = Prefill(weights, decoder.dequantize, decoder.cache, decoder.rope_cos_sin, adapters.get)
    prefill(SPANS)
    launches, added = recorded()
    assert added[:2] == [("first", 4), ("second", 3)]
    parts, between, done = prefill.begin(SPANS), prefill.begin(OTHERS), []
    while not parts.ended:
        done.append(parts.run(15_000_000))
        some, of_adapters = recorded()
        assert (some, of_adapters) == (launches[: len(some)], added[: len(of_adapters)])
        del launches[: len(some)], added[: len(of_adapters)]
        between.run(1)
        recorded()
    assert not launches
    assert not added
    assert max(done) <= 15_000_000, "the weights of a part"
    first, last = weights.layers
    products = *first.products, last.qkv
    assert sum(done) == sum(each.packed.outputs * each.packed.inputs for each in products), "nothing reads what would follow"


def test_warming_up_dequantizes_one_layer_and_leaves_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    card, weights = RecordingCard(major=9), fake_weights()
    card.install(monkeypatch)
    like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
    decoder = Decoder(weights, KVCache(like, 3, torch.bfloat16), None)
    prefill = Prefill(weights, decoder.dequantize, decoder.cache, decoder.rope_cos_sin)
    prefill.warm_up(64)
    assert card.names() == ["dequantize"] * 5, "gate and up by halves"
    assert not decoder.cache.keys.any()


def test_products_have_few_numbers_of_rows_whatever_the_lengths_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert padded_row_counts(1024) == [64, 128, 192, 256, 384, 512, 640, 768, 896, 1024]
    assert all(tokens <= padded_rows(tokens) < tokens + 128 for tokens in range(1, 1025))
    RecordingCard(major=9).install(monkeypatch)
    weights = fake_weights()
    like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
    decoder, rows, mm = Decoder(weights, KVCache(like, 3, torch.bfloat16), None), set[int](), torch.mm

    def recording(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        rows.add(len(x))
        return mm(x, weight, out=out)

    monkeypatch.setattr(torch, "mm", recording)
    Prefill(weights, decoder.dequantize, decoder.cache, decoder.rope_cos_sin)(SPANS)
    assert rows == {64}, "of seven tokens"


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_a_build_without_flash_attention_continues_a_cached_prefix(heads: int, kv_heads: int) -> None:
    """Some for Windows, and all on the CPU of this test."""
    count, seen, dim = 5, 12, 64
    queries = torch.randn(1, heads, count, dim)
    keys, values = (torch.randn(1, kv_heads, seen, dim) for _ in range(2))
    attended = causal_attention(queries, keys, values)
    for at in range(count):
        visible = slice(seen - count + at + 1)
        alone = scaled_dot_product_attention(
            queries[:, :, at : at + 1], keys[:, :, visible], values[:, :, visible], enable_gqa=True
        )
        assert torch.allclose(attended[:, :, at : at + 1], alone, atol=1e-5)
