"""LLaMA-7B's shape on this CPU: our NF4 pass against llama.cpp's Q4_0, in turns, in one run.

    npm install --prefix DIR node-llama-cpp; pip install --target DIR/gguf --no-deps gguf
    python bench/cpu/llama_7b.py --peer DIR [--lock FILE]...

Random weights of the same shape on both sides (ours with double-quantized scales and its head in 8 bits;
theirs as llama-quantize's Q4_0 leaves it, with a Q6_K head). Both hold their model while the turns alternate; a turn reads
a 128-token prompt and writes NEW tokens, greedily; the figure is the median over a turn's tokens. Before any timing, a layer
of ours is compared with its own weights in float32. Holds about 4 GiB a side, theirs as file pages of DIR/q4_0.gguf (made at
the first run). Each FILE is locked while turns run, for machines that others use. Prints JSON.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from qlora_chat.benchmark.environment import print_report

LAYERS, HIDDEN, FEED, HEADS, VOCABULARY, WINDOW = 32, 4096, 11008, 32, 32_000, 2048
PROMPT, NEW, TURNS = 128, 24, 3
RELATIVE, KL = 2e-2, 1e-4

PEER = """
import {getLlama} from "node-llama-cpp";
import {createInterface} from "node:readline";
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: process.argv[2]});
const context = await model.createContext({contextSize: 512, threads: 2, batchSize: 512});
const sequence = context.getSequence();
console.log(JSON.stringify({ready: true}));
for await (const line of createInterface({input: process.stdin})) {
    await sequence.clearHistory();
    const prompt = Array.from({length: PROMPT}, (_, i) => 300 + i);
    const times = [performance.now()];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        times.push(performance.now());
        if (times.length > NEW + 1) break;
    }
    console.log(JSON.stringify({first_ms: times[1] - times[0], token_ms: times.slice(2).map((t, i) => t - times[i + 1])}));
}
"""


def nf4_layer():
    """One decoder layer's products with random 4-bit codes and scales; every layer packs a copy of its own."""
    import torch

    from qlora_chat.models.weights.llama import Layer, Stacked
    from qlora_chat.models.weights.nf4 import NF4

    torch.manual_seed(0)
    code = torch.tensor([-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803,
                         0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0])  # fmt: skip

    def product(rows: int, inputs: int) -> NF4:
        blocks = rows * inputs // 64
        packed = torch.randint(0, 256, (rows * inputs // 2, 1), dtype=torch.uint8)
        absmax = torch.randint(0, 256, (blocks,), dtype=torch.uint8)
        outer = 0.02 * (1 + torch.rand(-(-blocks // 256)))
        return NF4(rows, inputs, packed, code, absmax, outer, torch.linspace(-1, 1, 256), 0.05, torch.bfloat16, torch.empty(0))

    ones = torch.ones(HIDDEN)
    q, k, v, out = (product(HIDDEN, HIDDEN) for _ in range(4))
    gate, up, down = product(FEED, HIDDEN), product(FEED, HIDDEN), product(HIDDEN, FEED)
    return Layer(ones, Stacked((q, k, v)), out, ones, Stacked((gate, up)), down)


def weights(layers: int):
    import torch

    from qlora_chat.models.weights.llama import Dense, LlamaWeights
    from qlora_chat.models.weights.shape import LlamaShape

    config = {"model_type": "llama", "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": layers,
              "vocab_size": VOCABULARY, "max_position_embeddings": WINDOW}  # fmt: skip
    layer, table = nf4_layer(), (torch.randn(VOCABULARY, HIDDEN) / HIDDEN**0.5).bfloat16()
    shape = LlamaShape.from_config(config)
    return LlamaWeights(shape, table, (layer,) * layers, torch.ones(HIDDEN), Dense(table), torch.device("cpu"), torch.bfloat16)


def checked() -> dict[str, float]:
    """Logits of one layer after a prompt, a chunk and single tokens, against its dequantized weights in float32."""
    from dataclasses import replace

    import torch

    from qlora_chat.engines.core.forward_pass import Span
    from qlora_chat.engines.core.kv_cache import KVCache
    from qlora_chat.engines.cpu import open_cpu
    from qlora_chat.engines.eager.forward import Forward
    from qlora_chat.models.weights.llama import Dense, Layer, Stacked
    from qlora_chat.models.weights.nf4 import NF4

    def exact(product: Any) -> Any:
        if isinstance(product, Stacked):
            return Stacked(tuple(exact(part) for part in product.parts))
        return Dense(product.dequantize()) if isinstance(product, NF4) else Dense(product.weight.float())

    stored = weights(1)
    layers = tuple(Layer(each.attention_norm, exact(each.qkv), exact(each.attention_out), each.mlp_norm, exact(each.gate_up),
                         exact(each.mlp_down)) for each in stored.layers)  # fmt: skip
    plain = replace(stored, layers=layers, head=exact(stored.head), embeddings=stored.embeddings.float(), dtype=torch.float32)
    reference = Forward(plain, KVCache(plain, 1))
    ours = open_cpu(stored, 1, lambda line: None)
    assert ours, "the compiled pass cannot be had here"
    worst = {"relative": 0.0, "kl": 0.0}
    for start, end in ((0, 40), (40, 44), (44, 45), (45, 46)):
        spans = [Span(0, start, list(range(start, end)))]
        expected, got = reference(spans).double(), ours(spans).double()
        p, q = expected.log_softmax(-1), got.log_softmax(-1)
        worst["relative"] = max(worst["relative"], float((got - expected).norm() / expected.norm()))
        worst["kl"] = max(worst["kl"], float((p.exp() * (p - q)).sum()))
    return worst


def ours() -> None:
    """Answers a line on stdin with a turn's times, as the peer does."""
    from qlora_chat.engines.core.forward_pass import Span
    from qlora_chat.engines.cpu import open_cpu

    began = time.perf_counter()
    stored = weights(LAYERS)
    made = time.perf_counter()
    forward = open_cpu(stored, 1, lambda line: None)
    assert forward, "the compiled pass cannot be had here"
    del stored
    print(json.dumps({"ready": True, "random_s": made - began, "pack_s": time.perf_counter() - made}), flush=True)
    for _ in sys.stdin:
        times = [time.perf_counter()]
        logits = forward([Span(0, 0, [300 + i for i in range(PROMPT)])])
        times.append(time.perf_counter())
        for position in range(PROMPT, PROMPT + NEW):
            logits = forward([Span(0, position, [int(logits[0].argmax())])])
            times.append(time.perf_counter())
        spent = [(b - a) * 1000 for a, b in pairwise(times)]
        print(json.dumps({"first_ms": spent[0], "token_ms": spent[1:], "packed_gb": forward.bytes_packed / 1e9}), flush=True)


def write_gguf(path: Path, packages: Path) -> None:
    """A Q4_0 file of the same shape with random weights, written a tensor at a time."""
    sys.path.insert(0, str(packages))
    import gguf  # type: ignore[import-not-found]
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += [f"\u2581w{i}" for i in range(VOCABULARY - len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(i) for i in range(VOCABULARY)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    tensors = dict(gguf_tensors(gguf))
    for name, (size, kind) in tensors.items():
        block, width = gguf.GGML_QUANT_SIZES[kind]
        inner = size[-1] // block * width
        bytes_ = inner * (size[0] if len(size) > 1 else 1)
        shape = size if kind == gguf.GGMLQuantizationType.F32 else (*size[:-1], inner)
        dtype = np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.uint8
        writer.add_tensor_info(name, shape, np.dtype(dtype), bytes_, raw_dtype=kind)  # type: ignore[arg-type]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    draw = np.random.default_rng(0)
    for size, kind in tensors.values():
        writer.write_tensor_data(gguf_data(gguf, draw, size, kind))
    writer.close()


def gguf_tensors(gguf: Any) -> Iterator[tuple[str, tuple[tuple[int, ...], Any]]]:
    kinds = gguf.GGMLQuantizationType
    yield "token_embd.weight", ((VOCABULARY, HIDDEN), kinds.Q4_0)
    for index in range(LAYERS):
        for name, rows, inputs in (("attn_q", HIDDEN, HIDDEN), ("attn_k", HIDDEN, HIDDEN), ("attn_v", HIDDEN, HIDDEN),
                                   ("attn_output", HIDDEN, HIDDEN), ("ffn_gate", FEED, HIDDEN), ("ffn_up", FEED, HIDDEN),
                                   ("ffn_down", HIDDEN, FEED)):  # fmt: skip
            yield f"blk.{index}.{name}.weight", ((rows, inputs), kinds.Q4_0)
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{index}.{name}.weight", ((HIDDEN,), kinds.F32)
    yield "output_norm.weight", ((HIDDEN,), kinds.F32)
    yield "output.weight", ((VOCABULARY, HIDDEN), kinds.Q6_K)


def gguf_data(gguf: Any, draw: Any, size: tuple[int, ...], kind: Any) -> Any:
    """Random codes; the scale of each block (its first two bytes in Q4_0, its last in Q6_K) is small and finite."""
    import numpy as np

    if kind == gguf.GGMLQuantizationType.F32:
        return np.ones(size, np.float32)
    block, width = gguf.GGML_QUANT_SIZES[kind]
    data = draw.integers(0, 256, (size[0], size[1] // block, width), dtype=np.uint8)
    at = slice(0, 2) if kind == gguf.GGMLQuantizationType.Q4_0 else slice(width - 2, width)
    data[:, :, at] = np.frombuffer(np.float16(0.004 if block == 32 else 1e-5).tobytes(), np.uint8)
    return data.reshape(size[0], -1)


class Side:
    """A process that holds one model and does a turn when asked."""

    def __init__(self, command: list[str], folder: Path | None = None) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)
        self.start = self._answer()

    def turn(self) -> dict[str, Any]:
        """Ask for one, and wait for its times."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit("a side ended before it answered")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", type=Path, required=True, help="folder with node_modules/node-llama-cpp and gguf/")
    parser.add_argument("--lock", type=Path, action="append", default=[], help="file to hold locked while turns run")
    chosen = parser.parse_args()
    peer = chosen.peer.resolve()
    worst = json.loads(subprocess.run([sys.executable, __file__, "checked"], capture_output=True, text=True, check=True).stdout)
    if worst["relative"] > RELATIVE or worst["kl"] > KL:
        sys.exit(f"logits are off ({worst}): no timing is worth anything")
    model, script = peer / "q4_0.gguf", peer / "cpu_7b_peer.mjs"
    if not model.exists():
        write_gguf(model.with_suffix(".part"), peer / "gguf")
        model.with_suffix(".part").rename(model)
    script.write_text(f"const PROMPT = {PROMPT}, NEW = {NEW};\n" + PEER)
    sides = (Side([sys.executable, __file__, "ours"]), Side(["node", str(script), str(model)], peer))
    with ExitStack() as locks:
        for each in chosen.lock:
            fcntl.flock(locks.enter_context(each.open("w")), fcntl.LOCK_EX)
        load = os.getloadavg()[0]
        rounds = [(sides[0].turn(), sides[1].turn()) for _ in range(TURNS)]
    for side in sides:
        side.close()

    def middle(side: int, key: str) -> float:
        return statistics.median(
            statistics.median(each[side][key]) if key == "token_ms" else each[side][key] for each in rounds
        )

    ratios = [statistics.median(theirs["token_ms"]) / statistics.median(mine["token_ms"]) for mine, theirs in rounds]
    print_report(
        "cpu_7b",
        {
            "one layer's logits against float32": worst,
            "ours, NF4, tokens/s": round(1000 / middle(0, "token_ms"), 2),
            "llama.cpp, Q4_0, tokens/s": round(1000 / middle(1, "token_ms"), 2),
            "ours / llama.cpp": round(statistics.median(ratios), 2),
            "ours / llama.cpp, by turn": [round(each, 2) for each in ratios],
            "quickest token of each, ms": [round(min(min(each[side]["token_ms"]) for each in rounds), 1) for side in (0, 1)],
            f"first token after {PROMPT}, ms, each": [round(middle(side, "first_ms")) for side in (0, 1)],
            "our packed weights, GB": round(rounds[0][0]["packed_gb"], 2),
            "packing 32 layers, s": round(sides[0].start["pack_s"], 1),
            "load average before the turns": round(load, 1),
        },
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["ours"]:
        ours()
    elif sys.argv[1:] == ["checked"]:
        print(json.dumps(checked()))
    else:
        main()
