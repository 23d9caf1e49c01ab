"""eval: the commands that say how good a model is."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.opening import notify, open_chat
from qlora_chat.cli.options import Adapter, Base, DeviceOption, Format, Model, PrecisionOption, model_settings

app = typer.Typer(
    name="eval", help="How good a model is: questions with exact rules, perplexity, a blind comparison.", no_args_is_help=True
)

Out = Annotated[Path | None, typer.Option(help="folder for the report; default: nothing is written")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command()
def questions(
    model: Model = "auto",
    base: Base = None,
    adapter: Adapter = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    prompt_format: Format = None,
    file: Annotated[Path | None, typer.Option(help="JSON lines of questions; default: the hand-written set")] = None,
    seeds: Annotated[int, typer.Option(min=0, max=100, help="runs with the page's own sampling, besides the greedy one")] = 5,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Ask the hand-written questions (facts, sums, memory, no human life, stopping) and score them by exact rules."""
    settings.quiet_libraries()
    from qlora_chat.evaluation.asking import ask_all
    from qlora_chat.evaluation.questions import HAND_WRITTEN, read_questions
    from qlora_chat.evaluation.report import print_scores, write

    source = file or HAND_WRITTEN
    asked = read_questions(source)
    chosen = model_settings(model, base, adapter, precision, device, prompt_format, slots=1)
    chat = open_chat(chosen)
    with closing(chat.engine):
        report = ask_all(chat, asked, source, range(seeds), notify)
    if out:
        write(out, "questions", report.as_json())
    print(json.dumps(report.as_json(), ensure_ascii=False)) if as_json else print_scores(report)
