"""Checking guesses in the pass changes how many passes an answer takes, and nothing else; so it is for steps on a card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch

from qlora_chat.engines import Piece
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.scheduler import Scheduler
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.engines.drafts import FREE, PROMPT, SAMPLINGS, At, Fixed, Work, ask, by_passes, by_steps, cache, told
from tests.fakes import LetterTokenizer, MarkovForward

Answer = Callable[..., Work]
either_way = pytest.mark.parametrize("answer", [by_passes, by_steps])
"""Through passes and through a card's steps: what guesses leave as it is does not depend on who checks them."""


@either_way
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_answer_is_the_one_it_would_have_been(sampling: Sampling, answer: Answer) -> None:
    passes = []
    for seed in range(8):
        chosen = sampling.changed(seed=seed)
        plain, guessed = ask(chosen), ask(chosen)
        slow, quick = answer([plain], None), answer([guessed])
        assert told(guessed)[0] == told(plain)[0]
        assert slow.widest == 1
        passes.append((quick.passes, slow.passes))
    assert sum(quick for quick, _ in passes) < sum(slow for _, slow in passes), "and in fewer passes"


@either_way
def test_chats_that_share_a_pass_each_get_their_own_answer(answer: Answer) -> None:
    """Seven chats over three places: some read while others guess, and a place is taken over from one that guessed."""
    settings = [each.changed(seed=index) for index, each in enumerate([*SAMPLINGS, *SAMPLINGS[1:]])]
    prompts = [PROMPT[: 12 - index] + (3, 4) * index * 20 for index in range(len(settings))]
    alone = [ask(each, prompt=prompt) for each, prompt in zip(settings, prompts, strict=True)]
    for each in alone:
        answer([each], None)
    together = [ask(each, prompt=prompt) for each, prompt in zip(settings, prompts, strict=True)]
    assert answer(together).widest > 1
    assert [told(each)[0] for each in together] == [told(each)[0] for each in alone]


def test_sampled_answers_have_the_model_s_distribution() -> None:
    """Three tokens after a prompt that suggests them: how often each of the 1,728 answers comes, against the product of the
    model's own probabilities."""
    many, sampling = 6000, Sampling(temperature=1.0, top_p=1.0, max_new_tokens=3)
    requests = [ask(sampling.changed(seed=seed)) for seed in range(many)]
    assert by_passes(requests, slots=64).widest == 3
    counts = dict.fromkeys(product(range(MarkovForward.vocabulary), repeat=3), 0)
    for request in requests:
        counts[tuple(told(request)[0])] += 1  # type: ignore[index]
    chances = MarkovForward().table.double().softmax(-1)
    first = chances[PROMPT[-2], PROMPT[-1]]
    expected = torch.stack([first[a] * chances[PROMPT[-1], a, b] * chances[a, b, c] for a, b, c in counts]) * many
    likely = expected >= 5
    seen = torch.tensor(list(counts.values()))
    squares = ((seen[likely] - expected[likely]) ** 2 / expected[likely]).sum() + (
        seen[~likely].sum() - expected[~likely].sum()
    ) ** 2 / expected[~likely].sum()
    freedom = int(likely.sum())
    assert freedom > 50
    assert abs(squares - freedom) < 4 * (2 * freedom) ** 0.5, "chi-square within four deviations of its mean"


@either_way
def test_a_stop_within_checked_guesses_ends_the_answer_there(answer: Answer) -> None:
    greedy = Sampling(temperature=0.0, max_new_tokens=60)
    whole = ask(greedy)
    answer([whole], None)
    ids = told(whole)[0]
    for stop in set(ids):
        stopped = ask(greedy, Stops(frozenset({stop})))
        answer([stopped])
        tokens, finish = told(stopped)
        assert tokens == ids[: ids.index(stop)]
        assert finish.reason == "stop"
        assert stopped.ids == [*PROMPT, *tokens, stop]


