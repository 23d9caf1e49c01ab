"""One browser tab: its conversation, and the answer being written for it.

Scope: starting and ending answers, so that a tab never has two at once and never sees one that it has
cleared. Knows no Gradio, no HTML and no model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from qlora_chat.chat import AnswerOptions, Chat, Turn
from qlora_chat.context import with_own_ids
from qlora_chat.errors import UserError
from qlora_chat.history import Feedback, HistoryStore, HistoryUnavailable, StaleConversation
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import Sampling
from qlora_chat.web.message_list.branches import Branches
from qlora_chat.web.running_answer import RunningAnswer


class Busy(UserError, RuntimeError):
    """This tab's last answer is still being written."""


@dataclass(frozen=True)
class ConversationRef:
    """A conversation up to a turn. The browser holds it, for its next event may reach another process."""

    conversation_id: str = ""
    head: str | None = None

    @staticmethod
    def parse(text: object) -> ConversationRef:
        """The inverse of `str`; empty for anything else."""
        words = text.split(" ") if isinstance(text, str) else []
        return ConversationRef(*words) if 0 < len(words) <= 2 and all(words) else ConversationRef()

    @staticmethod
    def of(conversation: Conversation) -> ConversationRef:
        """Reference to the newest turn that the history has of it."""
        return ConversationRef(conversation.id, conversation.head)

    def __str__(self) -> str:
        return f"{self.conversation_id} {self.head}" if self.head else self.conversation_id


