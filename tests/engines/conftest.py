"""Fixtures that several tests of the engines share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qlora_chat.engines.cpu.build import available_isas
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel, ModelInfo
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.llama import build
from qlora_chat.models.weights.shape import PROJECTIONS, LlamaShape
from qlora_chat.settings import ModelSettings

ISAS = ("native", *available_isas())
"""Variants of the CPU backend that this machine can run: all that the CPU has, and each QLORA_CHAT_CPU_ISA."""


@contextmanager
def assume_isa(isa: str) -> Iterator[None]:
    """Restrict the CPU backend to one of ISAS, whatever the environment says."""
    with pytest.MonkeyPatch.context() as patch:
        if isa == "native":
            patch.delenv("QLORA_CHAT_CPU_ISA", raising=False)
        else:
            patch.setenv("QLORA_CHAT_CPU_ISA", isa)
        yield


@pytest.fixture(scope="module", params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Each variant of the CPU backend in turn, torch's pass (plain) among them."""
    return request.param


@pytest.fixture(scope="module", params=[each for each in ISAS if each != "plain"])
def compiled_isa(request: pytest.FixtureRequest) -> str:
    """Each variant in C++ in turn."""
    return request.param


@pytest.fixture(scope="session")
def base_fp32(demo_cache: Path) -> LoadedModel:
    """The demo's base alone, in fp32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CHAT_CACHE", str(demo_cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        return load(ModelSettings(base=str(BUNDLED / "base")), lambda line: None, dtype=torch.float32)


def random_tensors(config: Mapping[str, Any], bias: bool = False) -> dict[str, Tensor]:
    """Tensors of a LLaMA of this config by their Hugging Face names, from torch's own generator."""
    h, f, v, d = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size", "head_dim"))
    q, k = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    sizes = dict(zip(PROJECTIONS, ((q, h), (k, h), (k, h), (h, q), (f, h), (f, h), (h, f)), strict=True))
    tensors = {"model.embed_tokens.weight": torch.randn(v, h), "lm_head.weight": torch.randn(v, h) / h**0.5}
    tensors["model.norm.weight"] = torch.randn(h)
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = 1 + 0.2 * torch.randn(h)
        for name, (rows, inputs) in sizes.items():
            tensors[f"{prefix}{name}.weight"] = torch.randn(rows, inputs) / inputs**0.5
            if bias:
                tensors[f"{prefix}{name}.bias"] = torch.randn(rows)
    return tensors


def small_model(seed: int) -> LoadedModel:
    """A random LLaMA of two narrow layers with the demo's tokenizer, where it does not matter what is said."""
    config = {"model_type": "llama", "vocab_size": 8192, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
              "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = build(random_tensors(config), LlamaShape.from_config(config), torch.device("cpu"), torch.float32)
    info = ModelInfo(f"small {seed}", "small", None, "fp32", "cpu", 512, "guanaco", frozenset({2}))
    return LoadedModel(weights, ModelTokenizer.read(BUNDLED / "base", bos_id=1), info)


@pytest.fixture(scope="session")
def small_fp32() -> LoadedModel:
    """One of them for all tests."""
    return small_model(1)


@pytest.fixture(scope="session")
def shared_small_engine(small_fp32: LoadedModel) -> Iterator[LocalEngine]:
    """One engine over it, for tests that leave it as they found it."""
    engine = LocalEngine(lambda: small_fp32, slots=8)
    yield engine
    engine.close()


@pytest.fixture
def small_engine(small_fp32: LoadedModel) -> Iterator[LocalEngine]:
    """An engine over it of the test's own."""
    engine = LocalEngine(lambda: small_fp32, slots=8)
    yield engine
    engine.close()
