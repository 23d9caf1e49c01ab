"""Old pickled adapters become safetensors; a pickle that is more than tensors is refused and never run."""

from __future__ import annotations

import ast
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qlora_chat.models import ModelError, open_model
from qlora_chat.models.adapter import convert, unpickle
from qlora_chat.models.adapter.convert import convert_adapter
from qlora_chat.settings import ModelSettings
from tests.models.conftest import MakeAdapter, MakeBase


class Hostile:
    """Pickles into a call of os.system that leaves a canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def folder_with(tmp_path: Path, write: Any) -> Path:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    write(folder / "adapter_model.bin")
    return folder


def test_a_pickled_adapter_becomes_the_same_tensors(make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    base = make_base()
    pickled = make_adapter(base, tmp_path / "old", pickled=True)
    plain = make_adapter(base, tmp_path / "plain")
    convert_adapter(pickled, tmp_path / "new" / "adapter")
    target = tmp_path / "new" / "adapter"
    assert sorted(each.name for each in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "qlora_chat.json",
    ]
    expected, actual = (load_file(each / "adapter_model.safetensors") for each in (plain, target))
    assert set(expected) == set(actual)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_loading_any_other_pickled_adapter_names_the_command(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    base = make_base()
    adapter = make_adapter(base, pickled=True)
    with pytest.raises(ModelError, match=f"qlora-chat convert-adapter {adapter} NEW_FOLDER"):
        open_model(ModelSettings(base=str(base), adapter=str(adapter), device="cpu"), lambda _: None)


@pytest.mark.parametrize("layout", ["plain pickle", "torch zip", "hidden in a torch zip"])
def test_a_hostile_pickle_is_refused_and_its_code_never_runs(layout: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    def write(path: Path) -> None:
        match layout:
            case "plain pickle":
                path.write_bytes(pickle.dumps(Hostile(canary)))
            case "torch zip":
                torch.save({"base_model.model.x.lora_A.weight": torch.ones(2, 2), "extra": Hostile(canary)}, path)
            case _:
                torch.save({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, path.with_suffix(".good"))
                with zipfile.ZipFile(path.with_suffix(".good")) as good, zipfile.ZipFile(path, "w") as bad:
                    for name in good.namelist():
                        evil = name.endswith("data.pkl")
                        bad.writestr(name, pickle.dumps(Hostile(canary), protocol=2) if evil else good.read(name))

    folder = folder_with(tmp_path, write)
    with pytest.raises(ModelError, match="is refused: it cannot be read as plain tensors") as caught:
        convert_adapter(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not canary.exists()
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    if layout == "plain pickle":  # the canary is no dud: read without protection, it appears
        pickle.loads((folder / "adapter_model.bin").read_bytes())
        assert canary.exists()


def test_a_hostile_pickle_named_as_weights_is_never_read(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """As adapter, base, or in place of the safetensors themselves, alone or beside whole ones."""
    canary, pickled = tmp_path / "canary", pickle.dumps(Hostile(tmp_path / "canary"))
    base, adapter = make_base(), make_adapter(tmp_path / "tiny-base")
    for beside in (
        base / "pytorch_model.bin",
        base / "training_args.bin",
        adapter / "adapter_model.bin",
        adapter / "optimizer.pt",
    ):
        beside.write_bytes(pickled)
    settings = ModelSettings(base=str(base), adapter=str(adapter), device="cpu")
    open_model(settings, lambda _: None)
    for weights in (adapter / "adapter_model.safetensors", base / "model.safetensors"):
        weights.write_bytes(pickled)
        with pytest.raises(ModelError):
            open_model(settings, lambda _: None)
        weights.unlink()
        with pytest.raises(ModelError, match="pickle"):
            open_model(settings, lambda _: None)
        make_adapter(base)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"optimizer": torch.ones(2)}, "no LoRA weight"),
        ({"base_model.model.x.lora_A.weight": "text"}, "no plain floating-point tensor"),
        ({"base_model.model.x.lora_A.weight": torch.ones(2, dtype=torch.int64)}, "no plain floating-point tensor"),
        ([torch.ones(2)], "holds a list"),
        ({}, "its table is empty"),
        (b"garbage", "cannot be read as plain tensors"),
        (
            {"base_model.model.x.lora_A.weight": torch.ones(2, 2), "step": torch.ones(1)},
            "'step', which is no weight",
        ),
    ],
)
def test_what_is_no_table_of_lora_tensors_is_refused(
    table: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, since the tests before have shown that it is another that does it, and what it says is passed on."""
    assert reason in reason_for_refusing(table, tmp_path, capsys)


def reason_for_refusing(table: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    pickled = tmp_path / "adapter_model.bin"
    if isinstance(table, bytes):
        pickled.write_bytes(table)
    else:
        torch.save(table, pickled)
    with pytest.raises(SystemExit) as ended:
        unpickle.main(str(pickled), str(tmp_path / "out.safetensors"))
    assert ended.value.code == convert._REFUSED
    assert not (tmp_path / "out.safetensors").exists()
    return capsys.readouterr().err


def test_one_number_that_stands_for_many_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = {"base_model.model.x.lora_A.weight": torch.zeros(1).expand(700_000_000)}
    assert "bytes would become 2,800,000,000" in reason_for_refusing(large, tmp_path, capsys)


@pytest.mark.slow
def test_a_pickle_that_unpacks_to_gigabytes_gets_no_memory_for_them(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        torch.save({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, path.with_suffix(".good"))
        with zipfile.ZipFile(path.with_suffix(".good")) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bad:
            for name in good.namelist():
                bad.writestr(name, bytes(10**9) if name.endswith("data/0") else good.read(name))

    with pytest.raises(ModelError, match=r"is refused: it cannot be read as plain tensors .*memory"):
        convert_adapter(folder_with(tmp_path, write), tmp_path / "out")


def test_the_process_that_reads_a_pickle_has_limits_and_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in place of unpickle.py's reading, which reports what it may do."""
    report = (
        "import os, resource, sys\n"
        f"sys.path.insert(0, {str(Path(unpickle.__file__).parent)!r})\n"
        "import unpickle\n"
        "unpickle.limit_resources(1000)\n"
        "names = ('AS', 'CPU', 'FSIZE', 'NPROC', 'CORE')\n"
        "limits = [resource.getrlimit(getattr(resource, 'RLIMIT_' + name)) for name in names]\n"
        "open(sys.argv[2], 'w').write(repr((sorted(set(os.environ) - {'LC_CTYPE'}), limits)))\n"
    )
    (tmp_path / "unpickle.py").write_text(report)
    monkeypatch.setattr(convert, "__file__", str(tmp_path / "convert.py"))
    folder = folder_with(tmp_path, lambda path: path.write_bytes(b"x"))
    convert_adapter(folder, tmp_path / "out")
    environment, limits = ast.literal_eval((tmp_path / "out" / "adapter_model.safetensors").read_text())
    assert environment == []
    assert all(soft == hard >= 0 for soft, hard in limits)
    assert limits[3] == (0, 0)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, lambda path: torch.save({}, path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ModelError, match="exists already"):
        convert_adapter(folder, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_a_folder_without_a_pickle_has_nothing_to_convert(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="nothing to convert"):
        convert_adapter(make_adapter(make_base()), tmp_path / "out")
