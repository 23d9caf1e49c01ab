"""Checking guesses in the pass changes how many passes an answer takes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch

from qlora_chat.engines import Finish, Piece
from qlora_chat.engines.cache import KVCache
from qlora_chat.engines.request import Request
from qlora_chat.engines.scheduler import Scheduler
from qlora_chat.engines.speculation import PassCosts
from qlora_chat.models.weights import LlamaShape, LlamaWeights
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.fakes import LetterTokenizer, MarkovForward

FREE = (1.0, 1.0)
"""A device on which checking costs nothing: every guess that may be right is checked."""
PROMPT = (1, 4, 5, 6, 7, 4, 5, 6, 8, 9, 4, 5)


class Fixed(PassCosts):
    """Costs that do not learn: how long this machine takes for a pass that computes nothing is another matter."""

    def note(self, tokens: int, seconds: float) -> None:
        """Stay as they are."""


def cache(slots: int) -> KVCache:
    """A real cache for a model of next to nothing."""
    shape = LlamaShape(1, 4, 1, 1, 4, MarkovForward.vocabulary, 512, 1e-6, True, {"rope_type": "default", "rope_theta": 1e4})
    nothing = torch.zeros(MarkovForward.vocabulary, 4)
    return KVCache(LlamaWeights(shape, nothing, (), nothing[0], torch.nn.Identity(), torch.device("cpu"), torch.float32), slots)


def ask(sampling: Sampling, stops: Stops = Stops(), prompt: tuple[int, ...] = PROMPT, window: int = 512) -> Request:  # noqa: B008
    return Request(prompt, sampling, stops, window, LetterTokenizer())


def run(requests: Sequence[Request], prior: Sequence[float] | None = FREE, slots: int = 3) -> MarkovForward:
    """All requests to their ends; the forward pass knows what it was asked."""
    forward, held = MarkovForward(), cache(slots)
    scheduler = Scheduler(forward, held, Fixed(prior) if prior else None)
    for request in requests:
        scheduler.submit(request)
    while not scheduler.idle:
        scheduler.step()
    for slot in held.slots:
        whole = next((each.ids for each in requests if each.ids[: len(slot.ids)] == slot.ids), None)
        assert whole is not None, "a slot says it holds what no chat has said"
    return forward


def told(request: Request) -> tuple[list[int], Finish]:
    """What the caller got: tokens, and how it ended."""
    pieces = []
    while not request.pieces.empty():
        piece = request.pieces.get()
        assert isinstance(piece, Piece), piece
        pieces.append(piece)
    assert pieces[-1].finish is not None
    return [each.token_id for each in pieces if each.token_id is not None], pieces[-1].finish


def longest_span(forward: MarkovForward) -> int:
    return max(span.logits for spans in forward.spans for span in spans)


SAMPLINGS = [
    Sampling(temperature=0.0, max_new_tokens=60),
    Sampling(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, max_new_tokens=60),
    Sampling(temperature=1.0, top_p=1.0, max_new_tokens=60),
    Sampling(temperature=1.5, top_p=0.95, repetition_penalty=1.3, max_new_tokens=60),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_answer_is_the_one_it_would_have_been(sampling: Sampling) -> None:
    passes = []
    for seed in range(8):
        chosen = sampling.changed(seed=seed)
        plain, guessed = ask(chosen), ask(chosen)
        slow, quick = run([plain], None), run([guessed])
        assert told(guessed)[0] == told(plain)[0]
        assert longest_span(slow) == 1
        passes.append((len(quick.spans), len(slow.spans)))
    assert sum(quick for quick, _ in passes) < sum(slow for _, slow in passes), "and in fewer passes"


def test_chats_that_share_a_pass_each_get_their_own_answer() -> None:
    """Seven chats over three places: some read while others guess, and a place is taken over from one that guessed."""
    settings = [each.changed(seed=index) for index, each in enumerate([*SAMPLINGS, *SAMPLINGS[1:]])]
    prompts = [PROMPT[: 12 - index] + (3, 4) * index * 20 for index in range(len(settings))]
    alone = [ask(each, prompt=prompt) for each, prompt in zip(settings, prompts, strict=True)]
    for each in alone:
        run([each], None)
    together = [ask(each, prompt=prompt) for each, prompt in zip(settings, prompts, strict=True)]
    assert longest_span(run(together)) > 1
    assert [told(each)[0] for each in together] == [told(each)[0] for each in alone]


def test_sampled_answers_have_the_model_s_distribution() -> None:
    """Three tokens after a prompt that suggests them: how often each of the 1,728 answers comes, against the product of the
    model's own probabilities."""
    many, sampling = 6000, Sampling(temperature=1.0, top_p=1.0, max_new_tokens=3)
    requests = [ask(sampling.changed(seed=seed)) for seed in range(many)]
    forward = run(requests, slots=64)
    assert longest_span(forward) == 3
    counts = dict.fromkeys(product(range(MarkovForward.vocabulary), repeat=3), 0)
    for request in requests:
        counts[tuple(told(request)[0])] += 1  # type: ignore[index]
    chances = forward.table.double().softmax(-1)
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


