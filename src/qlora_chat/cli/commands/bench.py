"""The bench command: generation speed of this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qlora_chat.cli.options import JsonOption, KVCacheDtypeOption
from qlora_chat.settings import SettingsError, one_of

PLOTTED_CHATS = (1, 2, 4, 8, 16, 32)


def bench(
    model: Annotated[str, typer.Option(help="demo, the bundled toy, or smollm2")] = "demo",
    shape: Annotated[str | None, typer.Option(help="7b: random weights of LLaMA-7B's shape, nothing is downloaded")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu")] = "auto",
    precision: Annotated[str | None, typer.Option(help="bf16 or nf4; default: bf16 for the demo, else nf4")] = None,
    chats: Annotated[str, typer.Option(help="concurrent chats, such as 1,8,32; default with --plot: up to 32")] = "",
    context: Annotated[str, typer.Option(help="prompt tokens, such as 128,1024")] = "",
    tokens: Annotated[int, typer.Option(help="new tokens per answer")] = 256,
    rounds: Annotated[int, typer.Option(help="timed runs per row; the table shows their medians")] = 3,
    compare: Annotated[str | None, typer.Option(help="original: also time Transformers' generate with a streamer")] = None,
    kv_cache_dtype: KVCacheDtypeOption = "auto",
    layers: Annotated[int | None, typer.Option(help="with --shape: number of decoder layers, for a dry run")] = None,
    plot: Annotated[Path | None, typer.Option(help="plot over chats and context, FILE.png")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure tokens/s, first token, memory and share of a copy's bandwidth, after checking the engine's results."""
    from qlora_chat.benchmark import Subject, Workload
    from qlora_chat.benchmark.report import as_json as result_json
    from qlora_chat.benchmark.report import plot as plot_result
    from qlora_chat.benchmark.report import print_table
    from qlora_chat.benchmark.run import run

    one_of("model", model, ("demo", "smollm2"))
    one_of("shape", shape, (None, "7b"))
    one_of("device", device, ("auto", "cuda", "cpu"))
    one_of("precision", precision, (None, "bf16", "nf4"))
    one_of("compare", compare, (None, "original"))
    one_of("kv-cache-dtype", kv_cache_dtype, ("auto", "int8"))
    if layers is not None and (not shape or layers < 1):
        raise SettingsError("--layers is a whole number from 1, and goes with --shape")
    checked_device: Any = device
    checked_dtype: Any = kv_cache_dtype
    subject = Subject(
        shape or model, checked_device, precision or ("bf16" if model == "demo" and not shape else "nf4"), layers, checked_dtype
    )
    work = Workload(
        _numbers("chats", chats) or (PLOTTED_CHATS if plot else (1,)),
        _numbers("context", context) or (_plotted_contexts(shape) if plot else (128,)),
        _at_least_two("tokens", tokens),
        max(1, rounds),
    )
    result = run(subject, work, compare == "original", lambda line: print(line, file=sys.stderr, flush=True))
    if plot:
        plot_result(result, plot)
    if as_json:
        print(json.dumps(result_json(result), indent=1))
    else:
        print_table(result)


def _plotted_contexts(shape: str | None) -> tuple[int, ...]:
    return (128, 512, 1024, 1536) if shape else (128, 192, 256)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Parse positive integers separated by commas."""
    try:
        numbers = tuple(int(each) for each in text.split(",") if each.strip())
    except ValueError:
        numbers = (0,)
    if any(each < 1 for each in numbers):
        raise SettingsError(f"--{option} is {text!r}, but must be whole numbers from 1, such as 1,8,32")
    return numbers


def _at_least_two(option: str, value: int) -> int:
    if value < 2:
        raise SettingsError(f"--{option} is {value}, but a rate needs at least 2")
    return value
