"""A conversation in the model's window: the turns that stay, those that go, and how many tokens each part takes.

Scope: counts and choices. Which turns go follows from the conversation and its limit alone, so that every process drops the
same ones, turn after turn. Knows no engine and no store.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from qlora_chat.errors import UserError
from qlora_chat.messages import Conversation, Message
from qlora_chat.prompt import ChatFormat, Prompt, Tokenizer, render

DROPPED_SHARE = 0.25
"""Turns go in blocks of this share of the limit. The prompts of the turns that follow then begin alike, so the KV cache serves
them; dropping one exchange at a time would make every prompt a new one."""
SLICE = 8192
"""Characters that are tokenised at a time where a text may be far too long."""
MOST_COUNTED = 2**16
"""Tokens that a message is counted up to, where the window is smaller: tokenising megabytes takes seconds."""
Value = TypeVar("Value")
MOST_KNOWN = 100_000
"""Token counts that are remembered for a tokenizer."""


class PromptTooLong(UserError, ValueError):
    """The newest message, the system text and the pinned turns do not fit the window."""

    def __init__(
        self, tokens: int, limit: int, window: int, *, at_least: bool = False, continued: bool = False, pinned: bool = False
    ) -> None:
        """`at_least`: not all was tokenised; `continued`: an answer was to go on; `pinned`: turns are pinned."""
        subject = "This answer cannot go on: with its question and" if continued else "This message is too long: with"
        also = "the system text and the pinned turns" if pinned else "the system text"
        remedy = "Begin a new conversation." if continued else "Shorten it, or send it in parts."
        super().__init__(
            f"{subject} {also} it takes {'at least ' if at_least else ''}{tokens:,} tokens, and at most {limit:,} fit "
            f"(the model's window is {window:,}; {window - limit:,} are reserved for the answer). "
            f"{'Unpin turns. ' if pinned else ''}{remedy}"
        )
        self.tokens = tokens
        self.limit = limit


@dataclass(frozen=True)
class ContextUse:
    """Tokens that a prompt would take of the window."""

    history: int
    """Of the system text and the turns that stay."""
    draft: int
    """Of the message that is being typed."""
    answer: int
    """Reserved for the answer."""
    window: int
    dropped: tuple[int, ...] = ()
    """Indices of the messages that would not be seen."""
    problem: str | None = None
    """User-facing reason why the message cannot be sent."""


def prompt_limit(window: int, max_new_tokens: int) -> int:
    """Most tokens of a prompt: the rest of the window is reserved for the answer, though at most a quarter of it."""
    return window - min(max_new_tokens, window // 4)


def fit_prompt(
    conversation: Conversation,
    prompt_format: ChatFormat,
    tokenizer: Tokenizer,
    window: int,
    max_new_tokens: int,
    *,
    pinned: Collection[int] = (),
    continue_final: bool = False,
) -> Prompt:
    """Render a conversation that ends with a user message into at most `prompt_limit` tokens.

    The system text, the newest message and the exchanges of the `pinned` message indices always stay. Where not everything
    fits, whole exchanges go, oldest first, in blocks of DROPPED_SHARE of the limit. With `continue_final` the conversation ends
    with an answer to go on with, which stays with its question. PromptTooLong where what must stay does not fit.
    """
    expected = "assistant" if continue_final else "user"
    if not conversation.messages or conversation.messages[-1].role != expected:
        raise ValueError(f"the last message of this prompt must be the {expected}'s")
    fitting = _Fitting(conversation, prompt_format, tokenizer, prompt_limit(window, max_new_tokens), window, continue_final)
    return fitting.prompt(frozenset(index // 2 for index in pinned))


def context_use(
    conversation: Conversation,
    draft: str,
    prompt_format: ChatFormat,
    tokenizer: Tokenizer,
    window: int,
    max_new_tokens: int,
    *,
    pinned: Collection[int] = (),
) -> ContextUse:
    """The window's use if `draft` were sent now. A draft that is far too long is not tokenised to its end."""
    limit = prompt_limit(window, max_new_tokens)
    tokens = count_tokens(tokenizer, draft, window)
    with_draft = conversation.adding(Message("user", draft))
    try:
        if tokens > limit:
            raise PromptTooLong(tokens, limit, window, at_least=tokens > window)
        prompt = fit_prompt(with_draft, prompt_format, tokenizer, window, max_new_tokens, pinned=pinned)
    except PromptTooLong as problem:
        return ContextUse(0, tokens, window - limit, window, tuple(range(len(conversation.messages))), str(problem))
    return ContextUse(len(prompt.ids) - tokens, tokens, window - limit, window, prompt.dropped)


def fewest_tokens(conversation: Conversation, tokenizer: Tokenizer) -> int:
    """Fewest tokens that a conversation can take. It tokenises nothing: that takes seconds for a text of megabytes."""
    characters = len(conversation.system or "") + sum(len(each.content) for each in conversation.messages)
    return characters // tokenizer.longest_token


