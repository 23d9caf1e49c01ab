"""Lets through to Gradio only what its page sends: a known event, its number of values, a session's name.

Scope: the shape of a request's JSON. What the values mean is checked where they are used. Without this, a made-up
event is an internal error with a traceback in the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CANCEL = "/gradio_api/cancel"
EVENT_PATHS = frozenset({"/gradio_api/queue/join", "/gradio_api/run/predict", CANCEL})
LONGEST_NAME = 64


class PageEvents:
    """Wraps an ASGI app; `inputs` says for each event's number how many values it takes."""

    def __init__(self, app: ASGIApp, inputs: Mapping[int, int]) -> None:
        self._app, self._inputs = app, inputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in EVENT_PATHS:
            await self._app(scope, receive, send)
            return
        body = await Request(scope, receive).body()
        if problem := self._problem(scope["path"], body):
            await PlainTextResponse(problem, status_code=422)(scope, receive, send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _problem(self, path: str, body: bytes) -> str:
        try:
            event = json.loads(body)
        except (ValueError, RecursionError):
            return "the request is not JSON"
        if not isinstance(event, dict):
            return f"the request is a {type(event).__name__}; an object was expected"
        index, data, session = event.get("fn_index"), event.get("data"), event.get("session_hash")
        if type(index) is not int or index not in self._inputs:
            return "fn_index names no event of this page"
        if path == CANCEL and not _is_name(event.get("event_id")):
            return f"event_id must be a text of 1 to {LONGEST_NAME} characters"
        if path != CANCEL and (not isinstance(data, list) or len(data) != self._inputs[index]):
            return f"data must be a list of {self._inputs[index]} values"
        if not _is_name(session):
            return f"session_hash must be a text of 1 to {LONGEST_NAME} characters"
        return ""


def _is_name(value: object) -> bool:
    """Whether it is a short text of whole characters; half of one (a lone surrogate) could not even be quoted in an answer."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and not any("\ud800" <= each <= "\udfff" for each in value)
