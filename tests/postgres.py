"""A real PostgreSQL of the tests' own: this machine's server in a folder of its own, reached through a socket in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def programs() -> Path | None:
    """The folder with initdb and postgres, or None where there is none on this machine."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Start a server; -> the URL of its database, without a password. It ends with the block."""
    binaries = programs()
    assert binaries, "PostgreSQL is missing: install Debian's `postgresql`"
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if user:
            shutil.chown(data, user)
            shutil.chown(folder, user)
        initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, user=user, stdout=subprocess.DEVNULL, cwd=folder)
        with (folder / "server.log").open("w") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
                user=user, stdout=log, stderr=log, cwd=folder,
            )  # fmt: skip
            try:
                _wait(binaries, folder)
                yield f"postgresql://postgres@/postgres?host={folder}"
            finally:
                server.send_signal(signal.SIGINT)  # without waiting for clients to leave
                server.wait(20)


def _wait(binaries: Path, folder: Path) -> None:
    until = time.monotonic() + 30
    while subprocess.run([binaries / "pg_isready", "-q", "-h", folder, "-U", "postgres"]).returncode != 0:
        assert time.monotonic() < until, (folder / "server.log").read_text()
        time.sleep(0.05)
