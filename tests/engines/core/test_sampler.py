"""Sampling filters as Transformers' processors do, and draws in proportion: with torch, and compiled for a CPU."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qlora_chat.engines.core.sampler import NOT_FINITE, TOP_CANDIDATES, Sampler, SamplerInput, filter_candidates
from qlora_chat.engines.core.sampler import sample as sample_with_torch
from qlora_chat.engines.cpu.build import library
from qlora_chat.engines.cpu.sampler import CpuSampler
from qlora_chat.settings import Sampling
from tests.engines.conftest import assume_isa

VOCABULARY = 1000

SETTINGS = [
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(temperature=1.3, top_k=40, top_p=1.0),
    Sampling(temperature=0.5, top_k=40, top_p=0.8, repetition_penalty=1.3),
    Sampling(temperature=2.0, top_p=0.999, repetition_penalty=1.1),
    Sampling(temperature=0.05, top_k=1, top_p=0.5),
    Sampling(temperature=1.0, top_p=1.0),
    Sampling(temperature=1.0, top_p=0.0),
    Sampling(temperature=1.5, top_p=1.0, min_p=0.05),
    Sampling(temperature=1.0, top_p=0.95, top_k=60, min_p=0.1, repetition_penalty=1.1),
    Sampling(temperature=2.0, top_p=0.7, min_p=0.02),
    Sampling(temperature=1.0, top_p=1.0, min_p=1.0),
]


@pytest.fixture
def sample(isa: str) -> Sampler:
    """The variants that must sample alike."""
    if isa == "plain":
        return sample_with_torch
    return compiled_sampler(isa)


def compiled_sampler(isa: str) -> CpuSampler:
    with assume_isa(isa):
        compiled = library(lambda line: None)
    if compiled is None:
        pytest.skip("no compiler or no AVX2 here")
    return CpuSampler(compiled)


def theirs(logits: torch.Tensor, ids: list[int], sampling: Sampling) -> torch.Tensor:
    """Probabilities (V,) that Transformers would draw from."""
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(max(sampling.top_p, 1e-9)))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return steps(torch.tensor([ids]), logits[None].clone())[0].softmax(-1)  # type: ignore[arg-type]


def ours(sample: Sampler, logits: torch.Tensor, ids: list[int], sampling: Sampling, draws: int) -> torch.Tensor:
    """Frequency of each token over evenly spaced draws: exact up to 1 / draws."""
    seen = torch.zeros(VOCABULARY, dtype=torch.bool)
    seen[ids] = True
    inputs = [SamplerInput(sampling, seen, (index + 0.5) / draws) for index in range(draws)]
    tokens = sample(logits.expand(draws, -1), inputs)
    return torch.bincount(torch.tensor(tokens), minlength=VOCABULARY) / draws


@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_the_distribution_is_transformers_own(sampling: Sampling, spread: float, sample: Sampler) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(VOCABULARY, generator=generator) * spread
    ids = torch.randint(0, VOCABULARY, (50,), generator=generator).tolist()
    expected, draws = theirs(logits, ids, sampling), 2_000
    frequencies = ours(sample, logits, ids, sampling, draws)
    assert (frequencies - expected).abs().max() <= 1.5 / draws
    assert frequencies[expected == 0].sum() == 0, "a token that Transformers rules out is never drawn"


def test_temperature_zero_takes_the_best_and_ignores_the_draw(sample: Sampler) -> None:
    logits = torch.randn(3, VOCABULARY)
    greedy = [SamplerInput(Sampling(temperature=0), None, draw) for draw in (0.0, 0.5, 0.999)]
    assert sample(logits, greedy) == logits.argmax(-1).tolist()


def test_each_row_has_its_own_settings_and_the_batch_changes_nothing(sample: Sampler) -> None:
    logits = torch.randn(len(SETTINGS), VOCABULARY)
    inputs = [SamplerInput(sampling, None, 0.37) for sampling in SETTINGS]
    alone = [sample(logits[row : row + 1], [each])[0] for row, each in enumerate(inputs)]
    assert sample(logits, inputs) == alone


def test_both_sample_the_same_token_for_the_same_draw(compiled_isa: str) -> None:
    compiled = compiled_sampler(compiled_isa)
    generator = torch.Generator().manual_seed(11)
    logits = 5 * torch.randn(200, 2 * VOCABULARY + 7, generator=generator)  # fills no vector
    draws = torch.rand(200, generator=generator).tolist()
    inputs = [SamplerInput(SETTINGS[row % len(SETTINGS)], None, draw) for row, draw in enumerate(draws)]
    same = [a == b for a, b in zip(compiled(logits, inputs), sample_with_torch(logits, inputs), strict=True)]
    assert sum(same) >= 199, "apart only where a draw falls on the border between two tokens"


def test_filtering_reports_incomplete_candidates() -> None:
    flat, peaked = torch.zeros(VOCABULARY), torch.zeros(VOCABULARY).index_fill(0, torch.tensor([5]), 50.0)
    samplings = [Sampling(temperature=1.0, top_p=0.9)] * 2
    candidates = filter_candidates(torch.stack([flat, peaked]), samplings, TOP_CANDIDATES)
    assert candidates.complete.tolist() == [False, True]


def test_logits_that_are_not_finite_are_reported_for_their_row_only(sample: Sampler) -> None:
    logits = torch.randn(3, VOCABULARY)
    logits[1, 17] = torch.nan
    tokens = sample(logits, [SamplerInput(Sampling(temperature=t), None, 0.5) for t in (0.0, 0.7, 0.7)])
    assert tokens[1] == NOT_FINITE
    assert tokens[0] == logits[0].argmax().item()
    assert tokens[2] >= 0
