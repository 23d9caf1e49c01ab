"""Probabilities of an answer's tokens, from the real demo model."""

import pytest

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.engines import EngineError
from qlora_chat.engines.local import LocalEngine
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.replay.tokens import ALTERNATIVES, examine_tokens
from qlora_chat.settings import Sampling
from tests.fakes import ScriptedEngine


def test_every_token_of_a_greedy_answer_is_the_likeliest(shared_engine: LocalEngine) -> None:
    chat = Chat(shared_engine, DEFAULT_FORMAT, MemoryHistory())
    list(turn := chat.reply(Conversation(), "What is the capital of France?", AnswerOptions(Sampling(temperature=0.0))))
    answer = turn.conversation.messages[-1]
    examined = list(examine_tokens(shared_engine, turn.prompt.ids, answer.ids))
    assert "".join(each.text for each in examined).strip() == answer.content
    for each in examined:
        assert each.alternatives[0].id == each.id
        assert each.probability == each.alternatives[0].probability
        assert len(each.alternatives) == ALTERNATIVES
        assert sum(other.probability for other in each.alternatives) <= 1.0001


def test_an_engine_without_probabilities_says_so() -> None:
    with pytest.raises(EngineError, match="no probabilities"):
        list(examine_tokens(ScriptedEngine("a"), (1, 2), (3, 4)))
