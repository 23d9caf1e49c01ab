"""Redaction: what it removes, what it leaves, and that a failing one sends nothing."""

from __future__ import annotations

import time

import pytest

from qlora_chat.delivery.recorder import LogRecorder
from qlora_chat.delivery.redaction import redact, redact_text
from qlora_chat.history import TurnRecord
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import Sampling


@pytest.mark.parametrize(
    ("text", "expected"),
    [("mail me at jo.doe+x@example.co.uk now", "mail me at [e-mail] now"), ("card 4111 1111 1111 1111.", "card [card]."),
     ("call +49 170 1234567", "call [phone]"), ("password: hunter2345", "password: [key]"),
     ("a.b@c-d.example, ..x@y.example", "[e-mail], ..[e-mail]"), ("a@b, a@b-.example", "a@b, a@b-.example"),
     ("x-eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeK.rest", "x-[key].rest"), ("eyJ.eyJ.eyJ and a.b.c", "eyJ.eyJ.eyJ and a.b.c"),
     ("+491, +49 (0)30 1234567 and +49", "[phone], [phone] and +49"), ("+49 170 1234567x", "[phone] 1234567x"),
     ("the year 2024 had 366 days, 3.14159 is pi", "the year 2024 had 366 days, 3.14159 is pi")],
)  # fmt: skip
def test_personal_data_and_keys_are_redacted(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_token_ids_are_removed_with_redacted_text_and_a_failure_drops_the_record() -> None:
    assert redact({"messages": "a@b.example", "prompt_ids": [1]}) == {"messages": "[e-mail]", "prompt_ids": []}
    assert redact({"messages": "fine", "prompt_ids": [1]}) == {"messages": "fine", "prompt_ids": [1]}
    turn = TurnRecord(Conversation("c", (Message("user", "a"), Message("assistant", "b"))), "p", Sampling())
    dropped: list[int] = []
    recorder = LogRecorder(2, lambda record: record["missing"], lambda: dropped.append(1))
    assert recorder.turn(turn) is None
    assert dropped == [1]


HOSTILE = (
    "a", "eyJ-", "eyJaaaaaaaa.", "sk-", "00", "+4", "1 ", "12-",
    "0011111111111111111111111111111111111111x ", "token ", "token=", "a@", "a.", "a@a-",
    "-----BEGIN ", "-----BEGIN A PRIVATE KEY-----", "-----END ", "(12) ",
)  # fmt: skip
"""Beginnings of what is looked for, none of which goes on."""


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_text_takes_time_in_proportion_to_its_length(piece: str) -> None:
    """Compared with itself: sixteen times the text takes at most some forty times as long, where a square takes 256 times."""

    def seconds(length: int, times: int) -> float:
        text = (piece * length)[:length]
        measured = []
        for _ in range(times):
            began = time.thread_time()
            redact_text(text)
            measured.append(time.thread_time() - began)
        return min(measured)

    assert seconds(800_000, 1) < 40 * max(seconds(50_000, 3), 0.001)
