"""`train --recipe demo` on the bundled base, a seed at a time: adapters to be chosen between by the hand-written questions.

    PYTHONPATH=src python3 bench/train_demo.py --data .carry/chat_train.jsonl.xz --out OUT [--seeds 0 1 2] [--set epochs=3 r=64]

The data is third-party and lies in an ignored folder (.carry/); it is never committed. Each seed is a run of its own in
OUT/seed-N, with a held-out loss; --set changes numbers of the recipe. Prints JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from common import hardware

from qlora_chat.training.recipe import read_recipe, settings_from
from qlora_chat.training.train import train

SMALL_FILES = ("adapter_model.safetensors", "adapter_config.json", "qlora_chat.json", "metrics.jsonl", "loss.png", "run.json")


def run(data: Path, out: Path, seed: int, more: list[str]) -> dict[str, Any]:
    """Train one adapter; seconds, losses, and the sha256 of its weights."""
    flags: dict[str, Any] = {"data": [str(data)], "seed": seed, "data_seed": seed + 42}
    flags |= {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in more)}
    begin = time.perf_counter()
    outcome = train(settings_from(read_recipe("demo"), flags), out, lambda line: print(line, file=sys.stderr, flush=True))
    if not outcome.finished:
        return {"seed": seed, "failed": f"stopped after step {outcome.step} of {outcome.steps}"}
    record = json.loads((out / "qlora_chat.json").read_text())
    return {
        "seed": seed,
        "seconds": round(time.perf_counter() - begin, 1),
        "steps": record["steps"],
        "loss": record["loss"],
        "held_out_loss": record["held_out_loss"],
        "sha256": hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest(),
    }


def keep_small_files(out: Path) -> None:
    """Checkpoints stay behind: what is carried home is the adapter and what tells of it."""
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    for path in out.iterdir():
        if path.name not in SMALL_FILES:
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], dest="more", help="name=value, a number of the recipe's")
    chosen = parser.parse_args()
    results = []
    for seed in chosen.seeds:
        out = chosen.out / f"seed-{seed}"
        results.append(run(chosen.data, out, seed, chosen.more))
        if "failed" not in results[-1]:
            keep_small_files(out)
        print(json.dumps(results[-1]), flush=True)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else hardware()
    print(json.dumps({"bench": "train_demo", "hardware": card, "torch": torch.__version__, "results": results}, indent=1))


if __name__ == "__main__":
    main()
