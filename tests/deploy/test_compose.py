"""deploy/: what the files say fits together and fits the program. Nothing is started: that takes cards and images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_chat.cli import app
from qlora_chat.settings import (
    ServeSettings,
    api_tokens,
    engine_settings,
    history_settings,
    log_settings,
    page_token,
)

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
REQUIRED = {"MODEL_FOLDER": "/srv/chat", "MODEL_NAME": "chat", "PAGE_HOST": "chat.example", "PAGE_PASSWORD": "p" * 24,
            "ENGINE_KEY": "k" * 24, "DATABASE_PASSWORD": "d" * 24}  # fmt: skip


def filled(text: str, environ: dict[str, str]) -> str:
    """The file as Compose reads it: ${NAME}, ${NAME:-else}, ${NAME:?why}. KeyError for a name that must be set and is not."""

    def value(match: re.Match[str]) -> str:
        name, kind = match["name"], match["kind"]
        if environ.get(name):
            return environ[name]
        if kind == ":?":
            raise KeyError(name)
        return match["rest"] if kind == ":-" else ""

    return re.sub(r"\$\{(?P<name>[A-Z_]+)(?:(?P<kind>:[-?])(?P<rest>[^}]*))?\}", value, text)


@pytest.fixture
def compose() -> dict[str, Any]:
    return yaml.safe_load(filled((DEPLOY / "compose.yaml").read_text(), REQUIRED))


def test_every_value_that_must_be_set_is_asked_for_and_documented() -> None:
    text, page = (DEPLOY / "compose.yaml").read_text(), (ROOT / "docs" / "scale.md").read_text()
    for name in REQUIRED:
        with pytest.raises(KeyError, match=name):
            filled(text, {key: value for key, value in REQUIRED.items() if key != name})
        assert f"`{name}`" in page, "docs/scale.md lists it"


def test_services_volumes_and_files_are_there(compose: dict[str, Any]) -> None:
    services, volumes = compose["services"], set(compose["volumes"])
    for name, service in services.items():
        assert ("image" in service) != ("build" in service), name
        assert set(service.get("depends_on", [])) <= set(services), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = source in volumes or source == REQUIRED["MODEL_FOLDER"] or (DEPLOY / source).is_file()
            assert known, f"{name} mounts {source}"
        for needed in service.get("depends_on", {}):
            if isinstance(service["depends_on"], dict):
                assert "healthcheck" in services[needed], f"{name} waits for {needed} to be healthy"
    build = services["page"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == ["80:80", "443:443"], "only the proxy is reached from outside"


def test_the_pages_command_is_one_that_the_program_takes(compose: dict[str, Any]) -> None:
    import typer.main

    page = compose["services"]["page"]
    command, *arguments = shlex.split(page["command"])
    serve = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    given = serve.make_context(command, arguments, resilient_parsing=False).params
    environ = {key: "" if value is None else str(value) for key, value in page["environment"].items()}
    settings = ServeSettings(given["host"], given["port"], page_token(environ), tuple(given["allow_host"]), api_tokens(environ))
    assert settings.allowed_hosts == (REQUIRED["PAGE_HOST"],)
    where = engine_settings(given["engine"], given["engine_model"], environ)
    assert (where.urls, where.model, where.key) == (("http://vllm:8000/v1",), REQUIRED["MODEL_NAME"], REQUIRED["ENGINE_KEY"])
    history = history_settings(given["history"], environ)
    assert (history.url, history.password) == ("postgresql://qlora@postgres/qlora", REQUIRED["DATABASE_PASSWORD"])
    assert log_settings(environ).url is None, "an empty LOGGING_URL is none"
    drain, stop = 25.0, float(page["stop_grace_period"].removesuffix("s"))
    assert stop > drain + 3, "answers being written get to their end"


def test_the_database_is_the_one_that_pages_ask(compose: dict[str, Any]) -> None:
    database = compose["services"]["postgres"]["environment"]
    assert (database["POSTGRES_USER"], database["POSTGRES_DB"]) == ("qlora", "qlora")
    assert database["POSTGRES_PASSWORD"] == REQUIRED["DATABASE_PASSWORD"]


def test_the_proxy_keeps_browsers_with_their_process_and_streams_at_once() -> None:
    caddy = (DEPLOY / "Caddyfile").read_text()
    assert "lb_policy cookie" in caddy
    assert "flush_interval -1" in caddy
    assert re.search(r"dynamic a page 7860", caddy), "the port that the pages listen on"


def test_the_image_has_all_that_a_page_needs_and_none_of_what_computes() -> None:
    recipe = (DEPLOY / "Dockerfile").read_text()
    left_out = re.search(r"grep -vE '(\S+)'", recipe)
    assert left_out
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not re.match(left_out[1], line)]
    kept = {line.split("==")[0].lower() for line in pinned}
    for needed in ("gradio", "fastapi", "uvicorn", "httpx", "tokenizers", "sqlalchemy", "psycopg", "requests", "typer"):
        assert needed in kept
    for heavy in ("torch", "transformers", "peft", "bitsandbytes", "accelerate"):
        assert heavy not in kept
    copied = re.search(r"^COPY (constraints.txt .*) \./$", recipe, re.MULTILINE)
    assert copied
    assert all((ROOT / name).is_file() for name in copied[1].split())