@either_way
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
def test_length_and_window_end_an_answer_to_the_token(limit: int, answer: Answer) -> None:
    by_length = ask(Sampling(temperature=0.0, max_new_tokens=limit))
    by_window = ask(Sampling(temperature=0.0, max_new_tokens=400), window=len(PROMPT) + limit)
    work = answer([by_length, by_window])
    assert [len(told(each)[0]) for each in (by_length, by_window)] == [limit, limit]
    ahead = answer is by_steps  # a card has begun the next step by the time that it hears of the last token
    assert work.furthest < len(PROMPT) + limit + ahead, "nothing is computed beyond the answer's last token"


@either_way
@pytest.mark.parametrize("number", range(5, 25, 3))
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_settings_changed_among_checked_guesses_act_from_the_next_token(number: int, penalty: float, answer: Answer) -> None:
    """The penalty, too: what was said while none was asked for counts as said, and nothing else does."""
    answers, wild = [], Sampling(temperature=2.0, top_p=1.0, repetition_penalty=penalty, max_new_tokens=40)
    for prior in (None, FREE):
        request = ask(Sampling(temperature=0.0, max_new_tokens=40, seed=7))
        request._detokenizer._tokenizer = At(number, lambda request=request: setattr(request, "sampling", wild))
        answer([request], prior)
        answers.append(told(request)[0])
    assert answers[0] == answers[1]


@either_way
@pytest.mark.parametrize("number", range(5, 25, 3))
def test_settings_due_among_checked_guesses_are_taken_up_there(number: int, answer: Answer) -> None:
    answers = []
    for prior in (None, FREE):
        due = {number: Sampling(temperature=2.0, top_p=1.0, max_new_tokens=40)}
        request = Request(PROMPT, Sampling(temperature=0.0, max_new_tokens=40, seed=3), Stops(), 512, LetterTokenizer(), due)
        answer([request], prior)
        answers.append(told(request))
    assert answers[0][0] == answers[1][0]
    assert [made for made, _ in answers[1][1].changes] == [number]


@either_way
@pytest.mark.parametrize("number", range(5, 25, 3))
def test_an_answer_cancelled_among_checked_guesses_ends_there(number: int, answer: Answer) -> None:
    request = ask(Sampling(temperature=0.0, max_new_tokens=40))
    request._detokenizer._tokenizer = At(number, lambda: setattr(request, "cancelled", True))
    answer([request])
    tokens, finish = told(request)
    assert (len(tokens), finish.reason) == (number, "cancelled")


@either_way
def test_where_a_pass_costs_what_its_tokens_cost_nothing_is_guessed(answer: Answer) -> None:
    request = ask(Sampling(temperature=1.0, max_new_tokens=60, seed=1))
    assert answer([request], (1.0, 2.0, 3.0)).widest == 1


def test_a_pass_that_fails_with_guesses_in_it_fails_for_its_own_chat_only() -> None:
    forward, guilty = MarkovForward(), []

    def breaks(spans: Sequence) -> torch.Tensor:
        if any(span.logits > 1 and span.slot == 0 for span in spans):
            guilty.append(spans)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(spans)

    scheduler = Scheduler(breaks, cache(2), Fixed(FREE))
    first, second = (ask(Sampling(temperature=0.0, max_new_tokens=30)) for _ in range(2))
    scheduler.submit(first)
    scheduler.submit(second)
    while not scheduler.idle:
        scheduler.step()
    assert guilty
    alone = ask(Sampling(temperature=0.0, max_new_tokens=30))
    by_passes([alone], None)
    answers = []
    for request in (first, second):
        pieces = [request.pieces.get() for _ in range(request.pieces.qsize())]
        answers.append(None if not isinstance(pieces[-1], Piece) else [each.token_id for each in pieces])  # type: ignore[union-attr]
    assert None in answers
    assert told(alone)[0] in answers
