"""Makes the files in samples/ with the program as it is: `python -m tests.formats.make_samples FOLDER`.

The samples in this folder were made on 2026-11-29 at commit 92a082a, and stay as they are: their use is that they are old. Run
this again only to make samples of a later version beside them, in a folder of their own.

Almost everything is done through the command line, in processes, against servers on loopback. FOLDER must not exist.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file, save_file

from tests.fakes import ScriptedEngine, ScriptedServer, demo_tokens
from tests.postgres import new_database, postgres, programs

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "src" / "qlora_chat" / "bundled"
HISTORY_KEY = "c2FtcGxlLWtleS1mb3ItdGVzdHMtb25seS0wMDAwMDA="
"""32 bytes in base64, for the encrypted sample and nothing else."""
NOBODY_LISTENS = "http://127.0.0.1:9/log"
VOCABULARY = 384

CONVERSATIONS: dict[str, list[str]] = {
    "Where is the lighthouse?": ["On the north coast.", "It stands on the north coast, above the harbour."],
    "Who keeps it?": ["Nobody since 1987; it runs by itself."],
    "Say hello in German and Japanese, with a fox.": ["Grüße aus Zürich! \U0001f98a こんにちは, 世界."],
    "What is for dinner?": ["Soup, and bread from yesterday."],
    "Tell me a long story.": ["Once upon a time there was a miller who had three sons, a mill, a donkey and a cat. " * 4],
    "Which harbour is the deepest?": ["The one in the south."],
    "Is it deep enough for ferries?": ["Yes, for small ones."],
    "Is this secret?": ["Only as secret as its key."],
    "Plain files, please.": ["Here is a line of JSON."],
}
"""Question -> its answers, in the order in which they are asked for."""


class Maker:
    """A folder of samples being made."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made; a folder beside it holds what is not kept."""
        self.folder, self.scratch = folder, folder.with_name(f"{folder.name}-scratch")
        folder.mkdir(parents=True)
        self.scratch.mkdir()

    def environment(self, **more: str) -> dict[str, str]:
        """Nothing of the user's."""
        known = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
        return {
            **known, "PYTHONPATH": str(ROOT / "src"), "HOME": str(self.scratch), "HF_HOME": str(self.scratch / "hf"),
            "TZ": "UTC", "HF_HUB_OFFLINE": "1", "QLORA_CHAT_CACHE": str(self.scratch / "cache"), **more,
        }  # fmt: skip

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """`qlora-chat ARGUMENTS` in the samples' folder, so that what it records are relative names."""
        return subprocess.Popen(
            [sys.executable, "-m", "qlora_chat", *arguments], cwd=self.folder, env=self.environment(**more), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, typed: str | None = None, **more: str) -> str:
        """The same to its end, which must be a good one; -> what it printed."""
        process = self.start(*arguments, **more)
        out, errors = process.communicate(typed, timeout=300)
        print(f"$ qlora-chat {' '.join(arguments)}\n{out[-500:]}{errors[-800:]}", flush=True)
        if process.returncode:
            raise SystemExit(f"{arguments} ended with {process.returncode}")
        return out


# --- models ----------------------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path) -> None:
    """The demo's tokenizer cut down to its bytes, letters and first merges."""
    whole = json.loads((BUNDLED / "base" / "tokenizer.json").read_text())
    model = whole["model"]
    by_id = sorted(model["vocab"], key=model["vocab"].get)
    first, letters = by_id[:259], [each for each in by_id[259:] if len(each) == 1]
    merged = [each for each in by_id[259:] if len(each) > 1][: VOCABULARY - len(first) - len(letters)]
    kept = [*first, *merged, *letters]
    model["vocab"] = {token: number for number, token in enumerate(kept)}
    parts = {*kept}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= parts]
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(BUNDLED / "base" / name, folder / name)


