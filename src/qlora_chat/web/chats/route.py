"""HTTP routes of the list of conversations.

Scope: from a request to the history of the browser's owner. Changes are POSTs, which access control takes from this site only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryError, Summary
from qlora_chat.text import json_object
from qlora_chat.web.chats import listing, transfer, view
from qlora_chat.web.chats.deletion import PendingDeletions
from qlora_chat.web.chats.saving import offer
from qlora_chat.web.message_list.route import LONGEST_ID, Secret, json_response
from qlora_chat.web.sessions import PageFeatures, Sessions

CHATS, EXPORT, IMPORT, SAVING = "/page/chats", "/page/chats/export", "/page/chats/import", "/page/chats/save"
MOST_IDS = 1_000
GONE = "That conversation is not there any more."


class _Refused(Exception):
    """A change that cannot be made: status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ChatChanges:
    """Changes of one conversation of an owner, each by the name of what it sets."""

    def __init__(self, chat: Chat, sessions: Sessions, deletions: PendingDeletions) -> None:
        self._chat, self._sessions, self._deletions = chat, sessions, deletions
        self._setters: Mapping[str, Callable[[Summary, str | None, Any], bool]] = {
            "title": self._rename, "tags": self._tag, "pinned": self._pin, "deleted": self._delete,
        }  # fmt: skip

    def make(self, owner: str | None, request: Mapping[str, Any]) -> dict[str, Any]:
        """Make the change that a request describes. _Refused where it cannot be."""
        name, setters = request.get("id"), [each for each in request if each in self._setters]
        if len(setters) != 1 or not isinstance(name, str) or len(name) > LONGEST_ID:
            raise _Refused(422, f"id must be the id of a conversation, beside one of {', '.join(self._setters)}")
        summary = self._chat.history.summary(name, owner=owner)
        if summary is None or not self._setters[setters[0]](summary, owner, request[setters[0]]):
            raise _Refused(404, GONE)
        return {}

    def _rename(self, summary: Summary, owner: str | None, title: Any) -> bool:
        cleaned = listing.clean_title(title)
        if not cleaned:
            raise _Refused(422, "A title needs at least one character.")
        return self._chat.history.change(summary.id, title=cleaned)

    def _tag(self, summary: Summary, owner: str | None, tags: Any) -> bool:
        if not isinstance(tags, str):
            raise _Refused(422, "tags must be a text with commas between the tags")
        return self._set_tags(summary, listing.clean_tags(tags), pinned=listing.PINNED in summary.tags)

    def _pin(self, summary: Summary, owner: str | None, pinned: Any) -> bool:
        return self._set_tags(summary, summary.tags, pinned=pinned is True)

    def _set_tags(self, summary: Summary, tags: Iterable[str], *, pinned: bool) -> bool:
        others = [each for each in tags if each != listing.PINNED]
        return self._chat.history.change(summary.id, tags=[listing.PINNED, *others] if pinned else others)

    def _delete(self, summary: Summary, owner: str | None, deleted: Any) -> bool:
        if deleted is not True:
            return self._deletions.undo(summary.id)
        while session := self._sessions.showing(summary.id, owner):
            if session.running:
                raise _Refused(409, "An answer in this conversation is still being written: stop it, then delete it.")
            session.clear(seconds=0)
        return self._deletions.delete(summary.id)


def chats_routes(chat: Chat, sessions: Sessions, features: PageFeatures, deletions: PendingDeletions) -> APIRouter:
    """The list, its changes, and files in and out."""
    router = APIRouter()
    _add_list(router, chat, features)
    _add_changes(router, ChatChanges(chat, sessions, deletions), features)
    _add_files(router, chat, features)
    return router


def _add_list(router: APIRouter, chat: Chat, features: PageFeatures) -> None:
    saving = offer(chat, features)

    @router.get(CHATS)
    def chats(
        q: Annotated[str, Query(max_length=300)] = "",
        before: Annotated[str, Query(max_length=LONGEST_ID)] = "",
        limit: Annotated[int, Query(ge=1)] = listing.PAGE,
        secret: Secret = "",
    ) -> Response:
        """A page of the list, or of what a search finds."""
        history, owner = chat.history, features.owner(secret)
        if q.strip():
            return _answered(lambda: view.page(listing.found(history, owner, q, limit, before)))
        if before:
            return _answered(lambda: view.page(listing.page_after(history, owner, before)))
        saved = features.persistent or saving.is_saved
        return _answered(lambda: {**view.page(listing.first_page(history, owner, limit)), "saved": saved})

    @router.post(SAVING)
    async def start_saving() -> Response:
        """Save conversations from now on, where the page offers it."""
        return await run_in_threadpool(_answered, saving.start)


def _add_changes(router: APIRouter, changes: ChatChanges, features: PageFeatures) -> None:
    @router.post(CHATS)
    async def change(request: Request, secret: Secret = "") -> Response:
        """Rename, tag, pin, delete or undo."""
        body = json_object(await request.body())
        if body is None:
            return json_response({"problem": "the request must be a JSON object"}, 422)
        return await run_in_threadpool(_answered, lambda: changes.make(features.owner(secret), body))


def _add_files(router: APIRouter, chat: Chat, features: PageFeatures) -> None:
    @router.post(EXPORT)
    async def export(request: Request, secret: Secret = "") -> Response:
        """A file with some conversations, or with all. A POST, for its ids would not fit into an address."""
        body = json_object(await request.body()) or {}
        ids, file_format = body.get("ids"), str(body.get("format"))
        if not isinstance(ids, list):
            return json_response({"problem": "the request must be an object with a format and a list of ids"}, 422)
        try:
            ids = [str(each) for each in ids[:MOST_IDS]]
            file = await run_in_threadpool(transfer.exported, chat.history, features.owner(secret), ids, file_format)
        except HistoryError as problem:
            return json_response({"problem": str(problem)}, 422)
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(file.name)}", "cache-control": "no-store"}
        pieces = (each.encode("utf-8", "replace") for each in file.pieces)
        return StreamingResponse(pieces, media_type=file.media_type, headers=headers)

    @router.post(IMPORT)
    async def import_file(
        request: Request, name: Annotated[str, Query(max_length=300)] = "file", secret: Secret = ""
    ) -> Response:
        """Add a file's conversations, and say what was added and what was not, with reasons."""
        data = await request.body()
        return await run_in_threadpool(_answered, lambda: transfer.imported(chat.history, features.owner(secret), name, data))


def _answered(make: Callable[[], Any]) -> Response:
    """JSON of a value, or of the reason why there is none."""
    try:
        return json_response(make())
    except _Refused as refused:
        return json_response({"problem": str(refused)}, refused.status)
    except HistoryError as problem:
        return json_response({"problem": str(problem)}, 422)
