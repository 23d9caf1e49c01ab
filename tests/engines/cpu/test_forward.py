"""The compiled pass computes the same as torch from bitsandbytes' stored values, for any mix of chats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cpu import forward as cpu_forward
from qlora_chat.engines.cpu.build import library
from qlora_chat.engines.cpu.forward import CpuForward
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import Base
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.llama import (
    NF4,
    Adapter,
    Dense,
    Layer,
    Linear,
    LlamaWeights,
    Stacked,
    WithAdapter,
    build,
)
from qlora_chat.models.weights.shape import LlamaShape
from tests.engines.conftest import assume_isa, random_tensors
from tests.engines.eager.test_forward import CONFIGS, logits_of

CPU = torch.device("cpu")
ODD = {"model_type": "llama", "vocab_size": 101, "hidden_size": 192, "intermediate_size": 43 * 64, "num_hidden_layers": 2,
       "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 40, "max_position_embeddings": 200}  # fmt: skip
"""Rows that fill no panel, a head that fills no vector, scales of scales that change in mid-row."""
ULP = 2e-4
CLOSE = 0.05
"""Two best logits nearer than this may change places between 4-bit weights in our arithmetic and in float32."""


def compiled(weights: LlamaWeights, slots: int = 4, isa: str = "native") -> CpuForward:
    """The compiled pass on two threads, however many cores this process may use."""
    with assume_isa(isa):
        loaded = library(lambda line: None)
    if loaded is None:
        pytest.skip("no compiler or no AVX2 here")
    return CpuForward(loaded, weights, KVCache(weights, slots), threads=2)


def logits_under(isa: str, weights: LlamaWeights, spans: list[Span]) -> Tensor:
    """Logits of the pass that chats go through where the CPU backend is restricted so."""
    with assume_isa(isa):
        forward = Forward(weights, KVCache(weights, 4)) if isa == "plain" else compiled(weights, isa=isa)
        return forward(spans)


def in_float32(weights: LlamaWeights) -> LlamaWeights:
    """The same values, each 4-bit matrix written out as code times scale."""

    def exact(product: Linear) -> Linear:
        match product:
            case Stacked(parts):
                return Stacked(tuple(exact(part) for part in parts))
            case WithAdapter(base, a, b, scaling):
                return WithAdapter(exact(base), a.float(), b.float(), scaling)
            case NF4():
                return Dense(product.dequantize(), None if product.bias is None else product.bias.float())
            case Dense(weight, bias):
                return Dense(weight.float(), None if bias is None else bias.float())
        raise TypeError(product)

    layers = tuple(
        Layer(each.attention_norm.float(), exact(each.qkv), exact(each.attention_out), each.mlp_norm.float(),
              exact(each.gate_up), exact(each.mlp_down)) for each in weights.layers
    )  # fmt: skip
    ends: dict[str, Any] = {"embeddings": weights.embeddings.float(), "norm": weights.norm.float()}
    return replace(weights, layers=layers, head=exact(weights.head), dtype=torch.float32, **ends)


def in_four_bits(tensors: Mapping[str, Tensor], nested: bool = True) -> dict[str, Tensor]:
    """Every projection as bitsandbytes stores it."""
    from bitsandbytes.functional import quantize_4bit

    stored = dict(tensors)
    for name in [each for each in tensors if "_proj.weight" in each]:
        packed, state = quantize_4bit(tensors[name], blocksize=64, compress_statistics=nested, quant_type="nf4")
        stored[name] = packed
        stored |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return stored


def in_bf16(weights: LlamaWeights) -> LlamaWeights:
    """Dense float32 weights, all rounded to bf16: activations and sums are rounded so, too."""

    def rounded(product: Linear) -> Linear:
        match product:
            case Stacked(parts):
                return Stacked(tuple(rounded(part) for part in parts))
            case Dense(weight, bias):
                return Dense(weight.bfloat16(), None if bias is None else bias.bfloat16())
        raise TypeError(product)

    layers = tuple(
        Layer(each.attention_norm.bfloat16(), rounded(each.qkv), rounded(each.attention_out), each.mlp_norm.bfloat16(),
              rounded(each.gate_up), rounded(each.mlp_down)) for each in weights.layers
    )  # fmt: skip
    ends: dict[str, Any] = {"embeddings": weights.embeddings.bfloat16(), "norm": weights.norm.bfloat16()}
    return replace(weights, layers=layers, head=rounded(weights.head), dtype=torch.bfloat16, **ends)


def assert_near(ours: Tensor, exact: Tensor, within: float) -> None:
    """Within a share of the logits' own spread."""
    assert ours.shape == exact.shape
    assert float((ours - exact).abs().max() / exact.std()) < within


