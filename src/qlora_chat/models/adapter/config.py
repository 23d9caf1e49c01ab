"""adapter_config.json of a PEFT LoRA: kinds and keys that can be applied.

Scope: the config alone, read as PEFT reads it. A key that is neither known nor off stands for something that would be left out,
so it is refused by name. Knows no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qlora_chat.models import ModelError
from qlora_chat.models.folders import Problem
from qlora_chat.models.trust import read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
EMBEDDINGS, HEAD = "model.embed_tokens", "lm_head"
CHANGING = ("bias", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices", "use_dora",
            "lora_bias", "ensure_weight_tying", "target_modules", "exclude_modules", "layers_to_transform",
            "layers_pattern")  # fmt: skip
"""Keys that PEFT has to read for a merge, besides rank, alpha and initialization."""
WITHOUT_EFFECT = frozenset(
    {"auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode",
     "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "merge_weights", "peft_type",
     "peft_version", "qalora_group_size", "r", "revision", "runtime_config", "task_type"}
)  # fmt: skip
"""Keys that say how an adapter was trained or begun, or that are read elsewhere; PEFT turns fan_in_fan_out off for linears."""
REFUSED = {
    "alora_invocation_tokens": "an activated LoRA (aLoRA) applies only after its invocation tokens, which is not computed here",
    "arrow_config": "Arrow routes between several adapters, which is not computed here",
    "enable_lora": "MergedLinear of old PEFT versions is not computed here",
    "layer_replication": "the adapter is for a base with repeated layers, which is not computed here",
    "megatron_config": "the adapter is for Megatron's layers",
    "target_parameters": "the adapter changes parameters of experts, which LLaMA-family bases lack",
    "use_qalora": "QALoRA groups its inputs, which is not computed here",
}
LIMIT = 1e30
"""No alpha is as large; infinity and NaN are no numbers here."""
DEFAULTS = {"r": 8, "lora_alpha": 8}
"""PEFT's values of keys that a config may leave out."""
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "lora_ga")
"""Values of init_lora_weights that leave the base's weights as they are."""
_KNOWN_STARTS = ("pissa", "olora", "loftq")
"""Values of init_lora_weights that change the base in a way that PEFT repeats."""
_MERGED_FEATURES = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "trainable_token_indices")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a PEFT LoRA. ModelError for another kind of adapter, or none."""
    config = read_json(folder / ADAPTER_CONFIG)
    if not config:
        raise ModelError(f"{folder} holds no {ADAPTER_CONFIG}; {_where_instead(folder)}")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} holds an adapter of type {config.get('peft_type')!r}; only LORA can be used")
    config = {**DEFAULTS, **config}
    if not _is_rank(rank := config["r"]):
        raise ModelError(f"{folder / ADAPTER_CONFIG} says r {rank!r}, but a LoRA's rank is a whole number from 1")
    if not _is_number(alpha := config["lora_alpha"]):
        raise ModelError(f"{folder / ADAPTER_CONFIG} says lora_alpha {alpha!r}, but a LoRA's alpha is a number")
    _check_types(folder, config)
    return config


def _where_instead(folder: Path) -> str:
    """Advice that names adapters in the folder's own folders, as training leaves them in checkpoint-500."""
    inside = sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_CONFIG}")) if folder.is_dir() else []
    if inside:
        newest = max(inside, key=lambda name: (int(found.group()) if (found := re.search(r"\d+$", name)) else -1, name))
        held = inside[0] if len(inside) == 1 else f"{', '.join(inside[:4])}{' and others' if len(inside) > 4 else ''}"
        return f"it holds adapters in its own folders ({held}): give one of them, for example {folder / newest}"
    if (folder / "config.json").is_file():
        return "it is a whole model: give it as --base, without --adapter"
    return "give a folder or Hub id of a PEFT LoRA adapter"


