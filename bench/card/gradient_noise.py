"""Rotation of LoRA gradients by bf16 alone, the yardstick for "ours and PEFT's agree to 0.99x in bf16".

    PYTHONPATH=src python3 bench/card/gradient_noise.py [--layers 2 8 32]

Ours and Transformers + PEFT (train_7b.py's own set-up: random NF4 weights, one batch, no dropout), each in bf16 and in float32.
If both bf16 paths are as far from float32 as from each other, they differ by rounding and not by mathematics. Narrow
shapes without a card. Prints JSON.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from train_7b import base_of, gradients_by_name, micro_batch, our_model, peft_loss, peft_model, random_weights, set_b

from qlora_chat.benchmark.environment import print_report

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def whole(gradients: dict[str, Tensor]) -> Tensor:
    """Concatenate all gradients, float64."""
    return torch.cat([gradients[name].double().flatten().cpu() for name in sorted(gradients)])


def gradients(layers: int, dialogues: int, length: int) -> dict[str, Tensor]:
    """Return all gradients by path and precision."""
    from peft import set_peft_model_state_dict

    base = base_of(layers)
    tensors, batch = random_weights(base), micro_batch(base, dialogues, length)
    found: dict[str, Tensor] = {}
    for name, dtype in PRECISIONS.items():
        model = our_model(base, tensors, 0.0, dtype, checkpointing=True)
        set_b(model)
        model.loss(batch, 1 / len(batch.targets)).backward()
        found[f"ours {name}"] = whole(gradients_by_name(model))
        wrapped = peft_model(base, tensors, 0.0, dtype)
        set_peft_model_state_dict(wrapped, {name: each.clone() for name, each in model.adapter_tensors().items()})
        peft_loss(wrapped, batch, dtype).backward()
        theirs = {name.replace(".default", ""): p.grad for name, p in wrapped.named_parameters() if p.grad is not None}
        found[f"PEFT {name}"] = whole(theirs)
    return found


def cosines(found: dict[str, Tensor]) -> dict[str, float]:
    return {
        f"{one} | {other}": round(float(torch.cosine_similarity(found[one], found[other], dim=0)), 6)
        for one, other in combinations(found, 2)
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--length", type=int, default=64)
    chosen = parser.parse_args()
    figures: dict[str, Any] = {f"{each} layers": cosines(gradients(each, 2, chosen.length)) for each in chosen.layers}
    print_report("gradient_noise", {"torch": torch.__version__, "cosines": figures})


if __name__ == "__main__":
    main()
