"""Tilings of a product for many rows, on the card: each checked, then timed. The presets of weights/tiling.py come from here.

    PYTHONPATH=src python bench/card/tune_tiling.py [--rows 8,16,32,64] [--adapter] [--layers 8]

LLaMA-7B's four products in random NF4, each with the weights of so many layers in turn, so that none waits in the second-level
cache. Every tiling is checked against float64 arithmetic over the same values. Prints a line of JSON for each number of rows
and product, with the microseconds of every tiling, best first.
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
from qlora_chat.engines.cuda.decode.rows import Row
from qlora_chat.engines.cuda.kernels import KernelKey
from qlora_chat.engines.cuda.runtime.arguments import STORE
from qlora_chat.engines.cuda.weights.adapters import CudaAdapters
from qlora_chat.engines.cuda.weights.lora_tiles import MAX_PREFETCHED, LoraTable
from qlora_chat.engines.cuda.weights.model import pack_weights
from qlora_chat.engines.cuda.weights.packing import Packed
from qlora_chat.engines.cuda.weights.tiling import Tiling, shared_bytes
from qlora_chat.models.weights.llama import Adapter, build

NAMES = ("qkv", "attention_out", "gate_up", "mlp_down")
BOUND = 3e-3
"""Relative error that bf16 inputs explain."""


def combinations(rows: int, adapted: bool) -> Iterator[tuple[int, int, bool, bool, int]]:
    """Warps, tiles, wide, read ahead, buffers of sums."""
    columns = max(1, rows // 8)
    buffers = ((4, 2) if columns == 1 else (2, 1)) if adapted else (2,) if columns == 1 else (1, 2)
    for combination in itertools.product((16, 12, 8), (1, 2, 3, 4), (False, True), (False, True), buffers):
        warps, tiles, wide, *_ = combination
        if (warps == 16 and (tiles > 2 or wide or columns > 1)) or (columns == 8 and tiles > 2):
            continue  # too few registers
        if warps == 12 and (columns > 2 or columns * tiles > 4):
            continue
        yield combination


def tilings(packed: Packed, rows: int, limit: int, lora: LoraTable | None) -> Iterator[Tiling]:
    lora_bytes = lora.layout.shared_bytes(rows, MAX_PREFETCHED) if lora else 0
    columns = max(1, rows // 8)
    for warps, tiles, wide, ahead, buffers in combinations(rows, lora is not None):
        for stages in (3, 4):
            tiling = Tiling(columns, tiles, False, stages, 0, warps, wide, ahead, buffers)
            size = lora_bytes + shared_bytes(packed, rows, tiling, adapted=lora is not None)
            if size <= limit:
                yield replace(tiling, shared_bytes=max(size, limit // 2 + 1024))


def key_of(packed: Packed, tiling: Tiling, rank: int) -> KernelKey:
    return "gemv.cu", "product", tiling.defines(packed, rank, kv8=False)


def label(tiling: Tiling) -> str:
    table, x = "wide" if tiling.wide else "narrow", "ahead" if tiling.read_ahead else "plain"
    return f"{tiling.warps} warps, {tiling.tiles} tiles, {table}, {tiling.stages} stages, {tiling.buffers} buffers, x {x}"


def measured(decoder: Decoder, products, kind: int, tiling: Tiling, rows: int, x, expected) -> float | str:
    """Microseconds, or the error of a wrong result."""
    launches = decoder.launches(rows)
    lora = launches.lora
    Tiling.of = staticmethod(lambda *_: tiling)  # type: ignore[method-assign]
    out = torch.full((rows, products[0].packed.outputs), float("nan"), device="cuda")
    torch.cuda.synchronize()  # out, x and expected come from another stream

    def run() -> None:
        decoder._buffers.counters.zero_()
        for index, product in enumerate(products):
            target = (index, kind) if lora else None
            launches.product(product, STORE, x=x, out=out, outputs=product.packed.outputs, lora_target=target)

    with torch.cuda.stream(decoder.stream):
        replace(launches, lora=None).product(products[0], STORE, x=x, out=out, outputs=products[0].packed.outputs)
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
    packed = pack_weights(weights)
    cache = KVCache(weights, 8, None)
    decoder = Decoder(packed, cache, None)
    CudaAdapters(packed, decoder, cache)
    of, limit, failed = Tiling.of, decoder._card.shared_limit, False
    for rows in map(int, chosen.rows.split(",")):
        decoder.set_rows([Row(row % 8, 5, 0, adapter=0 if adapter else -1) for row in range(rows)])
        lora = decoder.launches(rows).lora
        for kind, product in enumerate(NAMES):
            products = [getattr(layer, product) for layer in packed.layers]
            x = torch.randn(64, products[0].packed.inputs, device="cuda").bfloat16()
            truth = decoder.dequantize(products[0].packed)[products[0].packed.row_of.long()]
            expected = x[:rows].double() @ truth.double().T
            candidates = list(tilings(products[0].packed, rows, limit, lora))
            ranks = {lora.layout.rank, 0} if lora else {0}
            decoder.kernels.load([key_of(products[0].packed, tiling, rank) for tiling in candidates for rank in ranks])
            results = {label(each): measured(decoder, products, kind, each, rows, x, expected) for each in candidates}
            Tiling.of = of  # type: ignore[method-assign]
            wrong = {name: each for name, each in results.items() if isinstance(each, str)}
            failed |= bool(wrong)
            times = sorted((each, name) for name, each in results.items() if not isinstance(each, str))
            line = {"rows": rows, "product": product, "us": {name: each for each, name in times}, "wrong": wrong}
            print(json.dumps(line), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
