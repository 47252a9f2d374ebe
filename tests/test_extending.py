"""The example of docs/extending.md works: a loss added by following it passes the conformance suite."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SUITE = Path("tests/models/test_loss_conformance.py")
NAME = "tversky_ce"


def _blocks(language: str) -> list[str]:
    """Return the code blocks of the section on losses."""
    text = (REPOSITORY / "docs" / "extending.md").read_text()
    section = text.partition("\n## A loss\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def _apply(path: Path, hunk: str) -> None:
    """Add the lines marked with + to a file; the other lines must occur there exactly once."""
    lines = hunk.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if not line.startswith("+"))
    text = path.read_text()
    assert text.count(before) == 1, f"{path.name} does not have the lines that the guide shows"
    path.write_text(text.replace(before, "".join(line[1:] for line in lines)))


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """Copy the package and the suite, and apply the three blocks as described."""
    shutil.copytree(REPOSITORY / "gtvray", tmp_path / "gtvray", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / SUITE.parent, tmp_path / SUITE.parent, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    (term,), (entry, choice) = _blocks("python"), _blocks("diff")
    terms = tmp_path / "gtvray" / "models" / "terms.py"
    terms.write_text(f"{terms.read_text()}\n\n{term}")
    _apply(tmp_path / "gtvray" / "models" / "losses.py", entry)
    _apply(tmp_path / "gtvray" / "config" / "training.py", choice)
    return tmp_path


def _passed(folder: Path, select: str) -> int:
    """Run the selected tests of the suite on the copy, and return how many passed; none may fail."""
    command = [sys.executable, "-m", "pytest", str(SUITE), "-q", "-p", "no:cacheprovider", "-k", select]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    return int(passed[1])


@pytest.mark.slow
def test_loss_of_the_guide_passes_the_conformance_suite(extended: Path) -> None:
    # All checks of the suite on the added loss, except the one with two processes, and the registry check.
    checks = len(re.findall(r"^@every_loss$", (REPOSITORY / SUITE).read_text(), re.MULTILINE))
    assert _passed(extended, f"({NAME} and not two_workers) or every_choice") >= checks


@pytest.mark.slow
def test_loss_of_the_guide_is_equal_on_two_workers(extended: Path) -> None:
    assert _passed(extended, f"{NAME} and two_workers") == 4


def test_loss_of_the_guide_is_not_part_of_the_package() -> None:
    """The suite runs on the copy: the name is unknown here."""
    assert NAME not in (REPOSITORY / "gtvray" / "models" / "losses.py").read_text()
