"""Unmerged adapters with the bundled base on this CPU against the same adapter merged: one chat, four chats, a prompt.

    python bench/cpu/adapters.py

For bf16 and NF4 a process has both engines and takes turns: the merged model; the base with four copies of the adapter under
four names, used by no chat, by one, or a different one by each of four. T 0.7, top-k 40, top-p 0.9, repetition penalty 1.1,
128-token prompts, medians of the turns' ratios. Before any timing, 256 greedy tokens with the adapter are compared with
torch's pass over the same values in float32. Then the pass alone, with LAYERS layers and the head of LLaMA-7B's shape in
random NF4 and an r = 64 adapter on every linear. Prints JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from engine import prompt_ids

from qlora_chat.benchmark.environment import print_report
from qlora_chat.models.locate import BUNDLED

NEW, TURNS, NAMES = 80, 9, ("a", "b", "c", "d")
LAYERS, RANK = 8, 64


def open_engine(dtype: str = "bfloat16", **settings: Any):
    """Open an engine; with a base, the adapter is loaded under four names."""
    import torch

    from qlora_chat.engines.local import LocalEngine
    from qlora_chat.models.load import load
    from qlora_chat.settings import ModelSettings, quiet_libraries

    quiet_libraries()
    chosen = ModelSettings(**settings, slots=4)
    engine = LocalEngine(lambda: load(chosen, lambda line: None, dtype=getattr(torch, dtype)))
    for name in NAMES if chosen.base else ():
        engine.load_adapter(name, BUNDLED / "adapter")
    return engine


def checked(precision: str, dtype: str = "bfloat16") -> dict[str, Any]:
    """Compare greedy tokens with an adapter with torch's pass over the same base and adapter in float32."""
    from qlora_chat.benchmark.measure import generate_together
    from qlora_chat.benchmark.reference import greedy_gaps, reference_forward
    from qlora_chat.prompt import Prompt
    from qlora_chat.settings import Sampling

    engine = open_engine(dtype, base=str(BUNDLED / "base"), precision=precision)
    prompt = prompt_ids(engine.tokenizer)
    greedy = Sampling(temperature=0.0, max_new_tokens=256)
    pieces = generate_together(engine, [Prompt("", prompt)], greedy, NAMES[:1])[0]
    generated = [piece.token_id for piece in pieces if piece.token_id is not None]
    engine.close()
    gaps = greedy_gaps(reference_forward(engine, BUNDLED / "adapter"), prompt, generated)
    return {"equal": int((gaps == 0).sum()), "of": len(generated), "largest gap": round(float(gaps.max()), 4)}


def timed(precision: str) -> list[dict[str, float]]:
    """Tokens/s of each turn: all chats together, after their first tokens; and milliseconds to the first."""
    from qlora_chat.benchmark import SAMPLING
    from qlora_chat.benchmark.measure import clear_prefix_cache, generate_together, total_rate
    from qlora_chat.prompt import Prompt

    merged, unmerged = (
        open_engine(model="demo", precision=precision),
        open_engine(base=str(BUNDLED / "base"), precision=precision),
    )
    prompt = Prompt("", prompt_ids(merged.tokenizer))
    sampling = SAMPLING.changed(max_new_tokens=NEW)

    def run(engine: Any, *adapters: str | None) -> tuple[float, float]:
        clear_prefix_cache(engine)
        answers: Any = generate_together(engine, [prompt] * len(adapters), sampling, adapters)
        return total_rate(answers), answers[0][-1].finish.ttft_ms

    def turn() -> dict[str, float]:
        one, first = run(merged, None)
        base, _ = run(unmerged, None)
        exact, exact_first = run(unmerged, "a")
        return {
            "one": one, "first": first, "base": base, "exact": exact, "exact_first": exact_first,
            "four": run(merged, *[None] * 4)[0], "shared": run(unmerged, *["a"] * 4)[0], "different": run(unmerged, *NAMES)[0],
        }  # fmt: skip

    turn()
    turns = [turn() for _ in range(TURNS)]
    merged.close()
    unmerged.close()
    return turns


