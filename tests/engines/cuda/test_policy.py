"""The scheduling policy as a table: waiting tokens and costs in, the next step's rows out. No device, no requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from qlora_chat.engines.core.prompt_lookup import Draft, PassCosts
from qlora_chat.engines.cuda.policy import Action, StepLimits, StepPlan, StepState, plan_step, spare_rows, starts_pass

LIMITS = StepLimits()
SURE = Draft((7, 8, 9), (0.9, 0.85, 0.8))
FREE = PassCosts((1.0, 1.0))
"""Costs of a device on which verifying a draft costs nothing."""
COLLECT, IDLE, PASS, DECODE = (StepPlan(each) for each in (Action.COLLECT, Action.IDLE, Action.PREFILL_PASS, Action.STEP))


def state(decoding: int = 0, prompts: Sequence[int] = (), answering: bool | None = None, **others: Any) -> StepState:
    """Chats that decode have answered before, unless `answering` says otherwise."""
    return StepState(
        decoding, prompts, bool(decoding) if answering is None else answering, others.pop("max_rows", 64), **others
    )


def planned(now: StepState, costs: PassCosts | None = None, proposals: Sequence[Draft] = (), narrow: int = 64) -> StepPlan:
    """`narrow`: rows up to which all steps round alike."""
    return plan_step(now, LIMITS, costs, lambda rows: narrow if rows <= narrow else 64, lambda: proposals)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (state(), IDLE),
        (state(3), DECODE),
        (state(3, in_flight=True, unchanged=True), DECODE),
        (state(3, in_flight=True), COLLECT),
        (state(0, in_flight=True), COLLECT),
        (state(3, [20], in_flight=True, unchanged=True), COLLECT),
    ],
    ids=["nothing", "first step", "ahead", "a chat changed", "all left", "a prompt came"],
)
def test_a_step_is_started_ahead_only_where_the_device_can_go_on_by_itself(now: StepState, expected: StepPlan) -> None:
    assert planned(now) == expected


@pytest.mark.parametrize(
    ("now", "narrow", "expected"),
    [
        (state(0, [65]), 64, StepPlan(Action.STEP, (32,))),
        (state(0, [66]), 64, PASS),
        (state(0, [66], max_rows=8), 64, PASS),
        (state(0, [8]), 64, StepPlan(Action.STEP, (7,), first_tokens=True)),
        (state(0, [8, 9]), 64, StepPlan(Action.STEP, (7, 8), first_tokens=True)),
        (state(0, [16, 17]), 64, StepPlan(Action.STEP, (15, 16))),
        (state(0, [20, 20]), 64, StepPlan(Action.STEP, (19, 13))),
        (state(0, [9]), 8, StepPlan(Action.STEP, (8,))),
        (state(1, [40]), 64, StepPlan(Action.STEP, (7,))),
        (state(1, [400], waited_tokens=4096, answering=False), 64, StepPlan(Action.STEP, (31,))),
        (state(1, [400], waited_tokens=4095, answering=False), 64, PASS),
    ],
    ids=[
        "short prompt", "long prompt", "small card", "ends in the step", "both end in it", "one row too many", "two steps",
        "would round differently", "next to an answer", "first token has waited enough", "first token can wait",
    ],
)  # fmt: skip
def test_prompts_are_rows_of_a_step_or_a_pass(now: StepState, narrow: int, expected: StepPlan) -> None:
    assert planned(now, narrow=narrow) == expected


@pytest.mark.parametrize(
    ("now", "starts"),
    [
        (state(1, [97]), False),
        (state(1, [98]), True),
        (state(61, [4]), True),
        (state(1, [2000], answering=False), False),
        (state(1), False),
    ],
    ids=["fits in spare rows", "too long for them", "no spare rows", "nobody waits", "no prompt"],
)
def test_a_pass_in_chunks_starts_next_to_answers_whose_steps_cannot_take_the_prompt(now: StepState, starts: bool) -> None:
    assert starts_pass(now, LIMITS) is starts


@pytest.mark.parametrize("decoding", range(1, 65))
def test_prefill_rows_slow_no_step_down_by_more_than_the_limit(decoding: int) -> None:
    rows = decoding + spare_rows(state(decoding), LIMITS)
    bucket = next(each for each in (1, 2, 4, 8, 16, 32, 64) if each >= decoding)
    assert LIMITS.step_costs[rows - 1] <= LIMITS.max_step_slowdown * LIMITS.step_costs[bucket - 1]


@pytest.mark.parametrize(
    ("now", "costs", "narrow", "drafts"),
    [
        (state(1), FREE, 64, [(7, 8, 9)]),
        (state(1), None, 64, ()),
        (state(1), PassCosts((1.0, 2.1)), 64, ()),
        (state(1), FREE, 1, ()),
        (state(1), FREE, 3, [(7, 8)]),
        (state(1, host_gap_s=0.1), FREE, 64, [(7, 8, 9)]),
        (state(1, host_gap_s=2.5), FREE, 64, ()),
    ],
    ids=["free", "off", "rows cost too much", "wider rounds differently", "some rows", "small host gap", "large host gap"],
)
def test_drafts_are_verified_where_that_pays(now: StepState, costs: PassCosts | None, narrow: int, drafts: object) -> None:
    assert planned(now, costs, [SURE], narrow) == StepPlan(Action.STEP, drafts=drafts)  # type: ignore[arg-type]


def test_a_draft_costs_two_host_gaps_while_a_step_is_in_flight() -> None:
    gap = 1.5
    assert planned(state(1, host_gap_s=gap), FREE, [SURE]).drafts
    assert planned(state(1, host_gap_s=gap, in_flight=True, unchanged=True), FREE, [SURE]) == DECODE
    assert planned(state(1, in_flight=True, unchanged=True), FREE, [SURE]) == COLLECT, "the draft follows its result"


def test_drafts_are_not_looked_up_where_they_cannot_pay() -> None:
    def lookup() -> Sequence[Draft]:
        raise AssertionError("looked up")

    for now, costs in ((state(1, [20]), FREE), (state(1), None), (state(), FREE), (state(1), PassCosts((1.0, 2.1)))):
        plan_step(now, LIMITS, costs, lambda rows: 64, lookup)
