"""Ownership of the folder of a training: the latest writer owns it, and earlier writers must not write any more.

A process that is only unreachable, such as one on a disconnected machine, is replaced while it is still running.
"""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

from gtvray.errors import InputError, TrainingError
from gtvray.io import read_json, write_json

_FILE = ".writer.json"


class Fence:
    """Takes over the folder from all earlier writers.

    Args:
        folder: of checkpoints.

    Raises:
        InputError: the folder cannot be written to.
        ResourceError: the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._attempt = uuid.uuid4().hex
        write_json(self._path, {"attempt": self._attempt, "host": socket.gethostname(), "pid": os.getpid()})

    def require_mine(self) -> None:
        """Refuse to write to a folder that a later process has taken over.

        Raises:
            TrainingError: a later process has taken over the folder.
        """
        try:
            owner = read_json(self._path)
        except InputError:
            # The folder was moved or removed, which the write itself will report.
            return
        if owner["attempt"] != self._attempt:
            raise TrainingError(
                "another process continues this training",
                where=self._path.parent,
                found=f"process {owner['pid']} on {owner['host']}",
                do="wait for that process; it continues from the newest checkpoint",
            )
