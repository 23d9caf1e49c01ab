"""The Train panel in a real browser: a dropped file is checked, trained on, and its adapter answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from qlora_chat.settings import ServeSettings
from tests.fakes import ScriptedEngine, ScriptedSwitch
from tests.models.conftest import tiny_nf4_base
from tests.training.conftest import few_dialogues
from tests.web.driving import opened, ready
from tests.web.serving import serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
__all__ = ["few_dialogues", "tiny_nf4_base"]


def fill(page: Page, name: str, value: str) -> None:
    field = page.locator(f"#{name} :is(input, textarea)").first
    field.fill(value)
    field.press("Enter")


def open_train(page: Page) -> None:
    page.locator("#open-model[aria-controls=model]").click()
    page.get_by_role("tab", name="Train").click()
    expect(page.locator("#train-start")).to_be_visible()


def test_a_file_is_checked_trained_on_and_its_adapter_answers(
    context: BrowserContext, tiny_nf4_base: Path, few_dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    engine = ScriptedSwitch()
    with serving(engine) as server:
        page = opened(context, server)
        open_train(page)
        page.set_input_files("#train-upload input", few_dialogues)
        expect(page.locator("#train-upload")).to_contain_text(few_dialogues.name)
        fill(page, "train-base", "--out=/etc")
        page.get_by_role("button", name="Check the data").click()
        expect(page.locator("#train-checked").get_by_role("alert")).to_contain_text("cannot begin with a dash")
        fill(page, "train-base", str(tiny_nf4_base))
        fill(page, "train-batch", "12")
        fill(page, "train-longest", "64")
        page.get_by_role("button", name="Check the data").click()
        expect(page.locator("#train-checked")).to_contain_text("Time predicted")
        expect(page.locator("#train-record .learned").first).to_be_visible()
        page.locator("#train-number input[type=number]").fill("2")
        page.locator("#train-number input[type=number]").press("Enter")
        expect(page.locator("#train-record")).to_contain_text(f"{few_dialogues.name}:2")
        assert not (tmp_path / "qlora-chat").exists(), "nothing is written before Start"

        fill(page, "train-name", "mine")
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.locator("#train-view")).to_contain_text("It is being trained.")
        page.reload()
        open_train(page)
        expect(page.locator("#train-view")).to_contain_text("It is finished.", timeout=200_000)
        expect(page.locator("#train-view")).to_contain_text("Samples")
        expect(page.locator("#train-view svg.losses")).to_be_visible()
        page.get_by_role("button", name="Answer with it").click()
        expect(page.locator("#train-problem")).to_contain_text("The conversation goes on with this model.")
        adapter = tmp_path / "qlora-chat" / "training" / "mine" / "adapter"
        assert engine.settings.adapters == (("mine", str(adapter)),)
        page.get_by_role("button", name="Compare it").click()
        expect(page.get_by_role("dialog", name="Compare")).to_be_visible()
        page.close()


def test_visitors_and_pages_in_front_of_other_servers_cannot_train(context: BrowserContext) -> None:
    for engine, settings in ((ScriptedEngine(), ServeSettings()), (ScriptedSwitch(), ServeSettings(operator_token="x" * 20))):
        with serving(engine, settings) as server:
            page = context.new_page()
            page.goto(server.url)
            ready(page)
            page.locator("#open-model").click()
            expect(page.get_by_role("region", name="Model")).to_contain_text("scripted-base")
            expect(page.get_by_role("tab", name="Train")).to_have_count(0)
            refused = page.request.post(f"{server.url}/page/train/data?name=a.jsonl", data="{}", headers={"origin": server.url})
            assert refused.status in (404, 405)
            page.close()
