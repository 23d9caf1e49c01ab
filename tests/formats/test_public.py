"""What scripts, receivers and dashboards rely on has not changed: names of options, variables, fields, routes and metrics.

The texts in golden/ are what was so on 2026-11-29; golden.py says how a change that is meant is taken over.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main

import qlora_chat
from qlora_chat.cli import app
from tests.fakes import ScriptedEngine, ScriptedServer
from tests.formats.conftest import Run, receiving
from tests.formats.golden import check, read, shape, without_chance
from tests.receiver.server import free_port, program
from tests.web.serving import Served, serving

MEASURED = ("ttft_ms", "tokens_per_s")


# --- the command line and the environment ----------------------------------------------------------------------------


def test_commands_options_types_and_defaults() -> None:
    check("commands.txt", "\n".join(_commands(typer.main.get_command(app), "qlora-chat")) + "\n")


def _commands(command: Any, name: str) -> Iterator[str]:
    """A line a command and, under it, one an option or argument; help texts are free to change."""
    yield name
    for each in command.params:
        if each.name == "help":
            continue
        names = " ".join([*each.opts, *each.secondary_opts]) if each.param_type_name == "option" else f"<{each.name}>"
        kind = each.type_descriptor.annotation
        facts = ["flag" if getattr(each, "is_flag", False) else getattr(kind, "__name__", str(kind))]
        facts += ["required"] if each.required else []
        facts += ["several"] if getattr(each, "multiple", False) or each.nargs == -1 else []
        facts += [f"from {each.min}"] if each.min is not None else []
        facts += [f"to {each.max}"] if each.max is not None else []
        facts += (
            [f"default {each.default!r}"]
            if each.default is not None and each.default is not False and not each.required
            else []
        )
        yield f"    {names}: {', '.join(facts)}"
    for part in sorted(getattr(command, "commands", {})):
        yield from _commands(command.commands[part], f"{name} {part}")


def test_environment_variables() -> None:
    """Every one that the source names, ours and those of others that are honoured."""
    pattern = re.compile(r"\b(?:QLORA_CHAT|LOGGING|HF|HUGGINGFACE|OTEL|XDG|PG|GRADIO|TRANSFORMERS|TOKENIZERS)_?[A-Z][A-Z_]*\b")
    check("environment.txt", "\n".join(sorted({*pattern.findall(_source())})) + "\n")


def _source() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(Path(qlora_chat.__file__).parent.rglob("*.py")))


# --- what a receiver is sent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1", "2"])
def test_the_record_of_a_turn(
    version: str, run: Run, answering: ScriptedServer, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte but for ids, times and speeds."""
    monkeypatch.setenv("LOGGING_VERSION", version)
    drawn = ("--seed", "7", "--temperature", "0.5", "--top-k", "40", "--top-p", "0.8", "--repetition-penalty", "1.1")
    with receiving() as (url, bodies):
        monkeypatch.setenv("LOGGING_URL", url)
        run("ask", "Grüße?", "--model", "demo", "--engine", answering.url, *drawn, "--system", "Be brief.")
    (body,) = (each.decode() for each in bodies)
    body = body.replace(f"127.0.0.1:{answering.port}", "127.0.0.1:PORT")
    body = body.replace(f'"version": "{qlora_chat.__version__}"', '"version": "VERSION"')
    check(f"record_v{version}.json", without_chance(body, *MEASURED) + "\n")


