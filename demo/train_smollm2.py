"""`train --recipe smollm2` side by side over seeds, mixes and formats; each run is scored, and the rule selects one.

    PYTHONPATH=src:out/carried/site python3 demo/train_smollm2.py --base out/carried/FILE.gguf \\
        --data out/carried/own.jsonl.xz out/carried/balanced.jsonl.xz [--seeds 0 1] [--formats guanaco chatml] \\
        [--set learning_rate=2e-3] [--at-once 4] [--seconds 560]
    PYTHONPATH=src python3 demo/train_smollm2.py --base FOLDER --data SMALL.jsonl --rehearse      # minutes without a card

Every run is `qlora-chat train`, then `qlora-chat eval questions --adapter-mode exact` (unmerged on NF4): greedily at once, then
greedily and under five seeds. The base alone is asked the same questions in each format. What is finished stays in --work,
and the same command continues the rest from the newest checkpoints. --out (default $OUT) gets train_smollm2.json, all answers
and logs as one archive, and the adapters of the best runs in parts that a machine with small downloads can hand back
(`cat first.tar.part-* | tar x`). They are written anew whenever a run ends.

The rule is in demo/README.md and in `rank` below; it was committed before any training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Any

import torch
from side_by_side import start, wait_for

from qlora_chat.benchmark.environment import hardware
from qlora_chat.evaluation.questions import HAND_WRITTEN

ROOT = Path(__file__).parents[1]
FIRST = 103
"""Questions that stood before this adapter was planned. They select nothing; the adapter must reach TARGETS on them."""
TARGETS = {"greedy": 78, "sampled": 74}
MAX_BYTES = 20_000_000
SAMPLED = 5
ADAPTER = "adapter_model.safetensors"
SENT = (ADAPTER, "adapter_config.json", "qlora_chat.json", "run.json", "metrics.jsonl")
PART_BYTES = 15 * 2**20
PLACES = ("first", "second", "third")
REHEARSAL = ("--steps", "3", "--batch", "2", "--max-length", "64", "--save-every", "2", "--device", "cpu", "--held-out", "0.01")


@dataclass(frozen=True)
class Part:
    """One run, or the base alone in one format."""

    name: str
    prompt_format: str
    data: Path | None = None
    seed: int = 0


def parts_of(chosen: argparse.Namespace) -> list[Part]:
    """Return the base in each format, then every combination of seeds, mixes and formats."""
    runs = [
        Part(f"{data.name.partition('.')[0]}-{name}-{seed}{chosen.label}", name, data, seed)
        for seed, data, name in product(chosen.seeds, chosen.data, chosen.formats)
    ]
    return [*(Part(f"base-{name}", name) for name in chosen.formats), *runs]


# --- one run ----------------------------------------------------------------------------------------------------------


class Runner:
    """Runs parts before a deadline, and reports after each."""

    def __init__(self, chosen: argparse.Namespace, base: str, questions: Path) -> None:
        self._chosen, self._base, self._questions = chosen, base, questions
        self._end = time.monotonic() + chosen.seconds
        self._lock = Lock()

    def run(self, part: Part) -> None:
        """Train and score what is not finished; stop at the deadline."""
        begin = time.monotonic()
        folder = self._chosen.work / part.name
        if part.data is None or (folder / "run" / ADAPTER).is_file() or self._train(part, folder):
            self._ask(part, folder, 0, "greedy")
            self._report()
            self._ask(part, folder, 1 if self._chosen.rehearse else SAMPLED, "sampled")
        self._report()
        log(f"{part.name}: {time.monotonic() - begin:.0f} s")

    def _train(self, part: Part, folder: Path) -> bool:
        line = ["train", "--recipe", "smollm2", "--resume", "--out", str(folder / "run"), "--base", self._base]
        line += ["--data", str(part.data), "--format", part.prompt_format]
        line += ["--seed", str(part.seed), "--data-seed", str(part.seed + 42)]
        for name, _, value in (each.partition("=") for each in self._chosen.more):
            line += [f"--{name.replace('_', '-')}", value]
        line += REHEARSAL if self._chosen.rehearse else ()
        return self._command(line, folder) and (folder / "run" / ADAPTER).is_file()

    def _ask(self, part: Part, folder: Path, seeds: int, name: str) -> None:
        if (folder / name / "questions.json").is_file():
            return
        model = ["--adapter", str(folder / "run"), "--adapter-mode", "exact"] if part.data else ["--precision", "nf4"]
        line = ["eval", "questions", "--base", self._base, *model, "--format", part.prompt_format, "--seeds", str(seeds)]
        self._command([*line, "--file", str(self._questions), "--out", str(folder / name)], folder)

    def _command(self, line: Sequence[str], folder: Path) -> bool:
        seconds = self._end - time.monotonic()
        if seconds < 5:
            return False
        cache = self._chosen.work / "cache" / folder.name
        process = start([sys.executable, "-m", "qlora_chat", *line], folder / "log.txt", cache)
        return wait_for(process, seconds) == 0

    def _report(self) -> None:
        with self._lock:
            write_report(self._chosen)


# --- scores and the rule ----------------------------------------------------------------------------------------------


def scores(folder: Path) -> dict[str, Any]:
    """Return what is known of a run: right answers of the first questions, the new ones and all, and the held-out loss."""
    known: dict[str, Any] = {"run": folder.name}
    for name in ("greedy", "sampled"):
        path = folder / name / "questions.json"
        if path.is_file():
            known |= _counted(json.loads(path.read_text(encoding="utf-8"))["runs"])
    metrics = folder / "run" / "metrics.jsonl"
    if metrics.is_file():
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        known["held_out_loss"] = next((each["held_out_loss"] for each in reversed(lines) if "held_out_loss" in each), None)
        known["tokens_per_s"] = max((each["tokens_per_s"] for each in lines if "tokens_per_s" in each), default=None)
    adapter = folder / "run" / ADAPTER
    known["adapter_bytes"] = adapter.stat().st_size if adapter.is_file() else None
    return known


def _counted(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"kinds, greedy": runs[0]["score"]["by_kind"]}
    for name, asked in (("first", slice(FIRST)), ("new", slice(FIRST, None)), ("all", slice(None))):
        greedy, *sampled = [sum(each["right"] for each in run["asked"][asked]) for run in runs]
        found[name] = {"greedy": greedy, "seeds": sampled, "sampled": round(fmean(sampled), 2) if sampled else None}
    return found


def rank(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order the finished runs: most right of the new questions (greedy plus mean of the seeds), then least held-out loss."""
    finished = [each for each in runs if each["adapter_bytes"] and each.get("new", {}).get("sampled") is not None]
    return sorted(finished, key=lambda each: (-each["new"]["greedy"] - each["new"]["sampled"], each["held_out_loss"] or 0.0))


