"""What a step is asked for, of the chats that it is to give tokens, and of those whose prompts it reads.

Scope: from requests to rows and spans. Knows no decoder and no order of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qlora_chat.engines.core.request import Request
from qlora_chat.engines.cuda.decode.rows import Row
from qlora_chat.engines.eager.forward import Span
from qlora_chat.settings import Sampling


@dataclass(frozen=True)
class ScheduledRow:
    """A row of a started step that will give its chat a token."""

    request: Request
    row: int
    """The first of its rows in the step."""
    count: int
    """Tokens of the answer before the one that this row gives."""
    sampling: Sampling
    """What that one is chosen with."""
    guessed: Sequence[int] = ()
    """The tokens of the rows behind it: what the chat may say next."""

    def rows(self, adapter: int) -> Iterator[Row]:
        """The row that chooses the chat's next token, and those behind it for its guesses, which choose the tokens after them;
        `adapter` is the number of the chat's, as in Row."""
        request, sampling = self.request, self.sampling
        newest = Row(
            slot_of(request), len(request.ids) - 1, request.ids[-1], True, request.generated, sampling.temperature,
            sampling.top_p, sampling.top_k, sampling.repetition_penalty, request.seed, adapter,
            guessed=0 if self.guessed else None,
        )  # fmt: skip
        yield newest
        for n, token in enumerate(self.guessed, 1):
            yield replace(newest, position=newest.position + n, token=token, count=newest.count + n, guessed=n)


def spans_of(reading: Sequence[Request], room: int) -> list[Span]:
    """Of up to so many tokens, all but each prompt's last."""
    spans = []
    for request in reading:
        start = len(cached_of(request))
        ids = request.ids[start : min(start + room, len(request.ids) - 1)]
        spans.append(Span(slot_of(request), start, ids, logits=0))
        room -= len(ids)
        if not room:
            break
    return spans


def asked_of(requests: Sequence[Request], guessed: Sequence[Sequence[int]] | None = None) -> list[ScheduledRow]:
    """A row each, with the settings that are due for its next token, and further rows for what is guessed."""
    found, row = [], 0
    for request, tokens in zip(requests, guessed or [()] * len(requests), strict=True):
        found.append(ScheduledRow(request, row, request.generated, request.taken_up(), tokens))
        row += 1 + len(tokens)
    return found


def slot_of(request: Request) -> int:
    """Its place in the cache."""
    assert request.slot is not None, "a running request has a slot"
    return request.slot.index


def cached_of(request: Request) -> list[int]:
    """The tokens whose keys and values are there, to be added to."""
    assert request.slot is not None, "a running request has a slot"
    return request.slot.ids
