"""Start-up and first text as a user sees them: `make chat` to a usable page, and Enter to the first visible text.

    python bench/serving/first_text.py [--model demo]

Starts the page with smollm2, or with the toy (merged earlier, so this is a second start), opens it in headless Chromium, and
asks 20 short questions, each in a new conversation. Times are the browser's own: from the key press to the first change of the
answer's text, seen by a MutationObserver.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

from qlora_chat.benchmark.environment import print_report

ROOT = Path(__file__).parents[2]
QUESTIONS, STARTS = 20, 3
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
WATCH = """() => {
  window.firstText = null;
  document.addEventListener('keydown', event => {
    if (event.key !== 'Enter') return;
    const began = performance.now(), before = document.querySelectorAll('#messages .answer .body').length;
    const seen = new MutationObserver(() => {
      const answers = document.querySelectorAll('#messages .answer .body');
      if (answers.length > before && answers[answers.length - 1].innerText.trim()) {
        window.firstText = performance.now() - began; seen.disconnect();
      }
    });
    seen.observe(document.body, {subtree: true, childList: true, characterData: true});
  }, true);
}"""


@contextmanager
def page_process(model: str):
    """`serve` in a process, as `make chat` starts it; yields (address, seconds until the page answers)."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "qlora_chat", "serve", "--model", model]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stderr
        address = next(found.group() for line in process.stderr if (found := re.search(r"http://\S+:\d+", line)))
        urllib.request.urlopen(address, timeout=10).read()
        yield address, time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2", help="smollm2 or demo")
    model = parser.parse_args().model
    with page_process(model):
        pass  # the first start merges; later ones are measured
    starts = []
    for _ in range(STARTS):
        with page_process(model) as (_, seconds):
            starts.append(seconds)
    began = time.perf_counter()
    with page_process(model) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page()
        page.goto(address)
        box = page.get_by_role("textbox", name=re.compile("message", re.I)).first
        page.evaluate(WATCH)
        times, answered = [], 0.0
        for index in range(QUESTIONS):
            box.fill(f"What is {index} plus 5?")
            page.evaluate("window.firstText = null")
            box.press("Enter")
            page.wait_for_function("window.firstText !== null", timeout=20_000)
            times.append(page.evaluate("window.firstText"))
            answered = answered or time.perf_counter() - began
            page.wait_for_timeout(1500)
            page.get_by_role("button", name="New chat").click()
            page.wait_for_timeout(400)
        browser.close()
    print_report(
        "first_text",
        {
            "model": model,
            "second start to ready page, s": round(statistics.median(starts), 2),
            "second start to first answer in the browser, s": round(answered, 2),
            "Enter to first visible text, p50 ms": round(statistics.median(times), 0),
            "Enter to first visible text, p95 ms": round(sorted(times)[int(0.95 * len(times))], 0),
            "questions": len(times),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
