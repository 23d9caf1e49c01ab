"""Tilings: every supported card has shared memory for every step, or a limit on its rows."""

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
from qlora_chat.engines.cuda.weights.lora_tiles import FusedProduct, LoraLayout, LoraTable
from qlora_chat.engines.cuda.weights.packing import is_paired
from qlora_chat.engines.cuda.weights.tiling import Card, Tiling
from tests.engines.cuda.card import RecordingCard, fake_weights

GEFORCE, A100, H100 = 99 * 1024, 163 * 1024, 227 * 1024
"""Shared memory of a block: of the RTX 30, 40 and 50 series, and of two server cards."""
HIDDEN, FEED_FORWARD, VOCABULARY = 4096, 11_008, 32_000
OF_7B = {"qkv": ((HIDDEN,) * 3, HIDDEN), "out": ((HIDDEN,), HIDDEN), "gate_up": ((FEED_FORWARD,) * 2, HIDDEN),
         "down": ((HIDDEN,), FEED_FORWARD)}  # fmt: skip


def sizes(kind: str, inputs: int, outputs: int) -> Any:
    return SimpleNamespace(kind=kind, inputs=inputs, paired=kind == "nf4" and is_paired(inputs // 64), row_tiles=outputs // 16)


def widest(limit: int, rank: int = 0) -> int:
    """Rows of the widest step of a 7B in NF4, with adapters of a rank."""
    layout = (
        LoraLayout(rank, tuple(FusedProduct(outputs, inputs, torch.zeros(0)) for outputs, inputs in OF_7B.values()))
        if rank
        else None
    )
    fitting, card = 0, Card(132, limit, dependent_launch=True)
    for rows in BUCKETS:
        try:
            tilings = [Tiling.of(sizes("nf4", inputs, sum(outputs)), rows, card, layout) for outputs, inputs in OF_7B.values()]
            tilings.append(Tiling.of(sizes("int8", HIDDEN, VOCABULARY), rows, card))
        except KernelError:
            break
        assert all(each.shared_bytes <= limit for each in tilings)
        fitting = rows
    return fitting


@pytest.mark.parametrize("limit", [GEFORCE, A100, H100])
def test_a_7b_has_steps_of_every_width_on_every_card(limit: int) -> None:
    assert widest(limit) == 64


def test_a_7b_with_guanacos_unmerged_adapter_has_steps_of_16_rows_on_a_consumer_card() -> None:
    assert widest(GEFORCE, 64) == 16
    assert widest(GEFORCE, 256) >= 8
    assert widest(A100, 64) == widest(H100, 64) == 64


@pytest.fixture
def geforce(monkeypatch: pytest.MonkeyPatch) -> RecordingCard:
    card = RecordingCard(major=8, shared_bytes=GEFORCE)
    card.install(monkeypatch)
    return card


def new_decoder() -> Decoder:
    weights = fake_weights()
    like: Any = SimpleNamespace(shape=weights.shape, device=torch.device("cpu"))
    return Decoder(weights, KVCache(like, 3), None)


def test_a_decoder_knows_the_rows_that_its_card_has_memory_for(geforce: RecordingCard) -> None:
    decoder = new_decoder()
    assert decoder.max_rows == 64
    decoder.set_lora(LoraTable(decoder.weights.layout(64), torch.device("cpu")))
    assert decoder.max_rows == 16
    decoder.set_rows([Row(0, at, 5, adapter=0) for at in range(16)])
    decoder.finish(decoder.start(16))
    assert "WARPS=8" in geforce.launches[1].defines


def test_a_decoder_knows_which_steps_round_alike(geforce: RecordingCard) -> None:
    decoder = new_decoder()
    assert [decoder.max_equal_rows(rows) for rows in (1, 8, 9, 64)] == [8, 8, 64, 64], "wider ones split their sums differently"
    decoder.set_lora(LoraTable(decoder.weights.layout(64), torch.device("cpu")))
    assert [decoder.max_equal_rows(rows) for rows in (1, 8, 9, 16)] == [8, 8, 16, 16]
    geforce.major, geforce.shared_bytes = 9, H100
    decoder = new_decoder()
    assert [decoder.max_equal_rows(rows) for rows in (1, 64)] == [8, 64]
    decoder.set_lora(LoraTable(decoder.weights.layout(64), torch.device("cpu")))
    assert [decoder.max_equal_rows(rows) for rows in (1, 8, 64)] == [2, 8, 64], (
        "with adapters one or two rows have one kernel for all layers"
    )


@pytest.mark.parametrize(("outputs", "inputs"), [(1728, 576), (17_920, 1536)])
def test_single_blocks_are_not_tiled_as_pairs(outputs: int, inputs: int) -> None:
    """The bundled demo, and a 1.5B: there are scales for two tiles a stage, and no other block of a pair to read ahead."""
    layout = LoraLayout(64, (FusedProduct((outputs,), inputs, torch.zeros(0)),))
    for processors, rows, lora in product((28, 108, 132), BUCKETS, (None, layout)):
        tiling = Tiling.of(sizes("nf4", inputs, outputs), rows, Card(processors, H100, dependent_launch=True), lora)
        assert tiling.tiles <= 2
        assert not tiling.read_ahead


def test_tilings_give_no_processor_an_extra_round() -> None:
    """132 of them: tiles a processor in rope_cos_sin of so many."""
    card = Card(132, H100, dependent_launch=True)
    tiles = {name: Tiling.of(sizes("nf4", inputs, sum(outputs)), 16, card).tiles for name, (outputs, inputs) in OF_7B.items()}
    assert tiles == {"qkv": 3, "out": 2, "gate_up": 4, "down": 2}


def test_adapters_without_shared_memory_change_nothing(geforce: RecordingCard) -> None:
    decoder = new_decoder()
    decoder.set_lora(LoraTable(decoder.weights.layout(16), torch.device("cpu")))
    before = decoder.max_rows
    geforce.events.clear()
    object.__setattr__(decoder._card, "shared_limit", 40 * 1024)
    with pytest.raises(KernelError, match="too few for a step of one row"):
        decoder.set_lora(LoraTable(decoder.weights.layout(256), torch.device("cpu")))
    assert decoder.max_rows == before
    decoder.set_rows([Row(0, 0, 5, adapter=0)])
    assert decoder._lora is not None
    assert decoder._lora.layout.rank == 16
