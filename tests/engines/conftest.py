"""What tests of several engines' parts share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlora_chat.models import LoadedModel
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.settings import ModelSettings


@pytest.fixture(scope="session")
def base_fp32(demo_cache: Path) -> LoadedModel:
    """The demo's base alone, in fp32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CHAT_CACHE", str(demo_cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        return load(ModelSettings(base=str(BUNDLED / "base")), lambda line: None, dtype=torch.float32)
