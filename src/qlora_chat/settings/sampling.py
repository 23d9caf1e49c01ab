"""Sampling settings, each declared once.

Scope: names, ranges, defaults and words. The command line, the API, the page, `/set`, records, the receiver's columns, requests
to other servers and the kernels' arguments take theirs from here. What a setting does is the samplers' business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    advice: str = ""
    """Advice for people on when to move it, in one sentence."""
    processor: bool = False
    """Reshapes the next token's distribution, as a logits processor does. Such a setting has a field in the API, in records and
    in requests to other servers, a column in the receiver's store, and a place among the kernels' arguments."""

    @property
    def span(self) -> str:
        """The range in words."""
        maximum = "2^63 - 1" if self.maximum == 2**63 - 1 else f"{self.maximum:g}"
        return f"{'a whole number' if self.whole else 'a number'} from {self.minimum:g} to {maximum}"


def _declare(default: float | None, minimum: float, maximum: float, help: str, label: str = "", **more: Any) -> Any:
    """Field with its declaration, a SamplingSetting of these values."""
    return field(default=default, metadata={"setting": SamplingSetting(default, minimum, maximum, help, label, **more)})


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the sampler. Defaults are the original demo's. SettingsError names the field, the value and the range."""

    temperature: float = _declare(
        0.7, 0, 2, "0: always the likeliest token", "Temperature", step=0.05, processor=True,
        advice="Lower it for facts and code, raise it for ideas and stories.",
    )  # fmt: skip
    """0 is greedy."""
    top_p: float = _declare(
        0.9, 0, 1, "share of probability drawn from; 1: off", "Top-p", step=0.01, processor=True,
        advice="Lower it if odd words turn up; leave it at 1 if you use min-p.",
    )  # fmt: skip
    """Smallest set of tokens whose probability reaches this; 1 is off, 0 leaves only the likeliest."""
    top_k: int = _declare(
        0, 0, 200, "tokens drawn from; 0: off", "Top-k", step=1, whole=True, processor=True,
        advice="Set it to about 40 if a high temperature makes nonsense; 0 leaves the choice to top-p and min-p.",
    )  # fmt: skip
    min_p: float = _declare(
        0.0, 0, 1, "least probability, as a share of the likeliest token's; 0: off", "Min-p", step=0.01, processor=True,
        advice="Set it to about 0.05 to stay sensible at a temperature of 1 or more.",
    )  # fmt: skip
    """Nguyen et al. 2024. It cuts what top-k and top-p leave; the likeliest token always stays."""
    repetition_penalty: float = _declare(
        1.0, 1, 2, "against saying it again; 1: off", "Repetition penalty", step=0.05, processor=True,
        advice="Raise it to about 1.1 if the answer goes in circles; much more makes it avoid words that it needs.",
    )  # fmt: skip
    """Divides (or multiplies, below zero) logits of tokens already in prompt or answer (CTRL, Keskar 2019)."""
    max_new_tokens: int = _declare(
        1536, 1, 131_072, "the longest answer, in tokens", "Max new tokens", step=1, whole=True,
        advice="Lower it for short answers; as much of the window is kept free, at most a quarter.",
    )  # fmt: skip
    seed: int | None = _declare(
        None, 0, 2**63 - 1, "same seed, same prompt, same device: same answer", "Seed", whole=True,
        advice="Set it to get the same answer again, or to compare two settings fairly; empty draws another each time.",
    )  # fmt: skip
    """None draws one."""
    logprobs: int | None = _declare(None, 0, 20, "likeliest tokens to report", whole=True)
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
MAX_STOP_TEXTS, MAX_STOP_LENGTH = 16, 256
"""Texts that a caller may name to end an answer, and characters of each."""
LOGITS_PROCESSORS = tuple(name for name, setting in SAMPLING_SETTINGS.items() if setting.processor)
"""Names of the settings that reshape the next token's distribution."""


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


def check_stop_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts, if an answer may end with them. SettingsError."""
    if len(texts) > MAX_STOP_TEXTS:
        raise SettingsError(f"there are {len(texts)} stop texts, and at most {MAX_STOP_TEXTS} are allowed")
    longest = max(map(len, texts), default=1)
    if longest > MAX_STOP_LENGTH:
        raise SettingsError(f"a stop text has {longest:,} characters, and at most {MAX_STOP_LENGTH} are allowed")
    if not all(texts):
        raise SettingsError("a stop text is empty, and would end every answer before it begins")
    return tuple(texts)


@dataclass(frozen=True)
class Preset:
    """Sampling settings under one name, for a purpose."""

    name: str
    label: str
    purpose: str
    """One sentence for people."""
    values: Mapping[str, float]
    """Those that it sets; it leaves the others."""


PRESETS = (
    Preset("precise", "Precise", "For facts, code and summaries: close to the likeliest words.",
           {"temperature": 0.2, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}),
    Preset("balanced", "Balanced", "For most conversations: varied, and still sensible.",
           {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.05, "repetition_penalty": 1.05}),
    Preset("creative", "Creative", "For ideas and stories: surprising words, but no nonsense.",
           {"temperature": 1.15, "top_p": 1.0, "top_k": 0, "min_p": 0.05, "repetition_penalty": 1.1}),
    Preset("original", "The original's", "The settings of the guanaco demo that this program follows.",
           {name: float(SAMPLING_SETTINGS[name].default or 0) for name in LOGITS_PROCESSORS}),
)  # fmt: skip
"""In the page's order."""
