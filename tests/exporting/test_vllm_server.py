"""A real vLLM serves what `export --for vllm` wrote, by the command that it wrote, to our remote engine (`make test-vllm`)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.engines import Engine, Stream
from qlora_chat.engines.local import LocalEngine
from qlora_chat.engines.open import open_engine
from qlora_chat.exporting.vllm import Exported, Layout, export_for_vllm
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT, Prompt
from qlora_chat.settings import ModelSettings, Sampling, engine_settings
from qlora_chat.stopping import Stops

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

GREEDY = Sampling(temperature=0.0, max_new_tokens=64)
END = Stops(frozenset({2}))
"""vLLM ends at the model's own end whatever it is asked."""
STOPS = Stops(frozenset({2}), DEFAULT_FORMAT.stop_texts)
LOGPROB_BOUND = 1e-3
"""Nats between vLLM's float32 and ours: sums in another order."""
QUESTIONS = ("What is the capital of France?", "Tell me a short story about a cat and a boat.", "What is 7 plus 5?")
FIRST, SECOND, BASE = "Llama-Lumi-45M-chat-adapter", "double", "Llama-Lumi-45M"


@dataclass(frozen=True)
class Serving:
    """A vLLM under way."""

    url: str
    made: Exported
    log: Path


def started(demo_cache: Path, folder: Path, layout: Layout, more: dict[str, str]) -> Iterator[Serving]:
    """Run the exported script; only the type, address and port are ours: fp32, so that tokens can be compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CHAT_CACHE", str(demo_cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        made = export_for_vllm(ModelSettings(model="demo"), folder / "model", lambda line: None, layout, more)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _install_command(folder / "bin")
    environ = {
        **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"),
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    command = ["sh", "serve.sh", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    with (folder / "vllm.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=made.folder, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            _await(f"http://127.0.0.1:{port}/health", server, folder / "vllm.log")
            yield Serving(f"http://127.0.0.1:{port}/v1", made, folder / "vllm.log")
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def _install_command(folder: Path) -> None:
    """`vllm serve MODEL ...` as vLLM has it. The build for CPUs is published under another name, and its own command, which
    looks that up, does not start; what it would start does."""
    python = Path(os.environ.get("VLLM_VENV", ".venv-vllm")).absolute() / "bin" / "python"
    folder.mkdir()
    script = folder / "vllm"
    start = f"exec {python} -m vllm.entrypoints.openai.api_server"
    script.write_text(f'#!/bin/sh\nmodel=$2\nshift 2\n{start} --model "$model" "$@"\n')
    script.chmod(0o755)


def _await(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 600
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"vLLM did not answer within 10 minutes: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def merged(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    yield from started(demo_cache, tmp_path_factory.mktemp("merged"), "merged", {})


@pytest.fixture(scope="module")
def unmerged(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The base with two adapters: the bundled one, and one with twice its effect."""
    folder = tmp_path_factory.mktemp("unmerged")
    yield from started(demo_cache, folder, "adapters", {SECOND: str(_doubled(folder / SECOND))})


def _doubled(folder: Path) -> Path:
    from qlora_chat.models.locate import BUNDLED

    folder.mkdir()
    config = json.loads((BUNDLED / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * 2}))
    (folder / "adapter_model.safetensors").write_bytes((BUNDLED / "adapter" / "adapter_model.safetensors").read_bytes())
    return folder


def opened(serving: Serving, name: str | None = None) -> Engine:
    """The engine as `serve --engine URL --base FOLDER` opens it."""
    settings = ModelSettings(base=str(serving.made.folder))
    return open_engine(settings, lambda line: None, engine_settings(serving.url, name))


def ids_of(stream: Stream) -> list[int]:
    return [piece.token_id for piece in stream if piece.token_id is not None]


