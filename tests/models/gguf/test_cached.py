"""A GGUF file named with --base, wherever a base is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlora_chat.doctor.examine import Examination, examine
from qlora_chat.models import ModelError, open_model
from qlora_chat.models.cache import Cache
from qlora_chat.models.gguf.cached import gguf_part, is_gguf
from qlora_chat.models.hub import Hub
from qlora_chat.models.identity import identify
from qlora_chat.models.load import load
from qlora_chat.models.placement import GIB, DeviceMemory
from qlora_chat.settings import ModelSettings
from qlora_chat.training.resolve import locate_base
from tests.models.conftest import write_adapter
from tests.models.gguf.making import write_gguf

ROOM = DeviceMemory("cpu", 16 * GIB)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "Small Model.Q8_0.gguf", "Q8_0")


def examined(base: Path, adapter: Path | None = None) -> Examination:
    return examine(str(base), str(adapter) if adapter else None, Hub(Path("nowhere"), offline=True), (ROOM,))


def of_level(examination: Examination, level: str) -> str:
    return " | ".join(each.what for each in examination.findings if each.level == level)


def test_it_opens_like_any_base_and_the_second_start_converts_nothing(file: Path, notices: list[str]) -> None:
    settings = ModelSettings(base=str(file), device="cpu")
    first = load(settings, notices.append, dtype=torch.float32)
    assert (first.info.name, first.info.base) == ("Small Model.Q8_0", "Small Model.Q8_0")
    assert [line for line in notices if "dequantised once" in line]
    notices.clear()
    assert load(settings, notices.append, dtype=torch.float32).info == first.info
    assert not [line for line in notices if "once" in line]


def test_an_adapter_is_merged_into_it(file: Path, tmp_path: Path, notices: list[str]) -> None:
    folder = gguf_part(file, Cache(tmp_path / "cache", notices.append)).existing_folder()
    adapter = write_adapter(folder, tmp_path / "adapter")
    info = open_model(ModelSettings(base=str(file), adapter=str(adapter), device="cpu", precision="bf16"), notices.append).info
    assert (info.base, info.adapter, info.precision) == ("Small Model.Q8_0", "adapter", "bf16")


def test_records_name_the_hash_of_its_weights_however_large(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    part = gguf_part(file, Cache(tmp_path / "cache", notices.append))
    assert part.weights_sha256(hashed_up_to=0) == gguf_part(file, Cache(tmp_path / "other", print)).weights_sha256()
    assert part.fingerprints["model.safetensors"].startswith("sha256:")


def test_it_can_be_trained_on(file: Path, notices: list[str]) -> None:
    assert locate_base(str(file), ROOM, notices.append).base.name == "Small Model.Q8_0"


def test_for_another_machines_model_only_config_and_tokenizer_are_read(file: Path, tmp_path: Path, notices: list[str]) -> None:
    identity = identify(ModelSettings(base=str(file)), notices.append)
    assert identity.info.window == 512
    assert identity.tokenizer.encode("hello")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_file_without_the_ending_is_recognised_by_its_contents(file: Path, tmp_path: Path, notices: list[str]) -> None:
    plain = file.rename(tmp_path / "sha256-0123")
    assert is_gguf(plain)
    assert open_model(ModelSettings(base=str(plain), device="cpu"), notices.append).info.base == "sha256-0123"


def test_a_folder_called_gguf_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").mkdir()
    assert not is_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("base", "adapter", "message"),
    [
        ("missing.gguf", None, r"--base is '.*missing.gguf', but there is no such file"),
        ("notes.txt", None, r"--base is '.*notes.txt', a file; give its folder, a Hub id, or for a base a .gguf file"),
        ("cut.gguf", None, r"cut.gguf cannot be read as GGUF \(.*\); fetch it again"),
        ("Small Model.Q8_0.gguf", "Small Model.Q8_0.gguf", r"--adapter is .*, but only a base is read from GGUF"),
    ],
)
def test_what_cannot_be_used_is_a_clear_error(
    base: str, adapter: str | None, message: str, file: Path, tmp_path: Path, notices: list[str]
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-1000])
    settings = ModelSettings(base=str(tmp_path / base), adapter=str(tmp_path / adapter) if adapter else None, device="cpu")
    with pytest.raises(ModelError, match=message):
        open_model(settings, notices.append)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_full_disk_names_the_variable(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written .*; set QLORA_CHAT_CACHE to another folder"):
        gguf_part(file, Cache(tmp_path / "file" / "cache", print))


def test_doctor_reports_on_it_without_converting(file: Path, tmp_path: Path, notices: list[str]) -> None:
    found = examined(file)
    assert not found.blocked, found.findings
    assert "the GGUF file Small Model.Q8_0.gguf: 11 tensors in F32, Q8_0, dequantised once" in of_level(found, "fine")
    assert "no licence is known for the base" in of_level(found, "warning")
    assert not (tmp_path / "cache").exists()


def test_doctor_checks_an_adapter_against_it(file: Path, tmp_path: Path, notices: list[str]) -> None:
    folder = gguf_part(file, Cache(tmp_path / "cache", notices.append)).existing_folder()
    assert not examined(file, write_adapter(folder, tmp_path / "adapter")).blocked
    other = write_gguf(tmp_path / "other.gguf", "F16", llama__attention__head_count_kv=4)
    assert examined(other, tmp_path / "adapter").blocked


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"architecture": "mamba"}, "a model of kind 'mamba'"),
        ({"tokenizer__ggml__model": "bert"}, "a tokenizer of kind 'bert'"),
    ],
)
def test_doctor_names_what_is_not_run(options: dict[str, str], what: str, tmp_path: Path) -> None:
    found = examined(write_gguf(tmp_path / "other.gguf", **options))  # type: ignore[arg-type]
    assert what in of_level(found, "blocker")
