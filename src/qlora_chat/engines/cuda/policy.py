"""Scheduling policy of the CUDA path: the next step's rows, from the tokens that wait and the costs that were measured.

Scope: pure decisions on counts and seconds, and their limits. Knows no requests, no device and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from qlora_chat.engines.core.prompt_lookup import Draft, PassCosts, select_drafts
from qlora_chat.engines.cuda.decode.rows import BUCKETS


@dataclass(frozen=True)
class StepLimits:
    """Constants of the policy, measured with a 7B on an H200."""

    step_costs: tuple[float, ...] = (1.0, 1.03, *[1.1] * 2, *[1.22] * 4, *[1.75] * 8, *[2.75] * 16, *[5.2] * 32)
    """Prior cost of a step of 1 to 64 rows, relative to one row, until the engine has measured its own."""
    pass_tokens: int = 1024
    """Prompt tokens of a prefill pass, of all its chats together. More would save little: every weight is dequantized once per
    pass, which takes a fifth of its time at this size."""
    min_pass_tokens: int = 32
    """Lower bound of the same while memory is short."""
    first_token_wait: int = 4096
    """Prompt tokens of other chats that may go before a first token: chats that arrive together then answer together, at the
    full rate from the beginning."""
    prefill_rows_idle: int = 64
    """Prompts of at most this many tokens are prefilled as rows of decode steps: dequantizing the weights would take longer."""
    prefill_rows_mixed: int = 96
    """The same while others answer, whose steps have spare rows."""
    step_rows_idle: int = 32
    """Rows of a step with prefill rows where no chat waits for a next token."""
    min_spare_rows: int = 4
    """Spare rows that a step needs to prefill in them."""
    max_step_slowdown: float = 1.7
    """Slowdown of the answers' steps by prefill rows. The rest of twice a token's time is the host's, since such a step is not
    started ahead."""
    host_gap_outlier_s: float = 0.002
    """A device that waited longer for a step was not waiting for the host's work on that step alone."""
    host_gap_rate: float = 0.2
    """Weight of the newest host gap in the average."""
    chunk_share: float = 0.75
    """Time of a prefill chunk, relative to a step; the rest of twice a token's time is a margin for uneven clocks and hosts."""
    recent_steps: int = 3
    """Newest steps, of which the fastest counts: a chunk must not grow by a step that something else delayed."""
    recent_chunks: int = 4
    """Newest chunks, of which the slowest counts: products differ in their time per weight, and the host may be late."""

    def mixed_step_rows(self, decoding: int) -> int:
        """Rows of a step that prefills next to so many decoding chats: of the widest graph within `max_step_slowdown`."""
        bucket = next(rows for rows in BUCKETS if decoding <= rows)
        most = self.max_step_slowdown * self.step_costs[bucket - 1]
        return max(rows for rows in BUCKETS if self.step_costs[rows - 1] <= most)


class Action(Enum):
    """Kinds of plan."""

    IDLE = auto()
    COLLECT = auto()
    """Hand out the tokens of the step in flight first: the next step depends on them."""
    PREFILL_PASS = auto()
    """Run a whole prefill pass."""
    STEP = auto()
    """Start a step over all decoding chats."""


@dataclass(frozen=True)
class StepPlan:
    """The scheduler's next action. A step without prefill rows and drafts is started ahead of the previous one's results."""

    action: Action
    prefill_rows: tuple[int, ...] = ()
    """Prompt tokens of each waiting prompt among the step's rows."""
    first_tokens: bool = False
    """The prompts end within the step, which samples their first tokens."""
    drafts: Sequence[tuple[int, ...]] = ()
    """Draft tokens of each decoding chat to verify."""


