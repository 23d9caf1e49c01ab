"""Chats of a model of twelve letters, through a pass and through a card's steps, with guesses and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from qlora_chat.engines import Finish, Piece
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.core.prompt_lookup import PassCosts
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.core.scheduler import Scheduler
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.eager.forward import Span
from qlora_chat.models.weights.llama import LlamaShape, LlamaWeights
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from tests.fakes import LetterTokenizer, MarkovForward, NumberedAdapters, PlainDecoder, single_part_pass

FREE = (1.0, 1.0)
"""A device on which checking costs nothing: every guess that may be right is checked."""
PROMPT = (1, 4, 5, 6, 7, 4, 5, 6, 8, 9, 4, 5)
SAMPLINGS = [
    Sampling(temperature=0.0, max_new_tokens=60),
    Sampling(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, max_new_tokens=60),
    Sampling(temperature=1.0, top_p=1.0, max_new_tokens=60),
    Sampling(temperature=1.5, top_p=0.95, repetition_penalty=1.3, max_new_tokens=60),
    Sampling(temperature=1.5, top_p=1.0, min_p=0.1, max_new_tokens=60),
]


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


@dataclass(frozen=True)
class Work:
    """What some answers took."""

    passes: int
    widest: int
    """Most rows with a choice of a pass."""
    furthest: int
    """Positions that something was computed for."""

    @staticmethod
    def of(forward: MarkovForward, passes: int, widest: int) -> Work:
        """`forward` knows what it was asked."""
        return Work(passes, widest, max(span.start + len(span.ids) for spans in forward.spans for span in spans))


def by_passes(requests: Sequence[Request], prior: Sequence[float] | None = FREE, slots: int = 3) -> Work:
    """All requests to their ends, through passes over spans of tokens."""
    forward, held = MarkovForward(), cache(slots)
    scheduler = Scheduler(forward, held, Fixed(prior) if prior else None)
    for request in requests:
        scheduler.submit(request)
    while not scheduler.idle:
        scheduler.step()
    check_slots(held, requests)
    return Work.of(forward, len(forward.spans), max(span.logits for spans in forward.spans for span in spans))


def by_steps(requests: Sequence[Request], prior: Sequence[float] | None = FREE, slots: int = 3) -> Work:
    """The same, through steps of a card over rows."""
    card = Card(prior, slots)
    card.run(requests)
    check_slots(card.held, requests)
    return Work.of(card.forward, card.decoder.started, card.decoder.most_sampled)


def check_slots(held: KVCache, requests: Sequence[Request]) -> None:
    """A place in the cache holds the beginning of something that a chat has said."""
    for slot in held.slots:
        whole = next((each.ids for each in requests if each.ids[: len(slot.ids)] == slot.ids), None)
        assert whole is not None, "a slot says it holds what no chat has said"


class Card:
    """A scheduler for cards over a decoder that computes on the CPU, a model of twelve letters in it."""

    def __init__(self, costs: Sequence[float] | None, slots: int = 3) -> None:
        self.forward, self.held = forward, held = MarkovForward(), cache(slots)
        self.decoder = PlainDecoder(forward, Span)
        self.scheduler = CudaScheduler(
            self.decoder,  # type: ignore[arg-type]
            lambda spans: single_part_pass(lambda: forward([replace(span, logits=1) for span in spans])),
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


def told(request: Request) -> tuple[list[int], Finish]:
    """What the caller got: tokens, and how it ended."""
    pieces = []
    while not request.pieces.empty():
        piece = request.pieces.get()
        assert isinstance(piece, Piece), piece
        pieces.append(piece)
    assert pieces[-1].finish is not None
    return [each.token_id for each in pieces if each.token_id is not None], pieces[-1].finish


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
