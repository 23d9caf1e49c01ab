"""Plain files: a folder with one file a conversation, one JSON object a line, append-only.

Scope: files. Each line is on disk before the call returns; an incomplete last line, which a crash may leave, is ignored. The
text of an open answer is in a file next to it, which is replaced as a whole. Processes lock each file with flock.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from qlora_chat.history import (
    ConversationInfo,
    Feedback,
    HistoryError,
    HistoryUnavailable,
    OutboxRecord,
    Queue,
    SearchHit,
    StaleConversation,
    StoredConversation,
    StoredTurn,
    Summary,
    TurnRecord,
    now,
)
from qlora_chat.history.answer_metadata import answer_metadata
from qlora_chat.history.json_codec import feedback_to_json, heading_to_json, turn_to_json
from qlora_chat.history.jsonl_log import append, read, with_partial
from qlora_chat.history.partial_answers import PartialAnswerWriter
from qlora_chat.history.text_match import list_conversations, search_conversations, title_of
from qlora_chat.messages import Conversation, Message
from qlora_chat.private_files import make_private_folder, private_opener

try:
    import fcntl
except ImportError:  # Windows: one process at a time
    fcntl = None

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SUFFIX, PARTIAL_SUFFIX = ".jsonl", ".partial"


class JsonlHistory:
    """HistoryStore over a folder. Listing and searching read every file that has changed since it was last read."""

    def __init__(self, folder: Path, queue: Queue | None = None) -> None:
        self._folder, self._queue = folder, queue
        try:
            make_private_folder(folder)
        except OSError as problem:
            raise HistoryError(f"{folder} cannot be used as a folder ({problem.strerror})") from None
        self._lock = threading.RLock()
        self._cache: dict[Path, tuple[tuple[int, int], StoredConversation, str | None]] = {}
        """((size, mtime), conversation, owner) of each file that has been read."""
        self._open_answers: dict[str, str] = {}
        """Conversation id of each open answer of this process."""
        self._partials = PartialAnswerWriter(self._write_partials)

    def save(self, conversation: Conversation, info: ConversationInfo | None = None) -> Conversation:
        """Add new messages and move the head; StaleConversation if the stored head is another."""
        info, moment = info or ConversationInfo(), now()
        with self._appending(conversation.id) as (file, stored):
            lines: list[dict[str, Any]] = []
            if stored is None and conversation.head is not None:
                raise StaleConversation  # it was erased
            if stored is None:
                summary = Summary(conversation.id, title_of(conversation), (), info.model, info.adapter, 0, moment, moment)
                stored = StoredConversation(summary, conversation.system, info.settings, None, ())
                lines.append({"type": "conversation", "owner": info.owner, **heading_to_json(stored)})
            elif stored.head_id != conversation.head:
                raise StaleConversation
            lines += [{"type": "turn", **turn_to_json(turn)} for turn in stored.new_turns(conversation)]
            head = conversation.messages[-1].id if conversation.messages else None
            metadata = {"settings": dict(info.settings), "model": info.model, "adapter": info.adapter} if info.settings else {}
            lines.append({"type": "head", "head_id": head, "system": conversation.system, **metadata, **_updated()})
            append(file, lines)
        if conversation.messages and conversation.messages[-1].finish_reason == "partial":
            self._open_answers[conversation.messages[-1].id] = conversation.id
        return replace(conversation, head=head)

    def update_partial(self, conversation_id: str, answer: Message) -> None:
        """Note the current text of an open answer."""
        self._open_answers.setdefault(answer.id, conversation_id)
        self._partials.note(answer)

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Queue the answer's record, then close the answer: a crash in between must not lose the record."""
        answer, conversation = record.answer, record.conversation
        self._partials.discard(answer.id)
        with self._lock:
            stored = self.read(conversation.id)
            if stored is None and conversation.head is not None:
                return
            if outgoing and self._queue:
                self._queue.put(outgoing)
            if stored is None or not stored.has_turn(answer.id):
                with suppress(StaleConversation):
                    self.save(conversation)
            turn = StoredTurn(answer, None, record.finished_at, answer_metadata(record))
            with self._appending(conversation.id) as (file, _):
                append(file, [{"type": "answer", **turn_to_json(turn), **_updated()}])
            self._partial_file(conversation.id).unlink(missing_ok=True)
            self._open_answers.pop(answer.id, None)

    def load(self, conversation_id: str) -> Conversation | None:
        """Active branch, or None."""
        stored = self.read(conversation_id)
        return stored.conversation() if stored else None

    def read(self, conversation_id: str) -> StoredConversation | None:
        """Conversation with all branches and feedback, or None."""
        content = self._read(self._file(conversation_id))
        return content[0] if content else None

    def restore(self, conversation: StoredConversation) -> bool:
        """Add a whole conversation; False if its id exists."""
        with self._appending(conversation.summary.id) as (file, stored):
            if stored is not None:
                return False
            lines: list[dict[str, Any]] = [{"type": "conversation", "owner": None, **heading_to_json(conversation)}]
            lines += [{"type": "turn", **turn_to_json(turn)} for turn in conversation.turns]
            lines += [{"type": "feedback", **feedback_to_json(each)} for each in conversation.feedback]
            updated = conversation.summary.updated_at.isoformat()
            head = {"head_id": conversation.head_id, "system": conversation.system, "updated_at": updated}
            lines.append({"type": "head", **head})
            append(file, lines)
        return True

    def list(self, *, limit: int | None = None, owner: str | None = None) -> Sequence[Summary]:
        """Summaries of the conversations with a turn, the most recently changed first."""
        return list_conversations(self._all(owner), limit)

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[SearchHit]:
        """Turns that have every word, the newest first."""
        return search_conversations(self._all(owner), text, limit)

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """Set title or tags."""
        changed: dict[str, Any] = {} if title is None else {"title": title}
        if tags is not None:
            changed["tags"] = [*tags]
        return self._add_to(conversation_id, {"type": "change", **changed})

    def add_feedback(self, conversation_id: str, feedback: Feedback, outgoing: OutboxRecord | None = None) -> bool:
        """Store feedback on an answer; False for an unknown turn."""
        stored = self.read(conversation_id)
        if stored is None or not stored.has_turn(feedback.turn_id):
            return False
        if outgoing and self._queue:
            self._queue.put(outgoing)
        return self._add_to(conversation_id, {"type": "feedback", **feedback_to_json(feedback)})

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[OutboxRecord] = ()) -> int:
        """Delete files and queued records. Returns how many conversations existed."""
        erased = 0
        with self._lock:
            for each in conversation_ids:
                file = self._file(each)
                erased += file.exists()
                for path in (file, self._partial_file(each)):
                    path.unlink(missing_ok=True)
                self._cache.pop(file, None)
        if self._queue:
            self._queue.erase(conversation_ids, tombstones)
        return erased

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
    def _appending(self, conversation_id: str) -> Iterator[tuple[IO[bytes], StoredConversation | None]]:
        """The conversation's file, locked against other threads and processes, and its current content."""
        path = self._file(conversation_id)
        try:
            with self._lock, open(path, "a+b", opener=private_opener) as file:
                if fcntl:
                    fcntl.flock(file, fcntl.LOCK_EX)
                content = self._read(path)
                yield file, content[0] if content else None
        except OSError as problem:
            raise HistoryUnavailable(f"the history's folder cannot be written ({problem.strerror})") from None
        finally:
            with suppress(OSError):
                if path.stat().st_size == 0:  # nothing was added
                    path.unlink()

    def _add_to(self, conversation_id: str, line: dict[str, Any]) -> bool:
        if not self._file(conversation_id).exists():
            return False
        with self._appending(conversation_id) as (file, stored):
            if stored is None:
                return False
            append(file, [line])
        return True

    def _write_partials(self, answers: Mapping[str, Message]) -> None:
        with self._lock:
            for answer in answers.values():
                conversation_id = self._open_answers.get(answer.id)
                if conversation_id is None or not self._file(conversation_id).exists():
                    continue
                partial = self._partial_file(conversation_id)
                new = partial.with_suffix(".new")
                with open(new, "wb", opener=private_opener) as file:
                    file.write(json.dumps({"id": answer.id, "content": answer.content}).encode())
                os.replace(new, partial)

    def _all(self, owner: str | None) -> Iterator[StoredConversation]:
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            content = self._read(path)
            if content and (owner is None or content[1] == owner):
                yield content[0]

    def _read(self, path: Path) -> tuple[StoredConversation, str | None] | None:
        """(conversation, owner) of a file; None if it has none."""
        partial = path.with_suffix(PARTIAL_SUFFIX)
        try:
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns)
            if (cached := self._cache.get(path)) and cached[0] == state and not partial.exists():
                return cached[1:]
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise HistoryUnavailable(f"the history's folder cannot be read ({problem.strerror})") from None
        content = read(lines)
        if content is None:
            return None
        conversation, owner = with_partial(content[0], partial), content[1]
        self._cache[path] = (state, conversation, owner)
        return conversation, owner


def _updated() -> dict[str, str]:
    return {"updated_at": now().isoformat()}
