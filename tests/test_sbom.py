"""`make sbom`: the list of installed packages."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from .conftest import REPOSITORY

_INSTALLED = "build/sbom/bin/cyclonedx-py"


@pytest.mark.timeout(300)
def test_list_of_packages_names_the_installed_versions(tmp_path: Path) -> None:
    """The command of the Makefile, with this Python instead of that of .venv."""
    made = REPOSITORY / _INSTALLED
    tool = str(made) if made.is_file() else shutil.which("cyclonedx-py")
    if tool is None:
        pytest.skip("cyclonedx-py is not installed; `make sbom` installs it into build/sbom")
    (line,) = [
        line for line in (REPOSITORY / "Makefile").read_text().splitlines() if line.startswith(f"\t{_INSTALLED}")
    ]
    replaced = {_INSTALLED: tool, "build/sbom.json": str(tmp_path / "sbom.json"), "$(BIN)/python": sys.executable}
    command = [replaced.get(word, word) for word in shlex.split(line)]
    done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "sbom.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    versions = {entry["name"].lower(): entry["version"] for entry in found["components"]}
    assert {name: versions[name] for name in ("ray", "torch")} == {n: metadata.version(n) for n in ("ray", "torch")}
