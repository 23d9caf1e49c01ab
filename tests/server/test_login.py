"""Sessions of the page: they expire, they can be ended, and a new password ends them all."""

from __future__ import annotations

from starlette.datastructures import Headers

from qlora_chat.server.login import SESSION_S, Password


def sent(cookie: str) -> Headers:
    """A later request of the browser that was sent this Set-Cookie header."""
    return Headers({"cookie": cookie.split(";")[0]})


def test_a_session_opens_the_page_until_it_expires() -> None:
    now = 1_000_000.0
    password = Password("correct horse", lambda: now)
    headers = sent(password.begin_session(secure=False))
    now += SESSION_S - 1
    assert password.has_session(headers)
    now += 1
    assert not password.has_session(headers)


def test_an_ended_session_opens_nothing_and_others_go_on() -> None:
    password = Password("correct horse")
    ended, other = (sent(password.begin_session(secure=False)) for _ in range(2))
    removal = password.end_session(ended, secure=False)
    assert "Max-Age=0" in removal
    assert not password.has_session(ended)
    assert password.has_session(other)


def test_every_process_with_the_same_password_takes_a_session_and_no_other_does() -> None:
    headers = sent(Password("correct horse").begin_session(secure=False))
    assert Password("correct horse").has_session(headers)
    assert not Password("battery staple").has_session(headers)


def test_a_session_that_was_changed_opens_nothing() -> None:
    password = Password("correct horse")
    name, _, value = password.begin_session(secure=False).split(";")[0].partition("=")
    end, nonce, signature = value.split(".")
    for forged in ("", ".", "..", f"{int(end) + 1}.{nonce}.{signature}", f"{end}.{nonce}.", f"{end}.{nonce}.\u00e9", "x.y.z"):
        assert not password.has_session(Headers(raw=[(b"cookie", f"{name}={forged}".encode())]))


def test_behind_tls_the_cookie_is_for_tls_only() -> None:
    password = Password("correct horse")
    assert "; Secure" in password.begin_session(secure=True)
    assert "; Secure" not in password.begin_session(secure=False)
