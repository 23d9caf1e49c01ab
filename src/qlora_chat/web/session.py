"""What one browser tab is doing: its conversation, and the answer being written for it.

Scope: starting, watching and ending answers, so that a tab never has two at once and never sees one that it has
cleared. Knows no Gradio, no HTML and no model.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from qlora_chat.chat import Chat, Turn
from qlora_chat.engines import EngineError
from qlora_chat.history import HistoryUnavailable, StaleConversation
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import Sampling

FIRST_TEXT_POLL_SECONDS = 0.005
UPDATE_SECONDS = 0.1
"""Tokens that come within this go to the page together: every update costs the CPU that the model is running on."""
QUIET_SECONDS = 0.2
"""A page with nothing new still gets a sign of life this often; it is how a closed tab is noticed."""

logger = logging.getLogger(__name__)


class Busy(RuntimeError):
    """This tab's last answer is still being written."""


@dataclass(frozen=True)
class Place:
    """What a page shows: a conversation, up to a turn. The browser holds it, for the next event may reach another process."""

    conversation_id: str = ""
    head: str | None = None

    @staticmethod
    def read(text: object) -> Place:
        """From what `str` wrote; nothing where it is something else."""
        words = text.split(" ") if isinstance(text, str) else []
        return Place(*words) if 0 < len(words) <= 2 and all(words) else Place()

    @staticmethod
    def of(conversation: Conversation) -> Place:
        """The newest turn that the history has of it."""
        return Place(conversation.id, conversation.head)

    def __str__(self) -> str:
        return f"{self.conversation_id} {self.head}" if self.head else self.conversation_id


@dataclass(frozen=True)
class Asking:
    """What a person sends besides the text."""

    sampling: Sampling
    system: str | None = None
    """None takes the prompt format's own."""
    logged: bool = True


