"""Documents name only what exists: commands, options, environment variables, files, tests, and links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from qlora_chat.cli import app
from tests.deploy.test_compose import DEPLOY, REQUIRED

ROOT = Path(__file__).parents[1]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES = sorted([*TOP, *(ROOT / "docs").glob("*.md"), ROOT / "demo" / "README.md", DEPLOY / "compose.yaml"])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
"""Dated notes. They may name files, options and tests that have changed since; their links must work."""
FILE = re.compile(r"(?<![\w/.<])((?:src|tests|bench|docs|demo|deploy|examples|locks)/[\w./-]*\w)")
PROGRAM: Any = typer.main.get_command(app)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
VARIABLE = re.compile(r"\b(?:QLORA_CHAT|LOGGING|OTEL|HF)_[A-Z][A-Z_]*\b")
OTHERS = {
    "--tensor-parallel-size", "--enable-lora", "--distributed-executor-backend", "--pipeline-parallel-size", "--port",  # vLLM
    "--head", "--address",  # Ray
    "--reverse-prompt",  # llama.cpp
    "--env-file", "--scale",  # Compose
    "--build-arg",  # Docker
    "--no-deps", "--no-index", "--no-build-isolation", "--require-hashes", "--only-binary",  # pip
}  # fmt: skip
"""Options of programs that are not ours."""


def commands(group: Any = PROGRAM, name: tuple[str, ...] = ()) -> dict[tuple[str, ...], set[str]]:
    """Every command with all that may be written after it, --help too."""
    if hasattr(group, "commands"):
        return {key: value for each, inner in group.commands.items() for key, value in commands(inner, (*name, each)).items()}
    return {name: {"--help"}.union(*((*each.opts, *each.secondary_opts) for each in group.params))}


COMMANDS = commands()
KNOWN = set.union(*COMMANDS.values(), *(each.opts for each in PROGRAM.params))


def lines_of_code(page: Path) -> list[str]:
    """Command lines of `qlora-chat` and of our scripts, in blocks and between backticks; continued lines are one."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [line.split(" #")[0] for each in (*blocks, *spans) for line in each.splitlines()]


