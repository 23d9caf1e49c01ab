"""The eval commands: quality of a model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.open import format_of, notify, open_chat
from qlora_chat.cli.options import (
    DeviceOption,
    FormatOption,
    JsonOption,
    ModelOptions,
    PrecisionOption,
    expanded,
    model_settings,
)
from qlora_chat.cli.streams import print_json

app = typer.Typer(
    name="eval", help="Quality of a model: questions with exact rules, perplexity, a blind comparison.", no_args_is_help=True
)

NO_ADAPTER = "none"
"""Stands for the base alone."""
Out = Annotated[Path | None, typer.Option(help="folder for the report; default: nothing is written")]


@app.command()
@expanded
def questions(
    model: ModelOptions,
    file: Annotated[Path | None, typer.Option(help="JSON lines of questions; default: the hand-written set")] = None,
    seeds: Annotated[int, typer.Option(min=0, max=100, help="runs with the page's own sampling, besides the greedy one")] = 5,
    before: Annotated[Path | None, typer.Option(help="an earlier questions.json, to be drawn next to it")] = None,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the hand-written questions (facts, memory, instructions, ...) and score the answers by exact rules."""
    settings.quiet_libraries()
    from qlora_chat.evaluation.questions import HAND_WRITTEN, read_questions
    from qlora_chat.evaluation.report import plot_questions, print_scores, read_earlier, write
    from qlora_chat.evaluation.run import run_questions

    source = file or HAND_WRITTEN
    question_set = read_questions(source)
    earlier = read_earlier(before) if before else None
    chat = open_chat(model.settings())
    with closing(chat.engine):
        report = run_questions(chat, question_set, source, range(seeds), notify)
    if out:
        write(out, "questions", report, partial(plot_questions, before=earlier))
    print_json(asdict(report)) if as_json else print_scores(report)


@app.command()
@expanded
def perplexity(
    data: Annotated[
        str, typer.Argument(help="held-out dialogues as `train` takes them (answers count), or .txt (everything counts)")
    ],
    model: ModelOptions,
    tokens: Annotated[int, typer.Option(min=1, help="read the file until so many tokens count")] = 100_000,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's perplexity on a file."""
    settings.quiet_libraries()
    model_settings = model.settings()
    from qlora_chat.evaluation.held_out import read_text
    from qlora_chat.evaluation.perplexity import measure
    from qlora_chat.evaluation.report import plot_perplexity, write
    from qlora_chat.models import open_model

    held_out = read_text(data, notify)
    loaded = open_model(model_settings, notify)
    template = format_of(loaded.info, loaded.tokenizer)
    text = held_out.tokenize(loaded.tokenizer, loaded.end_id, loaded.info.window, tokens, template)
    name = Path(data).name
    report = measure(loaded, text, name, notify)
    if out:
        write(out, "perplexity", report, plot_perplexity)
    summary = f"perplexity {report.perplexity} ({report.nats} nats per token) on {report.tokens:,} tokens of {name}"
    print_json(asdict(report)) if as_json else print(f"{report.model}: {summary}")


@app.command("ab")
def compare(
    prompts: Annotated[Path, typer.Argument(help="a prompt a line (.txt), or JSON lines with `prompt`")],
    base: Annotated[str, typer.Option(help="Hub id, folder or .gguf file of the base of both, or demo")],
    adapter: Annotated[str, typer.Option(help="adapter A")],
    against: Annotated[str, typer.Option(help="adapter B, or `none` for the base alone")],
    judge_file: Annotated[Path | None, typer.Option("--judge", help="choices made elsewhere: 1, 2 or = a line")] = None,
    sheet: Annotated[Path | None, typer.Option(help="write prompts and answers in blind order to this file, and end")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of answers and order: the same seed gives the same pairs again")] = 0,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    prompt_format: FormatOption = None,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Judge two adapters, or an adapter and its base, blindly by the better of two answers in random order."""
    settings.quiet_libraries()
    from qlora_chat.evaluation import pairwise
    from qlora_chat.evaluation.report import plot_comparison, print_comparison, write

    texts = pairwise.read_prompts(prompts)
    preferences = pairwise.read_preferences(judge_file, len(texts)) if judge_file else None
    answers = []
    shared = {"base": base, "precision": precision, "device": device, "prompt_format": prompt_format, "slots": 1}
    for each in (adapter, against):
        chat = open_chat(model_settings(adapter=None if each == NO_ADAPTER else each, **shared))
        with closing(chat.engine):
            answers.append(pairwise.generate_answers(chat, texts, seed))
    pairs = pairwise.shuffle_pairs(texts, answers[0], answers[1], seed)
    if sheet:
        pairwise.write_sheet(sheet, pairs)
        return
    judge = (lambda index, pair: preferences[index]) if preferences else pairwise.ask_judge
    report = pairwise.compare(pairs, (adapter, against), judge)
    if out:
        write(out, "ab", report, plot_comparison)
    print_json(asdict(report)) if as_json else print_comparison(report)
