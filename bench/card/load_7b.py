"""Loading a LLaMA-7B: bytes on the card and seconds, as NF4 with an unmerged adapter and merged into NF4.

The base has LLaMA-7B's shape and random bf16 weights, made in a temporary folder; the adapter is a random r=64 LoRA on
every linear but the head. Prints JSON. `--layers 2` is a dry run for a machine without a card.

    PYTHONPATH=src python3 bench/card/load_7b.py [--layers N] [--folder F]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from qlora_chat.benchmark.shapes import config_of
from qlora_chat.benchmark.subjects import padded_tokenizer_json
from qlora_chat.models import LoadedModel
from qlora_chat.models.folders import Base
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.placement import DeviceMemory, DeviceType, needed_bytes
from qlora_chat.models.weights.shards import write_shards
from qlora_chat.settings import ModelSettings, Precision

GIB = 1024**3
VOCABULARY, RANK = 32_000, 64
PRECISIONS: tuple[Precision, Precision] = ("auto", "nf4")
STEADY_LIMIT, PEAK_LIMIT = 4.2, 6.0
"""GiB on the card: as NF4 after the load, and at its peak."""


def make_base(folder: Path, layers: int, device: str) -> None:
    """A LLaMA of 7B's widths, `layers` deep, with random weights."""
    config = {**config_of("7b", layers), "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    make_tokenizer(folder)
    base = Base.read(folder)
    write_shards(random_tensors(base, device), folder)


def random_tensors(base: Base, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Normal weights of a trained model's size, one tensor at a time."""
    for name, size in base.tensors().items():
        if "norm" in name:
            yield name, torch.ones(size, dtype=torch.bfloat16)
            continue
        yield name, torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0.0, 0.02).cpu()


def make_tokenizer(folder: Path) -> None:
    """The bundled tokenizer, filled up to 32,000 entries with words that no text holds."""
    (folder / "tokenizer.json").write_text(json.dumps(padded_tokenizer_json(VOCABULARY), ensure_ascii=False))
    shutil.copyfile(BUNDLED / "base" / "tokenizer_config.json", folder / "tokenizer_config.json")


def make_adapter(folder: Path, base: Base) -> None:
    """A random LoRA with A and B both non-zero, in PEFT's layout; its product is a tenth as large as the weights."""
    folder.mkdir()
    linears = {name: size for name, size in base.linears().items() if name != "lm_head"}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in linears}), "base_model_name_or_path": "random-7b",
        "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, (outs, ins) in linears.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, ins).mul_(0.02).bfloat16()
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outs, RANK).mul_(0.05).bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


class PeakMemory:
    """Highest resident bytes of this process between enter and exit, sampled every 50 ms."""

    def __enter__(self) -> PeakMemory:
        self._process, self._ended = psutil.Process(), threading.Event()
        self.before = self.peak = self._process.memory_info().rss
        self._sampler = threading.Thread(target=self._sample)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.05):
            self.peak = max(self.peak, self._process.memory_info().rss)


def measured(settings: ModelSettings, memory: DeviceMemory) -> dict[str, Any]:
    """Open the model once and release it; seconds and bytes."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    messages: list[str] = []
    with PeakMemory() as process:
        begin = time.perf_counter()
        model: LoadedModel | None = load(settings, messages.append, devices=(memory,))
        seconds = time.perf_counter() - begin
    assert model is not None
    result: dict[str, Any] = {
        "precision": model.info.precision,
        "device": model.info.device,
        "seconds": round(seconds, 1),
        "process_peak_gib": gib(process.peak),
        "messages": messages,
    }
    if cuda:
        torch.cuda.synchronize()
        result |= {
            "card_peak_gib": gib(torch.cuda.max_memory_allocated()),
            "card_peak_reserved_gib": gib(torch.cuda.max_memory_reserved()),
            "card_steady_gib": gib(torch.cuda.memory_allocated()),
            "card_steady_reserved_gib": gib(torch.cuda.memory_reserved()),
        }
    model = None
    gc.collect()
    return result


def gib(count: int) -> float:
    return round(count / GIB, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=32, help="32 is LLaMA-7B; 2 is a dry run")
    parser.add_argument("--folder", type=Path, help="where to write 18 GB for a while; default: the system's temporary folder")
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        print(json.dumps(run(Path(temporary), chosen.layers, device), indent=2))


def run(folder: Path, layers: int, device: DeviceType) -> dict[str, Any]:
    """Make base and adapter, then measure every way to load them in 4 bits."""
    os.environ["QLORA_CHAT_CACHE"] = str(folder / "cache")
    begin = time.perf_counter()
    make_base(folder / "base", layers, device)
    make_adapter(folder / "adapter", Base.read(folder / "base"))
    made = round(time.perf_counter() - begin, 1)
    base, adapter = str(folder / "base"), str(folder / "adapter")
    memory = room_for_nf4_only(Base.read(folder / "base"), device)
    auto, nf4 = (ModelSettings(base=base, adapter=adapter, precision=precision) for precision in PRECISIONS)
    results = {
        "nf4+adapter, first start (from bf16)": measured(auto, memory),
        "nf4+adapter, second start (from the cache)": measured(auto, memory),
        "nf4, first start (merged and requantized)": measured(nf4, memory),
        "nf4, second start (from the cache)": measured(nf4, memory),
    }
    merged = sorted((folder / "cache" / "merged").glob("*-nf4-*/qlora_chat.json"))
    losses = [loss for path in merged if (loss := json.loads(path.read_text())["loss"])]
    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {psutil.cpu_count()} cores",
        "torch": torch.__version__, "layers": layers, "made_in_s": made, "results": results, "loss": losses,
        "within_limits": within_limits(results) if device == "cuda" else None,
    }  # fmt: skip


def room_for_nf4_only(base: Base, device: DeviceType) -> DeviceMemory:
    """A device with room for the NF4 plan and not for bf16, as on a card of 8 GB."""
    free = (needed_bytes(base, "bf16", 0, device) + needed_bytes(base, "nf4", 0, device)) // 2
    return DeviceMemory("cuda" if device == "cuda" else "cpu", free)


def within_limits(results: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Peak of every load, and bytes of plain NF4 weights after it."""
    peak = all(each["card_peak_gib"] <= PEAK_LIMIT for each in results.values())
    steady = results["nf4, second start (from the cache)"]["card_steady_gib"] <= STEADY_LIMIT
    return {f"peak <= {PEAK_LIMIT} GiB": peak, f"steady as nf4 <= {STEADY_LIMIT} GiB": steady}


if __name__ == "__main__":
    main()
