"""Merges of an adapter into a base, through Transformers and PEFT.

Scope: folders in, tensors by Hugging Face names out. Runs once for a base and an adapter; later starts read the cached
result and import neither library. Knows nothing of caches, names or plans.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.config import ADAPTER_CONFIG, HEAD, changes_base, peft_settings
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.adapter.merge_loss import HeldOut, Passage
from qlora_chat.models.folders import Base
from qlora_chat.models.trust import read_json
from qlora_chat.models.weights.nf4 import BLOCK, quiet_bitsandbytes, restrict_cpu_product
from qlora_chat.models.weights.quantize import rounded_to_nf4
from qlora_chat.models.weights.shards import NamedTensor, check_finite


def merge_bf16(base: Base, adapter: AdapterFolder | None, device: str, *, through_nf4: bool = False) -> Iterator[NamedTensor]:
    """Tensors of base plus adapter in bf16, in memory of their own or the model's, on the CPU.

    A base in NF4 is dequantized from a fresh load first: a forward pass may repack its weights for the CPU at hand. With
    `through_nf4`, weights in 16 bits become the values that they have in NF4, as training saw them.
    """
    with _quiet():
        model = _load(base.folder, device)
        if base.is_nf4:
            model = model.dequantize(torch.bfloat16)
        elif through_nf4:
            _round_to_nf4(model, base)
        if adapter:
            model = _unwrapped(_with_adapter(model, adapter, base), adapter)
    for name, tensor in _tensors(model, base):
        yield name, check_finite(name, tensor.to("cpu", torch.bfloat16))
    del model
    _free()


def _round_to_nf4(model: Any, base: Base) -> None:
    """Give each linear but the head the values that it has in NF4, one at a time."""
    for name in base.linears():
        if name != HEAD:
            parameter = model.get_submodule(name).weight
            parameter.data = rounded_to_nf4(check_finite(f"{name}.weight", parameter.data))


def merge_nf4(base: Base, adapter: AdapterFolder, device: str, text: HeldOut) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of an NF4 base with the adapter merged and requantized one linear at a time, on the CPU, and its logits."""
    with _quiet():
        model = _merge_and_requantize(_with_adapter(_load(base.folder, device), adapter, base), adapter)
        tensors = {name: check_finite(name, tensor.to("cpu", copy=True)) for name, tensor in _tensors(model, base)}
        logits = _logits(model, text)
    del model
    _free()
    return tensors, logits


def unmerged_logits(base: Base, adapter: AdapterFolder, device: str, text: HeldOut) -> Tensor:
    """Logits (N, V) of an NF4 base with the adapter unmerged: the model of training, and the reference for every merge.

    From a load of its own, because a forward pass may repack weights in place.
    """
    with _quiet():
        logits = _logits(_with_adapter(_load(base.folder, device), adapter, base), text)
    _free()
    return logits


