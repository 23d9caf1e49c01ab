"""The whole of a request, on one screen.

    message -> prompt, fitted to the window -> engine -> pieces -> stop -> page or terminal -> history -> log

Scope: ties the parts together for one turn. Knows no page, no terminal, no model library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qlora_chat.engines import Engine, Finish, Piece, Stream
from qlora_chat.history import HistoryStore, TurnRecord
from qlora_chat.messages import Conversation, FinishReason, Message
from qlora_chat.prompt import Prompt, PromptFormat, fit_prompt, kept_ids, render
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops


@dataclass(frozen=True)
class Chat:
    """An engine, the format its model was tuned on, and where turns are kept and logged."""

    engine: Engine
    form: PromptFormat
    history: HistoryStore
    log: Callable[[TurnRecord], None] | None = None

    def reply(self, conversation: Conversation, text: str, sampling: Sampling, *, logged: bool = True) -> Turn:
        """Begin the answer to `text`, once the question is kept. PromptTooLong before anything is kept or computed."""
        asked = conversation.adding(Message("user", text))
        prompt = fit_prompt(asked, self.form, self.engine.tokenizer, self.engine.info.window, sampling.max_new_tokens)
        named = (self.engine.tokenizer.token_id(token) for token in self.form.stop_tokens)
        stops = Stops(self.engine.info.stop_token_ids | {each for each in named if each is not None}, self.form.stop_texts)
        self.history.save(asked)
        return Turn(self, asked, prompt, sampling, self.engine.stream(prompt, sampling, stops), logged)

    def context_used(self, conversation: Conversation) -> int:
        """Tokens that the conversation takes of the window, the next answer's opening included; 0 before it begins."""
        if not conversation.messages:
            return 0
        return min(len(render(conversation, self.form, self.engine.tokenizer).ids), self.engine.info.window)


class Turn:
    """One answer being written: iterate it once for its pieces; afterwards `conversation` holds the whole turn."""

    def __init__(
        self, chat: Chat, conversation: Conversation, prompt: Prompt, sampling: Sampling, stream: Stream, logged: bool
    ) -> None:
        self.conversation = conversation
        self.prompt = prompt
        self.sampling = sampling
        self.finish: Finish | None = None
        self._chat, self._stream, self._logged = chat, stream, logged
        self._text = ""
        self._ids: list[int] = []

    @property
    def answer(self) -> str:
        """The answer so far, as it is shown: without the space or line break around it."""
        return self._text.strip()

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token."""
        self.sampling = sampling
        self._stream.update(sampling)

    def cancel(self) -> None:
        """End the answer at the next token; it stays in the conversation as far as it got."""
        self._stream.cancel()

    def __iter__(self) -> Iterator[Piece]:
        """The engine's pieces. EngineError if generation fails; closing the iterator cancels the computation."""
        reason: FinishReason = "error"
        try:
            for piece in self._stream:
                self._text += piece.text
                if piece.token_id is not None:
                    self._ids.append(piece.token_id)
                if piece.finish is not None:
                    self.finish, reason = piece.finish, piece.finish.reason
                yield piece
        except GeneratorExit:
            reason = "cancelled"
            raise
        finally:
            self._stream.cancel()
            self._keep(reason)

    def _keep(self, reason: FinishReason) -> None:
        ids = kept_ids(self._chat.engine.tokenizer, self._ids, self._text.rstrip())
        self.conversation = self.conversation.adding(Message("assistant", self.answer, ids, reason))
        self._chat.history.save(self.conversation)
        if self._chat.log and self._logged and reason != "error":
            self._chat.log(TurnRecord(self.conversation, self.prompt.text, self.sampling))
