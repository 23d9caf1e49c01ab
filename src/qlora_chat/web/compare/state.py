"""One comparison of a tab: its answers while they are written, the vote, and what may be shown of them.

Scope: plain state. Knows no Gradio and no HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_chat.comparison import names
from qlora_chat.history import ComparedAnswer, Vote
from qlora_chat.web.running_answer import RunningAnswer


@dataclass
class Comparison:
    """Answers to one question, in the order shown."""

    question: str
    answers: Sequence[RunningAnswer]
    asked: Sequence[str]
    """Labels of the models that were asked."""
    blind: bool
    revealed: bool = False
    """Names are shown although no vote was given."""
    vote: Vote | None = None
    note: str = ""
    """Result of the last click."""
    owner: str | None = None
    """Owner of the page that asked."""

    @property
    def id(self) -> str:
        """Id of the comparison: that of its first answer."""
        return self.answers[0].turn.answer_id

    @property
    def conversation_id(self) -> str:
        """Id of the conversation that has the answers."""
        return self.answers[0].turn.conversation.id

    @property
    def done(self) -> bool:
        """True when every answer has ended."""
        return all(each.done for each in self.answers)

    @property
    def shows_names(self) -> bool:
        """True where nothing is hidden, or not any more."""
        return not self.blind or self.revealed or self.vote is not None

    @property
    def can_vote(self) -> bool:
        """True when there are at least two answers, one of them with words, and no vote yet."""
        given = sum(map(_is_given, self.answers))
        return self.done and self.vote is None and given >= 2 and any(each.turn.answer for each in self.answers)

    def can_be_best(self, answer: RunningAnswer) -> bool:
        """True for an answer that a vote may choose."""
        return self.can_vote and bool(answer.turn.answer)

    def names(self) -> list[str]:
        """Names of the writers, as the engine reported."""
        return names([each.turn.model for each in self.answers], [each.turn.sampling for each in self.answers])

    def vote_for(self, choice: object) -> Vote | None:
        """The vote of a choice: the number of an answer, "tie" or "bad"; None for anything else."""
        named = zip(self.answers, self.names(), strict=True)
        compared = tuple(ComparedAnswer(each.turn.answer_id, name) for each, name in named if _is_given(each))
        blind, chosen = self.blind and not self.revealed, self.answer(choice)
        if choice in ("tie", "bad"):
            return Vote(compared, choice, None, blind)
        return Vote(compared, "best", chosen.turn.answer_id, blind) if chosen and chosen.turn.answer else None

    def answer(self, number: object) -> RunningAnswer | None:
        """The answer of a number, as the browser sends it."""
        known = isinstance(number, str) and number in {str(index) for index in range(len(self.answers))}
        return self.answers[int(str(number))] if known else None


def _is_given(answer: RunningAnswer) -> bool:
    """False for an answer that is missing because of an error; one that ended without a word is given."""
    return bool(answer.turn.answer) or not answer.problem
