"""The workspace: the folder for everything that gtvray writes, locked by one writer at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gtvray.errors import InputError, ResourceError
from gtvray.io.location import Location, current_location
from gtvray.io.names import require_printable_path

if TYPE_CHECKING:
    from filelock import FileLock

_LEFTOVERS = (".partial-*", ".retired-*")


@dataclass(frozen=True)
class Workspace:
    """Paths under one root, and the lock for writing there.

    Raises:
        InputError: the root has control characters or bytes that are not UTF-8.
    """

    root: Path

    def __post_init__(self) -> None:
        # Trials run in other working directories, where a relative path would resolve differently.
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
        """One folder per sweep, with the checkpoints of its trials."""
        return self.root / "sweeps"

    @property
    def trainings(self) -> Path:
        """One folder per training, with the checkpoints of its folds."""
        return self.root / "trainings"

    @property
    def bundles(self) -> Path:
        """Bundles by digest."""
        return self.root / "bundles"

    @property
    def golden(self) -> Path:
        """Golden cases of models, by bundle digest."""
        return self.root / "golden"

    def golden_of(self, digest: str) -> Path:
        """Folder for the golden cases of the model with this bundle digest."""
        return self.golden / digest[:16]

    @property
    def reports(self) -> Path:
        """Reports."""
        return self.root / "reports"

    @property
    def ledger(self) -> Path:
        """Record of every use of held-out cases."""
        return self.root / "ledger.jsonl"

    @property
    def decisions(self) -> Path:
        """Records of the promotion gate's decisions; the log is in MLflow."""
        return self.root / "decisions"

    @property
    def mlflow_database(self) -> Path:
        """Database of the embedded MLflow store."""
        return self.root / "mlflow.db"

    @property
    def mlflow_uri(self) -> str:
        """Tracking URI of the embedded MLflow store."""
        return sqlite_uri(self.mlflow_database)

    @property
    def artifacts(self) -> Path:
        """Artifacts of the embedded MLflow store."""
        return self.root / "mlartifacts"

    def locate(self, *, held: bool = False) -> Location | None:
        """Return the workspace's location and update its record after a move; None if none is recorded.

        Args:
            held: whether this process holds the lock; otherwise it is acquired to write the record.

        Raises:
            InputError: this is a copy of an existing workspace, or the record is not writable.
            ResourceError: the record needs an update while another process holds the lock.
        """
        location = current_location(self.root)
        if location is not None and location != Location.read(self.root):
            with nullcontext() if held else self.hold():
                location.write()
        return location

    def follow(self, path: Path) -> Path:
        """Translate a path from before this workspace was moved or adopted; other paths are returned unchanged."""
        location = Location.read(self.root)
        return path if location is None else location.follow(path)

    @contextmanager
    def lock(self, need_bytes: int = 0) -> Iterator[None]:
        """Lock the workspace for writing, and remove temporary files of killed writers.

        Args:
            need_bytes: required free disk space.

        Raises:
            InputError: the folder is not writable, or is a copy of another workspace.
            ResourceError: another process holds the lock, or disk space is insufficient.
        """
        current_location(self.root)
        with self.hold():
            free = shutil.disk_usage(self.root).free
            if free < need_bytes:
                raise ResourceError(
                    "disk space is insufficient",
                    where=self.root.resolve(),
                    expected=f"{need_bytes / 1e9:.1f} GB free",
                    found=f"{free / 1e9:.1f} GB",
                    do="free some space or choose another workspace",
                )
            # A database without a record predates the record: its own paths state where it was created.
            if self.locate(held=True) is None and not self.mlflow_database.exists():
                Location.new(self.root).write()
            self._clear_leftovers()
            yield

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Lock the workspace for writing, without checks of its state.

        Raises:
            InputError: the folder is not writable.
            ResourceError: another process holds the lock.
        """
        lock = self._acquire()
        try:
            yield
        finally:
            lock.release()

    def _acquire(self) -> FileLock:
        # Imported here, because most commands that only read a workspace take no lock.
        from filelock import FileLock, Timeout

        # A soft lock, the fallback on file systems without flock, would outlive a killed process.
        lock = FileLock(self.root / ".lock", fallback_to_soft=False)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout as error:
            raise ResourceError(
                "another gtvray process is using this workspace",
                where=self.root,
                do="wait for it to end, or choose another workspace",
            ) from error
        except OSError as error:
            raise InputError(
                "workspace is not writable",
                where=self.root,
                found=error.strerror,
                do="choose a writable folder with --workspace or GTVRAY_WORKSPACE",
            ) from error
        return lock

    def _clear_leftovers(self) -> None:
        own = (self.root, self.cache, self.splits, self.phantoms, self.bundles, self.golden, self.reports)
        # Sweeps and trainings also write beside their checkpoints.
        runs = (folder for kind in (self.sweeps, self.trainings) for folder in (kind, *kind.glob("*/")))
        for folder in (*own, *runs):
            for pattern in _LEFTOVERS:
                for leftover in folder.glob(pattern):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def sqlite_uri(path: Path) -> str:
    """The SQLAlchemy URI of a SQLite database.

    SQLAlchemy ends the path at `?` and decodes `%`, so both are encoded. Such a URI names the driver, because MLflow
    would otherwise create a folder of the encoded name.
    """
    encoded = str(path).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}" if encoded == str(path) else f"sqlite+pysqlite:///{encoded}"
