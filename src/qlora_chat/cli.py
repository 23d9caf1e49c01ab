"""The command line: one thin function a command.

Scope: options in, exit code out. What a command needs is imported inside it, so that --help answers at once.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlora_chat import __version__, settings
from qlora_chat.settings import LogSettings, ModelSettings, Sampling, ServeSettings, SettingsError

if TYPE_CHECKING:
    from qlora_chat.chat import Chat
    from qlora_chat.delivery.sender import LogSender

app = typer.Typer(
    name="qlora-chat",
    help="Turn a QLoRA adapter into a chatbot, on the hardware you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Option(help="auto, guanaco-7b or demo")]
Base = Annotated[str | None, typer.Option(help="Hub id or folder of a LLaMA-family base")]
Adapter = Annotated[str | None, typer.Option(help="Hub id or folder of a PEFT LoRA adapter for that base")]
PrecisionOption = Annotated[str, typer.Option(help="auto, bf16 or nf4")]
DeviceOption = Annotated[str, typer.Option(help="auto, cuda or cpu")]
Format = Annotated[str | None, typer.Option("--format", help="prompt format; default: what the adapter declares, else guanaco")]
Slots = Annotated[
    int | None, typer.Option(help="chats that share one forward pass; default: as many as fit in memory, up to 16")
]
Temperature = Annotated[float, typer.Option(help="0 (always the likeliest token) to 2")]
TopP = Annotated[float, typer.Option(help="0 to 1 (off)")]
TopK = Annotated[int, typer.Option(help="0 (off) to 200")]
RepetitionPenalty = Annotated[float, typer.Option(help="1 (off) to 2")]
MaxNewTokens = Annotated[int, typer.Option(help="longest answer, in tokens")]
Seed = Annotated[int | None, typer.Option(help="same seed, same answer")]
System = Annotated[str | None, typer.Option(help="system text; default: the prompt format's own")]


@app.command()
def serve(
    model: Model = "auto",
    base: Base = None,
    adapter: Adapter = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    prompt_format: Format = None,
    slots: Slots = None,
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine needs QLORA_CHAT_TOKEN")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="default: 7860 or the next free one")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="a host name by which browsers may reach the page")] = None,
) -> None:
    """Open the page."""
    settings.quiet_libraries()
    chosen = _model_settings(model, base, adapter, precision, device, prompt_format, slots)
    serving = ServeSettings(host, port, settings.page_token(), tuple(allow_host or ()))
    logging = settings.log_settings()

    from qlora_chat.web.app import serve as serve_page

    with closing(_Log(logging)) as log:
        serve_page(lambda: _open_chat(chosen, log.sender), serving, _notify, logging_on=log.sender is not None)


@app.command()
def chat(
    model: Model = "auto",
    base: Base = None,
    adapter: Adapter = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    prompt_format: Format = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    max_new_tokens: MaxNewTokens = 1536,
    seed: Seed = None,
    system: System = None,
) -> None:
    """Talk in the terminal. /help lists what can be typed; Ctrl-C stops an answer."""
    settings.quiet_libraries()
    chosen = _model_settings(model, base, adapter, precision, device, prompt_format, slots=1)
    sampling = Sampling(temperature, top_p, top_k, repetition_penalty, max_new_tokens, seed)
    logging = settings.log_settings()

    from qlora_chat.terminal import talk

    with closing(_Log(logging)) as log:
        talk(_open_chat(chosen, log.sender), sampling, system, logging_on=log.sender is not None)


@app.command()
def ask(
    text: Annotated[str, typer.Argument(help="the question; - reads it from standard input")],
    model: Model = "auto",
    base: Base = None,
    adapter: Adapter = None,
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    prompt_format: Format = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    max_new_tokens: MaxNewTokens = 1536,
    seed: Seed = None,
    system: System = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Ask one question and print the answer."""
    settings.quiet_libraries()
    chosen = _model_settings(model, base, adapter, precision, device, prompt_format, slots=1)
    sampling = Sampling(temperature, top_p, top_k, repetition_penalty, max_new_tokens, seed)
    logging = settings.log_settings()
    question = sys.stdin.read() if text == "-" else text
    if not question.strip():
        raise SettingsError("there is nothing to ask: TEXT is empty")

    from qlora_chat.terminal import ask_once

    with closing(_Log(logging)) as log:
        result = ask_once(_open_chat(chosen, log.sender), question, sampling, system, show=not as_json)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))


@app.command("convert-adapter")
def convert_adapter(
    source: Annotated[Path, typer.Argument(help="adapter folder with an adapter_model.bin")],
    target: Annotated[Path, typer.Argument(help="folder to write; must not exist or be empty")],
) -> None:
    """Turn an old pickled adapter into safetensors, in a process of its own that can load tensors and nothing else."""
    settings.quiet_libraries()
    from qlora_chat.models.convert import convert_adapter as convert

    convert(source, target)
    print(f"wrote {target}; use it with --adapter {target}")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Entry point: an error that a person can act on is one line and exit code 1; a traceback is a defect."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as problem:
        if not _is_for_people(problem):
            raise
        print(f"qlora-chat: {problem}", file=sys.stderr)
        sys.exit(1)


def _is_for_people(problem: Exception) -> bool:
    from qlora_chat.engines import EngineError
    from qlora_chat.models import ModelError
    from qlora_chat.prompt import PromptTooLong

    named = {"ServeError"}  # web is not imported for a command that does not serve
    return isinstance(problem, SettingsError | ModelError | EngineError | PromptTooLong) or type(problem).__name__ in named


def _model_settings(
    model: str, base: str | None, adapter: str | None, precision: Any, device: Any, prompt_format: str | None, slots: int | None
) -> ModelSettings:
    from qlora_chat.prompt import prompt_format as known_format

    if prompt_format is not None:
        known_format(prompt_format)
    return ModelSettings(model, base, adapter, precision, device, prompt_format, slots)


def _open_chat(chosen: ModelSettings, log: LogSender | None) -> Chat:
    from qlora_chat.chat import Chat
    from qlora_chat.engines import open_engine
    from qlora_chat.history.memory import MemoryHistory
    from qlora_chat.prompt import prompt_format

    engine = open_engine(chosen, _notify)
    return Chat(engine, prompt_format(engine.info.prompt_format), MemoryHistory(), log)


class _Log:
    """The sender, where LOGGING_URL is set; closing it sends what is queued."""

    def __init__(self, logging: LogSettings) -> None:
        self.sender: LogSender | None = None
        if logging.url:
            from qlora_chat.delivery.sender import LogSender

            self.sender = LogSender(logging.url, _notify)

    def close(self) -> None:
        if self.sender:
            self.sender.close()


def _notify(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
