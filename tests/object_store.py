"""An S3-compatible object store: moto's server in a process of its own, which keeps its objects while it is down."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BUCKET = "gtvray"
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = None
for line in sys.stdin:
    if server is not None:
        server.stop()
        server = None
    if line == "start\\n":
        server = ThreadedMotoServer("127.0.0.1", int(sys.argv[1]), verbose=False)
        server.start()
    print("done", flush=True)
"""


class ObjectStore:
    """The store's process; `start` and `stop` open and close its port."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(self.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which MLflow and pyarrow find the store."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Fail within a second while the store is down.
            "AWS_MAX_ATTEMPTS": "1",
        }

    def start(self) -> None:
        """Accept requests."""
        self._command("start")

    def stop(self, _: str = "") -> bool:
        """Refuse connections; the argument and result are those of a failpoint's action."""
        self._command("stop")
        return False

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def client(self) -> Any:
        """A client of the store, to look into the bucket and to change objects."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )

    def _command(self, word: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A running store with the empty bucket `BUCKET`; the test is skipped if moto is missing."""
    pytest.importorskip("moto", reason="needs moto (tests/install_servers.sh)")
    store = ObjectStore()
    try:
        store.start()
        store.client().create_bucket(Bucket=BUCKET)
        yield store
    finally:
        store.close()
