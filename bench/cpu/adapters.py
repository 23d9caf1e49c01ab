"""Adapters beside the bundled base on this CPU, unmerged, against the same adapter merged: one chat, four chats, a prompt.

    python bench/adapters.py

For bf16 and NF4 a process holds both engines and takes turns: the merged model; the base with four copies of the adapter
under four names, of which nobody, one chat, or each of four chats asks for one. T 0.7, top-k 40, top-p 0.9, repetition
penalty 1.1, 128-token prompts, medians of the turns' ratios. Before any timing, 256 greedy tokens under the adapter are held
against torch's pass over the same values in float32. Then LAYERS layers and the head of LLaMA-7B's shape in NF4, random,
with an r = 64 adapter on every linear: the pass alone. Prints JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import report
from engine import prompt_ids

BUNDLED = Path(__file__).parents[1] / "src/qlora_chat/bundled"
NEW, TURNS, NAMES = 80, 9, ("a", "b", "c", "d")
LAYERS, RANK = 8, 64
BEHIND = 0.25
"""Logits by which a greedy token may lie behind the best in float32: `bench` allows as much."""


def opened(dtype: str = "bfloat16", **settings: Any):
    """An engine; the adapter's four names where the settings have a base."""
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
    """Greedy tokens under an adapter, against the same base and adapter in float32 through torch."""
    from plain import behind, plain_pass

    from qlora_chat.prompt import Prompt
    from qlora_chat.settings import Sampling
    from qlora_chat.stopping import Stops

    engine = opened(dtype, base=str(BUNDLED / "base"), precision=precision)
    prompt = prompt_ids(engine.tokenizer)
    stream = engine.stream(Prompt("", tuple(prompt)), Sampling(temperature=0.0, max_new_tokens=256), Stops(), NAMES[0])
    said = [piece.token_id for piece in stream if piece.token_id is not None]
    engine.close()
    gaps = behind(plain_pass(engine, BUNDLED / "adapter"), prompt, said)
    return {"equal": int((gaps == 0).sum()), "of": len(said), "behind": round(float(gaps.max()), 4)}


def timed(precision: str) -> list[dict[str, float]]:
    """Tokens/s of each turn: all chats together, after their first tokens; and milliseconds to the first."""
    from qlora_chat.prompt import Prompt
    from qlora_chat.settings import Sampling
    from qlora_chat.stopping import Stops

    merged, beside = opened(model="demo", precision=precision), opened(base=str(BUNDLED / "base"), precision=precision)
    prompt = Prompt("", tuple(prompt_ids(merged.tokenizer)))
    sampling = Sampling(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, max_new_tokens=NEW)

    def run(engine: Any, *adapters: str | None) -> tuple[float, float]:
        for slot in engine._cache.slots:
            slot.ids.clear()  # so that the prompt is read again
        streams = [engine.stream(prompt, sampling, Stops(), adapter) for adapter in adapters]
        finishes = [list(stream)[-1].finish for stream in streams]
        return sum(each.tokens_per_s for each in finishes), finishes[0].ttft_ms

    def turn() -> dict[str, float]:
        one, first = run(merged, None)
        base, _ = run(beside, None)
        exact, exact_first = run(beside, "a")
        return {
            "one": one, "first": first, "base": base, "exact": exact, "exact_first": exact_first,
            "four": run(merged, *[None] * 4)[0], "shared": run(beside, *["a"] * 4)[0], "different": run(beside, *NAMES)[0],
        }  # fmt: skip

    turn()
    turns = [turn() for _ in range(TURNS)]
    merged.close()
    beside.close()
    return turns


def shape() -> list[dict[str, float]]:
    """Milliseconds of a pass over one token, and over four chats' tokens, at 200 positions of a 7B's layers."""
    import torch
    from cpu_7b import FEED, HIDDEN, weights

    from qlora_chat.engines.core.kv_cache import KVCache
    from qlora_chat.engines.cpu import compiled_forward
    from qlora_chat.engines.cpu.lora import beside_products
    from qlora_chat.engines.eager.forward import Span

    stored = weights(LAYERS)
    forward = compiled_forward(stored, KVCache(stored, 4, torch.float16), lambda line: None)
    assert forward, "the compiled pass cannot be had here"

    def matrices(name: str) -> tuple[Any, Any]:
        inputs = FEED if "down" in name else HIDDEN
        outputs = FEED if "gate" in name or "up" in name else HIDDEN
        return tuple((torch.randn(*size) / 64).bfloat16() for size in ((RANK, inputs), (outputs, RANK)))  # type: ignore[return-value]

    names = [name for product in beside_products(LAYERS)[:-1] for name in product]
    held = [forward.hold({name: matrices(name) for name in names}, 0.25) for _ in NAMES]

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
        "base alone beside loaded adapters / merged": ratio("base", "one"),
        "one chat under an adapter / merged": ratio("exact", "one"),
        "its first token / merged's": ratio("exact_first", "first"),
        "merged, four chats, tokens/s": round(statistics.median(each["four"] for each in turns), 1),
        "four chats under one adapter / merged": ratio("shared", "four"),
        "four chats under four adapters / merged": ratio("different", "four"),
    }


def main() -> None:
    figures: dict[str, Any] = {}
    in_fp32 = child("checked", "bf16", "float32")
    if in_fp32["equal"] < in_fp32["of"]:
        sys.exit(f"greedy tokens in float32 differ from torch's ({in_fp32}): no timing is worth anything")
    figures["greedy tokens in float32 equal to torch's"] = f"{in_fp32['equal']} of {in_fp32['of']}"
    for precision in ("bf16", "nf4"):
        found = child("checked", precision)
        if found["behind"] > BEHIND:
            sys.exit(f"greedy tokens in {precision} lie behind the best ({found}): no timing is worth anything")
        figures[precision] = {"greedy tokens against float32": found, **summary(child("timed", precision))}
    turns = child("shape")

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(each[a] / each[b] for each in turns), 3)

    figures[f"{LAYERS} layers of 7B's shape, NF4, speed of a pass / without adapters"] = {
        "one chat": ratio("one", "exact"),
        "four chats under one adapter": ratio("four", "shared"),
        "four chats under four adapters": ratio("four", "different"),
    }
    report("adapters", figures)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"checked": checked, "timed": timed, "shape": shape}[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
