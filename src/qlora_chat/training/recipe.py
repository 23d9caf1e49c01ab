"""Recipes and flags -> the settings of a run, checked where they are made.

Scope: every number of a run, its range, and where it comes from: a recipe's file, then the flags over it. Knows
nothing of data, weights or what the numbers do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from qlora_chat.prompt import LossOn, prompt_format
from qlora_chat.settings import SettingsError

RECIPES = Path(__file__).parent / "recipes"

Optimizer = Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_32bit", "adamw_8bit"]
Schedule = Literal["constant", "linear", "cosine"]
Switch = Literal["auto", "on", "off"]
Compute = Literal["auto", "bf16", "fp32"]
AdapterType = Literal["fp32", "bf16"]

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "loss": ("answers", "all"),
    "optimizer": ("paged_adamw_32bit", "paged_adamw_8bit", "adamw_32bit", "adamw_8bit"),
    "schedule": ("constant", "linear", "cosine"),
    "checkpointing": ("auto", "on", "off"),
    "compute": ("auto", "bf16", "fp32"),
    "adapter_dtype": ("fp32", "bf16"),
}
_WHOLE: Mapping[str, tuple[int, int]] = {
    "max_length": (8, 131_072),
    "r": (1, 1024),
    "steps": (1, 10_000_000),
    "batch": (1, 65_536),
    "packing": (8, 10_000_000),
    "pass_tokens": (8, 10_000_000),
    "save_every": (1, 1_000_000),
    "eval_every": (1, 1_000_000),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
}
_NUMBERS: Mapping[str, tuple[float, float]] = {
    "alpha": (0.001, 65_536),
    "dropout": (0, 0.9),
    "learning_rate": (1e-9, 10),
    "warmup": (0, 1),
    "final_rate": (0, 1),
    "beta1": (0, 0.99999),
    "beta2": (0, 0.9999999),
    "weight_decay": (0, 10),
    "max_grad_norm": (0, 1e6),
    "epochs": (0.001, 100_000),
    "held_out": (0, 0.5),
    "system_share": (0, 1),
}
_OPTIONAL = ("steps", "packing", "pass_tokens", "save_every", "eval_every")


@dataclass(frozen=True)
class TrainSettings:
    """One run's every number. SettingsError names the field, what arrived and what is allowed."""

    base: str = ""
    """Hub id or folder of a LLaMA-family base, or demo. It is held in NF4 with double quantisation."""
    data: tuple[str, ...] = ()
    """Files or folders of dialogues, or a dataset's Hub id."""
    prompt_format: str = "guanaco"
    loss: LossOn = "answers"
    """Tokens under the loss: the answers and what ends them, or everything."""
    system_share: float = 0.0
    """Share of the dialogues without a system text of their own that get the standard one."""
    max_length: int = 512
    """Tokens of a dialogue; what is beyond is cut off."""
    r: int = 64
    alpha: float = 16.0
    """The adapter's product is scaled by alpha / r."""
    dropout: float = 0.0
    """On the input of the adapter; query, key and value share one mask, and so do gate and up."""
    targets: tuple[str, ...] = LINEARS
    optimizer: Optimizer = "paged_adamw_32bit"
    learning_rate: float = 2e-4
    schedule: Schedule = "constant"
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises from zero."""
    final_rate: float = 0.0
    """Where linear and cosine end, as a share of learning_rate."""
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    max_grad_norm: float = 0.3
    """Gradients are scaled down to this norm; 0 leaves them."""
    steps: int | None = None
    """Updates; None takes epochs."""
    epochs: float = 1.0
    batch: int = 16
    """Dialogues in a step."""
    packing: int | None = None
    """Tokens in a step, filled with whole dialogues, in place of batch."""
    group_by_length: bool = False
    """Dialogues of about the same length in a step."""
    checkpointing: Switch = "auto"
    """Recompute a layer's inside in the backward pass instead of keeping it."""
    pass_tokens: int | None = None
    """Most tokens that run through the model at once; a step of more takes several passes. None fits it to memory."""
    compute: Compute = "auto"
    """auto: bf16 on a card, fp32 on a CPU."""
    adapter_dtype: AdapterType = "fp32"
    """How the finished adapter is stored; it is trained in fp32."""
    held_out: float = 0.02
    """Share of the dialogues (500 at most) that is not trained on, and whose loss is told."""
    eval_every: int | None = None
    save_every: int | None = None
    """Steps; None makes it ten times in a run."""
    seed: int = 0
    """Of the adapter's first weights and of dropout."""
    data_seed: int = 42
    """Of the order of the data."""

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _checked(each.name, getattr(self, each.name)))
        prompt_format(self.prompt_format)

    def recorded(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def _checked(name: str, value: Any) -> Any:
    if value is None and name in _OPTIONAL:
        return None
    if name in _CHOICES:
        return _choice(name, value)
    if name in _WHOLE or name in _NUMBERS:
        return _number(name, value)
    if name in ("data", "targets"):
        return _names(name, value)
    if name == "group_by_length" and not isinstance(value, bool):
        raise SettingsError(f"group_by_length is {value!r}, but must be true or false")
    if name in ("base", "prompt_format") and not isinstance(value, str):
        raise SettingsError(f"{name} is {value!r}, but must be a text")
    return value


def _choice(name: str, value: Any) -> str:
    if isinstance(value, bool):  # YAML reads on and off as true and false
        value = "on" if value else "off"
    if value not in _CHOICES[name]:
        raise SettingsError(f"{name} is {value!r}, but must be one of {', '.join(_CHOICES[name])}")
    return value


def _number(name: str, value: Any) -> float | int:
    low, high = _WHOLE.get(name) or _NUMBERS[name]
    whole = name in _WHOLE
    if isinstance(value, str):  # YAML reads 2e-4 as a text
        with suppress(ValueError):
            value = float(value)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    if not good or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise SettingsError(f"{name} is {value!r}, but must be {kind} from {low:g} to {high:g}")
    return int(value) if whole else float(value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if name == "targets" and value == "all":
        return LINEARS
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(each, str) for each in values):
        raise SettingsError(f"{name} is {value!r}, but must be a name or a list of names")
    if name == "targets":
        unknown = [each for each in values if each not in LINEARS]
        if unknown or not values:
            raise SettingsError(f"targets names {', '.join(unknown) or 'nothing'}; known: all, {', '.join(LINEARS)}")
        values = [each for each in LINEARS if each in values]
    return tuple(values)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the program."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name_or_file: str) -> dict[str, Any]:
    """A recipe's fields by name. SettingsError for an unknown name, field or form."""
    path = RECIPES / f"{name_or_file}.yaml"
    if name_or_file not in recipe_names():
        path = Path(name_or_file).expanduser()
        if not path.is_file():
            known = ", ".join(recipe_names())
            raise SettingsError(f"--recipe is {name_or_file!r}, but there is no such file, nor a recipe of that name: {known}")
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as problem:
        raise SettingsError(f"{path} cannot be read as YAML ({' '.join(str(problem).split())})") from problem
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must hold names and values, a line each, such as `learning_rate: 2e-4`")
    return {str(name): value for name, value in values.items()}


def settings_from(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> TrainSettings:
    """The recipe with the flags that were given (not None) over it. SettingsError for an unknown name."""
    given = {name: value for name, value in flags.items() if value is not None}
    values = {**recipe, **given}
    if "epochs" in given and "steps" not in given:
        values.pop("steps", None)  # a recipe's steps would hide the epochs that were asked for
    if "batch" in given and "packing" not in given:
        values.pop("packing", None)
    known = {each.name for each in fields(TrainSettings)}
    if unknown := sorted(set(values) - known):
        raise SettingsError(f"unknown training setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
    settings = TrainSettings(**values)
    if not settings.base:
        raise SettingsError("no base to train on: give --base ID_OR_FOLDER, or a --recipe that names one")
    if not settings.data:
        raise SettingsError("no dialogues to train on: give --data FILE (repeat it for several)")
    return settings
