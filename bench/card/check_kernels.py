"""The CUDA path against plain arithmetic, on the card: products, attention, sampling, whole steps; then what they take.

    PYTHONPATH=src python3 bench/card/check_kernels.py [--shape qwen3-4b] [--layers N] [--rows 1,8,32] [--skip-checks] [--kv8]
                                                       [--shared 99]

Random NF4 weights of LLaMA-7B's widths, or of Qwen3-4B's (norms of heads, grouped heads, YaRN). Every check is against
float64 or float32 arithmetic on the dequantized weights, on fresh random inputs, with outputs poisoned before; a step's
logits must be as near to float32 as the plain bf16 pass is, or within 2e-2 and KL 1e-4. With --kv8 the cache has 8 bits,
which rounds INT8_KV_FACTOR times as coarsely as bf16 (benchmark/check.py): keys, values and logits may be so much farther
off, KL its square. With --shared 99 the kernels are cut as for an RTX card: blocks of 99 KiB, a kernel a product. Prints a
line of JSON a result; exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from check_common import failures, relative, say, timed, written
from check_prefill import check_prefill, time_prompts
from torch.nn.functional import kl_div

from qlora_chat.benchmark.check import INT8_KV_FACTOR
from qlora_chat.benchmark.shapes import CONFIGS, RandomTensors, config_of, in_floating_point
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache, slot_bytes
from qlora_chat.engines.cuda.decode import graph
from qlora_chat.engines.cuda.decode.graph import Decoder
from qlora_chat.engines.cuda.decode.rows import BUCKETS, GREEDY, Row
from qlora_chat.engines.cuda.prefill.reader import Prefill
from qlora_chat.engines.cuda.runtime import driver
from qlora_chat.engines.cuda.runtime.arguments import STORE
from qlora_chat.engines.cuda.weights.adapters import CudaAdapters
from qlora_chat.engines.cuda.weights.model import Product, pack_weights
from qlora_chat.engines.cuda.weights.packing import natural_order, pack, pack_bf16, pack_int8
from qlora_chat.engines.cuda.weights.tiling import Card
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.models.weights.llama import Adapter, build
from qlora_chat.models.weights.nf4 import NF4
from qlora_chat.models.weights.shape import LlamaShape
from qlora_chat.settings import Sampling

SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.1)


def dequantized(part: NF4) -> torch.Tensor:
    """(N, K) float64, by bitsandbytes' rule, from the stored tensors."""
    assert part.nested_absmax is not None
    assert part.nested_code is not None
    outer = part.nested_absmax.repeat_interleave(256)[: part.absmax.numel()]
    scales = part.nested_code[part.absmax.int()] * outer + part.offset
    packed = part.packed.flatten()
    nibbles = torch.stack((packed >> 4, packed & 15), dim=-1).view(-1, 64)
    return (part.code[nibbles.int()].double() * scales[:, None].double()).view(part.outputs, part.inputs)


