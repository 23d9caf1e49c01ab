"""The page over HTTP: which of Gradio's routes answer, what hostile values do, ports, start and end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_chat.server.listener import ServeError, listen, url_of
from qlora_chat.settings import ServeSettings
from tests.fakes import ScriptedEngine
from tests.web.panels.test_settings import HOSTILE
from tests.web.serving import Served, serving

SAMPLING = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 256,
}  # fmt: skip


@pytest.fixture(scope="module")
def page() -> Iterator[Served]:
    with serving(ScriptedEngine("Hello there.")) as served:
        yield served


@cache
def function_index(page: Served, name: str) -> int:
    """The number of the event that the element of that id triggers."""
    config = httpx.get(f"{page.url}/config", timeout=60).json()
    elements = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
    for each in config["dependencies"]:
        if any(elements.get(target) == name for target, _ in each["targets"]):
            return each["id"]
    raise AssertionError(f"no event on {name}")


def send(page: Served, text: Any, sampling: Mapping[str, Any], session: str) -> str:
    """Press Send as a hostile client may; the events for the page, as text."""
    data = [text, "", None, "", True, json.dumps(sampling)]
    body = json.dumps({"data": data, "fn_index": function_index(page, "send"), "session_hash": session})
    joined = httpx.post(
        f"{page.url}/gradio_api/queue/join", content=body, headers={"content-type": "application/json"}, timeout=60
    )
    if joined.status_code != 200:
        return f"{joined.status_code}: {joined.text}"
    return httpx.get(f"{page.url}/gradio_api/queue/data", params={"session_hash": session}, timeout=60).text


def test_a_message_is_answered(page: Served) -> None:
    events = send(page, "hi", SAMPLING, "good")
    assert "Hello there." in events
    assert page.engine.streams[-1].sampling.max_new_tokens == 256


def messages_of(events: str) -> list[dict[str, Any]]:
    return [json.loads(line[5:]) for line in events.splitlines() if line.startswith("data:")]


def test_the_end_of_an_answer_repeats_nothing_that_clear_may_have_removed(page: Served) -> None:
    """Gradio sends the last update again as the event completes; by then another conversation may be shown."""
    messages = messages_of(send(page, "hi", SAMPLING, "completed"))
    (completed,) = [each for each in messages if each["msg"] == "process_completed"]
    assert completed["success"]
    values = completed["output"]["data"]
    assert values, "one for each part"
    assert all(value["__type__"] == "update" and "value" not in value for value in values)


def test_a_browser_that_draws_late_still_sees_the_answer_begin_and_end(page: Served) -> None:
    """Gradio's browser code changes an update in place when the next one comes, also where it is not drawn yet."""
    messages = messages_of(send(page, "hi", SAMPLING, "late"))
    first, *later = [each["output"]["data"] for each in messages if each["msg"] == "process_generating"]
    assert later, "the question, then its answer"
    begun = [value["live"] for value in first if isinstance(value, dict) and "live" in value]
    assert len(begun) == 1
    assert begun[0], "being written"
    edits = [edit for update in later for value in update if isinstance(value, list) for edit in value]
    lists = [value for _, path, value in edits if path == [] and isinstance(value, dict) and "live" in value]
    assert lists, "a list of messages always comes whole"
    assert lists[-1]["live"] is None, "it has ended"
    assert lists[-1]["head"] == begun[0]["id"]


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
@pytest.mark.parametrize("name", ["temperature", "top_k"])  # a number and a whole number; test_settings.py has them all
def test_a_hostile_sampling_value_is_refused_and_the_engine_not_called(
    page: Served, name: str, value: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    before = len(page.engine.streams)
    events = send(page, "hi", {**SAMPLING, name: value}, f"{name[:9]}-{value!r}"[:40].replace(" ", ""))
    assert len(page.engine.streams) == before, events
    assert "but must be" in events, events
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "text", ["\ud800 lone", "\0", "\x1b[31mred", "‮reversed", "a" * 10_000], ids=["surrogate", "nul", "ansi", "bidi", "long"]
)
def test_strange_text_gets_an_answer_or_a_clear_refusal(page: Served, text: str) -> None:
    events = send(page, text, SAMPLING, f"strange-{len(text)}-{ord(text[0])}")
    assert "Hello there." in events or "too long" in events
    assert "Traceback" not in events


