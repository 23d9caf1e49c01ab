"""Lets through to Gradio only what its page sends: known events, plain values of known types and lengths, session names.

Scope: the shape of a request, and the size of what is in it. What a value means is checked where it is used. Gradio gets a
body that is built anew from what was checked, so nothing else that a client wrote reaches it: an object in an event's values
could name a file or an address, and a made-up event is an internal error with a traceback in the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qlora_chat.serving.http_messages import replay
from qlora_chat.text import replace_surrogates
from qlora_chat.web.tab_names import TabNames, browser_of, new_browser

JOIN, RUN, CANCEL = "/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/cancel"
QUEUE_DATA, HEARTBEAT = "/gradio_api/queue/data", "/gradio_api/heartbeat/"
EVENT_KEYS = frozenset({"fn_index", "data", "session_hash", "event_data", "trigger_id"})
CANCEL_KEYS = frozenset({"fn_index", "session_hash", "event_id"})
LONGEST_NAME = 64
LARGEST_NUMBER = 1e9
LARGEST_INDEX = 2**31

_NO_SESSION = {"msg": "unexpected_error", "event_id": None, "message": "404: Session not found.", "session_not_found": True,
               "success": False}  # fmt: skip
"""The message by which Gradio's page learns that the server no longer knows it."""


@dataclass(frozen=True)
class Field:
    """The values that one part of the page may send. A part may also send null, for nothing."""

    label: str
    """The name that a person knows it by."""
    kind: Literal["text", "number", "switch"]
    longest: int = 0
    """Characters, of a text."""

    def problem(self, value: object) -> str:
        """The reason why the value is refused, or "". It quotes no text."""
        if value is None:
            return ""
        if not _is_of_kind(value, self.kind):
            return f"{self.label} is {_kind(value)}, but must be {_EXPECTED[self.kind]}"
        if isinstance(value, str) and len(value) > self.longest:
            return f"{self.label} has {len(value):,} characters, but at most {self.longest:,} can be sent. Please shorten it."
        if isinstance(value, int | float) and abs(value) > LARGEST_NUMBER:  # infinity, and what no float can hold, among them
            return f"{self.label} is out of range, but must be between {-LARGEST_NUMBER:,.0f} and {LARGEST_NUMBER:,.0f}"
        return ""


@dataclass(frozen=True)
class Event:
    """One event of the page."""

    fields: tuple[Field, ...]
    data: Mapping[str, Field] | None = None
    """The values of event_data by key, for an event that a component of our own triggers; None for every other event."""


class _Refused(ValueError):
    """A request that the page does not send. `per_value` says for each value what is wrong with it, or ""."""

    def __init__(self, message: str, per_value: list[str] | None = None) -> None:
        super().__init__(message)
        self.per_value = per_value


