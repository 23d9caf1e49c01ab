"""Files of dialogues -> conversations, every record recognised and checked.

Scope: JSON lines (.jsonl, .jsonl.xz) and JSON (.json) in five forms: `messages`, ShareGPT's `conversations`, Alpaca's
`instruction`/`input`/`output`, Guanaco's `text`, and preference pairs, of which the chosen answer is learnt. A bad record is
named by file and line, with what is wrong. Knows no tokenizer and no weights.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_chat.messages import Conversation, Message, Role
from qlora_chat.training import TrainError

SUFFIXES = (".jsonl", ".jsonl.xz", ".json")
BUILT = "sft.jsonl"
"""What `dataset build` wrote to learn from; the preference pairs beside it say the same answers again."""
SHOWN_PROBLEMS = 10

_ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
_TURN = re.compile(r"### (Human|Assistant):")


class BadRecord(ValueError):
    """What is wrong with one record."""


@dataclass(frozen=True)
class Dialogues:
    """What was read, and what was left out."""

    conversations: tuple[Conversation, ...]
    digest: str
    """sha256 over the files' contents, in order."""
    files: tuple[str, ...]
    forms: Mapping[str, int]
    """Records by form."""
    unanswered: int = 0
    """Dialogues that lost a last question which nobody answered, and those that held nothing else."""
    skipped: int = 0
    """Bad records, where they were to be skipped."""


@dataclass
class _Reading:
    conversations: list[Conversation] = field(default_factory=list)
    forms: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unanswered: int = 0


def read_dialogues(paths: Sequence[Path], *, skip_bad: bool | None = False) -> Dialogues:
    """Every dialogue of the files, in order; a folder stands for its files. TrainError lists what is wrong, and where.

    skip_bad leaves bad records out; None where the command has no --skip-bad to tell of.
    """
    files = [file for path in paths for file in _files(path)]
    reading, digest = _Reading(), hashlib.sha256()
    for file in files:
        data = _contents(file)
        digest.update(data)
        for where, record in _records(file, data, reading.problems):
            _take(reading, f"{file}:{where}", record)
    if reading.problems and not skip_bad:
        raise TrainError(_told(reading.problems, can_skip=skip_bad is not None))
    if not reading.conversations:
        raise TrainError(f"there is no dialogue with an answer in {', '.join(str(path) for path in paths)}")
    return Dialogues(
        tuple(reading.conversations),
        digest.hexdigest(),
        tuple(str(file) for file in files),
        reading.forms,
        reading.unanswered,
        len(reading.problems),
    )


def _take(reading: _Reading, where: str, record: Any) -> None:
    try:
        form, conversation = parse(record)
    except BadRecord as problem:
        reading.problems.append(f"{where}: {problem}")
        return
    reading.forms[form] = reading.forms.get(form, 0) + 1
    if conversation.messages[-1].role == "user":
        reading.unanswered += 1
        conversation = Conversation(messages=conversation.messages[:-1], system=conversation.system)
    if conversation.messages:
        reading.conversations.append(conversation)


