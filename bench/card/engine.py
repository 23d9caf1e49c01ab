"""The whole engine on a card with the bundled demo: greedy answers of up to 33 chats at once, token by token before float32.

    PYTHONPATH=src python bench/engine_card.py [--precisions bf16,nf4] [--chats 1,4,16,33]

The merged model; then the base with, in turn, no adapter, the bundled one, and the same at half and at minus a quarter of its
strength beside each other, so that a chat under another's adapter shows. Every token must be torch's best in float32 over the
same values, or lie within BEHIND of it in logits, as `bench` allows. Prints what each number of chats gave, and the tokens/s of
all together with the page's sampling; ends with 1 where a token lies farther behind.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from adapters import BEHIND, BUNDLED
from common import report
from engine import SETTINGS
from plain import behind, plain_pass
from safetensors.torch import load_file, save_file

from qlora_chat.benchmark import Subject
from qlora_chat.benchmark.subjects import Demo
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models.load import load
from qlora_chat.prompt import Prompt
from qlora_chat.settings import ModelSettings, Sampling, quiet_libraries
from qlora_chat.stopping import Stops

NEW = 96
GREEDY = Sampling(temperature=0.0, max_new_tokens=NEW)
CHAT = Sampling(**SETTINGS, max_new_tokens=NEW)
STRENGTHS = {"whole": 1.0, "half": 0.5, "against": -0.25}
PLACES = (None, *STRENGTHS)


def scaled_adapters(folder: Path) -> dict[str, Path]:
    """The bundled adapter at several strengths, a folder each."""
    tensors, config = load_file(BUNDLED / "adapter/adapter_model.safetensors"), (BUNDLED / "adapter/adapter_config.json")
    for name, strength in STRENGTHS.items():
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(config.read_text())
        parts = {key: value * strength if "lora_B" in key else value for key, value in tensors.items()}
        save_file(parts, folder / name / "adapter_model.safetensors")
    return {name: folder / name for name in STRENGTHS}


def answers(engine: LocalEngine, prompts: Sequence[Prompt], names: Sequence[str | None], sampling: Sampling) -> list[list[Any]]:
    streams = [engine.stream(prompt, sampling, Stops(), name) for prompt, name in zip(prompts, names, strict=True)]
    return [list(stream) for stream in streams]


def compared(engine: LocalEngine, demo: Demo, folders: dict[str, Path], counts: Sequence[int]) -> dict[str, Any]:
    forwards = {name: plain_pass(engine, folders.get(name or "")) for name in (PLACES if folders else (None,))}
    found, seed = {}, 0
    for count in counts:
        names = [(PLACES if folders else (None,))[(chat + 1) % len(forwards)] for chat in range(count)]
        prompts = [Prompt("", demo.prompt(40 + 3 * chat, seed := seed + 1)) for chat in range(count)]
        gaps = []
        for prompt, name, pieces in zip(prompts, names, answers(engine, prompts, names, GREEDY), strict=True):
            said = [piece.token_id for piece in pieces if piece.token_id is not None]
            gaps.append(behind(forwards[name], prompt.ids, said))
        together = torch.cat(gaps)
        timed = answers(engine, prompts, names, CHAT)
        found[f"{count} chats"] = {
            "best": int((together == 0).sum()), "of": len(together), "largest gap": round(together.max().item(), 4),
            "ok": together.max().item() <= BEHIND and len(together) == count * NEW,
            "tokens/s": round(sum(pieces[-1].finish.tokens_per_s for pieces in timed)),
        }  # fmt: skip
        print(json.dumps(found[f"{count} chats"]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precisions", default="bf16,nf4")
    parser.add_argument("--chats", default="1,4,16,33")
    chosen = parser.parse_args()
    quiet_libraries()
    counts = [int(each) for each in chosen.chats.split(",")]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = scaled_adapters(Path(scratch))
        for precision in chosen.precisions.split(","):
            demo = Demo(Subject("demo", "auto", precision))
            for beside in (False, True):
                names = {"base": str(BUNDLED / "base")} if beside else {"model": "demo"}
                settings = ModelSettings(**names, precision=precision, slots=max(counts))  # type: ignore[arg-type]
                engine = LocalEngine(lambda settings=settings: load(settings, lambda line: None), settings.slots, print)
                for name, folder in folders.items() if beside else ():
                    engine.load_adapter(name, folder)
                what = f"{precision}, {'four ways of adapters' if beside else 'merged'}"
                figures[what] = {"computed by": engine.info.computed_by}
                figures[what] |= compared(engine, demo, folders if beside else {}, counts)
                engine.close()
    report("engine_card", figures)
    if not all(each["ok"] for part in figures.values() for each in part.values() if isinstance(each, dict)):
        sys.exit("a greedy token lies farther behind the best than rounding explains")


if __name__ == "__main__":
    main()