@dataclass(frozen=True)
class StepState:
    """Waiting tokens, and what the device does meanwhile."""

    decoding: int
    """Chats with a row in the next step."""
    prompts: Sequence[int]
    """Uncached tokens of each waiting prompt, two or more."""
    answering: bool
    """A chat waits for a token after its first."""
    max_rows: int
    """Rows of a step on this device."""
    in_flight: bool = False
    """The tokens of a started step have not been handed out."""
    unchanged: bool = False
    """The device can go on by itself: same chats, same settings."""
    waited_tokens: int = 0
    """Prompt tokens prefilled since a chat has been waiting for its first token."""
    host_gap_s: float = 0.0
    """Device time lost before a step that is not started ahead."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens to prefill: all but each prompt's last, which goes with the decode rows and gives the first token."""
        return sum(self.prompts) - len(self.prompts)


def plan_step(
    state: StepState, limits: StepLimits, costs: PassCosts | None,
    max_equal_rows: Callable[[int], int], proposals: Callable[[], Sequence[Draft]],
) -> StepPlan:  # fmt: skip
    """The next action. `costs`: seconds of a step by its rows, None for no drafts; `max_equal_rows`: rows of the widest step
    that rounds as a step of so many; `proposals`: drafts of the decoding chats, looked up only where they can pay."""
    if state.prompts:
        return StepPlan(Action.COLLECT) if state.in_flight else _plan_prefill(state, limits, max_equal_rows)
    drafts = _plan_drafts(state, costs, max_equal_rows, proposals)
    if state.in_flight and (drafts or not state.unchanged):
        return StepPlan(Action.COLLECT)
    return StepPlan(Action.STEP, drafts=drafts) if state.decoding else StepPlan(Action.IDLE)


def starts_pass(state: StepState, limits: StepLimits) -> bool:
    """True if a prefill pass should begin that runs in chunks between the answers' steps."""
    return bool(state.prompts) and state.answering and _needs_pass(state, limits, limits.prefill_rows_mixed)


def spare_rows(state: StepState, limits: StepLimits) -> int:
    """Rows for prompts in a step of the decoding chats."""
    mixed = state.decoding and state.answering
    rows = limits.mixed_step_rows(state.decoding) if mixed else limits.step_rows_idle
    return max(0, min(rows, state.max_rows) - state.decoding)


def _needs_pass(state: StepState, limits: StepLimits, max_tokens_as_rows: int) -> bool:
    return state.prompt_tokens > max_tokens_as_rows or spare_rows(state, limits) < limits.min_spare_rows


def _plan_prefill(state: StepState, limits: StepLimits, max_equal_rows: Callable[[int], int]) -> StepPlan:
    may_wait = not state.answering and state.waited_tokens < limits.first_token_wait
    if may_wait and _needs_pass(state, limits, min(limits.prefill_rows_idle, 2 * state.max_rows)):
        return StepPlan(Action.PREFILL_PASS)
    spare, total = spare_rows(state, limits), sum(state.prompts)
    # First tokens come for all prompts or for none: a step has fewer rows for prompts once a chat answers. And only from a step
    # that rounds as one of the prompts' last tokens alone would, which is the step that a repeated prompt gets.
    first_tokens = total <= spare and state.decoding + total <= max_equal_rows(state.decoding + len(state.prompts))
    counts = []
    for tokens in state.prompts:
        counts.append(min(tokens - 1, spare))
        spare -= counts[-1] + first_tokens
    return StepPlan(Action.STEP, tuple(counts), first_tokens)


def _plan_drafts(
    state: StepState, costs: PassCosts | None,
    max_equal_rows: Callable[[int], int], proposals: Callable[[], Sequence[Draft]],
) -> Sequence[tuple[int, ...]]:  # fmt: skip
    rows = state.decoding
    if costs is None or not rows or costs(rows + 1) > 2 * costs(rows):
        return ()  # where steps are wide, the lookup alone takes longer than a row
    spare = max_equal_rows(rows) - rows  # in a wider step the chats' tokens would round differently
    if not spare:
        return ()
    gap = state.host_gap_s * (2 if state.in_flight else 1)  # for this step, and for the one behind it
    return select_drafts(proposals(), rows, lambda wide: costs(wide) + gap * (wide > rows), spare) or ()
