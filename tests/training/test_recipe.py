"""Recipes hold the published numbers, and flags go over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_chat.settings import SettingsError
from qlora_chat.training.recipe import LINEARS, TrainSettings, read_recipe, recipe_names, settings_from


def test_guanaco_is_what_was_published() -> None:
    made = settings_from(read_recipe("guanaco-7b"), {})
    assert (made.base, made.data) == ("huggyllama/llama-7b", ("timdettmers/openassistant-guanaco",))
    assert (made.r, made.alpha, made.dropout, made.targets) == (64, 16, 0.1, LINEARS)
    assert (made.optimizer, made.learning_rate, made.schedule, made.warmup) == ("paged_adamw_32bit", 2e-4, "constant", 0.03)
    assert (made.beta2, made.max_grad_norm, made.weight_decay) == (0.999, 0.3, 0.0)
    assert (made.batch, made.steps, made.max_length, made.loss) == (16, 1875, 512, "all")
    assert (made.checkpointing, made.group_by_length, made.compute) == ("on", True, "bf16")
    assert (made.seed, made.data_seed) == (0, 42)


def test_every_recipe_that_is_shipped_can_be_used() -> None:
    assert recipe_names() == ["demo", "guanaco-7b", "smollm2"]
    for name in recipe_names():
        assert settings_from(read_recipe(name), {"data": ["d.jsonl"]}).base


def test_flags_override_a_recipe() -> None:
    made = settings_from(read_recipe("demo"), {"data": ["d.jsonl"], "steps": 7, "r": 8, "base": None})
    assert (made.steps, made.r, made.base) == (7, 8, "demo")


def test_epochs_that_were_asked_for_replace_a_recipes_steps() -> None:
    assert settings_from(read_recipe("guanaco-7b"), {"epochs": 3.0}).steps is None


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: some/base\ndata: d.jsonl\ncheckpointing: off\nlearning_rate: 3e-4\ntargets: [v_proj, q_proj]\n")
    made = settings_from(read_recipe(str(path)), {})
    assert (made.checkpointing, made.learning_rate, made.targets) == ("off", 3e-4, ("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("r", 0, "r is 0, but must be a whole number from 1 to 1024"),
        ("r", 2.5, "whole number"),
        ("r", True, "whole number"),
        ("dropout", float("nan"), "dropout is nan"),
        ("learning_rate", "fast", "learning_rate is 'fast'"),
        ("loss", "some", "must be one of answers, all"),
        ("targets", ["head"], "targets names head"),
        ("group_by_length", "yes please", "true or false"),
        ("prompt_format", "claude", "unknown prompt format"),
    ],
)
def test_a_bad_value_is_named_with_its_range(field: str, value: object, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        TrainSettings(**{field: value})  # type: ignore[arg-type]


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("base: b\ndata: d\nlearning_rat: 1\n")
    with pytest.raises(SettingsError, match="unknown training setting 'learning_rat'"):
        settings_from(read_recipe(str(path)), {})
    with pytest.raises(SettingsError, match="demo, guanaco-7b"):
        read_recipe("nonesuch")


def test_a_run_without_base_or_data_says_what_to_give() -> None:
    with pytest.raises(SettingsError, match="--base"):
        settings_from({}, {"data": ["d"]})
    with pytest.raises(SettingsError, match="--data"):
        settings_from({}, {"base": "demo"})


BOMB = "\n".join(["- &n0 [x, x]", *(f"- &n{level} [{', '.join([f'*n{level - 1}'] * 10)}]" for level in range(1, 9))])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "repeats a part with an alias"),
        ("base: " + "[" * 20_000, "nested too deep"),
        ("base: " + "x" * 100_000, "longer than 64 KiB"),
        ("steps: " + "9" * 5000, "cannot be read as YAML"),
        ("steps: 0x" + "F" * 5000, "steps is a number with thousands of digits"),
        ("steps: 1e400", "steps is inf"),
        ("steps: 1000001", "from 1 to 1e\\+06"),
        ("loss: " + "x" * 10_000, "must be one of answers, all"),
        ("learning_rate: [" + "1, " * 10_000 + "1]", "must be a number"),
        ("x" * 1000 + ": 1", "unknown training setting"),
        ("base: !" + "x" * 10_000 + " 1", "cannot be read as YAML"),
    ],
)
def test_a_recipe_that_means_harm_is_refused_in_few_words(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=told) as raised:
        settings_from(read_recipe(str(path)), {})
    assert len(str(raised.value)) < 1000
