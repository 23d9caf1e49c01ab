"""The bundled demo on this CPU: our engine against plain `generate`, one chat and eight.

    python bench/engine.py

Each path runs in a process of its own, in turns, three times; medians. Both hold the same merged bf16 weights and sample with
T 0.7, top-k 40, top-p 0.9, repetition penalty 1.1, 200 new tokens after a 128-token prompt. Before any timing, the engine's
greedy tokens in fp32 are compared with generate's.
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

NEW, ROUNDS = 200, 3
SETTINGS: dict[str, Any] = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}
QUESTION = "Tell me a short story about a cat and a boat. " * 12


def prompt_ids(tokenizer) -> list[int]:
    return [1, *tokenizer.encode(f"### Human: {QUESTION}")][:123] + tokenizer.encode_continuation("### Assistant:")


def plain(dtype: str = "bfloat16"):
    """The original's path: Transformers, PEFT, merge_and_unload."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    bundled = Path(__file__).parents[1] / "src/qlora_chat/bundled"
    base = AutoModelForCausalLM.from_pretrained(bundled / "base", dtype=torch.bfloat16).dequantize().to(torch.bfloat16)
    return PeftModel.from_pretrained(base, str(bundled / "adapter")).merge_and_unload().to(getattr(torch, dtype)).eval()


def tokenizer():
    from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer

    return ModelTokenizer.read(Path(__file__).parents[1] / "src/qlora_chat/bundled/base", bos_id=1)


def original(dtype: str = "bfloat16") -> dict[str, float]:
    import torch

    model, ids = plain(dtype), torch.tensor([prompt_ids(tokenizer())])
    run: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "do_sample": True, "pad_token_id": 0, "eos_token_id": None}
    run |= SETTINGS
    model.generate(ids, max_new_tokens=20, **run)
    began = time.perf_counter()
    model.generate(ids, max_new_tokens=1, **run)
    first = time.perf_counter() - began
    began = time.perf_counter()
    model.generate(ids, max_new_tokens=NEW, **run)
    return {"one": (NEW - 1) / (time.perf_counter() - began - first), "ttft_ms": first * 1000}


def open_local(dtype: str = "bfloat16"):
    import torch

    from qlora_chat.engines.local import LocalEngine
    from qlora_chat.models.load import load
    from qlora_chat.settings import ModelSettings, quiet_libraries

    quiet_libraries()
    return LocalEngine(lambda: load(ModelSettings(model="demo"), lambda line: None, dtype=getattr(torch, dtype)))


def ours() -> dict[str, float]:
    from qlora_chat.prompt import Prompt
    from qlora_chat.settings import Sampling
    from qlora_chat.stopping import Stops

    engine = open_local()
    prompt, sampling = Prompt("", tuple(prompt_ids(engine.tokenizer))), Sampling(**SETTINGS, max_new_tokens=NEW)
    list(engine.stream(prompt, sampling.changed(max_new_tokens=20), Stops()))
    for slot in engine._cache.slots:
        slot.ids.clear()  # so that the prompt is read again

    def finishes(count: int) -> list[Any]:
        streams = [engine.stream(prompt, sampling, Stops()) for _ in range(count)]
        return [list(stream)[-1].finish for stream in streams]

    one, eight = finishes(1)[0], finishes(8)
    engine.close()
    return {"one": one.tokens_per_s, "ttft_ms": one.ttft_ms, "eight": sum(each.tokens_per_s for each in eight)}


def same_tokens() -> int:
    """Greedy tokens that agree with generate's, of 256, in fp32."""
    import torch

    from qlora_chat.prompt import Prompt
    from qlora_chat.settings import Sampling
    from qlora_chat.stopping import Stops

    engine, model = open_local("float32"), plain("float32")
    prompt = prompt_ids(engine.tokenizer)
    stream = engine.stream(Prompt("", tuple(prompt)), Sampling(temperature=0.0, max_new_tokens=256), Stops())
    mine = [piece.token_id for piece in stream]
    ids = torch.tensor([prompt])
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=256, pad_token_id=0, eos_token_id=None
    )[0, len(prompt) :].tolist()
    engine.close()
    return next((index for index, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), 256)


def original_in_fp32() -> dict[str, float]:
    """A favour to a CPU without bf16 instructions, which the original demo does not do it."""
    return original("float32")


def child(name: str):
    run = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    agree = child("same_tokens")
    if agree < 256:
        sys.exit(f"greedy tokens differ from generate's at {agree}: no timing is worth anything")
    rounds = [(child("original"), child("ours"), child("original_in_fp32")) for _ in range(ROUNDS)]

    def middle(side: int, key: str) -> float:
        return statistics.median(each[side][key] for each in rounds)

    report(
        "engine",
        {
            "greedy tokens equal to generate's": f"{agree} of 256 (fp32)",
            "generate, tokens/s": round(middle(0, "one"), 1),
            "one chat, tokens/s": round(middle(1, "one"), 1),
            "one chat / generate": round(statistics.median(o["one"] / g["one"] for g, o, _ in rounds), 2),
            "generate in fp32, tokens/s": round(middle(2, "one"), 1),
            "one chat / generate in fp32": round(statistics.median(o["one"] / g["one"] for _, o, g in rounds), 2),
            "eight chats, tokens/s in total": round(middle(1, "eight"), 1),
            "eight chats / one chat": round(statistics.median(o["eight"] / o["one"] for _, o, _ in rounds), 2),
            "first token after 128, ms": round(middle(1, "ttft_ms"), 1),
            "generate's first token, ms": round(middle(0, "ttft_ms"), 1),
        },
    )


if __name__ == "__main__":
    paths = {each.__name__: each for each in (original, original_in_fp32, ours, same_tokens)}
    if len(sys.argv) > 1:
        print(json.dumps(paths[sys.argv[1]]()))
    else:
        main()
