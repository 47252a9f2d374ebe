"""The workspace: the folder for everything that gtvray writes, with a lock for each sweep, training or report.

Commands write to a workspace side by side. Each holds `.lock` shared, and the locks in `.locks/` of what it writes
exclusively; what changes the workspace as a whole, such as its adoption, holds `.lock` exclusively.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from gtvray.errors import ResourceError
from gtvray.io.location import Location, current_location
from gtvray.io.locks import exclusive_lock, open_lock, owner_of, try_lock
from gtvray.io.names import require_printable_path
from gtvray.io.uris import require_path

_LOCK, _LOCKS = ".lock", ".locks"
_LEFTOVERS = (".partial-*", ".retired-*")
# Others hold the workspace exclusively while they record its location, or adopt it.
_WAIT_S = 30.0


@dataclass(frozen=True)
class Workspace:
    """Paths under one root, and the locks for writing there.

    Raises:
        InputError: the root is a URI, or has control characters or bytes that are not UTF-8.
    """

    root: Path

    def __post_init__(self) -> None:
        require_path(self.root)
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
    def corrections(self) -> Path:
        """Corrected masks with their scans."""
        return self.root / "corrections"

    @property
    def serving(self) -> Path:
        """Served versions, tokens of clients and audit log of endpoints."""
        return self.root / "serving"

    @property
    def tokens(self) -> Path:
        """Tokens of the clients of endpoints."""
        return self.serving / "tokens.json"

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

    def tracking_store(self, uri: str | None) -> tuple[str, Path | None]:
        """Return a tracking URI and the artifact folder of its new experiments; None leaves that to a server.

        Args:
            uri: the configured URI; None for the embedded store.
        """
        chosen = uri or self.mlflow_uri
        return chosen, self.artifacts if chosen.startswith("sqlite") else None

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
    def lock(self, *objects: Path, need_bytes: int = 0) -> Iterator[None]:
        """Write to the workspace within a `with` block, beside other commands that write other objects.

        Temporary files of killed writers are removed from the objects, and from the shared folders if no other command
        uses the workspace.

        Args:
            objects: folders or files that this command alone writes, such as that of a sweep.
            need_bytes: required free disk space.

        Raises:
            InputError: the folder is not writable, or is a copy of another workspace.
            ResourceError: another process writes one of the objects or changes the workspace, the disk space is
                insufficient, or the file system has no locks.
        """
        current_location(self.root)
        path = self.root / _LOCK
        with open_lock(path) as handle:
            self._require_space(need_bytes)
            if try_lock(handle, fcntl.LOCK_EX, path):
                # A database without a record predates the record: its own paths state where it was created.
                if self.locate(held=True) is None and not self.mlflow_database.exists():
                    Location.new(self.root).write()
                self._clear_shared()
            if not try_lock(handle, fcntl.LOCK_SH, path, _WAIT_S):
                raise self._in_use()
            self.locate()
            with self.own(*objects):
                yield

    @contextmanager
    def own(self, *objects: Path) -> Iterator[None]:
        """Exclude other processes from writing objects within a `with` block of `lock`.

        Args:
            objects: folders or files, inside the workspace or elsewhere.

        Raises:
            ResourceError: another process writes one of them; the error names it.
        """
        with ExitStack() as stack:
            # In one order, so that of two processes one gets all of them.
            for each in sorted(set(objects)):
                stack.enter_context(exclusive_lock(self._lock_of(each), each))
            # A folder elsewhere may hold files of other programs.
            _clear(each for each in objects if each.resolve().is_relative_to(self.root))
            yield

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Exclude every other process from the workspace within a `with` block, without checks of its state.

        Raises:
            InputError: the folder is not writable.
            ResourceError: another process uses the workspace, or the file system has no locks.
        """
        path = self.root / _LOCK
        with open_lock(path) as handle:
            if not try_lock(handle, fcntl.LOCK_EX, path):
                raise self._in_use()
            yield

    def _lock_of(self, path: Path) -> Path:
        resolved = path.resolve()
        if resolved != self.root and resolved.is_relative_to(self.root):
            relative = resolved.relative_to(self.root)
            return self.root / _LOCKS / relative.parent / f"{relative.name}.lock"
        name = hashlib.sha256(str(resolved).encode()).hexdigest()[:32]
        return self.root / _LOCKS / "elsewhere" / f"{name}.lock"

    def _in_use(self) -> ResourceError:
        owners = map(owner_of, sorted((self.root / _LOCKS).rglob("*.lock")))
        return ResourceError(
            "another gtvray process is using this workspace",
            where=self.root,
            found="; ".join(dict.fromkeys(owner for owner in owners if owner)) or None,
            do="wait for it to end, or choose another workspace",
        )

    def _require_space(self, need_bytes: int) -> None:
        free = shutil.disk_usage(self.root).free
        if free < need_bytes:
            raise ResourceError(
                "disk space is insufficient",
                where=self.root.resolve(),
                expected=f"{need_bytes / 1e9:.1f} GB free",
                found=f"{free / 1e9:.1f} GB",
                do="free some space or choose another workspace",
            )

    def _clear_shared(self) -> None:
        """Remove temporary files of killed writers everywhere; no other command uses the workspace."""
        own = (self.root, self.cache, self.splits, self.phantoms, self.bundles, self.golden, self.reports)
        # Sweeps and trainings also write beside their checkpoints.
        runs = (folder for kind in (self.sweeps, self.trainings) for folder in (kind, *kind.glob("*/")))
        _clear((*own, *runs))


def _clear(folders: Iterable[Path]) -> None:
    for folder in folders:
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
