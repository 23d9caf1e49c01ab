"""The model that is trained computes what Transformers and PEFT compute, a dialogue at a time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qlora_chat.models.folders import Base
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.nf4 import NF4
from qlora_chat.training.data.batches import Examples, MicroBatch, Tokenizing, micro_batches, plan_steps, split
from qlora_chat.training.data.dialogues import load_dialogues
from qlora_chat.training.model.elementwise import _SwiGLU
from qlora_chat.training.model.llama import ComputeFormat, LoraShape, TrainableLlama
from qlora_chat.training.recipe import LINEARS, TrainSettings
from tests.models.conftest import write_base
from tests.training.conftest import EXAMPLE

CPU = torch.device("cpu")
SETTINGS = TrainSettings(base="demo", data=("d",), max_length=32, held_out=0.0)


@pytest.fixture(scope="module")
def examples() -> Examples:
    dialogues = load_dialogues([str(EXAMPLE)], print)
    return Tokenizing(SETTINGS, ModelTokenizer.read(BUNDLED / "base", 1), 2).examples(dialogues.train[:30])


def trainable(folder: Path, dropout: float = 0.0, *, dense: bool = True, targets: tuple[str, ...] = LINEARS) -> TrainableLlama:
    """A base with a LoRA of which both halves are set."""
    base = Base.read(folder)
    held = ComputeFormat(CPU, torch.float32, dense)
    model = TrainableLlama(Checkpoint(base.folder), base.shape, LoraShape(8, 16, dropout, targets), held)
    random = torch.Generator().manual_seed(1)
    for name, tensor in model.adapter_tensors().items():
        if "lora_B" in name:
            tensor.normal_(0, 0.02, generator=random)
    return model


def gradients(model: TrainableLlama, passes: list[MicroBatch]) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    losses = [model.loss(each, 0.01) for each in passes]
    for loss in losses:
        loss.backward()
    return sum(float(loss.detach()) for loss in losses), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def together(examples: Examples) -> list[MicroBatch]:
    return micro_batches(examples, range(3), 10_000, CPU)


@pytest.mark.parametrize("bundled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_pefts(bundled: bool, examples: Examples, tiny_nf4_base: Path) -> None:
    folder = BUNDLED / "base" if bundled else tiny_nf4_base
    model = trainable(folder)
    (batch,) = together(examples)
    loss, _ = gradients(model, [batch])
    expected_loss, expected = peft_gradients(folder, model, batch)
    assert loss == pytest.approx(expected_loss, rel=2e-3)  # Transformers dequantises to bf16
    ours: dict[str, Tensor] = {}
    with torch.no_grad():  # the gradients by PEFT's names, through the same views
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.data = parameter.grad
        ours = {name: tensor.flatten() for name, tensor in model.adapter_tensors().items()}
    assert ours.keys() == expected.keys()
    whole = [torch.cat([each[name].flatten() for name in ours]) for each in (ours, expected)]
    assert torch.cosine_similarity(whole[0], whole[1], dim=0) > 0.9999
    assert min(torch.cosine_similarity(ours[name], expected[name].flatten(), dim=0) for name in ours) > 0.999


def peft_gradients(folder: Path, model: TrainableLlama, batch: MicroBatch) -> tuple[float, Mapping[str, Tensor]]:
    """The same through Transformers and PEFT, each dialogue by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from transformers import AutoModelForCausalLM

        plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).dequantize(torch.float32).float()
        config = LoraConfig(r=8, lora_alpha=16, target_modules=list(LINEARS), task_type="CAUSAL_LM")
        wrapped: Any = get_peft_model(plain, config)
        set_peft_model_state_dict(wrapped, {name: each.clone() for name, each in model.adapter_tensors().items()})
    total, begin = 0.0, 0
    for length in batch.lengths:
        ids, targets = batch.ids[begin : begin + length], batch.targets[begin : begin + length]
        begin += length
        logits = wrapped(input_ids=ids[None]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") * 0.01
        loss.backward()
        total += float(loss.detach())
    named = ((name.replace(".default", ""), each.grad) for name, each in wrapped.named_parameters())
    return total, {name: gradient for name, gradient in named if gradient is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}},
    ],
)
def test_norms_of_heads_and_scaled_angles_are_transformers_own(changes: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_base(tmp_path / "base", **changes)
    ids = torch.arange(3, 43)
    with torch.inference_mode():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected = model.model(input_ids=ids[None]).last_hidden_state[0]
    lora = trainable(folder)
    for name, tensor in lora.adapter_tensors().items():
        if "lora_B" in name:
            tensor.zero_()
    with torch.inference_mode():
        torch.testing.assert_close(lora.eval().hidden(MicroBatch(ids, ids, (40,))), expected, atol=1e-4, rtol=1e-3)


def test_dialogues_laid_end_to_end_do_not_see_each_other(examples: Examples, tiny_nf4_base: Path) -> None:
    model = trainable(tiny_nf4_base)
    loss, packed = gradients(model, together(examples))
    apart, alone = gradients(model, [each for index in range(3) for each in micro_batches(examples, [index], 10_000, CPU)])
    assert loss == pytest.approx(apart, rel=1e-5)
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_recomputing_layers_changes_nothing_dropout_included(examples: Examples, tiny_nf4_base: Path) -> None:
    model = trainable(tiny_nf4_base, dropout=0.3)
    results = []
    for model.checkpointing in (False, True):
        torch.manual_seed(5)
        results.append(gradients(model, together(examples))[1])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_dropout_drops_in_training_only(examples: Examples, tiny_nf4_base: Path) -> None:
    model, plain = trainable(tiny_nf4_base, dropout=0.5), trainable(tiny_nf4_base)
    (batch,) = together(examples)
    with torch.no_grad():
        assert float(model.loss(batch, 1.0)) != float(plain.loss(batch, 1.0))
        assert float(model.eval().loss(batch, 1.0)) == float(plain.loss(batch, 1.0))


def test_weights_dequantised_for_each_product_give_the_same(examples: Examples, tiny_nf4_base: Path) -> None:
    results = [gradients(trainable(tiny_nf4_base, dense=dense), together(examples)) for dense in (True, False)]
    assert results[0][0] == results[1][0]
    assert all(torch.equal(one, other) for one, other in zip(results[0][1], results[1][1], strict=True))


def test_only_the_targets_get_an_adapter(examples: Examples, tiny_nf4_base: Path) -> None:
    model = trainable(tiny_nf4_base, targets=("q_proj", "v_proj"))
    assert {name.split(".")[-3] for name in model.adapter_tensors()} == {"q_proj", "v_proj"}
    assert all(bool(each.abs().sum() > 0) for each in gradients(model, together(examples))[1])


def test_nf4_is_dequantised_to_bitsandbytes_values() -> None:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    checkpoint = Checkpoint(BUNDLED / "base")
    name = "model.layers.0.mlp.down_proj.weight"
    stored = {key.removeprefix(name + "."): checkpoint[key] for key in checkpoint if key.startswith(name + ".")}
    expected = dequantize_4bit(checkpoint[name], QuantState.from_dict(stored, CPU)).float()
    ours = torch.empty(expected.shape)
    NF4.read(checkpoint, name, CPU, torch.float32).dequantize_into(ours)
    torch.testing.assert_close(ours.bfloat16().float(), expected, rtol=1e-2, atol=0)
    assert ((ours.bfloat16().float() - expected).abs() > 0).float().mean() < 0.01


def test_swiglu_has_the_slopes_that_autograd_finds() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_SwiGLU.apply, (x,))


