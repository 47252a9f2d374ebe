"""The tables of jobs and their volumes, and the engine; the same SQL runs on SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    make_url,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from gtvray.errors import ConfigError, ResourceError, StorageFullError

DATABASE_VARIABLE = "GTVRAY_JOBS_DATABASE"
_BUSY_TIMEOUT_S = 30
_POSTGRESQL_DISK_FULL = "53100"

metadata = MetaData()

jobs = Table(
    "gtvray_jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(200), nullable=False),
    # Digests: a client may put a patient's name into its key.
    Column("key_digest", String(64)),
    Column("input_digest", String(64), nullable=False),
    Column("priority", String(10), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("cancelled", Boolean, nullable=False),
    # Null: the endpoint's default model.
    Column("model", String(256)),
    UniqueConstraint("owner", "key_digest"),
)
volumes = Table(
    "gtvray_job_volumes",
    metadata,
    Column("job_id", String(32), ForeignKey("gtvray_jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("reference", Boolean, nullable=False),
    Column("stored_bytes", Integer, nullable=False),
    # Encrypted; without it the input cannot be read. Removed when the volume ends.
    Column("input", LargeBinary),
    Column("state", String(10), nullable=False),
    # Volumes are processed in this order; see `store.due_at`.
    Column("due", Float, nullable=False),
    Column("not_before", Float, nullable=False),
    # A claim increments `attempt`, and only the holder of the latest one may write.
    Column("attempt", Integer, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("interruptions", Integer, nullable=False),
    Column("percent", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("problem", Text),
    Column("result", LargeBinary),
    Index("gtvray_job_volumes_due", "state", "due"),
)


def open_database(url: str | None, folder: Path) -> Engine:
    """Open the database and create its tables.

    Args:
        url: SQLAlchemy URL, such as postgresql://user@host/database; None uses SQLite in the folder.
        folder: folder of the job store.

    Raises:
        ConfigError: the URL is invalid or of another database, or its driver is not installed.
    """
    try:
        address = make_url(url or f"sqlite:///{folder / 'jobs.db'}")
    except ArgumentError as error:
        raise ConfigError("not the URL of a database", where=DATABASE_VARIABLE, expected="postgresql://...") from error
    kind = address.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise ConfigError("unsupported database", where=DATABASE_VARIABLE, expected="postgresql://...", found=kind)
    if kind == "sqlite":
        engine = create_engine(address, connect_args={"timeout": _BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        try:
            engine = create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        except ModuleNotFoundError as error:
            raise ConfigError(
                "the PostgreSQL driver is not installed", found=error, do="pip install 'gtvray[postgres]' on every node"
            ) from error
    try:
        metadata.create_all(engine)
    except DBAPIError:
        # Another gateway may have created them concurrently; if not, this raises the error again.
        metadata.create_all(engine)
    _add_missing_column(engine)
    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Run a transaction, and convert the faults of the database to errors of gtvray.

    Raises:
        StorageFullError: the disk of the database is full.
        ResourceError: the database is unavailable or locked. The transaction may nevertheless have been committed, if
            the connection broke at its end.
        IntegrityError, DataError, ProgrammingError: a statement is not valid.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except (IntegrityError, DataError, ProgrammingError):
        raise
    except (DBAPIError, PoolTimeoutError) as error:
        found = type(error).__name__
        if isinstance(error, DBAPIError) and _is_disk_full(error.orig):
            raise StorageFullError(
                "the disk of the job database is full", found=found, do="ask the operator to free disk space"
            ) from error
        raise ResourceError(
            "the job database is not available",
            found=found,
            do="retry later; if it persists, report it to the server's operator",
        ) from error


def _is_disk_full(error: BaseException | None) -> bool:
    return (
        getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(error, "sqlstate", None) == _POSTGRESQL_DISK_FULL
    )


def _add_missing_column(engine: Engine) -> None:
    """Add the column that a table created by an earlier version lacks."""
    with engine.begin() as connection:
        if any(column["name"] == "model" for column in inspect(connection).get_columns(jobs.name)):
            return
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {jobs.name} ADD COLUMN model VARCHAR(256)")
    except DBAPIError:
        # Another gateway may have added it concurrently; if not, the first job fails.
        pass


def _configure_sqlite(connection: Any, _: object) -> None:
    # `_begin_sqlite` starts transactions; sqlite3 itself would start one at the first write, too late for the lock.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    # An accepted job survives a power failure.
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at the start: a transaction that reads before it writes could fail in between."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
