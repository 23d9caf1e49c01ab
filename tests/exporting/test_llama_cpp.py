"""A real llama.cpp reads what `export --for gguf` wrote, and its logits and greedy tokens are ours on the same files.

It comes built with npm: `npm install --ignore-scripts node-llama-cpp` in some folder, and NODE_LLAMA_CPP=that folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward, Span
from qlora_chat.exporting.gguf import GgufLayout, GgufOptions, export_gguf
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.llama import Adapter, LlamaWeights, build
from qlora_chat.settings import ModelSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COUNT = 24
MARGIN = 0.1
"""Logits. llama.cpp rounds activations and its KV cache to F16 beside F16 weights, so nearer ties may fall either way."""
QUESTIONS = (
    "What is the capital of France?",
    "Tell me a short story about a cat and a boat.",
    "What is 7 plus 5?",
    "Write a haiku about rain.",
    "Who are you?",
    "List three colours.",
)
TEXTS = ("Grüße, 世界! 🙂", "  two  spaces\n\nand\ttabs ", "I'll pay 12345 euros, don't you?", "</s> <|im_end|>")


def llama_cpp(**request: Any) -> dict[str, Any]:
    """The reply of llama.cpp to one request."""
    folder, node = os.environ.get("NODE_LLAMA_CPP"), shutil.which("node")
    if not folder or not node:
        missing = "node" if not node else "NODE_LLAMA_CPP (a folder with `npm install --ignore-scripts node-llama-cpp`)"
        pytest.skip(f"NOT TESTED: llama.cpp, for want of {missing}")
    done = subprocess.run(
        [node, Path(__file__).with_name("llama_cpp.mjs")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def compare(weights: LlamaWeights, asked: Sequence[list[int]], reply: dict[str, Any]) -> None:
    """Compare llama.cpp's first logits with ours, and its tokens with our first choices along its answers."""
    gaps: list[float] = []
    for prompt, logits, answer in zip(asked, reply["logits"], reply["answers"], strict=True):
        forward = Forward(weights, KVCache(weights, slots=1))
        ours = forward([Span(0, 0, [*prompt, *answer[:-1]], logits=len(answer))])
        assert float((ours[0] - torch.tensor(logits)).abs().max()) < MARGIN
        below = ours.max(dim=-1).values - ours[torch.arange(len(answer)), torch.tensor(answer)]
        gaps += [float(each) for each in below if each > 0]
    assert max(gaps, default=0.0) < MARGIN
    assert len(gaps) <= sum(map(len, reply["answers"])) // 20, "all but a few tokens are the same"


def prompts(tokenizer: ModelTokenizer) -> list[list[int]]:
    lead = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [[*lead, *tokenizer.encode(f"### Human: {each}### Assistant:")] for each in QUESTIONS]


def written(settings: ModelSettings, out: Path, layout: GgufLayout = "merged") -> Path:
    return export_gguf(settings, GgufOptions(out, layout=layout), print).folder


@pytest.mark.parametrize("name", ["demo", "smollm2"])
def test_greedy_tokens_and_ids_are_ours(name: str, tmp_path: Path) -> None:
    folder = written(ModelSettings(model=name, device="cpu"), tmp_path / "out")
    file = next(folder.glob("*.gguf"))
    ours = load(ModelSettings(base=str(file), device="cpu", precision="bf16"), print, dtype=torch.float32)
    asked = prompts(ours.tokenizer)
    reply = llama_cpp(model=str(file), lora=None, prompts=asked, count=COUNT, texts=TEXTS)
    assert reply["ids"] == [ours.tokenizer.encode(each) for each in TEXTS]
    compare(ours.weights, asked, reply)


def test_a_lora_over_its_base_gives_the_logits_of_the_unmerged_adapter(tmp_path: Path) -> None:
    apart = written(ModelSettings(model="demo", device="cpu"), tmp_path / "apart", "adapters")
    file, lora = (next(apart.glob(pattern)) for pattern in ("*-F16.gguf", "*.lora.gguf"))
    ours = load(ModelSettings(base=str(file), device="cpu", precision="bf16"), print, dtype=torch.float32)
    assert ours.base
    adapter = Adapter.read(AdapterFolder.read(BUNDLED / "adapter"))
    weights = build(ours.base.checkpoint(), ours.base.shape, torch.device("cpu"), torch.float32, adapter)
    asked = prompts(ours.tokenizer)
    reply = llama_cpp(model=str(file), lora=str(lora), prompts=asked, count=COUNT)
    compare(weights, asked, reply)
    plain = llama_cpp(model=str(file), lora=None, prompts=asked, count=COUNT)
    assert plain["answers"] != reply["answers"]
