"""What a merge cost: a merged model against the unmerged adapter on its NF4 base, on the answers of held-out text.

Scope: the text, written for this measurement; logits in, numbers out. Knows nothing of how a model was loaded.

Shapes: N counted tokens, T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qlora_chat.models import ModelError
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer

Dialogue = Sequence[tuple[str, str]]
"""(user, assistant) a turn."""

MOST_KL = 0.02
LEAST_TOP1 = 0.97
"""A merge beyond either is refused: people would notice that it is another model."""

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

DIALOGUES: tuple[Dialogue, ...] = (
    DIALOGUE,
    (
        ("Good morning! Can you help me plan my day?", "Of course! What do you have to do today?"),
        (
            "I have to buy bread, call my uncle and clean the kitchen.",
            "You could buy bread first while it is fresh. Then call your uncle over a cup of coffee, and clean the kitchen "
            "in the afternoon when you have more time.",
        ),
        ("What was the second thing on my list?", "The second thing on your list was to call your uncle."),
        ("Thanks.", "You are welcome. Enjoy your day!"),
    ),
    (
        ("Why do ships float?", "A ship floats because it pushes water aside, and the water pushes back with the same force."),
        ("And why does a stone sink?", "A stone is heavier than the water that it pushes aside, so it sinks."),
        ("What is a harbour?", "A harbour is a place on the coast where ships are safe from wind and waves."),
    ),
    (
        ("What is 9 times 3?", "9 times 3 is 27."),
        ("What is 40 minus 15?", "40 minus 15 is 25."),
        ("Is 18 an even number?", "Yes, 18 is an even number, because it can be divided by two."),
        ("Name three colours.", "Here are three colours: red, green and yellow."),
    ),
    (
        ("Are you a real person?", "No, I am a computer program, so I am not alive, but I am happy to talk with you."),
        ("Do you like music?", "I cannot hear music, but I can talk about it. What kind of music do you like?"),
        ("I like to sing in a choir.", "That sounds lovely. Singing together makes many people happy."),
    ),
    (
        (
            "How do I plant a tree?",
            "Dig a hole that is twice as wide as the roots. Put the tree into it, fill the hole with earth, press it down "
            "gently, and give it plenty of water for the first few weeks.",
        ),
        ("When should I do that?", "The best time is in autumn or in early spring, when it is not too hot and not too cold."),
        ("Which tree gives apples?", "An apple tree gives apples."),
    ),
    (
        ("I feel a bit sad today.", "I am sorry to hear that. Do you want to tell me what happened?"),
        ("My best friend moved to another city.", "That is hard. You could write a letter, or visit during the holidays."),
        ("That is a good idea.", "I am glad that you like it. A real friend stays a friend, even far away."),
    ),
    (
        ("What does the word brave mean?", "A brave person does what is right even when it is frightening."),
        ("Use it in a sentence.", "The brave girl climbed the tree and helped the little cat down."),
        ("What is the opposite of brave?", "The opposite of brave is afraid."),
        ("What is a baby horse called?", "A baby horse is called a foal."),
        ("Which season comes after winter?", "Spring comes after winter."),
    ),
    (
        (
            "Explain in simple words what a library is.",
            "A library is a place with many books. People can read there, and they can borrow books, take them home, and "
            "bring them back after some weeks.",
        ),
        ("Does it cost money?", "Most libraries cost nothing or very little, so that everybody can read."),
        ("What is the capital of Italy?", "The capital of Italy is Rome."),
        ("Thank you, goodbye!", "Goodbye! It was nice to talk with you."),
    ),
)
"""Several, so that a share of one per cent is more than a token or two."""


@dataclass(frozen=True)
class Passage:
    """One sequence of held-out text."""

    ids: tuple[int, ...]
    """(T,), BOS included."""
    counted: tuple[bool, ...]
    """(T,): whether the token is one that a model is measured on; never the first."""

    @property
    def inputs(self) -> list[int]:
        """What a model reads: all but the last."""
        return list(self.ids[:-1])

    @property
    def rows(self) -> list[int]:
        """Of the logits after each input, those that speak of a counted token."""
        return [index for index, counts in enumerate(self.counted[1:]) if counts]

    @property
    def targets(self) -> list[int]:
        """The counted tokens."""
        return [self.ids[index + 1] for index in self.rows]


@dataclass(frozen=True)
class HeldOut:
    """Text that no model in question was trained on, in ids."""

    passages: tuple[Passage, ...]

    def __post_init__(self) -> None:
        if not self.targets:
            raise ModelError("the text holds no token to measure on; give a file with a few dialogues that have answers")

    @property
    def targets(self) -> list[int]:
        """(N,)."""
        return [target for passage in self.passages for target in passage.targets]


def own_dialogues(tokenizer: ModelTokenizer, bos: int | None, window: int) -> HeldOut:
    """DIALOGUES as the model reads them; answers count."""
    return HeldOut(tuple(passage(dialogue, tokenizer, bos, window) for dialogue in DIALOGUES))


def passage(dialogue: Dialogue, tokenizer: ModelTokenizer, bos: int | None, window: int) -> Passage:
    """A dialogue in Guanaco's form, cut after `window` tokens; the answers count."""
    ids: list[int] = [] if bos is None else [bos]
    counted = [False] * len(ids)
    for user, assistant in dialogue:
        encode = tokenizer.encode_continuation if len(ids) > 1 else tokenizer.encode
        for text, is_answer in ((f"### Human: {user}### Assistant:", False), (f" {assistant}", True)):
            new = encode(text) if not is_answer else tokenizer.encode_continuation(text)
            ids += new
            counted += [is_answer] * len(new)
    return Passage(tuple(ids[: window + 1]), tuple(counted[: window + 1]))


@dataclass(frozen=True)
class Loss:
    """How far a model strays from its reference."""

    kl: float
    """Mean KL(reference || model), in nats a token."""
    top1: float
    """Share of tokens where both prefer the same token, 0 to 1."""
    tokens: int
    perplexity: float
    """Of the model itself on the counted tokens."""

    @property
    def acceptable(self) -> bool:
        """Whether people would take it for the same model."""
        return self.kl <= MOST_KL and self.top1 >= LEAST_TOP1

    def __str__(self) -> str:
        return (
            f"requantising the merged weights to NF4 cost KL {self.kl:.2f} nats a token and changed the first choice at "
            f"{1 - self.top1:.1%} of {self.tokens} tokens of a test dialogue's answers (against the unmerged adapter)"
        )


def compare(reference: Tensor, logits: Tensor, targets: Sequence[int]) -> Loss:
    """Loss of logits (N, V) against reference (N, V), both in float32; targets (N,) are what the text says."""
    kl, agreed = 0.0, 0
    for expected, actual in zip(reference.split(256), logits.split(256), strict=True):  # a vocabulary wide: not all at once
        first, second = torch.log_softmax(expected, dim=-1), torch.log_softmax(actual, dim=-1)
        kl += float((first.exp() * (first - second)).sum())
        agreed += int((expected.argmax(dim=-1) == actual.argmax(dim=-1)).sum())
    count = len(reference)
    return Loss(round(kl / count, 4), round(agreed / count, 4), count, round(perplexity(logits, targets), 3))


def perplexity(logits: Tensor, targets: Iterable[int]) -> float:
    """exp of the mean cross-entropy of targets (N,) under logits (N, V)."""
    return math.exp(min(float(cross_entropy(logits, torch.tensor(list(targets)))), 700.0))
