"""An SQLite database that MLflow cannot use: what is wrong with it, and an advice that loses nothing."""

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

Spoil = Callable[[Path], None]


@pytest.fixture
def copied(client: MlflowClient, database: Path, tmp_path: Path) -> Path:
    """A sound database, to be spoiled."""
    return Path(shutil.copy(database, tmp_path / "mlflow.db"))


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("no database at all, but long enough to be one: " * 20)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_program(path: Path) -> None:
    path.unlink()
    change(path, "CREATE TABLE bookmarks (url TEXT)")


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + b"\xff" * 8192 + content[middle + 8192 :])


def newer(path: Path) -> None:
    change(path, "UPDATE alembic_version SET version_num = 'ffff00000001'")


def older(path: Path) -> None:
    change(path, "UPDATE alembic_version SET version_num = 'bd07f7e963c5'", "DROP TABLE guardrails")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("spoil", "kind", "what", "advice"),
    [
        (empty, ResourceError, "is an empty file", "put a backup back"),
        (text, InputError, "no MLflow database", "correct tracking.uri"),
        (folder, InputError, "a folder lies where", "correct tracking.uri"),
        (other_program, InputError, "no MLflow database", "correct tracking.uri"),
        (cut_off, ResourceError, "is damaged", "put a backup back"),
        (overwritten, ResourceError, "is damaged", "put a backup back"),
        (newer, ResourceError, "written by a newer MLflow", "pip install 'mlflow>"),
        (older, ResourceError, "written by an older MLflow", "mlflow db upgrade sqlite:////"),
    ],
)
def test_each_fault_has_its_own_error(
    spoil: Spoil, kind: type[GtvrayError], what: str, advice: str, copied: Path
) -> None:
    spoil(copied)
    before = copied.read_bytes() if copied.is_file() else None
    with pytest.raises(kind, match=what) as caught:
        ensure_database(copied)
    assert advice in caught.value.fields["do"]
    assert caught.value.fields["where"] == str(copied)
    assert len(str(caught.value).splitlines()) <= 5
    assert (copied.read_bytes() if copied.is_file() else None) == before, "it is left as it was"


@pytest.mark.timeout(60)
def test_a_locked_database_is_to_be_waited_for_and_not_moved_away(copied: Path) -> None:
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
    ("said", "kind", "what"),
    [
        ("(sqlite3.OperationalError) database is locked", ResourceError, "locked by another program"),
        ("(sqlite3.OperationalError) database or disk is full", ResourceError, "disk is full"),
        ("attempt to write a readonly database", InputError, "cannot be written to"),
        ("[Errno 13] Permission denied", InputError, "cannot be written to"),
        ("unable to open database file", InputError, "cannot be opened"),
        ("database disk image is malformed", ResourceError, "is damaged"),
    ],
)
def test_what_sqlite_says_becomes_an_error(said: str, kind: type[GtvrayError], what: str, tmp_path: Path) -> None:
    error = explain_database_error(tmp_path / "mlflow.db", said)
    assert isinstance(error, kind)
    assert what in error.what


def test_what_is_no_fault_of_the_database_is_left_alone(tmp_path: Path) -> None:
    assert explain_database_error(tmp_path / "mlflow.db", "no such experiment") is None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_a_file_that_must_not_be_written_to_says_so_and_can_be_read(copied: Path) -> None:
    """In a process of a user who may not: root may write to any file."""
    copied.chmod(0o444)
    for folder in (copied.parent, *copied.parent.parents[:2]):
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
        # The modules are loaded: the other user may not be allowed to read them.
        code = 1
        try:
            attempt()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
