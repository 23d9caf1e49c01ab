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
        return self.done and self.vote is None and len(self._given) >= 2 and any(map(_says_something, self.answers))

    def can_be_best(self, answer: RunningAnswer) -> bool:
        """True for an answer that a vote may choose."""
        return self.can_vote and _says_something(answer)

    @property
    def _given(self) -> list[RunningAnswer]:
        """The answers that are not missing because of an error; one that ended without a word is among them."""
        return [each for each in self.answers if _says_something(each) or not each.problem]

    def names(self) -> list[str]:
        """Names of the writers, as the engine reported."""
        return names([each.turn.model for each in self.answers], [each.turn.sampling for each in self.answers])

    def vote_for(self, choice: object) -> Vote | None:
        """The vote of a choice: the number of an answer, "tie" or "bad"; None for anything else."""
        named = dict(zip(map(id, self.answers), self.names(), strict=True))
        compared = tuple(ComparedAnswer(each.turn.answer_id, named[id(each)]) for each in self._given)
        for verdict in ("tie", "bad"):
            if choice == verdict:
                return Vote(compared, verdict, None, self._is_blind)
        chosen = self.answer(choice)
        if chosen is None or not _says_something(chosen):
            return None
        return Vote(compared, "best", chosen.turn.answer_id, self._is_blind)

    def answer(self, number: object) -> RunningAnswer | None:
        """The answer of a number, as the browser sends it."""
        known = isinstance(number, str) and number in {str(index) for index in range(len(self.answers))}
        return self.answers[int(str(number))] if known else None

    @property
    def _is_blind(self) -> bool:
        return self.blind and not self.revealed


def _says_something(answer: RunningAnswer) -> bool:
    return bool(answer.turn.answer)
