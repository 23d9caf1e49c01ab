"""The whole of a request, in one file.

    message -> prompt, fitted to the window -> engine -> pieces -> stop -> page or terminal -> history -> log

Scope: ties the parts together for one turn. Knows no page, no terminal, no model library.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from qlora_chat.context import ContextUse, context_use, fit_prompt, with_own_ids
from qlora_chat.engines import Engine, Finish, Piece, Stream
from qlora_chat.history import (
    ContinuedAnswer,
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
from qlora_chat.history.pinned_turns import pinned_turns, with_pin
from qlora_chat.messages import AnswerSchema, Conversation, FinishReason, Message
from qlora_chat.prompt import ChatFormat, Prompt, trim_ids
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
    name_key: str | None = None
    """Key by which an API client finds a new conversation again."""
    logged: bool = True
    """Send the finished turn to the receiver, if there is one."""
    stop_texts: tuple[str, ...] = ()
    """Texts that end the answer, besides the format's."""
    schema: AnswerSchema | None = None
    """Schema that the answer has to match."""
    must_save: bool = False
    """Refuse a question that cannot be saved. Otherwise the chat goes on, and Turn.save_error says so."""


@dataclass(frozen=True)
class TurnStart:
    """A turn whose question has been saved, before its first token."""

    conversation: Conversation
    """Ends with the answer, which is partial, and empty unless it goes on with an earlier one."""
    before: Conversation
    """Shown again if the turn comes to nothing."""
    prompt: Prompt
    options: AnswerOptions
    """With the seed that is used."""
    model: ModelUsed
    save_error: str | None
    continues: ContinuedAnswer | None
    stop_texts: tuple[str, ...]
    """Besides the format's."""

    @property
    def answer(self) -> Message:
        """The answer as it begins."""
        return self.conversation.messages[-1]


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
        return self.reply_to(conversation.adding(Message("user", text)), options, before=instead_of or conversation)

    def reply_to(self, with_question: Conversation, options: AnswerOptions, before: Conversation) -> Turn:
        """Begin an answer to the question that a conversation ends with; errors as in `reply`.

        A question that is stored already gets another version of its answer.
        """
        return self.answer(with_question, self._fitted(with_question, options), options, self._stops(options), before=before)

    def continue_answer(self, conversation: Conversation, options: AnswerOptions, before: Conversation | None = None) -> Turn:
        """Go on with the answer that a conversation ends with, as if it had not been cut: a new version of it, beside the old.

        The answer may be shorter than the stored one, or another. `before` is shown again if the engine refuses. PromptTooLong
        and StaleConversation as in `reply`; ValueError without an answer.
        """
        prompt, seed = self._fitted(conversation, options, continue_final=True), options.sampling.seed
        if seed is not None:  # the first tokens' random numbers again would not be random
            options = replace(options, sampling=options.sampling.changed(seed=(seed + prompt.continued) % 2**63))
        return self.answer(conversation, prompt, options, self._stops(options), before=before or conversation)

    def answer(self, asked: Conversation, prompt: Prompt, options: AnswerOptions, stops: Stops, before: Conversation) -> Turn:
        """Save the question that a conversation ends with and begin its answer, or go on with the answer that it ends with.

        `prompt` is that conversation, rendered. HistoryUnavailable where options.must_save is set and the question cannot be
        saved.
        """
        if options.sampling.seed is None:
            options = replace(options, sampling=options.sampling.changed(seed=secrets.randbits(SEED_BITS)))
        model = self._model_used(options.adapter)
        opened, continues = _opened(asked, prompt)
        conversation, save_error = self._save_question(opened, options, model)
        try:
            stream = self.engine.stream(prompt, options.sampling, stops, options.adapter, options.schema)
        except BaseException:
            self.restore(before, conversation)
            raise
        own_stops = tuple(text for text in stops.texts if text not in self.prompt_format.stop_texts)
        start = TurnStart(conversation, before, prompt, options, model, save_error, continues, own_stops)
        return Turn(self, start, stream)

    @property
    def stops(self) -> Stops:
        """Stops of an answer: the model's own stop tokens, and the format's tokens and texts."""
        ids = (self.engine.tokenizer.token_id(token) for token in self.prompt_format.stop_tokens)
        token_ids = self.engine.info.stop_token_ids | {each for each in ids if each is not None}
        return Stops(token_ids, self.prompt_format.stop_texts)

    def stops_within(self, schema: AnswerSchema | None) -> Stops:
        """Stops of an answer that has to match a schema: the format's texts would cut JSON that holds them."""
        return Stops(self.stops.token_ids) if schema else self.stops

    def _stops(self, options: AnswerOptions) -> Stops:
        stops = self.stops_within(options.schema)
        return replace(stops, texts=(*stops.texts, *options.stop_texts))

    def context_use(self, conversation: Conversation, draft: str, max_new_tokens: int) -> ContextUse:
        """The window's use if `draft` were sent next: what stays, what goes, what is left.

        Message counts are remembered, and a draft that is far too long is not tokenised to its end. A question that is being
        answered counts, its answer does not yet.
        """
        if conversation.messages and conversation.messages[-1].role == "user":
            conversation = conversation.adding(Message("assistant", ""))
        engine, pinned = self.engine, _pinned(conversation)
        conversation = with_own_ids(conversation, engine.tokenizer)
        return context_use(
            conversation, draft, self.prompt_format, engine.tokenizer, engine.info.window, max_new_tokens, pinned=pinned
        )

    def prompt_for(self, conversation: Conversation, max_new_tokens: int) -> Prompt:
        """The prompt that a conversation ending with a question is answered from, with that limit of new tokens."""
        return self._fitted(conversation, AnswerOptions(Sampling(max_new_tokens=max_new_tokens)))

    def pin(self, conversation: Conversation, turn_id: str, *, pinned: bool) -> Conversation:
        """The conversation with a turn that the model always sees, or does not any more; stored, if the conversation is."""
        tags = with_pin(conversation.tags, turn_id, pinned=pinned)
        self.history.change(conversation.id, tags=tags)
        return replace(conversation, tags=tags)

    def _fitted(self, conversation: Conversation, options: AnswerOptions, *, continue_final: bool = False) -> Prompt:
        engine, most = self.engine, options.sampling.max_new_tokens
        return fit_prompt(
            with_own_ids(conversation, engine.tokenizer), self.prompt_format, engine.tokenizer, engine.info.window, most,
            pinned=_pinned(conversation), continue_final=continue_final,
        )  # fmt: skip

    def save_feedback(self, conversation_id: str, feedback: Feedback, *, logged: bool = True) -> bool:
        """Save a person's feedback on an answer and queue it for the receiver; False where the history lacks the answer."""
        outgoing = self.recorder.feedback(conversation_id, feedback) if self.recorder and logged else None
        return self.history.add_feedback(conversation_id, feedback, outgoing)

    def erase(self, conversation_ids: Sequence[str]) -> int:
        """Remove conversations from every copy, the receiver's included. Returns how many there were."""
        tombstones = [self.recorder.tombstone(each) for each in conversation_ids] if self.recorder else []
        return self.history.erase(conversation_ids, tombstones)

    def restore(self, before: Conversation, after: Conversation) -> Conversation:
        """Show `before` again instead of `after`, whose last question stays in the history, off the branch."""
        try:
            return self.history.save(replace(before, head=after.head))
        except HistoryUnavailable:
            return before

    def _save_question(
        self, conversation: Conversation, options: AnswerOptions, model: ModelUsed
    ) -> tuple[Conversation, str | None]:
        """Save a conversation with an open answer. Returns it, and why it was not saved, if so: a full disk must not end the
        chat."""
        info = ConversationInfo(model.name, model.adapter, asdict(options.sampling), options.owner, options.name_key)
        try:
            return self.history.save(conversation, info), None
        except HistoryUnavailable as problem:
            if options.must_save:
                raise
            return conversation, str(problem)

    def _model_used(self, adapter: str | None) -> ModelUsed:
        """The model as it is recorded; the hash of an adapter chosen from several is not known."""
        info = self.engine.info
        return self._model_with(info.adapter if adapter is None else None if adapter == info.name else adapter)

    def _model_with(self, used: str | None) -> ModelUsed:
        info = self.engine.info
        return ModelUsed(
            info.name, info.base, used, info.precision, info.device, info.prompt_format,
            info.base_sha256, info.adapter_sha256 if used == info.adapter else None, info.computed_by,
            info.base_form if used else None,
        )  # fmt: skip


