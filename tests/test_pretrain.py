"""A whole run of demo/pretrain.py in a few small steps: from text to a base in NF4 that can be trained on and chatted with."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_chat.models.folders import Base
from qlora_chat.models.locate import BUNDLED
from tests.training.conftest import EXAMPLE, ROOT

KINDS = ("snakes", "classics-child", "classics-simple", "self_dialogue", "tinystories_slices", "dolly-long", "tatoeba")


def compressed(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_bytes(lzma.compress("".join(json.dumps(each) + "\n" for each in records).encode()))
    return path


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_few_steps_write_a_base_of_the_bundled_shape(tmp_path: Path) -> None:
    dialogues = [json.loads(line) for line in EXAMPLE.read_text().splitlines()]
    content = " ".join(message["content"] for each in dialogues for message in each["messages"])
    text = compressed(tmp_path / "text.jsonl.xz", [{"s": kind, "text": content[:6000]} for kind in KINDS for _ in range(4)])
    chat = compressed(tmp_path / "chat.jsonl.xz", dialogues)
    line = [sys.executable, str(ROOT / "demo" / "pretrain.py"), "--text", str(text), "--chat", str(chat)]
    small = ["--out", str(tmp_path / "out"), "--steps", "3", "--rows", "4", "--length", "32"]
    result = subprocess.run([*line, *small], capture_output=True, text=True, timeout=380, check=False)
    assert result.returncode == 0, result.stderr
    assert "step 3: loss" in result.stdout
    before, after = (float(line.split("held out ")[1]) for line in result.stdout.splitlines())
    assert 8 < after < before < 9.5, "it starts at about the logarithm of the vocabulary, 9.01, and falls from the first steps"
    trained, bundled = Base.read(tmp_path / "out" / "base"), Base.read(BUNDLED / "base")
    assert trained.is_nf4
    assert trained.tensors() == bundled.tensors()
    ask = [sys.executable, "-m", "qlora_chat", "ask", "hi", "--base", str(tmp_path / "out" / "base"), "--max-new-tokens", "3"]
    answer = subprocess.run([*ask, "--json"], capture_output=True, text=True, timeout=200, check=False)
    assert answer.returncode == 0, answer.stderr