def write_base(folder: Path) -> None:
    """A LLaMA of one layer in bf16, its random weights large, so that its likeliest token is so by far."""
    folder.mkdir()
    write_tokenizer(folder)
    hidden, between, heads, kv_heads = 64, 64, 2, 1
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": 1,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 32, "intermediate_size": between,
        "vocab_size": VOCABULARY, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    layer = "model.layers.0"
    sizes = {
        "model.embed_tokens": (VOCABULARY, hidden), f"{layer}.self_attn.q_proj": (hidden, hidden),
        f"{layer}.self_attn.k_proj": (32, hidden), f"{layer}.self_attn.v_proj": (32, hidden),
        f"{layer}.self_attn.o_proj": (hidden, hidden), f"{layer}.mlp.gate_proj": (between, hidden),
        f"{layer}.mlp.up_proj": (between, hidden), f"{layer}.mlp.down_proj": (hidden, between),
        f"{layer}.input_layernorm": (hidden,), f"{layer}.post_attention_layernorm": (hidden,), "model.norm": (hidden,),
        "lm_head": (VOCABULARY, hidden),
    }  # fmt: skip
    random = torch.Generator().manual_seed(7)
    tensors = {
        f"{name}.weight": (torch.ones(size) if "norm" in name else torch.randn(size, generator=random) * 0.4).bfloat16()
        for name, size in sizes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_pickled_adapter(adapter: Path, folder: Path) -> None:
    """An adapter as PEFT wrote them in 2023, from one in safetensors: with other weights, so that the two are not alike."""
    folder.mkdir(parents=True)
    shutil.copyfile(adapter / "adapter_config.json", folder / "adapter_config.json")
    random = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(tensor.shape, generator=random) * 0.05
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
    }
    torch.save(tensors, folder / "adapter_model.bin")


def publish(maker: Maker, repository: str, folder: Path) -> None:
    """Put a folder where the Hub's client would have downloaded it."""
    root = maker.scratch / "hf" / "hub" / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folder, root / "snapshots" / ("a" * 40))


def make_models(maker: Maker) -> None:
    """Base, dialogues, a finished run, one that was interrupted, what is made of them, and the cache of all this."""
    folder = maker.folder
    write_base(folder / "base")
    lines = (ROOT / "examples" / "dialogues.jsonl").read_text().splitlines()
    short = [line for line in lines if len(json.loads(line)["messages"]) == 2]
    (folder / "dialogues.jsonl").write_text("\n".join(short[:16]) + "\n")
    tuned = [
        "train", "--base", "base", "--data", "dialogues.jsonl", "--r", "4", "--alpha", "8", "--batch", "4",
        "--max-length", "64", "--steps", "30", "--save-every", "2", "--eval-every", "10", "--held-out", "0.2",
        "--learning-rate", "0.002",
        "--device", "cpu",
    ]  # fmt: skip
    maker.run(*tuned, "--out", "adapter")
    interrupt_run(maker, [*tuned, "--out", "run"])

    both = ["--base", "base", "--adapter", "adapter", "--device", "cpu"]
    for precision in ("bf16", "nf4"):
        maker.run("ask", "Hi", *both, "--precision", precision, "--max-new-tokens", "8")
    maker.run("merge", *both, "--out", "merged", "--form", "bf16", "--data", "dialogues.jsonl", "--force")

    pickled = maker.scratch / "pickled"
    write_pickled_adapter(folder / "adapter", pickled)
    maker.run("convert-adapter", str(pickled), "converted")
    publish(maker, "timdettmers/guanaco-7b", pickled)
    hub = ("--base", "base", "--adapter", "timdettmers/guanaco-7b", "--device", "cpu", "--precision", "nf4")
    maker.run("ask", "Hi", *hub, "--max-new-tokens", "8")
    for kind in ("merged", "adapters"):
        left_out = shutil.ignore_patterns("timdettmers*") if kind == "merged" else None  # made again in a moment
        shutil.copytree(maker.scratch / "cache" / kind, folder / "cache" / kind, ignore=left_out)
    shutil.rmtree(folder / "adapter" / "checkpoints")
    for picture in folder.glob("*/loss.png"):
        picture.unlink()


def interrupt_run(maker: Maker, arguments: list[str]) -> None:
    """Ctrl-C after the first checkpoints."""
    process = maker.start(*arguments)
    while process.poll() is None and len([*maker.folder.glob("run/checkpoints/step-*")]) < 2:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode != 130:
        raise SystemExit(f"the run was to be interrupted: {process.returncode} {errors}")


