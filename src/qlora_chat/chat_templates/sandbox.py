"""A program of its own that renders chat templates: one JSON request a line in, one JSON reply a line out.

Scope: Jinja's immutable sandbox with the names that Transformers gives to templates, and bounds on time, memory and output.
renderer.py starts it without environment variables; it imports the standard library and Jinja alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**30
CACHED = 8
"""Compiled templates that stay in memory."""


class TooLong(Exception):
    """A template ran beyond its time, or wrote more than it may."""


class _GenerationTag(Extension):
    """`{% generation %}`: marks what the assistant wrote, where the request asks for marks."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it
    marks: tuple[str, str] = ("", "")

    def parse(self, parser: Parser) -> nodes.Node:
        """Make the block a call of `_marked`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        begin, end = _GenerationTag.marks
        return begin + caller() + end


class _Dict:
    """`dict` without the attributes of the type."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Renderer:
    """Compiled templates and the environment that runs them."""

    def __init__(self) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        self._environment.filters["tojson"] = _tojson
        names = {"raise_exception": _raise_exception, "strftime_now": self._strftime_now, "dict": _Dict()}
        self._environment.globals.update(names)
        self._compiled: dict[str, tuple[jinja2.Template, list[str]]] = {}
        self._now = datetime.now()

    def reply(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The rendered texts, or the error with its line."""
        self._now = datetime.fromisoformat(request["now"])
        try:
            template, constants = self._template(request["template"])
            return {"constants": constants, "texts": [self._render(template, request, call) for call in request["calls"]]}
        except Exception as problem:
            return _failure(problem)

    def _strftime_now(self, form: str) -> str:
        return self._now.strftime(form)

    def _template(self, source: str) -> tuple[jinja2.Template, list[str]]:
        if source not in self._compiled:
            if len(self._compiled) >= CACHED:
                self._compiled.pop(next(iter(self._compiled)))
            tree = self._environment.parse(source)
            constants = {each.value for each in tree.find_all(nodes.Const) if isinstance(each.value, str)}
            self._compiled[source] = self._environment.from_string(source), sorted(constants)
        return self._compiled[source]

    def _render(self, template: jinja2.Template, request: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
        _GenerationTag.marks = tuple(call.get("generation_marks") or ("", ""))  # type: ignore[assignment]
        values = {"tools": None, "documents": None, **request["variables"]}
        values |= {"messages": call["messages"], "add_generation_prompt": call["add_generation_prompt"]}
        try:
            return {"text": _bounded(template.generate(**values), request["limit"])}
        except (TooLong, MemoryError):
            raise
        except Exception as problem:
            return _failure(problem)


def _bounded(parts: Iterator[str], limit: int) -> str:
    written: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        if size > limit:
            raise TooLong(f"it writes more than {limit:,} characters")
        written.append(part)
    return "".join(written)


def _failure(problem: Exception) -> dict[str, Any]:
    """The reply for an error: its text, and the template's line where it is known."""
    line = getattr(problem, "lineno", None)
    trace = problem.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    raised = type(problem) is jinja2.TemplateError
    if isinstance(problem, RecursionError):
        text = "it calls itself without end"
    elif isinstance(problem, MemoryError):
        text = f"it takes more than {MEMORY // 2**20:,} MiB of memory"
    else:
        text = str(problem) or type(problem).__name__
    return {"error": text, "line": line, "raised": raised}


def _limit_memory() -> None:
    """No more memory and no files, where the system has such limits."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _limit_time(seconds: float) -> None:
    """Interrupt this request after so much CPU time; one that cannot be interrupted ends the program a little later."""

    def interrupt(*_: object) -> None:
        raise TooLong(f"it takes more than {seconds:g} s")

    with contextlib.suppress(OSError, ValueError):
        usage = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(usage.ru_utime + usage.ru_stime + 1.5 * seconds), hard))
        signal.signal(signal.SIGPROF, interrupt)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _reply(renderer: Renderer, line: bytes) -> dict[str, Any]:
    request = json.loads(line)
    try:
        _limit_time(request["seconds"])
        return renderer.reply(request)
    except TooLong as problem:  # between two tries
        return _failure(problem)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Answer requests until standard input ends."""
    _limit_memory()
    renderer = Renderer()
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(_reply(renderer, line)).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
