"""Drafts as further rows of a CUDA step; what both schedulers share is in tests/engines/core/test_scheduler.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qlora_chat.engines.core.prompt_lookup import PassCosts
from qlora_chat.engines.cuda.decode.rows import MAX_ROWS
from qlora_chat.engines.cuda.policy import StepLimits
from qlora_chat.settings import Sampling
from tests.engines.drafts import FREE, PROMPT, SAMPLINGS, Card, answer_of, by_steps, make_request
from tests.fakes import MarkovForward

LIMITS = StepLimits()


def test_a_step_never_has_more_rows_than_the_largest_graph() -> None:
    requests = [
        make_request(SAMPLINGS[0].changed(max_new_tokens=30), prompt=(*PROMPT[:8], each % 12, *PROMPT)) for each in range(50)
    ]
    assert 50 < by_steps(requests, FREE, slots=50).widest <= MAX_ROWS


def test_a_draft_takes_no_row_that_the_card_does_not_have() -> None:
    requests = [make_request(SAMPLINGS[0].changed(max_new_tokens=30)) for _ in range(2)]
    card = Card(FREE)
    card.decoder.max_rows = 4
    card.run(requests)
    assert card.decoder.widest == 4


@pytest.mark.parametrize("chats", [1, 3, 4, 5])
def test_drafts_never_widen_a_step_to_where_a_row_rounds_differently(chats: int) -> None:
    card = Card(FREE, slots=chats)
    card.decoder.narrow_rows = 4
    card.run([make_request(SAMPLINGS[0].changed(max_new_tokens=30)) for _ in range(chats)])
    assert card.decoder.most_sampled == 4 if chats <= 4 else card.decoder.most_sampled > 2 * chats


@pytest.mark.parametrize(("host_gap", "drafts"), [(0.0, True), (0.0001, True), (0.0015, False)])
def test_no_draft_is_verified_where_the_card_would_wait_longer_than_it_saves(host_gap: float, drafts: bool) -> None:
    """It waits for the host to see a step's tokens and start the next one, unless steps are started ahead."""
    card = Card(LIMITS.step_costs)
    card.scheduler.costs = PassCosts(LIMITS.step_costs)
    card.decoder.seconds = lambda rows: 0.0002 * LIMITS.step_costs[rows - 1]
    card.decoder.host_gap = host_gap
    card.run([make_request(SAMPLINGS[0].changed(max_new_tokens=30))])
    assert (card.decoder.most_sampled > 1) == drafts


def test_a_chat_that_does_not_repeat_itself_has_its_steps_started_ahead() -> None:
    request = make_request(Sampling(temperature=0.0, max_new_tokens=6), prompt=(1, 2, 3))
    card = Card(LIMITS.step_costs)
    card.scheduler.submit(request)
    card.scheduler.step()
    while request.generated < 2:
        card.scheduler.step()
    assert card.decoder.started == request.generated + 1, "one is in flight"


def test_the_cache_holds_no_rejected_draft_for_the_next_turn() -> None:
    card = Card(FREE)
    first = make_request(Sampling(temperature=0.0, max_new_tokens=40))
    card.run([first])
    again = (*first.ids, 3, 4, 5)
    cached, alone = (make_request(Sampling(temperature=0.0, max_new_tokens=20), prompt=again) for _ in range(2))
    card.run([cached])
    by_steps([alone], None)
    (tokens, finish), (expected, _) = answer_of(cached), answer_of(alone)
    assert finish.cached_tokens == len(first.ids) - 1
    assert tokens == expected


@pytest.mark.parametrize("costs", [None, FREE])
def test_requests_with_logprobs_get_those_of_their_tokens(costs: Sequence[float] | None) -> None:
    request = make_request(Sampling(temperature=0.8, max_new_tokens=30, seed=2, logprobs=2))
    other = make_request(Sampling(temperature=1.0, max_new_tokens=30, seed=3))
    by_steps([request, other], costs)
    table, ids = MarkovForward().table.log_softmax(-1), request.ids
    rows = [table[ids[at - 2], ids[at - 1]] for at in range(len(PROMPT), len(ids))]
    expected = [float(row[token]) for row, token in zip(rows, ids[len(PROMPT) :], strict=True)]
    pieces, others = list(request), list(other)
    assert [piece.logprob for piece in pieces] == pytest.approx(expected)
    assert [piece.top_logprobs[0][0] for piece in pieces] == [int(row.argmax()) for row in rows]
    assert {piece.logprob for piece in others} == {None}