def test_records_of_the_sample_have_the_fields_of_today(run: Run, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order: of one answer by the tiny model, made as then."""
    asked = (
        "ask",
        "Tell me about the sea.",
        "--base",
        "base",
        "--adapter",
        "adapter",
        "--device",
        "cpu",
        "--precision",
        "bf16",
        "--base-form",
        "16-bit",
    )
    drawn = ("--temperature", "0", "--seed", "11", "--max-new-tokens", "10")
    for version in ("1", "2"):
        monkeypatch.setenv("LOGGING_VERSION", version)
        with receiving() as (url, bodies):
            monkeypatch.setenv("LOGGING_URL", url)
            run(*asked, *drawn)
        before = (samples / "records" / f"v{version}.json").read_text()
        now, then = (_without_machine(without_chance(text, *MEASURED)) for text in (bodies[0].decode(), before))
        assert now.replace('"base_form": "16-bit", ', "") == then, "the only field since then"


def _without_machine(text: str) -> str:
    return re.sub(r'("computed_by": |"version": )"[^"]*"', r'\1"..."', text)


def test_the_records_of_feedback_and_of_an_erasure(run: Run, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of feedback, what waits in the sample; of an erasure, what is written now, in both versions."""
    with receiving() as (url, bodies):
        monkeypatch.setenv("LOGGING_URL", url)
        monkeypatch.setenv("LOGGING_VERSION", "2")
        run("history", "list", "--history", "sqlite:///chats.db")
        kept = [body.decode() for body in bodies if json.loads(body).get("kind") in ("feedback", "tombstone")]
        bodies.clear()
        for chat, version in zip(read(samples / "exports" / "chats.json")[:2], "12", strict=True):
            monkeypatch.setenv("LOGGING_VERSION", version)
            run("history", "erase", chat["id"], "--yes", "--history", "sqlite:///chats.db")
        erased = [body.decode() for body in bodies]
    check("record_feedback_and_tombstone.jsonl", "\n".join(without_chance(text) for text in (*kept, *erased)) + "\n")


def test_the_record_of_feedback_as_it_is_written_now() -> None:
    """The page alone writes it; its buttons end in this call."""
    from qlora_chat.chat import AnswerOptions, Chat
    from qlora_chat.delivery.recorder import LogRecorder
    from qlora_chat.history import Feedback
    from qlora_chat.history.memory import MemoryHistory
    from qlora_chat.messages import Conversation
    from qlora_chat.prompt import DEFAULT_FORMAT
    from qlora_chat.settings import Sampling

    class Queue:
        def __init__(self) -> None:
            self.bodies: list[str] = []

        def put(self, outgoing: Any) -> None:
            self.bodies.append(outgoing.body.decode())

    queue = Queue()
    chat = Chat(ScriptedEngine(), DEFAULT_FORMAT, MemoryHistory(queue=queue), LogRecorder(2))  # type: ignore[arg-type]
    turn = chat.reply(Conversation(), "Hi", AnswerOptions(Sampling(seed=3)))
    list(turn)
    chat.save_feedback(turn.conversation.id, Feedback(turn.conversation.messages[1].id, 1, "Better.", "Nearly: schön!"))
    check("record_feedback.json", without_chance(queue.bodies[-1]) + "\n")


# --- what is printed and written -------------------------------------------------------------------------------------


def test_the_json_of_ask(run: Run, answering: ScriptedServer) -> None:
    done = run("ask", "Hi", "--model", "demo", "--engine", answering.url, "--json")
    text = done.stdout.replace(f"127.0.0.1:{answering.port}", "127.0.0.1:PORT")
    check("ask.json", without_chance(text, *MEASURED))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("history_list", ("history", "list", "--history", "sqlite:///chats.db", "--json")),
        ("history_search", ("history", "search", "lighthouse", "--history", "sqlite:///chats.db", "--json")),
        ("history_export", ("history", "export", "--history", "sqlite:///chats.db", "--format", "json")),
        ("logs_stats", ("logs", "stats", "--store", "sqlite:///received.db", "--json")),
        ("dataset_build", ("dataset", "build", "--store", "sqlite:///received.db", "--out", "data", "--json")),
    ],
)
def test_the_json_that_commands_print(run: Run, name: str, arguments: tuple[str, ...]) -> None:
    """Of the samples, so that values are compared as well."""
    check(f"{name}.json", json.dumps(json.loads(run(*arguments).stdout), indent=1, ensure_ascii=False) + "\n")


def test_the_json_lines_of_logs_query(run: Run) -> None:
    check("logs_query.jsonl", run("logs", "query", "--store", "sqlite:///received.db", "--json").stdout)


def test_the_columns_of_the_parquet_export(run: Run, samples: Path) -> None:
    import pyarrow.parquet

    run("logs", "export", "--store", "sqlite:///received.db", "--parquet", "turns.parquet")
    columns = pyarrow.parquet.read_schema(samples / "turns.parquet")
    check("logs_export.txt", "".join(f"{each.name}: {each.type}\n" for each in columns))


def test_the_files_of_a_history_of_plain_files(run: Run, samples: Path, answering: ScriptedServer) -> None:
    run("ask", "Hi", "--model", "demo", "--engine", answering.url, "--history", "jsonl:new")
    (made,) = (samples / "new").glob("*.jsonl")
    lines = [json.loads(line) for line in made.read_text().splitlines()]
    check("plain_files.txt", "".join(f"--- line {index}\n{shape(line)}" for index, line in enumerate(lines, 1)))


