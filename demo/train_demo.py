"""`train --recipe demo` on the bundled base with several seeds at once, each scored against the bundled adapter.

    python3 demo/carry_demo.py DATA BITSANDBYTES_WHEEL        # on a machine with network: fills .carry/
    PYTHONPATH=src:.carry/site python3 demo/train_demo.py [--seeds 0 1 2] [--set epochs=3 r=64]      # on the card
    PYTHONPATH=src python3 demo/train_demo.py --data examples/dialogues.jsonl --rehearse        # minutes without a card

A 45 M model leaves a card idle between launches (2,312 steps of some thousand kernels each: an estimated minute of launching
per seed, and a third of that of computing), so the seeds run at the same time, each in its own process, and the bundled adapter
is scored with them on the same machine. Each run is in --work; the same command continues it from its newest checkpoint after
an interruption or --seconds. Results go to --out (default $OUT): a JSON report, and for each part a .tar with the adapter, its
record, metrics, plot and every answer.

The rule, written before any training: the seed with the least held-out loss is selected, so that the questions select nothing;
it replaces the bundled adapter if it has more right answers both greedily and on average over the sampled runs. The data is
third-party and in an ignored folder; it is never committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from side_by_side import start, wait_for

from qlora_chat.benchmark.environment import hardware
from qlora_chat.models.locate import BUNDLED

ROOT = Path(__file__).parents[1]
FILES = ("adapter_model.safetensors", "adapter_config.json", "qlora_chat.json", "metrics.jsonl", "loss.png", "run.json",
        "questions.json", "log.txt")  # fmt: skip
SAMPLED = 5
REHEARSAL = {"steps": 6, "batch": 4, "save_every": 2, "held_out": 0.01}
DONE = "done.json"


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


# --- one seed, in a process of its own --------------------------------------------------------------------------------


def train_and_score(chosen: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Train in `folder` or continue the run there, then ask the questions."""
    from qlora_chat.training.recipe import read_recipe, settings_from
    from qlora_chat.training.run_record import open_run
    from qlora_chat.training.train import train

    flags: dict[str, Any] = {"data": [str(each) for each in chosen.data], "seed": seed, "data_seed": seed + 42}
    flags |= REHEARSAL if chosen.rehearse else {}
    flags |= {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in chosen.more)}
    begin, run = time.perf_counter(), open_run(folder, resume=True)
    outcome = train(settings_from(read_recipe("demo"), flags), run, log)
    if not outcome.finished:
        raise SystemExit(f"stopped after step {outcome.step} of {outcome.steps}; the same command continues it")
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "seed": seed, "resumed": run.resumed, "steps": outcome.steps, "seconds": round(time.perf_counter() - begin, 1),
        "tokens_per_s": max(each["tokens_per_s"] for each in steps if "tokens_per_s" in each), "loss": outcome.loss,
        "held_out_loss": outcome.held_out_loss,
        "sha256": hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest(),
        **score(chosen, folder, folder),
    }  # fmt: skip


def score(chosen: argparse.Namespace, adapter: Path, folder: Path) -> dict[str, Any]:
    """Ask the hand-written questions greedily and with each seed; every answer goes into questions.json."""
    from qlora_chat.chat import Chat
    from qlora_chat.engines.open import open_engine
    from qlora_chat.evaluation.questions import HAND_WRITTEN, read_questions
    from qlora_chat.evaluation.report import write
    from qlora_chat.evaluation.run import run_questions
    from qlora_chat.history.memory import MemoryHistory
    from qlora_chat.prompt import find_prompt_format
    from qlora_chat.settings import ModelSettings

    questions = read_questions(HAND_WRITTEN)[:: 20 if chosen.rehearse else 1]
    engine = open_engine(ModelSettings(base=str(BUNDLED / "base"), adapter=str(adapter), precision="bf16", slots=1), log)
    try:
        chat = Chat(engine, find_prompt_format(engine.info.prompt_format), MemoryHistory())
        report = run_questions(chat, questions, HAND_WRITTEN, range(1 if chosen.rehearse else SAMPLED), log)
    finally:
        engine.close()
    write(folder, "questions", report)
    greedy, *sampled = [run.score.right for run in report.runs]
    kinds = {kind: [run.score.by_kind[kind][0] for run in report.runs] for kind in report.runs[0].score.by_kind}
    return {"asked": len(questions), "greedy": greedy, "sampled": sampled, "mean": round(fmean(sampled), 2), "by kind": kinds}


