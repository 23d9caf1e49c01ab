"""Statistics, plots, queries and exports of a known set of records."""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from typer.testing import CliRunner, Result

from qlora_chat.cli import app
from qlora_chat.errors import UserError
from qlora_chat.receiver.page import _turns_per_day, page
from qlora_chat.receiver.stats import distribution, statistics
from qlora_chat.receiver.store import RecordFilter, RecordStore
from qlora_chat.receiver.turns import turns
from tests.receiver.payloads import feedback, record, tombstone, turn_v1, turn_v2


def model(adapter: str | None) -> dict[str, Any]:
    return {**turn_v2()["model"], "adapter": adapter}


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/logs.db"


@pytest.fixture
def store(sqlite_url: str) -> Iterator[RecordStore]:
    """Four turns on two days: two of an adapter, one of the base alone, one of version 1; and one that was erased."""
    kwargs = turn_v1()["generate_kwargs"]
    liked = turn_v2(turn_id="liked", model=model("lumi"), ttft_ms=10.0, history=[["Say hi", "Hi there."]])
    mended = turn_v2(
        turn_id="mended", conversation_id="other", model=model("lumi"), ttft_ms=30.0, finish_reason="length",
        finished_at="2026-11-25T01:00:00+01:00", generate_kwargs={**kwargs, "temperature": 0.70001},
    )  # fmt: skip
    plain = turn_v2(turn_id="plain", model=model(None), ttft_ms=20.0)
    sent = [
        liked, mended, plain, turn_v1(conversation_id="old"), turn_v2(conversation_id="gone"),
        feedback(liked, rating=-1), feedback(liked, rating=1, comment="Just \x1b[31mright."),
        feedback(mended, rating=-1, edited="Better."), tombstone("gone"),
    ]  # fmt: skip
    with closing(RecordStore(sqlite_url, create=True)) as store:
        store.add([record(each) for each in sent])
        yield store


def test_the_numbers_are_those_of_the_records(store: RecordStore) -> None:
    counted = statistics(store)
    assert (counted["turns"], counted["conversations"], counted["erased_conversations"]) == (4, 3, 1)
    assert counted["versions"] == {"1": 1, "2": 3}
    assert counted["days"] == [
        {"day": "2026-11-24", "turns": 3, "conversations": 2},
        {"day": "2026-11-25", "turns": 1, "conversations": 1},
    ]
    assert counted["measures"]["ttft_ms"]["count"] == 3
    assert counted["measures"]["ttft_ms"]["median"] == 20.0
    assert counted["measures"]["answer_characters"]["count"] == 4
    assert counted["finish_reasons"] == {"stop": 2, "not recorded (version 1)": 1, "length": 1}
    assert counted["turns_with_feedback"] == 2
    assert counted["feedback_by_temperature"] == [
        {"temperature": 0.5, "turns": 3, "up": 1, "down": 0, "edited": 0, "commented": 1},
        {"temperature": 0.7, "turns": 1, "up": 0, "down": 1, "edited": 1, "commented": 0},
    ]
    assert counted["feedback_by_adapter"] == [
        {"adapter": "lumi", "turns": 2, "up": 1, "down": 1, "edited": 1, "commented": 1},
        {"adapter": "none: the base alone", "turns": 1, "up": 0, "down": 0, "edited": 0, "commented": 0},
        {"adapter": "not recorded (version 1)", "turns": 1, "up": 0, "down": 0, "edited": 0, "commented": 0},
    ]
    json.dumps(counted, allow_nan=False)


def test_a_histogram_holds_every_value() -> None:
    statistic = distribution(Counter([*map(float, range(1000)), 1e9]))
    assert statistic
    assert (statistic["count"], statistic["max"], statistic["median"]) == (1001, 1e9, 500.0)
    assert sum(statistic["histogram"]["counts"]) == 1001
    assert statistic["histogram"]["edges"][-1] < 1000, "one huge value does not flatten the picture"
    assert distribution({}) is None


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).geometric(0.05, 777).astype(float)
    statistic = distribution(Counter(values.tolist()))
    assert statistic
    expected = np.percentile(values, (10, 50, 90, 99))
    assert [statistic[name] for name in ("p10", "median", "p90", "p99")] == pytest.approx(expected.tolist())
    assert statistic["mean"] == pytest.approx(values.mean())


def test_the_database_counts_and_no_turn_is_loaded(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RecordStore, "rows")
    store.add([record(turn_v2(conversation_id=f"talk-{number}")) for number in range(200)])
    texts: list[str] = []
    counted = store.counted
    monkeypatch.setattr(store, "counted", lambda query: texts.append(str(query)) or counted(query))
    assert statistics(store)["turns"] == 204
    assert len(texts) == 4, "each look goes through the records a few times, not once a number"
    assert not any("records.body" in text for text in texts)


def test_the_page_shows_a_picture_of_each_and_no_script(store: RecordStore) -> None:
    html = page(statistics(store))
    assert html.count("<svg ") == 8
    for text in ("Turns a day", "Time to first token", "Speed", "Feedback by adapter", "Finish reasons", ">lumi<", ">0.7<"):
        assert text in html
    assert "<script" not in html
    assert "Hi there." not in html, "numbers only"


