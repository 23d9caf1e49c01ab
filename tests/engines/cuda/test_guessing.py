"""Guesses as further rows of a step change how many steps an answer takes, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from qlora_chat.engines.cuda.rows import MOST_ROWS
from qlora_chat.engines.cuda.scheduler import STEP_COSTS, CudaScheduler
from qlora_chat.engines.llama import Span
from qlora_chat.engines.request import LocalStream, Request
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.engines.test_scheduler import FREE, PROMPT, SAMPLINGS, At, Fixed, ask, cache, told
from tests.fakes import LetterTokenizer, MarkovForward, NumberedAdapters, PlainDecoder


class Card:
    """A scheduler for cards over a decoder that computes on the CPU, a model of twelve letters in it."""

    def __init__(self, costs: Sequence[float] | None, slots: int = 3) -> None:
        forward, held = MarkovForward(), cache(slots)
        self.decoder = PlainDecoder(forward, Span)
        self.scheduler = CudaScheduler(
            self.decoder,  # type: ignore[arg-type]
            lambda spans: forward([replace(span, logits=1) for span in spans]),
            held,
            NumberedAdapters(held),  # type: ignore[arg-type]
            Fixed(costs) if costs else None,
        )

    def run(self, requests: Sequence[Request]) -> None:
        """All of them to their ends."""
        for request in requests:
            self.scheduler.submit(request)
        while not self.scheduler.idle:
            self.scheduler.step()


def answered(requests: Sequence[Request], costs: Sequence[float] | None, slots: int = 3) -> PlainDecoder:
    """All requests to their ends; the decoder knows its steps."""
    card = Card(costs, slots)
    card.run(requests)
    return card.decoder


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_answer_is_the_one_it_would_have_been(sampling: Sampling) -> None:
    steps = []
    for seed in range(8):
        chosen = sampling.changed(seed=seed)
        plain, guessed = ask(chosen), ask(chosen)
        slow, quick = answered([plain], None), answered([guessed], FREE)
        assert told(guessed)[0] == told(plain)[0]
        steps.append((quick.started, slow.started))
    assert sum(quick for quick, _ in steps) < sum(slow for _, slow in steps), "and in fewer steps"


def test_chats_that_share_a_step_each_get_their_own_answer() -> None:
    """Seven chats over three places: some are read while others guess, and a place is taken over from one that guessed."""
    settings = [each.changed(seed=index) for index, each in enumerate([*SAMPLINGS, *SAMPLINGS[1:]])]
    prompts = [PROMPT[: 12 - index] + (3, 4) * index * 20 for index in range(len(settings))]
    alone = [ask(each, prompt=prompt) for each, prompt in zip(settings, prompts, strict=True)]
    for each in alone:
        answered([each], None)
    together = [ask(each, prompt=prompt) for each, prompt in zip(settings, prompts, strict=True)]
    assert answered(together, FREE).widest > 3
    assert [told(each)[0] for each in together] == [told(each)[0] for each in alone]


def test_a_step_never_has_more_rows_than_the_largest_graph() -> None:
    requests = [ask(SAMPLINGS[0].changed(max_new_tokens=30), prompt=(*PROMPT[:8], each % 12, *PROMPT)) for each in range(50)]
    assert 50 < answered(requests, FREE, slots=50).widest <= MOST_ROWS


def test_a_guess_takes_no_row_that_the_card_does_not_have() -> None:
    requests = [ask(SAMPLINGS[0].changed(max_new_tokens=30)) for _ in range(2)]
    card = Card(FREE)
    card.decoder.most_rows = 4
    card.run(requests)
    assert card.decoder.widest == 4


def test_where_a_wider_step_takes_what_its_tokens_take_nothing_is_guessed() -> None:
    plain, request = (ask(Sampling(temperature=1.0, max_new_tokens=60, seed=1)) for _ in range(2))
    expected = answered([plain], None)
    assert answered([request], (1.0, 2.0, 3.0)).started == expected.started


def test_a_chat_that_does_not_repeat_itself_keeps_its_steps_ahead() -> None:
    request = ask(Sampling(temperature=0.0, max_new_tokens=6), prompt=(1, 2, 3))
    card = Card(STEP_COSTS)
    card.scheduler.submit(request)
    card.scheduler.step()
    while not request.generated:
        card.scheduler.step()
    assert card.decoder.started == 1 + request.generated + 1, "the prompt's, and one is under way"


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
def test_length_and_window_end_an_answer_to_the_token(limit: int) -> None:
    by_length = ask(Sampling(temperature=0.0, max_new_tokens=limit))
    by_window = ask(Sampling(temperature=0.0, max_new_tokens=400), window=len(PROMPT) + limit)
    answered([by_length, by_window], FREE)
    assert [len(told(each)[0]) for each in (by_length, by_window)] == [limit, limit]


def test_a_stop_within_checked_guesses_ends_the_answer_there() -> None:
    greedy = Sampling(temperature=0.0, max_new_tokens=60)
    whole = ask(greedy)
    answered([whole], None)
    ids = told(whole)[0]
    for stop in set(ids):
        stopped = ask(greedy, Stops(frozenset({stop})))
        answered([stopped], FREE)
        tokens, finish = told(stopped)
        assert tokens == ids[: ids.index(stop)]
        assert finish.reason == "stop"


@pytest.mark.parametrize("number", range(5, 25, 3))
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_settings_changed_among_checked_guesses_act_from_the_next_token(number: int, penalty: float) -> None:
    """The penalty, too: what was said while none was asked for counts as said."""
    answers, wild = [], Sampling(temperature=2.0, top_p=1.0, repetition_penalty=penalty, max_new_tokens=40)
    for costs in (None, FREE):
        request = ask(Sampling(temperature=0.0, max_new_tokens=40, seed=7))
        request._detokenizer._tokenizer = At(number, lambda request=request: setattr(request, "sampling", wild))
        answered([request], costs)
        answers.append(told(request)[0])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("number", range(5, 25, 3))
def test_settings_due_among_checked_guesses_are_taken_up_there(number: int) -> None:
    answers = []
    for costs in (None, FREE):
        due = {number: Sampling(temperature=2.0, top_p=1.0, max_new_tokens=40)}
        request = Request(PROMPT, Sampling(temperature=0.0, max_new_tokens=40, seed=3), Stops(), 512, LetterTokenizer(), due)
        answered([request], costs)
        answers.append(told(request))
    assert answers[0][0] == answers[1][0]
    assert [made for made, _ in answers[1][1].changes] == [number]


@pytest.mark.parametrize("number", range(5, 25, 3))
def test_an_answer_cancelled_among_checked_guesses_ends_there(number: int) -> None:
    request = ask(Sampling(temperature=0.0, max_new_tokens=40))
    request._detokenizer._tokenizer = At(number, lambda: setattr(request, "cancelled", True))
    answered([request], FREE)
    tokens, finish = told(request)
    assert (len(tokens), finish.reason) == (number, "cancelled")


def test_a_next_turn_finds_in_the_cache_only_what_was_said() -> None:
    card = Card(FREE)
    first = ask(Sampling(temperature=0.0, max_new_tokens=40))
    card.run([first])
    again = (*first.ids, 3, 4, 5)
    beside, alone = (ask(Sampling(temperature=0.0, max_new_tokens=20), prompt=again) for _ in range(2))
    card.run([beside])
    answered([alone], None)
    (tokens, finish), (expected, _) = told(beside), told(alone)
    assert finish.cached_tokens == len(first.ids) - 1
    assert tokens == expected


@pytest.mark.parametrize("costs", [None, FREE])
def test_log_probabilities_are_those_of_the_tokens_for_those_who_asked(costs: Sequence[float] | None) -> None:
    request = ask(Sampling(temperature=0.8, max_new_tokens=30, seed=2, logprobs=2))
    other = ask(Sampling(temperature=1.0, max_new_tokens=30, seed=3))
    answered([request, other], costs)
    table, ids = MarkovForward().table.log_softmax(-1), request.ids
    rows = [table[ids[at - 2], ids[at - 1]] for at in range(len(PROMPT), len(ids))]
    expected = [float(row[token]) for row, token in zip(rows, ids[len(PROMPT) :], strict=True)]
    pieces, others = list(LocalStream(request)), list(LocalStream(other))
    assert [piece.logprob for piece in pieces] == pytest.approx(expected)
    assert [piece.top_logprobs[0][0] for piece in pieces] == [int(row.argmax()) for row in rows]
    assert {piece.logprob for piece in others} == {None}
