"""The whole of a request, in one file.

    message -> prompt, fitted to the window -> engine -> pieces -> stop -> page or terminal -> history -> log

Scope: ties the parts together for one turn. Knows no page, no terminal, no model library.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from qlora_chat.engines import Engine, Finish, Piece, Stream
from qlora_chat.history import (
    ConversationInfo,
    Feedback,
    HistoryStore,
    HistoryUnavailable,
    ModelUsed,
    Recorder,
    SettingsChange,
    TurnRecord,
    Usage,
)
from qlora_chat.messages import Conversation, FinishReason, Message
from qlora_chat.prompt import ChatFormat, Prompt, fewest_tokens, fit_prompt, render, trim_ids
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

SEED_BITS = 53
"""Of a seed that is drawn here: as many as every JSON reader preserves exactly."""


@dataclass(frozen=True)
class AnswerOptions:
    """Options of one turn: sampling, adapter, owner, logging."""

    sampling: Sampling
    adapter: str | None = None
    """One of the engine's adapters, or the model's own name for the model alone; None leaves it to the engine."""
    owner: str | None = None
    """Owner of a new conversation; None lists it for everybody."""
    logged: bool = True
    """Send the finished turn to the receiver, if there is one."""
    must_save: bool = False
    """Refuse a question that cannot be saved. Otherwise the chat goes on, and Turn.save_error says so."""


@dataclass(frozen=True)
class TurnStart:
    """A turn whose question has been saved, before its first token."""

    conversation: Conversation
    """Ends with the answer, which is empty and partial."""
    before: Conversation
    """Shown again if the turn comes to nothing."""
    prompt: Prompt
    options: AnswerOptions
    """With the seed that is used."""
    model: ModelUsed
    save_error: str | None


@dataclass(frozen=True)
class Chat:
    """An engine, its model's prompt format, the history, and the recorder of finished turns for a receiver."""

    engine: Engine
    prompt_format: ChatFormat
    history: HistoryStore
    recorder: Recorder | None = None

    def reply(
        self, conversation: Conversation, text: str, options: AnswerOptions, *, instead_of: Conversation | None = None
    ) -> Turn:
        """Begin the answer to `text`. PromptTooLong before anything is saved or computed.

        A retry passes the conversation as shown in `instead_of`, which is shown again if the engine refuses.
        StaleConversation where the history has gone on from another head.
        """
        with_question = conversation.adding(Message("user", text))
        window, max_new_tokens = self.engine.info.window, options.sampling.max_new_tokens
        prompt = fit_prompt(with_question, self.prompt_format, self.engine.tokenizer, window, max_new_tokens)
        return self.answer(with_question, prompt, options, self.stops, before=instead_of or conversation)

    def answer(
        self, with_question: Conversation, prompt: Prompt, options: AnswerOptions, stops: Stops, before: Conversation
    ) -> Turn:
        """Save the question that a conversation ends with, and begin its answer; `prompt` is that conversation, rendered.

        HistoryUnavailable where options.must_save is set and the question cannot be saved.
        """
        if options.sampling.seed is None:
            options = replace(options, sampling=options.sampling.changed(seed=secrets.randbits(SEED_BITS)))
        model = self._model_used(options.adapter)
        conversation, save_error = self._save_question(with_question, options, model)
        try:
            stream = self.engine.stream(prompt, options.sampling, stops, options.adapter)
        except BaseException:
            self.restore(before, conversation)
            raise
        return Turn(self, TurnStart(conversation, before, prompt, options, model, save_error), stream)

    @property
    def stops(self) -> Stops:
        """Stops of an answer: the model's own stop tokens, and the format's tokens and texts."""
        ids = (self.engine.tokenizer.token_id(token) for token in self.prompt_format.stop_tokens)
        token_ids = self.engine.info.stop_token_ids | {each for each in ids if each is not None}
        return Stops(token_ids, self.prompt_format.stop_texts)

    def context_used(self, conversation: Conversation) -> int:
        """Tokens of the window that the conversation takes, the next answer's opening included; 0 before it begins."""
        window = self.engine.info.window
        if not conversation.messages:
            return 0
        if fewest_tokens(conversation, self.engine.tokenizer) >= window:
            return window
        return min(len(render(conversation, self.prompt_format, self.engine.tokenizer).ids), window)

    def feedback(
        self,
        conversation_id: str,
        turn_id: str,
        rating: int | None = None,
        edited: str | None = None,
        comment: str | None = None,
        *,
        logged: bool = True,
    ) -> bool:
        """Save a person's feedback on an answer and queue it for the receiver; False where the history lacks the answer."""
        feedback = Feedback(turn_id, rating, edited, comment)
        outgoing = self.recorder.feedback(conversation_id, feedback) if self.recorder and logged else None
        return self.history.add_feedback(conversation_id, feedback, outgoing)

    def ratings(self, conversation_id: str) -> dict[str, int]:
        """The newest thumb (1 or -1) of each rated answer of a conversation, by the answer's id."""
        stored = self.history.read(conversation_id)
        newest = {each.turn_id: each.rating for each in stored.feedback} if stored else {}
        return {turn_id: rating for turn_id, rating in newest.items() if rating}

    def erase(self, conversation_ids: Sequence[str]) -> int:
        """Remove conversations from every copy, the receiver's included. Returns how many there were."""
        tombstones = [self.recorder.tombstone(each) for each in conversation_ids] if self.recorder else []
        return self.history.erase(conversation_ids, [each for each in tombstones if each])

    def restore(self, before: Conversation, after: Conversation) -> Conversation:
        """Show `before` again instead of `after`, whose last question stays in the history, off the branch."""
        try:
            return self.history.save(replace(before, head=after.head))
        except HistoryUnavailable:
            return before

    def _save_question(
        self, with_question: Conversation, options: AnswerOptions, model: ModelUsed
    ) -> tuple[Conversation, str | None]:
        """The conversation with an open answer, and why it was not saved, if so: a full disk must not end the chat."""
        conversation = with_question.adding(Message("assistant", "", (), "partial"))
        info = ConversationInfo(model.name, model.adapter, asdict(options.sampling), options.owner)
        try:
            return self.history.save(conversation, info), None
        except HistoryUnavailable as problem:
            if options.must_save:
                raise
            return conversation, str(problem)

    def _model_used(self, adapter: str | None) -> ModelUsed:
        """The model as it is recorded; the hash of an adapter chosen from several is not known."""
        info = self.engine.info
        used = info.adapter if adapter is None else None if adapter == info.name else adapter
        return ModelUsed(
            info.name, info.base, used, info.precision, info.device, info.prompt_format,
            info.base_sha256, info.adapter_sha256 if used == info.adapter else None, info.computed_by,
        )  # fmt: skip


