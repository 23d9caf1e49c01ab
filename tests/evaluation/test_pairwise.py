"""The blind comparison: order, preferences, the count; and runs of questions and perplexity on the demo."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from qlora_chat.evaluation import EvaluationError
from qlora_chat.evaluation.held_out import read_text
from qlora_chat.evaluation.pairwise import (
    AnswerPair,
    ask_judge,
    compare,
    generate_answers,
    read_preferences,
    read_prompts,
    shuffle_pairs,
    write_sheet,
)
from qlora_chat.evaluation.perplexity import measure
from qlora_chat.evaluation.questions import HAND_WRITTEN, Question
from qlora_chat.evaluation.report import plot_comparison, plot_perplexity, plot_questions, read_earlier, write
from qlora_chat.evaluation.run import run_questions
from qlora_chat.models import LoadedModel
from qlora_chat.models.adapter.merge_loss import builtin_dialogues
from qlora_chat.prompt import DEFAULT_FORMAT
from tests.fakes import ScriptedEngine, scripted_chat

PROMPTS = [f"prompt {number}" for number in range(40)]


def test_the_order_is_random_but_fixed_by_the_seed_and_the_winner_is_the_model() -> None:
    pairs = shuffle_pairs(PROMPTS, ["from A"] * 40, ["from B"] * 40, seed=3)
    assert 8 < sum(pair.first == "A" for pair in pairs) < 32
    assert pairs == shuffle_pairs(PROMPTS, ["from A"] * 40, ["from B"] * 40, seed=3)
    assert pairs != shuffle_pairs(PROMPTS, ["from A"] * 40, ["from B"] * 40, seed=4)
    report = compare(pairs, ("a", "b"), lambda _, pair: "1" if pair.answers[0] == "from A" else "2")
    assert (report.wins_a, report.wins_b, report.ties) == (40, 0, 0)
    assert report.p_value < 0.0001


def test_equal_answers_are_a_tie_without_asking() -> None:
    pairs = shuffle_pairs(["x", "y"], ["same", "one"], ["same", "two"], seed=0)
    seen: list[AnswerPair] = []
    report = compare(pairs, ("a", "b"), lambda _, pair: seen.append(pair) or "=")
    assert [pair.prompt for pair in seen] == ["y"]
    assert (report.wins_a, report.wins_b, report.ties, report.p_value) == (0, 0, 2, 1.0)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\v", "\x1e"])
def test_a_prompt_and_a_sheet_may_hold_other_ends_of_lines(mark: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": f"one{mark}two"}, ensure_ascii=False) + "\n" + json.dumps({"prompt": "x"}))
    texts = read_prompts(prompts)
    assert texts == [f"one{mark}two", "x"]
    write_sheet(tmp_path / "sheet.jsonl", shuffle_pairs(texts, ["a", "b"], ["c", "d"], seed=0))
    assert read_prompts(tmp_path / "sheet.jsonl") == texts


def test_a_file_of_preferences_must_match_the_pairs(tmp_path: Path) -> None:
    file = tmp_path / "choices.txt"
    file.write_text("1\n=\n2\n")
    assert list(read_preferences(file, 3)) == ["1", "=", "2"]
    with pytest.raises(EvaluationError, match="3 choices, and there are 4 pairs"):
        list(read_preferences(file, 4))
    file.write_text("1\nb\n2\n")
    with pytest.raises(EvaluationError, match="line 2: 'b' is no choice"):
        list(read_preferences(file, 3))


def test_the_judge_sees_both_answers_and_is_asked_until_the_input_is_valid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["A", "2"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert ask_judge(0, AnswerPair("Why?", ("since", "so"), "B")) == "2"
    shown = capsys.readouterr().err
    assert "[1] since" in shown
    assert "[2] so" in shown
    assert "'B'" not in shown


def test_a_sheet_does_not_reveal_the_models(tmp_path: Path) -> None:
    write_sheet(tmp_path / "sheet.jsonl", [AnswerPair("Why?", ("since", "so"), "B")])
    assert json.loads((tmp_path / "sheet.jsonl").read_text()) == {"prompt": "Why?", "1": "since", "2": "so"}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [("p.txt", "\n", "holds no prompt"), ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}', "line 2"), ("p.jsonl", "{", "line 1")],
)
def test_bad_prompts_are_named(name: str, text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EvaluationError, match=problem):
        read_prompts(tmp_path / name)


def test_prompts_come_from_lines_or_from_questions(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("What?\n\nWhy?\n")
    assert read_prompts(tmp_path / "p.txt") == ["What?", "Why?"]
    assert len(read_prompts(HAND_WRITTEN)) == 200


def test_answers_are_generated_one_by_one_with_a_seed_each() -> None:
    engine = ScriptedEngine(lambda prompt: prompt.text.split("### ")[1].upper())
    assert generate_answers(scripted_chat(engine), ["one", "two"], seed=7) == ["HUMAN: ONE", "HUMAN: TWO"]
    assert [stream.sampling.seed for stream in engine.streams] == [7000, 7001]
    assert {stream.sampling.temperature for stream in engine.streams} == {0.7}


# --- runs and plots ---------------------------------------------------------------------------------------------------


def test_questions_run_greedily_and_with_each_seed_and_earlier_turns_stay(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda prompt: "Anna" if "My name is Anna" in prompt.text else "No idea")
    questions = [
        Question("m", "memory", ("My name is Anna.", "Who am I?"), says=("Anna",)),
        Question("f", "fact", ("Which city?",), says=("Oslo",)),
    ]
    report = run_questions(scripted_chat(engine), questions, HAND_WRITTEN, range(2), lambda _: None)
    assert [run.seed for run in report.runs] == [None, 0, 1]
    assert all((run.score.right, run.score.total) == (1, 2) for run in report.runs)
    assert report.runs[0].asked[0].answers == ("Anna", "Anna")
    assert engine.streams[0].sampling.temperature == 0
    write(tmp_path, "questions", report, plot_questions)
    plot_questions(asdict(report), tmp_path / "questions.png", before=read_earlier(tmp_path / "questions.json"))
    assert (tmp_path / "questions.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(EvaluationError, match=re.escape("is no questions.json")):
        read_earlier(HAND_WRITTEN)


def test_perplexity_counts_the_tokens_of_the_training_loss(demo_fp32: LoadedModel, tmp_path: Path) -> None:
    text = builtin_dialogues(demo_fp32.tokenizer, demo_fp32.tokenizer.bos_id, 512)
    report = measure(demo_fp32, text, "own")
    assert report.tokens == len(text.targets)
    assert 5 < report.perplexity < 60
    assert min(report.passages) < report.nats < max(report.passages)
    nonsense = tmp_path / "nonsense.txt"
    nonsense.write_text("zebra of of 99 the purple (( sings quickly nor " * 40)
    plain = tmp_path / "plain.txt"
    plain.write_text("Once upon a time there was a little girl who lived in a house near the forest. " * 20)
    first, second = (
        measure(demo_fp32, read_text(str(each), print).tokenize(demo_fp32.tokenizer, 2, 256, 500, DEFAULT_FORMAT), "x")
        for each in (nonsense, plain)
    )
    assert first.perplexity > second.perplexity, "a story is less of a surprise than a list of words"
    write(tmp_path, "perplexity", report, plot_perplexity)
    write(tmp_path, "ab", compare(shuffle_pairs(["x"], ["a"], ["b"], 0), ("a", "b"), lambda *_: "1"), plot_comparison)
    assert (tmp_path / "perplexity.png").stat().st_size > 1000
    assert (tmp_path / "ab.png").stat().st_size > 1000
