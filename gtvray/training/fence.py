"""Ownership of a training's folder: the process that began to write last owns it, earlier ones may write no more.

A process that is only unreachable, such as one on a machine that was cut off, is replaced while it still runs.
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
    """Takes the folder over from every earlier writer.

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
            TrainingError: it has.
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
                do="let that process go on: it has all epochs up to its start",
            )
