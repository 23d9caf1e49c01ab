"""Requests that reach the page, and those that do not: access control around an app that would answer anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from qlora_chat.server import access_control, site_access
from qlora_chat.server.request_body import BodyLimit
from qlora_chat.server.security_headers import SecurityHeaders, page_policy
from qlora_chat.server.site_access import BODY_LIMIT, protect
from qlora_chat.settings import ServeSettings

JOIN = "/gradio_api/queue/join"
TOKEN = "correct horse"
GUARDED = ServeSettings(token=TOKEN)


class NoLogOuts:
    """A record of log-outs, which the access controls of several requests share."""

    def add(self, name: str, ends_at: float) -> None:
        raise AssertionError("nobody logs out here")

    def names(self) -> set[str]:
        return set()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)} bytes")(scope, receive, send)


def ask(
    method: str,
    path: str,
    settings: ServeSettings | None = None,
    content: bytes | AsyncIterator[bytes] | None = None,
    **headers: str,
) -> httpx.Response:
    """One request; its Host is localhost unless another is passed."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(SecurityHeaders(protect(echo, settings or ServeSettings(), NoLogOuts()), page_policy))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860") as client:
            return await client.request(method, path, content=content, headers=named)

    return asyncio.run(send())


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "127.0.0.1:80"])
def test_loopback_hosts_are_served(host: str) -> None:
    assert ask("GET", "/", host=host).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "10.0.0.1"])
def test_foreign_hosts_are_refused(host: str) -> None:
    assert ask("GET", "/", host=host).status_code == 421


def test_a_named_host_is_served_when_it_was_allowed() -> None:
    settings = ServeSettings(host="192.0.2.7", token=TOKEN, allowed_hosts=("chat.example",))
    for host in ("chat.example", "CHAT.example:443", "192.0.2.7:7860"):
        assert ask("GET", "/", settings, host=host, authorization=f"Bearer {TOKEN}").status_code == 200
    assert ask("GET", "/", settings, host="other.example", authorization=f"Bearer {TOKEN}").status_code == 421


def test_listening_everywhere_serves_any_address_but_no_unknown_name() -> None:
    settings = ServeSettings(host="0.0.0.0", token=TOKEN)
    assert ask("GET", "/health", settings, host="192.168.1.5:7860").status_code == 200
    assert ask("GET", "/health", settings, host="rebound.example").status_code == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9999", "http://localhost", "file://"])
@pytest.mark.parametrize(("method", "path"), [("POST", JOIN), ("GET", "/config")])
def test_other_origins_are_refused(method: str, path: str, origin: str) -> None:
    assert ask(method, path, origin=origin).status_code == 403


def test_the_own_origin_and_no_origin_are_served() -> None:
    assert ask("POST", JOIN, origin="http://localhost:7860").status_code == 200
    assert ask("POST", JOIN).status_code == 200


def test_a_browser_that_names_another_site_is_refused() -> None:
    assert ask("POST", JOIN, sec_fetch_site="cross-site").status_code == 403


@pytest.mark.parametrize("header", ["x_forwarded_host", "x_gradio_server"])
@pytest.mark.parametrize("value", ["evil.example", "localhost:1", "localhost:7860, evil.example", "http://evil.example"])
def test_no_client_chooses_the_host_that_the_page_sends_its_requests_to(header: str, value: str) -> None:
    assert ask("GET", "/config", None, None, **{header: value}).status_code == 421


def test_a_trusted_proxy_names_the_host_and_an_undeclared_one_repeats_it() -> None:
    behind = ServeSettings(allowed_hosts=("chat.example",), trusted_proxies=("127.0.0.0/8",), token=TOKEN)
    right = f"Bearer {TOKEN}"
    assert ask("GET", "/config", behind, x_forwarded_host="chat.example", authorization=right).status_code == 200
    assert ask("GET", "/config", behind, x_forwarded_host="evil.example", authorization=right).status_code == 421
    assert ask("GET", "/config", x_forwarded_host="localhost:7860").status_code == 200