@pytest.fixture(params=CONFIGS)
def pair(request: pytest.FixtureRequest, compiled_isa: str) -> tuple[torch.nn.Module, CpuForward]:
    """A random model in Transformers, and the same weights in ours."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval().float()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)  # ones and zeros would hide a norm or bias left out
    shape = LlamaShape.from_config(CONFIGS[request.param].to_dict())
    return model, compiled(build(model.state_dict(), shape, CPU, torch.float32), isa=compiled_isa)


def test_every_family_gives_transformers_logits_in_any_chunks(pair: tuple[torch.nn.Module, CpuForward]) -> None:
    model, forward = pair
    ids = torch.randint(0, 97, (40,)).tolist()
    torch.testing.assert_close(forward([Span(0, 0, ids)])[0], logits_of(model, ids), atol=ULP, rtol=1e-3)
    for start, end in ((0, 11), (11, 12), (12, 14), (14, 17), (17, 39)):
        forward([Span(1, start, ids[start:end])])
    torch.testing.assert_close(forward([Span(1, 39, ids[39:])])[0], logits_of(model, ids), atol=ULP, rtol=1e-3)


def test_one_pass_mixes_prefill_and_decode(pair: tuple[torch.nn.Module, CpuForward]) -> None:
    model, forward = pair
    fresh, decoding, resuming = (torch.randint(0, 97, (length,)).tolist() for length in (9, 21, 33))
    forward([Span(1, 0, decoding[:-1]), Span(2, 0, resuming[:20])])
    logits = forward([Span(0, 0, fresh), Span(1, 20, decoding[-1:], logits=1), Span(2, 20, resuming[20:], logits=3)])
    expected = [fresh, decoding, resuming[:-2], resuming[:-1], resuming]
    for row, ids in enumerate(expected):
        torch.testing.assert_close(logits[row], logits_of(model, ids), atol=ULP, rtol=1e-3)


@pytest.mark.parametrize(("nested", "bias"), [(True, False), (False, True), (True, True)])
def test_four_bits_are_read_as_bitsandbytes_wrote_them(
    nested: bool, bias: bool, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the stored values in float32; and C++ comes closer to them than activations and sums in bf16 do."""
    monkeypatch.setattr(cpu_forward, "is_nf4", lambda weights: False)  # the head's 8 bits would hide the rest
    torch.manual_seed(1)
    stored = in_four_bits(random_tensors(ODD, bias), nested)
    weights = build(stored, LlamaShape.from_config(ODD), CPU)
    values = in_float32(weights)
    spans = [Span(0, 0, torch.randint(0, 101, (150,)).tolist(), logits=20)]
    expected = Forward(values, KVCache(values, 4))(spans)
    got = logits_under(isa, weights, spans)
    assert_near(got, expected, 0.15 if isa == "plain" else 0.03)
    if isa != "plain":
        rounded = in_bf16(values)
        assert (got - expected).std() < 0.3 * (Forward(rounded, KVCache(rounded, 4))(spans) - expected).std()


@pytest.fixture(scope="module")
def four_bits(compiled_isa: str) -> tuple[Forward, CpuForward]:
    """Random 4-bit weights of odd sizes: in float32, and compiled."""
    torch.manual_seed(2)
    weights = build(in_four_bits(random_tensors(ODD)), LlamaShape.from_config(ODD), CPU)
    return Forward(in_float32(weights), KVCache(weights, 17)), compiled(weights, 17, compiled_isa)


@pytest.mark.parametrize("count", [*range(1, 10), 16, 17])
def test_any_number_of_chats_shares_a_pass(count: int, four_bits: tuple[Forward, CpuForward]) -> None:
    exact, ours = four_bits
    histories = [torch.randint(0, 101, (3 + 5 * slot,)).tolist() for slot in range(count)]
    prefill = [Span(slot, 0, ids) for slot, ids in enumerate(histories)]
    assert_near(ours(prefill), exact(prefill), 0.03)
    decode = [Span(slot, len(ids), [slot]) for slot, ids in enumerate(histories)]
    assert_near(ours(decode), exact(decode), 0.03)


@pytest.fixture(scope="module", params=["four bits", "bf16", "float32"])
def any_kind(request: pytest.FixtureRequest, compiled_isa: str) -> CpuForward:
    """The odd sizes in each form that products come in."""
    torch.manual_seed(5)
    tensors, shape = random_tensors(ODD), LlamaShape.from_config(ODD)
    if request.param == "float32":
        return compiled(build(tensors, shape, CPU, torch.float32), 33, compiled_isa)
    if request.param == "bf16":
        return compiled(build(tensors, shape, CPU), 33, compiled_isa)
    return compiled(build(in_four_bits(tensors), shape, CPU), 33, compiled_isa)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 9, 32])