class Answering:
    """One answer on its way from the engine to a page: a thread reads it, the event loop looks at it."""

    def __init__(self, turn: Turn, text: str, *, retried: bool = False, logged: bool = True) -> None:
        self.turn = turn
        self.retried = retried
        """Whether it takes the place of an earlier answer."""
        self.text = text
        """What was asked."""
        self.logged = logged
        self.problem: str | None = None
        """Why generation failed, fit to be shown."""
        self.tokens = 0
        self.first_at: float | None = None
        """time.perf_counter() at the first token."""
        self.began = time.perf_counter()
        self.unwatched = threading.Event()
        """Set when the page's event has handed on all that it ever will of this answer."""
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self._done.is_set()

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds to the first token; None before it."""
        return (self.first_at - self.began) * 1000 if self.first_at else None

    @property
    def tokens_per_s(self) -> float | None:
        """Rate after the first token, so far; None below two tokens."""
        if self.tokens < 2 or self.first_at is None:
            return None
        return (self.tokens - 1) / max(time.perf_counter() - self.first_at, 1e-6)

    def wait(self, seconds: float) -> bool:
        """Block until the answer has ended; False if it has not by then."""
        return self._done.wait(seconds)

    def read(self) -> None:
        """Take every piece as it comes; returns when the answer ends, for whatever reason."""
        try:
            for piece in self.turn:
                if piece.token_id is not None or piece.text:
                    self.tokens += 1
                    self.first_at = self.first_at or time.perf_counter()
        except EngineError as problem:
            self.problem = str(problem)
        except Exception as problem:
            # The message may quote the conversation, which has no place in an operator's log.
            logger.error("an answer ended with %s", type(problem).__name__)
            self.problem = f"The answer could not be finished ({type(problem).__name__})."

    def end(self) -> None:
        """Say that nothing more will come."""
        self._done.set()

    async def changes(self) -> AsyncIterator[bool]:
        """True when the answer has grown: at its first text, then at most 10 times a second. False as a sign of life."""
        shown, wait, quiet_since = "", FIRST_TEXT_POLL_SECONDS, time.perf_counter()
        while not self.done:
            await asyncio.sleep(wait)
            if self.turn.answer != shown:
                shown, wait, quiet_since = self.turn.answer, UPDATE_SECONDS, time.perf_counter()
                yield True
            elif time.perf_counter() - quiet_since > QUIET_SECONDS:
                quiet_since = time.perf_counter()
                yield False


class Session:
    """One tab. Every method may be called from any thread."""

    def __init__(self, chat: Chat, owner: str | None = None) -> None:
        self._chat = chat
        self.owner = owner
        """Whose list its conversations appear in; None where all see all."""
        self._lock = threading.Lock()
        self._conversation = Conversation()
        self._answering: Answering | None = None
        self._latest: Answering | None = None
        self._returned: str | None = None
        self._closed = False
        self._unlogged: set[str] = set()
        """Answers made while the log was off: what is thought of them is not logged either."""

    @property
    def conversation(self) -> Conversation:
        """What has been said; while an answer is being written, it ends with the question."""
        running = self._answering
        return running.turn.conversation if running else self._conversation

    @property
    def answering(self) -> Answering | None:
        """The answer being written."""
        return self._answering

    def send(self, text: str, asking: Asking) -> Answering:
        """Begin the answer to `text`. Busy, ValueError or PromptTooLong before anything is kept or computed."""
        with self._lock:
            self._expect_idle()
            return self._begin(self._conversation, text, asking)

    def retry(self, asking: Asking) -> Answering | None:
        """Drop the last answer and begin another to the same text; None where nothing was asked yet."""
        with self._lock:
            self._expect_idle()
            text = self._conversation.last_user_text
            if text is None:
                return None
            shown = self._conversation
            return self._begin(shown.without_last_exchange(), text, asking, instead_of=shown)

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token of the answer being written."""
        if running := self._answering:
            running.turn.update(sampling)

    def stop(self) -> None:
        """End the answer at the next token and keep what there is of it."""
        if running := self._answering:
            running.turn.cancel()

    def undo(self) -> str | None:
        """Remove the last exchange and give its question back; None while answering or where nothing was asked."""
        with self._lock:
            text = self._conversation.last_user_text
            if self._answering or text is None:
                return None
            self._conversation = self._saved(self._conversation.without_last_exchange())
            return text

    def clear(self, seconds: float = 1.0) -> None:
        """Stop, and begin an empty conversation with a new id.

        Returns when the page's event for the old answer has let go of it, so that what the page is told next is told
        last. Otherwise a last piece of the old answer would turn up in the empty conversation.
        """
        with self._lock:
            self._let_go()
            self._conversation, self._returned = Conversation(), None
            latest, self._latest = self._latest, None
        if latest:
            latest.unwatched.wait(seconds)

    def take_returned(self) -> str | None:
        """The question of an answer that failed before its first word, once: it belongs back in the box."""
        with self._lock:
            text, self._returned = self._returned, None
            return text

    def catch_up(self, place: Place) -> None:
        """Go on from what the page shows, where that is not what this process last saw of it: the turns since were made by
        another process. Where the history has gone on from there in its turn, the next turn is refused as stale."""
        with self._lock:
            if self._answering or self._closed or place in (Place(), Place.of(self._conversation)):
                return
            if kept := self._chat.history.load(place.conversation_id):
                self._conversation = replace(mended(kept), head=place.head)

    def feedback(self, turn_id: str, rating: int | None, edited: str | None, comment: str | None, *, logged: bool) -> bool:
        """Keep what a person thought of an answer of this conversation; False where the history does not hold it."""
        sent = logged and turn_id not in self._unlogged
        return self._chat.feedback(self.conversation.id, turn_id, rating, edited, comment, logged=sent)

    def ratings(self) -> dict[str, int]:
        """The newest thumb of each answer of this conversation, by its id."""
        try:
            return self._chat.ratings(self.conversation.id)
        except HistoryUnavailable:
            return {}

    def restore(self, conversation: Conversation) -> None:
        """Go on with a conversation that another page showed."""
        with self._lock:
            self._let_go()
            self._conversation = mended(conversation)

    def go_to(self, conversation: Conversation) -> None:
        """Show another conversation. Busy while an answer is being written."""
        with self._lock:
            self._expect_idle()
            self._conversation, self._returned, self._latest = mended(conversation), None, None

    def shows(self, answering: Answering) -> bool:
        """Whether the page of this tab is still about that answer."""
        return self.conversation.id == answering.turn.conversation.id and not self._closed

    def close(self, seconds: float = 5.0) -> None:
        """The tab is gone: stop, and wait until the answer has been kept as far as it got."""
        with self._lock:
            self._closed = True
            running = self._answering
        if running:
            running.turn.cancel()
            running.wait(seconds)

    def _expect_idle(self) -> None:
        if self._answering:
            raise Busy("The last answer is still being written: stop it, or wait for its end.")
        if self._closed:
            raise Busy("This page was closed. Reload it to go on.")

    def _begin(
        self, conversation: Conversation, text: str, asking: Asking, instead_of: Conversation | None = None
    ) -> Answering:
        asked = replace(conversation, system=asking.system)
        try:
            turn = self._chat.reply(asked, text, asking.sampling, logged=asking.logged, instead_of=instead_of, owner=self.owner)
        except StaleConversation:
            self._conversation = self._chat.history.load(conversation.id) or Conversation()
            raise
        self._answering = self._latest = answering = Answering(turn, text, retried=instead_of is not None, logged=asking.logged)
        threading.Thread(target=self._read, args=(answering,), name="qlora-chat-answer", daemon=True).start()
        return answering

    def _read(self, answering: Answering) -> None:
        answering.read()
        with self._lock:
            if self._answering is answering:
                self._keep(answering)
                self._answering = None
        answering.end()

    def _keep(self, answering: Answering) -> None:
        if not answering.problem or answering.turn.answer:
            self._conversation = answering.turn.conversation
            if not answering.logged:
                self._unlogged.add(self._conversation.messages[-1].id)
            return
        if not answering.retried:
            self._returned = answering.text
        try:
            self._conversation = answering.turn.take_back()
        except StaleConversation:
            self._conversation = self._chat.history.load(self._conversation.id) or Conversation()

    def _saved(self, conversation: Conversation) -> Conversation:
        """Shown even where it cannot be kept just now; as it now is where it has gone on elsewhere."""
        try:
            return self._chat.history.save(conversation)
        except HistoryUnavailable:
            return conversation
        except StaleConversation:
            return self._chat.history.load(conversation.id) or Conversation()

    def _let_go(self) -> None:
        if running := self._answering:
            running.turn.cancel()
        self._answering = None