class PageEvents:
    """Wraps Gradio's app; `events` are those that a browser may send, and `has_session` tells which sessions there are.

    A tab's events and streams are for the browser that opened it. Where the page is `shared`, browsers without its cookie get
    none.
    """

    def __init__(
        self,
        app: ASGIApp,
        events: Mapping[int, Event],
        has_session: Callable[[str], bool],
        tabs: TabNames,
        *,
        shared: bool = False,
    ) -> None:
        self._app, self._events, self._has_session, self._tabs, self._shared = app, events, has_session, tabs, shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path in (JOIN, RUN, CANCEL):
            await self._check_event(scope, receive, send)
        elif path == QUEUE_DATA and (answer := self._refusal_of_stream(scope)):
            await answer(scope, receive, send)
        elif path.startswith(HEARTBEAT) and (problem := self._problem_of_tab(scope, path.removeprefix(HEARTBEAT))):
            await PlainTextResponse(problem, 422)(scope, receive, send)
        else:
            first = path in ("/", "/config") and not browser_of(scope)
            await self._app(scope, receive, _with_cookie(send, new_browser(scope)) if first else send)

    def _problem_of_tab(self, scope: Scope, name: object) -> str:
        """The reason why a browser may not use a tab, or ""."""
        browser = browser_of(scope)
        if not _is_name(name):
            return _NAME_EXPECTED
        if self._shared and not browser:
            return "Several people use this page, and cookies tell them apart: allow them for this site, then reload the page."
        return "" if self._tabs.claim(str(name), browser) else "This is not a tab of this browser. Reload the page to go on."

    async def _check_event(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        try:
            checked = self._checked(scope, body)
        except _Refused as problem:
            await _refusal(problem)(scope, receive, send)
            return
        await self._app(scope, replay(json.dumps(checked).encode(), receive), send)

    def _refusal_of_stream(self, scope: Scope) -> ASGIApp | None:
        """The answer to a browser that asks for the events of a session that there is not. Gradio's own ends in an error."""
        name = Request(scope).query_params.get("session_hash")
        if not _is_name(name):
            return PlainTextResponse(_NAME_EXPECTED, 422)
        if not self._has_session(str(name)) or self._problem_of_tab(scope, name):
            return PlainTextResponse(f"data: {json.dumps(_NO_SESSION)}\n\n", media_type="text/event-stream")
        return None

    def _checked(self, scope: Scope, body: bytes) -> dict[str, Any]:
        """Body to pass on to Gradio. _Refused with the reason."""
        path = scope["path"]
        request = _parsed(body, CANCEL_KEYS if path == CANCEL else EVENT_KEYS)
        index, session = request.get("fn_index"), request.get("session_hash")
        if type(index) is not int or index not in self._events:
            raise _Refused("fn_index names no event of this page")
        if problem := self._problem_of_tab(scope, session):
            raise _Refused(problem)
        known: dict[str, Any] = {"fn_index": index, "session_hash": session}
        if path == CANCEL:
            if not _is_name(request.get("event_id")):
                raise _Refused(f"event_id must be a text of 1 to {LONGEST_NAME} characters")
            return {**known, "event_id": request["event_id"]}
        event = self._events[index]
        data = _checked_values(event, request.get("data"))
        part = request.get("trigger_id", 0)
        if part is not None and not (type(part) is int and 0 <= part < LARGEST_INDEX):
            raise _Refused("trigger_id must be the number of a part of this page")
        # Which part triggered an event matters to no handler, so trigger_id goes no further.
        return {**known, "data": data, "event_data": _checked_event_data(event, request.get("event_data"))}


def _parsed(body: bytes, keys: frozenset[str]) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise _Refused("the request is not JSON") from None
    if not isinstance(request, dict):
        raise _Refused(f"the request is {_kind(request)}; an object was expected")
    if not request.keys() <= keys:
        raise _Refused(f"the request has keys that the page does not send; it sends {', '.join(sorted(keys))}")
    return request


def _checked_values(event: Event, data: object) -> list[Any]:
    if not isinstance(data, list) or len(data) != len(event.fields):
        raise _Refused(f"data must be a list of {len(event.fields)} values")
    problems = [field.problem(value) for field, value in zip(event.fields, data, strict=True)]
    if any(problems):
        raise _Refused(" ".join(each for each in problems if each), problems)
    return [replace_surrogates(value) if isinstance(value, str) else value for value in data]


def _checked_event_data(event: Event, sent: object) -> dict[str, Any] | None:
    """The known values of an event of our own components. Other events send the text of a box, which is in `data` as well."""
    if event.data is not None:
        return _checked_component_data(event.data, sent)
    if sent is not None and not any(field.kind == "text" and not field.problem(sent) for field in event.fields):
        raise _Refused("event_data must be null, or the text of a box that changed")
    return None


def _checked_component_data(fields: Mapping[str, Field], sent: object) -> dict[str, Any]:
    if not isinstance(sent, dict) or not sent.keys() <= fields.keys():
        raise _Refused(f"event_data must be an object with no other keys than {', '.join(sorted(fields))}")
    problems = [problem for key, field in fields.items() if (problem := field.problem(sent.get(key)))]
    if problems:
        raise _Refused(" ".join(problems))
    return {key: replace_surrogates(value) if isinstance(value, str) else value for key, value in sent.items()}


def _refusal(problem: _Refused) -> JSONResponse:
    """A refusal as Gradio's page shows it: under the part that it is about, or as a message where it is about none.

    The page reads `error` after a run and `detail` after a join.
    """
    shown = [{"is_valid": not each, "message": each} for each in problem.per_value] if problem.per_value else str(problem)
    return JSONResponse({"error": shown, "detail": shown}, 422)


def _with_cookie(send: Send, cookie: str) -> Send:
    """A send that adds a Set-Cookie header to the response."""

    async def added(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"set-cookie", cookie.encode())]}
        await send(message)

    return added


_EXPECTED = {"text": "a text", "switch": "true or false", "number": "a finite number"}


def _is_of_kind(value: object, kind: str) -> bool:
    if kind == "text":
        return isinstance(value, str)
    return isinstance(value, bool) if kind == "switch" else type(value) in (int, float) and value == value


def _kind(value: object) -> str:
    """The type of a JSON value, in words; never the value, which may be long or private."""
    names = {bool: "a truth value", str: "a text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "no number" if value != value else "a number")


def _is_name(value: object) -> bool:
    """True for a short text of characters that can be shown; half of one (a lone surrogate) could not even be sent back."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()


_NAME_EXPECTED = f"session_hash must be a text of 1 to {LONGEST_NAME} characters"
