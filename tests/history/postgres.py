"""A PostgreSQL server of the tests' own: the one installed here, on a random port, as a user that is not root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

PASSWORD = "not-a-secret"


def binaries() -> str | None:
    """The folder with initdb and pg_ctl; None where PostgreSQL is not installed."""
    found = sorted(glob("/usr/lib/postgresql/*/bin/initdb"))
    return str(Path(found[-1]).parent) if found else (str(Path(each).parent) if (each := shutil.which("initdb")) else None)


@contextmanager
def postgres(folder: str) -> Iterator[str]:
    """A server over a socket and loopback, with password authentication; yields its URL without the password."""
    home = Path(tempfile.mkdtemp(prefix="qlora-chat-pg-"))
    user = "postgres" if os.getuid() == 0 else None
    if user:
        shutil.chown(home, user)
    (home / "password").write_text(PASSWORD)
    (home / "password").chmod(0o644)
    port = 20_000 + os.getpid() % 20_000

    def run(*command: str) -> None:
        with open(home.parent / f"{home.name}.log", "ab") as log:
            subprocess.run(
                command, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", user=user, timeout=60
            )

    data = str(home / "data")
    try:
        run(
            f"{folder}/initdb",
            "-D",
            data,
            "-U",
            "tester",
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(home / "password"),
            "-E",
            "UTF8",
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home} -c fsync=off"
        run(f"{folder}/pg_ctl", "-D", data, "-o", options, "-w", "-l", str(home / "server.log"), "start")
        try:
            yield f"postgresql://tester@127.0.0.1:{port}/postgres"
        finally:
            run(f"{folder}/pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        time.sleep(0.1)
        shutil.rmtree(home, ignore_errors=True)
        (home.parent / f"{home.name}.log").unlink(missing_ok=True)
