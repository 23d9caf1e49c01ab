"""Old pickled adapters -> safetensors, without unpickling in this process.

Scope: starts models/adapter/unpickle.py as a program of its own and saves its output. Knows nothing of merging.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, read_adapter_config
from qlora_chat.models.cache import check_new_folder, new_folder, sha256, write_record
from qlora_chat.models.trust import own_file

_SECONDS = 900
_REFUSED = 3
"""Exit status of unpickle.py for a file that is no plain table of tensors."""


def convert_adapter(source: Path, target: Path) -> None:
    """Write the PEFT adapter in `source` (adapter_model.bin) to the new folder `target` as safetensors.

    ModelError if the pickle holds anything but LoRA tensors, or if `target` exists already.
    """
    check_new_folder(target)
    try:
        with new_folder(target) as folder:
            write_record(folder, convert_into(source, folder))
    except OSError as problem:
        raise ModelError(f"{target} cannot be written ({problem})") from problem


def convert_into(source: Path, folder: Path) -> dict[str, object]:
    """Convert into an existing empty folder; returns the record of the source."""
    read_adapter_config(source)
    pickled = source / ADAPTER_PICKLE
    if not pickled.is_file():
        raise ModelError(f"{source} holds no {ADAPTER_PICKLE}; there is nothing to convert")
    _unpickle_in_subprocess(own_file(pickled), folder / ADAPTER_WEIGHTS)
    shutil.copyfile(source / ADAPTER_CONFIG, folder / ADAPTER_CONFIG)
    return {"converted_from": {"file": ADAPTER_PICKLE, "sha256": sha256(pickled)}}


def _unpickle_in_subprocess(pickled: Path, target: Path) -> None:
    program = Path(__file__).with_name("unpickle.py")
    command = [sys.executable, "-I", str(program), str(pickled.resolve()), str(target.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False, env={})
    except subprocess.TimeoutExpired as problem:
        raise ModelError(f"{pickled} was not converted within {_SECONDS} s; it is refused") from problem
    reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGXFSZ):
        raise ModelError(f"{pickled} is refused: it took more time or memory than an adapter of its size needs")
    if done.returncode not in (0, _REFUSED):
        raise ModelError(f"{pickled} could not be converted ({reason})")
    if done.returncode:
        raise ModelError(f"{pickled} is refused: {reason}. Get the adapter as safetensors from someone you trust")
