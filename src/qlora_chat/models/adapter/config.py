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
from qlora_chat.models.folders import Problem, read_json

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
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "lora_ga")
"""Values of init_lora_weights that leave the base's weights as they are."""
_MERGED_FEATURES = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "trainable_token_indices")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a PEFT LoRA. ModelError for another kind of adapter, or none."""
    config = read_json(folder / ADAPTER_CONFIG)
    if not config:
        raise ModelError(f"{folder} holds no {ADAPTER_CONFIG}; {_where_instead(folder)}")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} holds an adapter of type {config.get('peft_type')!r}; only LORA can be used")
    rank = config.get("r")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ModelError(f"{folder / ADAPTER_CONFIG} says r {rank!r}, but a LoRA's rank is a whole number from 1")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
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
    for key in ("rank_pattern", "alpha_pattern"):
        value = config.get(key) or {}
        numbers = value.values() if isinstance(value, dict) else [None]
        if not all(isinstance(each, int | float) and each > 0 for each in numbers):
            raise ModelError(f"{folder / ADAPTER_CONFIG} says {key} {value!r}, but it must be a table of numbers above 0")
        _check_patterns(folder, key, value)
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
    yield from _start_problems(config.get("init_lora_weights", True))


def _start_problems(start: Any) -> Iterator[Problem]:
    if _changes_base(start) and not _is_known_start(start):
        why = "that initialization changes the base, and cannot be repeated from the adapter alone"
        remedy = "save the adapter converted (PEFT: save_pretrained(path_initial_model_for_weight_conversion=...))"
        yield Problem(f"{ADAPTER_CONFIG} says init_lora_weights {_short(start)}", why, remedy)
    elif start == "loftq" and find_spec("scipy") is None:
        why = "PEFT repeats LoftQ's initialization of the base with scipy, which is not installed"
        yield Problem(f"{ADAPTER_CONFIG} says init_lora_weights 'loftq'", why, "pip install scipy")


def _changes_base(start: Any) -> bool:
    return start not in _PLAIN_STARTS


def _is_known_start(start: Any) -> bool:
    return isinstance(start, str) and re.fullmatch(r"pissa(_niter_\d+)?|olora|loftq", start) is not None


def merged_features(config: Mapping[str, Any]) -> list[str]:
    """Keys that only a merge can apply (DoRA, per-layer ranks, whole modules, biases, a start that changes the base)."""
    features = [key for key in _MERGED_FEATURES if config.get(key)]
    features += ["bias"] if config.get("bias", "none") != "none" else []
    start = config.get("init_lora_weights", True)
    return [*features, f"init_lora_weights {start!r}"] if _changes_base(start) else features


def peft_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of PEFT's LoraConfig: all that changes the result, and no name that PEFT could look up at the Hub."""
    settings = {key: config[key] for key in CHANGING if config.get(key)}
    start = config.get("init_lora_weights", True)
    if _changes_base(start):
        settings |= {"init_lora_weights": start, "loftq_config": config.get("loftq_config") or {}}
    return {**settings, "r": config["r"], "lora_alpha": config["lora_alpha"], "task_type": "CAUSAL_LM", "inference_mode": True}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