class Sessions:
    """The tabs that are open, by the name Gradio gives each page load."""

    def __init__(self, chat: Chat, limit: int = 2000) -> None:
        self._chat, self._limit = chat, limit
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def answering(self) -> int:
        """Answers being written."""
        with self._lock:
            return sum(session.answering is not None for session in self._sessions.values())

    def find(self, name: str) -> Session | None:
        """The tab of that name, if this process has it."""
        with self._lock:
            return self._sessions.get(name)

    def open(self, name: str, conversation_id: str = "", reloaded: bool = False) -> Session:
        """The tab of that name. A new one goes on with the conversation it names, if there is such a one.

        A reloaded page takes its conversation over from the page it was. Another tab that names a conversation in
        use (a duplicated tab does) gets a copy under a new id, so that neither overwrites the other.
        """
        with self._lock:
            known = self._sessions.get(name)
            if known:
                self._sessions.move_to_end(name)
                return known
            session = self._sessions[name] = Session(self._chat)
            holder = self._holding(conversation_id)
        self._close_oldest()
        if holder and reloaded:
            holder.close()
        conversation = holder.conversation if holder else self._chat.history.load(conversation_id) if conversation_id else None
        if conversation:
            session.restore(conversation.copied() if holder and not reloaded else conversation)
        return session

    def close(self, name: str) -> None:
        """That tab is gone."""
        with self._lock:
            session = self._sessions.get(name)
        if session is None:
            return
        session.close()
        with self._lock:
            self._sessions.pop(name, None)

    def stop_all(self) -> None:
        """End every answer at its next token."""
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.stop()

    def _holding(self, conversation_id: str) -> Session | None:
        return next((each for each in self._sessions.values() if each.conversation.id == conversation_id), None)

    def _close_oldest(self) -> None:
        while True:
            with self._lock:
                if len(self._sessions) <= self._limit:
                    return
                _, oldest = self._sessions.popitem(last=False)
            oldest.close(seconds=0)


def mended(conversation: Conversation) -> Conversation:
    """The conversation with an empty, cancelled answer where its last question has none, so that it can go on."""
    if conversation.messages and conversation.messages[-1].role == "user":
        return conversation.adding(Message("assistant", "", (), "cancelled"))
    return conversation
