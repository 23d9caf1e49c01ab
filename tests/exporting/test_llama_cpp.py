"""A real llama.cpp reads what `export --for gguf` wrote, and its greedy tokens are ours on the same file.

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
from qlora_chat.models import LoadedModel
from qlora_chat.models.load import load
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
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


def differences(model: LoadedModel, prompt: Sequence[int], theirs: Sequence[int]) -> list[float]:
    """Gap between our first choice and their token wherever the two differ, along their answer."""
    forward = Forward(model.weights, KVCache(model.weights, slots=1))
    logits = forward([Span(0, 0, [*prompt, *theirs[:-1]], logits=len(theirs))])
    gaps = logits.max(dim=-1).values - logits[torch.arange(len(theirs)), torch.tensor(theirs)]
    return [float(each) for each in gaps if each > 0]


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
    gaps = [gap for prompt, answer in zip(asked, reply["answers"], strict=True) for gap in differences(ours, prompt, answer)]
    assert max(gaps, default=0.0) < MARGIN
    assert len(gaps) <= sum(map(len, reply["answers"])) // 20, "all but a few tokens are the same"


def test_a_lora_over_its_base_gives_the_tokens_of_the_merge(tmp_path: Path) -> None:
    settings = ModelSettings(model="demo", device="cpu")
    merged = next(written(settings, tmp_path / "merged").glob("*.gguf"))
    apart = written(settings, tmp_path / "apart", "adapters")
    base, lora = (next(apart.glob(pattern)) for pattern in ("*-F16.gguf", "*.lora.gguf"))
    ours = load(ModelSettings(base=str(merged), device="cpu", precision="bf16"), print, dtype=torch.float32)
    asked = prompts(ours.tokenizer)
    reply = llama_cpp(model=str(base), lora=str(lora), prompts=asked, count=COUNT)
    gaps = [gap for prompt, answer in zip(asked, reply["answers"], strict=True) for gap in differences(ours, prompt, answer)]
    assert len(gaps) <= sum(map(len, reply["answers"])) // 10, "the merge is rounded to bf16, and the LoRA is not"
    plain = llama_cpp(model=str(base), lora=None, prompts=asked, count=COUNT)
    assert plain["answers"] != reply["answers"]
