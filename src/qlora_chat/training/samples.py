"""An answer of the adapter while it is being trained, for whoever watches.

Scope: one question, answered greedily, so that it needs no random numbers and a run with samples ends with the same adapter as
one without. Short, because each token is a pass over the whole text: there is no KV cache here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qlora_chat.messages import Conversation, Message
from qlora_chat.prompt import ChatFormat, Tokenizer, render
from qlora_chat.training.data.batches import IGNORED, MicroBatch
from qlora_chat.training.model.llama import TrainableLlama

MOST_TOKENS = 40


@dataclass(frozen=True)
class SampleWriter:
    """Answers one question."""

    question: str
    template: ChatFormat
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    window: int

    def answer(self, model: TrainableLlama) -> str:
        """The answer of the model as it is now, at most MOST_TOKENS long."""
        conversation = Conversation(messages=(Message("user", self.question),))
        prompt = render(conversation, self.template, self.tokenizer).ids
        prompt = prompt[-(self.window - MOST_TOKENS) :]
        answer: list[int] = []
        text = ""
        model.eval()
        with torch.no_grad():
            while len(answer) < MOST_TOKENS:
                token = _likeliest(model, (*prompt, *answer))
                if token in self.stop_ids:
                    break
                answer.append(token)
                text = self.tokenizer.decode(answer)
                if any(stop in text for stop in self.template.stop_texts):
                    break
        end = min((text.index(stop) for stop in self.template.stop_texts if stop in text), default=len(text))
        return text[:end].strip()


def _likeliest(model: TrainableLlama, ids: tuple[int, ...]) -> int:
    """The most probable next token."""
    device = model.compute.device
    targets = torch.full((len(ids),), IGNORED, device=device)
    hidden = model.hidden(MicroBatch(torch.tensor(ids, device=device), targets, (len(ids),)))
    return int((hidden[-1] @ model.head.t()).argmax())
