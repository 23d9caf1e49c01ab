"""Prompts beside answers on a card, a slice of a pass before each step: how long one waits, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch

from qlora_chat.engines import EngineError
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.request import LocalStream, Request
from qlora_chat.engines.cuda import scheduler
from qlora_chat.engines.cuda.prefill.reader import Pass
from qlora_chat.engines.cuda.prefill_budget import SHARE, Slice, Slices
from qlora_chat.engines.cuda.scheduler import STEP_COSTS, CudaScheduler
from qlora_chat.engines.eager.forward import Forward, Span
from qlora_chat.models.weights.llama import Dense, Layer, LlamaShape, LlamaWeights
from qlora_chat.settings import Sampling
from tests.engines.drafts import PROMPT, Card, ask
from tests.fakes import NumberedAdapters, PlainDecoder

LAYERS, PRODUCTS = 4, (3, 1, 3, 3)
"""And weights of each product of a layer, as a pass counts them."""
PASS = LAYERS * sum(PRODUCTS)
SAMPLED = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12, seed=3)
LONG, OTHER = (tuple(5 + at * step % 11 for at in range(200)) for step in (3, 7))
SHORT = (1, 7, 9, 4)


def model() -> LlamaWeights:
    """A LLaMA of next to nothing whose answers depend on all of a prompt."""
    hidden, generator = 32, torch.Generator().manual_seed(1)

    def dense(outputs: int, inputs: int) -> Dense:
        return Dense(2 * torch.randn(outputs, inputs, generator=generator) / inputs**0.5)

    one = torch.ones(hidden)
    layers = [
        Layer(one, dense(3 * hidden, hidden), dense(hidden, hidden), one, dense(128, hidden), dense(hidden, 64))
        for _ in range(LAYERS)
    ]
    shape = LlamaShape(LAYERS, hidden, 2, 2, 16, 16, 512, 1e-6, False, {"rope_type": "default", "rope_theta": 1e4})
    embeddings = torch.randn(16, hidden, generator=generator)
    return LlamaWeights(shape, embeddings, tuple(layers), one, dense(16, hidden), torch.device("cpu"), torch.float32)


class Sliced:
    """A scheduler over a card on which each layer of a pass leaves its keys and values when its turn has come, not before."""

    def __init__(self, slots: int = 3) -> None:
        weights = model()
        self.cache, self._whole = KVCache(weights, slots), Forward(weights, KVCache(weights, slots))
        self.decoder = PlainDecoder(Forward(weights, self.cache), Span)
        self.decoder.seconds = lambda rows: STEP_COSTS[rows - 1]
        self.pace = 8 / (PASS * len(LONG))
        """Seconds for a weight and a token: a long prompt takes as long as so many steps of one chat."""
        self.memory_for, self.short_in = 1000, 0
        """Tokens of a pass; in which layer a pass over more runs out of it."""
        self.layers_read = 0
        """By all passes together."""
        self.passes: list[list[int]] = []
        """Tokens of each chat in each."""
        self.scheduler = CudaScheduler(self.decoder, self._begin, self.cache, NumberedAdapters(self.cache))  # type: ignore[arg-type]

    def _begin(self, spans: Sequence[Span]) -> Pass:
        return Pass(self._parts(spans))

    def _parts(self, spans: Sequence[Span]) -> Iterator[int]:
        self.passes.append([len(span.ids) for span in spans])
        tokens, whole = sum(self.passes[-1]), self._whole.cache
        pairs = (self.cache.keys, whole.keys), (self.cache.values, whole.values)
        for mine, other in pairs:
            other[:] = mine
        self._whole(spans)
        for index in range(LAYERS):
            for weights in PRODUCTS:
                yield weights
                self.decoder.clock += self.pace * weights * tokens
            if tokens > self.memory_for and index == self.short_in:
                raise torch.OutOfMemoryError("CUDA out of memory")
            for span in spans:
                there = slice(span.start, span.start + len(span.ids))
                for mine, other in pairs:
                    mine[index, span.slot, :, there] = other[index, span.slot, :, there]
            self.layers_read += 1

    def ask(self, prompt: Sequence[int], new: int = 12, adapter: int | None = None) -> Request:
        request = ask(SAMPLED.changed(max_new_tokens=new), prompt=tuple(prompt))
        request.adapter = adapter
        self.scheduler.submit(request)
        return request

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if self.scheduler.idle:
                return
            self.scheduler.step()

    def answering(self, new: int = 60) -> Request:
        """A chat that has been answered for a while."""
        request = self.ask(SHORT, new)
        self.run(8)
        return request

    def half_read(self, *prompts: Sequence[int]) -> list[Request]:
        """Chats in a pass of which half the layers have run."""
        requests, before = [self.ask(each) for each in prompts], self.layers_read
        while self.layers_read < before + LAYERS // 2:
            self.scheduler.step()
        assert all(each.pending > 1 for each in requests)
        return requests


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two would wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def card() -> Sliced:
    return Sliced()


def ids_of(request: Request) -> list[int]:
    return [piece.token_id for piece in LocalStream(request) if piece.token_id is not None]


@cache
def alone(prompt: tuple[int, ...], new: int = 12) -> list[int]:
    """The answer of a card that has nothing else to do."""
    card = Sliced(slots=1)
    request = card.ask(prompt, new)
    card.run()
    return ids_of(request)


@pytest.mark.parametrize("steps", [3, 8, 12])
def test_every_token_comes_within_twice_a_steps_time_while_a_long_prompt_is_read(steps: int, card: Sliced) -> None:
    answer = card.answering()
    card.pace = steps / (PASS * len(LONG))
    before = card.decoder.started
    beside = card.ask(LONG)
    while not beside.generated:
        card.scheduler.step()
    ends = [ended for _, ended in card.decoder.times[before - 1 :]]
    assert max(later - earlier for earlier, later in pairwise(ends)) <= 2.0
    assert len(ends) < 1.8 * steps + 6, "the prompt has nearly half of the time"
    card.run()
    assert card.passes == [[len(LONG) - 1]]
    assert ids_of(answer) == alone(SHORT, 60)
    assert ids_of(beside) == alone(LONG)


def test_one_slice_goes_before_a_step_when_others_leave_or_move_a_slider_meanwhile(card: Sliced) -> None:
    answer, leaving = card.answering(), card.ask(SHORT, 20)
    while not leaving.generated:
        card.scheduler.step()
    beside = card.ask(LONG)
    before = card.decoder.started
    while not beside.generated:
        card.scheduler.step()
        leaving.cancelled = card.layers_read > 0
        if card.layers_read > 1:
            answer.sampling = SAMPLED.changed(max_new_tokens=60)
    assert max(began - ended for (_, ended), (began, _) in pairwise(card.decoder.times[before - 1 :])) <= STEP_COSTS[1]


def test_steps_are_started_ahead_of_their_results_while_a_prompt_is_read(card: Sliced) -> None:
    answer = card.answering()
    card.half_read(LONG)
    assert card.decoder.started == answer.generated + 1, "one is under way"


def test_prompts_of_chats_with_different_adapters_are_read_in_one_pass(card: Sliced) -> None:
    card.answering()
    first, second = card.ask(LONG, adapter=1), card.ask(OTHER, adapter=2)
    card.run()
    assert card.passes == [[len(LONG) - 1, len(OTHER) - 1]]
    assert (ids_of(first), ids_of(second)) == (alone(LONG), alone(OTHER))


@pytest.mark.parametrize("prompt", [SHORT, OTHER], ids=["short", "long"])
def test_who_leaves_while_being_read_leaves_nothing_to_the_next_in_the_slot(prompt: tuple[int, ...]) -> None:
    card = Sliced(slots=2)
    answer = card.answering()
    (left,) = card.half_read(LONG)
    left.cancelled = True
    following = card.ask(prompt)
    card.run()
    assert ids_of(following) == alone(prompt)
    assert ids_of(answer) == alone(SHORT, 60)


def test_those_who_are_read_together_with_one_who_leaves_are_read_all_the_same(card: Sliced) -> None:
    card.answering()
    left, other = card.half_read(LONG, OTHER)
    left.cancelled = True
    following = card.ask(SHORT)
    card.run()
    assert (ids_of(other), ids_of(following)) == (alone(OTHER), alone(SHORT))


def test_a_prompt_that_comes_while_another_is_read_waits_for_it(card: Sliced) -> None:
    answer = card.answering()
    (beside,) = card.half_read(LONG)
    short = card.ask(SHORT[1:])
    while not beside.generated:
        card.scheduler.step()
    assert card.decoder.widest <= 5, "no rows of prompts beside slices: that would be too long for one token"
    card.run()
    assert [ids_of(each) for each in (answer, beside, short)] == [alone(SHORT, 60), alone(LONG), alone(SHORT[1:])]


def test_where_nobody_answers_any_more_the_rest_of_a_prompt_is_read_at_once(card: Sliced) -> None:
    answer = card.answering()
    (beside,) = card.half_read(LONG)
    answer.cancelled = True
    card.scheduler.step()
    assert (card.layers_read, beside.pending) == (LAYERS, 1)
    card.run()
    assert ids_of(beside) == alone(LONG)


def test_a_prompt_that_memory_runs_out_for_in_the_middle_is_read_in_smaller_parts(card: Sliced) -> None:
    answer = card.answering()
    card.memory_for, card.short_in = 150, LAYERS - 2
    (beside,) = card.half_read(LONG)
    card.run()
    assert [sum(each) > 150 for each in card.passes] == [True, False, False]
    assert (ids_of(answer), ids_of(beside)) == (alone(SHORT, 60), alone(LONG))


def test_a_prompt_that_there_is_no_memory_for_costs_nobody_elses_answer(card: Sliced) -> None:
    answer = card.answering()
    card.memory_for, card.short_in = 0, LAYERS - 2
    (beside,) = card.half_read(LONG)
    card.run()
    assert ids_of(answer) == alone(SHORT, 60)
    with pytest.raises(EngineError, match="not enough memory"):
        list(LocalStream(beside))


def test_an_engine_that_failed_in_the_middle_of_a_prompt_begins_anew(card: Sliced) -> None:
    card.answering()
    card.half_read(LONG)
    card.scheduler.fail_all(RuntimeError("the card has fallen out"))
    after = card.ask(OTHER)
    card.run()
    assert ids_of(after) == alone(OTHER)


def test_a_prompt_longer_than_a_pass_is_read_by_several(card: Sliced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "READ_AT_ONCE", 64)
    answer = card.answering()
    beside = card.ask(LONG)
    card.run()
    assert card.passes == [[64], [64]], "and the rest as rows"
    assert (ids_of(answer), ids_of(beside)) == (alone(SHORT, 60), alone(LONG))


def test_a_short_prompt_that_waits_for_a_pass_is_not_read_in_the_step_behind_its_last_slice(card: Sliced) -> None:
    card.answering()
    card.pace = 12 / (PASS * len(LONG))
    before = card.decoder.started
    beside = card.ask(LONG)
    card.scheduler.step()
    card.scheduler.step()
    other = card.ask(LONG[5:45])
    while not (beside.generated and other.generated):
        card.scheduler.step()
    ends = [ended for _, ended in card.decoder.times[before - 1 :]]
    assert max(b - a for a, b in pairwise(ends)) <= 2


@pytest.mark.parametrize("chats", [1, 8, 9, 24, 25, 31, 33])
def test_a_short_prompt_makes_no_step_take_more_than_twice_as_long(chats: int) -> None:
    card = Card(None, slots=chats + 1)
    card.decoder.seconds = lambda rows: STEP_COSTS[rows - 1]
    for each in range(chats):
        card.scheduler.submit(ask(Sampling(temperature=0.0, max_new_tokens=40), prompt=(1, each % 12, 3)))
    while card.decoder.choosing < chats:
        card.scheduler.step()
    before = card.decoder.started
    reading = ask(Sampling(temperature=0.0, max_new_tokens=2), prompt=PROMPT * 4)
    card.scheduler.submit(reading)
    while not reading.generated:
        card.scheduler.step()
    assert max(ended - began for began, ended in card.decoder.times[before:]) <= 2 * STEP_COSTS[chats - 1]


def test_a_slice_is_as_long_as_a_step_of_those_who_answer() -> None:
    slices = Slices(STEP_COSTS)
    assert slices.weights(1, 500) == 0, "one part, until more is known"
    slices.note(1, 0.5, 2.0, Slice(100, 500))
    assert slices.weights(1, 500) == pytest.approx(SHARE * 400)
    assert slices.weights(1, 1000) == pytest.approx(SHARE * 200), "each weight for twice as many tokens"
    assert slices.weights(1, 100) == pytest.approx(SHARE * 400), "unpacking takes its time for few, too"
    assert slices.weights(8, 500) == pytest.approx(SHARE * 400), "a wider step was not seen"
    slices.note(8, 0.0, 2.6, None)
    assert slices.weights(1, 500) == pytest.approx(SHARE * 400)


def test_one_slow_step_makes_no_long_slice() -> None:
    slices = Slices(STEP_COSTS)
    for own in (1.0, 1.0, 30.0):
        slices.note(1, 1.0, own, Slice(100, 500))
    assert slices.weights(1, 500) == pytest.approx(SHARE * 100)


def test_one_slow_slice_is_soon_forgotten() -> None:
    slices = Slices(STEP_COSTS)
    for before in (1.0, 1.0, 30.0, *[1.0] * 4):
        slices.note(1, before, 1.0, Slice(100, 500))
    assert slices.weights(1, 500) > 0.9 * SHARE * 100
