"""What the page says of the model that is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from qlora_chat.models.adapter.merge_loss import MergeLoss
from qlora_chat.models.merge_record import MergeRecord
from qlora_chat.prompt import Prompt
from qlora_chat.serving.admission import Gate
from qlora_chat.serving.metrics import Metrics
from qlora_chat.serving.shared_engine import SharedEngine
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops
from qlora_chat.web.panels.model import (
    MADE,
    NAMED_ADAPTERS,
    NO_MERGE,
    NOT_MEASURED,
    UNKNOWN_SPEED,
    Measured,
    making,
    model_card,
    model_facts,
)
from tests.fakes import SCRIPTED_INFO, ScriptedEngine

GIB = 2**30


def test_parts_memory_speed_and_the_cost_of_the_merge_are_named() -> None:
    loss = MergeLoss(0.0123, 0.984, 812, 9.1)
    info = replace(SCRIPTED_INFO, precision="nf4", predicted_bytes=3 * GIB, merge=MergeRecord("a", loss=loss))
    facts = dict(model_facts(info, Measured(2 * GIB, 16, GIB // 4, 38.2, 94.0)))
    assert facts["Adapter"] == "scripted-adapter"
    assert facts["Memory in use"] == "2.00 GiB by this program"
    predicted = "3.00 GiB for a chat over the whole window, 0.25 GiB for each further one, up to 16 at once"
    assert facts["Memory predicted"] == predicted
    assert facts["Speed"] == "38 tokens/s, first token after 94 ms in the newest answer"
    assert facts["Loss of the merge"] == "KL 0.0123 nats a token; the same first choice at 98.4% of 812 tokens"


def test_what_was_not_measured_is_said_and_what_does_not_exist_is_left_out() -> None:
    unknown = dict(model_facts(replace(SCRIPTED_INFO, precision="bf16", merge=MergeRecord("a")), Measured()))
    assert unknown["Speed"] == UNKNOWN_SPEED
    assert unknown["Loss of the merge"] == NOT_MEASURED
    assert dict(model_facts(replace(SCRIPTED_INFO, precision="nf4+adapter"), Measured()))["Loss of the merge"] == NO_MERGE
    alone = dict(model_facts(replace(SCRIPTED_INFO, adapter=None), Measured()))
    assert "Memory predicted" not in alone
    assert "Loss of the merge" not in alone


def test_the_making_is_told_for_an_adapter_a_base_and_the_result_of_the_merge_command() -> None:
    info = replace(SCRIPTED_INFO, precision="nf4", notices=("It is a toy.",))
    assert making(info) == [MADE["nf4"], "It is a toy."]
    assert making(replace(info, adapter=None))[0] == "The base answers alone, in nf4."
    several = replace(info, adapters=("mine", "before"))
    assert making(several)[0] == NAMED_ADAPTERS
    facts = dict(model_facts(several, Measured()))
    assert (facts["Adapter"], facts["Loss of the merge"]) == ("mine, before", NO_MERGE)
    merged = replace(info, adapter=None, merge=MergeRecord("my-adapter"))
    assert making(merged)[0] == "my-adapter was merged into it by qlora-chat merge."


def test_a_merge_report_is_a_table_in_which_names_cannot_be_markup(tmp_path: Path) -> None:
    loss = {"kl": 0.001, "top1": 0.99, "tokens": 10, "perplexity": 8.0}
    candidate = {"name": "<b>bf16", "loss": loss, "bytes": 10**9, "tokens_per_s": 30.0, "chosen": True}
    reference = {"perplexity": 8.0, "bytes": 10**9, "tokens_per_s": None}
    report = tmp_path / "merge_report.json"
    report.write_text(json.dumps({"reference": reference, "candidates": [candidate]}))
    info = replace(SCRIPTED_INFO, merge=MergeRecord("a", report=report))
    card = model_card(info, Measured())
    assert "<td>&lt;b&gt;bf16 (chosen)</td><td>0.0010</td><td>99.0%</td>" in card
    report.write_text('{"reference": 1}')
    assert "<table>" not in model_card(info, Measured())


def test_the_speed_is_that_of_the_newest_answer_worth_timing() -> None:
    engine = ScriptedEngine(answer=" ".join(["word"] * 30), delay=0.001)
    shared = SharedEngine(engine, Gate(1, 1), Metrics())
    assert Measured.of(shared) == Measured()
    list(shared.for_caller("someone").stream(Prompt("?", (5,)), Sampling(), Stops()))
    assert (Measured.of(shared).tokens_per_s or 0) > 0
    speed = shared.speed.tokens_per_s
    engine.answer = "short"
    list(shared.stream(Prompt("?", (5,)), Sampling(), Stops()))
    assert shared.speed.tokens_per_s == speed