def _pinned(conversation: Conversation) -> list[int]:
    """Indices of the pinned messages."""
    ids = pinned_turns(conversation.tags)
    return [index for index, message in enumerate(conversation.messages) if message.id in ids]


def _opened(asked: Conversation, prompt: Prompt) -> tuple[Conversation, ContinuedAnswer | None]:
    """The conversation with an open answer, which has the text of the one that it goes on with, if any."""
    last = asked.messages[-1]
    if last.role == "user":
        return asked.adding(Message("assistant", "", (), "partial")), None
    begun = prompt.ids[len(prompt.ids) - prompt.continued :]
    opened = Message("assistant", last.content, begun, "partial")
    continues = ContinuedAnswer(last.id if last.finish_reason else None, len(begun), len(last.content))
    return asked.replacing_last(opened), continues


class Turn:
    """An answer being written: iterate it once for its pieces; afterwards `conversation` holds the whole turn."""

    def __init__(self, chat: Chat, start: TurnStart, stream: Stream) -> None:
        self.conversation = start.conversation.before_last()
        """Ends with the question until the turn has ended, then with the answer."""
        self.prompt = start.prompt
        self.prefilled = 0
        """Tokens of the prompt that the engine has read; all of `prompt_tokens` from the first token on."""
        self.sampling = start.options.sampling
        self.save_error = start.save_error
        """User-facing reason this turn was not saved; None if it was."""
        self.finish: Finish | None = None
        self._chat, self._start, self._stream = chat, start, stream
        self._changes: list[SettingsChange] = []
        self._text = ""
        """Generated text."""
        self._lengths: list[int] = []
        """Of the text after each token."""
        self._ids: list[int] = []

    @property
    def answer_id(self) -> str:
        """Id of the answer's turn, from the beginning."""
        return self._start.answer.id

    @property
    def answer(self) -> str:
        """The answer so far, as shown: without surrounding white space."""
        return (self._start.answer.content + self._text).strip()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt.ids)

    @property
    def changes(self) -> tuple[SettingsChange, ...]:
        """Changes of the settings so far, each with its place in the answer.

        As the engine reports them, since it is ahead of the pieces read here; before the end as counted here.
        """
        changes = self._changes
        if self.finish is not None and self.finish.changes is not None:
            changes = [SettingsChange(at_token, sampling) for at_token, sampling in self.finish.changes]
        return tuple(replace(each, at_character=self._character(each.at_token)) for each in changes)

    @property
    def model(self) -> ModelUsed:
        """The model that answered, as the engine reports; before the end, and where it cannot tell, the one that was asked."""
        answered_by = self.finish and self.finish.answered_by
        return self._chat._model_with(answered_by.adapter) if answered_by else self._start.model

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token; the seed stays."""
        self.sampling = sampling.changed(seed=self._start.options.sampling.seed)
        self._changes.append(SettingsChange(len(self._lengths), self.sampling))
        self._stream.update(self.sampling)

    def cancel(self) -> None:
        """End the answer at the next token; the conversation holds it as far as it got."""
        self._stream.cancel()

    def undo(self) -> Conversation:
        """Show the conversation as it was before this turn, and return it."""
        return self._chat.restore(self._start.before, self._start.conversation)

    def __iter__(self) -> Iterator[Piece]:
        """The engine's pieces. EngineError if generation fails; closing the iterator cancels the computation."""
        reason: FinishReason = "error"
        try:
            for piece in self._stream:
                self._add(piece)
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

    def _add(self, piece: Piece) -> None:
        if piece.prefill is not None:
            self.prefilled = piece.prefill.read
            return
        self._text += piece.text
        if piece.token_id is not None:
            self._ids.append(piece.token_id)
        if piece.token_id is not None or piece.text:
            self._lengths.append(len(self._text))
            self.prefilled = self.prompt_tokens

    def _message(self, reason: FinishReason, ids: tuple[int, ...]) -> Message:
        return replace(self._start.answer, content=self.answer, ids=ids, finish_reason=reason)

    def _all_ids(self) -> tuple[int, ...]:
        """Ids of the shown answer; () where the engine reports none."""
        ids = trim_ids(self._chat.engine.tokenizer, self._ids, self._text.rstrip())
        return (*self._start.answer.ids, *ids) if ids or not self._text.strip() else ()

    def _save(self, reason: FinishReason) -> None:
        """Close the answer in the history, and queue it for the receiver in the same step."""
        self.conversation = self._start.conversation.replacing_last(self._message(reason, self._all_ids()))
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
            changes=self.changes,
            usage=usage,
            model=self.model,
            continues=start.continues,
            stop_texts=start.stop_texts,
            schema=start.options.schema,
        )

    def _character(self, tokens: int) -> int:
        """Length of the shown answer when so many tokens had been generated."""
        generated = self._text[: self._lengths[min(tokens, len(self._lengths)) - 1]] if tokens and self._lengths else ""
        begun = self._start.answer.content
        return min(len((begun + generated).lstrip()), len(self.answer))
