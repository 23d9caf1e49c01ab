"""HTTP routes of the page's own components: their scripts, and the messages of a conversation.

Scope: from a request to the view of the owner's tabs. Ids in the query prove nothing: on a shared page, the browser's secret
in a header says whose conversations may be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.staticfiles import StaticFiles

from qlora_chat.chat import Chat
from qlora_chat.web.message_list.view import MessageView
from qlora_chat.web.sessions import PageFeatures, Sessions

WEB = Path(__file__).parents[1]
STATIC = WEB / "static"
"""Style sheet and scripts, which the browser gets as they are: there is no build step."""
LANGUAGES = WEB / "languages"
"""For each language but English a file that maps the page's English sentences to its own; {name} stands for a value."""
MESSAGES = "/page/messages"
OWNER_HEADER = "x-qlora-chat-owner"
LONGEST_ID = 100

_Id = Annotated[str, Query(max_length=LONGEST_ID)]
Secret = Annotated[str, Header(alias=OWNER_HEADER, max_length=200)]
"""Header that says whose conversations a browser may see."""


def component_routes(chat: Chat, sessions: Sessions, features: PageFeatures) -> APIRouter:
    """The scripts of the components, and the messages that the message list fetches."""
    router, view = APIRouter(), MessageView(chat, sessions)
    _add_files(router)

    @router.get(MESSAGES)
    def messages(conversation: _Id, shown: _Id = "", until: _Id = "", secret: Secret = "") -> Response:
        """Items after the message `shown`, or a page of older ones before `until`."""
        owner = features.owner(secret)
        return json_response(
            view.older(conversation, until, owner) if until else view.newest(conversation, shown or None, owner)
        )

    return router


def json_response(value: Any, status: int = 200) -> Response:
    """A value as JSON that no browser stores."""
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, {"cache-control": "no-store"}, "application/json")


def _add_files(router: APIRouter) -> None:
    languages, files = StaticFiles(directory=LANGUAGES), StaticFiles(directory=STATIC)

    @router.get("/page/static/languages/{path:path}")
    async def language(path: str, request: Request) -> Response:
        """A file of translations."""
        return await _newest(languages, path, request)

    @router.get("/page/static/{path:path}")
    async def static(path: str, request: Request) -> Response:
        """A script, a style sheet or a picture."""
        return await _newest(files, path, request)


async def _newest(files: StaticFiles, path: str, request: Request) -> Response:
    """A file, which browsers ask for anew at each load; an unchanged one is answered with 304."""
    response = await files.get_response(path, request.scope)
    response.headers["cache-control"] = "no-cache"
    return response
