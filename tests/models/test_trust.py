"""Links, indexes, names and caches that say more than they may: refused, or not believed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_chat.models import ModelError, part
from qlora_chat.models.cache import Cache, CacheUnusable
from qlora_chat.models.folders import Base
from qlora_chat.models.part import ModelPart
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.trust import SMALL_FILE, TOKENIZER_FILE, check_private, read_json
from qlora_chat.models.weights.checkpoint import Checkpoint, read_headers, read_index
from qlora_chat.models.weights.shards import write_small_files
from tests.models.conftest import MakeAdapter, MakeBase, opened

WEIGHTS = "adapter_model.safetensors"


def linked(file: Path, target: Path) -> Path:
    """The file moved to `target`, with a link in its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file.rename(target)
    file.symlink_to(target)
    return file


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- links --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_link_out_of_a_base_is_not_followed(name: str, make_base: MakeBase, tmp_path: Path, notices: list[str]) -> None:
    base = make_base()
    linked(base / name, tmp_path / "elsewhere" / name)
    with pytest.raises(ModelError, match=rf"{name} is a link to .*elsewhere.*, outside of its folder"):
        opened(base, None, notices)


def test_a_link_out_of_an_adapter_is_not_followed(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path, notices: list[str]
) -> None:
    base = make_base()
    adapter = make_adapter(base)
    linked(adapter / WEIGHTS, tmp_path / "elsewhere" / WEIGHTS)
    with pytest.raises(ModelError, match="outside of its folder"):
        opened(base, adapter, notices)


def test_files_that_are_only_copied_are_not_copied_through_a_link(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base()
    (tmp_path / "secret").write_text("{}")
    (base / "special_tokens_map.json").symlink_to(tmp_path / "secret")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"special_tokens_map\.json is a link"):
        write_small_files(tmp_path / "out", {}, {}, base, base, stored="bf16")
    assert not (tmp_path / "out" / "special_tokens_map.json").exists()


def test_a_link_named_by_a_hash_is_hashed_all_the_same(make_base: MakeBase, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(make_base())
    real = sha256(adapter / WEIGHTS)
    linked(adapter / WEIGHTS, adapter / "blobs" / ("a" * 64))
    assert ModelPart("x", adapter).weights_sha256() == real
    assert ModelPart("x", adapter).fingerprints[WEIGHTS] == f"sha256:{real}"


def in_store(store: Path, adapter: Path) -> Path:
    """The adapter as the Hub's client lays it out, its weights under a name that is not their hash."""
    repository = store / "models--org--adapter"
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(adapter, snapshot)
    linked(snapshot / WEIGHTS, repository / "blobs" / ("a" * 64))
    return snapshot


def test_names_are_hashes_only_in_the_store_of_the_hubs_client(
    make_base: MakeBase, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(make_base())
    real = sha256(adapter / WEIGHTS)
    store = tmp_path / "store"
    snapshot = in_store(store, adapter)
    assert ModelPart("x", snapshot, store=store).weights_sha256() == "a" * 64
    assert ModelPart("x", snapshot).weights_sha256() == real, "a folder by its path may imitate the layout"
    assert ModelPart("x", snapshot, store=tmp_path / "another").weights_sha256() == real
    for loose in (store, store / "models--org--adapter" / "blobs"):
        loose.chmod(0o777)
        assert ModelPart("x", snapshot, store=store).weights_sha256() == real, "others could have written it"
        loose.chmod(0o700)


def test_a_large_file_is_not_told_apart_by_what_an_archive_can_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "HASHED_UP_TO", 10)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name * 10)
        os.utime(tmp_path / name / "model.safetensors", (1, 1))
    first, second = (ModelPart("x", tmp_path / name).fingerprints for name in ("one", "two"))
    assert first != second
    assert first == ModelPart("y", tmp_path / "one").fingerprints


# --- indexes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["weights.bin", "../elsewhere.safetensors", "/x/y.safetensors", "a/b.safetensors", 3, None])
def test_an_index_names_safetensors_of_its_own_folder_only(
    target: Any, make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str]
) -> None:
    base = make_base()
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": target}}))
    with pytest.raises(ModelError, match=r"may name \*\.safetensors of its own folder only"):
        opened(base, make_adapter(base), notices)


