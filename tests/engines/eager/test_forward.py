"""The forward pass computes what Transformers computes, for every shape of LLaMA family it takes."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from qlora_chat.engines.core.forward_pass import Span
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.models.weights.llama import LlamaShape, build

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 128,
}  # fmt: skip
LINEAR: Any = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
LLAMA3: Any = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
DYNAMIC: Any = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
YARN: Any = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE: Any = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0 + 0.1 * each for each in range(8)],
                 "long_factor": [4.0] * 8, "original_max_position_embeddings": 64}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, num_attention_heads=4),
    "llama-3": LlamaConfig(  # grouped queries, slowed wavelengths, one matrix for both ends
        **SIZES, num_attention_heads=4, num_key_value_heads=2, rope_parameters=LLAMA3, tie_word_embeddings=True
    ),
    "biases": LlamaConfig(**SIZES, num_attention_heads=4, attention_bias=True, mlp_bias=True, head_dim=32),
    "linear rope": LlamaConfig(**SIZES, num_attention_heads=4, rope_parameters=LINEAR),
    "mistral": MistralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=None),
    "dynamic rope": LlamaConfig(**SIZES, num_attention_heads=4, rope_parameters=DYNAMIC),
    "yarn": LlamaConfig(**SIZES, num_attention_heads=4, rope_parameters=YARN),
    "longrope": LlamaConfig(**SIZES, num_attention_heads=4, rope_parameters=LONGROPE),
    "qwen3": Qwen3Config(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=32),
    "qwen2": Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2),
}


@pytest.fixture(params=CONFIGS)
def pair(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, Forward]:
    """A random model in Transformers, and the same weights in ours."""
    torch.manual_seed(0)
    config = CONFIGS[request.param]
    model = AutoModelForCausalLM.from_config(config).eval().float()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)  # ones and zeros would hide a norm or bias left out
    shape = LlamaShape.from_config(config.to_dict())
    weights = build(model.state_dict(), shape, torch.device("cpu"), torch.float32)
    return model, Forward(weights, KVCache(weights, slots=3))


def logits_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1]


def test_logits_are_transformers_own(pair: tuple[torch.nn.Module, Forward]) -> None:
    model, forward = pair
    ids = torch.randint(0, 97, (40,)).tolist()
    torch.testing.assert_close(forward([Span(0, 0, ids)])[0], logits_of(model, ids), atol=2e-4, rtol=1e-3)


def test_chunks_and_single_tokens_give_what_a_whole_prompt_gives(pair: tuple[torch.nn.Module, Forward]) -> None:
    model, forward = pair
    ids = torch.randint(0, 97, (30,)).tolist()
    for start, end in ((0, 11), (11, 12), (12, 13), (13, 29)):
        forward([Span(1, start, ids[start:end])])
    torch.testing.assert_close(forward([Span(1, 29, ids[29:])])[0], logits_of(model, ids), atol=2e-4, rtol=1e-3)


def test_one_pass_mixes_prefill_and_decode(pair: tuple[torch.nn.Module, Forward]) -> None:
    model, forward = pair
    fresh, decoding, resuming = (torch.randint(0, 97, (length,)).tolist() for length in (9, 21, 33))
    forward([Span(1, 0, decoding[:-1]), Span(2, 0, resuming[:20])])
    logits = forward([Span(0, 0, fresh), Span(1, 20, decoding[-1:]), Span(2, 20, resuming[20:])])
    for row, ids in enumerate((fresh, decoding, resuming)):
        torch.testing.assert_close(logits[row], logits_of(model, ids), atol=2e-4, rtol=1e-3)


def test_a_span_has_logits_for_any_number_of_its_last_tokens(
    pair: tuple[torch.nn.Module, Forward],
) -> None:
    """As verifying a draft needs them, next to a chat that needs its next token only."""
    model, forward = pair
    drafted, plain = (torch.randint(0, 97, (length,)).tolist() for length in (17, 12))
    forward([Span(0, 0, drafted[:13]), Span(1, 0, plain[:-1])])
    logits = forward([Span(0, 13, drafted[13:], logits=3), Span(1, 11, plain[-1:])])
    ends = [drafted[:15], drafted[:16], drafted, plain]
    assert len(logits) == len(ends)
    for row, ids in zip(logits, ends, strict=True):
        torch.testing.assert_close(row, logits_of(model, ids), atol=2e-4, rtol=1e-3)


def test_decoding_together_is_decoding_alone(pair: tuple[torch.nn.Module, Forward]) -> None:
    """One attention over neighbours in the cache, over copies of caches that are not, and a chat at a time."""
    _, forward = pair
    ids = [torch.randint(0, 97, (length,)).tolist() for length in (18, 17, 20)]
    forward([Span(slot, 0, each[:-1]) for slot, each in enumerate(ids)])
    spans = [Span(slot, len(each) - 1, each[-1:]) for slot, each in enumerate(ids)]
    alone = torch.cat([forward([span]) for span in spans])
    assert forward._shared_slots(spans) == slice(0, 3)
    torch.testing.assert_close(forward(spans), alone, atol=2e-4, rtol=1e-3)
    apart = [spans[2], spans[0]]
    assert forward._shared_slots(apart) is None
    torch.testing.assert_close(forward(apart), alone[[2, 0]], atol=2e-4, rtol=1e-3)
    forward.always_share_attention = True
    assert isinstance(forward._shared_slots(apart), torch.Tensor)
    torch.testing.assert_close(forward(apart), alone[[2, 0]], atol=2e-4, rtol=1e-3)
