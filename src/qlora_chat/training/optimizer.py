"""AdamW, its learning rate over the run, and its state as plain tensors.

Scope: the library whose AdamW serves a setting on a device, and its state without pickle. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qlora_chat.training.recipe import TrainSettings


def learning_rate(settings: TrainSettings, step: int, steps: int) -> float:
    """Rate of the update after `step` finished ones: linear warm-up, then constant, linear or half a cosine."""
    warmup = math.ceil(settings.warmup * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - warmup) / max(1, steps - warmup)
    remaining = 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate * (settings.final_rate + (1 - settings.final_rate) * remaining)


@dataclass(frozen=True)
class Optimizer:
    """An AdamW over an adapter's parameters."""

    inner: torch.optim.Optimizer
    parameters: tuple[nn.Parameter, ...]
    max_grad_norm: float

    @staticmethod
    def create(parameters: tuple[nn.Parameter, ...], settings: TrainSettings) -> Optimizer:
        """Create the AdamW that the settings name."""
        options: dict[str, Any] = {
            "lr": settings.learning_rate,
            "betas": (settings.beta1, settings.beta2),
            "weight_decay": settings.weight_decay,
        }
        on_card = parameters[0].is_cuda
        # on a CPU there is nothing to page; the numbers are the same
        name = settings.optimizer if on_card else settings.optimizer.removeprefix("paged_")
        if name == "adamw_32bit":
            options["fused" if on_card else "foreach"] = True
            inner = torch.optim.AdamW(parameters, **options)
        else:
            inner = _bitsandbytes(name, parameters, options)
        return Optimizer(inner, parameters, settings.max_grad_norm)

    def clip(self) -> Tensor:
        """Scale the gradients down to max_grad_norm; returns the norm before, a scalar."""
        return nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm or math.inf)

    def step(self, rate: float) -> None:
        """Update the parameters and clear the gradients."""
        for group in self.inner.param_groups:
            group["lr"] = rate
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by "parameter index.name"; integers as int64 tensors."""
        tensors: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.parameters):
            for name, value in self.inner.state[parameter].items():
                if isinstance(value, Tensor):
                    tensors[f"{index}.{name}"] = value.detach().cpu().clone().contiguous()
                elif isinstance(value, int):
                    tensors[f"{index}.{name}"] = torch.tensor(value)
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a state. Load the parameters afterwards: the step that allocates the state may change them."""
        if not tensors:
            return
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.step(0.0)
        for index, parameter in enumerate(self.parameters):
            state = self.inner.state[parameter]
            for name, value in state.items():
                stored = tensors.get(f"{index}.{name}")
                if stored is not None and isinstance(value, Tensor):
                    value.copy_(stored)
                elif stored is not None:
                    state[name] = int(stored)


def _bitsandbytes(name: str, parameters: tuple[nn.Parameter, ...], options: Mapping[str, Any]) -> Any:
    from qlora_chat.models.weights.nf4 import quiet_bitsandbytes

    quiet_bitsandbytes()
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit, PagedAdamW32bit

    kinds = {"paged_adamw_32bit": PagedAdamW32bit, "paged_adamw_8bit": PagedAdamW8bit, "adamw_8bit": AdamW8bit}
    return kinds[name](parameters, **options)
