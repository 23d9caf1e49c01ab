"""Several adapters over a small base in one engine: each request goes through its own, in one batch with the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from qlora_chat.engines import COMPILED, AdapterHost, AnsweredBy
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel, ModelError
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.prompt import Prompt
from qlora_chat.settings import ModelSettings, Sampling
from qlora_chat.stopping import Stops
from tests.models.conftest import write_adapter, write_base

QUESTION = "What is the capital of France?"
GREEDY = Sampling(temperature=0.0, max_new_tokens=24)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A random base in fp32, its folder beside it."""
    folder = write_base(tmp_path_factory.mktemp("base"), max_position_embeddings=256)
    return load(ModelSettings(base=str(folder), device="cpu"), lambda line: None, dtype=torch.float32)


def adapter_for(base: LoadedModel, folder: Path, seed: int) -> Path:
    assert base.base
    return write_adapter(base.base.folder, folder, seed=seed)


@pytest.fixture(scope="module")
def chat_adapter(base: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for it."""
    return adapter_for(base, tmp_path_factory.mktemp("chat"), 3)


@pytest.fixture(scope="module")
def other_adapter(base: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second one with other answers."""
    return adapter_for(base, tmp_path_factory.mktemp("other"), 4)


@pytest.fixture
def host(base: LoadedModel, chat_adapter: Path, other_adapter: Path) -> Iterator[LocalEngine]:
    engine = LocalEngine(lambda: base, slots=4)
    engine.load_adapter("chat", chat_adapter)
    engine.load_adapter("other", other_adapter)
    yield engine
    engine.close()


def greedy_ids(engine: LocalEngine, prompt: Prompt, *adapters: str | None) -> list[list[int]]:
    """Greedy ids of the same question to several adapters at once."""
    streams = [engine.stream(prompt, GREEDY, Stops(frozenset({2})), adapter) for adapter in adapters]
    return [[piece.token_id for piece in stream if piece.token_id is not None] for stream in streams]


def test_each_chat_in_a_batch_has_its_own_adapter(
    host: LocalEngine, shared_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    prompt, passes = prompt_for(QUESTION), host.forwards
    together = greedy_ids(host, prompt, "chat", None, "other", "chat")
    assert host.forwards - passes < 2 * GREEDY.max_new_tokens, "one pass for all four, not one for each"
    alone = [greedy_ids(host, prompt, adapter)[0] for adapter in ("chat", None, "other")]
    assert together == [*alone, alone[0]]
    finishes = [piece.finish for piece in host.stream(prompt, GREEDY, Stops(frozenset({2})), "other")]
    assert finishes[-1]
    assert finishes[-1].answered_by == AnsweredBy("other")
    assert len({tuple(each) for each in alone}) == 3, "the three differ, so a mix-up would show"
    assert (host.info.computed_by or "").startswith(COMPILED) == (shared_engine.info.computed_by or "").startswith(COMPILED), (
        "adapters that are loaded later do not change the pass"
    )


def test_an_unmerged_adapter_computes_what_merging_does(
    base: LoadedModel, chat_adapter: Path, host: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    """Against W + B A, added by hand in fp32."""
    from qlora_chat.engines.core.forward_pass import Span
    from qlora_chat.engines.core.kv_cache import KVCache
    from qlora_chat.engines.eager.forward import Forward
    from qlora_chat.models.adapter.folder import AdapterFolder
    from qlora_chat.models.weights.checkpoint import Checkpoint
    from qlora_chat.models.weights.llama import Adapter, build

    assert base.base
    adapter = Adapter.read(AdapterFolder.read(chat_adapter))
    tensors = dict(Checkpoint(base.base.folder).items())
    for name in [each for each in adapter.tensors if "lora_A" in each]:
        weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
        b = adapter.tensors[name.replace("lora_A", "lora_B")].float()
        tensors[weight] = tensors[weight].float() + adapter.scaling * (b @ adapter.tensors[name].float())
    merged = build(tensors, base.weights.shape, torch.device("cpu"), torch.float32)
    ids = prompt_for(QUESTION).ids
    expected = Forward(merged, KVCache(merged, 1))([Span(0, 0, ids)])
    greedy_ids(host, prompt_for(QUESTION), "chat")
    slot = next(slot for slot in host._cache.slots if slot.adapter)
    got = host.forward([Span(slot.index, 0, ids)])
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()


def test_the_cache_of_one_adapter_is_not_reused_for_another(host: LocalEngine, prompt_for: Callable[..., Prompt]) -> None:
    prompt = prompt_for(QUESTION)

    def cached(adapter: str | None) -> int:
        *_, last = host.stream(prompt, GREEDY, Stops(), adapter)
        assert last.finish
        return last.finish.cached_tokens

    assert cached("chat") == 0
    assert cached("chat") == len(prompt.ids) - 1
    assert cached("other") == 0
    assert cached(None) == 0


def test_adapters_are_loaded_and_unloaded_during_answers(
    host: LocalEngine, other_adapter: Path, prompt_for: Callable[..., Prompt]
) -> None:
    prompt, expected = prompt_for(QUESTION), greedy_ids(host, prompt_for(QUESTION), "other")[0]
    running = iter(host.stream(prompt, GREEDY, Stops(frozenset({2})), "other"))
    ids = [next(running).token_id]
    assert isinstance(host, AdapterHost)
    host.unload_adapter("other")
    assert host.info.adapters == ("chat",)
    with pytest.raises(ValueError, match="'other' is not loaded; loaded: chat"):
        host.stream(prompt, GREEDY, Stops(), "other")
    host.load_adapter("third", other_adapter)
    assert [*ids, *(piece.token_id for piece in running if piece.token_id is not None)] == expected, (
        "the running answer kept its adapter"
    )
    assert greedy_ids(host, prompt, "third")[0] == expected
    assert host.info.adapters == ("chat", "third")


def test_an_adapter_that_cannot_be_loaded_is_refused_and_the_engine_continues(
    host: LocalEngine, chat_adapter: Path, tmp_path: Path, prompt_for: Callable[..., Prompt], shared_engine: LocalEngine
) -> None:
    with pytest.raises(ModelError, match="called 'chat' already"):
        host.load_adapter("chat", chat_adapter)
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        host.load_adapter("empty", tmp_path)
    with pytest.raises(ModelError, match="no adapter called 'gone'"):
        host.unload_adapter("gone")
    wide = tmp_path / "wide"
    shutil.copytree(chat_adapter, wide)
    config = json.loads((wide / "adapter_config.json").read_text())
    (wide / "adapter_config.json").write_text(json.dumps(config | {"r": config["r"] * 2}))
    with pytest.raises(ModelError, match="does not fit the base"):
        host.load_adapter("wide", wide)
    with pytest.raises(ModelError, match="has an adapter of its own"):
        shared_engine.load_adapter("x", chat_adapter)
    assert greedy_ids(host, prompt_for(QUESTION), "chat")[0]


def test_an_adapter_that_does_not_fit_in_memory_is_refused(
    host: LocalEngine, chat_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    little = psutil.virtual_memory()._replace(available=2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    with pytest.raises(ModelError, match="MiB are free"):
        host.load_adapter("more", chat_adapter)


@pytest.mark.parametrize("problem", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_running_out_of_memory_while_packing_is_explained(
    host: LocalEngine, chat_adapter: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def full(*_: object) -> None:
        raise problem

    assert host._adapters
    monkeypatch.setattr(host._adapters._pass, "pack", full)
    with pytest.raises(ModelError, match="there is no memory for adapter 'more'; unload another first"):
        host.load_adapter("more", chat_adapter)


def with_files(folder: Path, adapter: Path, **files: str) -> Path:
    """A copy of an adapter with further files beside it, by name without ending."""
    shutil.copytree(adapter, folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)
    return folder


def test_an_adapter_with_a_tokenizer_of_its_own_is_refused_with_the_way_that_works(
    host: LocalEngine, chat_adapter: Path, tmp_path: Path
) -> None:
    described = json.loads((BUNDLED / "base" / "tokenizer.json").read_text())
    same = with_files(tmp_path / "same", chat_adapter, tokenizer=json.dumps(described))
    host.load_adapter("same", same)
    added = {**described["added_tokens"][0], "id": 8192, "content": "<|end|>"}
    described["added_tokens"].append(added)
    own = with_files(tmp_path / "own", chat_adapter, tokenizer=json.dumps(described))
    with pytest.raises(
        ModelError, match=r"1 tokens differ, such as '<\|end\|>'.*serve it alone \(--base BASE --adapter .*own\)"
    ):
        host.load_adapter("own", own)
    end = with_files(tmp_path / "end", chat_adapter, generation_config=json.dumps({"eos_token_id": 13}))
    with pytest.raises(ModelError, match=r"its own end of an answer \(id 13\)"):
        host.load_adapter("end", end)
    assert host.info.adapters == ("chat", "other", "same")
