"""The --data option: files, folders or a dataset on the Hub -> conversations, with every record validated.

Scope: files of JSON lines (.jsonl, .jsonl.xz) and JSON (.json), whose records dialogue_formats.py parses. A bad record is
reported by file and line. Knows no tokenizer and no weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_chat.dialogue_formats import BadRecord, kind_of, parse_dialogue
from qlora_chat.messages import Conversation
from qlora_chat.models import Notify
from qlora_chat.models.hub import is_hub_id
from qlora_chat.settings import hub_cache_folder, hub_is_offline
from qlora_chat.training import TrainError

SUFFIXES = (".jsonl", ".jsonl.xz", ".json")
BUILT = "sft.jsonl"
"""Training data of `dataset build`; the preference pairs in the same folder repeat its answers."""
SHOWN_PROBLEMS = 10
MAX_BYTES = 2**30
"""Bytes of all files together, decompressed: they are read into memory."""
MAX_RECORD_BYTES = 16 * 2**20
"""Bytes of a line: objects take thirty times the memory of their JSON."""
MAX_EXPANSION, FREE_EXPANSION = 50, 64 * 2**20
"""Bytes per compressed byte, beyond the second figure: text expands tenfold at most, and a bomb 7,000 times."""


@dataclass(frozen=True)
class Dialogues:
    """Conversations that were read, and counts of records left out."""

    conversations: tuple[Conversation, ...]
    digest: str
    """sha256 over the files' contents, in order."""
    files: tuple[str, ...]
    formats: Mapping[str, int]
    """Number of records by format."""
    unanswered: int = 0
    """Dialogues that lost a last question without an answer, or had nothing else."""
    skipped: int = 0
    """Bad records, if skip_bad allowed them."""

    def summary(self) -> str:
        """Return the counts for the user."""
        formats = ", ".join(f"{count:,} as {name}" for name, count in self.formats.items())
        parts = [f"{len(self.conversations):,} dialogues ({formats})"]
        if self.unanswered:
            parts.append(f"{self.unanswered:,} of them lost a last question without an answer")
        if self.skipped:
            parts.append(f"{self.skipped:,} bad records were skipped")
        return "; ".join(parts)


@dataclass
class _Progress:
    conversations: list[Conversation] = field(default_factory=list)
    formats: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """The first few."""
    bad: int = 0
    """Records with a problem."""
    unanswered: int = 0

    def report(self, problem: str) -> None:
        """Count a bad record; a file may have millions."""
        self.bad += 1
        if self.bad <= SHOWN_PROBLEMS:
            self.problems.append(problem)


def load_dialogues(names: Iterable[str], notify: Notify, *, skip_bad: bool | None = False) -> Dialogues:
    """Read the dialogues of all names, in order; skip_bad as in read_dialogues. TrainError says what prevents it."""
    return read_dialogues([path for name in names for path in find_data(name, notify)], skip_bad=skip_bad)


def find_data(name: str, notify: Notify) -> list[Path]:
    """Return a local path as it is, or the downloaded files of a Hub dataset. TrainError if there is neither."""
    path = Path(name).expanduser()
    if path.exists() or not is_hub_id(name) or name.endswith(SUFFIXES):
        return [path]
    return _download(name, notify)