def save_tokens(name: str, tokens: dict[str, Any], serving: Serving) -> None:
    """Leave tokens and the server's log where VLLM_KEEP says, for a report."""
    if folder := os.environ.get("VLLM_KEEP"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.json").write_text(json.dumps(tokens))
        (Path(folder) / f"{name}.log").write_bytes(serving.log.read_bytes())


def test_greedy_answers_are_the_local_engines(
    merged: Serving, shared_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    engine = opened(merged)
    theirs = {each: ids_of(engine.stream(prompt_for(each), GREEDY, END)) for each in QUESTIONS}
    ours = {each: ids_of(shared_engine.stream(prompt_for(each), GREEDY, END)) for each in QUESTIONS}
    save_tokens("merged", {"vllm": theirs, "local": ours}, merged)
    assert theirs == ours
    stopped = list(engine.stream(prompt_for(QUESTIONS[0]), GREEDY, STOPS))
    assert "".join(piece.text for piece in stopped) == " The capital of France is Paris."
    engine.close()


@pytest.mark.parametrize("sampling", [GREEDY, GREEDY.changed(repetition_penalty=1.3)], ids=["plain", "penalty"])
def test_log_probabilities_are_the_local_engines(
    sampling: Sampling, merged: Serving, shared_engine: LocalEngine, prompt_for: Callable[..., Prompt]
) -> None:
    asked, prompt, engine = sampling.changed(logprobs=5, max_new_tokens=24), prompt_for(QUESTIONS[1]), opened(merged)
    theirs, ours = (
        [piece for piece in each.stream(prompt, asked, END) if piece.token_id is not None] for each in (engine, shared_engine)
    )
    engine.close()
    told = [[(piece.token_id, piece.logprob, piece.top_logprobs) for piece in each] for each in (theirs, ours)]
    save_tokens(f"logprobs-{sampling.repetition_penalty}", {"vllm": told[0], "local": told[1]}, merged)
    assert [piece.token_id for piece in theirs] == [piece.token_id for piece in ours]
    for remote, local in zip(theirs, ours, strict=True):
        assert remote.logprob == pytest.approx(local.logprob, abs=LOGPROB_BOUND), "the model's own, before any penalty"
        assert len(remote.top_logprobs) == len(local.top_logprobs) == 5
        values = [[value for _, value in piece.top_logprobs] for piece in (remote, local)]
        assert values[0] == pytest.approx(values[1], abs=LOGPROB_BOUND)
        assert remote.top_logprobs[0][0] == local.top_logprobs[0][0]


def test_a_slider_acts_in_mid_answer(merged: Serving, shared_engine: LocalEngine, prompt_for: Callable[..., Prompt]) -> None:
    engine = opened(merged)
    prompt = prompt_for(QUESTIONS[1])
    stream = engine.stream(prompt, Sampling(temperature=1.5, seed=3, max_new_tokens=60), END)
    ids, changed = [], 0
    for piece in stream:
        ids.append(piece.token_id or 0)
        if len(ids) == 10:
            stream.update(GREEDY.changed(max_new_tokens=60))
        changed = changed or (len(ids) if len(ids) > 10 else 0)
    for late in range(10, 50):  # tokens that were under way when it moved
        begun = Prompt("", (*prompt.ids, *ids[:late]))
        if ids_of(shared_engine.stream(begun, GREEDY.changed(max_new_tokens=60 - late), END)) == ids[late:]:
            break
    else:
        pytest.fail("the answer did not become greedy")
    engine.close()


def test_a_cancelled_answer_is_off_the_server_within_a_second(merged: Serving, prompt_for: Callable[..., Prompt]) -> None:
    engine = opened(merged)
    stream = engine.stream(prompt_for(QUESTIONS[1]), Sampling(temperature=0.0, max_new_tokens=400), END)
    pieces = iter(stream)
    for _ in range(3):
        next(pieces)
    assert _running(merged) == 1
    stream.cancel()
    until = time.monotonic() + 5
    while _running(merged) and time.monotonic() < until:
        time.sleep(0.1)
    assert _running(merged) == 0
    engine.close()


def _running(serving: Serving) -> int:
    with urllib.request.urlopen(serving.url.replace("/v1", "/metrics"), timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("vllm:num_requests_running{"))


def test_its_own_chat_route_reads_our_format(merged: Serving) -> None:
    body = {"model": merged.made.name, "messages": [{"role": "user", "content": QUESTIONS[0]}], "temperature": 0,
            "max_tokens": 40, "stop": list(STOPS.texts)}  # fmt: skip
    request = urllib.request.Request(
        merged.url + "/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        said = json.loads(response.read())["choices"][0]["message"]["content"]
    assert said.strip() == "The capital of France is Paris."


def expected_ids(prompt: Prompt, scale: int) -> list[int]:
    """Greedy tokens of the demo's base in bf16 with the adapter unmerged, by plain Transformers and PEFT in fp32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from qlora_chat.models.locate import BUNDLED

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(BUNDLED / "base", dtype=torch.bfloat16).dequantize().to(torch.bfloat16)
        model = PeftModel.from_pretrained(base.float(), str(BUNDLED / "adapter")).eval()
    for module in model.modules():
        scaling: Any = getattr(module, "scaling", None)
        if isinstance(scaling, dict):
            scaling["default"] *= scale
    ids = torch.tensor([prompt.ids])
    settings = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": 2, "pad_token_id": 0}
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt.ids) :].tolist()
    return [each for each in made if each != 2]


def test_an_adapter_is_chosen_by_its_name(unmerged: Serving, prompt_for: Callable[..., Prompt]) -> None:
    engine, prompt = opened(unmerged, FIRST), prompt_for(QUESTIONS[1])
    names = {FIRST: 1, SECOND: 2, BASE: 0}
    streams = {name: engine.stream(prompt, GREEDY, END, name) for name in (FIRST, SECOND)}  # in one batch
    tokens = {name: ids_of(stream) for name, stream in streams.items()}
    # On a CPU vLLM takes the index -1, which means no adapter, for the last one where a batch has others
    # (lora/ops/torch_ops/lora_ops.py), so the base is asked alone; its kernels for cards leave such rows out.
    tokens[BASE] = ids_of(engine.stream(prompt, GREEDY, END, BASE))
    expected = {name: expected_ids(prompt, scale) for name, scale in names.items()}
    save_tokens("adapters", {"vllm": tokens, "transformers and PEFT": expected}, unmerged)
    assert tokens == expected
    assert len({tuple(each) for each in tokens.values()}) == 3, "the three differ, so it was the name that chose"
    with pytest.raises(ValueError, match="'unknown' is not loaded; the servers have: "):
        engine.stream(prompt, GREEDY, END, "unknown")
    engine.close()


def test_a_conversation_goes_through_the_whole_flow(unmerged: Serving) -> None:
    chat = Chat(opened(unmerged, FIRST), DEFAULT_FORMAT, MemoryHistory())
    first = chat.reply(Conversation(), "My name is Tom.", AnswerOptions(GREEDY))
    list(first)
    second = chat.reply(first.conversation, "What is my name?", AnswerOptions(GREEDY))
    list(second)
    assert "Tom" in second.answer
    chat.engine.close()