def _told(problems: Sequence[str], *, can_skip: bool) -> str:
    shown = "\n".join(f"  {each}" for each in problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    rest = f"\n  and {more:,} more" if more > 0 else ""
    records = "1 record" if len(problems) == 1 else f"{len(problems):,} records"
    mend = "mend them, or leave them out with --skip-bad" if can_skip else "mend them"
    return f"{records} cannot be used; {mend}\n{shown}{rest}"


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        if (path / BUILT).is_file():
            return [path / BUILT]
        found = sorted(each for each in path.iterdir() if each.is_file() and each.name.endswith(SUFFIXES))
        if not found:
            raise TrainError(f"{path} is a folder without a {', '.join(SUFFIXES)} file")
        return found
    if not path.is_file():
        raise TrainError(f"{path}: there is no such file")
    if not path.name.endswith(SUFFIXES):
        raise TrainError(f"{path}: a file of dialogues ends in {', '.join(SUFFIXES)}")
    return [path]


def _contents(file: Path) -> bytes:
    try:
        data = file.read_bytes()
        return lzma.decompress(data) if file.suffix == ".xz" else data
    except (OSError, lzma.LZMAError) as problem:
        raise TrainError(f"{file} cannot be read ({problem})") from problem


def _records(file: Path, data: bytes, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """(where, record) of each; what is not JSON goes to `problems`."""
    if file.suffix == ".json":
        yield from _listed(file, data, problems)
        return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            value = _decoded(f"{file}:{number}", line, problems)
            if value is not _NOTHING:
                yield str(number), value


def _listed(file: Path, data: bytes, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Records of one JSON list, each with the line on which it begins."""
    value = _decoded(str(file), data, problems)
    if value is _NOTHING:
        return
    if not isinstance(value, list):
        problems.append(f"{file}: holds {_kind(value)}, but must hold a list of records, or JSON lines in a .jsonl file")
        return
    lines = _beginnings(data.decode("utf-8"))
    for number, record in enumerate(value, start=1):
        yield f"{next(lines)} (record {number})", record


def _beginnings(text: str) -> Iterator[int]:
    """The line on which each element of a JSON list begins."""
    decoder, position, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    blank = re.compile(r"[\s,]*")
    while True:
        match = blank.match(text, position)
        begin = match.end() if match else position
        line, counted = line + text.count("\n", counted, begin), begin
        yield line
        _, position = decoder.raw_decode(text, begin)


_NOTHING = object()


def _decoded(where: str, data: bytes, problems: list[str]) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        problems.append(f"{where}: is not UTF-8 (byte {problem.start + 1})")
    except json.JSONDecodeError as problem:
        problems.append(f"{where}: is not JSON ({problem.msg}, column {problem.colno})")
    except RecursionError:
        problems.append(f"{where}: is not a record (nested too deep)")
    return _NOTHING


# --- the five forms --------------------------------------------------------------------------------------------------


def parse(record: Any) -> tuple[str, Conversation]:
    """The form's name and the conversation, which may end with a question. BadRecord says what is wrong."""
    if not isinstance(record, dict):
        raise BadRecord(f"is {_kind(record)}, but must be an object")
    if "messages" in record:
        return "messages", _conversation(record["messages"], "messages", "role", "content")
    if "conversations" in record:
        own = record.get("system")
        return "sharegpt", _conversation(record["conversations"], "conversations", "from", "value", own)
    if "instruction" in record and "output" in record:
        return "alpaca", _alpaca(record)
    if "prompt" in record and "chosen" in record:
        return "preference", _preferred(record)
    if "text" in record:
        return "guanaco", _guanaco(record["text"])
    has = ", ".join(repr(name) for name in list(record)[:6]) or "nothing"
    expected = "'messages', 'conversations', 'instruction' and 'output', 'prompt' and 'chosen', or 'text'"
    raise BadRecord(f"has {has}, but must have {expected}")


def _conversation(turns: Any, name: str, role_key: str, text_key: str, system: Any = None) -> Conversation:
    if not isinstance(turns, list) or not turns:
        raise BadRecord(f"{name!r} is {_kind(turns)}, but must be a list of turns")
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        where = f"{name}[{index}]"
        role, content = _turn(turn, where, role_key, text_key)
        if role == "system":
            if index:
                raise BadRecord(f"{where} is a system text, which can only come first")
            system = content
            continue
        messages.append(_in_turn(messages, role, content, where))
    return _checked(messages, system)


def _preferred(record: Mapping[str, Any]) -> Conversation:
    """A pair's better side; the other is for trainers that learn from both."""
    for name in ("prompt", "chosen"):
        if not isinstance(record[name], list):
            raise BadRecord(f"{name!r} is {_kind(record[name])}, but must be a list of messages")
    return _conversation([*record["prompt"], *record["chosen"]], "prompt and chosen", "role", "content")


def _turn(turn: Any, where: str, role_key: str, text_key: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise BadRecord(f"{where} is {_kind(turn)}, but must be an object with {role_key!r} and {text_key!r}")
    for key in (role_key, text_key):
        if not isinstance(turn.get(key), str):
            what = _kind(turn[key]) if key in turn else "missing"
            raise BadRecord(f"{where}: {key!r} is {what}, but must be a text")
    role = _ROLES.get(turn[role_key])
    if role is None:
        raise BadRecord(f"{where}: {role_key!r} is {turn[role_key]!r}, but must be one of {', '.join(_ROLES)}")
    return role, turn[text_key]


def _in_turn(messages: Sequence[Message], role: str, content: str, where: str) -> Message:
    expected: Role = "user" if len(messages) % 2 == 0 else "assistant"
    if role != expected:
        first = "a dialogue begins with the user" if not messages else "turns alternate"
        raise BadRecord(f"{where} is the {role}'s, but must be the {expected}'s: {first}")
    if not content.strip():
        raise BadRecord(f"{where}: the {role}'s text is empty")
    return Message(expected, content.strip())


def _checked(messages: Sequence[Message], system: Any) -> Conversation:
    if system is not None and not isinstance(system, str):
        raise BadRecord(f"'system' is {_kind(system)}, but must be a text")
    if not messages:
        raise BadRecord("holds no turn of a user")
    return Conversation(messages=tuple(messages), system=system)


def _alpaca(record: Mapping[str, Any]) -> Conversation:
    for key in ("instruction", "input", "output"):
        value = record.get(key, "" if key == "input" else None)
        if not isinstance(value, str) and not (key == "input" and value is None):
            raise BadRecord(f"{key!r} is {_kind(value)}, but must be a text")
    asked = "\n\n".join(part.strip() for part in (record["instruction"], record.get("input") or "") if part.strip())
    messages: list[Message] = []
    for role, content, where in (("user", asked, "'instruction'"), ("assistant", record["output"], "'output'")):
        messages.append(_in_turn(messages, role, content, where))
    return _checked(messages, record.get("system"))


def _guanaco(text: Any) -> Conversation:
    if not isinstance(text, str):
        raise BadRecord(f"'text' is {_kind(text)}, but must be a text")
    before, *parts = _TURN.split(text)
    if not parts:
        raise BadRecord("'text' holds no '### Human:' and '### Assistant:'")
    messages: list[Message] = []
    last = len(parts) - 2
    for index in range(0, len(parts), 2):
        role = "user" if parts[index] == "Human" else "assistant"
        if index == last and not parts[index + 1].strip():
            break  # a marker with nothing behind it closes many of these texts
        messages.append(_in_turn(messages, role, parts[index + 1], f"turn {index // 2 + 1} of 'text'"))
    return _checked(messages, before.strip() or None)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | dict) and not value:
        return "empty"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
