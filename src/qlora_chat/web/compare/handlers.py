"""Events of the compare view: opened, asked, stopped, voted on, and an answer of it used.

Scope: from the events of static/compare.js to the session of the tab, and back to the view's value. A comparison lives in the
process; its answers and votes are in the history.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr

from qlora_chat.chat import SEED_BITS, Chat, Turn
from qlora_chat.comparison import begin_answers, contenders, with_one_seed
from qlora_chat.comparison.tally import Tally, tally
from qlora_chat.errors import UserError
from qlora_chat.history import HistoryError
from qlora_chat.messages import Conversation
from qlora_chat.serving.model_changes import ModelChanges
from qlora_chat.settings import ModelSettings
from qlora_chat.text import replace_surrogates
from qlora_chat.web import render
from qlora_chat.web.answering import Updates
from qlora_chat.web.compare import view
from qlora_chat.web.compare.columns import parse_columns
from qlora_chat.web.compare.state import Comparison
from qlora_chat.web.handlers import Handlers
from qlora_chat.web.panels.model_panel import ModelPanel
from qlora_chat.web.panels.settings import parse_settings
from qlora_chat.web.panels.switch_form import settings_apart
from qlora_chat.web.parts import Parts
from qlora_chat.web.running_answer import UPDATE_SECONDS
from qlora_chat.web.session import Session

GONE = "The conversation with these answers is not there any more."
RECENT = 100
"""Comparisons of which a reloaded page can go on with its own."""
NOT_SAVED = "These answers are not in the history, so the vote was not saved."


class CompareHandlers:
    """One method per event. The value that each returns has only what changed."""

    def __init__(self, chat: Chat, handlers: Handlers, parts: Parts, model: ModelPanel) -> None:
        self._chat, self._handlers, self._parts, self._model = chat, handlers, parts, model
        self._comparisons: WeakKeyDictionary[Session, Comparison] = WeakKeyDictionary()
        self._recent: OrderedDict[str, Comparison] = OrderedDict()
        """By id, for pages that are reloaded."""
        self._stages = itertools.count(1)

    def connect(self, immediate: dict[str, Any], queued: dict[str, Any]) -> None:
        """Attach the events; `queued` are the options of those that wait for tokens, `immediate` of the others."""
        parts = self._parts
        shown = [parts.messages, parts.box, parts.notice, parts.status, parts.conversation, parts.adapter, parts.system]
        compare, options = parts.compare, [parts.conversation, parts.system, parts.logged, parts.sampling]
        compare.input(self.show, [parts.conversation], [compare], **immediate)
        compare.submit(self.ask, options, [compare], **queued)
        compare.stop(self.stop, **immediate)
        compare.like(self.vote, None, [compare], **immediate)
        compare.select(self.use, None, [compare, *shown], **immediate)
        if parts.switch_form:  # only who may switch the model has it
            compare.clear(self.keep_apart, [parts.conversation], [compare, *self._model.changed], **queued)

    def show(self, ref: Any, event: gr.EventData, request: gr.Request) -> Updates:
        """The view was opened, or has missed an update: all of it. A reloaded page gets the comparison that it names."""
        session = self._handlers.session(request, ref)
        named = self._recent.get(str(event._data.get("id")))
        if named and named.owner == session.owner:
            self._comparisons.setdefault(session, named)
        return self._view(session)

    def _view(self, session: Session) -> Updates:
        info, comparison = self._chat.engine.info, self._comparisons.get(session)
        begun = bool(session.conversation.messages)
        notes = view.notes(info, begun, self._tally(session), can_open_apart=self._apart() is not None)
        value = {"form": view.form(info), "notes": notes, "problem": ""}
        return self._value({**value, **(self._stage(session, comparison) if comparison else {})})

    async def ask(
        self, ref: Any, system: Any, logged: Any, settings: Any, event: gr.EventData, request: gr.Request
    ) -> AsyncIterator[Updates]:
        """Ask all columns, and show their answers as they are written."""
        session = self._handlers.session(request, ref)
        try:
            comparison = await asyncio.to_thread(self._begin, session, event._data, system, logged, settings)
        except (UserError, ValueError) as problem:
            yield self._value({"problem": str(problem)})
            return
        self._comparisons[session] = self._recent[comparison.id] = comparison
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        try:
            async for value in self._watch(session, comparison):
                yield self._value(value) if value else {self._parts.compare: gr.skip()}
        finally:
            for answer in comparison.answers:
                answer.turn.cancel()

    async def _watch(self, session: Session, comparison: Comparison) -> AsyncIterator[dict[str, Any]]:
        ended, texts = -1, [""] * len(comparison.answers)
        while True:
            done = sum(each.done for each in comparison.answers)
            newest = [each.turn.answer for each in comparison.answers]
            live = [
                each.blocks.update(text) if text != before else None
                for each, text, before in zip(comparison.answers, newest, texts, strict=True)
            ]
            texts = newest
            if done != ended:
                ended = done
                yield await asyncio.to_thread(self._stage, session, comparison)
            else:
                yield {"live": live} if any(live) else {}
            if done == len(comparison.answers):
                return
            await asyncio.sleep(UPDATE_SECONDS)

    def stop(self, request: gr.Request) -> None:
        """End every answer; the page learns of it from the comparison's own event."""
        self._handlers.session(request).stop()

    def vote(self, event: gr.EventData, request: gr.Request) -> Updates:
        """Save a vote and show the names; or only show them."""
        session, choice = self._handlers.session(request), event._data.get("choice")
        comparison = self._comparisons.get(session)
        if comparison is None or not comparison.done:
            return {self._parts.compare: gr.skip()}
        if choice == "show":
            comparison.revealed = True
        elif comparison.can_vote and (vote := comparison.vote_for(choice)):
            try:
                saved = self._chat.history.add_vote(comparison.conversation_id, vote)
                comparison.note = "Your vote is saved." if saved else NOT_SAVED
            except HistoryError as problem:
                comparison.note = str(problem)
            comparison.vote = vote
        return self._value(self._stage(session, comparison))

    def use(self, event: gr.EventData, request: gr.Request) -> Updates:
        """Show the question with one of its answers as a turn of its conversation; the others are versions of it."""
        session, notice = self._handlers.session(request), self._parts.notice
        comparison = self._comparisons.get(session)
        answer = comparison and comparison.answer(event._data.get("choice"))
        if comparison is None or answer is None:
            return {notice: render.notice(GONE)}
        try:
            is_shown = session.conversation.id == comparison.conversation_id or session.open(comparison.conversation_id)
            found = is_shown and session.select(answer.turn.answer_id)
        except UserError as problem:
            return {notice: render.problem(str(problem))}
        return {**self._handlers.opened(session), notice: "" if found else render.notice(GONE)}

    async def keep_apart(self, ref: Any, request: gr.Request) -> AsyncIterator[Updates]:
        """Open the model anew with its adapter apart from the base, and show how that goes and what can be compared then."""
        if settings := self._apart():
            async for each in self._model.switched(settings, lambda html: self._value({"notes": html})):
                yield each
        if self._apart() is None:
            yield self._view(self._handlers.session(request, ref))

    def _apart(self) -> ModelSettings | None:
        """Settings of the model with its adapter apart; None where that makes no difference, or nobody here may switch."""
        switchable = ModelChanges.switchable(self._chat.engine) if self._parts.switch_form else None
        return settings_apart(switchable.settings, self._chat.engine.info) if switchable else None

    def _begin(self, session: Session, sent: dict[str, Any], system: Any, logged: Any, settings: Any) -> Comparison:
        question = replace_surrogates(sent.get("question")).strip()
        if not question:
            raise ValueError("An empty question cannot be sent.")
        blind, info = sent.get("blind") is True, self._chat.engine.info
        common = replace(parse_settings(settings), owner=session.owner, logged=logged is not False)
        columns = parse_columns(sent.get("columns"), common, info)
        if blind:
            random.SystemRandom().shuffle(columns)
        columns = with_one_seed(columns, secrets.randbits(SEED_BITS))
        text = replace_surrogates(system).strip() or None

        def begin(shown: Conversation) -> tuple[list[Turn], Conversation]:
            conversation = replace(shown if shown.messages else Conversation(), system=text)
            turns, after = begin_answers(self._chat, conversation, question, columns)
            return turns, after if shown.messages else shown

        answers = session.compare(begin, logged=common.logged)
        labels = {each.name: each.label for each in contenders(info)}
        asked = [labels.get(each.adapter or "", info.adapter or info.name) for each in columns]
        return Comparison(question, answers, asked, blind, owner=session.owner)

    def _stage(self, session: Session, comparison: Comparison) -> dict[str, Any]:
        """The whole view of a comparison; by its number, it is a new value even where all is as before."""
        votes = self._tally(session) if comparison.vote else None
        html = view.result(comparison, self._chat.engine.info.window, votes)
        live = [{**each.blocks.whole(), "from": 0, "keep": 0} for each in comparison.answers]
        return {"stage": next(self._stages), "id": comparison.id, "html": html, "live": live, "problem": ""}

    def _tally(self, session: Session) -> Tally:
        try:
            return tally(self._chat.history.votes(owner=session.owner))
        except HistoryError:
            return tally(())

    def _value(self, value: dict[str, Any]) -> Updates:
        return {self._parts.compare: value}
