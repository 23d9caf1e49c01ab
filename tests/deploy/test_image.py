"""deploy/Dockerfile: what the image of a page process holds. Nothing is built: that takes a Docker daemon."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.deploy.test_compose import DEPLOY, ROOT

RECIPE = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
INSTRUCTIONS = [line for line in RECIPE.splitlines() if line and not line.startswith("#")]


BLOCKED_IMPORTS = """
import importlib.abc, importlib.metadata, re, sys
allowed = set(sys.argv[1].split())
distributions = importlib.metadata.packages_distributions()

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        owners = {re.sub(r"[-_.]+", "-", each).lower() for each in distributions.get(name.split(".")[0], [])}
        if owners and owners.isdisjoint(allowed):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
for module in sys.argv[2:]:
    __import__(module)
"""
"""Imports modules where only some distributions are installed."""
PAGE_MODULES = (
    "cli.commands.serve", "cli.commands.history", "server.run", "web.page", "api.routes", "engines.open",
    "engines.remote.engine", "history.open", "history.sql.store", "delivery.sender", "models.tokenizer.sentencepiece",
)  # fmt: skip


def packages(name: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "locks" / f"{name}.txt").read_text(), re.MULTILINE))


def test_the_image_has_all_that_a_page_needs_and_none_of_what_computes_or_tests() -> None:
    page = packages("page")
    assert {"gradio", "fastapi", "uvicorn", "httpx", "tokenizers", "sqlalchemy", "psycopg", "requests", "typer"} <= page
    assert {"cryptography", "opentelemetry-sdk", "sentencepiece", "safetensors"} <= page, "what settings can switch on"
    computes = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "networkx", "sympy", "regex"}
    draws_and_exports = {"matplotlib", "contourpy", "kiwisolver", "pyarrow"}
    tests_and_builds = {
        "pytest",
        "playwright",
        "openai",
        "tiktoken",
        "langchain-core",
        "zstandard",
        "schemathesis",
        "setuptools",
    }
    assert page.isdisjoint(computes | draws_and_exports | tests_and_builds)


def test_a_page_imports_nothing_that_the_image_lacks() -> None:
    modules = [f"qlora_chat.{each}" for each in PAGE_MODULES]
    installed = " ".join(packages("page") | {"qlora-chat"})
    command = [sys.executable, "-c", BLOCKED_IMPORTS, installed, *modules]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_every_direct_requirement_of_the_page_is_one_of_the_program() -> None:
    project = (ROOT / "pyproject.toml").read_text().lower()
    for line in (ROOT / "locks" / "page.in").read_text().splitlines():
        if name := line.partition("#")[0].strip():
            assert f'"{name}>=' in project, name


def test_pip_takes_only_wheels_whose_hash_is_known() -> None:
    installs = [part for line in INSTRUCTIONS for part in line.split(" && ") if re.search(r"\bpip .*(install|wheel)\b", part)]
    assert len(installs) == 4
    for each in installs:
        checked = "--require-hashes" in each and "--only-binary :all:" in each
        assert checked or "--no-index" in each, f"{each!r} takes files from an index unchecked"


def test_the_base_image_is_a_build_argument_without_a_default() -> None:
    assert INSTRUCTIONS[0] == "ARG PYTHON_DIGEST", "no digest that nobody looked up"
    bases = [line.split()[1] for line in INSTRUCTIONS if line.startswith("FROM")]
    assert re.fullmatch(r"python:3\.11-slim@\$\{PYTHON_DIGEST:\?.*", bases[0])
    assert set(bases[1:]) == {"python"}, "the stages share one base"


def test_the_process_is_nobody_and_what_builds_stays_behind() -> None:
    last = INSTRUCTIONS[max(index for index, line in enumerate(INSTRUCTIONS) if line.startswith("FROM")) :]
    assert "USER nobody" in last
    assert not [line for line in last if line.startswith("RUN")]
    assert [line for line in last if line.startswith("COPY")] == ["COPY --from=build /opt/page /opt/page"]


@pytest.mark.parametrize("name", ["locks", "src", "pyproject.toml", "README.md", "LICENSE", "NOTICE"])
def test_the_build_reads_what_it_copies_and_nothing_else(name: str) -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert f"!{name}" in ignored
    copied = " ".join(line for line in INSTRUCTIONS if line.startswith("COPY"))
    assert name in copied
    assert (ROOT / name).exists()


def test_no_secret_reaches_the_build_or_a_commit() -> None:
    allowed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == {"locks", "src", "pyproject.toml", "README.md", "LICENSE", "NOTICE"}
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
