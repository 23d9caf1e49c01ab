"""The Hugging Face Hub: what of it is on this machine, and fetching the rest.

Scope: repositories, revisions and files. Downloads go through huggingface_hub, which shows progress, resumes, and
honours HF_TOKEN and HF_ENDPOINT. Knows nothing of what the files mean beyond which ones are worth fetching.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from qlora_chat.models import ModelError, Notify
from qlora_chat.models.folders import RECORD

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BASE_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_BASE_SMALL = ("config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
               "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")  # fmt: skip
_ADAPTER_SMALL = ("adapter_config.json", RECORD)
_PICKLED = (".bin", ".pt", ".pth")
ADAPTER_PICKLE = "adapter_model.bin"

Choose = Callable[[str, Sequence[str]], list[str]]
"""(repository, its file names) -> those to fetch; ModelError where none will do."""


def is_hub_id(text: str) -> bool:
    """Whether text looks like owner/name."""
    return _ID.fullmatch(text) is not None


def base_files(repository: str, names: Sequence[str]) -> list[str]:
    """Safetensors, configs and tokenizer of a base. ModelError where the weights are pickles only."""
    weights = [name for name in names if _BASE_WEIGHTS.fullmatch(name)]
    if weights:
        return [*weights, *(name for name in _BASE_SMALL if name in names)]
    if any(name.endswith(_PICKLED) for name in names):
        raise ModelError(
            f"{repository} holds only pickled weights, which can run code when read; use a copy of the model with *.safetensors"
        )
    raise ModelError(f"{repository} holds no model*.safetensors; give a LLaMA-family model")


def adapter_files(repository: str, names: Sequence[str]) -> list[str]:
    """An adapter's safetensors and config. ModelError names the command that converts a pickle."""
    if "adapter_model.safetensors" in names:
        return ["adapter_model.safetensors", *(name for name in _ADAPTER_SMALL if name in names)]
    if ADAPTER_PICKLE in names:
        raise ModelError(
            f"{repository} holds its adapter as a pickle ({ADAPTER_PICKLE}), which can run code when read; "
            "download it and turn it into safetensors once: qlora-chat convert-adapter FOLDER NEW_FOLDER"
        )
    raise ModelError(f"{repository} holds no adapter_model.safetensors; give a PEFT LoRA adapter")


def adapter_files_or_pickle(repository: str, names: Sequence[str]) -> list[str]:
    """As adapter_files, but a pickle will do: for the one adapter that is converted unasked."""
    if "adapter_model.safetensors" not in names and ADAPTER_PICKLE in names:
        return [ADAPTER_PICKLE, *(name for name in _ADAPTER_SMALL if name in names)]
    return adapter_files(repository, names)


@dataclass(frozen=True)
class Snapshot:
    """A repository's files on this machine."""

    folder: Path
    revision: str


@dataclass(frozen=True)
class Hub:
    """The Hub and its local cache."""

    cache: Path
    offline: bool
    endpoint: str | None = None
    """None is the client's own: HF_ENDPOINT, else huggingface.co."""

    def cached(self, repository: str) -> Snapshot | None:
        """What was fetched earlier of the main branch, whole or in part; asks nobody."""
        root = self.cache / f"models--{repository.replace('/', '--')}"
        try:
            revision = (root / "refs" / "main").read_text().strip()
        except OSError:
            return None
        folder = root / "snapshots" / revision
        return Snapshot(folder, revision) if revision and folder.is_dir() else None

    def answers(self, repository: str, seconds: float = 3.0) -> bool:
        """Whether the Hub tells of a repository within the time; False at once when offline."""
        if self.offline:
            return False
        asked: Future[Any] = Future()

        def ask() -> None:
            try:
                asked.set_result(self._api().model_info(repository, timeout=seconds))
            except Exception as problem:
                asked.set_exception(problem)

        Thread(target=ask, name="ask-hub", daemon=True).start()  # name resolution alone may take longer than any timeout
        try:
            asked.result(timeout=seconds)
        except Exception:
            return False
        return True

    def fetch(self, repository: str, choose: Choose, notify: Notify) -> Snapshot:
        """Download what `choose` names and is not here yet. ModelError says what to do about what is in the way."""
        if self.offline:
            raise ModelError(
                f"{repository} is not on this machine (looked in {self.cache}) and HF_HUB_OFFLINE forbids fetching it; "
                "unset HF_HUB_OFFLINE, or give a folder"
            )
        with _explained(repository):
            from huggingface_hub import snapshot_download

            info = self._api().model_info(repository, files_metadata=True, timeout=10)
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            names = choose(repository, list(sizes))
            self._announce(repository, {name: sizes[name] for name in names}, notify)
            folder = snapshot_download(repository, cache_dir=self.cache, allow_patterns=names, endpoint=self.endpoint)
        return Snapshot(Path(folder), info.sha or Path(folder).name)

    def _announce(self, repository: str, sizes: dict[str, int], notify: Notify) -> None:
        """Say how much will be fetched. ModelError if the disk cannot hold it."""
        here = self.cached(repository)
        missing = sum(size for name, size in sizes.items() if here is None or not (here.folder / name).is_file())
        self.cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.cache).free
        if missing > free:
            raise ModelError(
                f"{repository} takes {_size(missing)}, but {self.cache} has {_size(free)} free; "
                "make room, or set HF_HOME to a folder on a larger disk"
            )
        notify(f"fetching {repository}: {_size(missing)} into {self.cache} (a broken download goes on where it stopped)")

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn what the client and the disk raise into what a person can do about it."""
    from huggingface_hub import errors

    try:
        yield
    except ModelError:
        raise
    except errors.GatedRepoError as problem:
        raise ModelError(
            f"{repository} is gated: accept its licence on its page at the Hub, then set HF_TOKEN to a token of that account"
        ) from problem
    except errors.RepositoryNotFoundError as problem:
        raise ModelError(
            f"the Hub knows no {repository}, or only for those it is shared with; check the spelling, or set HF_TOKEN"
        ) from problem
    except Exception as problem:  # the client's own, httpx's and the disk's, which share no base
        status = getattr(getattr(problem, "response", None), "status_code", None)
        if status in (401, 403):
            raise ModelError(f"the Hub refuses {repository} ({status}); set HF_TOKEN to a token that may read it") from problem
        reason = str(problem).strip().split("\n")[0][:200] or type(problem).__name__
        raise ModelError(
            f"{repository} could not be fetched ({reason}); check connection and disk, then start again: it resumes"
        ) from problem
