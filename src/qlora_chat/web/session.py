"""What one browser tab is doing: its conversation, and the answer being written for it.

Scope: starting and ending answers, so that a tab never has two at once and never sees one that it has
cleared. Knows no Gradio, no HTML and no model.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from qlora_chat.chat import Chat
from qlora_chat.history import HistoryUnavailable, StaleConversation
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import Sampling
from qlora_chat.web.running_answer import Answering


class Busy(RuntimeError):
    """This tab's last answer is still being written."""


@dataclass(frozen=True)
class ConversationRef:
    """What a page shows: a conversation, up to a turn. The browser holds it, for the next event may reach another process."""

    conversation_id: str = ""
    head: str | None = None

    @staticmethod
    def read(text: object) -> ConversationRef:
        """From what `str` wrote; nothing where it is something else."""
        words = text.split(" ") if isinstance(text, str) else []
        return ConversationRef(*words) if 0 < len(words) <= 2 and all(words) else ConversationRef()

    @staticmethod
    def of(conversation: Conversation) -> ConversationRef:
        """The newest turn that the history has of it."""
        return ConversationRef(conversation.id, conversation.head)

    def __str__(self) -> str:
        return f"{self.conversation_id} {self.head}" if self.head else self.conversation_id


@dataclass(frozen=True)
class AnswerOptions:
    """What a person sends besides the text."""

    sampling: Sampling
    system: str | None = None
    """None takes the prompt format's own."""
    logged: bool = True
    adapter: str | None = None
    """Which of several answers; None leaves it to the engine."""


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

    def send(self, text: str, asking: AnswerOptions) -> Answering:
        """Begin the answer to `text`. Busy, ValueError or PromptTooLong before anything is kept or computed."""
        with self._lock:
            self._expect_idle()
            return self._begin(self._conversation, text, asking)

    def retry(self, asking: AnswerOptions) -> Answering | None:
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

    def catch_up(self, place: ConversationRef) -> None:
        """Go on from what the page shows, where that is not what this process last saw of it: the turns since were made by
        another process. Where the history has gone on from there in its turn, the next turn is refused as stale."""
        with self._lock:
            if self._answering or self._closed or place in (ConversationRef(), ConversationRef.of(self._conversation)):
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
        self, conversation: Conversation, text: str, asking: AnswerOptions, instead_of: Conversation | None = None
    ) -> Answering:
        asked = replace(conversation, system=asking.system)
        try:
            turn = self._chat.reply(
                asked, text, asking.sampling,
                logged=asking.logged, instead_of=instead_of, owner=self.owner, adapter=asking.adapter,
            )  # fmt: skip
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


def mended(conversation: Conversation) -> Conversation:
    """The conversation with an empty, cancelled answer where its last question has none, so that it can go on."""
    if conversation.messages and conversation.messages[-1].role == "user":
        return conversation.adding(Message("assistant", "", (), "cancelled"))
    return conversation
