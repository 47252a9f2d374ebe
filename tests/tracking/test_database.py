"""Faults of MLflow's SQLite database: each has an error of its own, whose instruction loses no data."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.errors import GtvrayError, InputError, ResourceError
from gtvray.tracking.database import ensure_database, explain_database_error

Damage = Callable[[Path], None]


@pytest.fixture
def copied(client: MlflowClient, database: Path, tmp_path: Path) -> Path:
    """A copy of a valid database, for a test to damage."""
    return Path(shutil.copy(database, tmp_path / "mlflow.db"))


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not a database, but longer than the header of one: " * 20)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_program(path: Path) -> None:
    path.unlink()
    execute(path, "CREATE TABLE bookmarks (url TEXT)")


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + b"\xff" * 8192 + content[middle + 8192 :])


def newer(path: Path) -> None:
    execute(path, "UPDATE alembic_version SET version_num = 'ffff00000001'")


def older(path: Path) -> None:
    execute(path, "UPDATE alembic_version SET version_num = 'bd07f7e963c5'", "DROP TABLE guardrails")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("damage", "kind", "what", "instruction"),
    [
        (empty, ResourceError, "is an empty file", "restore a backup"),
        (text, InputError, "not an MLflow database", "correct tracking.uri"),
        (folder, InputError, "is a folder", "correct tracking.uri"),
        (other_program, InputError, "not an MLflow database", "correct tracking.uri"),
        (cut_off, ResourceError, "is damaged", "restore a backup"),
        (overwritten, ResourceError, "is damaged", "restore a backup"),
        (newer, ResourceError, "written by a newer MLflow", "pip install 'mlflow>"),
        (older, ResourceError, "written by an older MLflow", "mlflow db upgrade sqlite:////"),
    ],
)
def test_each_fault_has_its_own_error(
    damage: Damage, kind: type[GtvrayError], what: str, instruction: str, copied: Path
) -> None:
    damage(copied)
    before = copied.read_bytes() if copied.is_file() else None
    with pytest.raises(kind, match=what) as caught:
        ensure_database(copied)
    assert instruction in caught.value.fields["do"]
    assert caught.value.fields["where"] == str(copied)
    assert len(str(caught.value).splitlines()) <= 5
    assert (copied.read_bytes() if copied.is_file() else None) == before, "the file is unchanged"


@pytest.mark.timeout(60)
def test_locked_database_error_names_the_process_and_says_to_wait(copied: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN EXCLUSIVE'); "
         "print('held', flush=True); sys.stdin.read()", str(copied)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ResourceError, match="locked by another program") as caught:
            ensure_database(copied)
        assert f"(process {holder.pid})" in caught.value.fields["found"]
        assert "wait until that program has finished" in caught.value.fields["do"]
        assert "move" not in str(caught.value)
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()
    ensure_database(copied)


@pytest.mark.parametrize(
    ("message", "kind", "what"),
    [
        ("(sqlite3.OperationalError) database is locked", ResourceError, "locked by another program"),
        ("(sqlite3.OperationalError) database or disk is full", ResourceError, "disk is full"),
        ("attempt to write a readonly database", InputError, "cannot be written to"),
        ("[Errno 13] Permission denied", InputError, "cannot be written to"),
        ("unable to open database file", InputError, "cannot be opened"),
        ("database disk image is malformed", ResourceError, "is damaged"),
    ],
)
def test_sqlite_messages_are_converted_to_errors(
    message: str, kind: type[GtvrayError], what: str, tmp_path: Path
) -> None:
    error = explain_database_error(tmp_path / "mlflow.db", message)
    assert isinstance(error, kind)
    assert what in error.what


def test_unknown_message_is_not_converted(tmp_path: Path) -> None:
    assert explain_database_error(tmp_path / "mlflow.db", "no such experiment") is None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_read_only_database_is_refused_for_writing_and_accepted_for_reading(copied: Path) -> None:
    """Runs in a process of another user, since root can write to any file."""
    copied.chmod(0o444)
    # Up to the folder of pytest, which is one level higher when tests run in several processes.
    for folder in (copied.parent, *copied.parent.parents[:3]):
        folder.chmod(0o755)

    def attempt() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)
        ensure_database(copied, writing=False)
        with pytest.raises(InputError, match="cannot be written to"):
            ensure_database(copied)

    ensure_database(copied, writing=False)
    child = os.fork()
    if not child:
        # The modules are already imported; the other user may not have read access to them.
        code = 1
        try:
            attempt()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
