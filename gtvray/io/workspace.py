"""The workspace: one folder that holds what gtvray writes, and one writer of it at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from gtvray.errors import InputError, ResourceError
from gtvray.io.location import Location, current_location
from gtvray.io.names import require_printable_path

_LEFTOVERS = (".partial-*", ".retired-*")


@dataclass(frozen=True)
class Workspace:
    """Where things lie under one root.

    Raises:
        InputError: the root's path has control characters, or bytes that are no UTF-8.
    """

    root: Path

    def __post_init__(self) -> None:
        # Trials run in working folders of their own, where a relative path means another place.
        object.__setattr__(self, "root", self.root.resolve())
        require_printable_path(self.root)

    @property
    def cache(self) -> Path:
        """Prepared cases."""
        return self.root / "cache"

    @property
    def splits(self) -> Path:
        """Stored splits and folds."""
        return self.root / "splits"

    @property
    def phantoms(self) -> Path:
        """Generated cases."""
        return self.root / "phantoms"

    @property
    def sweeps(self) -> Path:
        """A folder a sweep, with its trials' checkpoints."""
        return self.root / "sweeps"

    @property
    def trainings(self) -> Path:
        """A folder a training, with its folds' checkpoints."""
        return self.root / "trainings"

    @property
    def bundles(self) -> Path:
        """Bundles by digest."""
        return self.root / "bundles"

    @property
    def golden(self) -> Path:
        """Golden cases of models, by digest."""
        return self.root / "golden"

    def golden_of(self, digest: str) -> Path:
        """Where a model's golden cases are, or will be, by the digest of its bundle."""
        return self.golden / digest[:16]

    @property
    def reports(self) -> Path:
        """Tables and pictures."""
        return self.root / "reports"

    @property
    def ledger(self) -> Path:
        """Who looked at which cases for what."""
        return self.root / "ledger.jsonl"

    @property
    def decisions(self) -> Path:
        """Every decision of the promotion gate."""
        return self.root / "decisions.jsonl"

    @property
    def mlflow_database(self) -> Path:
        """Database of the embedded MLflow store."""
        return self.root / "mlflow.db"

    @property
    def mlflow_uri(self) -> str:
        """The embedded MLflow store."""
        return sqlite_uri(self.mlflow_database)

    @property
    def artifacts(self) -> Path:
        """Artifacts of the embedded MLflow store."""
        return self.root / "mlartifacts"

    def locate(self, *, held: bool = False) -> Location | None:
        """The workspace's location, recorded anew if it has been moved; None if it has none yet.

        Args:
            held: whether this process holds the lock; otherwise the lock is taken for writing the record.

        Raises:
            InputError: this is a copy of a workspace that is still there, or the record cannot be written.
            ResourceError: the workspace has been moved while another process uses it.
        """
        location = current_location(self.root)
        if location is not None and location != Location.read(self.root):
            with nullcontext() if held else self.hold():
                location.write()
        return location

    def follow(self, path: Path) -> Path:
        """A path as it is now, if it was in this workspace before the workspace was moved or adopted."""
        location = Location.read(self.root)
        return path if location is None else location.follow(path)

    @contextmanager
    def lock(self, need_bytes: int = 0) -> Iterator[None]:
        """Hold the workspace for writing, and clear what a killed writer left half-done.

        Args:
            need_bytes: free disk space to insist on.

        Raises:
            InputError: the folder cannot be made or written to, or is a copy of another workspace.
            ResourceError: another process holds it, or too little space is free.
        """
        current_location(self.root)
        with self.hold():
            free = shutil.disk_usage(self.root).free
            if free < need_bytes:
                raise ResourceError(
                    "too little disk space",
                    where=self.root.resolve(),
                    expected=f"{need_bytes / 1e9:.1f} GB free",
                    found=f"{free / 1e9:.1f} GB",
                    do="free some space or choose another workspace",
                )
            # A database without a record is from before there were records: its own paths tell where it was made.
            if self.locate(held=True) is None and not self.mlflow_database.exists():
                Location.new(self.root).write()
            self._clear_leftovers()
            yield

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the workspace for writing, whatever its state.

        Raises:
            InputError: the folder cannot be made or written to.
            ResourceError: another process holds it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                "cannot write to the workspace",
                where=self.root,
                found=error.strerror,
                do="name a folder that can be written to, with --workspace or GTVRAY_WORKSPACE",
            ) from error
        try:
            self._hold(handle)
            yield
        finally:
            os.close(handle)

    def _hold(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResourceError(
                "another gtvray process is using this workspace",
                where=self.root.resolve(),
                do="wait for it to end, or choose another workspace",
            ) from error

    def _clear_leftovers(self) -> None:
        own = (self.root, self.cache, self.splits, self.phantoms, self.bundles, self.golden, self.reports)
        # A sweep and a training write beside their checkpoints, too.
        runs = (folder for kind in (self.sweeps, self.trainings) for folder in (kind, *kind.glob("*/")))
        for folder in (*own, *runs):
            for pattern in _LEFTOVERS:
                for leftover in folder.glob(pattern):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def sqlite_uri(path: Path) -> str:
    """The URI of a SQLite database.

    SQLAlchemy ends the path at `?` and decodes `%`, so both are encoded. The driver is named in such a URI because
    MLflow would otherwise make a folder of the encoded name beside the right one.
    """
    encoded = str(path).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}" if encoded == str(path) else f"sqlite+pysqlite:///{encoded}"
