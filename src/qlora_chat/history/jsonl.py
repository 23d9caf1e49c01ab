"""Plain files: a folder with one file a conversation, one JSON object a line, append-only.

Scope: files. Each line is on disk before the call returns; an incomplete last line, which a crash may leave, is ignored. The
text of an open answer is in a file next to it, which is replaced as a whole. Processes lock each file with flock.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from qlora_chat.history import (
    ConversationInfo,
    HistoryError,
    HistoryUnavailable,
    OutboxRecord,
    Queue,
    StoredConversation,
    TurnRecord,
)
from qlora_chat.history.partial_answers import PartialAnswerWriter
from qlora_chat.history.storage.jsonl_log import append, changes, read, with_partial
from qlora_chat.history.value_store import Content, ValueStore, Write
from qlora_chat.messages import Conversation, Message
from qlora_chat.private_files import make_private_folder, private_opener

try:
    import fcntl
except ImportError:  # Windows: one process at a time
    fcntl = None

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SUFFIX, PARTIAL_SUFFIX = ".jsonl", ".partial"


class JsonlHistory(ValueStore):
    """HistoryStore over a folder. Listing and searching read every file that has changed since it was last read."""

    def __init__(self, folder: Path, queue: Queue | None = None) -> None:
        super().__init__(queue)
        self._folder = folder
        try:
            make_private_folder(folder)
        except OSError as problem:
            raise HistoryError(f"{folder} cannot be used as a folder ({problem.strerror})") from None
        self._cache: dict[Path, tuple[tuple[int, int], StoredConversation, ConversationInfo]] = {}
        """((size, mtime), conversation, its owner and name) of each file that has been read."""
        self._open_answers: dict[str, str] = {}
        """Conversation id of each open answer of this process."""
        self._partials = PartialAnswerWriter(self._write_partials)

    def update_partial(self, conversation_id: str, answer: Message) -> None:
        """Note the current text of an open answer."""
        self._open_answers.setdefault(answer.id, conversation_id)
        self._partials.note(conversation_id, answer)

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Close the open answer; its text is no longer beside the file."""
        self._partials.discard(record.answer.id)
        with self._lock:
            super().finish(record, outgoing)
            self._partial_file(record.conversation.id).unlink(missing_ok=True)
            self._open_answers.pop(record.answer.id, None)

    def close(self) -> None:
        """Write pending partial answers."""
        self._partials.close()

    # --- files -----------------------------------------------------------------------------------------------------

    def _file(self, conversation_id: str) -> Path:
        """File of a conversation, named after its id, or the id's hash if it is no safe name: imported ids may be anything."""
        safe = _FILE_NAME.fullmatch(conversation_id) is not None
        name = conversation_id if safe else f"id-{hashlib.sha256(conversation_id.encode('utf-8', 'replace')).hexdigest()}"
        return self._folder / f"{name}{SUFFIX}"

    def _partial_file(self, conversation_id: str) -> Path:
        return self._file(conversation_id).with_suffix(PARTIAL_SUFFIX)

    @contextmanager
    def _changing(self, conversation_id: str) -> Iterator[tuple[StoredConversation | None, Write]]:
        """Changes are appended to the conversation's file, which is locked against other threads and processes."""
        path = self._file(conversation_id)
        try:
            with self._lock, open(path, "a+b", opener=private_opener) as file:
                if fcntl:
                    fcntl.flock(file, fcntl.LOCK_EX)
                stored = self.read(conversation_id)
                yield stored, lambda changed, info: append(file, changes(stored, changed, info))
        except OSError as problem:
            raise HistoryUnavailable(f"the history's folder cannot be written ({problem.strerror})") from None
        finally:
            with suppress(OSError):
                if path.stat().st_size == 0:  # nothing was added
                    path.unlink()

    def _content(self, conversation_id: str) -> Content | None:
        return self._read(self._file(conversation_id))

    def _may_begin(self, conversation: Conversation) -> bool:
        return conversation.head is None

    def _remove(self, conversation_id: str) -> bool:
        file = self._file(conversation_id)
        existed = file.exists()
        for path in (file, self._partial_file(conversation_id)):
            path.unlink(missing_ok=True)
        self._cache.pop(file, None)
        return existed

    def _write_partials(self, answers: Mapping[str, tuple[str, Message]]) -> None:
        with self._lock:
            for _, answer in answers.values():
                conversation_id = self._open_answers.get(answer.id)
                if conversation_id is None or not self._file(conversation_id).exists():
                    continue
                partial = self._partial_file(conversation_id)
                new = partial.with_suffix(".new")
                with open(new, "wb", opener=private_opener) as file:
                    file.write(json.dumps({"id": answer.id, "content": answer.content}).encode())
                os.replace(new, partial)

    def _contents(self) -> Iterator[Content]:
        try:
            names = sorted(each for each in os.listdir(self._folder) if each.endswith(SUFFIX))
        except OSError as problem:
            raise HistoryUnavailable(f"the history's folder {self._folder} cannot be read ({problem.strerror})") from None
        for path in map(self._folder.joinpath, names):
            content = self._read(path)
            if content:
                yield content

    def _read(self, path: Path) -> Content | None:
        """Content of a file; None if it has none."""
        partial = path.with_suffix(PARTIAL_SUFFIX)
        try:
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns)
            if (cached := self._cache.get(path)) and cached[0] == state and not partial.exists():
                return cached[1:]
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise HistoryUnavailable(f"the history's folder cannot be read ({problem.strerror})") from None
        content = read(lines)
        if content is None:
            return None
        conversation, info = with_partial(content[0], partial), content[1]
        self._cache[path] = (state, conversation, info)
        return conversation, info
