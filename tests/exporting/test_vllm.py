"""Folders that `export --for vllm` writes: complete, readable by plain libraries, with a command that fits them."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_chat.exporting.vllm import export_for_vllm
from qlora_chat.messages import Conversation, Message
from qlora_chat.models import LoadedModel, ModelError
from qlora_chat.models.locate import BUNDLED
from qlora_chat.prompt import DEFAULT_FORMAT, render
from qlora_chat.settings import ModelSettings

DEMO = ModelSettings(model="demo", precision="bf16", device="cpu")


@pytest.fixture(autouse=True)
def cache(demo_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(demo_cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def quiet(line: str) -> None: ...


def test_a_merged_model_is_what_the_local_engine_runs(tmp_path: Path, demo_fp32: LoadedModel) -> None:
    made = export_for_vllm(DEMO, tmp_path / "out", quiet)
    tensors = load_file(made.folder / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert torch.equal(tensors["model.embed_tokens.weight"].float(), demo_fp32.weights.embeddings)
    assert made.command[:3] == ("vllm", "serve", ".")
    assert "--enable-lora" not in made.command
    assert made.command[made.command.index("--max-model-len") + 1] == "512"
    script = (made.folder / "serve.sh").read_text()
    assert shlex.join(made.command) in script
    assert os.access(made.folder / "serve.sh", os.X_OK)
    assert json.loads((made.folder / "qlora_chat.json").read_text())["prompt_format"] == "guanaco"


def test_transformers_renders_the_exported_template_to_our_ids(tmp_path: Path) -> None:
    made = export_for_vllm(DEMO, tmp_path / "out", quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(made.folder)
    from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer

    question = Conversation(messages=(Message("user", "What is the capital of France?"),))
    ours = render(question, DEFAULT_FORMAT, ModelTokenizer.read(made.folder, bos_id=1))
    messages = [{"role": "user", "content": question.messages[0].content}]
    assert tuple(theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]) == ours.ids


def test_unmerged_adapters_are_exported_under_their_names(tmp_path: Path) -> None:
    more = {"second": str(BUNDLED / "adapter")}
    made = export_for_vllm(DEMO, tmp_path / "out", quiet, "adapters", more)
    first = "Llama-Lumi-45M-chat-adapter"
    assert made.name == first
    for name in (first, "second"):
        exported = load_file(made.folder / "adapters" / name / "adapter_model.safetensors")
        assert len(exported) == len(load_file(BUNDLED / "adapter" / "adapter_model.safetensors"))
    command = shlex.join(made.command)
    assert "--enable-lora --max-loras 2 --max-lora-rank 32" in command
    assert f"--lora-modules {first}=adapters/{first} second=adapters/second" in command
    base = load_file(made.folder / "model.safetensors")
    assert not any("quant" in name for name in base), "vLLM on a CPU reads no NF4"


@pytest.mark.parametrize(
    ("changes", "layout", "more", "cards", "reason"),
    [
        ({}, "merged", {"a": "x"}, 1, "--layout adapters"),
        ({"adapter": None}, "adapters", {}, 1, "give --adapter, or --lora"),
        ({}, "adapters", {"a b": "x"}, 1, "'a b'"),
        ({}, "merged", {}, 2, "9 attention heads split over 1, 3, 9"),
    ],
)
def test_impossible_exports_are_refused_before_the_work(
    changes: dict[str, None], layout: str, more: dict[str, str], cards: int, reason: str, tmp_path: Path
) -> None:
    chosen = {
        "base": str(BUNDLED / "base"),
        "adapter": str(BUNDLED / "adapter"),
        "precision": "bf16",
        "device": "cpu",
        **changes,
    }
    with pytest.raises(ModelError, match=reason):
        export_for_vllm(ModelSettings(**chosen), tmp_path / "out", quiet, layout, more, cards)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_vllm_would_apply_wrongly_is_refused(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    config = json.loads((BUNDLED / "adapter" / "adapter_config.json").read_text())
    (odd / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    tensors = load_file(BUNDLED / "adapter" / "adapter_model.safetensors")
    magnitudes = {
        name.replace("lora_B.weight", "lora_magnitude_vector"): torch.ones(tensor.shape[0])
        for name, tensor in tensors.items()
        if name.endswith("lora_B.weight")
    }
    save_file(tensors | magnitudes, odd / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="use_dora of adapter odd: export it with --layout merged"):
        export_for_vllm(DEMO, tmp_path / "out", quiet, "adapters", {"odd": str(odd)})


def test_an_adapter_with_other_spellings_of_its_names_is_exported_with_those_that_vllm_reads(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "adapter_config.json").write_bytes((BUNDLED / "adapter" / "adapter_config.json").read_bytes())
    tensors = load_file(BUNDLED / "adapter" / "adapter_model.safetensors")
    renamed = {
        name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): each for name, each in tensors.items()
    }
    save_file(renamed, odd / "adapter_model.safetensors")
    made = export_for_vllm(DEMO, tmp_path / "out", quiet, "adapters", {"odd": str(odd)})
    exported = load_file(made.folder / "adapters" / "odd" / "adapter_model.safetensors")
    assert exported.keys() == tensors.keys()
    assert all(torch.equal(exported[name], each) for name, each in tensors.items())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ModelError, match="not empty"):
        export_for_vllm(DEMO, tmp_path, quiet)
    assert (tmp_path / "mine").read_text() == "mine"
