"""Training steps: forward, backward, update, and the logging, evaluation and checkpoints between them.

Scope: the loop and its interruption. Knows no file formats and no origin of settings.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from qlora_chat.models import Notify
from qlora_chat.models.placement import GIB, peak_bytes
from qlora_chat.training import TrainError
from qlora_chat.training.checkpoint import Checkpoint, Checkpoints
from qlora_chat.training.data.batches import TrainingData, micro_batches
from qlora_chat.training.divergence import DivergenceMonitor, not_finite
from qlora_chat.training.memory import StepPlan
from qlora_chat.training.metrics_log import MetricsLog, ProgressDisplay
from qlora_chat.training.model.llama import TrainableLlama
from qlora_chat.training.optimizer import Optimizer, learning_rate
from qlora_chat.training.recipe import TrainSettings
from qlora_chat.training.samples import SampleWriter


@dataclass(frozen=True)
class _StepResult:
    loss: float
    """Mean over the loss tokens, in nats."""
    norm: float
    rate: float
    tokens: int


@dataclass
class TrainingLoop:
    """The steps of one run."""

    model: TrainableLlama
    optimizer: Optimizer
    settings: TrainSettings
    data: TrainingData
    plan: StepPlan
    checkpoints: Checkpoints
    metrics: MetricsLog
    notify: Notify
    sample: SampleWriter | None = None
    held_out_loss: float | None = None
    """Loss of the newest evaluation."""
    _monitor: DivergenceMonitor = field(default_factory=DivergenceMonitor)

    def run(self, start: int) -> int:
        """Train from step `start` to the end or to Ctrl-C; returns the number of finished steps, which are saved.

        TrainError, before the update, for a step whose loss or gradients are not finite.
        """
        total = len(self.data.steps)
        save_every = self.settings.save_every or max(1, total // 10)
        self._restore_losses(start)
        done, began, tokens = start, time.perf_counter(), 0
        with _interruptible() as interrupted, closing(ProgressDisplay(total, start, self.notify)) as display:
            while done < total and not interrupted.is_set():
                step = self._train_step(done, display)
                done, tokens = done + 1, tokens + step.tokens
                self._log(done, step, tokens, time.perf_counter() - began, start, display)
                self._evaluate(done, display)
                if done % save_every == 0 or done == total:
                    self._save(done)
            if interrupted.is_set() and done % save_every and done < total:
                self._save(done)
        return done

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load adapter and optimizer as `_save` wrote them."""
        tensors = checkpoint.tensors
        self.optimizer.load({name.removeprefix("optimizer."): each for name, each in tensors.items() if name[0] == "o"})
        self.model.load_adapter({name.removeprefix("adapter."): each for name, each in tensors.items()})

    def mean_loss(self) -> float | None:
        """Mean loss of the last 20 steps, rounded; None before the first one."""
        mean = self._monitor.mean()
        return None if mean is None else round(mean, 4)

    def _train_step(self, done: int, display: ProgressDisplay) -> _StepResult:
        """Run forward and backward over a step's dialogues, then update."""
        batches = micro_batches(self.data.train, self.data.steps[done], self.plan.pass_tokens, self.model.compute.device)
        loss_tokens = max(1, sum(each.loss_tokens() for each in batches))
        self.model.train()
        total = torch.zeros((), device=self.model.compute.device)
        for index, batch in enumerate(batches):
            torch.manual_seed(_dropout_seed(self.settings.seed, done, index))
            loss = self.model.loss(batch, 1 / loss_tokens)
            loss.backward()
            total += loss.detach()
        norm = float(self.optimizer.clip())
        if problem := not_finite(done + 1, float(total), norm):
            raise TrainError(f"{problem}; {self.checkpoints.newest_in_words()}")
        if warning := self._monitor.check_step(done + 1, float(total)):
            display.print(warning)
        rate = learning_rate(self.settings, done, len(self.data.steps))
        self.optimizer.step(rate)
        return _StepResult(float(total), norm, rate, sum(len(each.ids) for each in batches))

    def _evaluate(self, done: int, display: ProgressDisplay) -> None:
        """Measure the held-out loss, and answer the sample's question, every `eval_every` steps and after the last one."""
        every = self.settings.eval_every or max(1, len(self.data.steps) // 10)
        if done % every and done != len(self.data.steps):
            return
        if self.data.held_out is not None:
            self._measure_held_out(done, display)
        if self.sample:
            self.metrics.add({"step": done, "sample": self.sample.answer(self.model)})

    def _measure_held_out(self, done: int, display: ProgressDisplay) -> None:
        loss = self._mean_held_out_loss()
        self.held_out_loss = round(loss, 4)
        self.metrics.add({"step": done, "held_out_loss": self.held_out_loss})
        display.print(f"step {done}: held-out loss {loss:.3f}")
        if warning := self._monitor.check_held_out(done, loss):
            display.print(warning)

    @torch.no_grad()
    def _mean_held_out_loss(self) -> float:
        """Mean negative log-likelihood of the held-out loss tokens, in nats."""
        examples = self.data.held_out
        assert examples is not None
        self.model.eval()
        batches = micro_batches(examples, range(len(examples)), self.plan.pass_tokens, self.model.compute.device)
        loss_tokens = max(1, sum(each.loss_tokens() for each in batches))
        return sum(float(self.model.loss(each, 1.0)) for each in batches) / loss_tokens

    def _log(self, done: int, step: _StepResult, tokens: int, seconds: float, start: int, display: ProgressDisplay) -> None:
        """Write one step's line and update the display; `tokens` and `seconds` count from step `start`."""
        gib, rate = peak_bytes(self.model.compute.device) / GIB, tokens / seconds
        display.update(done, step.loss, rate, gib, seconds / (done - start) * (len(self.data.steps) - done))
        self.metrics.add({
            "step": done, "loss": round(step.loss, 5), "learning_rate": step.rate, "grad_norm": round(step.norm, 5),
            "tokens": step.tokens, "tokens_per_s": round(rate, 1), "gib": round(gib, 3), "seconds": round(seconds, 2),
        })  # fmt: skip

    def _save(self, done: int) -> None:
        tensors = {f"adapter.{name}": each for name, each in self.model.adapter_tensors().items()}
        tensors |= {f"optimizer.{name}": each for name, each in self.optimizer.tensors().items()}
        on_cpu = {name: each.cpu().contiguous() for name, each in tensors.items()}
        self.checkpoints.save(done, on_cpu, {"steps": len(self.data.steps)})

    def _restore_losses(self, start: int) -> None:
        """Replay the losses of metrics.jsonl, so that warnings continue as in an unbroken run."""
        for line in self.metrics.lines() if start else ():
            if "loss" in line:
                self._monitor.check_step(line["step"], line["loss"])
            if "held_out_loss" in line:
                self.held_out_loss = line["held_out_loss"]
                self._monitor.check_held_out(line["step"], line["held_out_loss"])


def _dropout_seed(seed: int, step: int, index: int) -> int:
    """One seed per micro-batch: dropout depends on the step's number alone, not on the steps before it."""
    return (seed * 1_000_003 + step * 8_191 + index) % 2**63


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets; a second signal ends the process at once, as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request_stop(number: int, frame: Any) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, request_stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