def verdict(ranked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Say which run is selected, and whether it reaches the targets on the questions that select nothing."""
    if not ranked:
        return {"bundle": False, "why": "no run is finished: repeat the command"}
    best = ranked[0]
    reached = all(best["first"][name] >= least for name, least in TARGETS.items()) and best["adapter_bytes"] <= MAX_BYTES
    figures = f"{best['first']['greedy']} of {FIRST} greedily and {best['first']['sampled']} on average; needed: {TARGETS}"
    return {"bundle": reached, "run": best["run"], "why": f"{figures}; {best['adapter_bytes']:,} bytes"}


def write_report(chosen: argparse.Namespace) -> None:
    """Write scores, answers and the best adapters as far as they are known."""
    folders = sorted(each for each in chosen.work.iterdir() if (each / "log.txt").is_file())
    known = [scores(each) for each in folders]
    ranked = rank(known)
    report = {
        "bench": "train_smollm2", "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else hardware(),
        "torch": torch.__version__, "settings": chosen.more, "verdict": verdict(ranked),
        "ranked": [each["run"] for each in ranked], "runs": known,
    }  # fmt: skip
    (chosen.out / "train_smollm2.json").write_text(json.dumps(report, indent=1) + "\n")
    with tarfile.open(chosen.out / "answers.tar.xz", "w:xz") as tar:
        for folder in folders:
            for path in (folder / "log.txt", *folder.glob("*/questions.json"), *folder.glob("run/*.json*")):
                if path.name != ADAPTER:
                    tar.add(path, path.relative_to(chosen.work).as_posix())
    for place, each in zip(PLACES, ranked, strict=False):
        _write_parts(chosen.work / each["run"] / "run", chosen.out, place)


def _write_parts(run: Path, out: Path, place: str) -> None:
    whole = out / f"{place}.tar"
    with tarfile.open(whole, "w") as tar:
        for name in SENT:
            if (run / name).is_file():
                tar.add(run / name, f"{run.parent.name}/{name}")
    for old in out.glob(f"{place}.tar.part-*"):
        old.unlink()
    for index, part in enumerate(_pieces(whole)):
        (out / f"{place}.tar.part-{index}").write_bytes(part)
    whole.unlink()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PART_BYTES):
            yield piece


# --- all of them ------------------------------------------------------------------------------------------------------


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def base_folder(chosen: argparse.Namespace) -> str:
    """Return the folder of the base; a GGUF file is dequantised once, before the runs start."""
    from qlora_chat.models.cache import Cache
    from qlora_chat.models.gguf.cached import gguf_part, is_gguf

    if not is_gguf(Path(chosen.base)):
        return chosen.base
    return str(gguf_part(Path(chosen.base), Cache(chosen.work / "base", log)).folder)


def asked_questions(chosen: argparse.Namespace) -> Path:
    """Return the hand-written questions, or for a rehearsal every 40th of them."""
    if not chosen.rehearse:
        return HAND_WRITTEN
    few = chosen.work / "few.jsonl"
    few.write_text("\n".join(HAND_WRITTEN.read_text(encoding="utf-8").splitlines()[::40]) + "\n", encoding="utf-8")
    return few


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True, help="folder of SmolLM2-135M-Instruct, or its GGUF file")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="mixes of mix_smollm2.py; one run for each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--formats", nargs="+", default=["guanaco"])
    parser.add_argument("--set", nargs="*", default=[], dest="more", help="name=value, a setting of the recipe")
    parser.add_argument("--label", default="", help="added to the names of the runs, where --set differs from an earlier call")
    parser.add_argument("--at-once", type=int, default=4, help="runs beside each other")
    parser.add_argument("--seconds", type=float, default=540, help="after this, unfinished runs save and can be continued")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "train_smollm2", help="stays between calls")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    parser.add_argument("--rehearse", action="store_true", help="a few steps and questions, to see that everything runs")
    return parser.parse_args()


def main() -> None:
    chosen = parse()
    for folder in (chosen.work, chosen.out):
        folder.mkdir(parents=True, exist_ok=True)
    runner = Runner(chosen, base_folder(chosen), asked_questions(chosen))
    with ThreadPoolExecutor(chosen.at_once) as pool:
        list(pool.map(runner.run, parts_of(chosen)))
    print((chosen.out / "train_smollm2.json").read_text())


if __name__ == "__main__":
    main()
