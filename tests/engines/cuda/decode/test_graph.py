"""Decode steps on a fake card: order of kernels, data flow between them, and the capture of graphs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.decode.rows import Row
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights.lora_tiles import LoraTable
from qlora_chat.engines.cuda.weights.model import CudaWeights, Product
from tests.engines.cuda.card import PROCESSORS, RecordingCard, fake_weights

LAYER = ["product", "attention", "product", "product", "product"]
LAYER_INT8 = ["product", "quantize_kv", "attention", "product", "product", "product"]
Make = Callable[..., Decoder]


@pytest.fixture(scope="module")
def weights() -> CudaWeights:
    return fake_weights()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> RecordingCard:
    card = RecordingCard(major=9)
    card.install(monkeypatch)
    return card


@pytest.fixture
def make(weights: CudaWeights, card: RecordingCard) -> Make:
    def make(dtype: torch.dtype = torch.bfloat16) -> Decoder:
        like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
        return Decoder(weights, KVCache(like, 3, dtype), None)

    return make


def step(decoder: Decoder, rows: int, adapter: int = -1) -> None:
    decoder.set_rows([Row(0, at, 5, adapter=adapter) for at in range(rows)])
    decoder.finish(decoder.start(rows))


def table(weights: CudaWeights, rank: int) -> LoraTable:
    return LoraTable(weights.layout(rank), torch.device("cpu"))


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_a_step_launches_a_kernel_per_product(make: Make, card: RecordingCard, rows: int) -> None:
    step(make(), rows)
    assert card.names() == ["embed", *LAYER, *LAYER, "product", "sample"]
    assert all(each.dependent_launch for each in card.launches), "each starts while the previous one still runs"


def test_a_narrow_step_with_adapters_has_all_layers_in_one_kernel(
    make: Make, card: RecordingCard, weights: CudaWeights
) -> None:
    decoder = make()
    decoder.set_lora(table(weights, 16))
    step(decoder, 2, adapter=0)
    assert card.names() == ["embed", "layers", "product", "sample"]
    assert all(each.dependent_launch for each in card.launches)
    card.launches.clear()
    step(decoder, 4, adapter=0)
    assert card.names() == ["embed", *LAYER, *LAYER, "product", "sample"]


def test_a_bias_that_the_layers_kernel_does_not_support_needs_a_kernel_per_product(
    card: RecordingCard, weights: CudaWeights
) -> None:
    packed = weights.layers[1].attention_out.packed
    biased = replace(weights.layers[1], attention_out=Product(replace(packed, bias=torch.empty(packed.outputs))))
    like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
    decoder = Decoder(replace(weights, layers=(weights.layers[0], biased)), KVCache(like, 3), None)
    decoder.set_lora(table(weights, 16))
    step(decoder, 1, adapter=0)
    assert card.names() == ["embed", *LAYER, *LAYER, "product", "sample"]
    assert [bool(each.arguments.bias) for each in card.launches if each.name == "product"].index(True) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_norms_of_heads_come_between_the_product_and_attention(
    card: RecordingCard, weights: CudaWeights, dtype: torch.dtype
) -> None:
    norms = torch.ones(2, 128, dtype=torch.bfloat16)
    layers = tuple(replace(each, query_norm=norms[0], key_norm=norms[1]) for each in weights.layers)
    shape = replace(weights.shape, head_norms=True)
    like: Any = SimpleNamespace(shape=shape, device=torch.device("cpu"))
    decoder = Decoder(replace(weights, shape=shape, layers=layers), KVCache(like, 3, dtype), None)
    decoder.set_lora(table(weights, 16))
    step(decoder, 2, adapter=0)
    quantize = ["quantize_kv"] if dtype == torch.int8 else []
    layer = ["product", "norm_and_rope", *quantize, "attention", "product", "product", "product"]
    assert card.names() == ["embed", *layer, *layer, "product", "sample"], "the kernel of all layers does not norm heads"
    _, product, head_norms = card.launches[:3]
    assert head_norms.arguments.qkv == product.arguments.out
    assert (head_norms.arguments.query_norm, head_norms.arguments.key_norm) == (norms[0].data_ptr(), norms[1].data_ptr())
    assert head_norms.grid == (3 * 16, 2, 1), "a warp for each head of queries, keys and values of each row"


def test_an_older_card_has_a_kernel_per_product_and_no_dependent_launches(make: Make, card: RecordingCard) -> None:
    card.major = 8
    step(make(), 1)
    assert card.names() == ["embed", *LAYER, *LAYER, "product", "sample"]
    assert not any(each.dependent_launch for each in card.launches)


def test_each_kernel_reads_what_the_one_before_it_wrote(make: Make, card: RecordingCard) -> None:
    decoder = make()
    step(decoder, 8)
    embed, *layers, head, sample = card.launches
    x, squares = embed.arguments.x, (embed.arguments.squares, 1)
    for index in range(2):
        qkv, attention, out, gate_up, down = layers[5 * index : 5 * index + 5]
        assert (qkv.arguments.x, qkv.arguments.squares_in, qkv.arguments.squares_count) == (x, *squares)
        assert attention.arguments.queries == qkv.arguments.out
        assert out.arguments.x == attention.arguments.out
        assert (gate_up.arguments.x, gate_up.arguments.squares_in) == (out.arguments.x_out, out.arguments.squares_out)
        assert gate_up.arguments.squares_count == out.arguments.row_tiles, "a row tile leaves a sum of squares each"
        assert down.arguments.x == gate_up.arguments.x_out
        x, squares = down.arguments.x_out, (down.arguments.squares_out, down.arguments.row_tiles)
    assert (head.arguments.x, head.arguments.squares_in, head.arguments.squares_count) == (x, *squares)
    assert head.arguments.out == sample.arguments.logits == decoder.logits.data_ptr()


def test_each_layer_has_its_own_weights_norms_and_cache(make: Make, card: RecordingCard, weights: CudaWeights) -> None:
    decoder = make()
    step(decoder, 8)
    products = [each.arguments for each in card.launches if each.name == "product"]
    expected = [product for layer in weights.layers for product in layer.products] + [weights.head]
    assert [each.tiles for each in products] == [each.packed.tiles.data_ptr() for each in expected]
    first, second = weights.layers
    norms = first.mlp_norm, second.attention_norm, second.mlp_norm, weights.norm
    assert [each.norm for each in products if each.norm] == [each.data_ptr() for each in norms]
    for index, attention in enumerate(each.arguments for each in card.launches if each.name == "attention"):
        layer_cache = decoder.cache.layer(index)
        assert (products[4 * index].keys, products[4 * index].values) == (
            layer_cache.keys.data_ptr(),
            layer_cache.values.data_ptr(),
        )
        assert (attention.keys, attention.values) == (layer_cache.keys.data_ptr(), layer_cache.values.data_ptr())


@pytest.mark.parametrize("adapter", [-1, 0])
@pytest.mark.parametrize("equal", [(1, 2, 4, 8), (16, 32, 64)])
def test_the_order_of_sums_does_not_depend_on_the_rows(
    make: Make, card: RecordingCard, weights: CudaWeights, adapter: int, equal: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    card.major = 8
    monkeypatch.setattr("tests.engines.cuda.card.PROCESSORS", 100)  # more than some products have items
    decoder = make()
    decoder.set_lora(table(weights, 16))
    orders = set()
    for rows in equal:
        card.launches.clear()
        step(decoder, rows, adapter)
        attention_splits = {each.arguments.max_splits for each in card.launches if each.name == "attention"}
        products = [each.arguments for each in card.launches if each.name == "product"]
        orders.add((*attention_splits, *((each.squares_count, each.lora_product.sharing) for each in products)))
    assert len(orders) == 1


def test_an_int8_cache_is_written_before_attention(make: Make, card: RecordingCard) -> None:
    decoder = make(torch.int8)
    step(decoder, 8)
    assert card.names() == ["embed", *LAYER_INT8, *LAYER_INT8, "product", "sample"]
    qkv, quantize_kv, attention = (each.arguments for each in card.launches[7:10])
    layer_cache = decoder.cache.layer(1)
    assert layer_cache.key_scales is not None
    assert quantize_kv.new_kv == qkv.keys, "where the product leaves them in floating point"
    assert (quantize_kv.keys, quantize_kv.key_scales) == (layer_cache.keys.data_ptr(), layer_cache.key_scales.data_ptr())
    assert (attention.keys, attention.key_scales) == (quantize_kv.keys, quantize_kv.key_scales)


def test_a_graph_is_captured_once_for_all_steps_that_it_is_wide_enough_for(make: Make, card: RecordingCard) -> None:
    decoder = make()
    for rows in (3, 4, 3, 1, 4):
        step(decoder, rows)
    graphs = [each for each in card.events if each.split()[0] in ("begin", "end", "replay")]
    of_four, of_one = ["begin 0", "end 0", *["replay 0"] * 3], ["begin 1", "end 1", "replay 1"]
    assert graphs == [*of_four, *of_one, "replay 0"]
    assert len(card.launches) == 2 * (3 + 2 * len(LAYER)), "a replay launches nothing from the host"


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_nothing_is_compiled_during_a_capture(make: Make, card: RecordingCard, weights: CudaWeights, rows: int) -> None:
    decoder = make(torch.int8)
    decoder.set_lora(table(weights, 16))
    for adapter in (-1, 0):
        step(decoder, rows, adapter)
    for number in (0, 1):
        captured = card.events[card.events.index(f"begin {number}") + 1 : card.events.index(f"end {number}")]
        assert captured
        assert all(each.startswith("launch") for each in captured)


def test_a_step_has_adapters_if_one_of_its_rows_has(make: Make, card: RecordingCard, weights: CudaWeights) -> None:
    decoder = make()
    decoder.set_lora(table(weights, 16))
    step(decoder, 8)
    assert not any("LORA=16" in each.defines for each in card.launches)
    card.launches.clear()
    decoder.set_rows([Row(0, 0, 5), Row(1, 0, 5, adapter=2), *[Row(2, 0, 5)] * 6])
    decoder.start(8)
    *of_layers, head = [each for each in card.launches if each.name == "product"]
    assert [each.arguments.lora_product.number for each in of_layers] == list(range(8)), (
        "each product has its own part of the adapter"
    )
    assert all("LORA=16" in each.defines for each in of_layers)
    assert "LORA=0" in head.defines
    step(decoder, 8)
    step(decoder, 8, adapter=1)
    assert card.events[-2:] == ["replay 0", "replay 1"], "both kinds of step have their graphs"


def test_the_layers_kernel_has_adapters(make: Make, card: RecordingCard, weights: CudaWeights) -> None:
    decoder = make()
    decoder.set_lora(table(weights, 16))
    step(decoder, 1, adapter=0)
    embed, layers, *_ = card.launches
    assert "LORA=16" in layers.defines
    assert layers.grid == (PROCESSORS, 1, 1), "a block per processor: they meet at barriers"
    offset = layers.arguments.lora.sums - embed.arguments.arrivals
    assert 0 < offset < 4 * embed.arguments.arrival_count, "the sums are zeroed at the beginning of the step"


def test_a_larger_rank_captures_all_graphs_again(make: Make, card: RecordingCard, weights: CudaWeights) -> None:
    decoder = make()
    for rank in (16, 32):
        decoder.set_lora(table(weights, rank))
        card.events.clear()
        step(decoder, 1)
        card.launches.clear()
        step(decoder, 1, adapter=0)
        assert [each.split()[0] for each in card.events if "launch" not in each] == ["begin", "end", "replay"] * 2
        assert f"LORA={rank} " in card.launches[1].defines
        assert card.launches[0].arguments.arrivals == card.launches[1].arguments.arrived, "the new counters"


def test_the_penalty_reads_the_seen_tokens_of_the_chats_slot(make: Make, card: RecordingCard) -> None:
    decoder = make()
    decoder.set_seen(1, [0, 33, 319])
    decoder.set_seen(1, [2, 40, 319])
    step(decoder, 1)
    words = (ctypes.c_uint32 * 30).from_address(card.launches[-1].arguments.seen)  # 3 slots of 320 bits
    assert list(words) == [0] * 10 + [1 << 2, 1 << 8, *[0] * 7, 1 << 31] + [0] * 10


def test_a_sampled_token_is_read_from_where_the_card_wrote_it(make: Make, card: RecordingCard) -> None:
    decoder = make()
    step(decoder, 2)
    sample = card.launches[-1].arguments
    written = (ctypes.c_int32 * (64 * sample.ring)).from_address(sample.sampled)
    written[1 * sample.ring + 70 % sample.ring] = 123
    assert (decoder.sampled_token(1, 70), decoder.sampled_token(0, 70)) == (123, 0)


def test_matrices_share_a_workspace_when_they_are_dequantized(make: Make, card: RecordingCard, weights: CudaWeights) -> None:
    decoder, layer = make(), weights.layers[0]
    small, large = layer.attention_out.packed, layer.gate_up.packed
    for packed in (small, large, small, large):
        assert decoder.dequantize(packed).shape == (packed.outputs, packed.inputs)
    launches = [each.arguments for each in card.launches]
    assert [each.tiles for each in launches] == [each.tiles.data_ptr() for each in (small, large, small, large)]
    assert len({each.out for each in launches[1:]}) == 1, "as large as the largest so far"
    assert decoder.dequantize(small).data_ptr() == launches[-1].out


def test_a_step_that_cannot_be_captured_runs_all_the_same(make: Make, card: RecordingCard) -> None:
    """And later work is not captured: a stream captures until the capture is ended."""
    decoder = make()
    card.failures = [("launch sample", torch.OutOfMemoryError("CUDA out of memory"))]
    for _ in range(2):
        step(decoder, 1)
    kernels = [f"launch {name}" for name in ("embed", *LAYER, *LAYER, "product", "sample")]
    assert [each for each in card.events if "compile" not in each] == ["begin 0", *kernels, "end 0", *kernels, *kernels]
    step(decoder, 2)
    assert card.events[-2:] == ["end 1", "replay 1"], "other widths have their graphs"


def test_a_width_that_cannot_be_compiled_is_not_tried_again(make: Make, card: RecordingCard) -> None:
    decoder = make()
    card.failures = [("compile gemv.cu", KernelError("NVRTC cannot compile gemv.cu"))]
    with pytest.raises(KernelError):
        step(decoder, 16)
    assert decoder.max_rows == 8
    step(decoder, 8)


def test_a_table_without_memory_for_its_sums_changes_nothing(
    make: Make, card: RecordingCard, weights: CudaWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make()
    decoder.set_lora(table(weights, 16))
    step(decoder, 1, adapter=0)

    def none_left(adapters: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoder._buffers, "resize_counters", none_left)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.set_lora(table(weights, 64))
    step(decoder, 2, adapter=0)
    assert "LORA=16" in card.launches[-3].defines, "sums of rank 64 would exceed the old counters"
