"""The API against its own engine: total tokens/s with every stream read over HTTP, and with the engine used directly.

    python bench/serving/api.py                                  the bundled demo, 8 streams
    python bench/serving/api.py --shape 7b --streams 32          random weights of LLaMA-7B's shape, on a card

One engine in one process: used directly by threads, then through the whole server (access control, request log, admission,
routes, and the page if Gradio is installed) by a client in another process that reads raw sockets, then directly again, so
that a drift of the machine shows. Every answer has a new prompt of 128 tokens; T 0.7, top-k 40, top-p 0.9, repetition penalty
1.1. Before any timing, the greedy text of both is compared. Exits with 1 below --least.
Needs torch, tokenizers, safetensors, fastapi, uvicorn, prometheus-client, sqlalchemy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import threading
import time

from qlora_chat.benchmark.environment import print_report

ROUNDS, CONTEXT = 5, 128
SAMPLED = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


class Prompts:
    """New prompts at every call."""

    def __init__(self, what) -> None:
        self._what, self._count = what, 0

    def take(self, count: int) -> list[tuple[int, ...]]:
        self._count += count
        return [self._what.prompt(CONTEXT, number) for number in range(self._count - count, self._count)]


def directly(engine, prompts, new: int) -> float:
    """Return total tokens/s with a thread per stream, as every caller of the engine has one."""
    from qlora_chat.prompt import Prompt
    from qlora_chat.settings import Sampling
    from qlora_chat.stopping import Stops

    sampling = Sampling(**SAMPLED, max_new_tokens=new)
    began = time.perf_counter()
    streams = [engine.stream(Prompt("", ids), sampling, Stops()) for ids in prompts]
    threads = [threading.Thread(target=list, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(prompts) * new / (time.perf_counter() - began)


def greedy_text(engine, ids: tuple[int, ...]) -> str:
    from qlora_chat.prompt import Prompt
    from qlora_chat.settings import Sampling
    from qlora_chat.stopping import Stops

    return "".join(piece.text for piece in engine.stream(Prompt("", ids), Sampling(**GREEDY, max_new_tokens=32), Stops()))


class Client:
    """The process that sends HTTP requests: one line of JSON in, one out."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "client", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, bodies) -> dict:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(bodies) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


def client(port: int) -> None:
    for line in sys.stdin:
        print(json.dumps(asyncio.run(request_together(port, json.loads(line)))), flush=True)


async def request_together(port: int, bodies) -> dict:
    """Send all requests at once; returns the seconds until the last answer ended, and the first answer's text."""
    encoded = [json.dumps(each).encode() for each in bodies]
    began = time.perf_counter()
    answers = await asyncio.gather(*(request(port, each) for each in encoded))
    elapsed = time.perf_counter() - began
    for answer in answers:
        if b" 200 OK" not in answer[:20] or b"data: [DONE]" not in answer or b'"finish_reason":"length"' not in answer:
            sys.exit(f"an answer is incomplete: {answer[:300]!r}")
    events = (line[6:] for line in answers[0].split(b"\n") if line.startswith(b"data: {"))
    text = "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])
    return {"seconds": elapsed, "text": text}


async def request(port: int, body: bytes) -> bytes:
    """Send one request on its own connection and read the answer to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read(-1)
    writer.close()
    return answer


@contextlib.contextmanager
def served(engine):
    """Run the server in a thread with its own event loop; yields its port."""
    import uvicorn

    from qlora_chat.chat import Chat
    from qlora_chat.history.memory import MemoryHistory
    from qlora_chat.prompt import DEFAULT_FORMAT
    from qlora_chat.server.listener import listen, uvicorn_config
    from qlora_chat.server.site import Site
    from qlora_chat.settings import ServeSettings

    settings, chat = ServeSettings(), Chat(engine, DEFAULT_FORMAT, MemoryHistory())
    listening = listen(settings.host, settings.port)
    servers = []

    async def run() -> None:
        site = Site(settings)
        config = uvicorn_config(site.app, shutdown_timeout_s=3, log_level="error", lifespan="off")
        servers.append(uvicorn.Server(config))
        if importlib.util.find_spec("gradio"):
            async with site.open(chat):
                await servers[0].serve(sockets=[listening])
        else:
            site.state.open(chat)
            await servers[0].serve(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    while not (servers and servers[0].started):
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.05)
    try:
        yield listening.getsockname()[1]
    finally:
        servers[0].should_exit = True
        thread.join(20)


def through(engine, prompts: Prompts, streams: int, new: int, rounds: int) -> list[float]:
    """Return rates over HTTP, after comparing the texts and one round of warm-up."""
    with served(engine) as port, contextlib.closing(Client(port)) as http:
        fields = {"model": engine.info.name, "ignore_eos": True, "stream": True}
        ids = prompts.take(1)[0]
        text = http.ask([fields | GREEDY | {"prompt": list(ids), "max_tokens": 32}])["text"]
        if text != greedy_text(engine, ids):
            sys.exit("the API's greedy text is not the engine's: timings would be worthless")

        def once() -> float:
            bodies = [fields | SAMPLED | {"prompt": list(ids), "max_tokens": new} for ids in prompts.take(streams)]
            return streams * new / http.ask(bodies)["seconds"]

        once()
        return [once() for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=["7b"], help="random weights of this shape instead of the bundled demo")
    parser.add_argument("--precision", choices=["nf4", "bf16"])
    parser.add_argument("--layers", type=int, help="with --shape: number of layers, for a dry run")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--least", type=float, default=0.0, help="exit with 1 if API / engine is below this")
    chosen = parser.parse_args()
    from qlora_chat.benchmark import Subject
    from qlora_chat.benchmark.environment import hardware
    from qlora_chat.benchmark.subjects import open_subject
    from qlora_chat.engines.local import LocalEngine
    from qlora_chat.settings import quiet_libraries

    quiet_libraries()
    precision = chosen.precision or ("nf4" if chosen.shape else "bf16")
    what = open_subject(Subject(chosen.shape or "demo", "auto", precision, chosen.layers))
    engine, prompts = LocalEngine(what.load, chosen.streams, print), Prompts(what)
    try:

        def alone(rounds: int) -> list[float]:
            directly(engine, prompts.take(chosen.streams), chosen.tokens)
            return [directly(engine, prompts.take(chosen.streams), chosen.tokens) for _ in range(rounds)]

        before = alone(chosen.rounds)
        over_http = through(engine, prompts, chosen.streams, chosen.tokens, chosen.rounds)
        after = alone(chosen.rounds)
    finally:
        engine.close()
    ratio = statistics.median(over_http) / statistics.median([*before, *after])
    print_report(
        "api",
        {
            "engine": engine.info.name,
            "hardware": hardware(card=what.device.type == "cuda"),
            "streams": chosen.streams,
            "with the page": importlib.util.find_spec("gradio") is not None,
            "engine alone before and after, tokens/s": [round(statistics.median(each), 1) for each in (before, after)],
            "through the API, tokens/s": round(statistics.median(over_http), 1),
            "API / engine": round(ratio, 3),
            "rounds": [[round(rate) for rate in each] for each in (before, over_http, after)],
        },
    )
    if ratio < chosen.least:
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        client(int(sys.argv[2]))
    else:
        main()
