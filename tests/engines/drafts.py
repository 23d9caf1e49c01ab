"""Chats of a model with twelve tokens, run by either scheduler, with drafts and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from qlora_chat.engines import Finish, Piece
from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.prompt_lookup import PassCosts
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.scheduler import SpanScheduler
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.models.weights.llama import LlamaShape, LlamaWeights
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.fakes import LetterTokenizer, MarkovForward, NumberedAdapters, PlainDecoder, single_part_pass

FREE = (1.0, 1.0)
"""Costs of a device on which verifying is free: every drafted token that may be right is verified."""
PROMPT = (1, 4, 5, 6, 7, 4, 5, 6, 8, 9, 4, 5)
SAMPLINGS = [
    Sampling(temperature=0.0, max_new_tokens=60),
    Sampling(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, max_new_tokens=60),
    Sampling(temperature=1.0, top_p=1.0, max_new_tokens=60),
    Sampling(temperature=1.5, top_p=0.95, repetition_penalty=1.3, max_new_tokens=60),
    Sampling(temperature=1.5, top_p=1.0, min_p=0.1, max_new_tokens=60),
]


class FixedCosts(PassCosts):
    """Costs that do not learn from the time this machine takes for a pass that computes nothing."""

    def note(self, tokens: int, seconds: float) -> None:
        """Change nothing."""


def make_cache(slots: int) -> KVCache:
    """A real cache for a tiny model."""
    shape = LlamaShape(1, 4, 4, 1, 1, 4, MarkovForward.vocabulary, 512, 1e-6, True, {"rope_type": "default", "rope_theta": 1e4})
    zeros = torch.zeros(MarkovForward.vocabulary, 4)
    return KVCache(LlamaWeights(shape, zeros, (), zeros[0], torch.nn.Identity(), torch.device("cpu"), torch.float32), slots)


def make_request(
    sampling: Sampling,
    stops: Stops = Stops(),  # noqa: B008
    prompt: tuple[int, ...] = PROMPT,
    window: int = 512,
    tokenizer: LetterTokenizer | None = None,
) -> Request:
    return Request(prompt, sampling, stops, window, tokenizer or LetterTokenizer())


@dataclass(frozen=True)
class Work:
    """Forward passes that some answers took."""

    passes: int
    widest: int
    """Most sampled rows of one pass."""
    positions: int
    """Positions up to which something was computed."""

    @staticmethod
    def of(forward: MarkovForward, passes: int, widest: int) -> Work:
        """From the recorded spans of the fake pass."""
        return Work(passes, widest, max(span.start + len(span.ids) for spans in forward.spans for span in spans))


def by_spans(requests: Sequence[Request], prior: Sequence[float] | None = FREE, slots: int = 3) -> Work:
    """Run all requests to their ends with the span scheduler."""
    forward, cache = MarkovForward(), make_cache(slots)
    scheduler = SpanScheduler(forward, cache, FixedCosts(prior) if prior else None)  # type: ignore[arg-type]
    for request in requests:
        scheduler.submit(request)
    while not scheduler.idle:
        scheduler.step()
    check_slots(cache, requests)
    return Work.of(forward, len(forward.spans), max(span.logits for spans in forward.spans for span in spans))


def by_steps(requests: Sequence[Request], prior: Sequence[float] | None = FREE, slots: int = 3) -> Work:
    """The same with the CUDA scheduler and its steps over rows."""
    card = Card(prior, slots)
    card.run(requests)
    check_slots(card.cache, requests)
    return Work.of(card.forward, card.decoder.started, card.decoder.most_sampled)


def check_slots(cache: KVCache, requests: Sequence[Request]) -> None:
    """Every slot's ids are the beginning of one of the conversations."""
    for slot in cache.slots:
        whole = next((each.ids for each in requests if each.ids[: len(slot.ids)] == slot.ids), None)
        assert whole is not None, "a slot claims tokens that no conversation has"


class Card:
    """The CUDA scheduler over a decoder that computes the twelve-token model on the CPU."""

    def __init__(self, costs: Sequence[float] | None, slots: int = 3) -> None:
        self.forward, self.cache = forward, cache = MarkovForward(), make_cache(slots)
        self.decoder = PlainDecoder(forward, Span)
        self.scheduler = CudaScheduler(
            self.decoder,  # type: ignore[arg-type]
            lambda spans: single_part_pass(lambda: forward([replace(span, logits=1) for span in spans])),
            cache,
            NumberedAdapters(cache),  # type: ignore[arg-type]
            FixedCosts(costs) if costs else None,
        )

    def run(self, requests: Sequence[Request]) -> None:
        """Run all requests to their ends."""
        for request in requests:
            self.scheduler.submit(request)
        while not self.scheduler.idle:
            self.scheduler.step()


def answer_of(request: Request) -> tuple[list[int], Finish]:
    """Tokens and finish that the caller received."""
    pieces = []
    while not request.pieces.empty():
        piece = request.pieces.get()
        assert isinstance(piece, Piece), piece
        pieces.append(piece)
    assert pieces[-1].finish is not None
    return [each.token_id for each in pieces if each.token_id is not None], pieces[-1].finish


class CallsBack(LetterTokenizer):
    """Calls back when it decodes an answer's nth token: between two tokens of the same pass."""

    def __init__(self, number: int, call: Callable[[], None]) -> None:
        self._left, self._call = number, call

    def decode(self, ids: Sequence[int]) -> str:
        """As LetterTokenizer."""
        self._left -= 1
        if self._left == 0:
            self._call()
        return super().decode(ids)
