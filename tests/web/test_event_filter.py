"""What a browser may send to Gradio: tried on the check alone, around an app that says what reached it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from qlora_chat.web import event_filter
from qlora_chat.web.event_filter import CANCEL, JOIN, LARGEST_NUMBER, RUN, Event, Field, PageEvents
from qlora_chat.web.parts import MAX_CHARACTERS
from qlora_chat.web.tab_names import TabNames

MESSAGE = Field("Your message", "text", 100)
SEND, THUMB, STOP = 1, 2, 3
EVENTS = {
    SEND: Event((MESSAGE, Field("Temperature", "number"), Field("Log mine", "switch"))),
    THUMB: Event(
        (Field("conversation", "text", 200),), {"id": Field("Message", "text", 100), "rating": Field("Rating", "number")}
    ),
    STOP: Event(()),
}
FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
LIKED = {"id": "some-id", "rating": 1}
SENT = {"fn_index": SEND, "data": ["hi", 0.7, True], "session_hash": "tab", "trigger_id": 16}
RATED = {"fn_index": THUMB, "data": ["id"], "session_hash": "tab", "event_data": LIKED}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await JSONResponse(json.loads(body or b"null"))(scope, receive, send)


def post(body: object, path: str = RUN) -> httpx.Response:
    """One event; 200 and what reached the app, or 422 and the reason."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask("POST", path, content)


def ask(method: str, path: str, content: bytes | None = None) -> httpx.Response:
    async def send() -> httpx.Response:
        tabs = TabNames(lambda name: False, lambda name: None)
        transport = httpx.ASGITransport(PageEvents(echo, EVENTS, lambda name: name == "tab", tabs))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, content=content)

    return asyncio.run(send())


@pytest.mark.parametrize("path", [JOIN, RUN])
def test_what_the_page_sends_goes_through(path: str) -> None:
    reached = post(SENT, path).json()
    assert reached == {"fn_index": SEND, "data": ["hi", 0.7, True], "session_hash": "tab", "event_data": None}


def test_of_a_component_the_known_values_go_through() -> None:
    for sent in (LIKED, {**LIKED, "rating": None}, {"id": "some-id"}, {}):
        assert post({**RATED, "event_data": sent}).json()["event_data"] == sent
    too_long = post({**RATED, "event_data": {**LIKED, "id": "x" * 101}})
    assert (too_long.status_code, "Message has 101 characters" in too_long.text) == (422, True)


def test_a_box_that_changed_sends_its_text_twice() -> None:
    assert post({**SENT, "event_data": "hi"}).json()["event_data"] is None


@pytest.mark.parametrize("value", [FILE, {}, [], [FILE], [[[FILE]]], {"value": FILE}], ids=ascii)
@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("path", [JOIN, RUN])
def test_no_object_and_no_list_is_a_value(path: str, position: int, value: object) -> None:
    data: list[Any] = list(SENT["data"])
    data[position] = value
    refused = post({**SENT, "data": data}, path)
    assert refused.status_code == 422
    assert EVENTS[SEND].fields[position].label in refused.text
    assert "passwd" not in refused.text


@pytest.mark.parametrize(
    "event_data",
    [FILE, [FILE], 5, True, {**LIKED, "more": 1}, {**LIKED, "id": FILE}, {**LIKED, "id": ["x"]}, {**LIKED, "id": 5},
     {**LIKED, "rating": FILE}, {**LIKED, "rating": "x"}, {**LIKED, "rating": []}, {**LIKED, "rating": True}],
    ids=ascii,
)  # fmt: skip
@pytest.mark.parametrize("event", [SENT, RATED], ids=["send", "thumb"])
def test_other_event_data_is_refused(event: dict[str, Any], event_data: object) -> None:
    assert post({**event, "event_data": event_data}).status_code == 422


@pytest.mark.parametrize(
    "more",
    [{"batched": True}, {"simple_format": True}, {"oauth_token": "x"}, {"event_id": "x"}, {"request": {}}, {"api_name": "x"},
     {"trigger_id": "16"}, {"trigger_id": True}, {"trigger_id": -1}, {"trigger_id": []}, {"trigger_id": 1.0}],
    ids=ascii,
)  # fmt: skip
def test_what_the_page_does_not_set_a_client_cannot_set(more: dict[str, Any]) -> None:
    assert post({**SENT, **more}).status_code == 422


def test_an_event_is_cancelled_by_its_name_alone() -> None:
    cancelling = {"fn_index": SEND, "session_hash": "tab", "event_id": "one"}
    assert post(cancelling, CANCEL).json() == cancelling
    for more in ({"data": []}, {"event_id": FILE}, {"event_id": ""}, {"event_id": "e" * 65}):
        assert post({**cancelling, **more}, CANCEL).status_code == 422


