"""Drafts change how many passes an answer takes and nothing else, with the span scheduler and with the CUDA one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product

import pytest
import torch

from qlora_chat.engines import Piece, PrefillProgress
from qlora_chat.engines.core import answer_builder
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.scheduler import SpanScheduler
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.engines.drafts import (
    FREE,
    PROMPT,
    SAMPLINGS,
    CallsBack,
    FixedCosts,
    Work,
    answer_of,
    by_spans,
    by_steps,
    make_cache,
    make_request,
)
from tests.fakes import LetterTokenizer, MarkovForward

Run = Callable[..., Work]
either_scheduler = pytest.mark.parametrize("run", [by_spans, by_steps])


@either_scheduler
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_answer_is_the_same_with_drafts(sampling: Sampling, run: Run) -> None:
    passes = []
    for seed in range(8):
        seeded = sampling.changed(seed=seed)
        plain, drafted = make_request(seeded), make_request(seeded)
        slow, fast = run([plain], None), run([drafted])
        assert answer_of(drafted)[0] == answer_of(plain)[0]
        assert slow.widest == 1
        passes.append((fast.passes, slow.passes))
    assert sum(fast for fast, _ in passes) < sum(slow for _, slow in passes), "and takes fewer passes"


@either_scheduler
def test_chats_that_share_a_pass_each_get_their_own_answer(run: Run) -> None:
    """Seven chats over three slots: some prefill while others draft, and a slot is reused after a chat that drafted."""
    settings = [each.changed(seed=index) for index, each in enumerate([*SAMPLINGS, *SAMPLINGS[1:]])]
    prompts = [PROMPT[: 12 - index] + (3, 4) * index * 20 for index in range(len(settings))]
    alone = [make_request(each, prompt=prompt) for each, prompt in zip(settings, prompts, strict=True)]
    for each in alone:
        run([each], None)
    together = [make_request(each, prompt=prompt) for each, prompt in zip(settings, prompts, strict=True)]
    assert run(together).widest > 1
    assert [answer_of(each)[0] for each in together] == [answer_of(each)[0] for each in alone]


def test_sampled_answers_have_the_model_s_distribution() -> None:
    """Three tokens after a prompt that suggests them: how often each of the 1,728 answers occurs, against the product of the
    model's own probabilities."""
    many, sampling = 6000, Sampling(temperature=1.0, top_p=1.0, max_new_tokens=3)
    requests = [make_request(sampling.changed(seed=seed)) for seed in range(many)]
    assert by_spans(requests, slots=64).widest == 3
    counts = dict.fromkeys(product(range(MarkovForward.vocabulary), repeat=3), 0)
    for request in requests:
        counts[tuple(answer_of(request)[0])] += 1  # type: ignore[index]
    chances = MarkovForward().table.double().softmax(-1)
    first = chances[PROMPT[-2], PROMPT[-1]]
    expected = torch.stack([first[a] * chances[PROMPT[-1], a, b] * chances[a, b, c] for a, b, c in counts]) * many
    frequent = expected >= 5
    seen = torch.tensor(list(counts.values()))
    squares = ((seen[frequent] - expected[frequent]) ** 2 / expected[frequent]).sum() + (
        seen[~frequent].sum() - expected[~frequent].sum()
    ) ** 2 / expected[~frequent].sum()
    freedom = int(frequent.sum())
    assert freedom > 50
    assert abs(squares - freedom) < 4 * (2 * freedom) ** 0.5, "chi-square within four deviations of its mean"


@either_scheduler
def test_a_stop_within_a_verified_draft_ends_the_answer_there(run: Run) -> None:
    greedy = Sampling(temperature=0.0, max_new_tokens=60)
    whole = make_request(greedy)
    run([whole], None)
    ids = answer_of(whole)[0]
    for stop in set(ids):
        stopped = make_request(greedy, Stops(frozenset({stop})))
        run([stopped])
        tokens, finish = answer_of(stopped)
        assert tokens == ids[: ids.index(stop)]
        assert finish.reason == "stop"
        assert stopped.ids == [*PROMPT, *tokens, stop]


@either_scheduler
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
def test_length_and_window_end_an_answer_to_the_token(limit: int, run: Run) -> None:
    by_length = make_request(Sampling(temperature=0.0, max_new_tokens=limit))
    by_window = make_request(Sampling(temperature=0.0, max_new_tokens=400), window=len(PROMPT) + limit)
    work = run([by_length, by_window])
    assert [len(answer_of(each)[0]) for each in (by_length, by_window)] == [limit, limit]
    ahead = run is by_steps  # a card has started the next step by the time the last token is known
    assert work.positions < len(PROMPT) + limit + ahead, "nothing is computed beyond the answer's last token"


