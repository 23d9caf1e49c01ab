"""The token view, and an answer that branches at one of its tokens."""

from qlora_chat.chat import AnswerOptions
from qlora_chat.settings import Sampling
from qlora_chat.web.running_answer import RunningAnswer
from qlora_chat.web.session import Session
from tests.fakes import LetterTokenizer, ScriptedEngine, scripted_chat

OPTIONS = AnswerOptions(Sampling())


def finished(answer: RunningAnswer | None) -> None:
    assert answer is not None
    assert answer.wait(60)


def test_an_answer_goes_on_from_another_token_as_a_version_of_its_own() -> None:
    engine = ScriptedEngine("x")  # tokens of one letter have ids
    chat = scripted_chat(engine)
    session = Session(chat)
    finished(session.send("Spell.", OPTIONS))
    answer = session.conversation.messages[-1]
    assert answer.ids == tuple(LetterTokenizer().encode("x"))
    engine.answer = "z"
    finished(session.branch(answer.id, 0, LetterTokenizer().encode("y")[0], OPTIONS))
    assert session.conversation.messages[-1].content == "yz"
    stored = chat.history.read(session.conversation.id)
    assert stored is not None
    assert [each.message.content for each in stored.turns] == ["Spell.", "x", "yz"]
    assert engine.streams[-1].prompt.text.endswith("### Assistant: y")


def test_a_place_that_the_answer_does_not_have_is_refused() -> None:
    engine = ScriptedEngine("x")
    session = Session(scripted_chat(engine))
    finished(session.send("Spell.", OPTIONS))
    answer = session.conversation.messages[-1]
    assert session.branch(answer.id, 1, 5, OPTIONS) is None
    assert session.branch(answer.id, -1, 5, OPTIONS) is None
    assert session.branch(answer.id, 0, -1, OPTIONS) is None
    assert session.branch("unknown", 0, 5, OPTIONS) is None
