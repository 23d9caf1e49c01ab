"""LLaMA-7B's shape on a graphics card: load, merge, logits against plain Transformers and PEFT, then streaming.

    PYTHONPATH=src python3 bench/card/llama_7b.py [--layers N] [--folder F]

Random bf16 weights and a random r=64 adapter (see load_7b.py, whose figures are part of this). Sampling is T 0.7, top-k 40,
top-p 0.9, repetition penalty 1.1; 128-token prompts, 128 new tokens. `--layers 2` is a dry run for a machine without a card.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from load_7b import VOCABULARY, gib, room_for_nf4_only, run

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models.folders import Base
from qlora_chat.models.load import load
from qlora_chat.prompt import Prompt
from qlora_chat.settings import ModelSettings, Sampling
from qlora_chat.stopping import Stops

PROMPT, NEW, CHATS = 128, 128, 8
SETTINGS = Sampling(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, max_new_tokens=NEW)


def reference_logits(base: Path, adapter: Path, ids: list[int], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (V,) float32 of plain Transformers + bitsandbytes + PEFT after the ids: in bf16 as usually run, and with the
    same NF4 weights dequantized to float32, which is what both it and we approximate."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    where = {"": 0} if device == "cuda" else None
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=four_bits, dtype=torch.bfloat16, device_map=where)
    exact = PeftModel.from_pretrained(model.dequantize(torch.float32).float(), str(adapter)).eval()
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=four_bits, dtype=torch.bfloat16, device_map=where)
    plain = PeftModel.from_pretrained(model, str(adapter)).eval()
    inputs = torch.tensor([ids], device=device)
    with torch.inference_mode():
        return plain(inputs).logits[0, -1].float().cpu(), exact(inputs).logits[0, -1].float().cpu()


def agreement(expected: torch.Tensor, logits: torch.Tensor) -> dict[str, float]:
    """Relative error and KL(expected || logits), in nats."""
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="sum")
    return {"relative": round(((logits - expected).norm() / expected.norm()).item(), 5), "kl": float(f"{kl.item():.2e}")}


def check(forward: Forward, expected: torch.Tensor, ids: list[int]) -> dict[str, Any]:
    """The same ids as one prompt, in chunks, and as the last token of several chats decoded together."""
    whole = forward([Span(0, 0, ids)])[0].cpu()
    for slot, cut in ((0, 50), (1, 1)):
        forward([Span(slot, 0, ids[:cut])])
        forward([Span(slot, cut, ids[cut:-1])])
    forward([Span(2, 0, ids[:20])])
    last = len(ids) - 1
    together = forward([Span(0, last, ids[last:]), Span(1, last, ids[last:]), Span(2, 20, ids[20:21])]).cpu()
    ways = {"whole": whole, "chunks": together[0], "token": together[1]}
    return {name: agreement(expected, each) for name, each in ways.items()}


def stream_figures(engine: LocalEngine) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def prompt() -> Prompt:
        return Prompt("", tuple(torch.randint(5, VOCABULARY, (PROMPT,), generator=generator).tolist()))

    def finishes(count: int) -> list[Any]:
        streams = [engine.stream(prompt(), SETTINGS, Stops()) for _ in range(count)]
        return [list(stream)[-1].finish for stream in streams]

    finishes(1)
    one, many = [finishes(1)[0] for _ in range(3)], finishes(min(CHATS, engine.slots))
    return {
        "slots": engine.slots,
        "one chat, tokens/s": round(sorted(each.tokens_per_s for each in one)[1], 1),
        "first token after 128, ms": round(sorted(each.ttft_ms for each in one)[1], 1),
        f"{len(many)} chats, tokens/s in total": round(sum(each.tokens_per_s for each in many), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        folder = Path(temporary)
        result = {"load": run(folder, chosen.layers, device)}
        print(json.dumps(result["load"], indent=1), flush=True)
        os.environ["QLORA_CHAT_CACHE"] = str(folder / "cache")
        base, adapter = folder / "base", folder / "adapter"
        ids = torch.randint(5, VOCABULARY, (200,), generator=torch.Generator().manual_seed(0)).tolist()
        plain, exact = reference_logits(base, adapter, ids, device)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        memory = room_for_nf4_only(Base.read(base), device)
        settings = ModelSettings(base=str(base), adapter=str(adapter))
        model = load(settings, lambda line: None, devices=(memory,))
        figures: dict[str, Any] = {"precision": model.info.precision}
        with torch.inference_mode():
            figures["against float32"] = {"plain Transformers + PEFT, bf16": agreement(exact, plain)}
            figures["against float32"] |= check(Forward(model.weights, KVCache(model.weights, 3)), exact, ids)
        print(json.dumps(figures), flush=True)
        gc.collect()
        engine = LocalEngine(lambda: model, slots=1)
        figures["streaming, 1 slot"] = stream_figures(engine)
        engine.close()
        if device == "cuda":
            figures["card, 1 slot, peak GiB"] = gib(torch.cuda.max_memory_allocated())
        engine = LocalEngine(lambda: model, slots=CHATS)
        figures[f"streaming, {CHATS} slots"] = stream_figures(engine)
        engine.close()
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
