"""The compare view as HTML: the form with its columns, the answers side by side, and the tally.

Scope: values to HTML that is safe to show. Knows no Gradio, no session and no store.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from qlora_chat.comparison import FEWEST, MOST, contenders, what_more_needs
from qlora_chat.comparison.tally import Pairing, Tally
from qlora_chat.models import ModelInfo
from qlora_chat.settings import PRESETS, SAMPLING_SETTINGS, SLIDERS
from qlora_chat.web.compare.columns import MODEL, PRESET, letter
from qlora_chat.web.compare.state import Comparison
from qlora_chat.web.message_list.items import ending
from qlora_chat.web.running_answer import RunningAnswer

LONGEST_TALLY = 6
"""Pairings that are listed."""
SURE = 0.05
"""Least probability of a split by chance at which it is called one."""


def form(info: ModelInfo) -> str:
    """The whole view before a question: the columns to choose, of which those beyond the second are hidden, and the button."""
    columns = "".join(_column(index, info) for index in range(MOST))
    return (
        '<button type="button" class="icon-button close" data-act="close" aria-label="Close Compare" title="Close Compare">'
        '✕</button><h2 id="compare-title">Compare</h2><form class="compare-form">'
        '<textarea name="question" rows="2" dir="auto" aria-label="Question" '
        'placeholder="One question to all columns"></textarea>'
        f'<div class="compare-columns">{columns}</div><div class="compare-row">'
        '<button type="button" class="plain" data-act="add">Add a column</button>'
        '<label class="compare-check"><input type="checkbox" name="blind" checked> '
        "<span>Hide the names until I have voted</span></label>"
        '<button class="primary">Compare</button></div><p class="compare-problem form-problem" role="alert"></p>'
        '<div class="compare-notes"></div></form><div class="compare-result"></div>'
    )


def _column(index: int, info: ModelInfo) -> str:
    models, name = contenders(info), letter(index)
    interesting = [*models[1:], models[0]] if len(models) > FEWEST else models  # two adapters, before the base alone
    chosen = interesting[index % len(models)].name
    preset = "" if len(models) > 1 or index == 0 else PRESETS[(index - 1) % len(PRESETS)].name
    presets = [("", "As on the page"), *((each.name, each.label) for each in PRESETS)]
    beyond = index >= FEWEST
    remove = '<button type="button" class="plain" data-act="remove">Remove</button>' if beyond else ""
    return (
        f"<fieldset{' disabled' if beyond else ''}><legend>{name}</legend>"
        f"{_select('Model', MODEL, [(each.name, each.label) for each in models], chosen)}"
        f"{_select('Settings', PRESET, presets, preset)}"
        f"<details><summary>Values of its own</summary>{''.join(_number(each, info.window) for each in SLIDERS)}</details>"
        f"{remove}</fieldset>"
    )


def _select(label: str, name: str, options: Sequence[tuple[str, str]], chosen: str) -> str:
    entries = "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in options
    )
    return f'<label><span>{label}</span><select name="{name}">{entries}</select></label>'


def _number(name: str, window: int) -> str:
    setting = SAMPLING_SETTINGS[name]
    most = min(setting.maximum, window) if name == "max_new_tokens" else setting.maximum
    return (
        f'<label><span>{setting.label}</span><input type="number" name="{name}" min="{setting.minimum:g}" max="{most:g}" '
        f'step="{setting.step:g}" placeholder="as above"></label>'
    )


def notes(info: ModelInfo, begun: bool, votes: Tally, *, can_open_apart: bool) -> str:
    """Notes under the form: what the answers see, what a further comparison would need, and the votes so far."""
    said = [
        "The answers see the conversation so far." if begun else "",
        f"Every column is asked in the prompt format {info.prompt_format}.",
        what_more_needs(info),
    ]
    advice = "".join(f'<p class="advice">{escape(each)}</p>' for each in said if each)
    apart = _button("clear", "", "Open base and adapter apart now", "plain") if can_open_apart else ""
    row = f'<div class="compare-row">{apart}</div>' if apart else ""
    return f"{advice}{row}{tally_html(votes)}"


def tally_html(votes: Tally) -> str:
    """The votes so far; "" where there are none."""
    if not votes.pairings:
        return ""
    rows = "".join(map(_pairing, votes.pairings[:LONGEST_TALLY]))
    head = f"Votes so far: {votes.votes:,}, of them blind: {votes.blind:,}"
    return f'<div class="compare-tally"><h3>{head}</h3><table><tbody>{rows}</tbody></table></div>'


def _pairing(pairing: Pairing) -> str:
    first, second = pairing.names
    wins = pairing.wins
    split = wins[first] + wins[second]
    chance = f"p = {pairing.p_value:.2g}" if split else ""
    verdict = "could be chance" if pairing.p_value > SURE and split else ""
    return (
        f'<tr><th scope="row" class="own" dir="auto">{escape(first)}</th><td>{wins[first]:,} : {wins[second]:,}</td>'
        f'<th scope="row" class="own" dir="auto">{escape(second)}</th>'
        f"<td>{pairing.undecided:,} undecided</td><td>{chance}</td><td>{verdict}</td></tr>"
    )


def result(comparison: Comparison, window: int, votes: Tally | None) -> str:
    """The question, the answers as far as they are, and what can be done now."""
    names = comparison.names()
    answers = "".join(_answer(comparison, index, names[index], window) for index in range(len(names)))
    return (
        f'<p class="compare-asked own" dir="auto">{escape(comparison.question)}</p>'
        f'<div class="compare-answers">{answers}</div>{_foot(comparison)}{tally_html(votes) if votes else ""}'
    )


def _answer(comparison: Comparison, index: int, name: str, window: int) -> str:
    answer = comparison.answers[index]
    best = comparison.vote is not None and comparison.vote.chosen == answer.turn.answer_id
    return (
        f'<section class="compare-answer{" best" if best else ""}" aria-label="Answer in column {letter(index)}">'
        f"<h3>{letter(index)}{_who(comparison, index, name)}</h3>"
        f'<div class="body markdown own" dir="auto"></div>'
        f'{_state(answer, window)}<p class="facts own">{_facts(answer) if comparison.shows_names else ""}</p>'
        f'<div class="compare-row">{_buttons(comparison, index)}</div></section>'
    )


def _who(comparison: Comparison, index: int, name: str) -> str:
    """The writer of an answer: hidden, or as the engine reported it, or until then the one that was asked."""
    if not comparison.shows_names:
        return ""
    if not comparison.answers[index].done:
        return f' <span class="who"><span>asked of</span> <span class="own">{escape(comparison.asked[index])}</span></span>'
    return f' <span class="who own" dir="auto">{escape(name)}</span>'


def _state(answer: RunningAnswer, window: int) -> str:
    if not answer.done:
        return '<p class="end"><i class="dots"></i> <span>Writing</span></p>'
    if not answer.problem and not answer.turn.answer:
        return '<p class="end">Ended without a word.</p>'
    if answer.problem:
        return f'<p class="end form-problem">{escape(answer.problem)}</p>'
    reason = answer.turn.conversation.messages[-1].finish_reason
    limit = {"max_new_tokens": answer.turn.sampling.max_new_tokens, "completion_tokens": answer.tokens}
    said = ending(reason, limit, window)
    return f'<p class="end">{escape(said)}</p>' if said else ""


def _facts(answer: RunningAnswer) -> str:
    model, finish = answer.turn.model, answer.turn.finish
    if finish is None:
        return ""
    parts = [
        model.precision,
        f"base in {model.base_form}" if model.base_form else "",
        f"{finish.completion_tokens:,} tokens",
        f"{finish.tokens_per_s:,.0f} tokens/s" if finish.tokens_per_s else "",
    ]
    return escape(" · ".join(filter(None, parts)))


def _buttons(comparison: Comparison, index: int) -> str:
    answer = comparison.answers[index]
    buttons = []
    if comparison.can_be_best(answer):
        buttons.append(_button("like", str(index), f"{letter(index)} is the best", "primary"))
    if comparison.done and comparison.shows_names and answer.turn.answer:
        buttons.append(_button("select", str(index), "Use this answer", "plain"))
    return "".join(buttons)


def _foot(comparison: Comparison) -> str:
    if not comparison.done:
        return f'<div class="compare-row">{_button("stop", "", "Stop", "stop")}</div>'
    buttons = []
    if comparison.can_vote:
        buttons += [_button("like", "tie", "Tie", "plain"), _button("like", "bad", "All bad", "plain")]
    if not comparison.shows_names:
        buttons.append(_button("like", "show", "Show the names without a vote", "plain"))
    buttons.append(_button("again", "", "Compare something else", "plain"))
    note = f'<p class="note" role="status">{escape(comparison.note)}</p>' if comparison.note else ""
    return f'<div class="compare-row">{"".join(buttons)}</div>{note}'


def _button(act: str, value: str, text: str, kind: str) -> str:
    return f'<button type="button" class="{kind}" data-act="{act}" data-value="{value}">{text}</button>'
