"""The engine on a card with the bundled demo: greedy answers of up to 33 concurrent chats, token by token against float32.

    PYTHONPATH=src python bench/card/engine.py [--precisions bf16,nf4] [--chats 1,4,16,33]

First the merged model; then the base with unmerged adapters in one batch: none, the bundled one, and the same at half and at
minus a quarter of its strength, so that a chat with the wrong adapter is detected. Every token must be torch's best in float32
over the same values, or be within MAX_GAP of it in logits, as in `qlora-chat bench`. Prints the agreement for each number
of chats, and their total tokens/s with the page's sampling; exits with 1 if a token is outside.
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
from safetensors.torch import load_file, save_file

from qlora_chat.benchmark import SAMPLING, Subject
from qlora_chat.benchmark.environment import print_report
from qlora_chat.benchmark.measure import generate_together, total_rate
from qlora_chat.benchmark.reference import MAX_GAP, greedy_gaps, reference_forward
from qlora_chat.benchmark.subjects import Demo
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.prompt import Prompt
from qlora_chat.settings import ModelSettings, Sampling, quiet_libraries

NEW = 96
GREEDY = Sampling(temperature=0.0, max_new_tokens=NEW)
CHAT = SAMPLING.changed(max_new_tokens=NEW)
STRENGTHS = {"whole": 1.0, "half": 0.5, "against": -0.25}
ADAPTERS = (None, *STRENGTHS)


def scaled_adapters(folder: Path) -> dict[str, Path]:
    """The bundled adapter at several strengths, a folder each."""
    tensors, config = load_file(BUNDLED / "adapter/adapter_model.safetensors"), (BUNDLED / "adapter/adapter_config.json")
    for name, strength in STRENGTHS.items():
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(config.read_text())
        parts = {key: value * strength if "lora_B" in key else value for key, value in tensors.items()}
        save_file(parts, folder / name / "adapter_model.safetensors")
    return {name: folder / name for name in STRENGTHS}


def compared(engine: LocalEngine, demo: Demo, folders: dict[str, Path], counts: Sequence[int]) -> dict[str, Any]:
    forwards = {name: reference_forward(engine, folders.get(name or "")) for name in (ADAPTERS if folders else (None,))}
    figures, seed = {}, 0
    for count in counts:
        names = [(ADAPTERS if folders else (None,))[(chat + 1) % len(forwards)] for chat in range(count)]
        prompts = [Prompt("", demo.prompt(40 + 3 * chat, seed := seed + 1)) for chat in range(count)]
        gaps = []
        for prompt, name, pieces in zip(prompts, names, generate_together(engine, prompts, GREEDY, names), strict=True):
            generated = [piece.token_id for piece in pieces if piece.token_id is not None]
            gaps.append(greedy_gaps(forwards[name], prompt.ids, generated))
        together = torch.cat(gaps)
        timed = generate_together(engine, prompts, CHAT, names)
        figures[f"{count} chats"] = {
            "best": int((together == 0).sum()), "of": len(together), "largest gap": round(together.max().item(), 4),
            "ok": together.max().item() <= MAX_GAP and len(together) == count * NEW,
            "tokens/s": round(total_rate(timed)),
        }  # fmt: skip
        print(json.dumps(figures[f"{count} chats"]), file=sys.stderr, flush=True)
    return figures


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
            for unmerged in (False, True):
                names = {"base": str(BUNDLED / "base")} if unmerged else {"model": "demo"}
                settings = ModelSettings(**names, precision=precision, slots=max(counts))  # type: ignore[arg-type]
                engine = LocalEngine(lambda settings=settings: load(settings, lambda line: None), settings.slots, print)
                for name, folder in folders.items() if unmerged else ():
                    engine.load_adapter(name, folder)
                what = f"{precision}, {'four ways of adapters' if unmerged else 'merged'}"
                figures[what] = {"computed by": engine.info.computed_by}
                figures[what] |= compared(engine, demo, folders if unmerged else {}, counts)
                engine.close()
    print_report("card/engine", figures)
    if not all(each["ok"] for part in figures.values() for each in part.values() if isinstance(each, dict)):
        sys.exit("a greedy token is farther below the best one than rounding explains")


if __name__ == "__main__":
    main()
