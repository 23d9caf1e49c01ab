"""What a step asks of a card, without one: its kernels in order, who reads what another wrote, and when graphs are made."""

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
from qlora_chat.engines.cuda.weights.lora_tiles import LowRank
from qlora_chat.engines.cuda.weights.model import CudaWeights, Product
from tests.engines.cuda.card import PROCESSORS, NotedCard, weights_of_sizes

LAYER = ["product", "attend", "product", "product", "product"]
LAYER_IN_8_BITS = ["product", "settle", "attend", "product", "product", "product"]
Make = Callable[..., Decoder]


@pytest.fixture(scope="module")
def weights() -> CudaWeights:
    return weights_of_sizes()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> NotedCard:
    card = NotedCard(major=9)
    card.install(monkeypatch)
    return card


@pytest.fixture
def make(weights: CudaWeights, card: NotedCard) -> Make:
    def make(dtype: torch.dtype = torch.bfloat16) -> Decoder:
        like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
        return Decoder(weights, KVCache(like, 3, dtype), None)

    return make


def step(decoder: Decoder, rows: int, adapter: int = -1) -> None:
    decoder.put([Row(0, at, 5, adapter=adapter) for at in range(rows)])
    decoder.finish(decoder.start(rows))


def table(weights: CudaWeights, rank: int) -> LowRank:
    return LowRank(weights.layout(rank), torch.device("cpu"))


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_a_step_has_a_kernel_a_product(make: Make, card: NotedCard, rows: int) -> None:
    step(make(), rows)
    assert card.names() == ["embed", *LAYER, *LAYER, "product", "choose"]
    assert all(each.early for each in card.launches), "each takes its place while the one before still runs"


def test_a_narrow_step_beside_adapters_has_all_layers_in_one_kernel(make: Make, card: NotedCard, weights: CudaWeights) -> None:
    decoder = make()
    decoder.adapt(table(weights, 16))
    step(decoder, 2, adapter=0)
    assert card.names() == ["embed", "layers", "product", "choose"]
    assert all(each.early for each in card.launches)
    card.launches.clear()
    step(decoder, 4, adapter=0)
    assert card.names() == ["embed", *LAYER, *LAYER, "product", "choose"]


def test_a_bias_that_the_layers_kernel_does_not_know_makes_it_a_kernel_a_product(card: NotedCard, weights: CudaWeights) -> None:
    packed = weights.layers[1].attention_out.packed
    biased = replace(weights.layers[1], attention_out=Product(replace(packed, bias=torch.empty(packed.outputs))))
    like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
    decoder = Decoder(replace(weights, layers=(weights.layers[0], biased)), KVCache(like, 3), None)
    decoder.adapt(table(weights, 16))
    step(decoder, 1, adapter=0)
    assert card.names() == ["embed", *LAYER, *LAYER, "product", "choose"]
    assert [bool(each.arguments.bias) for each in card.launches if each.name == "product"].index(True) == 5


def test_an_older_card_has_a_kernel_a_product_in_every_step_and_launches_none_early(make: Make, card: NotedCard) -> None:
    card.major = 8
    step(make(), 1)
    assert card.names() == ["embed", *LAYER, *LAYER, "product", "choose"]
    assert not any(each.early for each in card.launches)


def test_each_kernel_reads_what_the_one_before_it_wrote(make: Make, card: NotedCard) -> None:
    decoder = make()
    step(decoder, 8)
    embed, *layers, head, choose = card.launches
    x, squares = embed.arguments.x, (embed.arguments.squares, 1)
    for index in range(2):
        qkv, attend, out, gate_up, down = layers[5 * index : 5 * index + 5]
        assert (qkv.arguments.x, qkv.arguments.squares_in, qkv.arguments.squares_count) == (x, *squares)
        assert attend.arguments.queries == qkv.arguments.out
        assert out.arguments.x == attend.arguments.out
        assert (gate_up.arguments.x, gate_up.arguments.squares_in) == (out.arguments.x_out, out.arguments.squares_out)
        assert gate_up.arguments.squares_count == out.arguments.row_tiles, "a row tile leaves a sum of squares each"
        assert down.arguments.x == gate_up.arguments.x_out
        x, squares = down.arguments.x_out, (down.arguments.squares_out, down.arguments.row_tiles)
    assert (head.arguments.x, head.arguments.squares_in, head.arguments.squares_count) == (x, *squares)
    assert head.arguments.out == choose.arguments.logits == decoder.logits.data_ptr()