def shape() -> list[dict[str, float]]:
    """Milliseconds of a pass over one token, and over four chats' tokens, at 200 positions of a 7B's layers."""
    import torch
    from llama_7b import FEED, HIDDEN, weights

    from qlora_chat.engines.core.forward_pass import Span, fused_names
    from qlora_chat.engines.core.kv_cache import KVCache
    from qlora_chat.engines.cpu import compiled_forward

    stored = weights(LAYERS)
    forward = compiled_forward(stored, KVCache(stored, 4, torch.float16), lambda line: None)
    assert forward, "the compiled pass cannot be had here"

    def matrices(name: str) -> tuple[Any, Any]:
        inputs = FEED if "down" in name else HIDDEN
        outputs = FEED if "gate" in name or "up" in name else HIDDEN
        return tuple((torch.randn(*size) / 64).bfloat16() for size in ((RANK, inputs), (outputs, RANK)))  # type: ignore[return-value]

    names = [name for index in range(LAYERS) for product in fused_names(index) for name in product]
    held = [forward.pack({name: matrices(name) for name in names}, 0.25) for _ in NAMES]

    def run(*loras: Any) -> float:
        for slot, lora in enumerate(loras):
            forward.cache.slots[slot].adapter = lora
        times = []
        for _ in range(3):
            began = time.perf_counter()
            forward([Span(slot, 200, [7]) for slot in range(len(loras))])
            times.append((time.perf_counter() - began) * 1000)
        return statistics.median(times)

    run(*held)
    none = [None] * 4
    return [
        {"one": run(None), "exact": run(held[0]), "four": run(*none), "shared": run(*held[:1] * 4), "different": run(*held)}
        for _ in range(2 * TURNS)
    ]


def child(name: str, *arguments: str) -> Any:
    run = subprocess.run([sys.executable, __file__, name, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def summary(turns: list[dict[str, float]]) -> dict[str, Any]:
    def ratio(a: str, b: str) -> float:
        return round(statistics.median(each[a] / each[b] for each in turns), 3)

    return {
        "merged, one chat, tokens/s": round(statistics.median(each["one"] for each in turns), 1),
        "base with idle adapters / merged": ratio("base", "one"),
        "one chat under an adapter / merged": ratio("exact", "one"),
        "its first token / merged's": ratio("exact_first", "first"),
        "merged, four chats, tokens/s": round(statistics.median(each["four"] for each in turns), 1),
        "four chats under one adapter / merged": ratio("shared", "four"),
        "four chats under four adapters / merged": ratio("different", "four"),
    }


def main() -> None:
    from qlora_chat.benchmark.reference import MAX_GAP

    figures: dict[str, Any] = {}
    in_fp32 = child("checked", "bf16", "float32")
    if in_fp32["equal"] < in_fp32["of"]:
        sys.exit(f"greedy tokens in float32 differ from torch's ({in_fp32}): timings would be worthless")
    figures["greedy tokens in float32 equal to torch's"] = f"{in_fp32['equal']} of {in_fp32['of']}"
    for precision in ("bf16", "nf4"):
        found = child("checked", precision)
        if found["largest gap"] > MAX_GAP:
            sys.exit(f"greedy tokens in {precision} are too far below the best ({found}): timings would be worthless")
        figures[precision] = {"greedy tokens against float32": found, **summary(child("timed", precision))}
    turns = child("shape")

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(each[a] / each[b] for each in turns), 3)

    figures[f"{LAYERS} layers of 7B's shape, NF4, speed of a pass / without adapters"] = {
        "one chat": ratio("one", "exact"),
        "four chats under one adapter": ratio("four", "shared"),
        "four chats under four adapters": ratio("four", "different"),
    }
    print_report("adapters", figures)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"checked": checked, "timed": timed, "shape": shape}[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
