"""A file of dialogues on its way from the browser to a run.

Scope: one route, and a private folder for files of which no run has been made yet; it goes with the server. Only the
operator's page has the route: a visitor must not make this machine write files.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from qlora_chat.private_files import private_opener
from qlora_chat.web.panels.training_runs import TrainingRuns

TRAINING_DATA = "/page/train/data"
NAMES = re.compile(r"[^A-Za-z0-9._-]+")
KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".xz")
MOST_FILES = 8
"""Files that are held; the oldest goes."""


class UploadedFiles:
    """Files that were dropped on the page."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._files: list[Path] = []

    def add(self, name: str, contents: bytes) -> Path:
        """Write a file. ValueError for a name that training does not read; OSError where there is no room."""
        clean = NAMES.sub("-", Path(name).name).strip(".-")[-80:]
        if not clean.lower().endswith(KINDS):
            raise ValueError(f"Training reads {', '.join(KINDS)}; this file has another name.")
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="qlora-chat-"))
            while len([each for each in self._files if each.is_file()]) >= MOST_FILES:
                self._files.pop(0).unlink(missing_ok=True)
            path = Path(tempfile.mkdtemp(dir=self._folder)) / clean
            with open(path, "xb", opener=private_opener) as file:
                file.write(contents)
            self._files.append(path)
        return path

    def find(self, text: str) -> Path | None:
        """The uploaded file of that path; None for any other path."""
        return next((each for each in self._files if str(each) == text and each.is_file()), None)

    def close(self) -> None:
        """Remove what no run has taken."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True)
class TrainingWork:
    """Runs and uploaded files of a page that trains."""

    runs: TrainingRuns
    uploads: UploadedFiles

    def close(self) -> None:
        """End what runs, saved, and remove what no run has taken."""
        self.runs.close()
        self.uploads.close()


def upload_routes(files: UploadedFiles) -> APIRouter:
    """The route that takes a file."""
    router = APIRouter()

    @router.post(TRAINING_DATA)
    async def upload(request: Request, name: Annotated[str, Query(max_length=300)]) -> JSONResponse:
        """Take a file, and say under which path training finds it."""
        body = await request.body()
        try:
            path = await run_in_threadpool(files.add, name, body)
        except (ValueError, OSError) as problem:
            return JSONResponse({"problem": str(problem)}, 422)
        return JSONResponse({"path": str(path)})

    return router