def test_each_layer_has_its_own_weights_norms_and_place_in_the_cache(make: Make, card: NotedCard, weights: CudaWeights) -> None:
    decoder = make()
    step(decoder, 8)
    products = [each.arguments for each in card.launches if each.name == "product"]
    expected = [product for layer in weights.layers for product in layer.products] + [weights.head]
    assert [each.tiles for each in products] == [each.packed.tiles.data_ptr() for each in expected]
    first, second = weights.layers
    norms = first.mlp_norm, second.attention_norm, second.mlp_norm, weights.norm
    assert [each.norm for each in products if each.norm] == [each.data_ptr() for each in norms]
    for index, attend in enumerate(each.arguments for each in card.launches if each.name == "attend"):
        held = decoder.cache.layer(index)
        assert (products[4 * index].keys, products[4 * index].values) == (held.keys.data_ptr(), held.values.data_ptr())
        assert (attend.keys, attend.values) == (held.keys.data_ptr(), held.values.data_ptr())


@pytest.mark.parametrize("adapter", [-1, 0])
@pytest.mark.parametrize("alike", [(1, 2, 4, 8), (16, 32, 64)])
def test_what_is_summed_first_does_not_depend_on_the_rows(
    make: Make, card: NotedCard, weights: CudaWeights, adapter: int, alike: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    card.major = 8
    monkeypatch.setattr("tests.engines.cuda.card.PROCESSORS", 100)  # more than some products have items
    decoder = make()
    decoder.adapt(table(weights, 16))
    found = set()
    for rows in alike:
        card.launches.clear()
        step(decoder, rows, adapter)
        attends = {each.arguments.most_splits for each in card.launches if each.name == "attend"}
        products = [each.arguments for each in card.launches if each.name == "product"]
        found.add((*attends, *((each.squares_count, each.part.sharing) for each in products)))
    assert len(found) == 1


def test_an_8_bit_cache_is_written_before_anybody_attends(make: Make, card: NotedCard) -> None:
    decoder = make(torch.int8)
    step(decoder, 8)
    assert card.names() == ["embed", *LAYER_IN_8_BITS, *LAYER_IN_8_BITS, "product", "choose"]
    qkv, settle, attend = (each.arguments for each in card.launches[7:10])
    held = decoder.cache.layer(1)
    assert held.key_scales is not None
    assert settle.newest == qkv.keys, "where the product leaves them in floating point"
    assert (settle.keys, settle.key_scales) == (held.keys.data_ptr(), held.key_scales.data_ptr())
    assert (attend.keys, attend.key_scales) == (settle.keys, settle.key_scales)


def test_a_graph_is_made_once_for_all_steps_that_it_is_wide_enough_for(make: Make, card: NotedCard) -> None:
    decoder = make()
    for rows in (3, 4, 3, 1, 4):
        step(decoder, rows)
    graphs = [each for each in card.did if each.split()[0] in ("begin", "end", "replay")]
    of_four, of_one = ["begin 0", "end 0", *["replay 0"] * 3], ["begin 1", "end 1", "replay 1"]
    assert graphs == [*of_four, *of_one, "replay 0"]
    assert len(card.launches) == 2 * (3 + 2 * len(LAYER)), "a replay launches nothing from the host"


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_nothing_is_compiled_while_a_graph_is_made(make: Make, card: NotedCard, weights: CudaWeights, rows: int) -> None:
    decoder = make(torch.int8)
    decoder.adapt(table(weights, 16))
    for adapter in (-1, 0):
        step(decoder, rows, adapter)
    for number in (0, 1):
        captured = card.did[card.did.index(f"begin {number}") + 1 : card.did.index(f"end {number}")]
        assert captured
        assert all(each.startswith("launch") for each in captured)


def test_a_step_has_adapters_where_one_of_its_rows_has(make: Make, card: NotedCard, weights: CudaWeights) -> None:
    decoder = make()
    decoder.adapt(table(weights, 16))
    step(decoder, 8)
    assert not any("LORA=16" in each.defines for each in card.launches)
    card.launches.clear()
    decoder.put([Row(0, 0, 5), Row(1, 0, 5, adapter=2), *[Row(2, 0, 5)] * 6])
    decoder.start(8)
    *of_layers, head = [each for each in card.launches if each.name == "product"]
    assert [each.arguments.part.number for each in of_layers] == list(range(8)), "each product its own part"
    assert all("LORA=16" in each.defines for each in of_layers)
    assert "LORA=0" in head.defines
    step(decoder, 8)
    step(decoder, 8, adapter=1)
    assert card.did[-2:] == ["replay 0", "replay 1"], "both kinds of step keep their graphs"


def test_the_layers_kernel_has_adapters_too(make: Make, card: NotedCard, weights: CudaWeights) -> None:
    decoder = make()
    decoder.adapt(table(weights, 16))
    step(decoder, 1, adapter=0)
    embed, layers, *_ = card.launches
    assert "LORA=16" in layers.defines
    assert layers.grid == (PROCESSORS, 1, 1), "a block a processor: they wait for each other"
    counted = layers.arguments.lora.sums - embed.arguments.arrivals
    assert 0 < counted < 4 * embed.arguments.arrival_count, "what sums up is cleared at the beginning of the step"


def test_a_wider_table_of_adapters_makes_all_graphs_anew(make: Make, card: NotedCard, weights: CudaWeights) -> None:
    decoder = make()
    for rank in (16, 32):
        decoder.adapt(table(weights, rank))
        card.did.clear()
        step(decoder, 1)
        card.launches.clear()
        step(decoder, 1, adapter=0)
        assert [each.split()[0] for each in card.did if "launch" not in each] == ["begin", "end", "replay"] * 2
        assert f"LORA={rank} " in card.launches[1].defines
        assert card.launches[0].arguments.arrivals == card.launches[1].arguments.arrived, "the counters that have moved"


def test_what_was_seen_is_what_a_chats_penalty_reads(make: Make, card: NotedCard) -> None:
    decoder = make()
    decoder.see(1, [0, 33, 319])
    decoder.see(1, [2, 40, 319])
    step(decoder, 1)
    words = (ctypes.c_uint32 * 30).from_address(card.launches[-1].arguments.seen)  # 3 slots of 320 bits
    assert list(words) == [0] * 10 + [1 << 2, 1 << 8, *[0] * 7, 1 << 31] + [0] * 10


def test_a_token_is_read_where_the_card_wrote_it(make: Make, card: NotedCard) -> None:
    decoder = make()
    step(decoder, 2)
    choose = card.launches[-1].arguments
    written = (ctypes.c_int32 * (64 * choose.ring)).from_address(choose.drawn)
    written[1 * choose.ring + 70 % choose.ring] = 123
    assert (decoder.drawn(1, 70), decoder.drawn(0, 70)) == (123, 0)


def test_matrices_share_a_workspace_when_they_are_unpacked(make: Make, card: NotedCard, weights: CudaWeights) -> None:
    decoder, layer = make(), weights.layers[0]
    small, large = layer.attention_out.packed, layer.gate_up.packed
    for packed in (small, large, small, large):
        assert decoder.unpack(packed).shape == (packed.outputs, packed.inputs)
    unpacks = [each.arguments for each in card.launches]
    assert [each.tiles for each in unpacks] == [each.tiles.data_ptr() for each in (small, large, small, large)]
    assert len({each.out for each in unpacks[1:]}) == 1, "as large as the largest so far"
    assert decoder.unpack(small).data_ptr() == unpacks[-1].out


def test_a_step_that_cannot_be_recorded_runs_all_the_same(make: Make, card: NotedCard) -> None:
    """And what follows is not recorded into it: a stream goes on recording until it is told to end."""
    decoder = make()
    card.fails = [("launch choose", torch.OutOfMemoryError("CUDA out of memory"))]
    for _ in range(2):
        step(decoder, 1)
    kernels = [f"launch {name}" for name in ("embed", *LAYER, *LAYER, "product", "choose")]
    assert [each for each in card.did if "compile" not in each] == ["begin 0", *kernels, "end 0", *kernels, *kernels]
    step(decoder, 2)
    assert card.did[-2:] == ["end 1", "replay 1"], "others have their graphs"


def test_a_width_that_cannot_be_compiled_is_not_asked_for_again(make: Make, card: NotedCard) -> None:
    decoder = make()
    card.fails = [("compile gemv.cu", KernelError("NVRTC cannot compile gemv.cu"))]
    with pytest.raises(KernelError):
        step(decoder, 16)
    assert decoder.most_rows == 8
    step(decoder, 8)


def test_a_table_whose_sums_have_no_memory_changes_nothing(
    make: Make, card: NotedCard, weights: CudaWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make()
    decoder.adapt(table(weights, 16))
    step(decoder, 1, adapter=0)

    def none_left(adapters: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoder._buffers, "make_counters", none_left)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.adapt(table(weights, 64))
    step(decoder, 2, adapter=0)
    assert "LORA=16" in card.launches[-3].defines, "sums of 64 would be written beyond the counters there are"
