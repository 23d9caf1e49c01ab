"""The memory plan: store activations if they fit, recompute them if not, and refuse if nothing fits."""

from __future__ import annotations

import pytest

from qlora_chat.models.folders import Base
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.placement import GIB, DeviceMemory
from qlora_chat.training import TrainError
from qlora_chat.training.memory import plan_memory, predicted_bytes
from qlora_chat.training.recipe import TrainSettings

DEMO = Base.read(BUNDLED / "base")
SETTINGS = TrainSettings(base="demo", data=("d",), r=32)


def test_a_plan_adapts_to_the_free_memory() -> None:
    plans = [plan_memory(DEMO, SETTINGS, 8_000, 500, DeviceMemory("cuda", int(gib * GIB)), 2) for gib in (80, 4, 1.5, 0.3)]
    assert [plan.checkpointing for plan in plans] == [False, False, True, True]
    assert plans[0].dense
    assert not plans[-1].dense
    assert [plan.pass_tokens for plan in plans[:3]] == [8_000] * 3
    assert 500 <= plans[-1].pass_tokens < 8_000
    assert all(plan.predicted <= gib * GIB for plan, gib in zip(plans, (80, 4, 1.5, 0.3), strict=True))


def test_too_little_memory_is_an_error_that_says_how_to_need_less() -> None:
    with pytest.raises(TrainError, match=r"training needs 0\.\d GiB and 0\.1 GiB are free.*--max-length"):
        plan_memory(DEMO, SETTINGS, 8_000, 500, DeviceMemory("cuda", GIB // 10), 2)


def test_explicit_settings_are_respected() -> None:
    settings = TrainSettings(base="demo", data=("d",), checkpointing="on", pass_tokens=600)
    plan = plan_memory(DEMO, settings, 8_000, 500, DeviceMemory("cuda", 80 * GIB), 2)
    assert (plan.checkpointing, plan.pass_tokens) == (True, 600)


def test_recomputing_and_paging_cost_less_memory() -> None:
    paged, plain = SETTINGS, TrainSettings(base="demo", data=("d",), r=32, optimizer="adamw_32bit")
    assert predicted_bytes(DEMO, paged, 4_000, checkpointing=True) < predicted_bytes(DEMO, paged, 4_000, checkpointing=False)
    assert predicted_bytes(DEMO, paged, 4_000, checkpointing=True) < predicted_bytes(DEMO, plain, 4_000, checkpointing=True)
