"""Stand-ins for what a test cannot have or must control exactly: an engine that follows a script, a tokenizer of letters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from qlora_chat.chat import Chat
from qlora_chat.engines import EngineError, Finish, Piece
from qlora_chat.history import About, Feedback, HistoryUnavailable, Outgoing, TurnRecord
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.models import ModelInfo
from qlora_chat.prompt import DEFAULT_FORMAT, Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops

SCRIPTED_INFO = ModelInfo(
    name="scripted",
    base="scripted-base",
    adapter="scripted-adapter",
    precision="fp32",
    device="cpu",
    window=4096,
    prompt_format="guanaco",
    stop_token_ids=frozenset({2}),
    notices=("A scripted engine: it says what the test wrote.",),
)


class LetterTokenizer:
    """Every character is a token, so ids and text turn into each other without loss."""

    bos_id = 1
    _first = 3

    def encode(self, text: str) -> list[int]:
        """Ids of text, without BOS."""
        return [ord(letter) + self._first for letter in text]

    def encode_continuation(self, text: str) -> list[int]:
        """The same: letters have no neighbours to melt into."""
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens give none."""
        return "".join(chr(each - self._first) for each in ids if each >= self._first)

    def token_id(self, token: str) -> int | None:
        """Ids of the three special tokens, by name."""
        return {"<unk>": 0, "<s>": 1, "</s>": 2}.get(token)


@dataclass
class ScriptedStream:
    """One scripted answer; a token is a list entry of the script."""

    tokens: Sequence[str]
    delay: float
    prompt: Prompt
    sampling: Sampling
    stops: Stops
    fails_after: int | None = None
    failure: str = "the script says that generation fails"
    seen: list[Sampling] = field(default_factory=list)
    """The sampling in force at each token made."""
    ended_at: float | None = None
    """time.perf_counter() when the last token was made or the answer was cancelled."""
    reason: str | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def cancelled(self) -> bool:
        """Whether someone asked for the end."""
        return self._cancelled.is_set()

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token."""
        self.sampling = sampling

    def cancel(self) -> None:
        """End the answer at the next token."""
        self._cancelled.set()

    def __iter__(self) -> Iterator[Piece]:
        """One piece a token, `delay` seconds apart; EngineError after `fails_after` tokens."""
        began = time.perf_counter()
        ids = LetterTokenizer()
        for index, token in enumerate(self.tokens):
            if self._cancelled.wait(self.delay) if self.delay else self.cancelled:
                yield self._end("cancelled", began)
                return
            if index == self.fails_after:
                self.ended_at, self.reason = time.perf_counter(), "error"
                raise EngineError(self.failure)
            self.seen.append(self.sampling)
            yield Piece(token, ids.encode(token)[0] if len(token) == 1 else None)
        yield self._end("stop", began)

    def _end(self, reason: str, began: float) -> Piece:
        self.ended_at, self.reason = time.perf_counter(), reason
        elapsed = self.ended_at - began
        count = len(self.seen)
        rate = count / elapsed if count > 1 and elapsed > 0 else None
        finish = Finish(reason, len(self.prompt.ids), 0, count, self.delay * 1000 if count else None, rate)  # type: ignore[arg-type]
        return Piece("", None, finish)


class ScriptedEngine:
    """An Engine that answers as it is told. `answer` is a text (a word is a token) or makes one from the prompt.

    Change `answer`, `delay`, `fails_after` or `failure` at any time; they hold for the answers begun afterwards.
    """

    def __init__(
        self,
        answer: str | Callable[[Prompt], str] = "This is a scripted answer.",
        delay: float = 0.0,
        fails_after: int | None = None,
        window: int = SCRIPTED_INFO.window,
        info: ModelInfo = SCRIPTED_INFO,
    ) -> None:
        self.answer, self.delay, self.fails_after = answer, delay, fails_after
        self.failure = "the script says that generation fails"
        self.info = replace(info, window=window)
        self.tokenizer = LetterTokenizer()
        self.streams: list[ScriptedStream] = []
        self.closed = False
        self.refusal: Exception | None = None
        """Raised instead of beginning an answer."""

    def stream(self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None) -> ScriptedStream:
        """Begin the scripted answer."""
        if self.refusal:
            raise self.refusal
        text = self.answer if isinstance(self.answer, str) else self.answer(prompt)
        stream = ScriptedStream(_words(text), self.delay, prompt, sampling, stops, self.fails_after, self.failure)
        self.streams.append(stream)
        return stream

    def close(self) -> None:
        """Cancel what is running."""
        self.closed = True
        for stream in self.streams:
            stream.cancel()


class ScriptedRecorder:
    """A Recorder that notes what it is told and sends nothing."""

    def __init__(self) -> None:
        self.turns: list[TurnRecord] = []
        self.feedbacks: list[Feedback] = []
        self.tombstones: list[str] = []

    def turn(self, record: TurnRecord) -> Outgoing | None:
        """Note a turn."""
        self.turns.append(record)
        return None

    def feedback(self, conversation_id: str, feedback: Feedback) -> Outgoing | None:
        """Note what a person thought."""
        self.feedbacks.append(feedback)
        return None

    def tombstone(self, conversation_id: str) -> Outgoing | None:
        """Note what is to be erased."""
        self.tombstones.append(conversation_id)
        return None


class FullHistory(MemoryHistory):
    """A store whose disk is full."""

    def save(self, conversation: Conversation, about: About | None = None) -> Conversation:
        """Refuse."""
        raise HistoryUnavailable("the disk is full")

    def finish(self, record: TurnRecord, outgoing: Outgoing | None = None) -> None:
        """Refuse."""
        raise HistoryUnavailable("the disk is full")


def scripted_chat(engine: ScriptedEngine | None = None) -> Chat:
    """A chat over a scripted engine, its history in memory."""
    return Chat(engine or ScriptedEngine(), DEFAULT_FORMAT, MemoryHistory())


def _words(text: str) -> list[str]:
    """The text in pieces that begin with a space, as a model's tokens often do."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]
