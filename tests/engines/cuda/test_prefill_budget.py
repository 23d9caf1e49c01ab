"""Prefill in chunks between the steps of answering chats: the delay of their tokens, and unchanged answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch

from qlora_chat.engines import EngineError
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.cuda.policy import StepLimits
from qlora_chat.engines.cuda.prefill.reader import PrefillPass
from qlora_chat.engines.cuda.prefill_budget import PrefillBudget, PrefillChunk
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.models.weights.llama import Dense, Layer, LlamaShape, LlamaWeights
from qlora_chat.settings import Sampling
from tests.engines.drafts import PROMPT, Card, make_request
from tests.fakes import NumberedAdapters, PlainDecoder

LIMITS = StepLimits()
LAYERS, PRODUCTS = 4, (3, 1, 3, 3)
"""Layers, and weights of each product of a layer as a pass counts them."""
PASS = LAYERS * sum(PRODUCTS)
SAMPLED = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12, seed=3)
LONG, OTHER = (tuple(5 + at * step % 11 for at in range(200)) for step in (3, 7))
SHORT = (1, 7, 9, 4)


def model() -> LlamaWeights:
    """A tiny LLaMA whose answers depend on all of a prompt."""
    hidden, generator = 32, torch.Generator().manual_seed(1)

    def dense(outputs: int, inputs: int) -> Dense:
        return Dense(2 * torch.randn(outputs, inputs, generator=generator) / inputs**0.5)

    one = torch.ones(hidden)
    layers = [
        Layer(one, dense(3 * hidden, hidden), dense(hidden, hidden), one, dense(128, hidden), dense(hidden, 64))
        for _ in range(LAYERS)
    ]
    shape = LlamaShape(LAYERS, hidden, 64, 2, 2, 16, 16, 512, 1e-6, False, {"rope_type": "default", "rope_theta": 1e4})
    embeddings = torch.randn(16, hidden, generator=generator)
    return LlamaWeights(shape, embeddings, tuple(layers), one, dense(16, hidden), torch.device("cpu"), torch.float32)


class ChunkedCard:
    """A scheduler over a card on which each layer of a pass writes its keys and values when it runs, not before."""

    def __init__(self, slots: int = 3, limits: StepLimits = LIMITS) -> None:
        weights = model()
        self.cache, self._whole = KVCache(weights, slots), Forward(weights, KVCache(weights, slots))
        self.decoder = PlainDecoder(Forward(weights, self.cache), Span)
        self.decoder.seconds = lambda rows: LIMITS.step_costs[rows - 1]
        self.pace = 8 / (PASS * len(LONG))
        """Seconds per weight and token: a long prompt takes as long as eight steps of one chat."""
        self.memory_for, self.short_in = 1000, 0
        """Tokens of a pass; layer in which a pass over more runs out of memory."""
        self.layers_done = 0
        """Layers run by all passes together."""
        self.passes: list[list[int]] = []
        """Tokens of each chat in each pass."""
        adapters: Any = NumberedAdapters(self.cache)
        decoder: Any = self.decoder
        self.scheduler = CudaScheduler(decoder, self._begin, self.cache, adapters, limits=limits)

    def _begin(self, spans: Sequence[Span]) -> PrefillPass:
        return PrefillPass(self._parts(spans))

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
            self.layers_done += 1

    def ask(self, prompt: Sequence[int], new: int = 12, adapter: int | None = None) -> Request:
        request = make_request(SAMPLED.changed(max_new_tokens=new), prompt=tuple(prompt))
        request.adapter = adapter
        self.scheduler.submit(request)
        return request

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if self.scheduler.idle:
                return
            self.scheduler.step()

    def answering(self, new: int = 60) -> Request:
        """A chat in the middle of its answer."""
        request = self.ask(SHORT, new)
        self.run(8)
        return request

    def half_prefilled(self, *prompts: Sequence[int]) -> list[Request]:
        """Chats in a pass of which half the layers have run."""
        requests, before = [self.ask(each) for each in prompts], self.layers_done
        while self.layers_done < before + LAYERS // 2:
            self.scheduler.step()
        assert all(each.pending > 1 for each in requests)
        return requests


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads would wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def card() -> ChunkedCard:
    return ChunkedCard()


def ids_of(request: Request) -> list[int]:
    return [piece.token_id for piece in request if piece.token_id is not None]


@cache
def alone(prompt: tuple[int, ...], new: int = 12) -> list[int]:
    """The answer of a card without other chats."""
    card = ChunkedCard(slots=1)
    request = card.ask(prompt, new)
    card.run()
    return ids_of(request)


@pytest.mark.parametrize("steps", [3, 8, 12])
def test_every_token_comes_within_twice_a_steps_time_while_a_long_prompt_is_prefilled(steps: int, card: ChunkedCard) -> None:
    answer = card.answering()
    card.pace = steps / (PASS * len(LONG))
    before = card.decoder.started
    prefilled = card.ask(LONG)
    while not prefilled.generated:
        card.scheduler.step()
    ends = [ended for _, ended in card.decoder.times[before - 1 :]]
    assert max(later - earlier for earlier, later in pairwise(ends)) <= 2.0
    assert len(ends) < 1.8 * steps + 6, "the prompt gets nearly half of the time"
    card.run()
    assert card.passes == [[len(LONG) - 1]]
    assert ids_of(answer) == alone(SHORT, 60)
    assert ids_of(prefilled) == alone(LONG)


def test_one_chunk_goes_before_a_step_when_others_leave_or_change_settings(card: ChunkedCard) -> None:
    answer, leaving = card.answering(), card.ask(SHORT, 20)
    while not leaving.generated:
        card.scheduler.step()
    prefilled = card.ask(LONG)
    before = card.decoder.started
    while not prefilled.generated:
        card.scheduler.step()
        leaving.cancelled = card.layers_done > 0
        if card.layers_done > 1:
            answer.sampling = SAMPLED.changed(max_new_tokens=60)
    assert max(began - ended for (_, ended), (began, _) in pairwise(card.decoder.times[before - 1 :])) <= LIMITS.step_costs[1]


def test_steps_are_started_ahead_while_a_prompt_is_prefilled(card: ChunkedCard) -> None:
    answer = card.answering()
    card.half_prefilled(LONG)
    assert card.decoder.started == answer.generated + 1, "one is in flight"


def test_prompts_of_chats_with_different_adapters_share_a_pass(card: ChunkedCard) -> None:
    card.answering()
    first, second = card.ask(LONG, adapter=1), card.ask(OTHER, adapter=2)
    card.run()
    assert card.passes == [[len(LONG) - 1, len(OTHER) - 1]]
    assert (ids_of(first), ids_of(second)) == (alone(LONG), alone(OTHER))


@pytest.mark.parametrize("prompt", [SHORT, OTHER], ids=["short", "long"])
def test_a_request_cancelled_during_its_prefill_leaves_nothing_in_its_slot(prompt: tuple[int, ...]) -> None:
    card = ChunkedCard(slots=2)
    answer = card.answering()
    (left,) = card.half_prefilled(LONG)
    left.cancelled = True
    following = card.ask(prompt)
    card.run()
    assert ids_of(following) == alone(prompt)
    assert ids_of(answer) == alone(SHORT, 60)


def test_the_others_of_a_cancelled_requests_pass_are_prefilled_all_the_same(card: ChunkedCard) -> None:
    card.answering()
    left, other = card.half_prefilled(LONG, OTHER)
    left.cancelled = True
    following = card.ask(SHORT)
    card.run()
    assert (ids_of(other), ids_of(following)) == (alone(OTHER), alone(SHORT))


def test_a_prompt_that_comes_during_a_pass_waits_for_it(card: ChunkedCard) -> None:
    answer = card.answering()
    (prefilled,) = card.half_prefilled(LONG)
    short = card.ask(SHORT[1:])
    while not prefilled.generated:
        card.scheduler.step()
    assert card.decoder.widest <= 5, "no prefill rows next to chunks: that would be too long for one token"
    card.run()
    assert [ids_of(each) for each in (answer, prefilled, short)] == [alone(SHORT, 60), alone(LONG), alone(SHORT[1:])]


def test_the_rest_of_a_pass_runs_at_once_when_no_chat_answers_any_more(card: ChunkedCard) -> None:
    answer = card.answering()
    (prefilled,) = card.half_prefilled(LONG)
    answer.cancelled = True
    card.scheduler.step()
    assert (card.layers_done, prefilled.pending) == (LAYERS, 1)
    card.run()
    assert ids_of(prefilled) == alone(LONG)


def test_a_pass_that_runs_out_of_memory_midway_is_split(card: ChunkedCard) -> None:
    answer = card.answering()
    card.memory_for, card.short_in = 150, LAYERS - 2
    (prefilled,) = card.half_prefilled(LONG)
    card.run()
    assert [sum(each) > 150 for each in card.passes] == [True, False, False]
    assert (ids_of(answer), ids_of(prefilled)) == (alone(SHORT, 60), alone(LONG))


def test_a_prompt_without_memory_fails_alone(card: ChunkedCard) -> None:
    answer = card.answering()
    card.memory_for, card.short_in = 0, LAYERS - 2
    (prefilled,) = card.half_prefilled(LONG)
    card.run()
    assert ids_of(answer) == alone(SHORT, 60)
    with pytest.raises(EngineError, match="not enough memory"):
        list(prefilled)


def test_an_engine_that_failed_during_a_pass_starts_again(card: ChunkedCard) -> None:
    card.answering()
    card.half_prefilled(LONG)
    card.scheduler.fail_all(RuntimeError("the card has fallen out"))
    after = card.ask(OTHER)
    card.run()
    assert ids_of(after) == alone(OTHER)


def test_a_prompt_longer_than_a_pass_is_prefilled_by_several() -> None:
    card = ChunkedCard(limits=StepLimits(pass_tokens=64))
    answer = card.answering()
    prefilled = card.ask(LONG)
    card.run()
    assert card.passes == [[64], [64]], "and the rest as rows"
    assert (ids_of(answer), ids_of(prefilled)) == (alone(SHORT, 60), alone(LONG))


def test_a_short_prompt_that_waits_for_a_pass_is_not_in_the_step_after_its_last_chunk(card: ChunkedCard) -> None:
    card.answering()
    card.pace = 12 / (PASS * len(LONG))
    before = card.decoder.started
    prefilled = card.ask(LONG)
    card.scheduler.step()
    card.scheduler.step()
    other = card.ask(LONG[5:45])
    while not (prefilled.generated and other.generated):
        card.scheduler.step()
    ends = [ended for _, ended in card.decoder.times[before - 1 :]]
    assert max(b - a for a, b in pairwise(ends)) <= 2


@pytest.mark.parametrize("chats", [1, 8, 9, 24, 25, 31, 33])
def test_a_short_prompt_makes_no_step_take_more_than_twice_as_long(chats: int) -> None:
    card = Card(None, slots=chats + 1)
    card.decoder.seconds = lambda rows: LIMITS.step_costs[rows - 1]
    for each in range(chats):
        card.scheduler.submit(make_request(Sampling(temperature=0.0, max_new_tokens=40), prompt=(1, each % 12, 3)))
    while card.decoder.most_sampled < chats:
        card.scheduler.step()
    before = card.decoder.started
    prefilling = make_request(Sampling(temperature=0.0, max_new_tokens=2), prompt=PROMPT * 4)
    card.scheduler.submit(prefilling)
    while not prefilling.generated:
        card.scheduler.step()
    assert max(ended - began for began, ended in card.decoder.times[before:]) <= 2 * LIMITS.step_costs[chats - 1]


def test_a_chunk_takes_nearly_as_long_as_a_step() -> None:
    budget = PrefillBudget(LIMITS)
    assert budget.weights(1, 500) == 0, "one product, until more is known"
    budget.note(1, 0.5, 2.0, PrefillChunk(100, 500))
    assert budget.weights(1, 500) == pytest.approx(LIMITS.chunk_share * 400)
    assert budget.weights(1, 1000) == pytest.approx(LIMITS.chunk_share * 200), "each weight meets twice as many tokens"
    assert budget.weights(1, 100) == pytest.approx(LIMITS.chunk_share * 400), "dequantizing takes its time for few tokens, too"
    assert budget.weights(8, 500) == pytest.approx(LIMITS.chunk_share * 400), "a wider step was not seen"
    budget.note(8, 0.0, 2.6, None)
    assert budget.weights(1, 500) == pytest.approx(LIMITS.chunk_share * 400)


def test_one_slow_step_makes_no_long_chunk() -> None:
    budget = PrefillBudget(LIMITS)
    for own in (1.0, 1.0, 30.0):
        budget.note(1, 1.0, own, PrefillChunk(100, 500))
    assert budget.weights(1, 500) == pytest.approx(LIMITS.chunk_share * 100)


def test_one_slow_chunk_is_soon_forgotten() -> None:
    budget = PrefillBudget(LIMITS)
    for before in (1.0, 1.0, 30.0, *[1.0] * 4):
        budget.note(1, before, 1.0, PrefillChunk(100, 500))
    assert budget.weights(1, 500) > 0.9 * LIMITS.chunk_share * 100
