"""Which of the site's and Gradio's routes answer whom: every one is tried, and one that is not in the list fails."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import pytest

from qlora_chat.server import guesses, site_access
from qlora_chat.settings import ServeSettings
from tests.fakes import ScriptedEngine
from tests.web.serving import Served, serving


@pytest.fixture(scope="module")
def page() -> Iterator[Served]:
    with serving(ScriptedEngine("Hello there.")) as served:
        yield served


NEEDED = {
    "/", "/health", "/page/chats", "/page/chats/export", "/page/chats/import", "/page/chats/save", "/page/messages",
    "/page/train/data",
    "/page/static/{path:path}", "/theme.css", "/favicon.ico", "/config",
    "/assets/{path:path}", "/static/{path:path}",
    "/svelte/{path:path}", "/gradio_api/theme.css", "/gradio_api/heartbeat/{session_hash}", "/gradio_api/startup-events",
    "/gradio_api/app_id", "/gradio_api/info", "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel",
    "/gradio_api/run/{api_name}", "/login", "/logout", "/ready", "/metrics", "/openapi.json", "/v1/models",
    "/v1/models/{model:path}", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
}  # fmt: skip


@cache
def every_route() -> list[tuple[str, str]]:
    """(method, path) of everything that the site and Gradio would serve, access control aside; from its own parts."""
    import asyncio

    from qlora_chat.server.site import Site, _build_page
    from qlora_chat.web.sessions import PageFeatures
    from tests.fakes import ScriptedSwitch, scripted_chat

    async def build() -> list[tuple[str, str]]:
        _, page, _ = _build_page(scripted_chat(ScriptedSwitch()), PageFeatures(operated=True))
        mounted = [route for each in page.routes for route in getattr(getattr(each, "app", None), "routes", [])]
        api = Site(ServeSettings()).api.routes
        routes = [
            (method, route.path)
            for route in _flat([*page.routes, *mounted, *api])
            for method in getattr(route, "methods", None) or []
        ]
        return sorted(set(routes))

    return asyncio.run(build())


def _flat(routes: Any) -> list[Any]:
    """Routes and the routes of included routers."""
    flat: list[Any] = []
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        flat += _flat(inner) if inner else [route]
    return flat


def test_every_route_that_the_page_does_not_need_is_denied(page: Served) -> None:
    routes = every_route()
    assert len(routes) > 60, "Gradio's routes were not found, so this test would prove nothing"
    assert any("upload" in path for _, path in routes)
    for method, path in routes:
        if path in NEEDED:
            continue
        concrete = path.replace("{path:path}", "x").replace("{", "").replace("}", "").replace(":path", "")
        answer = httpx.request(method, page.url + concrete, timeout=60)
        assert answer.status_code in (404, 405), f"{method} {path} answered {answer.status_code}"


WAYS_OUT = [
    step * deep + target
    for step in ("../", "..%2f", "%2e%2e/", "..\\", "..%5c")
    for deep in (1, 2, 5, 9)
    for target in (
        "etc/passwd",
        "etc/shadow",
        "proc/self/environ",
        "root/.ssh/id_rsa",
        "src/qlora_chat/settings/environment.py",
    )
]


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    settings = ServeSettings(token="correct horse", api_tokens=("first", "second"), operator_token="battery staple")
    with pytest.MonkeyPatch.context() as patch, serving(ScriptedEngine("Hello there."), settings) as served:
        patch.setattr(guesses, "FREE_GUESSES", 1_000_000)  # tests of the limit are in test_guesses.py
        patch.setattr(guesses, "WRONG_DELAY_S", 0.0)
        yield served


def concrete(path: str) -> str:
    """A path that its route takes."""
    path = path.replace("{path:path}", "x").replace("{model:path}", "scripted").replace("{session_hash}", "s")
    return path.replace("{api_name}", "predict")


def needed_routes() -> list[tuple[str, str]]:
    """(method, path to ask for) of every route that access control lets through with the right credentials."""
    return [(method, concrete(path)) for method, path in every_route() if path in NEEDED and method in ("GET", "HEAD", "POST")]


def test_the_list_has_existing_routes_and_all_that_access_control_lets_through() -> None:
    assert {path for _, path in every_route()} | {"/login", "/logout"} >= NEEDED, (
        "a route that nobody enumerates is tried by no test"
    )
    let_through = (
        site_access.PAGE_READS
        | site_access.PAGE_WRITES
        | site_access.SERVER_READS
        | site_access.API_WRITES
        | {site_access.MODELS}
    )
    assert let_through <= {concrete(path) for path in NEEDED}
    assert {f"{prefix}x" for prefix in site_access.PAGE_PREFIXES} <= {concrete(path) for path in NEEDED} | {
        "/gradio_api/heartbeat/x"
    }


def test_every_route_but_health_is_denied_to_strangers(locked: Served) -> None:
    """Row by row: a route that is needed and not in the list above fails here, or in the test before."""
    with httpx.Client(base_url=locked.url, timeout=60) as client:
        for method, path in [*needed_routes(), ("POST", "/login"), ("POST", "/logout")]:
            right = {"authorization": "Bearer correct horse"}
            foreign = [
                ({"host": "evil.example", **right}, {421}),
                ({"origin": "https://evil.example", **right}, {403}),
                ({"origin": "null", **right}, {403}),
            ]
            bare = {200} if path == "/health" else {401}
            strange = [
                ({}, bare),
                ({"authorization": "Bearer wrong"}, bare),
                ({"authorization": "Basic Y29ycmVjdCBob3JzZQ=="}, bare),
            ]
            for headers, expected in foreign if path in ("/login", "/logout") else [*foreign, *strange]:
                answer = client.request(method, path, headers=headers)
                assert answer.status_code in expected, f"{method} {path} with {headers} answered {answer.status_code}"
    assert locked.engine.streams == []


@pytest.mark.parametrize("token", ["first", "second"])
def test_an_api_token_opens_the_api_and_nothing_else(locked: Served, token: str) -> None:
    with httpx.Client(base_url=locked.url, headers={"authorization": f"Bearer {token}"}, timeout=60) as client:
        assert client.get("/v1/models").status_code == 200
        body = {"model": "scripted", "prompt": "hi"}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "Hello there."
        for path in ("/", "/metrics", "/ready", "/config", "/openapi.json"):
            assert client.get(path).status_code == 403
        assert client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/nowhere"}).status_code == 403
    missing = httpx.post(f"{locked.url}/v1/completions", json=body, timeout=60)
    assert missing.status_code == 401
    assert missing.json()["error"]["type"] == "authentication_error"


def test_adapters_and_metrics_are_the_operators(locked: Served) -> None:
    adapter = {"lora_name": "x", "lora_path": "/root"}
    with httpx.Client(base_url=locked.url, timeout=60) as client:
        for token in ("correct horse", "first"):
            client.headers["authorization"] = f"Bearer {token}"
            assert client.get("/metrics").status_code == 403
            for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
                refused = client.post(path, json=adapter)
                assert refused.status_code == 403
                assert "QLORA_CHAT_OPERATOR_TOKEN" in refused.text
        client.headers["authorization"] = "Bearer battery staple"
        assert "qlora_chat_ready 1.0" in client.get("/metrics").text
        assert client.post("/v1/load_lora_adapter", json=adapter).status_code == 400, "this engine has no adapters"
        assert client.get("/v1/models").status_code == 200


def test_with_a_password_and_no_operators_token_nobody_is_the_operator() -> None:
    settings = ServeSettings(token="correct horse")
    with serving(ScriptedEngine(), settings) as served, httpx.Client(base_url=served.url, timeout=60) as client:
        assert client.get("/metrics", headers={"authorization": "Bearer correct horse"}).status_code == 403


def test_a_hundred_traversals_from_every_route_are_denied(locked: Served) -> None:
    assert len(WAYS_OUT) == 100
    tried = [(method, f"{path.rstrip('/')}/{way}") for method, path in needed_routes() for way in WAYS_OUT]
    assert len(tried) > 2800
    host, _, port = locked.url.removeprefix("http://").partition(":")
    with contextlib.closing(socket.create_connection((host, int(port)))) as raw, raw.makefile("rb") as answers:
        for method, path in tried:
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer correct horse\r\nContent-Length: 0"
            )
            raw.sendall(f"{head}\r\n\r\n".encode())
            status, body = _answer(answers, method)
            assert status in (404, 405, 400), f"{method} {path} answered {status}"
            assert not any(word in body for word in (b"root:", b"PRIVATE KEY", b"PATH=", b"import ")), path


def _answer(answers: Any, method: str) -> tuple[int, bytes]:
    """Status and body of the next answer of a connection."""
    status, length = int(answers.readline().split(b" ")[1]), 0
    while line := answers.readline().strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        assert name.lower() != b"transfer-encoding", "a refusal has a length"
    return status, b"" if method == "HEAD" else answers.read(length)


def test_the_page_links_no_other_origin_and_offers_no_api(page: Served) -> None:
    info = httpx.get(f"{page.url}/gradio_api/info", timeout=60).json()
    assert info["named_endpoints"] == {}
    config = httpx.get(f"{page.url}/config", timeout=60).json()
    assert config["footer_links"] == []
    assert [config[each] for each in ("analytics_enabled", "mcp_server", "run_history")] == [False] * 3
    assert "fonts.googleapis" not in httpx.get(f"{page.url}/theme.css", timeout=60).text


def test_the_health_probe_says_ok_only(page: Served) -> None:
    assert httpx.get(f"{page.url}/health", timeout=60).text == "ok"
