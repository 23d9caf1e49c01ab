"""Plain files: a folder with one file a conversation, one JSON object a line, only ever added to.

Scope: files. A line is flushed to the disk before a call returns; a last line that a crash cut off is passed over. How
far an open answer has got is in a file beside it, written whole and renamed. Several processes take turns by flock.
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
from qlora_chat.history.json_codec import (
    feedback_to_json,
    heading_to_json,
    turn_to_json,
)
from qlora_chat.history.jsonl_log import append, private, read, with_partial
from qlora_chat.history.partial_answers import PartialAnswerWriter
from qlora_chat.history.scan import found, listed
from qlora_chat.history.text_match import title_of
from qlora_chat.messages import Conversation, Message

try:
    import fcntl
except ImportError:  # Windows: one process at a time
    fcntl = None

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SUFFIX, PARTIAL_SUFFIX = ".jsonl", ".partial"


class JsonlHistory:
    """A HistoryStore over a folder. Listing and searching read every file once, and then those that have changed."""

    def __init__(self, folder: Path, queue: Queue | None = None) -> None:
        self._folder, self._queue = folder, queue
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise HistoryError(f"{folder} cannot be used as a folder ({problem.strerror})") from None
        self._lock = threading.RLock()
        self._read_before: dict[Path, tuple[tuple[int, int], StoredConversation, str | None]] = {}
        self._places: dict[str, str] = {}
        """Conversation of each answer that is open here."""
        self._growing = PartialAnswerWriter(self._write_grown)

    def save(self, conversation: Conversation, about: ConversationInfo | None = None) -> Conversation:
        """Add what is new and move the head; StaleConversation where it moved elsewhere."""
        about, moment = about or ConversationInfo(), now()
        with self._appending(conversation.id) as (file, kept):
            lines: list[dict[str, Any]] = []
            if kept is None and conversation.head is not None:
                raise StaleConversation  # it was erased
            if kept is None:
                summary = Summary(conversation.id, title_of(conversation), (), about.model, about.adapter, 0, moment, moment)
                kept = StoredConversation(summary, conversation.system, about.settings, None, ())
                lines.append({"type": "conversation", "owner": about.owner, **heading_to_json(kept)})
            elif kept.head_id != conversation.head:
                raise StaleConversation
            added = kept.missing(conversation)
            lines += [{"type": "turn", **turn_to_json(turn)} for turn in added]
            newest = conversation.messages[-1].id if conversation.messages else None
            changed = (
                {"settings": dict(about.settings), "model": about.model, "adapter": about.adapter} if about.settings else {}
            )
            lines.append({"type": "head", "head_id": newest, "system": conversation.system, **changed, **_at()})
            append(file, lines)
        if conversation.messages and conversation.messages[-1].finish_reason == "partial":
            self._places[conversation.messages[-1].id] = conversation.id
        return replace(conversation, head=newest)

    def grow(self, conversation_id: str, answer: Message) -> None:
        """Note how far an open answer has got."""
        self._places.setdefault(answer.id, conversation_id)
        self._growing.note(answer)

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Queue the answer's record, then close the answer: of the two, a crash in between must not lose the record."""
        answer, conversation = record.answer, record.conversation
        self._growing.forget(answer.id)
        with self._lock:
            kept = self.read(conversation.id)
            if kept is None and conversation.head is not None:
                return
            if outgoing and self._queue:
                self._queue.put(outgoing)
            if kept is None or not kept.has(answer.id):
                with suppress(StaleConversation):
                    self.save(conversation)
            closing = {
                "type": "answer",
                **turn_to_json(StoredTurn(answer, None, record.finished_at, answer_metadata(record))),
                **_at(),
            }
            with self._appending(conversation.id) as (file, _):
                append(file, [closing])
            self._partial(conversation.id).unlink(missing_ok=True)
            self._places.pop(answer.id, None)

    def load(self, conversation_id: str) -> Conversation | None:
        """The branch that is shown, or None."""
        kept = self.read(conversation_id)
        return kept.conversation() if kept else None

    def read(self, conversation_id: str) -> StoredConversation | None:
        """Everything kept of a conversation, or None."""
        there = self._read(self._file(conversation_id))
        return there[0] if there else None

    def restore(self, kept: StoredConversation) -> bool:
        """Add a whole conversation; False where its id is kept already."""
        with self._appending(kept.summary.id) as (file, there):
            if there is not None:
                return False
            lines: list[dict[str, Any]] = [{"type": "conversation", "owner": None, **heading_to_json(kept)}]
            lines += [{"type": "turn", **turn_to_json(turn)} for turn in kept.turns]
            lines += [{"type": "feedback", **feedback_to_json(said)} for said in kept.feedback]
            updated = kept.summary.updated_at.isoformat()
            lines.append({"type": "head", "head_id": kept.head_id, "system": kept.system, "updated_at": updated})
            append(file, lines)
        return True

    def list(self, *, limit: int | None = None, owner: str | None = None) -> Sequence[Summary]:
        """Conversations with a turn, the newest change first."""
        return listed(self._all(owner), limit)

    def search(self, text: str, *, limit: int = 50, owner: str | None = None) -> Sequence[SearchHit]:
        """Turns that hold every word, the newest first."""
        return found(self._all(owner), text, limit)

    def change(self, conversation_id: str, *, title: str | None = None, tags: Iterable[str] | None = None) -> bool:
        """Rename or tag."""
        changed: dict[str, Any] = {}
        if title is not None:
            changed["title"] = title
        if tags is not None:
            changed["tags"] = [*tags]
        return self._add_to(conversation_id, {"type": "change", **changed})

    def feedback(
        self,
        conversation_id: str,
        turn_id: str,
        rating: int | None = None,
        edited: str | None = None,
        comment: str | None = None,
        *,
        outgoing: OutboxRecord | None = None,
    ) -> bool:
        """Keep what a person thought of an answer; False for a turn that is not kept."""
        said = Feedback(turn_id, rating, edited, comment)
        kept = self.read(conversation_id)
        if kept is None or not kept.has(turn_id):
            return False
        if outgoing and self._queue:
            self._queue.put(outgoing)
        return self._add_to(conversation_id, {"type": "feedback", **feedback_to_json(said)})

    def erase(self, conversation_ids: Sequence[str], tombstones: Sequence[OutboxRecord] = ()) -> int:
        """Remove files, and what waits to be delivered; -> how many there were."""
        erased = 0
        with self._lock:
            for each in conversation_ids:
                file = self._file(each)
                erased += file.exists()
                for path in (file, self._partial(each)):
                    path.unlink(missing_ok=True)
                self._read_before.pop(file, None)
        if self._queue:
            self._queue.erase(conversation_ids, tombstones)
        return erased

    def close(self) -> None:
        """Write what is pending."""
        self._growing.close()

    # --- files -----------------------------------------------------------------------------------------------------

    def _file(self, conversation_id: str) -> Path:
        """Ids of ours are names; any other becomes one, since an imported id may be anything."""
        plain = _PLAIN_NAME.fullmatch(conversation_id) is not None
        name = conversation_id if plain else f"id-{hashlib.sha256(conversation_id.encode('utf-8', 'replace')).hexdigest()}"
        return self._folder / f"{name}{SUFFIX}"

    def _partial(self, conversation_id: str) -> Path:
        return self._file(conversation_id).with_suffix(PARTIAL_SUFFIX)

    @contextmanager
    def _appending(self, conversation_id: str) -> Iterator[tuple[IO[bytes], StoredConversation | None]]:
        """The conversation's file, held for this thread and process, and what it says now."""
        path = self._file(conversation_id)
        try:
            with self._lock, open(path, "a+b", opener=private) as file:
                if fcntl:
                    fcntl.flock(file, fcntl.LOCK_EX)
                there = self._read(path)
                yield file, there[0] if there else None
        except OSError as problem:
            raise HistoryUnavailable(f"the history's folder cannot be written ({problem.strerror})") from None
        finally:
            with suppress(OSError):
                if path.stat().st_size == 0:  # nothing was added
                    path.unlink()

    def _add_to(self, conversation_id: str, line: dict[str, Any]) -> bool:
        if not self._file(conversation_id).exists():
            return False
        with self._appending(conversation_id) as (file, kept):
            if kept is None:
                return False
            append(file, [line])
        return True

    def _write_grown(self, answers: Mapping[str, Message]) -> None:
        with self._lock:
            for answer in answers.values():
                place = self._places.get(answer.id)
                if place is None or not self._file(place).exists():
                    continue
                partial = self._partial(place)
                fresh = partial.with_suffix(".new")
                with open(fresh, "wb", opener=private) as file:
                    file.write(json.dumps({"id": answer.id, "content": answer.content}).encode())
                os.replace(fresh, partial)

    def _all(self, owner: str | None) -> Iterator[StoredConversation]:
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            there = self._read(path)
            if there and (owner is None or there[1] == owner):
                yield there[0]

    def _read(self, path: Path) -> tuple[StoredConversation, str | None] | None:
        """The conversation in a file and its owner; None where there is none."""
        partial = path.with_suffix(PARTIAL_SUFFIX)
        try:
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns)
            if (before := self._read_before.get(path)) and before[0] == state and not partial.exists():
                return before[1:]
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise HistoryUnavailable(f"the history's folder cannot be read ({problem.strerror})") from None
        there = read(lines)
        if there is None:
            return None
        kept = with_partial(there[0], partial)
        self._read_before[path] = (state, kept, there[1])
        return kept, there[1]


def _at() -> dict[str, str]:
    return {"updated_at": now().isoformat()}
