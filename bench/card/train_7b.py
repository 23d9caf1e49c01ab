"""A QLoRA training step at LLaMA-7B's shape on a card: gradients against plain PEFT, then tokens/s and peak memory.

    PYTHONPATH=src python3 bench/card/train_7b.py [--layers N] [--skip-peft]

Random weights in NF4, made in memory. The Guanaco recipe: r = 64 on every linear but the head, alpha 16, dropout 0.1 where it
is timed, AdamW in 32 bits, paged on a card. PEFT's path (Transformers, bitsandbytes, autocast, non-reentrant checkpointing,
PagedAdamW32bit) runs over the very same weights in the same process. `--layers 2` is a dry run for a machine without a card, at
a narrow shape. Prints one JSON object; a part that fails is reported in it and does not stop the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qlora_chat.benchmark.environment import hardware
from qlora_chat.benchmark.original import random_model
from qlora_chat.benchmark.shapes import RandomTensors
from qlora_chat.models.folders import Base, ModelConfigs
from qlora_chat.models.weights.shape import FUSED, LlamaShape
from qlora_chat.training.data.batches import MicroBatch
from qlora_chat.training.memory import predicted_bytes
from qlora_chat.training.model.elementwise import _kernels
from qlora_chat.training.model.llama import ComputeFormat, LoraShape, TrainableLlama
from qlora_chat.training.optimizer import Optimizer
from qlora_chat.training.recipe import LINEARS, TrainSettings

GIB = 2**30
R, ALPHA, DROPOUT = 64, 16, 0.1
LIMIT_CHECKPOINTED, LIMIT = 19_600, 29_400
"""tokens/s that 790 TFLOP/s allow an H200 with every layer computed twice forward, and once."""
BASELINE = {"1x512": 651, "16x512": 6_308, "4x2048": 6_238}
"""PEFT's tokens/s on an H200, measured 2026-11-23."""
ON_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_CARD else torch.device("cpu")


