"""The commit of the code that a promotion records."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gtvray.promotion import code_commit


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_of_a_clone_and_of_an_installed_package(tmp_path: Path) -> None:
    package = tmp_path / "clone" / "package"
    package.mkdir(parents=True)
    (package / "file.py").write_text("")

    def git(*words: str) -> str:
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        command = ["git", "-C", str(package.parent), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert code_commit(package) == ""
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "-a", "v1", "-m", "v1")
    assert code_commit(package) == git("rev-parse", "HEAD")
    (package / "file.py").write_text("changed")
    assert code_commit(package) == git("rev-parse", "HEAD") + "-dirty"
    installed = package.parent / "venv" / "package"
    installed.mkdir(parents=True)
    assert code_commit(installed) == "", "the repository is another project"
