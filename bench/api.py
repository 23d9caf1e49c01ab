"""What the API costs on top of the engine: eight streams of the bundled demo, straight and through HTTP.

    python bench/api.py

Both ways run in processes of their own, in turns, five times; medians of the ratio. The engine alone is read by eight threads;
through the API, the server holds the engine and a client in another process reads eight streams from raw sockets. Both share
this machine's cores with what they measure. Before any timing, the greedy text of both is compared.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time

from common import report
from engine import open_local, prompt_ids

STREAMS, NEW, ROUNDS = 8, 200, 5
SAMPLED = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}


def straight() -> dict[str, float]:
    """Tokens a second in total from the engine alone, after one round to warm up."""
    from qlora_chat.prompt import Prompt
    from qlora_chat.settings import Sampling
    from qlora_chat.stopping import Stops

    engine = open_local()
    prompt, sampling = Prompt("", tuple(prompt_ids(engine.tokenizer))), Sampling(**SAMPLED, max_new_tokens=NEW)

    def once() -> float:
        streams = [engine.stream(prompt, sampling, Stops()) for _ in range(STREAMS)]
        threads = [threading.Thread(target=list, args=(stream,)) for stream in streams]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return STREAMS * NEW / (time.perf_counter() - began)

    once()
    rate = once()
    greedy = Sampling(temperature=0.0, max_new_tokens=32)
    text = "".join(piece.text for piece in engine.stream(prompt, greedy, Stops()))
    engine.close()
    return {"rate": rate, "text": text}  # type: ignore[dict-item]


SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from engine import open_local
from qlora_chat.chat import Chat
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import ServeSettings
from qlora_chat.web.app import serve
chat = lambda: Chat(open_local(), DEFAULT_FORMAT, MemoryHistory())
serve(chat, ServeSettings(), lambda line: print(line, flush=True), logging_on=False)
"""


def through() -> dict[str, float]:
    """The same through a server in another process."""
    from pathlib import Path

    from qlora_chat.models.resolve import BUNDLED
    from qlora_chat.models.tokenizer import ModelTokenizer

    ids = prompt_ids(ModelTokenizer.read(BUNDLED / "base", bos_id=1))
    folder = str(Path(__file__).parent)
    with subprocess.Popen([sys.executable, "-c", SERVER, folder], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        port = int(server.stdout.readline().rsplit(":", 1)[1].strip().strip("/"))
        try:
            return asyncio.run(drive(port, ids))
        finally:
            server.kill()


async def drive(port: int, ids: list[int]) -> dict[str, float]:
    model = json.loads((await request(port, "GET", "/v1/models", b"")).split(b"\r\n\r\n", 1)[1])["data"][0]["id"]
    wanted = {"model": model, "prompt": ids, "max_tokens": NEW, "ignore_eos": True, "stream": True, **SAMPLED}
    body = json.dumps(wanted).encode()

    async def once() -> float:
        began = time.perf_counter()
        answers = await asyncio.gather(*(request(port, "POST", "/v1/completions", body) for _ in range(STREAMS)))
        elapsed = time.perf_counter() - began
        assert all(answer.rstrip().endswith(b"0") and b"[DONE]" in answer and b'"length"' in answer for answer in answers)
        return STREAMS * NEW / elapsed

    await once()
    rate = await once()
    greedy = json.dumps(wanted | {"temperature": 0, "top_p": 0.9, "repetition_penalty": 1, "max_tokens": 32, "stream": False})
    whole = await request(port, "POST", "/v1/completions", greedy.encode())
    return {"rate": rate, "text": json.loads(whole.split(b"\r\n\r\n", 1)[1])["choices"][0]["text"]}


async def request(port: int, method: str, path: str, body: bytes) -> bytes:
    """One request on a connection of its own, read to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read(-1)
    writer.close()
    return answer


def child(name: str):
    run = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    rounds = [(child("straight"), child("through")) for _ in range(ROUNDS)]
    if any(one["text"] != other["text"] for one, other in rounds):
        sys.exit("the API's greedy text is not the engine's: no timing is worth anything")
    ratios = [other["rate"] / one["rate"] for one, other in rounds]
    report(
        "api",
        {
            "engine alone, tokens/s": round(statistics.median(one["rate"] for one, _ in rounds), 1),
            "through the API, tokens/s": round(statistics.median(other["rate"] for _, other in rounds), 1),
            "API / engine": round(statistics.median(ratios), 3),
            "API / engine, rounds": [round(each, 3) for each in ratios],
        },
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"straight": straight, "through": through}[sys.argv[1]]()))
    else:
        main()
