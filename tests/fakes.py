"""Stand-ins for what a test cannot have or must control exactly: an engine that follows a script, a tokenizer of letters."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from qlora_chat.chat import Chat
from qlora_chat.engines import AnsweredBy, EngineError, Finish, Piece, PrefillProgress
from qlora_chat.history import ConversationInfo, Feedback, HistoryUnavailable, OutboxRecord, TurnRecord
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import AnswerSchema, Conversation
from qlora_chat.models import ModelInfo
from qlora_chat.prompt import DEFAULT_FORMAT, Prompt
from qlora_chat.settings import ModelSettings, Sampling
from qlora_chat.stopping import Stops

if TYPE_CHECKING:
    from torch import Tensor

    from qlora_chat.engines.core.forward_pass import Span
    from qlora_chat.engines.core.kv_cache import KVCache

SCRIPTED_INFO = ModelInfo(
    name="scripted",
    base="scripted-base",
    adapter="scripted-adapter",
    precision="fp32",
    device="cpu",
    window=4096,
    prompt_format="guanaco",
    stop_token_ids=frozenset({2}),
    notices=("A scripted engine: it says what the test wrote.",),
)


class LetterTokenizer:
    """Every character is a token, so ids and text turn into each other without loss."""

    bos_id = 1
    longest_token = 16
    _first = 3

    def encode(self, text: str) -> list[int]:
        """Ids of text, without BOS."""
        return [ord(letter) + self._first for letter in text]

    def encode_continuation(self, text: str) -> list[int]:
        """The same: letters have no neighbours to melt into."""
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens give none."""
        return "".join(chr(each - self._first) for each in ids if each >= self._first)

    def token_id(self, token: str) -> int | None:
        """Ids of the three special tokens, by name."""
        return {"<unk>": 0, "<s>": 1, "</s>": 2}.get(token)


@dataclass
class ScriptedStream:
    """One scripted answer; a token is a list entry of the script."""

    tokens: Sequence[str]
    delay: float
    prompt: Prompt
    sampling: Sampling
    stops: Stops
    fails_after: int | None = None
    failure: str = "the script says that generation fails"
    answered_by: AnsweredBy | None = None
    pauses_after: int | None = None
    prefilled: Sequence[int] = ()
    """Tokens of the prompt that are reported as read before the first token."""
    go_on: threading.Event = field(default_factory=threading.Event)
    """Set to go on after a pause."""
    seen: list[Sampling] = field(default_factory=list)
    """The sampling in force at each token made."""
    made_at: list[float] = field(default_factory=list)
    """time.perf_counter() at each."""
    ended_at: float | None = None
    """time.perf_counter() when the last token was made or the answer was cancelled."""
    reason: str | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def cancelled(self) -> bool:
        """Whether someone asked for the end."""
        return self._cancelled.is_set()

    def update(self, sampling: Sampling) -> None:
        """Use these settings from the very next token."""
        self.sampling = sampling

    def cancel(self) -> None:
        """End the answer at the next token."""
        self._cancelled.set()

    def __iter__(self) -> Iterator[Piece]:
        """One piece a token, `delay` seconds apart; EngineError after `fails_after` tokens."""
        began = time.perf_counter()
        ids = LetterTokenizer()
        for read in self.prefilled:
            yield Piece("", prefill=PrefillProgress(read, len(self.prompt.ids)))
        for index, token in enumerate(self.tokens):
            while index == self.pauses_after and not self.cancelled and not self.go_on.wait(0.01):
                pass
            if self._cancelled.wait(self.delay) if self.delay else self.cancelled:
                yield self._end("cancelled", began)
                return
            if index == self.fails_after:
                self.ended_at, self.reason = time.perf_counter(), "error"
                raise EngineError(self.failure)
            self.seen.append(self.sampling)
            self.made_at.append(time.perf_counter())
            yield Piece(token, ids.encode(token)[0] if len(token) == 1 else None)
        yield self._end("stop", began)

    def _end(self, reason: str, began: float) -> Piece:
        self.ended_at, self.reason = time.perf_counter(), reason
        elapsed = self.ended_at - began
        count = len(self.seen)
        rate = count / elapsed if count > 1 and elapsed > 0 else None
        finish = Finish(reason, len(self.prompt.ids), 0, count, self.delay * 1000 if count else None, rate)  # type: ignore[arg-type]
        return Piece("", None, replace(finish, answered_by=self.answered_by))


