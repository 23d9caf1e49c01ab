"""Fixtures that several tests of the engines share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from qlora_chat.engines.cpu.build import available_isas
from qlora_chat.models import LoadedModel
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
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
