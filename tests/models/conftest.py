"""A cache and a Hub folder of their own for every test, small random models, and a local server that speaks as the Hub."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_chat.models import LoadedModel, open_model, smollm2
from qlora_chat.models.folders import Base
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.trust import read_json
from qlora_chat.models.weights.quantize import quantize_nf4
from qlora_chat.models.weights.shards import write_shards, write_small_files
from qlora_chat.settings import ModelSettings, Precision

HIDDEN, FEED_FORWARD, RANK = 128, 192, 4

MakeBase = Callable[..., Path]
MakeAdapter = Callable[..., Path]
Publish = Callable[[str, Path], Path]


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's caches, or asks the real Hub."""
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(smollm2, "PACKAGE", "not-installed-here")  # or `auto` would choose it on some machines


@pytest.fixture
def notices() -> list[str]:
    """Lines for the user; pass notices.append as notify."""
    return []


def opened(base: Path, adapter: Path | None, notices: list[str], precision: Precision = "auto") -> LoadedModel:
    settings = ModelSettings(base=str(base), adapter=str(adapter) if adapter else None, device="cpu", precision=precision)
    return open_model(settings, notices.append)


def merged_folders(tmp_path: Path) -> list[Path]:
    return sorted(each for each in (tmp_path / "cache" / "merged").iterdir() if each.name[0] != ".")


@dataclass(frozen=True)
class OpenedDemo:
    """The bundled demo after its first start."""

    model: LoadedModel
    cache: Path
    notices: list[str]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> OpenedDemo:
    """Merged once a session, for real."""
    cache, notices = tmp_path_factory.mktemp("demo-cache"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CHAT_CACHE", str(cache))
        return OpenedDemo(load(ModelSettings(model="demo", device="cpu"), notices.append), cache, notices)


@pytest.fixture(scope="session")
def demo_in_nf4(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedModel]:
    folder = tmp_path_factory.mktemp("nf4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CHAT_CACHE", str(folder))
        model = open_model(ModelSettings(model="demo", precision="nf4", device="cpu"), lambda _: None)
    return folder, model


@pytest.fixture(scope="session")
def transformers() -> Any:
    """The library, imported with its own warnings muted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
    return transformers


def write_base(folder: Path, **changes: Any) -> Path:
    """A LLaMA of two layers with random weights and the demo's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "intermediate_size": FEED_FORWARD,
        "vocab_size": 8192, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "dtype": "bfloat16", **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(BUNDLED / "base" / name, folder / name)
    random = torch.Generator().manual_seed(7)
    tensors = {
        name: (torch.randn(size, generator=random) * 0.05 + (1.0 if "norm" in name else 0.0)).to(torch.bfloat16)
        for name, size in Base.read(folder).tensors().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def make_base(tmp_path: Path) -> MakeBase:
    """Writes one into a folder of the test's."""
    return lambda folder=None, **changes: write_base(folder or tmp_path / "tiny-base", **changes)


def write_adapter(base: Path, folder: Path, *, seed: int = 3, pickled: bool = False, **changes: Any) -> Path:
    """A LoRA for a base in PEFT's layout, with random A and B."""
    folder.mkdir(parents=True, exist_ok=True)
    linears = {name: size for name, size in Base.read(base).linears().items() if name != "lm_head"}
    targets = sorted({name.rpartition(".")[2] for name in linears})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
        "target_modules": targets, "base_model_name_or_path": "tiny", "inference_mode": True, **changes,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outs, ins) in linears.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, ins, generator=random) * 0.1
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outs, RANK, generator=random) * 0.1
    if pickled:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def change_tensors(path: Path, **changed: torch.Tensor | None) -> None:
    """Rewrite a safetensors file with some tensors replaced, or left out where the new one is None."""
    tensors = {**load_file(path), **changed}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeAdapter:
    """Writes one into a folder of the test's."""
    return lambda base, folder=None, **changes: write_adapter(base, folder or tmp_path / "tiny-adapter", **changes)


@pytest.fixture(scope="session")
def tiny_nf4_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base that is in NF4 already, made once; to be read only."""
    folder = tmp_path_factory.mktemp("tiny")
    base = Base.read(write_base(folder / "bf16", max_position_embeddings=256))
    made = folder / "nf4"
    made.mkdir()
    write_shards(quantize_nf4(base, "cpu"), made)
    write_small_files(
        made, base.config, read_json(base.folder / "generation_config.json"), base.folder, base.folder, stored="nf4"
    )
    return made


@pytest.fixture
def in_hub_cache(tmp_path: Path) -> Publish:
    """Puts a folder where the Hub's client would have downloaded it."""

    def publish(repository: str, folder: Path) -> Path:
        root = tmp_path / "hf" / "hub" / f"models--{repository.replace('/', '--')}"
        snapshot = root / "snapshots" / ("a" * 40)
        snapshot.parent.mkdir(parents=True)
        shutil.copytree(folder, snapshot)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("a" * 40)
        return snapshot

    return publish


@dataclass
class LocalHub:
    """Repositories by name, each a table of file contents, behind the two calls that the Hub's client makes."""

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Repository -> status and X-Error-Code to answer with."""
    fetched: list[str] = field(default_factory=list)
    newest: str = "c" * 40
    """Commit of each main branch."""


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A server on loopback that answers as the Hub does."""
    hub = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            repository = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if repository in hub.refusals:
                status, code = hub.refusals[repository]
                return self._send(status, b"{}", {"X-Error-Code": code}, body)
            files = hub.files.get(repository)
            if files is None:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            if parts[0] == "api":
                siblings = [{"rfilename": name, "size": len(data), "blobId": "b" * 40} for name, data in files.items()]
                if len(parts) > 5 and parts[4] == "tree":
                    tree = [{"type": "file", "path": name, "size": len(data), "oid": "b" * 40} for name, data in files.items()]
                    return self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
                commit = parts[5] if parts[4:5] == ["revision"] else hub.newest
                info = {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings, "tags": []}
                return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
            name = "/".join(parts[4:])
            if body:
                hub.fetched.append(name)
            data = files[name]
            headers = {"ETag": f'"{hash(name) & (2**64 - 1):040x}"', "X-Repo-Commit": parts[3], "Accept-Ranges": "bytes"}
            return self._send(200, data, headers, body)

        def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    server.server_close()
