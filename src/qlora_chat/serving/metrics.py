"""Numbers for Prometheus, one registry a server.

Scope: what is counted, under which names and in which units. Labels are routes, reasons and kinds from fixed sets:
nothing that a client writes becomes a label.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from qlora_chat.engines import Finish
from qlora_chat.serving.admission import Gate

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)

disable_created_metrics()  # a further series for each, which nobody reads


class Metrics:
    """Counts of one server; safe from any thread."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(f"qlora_chat_{name}", says, labels, registry=registry)

        def histogram(name: str, says: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"qlora_chat_{name}", says, registry=registry, buckets=buckets)

        self.requests = counter("http_requests", "HTTP requests answered", "route", "method", "status")
        self.errors = counter("errors", "requests and answers that failed", "kind")
        self._answers = counter("answers", "answers that ended", "reason")
        self._prompt_tokens = counter("prompt_tokens", "tokens of prompts")
        self._cached_tokens = counter("cached_prompt_tokens", "prompt tokens whose keys and values were still in the cache")
        self._cache_hits = counter("cache_hits", "answers that found a part of their prompt in the cache")
        self._completion_tokens = counter("completion_tokens", "tokens generated")
        self._first_token = histogram("time_to_first_token_seconds", "to the first token, queue included", SECONDS)
        self._queued = histogram("queue_seconds", "from a request to its place in the batch", SECONDS)
        self._rates = histogram("tokens_per_second", "of one answer, after its first token", RATES)
        self._ready = Gauge("qlora_chat_ready", "1 while requests are taken", registry=registry)
        self.watch_ready(lambda: False)

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Read readiness from here."""
        self._ready.set_function(lambda: float(ready()))

    def watch_gate(self, gate: Gate) -> None:
        """Read queue and slots from here."""
        for name, says, read in (
            ("running", "answers being written", lambda: gate.running),
            ("waiting", "requests in the queue", lambda: gate.waiting),
            ("slots", "answers that can be written at once", lambda: gate.places),
            ("queue_limit", "requests that can wait", lambda: gate.queue),
        ):
            Gauge(f"qlora_chat_{name}", says, registry=self._registry).set_function(read)

    def watch_outbox(self, depth: Callable[[], int]) -> None:
        """Read the number of turns that wait for delivery from here."""
        says = "turns that wait to be delivered to LOGGING_URL"
        Gauge("qlora_chat_outbox_depth", says, registry=self._registry).set_function(lambda: float(depth()))

    def began(self, queued: float) -> None:
        """An answer got its place after so many seconds."""
        self._queued.observe(queued)

    def first_token(self, seconds: float) -> None:
        """An answer's first token came."""
        self._first_token.observe(seconds)

    def ended(self, finish: Finish) -> None:
        """An answer ended as it should, or was cancelled."""
        self._answers.labels(finish.reason).inc()
        self._prompt_tokens.inc(finish.prompt_tokens)
        self._cached_tokens.inc(finish.cached_tokens)
        self._cache_hits.inc(finish.cached_tokens > 0)
        self._completion_tokens.inc(finish.completion_tokens)
        if finish.tokens_per_s is not None:
            self._rates.observe(finish.tokens_per_s)

    def failed(self, kind: str) -> None:
        """An answer ended with an error of this kind."""
        self._answers.labels("error").inc()
        self.errors.labels(kind).inc()

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)