def random_nf4(outputs, inputs, tensors):
    """One matrix whose factors of absmax all differ, so that a wrong index shows."""
    name = "model.layers.0.mlp.down_proj" if inputs == 11008 else "model.layers.0.mlp.gate_proj"
    whole = NF4.read(tensors, f"{name}.weight", torch.device("cuda"), torch.bfloat16)
    blocks = outputs * inputs // 64
    factors = torch.rand(-(-blocks // 256), device="cuda") * 0.01 + 0.001
    return replace(
        whole, outputs=outputs, inputs=inputs, packed=whole.packed.flatten()[: outputs * inputs // 2],
        absmax=whole.absmax[:blocks], nested_absmax=factors,
    )  # fmt: skip


def step_bytes(weights):
    """Bytes of all products that one step reads, the head included."""
    products = [product for layer in weights.layers for product in layer.products] + [weights.head]
    return sum(each.packed.tiles.numel() for each in products)


def check_products(decoder, tensors, rows_list):
    for outputs, inputs in ((4096, 4096), (4096, 11008), (22016, 4096), (1728, 576), (17_920, 1536)):
        part = random_nf4(outputs if inputs < 4096 else min(outputs, 11008), inputs, tensors)
        truth = dequantized(part)
        row_of = torch.tensor(natural_order(part.outputs), dtype=torch.int32, device="cuda")
        kinds = {
            "nf4": pack([part], natural_order(part.outputs)),
            "bf16": pack_bf16(truth.bfloat16(), row_of),
            "int8": pack_int8(truth, row_of),
        }
        for kind, packed in kinds.items():
            unpacked = decoder.dequantize(packed).double()
            error = relative(unpacked, truth)
            exact = torch.equal(unpacked, truth.float().bfloat16().double()) if kind != "int8" else error < 2e-2
            say(f"dequantize {kind} {part.outputs}x{inputs}", exact, relative=f"{error:.1e}")
            for rows in rows_list:
                x = torch.randn(64, inputs, device="cuda").bfloat16()
                out = torch.full((64, part.outputs), float("nan"), device="cuda")
                decoder.set_rows([Row(r, 5, 0) for r in range(rows)])
                with torch.cuda.stream(decoder.stream):
                    decoder.launches(rows).product(Product(packed), STORE, x=x, out=out, outputs=part.outputs)
                torch.cuda.synchronize()
                expected = x[:rows].double() @ (unpacked if kind == "int8" else truth).T
                error = relative(out[:rows], expected)
                say(f"product {kind} {part.outputs}x{inputs} rows {rows}", error < 3e-3, relative=f"{error:.1e}")


def time_products(decoder, weights, rows_list):
    out = torch.zeros(64 * 32000, device="cuda")
    for rows in rows_list:
        total = 0.0
        for name in ("qkv", "attention_out", "gate_up", "mlp_down"):
            products = [getattr(each, name) for each in weights.layers]
            x = torch.randn(64, products[0].packed.inputs, device="cuda").bfloat16()
            decoder.set_rows([Row(r % len(decoder.cache.slots), 5, 0) for r in range(rows)])
            torch.cuda.synchronize()
            launches = decoder.launches(rows)

            def run(products=products, launches=launches, x=x):
                for product in products:
                    launches.product(product, STORE, x=x, out=out, outputs=product.packed.outputs)

            each = timed(run) / len(products)
            size = products[0].packed.tiles.numel()
            total += each
            say(f"time {name} rows {rows}", us=round(each, 2), gb_s=round(size / each / 1e3))
        say(f"time layer's products rows {rows}", us=round(total, 1), ms_32_layers=round(total * 32 / 1e3, 3))


class RandomAdapter(Mapping):
    """A LoRA of rank 64 on every linear but the head, by PEFT's names, the same at every asking."""

    def __init__(self, config, seed=0):
        self._seed = seed
        named = LlamaShape.from_config(config).linears().items()
        self._sizes = {f"base_model.model.{name}.lora_{side}.weight": (size, side) for name, size in named for side in "AB"}

    def __getitem__(self, name):
        (outs, ins), side = self._sizes[name]
        generator = torch.Generator("cuda").manual_seed(zlib.crc32(name.encode()) + self._seed)
        size = (64, ins) if side == "A" else (outs, 64)
        return torch.randn(size, device="cuda", generator=generator).mul_(0.02 if side == "A" else 0.01).bfloat16()

    def __iter__(self):
        return iter(self._sizes)

    def __len__(self):
        return len(self._sizes)


def in_float(tensors, dtype, adapter):
    """The values that the decoder computes with, for the plain pass."""
    values = in_floating_point(tensors, dtype, int8_embeddings=True)
    return build(values, tensors.shape, torch.device("cuda"), dtype, adapter)


def check_step(decoder, prefill, forward, tensors, adapter, rows_list):
    """Logits of the graph and of the eager bf16 pass, both against float32 arithmetic on the same dequantized weights."""
    shape = tensors.shape
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(5, shape.vocabulary, (length,), generator=generator).tolist() for length in (3, 40, 131, 300)]
    exact_weights = in_float(tensors, torch.float32, adapter)
    exact_forward = Forward(exact_weights, KVCache(exact_weights, len(texts)))
    exact = torch.cat([exact_forward([Span(slot, 0, ids)]) for slot, ids in enumerate(texts)])
    del exact_weights, exact_forward
    with torch.cuda.stream(decoder.stream):
        eager = torch.cat([forward([Span(slot, 0, ids)]) for slot, ids in enumerate(texts)])
        if decoder.cache.key_scales is not None:
            prefill([Span(slot, 0, ids[:-1], logits=0) for slot, ids in enumerate(texts)])
    torch.cuda.synchronize()
    coarser = INT8_KV_FACTOR if decoder.cache.key_scales is not None else 1

    def distance(logits, expected):
        kl = kl_div(logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean").item()
        return relative(logits, expected), kl

    say("eager bf16 against float32", **written(*distance(eager, exact)))
    for rows in rows_list:
        count = min(rows, len(texts))
        decoder.set_rows(
            [Row(slot, len(ids) - 1, ids[-1], GREEDY, seed=slot, adapter=0) for slot, ids in enumerate(texts[:count])]
        )
        decoder.logits.fill_(float("nan"))
        torch.cuda.synchronize()
        decoder.finish(decoder.start(rows))
        torch.cuda.synchronize()
        logits = decoder.logits[:count]
        ours, plain = distance(logits, exact[:count]), distance(eager[:count], exact[:count])
        greedy = [decoder.sampled_token(row, 0) for row in range(count)] == logits.argmax(-1).tolist()
        near = ours[0] <= coarser * max(2e-2, plain[0]) and ours[1] <= coarser**2 * max(1e-4, plain[1])
        say(f"step rows {rows} against float32", greedy and near, **written(*ours))
    # the last 40 tokens of the longest text as rows of one step, as in a mixed batch
    ids, count = texts[-1], min(40, decoder.max_rows)
    first = len(ids) - count
    decoder.set_rows([Row(3, at, ids[at], GREEDY if at == len(ids) - 1 else None, adapter=0) for at in range(first, len(ids))])
    torch.cuda.synchronize()
    decoder.finish(decoder.start(count))
    torch.cuda.synchronize()
    ours, plain = distance(decoder.logits[count - 1 : count], exact[3:4]), distance(eager[3:4], exact[3:4])
    say("prompt's tokens as rows", ours[0] <= coarser * max(2e-2, plain[0]), **written(*ours))


def check_equal_bits(decoder, prefill, shape, rows_list):
    """A row's logits have the same bits in all steps that round alike, whatever their other rows: four chats of several
    lengths, and one chat's next tokens, as a draft is verified."""
    generator = torch.Generator().manual_seed(4)
    texts = [torch.randint(5, shape.vocabulary, (length,), generator=generator).tolist() for length in (90, 129, 700, 1900)]
    with torch.cuda.stream(decoder.stream):
        for slot, ids in enumerate(texts):
            prefill([Span(slot, 0, ids[:-4], logits=0)])
    chats = [Row(slot, len(ids) - 5, ids[-5], GREEDY, adapter=0) for slot, ids in enumerate(texts)]
    fours = {"chats": chats}
    for slot in (1, 3):
        at = len(texts[slot]) - 4
        fours[f"draft at {at}"] = [Row(slot, at + n, texts[slot][at + n], GREEDY, adapter=0, drafted=n) for n in range(4)]
    others = [Row(4 + n % (len(decoder.cache.slots) - 4), n, 100 + n, GREEDY) for n in range(64)]

    def logits(rows, ours):
        decoder.set_rows([*ours, *others[: rows - len(ours)]])
        torch.cuda.synchronize()
        decoder.finish(decoder.start(rows))
        torch.cuda.synchronize()
        return decoder.logits[: len(ours)].clone()

    for name, four in fours.items():
        found = {}
        for rows in rows_list:
            for width in {1, 2, 4} if rows >= 4 else {rows}:
                made = torch.cat([logits(rows, four[at : at + width]) for at in range(0, 4, width)])
                found.setdefault(decoder.launches(rows).rounding, {})[f"{width} of {rows}"] = made
        for steps in found.values():
            first, *_ = steps.values()
            apart = [step for step, made in steps.items() if not torch.equal(made, first)]
            say(f"{name} in steps of any width", not apart, steps=list(steps), apart=apart)


def check_adapters(decoder, adapters, config):
    """Rows with different adapters in one step: each has the bits that it has where all rows have its own."""
    random = RandomAdapter(config, 7)
    names = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in random}
    pairs = {name: tuple(random[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB") for name in names}
    second = adapters.pack(pairs, 0.25)

    def logits(numbers):
        decoder.set_rows([Row(row, 5, 100 + row, GREEDY, adapter=each) for row, each in enumerate(numbers)])
        torch.cuda.synchronize()
        decoder.finish(decoder.start(len(numbers)))
        torch.cuda.synchronize()
        return decoder.logits[: len(numbers)].clone()

    for rows in (4, min(16, decoder.max_rows)):
        mixed = [(0, second.number, -1)[row % 3] for row in range(rows)]
        alone = {each: logits([each] * rows) for each in set(mixed)}
        together = logits(mixed)
        same = all(torch.equal(together[row], alone[each][row]) for row, each in enumerate(mixed) if each >= 0)
        # a step without adapters has other kernels, which round differently: compared are base rows among adapters
        base = max(relative(together[row], alone[-1][row]) for row, each in enumerate(mixed) if each < 0)
        apart = relative(alone[0], alone[-1])
        near = same and base < 2e-2 < apart
        say(f"adapters of {rows} rows in one step", near, base_to_base=f"{base:.1e}", base_to_adapter=f"{apart:.1e}")


def check_sampling(decoder, shape):
    """Frequencies of 64 x 100 draws against the distribution that engines/core/sampler.py defines."""
    from qlora_chat.engines.core.sampler import filter_candidates

    for temperature, top_k, top_p, min_p in (
        (0.7, 40, 0.9, 0), (1.0, 0, 0.8, 0), (1.3, 5, 1.0, 0), (0.7, 0, 1.0, 0), (0.5, 3, 0.0, 0),
        (0.7, 0, 1.0, 0.05), (1.3, 40, 0.95, 0.1), (1.7, 0, 0.99, 0.001),
    ):  # fmt: skip
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
        torch.manual_seed(1)
        logits = torch.randn(shape.vocabulary, device="cuda") * 4
        decoder.logits[:] = logits
        candidates = filter_candidates((logits / temperature)[None], [sampling], shape.vocabulary)
        expected = torch.zeros(shape.vocabulary, device="cuda")
        expected[candidates.tokens[0]] = candidates.logits[0].softmax(-1)
        counts = torch.zeros(shape.vocabulary)
        begin = time.perf_counter()
        for trial in range(100):
            decoder.set_rows([Row(0, 5, 0, sampling, trial, seed=row * 77 + 5) for row in range(64)])
            with torch.cuda.stream(decoder.stream):
                decoder.launches(64).sample()
            torch.cuda.synchronize()
            for row in range(64):
                counts[decoder.sampled_token(row, trial)] += 1
        observed = counts.cuda() / counts.sum()
        distance = (observed - expected).abs().sum().item() / 2
        support = int((expected > 0).sum())
        outside = int(((expected == 0) & (observed > 0)).sum())
        allowed = 0.5 * (support / 6400) ** 0.5 + 0.02
        say(
            f"sampling T{temperature} k{top_k} p{top_p} m{min_p}",
            outside == 0 and distance < allowed,
            distance=round(distance, 4),
            support=support,
            outside=outside,
            seconds=round(time.perf_counter() - begin, 2),
        )
    decoder.logits[0, 77] = float("nan")
    decoder.set_rows([Row(0, 5, 0, GREEDY)])
    with torch.cuda.stream(decoder.stream):
        decoder.launches(1).sample()
    torch.cuda.synchronize()
    say("a row that is not a number", decoder.sampled_token(0, 0) == -1)


def time_steps(decoder, rows_list, window, length):
    for rows in rows_list:
        slots = len(decoder.cache.slots)
        decoder.set_rows([Row(r % slots, length + r % 7, 5 + r, SAMPLING, seed=r, adapter=0) for r in range(rows)])
        decoder.finish(decoder.start(rows))
        torch.cuda.synchronize()
        steps, begin, number = 50, time.perf_counter(), 0
        for _ in range(steps):
            number = decoder.start(rows)
        decoder.finish(number)
        each = (time.perf_counter() - begin) / steps * 1e3
        say(f"time step rows {rows} at {length}", ms=round(each, 3), tokens_s=round(rows / each * 1e3))


def time_copy(device):
    source = torch.randn(2**29, device=device)
    target = torch.empty_like(source)
    copy = timed(lambda: torch.add(source, 0, out=target))
    say("copy", gb_s=round(2 * 2**31 / copy / 1e3))


def check_all(decoder, prefill, adapters, tensors, adapter, plain_cache, config, rows_list):
    forward = Forward(in_float(tensors, torch.bfloat16, adapter), plain_cache)
    matrices = RandomTensors(config_of("7b", 1), "nf4", torch.device("cuda"))  # wide enough for every matrix of the checks
    check_prefill(decoder, prefill, plain_cache, forward, random_nf4(4096, 4096, matrices))
    check_step(decoder, prefill, forward, tensors, adapter, rows_list)
    check_equal_bits(decoder, prefill, tensors.shape, rows_list)
    if adapter:
        check_adapters(decoder, adapters, config)
    check_sampling(decoder, tensors.shape)
    if tensors.shape.layers < 8:
        check_products(decoder, matrices, rows_list)


def be_smaller(shared):
    """Tile kernels as for an earlier card with so many bytes of shared memory per block; they are compiled for this one."""
    graph.Card = lambda processors, _, dependent_launch: Card(processors, shared, dependent_launch=False)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=CONFIGS, default="7b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rows", default="1,2,4,8,16,32,64")
    parser.add_argument("--adapter", action="store_true", help="with an unmerged adapter of rank 64")
    parser.add_argument("--kv8", action="store_true", help="keys and values in 8 bits")
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--shared", type=int, help="KiB of shared memory a block, as if the card had no more")
    parser.add_argument("--window", type=int, default=2048)
    return parser.parse_args()


def main():
    chosen = arguments()
    rows_list = [int(each) for each in chosen.rows.split(",")]
    assert set(rows_list) <= set(BUCKETS)
    if chosen.shared:
        be_smaller(chosen.shared * 1024)
    device = torch.device("cuda")
    begin = time.perf_counter()
    config = config_of(chosen.shape, chosen.layers)
    tensors = RandomTensors(config, "nf4", device)
    adapter = Adapter(RandomAdapter(config), 0.25) if chosen.adapter else None
    weights = build(tensors, tensors.shape, device, adapter=adapter)
    torch.cuda.synchronize()
    made = time.perf_counter()
    packed = pack_weights(weights)
    torch.cuda.synchronize()
    packed_at = time.perf_counter()
    cache = KVCache(weights, chosen.slots, torch.int8 if chosen.kv8 else None)
    decoder = Decoder(packed, cache, None)
    adapters = CudaAdapters(packed, decoder, cache)
    rows_list = [each for each in rows_list if each <= decoder.max_rows]
    torch.cuda.synchronize()
    ready = time.perf_counter()
    decoder.set_rows([Row(0, 0, 1, GREEDY)])
    decoder.finish(decoder.start(1))
    first = time.perf_counter()
    say(
        "start",
        make_s=round(made - begin, 2),
        pack_s=round(packed_at - made, 2),
        compile_s=round(ready - packed_at, 2),
        capture_s=round(first - ready, 2),
        arch=driver.architecture(),
        card=torch.cuda.get_device_name(),
        weights_gib=round(step_bytes(packed) / 2**30, 3),
        cache_gib_a_slot=round(slot_bytes(weights, cache.dtype) / 2**30, 3),
        max_rows=decoder.max_rows,
        allocated_gib=round(torch.cuda.memory_allocated() / 2**30, 3),
    )
    prefill = Prefill(packed, decoder.dequantize, cache, decoder.rope_cos_sin, adapters.of_slot)
    if not chosen.skip_checks:
        plain_cache = KVCache(weights, 4) if chosen.kv8 else cache
        check_all(decoder, prefill, adapters, tensors, adapter, plain_cache, config, rows_list)
    time_copy(device)
    if not chosen.adapter:
        time_products(decoder, packed, [1, 8, 32])
    time_steps(decoder, rows_list, chosen.window, 200)
    time_steps(decoder, [each for each in (1, 8, 32) if each <= decoder.max_rows], chosen.window, 1900)
    time_prompts(decoder, prefill)
    say("memory", peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 3))
    print("FAILED" if failures else "ALL CHECKS PASSED", failures)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
