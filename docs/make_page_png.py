"""Make docs/page.png: the page of `qlora-chat serve` with its default model, after two questions, in Chromium.

python docs/make_page_png.py
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

QUESTIONS = (
    "Why is the sky blue?",
    "Write a Python function that adds two numbers.",
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def main() -> None:
    """Serve the page, ask the questions with little randomness, and take the picture."""
    command = [sys.executable, "-m", "qlora_chat", "serve", *sys.argv[1:]]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr
        url = next(found.group() for line in server.stderr if (found := re.search(r"http://\S+:\d+", line)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(url)
            page.get_by_role("button", name="Settings", exact=True).click()
            page.get_by_role("button", name="Precise").click()
            page.get_by_role("button", name="Close settings").click()
            for count, question in enumerate(QUESTIONS, 1):
                page.fill("#box textarea", question)
                page.press("#box textarea", "Enter")
                page.wait_for_selector(f"#messages .answer .facts >> nth={count - 1}", timeout=300_000)
            page.wait_for_timeout(1000)
            page.screenshot(path=str(Path(__file__).with_name("page.png")))
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


if __name__ == "__main__":
    main()