class ScriptedEngine:
    """An Engine that answers as it is told. `answer` is a text (a word is a token) or makes one from the prompt.

    Change `answer`, `delay`, `fails_after`, `failure` or `pauses_after` at any time; they hold for the answers begun
    afterwards. An answer that pauses after some tokens goes on when `go_on` is set.
    """

    def __init__(
        self,
        answer: str | Callable[[Prompt], str] = "This is a scripted answer.",
        delay: float = 0.0,
        fails_after: int | None = None,
        window: int = SCRIPTED_INFO.window,
        info: ModelInfo = SCRIPTED_INFO,
    ) -> None:
        self.answer, self.delay, self.fails_after = answer, delay, fails_after
        self.failure = "the script says that generation fails"
        self.pauses_after: int | None = None
        self.prefilled: Sequence[int] = ()
        self.go_on = threading.Event()
        self.info = replace(info, window=window)
        self.tokenizer = LetterTokenizer()
        self.streams: list[ScriptedStream] = []
        self.closed = False
        self.slots = 64
        self.adapters_asked: list[str | None] = []
        self.answered_by: Callable[[str | None], AnsweredBy] | None = None
        """What the engine says has answered, from the adapter asked for; it cannot tell where this is None."""
        self.schemas_asked: list[AnswerSchema | None] = []
        self.refusal: Exception | None = None
        """Raised instead of beginning an answer."""
        self.refuses: str | None = None
        """An adapter that is not loaded any more."""

    def check_schema(self, schema: AnswerSchema) -> None:
        """Take any schema; the script is to match it."""

    def stream(
        self, prompt: Prompt, sampling: Sampling, stops: Stops, adapter: str | None = None, schema: AnswerSchema | None = None
    ) -> ScriptedStream:
        """Begin the scripted answer."""
        if self.refusal:
            raise self.refusal
        if self.refuses and adapter == self.refuses:
            raise ValueError(f"adapter {adapter!r} is not loaded")
        self.adapters_asked.append(adapter)
        self.schemas_asked.append(schema)
        text = self.answer if isinstance(self.answer, str) else self.answer(prompt)
        stream = ScriptedStream(_words(text), self.delay, prompt, sampling, stops, self.fails_after, self.failure)
        stream.pauses_after, stream.go_on, stream.prefilled = self.pauses_after, self.go_on, self.prefilled
        stream.answered_by = self.answered_by(adapter) if self.answered_by else None
        self.streams.append(stream)
        return stream

    def close(self) -> None:
        """Cancel what is running."""
        self.closed = True
        for stream in self.streams:
            stream.cancel()


class ScriptedSwitch(ScriptedEngine):
    """A ScriptedEngine whose model can be switched: it takes the name of what it is switched to."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = ModelSettings()
        self.switch_fails: Exception | None = None

    def switch(self, settings: ModelSettings, notify: Callable[[str], None]) -> None:
        """Take another name, or fail as told."""
        notify("The new model is being read.")
        if self.switch_fails:
            raise self.switch_fails
        self.settings, self.slots = settings, 16
        adapters = tuple(name for name, _ in settings.adapters)
        self.info = replace(self.info, name=settings.base or settings.model, adapter=settings.adapter, adapters=adapters)


class ScriptedRecorder:
    """A Recorder that notes what it is told and sends nothing."""

    def __init__(self) -> None:
        self.turns: list[TurnRecord] = []
        self.feedbacks: list[Feedback] = []
        self.tombstones: list[str] = []

    def turn(self, record: TurnRecord) -> OutboxRecord | None:
        """Note a turn."""
        self.turns.append(record)
        return None

    def feedback(self, conversation_id: str, feedback: Feedback) -> OutboxRecord | None:
        """Note what a person thought."""
        self.feedbacks.append(feedback)
        return None

    def tombstone(self, conversation_id: str) -> OutboxRecord:
        """Note what is to be erased."""
        self.tombstones.append(conversation_id)
        return OutboxRecord("tombstone", conversation_id, b"{}")


class FullHistory(MemoryHistory):
    """A store whose disk is full."""

    def save(self, conversation: Conversation, info: ConversationInfo | None = None) -> Conversation:
        """Refuse."""
        raise HistoryUnavailable("the disk is full")

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None = None) -> None:
        """Refuse."""
        raise HistoryUnavailable("the disk is full")


def scripted_chat(engine: ScriptedEngine | None = None) -> Chat:
    """A chat over a scripted engine, its history in memory."""
    return Chat(engine or ScriptedEngine(), DEFAULT_FORMAT, MemoryHistory())


def _words(text: str) -> list[str]:
    """The text in pieces that begin with a space, as a model's tokens often do."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


