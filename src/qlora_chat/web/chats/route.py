"""HTTP routes of the list of conversations.

Scope: from a request to the history of the browser's owner. Changes are POSTs, which access control takes from this site only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryError
from qlora_chat.web.chats import listing, transfer
from qlora_chat.web.chats.deletion import PendingDeletions
from qlora_chat.web.chats.saving import SavingOffer, offer
from qlora_chat.web.message_list.route import LONGEST_ID, OWNER_HEADER
from qlora_chat.web.sessions import PageFeatures, Sessions, owner_of

CHATS, EXPORT, IMPORT, SAVING = "/page/chats", "/page/chats/export", "/page/chats/import", "/page/chats/save"
MOST_IDS = 1_000
GONE = "That conversation is not there any more."

OwnerOf: TypeAlias = Callable[[str], str | None]
"""Owner of the conversations that a browser with this secret may see; None: all."""

_Secret = Annotated[str, Header(alias=OWNER_HEADER, max_length=200)]


class _Refused(Exception):
    """A change that cannot be made: status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ChatChanges:
    """Changes of one conversation of an owner, by name."""

    def __init__(self, chat: Chat, sessions: Sessions, deletions: PendingDeletions) -> None:
        self._chat, self._sessions, self._deletions = chat, sessions, deletions
        self._actions: Mapping[str, Callable[[str, str | None, Mapping[str, Any]], bool]] = {
            "rename": self._rename, "tag": self._tag, "delete": self._delete, "undo": self._undo,
        }  # fmt: skip

    def make(self, owner: str | None, request: Mapping[str, Any]) -> None:
        """Make the change that a request describes. _Refused where it cannot be."""
        action, name = self._actions.get(str(request.get("action"))), request.get("id")
        if action is None or not isinstance(name, str) or len(name) > LONGEST_ID:
            raise _Refused(422, f"action must be one of {', '.join(self._actions)}, and id the id of a conversation")
        if self._chat.history.summary(name, owner=owner) is None or not action(name, owner, request):
            raise _Refused(404, GONE)

    def _rename(self, name: str, owner: str | None, request: Mapping[str, Any]) -> bool:
        title = listing.clean_title(request.get("title"))
        if not title:
            raise _Refused(422, "A title needs at least one character.")
        return self._chat.history.change(name, title=title)

    def _tag(self, name: str, owner: str | None, request: Mapping[str, Any]) -> bool:
        tags = listing.clean_tags(request.get("tags"))
        if tags is None:
            raise _Refused(422, "tags must be a list of texts.")
        return self._chat.history.change(name, tags=tags)

    def _delete(self, name: str, owner: str | None, request: Mapping[str, Any]) -> bool:
        while session := self._sessions.showing(name, owner):
            if session.running:
                raise _Refused(409, "An answer in this conversation is still being written: stop it, then delete it.")
            session.clear(seconds=0)
        return self._deletions.delete(name)

    def _undo(self, name: str, owner: str | None, request: Mapping[str, Any]) -> bool:
        return self._deletions.undo(name)


def chats_routes(chat: Chat, sessions: Sessions, features: PageFeatures, deletions: PendingDeletions) -> APIRouter:
    """The list, its changes, and files in and out."""
    router = APIRouter()

    def owner(secret: str) -> str | None:
        return owner_of(secret) if features.shared else None

    _add_list(router, chat, owner, offer(chat, features), features.persistent)
    _add_changes(router, ChatChanges(chat, sessions, deletions), owner)
    _add_files(router, chat, owner)
    return router


def _add_list(router: APIRouter, chat: Chat, owner: OwnerOf, saving: SavingOffer, is_persistent: bool) -> None:
    @router.get(CHATS)
    def chats(
        q: Annotated[str, Query(max_length=300)] = "",
        before: Annotated[str, Query(max_length=LONGEST_ID)] = "",
        limit: Annotated[int, Query(ge=1, le=listing.MOST_FOUND)] = listing.PAGE,
        secret: _Secret = "",
    ) -> Response:
        """A page of the list, or of what a search finds."""
        history, mine = chat.history, owner(secret)
        if q.strip():
            return _answered(lambda: listing.found(history, mine, q, limit))
        if before:
            return _answered(lambda: listing.page_after(history, mine, before))
        return _answered(lambda: {**listing.first_page(history, mine), "saved": is_persistent or saving.is_saved})

    @router.post(SAVING)
    async def start_saving() -> Response:
        """Save conversations from now on, where the page offers it."""
        return await run_in_threadpool(_answered, saving.start)


def _add_changes(router: APIRouter, changes: ChatChanges, owner: OwnerOf) -> None:
    @router.post(CHATS)
    async def change(request: Request, secret: _Secret = "") -> Response:
        """Rename, tag, delete or undo."""
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return _json({"problem": "the request must be a JSON object"}, 422)
        return await run_in_threadpool(_answered, lambda: changes.make(owner(secret), body) or {})


def _add_files(router: APIRouter, chat: Chat, owner: OwnerOf) -> None:
    @router.post(EXPORT)
    async def export(request: Request, secret: _Secret = "") -> Response:
        """A file with some conversations, or with all. A POST, for its ids would not fit into an address."""
        try:
            body = json.loads(await request.body())
            ids, file_format = [str(each) for each in body.get("ids", ())][:MOST_IDS], str(body.get("format"))
            file = await run_in_threadpool(transfer.exported, chat.history, owner(secret), ids, file_format)
        except HistoryError as problem:
            return _json({"problem": str(problem)}, 422)
        except (ValueError, AttributeError, TypeError, RecursionError):
            return _json({"problem": "the request must be an object with a format and a list of ids"}, 422)
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(file.name)}", "cache-control": "no-store"}
        pieces = (each.encode("utf-8", "replace") for each in file.pieces)
        return StreamingResponse(pieces, media_type=file.media_type, headers=headers)

    @router.post(IMPORT)
    async def import_file(
        request: Request, name: Annotated[str, Query(max_length=300)] = "file", secret: _Secret = ""
    ) -> Response:
        """Add a file's conversations, and say what was added and what was not, with reasons."""
        data = await request.body()
        return await run_in_threadpool(_answered, lambda: transfer.imported(chat.history, owner(secret), name, data))


def _answered(make: Callable[[], dict[str, Any]]) -> Response:
    """JSON of a value, or of the reason why there is none."""
    try:
        return _json(make())
    except _Refused as refused:
        return _json({"problem": str(refused)}, refused.status)
    except HistoryError as problem:
        return _json({"problem": str(problem)}, 422)


def _json(value: Any, status: int = 200) -> Response:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, {"cache-control": "no-store"}, "application/json")
