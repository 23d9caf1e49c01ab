"""Opening the bundled demo, for real: merged once through PEFT, and read by itself from then on."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qlora_chat.models import ModelError, open_model
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.placement import GIB, DeviceMemory, detect_devices
from qlora_chat.settings import ModelSettings, SettingsError
from tests.models.conftest import MakeAdapter, MakeBase, OpenedDemo

SECOND_START = """
import json, sys, time
begin = time.perf_counter()
from qlora_chat.models import open_model
from qlora_chat.settings import ModelSettings
model = open_model(ModelSettings(model="demo", device="cpu"), lambda line: None)
seconds = time.perf_counter() - begin
heavy = [name for name in ("transformers", "peft", "bitsandbytes", "accelerate") if name in sys.modules]
print(json.dumps({"seconds": seconds, "heavy": heavy, "name": model.info.name}))
"""


def merged_folder(cache: Path) -> Path:
    (folder,) = (each for each in (cache / "merged").iterdir() if each.name[0] != ".")
    return folder


def test_the_demo_describes_itself_as_a_toy(demo: OpenedDemo) -> None:
    info = demo.model.info
    assert (info.name, info.precision, info.device, info.window) == ("Llama-Lumi-45M (demo)", "bf16", "cpu", 512)
    assert info.prompt_format == "guanaco"
    assert info.stop_token_ids == {2}
    assert demo.model.tokenizer.bos_id == 1
    toy = next(line for line in info.notices if "toy" in line)
    assert "45 M" in toy
    assert "often wrong" in toy
    assert "Built with Llama" in toy
    assert toy in demo.notices


def test_merged_weights_are_pefts_own_bit_for_bit(demo: OpenedDemo, transformers: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel

        base = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED / "base", dtype=torch.bfloat16, device_map={"": "cpu"})
        expected = PeftModel.from_pretrained(base.dequantize(), str(BUNDLED / "adapter")).merge_and_unload().state_dict()
    stored = load_file(merged_folder(demo.cache) / "model.safetensors")
    assert set(stored) == set(expected) - {"lm_head.weight"}
    for name, tensor in stored.items():
        assert torch.equal(tensor, expected[name]), name


def test_the_cached_folder_is_an_ordinary_model_that_describes_itself(demo: OpenedDemo, transformers: Any) -> None:
    folder = merged_folder(demo.cache)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert transformers.AutoTokenizer.from_pretrained(folder)("Hello").input_ids[0] == 1
    record = json.loads((folder / "qlora_chat.json").read_text())
    assert (record["base"], record["precision"]) == ("Llama-Lumi-45M", "bf16")
    adapter = "sha256:ab46791969ab2328f9c34784a1a90468874e146cfed4073ec346d9f89514d6d5"
    assert record["adapter_files"]["adapter_model.safetensors"] == adapter
    assert record["base_files"]["model.safetensors"].startswith("sha256:48faf7d6")


def test_a_second_start_needs_neither_transformers_nor_peft(
    demo: OpenedDemo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(demo.cache))
    done = subprocess.run([sys.executable, "-c", SECOND_START], capture_output=True, text=True, timeout=60, check=True)
    result = json.loads(done.stdout)
    assert result["heavy"] == []
    with capsys.disabled():
        print(f" second start of the demo, torch import included: {result['seconds']:.2f} s ", end="")


def test_the_merged_demo_can_be_loaded_in_fp32(demo: OpenedDemo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(demo.cache))
    model = load(ModelSettings(model="demo", device="cpu"), lambda _: None, torch.float32)
    assert model.info.precision == "fp32"
    assert torch.equal(model.weights.embeddings, demo.model.weights.embeddings.float())


def test_auto_without_card_or_cache_takes_the_demo_and_says_why(demo: OpenedDemo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(demo.cache))
    notices: list[str] = []
    model = open_model(ModelSettings(device="cpu"), notices.append)
    assert model.info.name == "Llama-Lumi-45M (demo)"
    (why,) = (line for line in notices if "guanaco-7b" in line)
    assert "6 GiB" in why
    assert "qlora-chat serve --model guanaco-7b" in why


def test_a_model_of_ones_own_takes_the_adapters_name_and_prompt_format(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    base = make_base()
    adapter = make_adapter(base)
    (adapter / "qlora_chat.json").write_text('{"prompt_format": "guanaco-card"}')
    settings = ModelSettings(base=str(base), adapter=str(adapter), device="cpu")
    info = open_model(settings, lambda _: None).info
    assert (info.name, info.base, info.adapter) == ("tiny-adapter", "tiny-base", "tiny-adapter")
    assert info.prompt_format == "guanaco-card"
    chosen = ModelSettings(base=str(base), adapter=str(adapter), device="cpu", prompt_format="guanaco-notebook")
    assert open_model(chosen, lambda _: None).info.prompt_format == "guanaco-notebook"


def test_an_adapter_alone_is_refused_in_the_settings() -> None:
    with pytest.raises(SettingsError, match="needs --base"):
        ModelSettings(adapter="someone/adapter")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_cuda_without_a_card_is_a_clear_error() -> None:
    with pytest.raises(ModelError, match="no usable graphics card; use --device cpu or auto"):
        detect_devices("cuda")


def test_a_start_on_the_cpu_next_to_a_full_card_is_explained(notices: list[str]) -> None:
    settings = ModelSettings(base=str(BUNDLED / "base"), precision="nf4")
    model = load(settings, notices.append, devices=(DeviceMemory("cuda", 0), DeviceMemory("cpu", 8 * GIB)))
    assert model.info.device == "cpu"
    assert any("the graphics card has 0.0 GiB free and it needs" in line for line in notices)
