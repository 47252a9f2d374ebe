"""A temporary PostgreSQL server, from Debian's package; see `tests/install_servers.sh`."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ACCOUNT = "postgres"


@contextmanager
def postgres() -> Iterator[str]:
    """URI of an empty database on a server that ends with the `with` block."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if binaries is None or os.getuid() != 0:
        pytest.skip("needs PostgreSQL (tests/install_servers.sh) and root, to run it under its own account")
    pytest.importorskip("psycopg")
    account = pwd.getpwnam(_ACCOUNT)
    # Other accounts have no access to pytest's folders.
    data = Path(tempfile.mkdtemp(prefix="gtvray-postgres-"))
    shutil.chown(data, account.pw_uid, account.pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=account.pw_uid, group=account.pw_gid, cwd=data, timeout=100,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    run(str(binaries / "initdb"), "-D", str(data / "db"), "-A", "trust", "-E", "UTF8", "--no-sync")
    control = (str(binaries / "pg_ctl"), "-D", str(data / "db"), "-w")
    run(*control, "-o", f"-p {port} -k {data} -c listen_addresses=127.0.0.1", "-l", str(data / "log"), "start")
    try:
        yield f"postgresql://{_ACCOUNT}@127.0.0.1:{port}/postgres"
    finally:
        run(*control, "-m", "fast", "stop")
        shutil.rmtree(data)
