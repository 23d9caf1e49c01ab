"""Ways to cut a product of a step for many rows, on the card: each checked, then timed. geometry.py's CUTS comes from here.

    PYTHONPATH=src python bench/card/tune_tiling.py [--rows 8,16,32,64] [--adapter] [--layers 8]

LLaMA-7B's four products in random NF4, each with the weights of so many layers in turn, so that none waits in the second-level
cache. Every way is checked against float64 arithmetic over the same values. Prints a line of JSON for each number of rows and
product, with the microseconds of every way, best first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from check_common import relative, timed
from check_kernels import RandomAdapter

from qlora_chat.benchmark.shapes import RandomTensors, config_of
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.decode.launches import Launches
from qlora_chat.engines.cuda.decode.rows import Row
from qlora_chat.engines.cuda.kernels import Wanted
from qlora_chat.engines.cuda.runtime.arguments import STORE
from qlora_chat.engines.cuda.weights.adapters import CudaAdapters
from qlora_chat.engines.cuda.weights.lora_tiles import MOST_PREFETCHED, LowRank, rank_of
from qlora_chat.engines.cuda.weights.model import packed_weights
from qlora_chat.engines.cuda.weights.packing import Packed
from qlora_chat.engines.cuda.weights.tiling import Geometry, shared_bytes
from qlora_chat.models.weights.llama import Adapter, build

NAMES = ("qkv", "attention_out", "gate_up", "mlp_down")
BOUND = 3e-3
"""Relative error that bf16 inputs explain."""


def ways(rows: int, adapted: bool) -> Iterator[tuple[int, int, bool, bool, int]]:
    """warps, tiles, wide, whether x is read ahead, buffers of sums."""
    columns = max(1, rows // 8)
    buffers = ((4, 2) if columns == 1 else (2, 1)) if adapted else (2,) if columns == 1 else (1, 2)
    for way in itertools.product((16, 12, 8), (1, 2, 3, 4), (False, True), (False, True), buffers):
        warps, tiles, wide, *_ = way
        if (warps == 16 and (tiles > 2 or wide or columns > 1)) or (columns == 8 and tiles > 2):
            continue  # too few registers
        if warps == 12 and (columns > 2 or columns * tiles > 4):
            continue
        yield way


def cuts(packed: Packed, rows: int, limit: int, low_rank: LowRank | None) -> Iterator[Geometry]:
    beside = low_rank.layout.shared_bytes(rows, MOST_PREFETCHED) if low_rank else 0
    columns = max(1, rows // 8)
    for warps, tiles, wide, ahead, buffers in ways(rows, low_rank is not None):
        for stages in (3, 4):
            cut = Geometry(columns, tiles, False, stages, 0, warps, wide, ahead, buffers)
            size = beside + shared_bytes(packed, rows, cut, adapted=low_rank is not None)
            if size <= limit:
                yield replace(cut, shared_bytes=max(size, limit // 2 + 1024))


def wanted(packed: Packed, cut: Geometry, rank: int) -> Wanted:
    return "gemv.cu", "product", cut.defines(packed, rank, kv8=False)


def said(cut: Geometry) -> str:
    table, x = "wide" if cut.wide else "narrow", "ahead" if cut.ahead else "plain"
    return f"{cut.warps} warps, {cut.tiles} tiles, {table}, {cut.stages} stages, {cut.buffers} buffers, x {x}"


def tried(decoder: Decoder, products, kind: int, cut: Geometry, rows: int, x, expected) -> float | str:
    """Microseconds, or what is wrong."""
    launches = decoder.launches(rows)
    low_rank = launches.low_rank
    Geometry.of = staticmethod(lambda *_: cut)  # type: ignore[method-assign]
    out = torch.full((rows, products[0].packed.outputs), float("nan"), device="cuda")
    torch.cuda.synchronize()  # it comes from another stream, as do x and what is expected

    def run(each: Launches = launches, place: bool = low_rank is not None) -> None:
        decoder._buffers.counters.zero_()
        for index, product in enumerate(products):
            each.product(product, STORE, x=x, out=out, outputs=product.packed.outputs, place=(index, kind) if place else None)

    with torch.cuda.stream(decoder.stream):
        replace(launches, low_rank=None).product(products[0], STORE, x=x, out=out, outputs=products[0].packed.outputs)
    torch.cuda.synchronize()
    if not (error := relative(out, expected)) < BOUND:
        return f"wrong: {error:.1e}"
    return round(timed(run) / len(products), 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="8,16,32,64")
    parser.add_argument("--adapter", action="store_true", help="with an unmerged adapter of rank 64")
    parser.add_argument("--layers", type=int, default=8)
    chosen = parser.parse_args()
    config = config_of("7b", chosen.layers)
    tensors = RandomTensors(config, "nf4", torch.device("cuda"))
    adapter = Adapter(RandomAdapter(config), 0.25) if chosen.adapter else None
    weights = build(tensors, tensors.shape, torch.device("cuda"), adapter=adapter)
    packed = packed_weights(weights)
    cache = KVCache(weights, 8, None)
    decoder = Decoder(packed, cache, None)
    CudaAdapters(packed, decoder, cache)
    of, limit, failed = Geometry.of, decoder._card.shared_limit, False
    for rows in map(int, chosen.rows.split(",")):
        decoder.put([Row(row % 8, 5, 0, adapter=0 if adapter else -1) for row in range(rows)])
        low_rank = decoder.launches(rows).low_rank
        for kind, name in enumerate(NAMES):
            products = [getattr(layer, name) for layer in packed.layers]
            x = torch.randn(64, products[0].packed.inputs, device="cuda").bfloat16()
            truth = decoder.unpack(products[0].packed)[products[0].packed.row_of.long()]
            expected = x[:rows].double() @ truth.double().T
            possible = list(cuts(products[0].packed, rows, limit, low_rank))
            decoder.kernels.prepare(
                [wanted(products[0].packed, cut, each) for cut in possible for each in {rank_of(low_rank), 0}]
            )
            found = {said(cut): tried(decoder, products, kind, cut, rows, x, expected) for cut in possible}
            Geometry.of = of  # type: ignore[method-assign]
            wrong = {way: each for way, each in found.items() if isinstance(each, str)}
            failed |= bool(wrong)
            best = sorted((each, way) for way, each in found.items() if not isinstance(each, str))
            print(
                json.dumps({"rows": rows, "product": name, "us": {way: each for each, way in best}, "wrong": wrong}), flush=True
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()
