"""Steps, one after another: forward, backward, update, and what is told and saved in between.

Scope: the loop and its interruptions. Knows no files' forms and no settings' origin.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from qlora_chat.models import Notify
from qlora_chat.training.checkpoint import Checkpoints
from qlora_chat.training.data.batches import Examples, passes_of
from qlora_chat.training.divergence import WINDOW, Watch
from qlora_chat.training.memory import GIB, StepPlan
from qlora_chat.training.metrics_log import Metrics, Screen
from qlora_chat.training.model.llama import TrainableLlama
from qlora_chat.training.optimizer import Optimizer, learning_rate
from qlora_chat.training.recipe import TrainSettings


@dataclass(frozen=True)
class _Step:
    """What one update was."""

    loss: float
    """Mean over the tokens under the loss."""
    norm: float
    rate: float
    tokens: int


@dataclass
class Loop:
    """One run's steps."""

    model: TrainableLlama
    optimizer: Optimizer
    settings: TrainSettings
    trained: Examples
    held_out: Examples | None
    steps: Sequence[tuple[int, ...]]
    plan: StepPlan
    checkpoints: Checkpoints
    metrics: Metrics
    notify: Notify
    _watch: Watch = field(default_factory=Watch)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _held_out_loss: float | None = None

    def run(self, done: int) -> int:
        """From the step after `done` to the end, or to Ctrl-C; the number of finished steps, which are saved."""
        total = len(self.steps)
        save_every = self.settings.save_every or max(1, total // 10)
        self._remember(done)
        screen, began, tokens, first = Screen(total, done, self.notify), time.perf_counter(), 0, done
        with _interruptible() as interrupted, _closing(screen):
            while done < total and not interrupted.is_set():
                step = self._one(done, screen)
                done, tokens = done + 1, tokens + step.tokens
                seconds = time.perf_counter() - began
                left = seconds / (done - first) * (total - done)
                self._tell(done, step, tokens / seconds, seconds, left, screen)
                self._look(done, screen)
                if done % save_every == 0 or done == total:
                    self._save(done)
            if interrupted.is_set() and done % save_every and done < total:
                self._save(done)
        return done

    def losses(self) -> tuple[float | None, float | None]:
        """(mean of the last steps, last held-out loss)."""
        return (round(fmean(self._recent), 4) if self._recent else None), self._held_out_loss

    def _one(self, done: int, screen: Screen) -> _Step:
        """Forward and backward over a step's dialogues, then the update."""
        passes = passes_of(self.trained, self.steps[done], self.plan.pass_tokens, self.model.held.device)
        under = max(1, sum(int((each.targets >= 0).sum()) for each in passes))
        self.model.train()
        total = torch.zeros((), device=self.model.held.device)
        for index, each in enumerate(passes):
            torch.manual_seed(_seed(self.settings.seed, done, index))  # dropout follows from the step's number alone
            loss = self.model.loss(each, 1 / under)
            loss.backward()
            total += loss.detach()
        norm = float(self.optimizer.clip())
        warning = self._watch.trained(done + 1, float(total), norm)
        if warning:
            screen.say(warning)
        rate = learning_rate(self.settings, done, len(self.steps))
        self.optimizer.step(rate)
        self._recent.append(float(total))
        return _Step(float(total), norm, rate, sum(len(each.ids) for each in passes))

    def _look(self, done: int, screen: Screen) -> None:
        """The loss of the dialogues that are not trained on, from time to time."""
        every = self.settings.eval_every or max(1, len(self.steps) // 10)
        if self.held_out is None or (done % every and done != len(self.steps)):
            return
        loss = self.held_out_loss()
        self._held_out_loss = round(loss, 4)
        self.metrics.add({"step": done, "held_out_loss": self._held_out_loss})
        screen.say(f"step {done}: held-out loss {loss:.3f}")
        if warning := self._watch.held_out(done, loss):
            screen.say(warning)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean negative log-likelihood of the held-out tokens under the loss."""
        assert self.held_out is not None
        self.model.eval()
        passes = passes_of(self.held_out, range(len(self.held_out)), self.plan.pass_tokens, self.model.held.device)
        under = sum(int((each.targets >= 0).sum()) for each in passes)
        return sum(float(self.model.loss(each, 1.0)) for each in passes) / max(1, under)

    def _tell(self, done: int, step: _Step, rate: float, seconds: float, left: float, screen: Screen) -> None:
        gib = _gib_in_use(self.model.held.device)
        screen.step(done, step.loss, rate, gib, left)
        self.metrics.add({
            "step": done, "loss": round(step.loss, 5), "learning_rate": step.rate, "grad_norm": round(step.norm, 5),
            "tokens": step.tokens, "tokens_per_s": round(rate, 1), "gib": round(gib, 3), "seconds": round(seconds, 2),
        })  # fmt: skip

    def _save(self, done: int) -> None:
        tensors = {f"adapter.{name}": each for name, each in self.model.adapter_tensors().items()}
        tensors |= {f"optimizer.{name}": each for name, each in self.optimizer.tensors().items()}
        self.checkpoints.save(
            done, {name: each.cpu().contiguous() for name, each in tensors.items()}, {"steps": len(self.steps)}
        )

    def _remember(self, done: int) -> None:
        """Losses from before the interruption, so that warnings go on as if there had been none."""
        for line in self.metrics.lines():
            if "loss" in line and done:
                self._recent.append(line["loss"])
                self._watch.trained(line["step"], line["loss"], 0.0)
            if "held_out_loss" in line and done:
                self._held_out_loss = line["held_out_loss"]
                self._watch.held_out(line["step"], line["held_out_loss"])


def _seed(seed: int, step: int, index: int) -> int:
    """One seed a pass."""
    return (seed * 1_000_003 + step * 8_191 + index) % 2**63


def _gib_in_use(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    import psutil

    return psutil.Process().memory_info().rss / GIB


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; the second one ends the process at once, as ever."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _closing(screen: Screen) -> Iterator[None]:
    try:
        yield
    finally:
        screen.close()