def make_evaluations(maker: Maker) -> None:
    """Reports, blind sheets and choices."""
    folder = maker.folder / "eval"
    folder.mkdir()
    both = ["--base", "base", "--adapter", "adapter", "--device", "cpu"]
    questions = (ROOT / "src/qlora_chat/evaluation/questions.jsonl").read_text().splitlines()
    (folder / "asked.jsonl").write_text("\n".join(questions[:4]) + "\n")
    (folder / "prompts.txt").write_text("Say something.\nSay something else.\nAnd now?\n")
    (folder / "choices.txt").write_text("1\n2\n=\n")
    maker.run("eval", "questions", *both, "--file", "eval/asked.jsonl", "--seeds", "1", "--out", "eval")
    maker.run("eval", "perplexity", "dialogues.jsonl", *both, "--out", "eval")
    pair = ["eval", "ab", "eval/prompts.txt", *both, "--against", "converted"]
    maker.run(*pair, "--sheet", "eval/sheet.jsonl")
    maker.run(*pair, "--judge", "eval/choices.txt", "--out", "eval")
    for picture in folder.glob("*.png"):
        picture.unlink()


# --- records ---------------------------------------------------------------------------------------------------------


@contextmanager
def posted_to(status: int) -> Iterator[tuple[str, list[bytes]]]:
    """A receiver that answers with a status; -> its address, and the bodies that it got."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/log", bodies
        finally:
            server.shutdown()
            thread.join()


def make_records(maker: Maker) -> None:
    """What a receiver is sent of one answer by the tiny model, in both versions. No token's runner-up comes near it (0.29 of
    logits whose rounding in bf16 is 0.03), so that another machine's order of adding up makes the same answer.
    """
    (maker.folder / "records").mkdir()
    asked = [
        "ask",
        "Tell me about the sea.",
        "--base",
        "base",
        "--adapter",
        "adapter",
        "--device",
        "cpu",
        "--precision",
        "bf16",
    ]
    for version in ("1", "2"):
        with posted_to(200) as (url, bodies):
            drawn = ("--temperature", "0", "--seed", "11", "--max-new-tokens", "10")
            maker.run(*asked, *drawn, LOGGING_URL=url, LOGGING_VERSION=version)
        (maker.folder / "records" / f"v{version}.json").write_bytes(bodies[0])


# --- histories -------------------------------------------------------------------------------------------------------


@contextmanager
def answering() -> Iterator[ScriptedServer]:
    """A server that gives CONVERSATIONS' answers, each question's in turn."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(BUNDLED / "base" / "tokenizer.json"))
    server, given = ScriptedServer(demo_tokens("")), dict[str, int]()

    def reply(request: dict[str, Any]) -> Iterator[Any]:
        prompt = request["prompt"] if isinstance(request["prompt"], str) else tokenizer.decode(request["prompt"])
        question = next((each for each in CONVERSATIONS if prompt.rstrip().endswith(f"{each}### Assistant:")), None)
        text = "ok"
        if question:
            texts = CONVERSATIONS[question]
            text = texts[min(given.get(question, 0), len(texts) - 1)]
            given[question] = given.get(question, 0) + 1
        server.answer = demo_tokens(f" {text}")
        yield from server.says(request)

    server.reply = reply
    try:
        yield server
    finally:
        server.stop()


