"""Bodies that are records, and bodies that are refused without quoting them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_chat.receiver.records import RecordRefused, read_record
from tests.receiver.payloads import feedback, posted, tombstone, turn_v1, turn_v2


def test_the_original_payload_needs_no_id_and_the_same_bytes_have_the_same() -> None:
    body = posted(turn_v1())
    first, again = read_record(body), read_record(body)
    other = read_record(posted(turn_v1(timestamp="2026-11-24T09:08:08")))
    assert first.id == again.id != other.id
    assert first.version == 1
    assert first.conversation_id == "conversation-1"
    assert first.day == "2026-11-24"
    assert first.body == body.decode()
    assert (first.columns["answer_chars"], first.columns["temperature"]) == (len("Paris."), 0.5)


def test_a_version_1_record_takes_the_idempotency_key_it_comes_with() -> None:
    assert read_record(posted(turn_v1()), "key-1").id == "key-1"


def test_version_2_gives_its_figures() -> None:
    record = read_record(posted(turn_v2(id="an-id")), "an-id")
    assert (record.id, record.kind, record.version) == ("an-id", "turn", 2)
    assert record.columns["ttft_ms"] == 40.0
    assert record.columns["completion_tokens"] == 2
    assert record.columns["finish_reason"] == "stop"
    assert record.columns["adapter"] == "Llama-Lumi-45M chat adapter"
    assert record.at == 1_795_507_687.0, "09:08:07 at +01:00"


def test_feedback_and_tombstones_are_records_of_their_own() -> None:
    rated = read_record(posted(feedback(turn_v2(turn_id="t"), rating=-1, edited="Better.")))
    assert (rated.kind, rated.turn_id) == ("feedback", "t")
    assert rated.columns == {"rating": -1, "edited": True, "commented": False}
    assert read_record(posted(tombstone("c"))).conversation_id == "c"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\xff", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "a JSON list; an object was expected"),
        (b'{"conversation_id": NaN}', "not JSON"),
        (posted(turn_v1(conversation_id="")), "conversation_id must be a string"),
        (posted(turn_v1(conversation_id="a b")), "conversation_id must be a string"),
        (posted(turn_v1(conversation_id=5)), "conversation_id must be a string"),
        (posted(turn_v1(history=[])), "history must be a list"),
        (posted(turn_v1(history=[["only one"]])), "history must be a list"),
        (posted(turn_v1(history=[["a", None]])), "history must be a list"),
        (posted(turn_v1(messages=None)), "messages must be a string"),
        (posted(turn_v1(timestamp="yesterday")), "timestamp must be a time"),
        (posted(turn_v1(version=3)), "version must be 1 or 2"),
        (posted(turn_v1(version=True)), "version must be 1 or 2"),
        (posted(turn_v2(kind="gossip")), "kind must be one of turn, feedback, tombstone"),
        (posted(turn_v2(id=None)), "id must be a string"),
        (posted(turn_v2(turn_id="x" * 201)), "turn_id must be a string of 1 to 200"),
        (posted({**feedback(turn_v2(), rating=1), "feedback": {"rating": 5}}), "feedback.rating must be 1, -1 or null"),
        (posted({**feedback(turn_v2(), rating=1), "feedback": {"edited": 5}}), "feedback.edited must be a string or null"),
        (posted({**feedback(turn_v2()), "feedback": [1]}), "feedback must be an object"),
        (posted({**turn_v2(), "kind": "feedback"}), "feedback must be an object"),
        (posted({**feedback(turn_v2(), rating=1), "feedback": {"rating": 1.0}}), "feedback.rating must be 1, -1 or null"),
        (posted(turn_v2(parent_id=[1])), "parent_id must be a string or null"),
        (posted(turn_v2(version=2.0)), "version must be 1 or 2"),
        (posted(turn_v1(x=1))[:-2] + b"[" * 101 + b"]" * 101 + b"}", "more than 100 levels deep"),
    ],
)  # fmt: skip
def test_other_bodies_are_refused_with_the_reason(body: bytes, message: str) -> None:
    with pytest.raises(RecordRefused, match=message):
        read_record(body)


def test_a_refusal_quotes_no_conversation() -> None:
    with pytest.raises(RecordRefused) as refusal:
        read_record(posted(turn_v1(history=[["my secret", 5]])))
    assert "secret" not in str(refusal.value)


def test_an_id_in_header_and_body_must_be_one() -> None:
    with pytest.raises(RecordRefused, match="differ"):
        read_record(posted(turn_v2(id="one")), "another")


def test_a_figure_that_is_no_number_loses_no_turn() -> None:
    kwargs = {"temperature": "hot", "top_p": True, "repetition_penalty": None}
    columns = read_record(posted(turn_v2(ttft_ms=-0.0, tokens_per_s=[], generate_kwargs=kwargs, model="gpt"))).columns
    assert columns["temperature"] is columns["top_p"] is columns["tokens_per_s"] is columns["model"] is None


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e300", "-1.7e308", "1000000000001", "9" * 400])
@pytest.mark.parametrize("name", ["prompt_tokens", "ttft_ms", "tokens_per_s", "temperature", "top_k"])
def test_a_number_that_cannot_be_counted_is_refused(name: str, number: str) -> None:
    body = posted(turn_v2(**{name: 77770}, generate_kwargs={name: 77770})).replace(b"77770", number.encode())
    with pytest.raises(RecordRefused, match="number"):
        read_record(body)


@pytest.mark.parametrize(
    "time",
    [
        "9999-12-31T23:59:59-12:00",
        "0001-01-01T00:00:00+12:00",
        "1969-12-30T00:00:00+00:00",
        "2100-01-02T00:00:00",
    ],
)
def test_a_time_that_no_calendar_of_ours_has_is_refused(time: str) -> None:
    with pytest.raises(RecordRefused, match="finished_at must be a time from 1970 to 2099"):
        read_record(posted(turn_v2(finished_at=time)))


def test_a_setting_that_is_off_or_not_sent_has_an_empty_column() -> None:
    sent = {**turn_v2()["generate_kwargs"], "min_p": 0.05}
    assert read_record(posted(turn_v2(generate_kwargs=sent))).columns["min_p"] == 0.05
    assert read_record(posted(turn_v1())).columns["min_p"] is None


def test_a_name_has_no_control_characters() -> None:
    record = read_record(posted(turn_v2(finish_reason="\x1b[31mstop\x00\ud800")))
    assert record.columns["finish_reason"] == "[31mstop"


TEXT = st.text(alphabet="a1 é\0\ud800", max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(turn_v2())), JSON, max_size=4))
def test_whatever_comes_is_a_record_or_refused(changed: dict[str, Any]) -> None:
    try:
        record = read_record(json.dumps({**turn_v2(), **changed}).encode())
    except RecordRefused:
        return
    assert record.kind in ("turn", "feedback", "tombstone")
