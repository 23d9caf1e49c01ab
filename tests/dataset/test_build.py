"""Rated chats as training data: what is learnt, what is preferred, and counts that add up."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from qlora_chat.cli import app
from qlora_chat.dataset import DatasetError, Example, Exchange, Opinion
from qlora_chat.dataset.build import (
    AFTER_BAD,
    CUT_OFF,
    EMPTY,
    NOT_RATED,
    NOTHING_BETTER,
    RATED_DOWN,
    VOTED_CUT_OFF,
    Dataset,
    build,
    write,
)
from qlora_chat.dataset.sources import from_history, from_receiver
from qlora_chat.history import Feedback
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.history.open import open_history
from qlora_chat.messages import Conversation, Message
from qlora_chat.receiver.store import RecordStore
from qlora_chat.settings import HistorySettings, LogSettings
from tests.history.conftest import add_turn, compared, vote_on
from tests.models.conftest import make_base, own_folders
from tests.receiver.payloads import feedback, record, turn_v1, turn_v2

__all__ = ["make_base", "own_folders"]

UP, DOWN = Opinion(1), Opinion(-1)


def example(*exchanges: Exchange, finish: str = "stop", system: str | None = None, chat: str = "c") -> Example:
    return Example(chat, exchanges[:-1], exchanges[-1], finish, system)


def texts(dataset: Dataset) -> list[list[str]]:
    """The texts of each SFT record."""
    return [[message["content"] for message in each["messages"]] for each in dataset.sft]


def adds_up(dataset: Dataset) -> bool:
    report = dataset.report
    return report["answers"] == report["learnt"] + sum(report["left_out"].values())


def test_a_liked_answer_is_learnt_with_its_context() -> None:
    dataset = build([example(Exchange("Hi", "Hello."), Exchange("And?", "More.", UP), system="Be brief.")])
    assert dataset.sft == (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": "More."},
            ]
        },
    )
    assert dataset.preferences == ()


def test_an_edit_is_learnt_and_preferred_to_the_answer() -> None:
    dataset = build([example(Exchange("Capital?", "Lyon.", Opinion(-1, "Paris.")))])
    assert texts(dataset) == [["Capital?", "Paris."]]
    assert dataset.preferences == (
        {
            "prompt": [{"role": "user", "content": "Capital?"}],
            "chosen": [{"role": "assistant", "content": "Paris."}],
            "rejected": [{"role": "assistant", "content": "Lyon."}],
        },
    )


def test_the_liked_one_of_two_answers_is_preferred() -> None:
    tries = [example(Exchange("Joke?", text, opinion)) for text, opinion in (("Meh.", DOWN), ("Ha!", UP), ("Hm.", Opinion()))]
    dataset = build(tries)
    (pair,) = dataset.preferences
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("Ha!", "Meh.")
    assert dataset.report["left_out"] == {RATED_DOWN: 1, NOT_RATED: 1}
    assert adds_up(dataset)


def test_the_same_question_in_another_chat_is_another_question() -> None:
    bad, good = example(Exchange("Joke?", "Meh.", DOWN), chat="a"), example(Exchange("Joke?", "Ha!", UP), chat="b")
    dataset = build([bad, good])
    assert dataset.preferences == ()
    assert dataset.report["not_in_a_pair"] == {NOTHING_BETTER: 1}


def test_a_dialogue_that_is_a_prefix_of_another_is_left_out() -> None:
    first, second = Exchange("One", "1", UP), Exchange("Two", "2", UP)
    dataset = build([example(first), example(first, second), example(first, second)])
    assert texts(dataset) == [["One", "1", "Two", "2"]]
    assert (dataset.report["learnt"], dataset.report["sft_records"]) == (3, 1)
    assert adds_up(dataset)


@pytest.mark.parametrize(
    ("each", "reason"),
    [
        (example(Exchange("Q", "A")), NOT_RATED),
        (example(Exchange("Q", "A", DOWN)), RATED_DOWN),
        (example(Exchange("Q", "A", UP), finish="length"), CUT_OFF),
        (example(Exchange("Q", "A", UP), finish="partial"), CUT_OFF),
        (example(Exchange("Q", "  ", UP)), EMPTY),
        (example(Exchange("Q", "A", Opinion(1, "  ")), finish="cancelled"), CUT_OFF),
        (example(Exchange("Bad?", "Yes", DOWN), Exchange("Q", "A", UP)), AFTER_BAD),
        (example(Exchange("Nothing?", ""), Exchange("Q", "A", UP)), EMPTY),
    ],
)  # fmt: skip
def test_answers_left_out_are_counted_by_reason(each: Example, reason: str) -> None:
    dataset = build([each])
    assert dataset.sft == ()
    assert dataset.report["left_out"] == {reason: 1}


def test_an_edit_replaces_a_cut_off_answer_also_in_later_contexts() -> None:
    mended = Exchange("Q", "Ba", Opinion(-1, "Better."))
    dataset = build([example(mended, finish="length"), example(mended, Exchange("More", "Yes.", UP))])
    assert texts(dataset) == [["Q", "Better.", "More", "Yes."]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with closing(RecordStore(f"sqlite:///{tmp_path}/logs.db", create=True)) as store:
        yield store


def test_from_a_receivers_store(store: RecordStore) -> None:
    first = turn_v2(history=[["Hi", "Hello."]], messages="Be brief.\n### Human: Hi### Assistant:")
    second = turn_v2(
        history=[["Hi", "Hello."], ["Capital?", "Lyon."]], parent_id=first["turn_id"],
        messages="Be brief.\n### Human: Hi### Assistant: Hello.### Human: Capital?### Assistant:",
    )  # fmt: skip
    retried = turn_v2(
        history=[["Hi", "Hello."], ["Capital?", "Paris."]], parent_id=first["turn_id"], messages=second["messages"]
    )
    sent = [first, second, retried, turn_v1(conversation_id="old")]
    opinions = [
        feedback(first, edited="Hi!"),
        feedback(second, rating=1),
        feedback(second, rating=-1),
        feedback(retried, rating=1),
    ]
    store.add([record(each) for each in [*sent, *opinions]])
    dataset = build(from_receiver(store))
    assert texts(dataset) == [["Be brief.", "Hi", "Hi!", "Capital?", "Paris."]]
    chosen = {(each["chosen"][0]["content"], each["rejected"][0]["content"]) for each in dataset.preferences}
    assert chosen == {("Hi!", "Hello."), ("Paris.", "Lyon.")}
    assert dataset.report["left_out"] == {RATED_DOWN: 1, NOT_RATED: 1}
    assert adds_up(dataset)


def test_from_a_history_with_its_branches() -> None:
    history = MemoryHistory()
    asked = Conversation(messages=(Message("user", "Joke?"),))
    bad = history.save(asked.adding(Message("assistant", "Meh.", (), "stop")))
    good = history.save(Conversation(bad.id, (*asked.messages, Message("assistant", "Ha!", (), "stop")), head=bad.head))
    history.add_feedback(bad.id, Feedback(bad.messages[-1].id, rating=-1))
    history.add_feedback(bad.id, Feedback(good.messages[-1].id, rating=-1))
    history.add_feedback(bad.id, Feedback(good.messages[-1].id, rating=1))
    dataset = build(from_history(history))
    assert texts(dataset) == [["Joke?", "Ha!"]]
    (pair,) = dataset.preferences
    assert pair["rejected"][0]["content"] == "Meh."


def test_a_vote_becomes_pairs_and_all_bad_is_a_thumb_down_for_each() -> None:
    history = MemoryHistory()
    talk, bad = compared(history, "Meh.", "Ha!", "Hm."), compared(history, "x", "y")
    assert history.add_vote(talk.id, vote_on(history, talk, 0)), "changed by the next one on the same answers"
    assert history.add_vote(talk.id, vote_on(history, talk, 1))
    assert history.add_vote(bad.id, replace(vote_on(history, bad, None), verdict="bad"))
    dataset = build(from_history(history))
    pairs = [(each["chosen"][0]["content"], each["rejected"][0]["content"]) for each in dataset.preferences]
    assert pairs == [("Ha!", "Meh."), ("Ha!", "Hm.")]
    assert dataset.sft == (), "better than the others need not be good"
    assert dataset.report["left_out"] == {NOT_RATED: 5, RATED_DOWN: 2}, "with the two that were never finished"
    cut = replace(example(Exchange("Joke?", "Ha"), finish="length"), beats=("Meh.",))
    assert build([cut]).preferences == ()
    assert build([cut]).report["not_in_a_pair"] == {VOTED_CUT_OFF: 1}


def test_the_command_writes_files_and_reports_what_it_left_out(store: RecordStore, tmp_path: Path) -> None:
    liked = turn_v2(history=[["Wie heißt du?", "Lumi. \ud800"]])
    store.add([record(each) for each in (liked, feedback(liked, rating=1), turn_v2())])
    out = tmp_path / "new" / "data"
    arguments = ["dataset", "build", "--store", f"sqlite:///{tmp_path}/logs.db", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert "2 answers: 1 to learn from" in done.stdout
    assert f"1 left out: {NOT_RATED}" in done.stdout
    (line,) = (out / "sft.jsonl").read_text().splitlines()
    assert json.loads(line)["messages"][0] == {"role": "user", "content": "Wie heißt du?"}
    assert json.loads((out / "report.json").read_text())["learnt"] == 1
    assert {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()} == {0o600}
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, DatasetError)
    assert "is not empty" in str(again.exception)


def test_the_command_counts_stored_records_that_cannot_be_read(store: RecordStore, tmp_path: Path) -> None:
    store.add([record(turn_v2()) for _ in range(3)])
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE records SET body = '{}' WHERE number = 2"))
    arguments = ["dataset", "build", "--store", f"sqlite:///{tmp_path}/logs.db"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "data")])
    assert "1 stored record skipped as unreadable" in done.stdout
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "again"), "--json"])
    report = json.loads(done.stdout)
    assert (report["answers"], report["unreadable_records"]) == (2, 1)


def test_the_command_reads_a_chats_own_history(tmp_path: Path) -> None:
    from qlora_chat.history.open import open_history
    from qlora_chat.settings import HistorySettings, LogSettings

    url = f"sqlite:///{tmp_path}/chats.db"
    with closing(open_history(HistorySettings(url), LogSettings())) as opened:
        messages = (Message("user", "Capital?"), Message("assistant", "Lyon.", (), "stop"))
        saved = opened.store.save(Conversation(messages=messages))
        opened.store.add_feedback(saved.id, Feedback(messages[1].id, rating=-1, edited="Paris."))
    out = tmp_path / "data"
    done = CliRunner().invoke(app, ["dataset", "build", "--history", url, "--out", str(out), "--json"])
    assert json.loads(done.stdout)["preference_pairs"] == 1
    assert json.loads((out / "sft.jsonl").read_text())["messages"][1]["content"] == "Paris."
    neither = CliRunner().invoke(app, ["dataset", "build", "--out", str(tmp_path / "other")])
    assert "which chats?" in str(neither.exception)


def test_train_reads_the_records(tmp_path: Path) -> None:
    from qlora_chat.training.data.dialogues import load_dialogues

    exchanges: Any = (Exchange("Hi", "Hello.", UP), Exchange("And?", "More.\n", Opinion(None, "Less. ")))
    write(build([example(*exchanges, system="Be brief.")]), tmp_path / "data")
    pair = Exchange("Why?", "No reason.", Opinion(None, "Because it is so."))
    write(build([example(pair, system="Be brief.")]), tmp_path / "pairs")
    preferred = load_dialogues([str(tmp_path / "pairs" / "preferences.jsonl")], print)
    assert preferred.formats == {"preference": 1}
    assert [message.content for message in preferred.train[0].conversation.messages] == ["Why?", "Because it is so."]
    dialogues = load_dialogues([str(tmp_path / "data")], print)
    (conversation,) = (each.conversation for each in dialogues.train)
    assert dialogues.formats == {"messages": 1}
    assert conversation.system == "Be brief."
    assert [message.content for message in conversation.messages] == ["Hi", "Hello.", "And?", "Less."]


@pytest.mark.slow
def test_an_adapter_is_trained_on_rated_chats(tmp_path: Path, make_base: Callable[..., Path]) -> None:
    url, data, out = f"sqlite:///{tmp_path}/chats.db", tmp_path / "data", tmp_path / "adapter"
    with closing(open_history(HistorySettings(url), LogSettings())) as opened:
        for number in range(8):
            talk = add_turn(opened.store, Conversation(), f"What is {number} plus one?", f"It is {number + 1}.")
            opened.store.add_feedback(talk.id, Feedback(talk.messages[-1].id, 1))
    assert CliRunner().invoke(app, ["dataset", "build", "--history", url, "--out", str(data)]).exit_code == 0
    small = ["--r", "4", "--alpha", "8", "--batch", "4", "--max-length", "48", "--steps", "2", "--device", "cpu"]
    command = ["train", "--base", str(make_base()), "--data", str(data), "--out", str(out), *small]
    done = subprocess.run([sys.executable, "-m", "qlora_chat", *command], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "adapter_model.safetensors").is_file()
