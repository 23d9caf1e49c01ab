"""Every card that the kernels are made for has room for every step that it is asked for, or says how wide its steps may be."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.decode.rows import BUCKETS, Row
from qlora_chat.engines.cuda.runtime.driver import KernelError
from qlora_chat.engines.cuda.weights.lora_tiles import Fused, Layout, LowRank
from qlora_chat.engines.cuda.weights.packing import pairs_up
from qlora_chat.engines.cuda.weights.tiling import Card, Geometry
from tests.engines.cuda.card import NotedCard, weights_of_sizes

GEFORCE, A100, H100 = 99 * 1024, 163 * 1024, 227 * 1024
"""Shared memory of a block: of the RTX 30, 40 and 50 series, and of two cards for servers."""
HIDDEN, FEED_FORWARD, VOCABULARY = 4096, 11_008, 32_000
OF_7B = {"qkv": ((HIDDEN,) * 3, HIDDEN), "out": ((HIDDEN,), HIDDEN), "gate_up": ((FEED_FORWARD,) * 2, HIDDEN),
         "down": ((HIDDEN,), FEED_FORWARD)}  # fmt: skip


def sizes(kind: str, inputs: int, outputs: int) -> Any:
    return SimpleNamespace(kind=kind, inputs=inputs, paired=kind == "nf4" and pairs_up(inputs // 64), row_tiles=outputs // 16)


def widest(limit: int, rank: int = 0) -> int:
    """Most rows of a step of a 7B in NF4 with adapters of a rank."""
    layout = Layout(rank, tuple(Fused(outputs, inputs, torch.zeros(0)) for outputs, inputs in OF_7B.values())) if rank else None
    found, card = 0, Card(132, limit, early=True)
    for rows in BUCKETS:
        try:
            cuts = [Geometry.of(sizes("nf4", inputs, sum(outputs)), rows, card, layout) for outputs, inputs in OF_7B.values()]
            cuts.append(Geometry.of(sizes("int8", HIDDEN, VOCABULARY), rows, card))
        except KernelError:
            break
        assert all(each.shared_bytes <= limit for each in cuts)
        found = rows
    return found


@pytest.mark.parametrize("limit", [GEFORCE, A100, H100])
def test_a_7b_has_steps_of_every_width_on_every_card(limit: int) -> None:
    assert widest(limit) == 64


def test_a_7b_with_guanacos_adapter_beside_it_has_steps_of_16_rows_on_a_card_for_consumers() -> None:
    assert widest(GEFORCE, 64) == 16
    assert widest(GEFORCE, 256) >= 8
    assert widest(A100, 64) == widest(H100, 64) == 64


@pytest.fixture
def geforce(monkeypatch: pytest.MonkeyPatch) -> NotedCard:
    card = NotedCard(major=8, shared_bytes=GEFORCE)
    card.install(monkeypatch)
    return card


def decoder() -> Decoder:
    weights = weights_of_sizes()
    like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
    return Decoder(weights, KVCache(like, 3), None)


def test_a_decoder_knows_how_many_rows_its_card_has_room_for(geforce: NotedCard) -> None:
    made = decoder()
    assert made.most_rows == 64
    made.adapt(LowRank(made.weights.layout(64), torch.device("cpu")))
    assert made.most_rows == 16
    made.put([Row(0, at, 5, adapter=0) for at in range(16)])
    made.finish(made.start(16))
    assert "WARPS=8" in geforce.launches[1].defines


def test_a_decoder_knows_which_steps_compute_a_row_alike(geforce: NotedCard) -> None:
    made = decoder()
    assert [made.most_alike(rows) for rows in (1, 8, 9, 64)] == [8, 8, 64, 64], "wider ones split their sums otherwise"
    made.adapt(LowRank(made.weights.layout(64), torch.device("cpu")))
    assert [made.most_alike(rows) for rows in (1, 8, 9, 16)] == [8, 8, 16, 16]
    geforce.major, geforce.shared_bytes = 9, H100
    made = decoder()
    assert [made.most_alike(rows) for rows in (1, 64)] == [8, 64]
    made.adapt(LowRank(made.weights.layout(64), torch.device("cpu")))
    assert [made.most_alike(rows) for rows in (1, 8, 64)] == [2, 8, 64], (
        "beside adapters one or two have one kernel for all layers"
    )


@pytest.mark.parametrize(("outputs", "inputs"), [(1728, 576), (17_920, 1536)])
def test_what_comes_in_single_blocks_is_not_cut_as_if_they_were_pairs(outputs: int, inputs: int) -> None:
    """The bundled demo, and a 1.5B: there are scales for two tiles a stage, and no other block of a pair to read ahead."""
    layout = Layout(64, (Fused((outputs,), inputs, torch.zeros(0)),))
    for processors, rows, low_rank in product((28, 108, 132), BUCKETS, (None, layout)):
        cut = Geometry.of(sizes("nf4", inputs, outputs), rows, Card(processors, H100, early=True), low_rank)
        assert cut.tiles <= 2
        assert not cut.ahead


def test_rows_are_cut_so_that_no_processor_has_a_round_more_than_another() -> None:
    """132 of them: tiles a processor in turns of so many."""
    card = Card(132, H100, early=True)
    tiles = {name: Geometry.of(sizes("nf4", inputs, sum(outputs)), 16, card).tiles for name, (outputs, inputs) in OF_7B.items()}
    assert tiles == {"qkv": 3, "out": 2, "gate_up": 4, "down": 2}


def test_adapters_that_a_card_has_no_room_for_change_nothing(geforce: NotedCard) -> None:
    made = decoder()
    made.adapt(LowRank(made.weights.layout(16), torch.device("cpu")))
    before = made.most_rows
    geforce.did.clear()
    object.__setattr__(made._card, "shared_limit", 40 * 1024)
    with pytest.raises(KernelError, match="too few for a step of one row"):
        made.adapt(LowRank(made.weights.layout(256), torch.device("cpu")))
    assert made.most_rows == before
    made.put([Row(0, 0, 5, adapter=0)])
    assert made._low_rank is not None
    assert made._low_rank.layout.rank == 16
