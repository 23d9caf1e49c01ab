"""What requantising a merge cost: the merged model against the unmerged one, on the answers of a small dialogue of our own.

Scope: the dialogue; logits in, two numbers out. Knows nothing of how either model was loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlora_chat.models.tokenizer import ModelTokenizer

DIALOGUE = (
    ("Hello there!", "Hello! How can I help you today?"),
    ("What is the capital of Norway?", "The capital of Norway is Oslo."),
    ("And which continent is it in?", "Norway is in Europe."),
    ("What is 12 plus 30?", "12 plus 30 is 42."),
    ("My name is Anna, and I have a dog.", "Nice to meet you, Anna! What is the name of your dog?"),
    ("His name is Rex. He likes to swim in the river.", "Rex sounds like a happy dog. Do you swim with him?"),
    ("Sometimes. What is my name?", "Your name is Anna."),
    ("What colour is the sky?", "The sky is blue."),
    ("Which animal says moo?", "A cow says moo."),
    ("How do I make tea?", "Boil some water, put the tea in a cup, pour the water over it, and wait for four minutes."),
    (
        "Tell me a short story.",
        "Once upon a time there was a farmer who had an old dog. Every evening the dog went down to the river. One day the "
        "farmer followed him, and saw that he was playing with a young fox. The farmer smiled and went home.",
    ),
    (
        "That is a nice story. What do you do when you are tired?",
        "I do not get tired, but many people like to rest or take a walk.",
    ),
    ("What is the opposite of cold?", "The opposite of cold is hot."),
    ("Thank you for your help!", "You are welcome! Have a nice day."),
)
"""What people and assistants say, written for this measurement; (user, assistant) each."""


def dialogue_ids(tokenizer: ModelTokenizer, bos: int | None, window: int) -> tuple[list[int], list[bool]]:
    """DIALOGUE's ids, at most `window`, and for each whether the token after it belongs to an answer."""
    ids: list[int] = [] if bos is None else [bos]
    answered = [False] * len(ids)
    for user, assistant in DIALOGUE:
        encode = tokenizer.encode_continuation if len(ids) > 1 else tokenizer.encode
        for text, is_answer in ((f"### Human: {user}### Assistant:", False), (f" {assistant}", True)):
            new = encode(text) if not is_answer else tokenizer.encode_continuation(text)
            ids += new
            answered += [is_answer] * len(new)
    return ids[: min(len(ids) - 1, window)], answered[1 : 1 + window]


@dataclass(frozen=True)
class Loss:
    """How far a model strays from its reference."""

    kl: float
    """Mean KL(reference || model), in nats a token."""
    top1: float
    """Share of tokens where both prefer the same token, 0 to 1."""
    tokens: int

    def __str__(self) -> str:
        return (
            f"requantising the merged weights to NF4 cost KL {self.kl:.2f} nats a token and changed the first choice at "
            f"{1 - self.top1:.1%} of {self.tokens} tokens of a test dialogue's answers (against the unmerged adapter)"
        )


def compare(reference: Tensor, logits: Tensor) -> Loss:
    """Loss of logits (N, V) against reference (N, V), both in float32."""
    expected, actual = torch.log_softmax(reference, dim=-1), torch.log_softmax(logits, dim=-1)
    kl = (expected.exp() * (expected - actual)).sum(dim=-1).mean()
    agreed = (reference.argmax(dim=-1) == logits.argmax(dim=-1)).float().mean()
    return Loss(round(float(kl), 4), round(float(agreed), 4), len(reference))