def test_names_on_the_page_are_names_and_nothing_else(sqlite_url: str) -> None:
    evil = turn_v2(finish_reason="<script>alert(1)</script>", model=model(r"$\frac{1$<img src=x>"))
    with closing(RecordStore(sqlite_url, create=True)) as store:
        store.add([record(evil), record(feedback(evil, rating=1))])
        html = page(statistics(store))
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


def test_an_empty_store_says_what_to_do(sqlite_url: str) -> None:
    with closing(RecordStore(sqlite_url, create=True)) as store:
        assert "LOGGING_URL" in page(statistics(store))


def test_turns_are_filtered_by_text_and_rating(store: RecordStore) -> None:
    def turn_ids(**options: Any) -> list[str | None]:
        return [turn.row["turn_id"] for turn in turns(store, RecordFilter(), **options)]

    assert turn_ids(text="HI THERE") == ["liked"]
    assert turn_ids(rating="up") == ["liked"], "the newest counts"
    assert turn_ids(rating="down") == turn_ids(rating="edited") == ["mended"]
    assert turn_ids(rating="commented") == ["liked"]
    assert len(turn_ids()) == 4


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["logs", *arguments])


def test_the_commands_say_the_same(store: RecordStore, sqlite_url: str) -> None:
    counted = run("stats", "--store", sqlite_url, "--json")
    assert json.loads(counted.stdout) == json.loads(json.dumps(statistics(store)))
    shown = run("stats", "--store", sqlite_url).stdout
    assert "4 turns in 3 conversations (1 erased), 2 with feedback" in shown
    listed = run("query", "--store", sqlite_url, "--rating", "up").stdout
    assert "thumbs up" in listed
    assert "> Hi there." in listed
    assert "\x1b" not in listed
    (line,) = run("query", "--store", sqlite_url, "--turn", "mended", "--json").stdout.splitlines()
    assert json.loads(line)["feedback"] == {"rating": -1, "edited": "Better.", "comment": None}
    assert len(run("query", "--store", sqlite_url, "--limit", "2", "--json").stdout.splitlines()) == 2


def test_an_export_is_a_table_with_a_row_a_turn(store: RecordStore, sqlite_url: str, tmp_path: Path) -> None:
    from pyarrow import parquet

    file = tmp_path / "turns.parquet"
    done = run("export", "--store", sqlite_url, "--parquet", str(file))
    assert done.stdout == f"wrote 4 turns to {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    rows = {row["turn_id"]: row for row in parquet.read_table(file).to_pylist()}
    assert rows["liked"]["question"] == "Say hi"
    assert (rows["liked"]["rating"], rows["liked"]["seed"], rows["liked"]["completion_tokens"]) == (1, 7, 2)
    assert rows["mended"]["edited"] == "Better."
    assert rows[None]["ttft_ms"] is None, "version 1"
    assert rows["plain"]["at"].isoformat() == "2026-11-24T08:08:07+00:00"
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stats", "--store", "sqlite:////nowhere/x.db"), "there is no store at /nowhere/x.db"),
        (
            ("query", "--store", "STORE", "--rating", "great"),
            "--rating is 'great', but must be one of up, down, edited, commented",
        ),
        (("query", "--store", "STORE", "--since", "yesterday"), "--since is 'yesterday'"),
        (("export", "--store", "STORE", "--parquet", "/nowhere/x.parquet"), "/nowhere/x.parquet cannot be written"),
        (("serve", "--store", "STORE", "--host", "0.0.0.0"), "LOGGING_TOKEN"),
        (("serve", "--store", "STORE", "--tls-cert", __file__), "cannot be used"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    store: RecordStore, sqlite_url: str, arguments: tuple[str, ...], message: str
) -> None:
    done = run(*(sqlite_url if each == "STORE" else each for each in arguments))
    assert done.exit_code == 1
    assert message in str(done.exception)
    assert isinstance(done.exception, UserError)


@pytest.mark.parametrize("values", [[1e12], [1e12, 1e12 - 1e-4], [-1e12, 1e12], [0, 1e-300]])
def test_any_number_that_is_taken_has_a_histogram(values: list[float]) -> None:
    counted = distribution(Counter(values))
    assert counted is not None
    assert sum(counted["histogram"]["counts"]) == len(values)


def test_the_plot_of_days_has_at_most_ninety_whatever_the_clocks_say(store: RecordStore) -> None:
    for moment in ("1970-01-01T00:00:00", "2098-01-01T00:00:00", "2026-11-24T09:08:07"):
        store.add([record(turn_v1(timestamp=moment))])
    figure = Figure()
    axes = figure.add_subplot()
    _turns_per_day(axes, statistics(store))
    assert len(axes.patches) == 90
    newest = axes.patches[-1]
    assert isinstance(newest, Rectangle)
    assert newest.get_height() == 1, "the newest day that has come"
