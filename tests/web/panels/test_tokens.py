"""The token view, and an answer that branches at one of its tokens."""

from qlora_chat.chat import AnswerOptions
from qlora_chat.replay.tokens import Alternative, ExaminedToken
from qlora_chat.settings import Sampling
from qlora_chat.web.panels.tokens import choice, percent, summary, token_buttons
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


TOKENS = [
    ExaminedToken(
        1, "A <b>", 0.9, (Alternative(1, "A <b>", 0.9), Alternative(2, " <i>", 0.06), Alternative(3, "\ufffd", 0.01))
    ),
    ExaminedToken(4, "line\n", 0.15, ()),
    ExaminedToken(5, "", None, (Alternative(6, "", 0.002),)),
]


def test_tokens_are_shown_as_they_are_with_their_probability() -> None:
    html = token_buttons(TOKENS)
    assert 'data-level="sure" tabindex="0" title="90%"><span class="own">A &lt;b&gt;</span>' in html
    assert 'data-level="unlikely" tabindex="-1" title="15%"><span class="own">line⏎</span></button><br>' in html
    assert 'title="under 1%"><span role="img" aria-label="(end)">·</span>' in html
    assert summary(TOKENS, cut=False) == "3 tokens, 2 of them below 20%."
    assert summary(TOKENS, cut=True) == "The first 3 tokens, 2 of them below 20%."


def test_only_what_is_a_text_can_be_chosen_instead() -> None:
    first, second, third = map(choice, TOKENS)
    assert '<button class="alternative" value="2"><code class="own">␣&lt;i&gt;</code> <span>6%</span></button>' in first
    assert 'value="3" disabled' in first
    assert 'value="1"' not in first
    assert "<span>had 15%. Go on from another token instead:</span>" in second
    assert "<p><code>(end)</code>" in third
    assert 'value="6" disabled' in third


def test_a_probability_is_never_said_to_be_all_or_nothing() -> None:
    assert [percent(each) for each in (None, 0.0, 0.0099, 0.01, 0.5, 0.994, 0.995, 1.0)] == [
        "under 1%", "under 1%", "under 1%", "1%", "50%", "99%", "over 99%", "over 99%"
    ]  # fmt: skip
