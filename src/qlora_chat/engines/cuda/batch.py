"""Rows and spans of a step, from the requests it serves.

Scope: conversion only. Knows no decoder and no order of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.cuda.decode.rows import Row
from qlora_chat.settings import Sampling


@dataclass(frozen=True)
class ScheduledRow:
    """A row of a started step that samples a chat's next token, and the rows behind it that verify the chat's draft."""

    request: Request
    row: int
    """Index of the first of its rows in the step."""
    count: int
    """Tokens of the answer before the one sampled from the first row."""
    sampling: Sampling
    draft: Sequence[int] = ()
    """Tokens of the rows behind the first."""

    def rows(self, adapter: int) -> Iterator[Row]:
        """The chat's newest token, then its draft; `adapter` as in Row."""
        request = self.request
        newest = Row(
            request.running_slot.index, len(request.ids) - 1, request.ids[-1], self.sampling, request.generated, request.seed,
            adapter, drafted=0 if self.draft else None,
        )  # fmt: skip
        yield newest
        for n, token in enumerate(self.draft, 1):
            yield replace(newest, position=newest.position + n, token=token, count=newest.count + n, drafted=n)


def schedule_rows(requests: Sequence[Request], drafts: Sequence[Sequence[int]] = ()) -> list[ScheduledRow]:
    """The rows of decoding requests, in order, with the settings that are due for the next token."""
    scheduled, row = [], 0
    for request, draft in zip(requests, drafts or [()] * len(requests), strict=True):
        scheduled.append(ScheduledRow(request, row, request.generated, request.apply_pending_sampling(), draft))
        row += 1 + len(draft)
    return scheduled


def prefill_rows(request: Request, count: int, adapter: int) -> list[Row]:
    """The next `count` tokens of a prompt."""
    start = len(request.running_slot.ids)
    return [Row(request.running_slot.index, at, request.ids[at], adapter=adapter) for at in range(start, start + count)]


def prefill_spans(requests: Sequence[Request], max_tokens: int) -> list[Span]:
    """All but the last token of each prompt, up to `max_tokens` tokens in total: maybe not of every request."""
    spans = []
    for request in requests:
        start = len(request.running_slot.ids)
        ids = request.ids[start : min(start + max_tokens, len(request.ids) - 1)]
        spans.append(Span(request.running_slot.index, start, ids, logits=0))
        max_tokens -= len(ids)
        if not max_tokens:
            break
    return spans