@pytest.mark.parametrize(
    "body",
    [b"", b"[" * 100_000, b"\xff\xfe", b'{"data": ' + b"9" * 5000 + b"}", b"null"],
    ids=["empty", "deep", "bytes", "digits", "null"],
)
def test_broken_json_is_a_client_error(page: Served, body: bytes) -> None:
    answer = httpx.post(
        f"{page.url}/gradio_api/queue/join", content=body, headers={"content-type": "application/json"}, timeout=60
    )
    assert 400 <= answer.status_code < 500


@pytest.mark.parametrize(
    "change",
    [{"fn_index": 99}, {"fn_index": "1"}, {"fn_index": True}, {"data": []}, {"data": "x"}, {"session_hash": None},
     {"session_hash": "s" * 65}, {"session_hash": "\ud800"}],
    ids=ascii,
)  # fmt: skip
@pytest.mark.parametrize("path", ["queue/join", "run/predict", "cancel"])
def test_made_up_events_are_client_errors_without_a_traceback(
    page: Served, path: str, change: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    if path == "cancel" and "data" in change:
        change = {"event_id": [change["data"]]}  # it takes no values, and names what it cancels
    event = {
        "data": ["hi", "", None, "", True, json.dumps(SAMPLING)],
        "fn_index": function_index(page, "send"),
        "session_hash": "made-up",
    }
    body = json.dumps({"event_id": "none", **event, **change}).encode()
    answer = httpx.post(f"{page.url}/gradio_api/{path}", content=body, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == 422
    assert capfd.readouterr().err == ""


STRANGE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30),
    st.sampled_from(['{"conversation": {}, "adapter": {"path": "/etc/passwd"}, "sampling": [{}]}', "[" * 500, '"', "a b"]),
)  # fmt: skip
"""Values that a part of the page could not have, and some that it could."""


def test_no_value_of_an_event_is_an_error_of_the_server(page: Served, capfd: pytest.CaptureFixture[str]) -> None:
    config = httpx.get(f"{page.url}/config").json()
    events = [
        each for each in config["dependencies"] if each["backend_fn"] and not any(t[1] == "unload" for t in each["targets"])
    ]
    assert len(events) > 14
    with httpx.Client(base_url=page.url) as client:

        @settings(max_examples=150, deadline=None)
        @given(st.data())
        def ask(drawn: st.DataObject) -> None:
            event = drawn.draw(st.sampled_from(events))
            data = [drawn.draw(STRANGE) for _ in event["inputs"]]
            sent = {"id": drawn.draw(STRANGE), "rating": drawn.draw(STRANGE), "text": drawn.draw(STRANGE)}
            body = {
                "fn_index": event["id"],
                "data": data,
                "session_hash": "strange",
                "event_data": drawn.draw(
                    st.sampled_from([None, sent, {"id": sent["id"]}, {"id": sent["id"], "rating": sent["rating"]}])
                ),
            }
            path = "queue/join" if event["queue"] else "run/predict"
            answer = client.post(f"/gradio_api/{path}", content=json.dumps(body), headers={"content-type": "application/json"})
            assert answer.status_code in (200, 422), answer.text
            if path == "queue/join" and answer.status_code == 200:
                assert '"success":false' not in client.get("/gradio_api/queue/data", params={"session_hash": "strange"}).text

        ask()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["", "unknown", "s" * 65, "\0", "\x1b[31m", "../../x", "é"], ids=ascii)