class Turn:
    """An answer being written: iterate it once for its pieces; afterwards `conversation` holds the whole turn."""

    def __init__(self, chat: Chat, start: TurnStart, stream: Stream) -> None:
        self.conversation = replace(start.conversation, messages=start.conversation.messages[:-1])
        """Ends with the question until the turn has ended, then with the answer."""
        self.before = start.before
        """As shown before the turn."""
        self.prompt = start.prompt
        self.sampling = start.options.sampling
        self.save_error = start.save_error
        """User-facing reason this turn was not saved; None if it was."""
        self.finish: Finish | None = None
        self._chat, self._start, self._stream = chat, start, stream
        self._changes: list[SettingsChange] = []
        self._text = ""
        self._ids: list[int] = []

    @property
    def answer_id(self) -> str:
        """Id of the answer's turn, from the beginning."""
        return self._start.conversation.messages[-1].id

    @property
    def answer(self) -> str:
        """The answer so far, as shown: without surrounding white space."""
        return self._text.strip()

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token; the seed stays."""
        self.sampling = sampling.changed(seed=self._start.options.sampling.seed)
        self._changes.append(SettingsChange(len(self._ids), self.sampling))
        self._stream.update(self.sampling)

    def cancel(self) -> None:
        """End the answer at the next token; the conversation holds it as far as it got."""
        self._stream.cancel()

    def undo(self) -> Conversation:
        """Show the conversation as it was before this turn, and return it."""
        return self._chat.restore(self.before, self._start.conversation)

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
                elif piece.text:
                    self._chat.history.update_partial(self.conversation.id, self._message("partial", ()))
                yield piece
        except GeneratorExit:
            reason = "cancelled"
            raise
        finally:
            self._stream.cancel()
            self._save(reason)

    def _message(self, reason: FinishReason, ids: tuple[int, ...]) -> Message:
        return replace(self._start.conversation.messages[-1], content=self.answer, ids=ids, finish_reason=reason)

    def _save(self, reason: FinishReason) -> None:
        """Close the answer in the history, and queue it for the receiver in the same step."""
        ids = trim_ids(self._chat.engine.tokenizer, self._ids, self._text.rstrip())
        self.conversation = self._start.conversation.replacing_last(self._message(reason, ids))
        record, recorder = self._record(), self._chat.recorder
        logged = self._start.options.logged and reason != "error"
        try:
            self._chat.history.finish(record, recorder.turn(record) if recorder and logged else None)
        except HistoryUnavailable as problem:
            self.save_error = str(problem)
            return
        self.save_error = None
        self.conversation = replace(self.conversation, head=record.answer.id)

    def _record(self) -> TurnRecord:
        finish, start = self.finish, self._start
        usage = finish and Usage(
            finish.prompt_tokens, finish.cached_tokens, finish.completion_tokens, finish.ttft_ms, finish.tokens_per_s
        )
        return TurnRecord(
            self.conversation,
            start.prompt.text,
            start.options.sampling,
            prompt_ids=start.prompt.ids,
            answer_ids=tuple(self._ids),
            changes=self._settings_changes(),
            usage=usage,
            model=start.model,
        )

    def _settings_changes(self) -> tuple[SettingsChange, ...]:
        """Settings changes as the engine reports them, since it is ahead of the pieces read here; else as counted here."""
        if self.finish is None or self.finish.changes is None:
            return tuple(self._changes)
        return tuple(SettingsChange(at_token, sampling) for at_token, sampling in self.finish.changes)
