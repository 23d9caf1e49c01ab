"""The Hugging Face Hub: its local cache, and downloads.

Scope: repositories, revisions and files. Downloads go through huggingface_hub, which shows progress, resumes, and
honours HF_TOKEN and HF_ENDPOINT. Of the files' meaning it knows which ones are worth fetching.
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
from qlora_chat.models.adapter.folder import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS
from qlora_chat.models.folders import RECORD, Problem
from qlora_chat.models.part import ModelPart

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BASE_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SMALL = ("config.json", "generation_config.json", RECORD, "model.safetensors.index.json", "tokenizer.json", "tokenizer.model",
          "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")  # fmt: skip
_PICKLED = (".bin", ".pt", ".pth")

PINNED = {
    "huggyllama/llama-7b": "4782ad278652c7c71b72204d462d6d01eaaf7549",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
}
"""Commit to fetch of repositories that the program itself names; of any other, the newest of its main branch at the first
fetch, and the same one at later ones."""
_COMMIT = re.compile(r"[0-9a-f]{40}")

SelectFiles = Callable[[str, Sequence[str]], list[str]]
"""(repository, its file names) -> those to fetch; ModelError if it lacks what is needed."""


def is_hub_id(text: str) -> bool:
    """True if text looks like owner/name."""
    return _ID.fullmatch(text) is not None


def _small(names: Sequence[str], *more: str) -> list[str]:
    return [name for name in (*more, *_SMALL) if name in names]


def base_files(repository: str, names: Sequence[str]) -> list[str]:
    """Safetensors, configs and tokenizer of a base. ModelError if the weights are pickles only."""
    weights = [name for name in names if _BASE_WEIGHTS.fullmatch(name)]
    if weights:
        return [*weights, *_small(names)]
    if any(name.endswith(_PICKLED) for name in names):
        raise ModelError(
            f"{repository} holds only pickled weights, which can run code when read; use a copy of the model with *.safetensors"
        )
    raise ModelError(f"{repository} holds no model*.safetensors; give a LLaMA-family model")


def base_files_without_weights(repository: str, names: Sequence[str]) -> list[str]:
    """Configs and tokenizer of a base whose weights are on another machine."""
    files = _small(names)
    if "config.json" not in files or not {"tokenizer.json", "tokenizer.model"} & set(files):
        raise ModelError(f"{repository} lacks config.json or a tokenizer; give the base that the server runs")
    return files


def adapter_files(repository: str, names: Sequence[str]) -> list[str]:
    """Safetensors and config of an adapter. ModelError names the command that converts a pickle."""
    if ADAPTER_WEIGHTS in names:
        return [ADAPTER_WEIGHTS, *_small(names, ADAPTER_CONFIG)]
    if ADAPTER_PICKLE in names:
        raise ModelError(
            f"{repository} holds its adapter as a pickle ({ADAPTER_PICKLE}), which can run code when read; "
            "download it and turn it into safetensors once: qlora-chat convert-adapter FOLDER NEW_FOLDER"
        )
    raise ModelError(f"{repository} holds no {ADAPTER_WEIGHTS}; give a PEFT LoRA adapter")


def adapter_files_or_pickle(repository: str, names: Sequence[str]) -> list[str]:
    """Like adapter_files, but accepts a pickle: for the one adapter that is converted automatically."""
    if ADAPTER_WEIGHTS not in names and ADAPTER_PICKLE in names:
        return [ADAPTER_PICKLE, *_small(names, ADAPTER_CONFIG)]
    return adapter_files(repository, names)


def adapter_files_without_weights(repository: str, names: Sequence[str]) -> list[str]:
    """Config and record of an adapter whose weights are on another machine."""
    if ADAPTER_CONFIG not in names:
        raise ModelError(f"{repository} holds no {ADAPTER_CONFIG}; give a PEFT LoRA adapter")
    return _small(names, ADAPTER_CONFIG)


@dataclass(frozen=True)
class Hub:
    """The Hub and its local cache."""

    cache: Path
    offline: bool
    endpoint: str | None = None
    """None uses the client's own: HF_ENDPOINT, else huggingface.co."""

    def cached(self, repository: str) -> ModelPart | None:
        """Files of the pinned commit or the main branch that were fetched earlier, complete or not; needs no network."""
        root = self._folder(repository)
        try:
            main = (root / "refs" / "main").read_text()[:100].strip()
        except (OSError, ValueError):
            main = ""
        commits = [each for each in (PINNED.get(repository, ""), main) if _COMMIT.fullmatch(each)]
        found = next((each for each in commits if (root / "snapshots" / each).is_dir()), None)
        return ModelPart(repository, root / "snapshots" / found, found, self.cache) if found else None

    def _folder(self, repository: str) -> Path:
        return self.cache / f"models--{repository.replace('/', '--')}"

    def responds(self, repository: str, seconds: float = 3.0) -> bool:
        """True if the Hub describes a repository within the time; False at once when offline."""
        if self.offline:
            return False
        response: Future[Any] = Future()

        def request() -> None:
            try:
                response.set_result(self.describe(repository, seconds))
            except Exception as problem:
                response.set_exception(problem)

        Thread(target=request, name="ask-hub", daemon=True).start()  # name resolution alone may exceed any timeout
        try:
            response.result(timeout=seconds)
        except Exception:
            return False
        return True

    def describe(self, repository: str, seconds: float = 10.0) -> Any:
        """The Hub's description of a repository's commit, with file sizes. HubError if there is none.

        The commit is the pinned one, else the one that was fetched before, else the newest.
        """
        from huggingface_hub import HfApi

        before = self.cached(repository)
        pinned = PINNED.get(repository) or (before.revision if before else None)
        with _readable_errors(repository):
            api = HfApi(endpoint=self.endpoint)
            info = api.model_info(repository, revision=pinned, files_metadata=True, timeout=seconds)
        if not _COMMIT.fullmatch(info.sha or "") or pinned not in (None, info.sha):
            what = f"the Hub describes {repository} at {info.sha!r}"
            raise HubError(Problem(what, f"not at {pinned or 'a commit'}", "check HF_ENDPOINT, or give a folder"))
        return info

    def fetch(self, repository: str, select: SelectFiles, notify: Notify) -> ModelPart:
        """Download the selected files that are missing. ModelError with the remedy if that fails."""
        if self.offline:
            raise ModelError(
                f"{repository} is not on this machine (looked in {self.cache}) and HF_HUB_OFFLINE forbids fetching it; "
                "unset HF_HUB_OFFLINE, or give a folder"
            )
        info = self.describe(repository)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        names = select(repository, list(sizes))
        self._announce(repository, {name: sizes[name] for name in names}, notify)
        with _readable_errors(repository):
            from huggingface_hub import snapshot_download

            folder = snapshot_download(
                repository, revision=info.sha, cache_dir=self.cache, allow_patterns=names, endpoint=self.endpoint
            )
            reference = self._folder(repository) / "refs" / "main"  # written by the client for branches alone
            reference.parent.mkdir(exist_ok=True)
            reference.write_text(info.sha)
        return ModelPart(repository, Path(folder), info.sha, self.cache)

    def _announce(self, repository: str, sizes: dict[str, int], notify: Notify) -> None:
        """Report the size of the download. ModelError if the disk has too little room."""
        local = self.cached(repository)
        missing = sum(size for name, size in sizes.items() if not (local and (local.existing_folder() / name).is_file()))
        self.cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.cache).free
        if missing > free:
            raise ModelError(
                f"{repository} takes {_size(missing)}, but {self.cache} has {_size(free)} free; "
                "make room, or set HF_HOME to a folder on a larger disk"
            )
        notify(f"fetching {repository}: {_size(missing)} into {self.cache} (a broken download goes on where it stopped)")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


