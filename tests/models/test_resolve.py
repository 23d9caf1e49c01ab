"""The model that settings mean, where it is searched for, and the preferences of `auto`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from qlora_chat.models import ModelError
from qlora_chat.models.cache import Cache
from qlora_chat.models.hub import Hub
from qlora_chat.models.placement import GIB, DeviceMemory
from qlora_chat.models.plan import ResolvedModel
from qlora_chat.models.resolve import resolve
from qlora_chat.settings import ModelSettings, hub_cache_folder
from tests.models.conftest import LocalHub, MakeAdapter, MakeBase, Publish

BIG_CARD, SMALL_CARD, MEMORY = DeviceMemory("cuda", 24 * GIB), DeviceMemory("cuda", 5 * GIB), DeviceMemory("cpu", 24 * GIB)


def resolved(
    settings: ModelSettings,
    notices: list[str],
    tmp_path: Path,
    *devices: DeviceMemory,
    offline: bool = True,
    endpoint: str | None = None,
) -> ResolvedModel:
    hub = Hub(hub_cache_folder(), offline, endpoint)
    return resolve(settings, hub, Cache(tmp_path / "cache", notices.append), devices or (MEMORY,), notices.append)


def put_guanaco(make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, *, pickled: bool = True) -> None:
    base = make_base()
    in_hub_cache("huggyllama/llama-7b", base)
    in_hub_cache("timdettmers/guanaco-7b", make_adapter(base, pickled=pickled))


def test_the_demo_is_the_bundled_model(notices: list[str], tmp_path: Path) -> None:
    model = resolved(ModelSettings(model="demo"), notices, tmp_path)
    assert model.name == "Llama-Lumi-45M (demo)"
    assert model.base.folder is not None
    assert (model.base.folder / "config.json").is_file()
    assert len(model.notices) == 1


def test_guanaco_is_found_in_the_hubs_cache_and_its_pickle_converted_once(
    make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, notices: list[str], tmp_path: Path
) -> None:
    put_guanaco(make_base, make_adapter, in_hub_cache)
    model = resolved(ModelSettings(model="guanaco-7b"), notices, tmp_path)
    assert (model.name, model.base.name) == ("guanaco-7b", "huggyllama/llama-7b")
    assert model.base.revision == "a" * 40
    assert model.adapter is not None
    assert model.adapter.folder is not None
    assert (model.adapter.folder / "adapter_model.safetensors").is_file()
    assert not list(model.adapter.folder.glob("*.bin"))
    assert sum("published as a pickle" in line for line in notices) == 1
    notices.clear()
    assert resolved(ModelSettings(model="guanaco-7b"), notices, tmp_path) == model
    assert notices == []


def test_auto_takes_guanaco_where_it_is_cached_and_fits(
    make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, notices: list[str], tmp_path: Path
) -> None:
    put_guanaco(make_base, make_adapter, in_hub_cache, pickled=False)
    assert resolved(ModelSettings(), notices, tmp_path, MEMORY).name == "guanaco-7b"


@pytest.mark.parametrize(
    ("cached", "devices", "reason"),
    [
        (True, (DeviceMemory("cpu", GIB),), "does not fit"),
        (False, (MEMORY,), "no graphics card with 6 GiB free"),
        (False, (SMALL_CARD, MEMORY), "no graphics card with 6 GiB free"),
        (False, (BIG_CARD, MEMORY), "HF_HUB_OFFLINE is set"),
    ],
)
def test_auto_falls_back_to_the_demo_with_one_line_that_says_why_and_how(
    cached: bool,
    devices: tuple[DeviceMemory, ...],
    reason: str,
    make_base: MakeBase,
    make_adapter: MakeAdapter,
    in_hub_cache: Publish,
    notices: list[str],
    tmp_path: Path,
) -> None:
    if cached:
        put_guanaco(partial(make_base, max_position_embeddings=2**22), make_adapter, in_hub_cache, pickled=False)
    model = resolved(ModelSettings(), notices, tmp_path, *devices)
    assert model.name == "Llama-Lumi-45M (demo)"
    _, why = model.notices
    assert reason in why
    assert "\n" not in why
    assert "qlora-chat serve --model guanaco-7b" in why


def test_auto_falls_back_when_the_hub_does_not_answer(notices: list[str], tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"
    model = resolved(ModelSettings(), notices, tmp_path, BIG_CARD, offline=False, endpoint=nobody)
    assert "the Hub did not answer within 3 s" in model.notices[1]


def test_auto_fetches_guanaco_for_a_card_when_the_hub_answers(
    make_base: MakeBase,
    make_adapter: MakeAdapter,
    local_hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
    notices: list[str],
    tmp_path: Path,
) -> None:
    base = make_base(tmp_path / "far" / "base")
    adapter = make_adapter(base, tmp_path / "far" / "adapter", pickled=True)
    local_hub.files["huggyllama/llama-7b"] = {each.name: each.read_bytes() for each in base.iterdir()}
    local_hub.files["timdettmers/guanaco-7b"] = {each.name: each.read_bytes() for each in adapter.iterdir()}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    model = resolved(ModelSettings(), notices, tmp_path, BIG_CARD, offline=False, endpoint=local_hub.address)
    assert model.name == "guanaco-7b"
    assert any("fetching huggyllama/llama-7b" in line for line in notices)
    assert any("published as a pickle" in line for line in notices)


def test_a_base_half_downloaded_is_not_taken_for_whole(
    make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, notices: list[str], tmp_path: Path
) -> None:
    base = make_base()
    snapshot = in_hub_cache("org/big", base)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"org/big is not on this machine .* HF_HUB_OFFLINE"):
        resolved(ModelSettings(base="org/big"), notices, tmp_path)


def test_the_vanished_repository_is_an_alias(
    make_base: MakeBase, in_hub_cache: Publish, notices: list[str], tmp_path: Path
) -> None:
    in_hub_cache("huggyllama/llama-7b", make_base())
    model = resolved(ModelSettings(base="decapoda-research/llama-7b-hf"), notices, tmp_path)
    assert model.base.name == "huggyllama/llama-7b"
    assert notices == [
        "decapoda-research/llama-7b-hf is gone from the Hub; huggyllama/llama-7b holds the same weights and is used instead"
    ]


def test_another_hub_adapter_in_pickle_form_names_the_command(
    make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, notices: list[str], tmp_path: Path
) -> None:
    base = make_base()
    in_hub_cache("org/old-adapter", make_adapter(base, pickled=True))
    with pytest.raises(ModelError, match=r"qlora-chat convert-adapter .*snapshots.* NEW_FOLDER"):
        resolved(ModelSettings(base=str(base), adapter="org/old-adapter"), notices, tmp_path)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "no-slash", "a/b/c", "../up/dir", "org/na me"])
def test_names_that_are_neither_folder_nor_hub_id_are_refused(name: str, notices: list[str], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder, and a Hub id looks like owner/name"):
        resolved(ModelSettings(base=name), notices, tmp_path)


def test_hub_offline_never_touches_the_network(local_hub: LocalHub, notices: list[str], tmp_path: Path) -> None:
    local_hub.files["org/tiny"] = {"config.json": b"{}", "model.safetensors": b"x"}
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
        resolved(ModelSettings(base="org/tiny"), notices, tmp_path, endpoint=local_hub.address)
    assert local_hub.fetched == []