def test_an_index_must_name_the_file_that_holds_a_tensor(make_base: MakeBase) -> None:
    """Else Transformers, which goes by the index, would read others than those that were checked."""
    base = make_base()
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    save_file({"other": torch.ones(1)}, base / "model-00002-of-00002.safetensors")
    (base / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(tensors, "model-00002-of-00002.safetensors")})
    )
    with pytest.raises(ModelError, match="in model-00002-of-00002.safetensors, which does not hold it"):
        Base.read(base).check_weights()
    (base / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(ModelError, match="holds no table of tensors"):
        read_index(base)


def test_two_files_may_not_hold_one_tensor(make_base: MakeBase) -> None:
    base = make_base()
    shutil.copyfile(base / "model.safetensors", base / "other.safetensors")
    with pytest.raises(ModelError, match=r"two files of .* hold lm_head.weight"):
        read_headers(base)


def test_a_base_that_is_an_adapter_too_is_not_merged(
    make_base: MakeBase, make_adapter: MakeAdapter, notices: list[str]
) -> None:
    """Transformers would load the base that its adapter_config.json names."""
    base = make_base()
    adapter = make_adapter(base)
    shutil.copyfile(adapter / "adapter_config.json", base / "adapter_config.json")
    with pytest.raises(ModelError, match=r"is a base and holds an adapter_config\.json"):
        opened(base, adapter, notices)


# --- sizes --------------------------------------------------------------------------------------------------------------


def test_files_too_large_for_their_kind_are_not_read(tmp_path: Path) -> None:
    for name, most in (("config.json", SMALL_FILE), ("tokenizer.json", TOKENIZER_FILE)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(most + 1)
    with pytest.raises(ModelError, match=r"config\.json is 33,554,433 bytes, but a file of this kind"):
        read_json(tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"tokenizer\.json is 67,108,865 bytes"):
        ModelTokenizer.read(tmp_path, None)


# --- caches -------------------------------------------------------------------------------------------------------------


def entry_in(root: Path, notices: list[str]) -> tuple[Cache, Path]:
    """A cache with one whole entry."""

    def fill(folder: Path) -> dict[str, Any]:
        save_file({"a": torch.ones(1)}, folder / "model.safetensors")
        return {}

    cache = Cache(root, notices.append)
    return cache, cache.write("merged", "key", fill).folder


def test_an_entry_is_for_its_user_alone(tmp_path: Path, notices: list[str]) -> None:
    before = os.umask(0)
    try:
        cache, folder = entry_in(tmp_path / "cache", notices)
    finally:
        os.umask(before)
    assert cache.find("merged", "key")
    modes = {path.stat().st_mode & 0o777 for path in (folder, folder.parent, tmp_path / "cache")}
    assert modes == {0o700}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("which", [".", "merged", "merged/key", "merged/key/model.safetensors"])
def test_what_others_can_write_to_is_not_read_from_the_cache(which: str, tmp_path: Path, notices: list[str]) -> None:
    cache, _ = entry_in(tmp_path / "cache", notices)
    (tmp_path / "cache" / which).chmod(0o777)
    assert cache.find("merged", "key") is None
    assert cache.entries("merged") == []
    assert "is left out" in notices[0]
    assert "other users can write to it, so it is not trusted: chmod -R go-w" in notices[0]
    if which in (".", "merged"):
        with pytest.raises(CacheUnusable, match="other users can write"):
            cache.write("merged", "other", lambda folder: {})


def test_a_cache_whose_folder_others_can_replace_is_not_read(tmp_path: Path, notices: list[str]) -> None:
    above = tmp_path / "shared"
    cache, _ = entry_in(above / "user" / "cache", notices)
    assert cache.find("merged", "key")
    above.chmod(0o777)
    assert cache.find("merged", "key") is None
    assert f"{above}: other users can write to it and replace what is in it" in notices[-1]
    above.chmod(0o1777)  # as /tmp: others cannot move what they do not own
    assert cache.find("merged", "key")


def test_a_link_that_others_can_replace_leads_to_no_cache(tmp_path: Path, notices: list[str]) -> None:
    entry_in(tmp_path / "real" / "cache", notices)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "real")
    through = Cache(tmp_path / "shared" / "link" / "cache", notices.append)
    assert through.find("merged", "key")
    (tmp_path / "shared").chmod(0o777)
    assert through.find("merged", "key") is None


def test_a_link_in_the_cache_is_not_read(tmp_path: Path, notices: list[str]) -> None:
    cache, folder = entry_in(tmp_path / "cache", notices)
    linked(folder / "model.safetensors", tmp_path / "elsewhere" / "model.safetensors")
    assert cache.find("merged", "key") is None
    with pytest.raises(ModelError, match="outside of its folder"):
        Checkpoint(folder)


def test_what_another_user_owns_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    check_private(file)
    if os.geteuid() == 0:
        os.chown(file, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(PermissionError, match="it belongs to user"):
        check_private(file)