# --- all of them -------------------------------------------------------------------------------------------------------


def start_part(chosen: argparse.Namespace, name: str) -> subprocess.Popen[bytes]:
    """Start this script for one part, with its output in NAME.log."""
    (chosen.work / name).mkdir(parents=True, exist_ok=True)
    return start([sys.executable, *sys.argv, "--part", name], chosen.work / f"{name}.log", chosen.work / "cache" / name)


def run_part(chosen: argparse.Namespace, name: str) -> None:
    """Run one seed, or score the bundled adapter; skip a part that is done."""
    folder = chosen.work / name
    run = folder / "run"
    if (folder / DONE).is_file():
        return
    if name == "before":
        result = score(chosen, BUNDLED / "adapter", folder)
    else:
        result = train_and_score(chosen, int(name.removeprefix("seed-")), run)
    (folder / DONE).write_text(json.dumps(result))


def collect(chosen: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return a part's result and write its files into a tar; return the end of its log if it failed."""
    folder = chosen.work / name
    log = chosen.work / f"{name}.log"
    if not (folder / DONE).is_file():
        return {"failed": log.read_text(errors="replace")[-1500:]}
    with tarfile.open(chosen.out / f"{name}.tar", "w") as tar:
        tar.add(log, f"{name}/log.txt")
        for path in [*folder.iterdir(), *((folder / "run").iterdir() if (folder / "run").is_dir() else ())]:
            if path.name in FILES:
                tar.add(path, f"{name}/{path.name}")
    return json.loads((folder / DONE).read_text())


def verdict(before: dict[str, Any], seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Apply the rule in this module's docstring."""
    finished = [each for each in seeds if "failed" not in each]
    if "failed" in before or len(finished) < len(seeds):
        return {"replace": False, "why": "not every part is finished: repeat the command"}
    best = min(finished, key=lambda each: each["held_out_loss"])
    better = best["greedy"] > before["greedy"] and best["mean"] > before["mean"]
    figures = f"greedily {before['greedy']} -> {best['greedy']}, sampled {before['mean']} -> {best['mean']}"
    return {"replace": better, "seed": best["seed"], "why": f"least held-out loss {best['held_out_loss']}; {figures}"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, nargs="+", default=[ROOT / ".carry" / "chat_train.jsonl.xz"])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "train_demo", help="stays between calls")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], dest="more", help="name=value, a setting of the recipe")
    parser.add_argument("--seconds", type=float, default=550, help="after this, unfinished parts save and can be continued")
    parser.add_argument("--rehearse", action="store_true", help="a few steps and questions, to see that everything runs")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        run_part(chosen, chosen.part)
        return
    begin, names = time.perf_counter(), ["before", *(f"seed-{seed}" for seed in chosen.seeds)]
    chosen.out.mkdir(parents=True, exist_ok=True)
    running = {name: start_part(chosen, name) for name in names}
    results: dict[str, dict[str, Any]] = {name: {"failed": "not finished"} for name in names}
    for name, process in running.items():  # each part's files exist as soon as it ends, whatever happens to the others
        wait_for(process, chosen.seconds - (time.perf_counter() - begin))
        results[name] = collect(chosen, name)
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else hardware()
        report = {
            "bench": "train_demo", "hardware": card, "torch": torch.__version__, "settings": chosen.more,
            "seconds": round(time.perf_counter() - begin, 1), **results,
            "verdict": verdict(results["before"], [results[each] for each in names[1:]]),
        }  # fmt: skip
        (chosen.out / "train_demo.json").write_text(json.dumps(report, indent=1) + "\n")
    print((chosen.out / "train_demo.json").read_text())


if __name__ == "__main__":
    main()
