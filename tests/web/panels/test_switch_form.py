"""What the form means, and what it says of a switch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_chat.doctor import Finding
from qlora_chat.models.locate import parts_of
from qlora_chat.serving.model_changes import ModelChange
from qlora_chat.settings import ModelSettings, SettingsError
from qlora_chat.web.panels.switch_form import EXACT, NONE, OWN, findings, progress, settings_apart, settings_of, values_of
from tests.fakes import SCRIPTED_INFO

NAMED = ModelSettings(base="b", adapters=(("mine", "x"), ("before", "y")))
CURRENT = ModelSettings(device="cpu", slots=4, prompt_format="chatml", base="b", adapter="a")


def test_the_form_begins_with_the_loaded_model_and_changes_nothing_of_it() -> None:
    for settings in (CURRENT, ModelSettings(model="demo"), ModelSettings(base="b", adapter="a", adapter_mode="exact"), NAMED):
        assert settings_of(settings, *values_of(settings)) == settings


def test_a_model_is_named_by_base_adapter_and_precision_and_the_rest_of_the_settings_stays() -> None:
    def chosen(*values: str) -> ModelSettings:
        return settings_of(CURRENT, *values)

    assert chosen("smollm2", OWN, "auto") == ModelSettings(model="smollm2", device="cpu", slots=4)
    assert chosen("demo", NONE, "nf4") == ModelSettings(base="demo", precision="nf4", device="cpu", slots=4)
    assert chosen(" me/base ", " /runs/mine ", EXACT) == ModelSettings(
        base="me/base", adapter="/runs/mine", adapter_mode="exact", device="cpu", slots=4
    )
    assert chosen("guanaco-7b", "mine", "auto").base == "huggyllama/llama-7b"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("", OWN, "auto"), "Base is empty"),
        (("me/base", OWN, "auto"), "has no adapter of its own"),
        (("demo", NONE, "four bits"), "precision"),
        (("me/base", NONE, EXACT), "needs --adapter"),
    ],
)
def test_what_names_no_model_is_refused_with_the_reason(values: tuple[str, str, str], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        settings_of(CURRENT, *values)


def test_reports_cannot_be_markup() -> None:
    found = findings([Finding("fine", "<b>good"), Finding("blocker", "bad", "<i>why", "mend")])
    assert "✓</b> &lt;b&gt;good" in found
    assert "✗</b> bad<span>&lt;i&gt;why; mend</span>" in found
    change = ModelChange(CURRENT, lines=["<u>merging"])
    assert "&lt;u&gt;merging" in progress(change)
    change.state, change.problem = "failed", "<s>it failed"
    assert 'role="alert" class="form-problem">&lt;s&gt;it failed' in progress(change)
    change.state, change.seconds = "done", 2.34
    assert "Done in 2.3 s" in progress(change)


def test_a_named_adapter_and_that_of_a_model_with_its_own_are_kept_apart() -> None:
    chosen = ModelSettings(base="b", adapter="a", precision="bf16", slots=3)
    apart = settings_apart(chosen, replace(SCRIPTED_INFO, adapter="my adapter (new)"))
    assert apart == ModelSettings(base="b", adapters=(("my-adapter-new", "a"),), slots=3)
    own = settings_apart(ModelSettings(), replace(SCRIPTED_INFO, name="Llama-Lumi-45M (demo)"))
    assert own
    assert (own.base, own.adapters[0][1]) == parts_of("demo")


def test_where_nothing_would_change_there_are_none() -> None:
    assert settings_apart(ModelSettings(base="b"), replace(SCRIPTED_INFO, adapter=None)) is None
    assert settings_apart(ModelSettings(base="b"), replace(SCRIPTED_INFO, adapters=("a",))) is None
    assert settings_apart(ModelSettings(), SCRIPTED_INFO) is None, "a model whose files are not known"
