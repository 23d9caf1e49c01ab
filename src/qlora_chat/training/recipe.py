"""Recipes and flags -> the validated settings of a run.

Scope: every number of a run, its range and its origin: a recipe's file, overridden by flags. Knows nothing of data,
weights or the numbers' effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from qlora_chat.prompt import LossOn, find_prompt_format
from qlora_chat.settings import SettingsError

RECIPES = Path(__file__).parent / "recipes"

Optimizer = Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_32bit", "adamw_8bit"]
Schedule = Literal["constant", "linear", "cosine"]
Switch = Literal["auto", "on", "off"]
Compute = Literal["auto", "bf16", "fp32"]
AdapterType = Literal["fp32", "bf16"]

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "loss": get_args(LossOn),
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "checkpointing": get_args(Switch),
    "compute": get_args(Compute),
    "adapter_dtype": get_args(AdapterType),
}
_INTEGERS: Mapping[str, tuple[int, int]] = {
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
    """Every number of a run. SettingsError names the field, what arrived and what is allowed."""

    base: str = ""
    """Hub id or folder of a LLaMA-family base, or demo. It is loaded in NF4 with double quantization."""
    data: tuple[str, ...] = ()
    """Files or folders of dialogues, or a dataset's Hub id."""
    prompt_format: str = "guanaco"
    loss: LossOn = "answers"
    """Tokens with a loss: the answers and their end, or everything."""
    system_share: float = 0.0
    """Share of the dialogues without a system text that get the standard one."""
    max_length: int = 512
    """Tokens of a dialogue; the rest is cut off."""
    r: int = 64
    alpha: float = 16.0
    """The adapter's product is scaled by alpha / r."""
    dropout: float = 0.0
    """On the adapter's input; query, key and value share one mask, and so do gate and up."""
    targets: tuple[str, ...] = LINEARS
    optimizer: Optimizer = "paged_adamw_32bit"
    learning_rate: float = 2e-4
    schedule: Schedule = "constant"
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises from zero."""
    final_rate: float = 0.0
    """Final rate of linear and cosine, as a share of learning_rate."""
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    max_grad_norm: float = 0.3
    """Gradients are scaled down to this norm; 0 turns that off."""
    steps: int | None = None
    """Updates; None uses epochs."""
    epochs: float = 1.0
    batch: int = 16
    """Dialogues in a step."""
    packing: int | None = None
    """Tokens in a step of whole dialogues; replaces batch."""
    group_by_length: bool = False
    """Put dialogues of about the same length into a step."""
    checkpointing: Switch = "auto"
    """Recompute a layer's activations in the backward pass instead of storing them."""
    pass_tokens: int | None = None
    """Most tokens of a micro-batch; a larger step takes several. None fits it to memory."""
    compute: Compute = "auto"
    """auto: bf16 on a card, fp32 on a CPU."""
    adapter_dtype: AdapterType = "fp32"
    """Type of the stored adapter; it is trained in fp32."""
    held_out: float = 0.02
    """Share of the dialogues (500 at most) that is only evaluated."""
    eval_every: int | None = None
    save_every: int | None = None
    """Steps between two; None spreads ten over the run."""
    seed: int = 0
    """Seed of the adapter's initial weights and of dropout."""
    data_seed: int = 42
    """Seed of the held-out split and of the order of the data."""

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _check(each.name, getattr(self, each.name)))
        find_prompt_format(self.prompt_format)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def _check(name: str, value: Any) -> Any:
    if value is None and name in _OPTIONAL:
        return None
    if name in _ALLOWED:
        return _check_choice(name, value)
    if name in _INTEGERS or name in _NUMBERS:
        return _check_number(name, value)
    if name in ("data", "targets"):
        return _check_names(name, value)
    if name == "group_by_length" and not isinstance(value, bool):
        raise SettingsError(f"group_by_length is {value!r}, but must be true or false")
    if name in ("base", "prompt_format") and not isinstance(value, str):
        raise SettingsError(f"{name} is {value!r}, but must be a text")
    return value


def _check_choice(name: str, value: Any) -> str:
    if isinstance(value, bool):  # YAML reads on and off as true and false
        value = "on" if value else "off"
    if value not in _ALLOWED[name]:
        raise SettingsError(f"{name} is {value!r}, but must be one of {', '.join(_ALLOWED[name])}")
    return value


def _check_number(name: str, value: Any) -> float | int:
    low, high = _INTEGERS.get(name) or _NUMBERS[name]
    integer = name in _INTEGERS
    if isinstance(value, str):  # YAML reads 2e-4 as a text
        with suppress(ValueError):
            value = float(value)
    in_range = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    if not in_range or (integer and value != int(value)):
        kind = "a whole number" if integer else "a number"
        raise SettingsError(f"{name} is {value!r}, but must be {kind} from {low:g} to {high:g}")
    return int(value) if integer else float(value)


def _check_names(name: str, value: Any) -> tuple[str, ...]:
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
    """Names of the bundled recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name_or_file: str) -> dict[str, Any]:
    """Read a recipe's fields by name. SettingsError for an unknown recipe or a file that is no mapping in YAML."""
    path = RECIPES / f"{name_or_file}.yaml"
    if name_or_file not in recipe_names():
        path = Path(name_or_file).expanduser()
        if not path.is_file():
            known = ", ".join(recipe_names())
            raise SettingsError(f"--recipe is {name_or_file!r}, but there is no such file and no such recipe; known: {known}")
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as problem:
        raise SettingsError(f"{path} cannot be read as YAML ({' '.join(str(problem).split())})") from problem
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must hold one name and value per line, such as `learning_rate: 2e-4`")
    return {str(name): value for name, value in values.items()}


def settings_from(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> TrainSettings:
    """Return the recipe overridden by the flags that are not None. SettingsError for an unknown name."""
    set_flags = {name: value for name, value in flags.items() if value is not None}
    values = {**recipe, **set_flags}
    if "epochs" in set_flags and "steps" not in set_flags:
        values.pop("steps", None)  # a recipe's steps would override the epochs of the flag
    if "batch" in set_flags and "packing" not in set_flags:
        values.pop("packing", None)
    known = {each.name for each in fields(TrainSettings)}
    if unknown := sorted(set(values) - known):
        raise SettingsError(f"unknown training setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
    settings = TrainSettings(**values)
    if not settings.base:
        raise SettingsError("no base to train on: set --base ID_OR_FOLDER, or a --recipe that names one")
    if not settings.data:
        raise SettingsError("no dialogues to train on: set --data FILE (repeat it for several)")
    return settings
