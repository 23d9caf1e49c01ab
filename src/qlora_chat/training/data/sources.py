"""The --data option: files and folders on this machine, or a dataset on the Hub.

Scope: names -> paths. Knows nothing of the files' contents, which dialogues.py parses.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qlora_chat.models import Notify
from qlora_chat.models.hub import is_hub_id
from qlora_chat.settings import hub_cache_folder, hub_is_offline
from qlora_chat.training import TrainError
from qlora_chat.training.data.dialogues import SUFFIXES, Dialogues, read_dialogues


def load_dialogues(names: Iterable[str], notify: Notify, *, skip_bad: bool | None = False) -> Dialogues:
    """Read the dialogues of all names, in order; skip_bad as in read_dialogues. TrainError says what prevents it."""
    return read_dialogues([path for name in names for path in find_data(name, notify)], skip_bad=skip_bad)


def find_data(name: str, notify: Notify) -> list[Path]:
    """Return a local path as it is, or the downloaded files of a Hub dataset. TrainError if there is neither."""
    path = Path(name).expanduser()
    if path.exists() or not is_hub_id(name) or name.endswith(SUFFIXES):
        return [path]
    return _download(name, notify)


def _download(repository: str, notify: Notify) -> list[Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    notify(f"downloading the dataset {repository} from the Hub, unless it is cached")
    try:
        folder = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                cache_dir=hub_cache_folder(),
                allow_patterns=[f"*{suffix}" for suffix in SUFFIXES],
                local_files_only=hub_is_offline(),
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise TrainError(f"--data {repository} is no file here, and no dataset of the Hub ({reason})") from problem
    files = sorted(each for each in folder.rglob("*") if each.name.endswith(SUFFIXES))
    training = [each for each in files if not any(word in each.stem.lower() for word in ("test", "eval", "valid"))]
    if not training:
        raise TrainError(f"the dataset {repository} has no {', '.join(SUFFIXES)} file; convert it, and set --data FILE")
    return training