@either_scheduler
@pytest.mark.parametrize("number", range(5, 25, 3))
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_settings_changed_within_a_draft_apply_from_the_next_token(number: int, penalty: float, run: Run) -> None:
    """The penalty as well: it counts every token before the change, and nothing else."""
    wild = Sampling(temperature=2.0, top_p=1.0, repetition_penalty=penalty, max_new_tokens=40)

    def answer(prior: Sequence[float] | None) -> list[int]:
        tokenizer = CallsBack(number, lambda: setattr(request, "sampling", wild))
        request = make_request(Sampling(temperature=0.0, max_new_tokens=40, seed=7), tokenizer=tokenizer)
        run([request], prior)
        return answer_of(request)[0]

    assert answer(FREE) == answer(None)


@either_scheduler
@pytest.mark.parametrize("number", range(5, 25, 3))
def test_pending_settings_within_a_draft_apply_at_their_token(number: int, run: Run) -> None:
    answers = []
    for prior in (None, FREE):
        pending = {number: Sampling(temperature=2.0, top_p=1.0, max_new_tokens=40)}
        request = Request(
            PROMPT, Sampling(temperature=0.0, max_new_tokens=40, seed=3), Stops(), 512, LetterTokenizer(), pending
        )
        run([request], prior)
        answers.append(answer_of(request))
    assert answers[0][0] == answers[1][0]
    assert [generated for generated, _ in answers[1][1].changes] == [number]


@either_scheduler
@pytest.mark.parametrize("number", range(5, 25, 3))
def test_an_answer_cancelled_within_a_draft_ends_there(number: int, run: Run) -> None:
    tokenizer = CallsBack(number, lambda: setattr(request, "cancelled", True))
    request = make_request(Sampling(temperature=0.0, max_new_tokens=40), tokenizer=tokenizer)
    run([request])
    tokens, finish = answer_of(request)
    assert (len(tokens), finish.reason) == (number, "cancelled")


@either_scheduler
def test_nothing_is_drafted_where_a_pass_costs_as_much_as_its_tokens(run: Run) -> None:
    request = make_request(Sampling(temperature=1.0, max_new_tokens=60, seed=1))
    assert run([request], (1.0, 2.0, 3.0)).widest == 1


def test_a_pass_that_fails_over_a_draft_fails_for_its_own_chat_only() -> None:
    forward, guilty = MarkovForward(), []

    def breaks(spans: Sequence) -> torch.Tensor:
        if any(span.logits > 1 and span.slot == 0 for span in spans):
            guilty.append(spans)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(spans)

    scheduler = SpanScheduler(breaks, make_cache(2), FixedCosts(FREE))  # type: ignore[arg-type]
    first, second = (make_request(Sampling(temperature=0.0, max_new_tokens=30)) for _ in range(2))
    scheduler.submit(first)
    scheduler.submit(second)
    while not scheduler.idle:
        scheduler.step()
    assert guilty
    alone = make_request(Sampling(temperature=0.0, max_new_tokens=30))
    by_spans([alone], None)
    answers = []
    for request in (first, second):
        pieces = [request.pieces.get() for _ in range(request.pieces.qsize())]
        answers.append(None if not isinstance(pieces[-1], Piece) else [each.token_id for each in pieces])  # type: ignore[union-attr]
    assert None in answers
    assert answer_of(alone)[0] in answers


@either_scheduler
def test_a_long_prompt_reports_how_much_of_it_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_builder, "PREFILL_INTERVAL_S", 0.0)
    brief = Sampling(temperature=0.0, max_new_tokens=3)
    requests = [make_request(brief, prompt=(1, *[4 + index] * 420)) for index in range(3)]
    run(requests)
    reports: list[PrefillProgress] = []
    for request in requests:
        pieces = list(request)
        own = [each.prefill for each in pieces if each.prefill]
        assert own == [each.prefill for each in pieces[: len(own)]], "before the first token"
        assert all(earlier.read < later.read for earlier, later in pairwise(own))
        assert not any(each.text or each.token_id for each in pieces[: len(own)])
        assert len([each for each in pieces if each.token_id is not None]) == 3
        reports += own
    assert reports, "three prompts are more than one pass reads"
    assert all(0 < each.read < each.total == 421 for each in reports)
