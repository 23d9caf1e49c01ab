"""From running streams to an HTTP answer: whole, or as server-sent events.

Scope: status and bytes. Until the first token an error is a status of its own; after it, an event in the stream, which
still ends with [DONE]. A client that leaves ends its answers at their next token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qlora_chat.api.choices import Choice, usage
from qlora_chat.api.errors import ApiError, api_error, invalid
from qlora_chat.api.reading import Event, Reading
from qlora_chat.api.response_schemas import Reason, Usage
from qlora_chat.api.serializers import AnswerSerializer
from qlora_chat.engines import Piece
from qlora_chat.prompt import Tokenizer

DONE = b"data: [DONE]\n\n"
COMPACT = json.JSONEncoder(separators=(",", ":"))
"""Kept: json.dumps makes one for every chunk where it is told the separators."""
CLIENT_LEFT = 499
"""What a client that left is answered, and logs and metrics show: nginx's number for it."""


@dataclass(frozen=True)
class ResponseOptions:
    """How the answer is to be given."""

    shape: AnswerSerializer
    answers_a_prompt: int
    logprobs: bool
    include_usage: bool
    ended: Callable[[Usage, str], None]
    """Told the counts and the reasons when it is over."""


class Answer:
    """The choices of one request, growing."""

    def __init__(
        self, reading: Reading, count: int, tokenizer: Tokenizer, names: Mapping[int, str], wanted: ResponseOptions
    ) -> None:
        self.reading, self.wanted = reading, wanted
        self.choices = [Choice(index, tokenizer, names, trimmed=wanted.shape.trimmed) for index in range(count)]

    async def begun(self) -> Sequence[Event]:
        """The first pieces. ApiError where there is an error instead."""
        events = await self.reading.next()
        self._raise(events)
        made = [came for _, came in events if isinstance(came, Piece) and came.token_id is not None]
        if self.wanted.logprobs and any(piece.logprob is None for piece in made):
            self.reading.close()
            raise invalid("this engine reports no log probabilities; leave logprobs out", "logprobs", "unsupported_parameter")
        return events

    async def whole(self) -> Response:
        """One JSON object when all is done."""
        events = await self.begun()
        while True:
            for index, came in events:
                if isinstance(came, Piece):
                    self.choices[index].take(came)
            if not self.reading.live:
                break
            events = await self.reading.next()
            self._raise(events)
        self.reading.close()
        counts = self._close()
        choices: list[tuple[Choice, Reason]] = [(choice, self.reason(choice)) for choice in self.choices]
        return JSONResponse(self.wanted.shape.whole(choices, counts, self.wanted.logprobs).model_dump())

    def reason(self, choice: Choice) -> Reason:
        """Why a choice ended, as OpenAI names it. ApiError where it was cut off by the server or its client."""
        reason = choice.finish.reason if choice.finish else "error"
        if reason == "stop" or reason == "length":
            return reason
        if self.reading.gone:
            raise ApiError(CLIENT_LEFT, "the client left")
        if not self.reading.timed_out:
            raise ApiError(503, "The server is shutting down. Send the request again.", "shutting_down", retry_after=5)
        if not any(each.text for each in self.choices):
            raise ApiError(503, "The answer did not begin within the server's time limit.", "time_limit", retry_after=5)
        return "length"

    def grown(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """What the events add to a stream, one entry a choice that grew or ended."""
        shape, entries = self.wanted.shape, []
        for index, came in events:
            if isinstance(came, Exception):
                raise came
            choice = self.choices[index]
            grown = choice.take(came)
            if grown.text or grown.logprobs:
                entries.append(shape.grown(index, grown, self.wanted.logprobs))
            if choice.finish:
                entries.append(shape.ended(index, self.reason(choice)))
        return entries

    def _raise(self, events: Sequence[Event]) -> None:
        problem = next((came for _, came in events if isinstance(came, Exception)), None)
        if problem is not None:
            self.reading.close()
            raise api_error(problem)

    def _close(self) -> Usage:
        counts = usage(self.choices, self.wanted.answers_a_prompt)
        self.wanted.ended(counts, ",".join(choice.finish.reason for choice in self.choices if choice.finish))
        return counts

    def close(self) -> Usage:
        """End what still runs, and count."""
        self.reading.close()
        return self._close()


class EventStream(Response):
    """Server-sent events; `begun` are the pieces that came before the status was known."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, begun: Sequence[Event]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._answer, self._events = answer, begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer as it grows."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._send_all(send)
        finally:
            self._answer.reading.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        answer, shape = self._answer, self._answer.wanted.shape
        openings = [opening for choice in answer.choices if (opening := shape.opening(choice.index))]
        waiting = b"".join(_event(shape.chunk([each])) for each in openings)
        try:
            while True:
                entries = answer.grown(self._events)
                waiting += b"".join(_event(shape.chunk([each])) for each in entries)
                if not answer.reading.live:
                    break
                if waiting:
                    await _write(send, waiting)
                    waiting = b""
                self._events = await answer.reading.next()
        except Exception as problem:
            answer.close()
            await _write(send, waiting + _event(api_error(problem).body) + DONE)
            return
        counts = answer.close()
        ending = _event(shape.chunk([], counts)) if answer.wanted.include_usage else b""
        await _write(send, waiting + ending + DONE)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + COMPACT.encode(content).encode() + b"\n\n"


async def _write(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
