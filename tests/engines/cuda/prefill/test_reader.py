"""A pass over prompts, at once and in parts; attention where a part of a prompt was read before, on any build of PyTorch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.prefill.activations import filled_up, filled_up_to
from qlora_chat.engines.cuda.prefill.reader import PromptReader, _causal
from qlora_chat.engines.eager.forward import Span
from tests.engines.cuda.card import NotedCard, weights_of_sizes

SPANS = [Span(0, 0, [5, 6, 7, 8], logits=0), Span(2, 3, [9, 10, 11], logits=0)]


OTHERS = [Span(1, 0, [4] * 20, logits=0)]


def test_a_pass_in_parts_asks_the_same_of_a_card_whatever_goes_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    card, weights, adapted = NotedCard(major=9), weights_of_sizes(), list[tuple[str, int]]()
    card.install(monkeypatch)
    like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
    decoder = Decoder(weights, KVCache(like, 3, torch.bfloat16), None)

    def adapter(name: str) -> Any:
        def added(x: Tensor, y: Tensor) -> None:
            adapted.append((name, len(x)))

        return SimpleNamespace(added=[[added] * 5] * 2)

    def noted() -> tuple[list[Any], list[tuple[str, int]]]:
        """What was asked of the card, and of adapters, since the last time."""
        asked = [(each.name, each.grid, each.name == "rotate" and each.arguments.keys) for each in card.launches]
        found = asked, [*adapted]
        card.launches.clear()
        adapted.clear()
        return found

    adapters = {0: adapter("first"), 2: adapter("second")}
    reader = PromptReader(weights, decoder.unpack, decoder.cache, decoder.kernels, decoder.turns, adapters.get)
    reader(SPANS)
    launches, added = noted()
    assert added[:2] == [("first", 4), ("second", 3)]
    parts, between, done = reader.begin(SPANS), reader.begin(OTHERS), []
    while not parts.ended:
        done.append(parts.run(15_000_000))
        some, of_adapters = noted()
        assert (some, of_adapters) == (launches[: len(some)], added[: len(of_adapters)])
        del launches[: len(some)], added[: len(of_adapters)]
        between.run(1)
        noted()
    assert not launches
    assert not added
    assert max(done) <= 15_000_000, "weights that it may multiply with"
    first, last = weights.layers
    products = *first.products, last.qkv
    assert sum(done) == sum(each.packed.outputs * each.packed.inputs for each in products), "nobody reads what would follow"


def test_a_rehearsal_unpacks_what_one_layer_has_and_leaves_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    card, weights = NotedCard(major=9), weights_of_sizes()
    card.install(monkeypatch)
    like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
    decoder = Decoder(weights, KVCache(like, 3, torch.bfloat16), None)
    reader = PromptReader(weights, decoder.unpack, decoder.cache, decoder.kernels, decoder.turns)
    reader.rehearse(64)
    assert card.names() == ["unpack"] * 5, "gate and up by halves"
    assert not decoder.cache.keys.any()


def test_products_meet_few_numbers_of_rows_whatever_the_lengths_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert filled_up_to(1024) == [64, 128, 192, 256, 384, 512, 640, 768, 896, 1024]
    assert all(tokens <= filled_up(tokens) < tokens + 128 for tokens in range(1, 1025))
    NotedCard(major=9).install(monkeypatch)
    weights = weights_of_sizes()
    like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
    decoder, rows, mm = Decoder(weights, KVCache(like, 3, torch.bfloat16), None), set[int](), torch.mm

    def noted(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        rows.add(len(x))
        return mm(x, weight, out=out)

    monkeypatch.setattr(torch, "mm", noted)
    PromptReader(weights, decoder.unpack, decoder.cache, decoder.kernels, decoder.turns)(SPANS)
    assert rows == {64}, "of seven tokens"


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_a_build_without_flash_attention_reads_on_after_what_is_cached(heads: int, kv_heads: int) -> None:
    """Some for Windows, and every one on this test's processor."""
    count, seen, dim = 5, 12, 64
    queries = torch.randn(1, heads, count, dim)
    keys, values = (torch.randn(1, kv_heads, seen, dim) for _ in range(2))
    found = _causal(queries, keys, values)
    for at in range(count):
        known = slice(seen - count + at + 1)
        alone = scaled_dot_product_attention(
            queries[:, :, at : at + 1], keys[:, :, known], values[:, :, known], enable_gqa=True
        )
        assert torch.allclose(found[:, :, at : at + 1], alone, atol=1e-5)
