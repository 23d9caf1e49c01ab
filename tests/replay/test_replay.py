"""A recorded answer made again by the real demo model: the same, or the difference by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.cli import app
from qlora_chat.cli.commands.replay import _like_recorded, _model, as_text
from qlora_chat.delivery.payload import payload_v2
from qlora_chat.engines.local import LocalEngine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import AnswerSchema, Conversation
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.replay.record import CannotReplay, parse_recorded_answer, read_recorded_answer
from qlora_chat.replay.replay import FirstToken, ReplayResult, replay
from qlora_chat.settings import Sampling
from tests.fakes import ScriptedEngine, ScriptedRecorder

GREEDY = Sampling(temperature=0.0, max_new_tokens=40)
WARM = Sampling(temperature=1.0, top_p=0.95, top_k=80, repetition_penalty=1.1, max_new_tokens=60)


@pytest.fixture
def chat(engine: LocalEngine) -> Chat:
    """A chat over an engine with an empty cache."""
    return Chat(engine, DEFAULT_FORMAT, MemoryHistory())


def record_of(
    engine: Any, questions: list[str], sampling: Sampling, *,
    moved_to: Sampling | None = None, schema: AnswerSchema | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The version 2 record of the last answer, as a receiver would get it; `moved_to` are sliders moved after 5 tokens."""
    recorder = ScriptedRecorder()
    chat = Chat(engine, DEFAULT_FORMAT, MemoryHistory(), recorder)
    conversation = Conversation()
    for question in questions:
        turn = chat.reply(conversation, question, AnswerOptions(sampling, schema=schema))
        for index, _ in enumerate(turn):
            if index == 5 and moved_to:
                turn.update(moved_to)
        conversation = turn.conversation
    return json.loads(json.dumps(payload_v2(recorder.turns[-1], "an-id")))


def test_a_greedy_answer_is_replayed_identically(shared_engine: LocalEngine, chat: Chat) -> None:
    data = record_of(shared_engine, ["What is the capital of France?"], GREEDY)
    again = replay(parse_recorded_answer(data), chat)
    assert again.identical
    assert again.answer == data["answer"] == "The capital of France is Paris."
    assert again.differences == ()


@pytest.mark.parametrize("seed", [None, 2])
def test_a_sampled_answer_is_replayed_identically_with_its_seed(
    seed: int | None, shared_engine: LocalEngine, chat: Chat
) -> None:
    data = record_of(shared_engine, ["Tell me a story about a fox.", "And then?"], WARM.changed(seed=seed))
    assert len(data["answer_ids"]) > (10 if seed else 0), "of a seed that nobody chose, the length is anybody's guess"
    assert data["cached_tokens"] > 0, "recorded from a cache that the replay does not have"
    again = replay(parse_recorded_answer(data), chat)
    assert (again.first, again.answer) == (None, data["answer"])
    if seed:  # two seeds that nobody chose may both give "Yes."
        other = replay(parse_recorded_answer({**data, "seed": seed + 1}), chat)
        assert not other.identical, "the seed decides"


def test_settings_changes_are_replayed_at_the_same_token(shared_engine: LocalEngine, chat: Chat) -> None:
    data = record_of(
        shared_engine,
        ["Tell me a story about a fox."],
        WARM.changed(seed=4),
        moved_to=WARM.changed(temperature=0.3, min_p=0.05),
    )
    (change,) = data["settings_changes"]
    assert change["at_token"] >= 5
    again = replay(parse_recorded_answer(data), chat)
    assert again.identical
    late = {**change, "at_token": change["at_token"] + 15}
    without = replay(parse_recorded_answer({**data, "settings_changes": [late]}), chat)
    assert without.first is not None, "the moment matters"
    assert without.first.index >= change["at_token"]


def test_an_answer_that_had_to_match_a_schema_is_replayed_with_it(shared_engine: LocalEngine, chat: Chat) -> None:
    schema = AnswerSchema('{"type": "array", "items": {"enum": ["### Human", "fox"]}, "minItems": 4, "maxItems": 4}')
    data = record_of(shared_engine, ["Tell me a story about a fox."], WARM.changed(seed=4), schema=schema)
    assert len(json.loads(data["answer"])) == 4
    assert data["answer_schema"] == {"text": schema.text, "strict": True}
    assert replay(parse_recorded_answer(data), chat).identical
    with pytest.raises(CannotReplay, match="answer_schema must have a text"):
        parse_recorded_answer({**data, "answer_schema": {"text": 5}})


def test_a_cancelled_answer_is_replayed_up_to_its_length(shared_engine: LocalEngine, chat: Chat) -> None:
    whole = record_of(shared_engine, ["Tell me a story about a fox."], GREEDY)
    again = replay(parse_recorded_answer({**whole, "finish_reason": "cancelled", "answer_ids": whole["answer_ids"][:9]}), chat)
    assert again.identical
    assert len(again.answer_ids) == 9


