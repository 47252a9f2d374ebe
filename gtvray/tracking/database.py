"""An SQLite database of MLflow: opened only if it is one, is sound, and is of the installed MLflow's schema."""

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
# As `sqlite_uri` writes paths that need encoding.
_ENCODED = "sqlite+pysqlite:///"
_NOT_IN_URL = "%?"
_HEADER = b"SQLite format 3\0"


def database_path(uri: str) -> Path:
    """The file of an SQLite tracking URI.

    Raises:
        InputError: the URI is not `sqlite:///` and a path, or the path has characters that such a URL cannot hold.
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
    """Make the database if there is none, whole or not at all; refuse one that MLflow could not use.

    MLflow itself would try for minutes to open another kind of file, would put its tables into any other program's
    database, and would change the tables of an older MLflow without a backup.

    Args:
        path: of the database.
        writing: whether it must be possible to write to it.

    Raises:
        InputError: it is no MLflow database, or cannot be written to.
        ResourceError: it is locked or damaged, the disk is full, or it is of another MLflow version.
    """
    with database_errors(path):
        if not path.exists():
            _make(path)
        if path.is_dir():
            raise InputError("a folder lies where the MLflow database should be", where=path, do="correct tracking.uri")
        _require_content(path)
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
            if writing:
                _require_writable(connection)
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise _corrupt(path, problem)
            revision = _revision(connection, path)
    _require_revision(revision, path)


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite, and MLflow on top of it, raises within a `with` block into an error that says what to do.

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


def explain_database_error(path: Path, said: str) -> GtvrayError | None:
    """The error for what SQLite said of a database; None if it said nothing that is known."""
    found = next(iter(said.strip().splitlines()), "")
    return next((make(path, found) for signs, make in _ERRORS if any(sign in said for sign in signs)), None)


def _make(path: Path) -> None:
    from mlflow.tracking import MlflowClient

    with atomic_path(path) as temporary:
        MlflowClient(f"{_URL}{temporary.resolve()}").search_experiments(max_results=1)


def _require_content(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(len(_HEADER))
    if not header:
        raise ResourceError(
            "the MLflow database is an empty file",
            where=path,
            expected="a database; runs and registered models were in it",
            do="put a backup back; only if nothing was ever recorded, remove the file, and a new database is made",
        )
    if header != _HEADER:
        raise _no_database(path, "a file of another kind")


def _require_writable(connection: sqlite3.Connection) -> None:
    """Write the value that is there, and take it back: to begin to write succeeds on a read-only file as well."""
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
        found = f"a database of another program, with the tables {', '.join(sorted(tables))}" if tables else "no tables"
        raise _no_database(path, found)
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
    versions = {"where": path, "expected": f"schema {head}, of MLflow {installed}, which is installed"}
    try:
        scripts.get_revision(revision)
    except CommandError as error:
        raise ResourceError(
            "the MLflow database was written by a newer MLflow than is installed",
            **versions,
            found=f"schema {revision}, which MLflow {installed} does not know",
            do=f"install the MLflow that wrote it, one later than {installed}: pip install 'mlflow>{installed}'; the "
            "database is sound: leave it as it is",
        ) from error
    file, uri = shlex.quote(str(path)), shlex.quote(f"{_URL}{path}")
    raise ResourceError(
        "the MLflow database was written by an older MLflow than is installed",
        **versions,
        found=f"schema {revision}, which is older",
        do=f"back it up and upgrade it: cp {file} {shlex.quote(f'{path}.backup')} && mlflow db upgrade {uri}",
    )


def _locked(path: Path, found: str) -> ResourceError:
    return ResourceError(
        "the MLflow database is locked by another program",
        where=path,
        found=f"{found}; {_users_of(path)}",
        do="wait until that program has finished, or close it, and run this again; it is sound: leave it there",
    )


def _full(path: Path, found: str) -> ResourceError:
    return ResourceError(
        "the disk is full", where=path.parent, found=found, do="free some space and run it again; the database is sound"
    )


def _read_only(path: Path, found: str) -> InputError:
    return InputError(
        "the MLflow database cannot be written to",
        where=path,
        expected="a file, and a folder around it, that this user may write to",
        found=found,
        do="change their permissions or owner, or choose another --workspace or tracking.uri",
    )


def _not_opened(path: Path, found: str) -> InputError:
    return InputError(
        "the MLflow database cannot be opened",
        where=path,
        found=f"{found}: the folder is missing, or this user may not write to it",
        do="correct tracking.uri or --workspace, or the folder's permissions",
    )


def _no_database(path: Path, found: str) -> InputError:
    return InputError(
        "no MLflow database",
        where=path,
        found=found,
        do="correct tracking.uri, or put a backup of the database back in its place",
    )


def _corrupt(path: Path, found: str) -> ResourceError:
    file, saved = shlex.quote(str(path)), shlex.quote(f"{path}.recovered")
    return ResourceError(
        "the MLflow database is damaged",
        where=path,
        found=found,
        do="put a backup back, and keep the damaged file; what is readable of it is recovered by "
        f"sqlite3 {file} .recover | sqlite3 {saved}",
    )


def _users_of(path: Path) -> str:
    """Programs that have a file open, as far as this user may see."""
    users: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and any(
                os.path.samefile(handle, path) for handle in (process / "fd").iterdir() if handle.exists()
            ):
                users.append(f"{(process / 'comm').read_text().strip()} (process {process.name})")
        except OSError:
            continue
    return f"open in {', '.join(users)}" if users else "a program of another user or host, or one that has just ended"


# What SQLite says, and the error it becomes.
_ERRORS: tuple[tuple[tuple[str, ...], Callable[[Path, str], GtvrayError]], ...] = (
    (("database is locked", "database table is locked"), _locked),
    (("disk is full", "No space left"), _full),
    (("readonly database", "Read-only file system", "Permission denied"), _read_only),
    (("file is not a database",), _no_database),
    (("malformed", "disk I/O error"), _corrupt),
    (("unable to open database file",), _not_opened),
)
