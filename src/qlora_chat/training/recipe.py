"""Recipes and flags -> the validated settings of a run.

Scope: every number of a run, declared once: its range, its words in --help, and its origin: a recipe's file, overridden by
flags. Knows nothing of data, weights or the numbers' effect.
"""

# ruff: noqa: RUF009  (the fields are declared by a function whose results are immutable)

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qlora_chat.chat_templates.known import check_format_name
from qlora_chat.prompt import LossOn
from qlora_chat.settings import SettingsError

RECIPES = Path(__file__).parent / "recipes"

Optimizer = Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_32bit", "adamw_8bit"]
Schedule = Literal["constant", "linear", "cosine"]
Switch = Literal["auto", "on", "off"]
Compute = Literal["auto", "bf16", "fp32"]
AdapterType = Literal["fp32", "bf16"]

MAX_STEPS = 1_000_000
"""Updates of a run, all of which are planned before the first."""
MAX_RECIPE_BYTES, MAX_RECIPE_NESTING = 64 * 1024, 3
"""A recipe is a list of names and values; the longest value is a list of files."""

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

AUTO_FORMAT = "auto"
OF_START = ("r", "alpha", "targets")
"""Settings that an adapter brings from which a run goes on."""


def _declare(default: Any, help: str | None = None, low: float = 0, high: float = 0) -> Any:
    """Declare a setting: its --help (None: recipes only), and a number's range."""
    return field(default=default, metadata={"help": help, "range": (low, high)})


@dataclass(frozen=True)
class TrainSettings:
    """Every number of a run, in the order of --help. SettingsError names the field, what arrived and what is allowed."""

    base: str = _declare("", "Hub id, folder or .gguf file of a LLaMA-family base; or smollm2; or demo, the bundled one")
    """It is loaded in NF4 with double quantization."""
    data: tuple[str, ...] = _declare(
        (), "dialogues: .jsonl, .json, .csv, .parquet (.gz and .xz too), a folder of them, or a dataset's Hub id"
    )
    start: str | None = _declare(None, "adapter to go on from, a folder or Hub id: with its rank, alpha and modules")
    steps: int | None = _declare(None, "total updates", 1, MAX_STEPS)
    epochs: float = _declare(1.0, "passes over the data, without --steps", 0.001, 100_000)
    batch: int = _declare(16, "dialogues per step", 1, 65_536)
    packing: int | None = _declare(None, "tokens per step of whole dialogues, instead of --batch", 8, 10_000_000)
    max_length: int = _declare(512, "tokens of a dialogue; the rest is cut off", 8, 131_072)
    loss: LossOn = _declare("answers", "answers (with their end) or all")
    prompt_format: str = _declare(AUTO_FORMAT, "prompt format; auto: what the base brings, else guanaco")
    system_share: float = _declare(0.0, "share of dialogues that get the standard system text", 0, 1)
    """Of those without a system text."""
    r: int = _declare(64, "rank of the adapter", 1, 1024)
    alpha: float = _declare(16.0, "the adapter is scaled by alpha / r", 0.001, 65_536)
    dropout: float = _declare(0.0, "dropout of the adapter's input", 0, 0.9)
    """Query, key and value share one mask, and so do gate and up."""
    targets: tuple[str, ...] = _declare(LINEARS, "all, or names with commas: q_proj,v_proj")
    optimizer: Optimizer = _declare("paged_adamw_32bit", ", ".join(get_args(Optimizer)))
    learning_rate: float = _declare(2e-4, "peak learning rate", 1e-9, 10)
    schedule: Schedule = _declare("constant", "constant, linear or cosine")
    warmup: float = _declare(0.03, "share of the steps in which the rate rises", 0, 1)
    final_rate: float = _declare(0.0, None, 0, 1)
    """Final rate of linear and cosine, as a share of learning_rate."""
    beta1: float = _declare(0.9, None, 0, 0.99999)
    beta2: float = _declare(0.999, None, 0, 0.9999999)
    weight_decay: float = _declare(0.0, "weight decay of AdamW", 0, 10)
    max_grad_norm: float = _declare(0.3, "gradients are scaled down to this norm; 0 turns it off", 0, 1e6)
    group_by_length: bool = _declare(False, "put dialogues of similar length together")
    checkpointing: Switch = _declare("auto", "recompute in the backward pass: auto (by memory), on, off")
    pass_tokens: int | None = _declare(None, "tokens of a micro-batch; default: what fits", 8, 10_000_000)
    compute: Compute = _declare("auto", "auto, bf16 or fp32")
    """auto: bf16 on a card, fp32 on a CPU."""
    adapter_dtype: AdapterType = _declare("fp32")
    """Type of the stored adapter; it is trained in fp32."""
    held_out: float = _declare(0.02, "share of the dialogues that is only evaluated", 0, 0.5)
    """500 at most."""
    eval_every: int | None = _declare(None, "steps between evaluations of the held-out loss", 1, 1_000_000)
    """None spreads ten over the run; the same for save_every."""
    save_every: int | None = _declare(None, "steps between checkpoints", 1, 1_000_000)
    seed: int = _declare(0, "seed of initial weights and dropout", 0, 2**32 - 1)
    data_seed: int = _declare(42, "seed of the data order", 0, 2**32 - 1)
    """Also of the held-out split."""

    def __post_init__(self) -> None:
        for name, kind in SETTING_TYPES.items():
            object.__setattr__(self, name, _check(name, kind, getattr(self, name)))
        if self.prompt_format != AUTO_FORMAT:
            check_format_name(self.prompt_format)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. `start` is among them only where there is one: earlier versions do not know it."""
        return {name: value for name, value in asdict(self).items() if name != "start" or value}


SETTING_TYPES: Mapping[str, Any] = get_type_hints(TrainSettings)
SETTING_HELP: Mapping[str, str | None] = {each.name: each.metadata["help"] for each in fields(TrainSettings)}
"""Words for --help; None for a setting of recipes only."""
_RANGES: Mapping[str, tuple[float, float]] = {each.name: each.metadata["range"] for each in fields(TrainSettings)}


def _check(name: str, kind: Any, value: Any) -> Any:
    allowed = get_args(kind)
    if value is None and NoneType in allowed:
        return None
    if get_origin(kind) is Literal:
        return _check_choice(name, allowed, value)
    if kind is float or int in (kind, *allowed):
        return _check_number(name, kind is not float, value)
    if get_origin(kind) is tuple:
        return _check_names(name, value)
    if not isinstance(value, kind):
        raise SettingsError(f"{name} is {_shown(value)}, but must be {'true or false' if kind is bool else 'a text'}")
    return value


def _check_choice(name: str, allowed: tuple[str, ...], value: Any) -> str:
    if isinstance(value, bool):  # YAML reads on and off as true and false
        value = "on" if value else "off"
    if value not in allowed:
        raise SettingsError(f"{name} is {_shown(value)}, but must be one of {', '.join(allowed)}")
    return value


def _check_number(name: str, integer: bool, value: Any) -> float | int:
    low, high = _RANGES[name]
    if isinstance(value, str):  # YAML reads 2e-4 as a text
        with suppress(ValueError):
            value = float(value)
    in_range = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not in_range or (integer and value != int(value)):
        kind = "a whole number" if integer else "a number"
        raise SettingsError(f"{name} is {_shown(value)}, but must be {kind} from {low:g} to {high:g}")
    return int(value) if integer else float(value)


def _shown(value: Any) -> str:
    """A value for a message, however long it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number with thousands of digits"


