"""A real PostgreSQL of the tests' own: this machine's server in a folder of its own, reached through a socket in it without a
password, and over loopback with one."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "not-a-secret"
_names = itertools.count(1)


@dataclass(frozen=True)
class Server:
    """Where it can be reached. URLs hold no password."""

    socket_url: str
    """From this user without one."""
    network_url: str
    """With PASSWORD only."""


def programs() -> Path | None:
    """The folder with initdb and postgres, or None where there is none on this machine."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """Start a server, which ends with the block."""
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
        password = folder / "password"
        password.write_text(PASSWORD)
        who = ["-U", "postgres", "--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile", password]
        initdb = [binaries / "initdb", "-D", data, *who, "--encoding=UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, user=user, stdout=subprocess.DEVNULL, cwd=folder)
        port = _free_port()
        with (folder / "server.log").open("w") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", folder, "-p", str(port), "-h", "127.0.0.1", "-c", "fsync=off"],
                user=user, stdout=log, stderr=log, cwd=folder,
            )  # fmt: skip
            try:
                _wait(binaries, folder, port)
                by_socket = f"postgresql://postgres@/postgres?host={folder}&port={port}"
                yield Server(by_socket, f"postgresql://postgres@127.0.0.1:{port}/postgres")
            finally:
                server.send_signal(signal.SIGINT)  # without waiting for clients to leave
                server.wait(60)


def new_database(server: Server) -> str:
    """The socket URL of an empty database."""
    import psycopg

    name = f"made{next(_names)}"
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.socket_url.replace("/postgres?", f"/{name}?")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(binaries: Path, folder: Path, port: int) -> None:
    until = time.monotonic() + 60
    while subprocess.run([binaries / "pg_isready", "-q", "-h", folder, "-p", str(port), "-U", "postgres"]).returncode != 0:
        assert time.monotonic() < until, (folder / "server.log").read_text()
        time.sleep(0.05)
