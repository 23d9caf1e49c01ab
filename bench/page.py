"""The page with a long conversation, in real Chromium: ready, opening 1,000 messages, frames and bytes while an answer streams.

    python bench/page.py [--before TREE] [--messages 1000]

The engine is a scripted one, which says a token every 25 ms, so that the browser's and the server's part is measured and not a
model's. TREE is another checkout of this repository, whose page is measured in the same run; the last lines compare the two.
Frames are counted by requestAnimationFrame and bytes by the browser, both over 8 s of streaming.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from qlora_chat.benchmark.environment import print_report

ROOT = Path(__file__).parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SECONDS, TOKEN_S, RUNS = 8.0, 0.025, 7
SETTLE_S = 1.5
"""The end of a page with 1,000 messages takes the browser a while, which the next page must not pay for."""
QUESTION = "#messages .question, #chat .user"
ANSWER = "#messages .answer, #chat .bot"
SERVE = """
import sys
from dataclasses import replace
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation, Message
from tests.fakes import ScriptedEngine, scripted_chat
from tests.web.serving import serving_chat
SENTENCES = "A sentence on the subject with a few **bold** words and `code`. " * 5
ANSWER = SENTENCES + "\\n\\n- one\\n- two\\n\\n```python\\nprint(1)\\n```"
LONG = " ".join(f"word{i}" + ("\\n\\n" if i % 60 == 59 else "") for i in range(5000))
history = MemoryHistory()
def saved(count):
    messages = []
    for i in range(count // 2):
        messages += [Message("user", f"Question {i}"), Message("assistant", f"{i}: {ANSWER}", finish_reason="stop")]
    conversation = history.save(Conversation(messages=tuple(messages)))
    return f"{conversation.id} {conversation.head}"
chat = replace(scripted_chat(ScriptedEngine(LONG, delay=float(sys.argv[2]))), history=history)
with serving_chat(chat, history_on=True) as url:
    print(url, saved(2), saved(int(sys.argv[1])), sep="\\n", flush=True)
    sys.stdin.read()
"""
COUNT_FRAMES = """seconds => new Promise(done => {
  let frames = 0; const began = performance.now();
  const tick = now => now - began < seconds * 1000 ? (frames++, requestAnimationFrame(tick)) : done(frames / seconds);
  requestAnimationFrame(tick);
})"""


@contextmanager
def serving(tree: Path, messages: int) -> Iterator[tuple[str, str, str]]:
    """The page of one checkout in a process; (address, references to a conversation of two messages and to a long one)."""
    environ = {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(messages), str(TOKEN_S)], env=environ, cwd=tree, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdout
    assert server.stdin
    try:
        url, short, long = (server.stdout.readline().strip() for _ in range(3))
        yield url, short, long
    finally:
        server.stdin.close()
        server.wait(30)


def measure(browser: Browser, pages: list[tuple[str, str, str]], messages: int) -> list[dict[str, float]]:
    """Figures of each page. The short and the long conversation take turns, so that a busy machine slows both alike."""
    ready: list[list[float]] = [[] for _ in pages]
    opened: list[list[float]] = [[] for _ in pages]
    for index, (url, short, long) in enumerate(pages):
        _opened(browser, url, short, 2)  # the first page of a process is slower
        for _ in range(RUNS):
            ready[index].append(_opened(browser, url, short, 2)[1])
            opened[index].append(_opened(browser, url, long, messages)[1])
    figures = []
    for index, (url, _, long) in enumerate(pages):
        page, _ = _opened(browser, url, long, messages, close=False)
        two, all_of_them = statistics.median(ready[index]), statistics.median(opened[index])
        opening = {f"opening {messages:,} messages instead of 2, ms": 1000 * (all_of_them - two)}
        figures.append({"from the address to 2 messages, s": two, **opening, **_stream(page)})
    return figures


def _opened(browser: Browser, url: str, ref: str, messages: int, *, close: bool = True) -> tuple[Page, float]:
    """A page that shows a conversation, and the seconds from the request to its newest message."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script(f"sessionStorage['qlora-chat.conversation'] ??= JSON.stringify({ref!r})")
    newest = f"[...document.querySelectorAll({ANSWER!r})].at(-1)?.innerText.includes('{messages // 2 - 1}: ')"
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_function(newest, polling="raf")
    seconds = time.perf_counter() - began
    if close:
        context.close()
        time.sleep(SETTLE_S)
    return page, seconds


def _stream(page: Page) -> dict[str, float]:
    page.wait_for_timeout(3000)  # older messages are drawn when nothing else is to be done
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    received = [0]

    def count(event: dict[str, Any]) -> None:
        received[0] += event["dataLength"]

    answers = page.locator(ANSWER).count()
    page.fill("#box textarea", "Go on.")
    page.press("#box textarea", "Enter")
    page.wait_for_function(f"document.querySelectorAll({ANSWER!r}).length > {answers}")
    page.wait_for_timeout(1000)
    session.on("Network.dataReceived", count)
    frames = page.evaluate(COUNT_FRAMES, SECONDS)
    total = received[0]
    page.context.close()
    return {"frames per second": frames, f"KB in {SECONDS:.0f} s": total / 1000}


def main() -> None:
    """Measure this checkout's page, and another's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--messages", type=int, default=1000)
    options = parser.parse_args()
    report: dict[str, object] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        with ExitStack() as servers:
            trees = [ROOT, options.before.resolve()] if options.before else [ROOT]
            pages = [servers.enter_context(serving(tree, options.messages)) for tree in trees]
            now, *before = measure(browser, pages, options.messages)
        report |= {name: round(value, 2) for name, value in now.items()}
        for other in before:
            report |= {f"before: {name}": round(value, 2) for name, value in other.items()}
            report |= {f"now / before: {name}": round(now[name] / other[name], 3) for name in now if other[name]}
        browser.close()
    print_report("page", report)


if __name__ == "__main__":
    main()