def _download(repository: str, notify: Notify) -> list[Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    notify(f"downloading the dataset {repository} from the Hub, unless it is cached")
    try:
        folder = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                cache_dir=hub_cache_folder(),
                allow_patterns=[f"*{suffix}" for suffix in SUFFIXES],
                local_files_only=hub_is_offline(),
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise TrainError(f"--data {repository} is no file here, and no dataset of the Hub ({reason})") from problem
    files = sorted(each for each in folder.rglob("*") if each.name.endswith(SUFFIXES))
    training = [each for each in files if not any(word in each.stem.lower() for word in ("test", "eval", "valid"))]
    if not training:
        raise TrainError(f"the dataset {repository} has no {', '.join(SUFFIXES)} file; convert it, and set --data FILE")
    return training


def read_dialogues(paths: Sequence[Path], *, skip_bad: bool | None = False) -> Dialogues:
    """Read every dialogue of the files, in order; a folder stands for its files. TrainError lists bad records by line.

    skip_bad leaves bad records out; None for a command without --skip-bad, whose error must not suggest it.
    """
    files = [file for path in paths for file in _files(path)]
    progress, digest, room = _Progress(), hashlib.sha256(), MAX_BYTES
    for file in files:
        data = _read_file(file, room)
        room -= len(data)
        digest.update(data)
        for where, record in _records(file, data, progress.report):
            _add_record(progress, f"{file}:{where}", record)
    if progress.bad and not skip_bad:
        raise TrainError(_problem_report(progress, can_skip=skip_bad is not None))
    if not progress.conversations:
        raise TrainError(f"no dialogue with an answer in {', '.join(str(path) for path in paths)}")
    return Dialogues(
        tuple(progress.conversations),
        digest.hexdigest(),
        tuple(str(file) for file in files),
        progress.formats,
        progress.unanswered,
        progress.bad,
    )


def _add_record(progress: _Progress, where: str, record: Any) -> None:
    try:
        name, conversation = parse_dialogue(record)
    except BadRecord as problem:
        progress.report(f"{where}: {problem}")
        return
    progress.formats[name] = progress.formats.get(name, 0) + 1
    if conversation.messages[-1].role == "user":
        progress.unanswered += 1
        conversation = Conversation(messages=conversation.messages[:-1], system=conversation.system)
    if conversation.messages:
        progress.conversations.append(conversation)


def _problem_report(progress: _Progress, *, can_skip: bool) -> str:
    shown = "\n".join(f"  {each}" for each in progress.problems)
    more = progress.bad - len(progress.problems)
    rest = f"\n  and {more:,} more" if more else ""
    records = "1 record" if progress.bad == 1 else f"{progress.bad:,} records"
    advice = "fix them, or leave them out with --skip-bad" if can_skip else "fix them"
    return f"{records} cannot be used; {advice}\n{shown}{rest}"


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        if (path / BUILT).is_file():
            return [path / BUILT]
        files = sorted(each for each in path.iterdir() if each.is_file() and each.name.endswith(SUFFIXES))
        if not files:
            raise TrainError(f"{path} is a folder without a {', '.join(SUFFIXES)} file")
        return files
    if not path.is_file():
        raise TrainError(f"{path}: there is no such file")
    if not path.name.endswith(SUFFIXES):
        raise TrainError(f"{path}: a file of dialogues ends in {', '.join(SUFFIXES)}")
    return [path]


def _read_file(file: Path, room: int) -> bytes:
    """Read a file, decompressed. TrainError for more than `room` bytes, and for a few that expand into very many."""
    limit, packed = room, file.suffix == ".xz"
    try:
        size = file.stat().st_size
        if packed:
            limit = size = min(room, FREE_EXPANSION + MAX_EXPANSION * size)
        with lzma.open(file) if packed else file.open("rb") as opened:
            data = opened.read(min(limit, size) + 1)  # which is allocated at once
    except (OSError, EOFError, lzma.LZMAError) as problem:
        raise TrainError(f"{file} cannot be read ({problem})") from problem
    if len(data) <= limit:
        return data
    if limit < room:
        raise TrainError(
            f"{file} expands to more than {limit >> 20:,} MiB, over {MAX_EXPANSION} times its size, as no text does; "
            "if it is meant, decompress it and use the .jsonl file"
        )
    raise TrainError(f"the dialogues have more than {MAX_BYTES >> 20:,} MiB, up to {file}: use a part of them")


def _records(file: Path, data: bytes, report: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Yield (location, record); lines that are not JSON are reported."""
    if file.suffix == ".json":
        yield from _list_records(file, data, report)
        return
    for number, line in enumerate(io.BytesIO(data), start=1):
        if len(line) > MAX_RECORD_BYTES:
            report(f"{file}:{number}: is longer than {MAX_RECORD_BYTES >> 20} MiB")
        elif line.strip():
            value = _decode(f"{file}:{number}", line, report)
            if value is not _INVALID:
                yield str(number), value


def _list_records(file: Path, data: bytes, report: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Yield the records of one JSON list with their first lines."""
    value = _decode(str(file), data, report)
    if value is _INVALID:
        return
    if not isinstance(value, list):
        report(f"{file}: holds {kind_of(value)}, but must hold a list of records, or JSON lines in a .jsonl file")
        return
    lines = _first_lines(data.decode("utf-8"))
    for number, record in enumerate(value, start=1):
        yield f"{next(lines)} (record {number})", record


def _first_lines(text: str) -> Iterator[int]:
    """Yield the line on which each element of a JSON list begins."""
    decoder, position, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    blank = re.compile(r"[\s,]*")
    while True:
        match = blank.match(text, position)
        begin = match.end() if match else position
        line, counted = line + text.count("\n", counted, begin), begin
        yield line
        _, position = decoder.raw_decode(text, begin)


_INVALID = object()


def _decode(where: str, data: bytes, report: Callable[[str], None]) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        report(f"{where}: is not UTF-8 (byte {problem.start + 1})")
    except json.JSONDecodeError as problem:
        report(f"{where}: is not JSON ({problem.msg}, column {problem.colno})")
    except ValueError:
        report(f"{where}: is not a record (a number with thousands of digits)")
    except RecursionError:
        report(f"{where}: is not a record (nested too deep)")
    return _INVALID
