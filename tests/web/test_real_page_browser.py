"""The page as it ships: `python chatbot.py` in a process, the bundled demo behind it, a real browser in front."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.web.driving import answers, open_options, opened_at, say, set_slider, settled, wait_for

pytestmark = [pytest.mark.browser]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def address(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the program says that it is ready; ended by SIGTERM, as a service manager would."""
    home = str(tmp_path_factory.mktemp("home"))
    own = {"QLORA_CHAT_CACHE": str(demo_cache), "HF_HUB_OFFLINE": "1", "HOME": home, "HF_HOME": home, "LOGGING_URL": ""}
    process = subprocess.Popen(
        [sys.executable, "chatbot.py", "--model", "demo"],
        cwd=ROOT,
        env={**os.environ, **own},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    yield next(found.group() for line in process.stderr if (found := re.search(r"http://\S+:\d+", line)))
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0


@pytest.fixture
def page(context: BrowserContext, address: str) -> Page:
    page = opened_at(context, address)
    open_options(page)
    return page


def wander(page: Page) -> None:
    """Begin an answer that goes on and on; a hot one may also end at once, so it is asked for again."""
    set_slider(page, "temperature", "1.5")
    set_slider(page, "top_p", "1")
    for _ in range(8):
        say(page, "Tell me a very long story about the sea.")
        wait_for(page, lambda: len((answers(page) or [""])[-1]) > 40 or page.locator(".answer .acts").count())
        if page.locator("#stop").is_visible():
            return
        page.click("#new")
        expect(page.locator("#messages .answer")).to_have_count(0)
    pytest.fail("eight answers in a row ended within 40 characters")


def test_the_demo_answers_and_remembers_and_says_that_it_is_a_toy(page: Page) -> None:
    expect(page.locator("body")).to_contain_text("45 M-parameter toy")
    set_slider(page, "temperature", "0")
    say(page, "My name is Tom.")
    expect(page.locator("#messages .answer")).to_contain_text("Tom")
    settled(page)
    say(page, "What is my name?")
    expect(page.locator("#messages .answer").last).to_contain_text("Your name is Tom.")
    expect(page.locator("body")).to_contain_text(re.compile(r"bf16 · cpu · \d+ tokens/s · first token \d+ ms"))
    expect(page.locator(".context-bar")).to_contain_text(re.compile(r"\d+ of 512"))


@pytest.mark.slow  # the toy may write its whole answer before a busy browser draws any; test_page_browser.py has a scripted one
def test_an_answer_grows_and_stop_ends_it(page: Page) -> None:
    for _ in range(8):
        wander(page)
        page.evaluate("document.querySelector('#stop').click()")  # at once: an answer may also come to its own end
        settled(page)
        if page.locator("#messages .end", has_text="Stopped.").count():
            break
        page.click("#new")
    expect(page.locator("#messages .end")).to_contain_text("Stopped.")
    assert len(answers(page)[-1]) > 40, "what came is kept"
    ended = answers(page)
    page.wait_for_timeout(500)
    assert answers(page) == ended


@pytest.mark.slow  # the toy may write its whole answer before a busy browser draws any; test_page_browser.py has a scripted one
def test_a_slider_acts_on_the_answer_being_written(page: Page) -> None:
    for _ in range(8):
        wander(page)
        set_slider(page, "max_new_tokens", "1")
        settled(page)
        used = re.search(r"(\d+) of 512", page.locator(".context-bar").inner_text())
        assert used
        if int(used.group(1)) < 512:
            return
        set_slider(page, "max_new_tokens", "256")  # it filled the window before the slider was there
        page.click("#new")
    pytest.fail("eight answers in a row filled the window: the slider ended none")


def test_clear_and_reload(page: Page) -> None:
    say(
        page, "Tell me a very long story about the sea."
    )  # ended or not: test_page_browser.py clears answers that are being written
    expect(page.locator("#messages .answer")).to_have_count(1)
    page.click("#new")
    expect(page.locator("#messages .answer")).to_have_count(0)
    set_slider(page, "temperature", "0")
    say(page, "What is the capital of France?")
    expect(page.locator("#messages .answer")).to_contain_text("The capital of France is Paris.")
    settled(page)
    page.reload()
    expect(page.locator("#messages .answer")).to_contain_text("The capital of France is Paris.")
    expect(page.locator(".context-bar")).to_contain_text(re.compile(r"\d+ of 512"))
    open_options(page)
    expect(page.locator("#temperature")).to_have_value("0")
