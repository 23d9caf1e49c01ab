"""The bundled demo on this CPU: our engine against Transformers' `generate`, one chat and eight.

    python bench/cpu/engine.py

Each path runs in a process of its own, in turns, three times; medians. Both use the same merged bf16 weights and sample with
T 0.7, top-k 40, top-p 0.9, repetition penalty 1.1, 200 new tokens after a 128-token prompt. Before any timing, the engine's
greedy tokens in fp32 are compared with generate's.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import torch

from qlora_chat.benchmark import SAMPLING
from qlora_chat.benchmark.environment import print_report
from qlora_chat.benchmark.measure import clear_prefix_cache, generate_together, total_rate
from qlora_chat.benchmark.original import generate, merged_model
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import Prompt
from qlora_chat.settings import ModelSettings, Sampling, quiet_libraries

NEW, ROUNDS, GREEDY_TOKENS = 200, 3, 256
CHAT = SAMPLING.changed(max_new_tokens=NEW)
QUESTION = "Tell me a short story about a cat and a boat. " * 12
CPU = torch.device("cpu")


def prompt_ids(tokenizer: ModelTokenizer) -> tuple[int, ...]:
    return (*[1, *tokenizer.encode(f"### Human: {QUESTION}")][:123], *tokenizer.encode_continuation("### Assistant:"))


def open_local(dtype: str = "bfloat16") -> LocalEngine:
    quiet_libraries()
    return LocalEngine(lambda: load(ModelSettings(model="demo"), lambda line: None, dtype=getattr(torch, dtype)))


def original(dtype: str = "bfloat16") -> dict[str, float]:
    model = merged_model(BUNDLED / "base", BUNDLED / "adapter", CPU).to(getattr(torch, dtype))
    prompt = prompt_ids(ModelTokenizer.read(BUNDLED / "base", bos_id=1))
    generate(model, prompt, CHAT.changed(max_new_tokens=20), CPU)
    answer = generate(model, prompt, CHAT, CPU)
    return {"one": (NEW - 1) / (answer.total - answer.first), "ttft_ms": answer.first * 1000}


def original_in_fp32() -> dict[str, float]:
    """A favour to a CPU without bf16 instructions; the original demo uses bf16 there, too."""
    return original("float32")


def ours() -> dict[str, float]:
    engine = open_local()
    prompt = Prompt("", prompt_ids(engine.tokenizer))
    generate_together(engine, [prompt], CHAT.changed(max_new_tokens=20))
    clear_prefix_cache(engine)
    one, eight = generate_together(engine, [prompt], CHAT), generate_together(engine, [prompt] * 8, CHAT)
    engine.close()
    end = one[0][-1].finish
    assert end is not None
    assert end.ttft_ms is not None
    return {"one": total_rate(one), "ttft_ms": end.ttft_ms, "eight": total_rate(eight)}


def same_tokens() -> int:
    """Return the number of greedy tokens that agree with generate's, of 256, in fp32."""
    engine, model = open_local("float32"), merged_model(BUNDLED / "base", BUNDLED / "adapter", CPU).float()
    prompt = prompt_ids(engine.tokenizer)
    pieces = generate_together(engine, [Prompt("", prompt)], Sampling(temperature=0.0, max_new_tokens=GREEDY_TOKENS))[0]
    engine.close()
    ids = torch.tensor([prompt])
    greedy = {"do_sample": False, "max_new_tokens": GREEDY_TOKENS, "pad_token_id": 0, "eos_token_id": None}
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
    pairs = zip((piece.token_id for piece in pieces), whole[0, len(prompt) :].tolist(), strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), GREEDY_TOKENS)


def child(name: str):
    run = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    agree = child("same_tokens")
    if agree < GREEDY_TOKENS:
        sys.exit(f"greedy tokens differ from generate's at {agree}: timings would be worthless")
    rounds = [(child("original"), child("ours"), child("original_in_fp32")) for _ in range(ROUNDS)]

    def median(side: int, key: str) -> float:
        return statistics.median(each[side][key] for each in rounds)

    print_report(
        "engine",
        {
            "greedy tokens equal to generate's": f"{agree} of {GREEDY_TOKENS} (fp32)",
            "generate, tokens/s": round(median(0, "one"), 1),
            "one chat, tokens/s": round(median(1, "one"), 1),
            "one chat / generate": round(statistics.median(o["one"] / g["one"] for g, o, _ in rounds), 2),
            "generate in fp32, tokens/s": round(median(2, "one"), 1),
            "one chat / generate in fp32": round(statistics.median(o["one"] / g["one"] for _, o, g in rounds), 2),
            "eight chats, tokens/s in total": round(median(1, "eight"), 1),
            "eight chats / one chat": round(statistics.median(o["eight"] / o["one"] for _, o, _ in rounds), 2),
            "first token after 128, ms": round(median(1, "ttft_ms"), 1),
            "generate's first token, ms": round(median(0, "ttft_ms"), 1),
        },
    )


if __name__ == "__main__":
    paths = {each.__name__: each for each in (original, original_in_fp32, ours, same_tokens)}
    if len(sys.argv) > 1:
        print(json.dumps(paths[sys.argv[1]]()))
    else:
        main()
