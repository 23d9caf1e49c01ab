"""Sampling settings, each declared once.

Scope: names, ranges, defaults and words. The command line, the API, the page, `/set`, records, the receiver's columns, requests
to other servers and the kernels' arguments take theirs from here. What a setting does is the samplers' business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from qlora_chat.settings.checks import SettingsError


@dataclass(frozen=True)
class SamplingSetting:
    """Declaration of one field of Sampling: its range and how interfaces present it."""

    default: float | None
    """None: the setting may be left unset."""
    minimum: float
    maximum: float
    help: str
    """One line for --help, the API's description and the slider."""
    label: str = ""
    """Name for people; "" for a setting that neither the command line nor the page offers."""
    step: float = 0
    """Of the slider; 0 for a setting without one."""
    whole: bool = False
    """Whole numbers only."""
    processor: bool = False
    """Reshapes the next token's distribution, as a logits processor does. Such a setting has a field in the API, in records and
    in requests to other servers, a column in the receiver's store, and a place among the kernels' arguments."""

    @property
    def span(self) -> str:
        """The range in words."""
        maximum = "2^63 - 1" if self.maximum == 2**63 - 1 else f"{self.maximum:g}"
        return f"{'a whole number' if self.whole else 'a number'} from {self.minimum:g} to {maximum}"


def _declare(setting: SamplingSetting) -> Any:
    return field(default=setting.default, metadata={"setting": setting})


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the sampler. Defaults are the original demo's. SettingsError names the field, the value and the range."""

    temperature: float = _declare(
        SamplingSetting(0.7, 0, 2, "0: always the likeliest token", "Temperature", step=0.05, processor=True)
    )
    """0 is greedy."""
    top_p: float = _declare(
        SamplingSetting(0.9, 0, 1, "share of probability drawn from; 1: off", "Top-p", step=0.01, processor=True)
    )
    """Smallest set of tokens whose probability reaches this; 1 is off, 0 leaves only the likeliest."""
    top_k: int = _declare(SamplingSetting(0, 0, 200, "tokens drawn from; 0: off", "Top-k", step=1, whole=True, processor=True))
    min_p: float = _declare(
        SamplingSetting(
            0.0, 0, 1, "least probability, as a share of the likeliest token's; 0: off", "Min-p", step=0.01, processor=True
        )
    )
    """Nguyen et al. 2024. It cuts what top-k and top-p leave; the likeliest token always stays."""
    repetition_penalty: float = _declare(
        SamplingSetting(1.0, 1, 2, "against saying it again; 1: off", "Repetition penalty", step=0.05, processor=True)
    )
    """Divides (or multiplies, below zero) logits of tokens already in prompt or answer (CTRL, Keskar 2019)."""
    max_new_tokens: int = _declare(
        SamplingSetting(1536, 1, 131_072, "the longest answer, in tokens", "Max new tokens", step=1, whole=True)
    )
    seed: int | None = _declare(
        SamplingSetting(None, 0, 2**63 - 1, "same seed, same prompt, same device: same answer", "Seed", whole=True)
    )
    """None draws one."""
    logprobs: int | None = _declare(SamplingSetting(None, 0, 20, "likeliest tokens to report", whole=True))
    """Report each token's log probability, and those of so many likeliest; None reports nothing."""

    def __post_init__(self) -> None:
        for name, setting in SAMPLING_SETTINGS.items():
            value = getattr(self, name)
            if value is not None or setting.default is not None:
                object.__setattr__(self, name, _checked(name, setting, value))

    def changed(self, /, **values: Any) -> Sampling:
        """A copy with some fields replaced; SettingsError for unknown names or bad values."""
        unknown = sorted(values.keys() - SAMPLING_SETTINGS.keys())
        if unknown:
            raise SettingsError(f"unknown sampling setting {unknown[0]!r}; known: {', '.join(SAMPLING_SETTINGS)}")
        return Sampling(**{**vars(self), **values})


SAMPLING_SETTINGS: Mapping[str, SamplingSetting] = {each.name: each.metadata["setting"] for each in fields(Sampling)}
SAMPLING_OPTIONS = tuple(name for name, setting in SAMPLING_SETTINGS.items() if setting.label)
"""Names of the settings that the command line and `/set` take."""
SLIDERS = tuple(name for name, setting in SAMPLING_SETTINGS.items() if setting.step)
"""Names of the settings that have a slider, in the page's order."""
LOGITS_PROCESSORS = tuple(name for name, setting in SAMPLING_SETTINGS.items() if setting.processor)
"""Names of the settings that reshape the next token's distribution, in the order of the kernels' arguments."""


def _checked(name: str, setting: SamplingSetting, value: Any) -> float | int:
    """The value as float or int inside its range. JSON and Gradio blur the two, so 40.0 is accepted as 40."""
    problem = SettingsError(f"{name} is {value!r}, but must be {setting.span}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise problem
    if isinstance(value, float) and (not math.isfinite(value) or (setting.whole and not value.is_integer())):
        raise problem
    if not setting.minimum <= value <= setting.maximum:
        raise problem
    return int(value) if setting.whole else float(value)
