"""Where dialogues come from: files and folders here, or a dataset on the Hub.

Scope: names -> paths. Knows nothing of what is in the files.
"""

from __future__ import annotations

from pathlib import Path

from qlora_chat.models import Notify
from qlora_chat.models.hub import is_hub_id
from qlora_chat.settings import hub_cache_folder, hub_is_offline
from qlora_chat.training import TrainError
from qlora_chat.training.data.dialogues import SUFFIXES


def find_data(name: str, notify: Notify) -> list[Path]:
    """Paths of one --data: itself where it is here, else a dataset's files from the Hub. TrainError says what is in the way."""
    path = Path(name).expanduser()
    if path.exists() or not is_hub_id(name) or name.endswith(SUFFIXES):
        return [path]
    return _fetched(name, notify)


def _fetched(repository: str, notify: Notify) -> list[Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    notify(f"fetching the dataset {repository} from the Hub, where it is not here yet")
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
        raise TrainError(
            f"--data {repository} is no file here, and the Hub does not give a dataset of that name ({reason})"
        ) from problem
    files = sorted(each for each in folder.rglob("*") if each.name.endswith(SUFFIXES))
    training = [each for each in files if not any(word in each.stem.lower() for word in ("test", "eval", "valid"))]
    if not training:
        raise TrainError(f"the dataset {repository} holds no {', '.join(SUFFIXES)} file; convert it, and give --data FILE")
    return training