def make_histories(maker: Maker) -> None:
    """SQLite with all that a history can hold, the same kept encrypted and as plain files, and an outbox of its own."""
    waits = {"LOGGING_URL": NOBODY_LISTENS, "LOGGING_VERSION": "2"}
    database = ("--history", "sqlite:///chats.db")
    with answering() as server:
        there = ("--model", "demo", "--engine", server.url)
        with posted_to(400) as (refusing, _):
            maker.run("ask", "What is for dinner?", *there, *database, LOGGING_URL=refusing, LOGGING_VERSION="2")
        typed = ["Where is the lighthouse?", "/retry", "Who keeps it?", "/set temperature 0.3", "/clear",
                 "/system Be brief. Grüße!", "Say hello in German and Japanese, with a fox.", "/exit"]  # fmt: skip
        maker.run("chat", *there, *database, typed="\n".join(typed), **waits)
        maker.run("ask", "Is it deep enough for ferries?", *there, *database, LOGGING_URL=NOBODY_LISTENS, LOGGING_VERSION="1")
        maker.run("ask", "Which harbour is the deepest?", *there, *database, **waits)
        keep_through_api(maker, there, database, waits)
        cut_off(maker, server, (*there, *database))

        maker.run("chat", *there, *database[:1], "sqlite:///sealed.db", typed="Is this secret?\n/exit",
                  QLORA_CHAT_HISTORY_KEY=HISTORY_KEY, **waits)  # fmt: skip
        typed = ["Plain files, please.", "Where is the lighthouse?", "/retry", "/exit"]
        maker.run("chat", *there, "--history", "jsonl:plain", typed="\n".join(typed),
                  LOGGING_OUTBOX="outbox.db", **waits)  # fmt: skip
    rate(maker)
    erase_one(maker, database, waits)
    (maker.folder / "exports").mkdir()
    for form in ("json", "jsonl", "guanaco", "markdown"):
        maker.run("history", "export", *database, "--format", form, "--out", f"exports/chats.{form}")


def keep_through_api(maker: Maker, there: tuple[str, ...], database: tuple[str, ...], waits: dict[str, str]) -> None:
    """Two turns that a client asks to be kept, with metadata, under a token of its own."""
    secrets = {"QLORA_CHAT_TOKEN": "page-password", "QLORA_CHAT_API_TOKENS": "client-token"}
    with serving(maker, "serve", *there, *database, **secrets, **waits) as url:
        spoken: list[dict[str, str]] = []
        for question in ("Which harbour is the deepest?", "Is it deep enough for ferries?"):
            spoken.append({"role": "user", "content": question})
            metadata = {"conversation_id": "harbours", "project": "ferry"}
            request = {"model": "Llama-Lumi-45M (demo)", "messages": spoken, "store": True, "metadata": metadata}
            headers = {"Authorization": "Bearer client-token"}
            answered = httpx.post(f"{url}/v1/chat/completions", json=request, headers=headers, timeout=60)
            answered.raise_for_status()
            spoken.append(answered.json()["choices"][0]["message"])


@contextmanager
def serving(maker: Maker, *arguments: str, **more: str) -> Iterator[str]:
    """A server of ours until the block ends; -> its address."""
    process = maker.start(*arguments, **more)
    assert process.stderr
    try:
        url = ""
        while not url:
            line = process.stderr.readline()
            assert line, "the server ended"
            found = re.search(r"(?:ready: |LOGGING_URL=)(http://[^\s/]+)", line)
            url = found.group(1) if found else ""
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def cut_off(maker: Maker, server: ScriptedServer, options: tuple[str, ...]) -> None:
    """Kill the program in the middle of an answer, which leaves a part of it."""
    server.delay = 0.05
    process = maker.start("chat", *options, PYTHONUNBUFFERED="1")
    assert process.stdin
    assert process.stdout
    process.stdin.write("Tell me a long story.\n")
    process.stdin.flush()
    process.stdout.read(60)
    time.sleep(1)  # it is written twice a second
    process.kill()
    process.wait()
    server.delay = 0.0


def opened(maker: Maker, url: str) -> Any:
    """A chat over the history, as the page has it."""
    from qlora_chat.chat import Chat
    from qlora_chat.cli.open import Persistence
    from qlora_chat.prompt import DEFAULT_FORMAT
    from qlora_chat.settings import HistorySettings, LogSettings

    keeping = Persistence(HistorySettings(url), LogSettings(url=NOBODY_LISTENS, version=2), patience=1.0)
    return keeping, Chat(ScriptedEngine("Mine alone."), DEFAULT_FORMAT, keeping.store, keeping.recorder)


