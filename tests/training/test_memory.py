"""The plan that fits: keep everything where there is room, recompute where there is less, and say so where there is none."""

from __future__ import annotations

import pytest

from qlora_chat.models.folders import Base
from qlora_chat.models.locate import BUNDLED
from qlora_chat.training import TrainError
from qlora_chat.training.memory import GIB, choose, predicted_bytes
from qlora_chat.training.recipe import TrainSettings

DEMO = Base.read(BUNDLED / "base")
SETTINGS = TrainSettings(base="demo", data=("d",), r=32)


def test_a_plan_takes_less_where_there_is_less() -> None:
    plans = [choose(DEMO, SETTINGS, 8_000, 500, "cuda", 2, int(gib * GIB)) for gib in (80, 4, 1.5, 0.3)]
    assert [plan.checkpointing for plan in plans] == [False, False, True, True]
    assert plans[0].dense
    assert not plans[-1].dense
    assert [plan.pass_tokens for plan in plans[:3]] == [8_000] * 3
    assert 500 <= plans[-1].pass_tokens < 8_000
    assert all(plan.predicted <= gib * GIB for plan, gib in zip(plans, (80, 4, 1.5, 0.3), strict=True))


def test_too_little_is_told_with_what_would_help() -> None:
    with pytest.raises(TrainError, match=r"training needs 0\.\d GiB and 0\.1 GiB are free.*--max-length"):
        choose(DEMO, SETTINGS, 8_000, 500, "cuda", 2, GIB // 10)


def test_what_is_asked_for_is_kept_to() -> None:
    asked = TrainSettings(base="demo", data=("d",), checkpointing="on", pass_tokens=600)
    plan = choose(DEMO, asked, 8_000, 500, "cuda", 2, 80 * GIB)
    assert (plan.checkpointing, plan.pass_tokens) == (True, 600)


def test_recomputing_and_paging_cost_less_memory() -> None:
    paged, plain = SETTINGS, TrainSettings(base="demo", data=("d",), r=32, optimizer="adamw_32bit")
    assert predicted_bytes(DEMO, paged, 4_000, checkpointing=True) < predicted_bytes(DEMO, paged, 4_000, checkpointing=False)
    assert predicted_bytes(DEMO, paged, 4_000, checkpointing=True) < predicted_bytes(DEMO, plain, 4_000, checkpointing=True)
