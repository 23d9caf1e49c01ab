"""Opening a model is a straight path: every name is resolved once, every file read once, every weight file hashed once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

from qlora_chat.models import ModelInfo, folders, open_model, part
from qlora_chat.models.adapter import folder as adapter_folder
from qlora_chat.models.hub import Hub
from qlora_chat.models.weights import checkpoint, shards
from qlora_chat.settings import ModelSettings
from tests.models.conftest import MakeAdapter, MakeBase, Publish


class Accesses:
    """Counts what is done while a model is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: Counter[str] = Counter()
        self.texts: Counter[Path] = Counter()
        self.hashes: Counter[Path] = Counter()
        self.headers: Counter[Path] = Counter()
        self.weights: Counter[Path] = Counter()
        cached, read_text = Hub.cached, Path.read_text
        sha256, read_header, safe_open = part.sha256, checkpoint.read_header, checkpoint.safe_open

        def count_name(hub: Hub, repository: str) -> object:
            self.names[repository] += 1
            return cached(hub, repository)

        def count_text(path: Path, *args: str, **options: str) -> str:
            self.texts[path.resolve()] += path.suffix == ".json"
            return read_text(path, *args, **options)

        def count_hash(path: Path) -> str:
            self.hashes[path] += 1
            return sha256(path)

        def count_header(path: Path) -> object:
            self.headers[path] += 1
            return read_header(path)

        def count_open(path: Path, **options: str) -> object:
            if options["framework"] == "pt":  # with numpy only a header is read, which is counted above
                self.weights[path] += 1
            return safe_open(path, **options)  # type: ignore[no-untyped-call]

        patch.setattr(Hub, "cached", count_name)
        patch.setattr(Path, "read_text", count_text)
        patch.setattr(part, "sha256", count_hash)
        for module in (checkpoint, adapter_folder, folders):
            patch.setattr(module, "read_header", count_header)
        patch.setattr(checkpoint, "safe_open", count_open)

    def repeated(self) -> dict[str, int]:
        counters = (self.names, self.texts, self.hashes, self.headers, self.weights)
        return {str(name): count for counter in counters for name, count in counter.items() if count > 1}


def opened(settings: ModelSettings, patch: pytest.MonkeyPatch) -> tuple[Accesses, ModelInfo]:
    with patch.context() as context:
        accesses = Accesses(context)
        return accesses, open_model(settings, lambda _: None).info


@pytest.fixture
def published(make_base: MakeBase, make_adapter: MakeAdapter, in_hub_cache: Publish) -> tuple[Path, Path]:
    """A base and an adapter as the Hub's client would have fetched them."""
    base = make_base()
    adapter = make_adapter(base)
    (adapter / "qlora_chat.json").write_text('{"prompt_format": "guanaco-card"}')
    return in_hub_cache("org/tiny", base), in_hub_cache("org/tiny-chat", adapter)


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_a_start_from_the_cache_repeats_nothing(
    precision: str, published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = published
    settings = ModelSettings(base="org/tiny", adapter="org/tiny-chat", device="cpu", precision=precision)  # type: ignore[arg-type]
    first = open_model(settings, lambda _: None).info
    accesses, second = opened(settings, monkeypatch)
    assert second == first
    assert accesses.repeated() == {}
    assert accesses.names == {"org/tiny": 1, "org/tiny-chat": 1}
    read = {base / "config.json", base / "tokenizer_config.json", base / "generation_config.json", base / "tokenizer.json",
            adapter / "adapter_config.json", adapter / "qlora_chat.json"}  # fmt: skip
    assert {path for path in accesses.texts if base in path.parents or adapter in path.parents} <= read
    assert {base / "model.safetensors", adapter / "adapter_model.safetensors"} <= set(accesses.hashes)
    assert {base / "model.safetensors", adapter / "adapter_model.safetensors"} < set(accesses.headers)
    assert all("cache" in path.parts for path in accesses.weights), "the merged weights alone are read"


def test_shards_of_a_tied_base_are_read_once(make_base: MakeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are checked against their index, and a tied base against a head in its weights."""
    base = make_base(tie_word_embeddings=True)
    monkeypatch.setattr(shards, "SHARD_BYTES", 2**20)
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    shards.write_shards(tensors.items(), base)
    accesses, info = opened(ModelSettings(base=str(base), device="cpu", precision="bf16"), monkeypatch)
    assert info.precision == "bf16"
    assert accesses.repeated() == {}
    assert len(accesses.headers) == len(accesses.weights) > 1


def test_an_unmerged_adapter_is_read_once(published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(base="org/tiny", adapter="org/tiny-chat", device="cpu", adapter_mode="exact")
    open_model(settings, lambda _: None)
    accesses, info = opened(settings, monkeypatch)
    assert info.precision == "nf4+adapter"
    assert info.prompt_format == "guanaco-card"
    assert accesses.repeated() == {}
    assert published[1] / "adapter_model.safetensors" in accesses.weights


def test_adapters_for_requests_are_read_once(published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(base="org/tiny", adapters=(("chat", "org/tiny-chat"),), device="cpu")
    accesses, info = opened(settings, monkeypatch)
    assert info.prompt_format == "guanaco-card"
    assert accesses.repeated() == {}


def test_a_cached_merge_of_a_deleted_base_is_read_once(published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(base="org/tiny", adapter="org/tiny-chat", device="cpu")
    first = open_model(settings, lambda _: None).info
    (published[0] / "config.json").unlink()
    accesses, second = opened(settings, monkeypatch)
    assert second.name == first.name
    assert accesses.repeated() == {}


def test_the_first_start_hashes_each_file_once(published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(base="org/tiny", adapter="org/tiny-chat", device="cpu", precision="bf16")
    accesses, _ = opened(settings, monkeypatch)
    assert set(accesses.hashes.values()) == {1}
    assert set(accesses.names.values()) == {1}
