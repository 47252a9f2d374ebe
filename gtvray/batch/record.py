"""The record of a prediction into a folder: an append-only file next to the masks, used to continue the prediction.

Each line is a JSON object. The first states the format. `started` marks a scan whose mask may have been written since;
`done` has the digests of scan and mask, the model and settings used, and the result; `failed` has the error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtvray import NOTICE, __version__
from gtvray.batch.steps import Result, Scan, input_sha256
from gtvray.errors import GtvrayError, InputError
from gtvray.inference import entropy_file
from gtvray.io import append_json_line, exclusive_lock, read_json_lines, sha256_of

RECORD = "predictions.jsonl"
_LOCK = ".predictions.lock"
_FORMAT = {"gtvray": "predictions", "schema": 1, "notice": NOTICE}


@dataclass(frozen=True)
class Making:
    """Model and settings on which a mask depends, besides its scan.

    Attributes:
        model: digest of the bundle.
        exhaustive: whether every patch was run, regardless of the model's inference mode.
        uncertainty: whether the entropy was written, too.
        version: version of gtvray.
    """

    model: str
    exhaustive: bool
    uncertainty: bool
    version: str = __version__

    def difference(self, entry: dict[str, Any]) -> str | None:
        """Describe how a recorded mask differs from one made with this model and settings; None if it does not."""
        made = entry["made_with"]
        if made["model"] != self.model:
            return f"made by model {made['model'][:12]}"
        if made["exhaustive"] != self.exhaustive:
            return "made with --exhaustive" if made["exhaustive"] else "made without --exhaustive"
        if self.uncertainty and not made["uncertainty"]:
            return "made without --uncertainty"
        return None if made["version"] == self.version else f"made by gtvray {made['version']}"


class BatchRecord:
    """The record of a folder.

    Args:
        folder: folder of the masks; need not exist.

    Raises:
        InputError: the file is not a record of predictions.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self._lock, self._folder = folder / _LOCK, folder
        self._entries: dict[str, dict[str, Any]] = {}
        self.read()

    def read(self) -> None:
        """Read the record again.

        Raises:
            InputError: the file is not such a record.
        """
        lines = read_json_lines(self.path)
        if self.path.exists() and (not lines or not _is_format(lines[0])):
            raise InputError(
                "not a record of predictions",
                where=self.path,
                expected=f"a file that gtvray wrote, with schema {_FORMAT['schema']}",
                do="move it away, or choose another folder",
            )
        self._entries = {line["scan"]: line for line in lines[1:] if isinstance(line, dict) and "scan" in line}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Exclude other processes from the folder within a `with` block.

        Raises:
            ResourceError: another process predicts into the folder.
        """
        with exclusive_lock(self._lock, self._folder):
            self.read()
            yield

    def is_unfinished(self, scan: Scan) -> bool:
        """Whether an earlier run that did not complete a scan may have written its mask."""
        return self._entries.get(scan.name, {}).get("state") in ("started", "failed")

    def intact(self, scan: Scan) -> bool:
        """Whether the recorded mask of a scan exists and is unchanged."""
        entry = self._done(scan)
        if entry is None or scan.mask.is_symlink() or not scan.mask.is_file():
            return False
        if entry["made_with"]["uncertainty"] and not entropy_file(scan.mask).is_file():
            return False
        recorded: str = entry["mask_sha256"]
        return sha256_of(scan.mask) == recorded

    def difference(self, scan: Scan, making: Making) -> str | None:
        """Describe how the recorded mask of a scan differs from one predicted now; None if it does not."""
        entry = self._done(scan)
        assert entry is not None, "asked of recorded masks only"
        if (reason := making.difference(entry)) is not None:
            return reason
        try:
            found = input_sha256(scan.path)
        except GtvrayError as error:
            return error.what
        return None if found == entry["input_sha256"] else "the scan has changed since"

    def row(self, scan: Scan) -> dict[str, Any]:
        """Return the recorded result of a scan."""
        entry = self._done(scan)
        assert entry is not None, "asked of recorded masks only"
        return {**entry["row"], "mask": str(scan.mask)}

    def start(self, scan: Scan) -> None:
        """Record that the mask of a scan may be written from now on."""
        self._append({"scan": scan.name, "state": "started"})

    def end(self, result: Result, making: Making) -> None:
        """Record a result."""
        if result.error is not None:
            self._append({"scan": result.scan, "state": "failed", "row": result.row})
            return
        # The folder may be moved.
        row = {name: value for name, value in result.row.items() if name != "mask"}
        made = {name: getattr(making, name) for name in ("model", "exhaustive", "uncertainty", "version")}
        digests = {"input_sha256": result.input_sha256, "mask_sha256": result.mask_sha256}
        self._append({"scan": result.scan, "state": "done", "made_with": made, **digests, "row": row})

    def _done(self, scan: Scan) -> dict[str, Any] | None:
        entry = self._entries.get(scan.name)
        return entry if entry is not None and entry["state"] == "done" else None

    def _append(self, entry: dict[str, Any]) -> None:
        if not self.path.exists():
            append_json_line(self.path, _FORMAT)
        append_json_line(self.path, entry)


def _is_format(line: object) -> bool:
    return isinstance(line, dict) and all(line.get(name) == _FORMAT[name] for name in ("gtvray", "schema"))