# --- batches ---------------------------------------------------------------------------------------------------------


def test_packed_steps_hold_whole_dialogues_up_to_their_tokens(examples: Examples) -> None:
    settings = TrainSettings(base="demo", data=("d",), packing=128, epochs=1)
    steps = plan_steps(examples, settings)
    assert sorted(index for step in steps for index in step) == list(range(len(examples)))
    assert all(sum(examples.length(index) for index in step) <= 128 for step in steps)
    assert sum(len(step) for step in steps) > len(steps)


def test_the_plan_follows_from_the_seed_and_goes_through_all_before_it_repeats(examples: Examples) -> None:
    settings = TrainSettings(base="demo", data=("d",), batch=10, steps=6)
    steps = plan_steps(examples, settings)
    assert steps == plan_steps(examples, settings)
    assert steps != plan_steps(examples, TrainSettings(base="demo", data=("d",), batch=10, steps=6, data_seed=1))
    assert sorted(index for step in steps[:3] for index in step) == list(range(30))
    assert steps[:3] != steps[3:]


def test_grouping_by_length_puts_like_with_like() -> None:
    whole = TrainSettings(base="demo", data=("d",), max_length=512)
    dialogues = load_dialogues([str(EXAMPLE)], print)
    examples = Tokenizing(whole, ModelTokenizer.read(BUNDLED / "base", 1), 2).examples(dialogues.train[:30])

    def spread(grouped: bool) -> int:
        steps = plan_steps(examples, TrainSettings(base="demo", data=("d",), batch=5, group_by_length=grouped))
        lengths = [[examples.length(index) for index in step] for step in steps]
        return sum(max(each) - min(each) for each in lengths)

    assert spread(True) < spread(False) / 2


def test_held_out_dialogues_are_not_trained_on() -> None:
    trained, held_out = split(load_dialogues([str(EXAMPLE)], print), TrainSettings(base="demo", data=("d",), held_out=0.1))
    assert (len(trained), len(held_out)) == (180, 20)
    assert not {each.where for each in trained} & {each.where for each in held_out}


def test_targets_are_the_tokens_that_follow(examples: Examples, tmp_path: Path) -> None:
    (one,) = micro_batches(examples, [3], 10_000, CPU)
    begin, end = examples.offsets[3], examples.offsets[4]
    loss_mask = examples.loss_mask[begin + 1 : end]
    assert torch.equal(one.targets[loss_mask], examples.ids[begin + 1 : end][loss_mask].long())
    assert bool((one.targets[~loss_mask] == -100).all())
