"""More than twenty pairs that do not work, each broken in one way, with the doctor's finding; and pairs that do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_chat.doctor import Finding
from qlora_chat.doctor.examine import Examination, examine
from qlora_chat.doctor.memory import load_bytes
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import Base
from qlora_chat.models.hub import Hub
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.placement import GIB, DeviceMemory, kv_cache_bytes, needed_bytes
from qlora_chat.models.weights.quantize import quantize_nf4
from qlora_chat.models.weights.shards import write_shards, write_small_files
from tests.cli.here import run_here
from tests.models.conftest import LocalHub, MakeAdapter, MakeBase, write_adapter, write_base

ROOM = (DeviceMemory("cpu", 16 * GIB),)
Break = Callable[[Path, Path], None]
"""(base, adapter) -> spoilt in place."""


def look_at(base: str | Path, adapter: str | Path | None, hub: Hub | None = None) -> Examination:
    return examine(str(base), str(adapter) if adapter else None, hub or Hub(Path("nowhere"), offline=True), ROOM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter that fit; to be copied before anything is spoilt."""
    folder = tmp_path_factory.mktemp("whole")
    write_adapter(write_base(folder / "tiny-base", max_position_embeddings=2048), folder / "tiny-adapter")
    return folder


@pytest.fixture
def pair(whole: Path, tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(whole, tmp_path / "pair")
    return tmp_path / "pair" / "tiny-base", tmp_path / "pair" / "tiny-adapter"


def blockers(found: Examination) -> list[Finding]:
    return [finding for finding in found.findings if finding.level == "blocker"]


# --- pairs that work -------------------------------------------------------------------------------------------------


def test_the_bundled_pair_is_fine_and_every_need_is_named() -> None:
    found = look_at(BUNDLED / "base", BUNDLED / "adapter")
    assert not found.blocked
    assert {need.doing.split()[0] for need in found.needs} == {"load", "chat", "train"}
    text = " | ".join(finding.what for finding in found.findings)
    assert "LoRA of rank 32, alpha 32" in text
    assert "a text begins with 1 and ends with 2" in text


def test_a_whole_pair_is_fine(pair: tuple[Path, Path]) -> None:
    assert blockers(look_at(*pair)) == []


def test_the_form_of_the_base_in_training_is_named_or_the_doubt_is(pair: tuple[Path, Path]) -> None:
    (doubt,) = [each for each in look_at(*pair).findings if "on which form of the base" in each.what]
    assert (doubt.level, "--base-form nf4" in doubt.mend) == ("warning", True)
    (pair[1] / "qlora_chat.json").write_text('{"quantisation": "nf4, double"}')
    known = look_at(*pair)
    (fine,) = [each for each in known.findings if "was trained on the base in NF4" in each.what]
    assert fine.level == "fine"
    assert any("nf4+adapter" in need.held for need in known.needs if need.doing.startswith("chat"))


# --- pairs that do not -----------------------------------------------------------------------------------------------


def edit_json(name: str, **values: Any) -> Break:
    def break_pair(base: Path, adapter: Path) -> None:
        path = (adapter if name.startswith("adapter") else base) / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return break_pair


def remove(of: str, name: str) -> Break:
    return lambda base, adapter: ((base if of == "base" else adapter) / name).unlink()


def cut(of: str, name: str, count: int = 100) -> Break:
    def break_pair(base: Path, adapter: Path) -> None:
        path = (base if of == "base" else adapter) / name
        path.write_bytes(path.read_bytes()[:-count])

    return break_pair


def edit_tensors(of: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    def break_pair(base: Path, adapter: Path) -> None:
        path = base / "model.safetensors" if of == "base" else adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return break_pair


def link_out(of: str, name: str) -> Break:
    def break_pair(base: Path, adapter: Path) -> None:
        path = (base if of == "base" else adapter) / name
        path.rename(path.parent.parent / "elsewhere")
        path.symlink_to(path.parent.parent / "elsewhere")

    return break_pair


def as_pickle(of: str) -> Break:
    def break_pair(base: Path, adapter: Path) -> None:
        folder, name = (base, "model.safetensors") if of == "base" else (adapter, "adapter_model.safetensors")
        (folder / name).rename(folder / (name.replace("model.safetensors", "model.bin")))

    return break_pair


def write(of: str, name: str, text: str) -> Break:
    def break_pair(base: Path, adapter: Path) -> None:
        ((base if of == "base" else adapter) / name).write_text(text)

    return break_pair


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return change


def rename_module(tensors: dict[str, torch.Tensor]) -> None:
    for name in [each for each in tensors if ".layers.1." in each]:
        tensors[name.replace(".layers.1.", ".layers.7.")] = tensors.pop(name)


def widen(tensors: dict[str, torch.Tensor]) -> None:
    for name in [each for each in tensors if "lora_A" in each]:
        tensors[name] = torch.zeros(tensors[name].shape[0], tensors[name].shape[1] * 2)


UP = "model.layers.0.mlp.up_proj.weight"
LORA_UP = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
SHARDS = json.dumps({"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}})
OTHER_INDEX = json.dumps({"weight_map": {"model.extra.weight": "model.safetensors"}})
CODE = {"auto_map": {"AutoModel": "modeling.Evil"}}

BROKEN: dict[str, tuple[Break, str, str]] = {
    "no config": (remove("base", "config.json"), "no config.json", "LLaMA-family"),
    "another kind of model": (edit_json("config.json", model_type="gpt2"), "model_type 'gpt2'", "LLaMA-family"),
    "sizes no model has": (edit_json("config.json", num_hidden_layers=-3), "num_hidden_layers is -3", "LLaMA-family"),
    "quantised another way": (
        edit_json("config.json", quantization_config={"quant_method": "gptq"}), "quantized by 'gptq'", "LLaMA-family",
    ),
    "config that runs code": (edit_json("config.json", **CODE), "auto_map", "use another model"),
    "tokenizer that runs code": (edit_json("tokenizer_config.json", **CODE), "auto_map", "use another model"),
    "adapter that runs code": (edit_json("adapter_config.json", **CODE), "auto_map", "use another model"),
    "config cut short": (cut("base", "config.json", 20), "cannot be read as JSON", "fetch it again"),
    "adapter config cut short": (cut("adapter", "adapter_config.json", 20), "cannot be read as JSON", "fetch it again"),
    "base cut short": (cut("base", "model.safetensors"), "the base is damaged: .* does not match its header", "hf download"),
    "adapter cut short": (cut("adapter", "adapter_model.safetensors"), "the adapter is damaged", "hf download"),
    "an adapter that is a link": (
        link_out("adapter", "adapter_model.safetensors"), "not followed; put the file itself there", "hf download",
    ),
    "no safetensors at all": (write("base", "model.safetensors", "<html>404</html>"), "the base is damaged", "hf download"),
    "a shard is missing": (write("base", "model.safetensors.index.json", SHARDS), "model-00002.*is not there", "hf download"),
    "an index of another version": (
        write("base", "model.safetensors.index.json", OTHER_INDEX), "the index names model.extra.weight", "hf download",
    ),
    "a tensor is missing": (edit_tensors("base", drop(UP)), f"lacks 1 of .*{UP}", "hf download"),
    "a tensor of another shape": (
        edit_tensors("base", lambda each: each.update({UP: torch.zeros(3, 4)})), rf"{UP} is \[3, 4\]", "hf download",
    ),
    "a pickled base": (as_pickle("base"), "base holds pickled weights only", r"copy of the base that has \*.safetensors"),
    "a pickled adapter": (as_pickle("adapter"), "adapter holds pickled weights only", "qlora-chat convert-adapter"),
    "no tokenizer": (remove("base", "tokenizer.json"), "neither tokenizer.json nor", "hf download"),
    "a broken tokenizer": (write("base", "tokenizer.json", '{"model": 3}'), "tokenizer .* cannot be read", "hf download"),
    "a tokenizer of a larger vocabulary": (
        edit_json("config.json", vocab_size=8000), "ids up to 8,191, and the base has embeddings for 8,000", "hf download",
    ),
    "no adapter config": (remove("adapter", "adapter_config.json"), "no adapter_config.json", "PEFT LoRA"),
    "another kind of adapter": (edit_json("adapter_config.json", peft_type="IA3"), "type 'IA3'", "PEFT LoRA"),
    "an adapter without weights": (remove("adapter", "adapter_model.safetensors"), "holds no weights", "fetch it again"),
    "an adapter for a wider base": (edit_tensors("adapter", widen), "must be", "the base that it was tuned on"),
    "an adapter for a deeper base": (
        edit_tensors("adapter", rename_module), "changes model.layers.7.*the base lacks", "the base that it was tuned on",
    ),
    "another rank in the config": (edit_json("adapter_config.json", r=16), "rank it must be", "the base that it was tuned on"),
    "half a product": (
        edit_tensors("adapter", drop(LORA_UP)), "only one of lora_A and lora_B", "fetch it again",
    ),
    "targets without weights": (
        edit_json("adapter_config.json", target_modules=["q_proj"]), "weights change .* not name", "fetch the adapter again",
    ),
    "added tokens": (
        edit_tensors("adapter", lambda each: each.update(
            {"base_model.model.model.embed_tokens.weight": torch.zeros(9000, 4)})), "9,000 tokens", "tuned on",
    ),
    "an unknown prompt format": (
        write("adapter", "qlora_chat.json", '{"prompt_format": "claude"}'), "unknown prompt format 'claude'", "--format",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_pair_is_reported_with_its_remedy(name: str, pair: tuple[Path, Path]) -> None:
    break_pair, what, mend = BROKEN[name]
    break_pair(*pair)
    found = look_at(*pair)
    assert found.blocked
    matching = [finding for finding in blockers(found) if re.search(what, finding.what)]
    assert matching, blockers(found)
    assert re.search(mend, matching[0].mend)
    assert all(finding.why and finding.mend for finding in found.findings if finding.level != "fine")


def test_old_special_ids_and_an_unknown_licence_are_warnings(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    base = make_base(bos_token_id=0, eos_token_id=0)
    found = look_at(base, make_adapter(base))
    warnings = " | ".join(finding.what for finding in found.findings if finding.level == "warning")
    assert not found.blocked
    assert "wrong ids" in warnings
    assert "no licence is known for the base" in warnings
    assert "tuned on tiny" in warnings
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# card\n")
    assert any(finding.what == "the base's card names the licence apache-2.0" for finding in look_at(base, None).findings)


def test_a_model_that_does_not_fit_is_reported_before_it_is_loaded(pair: tuple[Path, Path]) -> None:
    found = examine(str(pair[0]), str(pair[1]), Hub(Path("nowhere"), offline=True), (DeviceMemory("cpu", 1_000_000),))
    assert any("GiB free" in finding.what and finding.mend for finding in blockers(found))


def test_an_8_bit_kv_cache_is_recommended_if_only_that_fits(make_base: MakeBase) -> None:
    base = make_base(max_position_embeddings=4096)
    read = Base.read(base)
    saved = kv_cache_bytes(read, "cuda") - kv_cache_bytes(read, "cuda", "int8")
    free = needed_bytes(read, "nf4", 0, "cuda") - saved // 2
    found = examine(str(base), None, Hub(Path("nowhere"), offline=True), (DeviceMemory("cuda", free),))
    assert any("--kv-cache-dtype int8" in finding.mend for finding in found.findings)


def test_the_packed_copy_of_a_tied_head_is_counted_as_the_loader_does(make_base: MakeBase) -> None:
    base = make_base(tie_word_embeddings=True)
    free = needed_bytes(Base.read(base), "nf4", 0, "cpu") - 1
    found = examine(str(base), None, Hub(Path("nowhere"), offline=True), (DeviceMemory("cpu", free),))
    (chat,) = [finding for finding in found.findings if finding.what.startswith("to chat")]
    assert chat.level != "fine"


def test_the_command_exits_1_on_a_blocker_and_prints_json_for_machines(pair: tuple[Path, Path], tmp_path: Path) -> None:
    command = ("doctor", *map(str, pair))
    fine = run_here({}, *command, "--json")
    assert fine.returncode == 0
    assert json.loads(fine.stdout)["usable"] is True
    (pair[1] / "adapter_config.json").unlink()
    spoilt = run_here({}, *command)
    assert spoilt.returncode == 1
    assert "✗" in spoilt.stdout
    assert "-> give a PEFT LoRA adapter" in spoilt.stdout
    assert spoilt.stderr == ""


# --- the Hub ---------------------------------------------------------------------------------------------------------


def test_the_hub_describes_missing_repositories_and_nothing_is_fetched(
    local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub = Hub(tmp_path, offline=False, endpoint=local_hub.address)
    local_hub.files["a/base"] = {"config.json": b"{}", "model.safetensors": b"x" * 10}
    local_hub.files["a/pickled"] = {"adapter_config.json": b"{}", "adapter_model.bin": b"x"}
    local_hub.refusals["a/gated"] = (403, "GatedRepo")
    fetched = look_at("a/base", "a/pickled", hub)
    assert any("a/base would be fetched" in finding.what for finding in fetched.findings)
    assert any("a/pickled is a pickle" in finding.what and "convert-adapter" in finding.mend for finding in blockers(fetched))
    assert any("gated" in finding.what and "HF_TOKEN" in finding.mend for finding in blockers(look_at("a/gated", None, hub)))
    assert any("knows no a/none" in finding.what for finding in blockers(look_at("a/none", None, hub)))
    assert local_hub.fetched == []


def test_offline_and_misspelt_names_are_blockers() -> None:
    found = look_at("a/base", "no such folder")
    assert {finding.mend for finding in blockers(found)} == {"unset HF_HUB_OFFLINE", "give a folder, or OWNER/NAME"}


# --- headers and predictions -----------------------------------------------------------------------------------------


def test_a_load_is_predicted_to_a_few_per_cent(make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Bytes on disk are what a load brings into memory; a base wide enough that what is counted a tensor hardly matters."""
    base = Base.read(make_base(hidden_size=512, intermediate_size=1024, head_dim=256, num_key_value_heads=2))
    adapter = make_adapter(base.folder)
    folder = tmp_path / "nf4"
    folder.mkdir()
    write_shards(quantize_nf4(base, "cpu"), folder)
    write_small_files(folder, base.config, {}, base.folder, base.folder, stored="nf4")
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    size = AdapterFolder.read(adapter).bytes
    assert load_bytes(base, "nf4+adapter", size) == pytest.approx(stored + size, rel=0.05)
    assert load_bytes(base, "bf16", 0) == pytest.approx((base.folder / "model.safetensors").stat().st_size, rel=0.05)
    assert needed_bytes(base, "bf16", 0, "cuda") > load_bytes(base, "bf16", 0)