def rate(maker: Maker) -> None:
    """Thumbs up with an edit and a comment, and thumbs down, as the page's buttons do it: the command line has none.

    And a conversation with an owner, which a server gives that listens beyond loopback.
    """
    from qlora_chat.chat import AnswerOptions
    from qlora_chat.history import Feedback
    from qlora_chat.messages import Conversation
    from qlora_chat.settings import Sampling

    listed = json.loads(maker.run("history", "list", "--history", "sqlite:///chats.db", "--json"))
    keeping, chat = opened(maker, f"sqlite:///{maker.folder}/chats.db")
    with closing(keeping):
        for _ in chat.reply(Conversation(), "Whose is this?", AnswerOptions(Sampling(seed=5), owner="f" * 64)):
            pass
        thanks: dict[str, Any] = {"rating": 1, "edited": "On the north coast, above the harbour.", "comment": "Nearly: schön!"}
        for title, said in (
            ("Where is the lighthouse?", thanks),
            ("Say hello", dict[str, Any](rating=-1)),
        ):  # fmt: skip
            found = next(each["id"] for each in listed if each["title"].startswith(title))
            answer = next(each for each in reversed(keeping.store.load(found).messages) if each.role == "assistant")
            if title.startswith("Where"):
                answer = keeping.store.load(found).messages[1]
            chat.save_feedback(found, Feedback(answer.id, **said))


def erase_one(maker: Maker, database: tuple[str, ...], waits: dict[str, str]) -> None:
    """A conversation of which only a tombstone is left."""
    listed = json.loads(maker.run("history", "list", *database, "--json"))
    asked = [each["id"] for each in listed if each["title"].startswith("Which harbour") and not each["tags"]]
    maker.run("history", "erase", asked[0], "--yes", *database, **waits)


def make_received(maker: Maker) -> None:
    """What a receiver keeps once all that waits, and both records, have come."""
    copied = maker.scratch / "chats.db"
    shutil.copyfile(maker.folder / "chats.db", copied)
    with serving(maker, "logs", "serve", "--store", "sqlite:///received.db", "--port", "9753") as url:
        for version in ("v1", "v2"):
            body = (maker.folder / "records" / f"{version}.json").read_bytes()
            httpx.post(f"{url}/log", content=body, headers={"Content-Type": "application/json"}).raise_for_status()
        time.sleep(2)  # so that none of the first tries counts as too recent
        for _ in range(3):
            maker.run("history", "list", "--history", f"sqlite:///{copied}", LOGGING_URL=f"{url}/log", LOGGING_VERSION="2")


def make_dump(maker: Maker) -> None:
    """The SQLite history's conversations in PostgreSQL, as pg_dump writes them."""
    binaries = programs()
    assert binaries
    with postgres() as server:
        url = new_database(server)
        found = re.fullmatch(r"postgresql://postgres@/(\w+)\?host=([^&]+)&port=(\d+)", url)
        assert found
        maker.run("history", "import", "exports/chats.json", "--history", url)
        name, host, port = found.groups()
        where = ["-h", host, "-p", port, "-U", "postgres"]
        dump = [binaries / "pg_dump", *where, "--no-owner", "--no-privileges", "--inserts", name]
        text = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
    for_psql = re.compile(r"^\\(un)?restrict .*\n", re.MULTILINE)  # its own commands, which no server knows
    (maker.folder / "history.sql").write_text(for_psql.sub("", text))


def tidy(maker: Maker) -> None:
    """Whole files only: what SQLite keeps beside an open database is folded in by its last close."""
    left = [path for path in maker.folder.rglob("*") if path.name.endswith(("-wal", "-shm"))]
    assert all(path.stat().st_size == 0 or not path.name.endswith("-wal") for path in left), left
    for reserve in maker.folder.glob("*-reserve"):  # 2 MB of room for a full disk, made again where it is missing
        reserve.unlink()
    shutil.rmtree(maker.scratch)


STEPS: tuple[Callable[[Maker], None], ...] = (
    make_models, make_evaluations, make_records, make_histories, make_received, make_dump, tidy,
)  # fmt: skip


def main() -> None:
    """Make everything."""
    maker = Maker(Path(sys.argv[1]).resolve())
    for step in STEPS:
        step(maker)


if __name__ == "__main__":
    main()