def _check_names(name: str, value: Any) -> tuple[str, ...]:
    if name == "targets" and value == "all":
        return LINEARS
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(each, str) for each in values):
        raise SettingsError(f"{name} is {_shown(value)}, but must be a name or a list of names")
    if name == "targets":
        unknown = [each for each in values if each not in LINEARS]
        if unknown or not values:
            raise SettingsError(f"targets names {', '.join(unknown)[:200] or 'nothing'}; known: all, {', '.join(LINEARS)}")
        values = [each for each in LINEARS if each in values]
    return tuple(values)


def recipe_names() -> list[str]:
    """Names of the bundled recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name_or_file: str) -> dict[str, Any]:
    """Read a recipe's fields by name. SettingsError for an unknown recipe or a file that is no mapping in YAML."""
    known = recipe_names()
    path = RECIPES / f"{name_or_file}.yaml" if name_or_file in known else Path(name_or_file).expanduser()
    if not path.is_file():
        raise SettingsError(
            f"--recipe is {name_or_file!r}, but there is no such file and no such recipe; known: {', '.join(known)}"
        )
    import yaml

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_RECIPE_BYTES + 1)
        _check_recipe_size(path, text)
        values = yaml.safe_load(text)
        if not isinstance(values, dict):
            raise SettingsError(f"{path} must hold one name and value per line, such as `learning_rate: 2e-4`")
        return {str(name): value for name, value in values.items()}
    except SettingsError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as problem:
        raise SettingsError(f"{path} cannot be read as YAML ({' '.join(str(problem).split())[:300]})") from problem


def _check_recipe_size(path: Path, text: str) -> None:
    """SettingsError for a recipe that would become large or deep; nothing is built from it before that."""
    import yaml

    if len(text) > MAX_RECIPE_BYTES:
        raise SettingsError(f"{path} is longer than {MAX_RECIPE_BYTES >> 10} KiB, which no recipe is; name the recipe's file")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise SettingsError(f"{path} repeats a part with an alias (*{event.anchor[:40]}); write the part out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_RECIPE_NESTING:
            raise SettingsError(f"{path} is nested too deep; it must hold one name and value per line")


def settings_from(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> TrainSettings:
    """Return the recipe overridden by the flags that are not None. SettingsError for an unknown name."""
    set_flags = {name: value for name, value in flags.items() if value is not None}
    values = {**recipe, **set_flags}
    if "epochs" in set_flags and "steps" not in set_flags:
        values.pop("steps", None)  # a recipe's steps would override the epochs of the flag
    if "batch" in set_flags and "packing" not in set_flags:
        values.pop("packing", None)
    if values.get("start") and (given := [each for each in OF_START if each in set_flags]):
        raise SettingsError(f"--from takes {', '.join(OF_START)} from the adapter; leave out --{', --'.join(given)}")
    if unknown := sorted(set(values) - set(SETTING_TYPES)):
        raise SettingsError(f"unknown training setting {_shown(unknown[0])}; known: {', '.join(sorted(SETTING_TYPES))}")
    settings = TrainSettings(**values)
    if not settings.base:
        raise SettingsError("no base to train on: set --base ID_OR_FOLDER, or a --recipe that names one")
    if not settings.data:
        raise SettingsError("no dialogues to train on: set --data FILE (repeat it for several)")
    return settings
