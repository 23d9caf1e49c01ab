"""The command line: one thin function and one module per command.

Scope: options in, exit code out. Commands import what they need inside their function, so that --help answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qlora_chat import __version__
from qlora_chat.cli.commands import (
    ask,
    bench,
    chat,
    convert_adapter,
    dataset,
    doctor,
    eval,
    export,
    history,
    logs,
    merge,
    replay,
    serve,
    train,
)
from qlora_chat.cli.streams import prepare
from qlora_chat.errors import UserError
from qlora_chat.text import plain

NEWLINE = "\n"
STOPPED = 130
"""Exit code of a program that Ctrl-C ended."""

app = typer.Typer(
    name="qlora-chat",
    help="Turn a QLoRA adapter into a chatbot, on the hardware you own.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # importing rich and its Markdown parser took half of the time that --help takes
    pretty_exceptions_enable=False,
)

app.command()(serve.serve)
app.command()(chat.chat)
app.command()(ask.ask)
app.command("convert-adapter")(convert_adapter.convert_adapter)
app.command()(doctor.doctor)
app.command()(merge.merge)
app.command()(export.export)
app.add_typer(eval.app)
app.add_typer(history.app, name="history")
app.add_typer(logs.app, name="logs")
app.add_typer(dataset.app, name="dataset")
app.command()(bench.bench)
app.command()(replay.replay)
app.command()(train.train)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True, expose_value=False)
    ] = False,
) -> None:
    """Turn a QLoRA adapter into a chatbot, on the hardware you own."""


def main() -> None:
    """Entry point: an error that a person can act on is one line and exit code 1; a traceback is a defect."""
    prepare()
    try:
        code = _exit_code()
        sys.stdout.flush()
    except UserError as problem:
        print(f"qlora-chat: {plain(str(problem), allowed=NEWLINE)}", file=sys.stderr)
        code = 1
    if code == STOPPED:
        print("qlora-chat: stopped by Ctrl-C", file=sys.stderr)
    sys.exit(code)


def _exit_code() -> int:
    """Run the command. UserError for what a person can act on."""
    try:
        app()
    except KeyboardInterrupt:
        return STOPPED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
