"""The whole of a request, on one screen.

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
from qlora_chat.prompt import Prompt, PromptFormat, fit_prompt, kept_ids, render
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

SEED_BITS = 53
"""Of a seed that is drawn here: as many as every JSON reader keeps exactly."""


@dataclass(frozen=True)
class Chat:
    """An engine, the format its model was tuned on, where turns are kept, and how they are recorded for a receiver."""

    engine: Engine
    form: PromptFormat
    history: HistoryStore
    recorder: Recorder | None = None

    def reply(
        self,
        conversation: Conversation,
        text: str,
        sampling: Sampling,
        *,
        logged: bool = True,
        instead_of: Conversation | None = None,
        owner: str | None = None,
        adapter: str | None = None,
    ) -> Turn:
        """Begin the answer to `text`, once the question is kept. PromptTooLong before anything is kept or computed.

        `instead_of` is the conversation as it is shown, where this turn takes the place of its end (a retry): what is
        shown again if the engine refuses. `adapter` is one of several that the engine has, or the model's own name for it
        alone; None leaves it to the engine.
        StaleConversation where the history has gone on from another head.
        """
        asked = conversation.adding(Message("user", text))
        prompt = fit_prompt(asked, self.form, self.engine.tokenizer, self.engine.info.window, sampling.max_new_tokens)
        before = instead_of or conversation
        return self.answer(asked, prompt, sampling, self.stops, before, logged=logged, owner=owner, adapter=adapter)

    def answer(
        self,
        asked: Conversation,
        prompt: Prompt,
        sampling: Sampling,
        stops: Stops,
        before: Conversation,
        *,
        logged: bool = True,
        owner: str | None = None,
        adapter: str | None = None,
        must_be_kept: bool = False,
    ) -> Turn:
        """Begin the answer to a conversation that ends with its question, once that is kept; `prompt` is it, rendered.

        `before` is what is shown again if the engine refuses. With `must_be_kept`, HistoryUnavailable where the question
        cannot be written just now; without, the chat goes on, and the turn says so.
        """
        if sampling.seed is None:
            sampling = sampling.changed(seed=secrets.randbits(SEED_BITS))
        used = self._model_used(adapter)
        opened, unkept = self._open(asked, ConversationInfo(used.name, used.adapter, asdict(sampling), owner), must_be_kept)
        try:
            stream = self.engine.stream(prompt, sampling, stops, adapter)
        except BaseException:
            self.show_again(before, opened)
            raise
        return Turn(self, opened, prompt, sampling, stream, logged=logged, before=before, unkept=unkept, model=used)

    @property
    def stops(self) -> Stops:
        """What ends an answer: the model's own stop tokens, and the format's tokens and texts."""
        named = (self.engine.tokenizer.token_id(token) for token in self.form.stop_tokens)
        return Stops(self.engine.info.stop_token_ids | {each for each in named if each is not None}, self.form.stop_texts)

    def context_used(self, conversation: Conversation) -> int:
        """Tokens that the conversation takes of the window, the next answer's opening included; 0 before it begins."""
        if not conversation.messages:
            return 0
        return min(len(render(conversation, self.form, self.engine.tokenizer).ids), self.engine.info.window)

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
        """Keep what a person thought of an answer, and queue it for the receiver; False where the history lacks the answer."""
        said = Feedback(turn_id, rating, edited, comment)
        outgoing = self.recorder.feedback(conversation_id, said) if self.recorder and logged else None
        return self.history.add_feedback(conversation_id, said, outgoing)

    def ratings(self, conversation_id: str) -> dict[str, int]:
        """The newest thumb (1 or -1) of each answer of a conversation that has one, by the answer's id."""
        kept = self.history.read(conversation_id)
        newest = {said.turn_id: said.rating for said in kept.feedback} if kept else {}
        return {turn_id: rating for turn_id, rating in newest.items() if rating}

    def erase(self, conversation_ids: Sequence[str]) -> int:
        """Remove conversations from every copy, the receiver's included; -> how many there were."""
        written = [self.recorder.tombstone(each) for each in conversation_ids] if self.recorder else []
        return self.history.erase(conversation_ids, [each for each in written if each])

    def show_again(self, before: Conversation, opened: Conversation) -> Conversation:
        """Show what was shown before a turn that came to nothing; its question stays in the history, off the branch."""
        try:
            return self.history.save(replace(before, head=opened.head))
        except HistoryUnavailable:
            return before

    def _open(self, asked: Conversation, about: ConversationInfo, must_be_kept: bool) -> tuple[Conversation, str | None]:
        """Question and open answer, kept; or not kept and why: a full disk must not end the chat."""
        opened = asked.adding(Message("assistant", "", (), "partial"))
        try:
            return self.history.save(opened, about), None
        except HistoryUnavailable as problem:
            if must_be_kept:
                raise
            return opened, str(problem)

    def _model_used(self, adapter: str | None) -> ModelUsed:
        """What answers, as it is recorded; an adapter that is chosen from several has no hash that is known."""
        info = self.engine.info
        used = info.adapter if adapter is None else None if adapter == info.name else adapter
        return ModelUsed(
            info.name, info.base, used, info.precision, info.device, info.prompt_format,
            info.base_sha256, info.adapter_sha256 if used == info.adapter else None, info.computed_by,
        )  # fmt: skip