def test_a_row_is_the_same_bit_for_bit_in_any_batch(count: int, any_kind: CpuForward) -> None:
    """An answer is reproducible whatever shared its batch and however long its drafts were."""
    texts = [torch.randint(0, 101, (3 + slot % 7,)).tolist() for slot in range(count)]
    alone = [any_kind([Span(32, 0, ids)])[0] for ids in texts]
    together = any_kind([Span(slot, 0, ids) for slot, ids in enumerate(texts)])
    assert torch.equal(together, torch.stack(alone))
    ends = [any_kind([Span(slot, len(ids), [slot])])[0] for slot, ids in enumerate(texts)]
    assert torch.equal(any_kind([Span(slot, len(ids), [slot]) for slot, ids in enumerate(texts)]), torch.stack(ends))


def test_a_prompt_gives_the_same_bits_in_any_chunks(any_kind: CpuForward) -> None:
    ids = torch.randint(0, 101, (150,)).tolist()
    whole = any_kind([Span(0, 0, ids, logits=20)])
    any_kind([Span(1, 0, ids[:70])])
    any_kind([Span(1, 70, ids[70:130])])
    one_by_one = [any_kind([Span(1, at, ids[at : at + 1])])[0] for at in range(130, 150)]
    assert torch.equal(torch.stack(one_by_one), whole)


@pytest.mark.parametrize(("hidden", "feed_forward"), [(96, 160), (192, 43 * 64), (70, 101)])
def test_rows_of_any_length_and_number_are_computed(hidden: int, feed_forward: int, isa: str) -> None:
    """Rows that end within a block of scales, a matrix that does, and numbers of rows for which bitsandbytes has no product."""
    config = {**ODD, "hidden_size": hidden, "intermediate_size": feed_forward}
    torch.manual_seed(3)
    weights = build(in_four_bits(random_tensors(config)), LlamaShape.from_config(config), CPU)
    spans = [Span(0, 0, list(range(12)))]
    got, exact = logits_under(isa, weights, spans), Forward(in_float32(weights), KVCache(weights, 1))(spans)
    assert_near(got, exact, 0.15 if isa == "plain" else 0.03)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_weights_spoil_their_own_chat_only(bad: float, compiled_isa: str) -> None:
    torch.manual_seed(4)
    tensors = random_tensors(ODD)
    tensors["model.embed_tokens.weight"][7, 3] = bad
    forward = compiled(build(in_four_bits(tensors), LlamaShape.from_config(ODD), CPU), isa=compiled_isa)
    healthy = [Span(0, 0, [1, 2, 3]), Span(1, 0, [4, 5])]
    alone = forward(healthy)
    logits = forward([*healthy, Span(2, 0, [6, 7])])
    assert torch.isnan(logits[2]).all()
    torch.testing.assert_close(logits[:2], alone, atol=2e-3, rtol=1e-3)


def demo(adapter: Adapter | None) -> LlamaWeights:
    """The bundled base as it is stored, in 4 bits."""
    folder = BUNDLED / "base"
    return build(Checkpoint(folder), Base.read(folder).shape, CPU, adapter=adapter)


@pytest.mark.parametrize("adapted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_greedy_tokens_are_those_of_float32(adapted: bool, compiled_isa: str, prompt_for: Callable[..., Any]) -> None:
    """128 tokens of the demo in 4 bits, its adapter unmerged: another token only where the two best are CLOSE."""
    weights = demo(Adapter.read(AdapterFolder.read(BUNDLED / "adapter")) if adapted else None)
    exact, ours = Forward(in_float32(weights), KVCache(weights, 1)), compiled(weights, isa=compiled_isa)
    ids = list(prompt_for("Tell me a short story about a cat and a boat.").ids)
    prompt, start = len(ids), 0
    for _ in range(128):
        token = int(ours([Span(0, start, ids[start:])])[0].argmax())
        start = len(ids)
        ids.append(token)
    expected = exact([Span(0, 0, ids[:-1], logits=128)])
    best, sampled = expected.max(-1), torch.tensor(ids[prompt:])
    behind = best.values - expected.gather(1, sampled[:, None])[:, 0]
    assert (sampled != best.indices).sum() <= 3
    assert behind.max() < CLOSE


def test_packed_weights_take_four_bits() -> None:
    """Scales stay in 8 bits: 4.13 bits a weight, and nothing is stored twice."""
    ours = compiled(demo(None))
    weights = 10 * (4 * 576 * 576 + 3 * 576 * 1536)
    head = 8192 * 576 * (8.5 / 8)
    assert ours.bytes_packed < weights * 4.2 / 8 + head + 71 * 4096