# --- a server that speaks OpenAI's completions ---------------------------------------------------------------------------

RESET = object()
"""In a ScriptedServer's reply: break the connection off, without a goodbye."""


@dataclass(frozen=True)
class Status:
    """In a ScriptedServer's reply: the response's beginning, where it is not a stream that goes well."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""


def demo_tokens(text: str) -> list[tuple[int, str]]:
    """A text as a server of the bundled demo makes it: (id, its text) a token."""
    from qlora_chat.models.locate import BUNDLED
    from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer

    tokenizer = ModelTokenizer.read(BUNDLED / "base", bos_id=1)
    ids = tokenizer.encode_continuation(text)
    ends = [len(tokenizer.decode(ids[: index + 1])) for index in range(len(ids))]
    return [(each, text[begin:end]) for each, begin, end in zip(ids, [0, *ends], ends, strict=False)]


Reply = Callable[[dict[str, Any]], Iterator[Any]]
"""A request's JSON -> bytes to send, seconds to wait, Status, RESET."""


def sse(**choice: Any) -> bytes:
    """One line of a completion's stream."""
    return f"data: {json.dumps({'choices': [{'index': 0, **choice}]})}\n\n".encode()


class ScriptedServer:
    """An OpenAI-compatible server on a port of its own, that says `answer` and misbehaves as it is told.

    It goes on from however much of the answer a prompt ends with, as a model would. Set `reply` for one that does not.
    """

    def __init__(self, answer: Sequence[tuple[int, str]], models: Sequence[dict[str, Any]] = ({"id": "scripted"},)) -> None:
        self.answer, self.models = list(answer), list(models)
        self.reply: Reply = self.says
        self.delay = 0.0
        self.refused_fields: frozenset[str] = frozenset()
        self.text_only = False
        self.counts_bos = self.gives_ids = True
        self.reads_special_tokens = True
        self.enforces_schemas = True
        """Otherwise it ignores `response_format`, as many do."""
        self.well = True
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = 0
        self.cut_off = 0
        """Requests whose client went away before the end."""
        self._server: ThreadingHTTPServer | None = None
        self.start()

    def start(self, port: int = 0) -> None:
        """Listen; on the same port again after stop()."""
        handler = type("Handler", (_CompletionsHandler,), {"script": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """No longer there."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        """Its address, up to /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    def says(self, request: dict[str, Any]) -> Iterator[Any]:
        """What a server without faults does."""
        if odd := sorted(self.refused_fields & set(request)):
            yield Status(422, body=json.dumps({"detail": f"Unexpected fields in the request: {odd}"}))
        elif self.text_only and not isinstance(request["prompt"], str):
            yield Status(400, body=json.dumps({"detail": "prompt must be a string."}))
        else:
            yield from self.tokens(request)

    def tokens(self, request: dict[str, Any], most: int | None = None) -> Iterator[Any]:
        """The rest of the answer, at most `most` tokens of it before anything else happens."""
        begun, allowed = self._begun(request["prompt"]), request["max_tokens"]
        answer = self._answer_to(request)
        rest = answer[begun : begun + allowed][:most]
        for index, (token_id, text) in enumerate(rest):
            if self.delay:
                yield self.delay
            text = text.lstrip(" ") if self.text_only and index == 0 else text
            yield sse(text=text, **({"token_ids": [token_id]} if self.gives_ids else {}), **self._scores(request, token_id))
        if most is None:
            yield sse(text="", finish_reason="length" if len(answer) - begun > allowed else "stop")
            yield self._usage(request["prompt"], len(rest))

    def _answer_to(self, request: dict[str, Any]) -> list[tuple[int, str]]:
        """The answer; where a schema is enforced, the first instance of its properties."""
        if "response_format" not in request or not self.enforces_schemas:
            return self.answer
        properties = request["response_format"]["json_schema"]["schema"]["properties"]
        return demo_tokens(json.dumps({name: each["enum"][0] for name, each in properties.items()}))

    def _scores(self, request: dict[str, Any], token_id: int) -> dict[str, Any]:
        """What vLLM adds where it is asked for log probabilities: the chosen token is listed with the likeliest."""
        if request.get("logprobs") is None:
            return {}
        others = {f"token_id:{token_id + index}": -0.5 - index for index in range(1, request["logprobs"] + 1)}
        top = {f"token_id:{token_id}": -0.25, **others}
        return {"logprobs": {"tokens": [f"token_id:{token_id}"], "token_logprobs": [-0.25], "top_logprobs": [top]}}

    def _begun(self, prompt: list[int] | str) -> int:
        """Tokens of the answer that the prompt already ends with."""
        for count in range(len(self.answer), 0, -1):
            ids, text = [each[0] for each in self.answer[:count]], "".join(each[1] for each in self.answer[:count])
            if prompt.endswith(text) if isinstance(prompt, str) else prompt[-count:] == ids:
                return count
        return 0

    def _usage(self, prompt: list[int] | str, made: int) -> bytes:
        read = len(prompt) if isinstance(prompt, list) else 100 if self.counts_bos else 1
        if isinstance(prompt, str) and not self.reads_special_tokens:
            read += sum(len(each) * prompt.count(each) for each in ("<unk>", "</s>"))
        usage = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        return f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()


class _CompletionsHandler(BaseHTTPRequestHandler):
    script: ScriptedServer

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        """/v1/models and /health."""
        if self.path == "/health":
            self._send(Status(200 if self.script.well else 500))
        else:
            self._send(Status(200, body=json.dumps({"object": "list", "data": self.script.models})))

    def do_POST(self) -> None:
        """/v1/completions."""
        script = self.script
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        script.requests.append(request)
        script.headers.append({name.lower(): value for name, value in self.headers.items()})
        script.running += 1
        try:
            self._play(script.reply(request))
        except OSError:
            script.cut_off += 1
        finally:
            script.running -= 1

    def _play(self, steps: Iterator[Any]) -> None:
        began = False
        for step in steps:
            if isinstance(step, Status):
                self._send(step)
                return
            if step is RESET:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            if isinstance(step, float):
                self._wait(step)
                continue
            if not began:
                self._begin(Status(200, {"content-type": "text/event-stream"}))
                began = True
            self.wfile.write(step)
            self.wfile.flush()

    def _wait(self, seconds: float) -> None:
        """Sleep, unless the client goes away meanwhile."""
        self.connection.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise BrokenPipeError
        self.connection.settimeout(None)

    def _send(self, status: Status) -> None:
        self._begin(status)
        self.wfile.write(status.body.encode())

    def _begin(self, status: Status) -> None:
        self.close_connection = True
        self.send_response(status.code)
        for name, value in {"content-type": "application/json", "connection": "close", **status.headers}.items():
            self.send_header(name, value)
        self.end_headers()


class NumberedAdapters:
    """Adapters on a card by their numbers alone: a slot's adapter is its number."""

    backend_name = "kernels"

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def number(self, slot: int) -> int:
        """Of the slot's adapter; -1: the base alone."""
        adapter = self._cache.slots[slot].adapter
        return adapter if isinstance(adapter, int) else -1


class AdaptedDecoder:
    """A CUDA decoder that records what adapters ask of it."""

    def __init__(self) -> None:
        self.tables: list[Any] = []
        """LoRA tables, the newest last."""

    def set_lora(self, lora: Any) -> None:
        """Record another table."""
        self.tables.append(lora)

    def wait_for_current_stream(self) -> None:
        """Do nothing: no work is in flight."""


def single_part_pass(prefill: Callable[[], object]) -> Any:
    """A prefill pass of one part."""
    from qlora_chat.engines.cuda.prefill.reader import PrefillPass

    def parts() -> Iterator[int]:
        yield 1
        prefill()

    return PrefillPass(parts())


class PlainDecoder:
    """The CUDA decoder, computed by the eager pass: tokens, positions and counts advance by themselves from step to step,
    sampled tokens count for the repetition penalty, and a step's tokens are there before the host asks for them. Rows that
    verify a draft sample as if it were right, and leave everything unchanged."""

    def __init__(self, forward: Callable[[Sequence[Any]], Any], make_span: Callable[..., Any]) -> None:
        self._forward, self._span = forward, make_span
        self._rows: list[Any] = []
        self._sampled: dict[tuple[int, int], int] = {}
        self._seen: dict[int, set[int]] = {}
        self.logits: dict[int, Any] = {}
        """Of the rows of the newest step."""
        self.started = 0
        self.widest = 0
        """Rows of the widest step so far."""
        self.most_sampled = 0
        """Sampling rows of the step with most."""
        self.fail_at: int | None = None
        """The step that raises."""
        self.max_rows = 64
        """Rows of a step on this card."""
        self.narrow_rows = 0
        """Steps of up to so many rows round differently from wider ones."""
        self.clock = 0.0
        """Seconds of device time. Steps take what `seconds` says of their rows; a prefill pass adds its own."""
        self.seconds: Callable[[int], float] = lambda rows: 1.0
        self.host_gap = 0.0
        """Seconds that the host takes to start a step once it has seen the newest one's end."""
        self.times: list[tuple[float, float]] = []
        """When each step began and ended."""
        self._finished = 0

    @property
    def rows(self) -> Sequence[Any]:
        """Rows of the newest step."""
        return self._rows

    def max_equal_rows(self, rows: int) -> int:
        """Rows of the widest step that rounds as a step over so many."""
        return self.narrow_rows if rows <= self.narrow_rows else self.max_rows

    def set_rows(self, rows: Sequence[Any]) -> None:
        """Set the rows of the following steps."""
        self._rows = list(rows)

    def set_seen(self, slot: int, tokens: Sequence[int]) -> None:
        """Set the tokens that count as seen for a slot's chat."""
        self._seen[slot] = set(tokens)

    def start(self, count: int) -> int:
        """Run the rows through the model, sample their tokens, advance them."""
        began = self.clock + (self.host_gap if self._finished == self.started else 0.0)
        self.started += 1
        self.clock = began + self.seconds(count)
        self.times.append((began, self.clock))
        if self.started == self.fail_at:
            raise RuntimeError("the card has fallen out")
        self.widest = max(self.widest, count)
        self.most_sampled = max(self.most_sampled, sum(row.sampling is not None for row in self._rows[:count]))
        for index, row in enumerate(self._rows[:count]):
            self.logits[index] = self._forward([self._span(row.slot, row.position, [row.token])])[0]
            if row.sampling is None:
                continue
            self._sampled[index, row.count] = token = self._sample(index)
            if row.drafted is None:
                self._seen[row.slot].add(token)
                self._rows[index] = replace(row, token=token, position=row.position + 1, count=row.count + 1)
        return self.started

    def _sample(self, index: int) -> int:
        import torch

        from qlora_chat.engines.core.sampler import SamplerInput, sample

        row, logits = self._rows[index], self.logits[index]
        seen = torch.zeros(len(logits), dtype=torch.bool)
        draft = (each.token for each in self._rows[index + 1 - (row.drafted or 0) : index + 1])
        seen[[*self._seen[row.slot], *draft]] = True
        draw = random.Random(f"{row.seed} {row.count}").random()
        penalized = row.sampling.repetition_penalty != 1.0
        return sample(logits[None], [SamplerInput(row.sampling, seen if penalized else None, draw)])[0]

    def finish(self, number: int) -> None:
        """Do nothing: a step ends when it is started."""
        assert number <= self.started
        self._finished = number

    def step_seconds(self, number: int) -> tuple[float, float]:
        """Seconds from the previous step's end, and of a step."""
        began, ended = self.times[number - 1]
        return began - (self.times[number - 2][1] if number > 1 else 0.0), ended - began

    def sampled_token(self, row: int, count: int) -> int:
        """Token sampled for a row."""
        return self._sampled[row, count]


class MarkovForward:
    """A forward pass whose next token depends on the last two, through what earlier passes left in its own cache: whoever
    trusts a place of the cache that was never rightly filled gets another answer. A small vocabulary repeats itself."""

    vocabulary = 12

    def __init__(self, spread: float = 3.0, seed: int = 0) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(self.vocabulary, self.vocabulary, self.vocabulary, generator=generator) * spread
        self.spans: list[list[Span]] = []
        self._held: dict[tuple[int, int], int] = {}

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Logits after the last `logits` tokens of each span, (rows, V)."""
        import torch

        self.spans.append(list(spans))
        rows = []
        for span in spans:
            for offset, token in enumerate(span.ids):
                self._held[span.slot, span.start + offset] = token
            end = span.start + len(span.ids)
            for position in range(end - span.logits, end):
                rows.append(self.table[self._held.get((span.slot, position - 1), 0), self._held[span.slot, position]])
        return torch.stack(rows)
