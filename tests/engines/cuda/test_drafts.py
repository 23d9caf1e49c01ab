"""What is a card's own in checking guesses, as further rows of a step; the rest is in tests/engines/core/test_scheduler.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qlora_chat.engines.core.prompt_lookup import PassCosts
from qlora_chat.engines.core.request import LocalStream
from qlora_chat.engines.cuda.decode.rows import MOST_ROWS
from qlora_chat.engines.cuda.scheduler import STEP_COSTS
from qlora_chat.settings import Sampling
from tests.engines.drafts import FREE, PROMPT, SAMPLINGS, Card, ask, by_steps, told
from tests.fakes import MarkovForward


def test_a_step_never_has_more_rows_than_the_largest_graph() -> None:
    requests = [ask(SAMPLINGS[0].changed(max_new_tokens=30), prompt=(*PROMPT[:8], each % 12, *PROMPT)) for each in range(50)]
    assert 50 < by_steps(requests, FREE, slots=50).widest <= MOST_ROWS


def test_a_guess_takes_no_row_that_the_card_does_not_have() -> None:
    requests = [ask(SAMPLINGS[0].changed(max_new_tokens=30)) for _ in range(2)]
    card = Card(FREE)
    card.decoder.most_rows = 4
    card.run(requests)
    assert card.decoder.widest == 4


@pytest.mark.parametrize("chats", [1, 3, 4, 5])
def test_guesses_never_widen_a_step_to_where_a_row_rounds_otherwise(chats: int) -> None:
    card = Card(FREE, slots=chats)
    card.decoder.narrow_rows = 4
    card.run([ask(SAMPLINGS[0].changed(max_new_tokens=30)) for _ in range(chats)])
    assert card.decoder.choosing == 4 if chats <= 4 else card.decoder.choosing > 2 * chats


@pytest.mark.parametrize(("late", "guessed"), [(0.0, True), (0.0001, True), (0.0015, False)])
def test_nothing_is_guessed_where_the_card_would_wait_longer_than_it_saves(late: float, guessed: bool) -> None:
    """For the host to see what a step has said and to start the next: steps that are started ahead do not wait for that."""
    card = Card(STEP_COSTS)
    card.scheduler.costs = PassCosts(STEP_COSTS)
    card.decoder.seconds = lambda rows: 0.0002 * STEP_COSTS[rows - 1]
    card.decoder.late = late
    card.run([ask(SAMPLINGS[0].changed(max_new_tokens=30))])
    assert (card.decoder.choosing > 1) == guessed


def test_a_chat_that_does_not_repeat_itself_keeps_its_steps_ahead() -> None:
    request = ask(Sampling(temperature=0.0, max_new_tokens=6), prompt=(1, 2, 3))
    card = Card(STEP_COSTS)
    card.scheduler.submit(request)
    card.scheduler.step()
    while request.generated < 2:
        card.scheduler.step()
    assert card.decoder.started == request.generated + 1, "one is under way"


def test_a_next_turn_finds_in_the_cache_only_what_was_said() -> None:
    card = Card(FREE)
    first = ask(Sampling(temperature=0.0, max_new_tokens=40))
    card.run([first])
    again = (*first.ids, 3, 4, 5)
    beside, alone = (ask(Sampling(temperature=0.0, max_new_tokens=20), prompt=again) for _ in range(2))
    card.run([beside])
    by_steps([alone], None)
    (tokens, finish), (expected, _) = told(beside), told(alone)
    assert finish.cached_tokens == len(first.ids) - 1
    assert tokens == expected


@pytest.mark.parametrize("costs", [None, FREE])
def test_log_probabilities_are_those_of_the_tokens_for_those_who_asked(costs: Sequence[float] | None) -> None:
    request = ask(Sampling(temperature=0.8, max_new_tokens=30, seed=2, logprobs=2))
    other = ask(Sampling(temperature=1.0, max_new_tokens=30, seed=3))
    by_steps([request, other], costs)
    table, ids = MarkovForward().table.log_softmax(-1), request.ids
    rows = [table[ids[at - 2], ids[at - 1]] for at in range(len(PROMPT), len(ids))]
    expected = [float(row[token]) for row, token in zip(rows, ids[len(PROMPT) :], strict=True)]
    pieces, others = list(LocalStream(request)), list(LocalStream(other))
    assert [piece.logprob for piece in pieces] == pytest.approx(expected)
    assert [piece.top_logprobs[0][0] for piece in pieces] == [int(row.argmax()) for row in rows]
    assert {piece.logprob for piece in others} == {None}