def config(layers: int) -> dict[str, Any]:
    """LLaMA-7B's shape; narrow where there is no card."""
    hidden, feed_forward, heads, vocabulary = (4096, 11008, 32, 32_000) if ON_CARD else (256, 512, 4, 1000)
    return {
        "model_type": "llama", "hidden_act": "silu", "hidden_size": hidden, "intermediate_size": feed_forward,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip


def base_of(layers: int) -> Base:
    values = config(layers)
    configs = ModelConfigs(values, {}, {})
    return Base(None, configs, LlamaShape.from_config(values), is_nf4=True)  # type: ignore[arg-type]


def random_weights(base: Base) -> dict[str, Tensor]:
    """Return every tensor by its name, linears in NF4."""
    return dict(RandomTensors(base.config, "nf4", DEVICE))


def our_model(
    base: Base, tensors: dict[str, Tensor], dropout: float, dtype: torch.dtype, checkpointing: bool
) -> TrainableLlama:
    lora = LoraShape(R, ALPHA, dropout, LINEARS)
    model = TrainableLlama(tensors, base.shape, lora, ComputeFormat(DEVICE, dtype, dense=False))
    model.checkpointing = checkpointing
    return model


def peft_model(base: Base, tensors: dict[str, Tensor], dropout: float, dtype: torch.dtype) -> Any:
    """Return Transformers' LLaMA over the same NF4 weights, prepared by PEFT as QLoRA's users do it."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model = random_model(base.config, tensors, "nf4", DEVICE, dtype)
    model.is_loaded_in_4bit, model.is_quantized = True, True
    model = prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    lora = LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=list(LINEARS), task_type="CAUSAL_LM")
    return get_peft_model(model, lora).to(DEVICE).train()


def micro_batch(base: Base, dialogues: int, length: int, seed: int = 1) -> MicroBatch:
    """Return random dialogues of one length; every token has a loss."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(5, base.shape.vocabulary, (dialogues, length + 1), generator=generator).to(DEVICE)
    return MicroBatch(rows[:, :-1].flatten(), rows[:, 1:].flatten(), (length,) * dialogues)


def synchronize() -> None:
    if ON_CARD:
        torch.cuda.synchronize()


@contextmanager
def measured_memory() -> Iterator[None]:
    """Free leftovers and count the peak from here."""
    gc.collect()
    if ON_CARD:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield


def peak_gib() -> float | None:
    return round(torch.cuda.max_memory_allocated() / GIB, 2) if ON_CARD else None


# --- the same mathematics --------------------------------------------------------------------------------------------


def set_b(model: TrainableLlama) -> None:
    """Set B as after some training: with B zero, A has no gradient."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.adapter_tensors().items():
        if "lora_B" in name:
            tensor.copy_(torch.empty(tensor.shape).normal_(0, 0.01, generator=generator))


def gradients_by_name(model: TrainableLlama) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for index, layer in enumerate(model.decoder):
        for group, linears in zip(FUSED, layer.parts(), strict=True):
            assert linears.a is not None
            assert linears.a.grad is not None
            for place, name in enumerate(group):
                prefix = f"base_model.model.model.layers.{index}.{name}."
                found[prefix + "lora_A.weight"] = linears.a.grad[place * R : (place + 1) * R]
                b = linears.bs[place].grad
                assert b is not None
                found[prefix + "lora_B.weight"] = b
    return found


def peft_loss(wrapped: Any, batch: MicroBatch, dtype: torch.dtype) -> Tensor:
    """Mean loss through Transformers, the dialogues as rows of a batch."""
    ids = batch.ids.view(len(batch.lengths), -1)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = wrapped(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch.targets)


def agreement(base: Base, tensors: dict[str, Tensor], dtype: torch.dtype, dialogues: int, length: int) -> dict[str, Any]:
    """Cosine of all gradients of A and B together, and the worst of one tensor; losses; no dropout."""
    from peft import set_peft_model_state_dict

    batch = micro_batch(base, dialogues, length)
    model = our_model(base, tensors, 0.0, dtype, checkpointing=True)
    set_b(model)
    loss = model.loss(batch, 1 / len(batch.targets))
    loss.backward()
    mine = gradients_by_name(model)
    wrapped = peft_model(base, tensors, 0.0, dtype)
    set_peft_model_state_dict(wrapped, {name: each.clone() for name, each in model.adapter_tensors().items()})
    expected = peft_loss(wrapped, batch, dtype)
    expected.backward()
    theirs = {name.replace(".default", ""): p.grad for name, p in wrapped.named_parameters() if p.grad is not None}
    dot = one = two = 0.0
    worst = 1.0
    for name, gradient in mine.items():
        x, y = gradient.double().flatten(), theirs[name].double().flatten()
        dot, one, two = dot + float(x @ y), one + float(x @ x), two + float(y @ y)
        worst = min(worst, float(torch.cosine_similarity(x, y, dim=0)))
    return {
        "cosine": round(dot / (one * two) ** 0.5, 6), "worst tensor": round(worst, 5),
        "norm ratio": round((one / two) ** 0.5, 5),
        "loss": round(float(loss.detach()), 5), "peft loss": round(float(expected.detach()), 5),
    }  # fmt: skip


def overfitted(base: Base, tensors: dict[str, Tensor], steps: int, length: int) -> dict[str, Any]:
    """One batch, memorized by both from the same start: losses on the way."""
    from peft import set_peft_model_state_dict

    batch = micro_batch(base, 2, length)
    model = our_model(base, tensors, 0.0, torch.bfloat16, checkpointing=True)
    start = {name: each.clone() for name, each in model.adapter_tensors().items()}
    settings = TrainSettings(base="b", data=("d",), optimizer="adamw_32bit", learning_rate=1e-3)

    def learnt(parameters: list[Any], loss_of: Callable[[], Tensor]) -> list[float]:
        optimizer, losses = Optimizer.create(tuple(parameters), settings), []
        for _ in range(steps):
            loss = loss_of()
            loss.backward()
            optimizer.clip()
            optimizer.step(1e-3)
            losses.append(float(loss.detach()))
        return losses

    mine = learnt(list(model.parameters()), lambda: model.loss(batch, 1 / len(batch.targets)))
    wrapped = peft_model(base, tensors, 0.0, torch.bfloat16)
    set_peft_model_state_dict(wrapped, start)
    theirs = learnt([p for p in wrapped.parameters() if p.requires_grad], lambda: peft_loss(wrapped, batch, torch.bfloat16))
    marks = sorted({0, steps // 4, steps // 2, steps - 1})
    return {
        "steps": steps, "ours": [round(mine[each], 4) for each in marks], "peft": [round(theirs[each], 4) for each in marks],
        "last differs by": round(abs(mine[-1] / theirs[-1] - 1), 4),
    }  # fmt: skip


# --- speed and memory ------------------------------------------------------------------------------------------------


def timed(step: Callable[[], None], tokens: int, rounds: int) -> dict[str, Any]:
    """tokens/s of the quickest of `rounds` steps after one to warm up, and the peak of all."""
    times = []
    for _ in range(rounds + 1):
        synchronize()
        begin = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - begin)
    return {"tokens_per_s": round(tokens / min(times[1:])), "ms": round(min(times[1:]) * 1e3, 1), "peak_gib": peak_gib()}


def our_step(
    base: Base, tensors: dict[str, Tensor], dialogues: int, length: int, checkpointing: bool, rounds: int
) -> dict[str, Any]:
    settings = TrainSettings(base="b", data=("d",), r=R, dropout=DROPOUT, optimizer="paged_adamw_32bit")
    with measured_memory():
        model = our_model(base, tensors, DROPOUT, torch.bfloat16, checkpointing).train()
        optimizer = Optimizer.create(tuple(model.parameters()), settings)
        batch = micro_batch(base, dialogues, length)

        def step() -> None:
            model.loss(batch, 1 / len(batch.targets)).backward()
            optimizer.clip()
            optimizer.step(2e-4)

        result = timed(step, dialogues * length, rounds)
    predicted = predicted_bytes(base, settings, dialogues * length, checkpointing=checkpointing) / GIB
    return {**result, "predicted_gib": round(predicted, 2)}


def peft_step(base: Base, tensors: dict[str, Tensor], dialogues: int, length: int, rounds: int) -> dict[str, Any]:
    from bitsandbytes.optim.adamw import PagedAdamW32bit

    with measured_memory():
        wrapped = peft_model(base, tensors, DROPOUT, torch.bfloat16)
        parameters = [p for p in wrapped.parameters() if p.requires_grad]
        optimizer = PagedAdamW32bit(parameters, lr=2e-4) if ON_CARD else torch.optim.AdamW(parameters, lr=2e-4)
        batch = micro_batch(base, dialogues, length)
        ids = batch.ids.view(dialogues, -1)

        def step() -> None:
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                loss = wrapped(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return timed(step, dialogues * length, rounds)


def attempt(run: Callable[[], Any]) -> Any:
    """Return the result or the error: one part's failure must not stop the others."""
    try:
        return run()
    except Exception as problem:
        return {"failed": f"{type(problem).__name__}: {str(problem)[:300]}", "where": traceback.format_exc()[-700:]}
    finally:
        gc.collect()
        if ON_CARD:
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--skip-peft", action="store_true")
    chosen = parser.parse_args()
    unit, rounds = (512, 3) if ON_CARD else (64, 1)
    figures: dict[str, Any] = {
        "bench": "train_7b", "hardware": torch.cuda.get_device_name() if ON_CARD else hardware(), "torch": torch.__version__,
        "layers": chosen.layers, "fused swiglu": bool(ON_CARD and _kernels()),
    }  # fmt: skip

    def note(name: str, run: Callable[[], Any]) -> None:
        begin = time.perf_counter()
        figures[name] = attempt(run)
        print(name, json.dumps(figures[name]), f"({time.perf_counter() - begin:.0f} s)", flush=True)

    shallow, deep = base_of(min(4, chosen.layers)), base_of(chosen.layers)
    if not chosen.skip_peft:
        few = random_weights(shallow)
        note("gradients, 4 layers, fp32", lambda: agreement(shallow, few, torch.float32, 2, unit))
        note("gradients, 4 layers, bf16", lambda: agreement(shallow, few, torch.bfloat16, 2, unit))
        note("one batch overfitted, 4 layers", lambda: overfitted(shallow, few, 60 if ON_CARD else 4, unit // 4))
        few = {}
    tensors = random_weights(deep)
    if not chosen.skip_peft:
        note("gradients, all layers, bf16", lambda: agreement(deep, tensors, torch.bfloat16, 2, unit))
    note("ours 1x512, checkpointing", lambda: our_step(deep, tensors, 1, unit, True, rounds))
    note("ours 1x2048, checkpointing", lambda: our_step(deep, tensors, 1, 4 * unit, True, rounds))
    note("ours 16x512, checkpointing", lambda: our_step(deep, tensors, 16, unit, True, rounds))
    note("ours 16x512", lambda: our_step(deep, tensors, 16, unit, False, rounds))
    note("ours 4x2048", lambda: our_step(deep, tensors, 4, 4 * unit, False, rounds))
    if not chosen.skip_peft:
        note("peft 16x512", lambda: peft_step(deep, tensors, 16, unit, rounds))
        note("peft 1x512", lambda: peft_step(deep, tensors, 1, unit, rounds))
    figures["summary"] = attempt(lambda: summary(figures))
    print(json.dumps(figures, indent=1))


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the main figures."""
    best, checkpointed = figures["ours 16x512"]["tokens_per_s"], figures["ours 16x512, checkpointing"]["tokens_per_s"]
    peft = figures.get("peft 16x512", {}).get("tokens_per_s", BASELINE["16x512"])
    return {
        "times peft": round(best / peft, 2), "times peft, checkpointing": round(checkpointed / peft, 2),
        "of the limit without checkpointing": round(best / LIMIT, 3),
        "of the limit with": round(checkpointed / LIMIT_CHECKPOINTED, 3),
        "GiB at 1x512 (6.0)": figures["ours 1x512, checkpointing"]["peak_gib"],
        "GiB at 1x2048 (8)": figures["ours 1x2048, checkpointing"]["peak_gib"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