class HubError(ModelError):
    """A request to the Hub failed."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def gated(repository: str) -> Problem:
    """Problem of a repository with a licence to accept."""
    remedy = "accept its licence on its page at the Hub, then set HF_TOKEN or run: hf auth login"
    return Problem(f"{repository} is gated", "its files are for accounts that accepted its licence", remedy)


@contextmanager
def _readable_errors(repository: str) -> Iterator[None]:
    """Turn errors of client and disk into ModelErrors that say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except ModelError:
        raise
    except errors.GatedRepoError as problem:
        raise HubError(gated(repository)) from problem
    except errors.RevisionNotFoundError as problem:
        what = f"the Hub no longer has the commit of {repository} that was fetched before"
        remedy = "to take the newest one, delete its folder in the Hub's cache"
        raise HubError(Problem(what, "its history was rewritten", remedy)) from problem
    except errors.RepositoryNotFoundError as problem:
        what, why = f"the Hub knows no {repository}", "or only those it is shared with may see it"
        raise HubError(Problem(what, why, "check the spelling, or set HF_TOKEN")) from problem
    except Exception as problem:  # the client's own, httpx's and the disk's, which share no base
        status = getattr(getattr(problem, "response", None), "status_code", None)
        if status in (401, 403):
            what, remedy = f"the Hub refuses {repository}", "set HF_TOKEN to a token that may read it"
            raise HubError(Problem(what, f"status {status}", remedy)) from problem
        reason = str(problem).strip().split("\n")[0][:200] or type(problem).__name__
        remedy = "check connection and disk, then start again: it resumes"
        raise HubError(Problem(f"{repository} could not be fetched", reason, remedy)) from problem