def test_the_events_of_no_session_are_a_whole_answer_and_no_error(
    page: Served, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = httpx.get(f"{page.url}/gradio_api/queue/data", params={"session_hash": name})
    assert answer.status_code == 422 or '"session_not_found": true' in answer.text
    assert httpx.get(f"{page.url}/gradio_api/queue/data").status_code == 422
    assert httpx.get(f"{page.url}/gradio_api/heartbeat/{'s' * 65}").status_code == 422
    assert capfd.readouterr().err == ""


# --- ports, start and end --------------------------------------------------------------------------------------------


def test_a_port_that_is_in_use_is_an_error() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as used:
        port = used.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port} .*choose another --port"):
            listen("127.0.0.1", port)


def test_without_a_port_the_next_free_one_is_taken() -> None:
    with contextlib.closing(listen("127.0.0.1", None)) as first, contextlib.closing(listen("127.0.0.1", None)) as second:
        assert second.getsockname()[1] > first.getsockname()[1] >= 7860
        assert url_of(first, "127.0.0.1") == f"http://127.0.0.1:{first.getsockname()[1]}"
        assert url_of(first, "::1").startswith("http://[::1]:")


SERVER = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from tests.fakes import ScriptedEngine, scripted_chat
from qlora_chat.settings import ServeSettings, quiet_libraries
from qlora_chat.server import run
quiet_libraries()
engine = ScriptedEngine("word " * 40)
engine.pauses_after = 20
threading.Thread(target=lambda: (sys.stdin.readline(), engine.go_on.set()), daemon=True).start()
run.DRAIN_S = 600
run.serve(lambda: scripted_chat(engine), ServeSettings(), lambda line: print(line, flush=True), logging_on=False)
print("closed" if engine.closed else "left open", engine.streams[0].reason if engine.streams else "", flush=True)
"""


@contextlib.contextmanager
def server_process(**environment: str) -> Iterator[tuple[subprocess.Popen[str], Served]]:
    """A server in a process of its own; its answers pause in the middle until `go_on` is called."""
    folder, environ = str(Path(__file__).parents[2]), {**os.environ, **environment}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ,
    ) as process:  # fmt: skip
        assert process.stdout
        line = process.stdout.readline()
        assert "ready: http://127.0.0.1:" in line
        try:
            yield process, Served(line.split("ready: ")[1].strip(), ScriptedEngine())
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def await_metric(client: httpx.Client, line: str) -> None:
    until = time.monotonic() + 60
    while line not in client.get("/metrics").text:
        assert time.monotonic() < until, f"no {line} in /metrics"
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_lets_the_running_answer_finish_and_closes_the_engine() -> None:
    with server_process() as (process, page):
        index = function_index(page, "send")
        body = {"data": ["hi", "", None, "", True, json.dumps(SAMPLING)], "fn_index": index, "session_hash": "draining"}
        assert httpx.post(f"{page.url}/gradio_api/queue/join", json=body, timeout=60).status_code == 200
        with (
            httpx.stream("GET", f"{page.url}/gradio_api/heartbeat/draining", timeout=60),
            httpx.stream("GET", f"{page.url}/gradio_api/queue/data", params={"session_hash": "draining"}, timeout=60) as stream,
        ):
            with httpx.Client(base_url=page.url, timeout=60) as probe:
                await_metric(probe, "qlora_chat_running 1.0")
            process.send_signal(signal.SIGTERM)
            assert process.stdout
            assert "Finishing 1 answer" in process.stdout.readline()
            go_on(process)
            events = "".join(stream.iter_text())
        assert "process_completed" in events
        out, err = process.communicate(timeout=60)
        assert "closed stop" in out
        assert "Traceback" not in err
        assert process.returncode == 0


def test_sigterm_shows_in_ready_before_running_streams_end_and_they_finish() -> None:
    body = {"model": "scripted", "prompt": "hi", "max_tokens": 100, "stream": True}
    with server_process() as (process, page), ThreadPoolExecutor(8) as pool:

        def stream(_: int) -> str:
            return httpx.post(f"{page.url}/v1/completions", json=body, timeout=60).text

        running = [pool.submit(stream, index) for index in range(8)]
        with httpx.Client(base_url=page.url, timeout=60) as probe:
            assert probe.get("/ready").status_code == 200
            await_metric(probe, "qlora_chat_running 8.0")
            process.send_signal(signal.SIGTERM)
            while probe.get("/ready").status_code == 200:
                pass
            assert not any(each.done() for each in running), "it is not ready long before they are finished"
            assert probe.get("/health").status_code == 200, "it answers as long as others are answered"
            refused = probe.post("/v1/completions", json=body)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
        go_on(process)
        for each in running:
            assert each.result().endswith("data: [DONE]\n\n")
            assert '"finish_reason":"stop"' in each.result()
        out, err = process.communicate(timeout=60)
        assert "closed stop" in out
        assert err == ""
        assert process.returncode == 0


LOADING = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from tests.fakes import ScriptedEngine, scripted_chat
from qlora_chat.settings import ServeSettings
from qlora_chat.server.run import serve
go_on = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), go_on.set()), daemon=True).start()
def load():
    go_on.wait()
    return scripted_chat(ScriptedEngine("Hello there."))
print(sys.argv[2], flush=True)
serve(load, ServeSettings(port=int(sys.argv[2])), lambda line: print(line, flush=True), logging_on=False)
"""


