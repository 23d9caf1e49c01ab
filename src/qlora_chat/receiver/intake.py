"""Access to the receiver, its answer to each record, and the batches in which records reach the store.

Scope: the HTTP side of receiving, up to the store. Every request passes `ReceiverPolicy` first, and what arrives while the disk
is busy shares one commit. Knows no tables and no plots.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Scope

from qlora_chat.delivery.signing import IDEMPOTENCY_HEADER, BadSignature, verify
from qlora_chat.receiver.database import StoreError
from qlora_chat.receiver.records import Record, RecordRefused, read_record
from qlora_chat.receiver.store import Outcome
from qlora_chat.server.access_control import authorization, tokens_equal
from qlora_chat.server.guesses import Guesses
from qlora_chat.server.request_body import BodyLimit, Refused

BODY_LIMIT = BodyLimit(size=8 * 2**20, seconds=15.0)
"""A record holds its whole conversation, so it may be larger than any one message."""
SMALL_BODY = 64 * 1024
"""Bytes of a record that is read where it arrives; a larger one is read in a thread, because others would wait for it."""
RETRY_S = 5
HEALTH = "/health"


class ReceiverPolicy:
    """Access policy of the receiver. Refuses with 401 (token) or 415 (content encoding)."""

    allow_links = False

    def __init__(self, token: str | None, senders: Mapping[str, str]) -> None:
        self.body_limit = BODY_LIMIT
        self.body_limits: Mapping[str, BodyLimit] = {}
        self._token, self._senders = token, senders
        self._guesses = Guesses()

    async def authorize(self, scope: Scope, headers: Headers) -> None:
        """Check the token, and note whose it is; a wrong one is answered after a delay."""
        is_post = scope["method"] == "POST"
        allowed = scope["path"] == HEALTH or await (self._may_write if is_post else self._may_read)(scope, headers)
        if not allowed:
            challenge = {} if is_post else {"www-authenticate": 'Basic realm="QLoRA Chat logs", charset="UTF-8"'}
            needed = "its token, as a bearer token" if is_post else "LOGGING_TOKEN, as the password or a bearer token"
            raise Refused(401, f"The receiver needs {needed}.", challenge)
        if is_post and headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "send the body as it is, without Content-Encoding")

    def response(self, scope: Scope, refused: Refused) -> Response:
        """JSON for senders, plain text for browsers."""
        if scope["method"] == "POST":
            return JSONResponse({"error": refused.message}, refused.status, refused.headers)
        return PlainTextResponse(refused.message, refused.status, refused.headers)

    async def _may_write(self, scope: Scope, headers: Headers) -> bool:
        """True if a record comes with a sender's bearer token, whose name is noted: "" for LOGGING_TOKEN.

        Browsers send a Basic password by themselves, so it reads only.
        """
        tokens = {**self._senders, **({"": self._token} if self._token else {})}
        scheme, credentials = authorization(headers)
        if tokens and (scheme != "bearer" or not await self._guesses.check(scope.get("client"), credentials, tokens.values())):
            return False
        matching = [name for name, token in tokens.items() if tokens_equal(credentials, token)]
        scope.setdefault("state", {})["sender"] = matching[0] if matching else ""
        return True

    async def _may_read(self, scope: Scope, headers: Headers) -> bool:
        """True if LOGGING_TOKEN comes with a request for statistics, which are of all senders; a sender's token only writes."""
        if self._token is None:
            return not self._senders
        scheme, credentials = authorization(headers)
        password = _basic_password(credentials) if scheme == "basic" else credentials
        return scheme in ("basic", "bearer") and await self._guesses.check(scope.get("client"), password, [self._token])


_PARSERS = ThreadPoolExecutor(2, thread_name_prefix="qlora-chat-intake")


class Intake:
    """Answers senders: 200 once a record is on disk, or was before."""

    def __init__(self, writer: BatchWriter, secret: str | None) -> None:
        self._writer, self._secret = writer, secret

    async def receive(self, request: Request) -> Response:
        """Take one record from a request's body."""
        try:
            record = await self._read(request.headers, await request.body(), request.state.sender)
        except (BadSignature, RecordRefused) as problem:
            return JSONResponse({"error": str(problem)}, 401 if isinstance(problem, BadSignature) else 400)
        try:
            outcome = await self._writer.add(record)
        except StoreError as problem:
            return JSONResponse({"error": str(problem)}, 503, {"retry-after": str(RETRY_S)})
        if outcome == "conflict":
            return JSONResponse({"error": "this id belongs to another record of the same sender"}, 409)
        return JSONResponse({"id": record.id, "status": outcome})

    async def _read(self, headers: Headers, body: bytes, sender: str) -> Record:
        if len(body) <= SMALL_BODY:
            return self._record(headers, body, sender)
        return await asyncio.get_running_loop().run_in_executor(_PARSERS, self._record, headers, body, sender)

    def _record(self, headers: Headers, body: bytes, sender: str) -> Record:
        key = headers.get(IDEMPOTENCY_HEADER)
        if self._secret is not None:
            signed_id = verify(self._secret, headers, body)
            if key not in (None, signed_id):
                raise RecordRefused(f"{IDEMPOTENCY_HEADER} is not the id that was signed")
            key = signed_id
        return read_record(body, key, sender)


def _basic_password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


# --- batches ---------------------------------------------------------------------------------------------------------

MAX_BATCH = 200
"""Records per commit."""

_Pending = tuple[Record, "asyncio.Future[Outcome]"]


class BatchWriter:
    """Hands records to `store_all` in the order of their arrival, in another thread, one batch at a time."""

    def __init__(self, store_all: Callable[[Sequence[Record]], list[Outcome]]) -> None:
        self._store_all = store_all
        self._queue: asyncio.Queue[_Pending] = asyncio.Queue()

    async def add(self, record: Record) -> Outcome:
        """Outcome of the record, once it is on disk. Raises what `store_all` raised."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((record, outcome))
        return await outcome

    async def run(self) -> None:
        """Write until cancelled; a batch in progress is finished first."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await asyncio.shield(asyncio.create_task(self._write(batch)))

    async def _write(self, batch: Sequence[_Pending]) -> None:
        try:
            outcomes = await asyncio.to_thread(self._store_all, [record for record, _ in batch])
        except Exception as problem:
            if len(batch) > 1:  # perhaps only one record's fault: retry each alone
                for each in batch:
                    await self._write([each])
                return
            _resolve(batch[0][1], problem)
            return
        for (_, pending), outcome in zip(batch, outcomes, strict=True):
            _resolve(pending, outcome)


def _resolve(pending: asyncio.Future[Outcome], result: Outcome | Exception) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):  # the client is gone
        if isinstance(result, Exception):
            pending.set_exception(result)
        else:
            pending.set_result(result)