class Turn:
    """One answer being written: iterate it once for its pieces; afterwards `conversation` holds the whole turn."""

    def __init__(
        self,
        chat: Chat,
        conversation: Conversation,
        prompt: Prompt,
        sampling: Sampling,
        stream: Stream,
        *,
        logged: bool,
        before: Conversation,
        unkept: str | None,
        model: ModelUsed,
    ) -> None:
        self.conversation = replace(conversation, messages=conversation.messages[:-1])
        """Ends with the question until the turn has ended, then with the answer."""
        self.prompt = prompt
        self.sampling = sampling
        self.finish: Finish | None = None
        self.unkept = unkept
        """Why the history does not hold this turn, fit to be shown; None where it does."""
        self.before = before
        """What was shown before."""
        self._opened = conversation
        self._chat, self._stream, self._logged, self._model = chat, stream, logged, model
        self._began_with = sampling
        self._changes: list[SettingsChange] = []
        self._text = ""
        self._ids: list[int] = []

    @property
    def answer(self) -> str:
        """The answer so far, as it is shown: without the space or line break around it."""
        return self._text.strip()

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token; the seed stays the one that was drawn."""
        self.sampling = sampling.changed(seed=self._began_with.seed)
        self._changes.append(SettingsChange(len(self._ids), self.sampling))
        self._stream.update(self.sampling)

    def cancel(self) -> None:
        """End the answer at the next token; it stays in the conversation as far as it got."""
        self._stream.cancel()

    def take_back(self) -> Conversation:
        """Show what was shown before this turn; -> that conversation."""
        return self._chat.show_again(self.before, self._opened)

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
                    self._chat.history.update_partial(self.conversation.id, self._written("partial", ()))
                yield piece
        except GeneratorExit:
            reason = "cancelled"
            raise
        finally:
            self._stream.cancel()
            self._keep(reason)

    def _written(self, reason: FinishReason, ids: tuple[int, ...]) -> Message:
        return replace(self._opened.messages[-1], content=self.answer, ids=ids, finish_reason=reason)

    def _keep(self, reason: FinishReason) -> None:
        """Close the answer in the history, and queue it for the receiver in the same step."""
        ids = kept_ids(self._chat.engine.tokenizer, self._ids, self._text.rstrip())
        self.conversation = self._opened.replacing_last(self._written(reason, ids))
        record, recorder = self._record(), self._chat.recorder
        outgoing = recorder.turn(record) if recorder and self._logged and reason != "error" else None
        try:
            self._chat.history.finish(record, outgoing)
        except HistoryUnavailable as problem:
            self.unkept = str(problem)
            return
        self.unkept = None
        self.conversation = replace(self.conversation, head=record.answer.id)

    def _taken_up(self) -> tuple[SettingsChange, ...]:
        """When settings changed: as the engine says, which is ahead of the pieces read here, where it can tell."""
        if self.finish is None or self.finish.changes is None:
            return tuple(self._changes)
        return tuple(SettingsChange(made, sampling) for made, sampling in self.finish.changes)

    def _record(self) -> TurnRecord:
        finish = self.finish
        usage = finish and Usage(
            finish.prompt_tokens, finish.cached_tokens, finish.completion_tokens, finish.ttft_ms, finish.tokens_per_s
        )
        return TurnRecord(
            self.conversation,
            self.prompt.text,
            self._began_with,
            prompt_ids=self.prompt.ids,
            answer_ids=tuple(self._ids),
            changes=self._taken_up(),
            usage=usage,
            model=self._model,
        )