@pytest.mark.parametrize("name", ["adapter", "converted", "merged", "run"])
def test_what_a_folder_says_of_itself(name: str, samples: Path) -> None:
    """The samples' own: test_models.py holds what is written now to them."""
    file = "run.json" if name == "run" else "qlora_chat.json"
    check(f"{name}_record.txt", shape(read(samples / name / file)))


def test_what_a_cache_entry_says_of_itself(samples: Path) -> None:
    found = sorted(samples.glob("cache/*/*/qlora_chat.json"))
    check("cache_records.txt", "".join(f"--- {path.parent.name}\n{shape(read(path))}" for path in found))


@pytest.mark.parametrize("file", ["chats.db", "outbox.db", "received.db"])
def test_tables(file: str, samples: Path) -> None:
    with closing(sqlite3.connect(samples / file)) as database:
        made = [sql for (sql,) in database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type, name")]
        details = (
            [*database.execute("SELECT DISTINCT details FROM turns WHERE role = 'assistant'")] if file == "chats.db" else []
        )
    text = "\n".join(re.sub(r"\s+", " ", sql) for sql in made) + "\n"
    check(f"{file}.txt", text + shape([json.loads(each) for (each,) in details if each != "{}"]))


# --- what is served --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(ScriptedEngine()) as served:
        yield served


def test_routes_fields_ranges_and_defaults_of_the_api(served: Served) -> None:
    described = httpx.get(f"{served.url}/openapi.json").json()
    resolved = _resolved(described["paths"], described["components"]["schemas"], ())
    check("openapi.json", json.dumps(resolved, indent=1, sort_keys=True) + "\n")


def _resolved(value: Any, schemas: dict[str, Any], within: tuple[str, ...]) -> Any:
    """The same with references to schemas, whose names are ours to change, in full, and without prose."""
    if isinstance(value, list):
        return [_resolved(each, schemas, within) for each in value]
    if not isinstance(value, dict):
        return value
    if reference := value.get("$ref"):
        name = reference.rpartition("/")[2]
        return "itself" if name in within else _resolved(schemas[name], schemas, (*within, name))
    prose = {
        name
        for name in ("description", "title", "summary", "operationId", "example", "examples")
        if isinstance(value.get(name), str | list)
    }
    return {name: _resolved(each, schemas, within) for name, each in value.items() if name not in prose}


def test_metrics_with_their_labels(served: Served) -> None:
    question = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
    assert httpx.post(f"{served.url}/v1/chat/completions", json=question).status_code == 200
    assert httpx.post(f"{served.url}/v1/chat/completions", json={}).status_code == 400
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    assert '"qlora_chat_outbox_depth"' in _source(), "served where LOGGING_URL is set, which it is not here"
    kinds = [line for line in lines if line.startswith("# TYPE")]
    buckets = {re.sub(r" [\d.e+-]+$", "", line) for line in lines if "_bucket{" in line}
    labels = {re.sub(r'"[^"]*"|(?<=\}) .*', "", line) for line in lines if "{" in line and "_bucket{" not in line}
    check("metrics.txt", "\n".join([*sorted(kinds), *sorted(labels), *sorted(buckets)]) + "\n")


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("chat", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "logprobs": False, "n": 2}),
        ("text", "/v1/completions", {"prompt": "hi", "max_tokens": 5}),
        ("error", "/v1/chat/completions", {"messages": "none"}),
        ("models", "/v1/models", None),
    ],
)
def test_answers_of_the_api(served: Served, name: str, path: str, body: dict[str, Any] | None) -> None:
    url = f"{served.url}{path}"
    answered = httpx.post(url, json={"model": "scripted", "seed": 5, **body}) if body else httpx.get(url)
    check(f"api_{name}.txt", f"status {answered.status_code}\n{shape(answered.json())}")


def test_events_of_a_streamed_answer(served: Served) -> None:
    question = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    question |= {"stream_options": {"include_usage": True}}
    text = httpx.post(f"{served.url}/v1/chat/completions", json=question).text
    events = [each.removeprefix("data: ") for each in text.split("\n\n") if each]
    assert events[-1] == "[DONE]"
    found = [json.loads(each) for each in events[:-1]]
    told = (found[0], found[1], found[-2], found[-1])
    check("api_stream.txt", "".join(f"--- event\n{shape(each)}" for each in told))


def test_what_the_receiver_counts(samples: Path) -> None:
    with program("--store", "sqlite:///received.db", "--port", str(free_port())) as receiver:
        check("receiver_stats.txt", shape(httpx.get(f"{receiver.url}/stats.json").json()))
