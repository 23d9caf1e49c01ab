"""Running streams as an HTTP response: whole, or as server-sent events.

Scope: status and bytes. Until the first token an error is a status of its own; after it, or after ten seconds without one, an
event in the stream, which still ends as usual. While a long prompt is read, comments say how far it is. A client that leaves
cancels its answers at their next token.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qlora_chat.api.choices import Choice, usage
from qlora_chat.api.errors import ApiError, api_error, invalid
from qlora_chat.api.response_schemas import Reason, Usage
from qlora_chat.api.serializers import AnswerSerializer, Json
from qlora_chat.engines import Piece
from qlora_chat.serving.request_log import CLIENT_LEFT
from qlora_chat.serving.stream_reader import Event, StreamReader

COMMENT_INTERVAL_S = 10.0
"""Longest silence of a stream. Proxies and clients give up on a connection without a byte after half a minute or more."""
COMMENT = b": waiting\n\n"
COMPACT = json.JSONEncoder(separators=(",", ":"))
"""Shared: json.dumps creates an encoder for every call with separators."""


@dataclass(frozen=True)
class Answer:
    """The choices of one request while they are generated."""

    reader: StreamReader
    choices: Sequence[Choice]
    serializer: AnswerSerializer
    answers_per_prompt: int
    logprobs: bool
    include_usage: bool
    on_end: Callable[[Usage, str], None]
    """Called with the token counts and the finish reasons when all answers have ended."""

    async def events_in_time(self) -> Sequence[Event] | None:
        """The next pieces; None if there are none for COMMENT_INTERVAL_S."""
        try:
            async with asyncio.timeout(COMMENT_INTERVAL_S):
                return await self.reader.next()
        except TimeoutError:
            return None

    async def event_stream(self) -> EventStream:
        """The answer as server-sent events. ApiError if an error comes instead of the first piece, and comes soon."""
        events = await self.events_in_time()
        if events is not None:
            self._check(events)
        return EventStream(self, events)

    async def whole(self) -> Response:
        """One JSON object, when all choices have ended."""
        while self.reader.live:
            events = await self.reader.next()
            for index, piece in self._check(events):
                self.choices[index].add(piece)
        counts = self.close()
        choices: list[tuple[Choice, Reason]] = [(choice, self.reason(choice)) for choice in self.choices]
        return JSONResponse(self.serializer.whole(choices, counts, self.logprobs).model_dump())

    def reason(self, choice: Choice) -> Reason:
        """OpenAI's finish reason of a choice. ApiError if the server or its client cut it off."""
        reason = choice.finish.reason if choice.finish else "error"
        if reason == "stop" or reason == "length":
            return reason
        if self.reader.disconnected:
            raise ApiError(CLIENT_LEFT, "the client left")
        if not self.reader.timed_out:
            raise ApiError(503, "The server is shutting down. Send the request again.", "shutting_down", retry_after=5)
        if not any(each.text for each in self.choices):
            raise ApiError(503, "The answer did not begin within the server's time limit.", "time_limit", retry_after=5)
        return "length"

    def stream_events(self, events: Sequence[Event]) -> list[Json]:
        """Events that pieces add to a stream: of each delta, and of each end of a choice."""
        serializer, sent = self.serializer, []
        for index, piece in self._check(events):
            choice = self.choices[index]
            delta = choice.add(piece)
            if delta.text or delta.logprobs:
                sent.append(serializer.delta(index, delta, self.logprobs))
            if choice.finish:
                sent += serializer.end(index, self.reason(choice))
        return sent

    def prefill_comment(self, events: Sequence[Event]) -> bytes:
        """Comment on the prompts' progress, which OpenAI's clients ignore; b"" where no event reports any."""
        if not any(isinstance(item, Piece) and item.prefill for _, item in events):
            return b""
        reports = [choice.prefill for choice in self.choices if choice.prefill]
        return b": prefill %d/%d\n\n" % (sum(each.read for each in reports), sum(each.total for each in reports))

    def close(self) -> Usage:
        """Stop what still runs; returns the token counts, and reports them to `on_end`."""
        self.reader.close()
        counts = usage(self.choices, self.answers_per_prompt)
        self.on_end(counts, ",".join(choice.finish.reason for choice in self.choices if choice.finish))
        return counts

    def _check(self, events: Sequence[Event]) -> list[tuple[int, Piece]]:
        """The pieces of events. ApiError if one is an error, or lacks log probabilities that the client asked for."""
        pieces = [(index, item) for index, item in events if isinstance(item, Piece)]
        try:
            if problem := next((item for _, item in events if isinstance(item, Exception)), None):
                raise api_error(problem)
            if self.logprobs and any(piece.token_id is not None and piece.logprob is None for _, piece in pieces):
                text = "this engine reports no log probabilities; leave logprobs out"
                raise invalid(text, "logprobs", "unsupported_parameter")
        except ApiError:
            self.reader.close()
            raise
        return pieces


class EventStream(Response):
    """Server-sent events of an answer; `events` are the pieces that came before the status was known, None if none came."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, events: Sequence[Event] | None) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._answer, self._events = answer, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer while it is generated."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._send_all(send)
        finally:
            self._answer.reader.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        answer, serializer = self._answer, self._answer.serializer
        unsent = _encoded([event for choice in answer.choices for event in serializer.opening(choice.index)])
        try:
            while True:
                if self._events is None:
                    unsent += COMMENT
                else:
                    sent = _encoded(answer.stream_events(self._events))  # which takes note of the progress, too
                    unsent += answer.prefill_comment(self._events) + sent
                if not answer.reader.live:
                    break
                if unsent:
                    await _write(send, unsent)
                    unsent = b""
                self._events = await answer.events_in_time()
        except Exception as problem:
            answer.close()
            await _write(send, unsent + _encoded(serializer.failed(api_error(problem))) + serializer.done)
            return
        last = _encoded(serializer.last(answer.close(), answer.include_usage))
        await _write(send, unsent + last + serializer.done)


def _encoded(events: Sequence[Json]) -> bytes:
    return b"".join(_event(each) for each in events)


def _event(content: Json) -> bytes:
    name = f"event: {content['type']}\n" if "type" in content else ""
    return f"{name}data: {COMPACT.encode(content)}\n\n".encode()


async def _write(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
