"""The --data option: files, folders or a dataset on the Hub -> data files, some of which are held out.

Scope: names and places. Reads no contents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qlora_chat.models import Notify
from qlora_chat.models.hub import is_hub_id
from qlora_chat.settings import hub_cache_folder, hub_is_offline
from qlora_chat.training import TrainError
from qlora_chat.training.data.files import PARQUET, SUFFIXES, SUFFIXES_SHOWN, is_data, kind_of_file

BUILT = "sft.jsonl"
"""Training data of `dataset build`; the preference pairs in the same folder repeat its answers."""
_HELD_OUT_WORDS = frozenset(("test", "eval", "evaluation", "val", "valid", "validation", "dev"))
_NO_DATA = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"))
"""Descriptions that the datasets library writes beside its data."""


@dataclass(frozen=True)
class DataFile:
    """A file of dialogues."""

    path: Path
    is_held_out: bool = False
    """It is evaluated, never learned."""


def find_data(name: str, notify: Notify) -> list[DataFile]:
    """Files of a path here, or of a dataset on the Hub. TrainError if there is neither."""
    path = Path(name).expanduser()
    if path.exists() or not is_hub_id(name) or is_data(name):
        return find_files(path)
    return _of_one_kind(name, _in_folder(_download(name, notify)), notify)


def find_files(path: Path) -> list[DataFile]:
    """The file itself, or those of a folder; a file or folder called test, eval, valid or dev is held out."""
    if path.is_dir():
        if (path / BUILT).is_file():
            return [DataFile(path / BUILT)]
        return _in_folder(path)
    if not path.is_file():
        raise TrainError(f"{path}: there is no such file")
    if not is_data(path.name):
        raise TrainError(f"{path}: a file of dialogues ends in {SUFFIXES_SHOWN}")
    return [DataFile(path)]


def _in_folder(folder: Path) -> list[DataFile]:
    """Data files at any depth, without those in hidden folders. TrainError if there is none."""
    paths = sorted(each for each in folder.rglob("*") if is_data(each.name) and each.is_file())
    inside = [(each, each.relative_to(folder)) for each in paths if each.name not in _NO_DATA]
    shown = [(each, relative) for each, relative in inside if not any(part.startswith(".") for part in relative.parts)]
    if not shown:
        raise TrainError(f"{folder} is a folder without a {SUFFIXES_SHOWN} file")
    return [DataFile(each, _is_held_out(relative)) for each, relative in shown]


def _is_held_out(path: Path) -> bool:
    words = {word for part in path.parts for word in re.split(r"[^a-z]+", part.lower())}
    return bool(words & _HELD_OUT_WORDS) and "train" not in words


def _of_one_kind(name: str, files: list[DataFile], notify: Notify) -> list[DataFile]:
    """JSON files if there are any, else Parquet, else CSV: a dataset on the Hub often has the same records twice."""
    kinds = {each.path: kind_of_file(each.path) for each in files}
    for group in ((".jsonl", ".json"), (PARQUET,), (".csv", ".tsv")):
        chosen = [each for each in files if kinds[each.path] in group]
        if any(not each.is_held_out for each in chosen):
            if len(chosen) < len(files):
                notify(f"of {name}, only the {' and '.join(group)} files are read; --data FILE names others")
            return chosen
    return files


def _download(repository: str, notify: Notify) -> Path:
    from huggingface_hub import snapshot_download

    notify(f"downloading the dataset {repository} from the Hub, unless it is cached")
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", cache_dir=hub_cache_folder(), local_files_only=hub_is_offline(),
            allow_patterns=[f"*{suffix}" for suffix in SUFFIXES],
        )  # fmt: skip
        return Path(folder)
    except (OSError, ValueError) as problem:  # the Hub's errors are OSErrors
        reason = " ".join(str(problem).split())[:200]
        raise TrainError(f"--data {repository} is no file here, and no dataset of the Hub ({reason})") from problem


def file_names(files: Iterable[DataFile]) -> tuple[str, ...]:
    """Paths as text, for records."""
    return tuple(str(each.path) for each in files)
