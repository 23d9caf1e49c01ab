"""The default model on this CPU: our engine with the adapter unmerged on NF4, llama.cpp, and Transformers' `generate`.

    NODE_LLAMA_CPP=FOLDER python bench/cpu/smollm2.py

FOLDER holds a built llama.cpp: `npm install --ignore-scripts node-llama-cpp`. Each path runs in a process of its own, in
turns, ROUNDS times; medians, and medians of the ratios within a round. All answer a 128-token prompt with 200 tokens, sampled
with T 0.7, top-k 40, top-p 0.9, repetition penalty 1.1. llama.cpp reads the published Q4_1 file, without an adapter, on one
thread and on as many as there are cores: node's own thread needs a core, so the better of the two counts. Transformers has the
adapter merged into the dequantized file, in bf16 and in float32.

Before any timing, our greedy tokens are compared with a float32 pass over the same weights, and llama.cpp's with our float32
pass over its own file.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qlora_chat.benchmark import SAMPLING, Subject
from qlora_chat.benchmark.check import check_subject
from qlora_chat.benchmark.environment import print_report
from qlora_chat.benchmark.measure import clear_prefix_cache, generate_together, total_rate
from qlora_chat.benchmark.original import generate
from qlora_chat.benchmark.reference import MAX_GAP, in_float32, logit_gaps
from qlora_chat.benchmark.subjects import Demo
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models.load import load
from qlora_chat.models.smollm2 import SMOLLM2, packaged_file
from qlora_chat.prompt import Prompt
from qlora_chat.settings import ModelSettings, quiet_libraries

NEW, ROUNDS, GREEDY_TOKENS = 200, 3, 64
CHAT = SAMPLING.changed(max_new_tokens=NEW)
EXACT = Subject(SMOLLM2, "cpu", "nf4")
MERGED = Subject(SMOLLM2, "cpu", "bf16")
LLAMA_CPP = Path(__file__).with_name("llama_cpp.mjs")


def ours(subject: Subject = EXACT) -> dict[str, float]:
    demo = Demo(subject)
    engine = LocalEngine(demo.load, slots=8)
    prompts = [Prompt("", demo.prompt(128, seed)) for seed in range(9)]
    generate_together(engine, prompts[8:], CHAT.changed(max_new_tokens=20))
    clear_prefix_cache(engine)
    one, eight = generate_together(engine, prompts[:1], CHAT), generate_together(engine, prompts[:8], CHAT)
    engine.close()
    end = one[0][-1].finish
    assert end is not None
    assert end.ttft_ms is not None
    return {"one": total_rate(one), "eight": total_rate(eight), "ttft_ms": end.ttft_ms}


def ours_merged() -> dict[str, float]:
    return ours(MERGED)


def llama_cpp(prompts: list[tuple[int, ...]], count: int, sampling: dict[str, float], threads: int) -> list[dict[str, Any]]:
    request = {"model": str(packaged_file()), "threads": threads, "prompts": prompts, "count": count, "sampling": sampling}
    run = subprocess.run(["node", str(LLAMA_CPP)], input=json.dumps(request), capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def llama(threads: int = 1) -> dict[str, float]:
    demo = Demo(EXACT)
    prompts = [demo.prompt(128, seed) for seed in range(8)]
    sampling = {"temperature": 0.7, "topK": 40, "topP": 0.9, "repeatPenalty": 1.1}
    one, eight = (llama_cpp(prompts[:chats], NEW, sampling, threads) for chats in (1, 8))

    def rate(answers: list[dict[str, Any]]) -> float:
        return sum((NEW - 1) / (each["total"] - each["first"]) for each in answers)

    return {"one": rate(one), "eight": rate(eight), "ttft_ms": 1000 * one[0]["first"]}


def llama_on_every_core() -> dict[str, float]:
    return llama(os.cpu_count() or 1)


def original(dtype: torch.dtype = torch.bfloat16) -> dict[str, float]:
    demo = Demo(EXACT)
    model = demo.load_original().to(dtype)
    generate(model, demo.prompt(128, 1), CHAT.changed(max_new_tokens=20), demo.device)
    answer = generate(model, demo.prompt(128, 0), CHAT, demo.device)
    return {"one": (NEW - 1) / (answer.total - answer.first), "ttft_ms": 1000 * answer.first}


def original_in_fp32() -> dict[str, float]:
    return original(torch.float32)


def check_ours() -> dict[str, Any]:
    """Compare our greedy tokens with a float32 pass over the same weights."""
    return asdict(check_subject(EXACT))


def check_llama_cpp() -> dict[str, Any]:
    """Compare llama.cpp's greedy tokens with our float32 pass over the dequantized file."""
    prompt = Demo(EXACT).prompt(128, 0)
    ids = llama_cpp([prompt], GREEDY_TOKENS, {}, 1)[0]["tokens"]
    weights = in_float32(
        load(ModelSettings(base=str(packaged_file()), device="cpu", precision="bf16"), lambda line: None).weights
    )
    logits = Forward(weights, KVCache(weights, 1))([Span(0, 0, [*prompt, *ids[:-1]], logits=len(ids))])
    gaps = logit_gaps(logits, ids)
    return {
        "passed": bool(gaps.median() == 0),
        "tokens": len(ids),
        "best": int((gaps == 0).sum()),
        "largest gap": gaps.max().item(),
    }


def child(name: str) -> dict[str, Any]:
    run = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{name} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    checks = {name: child(name) for name in ("check_ours", "check_llama_cpp")}
    if not all(each["passed"] for each in checks.values()):
        sys.exit(f"a path's greedy tokens are wrong, so timings would be worthless: {checks}")
    names = ("ours", "llama", "llama_on_every_core", "original", "original_in_fp32", "ours_merged")
    rounds = [{name: child(name) for name in names} for _ in range(ROUNDS)]

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"

    def ratio(peers: tuple[str, ...], key: str = "one") -> str:
        """Ours to the best of the peers, of each round."""
        return spread([each["ours"][key] / max(each[name][key] for name in peers) for each in rounds])

    report: dict[str, Any] = {"checks": checks, "allowed gap": MAX_GAP}
    for name in names:
        report[name] = {key: spread([each[name][key] for each in rounds]) for key in rounds[0][name]}
    report["one chat / llama.cpp's"] = ratio(("llama", "llama_on_every_core"))
    report["eight chats / llama.cpp's"] = ratio(("llama", "llama_on_every_core"), "eight")
    report["one chat / generate in bf16"] = ratio(("original",))
    report["one chat / generate in fp32"] = ratio(("original_in_fp32",))
    report["eight chats / one chat"] = spread([each["ours"]["eight"] / each["ours"]["one"] for each in rounds])
    print_report("smollm2", report)


if __name__ == "__main__":
    quiet_libraries()
    paths = {
        each.__name__: each
        for each in (ours, ours_merged, llama, llama_on_every_core, original, original_in_fp32, check_ours, check_llama_cpp)
    }
    if len(sys.argv) > 1:
        print(json.dumps(paths[sys.argv[1]]()))
    else:
        main()
