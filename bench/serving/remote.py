"""Latency that the remote engine adds to the first token: the same server through it, and directly with the same JSON.

    python bench/serving/remote.py                               our own server with the bundled demo
    python bench/serving/remote.py --shape 7b                    the same with random weights of LLaMA-7B's shape, on a card
    python bench/serving/remote.py --engine http://HOST:8000/v1 --base FOLDER     any server that runs already

The server is in a process of its own. Both clients are in this one and take turns: httpx with a persistent connection reads the
first chunk with text; the remote engine returns its first piece. Every request has a new prompt of 128 tokens and starts when
the previous answer has ended. Before any timing, the greedy text of both is compared. Exits with 1 above 15 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qlora_chat.benchmark.environment import print_report

PAIRS, CONTEXT, NEW = 60, 128, 8
MAX_ADDED_MS = 15.0
MARK = "serving at "


def serve(shape: str | None, layers: int | None) -> None:
    """Serve until standard input ends."""
    from api import served
    from qlora_chat.benchmark import Subject
    from qlora_chat.benchmark.subjects import open_subject
    from qlora_chat.engines.local import LocalEngine
    from qlora_chat.settings import quiet_libraries

    quiet_libraries()
    what = open_subject(Subject(shape or "demo", "auto", "nf4" if shape else "bf16", layers))
    engine = LocalEngine(what.load, 4)
    with served(engine) as port:
        print(f"{MARK}http://127.0.0.1:{port}/v1", flush=True)
        sys.stdin.read()
    engine.close()


@contextlib.contextmanager
def server_process(shape: str | None, layers: int | None):
    """Run the server; yields its address and its process id."""
    arguments = [sys.executable, __file__, "--serve", *(["--shape", shape] if shape else [])]
    arguments += ["--layers", str(layers)] if layers else []
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = next((line for line in process.stdout if line.startswith(MARK)), None)
        if line is None:
            sys.exit("the server did not start; what is above says why")
        try:
            yield line.removeprefix(MARK).strip(), process.pid
        finally:
            process.terminate()


def model_settings(shape: str | None, layers: int | None, folder: Path):
    """Return settings for the server's tokenizer: the demo's, or for a shape its padded one, written to a folder."""
    from qlora_chat.settings import ModelSettings

    if shape is None:
        return ModelSettings(model="demo")
    from qlora_chat.benchmark.shapes import config_of
    from qlora_chat.benchmark.subjects import padded_tokenizer_json

    config = config_of(shape, layers)
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text(json.dumps(padded_tokenizer_json(config["vocab_size"])))
    return ModelSettings(base=str(folder))


class Direct:
    """A plain HTTP client of the server."""

    def __init__(self, url: str, engine) -> None:
        import httpx

        self._client = httpx.Client(timeout=120, trust_env=False)
        self._url, self._engine = f"{url}/completions", engine
        server = engine.pool.servers[0]
        self._dialect = engine._loop.run(server.dialect(engine._model, engine._identity))

    def ask(self, prompt, sampling, stops) -> tuple[float, str]:
        """Return the seconds to the first text, and the whole text."""
        prompt_field = list(prompt.ids) if self._dialect.takes_ids else prompt.text
        body = self._dialect.body(self._engine._model, prompt_field, sampling, stops, sampling.max_new_tokens, sampling.seed)
        began, first, text = time.perf_counter(), 0.0, ""
        with self._client.stream("POST", self._url, json=body) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    chunk: dict[str, Any] = json.loads(line[6:])
                    delta = "".join(choice.get("text") or "" for choice in chunk.get("choices", ()))
                    first = first or (time.perf_counter() - began if delta else 0.0)
                    text += delta
        return first, text


def through_engine(engine, prompt, sampling, stops) -> tuple[float, str]:
    began, first, text = time.perf_counter(), 0.0, ""
    for piece in engine.stream(prompt, sampling, stops):
        first = first or (time.perf_counter() - began if piece.text else 0.0)
        text += piece.text
    return first, text


def fresh_prompt(tokenizer, number: int):
    """Return a new prompt of about 128 tokens, as text and as ids."""
    from qlora_chat.benchmark.subjects import WORDS
    from qlora_chat.prompt import Prompt

    words = random.Random(number)
    text = f"### Human: {' '.join(words.choice(WORDS) for _ in range(CONTEXT - 14))}### Assistant:"
    start = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    return Prompt(text, (*start, *tokenizer.encode(text)))


def measure(url: str, chosen, name: str) -> dict[str, Any]:
    from qlora_chat.engines.remote.engine import open_remote
    from qlora_chat.settings import Sampling, engine_settings
    from qlora_chat.stopping import Stops

    engine = open_remote(chosen, engine_settings(url), lambda line: print(line, file=sys.stderr))
    try:
        direct, sampling, stops = Direct(url, engine), Sampling(temperature=0.0, max_new_tokens=NEW), Stops()
        prompt = fresh_prompt(engine.tokenizer, 0)
        one, other = direct.ask(prompt, sampling, stops)[1], through_engine(engine, prompt, sampling, stops)[1]
        if one.strip() != other.strip() or not one.strip():
            sys.exit(f"the server's greedy text {one!r} is not the engine's {other!r}: timings would be worthless")
        pairs = []
        for number in range(1, PAIRS + 1):
            seconds = {}
            for side in (0, 1) if number % 2 else (1, 0):
                request = fresh_prompt(engine.tokenizer, 2 * number + side), sampling, stops
                seconds[side] = 1000 * (through_engine(engine, *request) if side else direct.ask(*request))[0]
            pairs.append((seconds[0], seconds[1]))
    finally:
        engine.close()
    plain, ours = (statistics.median(each[side] for each in pairs) for side in (0, 1))
    return {
        "server": name,
        "first text, asked directly, ms": round(plain, 2),
        "first text, through the remote engine, ms": round(ours, 2),
        "added at the median, ms": round(ours - plain, 2),
        "added, median of pairs, ms": round(statistics.median(other - one for one, other in pairs), 2),
        "p90 directly and through the engine, ms": [
            round(statistics.quantiles([each[side] for each in pairs], n=10)[-1], 2) for side in (0, 1)
        ],
        "pairs": len(pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=["7b"])
    parser.add_argument("--layers", type=int, help="with --shape: number of layers, for a dry run")
    parser.add_argument("--engine", help="a server that runs already, up to /v1")
    parser.add_argument("--base", help="with --engine: the folder or Hub id whose tokenizer it uses; default: the demo")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.shape, chosen.layers)
        return
    from qlora_chat.settings import ModelSettings

    with tempfile.TemporaryDirectory() as folder:
        if chosen.engine:
            settings = ModelSettings(base=chosen.base) if chosen.base else ModelSettings(model="demo")
            figures = measure(chosen.engine, settings, chosen.engine)
        else:
            with server_process(chosen.shape, chosen.layers) as (url, _):
                settings = model_settings(chosen.shape, chosen.layers, Path(folder))
                figures = measure(url, settings, f"our own, {chosen.shape or 'demo'}")
    print_report("remote", figures)
    if figures["added at the median, ms"] > MAX_ADDED_MS:
        sys.exit(1)


if __name__ == "__main__":
    main()