def test_the_first_different_token_and_the_model_differences_are_reported(shared_engine: LocalEngine, chat: Chat) -> None:
    data = record_of(shared_engine, ["What is the capital of France?"], GREEDY)
    paris = data["answer_ids"][5]
    assert chat.engine.tokenizer.decode(data["answer_ids"][:6]).endswith("Paris")
    changed = {
        **data,
        "answer_ids": [*data["answer_ids"][:5], paris + 1, *data["answer_ids"][6:]],
        "model": {**data["model"], "adapter": "another", "adapter_sha256": "ab" * 32, "precision": "nf4"},
    }
    again = replay(parse_recorded_answer(changed), chat)
    assert not again.identical
    assert again.first
    assert (again.first.index, again.first.here_id, again.first.here_text.strip()) == (5, paris, "Paris")
    assert again.first.before.endswith("France is")
    assert again.first.here_chance
    assert again.first.here_chance > 0.5, "how sure the model is of it"
    assert {each.what for each in again.differences} == {"adapter", "adapter_sha256", "precision"}


@pytest.mark.parametrize(("independent", "why"), [(False, "adds up in another order"), (True, "as if it were alone")])
def test_without_other_differences_the_forward_pass_is_the_reason(independent: bool, why: str) -> None:
    data = record_of(ScriptedEngine("one two three"), ["Hi"], GREEDY)
    first = FirstToken(1, 4, " fox", 5, " cat", "a red", 0.4213, 0.4209)
    text = as_text(parse_recorded_answer(data), ReplayResult("a red cat", (3, 5), "stop", first, (), independent))
    assert "differs from token 2 of" in text
    assert "the model gives them 42.130% and 42.090% here" in text
    assert why in text


def test_an_answer_that_ends_elsewhere_is_different(shared_engine: LocalEngine, chat: Chat) -> None:
    data = record_of(shared_engine, ["What is the capital of France?"], GREEDY)
    longer = replay(parse_recorded_answer({**data, "answer_ids": [*data["answer_ids"], 5]}), chat)
    assert longer.first
    assert longer.first.here_id is None
    ended = replay(parse_recorded_answer({**data, "finish_reason": "length"}), chat)
    assert [each.what for each in ended.differences] == ["finish_reason"]
    assert not ended.identical


def test_the_record_identifies_base_and_adapter(shared_engine: LocalEngine) -> None:
    model = record_of(shared_engine, ["Hi"], GREEDY)["model"]
    assert len(model["base_sha256"]) == len(model["adapter_sha256"]) == 64
    assert model["base_sha256"] != model["adapter_sha256"]


def test_an_engine_without_replay_refuses_settings_changes() -> None:
    engine = ScriptedEngine("one two three")
    data = record_of(engine, ["Hi"], WARM.changed(seed=1))
    change = {"at_token": 1, "generate_kwargs": {"temperature": 0.0}}
    with pytest.raises(CannotReplay, match="cannot change them at a given token"):
        replay(parse_recorded_answer({**data, "settings_changes": [change]}), Chat(engine, DEFAULT_FORMAT, MemoryHistory()))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": 1}, "LOGGING_VERSION=2"),
        ({"prompt_ids": []}, "redaction"),
        ({"prompt_ids": ["a"]}, "prompt_ids must be a list of token ids"),
        ({"answer_ids": None}, "answer_ids must be a list of token ids"),
        ({"seed": None, "generate_kwargs": {"temperature": 1.0}}, "the seed is not recorded"),
        ({"generate_kwargs": {"temperature": 9}}, "temperature is 9, but must be"),
        ({"generate_kwargs": {"warmth": 9}}, "unknown sampling setting 'warmth'"),
        ({"settings_changes": [{"at_token": -1}]}, "at_token must be a whole number"),
    ],
)  # fmt: skip
def test_the_error_of_an_incomplete_record_says_what_is_missing(changed: dict[str, Any], said: str) -> None:
    data = record_of(ScriptedEngine("one two three"), ["Hi"], GREEDY)
    with pytest.raises(CannotReplay, match=said):
        parse_recorded_answer({**data, **changed})


def test_a_prompt_of_another_model_is_refused(chat: Chat) -> None:
    data = record_of(ScriptedEngine("one two three"), ["Hi"], GREEDY)
    with pytest.raises(CannotReplay, match="cannot take the recorded prompt"):
        replay(parse_recorded_answer({**data, "prompt_ids": [1, 10**7]}), chat)