def _check_types(folder: Path, config: Mapping[str, Any]) -> None:
    """ModelError for a pattern or list that is something else."""
    for key, is_right, kind in (("rank_pattern", _is_rank, "whole numbers from 1"), ("alpha_pattern", _is_number, "numbers")):
        value = config.get(key) or {}
        numbers = value.values() if isinstance(value, dict) else [None]
        if not all(map(is_right, numbers)):
            raise ModelError(f"{folder / ADAPTER_CONFIG} says {key} {value!r}, but it must be a table of {kind}")
        _check_patterns(folder, key, value)
    if (bias := config.get("bias", "none")) not in ("none", "all", "lora_only"):
        raise ModelError(f"{folder / ADAPTER_CONFIG} says bias {bias!r}, but it must be none, all or lora_only")
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        value = config.get(key)
        names = [value] if isinstance(value, str) and key != "modules_to_save" else value or []
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise ModelError(f"{folder / ADAPTER_CONFIG} says {key} {value!r}, but it must be a list of names")
        _check_patterns(folder, key, names if isinstance(value, str) or key == "modules_to_save" else [])
    for key in ("layers_to_transform", "trainable_token_indices"):
        value = config.get(key)
        lists = list(value.values()) if isinstance(value, dict) else [value]
        flat = [each for part in lists for each in (part if isinstance(part, list) else [part])]
        if value is not None and not all(type(each) is int for each in flat):
            raise ModelError(f"{folder / ADAPTER_CONFIG} says {key} {value!r}, but it must be a list of whole numbers")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LIMIT


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_patterns(folder: Path, key: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as problem:
            raise ModelError(f"{folder / ADAPTER_CONFIG} says {key} {pattern!r}, which is no pattern ({problem})") from problem


def config_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys that nothing here can apply."""
    for key in sorted(config):
        value = config[key]
        if key in WITHOUT_EFFECT or key in CHANGING or key == "init_lora_weights" or not value:
            continue
        if key in REFUSED:
            yield Problem(
                f"{ADAPTER_CONFIG} says {key}", REFUSED[key], "merge it with the tool that trained it, and give the result"
            )
        else:
            why = "what it asks for is not known here, and would be left out"
            yield Problem(f"{ADAPTER_CONFIG} says {key} {_short(value)}", why, "remove the key if the adapter does not need it")
    yield from _contradictions(config)
    yield from _start_problems(config)


def _contradictions(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys that PEFT does not take together."""
    targets, layers, pattern = config.get("target_modules"), config.get("layers_to_transform"), config.get("layers_pattern")
    start = config.get("init_lora_weights", True)
    pairs = (
        ("layers_to_transform", "target_modules as a text", isinstance(targets, str) and layers is not None),
        ("layers_pattern", "target_modules as a text", isinstance(targets, str) and pattern is not None),
        ("layers_pattern", "no layers_to_transform", pattern and layers is None),
        ("lora_bias", "use_dora", config.get("lora_bias") and config.get("use_dora")),
        ("lora_bias", f"init_lora_weights {_short(start)}", config.get("lora_bias") and changes_base(config)),
    )
    for first, second, is_so in pairs:
        if is_so:
            why = "PEFT does not take them together, so it is not known what the adapter was trained with"
            yield Problem(f"{ADAPTER_CONFIG} says {first} with {second}", why, "give the config that belongs to these weights")


def _start_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    start = config.get("init_lora_weights", True)
    convert = "save the adapter converted (PEFT: save_pretrained(path_initial_model_for_weight_conversion=...))"
    what = f"{ADAPTER_CONFIG} says init_lora_weights {_short(start)}"
    if not changes_base(config):
        return
    if start == "corda":
        yield Problem(what, "that initialization changes the base, and cannot be repeated from the adapter alone", convert)
    elif isinstance(start, str) and re.fullmatch(r"pissa_niter_\d+", start):
        why = "its quick decomposition of the base draws random numbers, so no second run finds the same base"
        yield Problem(what, why, convert)
    elif start not in _KNOWN_STARTS:
        yield Problem(what, "that initialization is not known here, and may change the base", convert)
    elif start == "loftq" and not config.get("loftq_config"):
        why = "PEFT repeats LoftQ's initialization of the base by loftq_config, which is missing"
        yield Problem(what, why, "give the config that belongs to these weights")
    elif start == "loftq" and find_spec("scipy") is None:
        why = "PEFT repeats LoftQ's initialization of the base with scipy, which is not installed"
        yield Problem(what, why, "pip install scipy")


def changes_base(config: Mapping[str, Any]) -> bool:
    """True for an initialization that leaves other weights in the base than it had."""
    return config.get("init_lora_weights", True) not in _PLAIN_STARTS


def merged_features(config: Mapping[str, Any]) -> list[str]:
    """Keys that only a merge can apply (DoRA, per-layer ranks, whole modules, biases, a start that changes the base)."""
    features = [key for key in _MERGED_FEATURES if config.get(key)]
    features += ["bias"] if config.get("bias", "none") != "none" else []
    start = config.get("init_lora_weights", True)
    return [*features, f"init_lora_weights {start!r}"] if changes_base(config) else features


def peft_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of PEFT's LoraConfig: all that changes the result, and no name that PEFT could look up at the Hub."""
    settings = {key: config[key] for key in CHANGING if config.get(key)}
    start = config.get("init_lora_weights", True)
    if changes_base(config):
        settings |= {"init_lora_weights": start, "loftq_config": config.get("loftq_config") or {}}
    return {**settings, "r": config["r"], "lora_alpha": config["lora_alpha"], "task_type": "CAUSAL_LM", "inference_mode": True}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