class Session:
    """One tab. Every method may be called from any thread."""

    def __init__(self, chat: Chat, owner: str | None = None) -> None:
        self._chat = chat
        self.owner = owner
        """Owner of its conversations; None where everybody sees all."""
        self._lock = threading.Lock()
        self._conversation = Conversation()
        self._running: RunningAnswer | None = None
        self._latest: RunningAnswer | None = None
        self._compared: list[RunningAnswer] = []
        """Answers of the newest comparison."""
        self._failed_question: str | None = None
        self._closed = False
        self._unlogged: set[str] = set()
        """Answers that were not logged: feedback on them is not logged either."""

    @property
    def conversation(self) -> Conversation:
        """The conversation as shown; while an answer is being written, it ends with the question."""
        running = self._running
        return running.turn.conversation if running else self._conversation

    @property
    def running(self) -> RunningAnswer | None:
        """The answer being written."""
        return self._running

    def send(self, text: str, options: AnswerOptions, system: str | None = None) -> RunningAnswer:
        """Begin the answer to `text`; a `system` text of None takes the prompt format's own.

        Busy, ValueError or PromptTooLong before anything is saved or computed.
        """
        with self._idle():
            return self._begin(self._conversation.adding(Message("user", text)), options, system, text)

    def edit(self, turn_id: str, text: str, options: AnswerOptions, system: str | None = None) -> RunningAnswer | None:
        """Begin the answer to another version of a question; None where the conversation shown does not have it."""
        with self._idle():
            before = self._conversation.before(turn_id)
            return None if before is None else self._begin(before.adding(Message("user", text)), options, system, text)

    def retry(self, answer_id: str, options: AnswerOptions, system: str | None = None) -> RunningAnswer | None:
        """Begin another version of an answer; None where the conversation shown does not have it."""
        with self._idle():
            question = self._conversation.before(answer_id)
            if question is None or not question.messages or question.messages[-1].role != "user":
                return None
            return self._begin(question, options, system)

    def go_on(self, answer_id: str, options: AnswerOptions, system: str | None = None) -> RunningAnswer | None:
        """Continue an answer that was cut, as another version of it; None where the conversation shown does not have it."""
        with self._idle():
            answer = next((each for each in self._conversation.messages if each.id == answer_id), None)
            before = self._conversation.before(answer_id)
            if answer is None or before is None or answer.role != "assistant" or not answer.content:
                return None
            return self._begin(before.adding(answer), options, system)

    def rewrite(self, turn_id: str, text: str) -> bool:
        """Save another version of an answer in a person's words; False where the conversation shown does not have it."""
        with self._idle():
            before = self._conversation.before(turn_id)
            if before is None:
                return False
            self._conversation = self._saved(before.adding(Message("assistant", text, finish_reason="stop")))
            return True

    def select(self, turn_id: str) -> bool:
        """Show the newest branch through a turn; False where this conversation has no such turn."""
        with self._idle():
            stored = self._chat.history.read(self._conversation.id)
            branch = Branches(stored).through(turn_id) if stored else None
            if branch is None:
                return False
            self._conversation = self._saved(with_answer(replace(branch, head=self._conversation.head)))
            return True

    def branch(
        self, answer_id: str, at: int, token: int, options: AnswerOptions, system: str | None = None
    ) -> RunningAnswer | None:
        """Begin another version of an answer: its first `at` tokens, this token, and a new rest. None where the conversation
        shown does not have the answer or the place."""
        with self._idle():
            before = self._conversation.before(answer_id)
            shown = with_own_ids(self._conversation, self._chat.engine.tokenizer)
            answer = before and shown.messages[len(before.messages)]
            if before is None or not answer or not 0 <= at < len(answer.ids) or token < 0:
                return None
            ids = (*answer.ids[:at], token)
            begun = replace(answer, content=self._chat.engine.tokenizer.decode(ids).strip(), ids=ids, finish_reason="partial")
            return self._begin(before.adding(begun), options, system)

    @property
    def comparing(self) -> bool:
        """True while answers of a comparison are being written."""
        return not all(each.done for each in self._compared)

    def compare(self, begin: Callable[[Conversation], tuple[list[Turn], Conversation]], *, logged: bool) -> list[RunningAnswer]:
        """Begin answers beside the conversation shown, which `begin` gets, and returns as it is then. Busy as in `send`."""
        with self._idle():
            if self.comparing:
                raise Busy("The last comparison is still being written: stop it, or wait for its end.")
            try:
                turns, self._conversation = begin(self._conversation)
            except StaleConversation:
                self._conversation = self._reloaded(self._conversation)
                raise
            self._compared = [RunningAnswer(turn, None, logged=logged) for turn in turns]
            self._unlogged.update(() if logged else (turn.answer_id for turn in turns))
        for each in self._compared:
            threading.Thread(target=_read_to_end, args=(each,), name="qlora-chat-compared", daemon=True).start()
        return self._compared

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token of the answer being written."""
        if running := self._running:
            running.turn.update(sampling)

    def pin(self, turn_id: str, *, pinned: bool) -> bool:
        """Let the model always see a turn, or not any more; False where the conversation shown does not have it."""
        with self._idle():
            if all(each.id != turn_id for each in self._conversation.messages):
                return False
            self._conversation = self._chat.pin(self._conversation, turn_id, pinned=pinned)
            return True

    def stop(self) -> None:
        """End the answer, and those of a comparison, at the next token; what there is of them stays."""
        if running := self._running:
            running.turn.cancel()
        for each in self._compared:
            each.turn.cancel()

    def clear(self, seconds: float = 1.0) -> None:
        """Stop, and begin an empty conversation with a new id.

        Returns when the page's event for the old answer has ended, so that the page's next update is its last. Otherwise
        a last piece of the old answer would turn up in the empty conversation.
        """
        with self._lock:
            self._detach()
            self._conversation, self._failed_question = Conversation(), None
            latest, self._latest = self._latest, None
        if latest:
            latest.unwatched.wait(seconds)

    def take_failed_question(self) -> str | None:
        """The question of an answer that failed before its first word, once: it belongs back in the box."""
        with self._lock:
            text, self._failed_question = self._failed_question, None
            return text

    def catch_up(self, ref: ConversationRef) -> None:
        """Load what the page shows, if another process has written turns since this one last saw the conversation.

        Where the history has gone on from there in its turn, the next turn is refused as stale.
        """
        with self._lock:
            if self._running or self._closed or ref in (ConversationRef(), ConversationRef.of(self._conversation)):
                return
            if ref.head in [each.id for each in self._conversation.messages[-3:-1]]:
                return  # this process has written the last exchange, and the page has yet to be told
            if stored := self.stored(ref.conversation_id):
                self._conversation = replace(with_answer(stored), head=ref.head)

    def stored(self, conversation_id: str) -> Conversation | None:
        """The history's conversation of this id; None if this tab's owner has none: an id proves nothing."""
        history = self._chat.history
        return history.load(conversation_id) if conversation_id and owns(history, self.owner, conversation_id) else None

    def save_feedback(self, feedback: Feedback, *, logged: bool) -> bool:
        """Save feedback on an answer of this conversation; False where the history does not have the answer."""
        logged = logged and feedback.turn_id not in self._unlogged
        return self._chat.save_feedback(self.conversation.id, feedback, logged=logged)

    def restore(self, conversation: Conversation) -> None:
        """Go on with a conversation that another page showed."""
        with self._lock:
            self._detach()
            self._conversation = with_answer(conversation)

    def open(self, conversation_id: str) -> bool:
        """Show another conversation; False where the owner has none of that id. Busy while an answer is being written."""
        with self._idle():
            if (stored := self.stored(conversation_id)) is None:
                return False
            self._conversation, self._failed_question, self._latest = with_answer(stored), None, None
            return True

    def shows(self, answer: RunningAnswer) -> bool:
        """True while this tab still shows the conversation of that answer."""
        return self.conversation.id == answer.turn.conversation.id and not self._closed

    def close(self, seconds: float = 5.0) -> None:
        """Stop, for the tab is gone, and wait until the answer has been saved as far as it got."""
        with self._lock:
            self._closed = True
            running = self._running
        self.stop()
        for each in [*([running] if running else ()), *self._compared]:
            each.wait(seconds)

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Hold the lock while no answer is being written. Busy where one is, or the page was closed."""
        with self._lock:
            if self._running:
                raise Busy("The last answer is still being written: stop it, or wait for its end.")
            if self._closed:
                raise Busy("This page was closed. Reload it to go on.")
            yield

    def _begin(
        self, conversation: Conversation, options: AnswerOptions, system: str | None, text: str | None = None
    ) -> RunningAnswer:
        """Begin the answer to the question that a conversation ends with, or go on with the answer that it ends with.

        `text` is a new question, which goes back into the box where the answer fails before its first word.
        """
        conversation, options = replace(conversation, system=system), replace(options, owner=self.owner)
        goes_on = conversation.messages[-1].role == "assistant"
        reply = self._chat.continue_answer if goes_on else self._chat.reply_to
        try:
            turn = reply(conversation, options, self._conversation)
        except StaleConversation:
            self._conversation = self._reloaded(conversation)
            raise
        answer = RunningAnswer(turn, text, logged=options.logged)
        self._running = self._latest = answer
        threading.Thread(target=self._read, args=(answer,), name="qlora-chat-answer", daemon=True).start()
        return answer

    def _read(self, answer: RunningAnswer) -> None:
        answer.read()
        with self._lock:
            if self._running is answer:
                self._finish(answer)
                self._running = None
        answer.end()

    def _finish(self, answer: RunningAnswer) -> None:
        if not answer.problem or answer.turn.answer:
            self._conversation = answer.turn.conversation
            if not answer.logged:
                self._unlogged.add(self._conversation.messages[-1].id)
            return
        self._failed_question = answer.text
        try:
            self._conversation = answer.turn.undo()
        except StaleConversation:
            self._conversation = self._reloaded(self._conversation)

    def _saved(self, conversation: Conversation) -> Conversation:
        """The conversation even where it cannot be saved just now; its stored state where it has gone on elsewhere."""
        try:
            return self._chat.history.save(conversation)
        except HistoryUnavailable:
            return conversation
        except StaleConversation:
            return self._reloaded(conversation)

    def _reloaded(self, conversation: Conversation) -> Conversation:
        return self._chat.history.load(conversation.id) or Conversation()

    def _detach(self) -> None:
        if running := self._running:
            running.turn.cancel()
        self._running = None


def _read_to_end(answer: RunningAnswer) -> None:
    answer.read()
    answer.end()


def owns(history: HistoryStore, owner: str | None, conversation_id: str) -> bool:
    """True if the history has this conversation of an owner, whom an id does not prove; without owners everybody sees all."""
    return owner is None or history.summary(conversation_id, owner=owner) is not None


def with_answer(conversation: Conversation) -> Conversation:
    """The conversation with an empty, cancelled answer where its last question has none, so that it can go on."""
    if conversation.messages and conversation.messages[-1].role == "user":
        return conversation.adding(Message("assistant", "", (), "cancelled"))
    return conversation