def folder_logits(folder: Path, device: str, text: HeldOut, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Logits (N, V) of a merged folder as plain Transformers loads it, its weights held in `dtype`."""
    with _quiet():
        logits = _logits(_load(folder, device, dtype), text)
    _free()
    return logits


def _load(folder: Path, device: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    from transformers import AutoModelForCausalLM

    if (folder / ADAPTER_CONFIG).exists():  # Transformers would load the base that this names instead
        raise ModelError(f"{folder} is a base and holds an {ADAPTER_CONFIG}; move the adapter to a folder of its own")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **_readable_config(folder),
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # it raises any error for a config or file that it does not take
        raise ModelError(f"Transformers cannot load {folder} ({_reason(problem)})") from problem
    _store_in_bytes(model)
    if device == "cpu":
        _prepare_for_cpu(model, folder)
    return model


def _reason(problem: Exception) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"


def _store_in_bytes(model: Any) -> None:
    """View four bits that are stored as another type, for sharded training, as the bytes that they are."""
    for module in model.modules():
        if _in_four_bits(module) and module.weight.dtype != torch.uint8:
            module.weight.data = module.weight.data.view(torch.uint8).reshape(-1, 1)
            module.weight.quant_storage = module.quant_storage = torch.uint8


def _readable_config(folder: Path) -> dict[str, Any]:
    """Argument with the config where Transformers refuses the file's: it takes no id that is written as text."""
    from transformers import AutoConfig

    config = read_json(folder / "config.json")
    written = {key for key in ("bos_token_id", "eos_token_id", "pad_token_id") if isinstance(config.get(key), str)}
    if not written:
        return {}
    rest = {key: value for key, value in config.items() if key not in {*written, "model_type"}}
    return {"config": AutoConfig.for_model(config["model_type"], **rest)}


def _prepare_for_cpu(model: Any, folder: Path) -> None:
    """Let every 4-bit product compute on any CPU. ModelError if bitsandbytes would misread the weights there."""
    for name, module in model.named_modules():
        if not _in_four_bits(module):
            continue
        if module.in_features % BLOCK:
            raise ModelError(
                f"{name} of {folder} has rows of {module.in_features} weights, and bitsandbytes reads NF4 on a CPU in rows of "
                f"whole blocks of {BLOCK} only: merge on a card, or serve the adapter unmerged (--adapter-mode exact)"
            )
        restrict_cpu_product(module)


def _in_four_bits(module: Any) -> bool:
    """True for bitsandbytes' 4-bit linear."""
    return hasattr(module, "compute_dtype")


def _with_adapter(model: Any, adapter: AdapterFolder, base: Base) -> Any:
    """The model wrapped by PEFT. ModelError if PEFT would leave out, or make up, some of the adapter's tensors.

    The config goes to PEFT without names of bases: it would ask the Hub about them.
    """
    from peft import LoraConfig, PeftModelForCausalLM, set_peft_model_state_dict

    adapter.check(base)
    try:
        if (rows := adapter.vocabulary(base)) != base.shape.vocabulary:
            model.resize_token_embeddings(rows, mean_resizing=False)
        late = changes_base(adapter.config) or adapter.config.get("ensure_weight_tying")  # PEFT has to find the two ends tied
        if adapter.unties(base) and not late:
            _untie(model)
        wrapped: Any = PeftModelForCausalLM(model, LoraConfig(**peft_settings(adapter.config)))
        if adapter.unties(base) and late:
            _untie(model)
        result: Any = set_peft_model_state_dict(wrapped, _state(adapter, wrapped))
    except ModelError:
        raise
    except Exception as problem:  # PEFT raises any error for a config or base that it does not understand
        raise ModelError(f"PEFT cannot apply the adapter in {adapter.folder} ({_reason(problem)})") from problem
    missing = [name for name in result.missing_keys if ".default" in name and not _is_shared(wrapped, name)]
    if different := [*result.unexpected_keys, *missing]:
        which = "misses" if missing else "does not use"
        raise ModelError(
            f"PEFT {which} {different[0]} of the adapter in {adapter.folder}; config and weights do not belong together"
        )
    return wrapped.eval()


def _state(adapter: AdapterFolder, wrapped: Any) -> dict[str, Tensor]:
    """The adapter's tensors by the names that PEFT loads; the base's own tensors inside its LoRA layers."""
    names = set(wrapped.state_dict())
    state: dict[str, Tensor] = {}
    for name, tensor in adapter.tensors().items():
        module, _, part = name.rpartition(".")
        inside = f"{module}.base_layer.{part}"
        tensor = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor  # 8 bits have no arithmetic
        state[inside if inside in names else name] = check_finite(f"{name} of the adapter", tensor)
    return state


def _is_shared(wrapped: Any, name: str) -> bool:
    """True for rows of a tied head that are those of the embeddings, and stand in the file once."""
    module, part, _ = name.partition(".token_adapter.")
    return bool(part) and wrapped.get_submodule(module).token_adapter.tied_adapter is not None


def _untie(model: Any) -> None:
    """Give the head weights of its own, which start as the embeddings."""
    head = model.get_output_embeddings()
    for inside in ("original_module", "base_layer"):  # of PEFT's layers, if it has put one there already
        head = getattr(head, inside, head)
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _unwrapped(wrapped: Any, adapter: AdapterFolder, *, safe: bool = False) -> Any:
    """The model with the adapter merged. ModelError if PEFT cannot, or a weight turns out NaN or infinite."""
    try:
        return wrapped.merge_and_unload(safe_merge=safe)
    except Exception as problem:
        raise ModelError(f"the adapter in {adapter.folder} cannot be merged ({_reason(problem)})") from problem


def _merge_and_requantize(wrapped: Any, adapter: AdapterFolder) -> Any:
    """The model with the adapter merged into NF4. ModelError if a weight turns out NaN or infinite."""
    try:
        for layer in wrapped.base_model.model.model.layers:
            _merge(layer)
    except ValueError as problem:
        raise ModelError(f"the merge failed ({problem}); base or adapter is broken: fetch them again") from problem
    model = _unwrapped(wrapped, adapter, safe=True)
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            state.dtype = torch.bfloat16  # PEFT merges in fp32 and bitsandbytes would go on dequantizing to that
    return model


def _merge(layer: Any) -> None:
    """Merge one decoder layer; free the replaced weights at once, since reference cycles would keep them on the card."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in layer.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
    _free()


@torch.no_grad()
def _logits(model: Any, text: HeldOut) -> Tensor:
    """Logits before each counted token (N, V), float32 on the CPU."""
    with _widened(model) if model.device.type == "cpu" else nullcontext():
        return torch.cat([_passage_logits(model, passage) for passage in text.passages])


@contextmanager
def _widened(model: Any) -> Iterator[None]:
    """Compute products in float32 over weights as they are stored; each module's are widened only while it runs.

    A CPU without bf16 instructions takes many times as long in bf16, and the merge would be charged for the rounding of
    activations, which this program's own pass on a CPU does not do. Widening and narrowing again changes no bit.
    """
    hooks: list[Any] = []
    for module in model.modules():
        if _in_four_bits(module):
            module.compute_dtype = torch.float32
        for stored in {each.dtype for each in module.parameters(recurse=False)} & {torch.bfloat16, torch.float16}:
            hooks.append(module.register_forward_pre_hook(lambda at, _, stored=stored: _convert(at, stored, torch.float32)))
            hooks.append(module.register_forward_hook(lambda at, *_, stored=stored: _convert(at, torch.float32, stored)))
    yield
    for hook in hooks:
        hook.remove()


def _convert(module: Any, source: torch.dtype, target: torch.dtype) -> None:
    for each in module.parameters(recurse=False):
        if each.dtype == source:
            each.data = each.data.to(target)


def _passage_logits(model: Any, passage: Passage) -> Tensor:
    inputs = torch.tensor([passage.inputs], device=model.device)
    rows = torch.tensor(passage.rows, device=model.device, dtype=torch.long)
    return model(input_ids=inputs, use_cache=False).logits[0, rows].float().cpu()


def _tensors(model: Any, base: Base) -> Iterator[NamedTensor]:
    """The state dict; a head that is tied to the embeddings, which safetensors cannot store twice, is left out or copied."""
    state = model.state_dict()
    tied = state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    for name, tensor in state.items():
        if name != "lm_head.weight" or not tied:
            yield name, tensor
        elif not base.shape.tied_head:
            yield name, tensor.clone()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the libraries' advice to their own callers; our messages repeat what matters to users."""
    quiet_bitsandbytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        yield


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
