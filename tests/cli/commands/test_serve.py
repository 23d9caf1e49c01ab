"""`serve` as people stop it: the real demo, a history, a log whose receiver does not answer."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from qlora_chat.history.open import open_history
from qlora_chat.settings import HistorySettings, LogSettings
from tests.cli.test_cli import COMMAND, environment
from tests.delivery.receiving import silent

__all__ = ["environment"]
STREAMS = 8


@pytest.mark.slow
def test_a_server_that_is_stopped_finishes_its_streams_and_leaves_every_turn_on_the_disk(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Not ready within 0.5 s, all eight whole, kept and queued, gone within 30 s of SIGTERM."""
    url = f"sqlite:///{tmp_path / 'chats.db'}"
    with silent(drip=False) as receiver:
        line = [*COMMAND, "serve", "--model", "demo", "--history", url]
        with subprocess.Popen(line, env=environment | {"LOGGING_URL": receiver}, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            said = ""
            while "ready: " not in said:
                said = process.stderr.readline()
                assert said, "it ended before it was ready"
            address = said.split("ready: ")[1].strip()
            with ThreadPoolExecutor(STREAMS) as pool, httpx.Client(base_url=address, timeout=60) as probe:
                model = probe.get("/v1/models").json()["data"][0]["id"]
                running = [pool.submit(stream, address, model, index) for index in range(STREAMS)]
                while "qlora_chat_running 8.0" not in probe.get("/metrics").text:
                    assert not any(each.done() for each in running), running[0].result()
                process.send_signal(signal.SIGTERM)
                asked = time.monotonic()
                while probe.get("/ready").status_code == 200:
                    pass
                unready = time.monotonic() - asked
                answers = [each.result() for each in running]
            assert process.wait(60) == 0
            gone = time.monotonic() - asked
            rest = process.stderr.read()
    assert all(each.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in each for each in answers)
    assert "8 records not sent yet, and kept for the next start" in rest
    with closing(open_history(HistorySettings(url), LogSettings(receiver))) as history:
        assert history.outbox
        assert history.outbox.counts().waiting == STREAMS
        kept = [history.store.load(each.id) for each in history.store.list()]
    assert [each.messages[1].finish_reason for each in kept if each] == ["length"] * STREAMS
    print(json.dumps({"not_ready_s": round(unready, 3), "gone_s": round(gone, 1)}))
    assert unready < 0.5
    assert gone < 30


def stream(address: str, model: str, index: int) -> str:
    """A stored answer of 200 tokens, whole, as it was sent."""
    body = {"messages": [{"role": "user", "content": f"Tell me story {index}."}], "store": True, "stream": True}
    body |= {"model": model, "max_tokens": 200, "ignore_eos": True}
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).text
