"""Cache entries: found at later starts, written again when damaged, and left out if the cache cannot be written."""

from __future__ import annotations

import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_chat.models import LoadedModel, ModelError, cache, open_model
from qlora_chat.models.cache import new_folder
from qlora_chat.models.weights import shards
from qlora_chat.settings import ModelSettings
from tests.models.conftest import MakeAdapter, MakeBase, Publish, merged_folders, opened


def test_a_plain_bf16_base_is_read_where_it_is(make_base: MakeBase, tmp_path: Path, notices: list[str]) -> None:
    model = opened(make_base(), None, notices)
    assert (model.info.precision, model.info.adapter) == ("bf16", None)
    assert not (tmp_path / "cache").exists()


def test_a_second_start_converts_nothing(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path, notices: list[str]
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    first = opened(base, adapter, notices)
    assert any("once" in line for line in notices)
    notices.clear()
    second = opened(base, adapter, notices)
    assert not any("once" in line for line in notices)
    assert torch.equal(first.weights.norm, second.weights.norm)


def test_a_retrained_adapter_of_the_same_size_is_merged_anew(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path, notices: list[str]
) -> None:
    base = make_base()
    opened(base, make_adapter(base, seed=1), notices)
    opened(base, make_adapter(base, seed=2), notices)
    assert len(merged_folders(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["truncated", "lost file", "no record", "garbled header"])
def test_a_damaged_entry_is_reported_and_written_again(
    damage: str, make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path, notices: list[str]
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    opened(base, adapter, notices)
    (folder,) = merged_folders(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    match damage:
        case "truncated":
            weights.write_bytes(whole[: len(whole) // 2])
        case "lost file":
            (folder / "config.json").unlink()
        case "no record":
            (folder / "qlora_chat.json").unlink()
        case _:
            weights.write_bytes(b"\xff" * 16 + whole[16:])
    notices.clear()
    opened(base, adapter, notices)
    assert any("damaged" in line for line in notices)
    assert weights.read_bytes() == whole


def test_a_killed_write_leaves_nothing_that_counts(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    target = tmp_path / "entry"

    def write_half() -> None:
        with new_folder(target) as folder:
            (folder / "half").write_text("half")
            raise Killed

    with pytest.raises(Killed):
        write_half()
    assert list(tmp_path.iterdir()) == []
    abandoned = tmp_path / f".entry.{2**22 + 1}"  # what kill -9 leaves: a folder of a process that is no more
    abandoned.mkdir()
    with new_folder(target) as folder:
        (folder / "whole").write_text("whole")
    assert [each.name for each in tmp_path.iterdir()] == ["entry"]


def test_an_entry_that_another_process_wrote_meanwhile_stays(tmp_path: Path, notices: list[str]) -> None:
    store = cache.Cache(tmp_path, notices.append)

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "config.json").write_text("{}")
        if not (tmp_path / "merged" / "key").exists():
            store.write("merged", "key", lambda other: fill_first(other))
        return {}

    def fill_first(folder: Path) -> dict[str, Any]:
        (folder / "config.json").write_text("{ }")
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.getpid", iter((os.getpid(), 1)).__next__)
        store.write("merged", "key", fill)
    assert (tmp_path / "merged" / "key" / "config.json").read_text() == "{ }"


@pytest.fixture
def unwritable_cache(tmp_path: Path) -> str:
    """A cache folder that cannot be made, because a file is in its place (root may write to any folder)."""
    (tmp_path / "a-file").write_text("not a folder")
    return str(tmp_path / "a-file")


def test_without_a_writable_cache_a_merge_stays_in_memory(
    make_base: MakeBase, make_adapter: MakeAdapter, unwritable_cache: str, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    expected = opened(base, adapter, notices)
    monkeypatch.setenv("QLORA_CHAT_CACHE", unwritable_cache)
    notices.clear()
    model = opened(base, adapter, notices)
    assert any("nothing is cached for the next start" in line and "QLORA_CHAT_CACHE" in line for line in notices)
    x = torch.randn(2, model.weights.shape.hidden).bfloat16()
    assert torch.equal(model.weights.layers[0].gate_up(x), expected.weights.layers[0].gate_up(x))
    assert expected.info.merge
    assert expected.info.merge.made, "a merge in the cache has a date"
    assert model.info == replace(expected.info, merge=replace(expected.info.merge, made=None))


@pytest.mark.slow
def test_without_a_writable_cache_a_requantized_merge_stays_in_memory(
    demo_in_nf4: tuple[Path, LoadedModel], unwritable_cache: str, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    monkeypatch.setenv("QLORA_CHAT_CACHE", unwritable_cache)
    model = open_model(ModelSettings(model="demo", precision="nf4", device="cpu"), notices.append)
    expected = demo_in_nf4[1]
    x = torch.randn(2, 576).bfloat16()
    assert torch.equal(model.weights.layers[3].attention_out(x), expected.weights.layers[3].attention_out(x))
    assert expected.info.merge
    assert expected.info.merge.made, "a merge in the cache has a date"
    assert model.info == replace(expected.info, merge=replace(expected.info.merge, made=None))


def test_a_merge_whose_nf4_base_cannot_be_stored_is_refused_at_once(
    make_base: MakeBase, make_adapter: MakeAdapter, unwritable_cache: str, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    base = make_base()
    monkeypatch.setenv("QLORA_CHAT_CACHE", unwritable_cache)
    with pytest.raises(ModelError, match="set QLORA_CHAT_CACHE to another folder"):
        opened(base, make_adapter(base), notices, "nf4")
    assert len([line for line in notices if "converting tiny-base" in line]) == 1
    assert not any("nothing is cached for the next start" in line for line in notices)


def test_a_disk_that_fills_up_in_the_middle_leaves_no_half_entry(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path, notices: list[str]
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        model = opened(base, adapter, notices)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert any("nothing is cached" in line for line in notices)
    assert list((tmp_path / "cache" / "merged").iterdir()) == []
    assert model.info.precision == "bf16"


def test_too_little_room_is_seen_before_the_work(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    base = make_base()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    opened(base, make_adapter(base), notices)
    assert any("0.0 GB free" in line for line in notices)


def test_a_hub_base_may_be_deleted_once_it_is_merged(
    make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, tmp_path: Path, notices: list[str]
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    snapshot = in_hub_cache("org/tiny", base)
    settings = ModelSettings(base="org/tiny", adapter=str(adapter), device="cpu")
    first = open_model(settings, notices.append)
    shutil.rmtree(snapshot)
    notices.clear()
    second = open_model(settings, notices.append)
    assert any("org/tiny is no longer on this machine" in line for line in notices)
    assert replace(second.info, base_sha256=first.info.base_sha256) == first.info, "the base's hash went with its files"
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        open_model(ModelSettings(base="org/tiny", adapter=str(adapter), device="cpu", precision="nf4"), notices.append)


def test_large_models_are_written_in_shards_that_transformers_reads(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transformers: Any
) -> None:
    base, notices = make_base(), []
    monkeypatch.setattr(shards, "SHARD_BYTES", 1_000_000)
    model = opened(base, make_adapter(base), notices)
    (folder,) = merged_folders(tmp_path)
    assert len(list(folder.glob("model-0*-of-0*.safetensors"))) > 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(theirs.model.embed_tokens.weight, model.weights.embeddings)


def test_a_cached_merge_is_matched_by_the_adapters_files_and_not_by_its_name(
    make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, tmp_path: Path, notices: list[str]
) -> None:
    base = make_base()
    runs = [tmp_path / run / "adapter_model" for run in ("run1", "run2")]
    for seed, folder in enumerate(runs):
        shutil.copytree(make_adapter(base, seed=seed), folder)
    snapshot = in_hub_cache("org/tiny", base)
    open_model(ModelSettings(base="org/tiny", adapter=str(runs[0]), device="cpu"), notices.append)
    shutil.rmtree(snapshot)
    open_model(ModelSettings(base="org/tiny", adapter=str(runs[0]), device="cpu"), notices.append)
    with pytest.raises(ModelError):
        open_model(ModelSettings(base="org/tiny", adapter=str(runs[1]), device="cpu"), notices.append)
