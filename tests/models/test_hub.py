"""Fetching from a Hub: a real client against a server on loopback that answers as the Hub does."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from qlora_chat.models import ModelError
from qlora_chat.models.hub import (
    PINNED,
    Hub,
    adapter_files,
    adapter_files_or_pickle,
    base_files,
    base_files_without_weights,
    is_hub_id,
)
from tests.models.conftest import LocalHub

FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w" * 5_000_000, "pytorch_model.bin": b"pickle"}


@pytest.fixture
def hub(local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    local_hub.files["org/tiny"] = dict(FILES)
    return Hub(tmp_path / "hub", offline=False, endpoint=local_hub.address)


def test_fetches_what_is_needed_says_how_much_and_finds_it_again(hub: Hub, local_hub: LocalHub, notices: list[str]) -> None:
    snapshot = hub.fetch("org/tiny", base_files, notices.append)
    folder = snapshot.existing_folder()
    assert sorted(each.name for each in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "pytorch_model.bin" not in local_hub.fetched
    assert notices == [f"fetching org/tiny: 5.0 MB into {hub.cache} (a broken download goes on where it stopped)"]
    found = hub.cached("org/tiny")
    assert found is not None
    assert found.existing_folder().samefile(snapshot.existing_folder())
    local_hub.fetched.clear()
    hub.fetch("org/tiny", base_files, notices.append)
    assert local_hub.fetched == []
    assert "0.0 MB" in notices[-1]


def test_a_base_on_another_server_brings_every_file_of_its_tokenizer() -> None:
    """Ids of added tokens beside a tokenizer.model stand in added_tokens.json alone."""
    names = ["added_tokens.json", "config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"]
    assert set(names) - set(base_files_without_weights("org/tiny", names)) == {"model.safetensors"}


def test_a_commit_is_fetched_and_recorded(
    hub: Hub, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    """The newest of the main branch, or the one that this program names; never a branch, which may move in between."""
    assert hub.fetch("org/tiny", base_files, notices.append).revision == "c" * 40
    monkeypatch.setitem(PINNED, "org/tiny", "d" * 40)
    snapshot = hub.fetch("org/tiny", base_files, notices.append)
    assert (snapshot.revision, snapshot.existing_folder().name) == ("d" * 40, "d" * 40)
    (hub.cache / "models--org--tiny" / "refs" / "main").write_text("c" * 40)
    assert hub.cached("org/tiny") == snapshot, "the pinned commit is preferred"


def test_later_fetches_take_the_commit_of_the_first(hub: Hub, local_hub: LocalHub, notices: list[str]) -> None:
    first = hub.fetch("org/tiny", base_files, notices.append)
    local_hub.newest = "e" * 40
    (first.existing_folder() / "config.json").unlink()  # as after a broken download
    assert hub.fetch("org/tiny", base_files, notices.append).revision == first.revision
    local_hub.refusals["org/tiny"] = (404, "RevisionNotFound")
    with pytest.raises(ModelError, match="no longer has the commit .* that was fetched before"):
        hub.fetch("org/tiny", base_files, notices.append)


def test_a_hub_that_describes_another_commit_than_the_pinned_one_is_refused(
    hub: Hub, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    monkeypatch.setitem(PINNED, "org/tiny", "v1.0")
    with pytest.raises(ModelError, match=r"the Hub describes org/tiny at 'v1\.0': not at v1\.0"):
        hub.fetch("org/tiny", base_files, notices.append)
    assert local_hub.fetched == []


@pytest.mark.parametrize("reference", ["../../../elsewhere", "/tmp", "main", "", "\xff"])
def test_a_reference_that_is_no_commit_leads_nowhere(reference: str, hub: Hub) -> None:
    refs = hub.cache / "models--org--tiny" / "refs"
    refs.mkdir(parents=True)
    (hub.cache / "elsewhere").mkdir()
    (refs / "main").write_text(reference, encoding="latin-1")
    assert hub.cached("org/tiny") is None


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "GatedRepo", "accept its licence"),
        (401, "RepoNotFound", "check the spelling, or set HF_TOKEN"),
        (404, "RepoNotFound", "check the spelling"),
        (403, "", "set HF_TOKEN to a token that may read it"),
        (500, "", "could not be fetched"),
    ],
)
def test_refusals_say_what_to_do(
    status: int, code: str, advice: str, hub: Hub, local_hub: LocalHub, notices: list[str]
) -> None:
    local_hub.refusals["org/tiny"] = (status, code)
    with pytest.raises(ModelError, match=advice) as caught:
        hub.fetch("org/tiny", base_files, notices.append)
    assert "org/tiny" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_there_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: list[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match=r"could not be fetched: .*; check connection and disk"):
        Hub(tmp_path, offline=False, endpoint="http://127.0.0.1:9").fetch("org/tiny", base_files, notices.append)


def test_a_disk_too_small_is_seen_before_the_download(
    hub: Hub, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1_000_000))
    with pytest.raises(ModelError, match=r"takes 5.0 MB, but .* has 1.0 MB free"):
        hub.fetch("org/tiny", base_files, notices.append)
    assert local_hub.fetched == []


def test_the_hub_responds_within_the_time_or_counts_as_absent(hub: Hub, tmp_path: Path) -> None:
    assert hub.responds("org/tiny")
    assert not Hub(tmp_path, offline=True).responds("org/tiny")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never says a word
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert not Hub(tmp_path, offline=False, endpoint=endpoint).responds("org/tiny", seconds=0.5)


def test_only_safetensors_configs_and_tokenizers_are_selected() -> None:
    names = ["README.md", "config.json", "consolidated.safetensors", "model-00001-of-00002.safetensors", "run.py",
             "model-00002-of-00002.safetensors", "model.safetensors.index.json", "original/model.safetensors",
             "pytorch_model.bin", "tokenizer.model", "training_args.bin"]  # fmt: skip
    assert sorted(base_files("org/x", names)) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "tokenizer.model",
    ]  # fmt: skip
    with pytest.raises(ModelError, match="only pickled weights"):
        base_files("org/x", ["config.json", "pytorch_model.bin"])
    with pytest.raises(ModelError, match="no model"):
        base_files("org/x", ["README.md"])


def test_an_adapters_pickle_is_fetched_only_for_automatic_conversion() -> None:
    names = ["adapter_config.json", "adapter_model.bin", "README.md"]
    assert adapter_files_or_pickle("org/x", names) == ["adapter_model.bin", "adapter_config.json"]
    with pytest.raises(ModelError, match="qlora-chat convert-adapter"):
        adapter_files("org/x", names)
    assert adapter_files_or_pickle("org/x", [*names, "adapter_model.safetensors"])[0] == "adapter_model.safetensors"
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        adapter_files("org/x", ["README.md"])


@pytest.mark.parametrize(("text", "expected"), [("huggyllama/llama-7b", True), ("./x", False), ("/x/y", False), ("x", False)])
def test_hub_ids_and_folders_are_distinguished(text: str, expected: bool) -> None:
    assert is_hub_id(text) is expected
