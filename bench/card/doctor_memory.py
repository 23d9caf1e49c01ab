"""Memory that `doctor` predicts for a LLaMA-7B in NF4 with an r = 64 adapter against the peak of the card's allocator.

    PYTHONPATH=src python3 bench/card/doctor_memory.py [--folder F]

Random weights in NF4 and a random adapter, written to a temporary folder and examined there; then trained on for a few steps,
loaded, and asked a prompt that fills the window. Needs a card. Prints JSON; a part that fails
is reported in it and does not stop the others.
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
from load_7b import make_adapter, make_tokenizer
from train_7b import GIB, attempt, base_of, our_step, random_weights

from qlora_chat.doctor.examine import examine
from qlora_chat.doctor.memory import needs
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import Base
from qlora_chat.models.hub import Hub
from qlora_chat.models.load import load
from qlora_chat.models.placement import DeviceMemory, needed_bytes
from qlora_chat.models.weights.shards import NF4_CONFIG, write_shards
from qlora_chat.prompt import Prompt
from qlora_chat.settings import ModelSettings, Sampling
from qlora_chat.stopping import Stops
from qlora_chat.training.memory import predicted_bytes
from qlora_chat.training.recipe import read_recipe, settings_from

LAYERS, RANK, PROMPT, NEW = 32, 64, 1900, 100


def make_pair(folder: Path, tensors: dict[str, torch.Tensor]) -> tuple[Path, Path]:
    """Folders of base and adapter."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    config = {**base_of(LAYERS).config, "bos_token_id": 1, "eos_token_id": 2, "quantization_config": dict(NF4_CONFIG)}
    (base / "config.json").write_text(json.dumps(config))
    make_tokenizer(base)
    write_shards(((name, tensor.cpu()) for name, tensor in tensors.items()), base)
    make_adapter(adapter, Base.read(base))
    return base, adapter


def fresh() -> None:
    """Nothing on the card, and the peak counted from here."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def opened(base: Path, adapter: Path, room: int) -> LoadedModel:
    """The pair as a card of 8 GB would hold it."""
    return load(ModelSettings(base=str(base), adapter=str(adapter)), lambda _: None, devices=(DeviceMemory("cuda", room),))


def peak() -> float:
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / GIB


def load_peak(base: Path, adapter: Path, room: int) -> float:
    fresh()
    model = opened(base, adapter, room)
    assert model.info.precision == "nf4+adapter"
    return peak()


def chat_peak(base: Path, adapter: Path, room: int) -> float:
    fresh()
    engine = LocalEngine(lambda: opened(base, adapter, room), slots=1)
    prompt = Prompt("", tuple(5 + index % 30_000 for index in range(PROMPT)))
    for _ in engine.stream(prompt, Sampling(max_new_tokens=NEW), Stops()):
        pass
    engine.close()
    return peak()


def compared(measured: Any, predicted: int) -> dict[str, Any]:
    """Both in GiB, and how far the prediction is off."""
    expected = predicted / GIB
    if not isinstance(measured, float):
        return {"predicted_gib": round(expected, 3), **(measured or {})}
    off = round(expected / measured - 1, 4)
    return {"measured_gib": round(measured, 3), "predicted_gib": round(expected, 3), "off": off, "within 10 %": abs(off) <= 0.1}


def run(folder: Path) -> dict[str, Any]:
    """Predict from the folders, then measure."""
    os.environ["QLORA_CHAT_CACHE"] = str(folder / "cache")
    tensors = random_weights(base_of(LAYERS))
    base, adapter = make_pair(folder, tensors)
    read = Base.read(base)
    found = examine(str(base), str(adapter), Hub(folder / "hub", offline=True), (DeviceMemory("cuda", 8 * GIB),))
    predicted = [need.bytes for need in needs(read, "nf4+adapter", AdapterFolder.read(adapter).bytes, RANK, "cuda")]
    results: dict[str, Any] = {"blocked": [each.what for each in found.findings if each.level == "blocker"]}
    for dialogues, length in ((1, 512), (1, 1024), (1, 2048), (4, 1024), (16, 512)):
        foreseen = predicted_bytes(read, settings_from(read_recipe("guanaco-7b"), {}), dialogues * length, checkpointing=True)
        measured = our_step_peak(tensors, dialogues, length)
        results[f"training step, {dialogues} x {length:,}, checkpointing"] = compared(measured, foreseen)
    tensors.clear()
    room = (needed_bytes(read, "bf16", 0, "cuda") + needed_bytes(read, "nf4", 0, "cuda")) // 2
    results["load"] = compared(attempt(lambda: load_peak(base, adapter, room)), predicted[0])
    results["chat over the whole window"] = compared(attempt(lambda: chat_peak(base, adapter, room)), predicted[1])
    return results


def our_step_peak(tensors: dict[str, torch.Tensor], dialogues: int, length: int) -> Any:
    found = attempt(lambda: our_step(base_of(LAYERS), tensors, dialogues, length, True, 2))
    return float(found["peak_gib"]) if "peak_gib" in found else found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="where to write 5 GB for a while; default: the system's temporary folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        results = run(Path(temporary))
    card = torch.cuda.get_device_name()
    print(json.dumps({"bench": "doctor_memory", "hardware": card, "torch": torch.__version__, **results}, indent=1))


if __name__ == "__main__":
    main()
