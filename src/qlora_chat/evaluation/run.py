"""Runs of the questions through a model, each question in its own conversation, with scores.

Scope: questions and a chat in, a report out. Questions run one at a time: the rounding of a forward pass depends on its
batch, and a score must be reproducible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_chat.chat import AnswerOptions, Chat, Turn
from qlora_chat.engines import EngineError
from qlora_chat.evaluation.questions import Answer, Kind, Question, Score
from qlora_chat.messages import Conversation
from qlora_chat.models import Notify
from qlora_chat.settings import Sampling

MAX_NEW_TOKENS = 200
GREEDY = Sampling(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS)
PAGE_SAMPLING = Sampling(max_new_tokens=MAX_NEW_TOKENS)
"""The page's defaults: temperature 0.7, top-p 0.9."""


@dataclass(frozen=True)
class QuestionResult:
    """One question with its answers."""

    id: str
    kind: Kind
    ask: tuple[str, ...]
    answers: tuple[str, ...]
    """One per turn; the last one is scored."""
    finish_reason: str
    right: bool


@dataclass(frozen=True)
class QuestionsRun:
    """All questions once with one seed; None is greedy."""

    seed: int | None
    asked: tuple[QuestionResult, ...]
    score: Score


@dataclass(frozen=True)
class QuestionsReport:
    """All runs of the questions on one model; its fields are those of questions.json."""

    model: str
    base: str
    adapter: str | None
    precision: str
    device: str
    questions_sha256: str
    runs: tuple[QuestionsRun, ...]
    sampling: Sampling = PAGE_SAMPLING
    """Of the runs with a seed."""


def run_questions(
    chat: Chat, questions: Sequence[Question], source: Path, seeds: Sequence[int], notify: Notify
) -> QuestionsReport:
    """Run the questions greedily, then with the page's sampling once per seed. EngineError if generation fails."""
    runs = []
    for seed in (None, *seeds):
        runs.append(_run(chat, questions, seed))
        notify(f"{'greedy' if seed is None else f'seed {seed}'}: {runs[-1].score.right} of {runs[-1].score.total} right")
    info = chat.engine.info
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return QuestionsReport(info.name, info.base, info.adapter, info.precision, info.device, digest, tuple(runs))


def _run(chat: Chat, questions: Sequence[Question], seed: int | None) -> QuestionsRun:
    results = []
    for index, question in enumerate(questions):
        sampling = GREEDY if seed is None else PAGE_SAMPLING.changed(seed=1000 * seed + index)
        results.append(_ask(chat, question, sampling))
    verdicts = [(question, each.right) for question, each in zip(questions, results, strict=True)]
    return QuestionsRun(seed, tuple(results), Score.of(verdicts))


def _ask(chat: Chat, question: Question, sampling: Sampling) -> QuestionResult:
    """Send the question's turns one after the other; the model's earlier answers stay in the conversation."""
    conversation = Conversation()
    for text in question.ask:
        conversation = finished_turn(chat, conversation, text, sampling).conversation
    answers = [message for message in conversation.messages if message.role == "assistant"]
    reason = answers[-1].finish_reason
    if reason is None:
        raise EngineError(f"question {question.id} was not answered")
    right = question.is_right(Answer(answers[-1].content, reason))
    return QuestionResult(question.id, question.kind, question.ask, tuple(each.content for each in answers), reason, right)


def finished_turn(chat: Chat, conversation: Conversation, text: str, sampling: Sampling) -> Turn:
    """The turn of one question, read to its end; it is neither stored nor logged."""
    turn = chat.reply(conversation, text, AnswerOptions(sampling, logged=False))
    for _ in turn:
        pass
    return turn