def test_a_stop_within_checked_guesses_ends_the_answer_there() -> None:
    greedy = Sampling(temperature=0.0, max_new_tokens=60)
    whole = ask(greedy)
    run([whole], None)
    ids = told(whole)[0]
    for stop in set(ids):
        stopped = ask(greedy, Stops(frozenset({stop})))
        run([stopped])
        tokens, finish = told(stopped)
        assert tokens == ids[: ids.index(stop)]
        assert finish.reason == "stop"
        assert stopped.ids == [*PROMPT, *tokens, stop]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
def test_length_and_window_end_an_answer_to_the_token(limit: int) -> None:
    by_length = ask(Sampling(temperature=0.0, max_new_tokens=limit))
    by_window = ask(Sampling(temperature=0.0, max_new_tokens=400), window=len(PROMPT) + limit)
    forward = run([by_length, by_window])
    assert [len(told(each)[0]) for each in (by_length, by_window)] == [limit, limit]
    furthest = max(span.start + len(span.ids) for spans in forward.spans for span in spans)
    assert furthest < len(PROMPT) + limit, "nothing is computed beyond the answer's last token"


class At(LetterTokenizer):
    """Calls back when it decodes an answer's nth token: in the middle of what one pass has made."""

    def __init__(self, number: int, call: Callable[[], None]) -> None:
        self._left, self._call = number, call

    def decode(self, ids: Sequence[int]) -> str:
        """As letters are decoded."""
        self._left -= 1
        if self._left == 0:
            self._call()
        return super().decode(ids)


@pytest.mark.parametrize("number", range(5, 25, 3))
def test_settings_changed_among_checked_guesses_act_from_the_next_token(number: int) -> None:
    answers, wild = [], Sampling(temperature=2.0, top_p=1.0, max_new_tokens=40)
    for prior in (None, FREE):
        request = ask(Sampling(temperature=0.0, max_new_tokens=40))
        request._random.seed(7)
        request._detokenizer._tokenizer = At(number, lambda request=request: setattr(request, "sampling", wild))
        run([request], prior)
        answers.append(told(request)[0])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("number", range(5, 25, 3))
def test_settings_due_among_checked_guesses_are_taken_up_there(number: int) -> None:
    answers = []
    for prior in (None, FREE):
        due = {number: Sampling(temperature=2.0, top_p=1.0, max_new_tokens=40)}
        request = Request(PROMPT, Sampling(temperature=0.0, max_new_tokens=40, seed=3), Stops(), 512, LetterTokenizer(), due)
        run([request], prior)
        answers.append(told(request))
    assert answers[0][0] == answers[1][0]
    assert [made for made, _ in answers[1][1].changes] == [number]


@pytest.mark.parametrize("number", range(5, 25, 3))
def test_an_answer_cancelled_among_checked_guesses_ends_there(number: int) -> None:
    request = ask(Sampling(temperature=0.0, max_new_tokens=40))
    request._detokenizer._tokenizer = At(number, lambda: setattr(request, "cancelled", True))
    run([request])
    tokens, finish = told(request)
    assert (len(tokens), finish.reason) == (number, "cancelled")


def test_where_a_pass_costs_what_its_tokens_cost_nothing_is_guessed() -> None:
    request = ask(Sampling(temperature=1.0, max_new_tokens=60, seed=1))
    forward = MarkovForward()
    scheduler = Scheduler(forward, cache(1), Fixed((1.0, 2.0, 3.0)))
    scheduler.submit(request)
    while not scheduler.idle:
        scheduler.step()
    assert longest_span(forward) == 1


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
    run([alone], None)
    answers = []
    for request in (first, second):
        pieces = [request.pieces.get() for _ in range(request.pieces.qsize())]
        answers.append(None if not isinstance(pieces[-1], Piece) else [each.token_id for each in pieces])  # type: ignore[union-attr]
    assert None in answers
    assert told(alone)[0] in answers
