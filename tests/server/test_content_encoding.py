"""Compressed bodies: gzip is read within the limit, anything else is refused by name."""

from __future__ import annotations

import gzip

import pytest

from qlora_chat.server.site_access import BODY_LIMIT
from tests.server.test_access_control import ask

CHAT = "/v1/chat/completions"


def test_gzip_is_read() -> None:
    for name in ("gzip", "x-gzip", "GZIP", "identity, gzip"):
        assert ask("POST", CHAT, content=gzip.compress(b"x" * 100_000), content_encoding=name).text == "100000 bytes"
    assert ask("POST", CHAT, content=b"plain", content_encoding="identity").text == "5 bytes"


def test_the_limit_holds_for_what_a_body_becomes() -> None:
    exact, more = (gzip.compress(b"x" * size) for size in (BODY_LIMIT.size, BODY_LIMIT.size + 1))
    assert ask("POST", CHAT, content=exact, content_encoding="gzip").text == f"{BODY_LIMIT.size} bytes"
    refused = ask("POST", CHAT, content=more, content_encoding="gzip")
    assert refused.status_code == 413
    assert "decompressed" in refused.json()["error"]["message"]


@pytest.mark.parametrize("name", ["br", "deflate", "zstd", "gzip, gzip", "br, gzip"])
def test_another_encoding_is_named(name: str) -> None:
    refused = ask("POST", CHAT, content=b"x", content_encoding=name)
    assert refused.status_code == 415
    assert name in refused.json()["error"]["message"]
    assert refused.headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize(
    "body", [b"x", gzip.compress(b"x" * 1000)[:-9], gzip.compress(b"x") + b"y"], ids=["plain", "cut off", "more behind it"]
)
def test_damaged_gzip_is_the_clients_error(body: bytes) -> None:
    assert ask("POST", CHAT, content=body, content_encoding="gzip").status_code == 400