@pytest.mark.parametrize(("proxies", "caller"), [((), "127.0.0.1"), (("127.0.0.1",), "203.0.113.9")])
def test_only_a_trusted_proxy_tells_callers_apart(proxies: tuple[str, ...], caller: str) -> None:
    async def say_caller(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(scope["client"][0])(scope, receive, send)

    async def send() -> str:
        transport = httpx.ASGITransport(protect(say_caller, ServeSettings(trusted_proxies=proxies, token=TOKEN)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860") as client:
            headers = {"x-forwarded-for": "198.51.100.1, 203.0.113.9", "authorization": f"Bearer {TOKEN}"}
            return (await client.get("/config", headers=headers)).text

    assert asyncio.run(send()) == caller


def test_a_body_of_exactly_the_limit_arrives_whole() -> None:
    assert ask("POST", JOIN, content=b"x" * BODY_LIMIT.size).text == f"{BODY_LIMIT.size} bytes"


def test_a_larger_body_is_refused() -> None:
    assert ask("POST", JOIN, content=b"x" * (BODY_LIMIT.size + 1)).status_code == 413


def test_a_larger_body_is_refused_when_it_comes_chunked_without_a_length() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(BODY_LIMIT.size // 65536 + 1):
            yield b"x" * 65536

    assert ask("POST", JOIN, content=chunks()).status_code == 413


def test_a_body_that_never_ends_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_access, "BODY_LIMIT", BodyLimit(BODY_LIMIT.size, seconds=0.05))

    async def trickle() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(5)

    assert ask("POST", JOIN, content=trickle()).status_code == 408


def test_a_body_that_is_cut_off_does_not_reach_the_app() -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": JOIN, "headers": [(b"host", b"localhost")]}

    async def request() -> None:
        await protect(echo, ServeSettings())(scope, receive, send)

    asyncio.run(request())
    assert sent[0]["status"] == 400


def test_the_password_is_checked_before_any_of_the_body_is_read() -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    assert ask("POST", JOIN, GUARDED, content=unread()).status_code == 401


def test_bodies_whose_requests_wait_for_an_answer_are_bounded_for_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_control, "MOST_HELD_BYTES", 4 * BODY_LIMIT.size)
    held, answering = asyncio.Event(), asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        held.set()
        await answering.wait()
        await PlainTextResponse("answered")(scope, receive, send)

    async def visit() -> None:
        app = protect(wait, ServeSettings())
        clients = [
            httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://localhost:7860")
            for address in ("127.0.0.2", "127.0.0.3")
        ]
        body = b"x" * BODY_LIMIT.size
        first = asyncio.create_task(clients[0].post(JOIN, content=body))
        await held.wait()
        refused = await clients[0].post(JOIN, content=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "wait for their answers" in refused.text
        other = asyncio.create_task(clients[1].post(JOIN, content=body))
        answering.set()
        assert [(await each).status_code for each in (first, other)] == [200, 200], "another address has a share of its own"
        assert (await clients[0].post(JOIN, content=body)).status_code == 200, "given back with the answer"

    asyncio.run(visit())


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/upload", "/monitoring", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://elsewhere", "/docs",
     "/gradio_api/runs", "/gradio_api/call/send", "/gradio_api/run/send", "/gradio_api/component_server", "/mcp",
     "/assets/../../../etc/passwd", "/assets/%2e%2e/x", "/assets//etc/passwd", "/static/..%5c..%5cx"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_paths_the_page_does_not_need_are_not_there(method: str, path: str) -> None:
    assert ask(method, path).status_code == 404


@pytest.mark.parametrize(("method", "path"), [("PUT", "/"), ("DELETE", JOIN), ("OPTIONS", JOIN), ("POST", "/"), ("GET", JOIN)])
def test_other_methods_are_refused(method: str, path: str) -> None:
    assert ask(method, path).status_code == 405


# --- the password ----------------------------------------------------------------------------------------------------


def test_health_needs_no_password_and_everything_else_does() -> None:
    assert ask("GET", "/health", GUARDED).status_code == 200
    for method, path in (
        ("GET", "/"),
        ("GET", "/config"),
        ("GET", "/assets/x.js"),
        ("GET", "/page/static/messages.js"),
        ("GET", "/page/messages"),
        ("POST", JOIN),
    ):
        assert ask(method, path, GUARDED).status_code == 401


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer", "Basic correct horse", "Bearer correct hors"])
def test_a_wrong_bearer_is_refused(header: str) -> None:
    assert ask("GET", "/config", GUARDED, authorization=header).status_code == 401


def test_the_bearer_opens_everything() -> None:
    assert ask("POST", JOIN, GUARDED, authorization=f"Bearer {TOKEN}").status_code == 200


def test_the_form_sets_a_cookie_that_opens_the_page() -> None:
    answer = ask("POST", "/login", GUARDED, content=b"token=correct+horse")
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert ask("GET", "/config", GUARDED, cookie=cookie.split(";")[0]).status_code == 200
    other = ServeSettings(token="another")
    assert ask("GET", "/config", other, cookie=cookie.split(";")[0]).status_code == 401


def test_logging_out_ends_the_session_even_for_a_copy_of_its_cookie() -> None:
    async def visit() -> None:
        transport = httpx.ASGITransport(protect(echo, GUARDED))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860") as client:
            await client.post("/login", content=b"token=correct+horse")
            assert (await client.get("/config")).status_code == 200
            copied = httpx.Cookies(client.cookies)
            assert (await client.post("/logout")).status_code == 303
            assert (await client.get("/config")).status_code == 401
            client.cookies = copied
            assert (await client.get("/config")).status_code == 401

    asyncio.run(visit())


def test_behind_a_proxy_that_speaks_tls_the_cookie_is_for_tls_only() -> None:
    cookie = ask("POST", "/login", GUARDED, content=b"token=correct+horse", x_forwarded_proto="https").headers["set-cookie"]
    assert "; Secure" in cookie


@pytest.mark.parametrize("body", [b"token=wrong", b"", b"token", b"\xff\xfe", b"a=1&" * 3])
def test_a_wrong_password_shows_the_form_again(body: bytes) -> None:
    answer = ask("POST", "/login", GUARDED, content=body)
    assert answer.status_code == 401
    assert "not right" in answer.text
    assert "set-cookie" not in answer.headers


def test_a_form_of_many_fields_is_refused_without_a_traceback() -> None:
    assert ask("POST", "/login", GUARDED, content=b"a=1&" * 1000).status_code == 401


def test_the_form_is_what_a_visitor_sees_first() -> None:
    answer = ask("GET", "/", GUARDED)
    assert answer.status_code == 401
    assert 'type="password"' in answer.text
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


# --- headers ---------------------------------------------------------------------------------------------------------


def test_every_answer_carries_the_security_headers() -> None:
    for answer in (ask("GET", "/"), ask("GET", "/nowhere"), ask("GET", "/", host="evil.example")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_only_the_pages_own_inline_scripts_are_named() -> None:
    policy = page_policy(b"<script>one()</script><script src='x.js'></script><script type=module>two()</script>")
    assert policy.count("'sha256-") == 2
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


def test_no_directive_of_the_policy_allows_another_origin() -> None:
    directives = dict(each.strip().split(" ", 1) for each in page_policy(b"").split(";"))
    assert directives["img-src"] == "'self' data:"
    for name, sources in directives.items():
        assert set(sources.split()) <= {"'self'", "'none'", "data:", "'unsafe-eval'", "'unsafe-inline'"}, name