def words_after(line: str, program: str) -> list[str] | None:
    begin = re.search(rf"(?:^|\s){re.escape(program)}\s+(?=[a-z-])", line)
    if not begin:
        return None
    lexer = shlex.shlex(re.split(r"\s[|;&>]", line[begin.end() :])[0], posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.quotes, lexer.commenters = True, '"', ""
    return [word for each in lexer for word in [each.strip("[](),").split("=")[0]] if word]


def wrong_in(line: str) -> str | None:
    """What a line of `qlora-chat ...` asks for that is not there."""
    words = words_after(line, "qlora-chat")
    if not words or words[0].startswith("-"):
        return None
    choices = [name for name in COMMANDS if all(word in each.split("|") for each, word in zip(words, name, strict=False))]
    if not choices:
        return f"no command {' '.join(words[:2])!r}"
    allowed = set.union(*(COMMANDS[name] for name in choices))
    unknown = [part for word in words if word.startswith("--") for part in word.split("|") if part not in allowed]
    return f"{' '.join(choices[0])} has no {unknown[0]}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_is_one_that_the_program_has(page: Path) -> None:
    wrong = [f"{line.strip()!r}: {found}" for line in lines_of_code(page) if (found := wrong_in(line))]
    assert not wrong
    ours = KNOWN | OTHERS | options_of_scripts()
    assert not sorted(set(OPTION.findall(page.read_text())) - ours)


def options_of_scripts() -> set[str]:
    scripts = [*(ROOT / "bench").rglob("*.py"), *(ROOT / "demo").glob("*.py")]
    return {each for script in scripts for each in re.findall(r'add_argument\("(--[a-z0-9-]+)"', script.read_text())}


def test_a_command_or_an_option_that_is_not_there_is_found() -> None:
    assert wrong_in("qlora-chat serve --engine local --port 1") is None
    assert wrong_in("QLORA_CHAT_TOKEN=x qlora-chat serve --prot 1") == "serve has no --prot"
    assert wrong_in("qlora-chat serv --port 1") == "no command 'serv --port'"
    assert wrong_in("qlora-chat history erase --no-such") == "history erase has no --no-such"
    assert wrong_in("qlora-chat logs serve --no-such 1") == "logs serve has no --no-such", (
        "not merely one that some command has"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_environment_variable_is_one_that_is_read(page: Path) -> None:
    settings = "".join(each.read_text() for each in (ROOT / "src" / "qlora_chat" / "settings").glob("*.py"))
    read = set(VARIABLE.findall(settings)) | set(REQUIRED)
    assert not sorted(set(VARIABLE.findall(page.read_text())) - read)


def test_every_variable_of_ours_has_its_place_in_a_page() -> None:
    settings = "".join(each.read_text() for each in (ROOT / "src" / "qlora_chat" / "settings").glob("*.py"))
    documented = "".join(each.read_text() for each in PAGES)
    ours = {each for each in VARIABLE.findall(settings) if each.startswith(("QLORA_CHAT_", "LOGGING_"))}
    assert not sorted(each for each in ours if each not in documented)


def missing_files(text: str) -> list[str]:
    """Paths that do not exist, from the repository's root or, for a test, from tests/."""
    named = set(FILE.findall(text))
    return sorted(each for each in named if not any((folder / each).exists() for folder in (ROOT, ROOT / "tests")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_named_exists(page: Path) -> None:
    assert not missing_files(page.read_text())


def test_a_file_that_is_not_there_is_found() -> None:
    text = "see `src/qlora_chat/chat.py`, `tests/no_such.py` and https://example.com/docs/other.md"
    assert missing_files(text) == ["tests/no_such.py"]


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS], ids=lambda page: page.name)
def test_every_link_to_a_file_works(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [each for each in targets if not re.match(r"[a-z]+:", each)]
    assert not [each for each in local if not (page.parent / each).exists()]


def test_the_index_of_decisions_lists_every_one() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    names = [each.name for each in DECISIONS if each.name != "README.md"]
    assert re.findall(r"\]\((\d{3}-[\w-]+\.md)\)", index) == names


def tree_paths(tree: str) -> list[str]:
    """Paths of an annotated tree: names before two spaces, nested by indentation, several in a line."""
    paths, folders = [], [(-1, "")]
    for line in filter(str.strip, tree.splitlines()):
        indent = len(line) - len(line.lstrip())
        while folders[-1][0] >= indent:
            folders.pop()
        names = re.split(r"\s{2,}", line.strip())[0]
        listed = [folders[-1][1] + each for each in re.split(r"[,\s]+", names) if each]
        paths += listed
        if len(listed) == 1 and listed[0].endswith("/"):
            folders.append((indent, listed[0]))
    return paths


def test_the_tree_of_the_readme_shows_what_there_is() -> None:
    paths = tree_paths((ROOT / "README.md").read_text().partition("## Where things are")[2].split("```")[1])
    assert not [each for each in paths if not (ROOT / each).exists()]
    source = ROOT / "src" / "qlora_chat"
    modules = {each.name for each in source.iterdir() if each.suffix == ".py" or (each / "__init__.py").exists()}
    shown = {each.removeprefix("src/qlora_chat/").strip("/") for each in paths if each.startswith("src/qlora_chat/")}
    assert modules - shown <= {"__init__.py", "__main__.py"}


def test_a_tree_is_read_with_its_folders() -> None:
    assert tree_paths("a/   x\n  b.py, c/   y\n  d/   z\n    e/ f/\ng.md  z") == [
        "a/", "a/b.py", "a/c/", "a/d/", "a/d/e/", "a/d/f/", "g.md",
    ]  # fmt: skip


HELD_BY = re.compile(r"\b((?:\w+/)*test_\w+\.py)((?:(?:, )?::test_\w+…?)*)")


def test_promises_have_numbers_of_their_own_and_are_made_once() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    assert len({number for number, _ in rows}) == len({promise for _, promise in rows}) == len(rows) > 80


def test_every_test_that_a_promise_names_exists() -> None:
    """docs/reliability.md shortens a test's name with an ellipsis, and leaves a file out where it has just named it."""
    missing = []
    for file, names in HELD_BY.findall((ROOT / "docs" / "reliability.md").read_text()):
        path = ROOT / "tests" / file
        text = path.read_text() if path.exists() else ""
        if not text:
            missing.append(file)
        missing += [f"{file}::{each}" for each in re.findall(r"::(test_\w+)", names) if f"def {each}" not in text]
    assert not missing
