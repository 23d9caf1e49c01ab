"""The scripts that make the data of SmolLM2's adapter: dialogues, the check for questions in them, the rule, the parts."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.dialogue_formats.dialogue import parse_dialogue
from qlora_chat.evaluation.questions import Answer, Question, read_questions

DEMO = Path(__file__).parents[1] / "demo"
sys.path.append(str(DEMO))

import carry_smollm2  # noqa: E402
import synth_smollm2  # noqa: E402
import train_smollm2  # noqa: E402
from check_overlap import Overlaps  # noqa: E402


@pytest.fixture(scope="module")
def made() -> list[dict[str, Any]]:
    return list(synth_smollm2.dialogues(3000, seed=7))


# --- dialogues --------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_dialogues_again_and_another_gives_others(made: list[dict[str, Any]]) -> None:
    assert list(synth_smollm2.dialogues(50, seed=7)) == made[:50]
    assert list(synth_smollm2.dialogues(50, seed=8)) != made[:50]


def test_every_dialogue_can_be_trained_on_and_no_placeholder_is_left(made: list[dict[str, Any]]) -> None:
    for record in made:
        parse_dialogue(record)
        texts = [message["content"] for message in record["messages"] if "```" not in message["content"]]
        assert not any(mark in text for text in texts for mark in ("{v}", "{k}", "{t}", "{N}", "{g}", "|"))


def test_the_dialogues_are_diverse(made: list[dict[str, Any]]) -> None:
    asked = Counter(message["content"] for record in made for message in record["messages"] if message["role"] == "user")
    assert len(asked) > 0.6 * asked.total()
    assert asked.most_common(1)[0][1] < 0.02 * asked.total()


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("human", {"human_life": False}), ("unknown", {"admits": True})],
)
def test_honest_answers_satisfy_the_rule_for_them(made: list[dict[str, Any]], kind: str, rule: dict[str, Any]) -> None:
    question = Question("x", "human", ("Well?",), **rule)
    answers = [record["messages"][-1]["content"] for record in made if record["kinds"] == [kind]]
    assert len(answers) > 20
    assert not [answer for answer in answers if not question.is_right(Answer(answer, "stop"))]


# --- the check for questions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("please NAME the capital city of hungary", 1.0),
        ("Hello. Please name the capital city of Hungary. Thanks!", 1.0),
        ("Please, name the capital city of Peru.", 0.67),
        ("What is the capital of Hungary?", None),
    ],
)
def test_a_question_is_found_word_for_word_or_nearly(text: str, share: float | None) -> None:
    question = Question("fact-01", "fact", ("Please name the capital city of Hungary.",), says=("Budapest",))
    found = list(Overlaps([question]).find([{"role": "user", "content": text}]))
    assert max((each.share for each in found), default=None) == share


def test_few_of_our_own_dialogues_come_near_a_question(made: list[dict[str, Any]]) -> None:
    """mix_smollm2.py leaves those out; if there were many, the tables would have been written to the questions."""
    overlaps = Overlaps(read_questions())
    assert sum(any(True for _ in overlaps.find(record["messages"])) for record in made) < 0.01 * len(made)


# --- the rule ---------------------------------------------------------------------------------------------------------


def run(
    name: str, first: tuple[int, float], new: tuple[int, float], loss: float = 1.0, size: int | None = 19_000_000
) -> dict[str, Any]:
    scores = {key: {"greedy": greedy, "sampled": mean} for key, (greedy, mean) in (("first", first), ("new", new))}
    return {"run": name, "adapter_bytes": size, "held_out_loss": loss, **scores}


def test_the_new_questions_select_and_the_first_decide_whether_to_bundle() -> None:
    runs = [run("a", (90, 88.0), (70, 70.0)), run("b", (79, 75.0), (75, 70.0)), run("c", (60, 60.0), (75, 70.0), loss=1.1)]
    ranked = train_smollm2.rank([*runs, run("base", (0, 0.0), (97, 97.0), size=None), {"run": "d", "adapter_bytes": 1}])
    assert [each["run"] for each in ranked] == ["b", "c", "a"]
    assert train_smollm2.verdict(ranked)["bundle"]


@pytest.mark.parametrize("runs", [[], [run("a", (77, 80.0), (90, 90.0))], [run("a", (80, 80.0), (90, 90.0), size=20_000_001)]])
def test_nothing_is_bundled_below_the_targets_or_above_the_size(runs: list[dict[str, Any]]) -> None:
    assert not train_smollm2.verdict(train_smollm2.rank(runs))["bundle"]


# --- parts ------------------------------------------------------------------------------------------------------------


def test_what_is_packed_in_parts_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PACKED", "CARRY", "CARRIED"):
        monkeypatch.setattr(carry_smollm2, name, tmp_path / name)
    monkeypatch.setattr(carry_smollm2, "PACKAGES", ("gguf",))
    data, base = tmp_path / "own.jsonl", tmp_path / "base"
    data.write_text("x" * 300_000)
    base.mkdir()
    (base / "config.json").write_text("{}")
    rows = carry_smollm2.pack([data, base], part_mib=0.25, cuda="130")
    assert json.loads((tmp_path / "PACKED" / "manifest.json").read_text()) == rows
    for index in range(len(rows)):
        carry_smollm2.stage(index)
        told = carry_smollm2.join()
        assert ("missing" in told) is (index < len(rows) - 1)
    assert (tmp_path / "CARRIED" / "own.jsonl").read_text() == data.read_text()
    assert (tmp_path / "CARRIED" / "base" / "config.json").is_file()
    assert (tmp_path / "CARRIED" / "site" / "gguf" / "__init__.py").is_file()
    with pytest.raises(carry_smollm2.CarryError, match="no part 99"):
        carry_smollm2.stage(99)
