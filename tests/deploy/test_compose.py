"""deploy/: what the files say fits together and fits the program. Nothing is started: that takes cards and images."""

from __future__ import annotations

import re
import shlex
from ipaddress import ip_address, ip_network
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
    operator_token,
    page_token,
)

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DIGEST = f"sha256:{'0' * 64}"
REQUIRED = {"MODEL_FOLDER": "/srv/chat", "MODEL_NAME": "chat", "PAGE_HOST": "chat.example", "PAGE_PASSWORD": "p" * 24,
            "ENGINE_KEY": "k" * 24, "DATABASE_PASSWORD": "d" * 24, "DATABASE_ADMIN_PASSWORD": "a" * 24,
            "PYTHON_DIGEST": DIGEST, "VLLM_DIGEST": DIGEST, "POSTGRES_DIGEST": DIGEST, "CADDY_DIGEST": DIGEST}  # fmt: skip
OPTIONAL = {"API_TOKENS": "one,two", "OPERATOR_TOKEN": "o" * 24,
            "HISTORY_KEY": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
            "LOGGING_URL": "https://logs.example/log", "LOGGING_TOKEN": "t" * 24, "LOGGING_SECRET": "s" * 24}  # fmt: skip
WRITABLE = {"conversations", "certificates"}
"""Volumes; every other mount is read-only."""


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
    for name in (*REQUIRED, *OPTIONAL):
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
    assert settings.api_tokens == ()
    proxy = compose["services"]["proxy"]["networks"]["front"]["ipv4_address"]
    assert given["trusted_proxy"] == [proxy]
    assert settings.allowed_hosts == (REQUIRED["PAGE_HOST"],)
    where = engine_settings(given["engine"], given["engine_model"], environ)
    assert (where.urls, where.model, where.key) == (("http://vllm:8000/v1",), REQUIRED["MODEL_NAME"], REQUIRED["ENGINE_KEY"])
    history = history_settings(given["history"], environ)
    assert (history.url, history.password) == ("postgresql://qlora@postgres/qlora", REQUIRED["DATABASE_PASSWORD"])
    assert history.key is None, "an empty HISTORY_KEY is none"
    assert log_settings(environ).url is None, "an empty LOGGING_URL is none"
    drain, stop = 25.0, float(page["stop_grace_period"].removesuffix("s"))
    assert stop > drain + 3, "answers being written get to their end"


def test_pages_get_every_secret_that_was_set() -> None:
    text = filled((DEPLOY / "compose.yaml").read_text(), REQUIRED | OPTIONAL)
    environ = yaml.safe_load(text)["services"]["page"]["environment"]
    assert api_tokens(environ) == ("one", "two")
    assert operator_token(environ) == OPTIONAL["OPERATOR_TOKEN"]
    assert history_settings("postgresql://qlora@postgres/qlora", environ).key == OPTIONAL["HISTORY_KEY"]
    log = log_settings(environ)
    assert (log.url, log.token, log.secret) == tuple(OPTIONAL[f"LOGGING_{name}"] for name in ("URL", "TOKEN", "SECRET"))


def test_a_service_gets_no_secret_of_another(compose: dict[str, Any]) -> None:
    services = {name: yaml.safe_dump(service) for name, service in compose["services"].items()}
    holders = {
        "PAGE_PASSWORD": {"page"},
        "ENGINE_KEY": {"page", "vllm"},
        "DATABASE_PASSWORD": {"page", "postgres"},
        "DATABASE_ADMIN_PASSWORD": {"postgres"},
    }
    for secret, expected in holders.items():
        assert {name for name, text in services.items() if REQUIRED[secret] in text} == expected, secret


def test_no_service_can_gain_rights_or_change_its_own_files(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert any(each.split(":")[0] == "/tmp" for each in service["tmpfs"]), f"{name} has a place for temporary files"
        assert not {"privileged", "ipc", "pid", "network_mode", "devices"} & set(service), name
        for volume in service["volumes"]:
            assert volume.endswith(":ro") or volume.split(":")[0] in WRITABLE, f"{name}: {volume}"
    added = {name: service["cap_add"] for name, service in compose["services"].items() if "cap_add" in service}
    assert added == {"proxy": ["NET_BIND_SERVICE"]}


def test_only_pages_are_on_both_networks_and_the_back_one_has_no_way_out(compose: dict[str, Any]) -> None:
    networks = {name: list(service["networks"]) for name, service in compose["services"].items()}
    assert networks == {"vllm": ["back"], "postgres": ["back"], "page": ["front", "back"], "proxy": ["front"]}
    assert compose["networks"]["back"]["internal"] is True


def test_no_page_can_be_given_the_proxys_address(compose: dict[str, Any]) -> None:
    front = compose["networks"]["front"]["ipam"]["config"][0]
    proxy = ip_address(compose["services"]["proxy"]["networks"]["front"]["ipv4_address"])
    assert proxy in ip_network(front["subnet"])
    assert proxy not in ip_network(front["ip_range"])


def test_images_are_named_by_their_digest(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if "image" in service:
            assert service["image"].endswith(f"@{DIGEST}"), name
    assert compose["services"]["page"]["build"]["args"] == {"PYTHON_DIGEST": DIGEST}
    assert "sha256:" not in (DEPLOY / "compose.yaml").read_text(), "a digest is looked up, never written by hand"


def test_the_proxy_keeps_browsers_with_their_process_and_streams_at_once() -> None:
    caddy = (DEPLOY / "Caddyfile").read_text()
    assert "lb_policy cookie" in caddy
    assert "flush_interval -1" in caddy
    assert re.search(r"dynamic a page 7860", caddy), "the port that the pages listen on"
