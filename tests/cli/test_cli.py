"""The command line as people start it: its output and its exit code, with the bundled demo for real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.here import run_here

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "qlora_chat"]


@pytest.fixture
def environment(demo_cache: Path, tmp_path: Path) -> dict[str, str]:
    """Nothing of the user's: own cache, own home, no Hub."""
    return {
        **os.environ,
        "QLORA_CHAT_CACHE": str(demo_cache),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path),
    }


def run(environment: dict[str, str], *arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], input=typed, capture_output=True, text=True, env=environment, timeout=100)


def test_ask_prints_the_answer_and_says_that_it_is_a_toy(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(environment, "ask", "What is the capital of France?", "--temperature", "0", "--model", "demo")
    assert done.stdout == "The capital of France is Paris.\n"
    assert "45 M-parameter toy" in done.stderr
    assert done.returncode == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "nothing is written but the cache"


def test_ask_as_json_is_one_object(environment: dict[str, str]) -> None:
    done = run_here(environment, "ask", "-", "--json", "--seed", "5", "--model", "demo", typed="What is 7 plus 5?")
    result = json.loads(done.stdout)
    assert set(result) == {
        "answer", "finish_reason", "prompt_tokens", "completion_tokens", "ttft_ms", "tokens_per_s", "model", "adapter",
        "precision", "device",
    }  # fmt: skip
    assert result["finish_reason"] == "stop"
    assert result["precision"] == "bf16"
    assert result["device"] == "cpu"
    assert "Lumi" in result["model"]
    same = ("ask", "What is 7 plus 5?", "--json", "--seed", "5", "--model", "demo")
    again = json.loads(run_here(environment, *same).stdout)
    assert again["answer"] == result["answer"], "the same seed"
    beside = json.loads(run_here(environment, *same, "--adapter-mode", "exact").stdout)
    assert beside["precision"] == "nf4+adapter"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ask", "hi", "--temperature", "nan"), "temperature is nan, but must be a number from 0 to 2"),
        (("ask", "hi", "--top-k", "201"), "top_k is 201, but must be a whole number from 0 to 200"),
        (("ask", " "), "there is nothing to ask"),
        (("ask", "hi", "--format", "nope"), "unknown prompt format 'nope'; known: guanaco"),
        (("ask", "hi", "--model", "gpt-5"), "--model is 'gpt-5', but must be one of auto, guanaco-7b, smollm2, demo"),
        (("ask", "hi", "--adapter", "x"), "--adapter x needs --base"),
        (("ask", "hi", "--base", "/nowhere"), "/nowhere"),
        (("ask", "hi", "--model", "guanaco-7b"), "HF_HUB_OFFLINE"),
        (("ask", "word " * 600, "--model", "demo"), "too long"),
        (("serve", "--host", "0.0.0.0"), "QLORA_CHAT_TOKEN"),
        (("serve", "--port", "70000"), "--port is 70000, but must be from 1 to 65535"),
        (("convert-adapter", "/nowhere", "/nowhere-else"), "/nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(environment: dict[str, str], arguments: tuple[str, ...], said: str) -> None:
    done = run_here(environment, *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_cpu_instruction_set_that_does_not_exist_is_one_clear_line(environment: dict[str, str]) -> None:
    done = run_here({**environment, "QLORA_CHAT_CPU_ISA": "sse9"}, "ask", "hi", "--model", "demo")
    assert done.returncode == 1
    assert "QLORA_CHAT_CPU_ISA is 'sse9', but must be one of avx512, avx2, plain, or unset" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_address_that_is_not_safe_stops_the_program_before_anything_is_loaded(environment: dict[str, str]) -> None:
    done = run_here({**environment, "LOGGING_URL": "http://example.com/log"}, "ask", "hi")
    assert done.returncode == 1
    assert "unencrypted: use https" in done.stderr


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_ask_says_that_the_history_lacks_the_turn(environment: dict[str, str], form: tuple[str, ...]) -> None:
    """In /proc, nobody can create a file."""
    asked = ("ask", "What is the capital of France?", "--model", "demo", "--temperature", "0", "--history", "jsonl:/proc/self")
    done = run_here(environment, *asked, *form)
    assert done.returncode == 1
    answer = json.loads(done.stdout)["answer"] if form else done.stdout
    assert answer.strip() == "The capital of France is Paris."
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("qlora-chat: the answer is complete, but this turn was not saved: the history's folder")


def test_the_log_is_sent_before_ask_exits(environment: dict[str, str]) -> None:
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            time.sleep(0.3)
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.02,))
        thread.start()
        address = f"http://127.0.0.1:{receiver.server_port}/"
        asked = ("ask", "What is the capital of France?", "--model", "demo", "--temperature", "0", "--min-p", "0.1")
        done = run({**environment, "LOGGING_URL": address}, *asked)
        receiver.shutdown()
        thread.join()
    assert done.returncode == 0
    assert received[0]["history"] == [["What is the capital of France?", "The capital of France is Paris."]]
    assert received[0]["messages"] == "### Human: What is the capital of France?### Assistant:"
    assert received[0]["generate_kwargs"] == {
        "top_k": 0, "top_p": 0.9, "temperature": 0.0, "repetition_penalty": 1.0, "min_p": 0.1,
    }  # fmt: skip


def test_chat_remembers_and_obeys(environment: dict[str, str]) -> None:
    typed = "\n".join(
        ["/set temperature 0", "My name is Tom.", "What is my name?", "/set top_k 999", "/set warmth 1", "/set top_p much",
         "/set min_p 0.1",
         "/undo", "/retry", "/system Be brief.", "/clear", "/set", "/nonsense", "What is the capital of France?",
         "/exit", "never read"]
    )  # fmt: skip
    done = run_here(environment, "chat", "--model", "demo", typed=typed)
    assert done.returncode == 0
    assert "Your name is Tom." in done.stdout
    assert "The capital of France is Paris." in done.stdout
    assert "(a new conversation)" in done.stdout
    assert "temperature 0.0, top_p 0.9, top_k 0, min_p 0.1" in done.stdout
    assert "top_k is 999, but must be a whole number from 0 to 200" in done.stderr
    assert "unknown sampling setting 'warmth'" in done.stderr
    assert "/set top_p needs a number, but got 'much'" in done.stderr
    assert "unknown command /nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_retry_that_cannot_begin_loses_nothing(environment: dict[str, str]) -> None:
    typed = [
        "/set temperature 0",
        "What is the capital of France?",
        "/system " + "word " * 600,
        "/retry",
        "/system",
        "/retry",
        "/exit",
    ]
    done = run_here(environment, "chat", "--model", "demo", typed="\n".join(typed))
    assert "too long" in done.stderr
    assert done.stdout.count("The capital of France is Paris.") == 2


def test_ctrl_c_never_ends_the_program(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, "chat", "--model", "demo"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**environment, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdin
    assert process.stderr
    while b"/help lists" not in process.stderr.readline():
        pass
    for _ in range(20):
        process.stdin.write(b"Hi, who are you?\n")
        process.stdin.flush()
        time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    time.sleep(1)
    rest, errors = process.communicate(b"\n/set temperature 0\nWhat is the capital of France?\n/exit\n", timeout=60)
    assert process.returncode == 0, errors
    assert b"(temperature 0.0)" in rest
    assert b"Traceback" not in errors


def test_ctrl_c_stops_the_answer_and_not_the_program(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, "chat", "--model", "demo", "--seed", "1", "--temperature", "1.5", "--top-p", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**environment, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"Tell me a very long story about the sea.\n")
    process.stdin.flush()
    beginning = process.stdout.read(40)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(b"/set temperature 0\nWhat is the capital of France?\n/exit\n", timeout=60)
    assert beginning
    assert b"(temperature 0.0)" in rest
    assert b"Paris" in rest, "the program went on"
    assert process.returncode == 0, errors


def test_help_waits_for_no_large_library(environment: dict[str, str]) -> None:
    code = (
        "import sys; from qlora_chat.cli import main; sys.argv = ['qlora-chat', '--help']\ntry: main()\nexcept SystemExit: pass"
    )
    told = "\nprint([each for each in ('torch', 'gradio', 'transformers', 'sqlalchemy', 'fastapi') if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + told], capture_output=True, text=True, env=environment, timeout=60)
    assert "ask" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_help_answers_at_once(environment: dict[str, str]) -> None:
    times = []
    for _ in range(10):
        began = time.perf_counter()
        done = run(environment, "--help")
        times.append(time.perf_counter() - began)
        assert "ask" in done.stdout
        if min(times) < 0.3:
            return
    pytest.fail(f"the quickest of ten took {min(times):.2f} s")


def test_chatbot_py_serves_inside_the_environment_and_says_what_to_type_outside(environment: dict[str, str]) -> None:
    inside = subprocess.run(
        [sys.executable, "chatbot.py", "--help"], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=60
    )
    assert "Open the page" in inside.stdout
    outside = subprocess.run(
        [sys.executable, "-S", "-I", "chatbot.py"], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=60
    )
    assert outside.returncode == 1
    assert re.fullmatch(r"chatbot\.py: .*make chat.*\n", outside.stderr)