@pytest.mark.parametrize(
    ("precision", "loaded"),
    [("bf16", ("bf16", "auto")), ("nf4", ("nf4", "auto")), ("nf4+adapter", ("auto", "exact")), ("fp32", ("auto", "auto"))],
)
def test_the_model_is_loaded_in_the_recorded_precision(precision: str, loaded: tuple[str, str]) -> None:
    data = record_of(ScriptedEngine("one two three"), ["Hi"], GREEDY)
    record = parse_recorded_answer({**data, "model": {**data["model"], "precision": precision, "base": "b", "adapter": "a"}})
    chosen = _model(record, None, None, None, _like_recorded(record, "auto", "auto", None) | {"device": "cpu"})
    assert (chosen.base, chosen.adapter, chosen.precision, chosen.adapter_mode) == ("b", "a", *loaded)


@pytest.mark.parametrize(("recorded", "expected"), [("nf4", "nf4"), ("16-bit", "16-bit"), (None, "16-bit")])
def test_the_adapter_is_used_on_the_recorded_form_of_the_base(recorded: str | None, expected: str) -> None:
    """Versions that recorded no form merged every adapter into the original weights."""
    data = record_of(ScriptedEngine("one two three"), ["Hi"], GREEDY)
    model = {**data["model"], "precision": "bf16", "base": "b", "adapter": "a"} | ({"base_form": recorded} if recorded else {})
    record = parse_recorded_answer({**data, "model": model})
    chosen = _model(record, None, None, None, _like_recorded(record, "auto", "auto", None))
    assert chosen.base_form == expected
    named = _model(record, None, None, None, _like_recorded(record, "auto", "nf4", None))
    assert named.base_form == "nf4"


def test_one_turn_of_several_is_selected_by_its_id() -> None:
    lines = [record_of(ScriptedEngine("one two three"), ["Hi"], GREEDY) for _ in range(2)]
    text = "\n".join(json.dumps(each) for each in lines)
    assert read_recorded_answer(text, lines[1]["turn_id"]).turn_id == lines[1]["turn_id"]
    with pytest.raises(CannotReplay, match="holds 2 turns; choose one with --turn"):
        read_recorded_answer(text)
    with pytest.raises(CannotReplay, match="line 1 is not JSON"):
        read_recorded_answer("nonsense")


def test_records_may_hold_other_ends_of_lines() -> None:
    engine = ScriptedEngine("one\u2028two\u2029three\u0085four")
    lines = [record_of(engine, ["Hi\u2028there"], GREEDY) for _ in range(2)]
    text = "\n".join(json.dumps(each, ensure_ascii=False) for each in lines)
    assert read_recorded_answer(text, lines[1]["turn_id"]).turn_id == lines[1]["turn_id"]


def test_the_command_replays_a_turn_of_a_receivers_store(
    shared_engine: LocalEngine, demo_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import closing

    from qlora_chat.receiver.records import read_record
    from qlora_chat.receiver.store import RecordStore

    monkeypatch.setenv("QLORA_CHAT_CACHE", str(demo_cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = record_of(shared_engine, ["What is the capital of France?"], GREEDY)
    url = f"sqlite:///{tmp_path}/logs.db"
    with closing(RecordStore(url, create=True)) as store:
        store.add([read_record(json.dumps(data).encode())])
    done = CliRunner().invoke(app, ["replay", data["turn_id"], "--store", url])
    assert done.exit_code == 0
    assert "identical: all" in done.stdout
    assert re.search(r"precision: recorded fp32, here (nf4\+adapter|bf16)\n", done.stdout), "bf16 without a compiler"
    file = tmp_path / "record.json"
    file.write_text(json.dumps({**data, "answer_ids": [*data["answer_ids"][:3], 9]}))
    differs = CliRunner().invoke(app, ["replay", str(file), "--json"])
    assert differs.exit_code == 1
    assert json.loads(differs.stdout)["first"]["index"] == 3


def test_an_answer_that_went_on_and_ended_at_a_caller_s_stop_text_is_replayed(shared_engine: LocalEngine, chat: Chat) -> None:
    recorder = ScriptedRecorder()
    asking = Chat(shared_engine, DEFAULT_FORMAT, MemoryHistory(), recorder)
    options = AnswerOptions(GREEDY.changed(max_new_tokens=3), stop_texts=("Paris",))
    list(cut := asking.reply(Conversation(), "What is the capital of France?", options))
    list(asking.continue_answer(cut.conversation, options))
    data = json.loads(json.dumps(payload_v2(recorder.turns[-1], "an-id")))
    assert data["stop_texts"] == ["Paris"]
    assert data["answer"].startswith(cut.answer)
    assert len(data["answer_ids"]) <= 3, "the ids of what was added"
    again = replay(parse_recorded_answer(data), chat)
    assert again.identical
