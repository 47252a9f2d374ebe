"""MLflow's SQLite database, checked before MLflow opens it: file type, integrity, schema version, write access."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

from gtvray.errors import GtvrayError, InputError, ResourceError
from gtvray.io import atomic_path

BUSY_TIMEOUT_S = 5.0
_URL = "sqlite:///"
# The form that `sqlite_uri` uses for paths that need encoding.
_ENCODED = "sqlite+pysqlite:///"
_NOT_IN_URL = "%?"
_HEADER = b"SQLite format 3\0"


def database_path(uri: str) -> Path:
    """Return the file of an SQLite tracking URI.

    Raises:
        InputError: the URI is not `sqlite:///PATH`, or the path has characters that such a URL cannot hold.
    """
    if uri.startswith(_ENCODED):
        return Path(unquote(uri.removeprefix(_ENCODED)))
    path = uri.removeprefix(_URL)
    if path == uri or not path or not path.isprintable() or any(char in path for char in _NOT_IN_URL):
        raise InputError(
            "not the URI of an SQLite database that MLflow can use",
            where=uri,
            expected="sqlite:///PATH, without %, ? and control characters",
            do="correct tracking.uri",
        )
    return Path(path)


def ensure_database(path: Path, writing: bool = True) -> None:
    """Create the database atomically if it does not exist; refuse one that MLflow could not use.

    MLflow itself retries for minutes on another kind of file, creates its tables in another program's database, and
    migrates the tables of an older MLflow without a backup.

    Args:
        path: the database.
        writing: require write access.

    Raises:
        InputError: not an MLflow database, or not writable.
        ResourceError: locked, damaged, or of another MLflow version, or the disk is full.
    """
    with database_errors(path):
        if not path.exists():
            _create(path)
        if path.is_dir():
            raise InputError(
                "the MLflow database is a folder", where=path, expected="a file", do="correct tracking.uri"
            )
        _require_content(path)
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
            if writing:
                _require_writable(connection)
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise _damaged(path, problem)
            revision = _revision(connection, path)
    _require_revision(revision, path)


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Convert known SQLite faults raised in the `with` block, also by MLflow, to errors with an instruction.

    Args:
        path: the database.
    """
    try:
        yield
    except GtvrayError:
        raise
    except Exception as error:
        explained = explain_database_error(path, str(error))
        if explained is None:
            raise
        raise explained from error


def explain_database_error(path: Path, message: str) -> GtvrayError | None:
    """Return the error for an SQLite message about a database; None if the message is unknown."""
    found = next(iter(message.strip().splitlines()), "")
    return next((make(path, found) for parts, make in _ERRORS if any(part in message for part in parts)), None)


def _create(path: Path) -> None:
    from mlflow.tracking import MlflowClient

    try:
        with atomic_path(path, may_replace=lambda: False) as temporary:
            MlflowClient(f"{_URL}{temporary.resolve()}").search_experiments(max_results=1)
    except InputError:
        # Another process has created it in the meantime, and may have recorded a run already.
        if not path.exists():
            raise


def _require_content(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(len(_HEADER))
    if not header:
        raise ResourceError(
            "the MLflow database is an empty file",
            where=path,
            expected="an SQLite database with runs and registered models",
            do="restore a backup; remove the file, so that a new one is created, only if nothing was ever recorded",
        )
    if header != _HEADER:
        raise _not_mlflow(path, "a file that is not an SQLite database")


def _require_writable(connection: sqlite3.Connection) -> None:
    """Rewrite an unchanged value and roll back: `BEGIN IMMEDIATE` alone succeeds on a read-only file."""
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version = {int(version)}")
    connection.rollback()


def _revision(connection: sqlite3.Connection, path: Path) -> str:
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    rows = (
        connection.execute("SELECT version_num FROM alembic_version").fetchall() if "alembic_version" in tables else []
    )
    if len(rows) != 1 or "experiments" not in tables:
        found = f"the tables of another program: {', '.join(sorted(tables))}" if tables else "no tables"
        raise _not_mlflow(path, found)
    return str(rows[0][0])


def _require_revision(revision: str, path: Path) -> None:
    import mlflow
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    scripts = ScriptDirectory(os.path.join(mlflow.__path__[0], "store", "db_migrations"))
    head = scripts.get_current_head()
    if revision == head:
        return
    installed = metadata.version("mlflow")
    versions = {"where": path, "expected": f"schema {head} of the installed MLflow {installed}"}
    try:
        scripts.get_revision(revision)
    except CommandError as error:
        raise ResourceError(
            "the MLflow database was written by a newer MLflow than the installed one",
            **versions,
            found=f"schema {revision}, unknown to MLflow {installed}",
            do=f"install the MLflow version that wrote it: pip install 'mlflow>{installed}'; the database is intact, "
            "do not change it",
        ) from error
    file, uri = shlex.quote(str(path)), shlex.quote(f"{_URL}{path}")
    raise ResourceError(
        "the MLflow database was written by an older MLflow than the installed one",
        **versions,
        found=f"schema {revision}",
        do=f"back it up and upgrade it: cp {file} {shlex.quote(f'{path}.backup')} && mlflow db upgrade {uri}",
    )


def _locked(path: Path, found: str) -> ResourceError:
    return ResourceError(
        "the MLflow database is locked by another program",
        where=path,
        found=f"{found}; {_users_of(path)}",
        do="wait until that program has finished, or close it, and run this again; the database is intact, keep it",
    )


def _full(path: Path, found: str) -> ResourceError:
    return ResourceError(
        "the disk is full",
        where=path.parent,
        found=found,
        do="free some space and run this again; the database is intact",
    )


def _read_only(path: Path, found: str) -> InputError:
    return InputError(
        "the MLflow database cannot be written to",
        where=path,
        expected="write permission for the file and its folder",
        found=found,
        do="change permissions or owner, or choose another --workspace or tracking.uri",
    )


def _not_opened(path: Path, found: str) -> InputError:
    return InputError(
        "the MLflow database cannot be opened",
        where=path,
        found=f"{found}: the folder is missing or not writable",
        do="correct tracking.uri, --workspace or the folder's permissions",
    )


def _not_mlflow(path: Path, found: str) -> InputError:
    return InputError(
        "not an MLflow database",
        where=path,
        found=found,
        do="correct tracking.uri, or restore a backup of the database",
    )


def _damaged(path: Path, found: str) -> ResourceError:
    file, saved = shlex.quote(str(path)), shlex.quote(f"{path}.recovered")
    return ResourceError(
        "the MLflow database is damaged",
        where=path,
        found=found,
        do="restore a backup and keep the damaged file; recover its readable part with "
        f"sqlite3 {file} .recover | sqlite3 {saved}",
    )


def _users_of(path: Path) -> str:
    """List the processes that have the file open, as far as this user can see them."""
    users: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and any(
                os.path.samefile(handle, path) for handle in (process / "fd").iterdir() if handle.exists()
            ):
                users.append(f"{(process / 'comm').read_text().strip()} (process {process.name})")
        except OSError:
            continue
    return (
        f"open in {', '.join(users)}" if users else "held by another user or host, or by a program that has just ended"
    )


# Parts of SQLite's messages, and the error for them.
_ERRORS: tuple[tuple[tuple[str, ...], Callable[[Path, str], GtvrayError]], ...] = (
    (("database is locked", "database table is locked"), _locked),
    (("disk is full", "No space left"), _full),
    (("readonly database", "Read-only file system", "Permission denied"), _read_only),
    (("file is not a database",), _not_mlflow),
    (("malformed", "disk I/O error"), _damaged),
    (("unable to open database file",), _not_opened),
)
