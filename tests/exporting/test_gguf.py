"""Folders that `export --for gguf` and `--for ollama` write: complete, measured, and read by this program as any other GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlora_chat.exporting.gguf import ExportedGguf, GgufOptions, export_gguf
from qlora_chat.models import ModelError, open_model
from qlora_chat.models.gguf.file import GgufFile
from qlora_chat.settings import ModelSettings, SettingsError
from tests.models.conftest import MakeAdapter, MakeBase, make_adapter, make_base, own_folders, tiny_nf4_base
from tests.training.conftest import small_disk

__all__ = ["make_adapter", "make_base", "own_folders", "small_disk", "tiny_nf4_base"]


def exported(out: Path, base: Path, adapter: Path | None, notices: list[str], **options: Any) -> ExportedGguf:
    settings = ModelSettings(base=str(base), adapter=str(adapter) if adapter else None, device="cpu")
    return export_gguf(settings, GgufOptions(out, **options), notices.append)


def test_a_merge_is_written_measured_and_read_back(tiny_nf4_base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    notices: list[str] = []
    made = exported(
        tmp_path / "out", tiny_nf4_base, make_adapter(tiny_nf4_base), notices, target="ollama", kind="q8_0", force=True
    )
    assert made.model == "tiny-adapter-Q8_0.gguf"
    names = {"Modelfile", "qlora_chat.json", made.model}
    assert {each.name for each in made.folder.iterdir()} == names
    assert [each.name for each in tmp_path.iterdir() if "work" in each.name] == []
    record = json.loads((made.folder / "qlora_chat.json").read_text())
    assert (record["type"], record["base_weights"], record["adapter"]) == ("q8_0", "nf4", "tiny-adapter")
    assert made.loss
    assert record["loss"]["kl"] == made.loss.kl < 0.01
    assert f"KL {made.loss.kl}" in notices[-1]
    file = GgufFile(made.folder / made.model)
    assert file.metadata["tokenizer.ggml.eos_token_id"] == 2
    assert file.metadata["tokenizer.ggml.add_bos_token"] is True
    assert "### Human: " in file.metadata["tokenizer.chat_template"]
    modelfile = (made.folder / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./tiny-adapter-Q8_0.gguf\n")
    assert 'PARAMETER stop "### Human"\nPARAMETER stop "### Assistant"\nPARAMETER stop "</s>"\n' in modelfile
    opened = open_model(ModelSettings(base=str(made.folder / made.model), device="cpu", precision="bf16"), notices.append)
    assert opened.tokenizer.encode("### Human: Hi") == open_model(
        ModelSettings(base=str(tiny_nf4_base), device="cpu"), notices.append
    ).tokenizer.encode("### Human: Hi")


def test_a_base_alone_loses_nothing_in_16_bits(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base(max_position_embeddings=256)
    made = exported(tmp_path / "out", base, None, [], kind="bf16")
    assert made.loss
    assert (made.loss.kl, made.loss.top1) == (0.0, 1.0)
    opened = open_model(ModelSettings(base=str(made.folder / str(made.model)), device="cpu", precision="bf16"), lambda _: None)
    original = open_model(ModelSettings(base=str(base), device="cpu", precision="bf16"), lambda _: None)
    assert torch.equal(opened.weights.embeddings, original.weights.embeddings)


def test_loras_are_written_alone_for_a_base_that_is_there(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = make_base()
    more = {"second": str(make_adapter(base, tmp_path / "other", seed=4))}
    made = exported(tmp_path / "out", base, make_adapter(base), [], layout="lora", more=more)
    assert (made.model, made.adapters) == (None, ("tiny-adapter.lora.gguf", "second.lora.gguf"))
    assert {each.name for each in made.folder.iterdir()} == {*made.adapters, "qlora_chat.json"}


def test_what_a_lora_in_gguf_cannot_hold_is_refused_before_the_work(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base, notices = make_base(), []
    ranks = make_adapter(base, rank_pattern={"q_proj": 4})
    with pytest.raises(ModelError, match=r"cannot hold rank_pattern of adapter tiny-adapter: export it with --layout merged"):
        exported(tmp_path / "out", base, ranks, notices, layout="lora")
    own = make_adapter(base, tmp_path / "own")
    (own / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    with pytest.raises(ModelError, match="adapter law brings its own tokenizer"):
        exported(tmp_path / "out", base, make_adapter(base, tmp_path / "plain"), notices, layout="lora", more={"law": str(own)})
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_and_one_line(
    make_base: MakeBase, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**40))  # another program fills it meanwhile
    with pytest.raises(ModelError, match=r"out cannot be written \(.*\); make room, or name another folder"):
        exported(small_disk / "out", make_base(), None, [])
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": "q4_k_m"}, "q4_k_m"),
        ({"more": {"a": "x"}}, "--layout adapters or lora"),
        ({"layout": "lora", "target": "ollama"}, "--layout adapters"),
    ],
)
def test_choices_that_make_no_sense_are_refused(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=reason):
        GgufOptions(tmp_path / "out", **options)