def test_a_text_that_is_too_long_is_refused_with_both_lengths_and_none_of_the_text() -> None:
    assert post({**SENT, "data": ["x" * 100, 0.7, True]}).status_code == 200
    refused = post({**SENT, "data": ["x" * 101, 0.7, True]})
    said = "Your message has 101 characters, but at most 100 can be sent. Please shorten it."
    right = {"is_valid": True, "message": ""}
    shown = [{"is_valid": False, "message": said}, right, right]  # under the box, as Gradio's page reads it
    assert (refused.status_code, refused.json()) == (422, {"error": shown, "detail": shown})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e309", "1e10", "9" * 400, '"0.7"', "true"])
def test_a_number_is_finite_and_of_a_sane_size(number: str) -> None:
    body = json.dumps(SENT).replace("0.7", number).encode()
    refused = post(body)
    assert refused.status_code == 422
    assert "Temperature" in refused.text
    assert "but must be" in refused.text


def test_the_largest_number_and_nothing_at_all_are_left_to_the_handlers() -> None:
    assert post({**SENT, "data": [None, LARGEST_NUMBER, None]}).status_code == 200


def test_half_a_character_is_replaced_before_gradio_has_to_send_it_back() -> None:
    assert post({**SENT, "data": ["a\ud800", 0.7, True]}).json()["data"][0] == "a?"


@pytest.mark.parametrize("name", ["", "s" * 65, "\ud800", "\0", "a\nb", "\x1b[31m", None, 5, ["tab"], FILE], ids=ascii)
@pytest.mark.parametrize("path", [JOIN, RUN, CANCEL])
def test_a_session_has_a_short_name_that_can_be_shown(path: str, name: object) -> None:
    assert (
        post(
            {"fn_index": STOP, "session_hash": name, **({"event_id": "x"} if path == CANCEL else {"data": []})}, path
        ).status_code
        == 422
    )


def test_the_events_of_a_session_that_there_is_are_gradios_business() -> None:
    assert ask("GET", f"{event_filter.QUEUE_DATA}?session_hash=tab").json() is None
    assert "session_not_found" in ask("GET", f"{event_filter.QUEUE_DATA}?session_hash=other").text
    assert ask("GET", f"{event_filter.QUEUE_DATA}?session_hash=%00").status_code == 422
    assert ask("GET", f"{event_filter.HEARTBEAT}tab").status_code == 200
    assert ask("GET", f"{event_filter.HEARTBEAT}{'s' * 65}").status_code == 422


def test_a_tabs_events_and_streams_are_for_its_browser_only() -> None:
    page = PageEvents(echo, EVENTS, lambda name: True, TabNames(lambda name: False, lambda name: None), shared=True)

    async def visit() -> None:
        def browser() -> httpx.AsyncClient:
            return httpx.AsyncClient(transport=httpx.ASGITransport(page), base_url="http://localhost")

        async with browser() as alice, browser() as mallory, browser() as stranger:
            for each in (alice, mallory):
                assert "HttpOnly" in (await each.get("/config")).headers["set-cookie"]
            assert (await alice.post(RUN, json=SENT)).status_code == 200
            for other in (mallory, stranger):
                assert (await other.post(RUN, json=SENT)).status_code == 422
                assert (await other.post(JOIN, json=SENT)).status_code == 422
                assert "not_found" in (await other.get(f"{event_filter.QUEUE_DATA}?session_hash=tab")).text
                assert (await other.get(f"{event_filter.HEARTBEAT}tab")).status_code == 422
            assert (await alice.get(f"{event_filter.HEARTBEAT}tab")).status_code == 200
            assert "cookies" in (await stranger.post(RUN, json={**SENT, "session_hash": "new"})).text

    asyncio.run(visit())


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=120), st.just(FILE))
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
)
NEARLY = st.fixed_dictionaries(
    {"fn_index": st.sampled_from([SEND, THUMB, STOP, 99]) | JSON, "data": st.lists(LEAVES | JSON, max_size=3) | JSON,
     "session_hash": st.just("tab") | JSON},
    optional={"event_data": st.just(LIKED) | JSON, "trigger_id": JSON, "batched": JSON},
)  # fmt: skip


@settings(deadline=None)
@given(NEARLY | JSON, st.sampled_from([JOIN, RUN, CANCEL]))
def test_any_json_is_refused_or_reaches_gradio_as_plain_values(body: object, path: str) -> None:
    answer = post(body, path)
    assert answer.status_code in (200, 422)
    if answer.status_code == 200:
        reached = answer.json()
        assert reached.keys() <= {"fn_index", "data", "session_hash", "event_data", "event_id"}
        assert all(value is None or isinstance(value, str | bool | int | float) for value in reached.get("data", []))
        assert (reached.get("event_data") or {}).keys() <= {"id", "rating"}


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused(body: bytes) -> None:
    assert post(body).status_code == 422


def test_the_page_does_not_remember_a_system_text_that_the_server_would_refuse() -> None:
    script = Path(event_filter.__file__).with_name("static").joinpath("memory.js").read_text()
    assert re.findall(r"const LONGEST_SYSTEM = (\d+);", script) == [str(MAX_CHARACTERS["system"])]
    assert 6 * MAX_CHARACTERS["system"] < MAX_CHARACTERS["memory"], "a character takes up to six as JSON"
