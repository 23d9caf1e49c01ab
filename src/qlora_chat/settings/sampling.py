"""How the next token is chosen: every control, its range, step and default."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qlora_chat.settings.checks import SettingsError


@dataclass(frozen=True)
class Range:
    """Allowed values of a sampling control, with its slider step and default."""

    minimum: float
    maximum: float
    step: float
    default: float
    integer: bool = False


SAMPLING_RANGES: Mapping[str, Range] = {
    "temperature": Range(0.0, 2.0, 0.05, 0.7),
    "top_p": Range(0.0, 1.0, 0.01, 0.9),
    "top_k": Range(0, 200, 1, 0, integer=True),
    "repetition_penalty": Range(1.0, 2.0, 0.05, 1.0),
    "max_new_tokens": Range(1, 131_072, 1, 1536, integer=True),
    "seed": Range(0, 2**63 - 1, 1, 0, integer=True),
    "logprobs": Range(0, 20, 1, 0, integer=True),
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Defaults are the original demo's; ValueError names what is wrong."""

    temperature: float = 0.7
    """0 means greedy."""
    top_p: float = 0.9
    """Smallest set of tokens whose probability reaches this; 1 is off, 0 keeps only the best."""
    top_k: int = 0
    """Keep the k best tokens; 0 is off."""
    repetition_penalty: float = 1.0
    """Divides (or multiplies, below zero) logits of tokens already in prompt or answer (CTRL, Keskar 2019); 1 is off."""
    max_new_tokens: int = 1536
    seed: int | None = None
    """Same seed, same prompt, same device: same answer. None draws one."""
    logprobs: int | None = None
    """Report each token's log probability, and those of so many likeliest; None reports nothing."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name in ("seed", "logprobs") and value is None:
                continue
            object.__setattr__(self, each.name, _checked(each.name, value))

    def changed(self, /, **values: Any) -> Sampling:
        """A copy with some fields replaced; SettingsError for unknown names or bad values."""
        known = {each.name: getattr(self, each.name) for each in fields(self)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise SettingsError(f"unknown sampling setting {unknown[0]!r}; known: {', '.join(known)}")
        return Sampling(**{**known, **values})


def _checked(name: str, value: Any) -> float | int:
    """The value as float or int inside its range. JSON and Gradio blur the two, so 40.0 is taken as 40."""
    allowed = SAMPLING_RANGES[name]
    kind = "a whole number" if allowed.integer else "a number"
    span = f"{kind} from {allowed.minimum:g} to {allowed.maximum:g}" if name != "seed" else "a whole number from 0 to 2^63 - 1"
    problem = SettingsError(f"{name} is {value!r}, but must be {span}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise problem
    if isinstance(value, float) and (not math.isfinite(value) or (allowed.integer and not value.is_integer())):
        raise problem
    if not allowed.minimum <= value <= allowed.maximum:
        raise problem
    return int(value) if allowed.integer else float(value)
