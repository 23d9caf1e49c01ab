"""Putting questions to a model, each in a conversation of its own, and scoring what comes back.

Scope: questions and a chat in, a report out. One question at a time: chats that share a forward pass share its rounding too,
and a score must come out the same when it is taken again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_chat.chat import Chat
from qlora_chat.engines import EngineError
from qlora_chat.evaluation.questions import Answer, Kind, Question, Score
from qlora_chat.messages import Conversation
from qlora_chat.settings import Sampling

MAX_NEW_TOKENS = 200
GREEDY = Sampling(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS)
AS_ON_THE_PAGE = Sampling(max_new_tokens=MAX_NEW_TOKENS)
"""Temperature 0.7, top-p 0.9: what a user gets who touches nothing."""


@dataclass(frozen=True)
class QuestionResult:
    """One question with all that was said."""

    id: str
    kind: Kind
    ask: tuple[str, ...]
    answers: tuple[str, ...]
    """One a turn; the last is the one that is judged."""
    finish_reason: str
    right: bool


@dataclass(frozen=True)
class Run:
    """All questions once, under one seed; None is greedy."""

    seed: int | None
    asked: tuple[QuestionResult, ...]
    score: Score


@dataclass(frozen=True)
class QuestionsReport:
    """Every run, and what was asked of which model."""

    model: str
    base: str
    adapter: str | None
    precision: str
    device: str
    questions_sha256: str
    runs: tuple[Run, ...]

    def as_json(self) -> dict[str, Any]:
        """For a file: scores first, then each answer."""
        runs = [{**asdict(run), "score": asdict(run.score)} for run in self.runs]
        return {**asdict(self), "runs": runs, "sampling": asdict(AS_ON_THE_PAGE)}


def ask_all(
    chat: Chat, questions: Sequence[Question], source: Path, seeds: Sequence[int], progress: Callable[[str], None]
) -> QuestionsReport:
    """Greedy once, then the page's own sampling once a seed. EngineError if generation fails."""
    runs = []
    for seed in (None, *seeds):
        runs.append(_run(chat, questions, seed))
        progress(f"{'greedy' if seed is None else f'seed {seed}'}: {runs[-1].score.right} of {runs[-1].score.total} right")
    info = chat.engine.info
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return QuestionsReport(info.name, info.base, info.adapter, info.precision, info.device, digest, tuple(runs))


def _run(chat: Chat, questions: Sequence[Question], seed: int | None) -> Run:
    asked = []
    for index, question in enumerate(questions):
        sampling = GREEDY if seed is None else AS_ON_THE_PAGE.changed(seed=1000 * seed + index)
        asked.append(_ask(chat, question, sampling))
    return Run(seed, tuple(asked), Score.of([(question, each.right) for question, each in zip(questions, asked, strict=True)]))


def _ask(chat: Chat, question: Question, sampling: Sampling) -> QuestionResult:
    """The question's turns one after the other; what the model said to the earlier ones stays in the conversation."""
    conversation = Conversation()
    for text in question.ask:
        turn = chat.reply(conversation, text, sampling, logged=False)
        for _ in turn:
            pass
        conversation = turn.conversation
    answers = [message for message in conversation.messages if message.role == "assistant"]
    reason = answers[-1].finish_reason
    if reason is None:
        raise EngineError(f"question {question.id} was not answered")
    right = question.is_right(Answer(answers[-1].content, reason))
    return QuestionResult(question.id, question.kind, question.ask, tuple(each.content for each in answers), reason, right)
