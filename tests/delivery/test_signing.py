"""A signature holds for one id, one moment and one body, and for nobody without the secret."""

import hashlib
import hmac

import pytest

from qlora_chat.delivery.signing import BadSignature, sign, verify

BODY = '{"history": [["Grüß Gott", "Hello."]]}'.encode()


def test_a_signature_is_verified_with_headers_in_any_case() -> None:
    headers = sign("s3cret", "an-id", BODY)
    assert verify("s3cret", headers, BODY) == "an-id"
    assert verify("s3cret", {name.lower(): value for name, value in headers.items()}, BODY) == "an-id"


def test_the_signature_is_the_documented_one() -> None:
    headers = sign("s3cret", "an-id", BODY, timestamp=1_700_000_000)
    expected = hmac.new(b"s3cret", b"an-id.1700000000." + BODY, hashlib.sha256).hexdigest()
    assert headers == {
        "X-QLoRA-Chat-Id": "an-id",
        "X-QLoRA-Chat-Timestamp": "1700000000",
        "X-QLoRA-Chat-Signature": f"sha256={expected}",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"X-QLoRA-Chat-Id": "another"},
        {"X-QLoRA-Chat-Timestamp": "1700000001"},
        {"X-QLoRA-Chat-Timestamp": "soon"},
        {"X-QLoRA-Chat-Timestamp": "9" * 5000},
        {"X-QLoRA-Chat-Signature": "sha256=00"},
        {"X-QLoRA-Chat-Signature": "é"},
    ],
    ids=str,
)
def test_a_changed_header_is_refused(change: dict[str, str]) -> None:
    headers = sign("s3cret", "an-id", BODY, timestamp=1_700_000_000)
    with pytest.raises(BadSignature):
        verify("s3cret", headers | change, BODY, now=1_700_000_000)


def test_changed_bytes_another_secret_and_a_missing_header_are_refused() -> None:
    headers = sign("s3cret", "an-id", BODY)
    with pytest.raises(BadSignature, match="does not belong"):
        verify("s3cret", headers, BODY + b" ")
    with pytest.raises(BadSignature, match="does not belong"):
        verify("other", headers, BODY)
    with pytest.raises(BadSignature, match="'x-qlora-chat-signature' is missing"):
        verify("s3cret", {key: value for key, value in headers.items() if not key.endswith("Signature")}, BODY)


def test_an_old_request_is_refused() -> None:
    headers = sign("s3cret", "an-id", BODY, timestamp=1_700_000_000)
    assert verify("s3cret", headers, BODY, now=1_700_000_299)
    with pytest.raises(BadSignature, match="signed 301 s ago"):
        verify("s3cret", headers, BODY, now=1_700_000_301)
