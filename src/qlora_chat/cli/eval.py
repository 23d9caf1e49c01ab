"""eval: the commands that say how good a model is."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.open import notify, open_chat
from qlora_chat.cli.options import DeviceOption, Format, ModelOptions, PrecisionOption, expanded, model_settings

app = typer.Typer(
    name="eval", help="How good a model is: questions with exact rules, perplexity, a blind comparison.", no_args_is_help=True
)

Out = Annotated[Path | None, typer.Option(help="folder for the report; default: nothing is written")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command()
@expanded
def questions(
    model: ModelOptions,
    file: Annotated[Path | None, typer.Option(help="JSON lines of questions; default: the hand-written set")] = None,
    seeds: Annotated[int, typer.Option(min=0, max=100, help="runs with the page's own sampling, besides the greedy one")] = 5,
    before: Annotated[Path | None, typer.Option(help="an earlier questions.json, to be drawn beside")] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Ask the hand-written questions (facts, sums, memory, no human life, stopping) and score them by exact rules."""
    settings.quiet_libraries()
    from qlora_chat.evaluation.questions import HAND_WRITTEN, read_questions
    from qlora_chat.evaluation.report import drawn_into, print_scores, read_earlier, write
    from qlora_chat.evaluation.run import ask_all

    source = file or HAND_WRITTEN
    asked = read_questions(source)
    earlier = read_earlier(before) if before else None
    chat = open_chat(model.settings())
    with closing(chat.engine):
        report = ask_all(chat, asked, source, range(seeds), notify)
    if out:
        from qlora_chat.evaluation.plots import of_questions

        write(out, "questions", report.as_json())
        drawn = [("before", earlier), ("after", report.as_json())] if earlier else [(report.model, report.as_json())]
        of_questions(drawn, drawn_into(out, "questions"))
    print(json.dumps(report.as_json(), ensure_ascii=False)) if as_json else print_scores(report)


@app.command()
@expanded
def perplexity(
    data: Annotated[
        str, typer.Argument(help="held-out dialogues as `train` takes them (answers count), or .txt (everything counts)")
    ],
    model: ModelOptions,
    tokens: Annotated[int, typer.Option(min=1, help="read the file until so many tokens count")] = 100_000,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Say how surprised a model is by a file."""
    settings.quiet_libraries()
    chosen = model.settings()
    from qlora_chat.evaluation.held_out import read_text
    from qlora_chat.evaluation.perplexity import measure
    from qlora_chat.evaluation.report import drawn_into, write
    from qlora_chat.models import open_model
    from qlora_chat.prompt import prompt_format as known_format

    read = read_text(data, notify)
    loaded = open_model(chosen, notify)
    text = read.in_ids(loaded.tokenizer, loaded.info.window, tokens, known_format(loaded.info.prompt_format))
    name = Path(data).name
    report = measure(loaded, text, name, notify)
    if out:
        from qlora_chat.evaluation.plots import of_perplexity

        write(out, "perplexity", report.as_json())
        of_perplexity(report.as_json(), drawn_into(out, "perplexity"))
    said = f"perplexity {report.perplexity} ({report.nats} nats a token) on {report.tokens:,} tokens of {name}"
    print(json.dumps(report.as_json(), ensure_ascii=False) if as_json else f"{report.model}: {said}")


@app.command("ab")
def compare(
    prompts: Annotated[Path, typer.Argument(help="a prompt a line (.txt), or JSON lines with `prompt`")],
    base: Annotated[str, typer.Option(help="Hub id or folder of the base of both, or demo")],
    adapter: Annotated[str, typer.Option(help="adapter A")],
    against: Annotated[str, typer.Option(help="adapter B")],
    judge_file: Annotated[Path | None, typer.Option("--judge", help="choices made elsewhere: 1, 2 or = a line")] = None,
    sheet: Annotated[Path | None, typer.Option(help="write prompts and answers in blind order to this file, and end")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of answers and order: the same seed gives the same pairs again")] = 0,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    prompt_format: Format = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Judge two adapters blindly: both answers in random order, which is better?"""
    settings.quiet_libraries()
    from qlora_chat.evaluation.blind import answers, blinded, judge, read_choices, read_prompts
    from qlora_chat.evaluation.judging import ask_person, write_sheet
    from qlora_chat.evaluation.report import drawn_into, print_blind, write

    asked = read_prompts(prompts)
    choices = list(read_choices(judge_file, len(asked))) if judge_file else None
    said = []
    for each in (adapter, against):
        chosen = model_settings("auto", _folder_of(base), each, precision, device, prompt_format, slots=1)
        chat = open_chat(chosen, None)
        with closing(chat.engine):
            said.append(answers(chat, asked, seed))
    pairs = blinded(asked, said[0], said[1], seed)
    if sheet:
        write_sheet(sheet, pairs)
        return
    choose = (lambda index, pair: choices[index]) if choices else ask_person
    report = judge(pairs, (adapter, against), choose)
    if out:
        from qlora_chat.evaluation.plots import of_blind

        write(out, "ab", report.as_json())
        of_blind(report.as_json(), drawn_into(out, "ab"))
    print(json.dumps(report.as_json(), ensure_ascii=False)) if as_json else print_blind(report)


def _folder_of(base: str) -> str:
    """The bundled base by its name, anything else as it is."""
    if base != "demo":
        return base
    from qlora_chat.models.locate import BUNDLED

    return str(BUNDLED / "base")