def test_while_the_model_loads_the_server_says_so_and_then_answers() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    folder, url = str(Path(__file__).parents[2]), f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, "-c", LOADING, folder, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdout.readline()
            with httpx.Client(transport=httpx.HTTPTransport(retries=8), base_url=url, timeout=60) as client:
                assert client.get("/health").text == "ok"
                assert (client.get("/ready").status_code, client.get("/ready").text) == (503, "loading")
                early = client.post("/v1/completions", json={"model": "scripted", "prompt": "hi"})
                assert (early.status_code, early.json()["error"]["code"]) == (503, "loading")
                assert int(early.headers["retry-after"]) > 0
                assert "being loaded" in client.get("/").text
                assert "qlora_chat_ready 0.0" in client.get("/metrics").text
                process.stdin.write("\n")
                process.stdin.flush()
                assert "is ready" in process.stdout.readline()
                assert client.get("/ready").status_code == 200
                late = client.post("/v1/completions", json={"model": "scripted", "prompt": "hi"})
                assert late.json()["choices"][0]["text"] == "Hello there."
                assert "gradio" in client.get("/").text
        finally:
            process.kill()


def test_a_start_leaves_nothing_in_the_temporary_folder_whoever_owns_gradio_there(tmp_path: Path) -> None:
    """Gradio's own folder is /tmp/gradio for everybody; a file of that name stands for another user's folder, for root too."""
    (tmp_path / "gradio").write_text("another user's")
    with server_process(TMPDIR=str(tmp_path), GRADIO_TEMP_DIR=str(tmp_path / "gradio")) as (process, page):
        assert "gradio" in httpx.get(page.url, timeout=60).text
        assert os.listdir(tmp_path) == ["gradio"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert "closed" in out
        assert (err, process.returncode) == ("", 0), "Ctrl-C ends an idle server at once and quietly"
    assert os.listdir(tmp_path) == ["gradio"]


def test_a_chat_that_cannot_be_opened_ends_the_start_with_its_error() -> None:
    from qlora_chat.models import ModelError
    from qlora_chat.server.run import serve

    def fail() -> Any:
        raise ModelError("no weights here; fetch them first")

    with pytest.raises(ModelError, match="fetch them first"):
        serve(fail, ServeSettings(), print, logging_on=False)


def test_importing_the_server_does_not_import_gradio_or_torch() -> None:
    code = "import sys, qlora_chat.server.run; print([each for each in ('gradio', 'torch', 'pandas') if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]"