class _Fitting:
    """One conversation and its limit. Exchange e is the messages 2e and 2e + 1."""

    def __init__(
        self,
        conversation: Conversation,
        prompt_format: ChatFormat,
        tokenizer: Tokenizer,
        limit: int,
        window: int,
        continue_final: bool,
    ) -> None:
        self._conversation, self._format, self._tokenizer = conversation, prompt_format, tokenizer
        self._limit, self._window, self._continue_final = limit, window, continue_final
        self._most_counted = max(limit, MOST_COUNTED)
        self._newest = (len(conversation.messages) - 1) // 2
        self._counts = [self._count(message) for message in conversation.messages]

    def prompt(self, pinned: frozenset[int]) -> Prompt:
        """The prompt without the exchanges that must go. PromptTooLong."""
        must_stay = replace(self._conversation, messages=self._conversation.messages[2 * self._newest :])
        if (fewest := fewest_tokens(must_stay, self._tokenizer)) > self._limit:
            raise self._too_long(fewest, pinned, at_least=True)
        if (newest := sum(self._counts[2 * self._newest :])) > self._most_counted:
            raise self._too_long(newest, pinned, at_least=True)
        if sum(self._counts) <= self._limit:
            whole = self._rendered(range(self._newest + 1))
            if len(whole.ids) <= self._limit:
                return whole
        prompt = None
        for first in self._starts(pinned):
            prompt = self._rendered([each for each in range(self._newest + 1) if each >= first or each in pinned])
            if len(prompt.ids) <= self._limit:
                return prompt
        assert prompt, "the last start leaves what must stay"
        raise self._too_long(len(prompt.ids), pinned)

    def _starts(self, pinned: frozenset[int]) -> Iterator[int]:
        """First exchanges that stay, from the fewest blocks dropped that may suffice to the newest exchange alone.

        The number of blocks depends on the tokens of the whole conversation, which only grow from turn to turn. So it changes
        once in as many tokens as a block has, and all turns in between drop the same exchanges.
        """
        fixed, per_exchange = self._overheads()
        costs = [sum(self._counts[2 * each : 2 * each + 2]) + per_exchange for each in range(self._newest + 1)]
        block = max(1, round(DROPPED_SHARE * self._limit))
        blocks = max(1, ceil((fixed + sum(costs) - per_exchange - self._limit) / block))
        first = gone = 0
        for least in itertools.count(blocks * block, block):
            before = first
            while first < self._newest and gone < least:
                gone += 0 if first in pinned else costs[first]
                first += 1
            if first > before or not self._newest:
                yield first
            if first == self._newest:
                return

    def _overheads(self) -> tuple[int, int]:
        """Tokens of a prompt besides its messages, with one question, and of each further exchange."""
        one = replace(self._conversation, messages=(Message("user", "a"),))
        three = one.adding(Message("assistant", "a")).adding(Message("user", "a"))
        short, long = (len(render(each, self._format, self._tokenizer).ids) for each in (one, three))
        return short - 1, max(0, long - short - 2)

    def _rendered(self, exchanges: Sequence[int]) -> Prompt:
        messages = self._conversation.messages
        staying = tuple(message for each in exchanges for message in messages[2 * each : 2 * each + 2])
        prompt = render(
            replace(self._conversation, messages=staying), self._format, self._tokenizer, continue_final=self._continue_final
        )
        stays = set(exchanges)
        return replace(prompt, dropped=tuple(index for index in range(len(messages)) if index // 2 not in stays))

    def _count(self, message: Message) -> int:
        if message.ids:
            return len(message.ids)
        fewest = len(message.content) // self._tokenizer.longest_token
        return fewest if fewest > self._limit else _remembered_count(self._tokenizer, message.content, self._most_counted)

    def _too_long(self, tokens: int, pinned: frozenset[int], *, at_least: bool = False) -> PromptTooLong:
        pins = bool(pinned - {self._newest})
        return PromptTooLong(tokens, self._limit, self._window, at_least=at_least, continued=self._continue_final, pinned=pins)


def count_tokens(tokenizer: Tokenizer, text: str, most: int) -> int:
    """Tokens of a text that follows other text; of a text with more than `most`, some number above that."""
    if len(text) // tokenizer.longest_token > most:
        return len(text) // tokenizer.longest_token
    count = 0
    for start in range(0, len(text), SLICE):
        count += len(tokenizer.encode_continuation(text[start : start + SLICE]))
        if count > most:
            return count
    return count


class _Remembered(Generic[Value]):
    """Answers of tokenizers about texts: a long conversation is looked at at every turn, and at every pause in typing."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Tokenizer, dict[Hashable, Value]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def get(self, tokenizer: Tokenizer, key: Hashable, find: Callable[[], Value]) -> Value:
        """Return what `find` returns, remembered by a key that consists of hashes: the texts are not stored."""
        with self._lock:
            known = self._known.setdefault(tokenizer, {})
        if (value := known.get(key)) is None:
            if len(known) >= MOST_KNOWN:
                known.clear()
            value = known[key] = find()
        return value


_COUNTS, _OWN_IDS = _Remembered[int](), _Remembered[bool]()


def _remembered_count(tokenizer: Tokenizer, text: str, most: int) -> int:
    """Result of count_tokens, remembered."""
    return _COUNTS.get(tokenizer, (hash(text), len(text), most), lambda: count_tokens(tokenizer, text, most))


def with_own_ids(conversation: Conversation, tokenizer: Tokenizer) -> Conversation:
    """The conversation without the ids of answers by a model with another tokenizer: to this one they are other words."""
    wrong = {each.id for each in conversation.messages if each.ids and not _are_own(tokenizer, each)}
    if not wrong:
        return conversation
    messages = tuple(replace(each, ids=()) if each.id in wrong else each for each in conversation.messages)
    return replace(conversation, messages=messages)


def _are_own(tokenizer: Tokenizer, message: Message) -> bool:
    """True if a tokenizer knows an answer's ids as its text."""
    key = hash((message.ids, message.content))
    return _OWN_IDS.get(tokenizer, key, lambda: _decoded(tokenizer, message.ids) == message.content.strip())


def _decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str | None:
    """Text of ids; None where the tokenizer has no such ids."""
    try:
        return tokenizer.decode(ids).strip()
    except (ValueError, IndexError, KeyError, OverflowError):
        return None
