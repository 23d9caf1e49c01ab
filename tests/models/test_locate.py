"""Which model a name means, where it is looked for, and what `auto` prefers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qlora_chat.models import ModelError
from qlora_chat.models.cache import Cache
from qlora_chat.models.hub import Hub
from qlora_chat.models.locate import Source, resolve
from qlora_chat.models.placement import GIB, DeviceMemory
from qlora_chat.settings import ModelSettings, hub_cache_folder
from tests.models.conftest import LocalHub, MakeAdapter, MakeBase, Publish

BIG_CARD, SMALL_CARD, MEMORY = DeviceMemory("cuda", 24 * GIB), DeviceMemory("cuda", 5 * GIB), DeviceMemory("cpu", 24 * GIB)


def resolved(
    settings: ModelSettings,
    said: list[str],
    tmp_path: Path,
    *places: DeviceMemory,
    offline: bool = True,
    endpoint: str | None = None,
) -> Source:
    hub = Hub(hub_cache_folder(), offline, endpoint)
    return resolve(settings, hub, Cache(tmp_path / "cache", said.append), places or (MEMORY,), said.append)


def put_guanaco(make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, *, pickled: bool = True) -> None:
    base = make_base()
    in_hub_cache("huggyllama/llama-7b", base)
    in_hub_cache("timdettmers/guanaco-7b", make_adapter(base, pickled=pickled))


def test_the_demo_is_the_bundled_model(said: list[str], tmp_path: Path) -> None:
    source = resolved(ModelSettings(model="demo"), said, tmp_path)
    assert source.name == "Llama-Lumi-45M (demo)"
    assert source.base.folder is not None
    assert (source.base.folder / "config.json").is_file()
    assert len(source.notices) == 1


def test_guanaco_is_found_in_the_hubs_cache_and_its_pickle_converted_once(
    make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, said: list[str], tmp_path: Path
) -> None:
    put_guanaco(make_base, make_adapter, in_hub_cache)
    source = resolved(ModelSettings(model="guanaco-7b"), said, tmp_path)
    assert (source.name, source.base.name) == ("guanaco-7b", "huggyllama/llama-7b")
    assert source.base.revision == "a" * 40
    assert source.adapter is not None
    assert source.adapter.folder is not None
    assert (source.adapter.folder / "adapter_model.safetensors").is_file()
    assert not list(source.adapter.folder.glob("*.bin"))
    assert sum("published as a pickle" in line for line in said) == 1
    said.clear()
    assert resolved(ModelSettings(model="guanaco-7b"), said, tmp_path) == source
    assert said == []


def test_auto_takes_guanaco_where_it_is_cached_and_fits(
    make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, said: list[str], tmp_path: Path
) -> None:
    put_guanaco(make_base, make_adapter, in_hub_cache)
    assert resolved(ModelSettings(), said, tmp_path, MEMORY).name == "guanaco-7b"


@pytest.mark.parametrize(
    ("cached", "places", "reason"),
    [
        (True, (DeviceMemory("cpu", GIB // 4),), "does not fit"),
        (False, (MEMORY,), "no graphics card with 6 GiB free"),
        (False, (SMALL_CARD, MEMORY), "no graphics card with 6 GiB free"),
        (False, (BIG_CARD, MEMORY), "HF_HUB_OFFLINE is set"),
    ],
)
def test_auto_falls_back_to_the_demo_with_one_line_that_says_why_and_how(
    cached: bool,
    places: tuple[DeviceMemory, ...],
    reason: str,
    make_base: MakeBase,
    make_adapter: MakeAdapter,
    in_hub_cache: Publish,
    said: list[str],
    tmp_path: Path,
) -> None:
    if cached:
        put_guanaco(make_base, make_adapter, in_hub_cache)
    source = resolved(ModelSettings(), said, tmp_path, *places)
    assert source.name == "Llama-Lumi-45M (demo)"
    _, why = source.notices
    assert reason in why
    assert "\n" not in why
    assert "qlora-chat serve --model guanaco-7b" in why


def test_auto_falls_back_when_the_hub_does_not_answer(said: list[str], tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"
    source = resolved(ModelSettings(), said, tmp_path, BIG_CARD, offline=False, endpoint=nobody)
    assert "the Hub did not answer within 3 s" in source.notices[1]


def test_auto_fetches_guanaco_for_a_card_when_the_hub_answers(
    make_base: MakeBase,
    make_adapter: MakeAdapter,
    local_hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    tmp_path: Path,
) -> None:
    base = make_base(tmp_path / "far" / "base")
    adapter = make_adapter(base, tmp_path / "far" / "adapter", pickled=True)
    local_hub.files["huggyllama/llama-7b"] = {each.name: each.read_bytes() for each in base.iterdir()}
    local_hub.files["timdettmers/guanaco-7b"] = {each.name: each.read_bytes() for each in adapter.iterdir()}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    source = resolved(ModelSettings(), said, tmp_path, BIG_CARD, offline=False, endpoint=local_hub.address)
    assert source.name == "guanaco-7b"
    assert any("fetching huggyllama/llama-7b" in line for line in said)
    assert any("published as a pickle" in line for line in said)


def test_a_base_half_downloaded_is_not_taken_for_whole(
    make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, said: list[str], tmp_path: Path
) -> None:
    base = make_base()
    snapshot = in_hub_cache("org/big", base)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"org/big is not on this machine .* HF_HUB_OFFLINE"):
        resolved(ModelSettings(base="org/big"), said, tmp_path)


def test_the_vanished_repository_is_an_alias(
    make_base: MakeBase, in_hub_cache: Publish, said: list[str], tmp_path: Path
) -> None:
    in_hub_cache("huggyllama/llama-7b", make_base())
    source = resolved(ModelSettings(base="decapoda-research/llama-7b-hf"), said, tmp_path)
    assert source.base.name == "huggyllama/llama-7b"
    assert said == [
        "decapoda-research/llama-7b-hf is gone from the Hub; huggyllama/llama-7b holds the same weights and is used instead"
    ]


def test_another_hub_adapter_in_pickle_form_names_the_command(
    make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish, said: list[str], tmp_path: Path
) -> None:
    from qlora_chat.models.locate import check_source

    base = make_base()
    in_hub_cache("org/old-adapter", make_adapter(base, pickled=True))
    source = resolved(ModelSettings(base=str(base), adapter="org/old-adapter"), said, tmp_path)
    with pytest.raises(ModelError, match=r"qlora-chat convert-adapter .*snapshots.* NEW_FOLDER"):
        check_source(source)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "no-slash", "a/b/c", "../up/dir", "org/na me"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name: str, said: list[str], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder, and a Hub id looks like owner/name"):
        resolved(ModelSettings(base=name), said, tmp_path)


def test_hub_offline_never_touches_the_network(local_hub: LocalHub, said: list[str], tmp_path: Path) -> None:
    local_hub.files["org/tiny"] = {"config.json": b"{}", "model.safetensors": b"x"}
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
        resolved(ModelSettings(base="org/tiny"), said, tmp_path, endpoint=local_hub.address)
    assert local_hub.fetched == []


def test_torch_is_not_asked_about_cards_for_a_plain_cpu() -> None:
    from qlora_chat.models.placement import detect_devices

    (place,) = detect_devices("cpu")
    assert place.device == "cpu"
    assert place.free > 0
    assert len(detect_devices("auto")) == 1 + torch.cuda.is_available()
